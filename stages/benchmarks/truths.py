"""Packed NoW scans as the truth that predictions are measured on."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from models.metrics import UNITS_MM
from stages.datasets.meshes import Mesh
from stages.runtime.artifacts import read_table

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Truth:
    """One subject's scan in mm, with its seven landmarks."""

    mesh: Mesh
    landmarks: Float[np.ndarray, "7 3"]


def load_truths(now: Path) -> dict[str, Truth | str]:
    """Scan and landmarks of every subject of the packed NoW data.

    Returns:
        By ``subject_id``; a reason in words where the subject has no usable scan.

    Raises:
        FileNotFoundError: There are no packed scans.
    """
    truths: dict[str, Truth | str] = {}
    columns = ["item_id", "subject_id", "status", "reason", "vertices", "faces"]
    for row in packed_rows(now, "scans", [*columns, "unit", "landmarks", "landmark_order"]):
        subject = row["subject_id"]
        if isinstance(truths.get(subject), Truth):
            logger.warning("%s: more than one scan, %s not used", subject, row["item_id"])
            continue
        truths[subject] = _truth_of(row)
    return truths


def packed_rows(folder: Path, kind: str, columns: list[str]) -> list[dict[str, Any]]:
    """Rows of all shards of one kind of a packed data set, in shard order.

    Raises:
        FileNotFoundError: There is no shard.
    """
    shards = sorted(folder.glob(f"{kind}-*.parquet"))
    if not shards:
        raise FileNotFoundError(f"expected {folder}/{kind}-*.parquet; run pack@{folder.name} first")
    return [row for shard in shards for row in read_table(shard, columns).to_pylist()]


def _truth_of(row: Mapping[str, Any]) -> Truth | str:
    if row["status"] != "ok":
        return f"the scan is not usable: {row['reason']}"
    if row["landmark_order"] != "now7" or row["landmarks"] is None:
        return f"expected the scan's seven landmarks (now7), got {row['landmark_order']!r}"
    if row["unit"] not in UNITS_MM:
        return f"expected a scan in {', '.join(UNITS_MM)}, got {row['unit']!r}"
    factor = UNITS_MM[row["unit"]]
    vertices = factor * np.asarray(row["vertices"], np.float64).reshape(-1, 3)
    faces = np.asarray(row["faces"], np.int64).reshape(-1, 3)
    landmarks = factor * np.asarray(row["landmarks"], np.float64).reshape(-1, 3)
    if landmarks.shape != (7, 3):
        return f"expected 7 landmarks on the scan, got {len(landmarks)}"
    return Truth(Mesh(vertices, faces), landmarks)
