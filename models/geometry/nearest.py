"""Exact closest points on a triangle mesh, and how far away they are."""

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int

_NEARLY: Final = 8
"""Triangles that a tracker remembers of each query."""


class ClosestPoints(NamedTuple):
    """Closest surface point of every query, in the mesh's own unit.

    Where no surface lies within the search radius, ``distances`` is inf, ``faces`` is -1 and
    ``points`` and ``bary`` are NaN and 0.
    """

    distances: Float[np.ndarray, " n"]
    points: Float[np.ndarray, "n 3"]
    faces: Int[np.ndarray, " n"]
    bary: Float[np.ndarray, "n 3"]


class ClosestPointIndex:
    """Search tree over one mesh, for many queries.

    Distances are exact to float64 rounding; of several equally close triangles the one with the
    lowest number answers, unless so many of them are that they cannot be told apart.

    Attributes:
        tests: Triangles tested by the last query.
    """

    def __init__(self, vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]) -> None:
        """Build the tree.

        Args:
            vertices: Vertex positions, any unit.
            faces: Vertex numbers of each triangle; degenerate triangles count as segments.

        Raises:
            ValueError: No triangles, a vertex number out of range, or positions not finite.
        """
        from models.geometry import _bvh

        self._vertices = np.ascontiguousarray(vertices, dtype=np.float64)
        self._faces = np.ascontiguousarray(faces, dtype=np.int64)
        if self._faces.size == 0:
            raise ValueError(
                "closest points need at least one triangle, got none; "
                "a point cloud has to be meshed first"
            )
        low, high = int(self._faces.min()), int(self._faces.max())
        if low < 0 or high >= len(self._vertices):
            raise ValueError(
                f"faces must index {len(self._vertices)} vertices, got numbers {low} to {high}; "
                "check for 1-based faces"
            )
        corners = self._vertices.take(self._faces, axis=0)
        if not np.isfinite(corners).all():
            raise ValueError(
                "closest points need finite vertices, got NaN or inf; drop the broken triangles"
            )
        self._order, self._bounds, self._nodes = _bvh.build(corners)
        self._corners = np.ascontiguousarray(corners[self._order])
        self._ordered = self._faces[self._order]
        self.tests = 0

    def moved(self, vertices: Float[np.ndarray, "v 3"]) -> "ClosestPointIndex":
        """The tree over the same triangles after their vertices have moved.

        Answers are those of a new tree; they come sooner, the closer the shapes are.

        Raises:
            ValueError: Another number of vertices, or positions not finite.
        """
        from models.geometry import _bvh

        if vertices.shape != self._vertices.shape:
            raise ValueError(
                f"moved vertices must be as many as before, expected {self._vertices.shape}, got "
                f"{vertices.shape}"
            )
        other = object.__new__(ClosestPointIndex)
        other._vertices = np.ascontiguousarray(vertices, dtype=np.float64)
        other._faces, other._order, other._nodes = self._faces, self._order, self._nodes
        other._ordered = self._ordered
        other._corners = other._vertices.take(self._ordered, axis=0)
        if not np.isfinite(other._corners).all():
            raise ValueError("closest points need finite vertices, got NaN or inf")
        other._bounds = _bvh.refit(other._corners, self._nodes)
        other.tests = 0
        return other

    def query(
        self, points: Float[np.ndarray, "n 3"], max_distance: float = np.inf
    ) -> ClosestPoints:
        """Closest surface point of each query.

        Args:
            points: Queries in the mesh's frame and unit; must be finite. Those that come in
                spatial order are answered sooner.
            max_distance: Search radius.

        Raises:
            ValueError: A query is not finite.
        """
        from models.geometry import _bvh

        queries = np.ascontiguousarray(points, dtype=np.float64)
        if not np.isfinite(queries).all():
            raise ValueError("closest points need finite queries, got NaN or inf; drop them first")
        squared, found, bary, self.tests = _bvh.query(
            queries, self._corners, self._order, self._bounds, self._nodes, float(max_distance)
        )
        surface = np.einsum("nc,nca->na", bary, self._vertices[self._faces[found]])
        surface[found < 0] = np.nan
        return ClosestPoints(np.sqrt(squared), surface, found, bary)

    def tracker(self, queries: int, margin: float) -> "ClosestPointTracker":
        """Answers for one set of queries that moves little by little.

        Args:
            queries: How many there are.
            margin: About twice the motion, in the mesh's unit, after which most queries will be
                searched for anew. A greater one makes the first search longer.

        Raises:
            ValueError: A negative margin.
        """
        if not margin >= 0:
            raise ValueError(f"expected a margin from 0, got {margin}")
        return ClosestPointTracker(self, queries, margin)


class ClosestPointTracker:
    """Closest points of the same queries again and again, as they move or the mesh moves rigidly.

    Answers have the same exact distances as :meth:`ClosestPointIndex.query`; a query whose
    triangle cannot have changed costs one triangle instead of a search.

    Attributes:
        tests: Triangles tested for all queries so far.
    """

    def __init__(self, index: ClosestPointIndex, queries: int, margin: float) -> None:
        self._index, self._margin = index, float(margin)
        self._places = np.zeros(queries, np.int64)
        self._origins = np.full((queries, 3), np.inf)
        self._others = np.zeros(queries)
        self._near = np.empty((queries, _NEARLY), np.int32)
        self._distances = np.empty((queries, _NEARLY))
        self.tests = 0

    def query(self, points: Float[np.ndarray, "n 3"]) -> ClosestPoints:
        """Closest surface point of each query.

        Args:
            points: All queries, in the same order each time; finite.

        Raises:
            ValueError: Another number of queries, or one is not finite.
        """
        from models.geometry import _bvh

        queries = np.ascontiguousarray(points, dtype=np.float64)
        if len(queries) != len(self._places):
            raise ValueError(f"expected {len(self._places)} queries, got {len(queries)}")
        if not np.isfinite(queries).all():
            raise ValueError("closest points need finite queries, got NaN or inf; drop them first")
        tree = self._index
        squared, surface, found, bary, tests = _bvh.track(
            queries, tree._corners, tree._order, tree._bounds, tree._nodes,
            self._margin, self._places, self._origins, self._others, self._near, self._distances,
        )  # fmt: skip
        self.tests += tests
        return ClosestPoints(np.sqrt(squared), surface, found, bary)


def closest_points(
    points: Float[np.ndarray, "n 3"],
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    max_distance: float = np.inf,
) -> ClosestPoints:
    """Closest point of a triangle mesh to each query.

    Args:
        points: Queries, in the mesh's frame and unit.
        vertices: Mesh vertices.
        faces: Mesh triangles, 0-based.
        max_distance: Search radius; beyond it the answer is inf and face -1.

    Raises:
        ValueError: The mesh has no triangles, or anything is not finite.
    """
    return ClosestPointIndex(vertices, faces).query(points, max_distance)
