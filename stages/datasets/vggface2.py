"""VGGFace2 (Oxford): photographs by identity, with loose boxes and five points."""

import csv
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from stages.datasets.base import Adapter, ImageRow, ItemError, ItemRef, inside, ordered, relative
from stages.datasets.images import image_size
from stages.datasets.problems import Expected
from stages.runtime.unpickle import read_npy

_PARTS = ("train", "test")
_WHERE = (
    "github.com/ox-vgg/vgg_face2; the original download was withdrawn, ask the owners or use a "
    "copy that your institution holds"
)


class VggFace2(Adapter):
    """``{train,test}/n000002/0001_01.jpg`` with ``bb_landmark`` tables."""

    name: ClassVar[str] = "vggface2"
    title: ClassVar[str] = "VGGFace2"
    prefix: ClassVar[str] = "VGGFACE2"
    licence: ClassVar[str] = "CC BY-SA 4.0 annotations; photographs non-commercial research"
    homepage: ClassVar[str] = "https://github.com/ox-vgg/vgg_face2"
    layout: ClassVar[tuple[Expected, ...]] = (
        Expected(_PARTS, "photographs by identity", _WHERE),
        Expected(
            tuple(f"bb_landmark/loose_bb_{part}.csv" for part in _PARTS),
            "face boxes",
            _WHERE,
            required=False,
        ),
    )

    def discover(self, root: Path) -> list[ItemRef]:
        """One item per photograph; boxes and five points come from the tables."""
        refs = []
        for part in _PARTS:
            tables = root / "bb_landmark"
            boxes = _table(tables / f"loose_bb_{part}.csv", 4)
            points = _table(tables / f"loose_landmark_{part}.csv", 10)
            for path in sorted((root / part).glob("*/*")):
                if path.suffix.lower() not in {".jpg", ".jpeg", ".png"}:
                    continue
                key = f"{path.parent.name}/{path.stem}"
                facts: dict[str, Any] = {}
                if key in boxes:
                    facts["xywh"] = boxes[key]
                if key in points:
                    facts["five_points"] = points[key]
                marks = root / f"{part}_annotated_torch7" / f"{key}.npy"
                if marks.is_file():
                    facts["points"] = relative(root, marks)
                refs.append(
                    ItemRef(
                        item_id=key,
                        subject_id=self.subject(path.parent.name),
                        kind="image",
                        path=relative(root, path),
                        split=part,
                        facts=facts,
                    )
                )
        if not refs:
            raise FileNotFoundError(
                f"{self.title}: expected train/n000002/0001_01.jpg and the like in {root}, found "
                f"none; {_WHERE}"
            )
        return ordered(refs)

    def read(self, root: Path, ref: ItemRef) -> ImageRow:
        """Read a photograph with its box."""
        data = inside(root, ref.path).read_bytes()
        height, width = image_size(data)
        box = None
        if "xywh" in ref.facts:
            if len(ref.facts["xywh"]) != 4:
                raise ItemError(f"the box table's row of {ref.item_id} has not four numbers")
            left, top, w, h = ref.facts["xywh"]
            if w <= 0 or h <= 0:
                raise ItemError(f"the box table gives {ref.item_id} a box of {w:g} x {h:g} pixels")
            box = np.array([left, top, left + w, top + h])
        marks = None
        if "points" in ref.facts:
            marks = _sixty_eight(inside(root, ref.facts["points"]))
        attributes = {}
        if ref.facts.get("five_points"):
            attributes["five_points"] = ref.facts["five_points"]
        return ImageRow(
            data,
            height,
            width,
            landmarks_px=marks,
            landmark_order="ibug68" if marks is not None else "",
            box_px=box,
            attributes=attributes,
        )


def _table(path: Path, columns: int) -> dict[str, list[float]]:
    """A table NAME_ID, numbers ...; names may be quoted and carry no suffix.

    A row that has not ``columns`` numbers is kept empty: reading its photograph then fails.
    """
    if not path.is_file():
        return {}
    out: dict[str, list[float]] = {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for number, row in enumerate(csv.reader(file, skipinitialspace=True), start=1):
            if number == 1 or not row:
                continue
            try:
                values = [float(cell) for cell in row[1:]]
            except ValueError:
                values = []
            out[row[0]] = values if len(values) == columns else []
    return out


def _sixty_eight(path: Path) -> Float[np.ndarray, "68 2"]:
    points = np.asarray(read_npy(path))
    if points.ndim != 2 or points.shape[0] != 68 or points.dtype.kind not in "iuf":
        raise ItemError(f"{path.name} holds {points.shape}, expected 68 points")
    return points[:, :2].astype(np.float64)
