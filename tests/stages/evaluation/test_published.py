"""The published tables: complete, sourced, and plausible figure by figure."""

from pathlib import Path

import pytest

from stages.reporting.inputs import PROTOCOL_TITLES
from stages.reporting.published import published_tables


def test_every_table_has_a_source_and_protocols_that_exist() -> None:
    tables = published_tables()
    assert len({table.key for table in tables}) == len(tables)
    known = {*PROTOCOL_TITLES, "likeness"}
    for table in tables:
        assert any(author in table.source for author in ("MICA", "RingNet", "Deng", "Genova"))
        assert "table" in table.source
        assert set(table.protocols) <= known
        assert len({method for method, _ in table.rows}) == len(table.rows)


def test_scan_distances_have_their_median_below_their_mean() -> None:
    """True of every error distribution here: a swapped column would show."""
    for table in published_tables():
        for start, head in enumerate(table.columns):
            if head == "median":
                for method, figures in table.rows:
                    median, mean = figures[start], figures[start + 1]
                    assert (median is None) == (mean is None)
                    assert median is None or median < mean, (table.key, method)


def test_metric_errors_are_at_least_those_with_free_scale() -> None:
    now = next(table for table in published_tables() if table.key == "now")
    for _, (median, mean, _, metric_median, metric_mean, _) in now.rows:
        if metric_median is not None:
            assert metric_median > median
            assert metric_mean > mean


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("rows = [", 'rows = [["Twice", 1.0],'), "expected 2 figures for Twice, got 1"),
        (('source = "x"', 'source = ""'), "expected a source, got none"),
        (('key = "a"', 'key = "a"\nsurprise = 1'), r"got \['surprise'\]"),
        (('groups = [["g", 2]]', 'groups = [["g", 3]]'), "expected groups over 2 columns"),
    ],
)
def test_a_broken_table_is_refused(change: tuple[str, str], said: str, tmp_path: Path) -> None:
    content = (
        '[[table]]\nkey = "a"\ntitle = "t"\nabout = "b"\nsource = "x"\nprotocols = ["now"]\n'
        'groups = [["g", 2]]\ncolumns = ["median", "mean"]\nrows = [["M", 1.0, "-"]]\n'
    )
    file = tmp_path / "published.toml"
    file.write_text(content)
    assert published_tables(file)[0].rows == (("M", (1.0, None)),)
    broken = tmp_path / "broken.toml"
    broken.write_text(content.replace(*change))
    with pytest.raises(ValueError, match=said):
        published_tables(broken)
