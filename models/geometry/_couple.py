"""Compiled kernels of the two stages' linear systems."""

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(cache=True)
def apply_data(
    corners: NDArray[np.int64],
    bary: NDArray[np.float64],
    normals: NDArray[np.float64],
    weights: NDArray[np.float64],
    tangential: float,
    u: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """Add ``sum_k w_k B_k' ((1 - t) n n' + t I) B_k u`` to ``out``.

    Args:
        corners: (K, 3) vertices of each row.
        bary: (K, 3) their weights.
        normals: (K, 3) unit directions in which the row weighs fully.
        weights: (K,) weights.
        tangential: Weight t across the normal.
        u: (N, 3) displacements.
        out: (N, 3), added to.
    """
    for k in range(corners.shape[0]):
        a, b, c = corners[k, 0], corners[k, 1], corners[k, 2]
        p, q, r = bary[k, 0], bary[k, 1], bary[k, 2]
        x = p * u[a, 0] + q * u[b, 0] + r * u[c, 0]
        y = p * u[a, 1] + q * u[b, 1] + r * u[c, 1]
        z = p * u[a, 2] + q * u[b, 2] + r * u[c, 2]
        nx, ny, nz = normals[k, 0], normals[k, 1], normals[k, 2]
        along = (1.0 - tangential) * (nx * x + ny * y + nz * z)
        x = weights[k] * (along * nx + tangential * x)
        y = weights[k] * (along * ny + tangential * y)
        z = weights[k] * (along * nz + tangential * z)
        out[a, 0] += p * x
        out[a, 1] += p * y
        out[a, 2] += p * z
        out[b, 0] += q * x
        out[b, 1] += q * y
        out[b, 2] += q * z
        out[c, 0] += r * x
        out[c, 1] += r * y
        out[c, 2] += r * z


@numba.njit(cache=True)
def right_side(
    corners: NDArray[np.int64],
    bary: NDArray[np.float64],
    normals: NDArray[np.float64],
    weights: NDArray[np.float64],
    tangential: float,
    wanted: NDArray[np.float64],
    out: NDArray[np.float64],
    diagonal: NDArray[np.float64],
) -> None:
    """Add the data term's right-hand side for displacements ``wanted`` (K, 3), and its diagonal.

    ``diagonal`` (N,) receives the mean over the three axes of each row's weight on each vertex:
    what the scalar preconditioner uses.
    """
    mean = (1.0 + 2.0 * tangential) / 3.0
    for k in range(corners.shape[0]):
        nx, ny, nz = normals[k, 0], normals[k, 1], normals[k, 2]
        x, y, z = wanted[k, 0], wanted[k, 1], wanted[k, 2]
        along = (1.0 - tangential) * (nx * x + ny * y + nz * z)
        x = weights[k] * (along * nx + tangential * x)
        y = weights[k] * (along * ny + tangential * y)
        z = weights[k] * (along * nz + tangential * z)
        for i in range(3):
            v = corners[k, i]
            s = bary[k, i]
            out[v, 0] += s * x
            out[v, 1] += s * y
            out[v, 2] += s * z
            diagonal[v] += abs(s) * weights[k] * mean


@numba.njit(cache=True)
def add_projected(
    directions: NDArray[np.float64],
    basis: NDArray[np.float64],
    rows: NDArray[np.float64],
    first: int,
    out: NDArray[np.float64],
) -> None:
    """Write ``rows[n] + sum_a directions[n, a] basis[n, a]`` to the columns from ``first`` on."""
    for n in range(directions.shape[0]):
        x, y, z = directions[n, 0], directions[n, 1], directions[n, 2]
        for k in range(basis.shape[2]):
            out[n, first + k] = (
                rows[n, k] + x * basis[n, 0, k] + y * basis[n, 1, k] + z * basis[n, 2, k]
            )


@numba.njit(cache=True)
def template_rows(
    ids: NDArray[np.int64],
    now: NDArray[np.float64],
    moved: NDArray[np.float64],
    normals: NDArray[np.float64],
    trust: NDArray[np.float64],
    distance: NDArray[np.float64],
    nearest: NDArray[np.int64],
    surface: NDArray[np.float64],
    surface_normals: NDArray[np.float64],
    rim: NDArray[np.bool_],
    cosine: float,
    robust: float,
) -> tuple[
    NDArray[np.int64],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
]:
    """Data rows of template vertices pulled to the tangent planes of their nearest scan vertices.

    Args:
        ids: (K,) skin vertices that look for the scan.
        now: (N, 3) skin.
        moved: (N, 3) its displacement so far.
        normals: (N, 3) its unit normals.
        trust: (N,) weight of each vertex, mm^2.
        distance: (K,) to the nearest scan vertex, infinite beyond the gate.
        nearest: (K,) that vertex.
        surface: (S, 3) scan.
        surface_normals: (S, 3) its unit normals.
        rim: (S,) its border.
        cosine: Least cosine of the angle between normals.
        robust: Scale of Geman and McClure's weight.

    Returns:
        Corners, barycentric weights, normals, weights and wanted displacements; one row each.
    """
    count = ids.shape[0]
    corners = np.empty((count, 3), dtype=np.int64)
    bary = np.zeros((count, 3))
    across = np.empty((count, 3))
    weights = np.empty(count)
    wanted = np.empty((count, 3))
    used = 0
    for k in range(count):
        s = nearest[k]
        if not np.isfinite(distance[k]) or rim[s]:
            continue
        v = ids[k]
        nx, ny, nz = surface_normals[s, 0], surface_normals[s, 1], surface_normals[s, 2]
        if nx * normals[v, 0] + ny * normals[v, 1] + nz * normals[v, 2] <= cosine:
            continue
        gap = (
            (surface[s, 0] - now[v, 0]) * nx
            + (surface[s, 1] - now[v, 1]) * ny
            + (surface[s, 2] - now[v, 2]) * nz
        )
        loss = 1.0 + (distance[k] / robust) ** 2
        corners[used, 0] = v
        corners[used, 1] = v
        corners[used, 2] = v
        bary[used, 0] = 1.0
        across[used, 0] = nx
        across[used, 1] = ny
        across[used, 2] = nz
        weights[used] = trust[v] / (loss * loss)
        wanted[used, 0] = moved[v, 0] + gap * nx
        wanted[used, 1] = moved[v, 1] + gap * ny
        wanted[used, 2] = moved[v, 2] + gap * nz
        used += 1
    return corners[:used], bary[:used], across[:used], weights[:used], wanted[:used]


@numba.njit(cache=True)
def scan_rows(
    points: NDArray[np.float64],
    point_normals: NDArray[np.float64],
    areas: NDArray[np.float64],
    found: NDArray[np.int64],
    found_bary: NDArray[np.float64],
    squared: NDArray[np.float64],
    faces: NDArray[np.int64],
    now: NDArray[np.float64],
    moved: NDArray[np.float64],
    normals: NDArray[np.float64],
    trust: NDArray[np.float64],
    cosine: float,
    robust: float,
) -> tuple[
    NDArray[np.int64],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
]:
    """Data rows of scan samples that pull the template point closest to them.

    Args:
        points: (K, 3) samples.
        point_normals: (K, 3) their unit normals.
        areas: (K,) surface that each stands for, mm^2.
        found: (K,) closest triangle, -1 beyond the gate.
        found_bary: (K, 3) the closest point in it.
        squared: (K,) squared distance.
        faces: (M, 3) triangles of the skin.
        now: (N, 3) skin.
        moved: (N, 3) its displacement so far.
        normals: (N, 3) its unit normals.
        trust: (N,) weight of each skin vertex.
        cosine: Least cosine of the angle between normals.
        robust: Scale of Geman and McClure's weight.

    Returns:
        Corners, barycentric weights, normals, weights and wanted displacements; one row each.
    """
    count = points.shape[0]
    corners = np.empty((count, 3), dtype=np.int64)
    bary = np.empty((count, 3))
    across = np.empty((count, 3))
    weights = np.empty(count)
    wanted = np.empty((count, 3))
    used = 0
    for k in range(count):
        f = found[k]
        if f < 0:
            continue
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        p, q, r = found_bary[k, 0], found_bary[k, 1], found_bary[k, 2]
        weight = p * trust[a] + q * trust[b] + r * trust[c]
        if weight <= 0.0:
            continue
        # Shared corners carry the point where triangles tie, so the normal does not depend on
        # which of them answered.
        nx = p * normals[a, 0] + q * normals[b, 0] + r * normals[c, 0]
        ny = p * normals[a, 1] + q * normals[b, 1] + r * normals[c, 1]
        nz = p * normals[a, 2] + q * normals[b, 2] + r * normals[c, 2]
        length = max(np.sqrt(nx * nx + ny * ny + nz * nz), 1e-12)
        nx, ny, nz = nx / length, ny / length, nz / length
        facing = nx * point_normals[k, 0] + ny * point_normals[k, 1] + nz * point_normals[k, 2]
        if facing <= cosine:
            continue
        loss = 1.0 + squared[k] / (robust * robust)
        corners[used, 0] = a
        corners[used, 1] = b
        corners[used, 2] = c
        bary[used, 0] = p
        bary[used, 1] = q
        bary[used, 2] = r
        across[used, 0] = nx
        across[used, 1] = ny
        across[used, 2] = nz
        weights[used] = areas[k] * weight / (loss * loss)
        for i in range(3):
            here = p * now[a, i] + q * now[b, i] + r * now[c, i]
            carried = p * moved[a, i] + q * moved[b, i] + r * moved[c, i]
            wanted[used, i] = carried + points[k, i] - here
        used += 1
    return corners[:used], bary[:used], across[:used], weights[:used], wanted[:used]
