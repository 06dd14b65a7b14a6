"""The list of neutral scans: what it may look like, and how a wrong one is told."""

from pathlib import Path

import pytest

from stages.datasets.base import ItemError
from stages.datasets.neutral_frames import (
    FILE_NAME,
    expected,
    problems,
    read_neutral_frames,
    warn_unmatched,
)
from tests.stages.datasets.raw_trees import write


def test_without_the_file_nothing_is_known(tmp_path: Path) -> None:
    assert read_neutral_frames(tmp_path) is None
    assert problems(tmp_path) == []
    assert expected("F001,0001").found(tmp_path) is None


@pytest.mark.parametrize(
    "text",
    [
        "subject,scan\nF001,0001\nF001,0002\nM002,17\n",
        "\ufeffSubject , Scan\r\n\r\nF001, 0001\r\nF001,0002\r\n\r\nM002,17",
        'scan,subject\n"0001",F001\n0002,F001\n0002,F001\n17,"M002"\n',
    ],
)
def test_spreadsheets_may_write_it(tmp_path: Path, text: str) -> None:
    write(tmp_path / FILE_NAME, text)
    assert read_neutral_frames(tmp_path) == {
        "F001": frozenset({"0001", "0002"}),
        "M002": frozenset({"17"}),
    }
    assert expected("F001,0001").found(tmp_path) == tmp_path / FILE_NAME


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is empty; expected the header subject,scan"),
        ("\n\n", "is empty"),
        ("F001,0001\n", "line 1: expected the header subject,scan, got 'F001,0001'"),
        ("subject,scan\n\nF001\n", "line 3: expected a subject and a scan, got 'F001'"),
        ("subject,scan\nF001,\n", "line 2: expected a subject and a scan"),
        ("subject,scan\nF001,1,2\n", "line 2"),
        ('subject,scan\n"F001,1\n', "comma-separated"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_a_wrong_file_is_told(tmp_path: Path, content: str | bytes, reason: str) -> None:
    write(tmp_path / FILE_NAME, content)
    with pytest.raises(ItemError, match=reason):
        read_neutral_frames(tmp_path)
    (problem,) = problems(tmp_path)
    assert problem.required
    assert FILE_NAME in str(problem)


def test_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.csv", "subject,scan\na,b\n")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / FILE_NAME).symlink_to(secret)
    with pytest.raises(ItemError, match="outside"):
        read_neutral_frames(tmp_path / "root")


def test_spelling_mistakes_are_told(caplog: pytest.LogCaptureFixture) -> None:
    warn_unmatched(None, {"F001": {"1"}})
    warn_unmatched({"F001": frozenset({"1"})}, {"F001": {"1", "2"}})
    assert not caplog.records
    warn_unmatched({"F001": frozenset({"1", "3"}), "F01": frozenset({"1"})}, {"F001": {"1"}})
    first, second = (record.getMessage() for record in caplog.records)
    assert "no scan 3 of subject F001" in first
    assert "no scan 1 of subject F01;" in second
