"""The procedural head as the corpus uses it: photographs, scans, landmarks and their truth."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from jaxtyping import Float, Int, UInt8

from stages.corpus.order import Order
from stages.corpus.people import Person
from stages.corpus.scan import (
    HeadShape,
    Placement,
    Scan,
    Scanner,
    colour_bytes,
    nearest_vertices,
    scan_head,
)
from stages.runtime.compute import map_ordered

if TYPE_CHECKING:
    from models.procedural.expression import Expression
    from models.procedural.head import ProceduralHead
    from models.procedural.occluders import Occluder
    from models.procedural.photo import Photo
    from models.procedural.scene import Scene

Item = TypeVar("Item")
Result = TypeVar("Result")

MM = 1000.0


_built: "list[ProceduralHead]" = []  # at most one: the head of this process


def head() -> "ProceduralHead":
    """Return the one head of this process."""
    if not _built:
        from models.procedural.head import ProceduralHead

        _built.append(ProceduralHead.build())
    return _built[0]


def map_items(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    order: Order,
    *,
    cost: float,
    label: str,
) -> list[Result]:
    """Apply ``function`` to every item in order; workers get this process's head ready made.

    Args:
        function: Top-level callable or ``functools.partial`` of one.
        items: Work items.
        order: Says how maps run.
        cost: Photographs and scans per item.
        label: For the log.
    """
    return map_ordered(
        functools.partial(_with_head, head(), function),
        items,
        compute=order.compute,
        seconds_per_item=cost * order.sizes.seconds_per_item,
        label=label,
    )


def _with_head(built: "ProceduralHead", function: Callable[[Item], Result], item: Item) -> Result:
    if not _built:
        _built.append(built)
    return function(item)


@lru_cache(maxsize=1)
def mean_vertices() -> Float[np.ndarray, "v 3"]:
    """Return the mean neutral head, metres."""
    from models.procedural.identity import Identity

    return np.asarray(head().vertices(Identity.mean()))


@dataclass(frozen=True, slots=True)
class PhotoTruth:
    """What only tests and the report may know about a photograph."""

    item: str
    subject: str
    landmarks_px: Float[np.ndarray, "68 2"]
    solid_px: Float[np.ndarray, "68 2"]
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]
    scale_px: float
    centre_px: tuple[float, float]
    orthographic: bool
    yaw_deg: float


@dataclass(frozen=True, slots=True)
class ScanTruth:
    """What only tests and the report may know about a scan."""

    item: str
    subject: str
    placement: Placement
    landmarks: Float[np.ndarray, "68 3"]
    expression: bool


def shoot(
    who: Person,
    expression: "Expression | None",
    scene: "Scene",
    size_px: tuple[int, int],
    rng: np.random.Generator,
    *,
    occluders: tuple["Occluder", ...] = (),
    vertices: Float[np.ndarray, "v 3"] | None = None,
) -> "Photo":
    """Photograph a person in a scene; the file writer compresses, so the camera does not."""
    import dataclasses

    from models.procedural.photo import photograph

    return photograph(
        head(),
        who.identity,
        expression,
        who.appearance,
        scene.camera,
        scene.light,
        scene.background,
        size_px,
        rng=rng,
        finish=dataclasses.replace(scene.finish, jpeg_quality=None),
        occluders=occluders,
        vertices_m=vertices,
    )


def photo_truth(item: str, subject: str, photo: "Photo") -> PhotoTruth:
    """Return the truth about a photograph."""
    camera = photo.camera
    return PhotoTruth(
        item,
        subject,
        photo.landmarks_px,
        photo.landmarks_3d_px,
        camera.rotation,
        camera.translation,
        camera.scale_px,
        camera.centre_px,
        camera.orthographic,
        photo.yaw_deg,
    )


def shape_of(vertices: Float[np.ndarray, "v 3"]) -> HeadShape:
    """Return head vertices (metres) as something to scan."""
    origin = MM * _skull_origin(vertices)
    return HeadShape(MM * vertices, np.asarray(head().faces), head().canonical_mm, origin)


def _skull_origin(vertices: Float[np.ndarray, "v 3"]) -> Float[np.ndarray, "3"]:
    """A point inside the skull, a little in front of its middle."""
    canonical = head().canonical_mm
    skull = (canonical[:, 1] > -20.0) & (np.abs(canonical[:, 0]) < 70.0)
    low, high = vertices[skull].min(axis=0), vertices[skull].max(axis=0)
    inside = 0.5 * (low + high)
    inside[1] = vertices[head().masks["left_eyeball"]][:, 1].mean()
    return inside + np.array([0.0, 0.0, 0.008])


@dataclass(frozen=True, slots=True)
class PlacedScan:
    """A scan in its owner's frame.

    Attributes:
        vertices: Owner's coordinates.
        faces: Triangles.
        colours: Vertex colours.
        landmarks: 68 points on the surface, owner's coordinates.
        landmark_vertices: The vertex next to each of them.
        scan: The scan in the head frame.
    """

    vertices: Float[np.ndarray, "n 3"]
    faces: Int[np.ndarray, "f 3"]
    colours: UInt8[np.ndarray, "n 3"]
    landmarks: Float[np.ndarray, "68 3"]
    landmark_vertices: Int[np.ndarray, "68"]
    scan: Scan


def scan_person(
    who: Person,
    vertices: Float[np.ndarray, "v 3"],
    scanner: Scanner,
    placement: Placement,
    rng: np.random.Generator,
) -> PlacedScan:
    """Scan a person's head and put it into the owner's frame.

    Args:
        who: For the colours.
        vertices: Head vertices, metres.
        scanner: Sampling and defects.
        placement: The owner's frame.
        rng: Source of all randomness.
    """
    from models.procedural.albedo import albedo_bytes

    result = scan_head(shape_of(vertices), scanner, rng)
    landmarks_mm = MM * np.asarray(head().landmarks(vertices))
    index, _ = nearest_vertices(result, landmarks_mm)
    canonical = np.nan_to_num(result.canonical_mm, nan=-900.0)
    skin = albedo_bytes(canonical, on_eye(canonical), who.appearance)
    return PlacedScan(
        placement.apply(result.vertices_mm),
        result.faces,
        colour_bytes(result, skin, rng, scanner.covering == "cap"),
        placement.apply(landmarks_mm),
        index,
        result,
    )


def on_eye(canonical_mm: Float[np.ndarray, "n 3"]) -> np.ndarray:
    """Which canonical points lie on an eyeball."""
    balls = [head().canonical_mm[head().masks[f"{side}_eyeball"]] for side in ("left", "right")]
    found = np.zeros(len(canonical_mm), dtype=bool)
    for ball in balls:
        centre = 0.5 * (ball.min(axis=0) + ball.max(axis=0))
        radius = 0.5 * float(np.ptp(ball[:, 0]))
        found |= np.linalg.norm(canonical_mm - centre, axis=1) < radius * 1.045
    return found


def write_photo_truth(rows: list[PhotoTruth], path: Path) -> None:
    """Write ``images.parquet`` (pixels in our convention; camera frame x right, y up, metres)."""
    import pyarrow as pa

    from stages.runtime.artifacts import write_table

    ordered = sorted(rows, key=lambda row: row.item)
    floats, doubles = pa.list_(pa.float32()), pa.list_(pa.float64())
    table = pa.table(
        {
            "item": [row.item for row in ordered],
            "subject": [row.subject for row in ordered],
            "landmarks_px": pa.array(
                [row.landmarks_px.astype(np.float32).ravel() for row in ordered], floats
            ),
            "solid_px": pa.array(
                [row.solid_px.astype(np.float32).ravel() for row in ordered], floats
            ),
            "rotation": pa.array([row.rotation.ravel() for row in ordered], doubles),
            "translation": pa.array([np.ravel(row.translation) for row in ordered], doubles),
            "scale_px": pa.array([row.scale_px for row in ordered], pa.float64()),
            "centre_px": pa.array([list(row.centre_px) for row in ordered], doubles),
            "orthographic": [row.orthographic for row in ordered],
            "yaw_deg": pa.array([row.yaw_deg for row in ordered], pa.float64()),
        }
    )
    write_table(table, path)


def write_scan_truth(rows: list[ScanTruth], path: Path) -> None:
    """Write ``scans.parquet``: ``x_scan = scale R x_head + t`` with x_head in millimetres."""
    import pyarrow as pa

    from stages.runtime.artifacts import write_table

    ordered = sorted(rows, key=lambda row: row.item)
    doubles = pa.list_(pa.float64())
    table = pa.table(
        {
            "item": [row.item for row in ordered],
            "subject": [row.subject for row in ordered],
            "scale": pa.array([row.placement.scale for row in ordered], pa.float64()),
            "rotation": pa.array([row.placement.rotation.ravel() for row in ordered], doubles),
            "translation": pa.array([row.placement.translation for row in ordered], doubles),
            "landmarks": pa.array([row.landmarks.ravel() for row in ordered], doubles),
            "expression": [row.expression for row in ordered],
        }
    )
    write_table(table, path)
