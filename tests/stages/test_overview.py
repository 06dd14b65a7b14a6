"""The overview picture takes accepted registrations only and does without what is missing."""

from pathlib import Path

import cv2
import numpy as np

from stages.reporting.overview import WIDTH_PX, overview_picture
from stages.runtime.artifacts import write_table
from stages.runtime.contracts import table_of


def registration(item: str, status: str, median: float) -> dict[str, object]:
    return {
        "item_id": item,
        "subject_id": "LYHM/1",
        "status": status,
        "reason": "",
        "residual_median_mm": median,
    }


def flat(path: Path, colour: tuple[int, int, int], size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), colour, np.uint8))


def decode(data: bytes | None) -> np.ndarray:
    assert data is not None
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def test_nothing_to_show_is_no_picture(tmp_path: Path) -> None:
    assert overview_picture(tmp_path) is None


def test_the_accepted_scan_with_the_least_residual_is_shown(tmp_path: Path) -> None:
    rows = [
        registration("a/1", "rejected", 0.01),
        registration("b/1", "ok", 0.2),
        registration("c/1", "ok", 0.1),
    ]
    folder = tmp_path / "registered" / "lyhm"
    write_table(table_of(rows, "registrations"), folder / "registrations.parquet")
    for name, colour in (("a_1", (255, 0, 0)), ("b_1", (0, 255, 0)), ("c_1", (0, 0, 255))):
        flat(folder / "qa" / f"{name}.png", colour, (100, 200))
    picture = decode(overview_picture(tmp_path))
    assert picture.shape == (WIDTH_PX // 2, WIDTH_PX, 3)
    assert (picture == (0, 0, 255)).all()


def test_ground_truth_stands_below(tmp_path: Path) -> None:
    for index in range(3):
        flat(tmp_path / "rendered/300w_lp/preview" / f"{index}.png", (0, 90 * index, 0), (50, 150))
    picture = decode(overview_picture(tmp_path))
    assert picture.shape[1] == WIDTH_PX
    assert tuple(picture[10, 10]) == (0, 0, 0)
    assert tuple(picture[10, -10]) == (0, 90, 0)
