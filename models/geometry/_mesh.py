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
def surface_at(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], wanted: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Area-weighted unit normals (V, 3), rim flag (V,) and area (V,) in one pass.

    Only vertices that are ``wanted`` (V,) are right; triangles without one are skipped.

    Every directed edge a->b adds hash(b) to a and subtracts hash(a) from b. Around an interior
    vertex of a consistently wound mesh outgoing and incoming neighbours are the same set, so the
    sum is zero; on a border, a non-manifold edge or a winding change it is not.
    """
    count = vertices.shape[0]
    normals = np.zeros((count, 3))
    areas = np.zeros(count)
    sums = np.zeros(count, dtype=np.uint64)
    for f in range(faces.shape[0]):
        a = faces[f, 0]
        b = faces[f, 1]
        c = faces[f, 2]
        if a == b or b == c or c == a:
            continue
        if not (wanted[a] or wanted[b] or wanted[c]):
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
        third = np.sqrt(nx * nx + ny * ny + nz * nz) / 6.0
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
            areas[k] += third
    rim = np.zeros(count, dtype=np.bool_)
    for i in range(count):
        length = np.sqrt(normals[i, 0] ** 2 + normals[i, 1] ** 2 + normals[i, 2] ** 2)
        rim[i] = sums[i] != np.uint64(0) or length == 0.0
        if length > 0.0:
            normals[i, 0] /= length
            normals[i, 1] /= length
            normals[i, 2] /= length
    return normals, rim, areas


@numba.njit(cache=True)
def crop(
    vertices: NDArray[np.float64],
    faces: NDArray[np.int64],
    centre: NDArray[np.float64],
    radius: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Triangles whose corners all lie within ``radius`` of ``centre``, and their vertices.

    Returns:
        Ids (K,) of the vertices in a kept triangle, ascending; triangles (M, 3) numbered in them.
    """
    count = vertices.shape[0]
    place = np.full(count, -1, dtype=np.int64)
    limit = radius * radius
    for i in range(count):
        x = vertices[i, 0] - centre[0]
        y = vertices[i, 1] - centre[1]
        z = vertices[i, 2] - centre[2]
        if x * x + y * y + z * z < limit:
            place[i] = -2
    kept = 0
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        if place[a] != -1 and place[b] != -1 and place[c] != -1:
            place[a] = 0
            place[b] = 0
            place[c] = 0
            kept += 1
    used = 0
    for i in range(count):
        if place[i] >= 0:
            place[i] = used
            used += 1
    ids = np.empty(used, dtype=np.int64)
    for i in range(count):
        if place[i] >= 0:
            ids[place[i]] = i
    out = np.empty((kept, 3), dtype=np.int64)
    kept = 0
    for f in range(faces.shape[0]):
        a, b, c = place[faces[f, 0]], place[faces[f, 1]], place[faces[f, 2]]
        if a >= 0 and b >= 0 and c >= 0:
            out[kept, 0] = a
            out[kept, 1] = b
            out[kept, 2] = c
            kept += 1
    return ids, out
