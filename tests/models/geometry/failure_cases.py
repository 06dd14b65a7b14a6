"""Every way in which a head scan goes wrong, and whether what came of it is right.

Used by the tests with the toy head and by ``tests/benchmarks`` with the procedural heads.
"""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from models.face.flame import NOW_SEVEN_IN_STATIC_51
from models.geometry.mesh import vertex_normals
from models.geometry.registration import Registration, RegistrationError, Scan
from models.geometry.template import RegistrationModel


def _known_heads() -> ModuleType:
    """The module of heads, which lies beside this one."""
    spec = importlib.util.spec_from_file_location(
        "known_heads", Path(__file__).with_name("known_heads.py")
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["known_heads"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_heads = _known_heads()
Specimen, Heads = _heads.Specimen, _heads.Heads
LinearHeads, ProceduralHeads = _heads.LinearHeads, _heads.ProceduralHeads
cropped, load_toy, waves = _heads.cropped, _heads.load_toy, _heads.waves

RIGHT_MEDIAN_MM, RIGHT_Q95_MM = 2.0, 6.0
"""A registration is right where its face lies within these of the known vertices."""

SWAPPED_51 = [
    *range(9, -1, -1),
    *range(10, 14),
    *range(18, 13, -1),
    *(28, 27, 26, 25, 30, 29),
    *(22, 21, 20, 19, 24, 23),
    *(37, 36, 35, 34, 33, 32, 31, 42, 41, 40, 39, 38),
    *(47, 46, 45, 44, 43, 50, 49, 48),
]
"""The inner 51 with left and right exchanged."""


def noisy(specimen: Specimen, rng: np.random.Generator, sigma_mm: float) -> Specimen:
    """Independent noise on every coordinate of every vertex."""
    moved = specimen.vertices + rng.normal(scale=sigma_mm, size=specimen.vertices.shape)
    return replace(specimen, vertices=moved)


def posed(specimen: Specimen, rng: np.random.Generator, unit_mm: float, unit: str) -> Specimen:
    """Turn and shift everything at random and count in another unit."""
    turn, shift = Rotation.random(rng=rng).as_matrix(), rng.normal(scale=200.0, size=3)

    def go(points: np.ndarray | None) -> np.ndarray | None:
        return None if points is None else (points @ turn.T + shift) / unit_mm

    return replace(
        specimen,
        vertices=go(specimen.vertices),
        marks=go(specimen.marks),
        head=go(specimen.head),
        unit=unit,
        mm_per_unit=unit_mm,
    )


def added(specimen: Specimen, vertices: np.ndarray, faces: np.ndarray) -> Specimen:
    """More surface, with vertices of its own."""
    return replace(
        specimen,
        vertices=np.concatenate([specimen.vertices, vertices]),
        faces=np.concatenate([specimen.faces, faces + len(specimen.vertices)]),
    )


def _thinned(s: Specimen, rng: np.random.Generator, kept: int) -> Specimen:
    assert s.marks is not None
    marks = s.marks.copy()
    spread = np.array([0, 9, 13, 19, 28, 31, 37, 40])
    chosen = rng.choice(spread, kept, replace=False)
    while np.linalg.matrix_rank(marks[chosen] - marks[chosen].mean(axis=0), tol=15) < 2:
        chosen = rng.choice(spread, kept, replace=False)
    marks[np.setdiff1d(np.arange(len(marks)), chosen)] = np.nan
    return replace(s, marks=marks)


def _dirty(s: Specimen, rng: np.random.Generator) -> Specimen:
    some = rng.choice(len(s.faces), 300, replace=False)
    wrong = s.faces[rng.choice(len(s.faces), 200, replace=False)].copy()
    wrong[:, 2] = rng.integers(0, len(s.vertices), 200)
    s = replace(s, faces=np.concatenate([s.faces, s.faces[some], wrong]))
    low, high = s.vertices.min(axis=0) - 40, s.vertices.max(axis=0) + 40
    centres = rng.uniform(low, high, (1500, 1, 3))
    junk = (centres + rng.normal(scale=3.0, size=(1500, 3, 3))).reshape(-1, 3)
    return added(s, junk, np.arange(4500).reshape(-1, 3))


def _flipped(s: Specimen, chosen: np.ndarray) -> Specimen:
    return replace(s, faces=np.where(chosen[:, None], s.faces[:, ::-1], s.faces))


def _other_patch(s: Specimen) -> Specimen:
    """The left half as a piece of its own, wound the other way."""
    left = (s.vertices[s.faces].mean(axis=1) - s.vertices.mean(axis=0))[:, 0] > 0
    one, other = s.faces[~left], s.faces[left][:, ::-1]
    return replace(
        s,
        vertices=np.concatenate([s.vertices, s.vertices + 1e-4]),
        faces=np.concatenate([one, other + len(s.vertices)]),
    )


def _degenerate(s: Specimen, rng: np.random.Generator) -> Specimen:
    some = s.faces[rng.choice(len(s.faces), 400, replace=False)].copy()
    some[:200, 2] = some[:200, 1]
    middle = s.vertices[some[200:, :2]].mean(axis=1)
    some[200:, 2] = len(s.vertices) + np.arange(200)
    return replace(
        s,
        vertices=np.concatenate([s.vertices, middle]),
        faces=np.concatenate([s.faces, some]),
    )


def _collar(s: Specimen, rng: np.random.Generator) -> Specimen:
    """A shirt's collar around the neck, up to under the chin, in place of the skin there."""
    assert s.head is not None
    assert s.marks is not None
    chin = s.marks[31:].mean(axis=0)[1] - 55.0
    axis = s.head.mean(axis=0)
    s = cropped(s, ~((s.vertices[:, 1] < chin - 15) & (s.vertices[:, 2] < s.marks[13, 2] - 35)))
    around, up = np.meshgrid(np.linspace(-np.pi, np.pi, 120), np.linspace(0, 1, 24), indexing="ij")
    radius = 66.0 + 10.0 * (1 - up) + 2.0 * np.sin(9 * around)
    grid = np.stack(
        [
            axis[0] + radius * np.sin(around),
            chin - 60.0 + 48.0 * up,
            axis[2] - 8 + radius * np.cos(around),
        ],
        axis=-1,
    ).reshape(-1, 3)
    grid = grid + rng.normal(scale=0.1, size=grid.shape)
    corner = (np.arange(119)[:, None] * 24 + np.arange(23)).ravel()
    first = np.stack([corner, corner + 24, corner + 25], axis=1)
    second = np.stack([corner, corner + 25, corner + 1], axis=1)
    return added(s, grid, np.concatenate([first, second]))


def _ball(s: Specimen, rng: np.random.Generator, bumps_mm: float) -> Specimen:
    """A sphere of a head's size with landmarks on it: no head at all."""
    assert s.marks is not None
    unit, faces = load_toy()._sphere(100, 160)
    middle = s.vertices.mean(axis=0)
    radius = np.median(np.linalg.norm(s.marks - middle, axis=1)) + (
        bumps_mm * waves(90 * unit, rng, 60, 140) if bumps_mm else 0
    )
    ball = middle + unit * np.reshape(radius, (-1, 1))
    _, nearest = cKDTree(ball).query(s.marks)
    return replace(s, vertices=ball, faces=faces, marks=ball[nearest], head=None)


def _below(s: Specimen) -> Specimen:
    assert s.marks is not None
    return cropped(s, s.vertices[:, 1] < s.marks[13, 1])


def _nan(s: Specimen) -> Specimen:
    vertices = s.vertices.copy()
    vertices[::97] = np.nan
    return replace(s, vertices=vertices)


def _marks(s: Specimen, change: Callable[[np.ndarray], np.ndarray]) -> Specimen:
    assert s.marks is not None
    return replace(s, marks=change(s.marks))


def _three_off(marks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    marks = marks.copy()
    off = rng.normal(size=(3, 3))
    chosen = rng.choice(len(marks), 3, replace=False)
    marks[chosen] += 25 * off / np.linalg.norm(off, axis=1, keepdims=True)
    return marks


def _turned(marks: np.ndarray, rng: np.random.Generator, angle_deg: float) -> np.ndarray:
    axis = rng.normal(size=3)
    turn = Rotation.from_rotvec(np.radians(angle_deg) * axis / np.linalg.norm(axis)).as_matrix()
    middle = marks.mean(axis=0)
    return (marks - middle) @ turn.T + middle


def _shifted(marks: np.ndarray, rng: np.random.Generator, by_mm: float) -> np.ndarray:
    way = rng.normal(size=3)
    return marks + by_mm * way / np.linalg.norm(way)


def _closed(marks: np.ndarray) -> np.ndarray:
    """Landmarks that call an open mouth closed: those of the lower lip lie at the upper one."""
    marks = marks.copy()
    marks[[*range(38, 43), 48, 49, 50]] += marks[45] - marks[49]
    return marks


MIRROR = np.array([-1.0, 1.0, 1.0])

Spoil = Callable[[Specimen, np.random.Generator], Specimen]


@dataclass(frozen=True)
class Case:
    """One way in which a scan goes wrong.

    Attributes:
        spoil: Changes a specimen in the head's frame.
        of: Arguments of the specimen.
        unit: Declared unit.
        unit_mm: Its true length.
        refused: Whether nothing but a refusal is right; else whatever is right may be ok.
        reason: Part of the reason with which it is refused.
    """

    spoil: Spoil
    of: dict[str, Any] = field(default_factory=dict)
    unit: str = "mm"
    unit_mm: float = 1.0
    refused: bool = False
    reason: str = ""


def _same(s: Specimen, rng: np.random.Generator) -> Specimen:
    return s


CASES: dict[str, Case] = {
    "clean": Case(_same),
    "noise 0.2 mm": Case(lambda s, r: noisy(s, r, 0.2)),
    "noise 0.5 mm": Case(lambda s, r: noisy(s, r, 0.5)),
    "20 holes": Case(_same, of={"holes": 20}),
    "hair-cap bumps": Case(
        lambda s, r: replace(
            s,
            vertices=s.vertices
            + 4.0
            * np.maximum(waves(s.vertices, r, 25, 60), 0)[:, None]
            * np.clip((s.vertices[:, 1:2] - s.marks[:10, 1].max() - 30) / 15, 0, 1)
            * vertex_normals(s.vertices, s.faces),
        )
    ),
    "all normals flipped": Case(lambda s, r: _flipped(s, np.ones(len(s.faces), bool))),
    "30 % of faces flipped": Case(lambda s, r: _flipped(s, r.random(len(s.faces)) < 0.3)),
    "a half wound the other way": Case(lambda s, r: _other_patch(s)),
    "duplicates, non-manifold, 1500 junk triangles": Case(_dirty),
    "7 landmarks": Case(lambda s, r: _marks(s, lambda m: m[list(NOW_SEVEN_IN_STATIC_51)])),
    "4 landmarks": Case(lambda s, r: _thinned(s, r, 4)),
    "landmark noise 4 mm": Case(
        lambda s, r: _marks(s, lambda m: m + r.normal(scale=4.0 / 3**0.5, size=m.shape))
    ),
    "3 landmarks off by 25 mm": Case(lambda s, r: _marks(s, lambda m: _three_off(m, r))),
    "half a face": Case(lambda s, r: cropped(s, s.vertices[:, 0] > s.marks[13, 0])),
    "lower face only": Case(lambda s, r: _below(s)),
    "unit m": Case(_same, unit="m", unit_mm=1e3),
    "unit cm": Case(_same, unit="cm", unit_mm=10.0),
    "unit declared wrong": Case(_same, unit="m", unit_mm=1.0),
    "scale 0.37": Case(_same, unit="unknown", unit_mm=1 / 0.37),
    "strong expression": Case(_same, of={"expression": "strong"}),
    "open mouth": Case(_same, of={"expression": "open"}),
    "open mouth, 7 landmarks": Case(
        lambda s, r: _marks(s, lambda m: m[list(NOW_SEVEN_IN_STATIC_51)]),
        of={"expression": "open"},
    ),
    "open mouth, landmarks of a closed one": Case(
        lambda s, r: _marks(s, _closed), of={"expression": "open"}
    ),
    "open mouth, no landmarks": Case(
        lambda s, r: replace(s, marks=None), of={"expression": "open"}
    ),
    "scalp under hair": Case(_same, of={"cover": "hair"}),
    "closed eyes": Case(_same, of={"expression": "blink"}),
    "mirrored scan": Case(
        lambda s, r: replace(
            s, vertices=s.vertices * MIRROR, marks=s.marks * MIRROR, head=s.head * MIRROR
        ),
        refused=True,
        reason="mirror image",
    ),
    "left and right landmarks swapped": Case(
        lambda s, r: _marks(s, lambda m: m[SWAPPED_51]), refused=True, reason="mirror image"
    ),
    "collar inside the neck": Case(_collar),
    "degenerate triangles": Case(_degenerate),
    "NaN vertices": Case(lambda s, r: _nan(s), refused=True, reason="NaN"),
    "point cloud": Case(lambda s, r: replace(s, faces=np.zeros((0, 3), int))),
    "empty after the crop": Case(
        lambda s, r: _marks(s, lambda m: m + 900.0), refused=True, reason="within 160 mm"
    ),
    "a sphere": Case(lambda s, r: _ball(s, r, 0.0), refused=True),
    "a random blob": Case(lambda s, r: _ball(s, r, 7.0), refused=True),
    "landmark noise 12 mm": Case(
        lambda s, r: _marks(s, lambda m: m + r.normal(scale=12.0 / 3**0.5, size=m.shape))
    ),
    "4 landmarks, noise 10 mm": Case(
        lambda s, r: _thinned(
            _marks(s, lambda m: m + r.normal(scale=10.0 / 3**0.5, size=m.shape)), r, 4
        )
    ),
    "landmarks shifted 15 mm": Case(lambda s, r: _marks(s, lambda m: _shifted(m, r, 15.0))),
    "landmarks shifted 40 mm": Case(lambda s, r: _marks(s, lambda m: _shifted(m, r, 40.0))),
    "landmarks turned 15 deg": Case(lambda s, r: _marks(s, lambda m: _turned(m, r, 15.0))),
    "landmarks turned 45 deg": Case(lambda s, r: _marks(s, lambda m: _turned(m, r, 45.0))),
    "no landmarks": Case(lambda s, r: replace(s, marks=None)),
}


def spoiled(heads: Heads, name: str, seed: int) -> Specimen:
    """The specimen of one case, posed at random."""
    case = CASES[name]
    rng = np.random.default_rng([seed, 73])
    return posed(case.spoil(heads.specimen(seed, **case.of), rng), rng, case.unit_mm, case.unit)


Register = Callable[[Scan, np.ndarray | None], Registration]


@dataclass(frozen=True)
class Outcome:
    """What came of one case: the registration's own figures and the truth about it."""

    status: str
    reason: str
    found: Registration | None
    error_median_mm: float
    error_q95_mm: float

    @property
    def right(self) -> bool:
        """Whether the face lies where it should."""
        return self.error_median_mm <= RIGHT_MEDIAN_MM and self.error_q95_mm <= RIGHT_Q95_MM


def outcome(specimen: Specimen, register: Register, model: RegistrationModel) -> Outcome:
    """Register a specimen and measure the result against the known head, over the face."""
    scan = Scan(specimen.vertices, specimen.faces, unit=specimen.unit, bald=specimen.bald)
    try:
        found = register(scan, specimen.marks)
    except RegistrationError as error:
        return Outcome("failed", str(error), None, float("inf"), float("inf"))
    if specimen.head is None:
        return Outcome(found.status, found.reason, found, float("inf"), float("inf"))
    back = (found.vertices - found.translation) @ found.rotation / found.scale
    gap = specimen.mm_per_unit * np.linalg.norm(back - specimen.head, axis=1)[model.face]
    return Outcome(
        found.status,
        found.reason,
        found,
        float(np.median(gap)),
        float(np.percentile(gap, 95)),
    )
