"""Which part of a scan a protocol measures, and in which order it is visited."""

from typing import Final

import numba
import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

NOSE_TIP: Final = {1: 0, 51: 13, 68: 30}
"""Row of the nose tip in a set of that many landmarks (the tip alone, inner iBUG, iBUG)."""

_BRIDGE: Final = {51: 10, 68: 27}
_CHIN: Final = {68: 8}


def crop_sphere(
    landmarks: Float[np.ndarray, "7 3"], factor: float
) -> tuple[Float[np.ndarray, " 3"], float]:
    """Centre and radius of the sphere that the NoW family keeps of the scan.

    With a the outer-eye distance and b the distance from the middle of the inner eye corners
    (the bridge) to the nose bottom, the centre is 0.3 of the way from nose bottom to bridge and
    the radius ``factor`` (a + b).

    Args:
        landmarks: The scan's seven landmarks, any unit.
        factor: 0.7 for NoW, 0.6 for Feng et al.
    """
    bridge = (landmarks[1] + landmarks[2]) / 2
    nose = bridge - landmarks[4]
    outer_eye = float(np.linalg.norm(landmarks[0] - landmarks[3]))
    return landmarks[4] + 0.3 * nose, factor * (outer_eye + float(np.linalg.norm(nose)))


def crop_scan(
    vertices: Float[np.ndarray, "n 3"], landmarks: Float[np.ndarray, "7 3"], factor: float
) -> Int[np.ndarray, " k"]:
    """Ascending indices of the scan vertices within (or on) the protocol's sphere.

    Raises:
        ValueError: No vertex is inside.
    """
    return within(vertices, *crop_sphere(landmarks, factor))


def within(
    vertices: Float[np.ndarray, "n 3"], centre: Float[np.ndarray, " 3"], radius: float
) -> Int[np.ndarray, " k"]:
    """Ascending indices of the vertices within (or on) a sphere.

    Raises:
        ValueError: No vertex is inside.
    """
    offsets = vertices - centre
    kept = np.flatnonzero(np.sqrt(np.einsum("na,na->n", offsets, offsets)) <= radius)
    if len(kept) == 0:
        raise ValueError(
            f"expected scan vertices within {radius:.1f} of {np.round(centre, 1).tolist()}, got "
            "none; check that scan and scan landmarks share one unit and frame"
        )
    return kept


def nose_tip(landmarks: Float[np.ndarray, "m 3"]) -> Float[np.ndarray, " 3"]:
    """The nose tip of 1, 51 or 68 landmarks."""
    return landmarks[NOSE_TIP[len(landmarks)]]


def upward(landmarks: Float[np.ndarray, "m 3"]) -> Float[np.ndarray, " 3"]:
    """Unit vector up the face: along the nose where there are 51 or 68 landmarks, else +y."""
    if len(landmarks) not in _BRIDGE:
        return np.array([0.0, 1.0, 0.0])
    low = landmarks[_CHIN[68]] if len(landmarks) == 68 else landmarks[37 + 3]
    along = landmarks[_BRIDGE[len(landmarks)]] - low
    return along / np.linalg.norm(along)


def below_forehead(
    vertices: Float[np.ndarray, "n 3"], landmarks: Float[np.ndarray, "m 3"], height_mm: float
) -> Bool[np.ndarray, " n"]:
    """Which vertices lie less than ``height_mm`` above the nose tip, up the face."""
    return (vertices - nose_tip(landmarks)) @ upward(landmarks) < height_mm


def box_sides(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "3"]:
    """Sides of the box around points; along rows, where NumPy is ten times faster than columns."""
    return np.asarray(np.ptp(np.ascontiguousarray(points.T), axis=1))


def spatial_order(points: Float[np.ndarray, "n 3"]) -> Int[np.ndarray, " n"]:
    """A permutation that visits neighbours one after the other: Morton order on a 1024^3 grid."""
    low = points.min(axis=0)
    cell = max(float(box_sides(points).max()), 1e-12) / 1023.0
    return np.argsort(_morton(np.ascontiguousarray(points), low, cell), kind="stable")


@numba.njit(cache=True)
def _morton(
    points: NDArray[np.float64], low: NDArray[np.float64], cell: float
) -> NDArray[np.int32]:
    """Interleave the ten bits of each coordinate's cell."""
    codes = np.zeros(points.shape[0], dtype=np.int32)
    for i in range(points.shape[0]):
        code = 0
        for a in range(3):
            place = int((points[i, a] - low[a]) / cell)
            for bit in range(10):
                code |= ((place >> bit) & 1) << (3 * bit + a)
        codes[i] = code
    return codes


def border_features(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> tuple[Bool[np.ndarray, "f 3"], Bool[np.ndarray, " v"]]:
    """Whether the edge opposite each corner, and each vertex, lies on the border of a mesh.

    Vertices at the same place count as one, so that a texture seam is no border.
    """
    _, same = np.unique(vertices, axis=0, return_inverse=True)
    edges = np.sort(same.reshape(-1)[faces[:, [[1, 2], [2, 0], [0, 1]]]], axis=2).reshape(-1, 2)
    keys = edges[:, 0] * (len(vertices) + 1) + edges[:, 1]
    _, place, count = np.unique(keys, return_inverse=True, return_counts=True)
    edge_on_border = (count == 1)[place.reshape(-1)]
    on_border = np.zeros(same.max() + 1, dtype=bool)
    on_border[edges[edge_on_border]] = True
    return edge_on_border.reshape(-1, 3), on_border[same.reshape(-1)]


def closest_on_border(
    faces: Int[np.ndarray, "f 3"],
    borders: tuple[Bool[np.ndarray, "f 3"], Bool[np.ndarray, " v"]],
    found: Int[np.ndarray, " n"],
    bary: Float[np.ndarray, "n 3"],
) -> Bool[np.ndarray, " n"]:
    """Whether each closest point, given by face and barycentric weights, is a border point."""
    edge_borders, vertex_borders = borders
    zero = bary <= 1e-12
    zeros = zero.sum(axis=1)
    corner = faces[found, bary.argmax(axis=1)]
    on_edge = (zero & edge_borders[found]).any(axis=1)
    return np.where(zeros >= 2, vertex_borders[corner], (zeros == 1) & on_edge)
