"""A vertex layout with the Basel Face Model's counts.

Rings around the direction of the nose, on the sphere of directions; each pair of rings is stitched
by a zipper. Any triangulated disc of V vertices, B of them on its border, has 2V - 2 - B
triangles, so the published counts fix the borders: 512 vertices around the full set of 53,490,
588 around the trimmed set of 53,215 and 602 around the 2017 edition's 53,149.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

FULL = 53490
FULL_FACES = 106466
TRIMMED = 53215
TRIMMED_FACES = 105840
FRONT = 35709
EDITION_2017 = 53149
EDITION_2017_FACES = 105694
# Angle from the pole to the border: toward the crown, the ears, the neck (degrees).
REACH_DEG = (54.0, 107.0, 62.0)
CENTRE_DEG = 10.0  # the pole looks slightly down, toward the nose


@dataclass(frozen=True, slots=True)
class Layout:
    """Directions and triangles.

    Attributes:
        directions: Unit vectors (V, 3): x subject's left, y up, z forward.
        faces: Counter-clockwise seen from outside (F, 3).
        fraction: 0 at the pole, 1 on the border (V,).
    """

    directions: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    fraction: Float[np.ndarray, "v"]


def ring_sizes(
    vertices: int, border: int, reach_deg: tuple[float, float, float] = REACH_DEG
) -> list[int]:
    """Return even ring sizes around one centre vertex that add up to ``vertices``.

    Sizes follow the sine of the mean angle; the last two rings have ``border`` vertices, so that
    the outermost strip is regular.
    """
    reach = np.radians((reach_deg[0] + 2 * reach_deg[1] + reach_deg[2]) / 4)
    density = border / np.sin(reach)
    rings = round((vertices - 1) / density * reach / (1 - np.cos(reach)))
    angles = reach * np.arange(1, rings + 1) / rings
    wanted = np.maximum(density * np.sin(angles), 6.0)
    wanted[-2:] = 0.0
    wanted *= (vertices - 1 - 2 * border) / wanted.sum()
    sizes = 2 * np.floor(wanted / 2.0 + 0.5).astype(int)
    sizes[-2:] = border
    short = vertices - 1 - int(sizes.sum())
    # Spread what is left over the middle rings; an odd rest goes to one ring.
    middle = np.arange(rings // 4, rings - 4)
    step = 2 if short >= 0 else -2
    for k in range(abs(short) // 2):
        sizes[middle[(k * 7) % len(middle)]] += step
    sizes[middle[0]] += vertices - 1 - int(sizes.sum())
    return [int(size) for size in sizes]


def _reach(
    azimuth: Float[np.ndarray, "n"], reach_deg: tuple[float, float, float]
) -> Float[np.ndarray, "n"]:
    """Angle from the pole to the border (radians); azimuth 0 is up, a quarter turn the left ear."""
    up, side, down = np.radians(reach_deg)
    vertical = np.where(np.cos(azimuth) > 0, up, down)
    return side + (vertical - side) * np.cos(azimuth) ** 2


def _stitch(
    inner: Int[np.ndarray, "a"],
    inner_angle: Float[np.ndarray, "a"],
    outer: Int[np.ndarray, "b"],
    outer_angle: Float[np.ndarray, "b"],
) -> list[tuple[int, int, int]]:
    """Return the triangles between two closed rings, by merging their angles."""
    a, b = len(inner), len(outer)
    faces = []
    i = j = 0
    while i < a or j < b:
        next_inner = inner_angle[(i + 1) % a] + 2 * np.pi * ((i + 1) // a) if i < a else np.inf
        next_outer = outer_angle[(j + 1) % b] + 2 * np.pi * ((j + 1) // b) if j < b else np.inf
        if next_inner <= next_outer:
            faces.append((inner[i % a], outer[j % b], inner[(i + 1) % a]))
            i += 1
        else:
            faces.append((inner[i % a], outer[j % b], outer[(j + 1) % b]))
            j += 1
    return faces


@lru_cache(maxsize=4)
def disc(vertices: int, border: int, reach_deg: tuple[float, float, float] = REACH_DEG) -> Layout:
    """Return a disc of exactly ``vertices`` with ``border`` of them on its border.

    Vertices are numbered column by column (by x, then y), not ring by ring, so that a wrong index
    set shows.
    """
    sizes = ring_sizes(vertices, border, reach_deg)
    polar, around, rings = [np.zeros(1)], [np.zeros(1)], [np.zeros(1, dtype=int)]
    start = 1
    for k, size in enumerate(sizes):
        polar.append(np.full(size, (k + 1) / len(sizes)))
        around.append(2 * np.pi * (np.arange(size) + 0.5) / size)
        rings.append(np.arange(start, start + size))
        start += size
    fraction, azimuth = np.concatenate(polar), np.concatenate(around)
    angle = fraction * _reach(azimuth, reach_deg)
    local = np.stack(
        [np.sin(angle) * np.sin(azimuth), np.sin(angle) * np.cos(azimuth), np.cos(angle)], axis=1
    )
    local[0] = [0.0, 0.0, 1.0]
    tilt = np.radians(CENTRE_DEG)
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    directions = local @ turn.T
    faces = [(0, rings[1][j], rings[1][(j + 1) % sizes[0]]) for j in range(sizes[0])]
    for k in range(1, len(sizes)):
        faces += _stitch(rings[k], around[k], rings[k + 1], around[k + 1])
    order = np.lexsort((directions[:, 1], np.round(directions[:, 0], 2)))
    place = np.empty(vertices, dtype=int)
    place[order] = np.arange(vertices)
    triangles = place[np.array(faces)]
    sorted_directions = directions[order]
    triangles = _outward(triangles, sorted_directions)
    return Layout(sorted_directions, triangles, fraction[order])


def _outward(
    faces: Int[np.ndarray, "f 3"], directions: Float[np.ndarray, "v 3"]
) -> Int[np.ndarray, "f 3"]:
    """Return the triangles wound so that their normals leave the sphere."""
    corners = directions[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    inward = np.einsum("fi,fi->f", normal, corners.mean(axis=1)) < 0
    fixed = faces.copy()
    fixed[inward] = fixed[inward][:, [0, 2, 1]]
    return fixed


def full() -> Layout:
    """Return the 53,490-vertex layout."""
    return disc(FULL, 2 * FULL - 2 - FULL_FACES)


def edition_2017() -> Layout:
    """Return the 53,149-vertex layout."""
    return disc(EDITION_2017, 2 * EDITION_2017 - 2 - EDITION_2017_FACES)


@lru_cache(maxsize=1)
def trim_indices() -> Int[np.ndarray, "53215"]:
    """Return the ascending vertices of the trimmed set.

    Each cut of m neighbours from the regular outermost strip removes 2m + 1 triangles; 275
    vertices in 76 cuts remove the 626 triangles that the published counts ask for.
    """
    layout = full()
    border = 2 * FULL - 2 - FULL_FACES
    removed, cuts = FULL - TRIMMED, FULL_FACES - TRIMMED_FACES - 2 * (FULL - TRIMMED)
    outer = np.flatnonzero(layout.fraction > 1 - 1e-9)
    ring = outer[np.argsort(np.arctan2(layout.directions[outer, 0], layout.directions[outer, 1]))]
    lengths = np.full(cuts, removed // cuts)
    lengths[: removed - int(lengths.sum())] += 1
    kept = np.ones(border, dtype=bool)
    position = 2
    gap = (border - removed) // cuts
    for length in lengths:
        kept[position : position + length] = False
        position += int(length) + gap
    inside = np.flatnonzero(layout.fraction <= 1 - 1e-9)
    return np.sort(np.concatenate([inside, ring[kept]]))


def trimmed_faces() -> Int[np.ndarray, "f 3"]:
    """Return the triangles of the trimmed set, in its own numbering."""
    trim = trim_indices()
    place = np.full(FULL, -1)
    place[trim] = np.arange(len(trim))
    faces = place[full().faces]
    return faces[(faces >= 0).all(axis=1)]


def front_indices() -> Int[np.ndarray, "35709"]:
    """Return the ascending positions, in the trimmed set, of the frontal face."""
    fraction = full().fraction[trim_indices()]
    return np.sort(np.argsort(fraction, kind="stable")[:FRONT])
