"""The camera behind dense 2-D to 3-D correspondences (Crispell and Bazik 2017, sec. 3.4.1).

An affine camera comes from linear least squares (their eq. 1); a pinhole is refined from it by
Levenberg and Marquardt. The paper optimises focal length f and distance T_z, which an image of a
distant face hardly tells apart; here the unknowns are m = f / T_z, the pixels per length at the
head, and k = 1 / T_z, the strength of perspective:

    x_px = c_x + m (r1 . X + t_x) / (1 - k r3 . X)
    y_px = c_y - m (r2 . X + t_y) / (1 - k r3 . X)

with R_cam_from_head = (r1, r2, r3): right, up, toward the viewer. k = 0 is the affine camera, so
one parameterisation serves both, and the step from one to the other is smooth.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

MINIMUM = 10
"""Correspondences that a camera needs: fewer say too little about its eleven (seven) numbers."""
FLATNESS = 1e-3
"""Points whose smallest extent is below this fraction of the largest lie in a plane."""
START_DISTANCE = 5000.0
"""Distance at which the pinhole starts, in units of the points (mm): the reference code's."""
FARTHEST = 1e9
"""A pinhole at this distance shows no perspective: it is answered as the affine camera it is."""
MOST_POINTS = 600
"""Correspondences that are used; more change the result by less than their noise."""


@dataclass(frozen=True)
class FaceCamera:
    """An affine (``k`` = 0) or pinhole camera in front of a head.

    Attributes:
        rotation: R_cam_from_head; camera axes right, up, toward the viewer.
        m: Pixels per unit of length at the head's origin.
        k: One over the distance of the head's origin; 0 for an affine camera.
        shift: t_x and t_y of the head's origin in the camera, same unit as the points.
        centre_px: Principal point.
    """

    rotation: Float[np.ndarray, "3 3"]
    m: float
    k: float
    shift: Float[np.ndarray, "2"]
    centre_px: Float[np.ndarray, "2"]

    @property
    def focal_px(self) -> float:
        """Focal length in pixels; infinite for an affine camera."""
        return self.m / self.k if self.k > 0 else float("inf")

    @property
    def distance(self) -> float:
        """Distance of the head's origin along the optical axis, unit of the points."""
        return 1.0 / self.k if self.k > 0 else float("inf")

    def project(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 2"]:
        """Pixels of head points, y down, pixel centres at +0.5."""
        turned = points @ self.rotation.T
        depth = 1.0 - self.k * turned[:, 2:]
        return self.centre_px + self.m * (turned[:, :2] + self.shift) / depth * [1.0, -1.0]

    def clip(
        self, points: Float[np.ndarray, "n 3"], height: int, width: int
    ) -> Float[np.ndarray, "n 4"]:
        """Clip coordinates (float32) that a rasteriser draws at :meth:`project`'s pixels."""
        z = points @ self.rotation[2]
        w = 1.0 - self.k * z
        pixels = self.project(points)
        low, high = z.min() - 1e-6, z.max() + 1e-6
        # Linear in z, -w at the nearest point and w at the farthest.
        slope = -(2.0 - self.k * (low + high)) / (high - low)
        columns = [
            (2.0 * pixels[:, 0] / width - 1.0) * w,
            (1.0 - 2.0 * pixels[:, 1] / height) * w,
            1.0 - self.k * low + slope * (z - low),
            w,
        ]
        return np.stack(columns, axis=-1).astype(np.float32)

    def moved(self, scale: float, offset_px: Float[np.ndarray, "2"]) -> "FaceCamera":
        """The camera of the picture whose pixels are ``scale * pixels + offset_px``."""
        return FaceCamera(
            self.rotation, scale * self.m, self.k, self.shift, scale * self.centre_px + offset_px
        )

    def head_angles_deg(self) -> tuple[float, float, float]:
        """Yaw, pitch and roll of the head: R = Ry(yaw) Rx(pitch) Rz(roll).

        Positive yaw turns the nose to the right of the picture, positive pitch down, positive roll
        turns the head counter-clockwise as seen. The reference code takes 7 degrees off the pitch
        because its mean face looks up by that much; nothing is taken off here.
        """
        yaw, pitch, roll = Rotation.from_matrix(self.rotation).as_euler("YXZ", degrees=True)
        return float(yaw), float(pitch), float(roll)


def checked(points: Float[np.ndarray, "n 3"], pixels: Float[np.ndarray, "n 2"]) -> None:
    """Refuse correspondences that determine no camera.

    Raises:
        ValueError: Fewer than ten, not finite, or in a plane.
    """
    if len(points) < MINIMUM:
        raise ValueError(
            f"a camera needs >= {MINIMUM} correspondences, got {len(points)}; is there a face in "
            "the crop?"
        )
    if not (np.isfinite(points).all() and np.isfinite(pixels).all()):
        raise ValueError("a camera needs finite correspondences, got NaN or infinity")
    extents = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    if extents[-1] <= FLATNESS * extents[0]:
        raise ValueError(
            f"a camera needs points off a plane, got {len(points)} whose smallest extent is "
            f"{extents[-1] / max(extents[0], 1e-300):.1e} of the largest; more of the face must "
            "be seen"
        )


def thinned(count: int, most: int) -> slice:
    """Every n-th of ``count``, at most ``most``."""
    return slice(None, None, max(1, -(-count // most)))


def fit_affine(
    points: Float[np.ndarray, "n 3"],
    pixels: Float[np.ndarray, "n 2"],
    centre_px: Float[np.ndarray, "2"],
) -> FaceCamera:
    """Affine camera by linear least squares, its rows split into scale and rotation.

    The two rows are factored as K (r1; r2) with K upper triangular (an RQ decomposition), the scale
    is the mean of K's diagonal, r3 the cross product. The result has no shear and one scale.

    Args:
        points: Head points.
        pixels: Where they are seen, y down.
        centre_px: Principal point; any, for an affine camera.

    Raises:
        ValueError: See :func:`checked`.
    """
    checked(points, pixels)
    step = thinned(len(points), MOST_POINTS)
    points, pixels = np.asarray(points[step], np.float64), np.asarray(pixels[step], np.float64)
    middle = points.mean(axis=0)
    up = (pixels - centre_px) * [1.0, -1.0]
    rows = np.linalg.lstsq(points - middle, up - up.mean(axis=0), rcond=None)[0].T
    scale_y = float(np.linalg.norm(rows[1]))
    r2 = rows[1] / scale_y
    across = rows[0] - (rows[0] @ r2) * r2
    scale_x = float(np.linalg.norm(across))
    r1 = across / scale_x
    rotation = np.stack([r1, r2, np.cross(r1, r2)])
    m = 0.5 * (scale_x + scale_y)
    shift = up.mean(axis=0) / m - rotation[:2] @ middle
    return FaceCamera(rotation, m, 0.0, shift, np.asarray(centre_px, np.float64))


def fit_pinhole(
    points: Float[np.ndarray, "n 3"],
    pixels: Float[np.ndarray, "n 2"],
    centre_px: Float[np.ndarray, "2"],
    *,
    start_distance: float = START_DISTANCE,
    iterations: int = 60,
) -> FaceCamera:
    """Pinhole camera with zero skew and a given principal point.

    Levenberg-Marquardt over a rotation vector, t_x, t_y, log m and k with the exact Jacobian, from
    the affine camera. k stays between 1 / ``FARTHEST`` and what keeps every point in front of the
    camera; where it ends at the former, the points show no perspective (or the opposite of it, as
    noise may) and the answer has k = 0. The squared error never grows, so the result is never worse
    than the start.

    Args:
        points: Head points.
        pixels: Where they are seen, y down.
        centre_px: Principal point, the image's centre.
        start_distance: Where the camera starts, unit of the points.
        iterations: Steps at most.

    Raises:
        ValueError: See :func:`checked`.
    """
    affine = fit_affine(points, pixels, centre_px)
    step = thinned(len(points), MOST_POINTS)
    X = np.asarray(points[step], np.float64)
    up = (np.asarray(pixels[step], np.float64) - centre_px) * [1.0, -1.0]
    R, t, log_m = affine.rotation, affine.shift, float(np.log(affine.m))
    k = min(1.0 / start_distance, 0.5 / max(1e-12, float((X @ R[2]).max())))
    residual, J = _linearised(X, up, R, t, log_m, k)
    cost, damping = float(residual @ residual), 1e-4
    for _ in range(iterations):
        normal, gradient = J.T @ J, J.T @ residual
        size = np.diag(normal)
        improved = False
        while damping < 1e12:
            delta = np.linalg.solve(normal + np.diag(damping * size + 1e-300), -gradient)
            turned = rotation_of(*delta[:3].tolist()) @ R
            farther = max(k + float(delta[6]), 1.0 / FARTHEST)
            if np.abs(delta[5]) < 5.0 and farther * float((X @ turned[2]).max()) < 0.95:
                moved = t + delta[3:5], log_m + float(delta[5]), farther
                trial, trial_J = _linearised(X, up, turned, *moved)
                trial_cost = float(trial @ trial)
                if trial_cost < cost:
                    improved = True
                    break
            damping *= 8.0
        if not improved:
            break
        gain = (cost - trial_cost) / cost
        R, (t, log_m, k) = turned, moved
        residual, J, cost = trial, trial_J, trial_cost
        damping = max(damping / 10.0, 1e-15)
        if gain < 1e-12 or cost < 1e-24 * len(residual):
            break
    k = 0.0 if k <= 1.0 / FARTHEST else k
    return FaceCamera(R, float(np.exp(log_m)), k, t, np.asarray(centre_px, np.float64))


def rotation_of(x: float, y: float, z: float) -> Float[np.ndarray, "3 3"]:
    """Rotation of an axis-angle vector (rad), by its unit quaternion.

    The same bits as scipy's ``Rotation.from_rotvec``, whose checks of one small vector cost more
    than a step of the fit.
    """
    angle = math.sqrt(x * x + y * y + z * z)
    if angle <= 1e-3:
        square = angle * angle
        half = 0.5 - square / 48 + square * square / 3840
    else:
        half = math.sin(angle / 2) / angle
    x, y, z, w = half * x, half * y, half * z, math.cos(angle / 2)
    xx, yy, zz, ww = x * x, y * y, z * z, w * w
    return np.array(
        [
            [xx - yy - zz + ww, 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), -xx + yy - zz + ww, 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), -xx - yy + zz + ww],
        ]
    )


def _linearised(
    X: Float[np.ndarray, "n 3"],
    up: Float[np.ndarray, "n 2"],
    R: Float[np.ndarray, "3 3"],
    t: Float[np.ndarray, "2"],
    log_m: float,
    k: float,
) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, "r 7"]]:
    """Residuals (x of all points, then y, px) and their Jacobian; R moves as exp(w) R."""
    Y = X @ R.T
    m, depth = np.exp(log_m), 1.0 - k * Y[:, 2]
    a = m / depth
    x, y = Y[:, 0] + t[0], Y[:, 1] + t[1]
    u, v = a * x, a * y
    n = len(X)
    J = np.empty((2 * n, 7))
    ax, ay = a * k / depth * x, a * k / depth * y  # derivatives by r3 . X
    # dY = w x Y: dY_x = w_y Y_z - w_z Y_y, dY_y = w_z Y_x - w_x Y_z, dY_z = w_x Y_y - w_y Y_x
    J[:n, 0], J[n:, 0] = ax * Y[:, 1], ay * Y[:, 1] - a * Y[:, 2]
    J[:n, 1], J[n:, 1] = a * Y[:, 2] - ax * Y[:, 0], -ay * Y[:, 0]
    J[:n, 2], J[n:, 2] = -a * Y[:, 1], a * Y[:, 0]
    J[:n, 3], J[n:, 3] = a, 0.0
    J[:n, 4], J[n:, 4] = 0.0, a
    J[:n, 5], J[n:, 5] = u, v
    J[:n, 6], J[n:, 6] = u * Y[:, 2] / depth, v * Y[:, 2] / depth
    return np.concatenate([u - up[:, 0], v - up[:, 1]]), J
