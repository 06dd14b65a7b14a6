"""NoW (MPI): iPhone photographs of 100 people, face boxes, and scans of the validation subjects."""

import re
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from stages.datasets.base import (
    Adapter,
    ImageRow,
    ItemError,
    ItemRef,
    ScanRow,
    inside,
    ordered,
    relative,
)
from stages.datasets.images import image_size
from stages.datasets.meshes import read_mesh
from stages.datasets.problems import Expected
from stages.runtime.unpickle import read_npy

CHALLENGES = ("multiview_neutral", "multiview_expressions", "multiview_occlusions", "selfie")
_LISTS = {"val": "imagepathsvalidation.txt", "test": "imagepathstest.txt"}
_RELEASES = ("NoW_Dataset/final_release_version", "final_release_version", ".")
_NUMBER = r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?"
_POINT = re.compile(r"<point\b[^>]*>")
_SIDES = ("left", "top", "right", "bottom")
_WHERE = "now.is.tue.mpg.de (sign-up)"


class Now(Adapter):
    """NoW photographs by its list files, boxes, scans and picked points."""

    name: ClassVar[str] = "now"
    title: ClassVar[str] = "NoW"
    prefix: ClassVar[str] = "NOW"
    licence: ClassVar[str] = "non-commercial research, sign-up (MPI for Intelligent Systems)"
    homepage: ClassVar[str] = "https://now.is.tue.mpg.de"
    unit: ClassVar[str] = "mm"
    layout: ClassVar[tuple[Expected, ...]] = (
        Expected(
            tuple(f"{release}/iphone_pictures" for release in _RELEASES),
            "the photographs to reconstruct",
            _WHERE,
        ),
        Expected(
            (_LISTS["val"], _LISTS["test"]), "which photograph belongs to which part", _WHERE, False
        ),
        Expected(
            tuple(f"{release}/detected_face" for release in _RELEASES),
            "the face boxes of the protocol",
            _WHERE,
            required=False,
        ),
        Expected(("scans",), "scans of the validation subjects, to score locally", _WHERE, False),
        Expected(("scans_lmks_onlypp",), "the seven points on each scan", _WHERE, False),
    )

    def discover(self, root: Path) -> list[ItemRef]:
        """Every listed photograph, those on disk that no list names, and every scan."""
        pictures = self.layout[0].found(root)
        if pictures is None:
            raise FileNotFoundError(
                f"{self.title}: expected {root / _RELEASES[0] / 'iphone_pictures'}; {_WHERE}"
            )
        splits: dict[str, str] = {}
        for split, name in _LISTS.items():
            if (root / name).is_file():
                for line in (root / name).read_text(encoding="utf-8").split():
                    splits.setdefault(line, split)
        for path in pictures.glob("*/*/*"):
            if path.suffix.lower() in {".jpg", ".jpeg", ".png"}:
                splits.setdefault(path.relative_to(pictures).as_posix(), "")
        boxes = pictures.parent / "detected_face"
        refs = []
        for entry, split in splits.items():
            parts = entry.split("/")
            person, challenge = (parts[0], parts[1]) if len(parts) == 3 else ("unknown", "unknown")
            facts: dict[str, Any] = {}
            stem = entry.removesuffix(PurePosixPath(entry).suffix)
            if (boxes / f"{stem}.npy").is_file():
                facts["box"] = f"{relative(root, boxes)}/{stem}.npy"
            refs.append(
                ItemRef(
                    item_id=stem,
                    subject_id=self.subject(person),
                    kind="image",
                    path=f"{relative(root, pictures)}/{entry}",
                    split=split,
                    attributes={"challenge": challenge},
                    facts=facts,
                )
            )
        return ordered(refs + self._scans(root, splits))

    def _scans(self, root: Path, splits: dict[str, str]) -> list[ItemRef]:
        parts = {entry.split("/")[0]: split for entry, split in splits.items()}
        refs = []
        for path in sorted((root / "scans").glob("*/*.obj")):
            person = path.parent.name
            picked = root / "scans_lmks_onlypp" / person / f"{path.stem}_picked_points.pp"
            facts = {"points": relative(root, picked)} if picked.is_file() else {}
            refs.append(
                ItemRef(
                    item_id=f"{person}/{path.stem}",
                    subject_id=self.subject(person),
                    kind="scan",
                    path=relative(root, path),
                    split=parts.get(person, ""),
                    facts=facts,
                )
            )
        return refs

    def read(self, root: Path, ref: ItemRef) -> ImageRow | ScanRow:
        """Read a photograph with its box, or a scan with its seven points."""
        path = inside(root, ref.path)
        if ref.kind == "scan":
            mesh = read_mesh(path)
            points = None
            if "points" in ref.facts:
                points = read_picked_points(inside(root, ref.facts["points"]))
            return ScanRow(
                vertices=mesh.vertices,
                faces=mesh.faces,
                colors=mesh.colors,
                unit=self.unit,
                landmarks=points,
                landmark_order="now7" if points is not None else "",
                neutral=True,
                capped=False,
            )
        data = path.read_bytes()
        height, width = image_size(data)
        box = read_box(inside(root, ref.facts["box"])) if "box" in ref.facts else None
        return ImageRow(data, height, width, box_px=box)


def read_box(path: Path) -> Float[np.ndarray, "4"]:
    """Read a face box: a pickled dict left, right, top, bottom in an npy file.

    Raises:
        ItemError: A side is missing or the box is empty.
    """
    content = read_npy(path)
    if not isinstance(content, dict) or not set(_SIDES) <= set(content):
        raise ItemError(f"{path.name}: expected a dict with {', '.join(_SIDES)}")
    box = np.array([float(np.asarray(content[side]).item()) for side in _SIDES])
    if not np.isfinite(box).all() or box[0] >= box[2] or box[1] >= box[3]:
        raise ItemError(f"{path.name}: the box {box.tolist()} is empty or upside down")
    return box


def read_picked_points(path: Path) -> Float[np.ndarray, "7 3"]:
    """Read the seven points of a MeshLab PickedPoints file, in file order.

    Raises:
        ItemError: Not seven points, or a coordinate is missing.
    """
    text = path.read_text(encoding="latin1")
    points = []
    for element in _POINT.findall(text):
        found = [re.search(rf'\b{axis}="({_NUMBER})"', element) for axis in "xyz"]
        if None in found:
            raise ItemError(f"{path.name}: a point lacks a coordinate: {element!r}")
        points.append([float(match[1]) for match in found if match is not None])
    if len(points) != 7:
        raise ItemError(f"{path.name} has {len(points)} points, expected 7")
    return np.array(points)
