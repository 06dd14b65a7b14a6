"""Compiled kernels: a refinement step's linearised distances, summed; a surface's normals."""

import numba
import numpy as np
from numpy.typing import NDArray

TOUCHING_MM = 1e-9


@numba.njit(cache=True)
def linearise(
    points: NDArray[np.float64],
    nearest: NDArray[np.float64],
    normals: NDArray[np.float64],
    faces: NDArray[np.int64],
    scale: float,
    rotation: NDArray[np.float64],
    translation: NDArray[np.float64],
    radius: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Distances d (k,), J^T J (7, 7) and J^T d (7,) of a posed surface.

    Row i of J is the derivative of d_i in (w, u, g) / (1/r, 1, 1/r), the motion that takes a
    posed surface point y to exp(g) exp([w]x) y + u:  -( (y x n)/r, n, (y . n)/r ), with n the unit
    vector from y to the point and r the radius. Where both coincide n is the face's normal.

    Args:
        points: (k, 3) scan points.
        nearest: (k, 3) their closest surface points, in the surface's own frame.
        normals: (f, 3) unit normals of all faces, in that frame.
        faces: (k,) the closest faces.
        scale: Of the pose y = scale R q + t.
        rotation: (3, 3) R.
        translation: (3,) t.
        radius: r.
    """
    count = points.shape[0]
    distances = np.empty(count)
    matrix = np.zeros((7, 7))
    vector = np.zeros(7)
    y = np.empty(3)
    n = np.empty(3)
    row = np.empty(7)
    for i in range(count):
        squared = 0.0
        for a in range(3):
            y[a] = translation[a] + scale * (
                rotation[a, 0] * nearest[i, 0]
                + rotation[a, 1] * nearest[i, 1]
                + rotation[a, 2] * nearest[i, 2]
            )
            n[a] = points[i, a] - y[a]
            squared += n[a] * n[a]
        distance = np.sqrt(squared)
        distances[i] = distance
        for a in range(3):
            if distance < TOUCHING_MM:
                n[a] = (
                    rotation[a, 0] * normals[faces[i], 0]
                    + rotation[a, 1] * normals[faces[i], 1]
                    + rotation[a, 2] * normals[faces[i], 2]
                )
            else:
                n[a] /= distance
        row[0] = -(y[1] * n[2] - y[2] * n[1]) / radius
        row[1] = -(y[2] * n[0] - y[0] * n[2]) / radius
        row[2] = -(y[0] * n[1] - y[1] * n[0]) / radius
        row[3] = -n[0]
        row[4] = -n[1]
        row[5] = -n[2]
        row[6] = -(y[0] * n[0] + y[1] * n[1] + y[2] * n[2]) / radius
        for a in range(7):
            vector[a] += row[a] * distance
            for b in range(a + 1):
                matrix[a, b] += row[a] * row[b]
    for a in range(7):
        for b in range(a):
            matrix[b, a] = matrix[a, b]
    return distances, matrix, vector


@numba.njit(cache=True)
def face_normals(
    vertices: NDArray[np.float64], faces: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Normals (f, 3) of triangles, as long as twice their area, and those lengths (f,)."""
    normals = np.empty((faces.shape[0], 3))
    lengths = np.empty(faces.shape[0])
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ux = vertices[b, 0] - vertices[a, 0]
        uy = vertices[b, 1] - vertices[a, 1]
        uz = vertices[b, 2] - vertices[a, 2]
        vx = vertices[c, 0] - vertices[a, 0]
        vy = vertices[c, 1] - vertices[a, 1]
        vz = vertices[c, 2] - vertices[a, 2]
        x = uy * vz - uz * vy
        y = uz * vx - ux * vz
        z = ux * vy - uy * vx
        normals[f, 0] = x
        normals[f, 1] = y
        normals[f, 2] = z
        lengths[f] = np.sqrt(x * x + y * y + z * z)
    return normals, lengths
