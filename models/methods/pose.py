"""Where a reconstructed head is in its photograph: a scaled orthographic camera from points."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from models.rendering.cameras import orthographic_clip


@dataclass(frozen=True)
class ScaledOrthographic:
    """x_px = centre_x + s (R X)_x and y_px = centre_y - s (R X)_y.

    Attributes:
        rotation: R_cam_from_head; camera axes right, up, toward the viewer.
        scale_px: Pixels per unit of the head.
        centre_px: Pixel of the head's origin.
    """

    rotation: Float[np.ndarray, "3 3"]
    scale_px: float
    centre_px: Float[np.ndarray, "2"]

    def project(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 2"]:
        """Pixels of head points."""
        turned = points @ self.rotation.T
        return self.centre_px + self.scale_px * turned[:, :2] * [1.0, -1.0]

    def clip(
        self, points: Float[np.ndarray, "n 3"], height: int, width: int
    ) -> Float[np.ndarray, "n 4"]:
        """Clip coordinates (float32) that a rasteriser draws at :meth:`project`'s pixels."""
        turned = (points @ self.rotation.T).astype(np.float32)
        x, y = self.centre_px.tolist()
        return orthographic_clip(turned[None], self.scale_px, x, y, height, width)[0]


def fit_scaled_orthographic(
    points: Float[np.ndarray, "n 3"], pixels: Float[np.ndarray, "n 2"]
) -> ScaledOrthographic:
    """Affine least squares, then the nearest scaled rotation (DeMenthon and Davis's POS step).

    Args:
        points: Head points in any unit.
        pixels: Where they are seen, y down.

    Raises:
        ValueError: Fewer than four points, or points in a plane.
    """
    centred = points - points.mean(axis=0)
    singular = np.linalg.svd(centred, compute_uv=False)
    if len(points) < 4 or singular[-1] < 1e-6 * singular[0]:
        raise ValueError(
            f"fit_scaled_orthographic needs >= 4 points off a plane, got {len(points)} points with "
            f"extents {singular}"
        )
    up = pixels * [1.0, -1.0]
    A = np.linalg.lstsq(centred, up - up.mean(axis=0), rcond=None)[0].T  # (2, 3)
    u, s, vt = np.linalg.svd(A, full_matrices=False)
    rows = u @ vt
    rotation = np.vstack([rows, np.cross(rows[0], rows[1])])
    scale = float(s.mean())
    centre = up.mean(axis=0) - scale * (rows @ points.mean(axis=0))
    return ScaledOrthographic(rotation, scale, centre * [1.0, -1.0])
