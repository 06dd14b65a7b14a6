"""Compiled one-pass kernels over the triangles of a mesh."""

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(cache=True, inline="always")
def _hash(x: np.uint64) -> np.uint64:
    """Mix a vertex number into 64 bits (the finaliser of splitmix64)."""
    x = np.uint64(x) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@numba.njit(cache=True)
def normals_and_rim(
    vertices: NDArray[np.float64], faces: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Area-weighted unit normals (V, 3) and the rim flag (V,) in one pass.

    Every directed edge a->b adds hash(b) to a and subtracts hash(a) from b. Around an interior
    vertex of a consistently wound mesh outgoing and incoming neighbours are the same set, so the
    sum is zero; on a border, a non-manifold edge or a winding change it is not.
    """
    count = vertices.shape[0]
    normals = np.zeros((count, 3))
    sums = np.zeros(count, dtype=np.uint64)
    for f in range(faces.shape[0]):
        a = faces[f, 0]
        b = faces[f, 1]
        c = faces[f, 2]
        if a == b or b == c or c == a:
            continue
        ux = vertices[b, 0] - vertices[a, 0]
        uy = vertices[b, 1] - vertices[a, 1]
        uz = vertices[b, 2] - vertices[a, 2]
        vx = vertices[c, 0] - vertices[a, 0]
        vy = vertices[c, 1] - vertices[a, 1]
        vz = vertices[c, 2] - vertices[a, 2]
        nx = uy * vz - uz * vy
        ny = uz * vx - ux * vz
        nz = ux * vy - uy * vx
        ha = _hash(np.uint64(a))
        hb = _hash(np.uint64(b))
        hc = _hash(np.uint64(c))
        sums[a] += hb - hc
        sums[b] += hc - ha
        sums[c] += ha - hb
        for k in (a, b, c):
            normals[k, 0] += nx
            normals[k, 1] += ny
            normals[k, 2] += nz
    rim = np.zeros(count, dtype=np.bool_)
    for i in range(count):
        length = np.sqrt(normals[i, 0] ** 2 + normals[i, 1] ** 2 + normals[i, 2] ** 2)
        rim[i] = sums[i] != np.uint64(0) or length == 0.0
        if length > 0.0:
            normals[i, 0] /= length
            normals[i, 1] /= length
            normals[i, 2] /= length
    return normals, rim
