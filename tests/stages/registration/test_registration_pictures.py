"""Which registrations are drawn, and the pages of the worst."""

import cv2
import numpy as np
import pytest

from stages.registration.pictures import chosen, draw_pages, pages_of, wanted_pictures
from stages.runtime import params


@pytest.fixture(scope="module")
def section(repository) -> params.RegisterParams:
    return params.load(repository / "params.yaml").registration


def ranked(*rows: tuple[str, float | None]) -> list[dict]:
    return [
        {"item_id": f"{at:02d}", "status": status, "residual_median_mm": residual}
        for at, (status, residual) in enumerate(rows)
    ]


def test_what_is_drawn(section) -> None:
    rows = ranked(
        ("ok", 0.1),
        ("rejected", 0.05),
        ("failed", None),
        ("ok", 0.3),
        ("rejected", None),
        ("rejected", 0.9),
        ("ok", 0.2),
    )
    few = section.model_copy(update={"qa_worst": 3, "qa_rejected": 2, "qa_pictures": 1})
    wanted = wanted_pictures(rows, few)
    # rejected first, each group from the largest residual; no residual at all is the largest
    assert list(wanted) == [4, 5, 1, 3]
    assert [at for at, (_, cell) in wanted.items() if cell] == [4, 5, 3]
    assert {at for at, (alone, _) in wanted.items() if alone} == {1, 3, 4, 5}
    many = section.model_copy(update={"qa_worst": 0, "qa_rejected": 9, "qa_pictures": 0})
    assert [at for at, (_, cell) in wanted_pictures(rows, many).items() if cell] == [4, 5, 1]


def test_pages_hold_twenty(section) -> None:
    image = np.zeros((8, 384, 3), np.uint8)
    row = {"item_id": "ä/1", "status": "ok", "residual_median_mm": 0.1, "residual_q95_mm": None}
    cells = [(f"{at:064x}", row | {"reason": ""}, image) for at in range(41)]
    pages = pages_of(cells)
    assert [page.file_name for page in pages] == ["worst.png", "worst-2.png", "worst-3.png"]
    drawn = [made["page"] for made in draw_pages(pages, dataset="set", section=section)]
    heights = [len(cv2.imdecode(np.frombuffer(page, np.uint8), 1)) for page in drawn]
    assert heights == [64 + 10 * 88, 64 + 10 * 88, 64 + 88]
    assert len({page.key for page in [*pages, *pages_of(cells[1:]), *pages_of(cells[:40])]}) == 5
    assert pages_of([]) == []


def test_pictures_stay_with_their_scans_when_others_come_and_go() -> None:
    ids = [f"{i:02d}" for i in range(20)]
    four = chosen(ids, 4)
    assert len(four) == 4
    assert four <= set(ids)
    for other in set(ids) - four:
        assert chosen(sorted(set(ids) - {other}), 4) == four
    assert len(chosen([*ids, "20"], 4) - four) <= 1
    assert chosen([], 3) == chosen(ids, 0) == frozenset()
