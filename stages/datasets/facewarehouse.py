"""FaceWarehouse (Zhejiang): 150 people in 20 expressions as meshes and Kinect photographs.

Raw lengths are about decimetres. ``.land`` points are relative to the image with y *up* and follow
an order of their own (74 points). The owners ship no points on the meshes; all meshes share one
topology, so one annotation of yours serves them all: ``landmark_vertices.txt`` in the root, 68
lines of 1-based vertex indices in iBUG order.

A person without a single pose mesh is read from the ``Blendshape`` folder instead: the neutral face
and 46 expressions, ``shape_<k>.obj`` where there is one, else from ``shape.bs``, which holds the
positions alone; its polygons are those of any mesh of the set.
"""

import functools
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from stages.datasets.base import (
    Adapter,
    ImageRow,
    ItemError,
    ItemRef,
    ScanRow,
    inside,
    number_rows,
    ordered,
    relative,
)
from stages.datasets.images import image_size
from stages.datasets.meshes import Mesh, MeshError, read_mesh
from stages.datasets.problems import Expected

SHAPES, VERTICES, POLYGONS = 47, 11510, 11540
"""Neutral and 46 expressions; vertices and polygons of the set's topology."""
BLENDSHAPES = "shape.bs"
_HEADER = np.dtype("<i4")
_POSITION = np.dtype("<f4")
_LEAST_BYTES = 3 * _HEADER.itemsize + SHAPES * VERTICES * 3 * _POSITION.itemsize
_POSE = re.compile(r"^pose_(\d+)$")
LANDMARK_VERTICES = "landmark_vertices.txt"
_WHERE = "kunzhou.net, FaceWarehouse (signed agreement)"


class FaceWarehouse(Adapter):
    """``Tester_<i>/TrainingPose/pose_<k>.{obj,png,land}``, ``Tester_<i>/Blendshape/shape.bs``."""

    name: ClassVar[str] = "facewarehouse"
    title: ClassVar[str] = "FaceWarehouse"
    prefix: ClassVar[str] = "FACEWAREHOUSE"
    licence: ClassVar[str] = "signed agreement (Zhejiang University)"
    homepage: ClassVar[str] = "http://kunzhou.net/zjugaps/facewarehouse/"
    unit: ClassVar[str] = "dm"
    layout: ClassVar[tuple[Expected, ...]] = (
        Expected(
            (
                "Tester_*/TrainingPose",
                "*/Tester_*/TrainingPose",
                f"Tester_*/Blendshape/{BLENDSHAPES}",
                f"*/Tester_*/Blendshape/{BLENDSHAPES}",
            ),
            "meshes and photographs of each expression",
            _WHERE,
        ),
    )

    def discover(self, root: Path) -> list[ItemRef]:
        """One scan and one photograph per person and expression.

        A ``shape.bs`` that is too short is one item, which fails when it is read.
        """
        refs = []
        for folder in sorted(root.rglob("TrainingPose")):
            person = folder.parent.name
            for path in sorted(folder.iterdir()):
                pose = _POSE.match(path.stem)
                suffix = path.suffix.lower()
                if pose is None or suffix not in {".obj", ".png", ".jpg"}:
                    continue
                kind, mark = ("scan", "") if suffix == ".obj" else ("image", "_photo")
                points = path.with_suffix(".land")
                pointed = kind == "image" and points.is_file()
                refs.append(
                    ItemRef(
                        item_id=f"{person}/{path.stem}{mark}",
                        subject_id=self.subject(person),
                        kind="scan" if kind == "scan" else "image",
                        path=relative(root, path),
                        attributes={"pose": int(pose[1])},
                        facts={"points": relative(root, points)} if pointed else {},
                    )
                )
        posed = {ref.subject_id for ref in refs if ref.kind == "scan"}
        for folder in sorted(root.rglob("Blendshape")):
            if self.subject(folder.parent.name) not in posed:
                refs += self._blendshapes(root, folder)
        if not refs:
            raise FileNotFoundError(
                f"{self.title}: expected Tester_<i>/TrainingPose/pose_<k>.obj in {root}, found "
                f"none; {_WHERE}"
            )
        return ordered(refs)

    def _blendshapes(self, root: Path, folder: Path) -> list[ItemRef]:
        """The neutral face and the expressions of one person."""
        person, packed = folder.parent.name, folder / BLENDSHAPES
        refs = []
        for k in range(SHAPES):
            mesh = folder / f"shape_{k}.obj"
            path = mesh if mesh.is_file() else packed
            if not path.is_file() or (k and path == packed and _short(packed)):
                continue
            refs.append(
                ItemRef(
                    item_id=f"{person}/shape_{k}",
                    subject_id=self.subject(person),
                    kind="scan",
                    path=relative(root, path),
                    attributes={"blendshape": k},
                )
            )
        return refs

    def shared(self, root: Path, refs: Sequence[ItemRef]) -> str:
        """The triangles that the blendshapes borrow, where there are any."""
        if not any(PurePosixPath(ref.path).name == BLENDSHAPES for ref in refs):
            return ""
        try:
            return sha256(np.ascontiguousarray(topology(root)).tobytes()).hexdigest()
        except ItemError as error:
            return str(error)

    def read(self, root: Path, ref: ItemRef) -> ImageRow | ScanRow:
        """Read a mesh (quads fanned into triangles), or a photograph with its own points."""
        path = inside(root, ref.path)
        if ref.kind == "scan":
            if path.name == BLENDSHAPES:
                mesh = Mesh(read_blendshape(path, ref.attributes["blendshape"]), topology(root))
            else:
                mesh = read_mesh(path)
            index = _landmark_vertices(root, len(mesh.vertices))
            landmarks = None if index is None else mesh.vertices[index]
            return ScanRow(
                vertices=mesh.vertices,
                faces=mesh.faces,
                colors=mesh.colors,
                unit=self.unit,
                landmarks=landmarks,
                landmark_order="" if landmarks is None else "ibug68",
                neutral=ref.attributes.get("pose", ref.attributes.get("blendshape")) == 0,
                capped=False,
            )
        data = path.read_bytes()
        height, width = image_size(data)
        points = None
        if "points" in ref.facts:
            points = read_land(inside(root, ref.facts["points"]), height, width)
        return ImageRow(data, height, width, landmarks_px=points)


def _short(packed: Path) -> bool:
    """Whether a ``shape.bs`` cannot hold all its shapes."""
    return packed.stat().st_size < _LEAST_BYTES


def read_blendshape(path: Path, index: int) -> Float[np.ndarray, "11510 3"]:
    """Read one shape of a ``shape.bs``; what follows the last shape is ignored.

    The file holds three int32 (shapes besides the neutral one, vertices, polygons), then absolute
    positions as float32, the neutral shape first; little-endian.

    Args:
        path: The file.
        index: 0 is neutral, up to 46.

    Raises:
        ItemError: The counts are not the set's, or the file is truncated.
    """
    size = path.stat().st_size
    if size < _LEAST_BYTES:
        raise ItemError(f"{path.name} is truncated: {size} bytes, expected at least {_LEAST_BYTES}")
    with path.open("rb") as file:
        counts = np.frombuffer(file.read(3 * _HEADER.itemsize), _HEADER).tolist()
        if counts != [SHAPES - 1, VERTICES, POLYGONS]:
            raise ItemError(
                f"{path.name}: expected {SHAPES - 1} shapes, {VERTICES} vertices, {POLYGONS} "
                f"polygons, got {counts}"
            )
        length = VERTICES * 3 * _POSITION.itemsize
        file.seek(3 * _HEADER.itemsize + index * length)
        positions = np.frombuffer(file.read(length), _POSITION).astype(np.float64)
    if not np.isfinite(positions).all():
        raise ItemError(f"{path.name}: shape {index} holds NaN or infinite positions")
    return positions.reshape(VERTICES, 3)


@functools.lru_cache(maxsize=1)
def topology(root: Path) -> Int[np.ndarray, "f 3"]:
    """The triangles that all meshes of the set share, from the first OBJ that has them.

    Raises:
        ItemError: No OBJ of the set can be read with the set's number of vertices.
    """
    for pattern in ("TrainingPose/pose_*.obj", "Blendshape/shape_*.obj"):
        for path in sorted(root.rglob(pattern)):
            try:
                mesh = read_mesh(inside(root, relative(root, path)))
            except (MeshError, ItemError, OSError):
                continue
            if len(mesh.vertices) == VERTICES:
                return mesh.faces
    raise ItemError(
        f"{BLENDSHAPES} holds positions alone; expected a pose_<k>.obj or shape_<k>.obj of "
        f"{VERTICES} vertices somewhere in the set, whose polygons it shares; got none"
    )


def _landmark_vertices(root: Path, vertices: int) -> Int[np.ndarray, "68"] | None:
    """Read the 0-based indices of the 68 landmarks; None where the user gives none.

    Raises:
        ItemError: Not 68 lines, or an index outside the mesh.
    """
    try:
        path = inside(root, LANDMARK_VERTICES)
    except FileNotFoundError:
        return None
    rows = number_rows(path, columns=1)[:, 0].astype(np.int64) - 1
    if len(rows) != 68:
        raise ItemError(f"{LANDMARK_VERTICES}: expected 68 lines, got {len(rows)}")
    if rows.min() < 0 or rows.max() >= vertices:
        raise ItemError(
            f"{LANDMARK_VERTICES}: expected indices from 1 to {vertices}, got "
            f"{rows.min() + 1} to {rows.max() + 1}"
        )
    return rows


def read_land(path: Path, height_px: int, width_px: int) -> Float[np.ndarray, "n 2"]:
    """Read a ``.land``: a count, then relative positions with y up, as pixels with y down.

    Raises:
        ItemError: The count is missing or differs from the number of lines.
    """
    lines = path.read_text(encoding="latin1").split("\n", 1)
    try:
        count = int(lines[0])
    except ValueError as error:
        raise ItemError(f"{path.name}: expected a count first, got {lines[0]!r}") from error
    rows = number_rows(path, columns=2, skip=1)
    if len(rows) != count:
        raise ItemError(f"{path.name} announces {count} landmarks but has {len(rows)}")
    return np.stack([rows[:, 0] * width_px, (1.0 - rows[:, 1]) * height_px], axis=1)
