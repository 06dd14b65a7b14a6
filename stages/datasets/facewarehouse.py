"""FaceWarehouse (Zhejiang): 150 people in 20 expressions as meshes and Kinect photographs.

Raw lengths are about decimetres. ``.land`` points are relative to the image with y *up* and follow
an order of their own (74 points). The owners ship no points on the meshes; all meshes share one
topology, so one annotation of yours serves them all: ``landmark_vertices.txt`` in the root, 68
lines of 1-based vertex indices in iBUG order.
"""

import re
from pathlib import Path
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
from stages.datasets.meshes import read_mesh
from stages.datasets.problems import Expected

_POSE = re.compile(r"^pose_(\d+)$")
LANDMARK_VERTICES = "landmark_vertices.txt"
_WHERE = "kunzhou.net, FaceWarehouse (signed agreement)"


class FaceWarehouse(Adapter):
    """``Tester_<i>/TrainingPose/pose_<k>.{obj,png,land}``."""

    name: ClassVar[str] = "facewarehouse"
    title: ClassVar[str] = "FaceWarehouse"
    prefix: ClassVar[str] = "FACEWAREHOUSE"
    licence: ClassVar[str] = "signed agreement (Zhejiang University)"
    homepage: ClassVar[str] = "http://kunzhou.net/zjugaps/facewarehouse/"
    unit: ClassVar[str] = "dm"
    layout: ClassVar[tuple[Expected, ...]] = (
        Expected(
            ("Tester_*/TrainingPose", "*/Tester_*/TrainingPose"),
            "meshes and photographs of each expression",
            _WHERE,
        ),
    )

    def discover(self, root: Path) -> list[ItemRef]:
        """One scan and one photograph per person and expression."""
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
        if not refs:
            raise FileNotFoundError(
                f"{self.title}: expected Tester_<i>/TrainingPose/pose_<k>.obj in {root}, found "
                f"none; {_WHERE}"
            )
        return ordered(refs)

    def read(self, root: Path, ref: ItemRef) -> ImageRow | ScanRow:
        """Read a mesh (quads fanned into triangles), or a photograph with its own points."""
        path = inside(root, ref.path)
        if ref.kind == "scan":
            mesh = read_mesh(path)
            landmarks = None
            if (root / LANDMARK_VERTICES).is_file():
                landmarks = mesh.vertices[_landmark_vertices(root, len(mesh.vertices))]
            return ScanRow(
                vertices=mesh.vertices,
                faces=mesh.faces,
                colors=mesh.colors,
                unit=self.unit,
                landmarks=landmarks,
                landmark_order="" if landmarks is None else "ibug68",
                neutral=ref.attributes["pose"] == 0,
                capped=False,
            )
        data = path.read_bytes()
        height, width = image_size(data)
        points = None
        if "points" in ref.facts:
            points = read_land(inside(root, ref.facts["points"]), height, width)
        return ImageRow(data, height, width, landmarks_px=points)


def _landmark_vertices(root: Path, vertices: int) -> Int[np.ndarray, "68"]:
    """Read the 0-based indices of the 68 landmarks.

    Raises:
        ItemError: Not 68 lines, or an index outside the mesh.
    """
    rows = number_rows(inside(root, LANDMARK_VERTICES), columns=1)[:, 0].astype(np.int64) - 1
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
