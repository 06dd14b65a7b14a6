"""One picture for people in a hurry: a scan registered, photographs with their ground truth."""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from stages.runtime.artifacts import read_table

WIDTH_PX = 1200
SCAN_SETS = ("lyhm", "stirling", "facewarehouse")  # the first that has a picture is shown
PREVIEWS = 2
GAP_PX = 12


def overview_picture(data: Path) -> bytes | None:
    """Return a PNG: a registered scan over ground truth of photographs.

    Args:
        data: The folder that all stages write under.

    Returns:
        None while neither registrations nor renderings exist.
    """
    rows = [row for row in (_registration(data), _ground_truth(data)) if row is not None]
    if not rows:
        return None
    gap = np.full((GAP_PX, WIDTH_PX, 3), 255, np.uint8)
    stacked = [rows[0]] + [part for row in rows[1:] for part in (gap, row)]
    encoded, buffer = cv2.imencode(".png", np.vstack(stacked), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert encoded
    return bytes(buffer)


def _registration(data: Path) -> UInt8[np.ndarray, "h w 3"] | None:
    """The quality picture of an accepted registration, the one with the least residual of a set."""
    for dataset in SCAN_SETS:
        table = data / "registered" / dataset / "registrations.parquet"
        if not table.is_file():
            continue
        columns = ["item_id", "status", "residual_median_mm"]
        accepted = [
            (row["residual_median_mm"], table.parent / "qa" / f"{_file_name(row['item_id'])}.png")
            for row in read_table(table, columns).to_pylist()
            if row["status"] == "ok"
        ]
        shown = sorted(pair for pair in accepted if pair[1].is_file())
        if shown:
            return _fit(shown[0][1], WIDTH_PX)
    return None


def _file_name(item_id: str) -> str:
    return item_id.replace("/", "_")


def _ground_truth(data: Path) -> UInt8[np.ndarray, "h w 3"] | None:
    """Photographs with PNCC over them, PNCC and offset, side by side."""
    paths = sorted((data / "rendered").glob("*/preview/*.png"))[:PREVIEWS]
    if len(paths) < PREVIEWS:
        return None
    width = (WIDTH_PX - (PREVIEWS - 1) * GAP_PX) // PREVIEWS
    pictures = [_fit(path, width) for path in paths]
    height = min(len(picture) for picture in pictures)
    gap = np.full((height, WIDTH_PX - PREVIEWS * width, 3), 255, np.uint8)
    return np.hstack([pictures[0][:height], gap, *(one[:height] for one in pictures[1:])])


def _fit(path: Path, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Read a picture and scale it to a width."""
    picture = cv2.imread(str(path))
    if picture is None:
        raise ValueError(f"expected a picture in {path}, got a file that OpenCV cannot read")
    height = round(picture.shape[0] * width / picture.shape[1])
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
