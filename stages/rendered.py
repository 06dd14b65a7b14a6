"""Reading what stage `render` wrote: one photograph's PNCC and offset maps by its id."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.rendering.pncc import PnccMaps
from models.rendering.pncc_codec import decode
from stages.runtime.artifacts import read_json, read_table

INDEX = "index.parquet"
META = "meta.json"


@dataclass(frozen=True)
class RenderedSet:
    """An opened ``data/rendered/<dataset>`` folder.

    Attributes:
        folder: Where the shards lie.
        rows: Index rows by item id, failures included.
        meta: ``meta.json``: quantisation, provenance.
    """

    folder: Path
    rows: dict[str, dict[str, Any]]
    meta: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "RenderedSet":
        """Read the index.

        Raises:
            FileNotFoundError: The folder holds no index.
        """
        index = folder / INDEX
        if not index.is_file():
            raise FileNotFoundError(f"expected {index}; run the render stage")
        rows = {row["item_id"]: row for row in read_table(index).to_pylist()}
        return cls(folder, rows, read_json(folder / META))

    @property
    def item_ids(self) -> list[str]:
        """Ids of the photographs that were rendered, sorted."""
        return sorted(item for item, row in self.rows.items() if row["status"] == "ok")

    @property
    def on_the_fly(self) -> bool:
        """Whether the maps were left to be drawn by their readers."""
        return bool(self.meta["on_the_fly"])

    def maps(self, item_id: str) -> PnccMaps:
        """Maps of one photograph at its full size.

        Raises:
            KeyError: The id is not in the index.
            ValueError: The photograph failed, was left to be drawn on the fly, or its record
                is damaged.
        """
        row = self.rows[item_id]
        if row["status"] != "ok":
            raise ValueError(f"{item_id} was not rendered: {row['reason']}")
        if self.on_the_fly:
            raise ValueError(f"{self.folder} holds no maps (render.on_the_fly); draw them instead")
        with (self.folder / row["shard"]).open("rb") as file:
            file.seek(row["offset"])
            return decode(file.read(row["length"]))
