"""Carries canonical points that are not vertices (hair, glasses) along with one person's head."""

import dataclasses
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree


def _terms(points_mm: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 10"]:
    """Quadratic monomials of canonical coordinates in units of 100 mm."""
    x, y, z = (points_mm * 0.01).T
    return np.stack([np.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, y * z, x * z], 1)


@lru_cache(maxsize=4)
def _solver(
    canonical_bytes: bytes, count: int
) -> tuple[Bool[np.ndarray, "v"], Float[np.ndarray, "10 n"]]:
    canonical = np.frombuffer(canonical_bytes).reshape(count, 3)
    x, y, z = canonical.T
    ear = (np.abs(x) > 66.0) & (np.abs(y + 12.0) < 36.0) & (np.abs(z + 8.0) < 26.0)
    rigid = (y > -45.0) & ~((y < -20.0) & (z > 40.0)) & ~ear
    rigid &= ~((z > 40.0) & (np.abs(y) < 14.0))
    return rigid, np.linalg.pinv(_terms(canonical[rigid]))


@lru_cache(maxsize=8)
def _neighbours(
    anchors: bytes, anchor_count: int, roots: bytes, root_count: int
) -> tuple[Int[np.ndarray, "n 4"], Float[np.ndarray, "n 4"]]:
    """Four nearest anchors of each root, and inverse-square weights."""
    tree = cKDTree(np.frombuffer(anchors).reshape(anchor_count, 3))
    distance, index = tree.query(np.frombuffer(roots).reshape(root_count, 3), k=4)
    weights = 1.0 / (distance**2 + 1.0)
    return index, weights / weights.sum(axis=1, keepdims=True)


@dataclasses.dataclass(frozen=True, slots=True)
class HeadWarp:
    """A smooth map from canonical mm to one head in metres, fitted to skull and brow.

    Attributes:
        coefficients: (10, 3) of the quadratic monomials.
        anchors: (n, 3) canonical positions of the fitted vertices, mm.
        residual: (n, 3) what the monomials leave at the anchors, m.
    """

    coefficients: Float[np.ndarray, "10 3"]
    anchors: Float[np.ndarray, "n 3"]
    residual: Float[np.ndarray, "n 3"]

    @classmethod
    def fit(
        cls, canonical_mm: Float[np.ndarray, "v 3"], vertices: Float[np.ndarray, "v 3"]
    ) -> "HeadWarp":
        """Least squares over the vertices that expressions leave alone.

        Args:
            canonical_mm: Canonical positions of the vertices, mm.
            vertices: Their positions on this head, m.
        """
        canonical = np.ascontiguousarray(canonical_mm, dtype=np.float64)
        rigid, solver = _solver(canonical.tobytes(), len(canonical))
        coefficients = np.asarray(solver @ vertices[rigid])
        anchors = canonical[rigid]
        return cls(coefficients, anchors, vertices[rigid] - _terms(anchors) @ coefficients)

    def __call__(
        self,
        points_mm: Float[np.ndarray, "n 3"],
        roots_mm: Float[np.ndarray, "n 3"] | None = None,
    ) -> Float[np.ndarray, "n 3"]:
        """Head-frame positions (m) of canonical points; the map turns affine far from the head.

        Args:
            points_mm: What to carry.
            roots_mm: Points of the skin to which each is tied; it then also follows what the
                smooth map leaves out there.
        """
        near = np.clip(points_mm, [-115.0, -60.0, -150.0], [115.0, 150.0, 125.0])
        linear = self.coefficients[1:4] * 0.01
        placed = _terms(near) @ self.coefficients + (points_mm - near) @ linear
        if roots_mm is not None:
            roots = np.ascontiguousarray(roots_mm, dtype=np.float64)
            index, weights = _neighbours(
                self.anchors.tobytes(), len(self.anchors), roots.tobytes(), len(roots)
            )
            placed = placed + np.einsum("nk,nkc->nc", weights, self.residual[index])
        return np.asarray(placed)
