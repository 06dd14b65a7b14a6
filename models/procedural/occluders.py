"""Things that cover a face: glasses, caps, a hand, a scarf, a plain bar. All in canonical mm."""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from models.procedural.anatomy import EYE_CENTRE_MM
from models.procedural.cage import build_cage

OccluderKind = Literal["glasses", "sunglasses", "cap", "latex_cap", "hand", "scarf", "bar"]
OCCLUDER_KINDS: tuple[OccluderKind, ...] = (
    "glasses",
    "sunglasses",
    "cap",
    "latex_cap",
    "hand",
    "scarf",
    "bar",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Occluder:
    """One thing worn or held before the face.

    Attributes:
        kind: One of ``OCCLUDER_KINDS``. A ``latex_cap`` replaces the hair.
        seed: Fixes shape and place.
        colour: Linear RGB albedo; a hand takes the skin's tone instead.
    """

    kind: OccluderKind
    seed: int
    colour: Float[np.ndarray, "3"]


class OccluderMesh(NamedTuple):
    """Triangles of an occluder in canonical mm.

    Attributes:
        points: (V, 3).
        faces: (F, 3).
        row: (F,) which of the three palette rows each face takes.
        palette: (3, 6) red, green, blue, specular strength, roughness, grain.
        hides_hair_above_mm: Hair higher than this is under it; None leaves hair alone.
        roots: (V, 3) points of the skin it sits on, mm, or None.
    """

    points: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    row: Int[np.ndarray, "f"]
    palette: Float[np.ndarray, "3 6"]
    hides_hair_above_mm: float | None
    roots: Float[np.ndarray, "v 3"] | None


def sample_occluder(rng: np.random.Generator, kind: OccluderKind | None = None) -> Occluder:
    """Draw an occluder, of one kind or of any but the latex cap."""
    if kind is None:
        choices = [k for k in OCCLUDER_KINDS if k != "latex_cap"]
        kind = choices[int(rng.integers(len(choices)))]
    colour = np.clip(np.exp(rng.normal(-2.0, 0.9)) * np.exp(rng.normal(0, 0.4, 3)), 0.005, 0.8)
    if kind == "latex_cap":
        colour = np.clip(rng.uniform(0.3, 0.6) * np.exp(rng.normal(0, 0.15, 3)), 0.05, 0.8)
    return Occluder(kind, int(rng.integers(2**31)), colour)


def _tube(
    path: Float[np.ndarray, "n 3"], radius: float, *, closed: bool, sides: int = 7
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"]]:
    """A round tube along a polyline."""
    n = len(path)
    around = np.roll(path, -1, 0) - np.roll(path, 1, 0)
    tangent = around if closed else np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-9
    helper = np.where(np.abs(tangent[:, 2:3]) < 0.8, [[0.0, 0.0, 1.0]], [[0.0, 1.0, 0.0]])
    first = np.cross(tangent, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True) + 1e-9
    second = np.cross(tangent, first)
    turn = 2 * np.pi * np.arange(sides) / sides
    points = path[:, None] + radius * (
        np.cos(turn)[None, :, None] * first[:, None] + np.sin(turn)[None, :, None] * second[:, None]
    )
    rows = n if closed else n - 1
    r, c = np.meshgrid(np.arange(rows), np.arange(sides), indexing="ij")
    nr, nc = (r + 1) % n, (c + 1) % sides
    a, b, d, e = r * sides + c, r * sides + nc, nr * sides + c, nr * sides + nc
    faces = np.concatenate([np.stack([a, d, e], -1), np.stack([a, e, b], -1)]).reshape(-1, 3)
    return points.reshape(-1, 3), faces


def _sheet(
    grid: Float[np.ndarray, "r c 3"],
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"]]:
    """An open grid as triangles."""
    rows, columns, _ = grid.shape
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(columns - 1), indexing="ij")
    a = r * columns + c
    b, d, e = a + 1, a + columns, a + columns + 1
    faces = np.concatenate([np.stack([a, d, e], -1), np.stack([a, e, b], -1)]).reshape(-1, 3)
    return grid.reshape(-1, 3), faces


def _join(
    parts: list[tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"], int]],
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"], Int[np.ndarray, "f"]]:
    points = [p for p, _, _ in parts]
    starts = np.cumsum([0] + [len(p) for p in points[:-1]])
    faces = [f + s for (_, f, _), s in zip(parts, starts, strict=True)]
    rows = [np.full(len(f), row) for _, f, row in parts]
    return np.concatenate(points), np.concatenate(faces), np.concatenate(rows)


def _glasses(
    rng: np.random.Generator, dark: bool
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"], Int[np.ndarray, "f"]]:
    half = np.array([rng.uniform(21.0, 25.0), rng.uniform(16.0, 21.0)])
    power = rng.uniform(2.0, 4.5)
    thick = rng.uniform(0.9, 2.2)
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    cx, sx = np.cos(turn), np.sin(turn)
    radius = (np.abs(cx) ** power + np.abs(sx) ** power) ** (-1 / power)
    parts = []
    for side in (1.0, -1.0):
        x = EYE_CENTRE_MM[0] + 0.8 + half[0] * radius * cx
        y = -3.5 + half[1] * radius * sx
        z = 102.0 - 0.0075 * (x - 8.0) ** 2
        rim = np.stack([side * x, y, z], 1)
        parts.append((*_tube(rim, thick, closed=True), 0))
        if dark:
            centre = np.array([[side * (EYE_CENTRE_MM[0] + 0.8), -3.5, 99.5]])
            fan = np.stack([np.full(40, 40), np.arange(40), (np.arange(40) + 1) % 40], 1)
            parts.append((np.concatenate([rim, centre]), fan, 1))
        outer = rim[int(np.argmin(np.abs(turn - 0.25)))]
        arm = np.array(
            [outer, [side * 72.0, 5.0, 74.0], [side * 77.5, 5.0, 20.0], [side * 78.0, 2.0, -12.0]]
        )
        t = np.linspace(0, 3, 16)
        path = np.stack([np.interp(t, np.arange(4), arm[:, k]) for k in range(3)], 1)
        parts.append((*_tube(path, max(1.1, 0.8 * thick), closed=False), 0))
    t = np.linspace(-1, 1, 9)
    inner = EYE_CENTRE_MM[0] + 0.8 - half[0]
    bridge = np.stack([inner * t, 1.0 + 2.5 * (1 - t**2), 102.0 + 2.0 * (1 - t**2)], 1)
    parts.append((*_tube(bridge, thick, closed=False), 0))
    return _join(parts)


class _Dome(NamedTuple):
    """A cap's dome: grid points, the scalp under them, triangles, and its lower edge."""

    points: Float[np.ndarray, "v 3"]
    roots: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    edge: Float[np.ndarray, "c 3"]


_DOME_COLUMNS = 61


def _dome(lowest: float, lift: float, floor_front: float, floor_back: float) -> _Dome:
    """A shell over the scalp, ``lift`` mm off it, down to a tilted plane."""
    cage = build_cage()
    rows = 40
    phi = np.linspace(-np.pi, np.pi, _DOME_COLUMNS)
    grid_s, grid_phi = np.meshgrid(np.linspace(0.002, lowest, rows), phi, indexing="ij")
    roots = cage.point(grid_s.ravel(), grid_phi.ravel())
    outward = roots - np.array([0.0, 15.0, -10.0])
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    front = 0.5 + 0.5 * np.cos(grid_phi)
    floor = floor_back + (floor_front - floor_back) * front
    grid = (roots + lift * outward).reshape(rows, _DOME_COLUMNS, 3)
    under = roots.reshape(grid.shape).copy()
    for column in range(_DOME_COLUMNS):
        last = int(np.argmax(grid[:, column, 1] < floor[:, column])) or rows
        upper, lower = grid[last - 1, column], grid[min(last, rows - 1), column]
        t = np.clip((upper[1] - floor[0, column]) / max(upper[1] - lower[1], 1e-6), 0.0, 1.0)
        grid[last:, column] = upper + t * (lower - upper)
        under[last:, column] = under[last - 1, column]
    points, faces = _sheet(grid)
    return _Dome(points, under.reshape(-1, 3), faces, grid[-1])


def _cap(
    rng: np.random.Generator,
) -> tuple[
    tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"], Int[np.ndarray, "f"]],
    Float[np.ndarray, "v 3"],
]:
    """A cap with a visor, and the skin under each of its points."""
    dome = _dome(0.55, 11.0, 60.0, 38.0)
    reach = rng.uniform(52.0, 70.0)
    phi = np.linspace(-np.pi, np.pi, _DOME_COLUMNS)
    ahead = np.abs(phi) < np.radians(66.0)
    turn = phi[ahead] / np.radians(66.0)
    depth = np.linspace(0.0, 1.0, 9)[:, None]
    swing = (1.0 - np.abs(turn) ** 2.6)[None]
    edge = dome.edge[ahead][None]
    shift = np.stack(
        [
            0.16 * reach * depth * swing * turn[None],
            -0.20 * reach * depth * swing - 5.0 * depth * swing * turn[None] ** 2,
            reach * depth * swing,
        ],
        -1,
    )
    visor, visor_faces = _sheet(edge + shift)
    mesh = _join([(dome.points, dome.faces, 0), (visor, visor_faces, 1)])
    tied = np.broadcast_to(
        dome.roots.reshape(-1, _DOME_COLUMNS, 3)[-1, ahead], (9, *edge.shape[1:])
    )
    return mesh, np.concatenate([dome.roots, tied.reshape(-1, 3)])


def _ellipsoid(
    centre: Float[np.ndarray, "3"], radii: Float[np.ndarray, "3"]
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"]]:
    polar, turn = np.meshgrid(np.linspace(0.05, np.pi - 0.05, 14), np.linspace(0, 2 * np.pi, 23))
    unit = np.stack([np.sin(polar) * np.sin(turn), np.cos(polar), np.sin(polar) * np.cos(turn)], -1)
    return _sheet(np.transpose(centre + unit * radii, (1, 0, 2)))


def _hand(
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"], Int[np.ndarray, "f"]]:
    side = float(rng.choice([-1.0, 1.0]))
    target = np.array([side * rng.uniform(8, 34), rng.uniform(-72, -30), 116.0])
    tilt = rng.uniform(-0.6, 0.5)
    along = np.array([-side * np.cos(tilt), np.sin(tilt) + 0.55, 0.0])
    along /= np.linalg.norm(along)
    across = np.array([-along[1], along[0], 0.0]) * side
    parts = []
    wrist = target - 62.0 * along
    palm, faces = _ellipsoid(np.zeros(3), np.array([40.0, 44.0, 15.0]))
    frame = np.stack([across, along, np.array([0.0, 0.0, 1.0])])
    parts.append((palm @ frame + wrist + 14.0 * along, faces, 0))
    lengths = (66.0, 74.0, 70.0, 56.0)
    for finger, length in enumerate(lengths):
        start = wrist + across * (-27.0 + 18.0 * finger) + 42.0 * along
        fan = along + across * (-0.13 + 0.09 * finger)
        t = np.linspace(0, 1, 10)[:, None]
        path = start + fan * length * t + np.array([0, 0, 6.0]) * np.sin(np.pi * t)
        path[:, 2] -= 6.0 * t[:, 0] ** 2
        parts.append((*_tube(path, 9.0 - 0.6 * finger, closed=False, sides=10), 0))
        parts.append((*_ellipsoid(path[-1], np.full(3, 8.6 - 0.6 * finger)), 0))
    thumb = wrist + across * -34.0 + np.array([0, 0, 4.0])
    t = np.linspace(0, 1, 8)[:, None]
    path = thumb + (0.55 * along - 0.8 * across) * 52.0 * t
    parts.append((*_tube(path, 10.0, closed=False, sides=10), 0))
    parts.append((*_ellipsoid(path[-1], np.full(3, 9.8)), 0))
    forearm = np.stack([wrist + along * -10.0, wrist - along * 170.0])
    path = forearm[0] + (forearm[1] - forearm[0]) * np.linspace(0, 1, 6)[:, None]
    parts.append((*_tube(path, 26.0, closed=False, sides=14), 0))
    return _join(parts)


def _scarf(
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"], Int[np.ndarray, "f"]]:
    top = rng.uniform(-42.0, -20.0)
    rows, columns = 26, 72
    v, phi = np.meshgrid(
        np.linspace(0, 1, rows), np.linspace(-np.pi, np.pi, columns + 1), indexing="ij"
    )
    front = 0.5 + 0.5 * np.cos(phi)
    y = (top * front - 70.0 * (1 - front)) * (1 - v) - 190.0 * v
    fold = 3.0 * np.sin(7 * v * np.pi + 1.3 * np.sin(2 * phi) + rng.uniform(0, 6)) * np.sqrt(v)
    half = 80.0 + 8.0 * v + fold
    ahead = 124.0 - 26.0 * v + fold
    behind = -112.0 + fold
    cosine = np.cos(phi)
    x = half * np.sin(phi)
    z = np.where(cosine > 0, ahead * cosine, -behind * cosine)
    return _join([(*_sheet(np.stack([x, y, z], -1)), 0)])


def _bar(
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"], Int[np.ndarray, "f"]]:
    centre = np.array([rng.uniform(-30, 30), rng.uniform(-70, 30), 150.0])
    angle = rng.uniform(0, np.pi)
    along = np.array([np.cos(angle), np.sin(angle), 0.0]) * rng.uniform(70, 160)
    across = np.array([-np.sin(angle), np.cos(angle), 0.0]) * rng.uniform(12, 26)
    u, v = np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 5), indexing="ij")
    grid = centre + u[..., None] * along + v[..., None] * across
    grid[..., 2] -= 6.0 * v**2
    return _join([(*_sheet(grid), 0)])


def build_occluder(occluder: Occluder, skin_tone: Float[np.ndarray, "3"]) -> OccluderMesh:
    """Triangles and palette of one occluder.

    Args:
        occluder: What to build.
        skin_tone: Albedo of a hand.

    Raises:
        ValueError: The kind is unknown.
    """
    rng = np.random.default_rng([occluder.seed, 5])
    colour = occluder.colour
    rows = np.zeros((3, 6))
    rows[0] = [*colour, 0.3, 0.5, 0.15]
    rows[1] = [*(0.7 * colour), 0.3, 0.5, 0.1]
    hides = None
    roots = None
    if occluder.kind in ("glasses", "sunglasses"):
        mesh = _glasses(rng, occluder.kind == "sunglasses")
        rows[0] = [*np.minimum(colour, 0.25), 1.2, 0.3, 0.0]
        rows[1] = [0.012, 0.012, 0.014, 1.6, 0.16, 0.0]
    elif occluder.kind == "cap":
        mesh, roots = _cap(rng)
        hides = 48.0
    elif occluder.kind == "latex_cap":
        dome = _dome(0.62, 4.0, 66.0, -62.0)
        points = dome.points
        ear = ((points[:, 2] + 8.0) / 22.0) ** 2 + ((points[:, 1] + 12.0) / 30.0) ** 2
        hidden = (np.abs(points[:, 0]) > 40.0) & (ear < 1.0)
        low = (points[:, 2] > -20.0) & (points[:, 1] < 14.0)
        points = np.where((hidden | low)[:, None], points * [0.93, 1.0, 0.97], points)
        mesh = (points, dome.faces, np.zeros(len(dome.faces), dtype=np.int64))
        roots = dome.roots
        rows[0] = [*colour, 0.9, 0.4, 0.05]
        hides = -1000.0
    elif occluder.kind == "hand":
        mesh = _hand(rng)
        rows[0] = [*skin_tone, 0.7, 0.45, 0.10]
    elif occluder.kind == "scarf":
        mesh = _scarf(rng)
        rows[0] = [*colour, 0.05, 0.6, 0.45]
    elif occluder.kind == "bar":
        mesh = _bar(rng)
    else:
        raise ValueError(
            f"build_occluder expected a kind of {OCCLUDER_KINDS}, got {occluder.kind!r}."
        )
    points, faces, row = mesh
    return OccluderMesh(points, faces, row, rows, hides, roots)
