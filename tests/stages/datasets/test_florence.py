"""Florence: which scan is the ground truth, what is left out and counted, nose tips."""

from pathlib import Path

import numpy as np
import pytest

from stages.datasets.base import ItemError, ItemRef, ScanRow
from stages.datasets.nose_tips import check_on_scan, read_nose_tips
from stages.datasets.registry import DATASETS
from tests.stages.datasets import raw_trees

FLORENCE = DATASETS["florence"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return raw_trees.florence(tmp_path)


def refs_of(root: Path) -> dict[str, ItemRef]:
    return {ref.item_id: ref for ref in FLORENCE.discover(root)}


def scan(root: Path, item: str) -> ScanRow:
    row = FLORENCE.read(root, refs_of(root)[item])
    assert isinstance(row, ScanRow)
    return row


def test_items(root: Path) -> None:
    refs = refs_of(root)
    assert sorted(item for item, ref in refs.items() if ref.kind == "scan") == [
        "subject_01/110920150452",
        "subject_01/110920150519",
        "subject_02/110920160000",
        "subject_03/110921090000",
        "subject_03/110921090030",
        "subject_04/110922100000",
        "subject_04/110922100001",
    ]
    assert sorted(item for item, ref in refs.items() if ref.kind == "image") == [
        "subject_01/Indoor-Cooperative/frame_0010",
        "subject_01/PTZ-Indoor/frame_0010",
        "subject_02/PTZ-Indoor/frame_0010",
    ]
    assert refs["subject_01/PTZ-Indoor/frame_0010"].attributes == {"clip": "PTZ-Indoor"}


def test_what_is_left_out_is_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        attributes = refs_of(root)["subject_01/110920150452"].attributes
    assert attributes["left_out"] == {"PTZ-Outdoor": 2, "sidel": 1}
    assert attributes["videos"] == ["subject_01/Video/Indoor-Cooperative.mjpg"]
    assert refs_of(root)["subject_02/110920160000"].attributes["left_out"] == {}
    assert "2 frames of PTZ-Outdoor left out" in caplog.text


def test_frontal1_is_the_ground_truth_where_it_can_be_read(root: Path) -> None:
    first, second = scan(root, "subject_01/110920150452"), scan(root, "subject_01/110920150519")
    assert (first.unit, first.neutral, second.neutral) == ("mm", True, True)
    assert first.attributes["ground_truth"] is True
    assert second.attributes == {"ground_truth": False}
    assert scan(root, "subject_02/110920160000").attributes["ground_truth"] is True


def test_an_unreadable_frontal1_hands_over_to_frontal2(root: Path) -> None:
    with pytest.raises(ValueError, match="no faces"):
        scan(root, "subject_03/110921090000")
    raw_trees.write(root / "nose_tips.csv", "subject,x,y,z\nsubject_03,0,0,1\n")
    found = scan(root, "subject_03/110921090030").attributes
    assert found == {"ground_truth": True, "nose_tip": [0.0, 0.0, 1.0]}
    for item in ("subject_04/110922100000", "subject_04/110922100001"):
        with pytest.raises(ValueError, match="NaN|empty"):
            scan(root, item)


def test_nose_tips_belong_to_the_ground_truth_and_lie_on_it(root: Path) -> None:
    assert scan(root, "subject_01/110920150452").attributes["nose_tip"] == [100.0, 100.0, 8.0]
    with pytest.raises(ItemError, match="the nose tip is 400 mm from the scan, expected at most"):
        scan(root, "subject_03/110921090030")


def test_a_nose_tip_of_nobody_is_said(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw_trees.write(root / "nose_tips.csv", "subject,x,y,z\nsubject_44,0,0,1\n")
    refs_of(root)
    assert "a nose tip of subject_44, who has no scan" in caplog.text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected the header subject,x,y,z, got ''"),
        ("subject,x,y\na,1,2\n", "expected the header"),
        ("subject,x,y,z\na,1,2\n", "line 2: expected a subject and three numbers, got 'a,1,2'"),
        ("subject,x,y,z\n\na,1,2,nose\n", "line 3: expected a subject and three numbers"),
        ("subject,x,y,z\na,1,2,nan\n", "line 2"),
        ("subject,x,y,z\n,1,2,3\n", "line 2"),
        ("subject,x,y,z\na,1,2,3\na,1,2,3\n", "line 3: a is there twice"),
        ('subject,x,y,z\na,"1,2,3\n', "comma-separated"),
    ],
)
def test_bad_nose_tips_say_file_and_line(tmp_path: Path, text: str, told: str) -> None:
    raw_trees.write(tmp_path / "nose_tips.csv", text)
    with pytest.raises(ItemError, match=r"nose_tips\.csv") as caught:
        read_nose_tips(tmp_path)
    assert told in str(caught.value)


def test_nose_tips_in_any_column_order(tmp_path: Path) -> None:
    assert read_nose_tips(tmp_path) == {}
    text = "\ufeffZ, Subject ,x,y\r\n3,subject_01,1,2\r\n"
    raw_trees.write(tmp_path / "nose_tips.csv", text)
    assert read_nose_tips(tmp_path) == {"subject_01": (1.0, 2.0, 3.0)}


def test_distance_to_the_scan_is_in_millimetres() -> None:
    vertices = np.array([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0]])
    check_on_scan((0.1, 0.0, 0.0099), vertices, unit_mm=1000.0)
    with pytest.raises(ItemError, match="is 11 mm from"):
        check_on_scan((0.1, 0.0, 0.011), vertices, unit_mm=1000.0)


def test_videos_without_frames_are_told(root: Path, tmp_path: Path) -> None:
    assert not any(".mjpg" in str(problem) for problem in FLORENCE.validate(root))
    (root / "images").rename(tmp_path / "elsewhere")
    told = [str(problem) for problem in FLORENCE.validate(root)]
    assert any(
        "1 videos, no extracted frames" in problem and "ffmpeg" in problem for problem in told
    )
