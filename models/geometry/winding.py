"""Which way a scan's triangles face, when nobody says."""

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

POINTS = 1500
REACH = 0.25  # of the scan's extent: about a face's width on a head with shoulders


def convexity(vertices: Float[np.ndarray, "n 3"], faces: Int[np.ndarray, "f 3"]) -> float:
    """How convex a surface is as its triangles are wound; negative where they face inward.

    The sum of (nᵢ - nⱼ)·(pᵢ - pⱼ) over pairs of surface points that lie near each other, over the
    sum of its absolute values: 1 on a sphere wound outward, -1 inward, 0 on a plane. Unlike the
    flux about the middle, it does not care how a head and shoulders, open behind, lie to each
    other.

    Args:
        vertices: Any unit.
        faces: Triangles, all wound the same way.

    Returns:
        Between -1 and 1; 0 where there is nothing to judge by.
    """
    corners = vertices[faces]
    area = 0.5 * np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    size = np.linalg.norm(area, axis=1)
    if len(faces) == 0 or size.sum() == 0:
        return 0.0
    cumulated = np.cumsum(size)
    places = (np.arange(POINTS) + 0.5) / POINTS * cumulated[-1]
    picks = np.unique(np.minimum(np.searchsorted(cumulated, places), len(faces) - 1))
    picks = picks[size[picks] > 0]
    points, normals = corners[picks].mean(axis=1), area[picks] / size[picks, None]
    reach = REACH * float(np.ptp(vertices[np.unique(faces)], axis=0).max())
    i, j = cKDTree(points).query_pairs(reach, output_type="ndarray").T
    bend = ((normals[i] - normals[j]) * (points[i] - points[j])).sum(axis=1)
    total = float(np.abs(bend).sum())
    return float(bend.sum()) / total if total > 0 else 0.0
