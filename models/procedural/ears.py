"""The left ear: profiles from the root over the rim to the concha, swept around the ear (mm)."""

import numpy as np
from jaxtyping import Float
from scipy.interpolate import CubicSpline

from models.procedural.cage import Cage

EAR_CENTRE_MM = np.array([-13.0, -11.0])  # y, z of the centre of the ear on the head's side
_TILT = np.radians(12.0)

# Angles from straight back (0) over the top (90) and the front (180) to the lobe (270).
_ANGLES_DEG = np.array([0, 30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 330])
# Distance of the outline from the centre (mm).
_OUTLINE = np.array([17.5, 21.0, 27.5, 31.0, 25.0, 17.0, 14.5, 15.5, 21.0, 29.5, 25.0, 19.0])
# Rings from the root (on the head) to the concha: fraction of the outline, then height (mm).
_FRACTION = np.array(
    [
        # back  .     .    top    .     .   front   .     .   lobe    .     .
        [0.42, 0.48, 0.60, 0.76, 0.88, 1.02, 1.10, 1.09, 1.03, 0.84, 0.60, 0.48],
        [0.74, 0.75, 0.80, 0.89, 0.96, 1.00, 1.00, 1.00, 1.00, 0.92, 0.81, 0.75],
        [0.95, 0.96, 0.97, 0.99, 1.00, 0.95, 0.90, 0.92, 0.97, 0.99, 0.97, 0.96],
        [1.00, 1.00, 1.00, 1.00, 0.98, 0.88, 0.79, 0.82, 0.92, 1.00, 1.00, 1.00],
        [0.96, 0.96, 0.96, 0.95, 0.92, 0.80, 0.69, 0.72, 0.86, 0.95, 0.95, 0.95],
        [0.87, 0.87, 0.87, 0.87, 0.84, 0.71, 0.60, 0.62, 0.78, 0.88, 0.87, 0.87],
        [0.77, 0.77, 0.77, 0.77, 0.75, 0.62, 0.52, 0.53, 0.69, 0.80, 0.77, 0.77],
        [0.65, 0.65, 0.65, 0.66, 0.64, 0.53, 0.45, 0.45, 0.58, 0.69, 0.66, 0.65],
        [0.52, 0.52, 0.52, 0.53, 0.52, 0.43, 0.37, 0.37, 0.46, 0.55, 0.53, 0.52],
        [0.38, 0.38, 0.37, 0.37, 0.37, 0.31, 0.27, 0.27, 0.33, 0.40, 0.39, 0.38],
        [0.20, 0.20, 0.20, 0.20, 0.20, 0.17, 0.15, 0.15, 0.18, 0.21, 0.20, 0.20],
    ]
)
_HEIGHT = np.array(
    [
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [8.0, 8.5, 8.0, 5.0, 2.0, 0.6, 0.3, 0.3, 0.8, 3.5, 6.0, 7.5],
        [15.0, 16.0, 15.0, 10.5, 5.5, 1.8, 1.2, 1.4, 2.0, 7.0, 11.5, 13.5],
        [18.0, 19.0, 18.0, 13.5, 8.5, 3.6, 3.4, 3.2, 3.4, 9.0, 13.8, 16.0],
        [19.2, 20.0, 19.2, 15.0, 10.5, 6.0, 6.0, 5.0, 4.8, 10.2, 14.8, 17.2],
        [17.2, 17.8, 17.0, 13.5, 9.8, 6.8, 7.8, 6.2, 5.6, 10.4, 14.4, 16.0],
        [14.2, 14.6, 14.0, 10.8, 7.4, 5.0, 7.0, 6.4, 6.2, 10.6, 13.4, 13.6],
        [15.2, 15.6, 14.6, 11.4, 7.6, 3.4, 3.0, 4.2, 6.0, 11.4, 13.4, 14.4],
        [14.0, 14.2, 13.4, 10.6, 6.6, 2.0, -0.5, 1.0, 3.6, 9.6, 11.4, 12.8],
        [4.6, 5.2, 6.4, 6.6, 3.6, 0.0, -2.5, -1.5, 0.6, 3.4, 4.0, 4.2],
        [1.6, 1.8, 2.0, 1.8, 0.6, -1.5, -3.5, -3.0, -1.5, 0.2, 1.0, 1.4],
    ]
)
_LIFT = np.array([0.84, 0.80, 0.74, 0.72, 0.78, 0.85, 0.85, 0.85, 0.85, 0.80, 0.80, 0.82])
RING_COUNT = len(_FRACTION)


def _around(
    table: Float[np.ndarray, "r 12"], angle: Float[np.ndarray, "k"]
) -> Float[np.ndarray, "r k"]:
    knots = np.radians(np.append(_ANGLES_DEG, 360))
    closed = np.concatenate([table, table[:, :1]], axis=1)
    return CubicSpline(knots, closed, axis=1, bc_type="periodic")(angle)


def ear_plane(count: int) -> Float[np.ndarray, "r k 2"]:
    """Positions (y, z) of every ring point on the side of the left head, root ring first."""
    angle = 2.0 * np.pi * np.arange(count) / count
    radius = _around(_OUTLINE[None], angle) * _around(_FRACTION, angle)
    backward, upward = radius * np.cos(angle), radius * np.sin(angle)
    y = EAR_CENTRE_MM[0] + upward * np.cos(_TILT) - backward * np.sin(_TILT) * 0.0
    z = EAR_CENTRE_MM[1] - backward - upward * np.sin(_TILT)
    return np.stack([y, z], axis=-1)


def ear_rings(cage: Cage, count: int) -> Float[np.ndarray, "m 3"]:
    """Rings of ``count`` points inside the root ring, then the closing point in the concha."""
    angle = 2.0 * np.pi * np.arange(count) / count
    plane = ear_plane(count)
    height = _around(_HEIGHT * _LIFT, angle)
    positions = []
    for ring in range(1, RING_COUNT):
        x = cage.side_x(plane[ring]) + height[ring]
        positions.append(np.column_stack([x, plane[ring]]))
    floor = cage.side_x(EAR_CENTRE_MM[None]) - 2.5
    pole = np.array([[floor[0], EAR_CENTRE_MM[0] - 1.0, EAR_CENTRE_MM[1] + 1.0]])
    return np.concatenate([*positions, pole])
