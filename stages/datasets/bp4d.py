"""BP4D and BP4D+ (Binghamton): 3D video of people in ten tasks, a mesh and a photograph per frame.

No frame is marked neutral: a list of neutral frames is the user's (see ``neutral_frames``). Of the
millions of frames a part is taken, the same every time: the listed scans and the first of each
task, so that there is something to choose from, and at most ``PHOTOS`` photographs of a person,
evenly spread over the tasks. MICA's own tree, one hand-picked neutral scan per person, is read
whole. Millimetres.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from stages.datasets import neutral_frames
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
from stages.datasets.binghamton import point_attributes
from stages.datasets.images import image_size
from stages.datasets.meshes import read_mesh
from stages.datasets.problems import Expected, Problem, missing

logger = logging.getLogger(__name__)

PHOTOS = 100  # per person, as many as MICA took
_FRAMES = ("2D+3D/*/T*/*", "*/2D+3D/*/T*/*", "*/T*/*")
_PERSON = re.compile(r"^[FM]\d{3}$")
_TASK = re.compile(r"^T\d+$")
_PICTURES = frozenset({".jpg", ".jpeg", ".png"})
_WHERE = "cs.binghamton.edu, BP4D+ (signed agreement, fee)"


class Bp4d(Adapter):
    """``2D+3D/F001/T1/0001.{obj,jpg}``; MICA's ``scans/F001.obj`` and ``images/F001/*.jpg``."""

    name: ClassVar[str] = "bp4d"
    title: ClassVar[str] = "BP4D+"
    prefix: ClassVar[str] = "BP4D"
    licence: ClassVar[str] = "signed agreement, fee (Binghamton University)"
    homepage: ClassVar[str] = (
        "https://www.cs.binghamton.edu/~lijun/Research/3DFE/3DFE_Analysis.html"
    )
    unit: ClassVar[str] = "mm"
    layout: ClassVar[tuple[Expected, ...]] = (
        Expected(
            ("2D+3D", "*/2D+3D", "[FM][0-9][0-9][0-9]", "scans"),
            "meshes and photographs of each frame",
            _WHERE,
        ),
        neutral_frames.expected("F001,T1/0001"),
    )

    def validate(self, root: Path) -> list[Problem]:
        """Missing folders; a list of neutral frames that is missing or cannot be read.

        MICA's own tree needs no list: its scans are neutral ones.
        """
        found = [*missing(root, self.layout), *neutral_frames.problems(root)]
        if any(root.glob("scans/*.obj")):
            found = [p for p in found if p.path.name != neutral_frames.FILE_NAME or p.required]
        return found

    def discover(self, root: Path) -> list[ItemRef]:
        """The chosen frames' scans and photographs, or all of MICA's tree."""
        listed = neutral_frames.read_neutral_frames(root) or {}
        frames: dict[str, list[Path]] = defaultdict(list)
        for pattern in _FRAMES:
            for path in root.glob(pattern):
                person = path.parent.parent.name
                if _PERSON.match(person) and _TASK.match(path.parent.name):
                    frames[person].append(path)
            if frames:
                break
        points = _points_files(root) if frames else {}
        refs = self._picked(root)
        present: dict[str, set[str]] = defaultdict(set)
        for person, paths in sorted(frames.items()):
            meshes = sorted((p for p in paths if p.suffix.lower() == ".obj"), key=_place)
            photos = sorted((p for p in paths if p.suffix.lower() in _PICTURES), key=_place)
            neutral = _neutral(listed.get(person, frozenset()), person, meshes)
            present[person] = {_key(p) for p in meshes} | {p.stem for p in meshes}
            chosen = [p for k, p in enumerate(meshes) if _key(p) in neutral or _opens(meshes, k)]
            spread = _spread(photos)
            if len(chosen) + len(spread) < len(meshes) + len(photos):
                logger.info(
                    "%s: %d of %d scans and %d of %d photographs are taken",
                    self.subject(person), len(chosen), len(meshes), len(spread), len(photos),
                )  # fmt: skip
            for path in chosen:
                marks = points.get(f"{person}_{path.parent.name}_{path.stem}".lower())
                facts: dict[str, Any] = {"neutral": _key(path) in neutral}
                if marks is not None:
                    facts["points"] = relative(root, marks)
                refs.append(self._frame(root, path, "", facts))
            refs += [self._frame(root, path, "_photo", {}) for path in spread]
        if not refs:
            raise FileNotFoundError(
                f"{self.title}: expected frames such as 2D+3D/F001/T1/0001.obj in {root}, found "
                f"none; {_WHERE}"
            )
        neutral_frames.warn_unmatched(listed, present)
        return ordered(refs)

    def _frame(self, root: Path, path: Path, mark: str, facts: dict[str, Any]) -> ItemRef:
        person, task = path.parent.parent.name, path.parent.name
        return ItemRef(
            item_id=f"{person}/{task}_{path.stem}{mark}",
            subject_id=self.subject(person),
            kind="image" if mark else "scan",
            path=relative(root, path),
            attributes={"task": task, "frame": path.stem},
            facts=facts,
        )

    def _picked(self, root: Path) -> list[ItemRef]:
        """Scans and photographs of MICA's tree."""
        scans = [p for p in root.glob("scans/*.obj") if _PERSON.match(p.stem)]
        photos = [
            p
            for p in root.glob("images/*/*")
            if p.suffix.lower() in _PICTURES and _PERSON.match(p.parent.name)
        ]
        refs = []
        for path in scans + photos:
            scan = path.suffix.lower() == ".obj"
            person = path.stem if scan else path.parent.name
            refs.append(
                ItemRef(
                    item_id=f"{person}/{path.stem}" + ("" if scan else "_photo"),
                    subject_id=self.subject(person),
                    kind="scan" if scan else "image",
                    path=relative(root, path),
                    facts={"neutral": scan},
                )
            )
        return refs

    def read(self, root: Path, ref: ItemRef) -> ImageRow | ScanRow:
        """Read a frame's mesh with its points as attributes, or a photograph."""
        path = inside(root, ref.path)
        if ref.kind == "image":
            data = path.read_bytes()
            height, width = image_size(data)
            return ImageRow(data, height, width)
        mesh = read_mesh(path)
        return ScanRow(
            mesh.vertices,
            mesh.faces,
            self.unit,
            colors=mesh.colors,
            neutral=ref.facts["neutral"],
            attributes=point_attributes(root, ref.facts),
        )


def _key(path: Path) -> str:
    """How the list of neutral frames names a scan: ``T1/0001``."""
    return f"{path.parent.name}/{path.stem}"


def _place(path: Path) -> tuple[int, int, str]:
    """Order of task and frame, by number."""
    digits = "".join(c for c in path.stem if c.isascii() and c.isdigit())
    return int(path.parent.name[1:]), int(digits or 0), path.name


def _opens(meshes: Sequence[Path], k: int) -> bool:
    """Whether the k-th scan is the first of its task."""
    return k == 0 or meshes[k - 1].parent != meshes[k].parent


def _spread(photos: Sequence[Path]) -> list[Path]:
    """At most ``PHOTOS`` of the photographs, evenly over their order."""
    if not photos:
        return []
    places = np.linspace(0, len(photos) - 1, min(PHOTOS, len(photos))).round().astype(int)
    return [photos[k] for k in places]


def _neutral(listed: frozenset[str], person: str, meshes: Sequence[Path]) -> set[str]:
    """The listed scans as ``T1/0001``; a frame's number alone will do where one task has it.

    Raises:
        ItemError: Several tasks have a frame of that number.
    """
    tasks = Counter(path.stem for path in meshes)
    if twice := sorted(scan for scan in listed if tasks[scan] > 1):
        raise ItemError(
            f"{neutral_frames.FILE_NAME}: {person},{twice[0]} could be a frame of "
            f"{tasks[twice[0]]} tasks; write the task too, e.g. {person},T1/{twice[0]}"
        )
    return {_key(path) for path in meshes if _key(path) in listed or path.stem in listed}


def _points_files(root: Path) -> dict[str, Path]:
    """``.bndplus`` files by lower-case stem, e.g. ``f001_t8_0001``."""
    return {path.stem.lower(): path for path in root.rglob("*.bndplus")}
