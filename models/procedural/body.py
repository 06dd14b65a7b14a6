"""Neck-deep shoulders in a garment, so that the head does not float."""

import numpy as np
from jaxtyping import Float, Int
from scipy.interpolate import CubicSpline

# y (mm) at the side, drop of the front below the side, half-width, front z, back z, light that
# reaches the row.
_ROWS = np.array(
    [
        [-141.0, 16.0, 60.5, 39.0, -77.0, 0.55],
        [-152.0, 18.0, 70.0, 46.0, -86.0, 0.68],
        [-167.0, 22.0, 108.0, 58.0, -98.0, 0.86],
        [-184.0, 22.0, 152.0, 72.0, -108.0, 1.0],
        [-213.0, 20.0, 192.0, 88.0, -116.0, 1.0],
        [-270.0, 15.0, 214.0, 104.0, -120.0, 1.0],
        [-380.0, 10.0, 222.0, 112.0, -122.0, 1.0],
        [-520.0, 0.0, 216.0, 112.0, -122.0, 1.0],
    ]
)


def _rows(neckline: int) -> Float[np.ndarray, "r 6"]:
    rows = _ROWS.copy()
    if neckline == 1:
        rows[0] += [9.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    if neckline == 2:
        rows[:4, 1] += [40.0, 34.0, 22.0, 6.0]
        rows[:2, 2] += [12.0, 8.0]
        rows[:3, 3] += [8.0, 6.0, 2.0]
    return rows


def collar_height(points_mm: Float[np.ndarray, "n 3"], neckline: int) -> Float[np.ndarray, "n"]:
    """Height (mm) of the garment's upper edge at the azimuth of each canonical point."""
    rows = _rows(neckline)
    ahead = points_mm[:, 2] + 20.0
    cosine = ahead / (np.hypot(points_mm[:, 0], ahead) + 1e-9)
    return np.asarray(rows[0, 0] - rows[0, 1] * np.clip(cosine, 0.0, 1.0) ** 2)


def build_body(
    neckline: int,
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"], Float[np.ndarray, "v"]]:
    """Canonical points (mm), faces and ambient light of the garment.

    Args:
        neckline: 0 crew neck, 1 high collar, 2 deep.
    """
    rows = _rows(neckline)
    parameter = np.arange(len(rows), dtype=np.float64)
    fine = CubicSpline(parameter, rows, bc_type="natural")(np.linspace(0, len(rows) - 1, 30))
    phi = np.linspace(-np.pi, np.pi, 73)
    cosine, sine = np.cos(phi), np.sin(phi)
    radius = (np.abs(cosine) ** 2.3 + np.abs(sine) ** 2.3) ** (-1 / 2.3)
    front = np.clip(cosine, 0.0, 1.0) ** 2
    y = fine[:, :1] - fine[:, 1:2] * front
    x = fine[:, 2:3] * sine * radius
    middle = -20.0
    reach = np.where(cosine > 0, fine[:, 3:4] - middle, middle - fine[:, 4:5])
    z = middle + reach * cosine * radius
    points = np.stack([x, y, z], -1).reshape(-1, 3)
    r, c = np.meshgrid(np.arange(len(fine) - 1), np.arange(72), indexing="ij")
    a = r * 73 + c
    faces = np.concatenate(
        [np.stack([a, a + 73, a + 74], -1), np.stack([a, a + 74, a + 1], -1)]
    ).reshape(-1, 3)
    light = np.repeat(np.clip(fine[:, 5], 0.0, 1.0), 73)
    return points, faces.astype(np.int32), light
