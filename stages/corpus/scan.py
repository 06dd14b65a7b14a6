"""What a 3D scanner would give of a procedural head, with its defects.

A dense sampling of the outer surface, a latex cap or hair in place of the scalp, sensor noise,
holes, a ragged lower border, shoulders that belong to nothing, floating scraps, and a rigid pose
and unit of the owner's choosing. Lengths inside this module are millimetres.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from stages.corpus import basel_topology
from stages.corpus.surface import Anchors, outer_anchors, vertex_normals

OUTSIDE_MM = 450.0


@dataclass(frozen=True, slots=True)
class HeadShape:
    """One head to be scanned.

    Attributes:
        vertices_mm: Head vertices, head frame.
        faces: Triangles.
        canonical_mm: The same vertices on the mean neutral head.
        origin_mm: A point inside the skull, head frame.
    """

    vertices_mm: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    canonical_mm: Float[np.ndarray, "v 3"]
    origin_mm: Float[np.ndarray, "3"]


@dataclass(frozen=True, slots=True)
class Scanner:
    """How a scan is made.

    Attributes:
        vertices: Samples before trimming.
        back: Whether the back of the head is covered.
        covering: ``cap``, ``hair`` or ``none``.
        hair_mm: Thickness of the hair.
        noise_mm: Standard deviation of sensor noise along the normal.
        holes: Number of holes.
        chin_hole: Whether there is a hole under the chin.
        scraps: Number of floating scraps.
        shoulders: Whether shoulders are in the scan.
    """

    vertices: int
    back: bool
    covering: str
    hair_mm: float
    noise_mm: float
    holes: int
    chin_hole: bool
    scraps: int
    shoulders: bool


@dataclass(frozen=True, slots=True)
class Scan:
    """A scan in the head frame.

    Attributes:
        vertices_mm: (n, 3).
        faces: Triangles (f, 3).
        canonical_mm: Where each vertex lies on the mean head; NaN for junk.
        covered: Vertices under the cap or hair.
    """

    vertices_mm: Float[np.ndarray, "n 3"]
    faces: Int[np.ndarray, "f 3"]
    canonical_mm: Float[np.ndarray, "n 3"]
    covered: Bool[np.ndarray, "n"]


@dataclass(frozen=True, slots=True)
class Placement:
    """The owner's frame: ``x_scan = scale * R x_head + t`` with x_head in millimetres."""

    scale: float
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]

    def apply(self, points_mm: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """Take head-frame millimetres to scan coordinates."""
        return self.scale * points_mm @ self.rotation.T + self.translation


def turn(x_deg: float, y_deg: float, z_deg: float) -> Float[np.ndarray, "3 3"]:
    """Return Rz Ry Rx for angles in degrees."""
    (cx, cy, cz) = np.cos(np.radians([x_deg, y_deg, z_deg]))
    (sx, sy, sz) = np.sin(np.radians([x_deg, y_deg, z_deg]))
    Rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    Ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    Rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(Rz @ Ry @ Rx)


@lru_cache(maxsize=4)
def _layout(vertices: int, back: bool) -> tuple[np.ndarray, np.ndarray]:
    reach = (168.0, 172.0, 96.0) if back else (70.0, 112.0, 84.0)
    layout = basel_topology.disc(vertices, 2 * round(np.sqrt(vertices) * 0.9), reach)
    return layout.directions, layout.faces


def scalp_weight(
    canonical_mm: Float[np.ndarray, "n 3"], ramp_mm: float = 7.0
) -> Float[np.ndarray, "n"]:
    """Return 0 on the face, 1 on the scalp, smooth over ``ramp_mm`` in between."""
    x, y, z = canonical_mm.T
    line = np.clip(22.0 + 0.46 * z, -42.0, 64.0)
    line = np.where(np.abs(x) > 66.0, np.maximum(line, 26.0), line)
    t = np.clip((y - line) / ramp_mm, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def waves(
    points_mm: Float[np.ndarray, "n 3"],
    rng: np.random.Generator,
    wavelength_mm: tuple[float, float],
    count: int = 12,
) -> Float[np.ndarray, "n"]:
    """Return a smooth random field of unit variance: a sum of plane waves."""
    direction = rng.standard_normal((count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    length = rng.uniform(*wavelength_mm, (count, 1))
    phase = rng.uniform(0, 2 * np.pi, count)
    field = np.sin(points_mm @ (2 * np.pi * direction / length).T + phase)
    return field.sum(axis=1) * np.sqrt(2.0 / count)


def scan_head(head: HeadShape, scanner: Scanner, rng: np.random.Generator) -> Scan:
    """Scan one head.

    Args:
        head: The head.
        scanner: Sampling and defects.
        rng: Source of all randomness.
    """
    directions, faces = _layout(scanner.vertices, scanner.back)
    jitter = turn(rng.uniform(-3, 3), rng.uniform(-3, 3), 0.0) @ turn(0, 0, rng.uniform(-4, 4))
    anchors, hit = outer_anchors(
        head.vertices_mm, head.faces, head.origin_mm, directions @ jitter.T, OUTSIDE_MM
    )
    normals = vertex_normals(head.vertices_mm, head.faces)
    points = anchors.curved(head.vertices_mm, normals)
    canonical = anchors.flat(head.canonical_mm)
    points, covered = _cover(points, canonical, _smooth_normals(anchors, normals), scanner, rng)
    points = points + _noise(points, _smooth_normals(anchors, normals), scanner.noise_mm, rng)
    keep = hit & _inside_border(canonical, rng)
    keep &= _without_holes(canonical, scanner, rng)
    kept = faces[keep[faces].all(axis=1)]
    kept = kept[~_stretched(points, kept)]
    vertices, triangles, ids = compact(points, kept)
    canonical, covered = canonical[ids], covered[ids]
    junk, junk_faces = _junk(head, scanner, rng)
    if len(junk):
        triangles = np.concatenate([triangles, junk_faces + len(vertices)])
        vertices = np.concatenate([vertices, junk])
        canonical = np.concatenate([canonical, np.full_like(junk, np.nan)])
        covered = np.concatenate([covered, np.zeros(len(junk), dtype=bool)])
    return Scan(vertices, triangles, canonical, covered)


def _smooth_normals(
    anchors: Anchors, normals: Float[np.ndarray, "v 3"]
) -> Float[np.ndarray, "n 3"]:
    direction = anchors.flat(normals)
    return direction / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-12)


def _cover(
    points: Float[np.ndarray, "n 3"],
    canonical: Float[np.ndarray, "n 3"],
    normals: Float[np.ndarray, "n 3"],
    scanner: Scanner,
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "n 3"], Bool[np.ndarray, "n"]]:
    """Lift the scalp: a thin cap with folds, or hair with locks."""
    weight = scalp_weight(canonical, 18.0 if scanner.covering == "hair" else 7.0)
    if scanner.covering == "none":
        return points, np.zeros(len(points), dtype=bool)
    if scanner.covering == "cap":
        fold = np.maximum(waves(canonical, rng, (18.0, 45.0)), 0.0)
        rim = np.exp(-(((weight - 0.5) / 0.25) ** 2))
        height = weight * (2.2 + 1.1 * fold) + 0.8 * rim
    else:
        lock = waves(canonical, rng, (9.0, 24.0))
        height = (
            weight * scanner.hair_mm * (1.0 + 0.16 * lock + 0.2 * waves(canonical, rng, (60, 140)))
        )
        height = np.maximum(height, 0.0)
    return points + height[:, None] * normals, weight > 0.5


def _noise(
    points: Float[np.ndarray, "n 3"],
    normals: Float[np.ndarray, "n 3"],
    sigma_mm: float,
    rng: np.random.Generator,
) -> Float[np.ndarray, "n 3"]:
    """Fine noise along the normal and a slow ripple of calibration, equal shares of variance."""
    fine = rng.standard_normal(len(points))
    slow = waves(points, rng, (25.0, 70.0))
    return (sigma_mm * np.sqrt(0.5) * (fine + slow))[:, None] * normals


def _inside_border(
    canonical: Float[np.ndarray, "n 3"], rng: np.random.Generator
) -> Bool[np.ndarray, "n"]:
    """A ragged cut across the neck."""
    x, y, z = canonical.T
    angle = np.arctan2(x, z)
    level = -150.0 - rng.uniform(0.0, 28.0) + 0.12 * z
    for k in range(1, 9):
        level = level + rng.normal(0.0, 5.0 / k) * np.sin(k * angle + rng.uniform(0, 2 * np.pi))
    return np.asarray(y > np.maximum(level, -188.0))


def _without_holes(
    canonical: Float[np.ndarray, "n 3"], scanner: Scanner, rng: np.random.Generator
) -> Bool[np.ndarray, "n"]:
    """Holes where scanners fail: hair, behind the ears, under chin and nose, rarely a cheek."""
    places = [
        (0.0, 85.0, -20.0, 40.0, 14.0),
        (0.0, 40.0, -95.0, 40.0, 12.0),
        (82.0, -15.0, -22.0, 6.0, 8.0),
        (-82.0, -15.0, -22.0, 6.0, 8.0),
        (6.0, -42.0, 94.0, 1.5, 2.6),
        (-6.0, -42.0, 94.0, 1.5, 2.6),
        (55.0, -45.0, 40.0, 10.0, 4.0),
        (-55.0, -45.0, 40.0, 10.0, 4.0),
    ]
    keep = np.ones(len(canonical), dtype=bool)
    ragged = 1.0 + 0.25 * waves(canonical, rng, (6.0, 16.0))
    chosen = rng.choice(len(places), size=scanner.holes)
    for index in chosen:
        x, y, z, spread, radius = places[index]
        centre = np.array([x, y, z]) + rng.normal(0.0, spread, 3)
        distance = np.linalg.norm(canonical - centre, axis=1)
        keep &= distance > radius * rng.uniform(0.6, 1.4) * ragged
    if scanner.chin_hole:
        centre = np.array([0.0, -122.0, 45.0]) + rng.normal(0.0, 4.0, 3)
        scaled = (canonical - centre) / np.array([26.0, 12.0, 18.0])
        keep &= np.linalg.norm(scaled, axis=1) > ragged
    return keep


def _stretched(
    points: Float[np.ndarray, "n 3"], faces: Int[np.ndarray, "f 3"]
) -> Bool[np.ndarray, "f"]:
    """Triangles that bridge a depth gap: scanners leave those out."""
    corners = points[faces]
    sides = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1)
    return np.asarray(sides > max(6.0 * float(np.median(sides)), 9.0))


def _junk(
    head: HeadShape, scanner: Scanner, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, "f 3"]]:
    """Shoulders below the neck and floating scraps, connected to nothing."""
    pieces: list[tuple[np.ndarray, np.ndarray]] = []
    floor = float(head.vertices_mm[:, 1].min())
    if scanner.shoulders:
        u, v = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(0, 1, 20), indexing="ij")
        x = 185.0 * u
        y = floor + 6.0 - 70.0 * np.abs(u) ** 2.2 - 55.0 * v**2 + rng.uniform(-8, 4)
        z = head.origin_mm[2] - 30.0 + 95.0 * v * (1 - 0.4 * u**2)
        cloth = 2.0 * waves(np.stack([x, y, z], -1).reshape(-1, 3), rng, (30.0, 90.0))
        grid = np.stack([x, y, z], -1).reshape(-1, 3) + cloth[:, None] * [0.0, 0.6, 0.8]
        pieces.append((grid, _grid_faces(64, 20)))
    for _ in range(scanner.scraps):
        direction = rng.standard_normal(3) * [1.0, 0.5, 1.0]
        centre = head.origin_mm + 190.0 * direction / np.linalg.norm(direction)
        spots = centre + rng.normal(0.0, 3.0, (7, 3))
        fan = np.stack([np.zeros(5, dtype=np.int64), np.arange(1, 6), np.arange(2, 7)], axis=1)
        pieces.append((spots, fan))
    if not pieces:
        return np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64)
    offsets = np.cumsum([0, *(len(points) for points, _ in pieces[:-1])])
    faces = np.concatenate([part + start for (_, part), start in zip(pieces, offsets, strict=True)])
    return np.concatenate([points for points, _ in pieces]), faces


def _grid_faces(rows: int, columns: int) -> Int[np.ndarray, "f 3"]:
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    first = np.stack([corner, corner + columns, corner + columns + 1], axis=1)
    second = np.stack([corner, corner + columns + 1, corner + 1], axis=1)
    return np.concatenate([first, second])[:, [0, 2, 1]]


def compact(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, "f 3"], Int[np.ndarray, "n"]]:
    """Drop unused vertices; returns vertices, faces and the ids that were kept."""
    ids = np.unique(faces)
    place = np.full(len(vertices), -1)
    place[ids] = np.arange(len(ids))
    return vertices[ids], place[faces], ids


def nearest_vertices(
    scan: Scan, points_mm: Float[np.ndarray, "k 3"]
) -> tuple[Int[np.ndarray, "k"], Float[np.ndarray, "k"]]:
    """Return the scan vertex next to each head-frame point, and its distance (mm)."""
    from scipy.spatial import cKDTree

    distance, index = cKDTree(scan.vertices_mm).query(points_mm)
    return np.asarray(index, dtype=np.int64), np.asarray(distance)


def colour_bytes(
    scan: Scan, skin: UInt8[np.ndarray, "n 3"], rng: np.random.Generator, cap: bool
) -> UInt8[np.ndarray, "n 3"]:
    """Return vertex colours: the skin given, cap or hair where covered, cloth for junk."""
    colours = skin.copy()
    cover = np.array([225, 222, 210]) if cap else np.array([58, 44, 34])
    colours[scan.covered] = np.clip(cover + rng.normal(0, 7, (scan.covered.sum(), 1)), 0, 255)
    junk = np.isnan(scan.canonical_mm[:, 0])
    colours[junk] = rng.integers(20, 200, 3)
    return colours
