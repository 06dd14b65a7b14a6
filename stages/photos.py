"""Packed photographs and their landmarks, as the learning stages read them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from stages.runtime.artifacts import read_json, read_table


def packed_images(packed: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of a packed data set's photographs, shard after shard in name order.

    Raises:
        FileNotFoundError: There are no packed photographs.
    """
    shards = sorted(packed.glob("images-*.parquet"))
    if not shards:
        raise FileNotFoundError(f"expected {packed}/images-*.parquet; run pack@{packed.name} first")
    for shard in shards:
        yield from read_table(shard, columns).to_pylist()


def landmark_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows of ``landmarks.parquet`` by item.

    Raises:
        FileNotFoundError: The stage has not run.
    """
    table = folder / "landmarks.parquet"
    if not table.is_file():
        raise FileNotFoundError(f"expected {table}; run landmarks@{folder.name} first")
    return {row["item_id"]: row for row in read_table(table).to_pylist()}


def points_of(row: dict[str, Any]) -> Float[np.ndarray, "68 2"]:
    """The 68 points of a row of ``landmarks.parquet``, pixels."""
    return np.asarray(row["points_px"], np.float64).reshape(68, 2)


def landmarks_by_item(folder: Path) -> dict[str, Float[np.ndarray, "68 2"]]:
    """The 68 points in pixels of every photograph where a face was found.

    Raises:
        FileNotFoundError: The stage has not run.
    """
    rows = landmark_rows(folder)
    return {item: points_of(row) for item, row in rows.items() if row["status"] == "ok"}


def is_synthetic(*folders: Path) -> bool:
    """Whether any input says so in its ``meta.json``."""
    metas = [folder / "meta.json" for folder in folders]
    return any(bool(read_json(meta).get("synthetic")) for meta in metas if meta.is_file())
