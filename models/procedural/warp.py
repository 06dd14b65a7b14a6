"""Carries canonical points that are not vertices (hair, glasses) along with one person's head."""

import dataclasses
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float


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


@dataclasses.dataclass(frozen=True, slots=True)
class HeadWarp:
    """A smooth map from canonical mm to one head in metres, fitted to skull and brow.

    Attributes:
        coefficients: (10, 3) of the quadratic monomials.
    """

    coefficients: Float[np.ndarray, "10 3"]

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
        return cls(np.asarray(solver @ vertices[rigid]))

    def __call__(self, points_mm: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """Head-frame positions (m) of canonical points; the map turns affine far from the head."""
        near = np.clip(points_mm, [-115.0, -60.0, -150.0], [115.0, 150.0, 125.0])
        linear = self.coefficients[1:4] * 0.01
        return np.asarray(_terms(near) @ self.coefficients + (points_mm - near) @ linear)
