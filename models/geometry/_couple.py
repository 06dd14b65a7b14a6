"""Compiled kernels of the non-rigid stage: the data term's matrix is applied, never assembled."""

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

    ``diagonal`` (N,) receives the mean over the three axes of the matrix's row sums: what the
    scalar preconditioner uses.
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
            diagonal[v] += s * weights[k] * mean
