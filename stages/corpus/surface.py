"""Other samplings of the procedural head's outer surface: rays from inside to what a scanner sees.

A point of another mesh is a triangle of the head and barycentric weights, found once on one head by
a ray; it then follows every identity and expression. Between vertices the surface is curved by
Phong tessellation (Boubekeur and Alexa 2008), so that a dense scan is not a union of flat facets.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

CURVATURE = 0.75  # Phong tessellation's alpha


@dataclass(frozen=True, slots=True)
class Anchors:
    """Points on a triangle mesh.

    Attributes:
        triangles: Vertex ids of each point's triangle (n, 3).
        weights: Barycentric weights (n, 3).
    """

    triangles: Int[np.ndarray, "n 3"]
    weights: Float[np.ndarray, "n 3"]

    def flat(self, values: Float[np.ndarray, "v c"]) -> Float[np.ndarray, "n c"]:
        """Interpolate vertex values linearly."""
        weights = self.weights.astype(values.dtype, copy=False)
        total: np.ndarray = weights[:, :1] * values[self.triangles[:, 0]]
        for corner in (1, 2):  # one at a time: bases are hundreds of columns wide
            total += weights[:, corner, None] * values[self.triangles[:, corner]]
        return total

    def curved(
        self, vertices: Float[np.ndarray, "v 3"], normals: Float[np.ndarray, "v 3"]
    ) -> Float[np.ndarray, "n 3"]:
        """Interpolate positions on the Phong-tessellated surface."""
        flat = self.flat(vertices)
        corners, directions = vertices[self.triangles], normals[self.triangles]
        height = np.einsum("nkc,nkc->nk", flat[:, None] - corners, directions)
        projected = flat[:, None] - height[..., None] * directions
        return (1 - CURVATURE) * flat + CURVATURE * np.einsum("nk,nkc->nc", self.weights, projected)


def vertex_normals(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> Float[np.ndarray, "v 3"]:
    """Return area-weighted unit normals; zero where a vertex has no triangle."""
    corners = vertices[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.zeros_like(vertices)
    for k in range(3):
        for axis in range(3):
            total[:, axis] += np.bincount(faces[:, k], normal[:, axis], minlength=len(vertices))
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return total / np.maximum(length, 1e-30)


def outer_anchors(
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    origin: Float[np.ndarray, "3"],
    directions: Float[np.ndarray, "n 3"],
    reach: float,
) -> tuple[Anchors, Bool[np.ndarray, "n"]]:
    """Return where rays from far outside toward ``origin`` first meet the mesh.

    Args:
        vertices: Mesh.
        faces: Mesh.
        origin: A point inside.
        directions: Unit vectors, outward.
        reach: Distance from ``origin`` that is outside everywhere.

    Returns:
        The points, and which rays met the mesh; the others have weight on vertex 0.
    """
    import open3d as o3d

    scene = o3d.t.geometry.RaycastingScene(nthreads=1)
    scene.add_triangles(
        o3d.core.Tensor.from_numpy(np.ascontiguousarray(vertices, dtype=np.float32)),
        o3d.core.Tensor.from_numpy(np.ascontiguousarray(faces, dtype=np.uint32)),
    )
    start = origin + reach * directions
    rays = np.hstack([start, -directions]).astype(np.float32)
    answer = scene.cast_rays(o3d.core.Tensor.from_numpy(np.ascontiguousarray(rays)), nthreads=1)
    distance = answer["t_hit"].numpy().astype(np.float64)
    hit = distance < reach
    face = np.where(hit, answer["primitive_ids"].numpy().astype(np.int64), 0)
    triangles = faces[face].astype(np.int64)
    points = start - np.where(hit, distance, 0.0)[:, None] * directions
    weights = barycentric(points, vertices[triangles])
    weights[~hit] = [1.0, 0.0, 0.0]
    return Anchors(triangles, weights), hit


def barycentric(
    points: Float[np.ndarray, "n 3"], corners: Float[np.ndarray, "n 3 3"]
) -> Float[np.ndarray, "n 3"]:
    """Return barycentric weights of points in the planes of triangles, clipped to the triangle."""
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    p = points - corners[:, 0]
    aa, ab, bb = (np.einsum("ni,ni->n", u, v) for u, v in ((a, a), (a, b), (b, b)))
    pa, pb = np.einsum("ni,ni->n", p, a), np.einsum("ni,ni->n", p, b)
    determinant = np.maximum(aa * bb - ab * ab, 1e-30)
    v, w = (bb * pa - ab * pb) / determinant, (aa * pb - ab * pa) / determinant
    weights = np.clip(np.stack([1.0 - v - w, v, w], axis=1), 0.0, None)
    return weights / weights.sum(axis=1, keepdims=True)
