"""Scans of heads whose every FLAME vertex is known, for the registration benchmark.

A head is drawn from the whole basis (100 identity and 48 expression modes), scanned by the
project's own scanner, which samples the curved surface along its own rays so that no scan vertex
is a FLAME vertex, and registered with a model cut to 30 + 20 modes: no head lies in its span.
"""

from dataclasses import dataclass, replace

import numpy as np

from models.face.flame import FlameArrays, pose_vertices
from stages.corpus.scan import HeadShape, Scanner, scan_head

MODES = (30, 20)
LANDMARK_NOISE_MM = 1.5
EXPRESSION_SIGMA = 0.7
JAW_SIGMA_RAD = 0.04
SCANNER = Scanner(
    vertices=42_000,
    back=False,
    covering="none",
    hair_mm=0.0,
    noise_mm=0.0,
    holes=0,
    chin_hole=False,
    scraps=0,
    shoulders=False,
)
JAW = slice(6, 9)


@dataclass(frozen=True)
class Head:
    """One scan with its truth, metres: the FLAME vertices on it and the noisy landmarks."""

    vertices: np.ndarray
    faces: np.ndarray
    truth: np.ndarray
    landmarks: np.ndarray


def make_head(
    arrays: FlameArrays, seed: int, landmark_faces: np.ndarray, landmark_bary: np.ndarray
) -> Head:
    """A random person with a random expression, scanned from the front, and its truth."""
    rng = np.random.default_rng(seed)
    beta = rng.normal(size=arrays.shapedirs.shape[-1])
    psi = EXPRESSION_SIGMA * rng.normal(size=arrays.exprdirs.shape[-1])
    theta = np.zeros(3 * len(arrays.parents))
    theta[JAW][0] = abs(JAW_SIGMA_RAD * rng.normal())
    truth = pose_vertices(arrays, beta, psi, theta)
    faces = np.asarray(arrays.faces, dtype=np.int64)
    middle = truth.mean(axis=0)
    head = HeadShape(1e3 * truth, faces, 1e3 * arrays.v_template.astype(np.float64), 1e3 * middle)
    scan = scan_head(head, SCANNER, rng)
    marks = np.einsum("lk,lka->la", landmark_bary, truth[faces[landmark_faces]])
    marks = marks + 1e-3 * LANDMARK_NOISE_MM * rng.normal(size=marks.shape)
    return Head(1e-3 * scan.vertices_mm, scan.faces, truth, marks)


def cut(arrays: FlameArrays) -> FlameArrays:
    """The model with few modes."""
    return replace(
        arrays,
        shapedirs=np.ascontiguousarray(arrays.shapedirs[..., : MODES[0]]),
        exprdirs=np.ascontiguousarray(arrays.exprdirs[..., : MODES[1]]),
    )


def subdivide(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every triangle into four at its edges' midpoints."""
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    unique, inverse = np.unique(edges, axis=0, return_inverse=True)
    middle = len(vertices) + inverse.reshape(-1, 3)
    a, b, c = faces.T
    ab, bc, ca = middle.T
    parts = ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))
    fine = np.concatenate([np.stack(part, axis=1) for part in parts])
    return np.concatenate([vertices, vertices[unique].mean(axis=1)]), fine
