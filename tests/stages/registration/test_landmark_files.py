"""Landmarks of scans as data sets and annotation tools write them."""

import numpy as np
import pytest

from stages.landmarking.landmark_files import read_scan_landmarks

POINTS = np.arange(21.0).reshape(7, 3)


def test_landmark_files_of_every_kind(tmp_path) -> None:
    np.save(tmp_path / "a.npy", POINTS[None])
    (tmp_path / "b.txt").write_text("\n".join(" ".join(map(str, p)) for p in POINTS))
    (tmp_path / "c.lnd").write_text(
        "\n".join(f"{i} {x},{y},{z}" for i, (x, y, z) in enumerate(POINTS))
    )
    picked = "".join(f'<point x="{x}" y="{y}" z="{z}" name="n"/>\n' for x, y, z in POINTS)
    (tmp_path / "d.pp").write_text(f"<PickedPoints>\n{picked}</PickedPoints>")
    (tmp_path / "ldmks1.txt").write_text("\n".join(str(i) for i in range(1, 8)))
    for name in ("a.npy", "b.txt", "c.lnd", "d.pp", "ldmks1.txt"):
        np.testing.assert_array_equal(read_scan_landmarks(tmp_path / name, POINTS), POINTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3\n" * 67, r"got \(67, 3\)"),
        ("1 2 3\n4 5\n", "rows of"),
        ("one two three\n", "rows of numbers"),
        ("0\n" * 68, "1-based"),
        ("9\n" * 68, "up to 7"),
    ],
)
def test_bad_landmark_files(tmp_path, text: str, message: str) -> None:
    (tmp_path / "x.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_scan_landmarks(tmp_path / "x.txt", POINTS)


def test_missing_landmark_file(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_scan_landmarks(tmp_path / "none.npy", POINTS)
