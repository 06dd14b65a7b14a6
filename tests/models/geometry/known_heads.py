"""Heads of known vertices, scanned: the toy head's, and the corpus's procedural people."""

import importlib.util
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from models.face.flame import FlameArrays, pose_vertices
from models.geometry.mesh import vertex_normals
from models.geometry.template import RegistrationModel


@dataclass(frozen=True)
class Specimen:
    """A scan of a head whose vertices are known, mm in the head's frame until it is posed.

    Attributes:
        vertices: (n, 3).
        faces: (m, 3).
        marks: (51, 3) or (7, 3), or None.
        head: (V, 3) true vertices of the model's topology; None where there is no right answer.
        unit: What the data set declares.
        bald: The scalp is bare or capped.
        mm_per_unit: True length of the scan's unit.
    """

    vertices: np.ndarray
    faces: np.ndarray
    marks: np.ndarray | None
    head: np.ndarray | None
    unit: str = "mm"
    bald: bool = True
    mm_per_unit: float = 1.0


class Heads(Protocol):
    """A source of heads of known vertices."""

    model: RegistrationModel

    def specimen(
        self, seed: int, *, expression: str = "mild", cover: str = "cap", holes: int = 0
    ) -> Specimen:
        """A clean scan: ``expression`` none, mild, strong, open or blink;

        ``cover`` none, cap or hair."""
        ...


def load_toy() -> ModuleType:
    """The toy head's module, which lies beside this one."""
    spec = importlib.util.spec_from_file_location(
        "toy_head", Path(__file__).with_name("toy_head.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def waves(points: np.ndarray, rng: np.random.Generator, low_mm: float, high_mm: float):
    """A smooth random field of unit variance."""
    directions = rng.normal(size=(10, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = rng.uniform(low_mm, high_mm, (10, 1))
    phases = rng.uniform(0, 2 * np.pi, 10)
    return np.sin(points @ (2 * np.pi * directions / lengths).T + phases).sum(axis=1) * 0.2**0.5


@dataclass(frozen=True)
class LinearHeads:
    """Heads drawn from a linear model; the registration's own model may know fewer modes."""

    full: FlameArrays
    model: RegistrationModel
    identity_sigma: float = 1.0
    subdivisions: int = 2
    _cache: dict[Any, Specimen] = field(default_factory=dict)

    @classmethod
    def toy(cls) -> "LinearHeads":
        """The toy head: the smallest source."""
        toy = load_toy()
        arrays = toy.toy_head()
        return cls(arrays, RegistrationModel.build(arrays, *toy.toy_landmarks(arrays)))

    def specimen(
        self, seed: int, *, expression: str = "mild", cover: str = "cap", holes: int = 0
    ) -> Specimen:
        """See ``Heads``."""
        key = (seed, expression, cover, holes)
        if key not in self._cache:
            self._cache[key] = self._made(seed, expression, cover, holes)
        return self._cache[key]

    def _made(self, seed: int, expression: str, cover: str, holes: int) -> Specimen:
        rng = np.random.default_rng([seed, 71])
        model = self.model
        beta = self.identity_sigma * rng.normal(size=self.full.shapedirs.shape[-1])
        strength = {"mild": 0.5, "strong": 1.4}.get(expression, 0.0)
        psi = strength * rng.normal(size=self.full.exprdirs.shape[-1])
        theta = np.zeros(15)
        theta[6] = {"open": 0.25, "strong": 0.3, "mild": 0.1}.get(expression, 0.0)
        head = 1e3 * pose_vertices(self.full, beta, psi, theta)
        if expression == "blink":
            for ball, lids in model.eyeballs:
                centre = head[ball].mean(axis=0)
                radius = np.linalg.norm(head[ball] - centre, axis=1).max()
                front = lids[head[lids, 2] > centre[2]]
                ray = head[front] - centre
                ray /= np.linalg.norm(ray, axis=1, keepdims=True)
                head[front] = centre + 1.12 * radius * ray
        fine, faces = head[model.skin_ids], model.skin_faces
        lifted = model.scalp[model.skin_ids].astype(float)
        for _ in range(self.subdivisions):
            both, faces_next = load_toy().subdivide(
                np.concatenate([fine, lifted[:, None] * [1, 0, 0]], axis=1), faces
            )
            fine, lifted, faces = both[:, :3], both[:, 3], faces_next
        normals = vertex_normals(fine, faces)
        height = 0.1 * waves(fine, rng, 15, 60) + 0.08 * rng.normal(size=len(fine))
        if cover == "cap":
            height = height + lifted * (2.2 + 1.1 * np.maximum(waves(fine, rng, 18, 45), 0))
        elif cover == "hair":
            height = height + lifted * np.maximum(
                14 * (1 + 0.2 * waves(fine, rng, 9, 24) + 0.2 * waves(fine, rng, 60, 140)), 0
            )
        fine = fine + height[:, None] * normals
        corners = head[np.asarray(model.arrays.faces)[model.landmark_faces]]
        marks = np.einsum("lk,lka->la", model.landmark_bary, corners)
        marks = marks + rng.normal(size=marks.shape)
        found = Specimen(fine, faces, marks, head, bald=cover != "hair")
        return punched(found, rng, holes)


@dataclass(frozen=True)
class ProceduralHeads:
    """The corpus's own people, scanned as the corpus scans them; registered with its FLAME."""

    model: RegistrationModel
    scan_vertices: int = 20_000
    _cache: dict[Any, Specimen] = field(default_factory=dict)

    @classmethod
    @lru_cache(maxsize=1)
    def build(cls) -> "ProceduralHeads":
        """Build the head and its FLAME (some seconds)."""
        from models.procedural.rig import build_flame
        from stages.corpus import studio

        points = studio.head().embeddings
        model = RegistrationModel.build(
            build_flame(seed=1), points.static_faces, points.static_bary, studio.head().masks
        )
        return cls(model)

    def specimen(
        self, seed: int, *, expression: str = "mild", cover: str = "cap", holes: int = 0
    ) -> Specimen:
        """See ``Heads``."""
        key = (seed, expression, cover, holes)
        if key not in self._cache:
            self._cache[key] = self._made(seed, expression, cover, holes)
        return self._cache[key]

    def _made(self, seed: int, expression: str, cover: str, holes: int) -> Specimen:
        from models.procedural.expression import Expression, sample_expression
        from stages.corpus import studio
        from stages.corpus.people import person
        from stages.corpus.scan import Scanner, scan_head

        rng = np.random.default_rng([seed, 72])
        face = None
        if expression in ("mild", "strong"):
            face = sample_expression(rng, 0.5 if expression == "mild" else 1.5)
        elif expression == "blink":
            face = Expression.of(blink=1.0)
        elif expression == "open":
            face = Expression.of(jaw_open=rng.uniform(0.4, 1.0))
        who = person(seed, "failures", str(seed))
        head_m = np.asarray(studio.head().vertices(who.identity, face))
        scanner = Scanner(
            vertices=self.scan_vertices,
            back=True,
            covering=cover,
            hair_mm=14.0 if cover == "hair" else 0.0,
            noise_mm=0.15,
            holes=3,
            chin_hole=False,
            scraps=2,
            shoulders=bool(seed % 2),
        )
        scan = scan_head(studio.shape_of(head_m), scanner, rng)
        marks = 1e3 * np.asarray(studio.head().landmarks(head_m))[-51:]
        marks = marks + rng.normal(size=marks.shape)
        found = Specimen(scan.vertices_mm, scan.faces, marks, 1e3 * head_m, bald=cover != "hair")
        return punched(found, rng, holes)


def cropped(specimen: Specimen, keep: np.ndarray) -> Specimen:
    """The triangles whose corners are all kept."""
    faces = specimen.faces[keep[specimen.faces].all(axis=1)]
    return replace(specimen, faces=faces)


def punched(specimen: Specimen, rng: np.random.Generator, holes: int) -> Specimen:
    """Holes of 4 to 12 mm radius, most of them in the face."""
    if holes == 0:
        return specimen
    assert specimen.marks is not None
    keep = np.ones(len(specimen.vertices), dtype=bool)
    middle = specimen.marks.mean(axis=0)
    near = np.flatnonzero(np.linalg.norm(specimen.vertices - middle, axis=1) < 100)
    for centre in rng.choice(near, holes, replace=False):
        gap = np.linalg.norm(specimen.vertices - specimen.vertices[centre], axis=1)
        keep &= gap > rng.uniform(4, 12)
    return cropped(specimen, keep)
