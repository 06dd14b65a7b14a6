"""The smooth skull-and-neck surface under the features, and its near-conformal sphere map.

The surface is a stack of closed horizontal curves. Each curve is a super-ellipse whose front,
side and back heights, depths and half-width come from a small table (mm, adult anthropometry);
natural cubic splines run down the table by chord length. Canonical millimetres: origin in the
middle of the head, ``y = 0`` at the pupils, +x the subject's left, +y up, +z forward.
"""

import functools

import numpy as np
from jaxtyping import Float
from scipy.interpolate import CubicSpline, RegularGridInterpolator
from scipy.spatial import cKDTree

# One row per horizontal curve, crown to neck base (mm):
# front (y, z) | side y, half-width x, z of the widest point | back (y, z) | exponents front, back
_ROWS = np.array(
    [
        [112.0, -14.0, 112.0, 0.0, -14.0, 112.0, -14.0, 2.0, 2.0],
        [108.5, 22.0, 106.0, 36.0, -15.0, 107.0, -49.0, 2.05, 2.0],
        [96.0, 54.0, 89.0, 58.5, -18.0, 91.0, -81.0, 2.1, 2.0],
        [74.0, 80.0, 64.0, 71.5, -20.0, 64.0, -101.0, 2.18, 2.05],
        [47.0, 93.5, 37.0, 76.0, -18.0, 31.0, -108.0, 2.25, 2.1],
        [20.0, 96.5, 11.0, 74.5, -8.0, 3.0, -106.0, 2.35, 2.1],
        [1.0, 91.5, -8.0, 72.0, 0.0, -21.0, -98.0, 2.25, 2.1],
        [-22.0, 88.0, -25.0, 69.0, 5.0, -43.0, -85.0, 2.15, 2.1],
        [-44.0, 90.0, -42.0, 65.0, 6.0, -61.0, -73.0, 2.1, 2.1],
        [-66.0, 91.5, -57.0, 61.0, 4.0, -76.0, -65.0, 2.02, 2.1],
        [-88.0, 90.0, -70.0, 57.0, 0.0, -91.0, -61.0, 1.93, 2.1],
        [-106.0, 86.0, -82.0, 53.5, -5.0, -105.0, -60.0, 1.9, 2.1],
        [-113.5, 73.0, -92.0, 50.5, -10.0, -117.0, -60.5, 1.92, 2.1],
        [-117.5, 54.0, -103.0, 50.5, -14.0, -130.0, -62.0, 1.95, 2.1],
        [-124.0, 38.0, -119.0, 52.5, -17.0, -144.0, -64.5, 2.05, 2.1],
        [-144.0, 31.0, -142.0, 55.5, -20.0, -160.0, -70.0, 2.05, 2.1],
        [-170.0, 30.0, -168.0, 62.0, -24.0, -179.0, -80.0, 2.05, 2.1],
        [-197.0, 37.0, -196.0, 80.0, -28.0, -200.0, -93.0, 2.05, 2.2],
    ]
)
_COLATITUDE_OF_NECK = np.radians(170.0)


class Cage:
    """A closed-top, open-bottom surface over (row parameter ``s`` in [0, 1], azimuth ``phi``).

    ``phi`` is 0 at the front and grows toward the subject's left (+x).
    """

    def __init__(self) -> None:
        """Fit the splines and integrate the isothermal condition for the sphere map."""
        rows = _ROWS
        chord = np.linalg.norm(np.diff(rows[:, [0, 1]], axis=0), axis=1)
        chord += np.linalg.norm(np.diff(rows[:, [2, 3]], axis=0), axis=1)
        chord += np.linalg.norm(np.diff(rows[:, [5, 6]], axis=0), axis=1)
        knots = np.concatenate([[0.0], np.cumsum(chord)])
        knots /= knots[-1]
        self._columns = [
            CubicSpline(
                knots,
                rows[:, column],
                bc_type=((1, 0.0) if column in (0, 2, 5) else (2, 0.0), (2, 0.0)),
            )
            for column in range(rows.shape[1])
        ]
        self._build_colatitude()
        self._build_lookup()

    def point(
        self, s: Float[np.ndarray, "n"], phi: Float[np.ndarray, "n"]
    ) -> Float[np.ndarray, "n 3"]:
        """Surface points in canonical millimetres."""
        y_front, z_front, y_side, width, z_side, y_back, z_back, n_front, n_back = (
            column(s) for column in self._columns
        )
        cosine, sine = np.cos(phi), np.sin(phi)
        front = 0.5 + 0.5 * cosine
        front = front * front * (3.0 - 2.0 * front)
        exponent = n_back + (n_front - n_back) * front
        radius = (np.abs(cosine) ** exponent + np.abs(sine) ** exponent) ** (-1.0 / exponent)
        depth = np.where(cosine > 0.0, z_front - z_side, z_side - z_back)
        y_end = np.where(cosine > 0.0, y_front, y_back)
        return np.stack(
            [
                width * sine * radius,
                y_side + (y_end - y_side) * cosine**2,
                z_side + depth * cosine * radius,
            ],
            axis=-1,
        )

    def _build_colatitude(self) -> None:
        """Colatitude over ``s`` such that the sphere map is conformal on the average."""
        s = np.linspace(0.0, 1.0, 1201)
        phi = np.linspace(0.0, 2.0 * np.pi, 73)[:-1]
        grid_s, grid_phi = (part.ravel() for part in np.meshgrid(s, phi, indexing="ij"))
        surface = self.point(grid_s, grid_phi).reshape(len(s), len(phi), 3)
        along = np.linalg.norm(np.diff(surface, axis=0), axis=2).mean(axis=1)
        girth = np.linalg.norm(np.roll(surface, -1, axis=1) - surface, axis=2).sum(axis=1)
        middle = 0.5 * (girth[1:] + girth[:-1])
        # d theta / sin(theta) = 2 pi * d length / girth, so log tan(theta / 2) is the sum of it
        isothermal = np.concatenate([[0.0], np.cumsum(2.0 * np.pi * along / middle)])
        isothermal += np.log(np.tan(_COLATITUDE_OF_NECK / 2.0)) - isothermal[-1]
        theta = 2.0 * np.arctan(np.exp(isothermal))
        self._pole_theta = theta[1]
        theta[0] = 0.0
        self._s_of_theta = (theta, s)
        self.theta_of_s = (s, theta)

    def _build_lookup(self) -> None:
        s = np.linspace(0.0, 1.0, 501)
        phi = np.linspace(-np.pi, np.pi, 721)
        grid_s, grid_phi = (part.ravel() for part in np.meshgrid(s, phi, indexing="ij"))
        self._table = np.stack([grid_s, grid_phi], axis=1)
        self._table_points = self.point(grid_s, grid_phi)

    def direction(
        self, s: Float[np.ndarray, "n"], phi: Float[np.ndarray, "n"]
    ) -> Float[np.ndarray, "n 3"]:
        """Unit directions of the sphere map (+y the crown, +z the front)."""
        theta = np.interp(s, *self.theta_of_s)
        return np.stack(
            [np.sin(theta) * np.sin(phi), np.cos(theta), np.sin(theta) * np.cos(phi)], axis=-1
        )

    def parameters(self, direction: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 2"]:
        """(s, phi) of unit directions; directions inside the neck cap land on the neck ring."""
        theta = np.arccos(np.clip(direction[:, 1], -1.0, 1.0))
        s = np.interp(theta, *self._s_of_theta)
        return np.stack([s, np.arctan2(direction[:, 0], direction[:, 2])], axis=-1)

    def locate(
        self, axes: tuple[int, int], targets: Float[np.ndarray, "n 2"], side: str
    ) -> Float[np.ndarray, "n 2"]:
        """(s, phi) of the surface point whose two coordinates ``axes`` are ``targets`` (mm).

        Args:
            axes: The two coordinate indices that are given, e.g. ``(0, 1)`` for x and y.
            targets: Their values (mm).
            side: ``"front"`` searches |phi| < 90 deg, ``"left"`` 20 to 160 deg.
        """
        phi = self._table[:, 1]
        allowed = np.abs(phi) < np.pi / 2 if side == "front" else np.abs(phi - np.pi / 2) < 1.25
        index = np.flatnonzero(allowed)
        tree = cKDTree(self._table_points[index][:, axes])
        found = self._table[index][tree.query(targets)[1]].copy()
        step = 1e-5
        for _ in range(8):
            here = self.point(found[:, 0], found[:, 1])[:, axes]
            ds = (self.point(found[:, 0] + step, found[:, 1])[:, axes] - here) / step
            dphi = (self.point(found[:, 0], found[:, 1] + step)[:, axes] - here) / step
            determinant = ds[:, 0] * dphi[:, 1] - ds[:, 1] * dphi[:, 0]
            error = targets - here
            found[:, 0] += (error[:, 0] * dphi[:, 1] - error[:, 1] * dphi[:, 0]) / determinant
            found[:, 1] += (ds[:, 0] * error[:, 1] - ds[:, 1] * error[:, 0]) / determinant
            found[:, 0] = np.clip(found[:, 0], 1e-4, 1.0)
        return found

    @functools.cached_property
    def side_x(self) -> RegularGridInterpolator:
        """Lateral surface coordinate x (mm) as a function of (y, z) near the left ear."""
        y = np.arange(-75.0, 50.1, 2.5)
        z = np.arange(-60.0, 50.1, 2.5)
        grid = np.stack([part.ravel() for part in np.meshgrid(y, z, indexing="ij")], axis=1)
        found = self.locate((1, 2), grid, "left")
        x = self.point(found[:, 0], found[:, 1])[:, 0].reshape(len(y), len(z))
        return RegularGridInterpolator((y, z), x, method="linear")


@functools.cache
def build_cage() -> Cage:
    """The one cage every head is built on."""
    return Cage()
