"""Teeth, gums and tongue: a small mesh for pictures, outside FLAME's vertex count (mm)."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int

from models.procedural.mouth import line

TOOTH, GUM, TONGUE = 0, 1, 2
# Crown widths from the middle outward (mm): two incisors, canine, two premolars, two molars.
_UPPER_WIDTHS = (8.4, 6.6, 7.6, 7.0, 6.8, 9.6, 9.0)
_LOWER_WIDTHS = (5.3, 5.9, 6.8, 7.0, 7.1, 10.4, 9.4)
_UPPER_HEIGHTS = (10.2, 8.8, 9.8, 8.2, 7.6, 7.0, 6.6)
_LOWER_HEIGHTS = (8.6, 8.8, 9.6, 8.2, 7.6, 7.0, 6.6)
_ARCH_FRONT_MM = 6.3  # behind the mouth line
_ACROSS, _AROUND = 7, 10


@dataclasses.dataclass(frozen=True, slots=True)
class OralMesh:
    """Teeth, gums and tongue.

    Attributes:
        vertices: Positions; canonical mm in ``build_oral``, metres (FLAME frame) from the head.
        faces: Triangles, counter-clockwise from outside.
        tissue: ``TOOTH``, ``GUM`` or ``TONGUE`` per vertex.
        lower: True for what follows the jaw.
    """

    vertices: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    tissue: Int[np.ndarray, "v"]
    lower: Int[np.ndarray, "v"]


def _arch(
    length: Float[np.ndarray, "n"], widen: float
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2"]]:
    """Points (x, z) at arc lengths from the middle of the dental arch, and outward normals."""
    x = np.linspace(0.0, 26.0, 600)
    z = -9.2 * (x / (18.2 * widen)) ** 2.3
    arc = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(z)))])
    at = np.interp(np.abs(length), arc, x)
    depth = np.interp(at, x, z)
    slope = np.interp(at, x, np.gradient(z, x))
    normal = np.stack([-slope * np.sign(length), np.ones_like(slope)], axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    return np.stack([at * np.sign(length), depth], axis=1), normal


def _capsule(around: int, across: int) -> tuple[Float[np.ndarray, "n 2"], Int[np.ndarray, "f 3"]]:
    """Angles of a closed sphere grid (turn, tilt) and its triangles."""
    turn = 2.0 * np.pi * np.arange(around) / around
    tilt = np.linspace(-np.pi / 2, np.pi / 2, across + 2)[1:-1]
    grid = np.stack([part.ravel() for part in np.meshgrid(tilt, turn, indexing="ij")], axis=1)[
        :, ::-1
    ]
    angles = np.concatenate([grid, [[0.0, -np.pi / 2], [0.0, np.pi / 2]]])
    faces = []
    for row in range(across - 1):
        for k in range(around):
            a, b = row * around + k, row * around + (k + 1) % around
            faces += [(a, b, b + around), (a, b + around, a + around)]
    south, north = across * around, across * around + 1
    last = (across - 1) * around
    for k in range(around):
        nxt = (k + 1) % around
        faces += [(nxt, k, south), (last + k, last + nxt, north)]
    return angles, np.array(faces, dtype=np.int64)


def _rounded(
    angle: Float[np.ndarray, "n"], power: float
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Cosine and sine pushed toward a square of rounded corners."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.sign(cosine) * np.abs(cosine) ** power, np.sign(sine) * np.abs(sine) ** power


def _row(
    widths: tuple[float, ...], heights: tuple[float, ...], *, upper: bool
) -> list[tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, "f 3"]]]:
    """Each tooth of one row as a rounded block."""
    angles, faces = _capsule(_AROUND, _ACROSS)
    parts = []
    sign = 1.0 if upper else -1.0
    edge = -1.7 if upper else -1.4  # incisal edge against the mouth line
    for side in (1.0, -1.0):
        start = 0.0
        for index, (width, height) in enumerate(zip(widths, heights, strict=True)):
            middle = side * (start + 0.5 * width)
            start += width
            thick = 3.4 if index < 3 else 4.6
            along, deep = _rounded(angles[:, 0], 0.55)
            ring, tall = _rounded(angles[:, 1], 0.5)
            root = 0.5 + 0.5 * tall * sign  # 0 at the edge, 1 at the gum... for either row
            taper = 1.0 - (0.12 if upper else 0.16) * root
            chisel = 1.0 if index >= 3 else 0.35 + 0.65 * root
            point = 1.2 * (1.0 - root) * (1.0 - np.abs(along)) if index == 2 else 0.0
            length = middle + 0.485 * width * along * ring * taper
            centre, normal = _arch(length, 1.0 if upper else 0.93)
            out = thick * (0.5 * deep * ring * chisel - 0.5) - (0.0 if upper else 1.9)
            out = out - 0.05 * (root * height) ** 1.3
            flat = centre + out[:, None] * normal
            y = edge + sign * (root * height) - sign * point - (0.6 * index / 6.0 if upper else 0.0)
            z0 = line(np.zeros(1))[0, 1] - _ARCH_FRONT_MM
            points = np.column_stack([flat[:, 0], y - 65.0, z0 + flat[:, 1]])
            parts.append((points, faces))
    return parts


def _gum(*, upper: bool) -> tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, "f 3"]]:
    """A tube along the arch that holds the necks of the teeth."""
    steps, around = 33, 8
    length = np.linspace(-44.0, 44.0, steps)
    centre, normal = _arch(length, 1.0 if upper else 0.93)
    turn = 2.0 * np.pi * np.arange(around) / around
    sign = 1.0 if upper else -1.0
    z0 = line(np.zeros(1))[0, 1] - _ARCH_FRONT_MM - (0.0 if upper else 1.9)
    out = -2.9 + 2.9 * np.cos(turn)
    up = (8.2 if upper else 8.4) + 2.4 * np.sin(turn)
    x = centre[:, None, 0] + out * normal[:, None, 0]
    z = z0 + centre[:, None, 1] + (out - 1.2) * normal[:, None, 1]
    y = np.broadcast_to(-65.0 + (-1.7 if upper else -1.4) + sign * up, x.shape)
    points = np.stack([x, y, z], axis=2).reshape(-1, 3)
    faces = []
    for row in range(steps - 1):
        for k in range(around):
            a, b = row * around + k, row * around + (k + 1) % around
            faces += [(a, a + around, b + around), (a, b + around, b)]
    triangles = np.array(faces, dtype=np.int64)
    return points, triangles if upper else triangles[:, [0, 2, 1]]


def _tongue() -> tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, "f 3"]]:
    angles, faces = _capsule(16, 9)
    along, deep = np.cos(angles[:, 0]), np.sin(angles[:, 0])
    ring, tall = _rounded(angles[:, 1], 0.9)
    groove = -1.2 * np.exp(-0.5 * (along * ring / 0.18) ** 2) * np.clip(tall, 0.0, 1.0)
    width = 14.5 * (1.0 - 0.25 * np.clip(deep * ring, 0.0, 1.0))
    points = np.column_stack(
        [width * along * ring, -71.6 + 4.2 * tall + groove, 68.0 + 14.5 * deep * ring]
    )
    return points, faces


def _outward(
    points: Float[np.ndarray, "n 3"], faces: Int[np.ndarray, "f 3"]
) -> Int[np.ndarray, "f 3"]:
    a, b, c = (points[faces[:, k]] for k in range(3))
    volume = np.einsum("ij,ij->i", a, np.cross(b, c)).sum()
    return faces if volume > 0.0 else faces[:, [0, 2, 1]]


@functools.cache
def build_oral() -> OralMesh:
    """Teeth, gums and tongue of the mean head in canonical millimetres."""
    blocks = [(part, TOOTH, False) for part in _row(_UPPER_WIDTHS, _UPPER_HEIGHTS, upper=True)]
    blocks += [(part, TOOTH, True) for part in _row(_LOWER_WIDTHS, _LOWER_HEIGHTS, upper=False)]
    blocks += [
        (_gum(upper=True), GUM, False),
        (_gum(upper=False), GUM, True),
        (_tongue(), TONGUE, True),
    ]
    vertices, faces, tissue, lower = [], [], [], []
    count = 0
    for (points, triangles), kind, follows in blocks:
        if kind != GUM:
            triangles = _outward(points - points.mean(axis=0), triangles)
        vertices.append(points)
        faces.append(triangles + count)
        tissue.append(np.full(len(points), kind))
        lower.append(np.full(len(points), follows))
        count += len(points)
    return OralMesh(
        np.concatenate(vertices),
        np.concatenate(faces),
        np.concatenate(tissue),
        np.concatenate(lower),
    )
