"""Scan-to-mesh error of a reconstructed face, by the protocols of the NoW challenge.

One core, :func:`align_and_measure`, does what every protocol of this family does: crop the
scan, align the prediction to it, refine, measure one distance per scan vertex. What differs
between protocols is a :class:`Protocol`; the named ones are in :data:`PROTOCOLS`.

Sources: Sanyal et al. 2019 (RingNet, section 5.1 and the public evaluation code) for ``now``,
Zielonka et al. 2022 (MICA, section 4.2) for ``now-metric``.

Departures from the public code, each without effect on predictions it handles:
    * The refinement is a Levenberg-Marquardt run to convergence instead of a dog-leg that stops
      at a relative gain of 1e-4 (the median moves by at most 0.003 mm).
    * The metric alignment takes its translation from a Procrustes fit *without* scale. The public
      code keeps the translation of the fit with scale, so its start, and sometimes its result,
      depends on where the predicted mesh's origin lies.
    * Faces without area are dropped; their points belong to their neighbours too.

Frames: ``prediction`` is the predicted mesh's own, ``scan`` the scan's, in millimetres.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from models.geometry import ClosestPointIndex

UNITS_MM: Final[Mapping[str, float]] = MappingProxyType({"m": 1000.0, "cm": 10.0, "mm": 1.0})
"""Millimetres per unit of length a prediction may be declared in."""

LANDMARK_NAMES: Final = (
    "right eye outer",
    "right eye inner",
    "left eye inner",
    "left eye outer",
    "nose bottom",
    "right mouth corner",
    "left mouth corner",
)
"""The seven landmarks in order; right and left are the subject's."""

SCALE_RANGE: Final = (0.7, 1.4)
"""Ratio of landmark scale to unit scale outside which the unit or the landmarks are doubtful."""

_AREA_TOLERANCE: Final = 1e-14
_MAX_ITERATIONS: Final = 100
_STEP_TOLERANCE_MM: Final = 1e-5
_GAIN_TOLERANCE: Final = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What distinguishes one scan-to-mesh protocol from another.

    Attributes:
        name: As on the command line.
        crop_factor: Radius of the kept sphere over the sum of the outer-eye distance and the
            nose length, both of the scan's landmarks.
        scale: ``estimated``: scale comes from the landmarks and is refined.
            ``unit``: scale is the declared unit's and stays.
        refined: Whether the pose is refined on the surface after the landmarks.
    """

    name: str
    crop_factor: float
    scale: Literal["estimated", "unit"]
    refined: bool


PROTOCOLS: Final[Mapping[str, Protocol]] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            Protocol(name="now", crop_factor=0.7, scale="estimated", refined=True),
            Protocol(name="now-metric", crop_factor=0.7, scale="unit", refined=True),
        )
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The distances of one scan to one prediction, and how they came about.

    Attributes:
        distances_mm: (k,) one per kept scan vertex, in the order of ``kept``.
        kept: (k,) indices of the scan vertices inside the crop, ascending.
        scale: Of x_scan = scale R x_prediction + t; mm per prediction unit.
        rotation: R (3, 3); its determinant is -1 when the landmarks are mirrored.
        translation: t (3,) mm.
        landmark_scale: Scale of the landmark fit, mm per prediction unit.
        landmark_rms_mm: Of the seven landmarks after the landmark fit.
        iterations: Accepted steps of the refinement.
        flags: Doubts about the input, in words; empty when there are none.
    """

    distances_mm: Float[np.ndarray, " k"]
    kept: Int[np.ndarray, " k"]
    scale: float
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, " 3"]
    landmark_scale: float
    landmark_rms_mm: float
    iterations: int
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Pooled error: every scan vertex of every image counts once. None without any distance."""

    vertices: int
    median_mm: float | None
    mean_mm: float | None
    std_mm: float | None


@dataclass(frozen=True, slots=True)
class _Pose:
    """x' = scale R x + t."""

    scale: float
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, " 3"]

    def apply(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        return self.scale * points @ self.rotation.T + self.translation

    def undo(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        return (points - self.translation) @ self.rotation / self.scale

    def after(self, first: "_Pose") -> "_Pose":
        return _Pose(
            self.scale * first.scale,
            self.rotation @ first.rotation,
            self.scale * self.rotation @ first.translation + self.translation,
        )


def protocol_named(name: str) -> Protocol:
    """The preset of that name.

    Raises:
        ValueError: No such preset; the message lists those there are.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"expected a protocol among {', '.join(PROTOCOLS)}, got {name!r}")
    return PROTOCOLS[name]


def crop_sphere(
    landmarks: Float[np.ndarray, "7 3"], factor: float
) -> tuple[Float[np.ndarray, " 3"], float]:
    """Centre and radius of the sphere that a protocol keeps of the scan.

    With a the outer-eye distance and b the distance from the middle of the inner eye corners
    (the bridge) to the nose bottom, the centre is 0.3 of the way from nose bottom to bridge and
    the radius ``factor`` (a + b).

    Args:
        landmarks: The scan's seven landmarks, any unit.
        factor: 0.7 for NoW.
    """
    bridge = (landmarks[1] + landmarks[2]) / 2
    nose = bridge - landmarks[4]
    outer_eye = float(np.linalg.norm(landmarks[0] - landmarks[3]))
    return landmarks[4] + 0.3 * nose, factor * (outer_eye + float(np.linalg.norm(nose)))


def crop_scan(
    vertices: Float[np.ndarray, "n 3"], landmarks: Float[np.ndarray, "7 3"], factor: float
) -> Int[np.ndarray, " k"]:
    """Ascending indices of the scan vertices within (or on) the protocol's sphere.

    Raises:
        ValueError: No vertex is inside.
    """
    centre, radius = crop_sphere(landmarks, factor)
    kept = np.flatnonzero(np.linalg.norm(vertices - centre, axis=1) <= radius)
    if len(kept) == 0:
        raise ValueError(
            f"expected scan vertices within {radius:.1f} of {np.round(centre, 1).tolist()}, got "
            "none; check that scan and scan landmarks share one unit and frame"
        )
    return kept


def scan_to_mesh(
    points: Float[np.ndarray, "n 3"],
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
) -> Float[np.ndarray, " n"]:
    """Exact unsigned distance of every point to the surface of a triangle mesh.

    Args:
        points: In the mesh's frame and unit; no alignment happens here.
        vertices: Of the mesh.
        faces: Of the mesh; those without area are ignored.

    Returns:
        Distances in the given unit.

    Raises:
        ValueError: Not finite, or no face with area.
    """
    _require_finite("points", points)
    whole, _ = _usable_faces(vertices, faces)
    return ClosestPointIndex(vertices, whole).query(points).distances


def align_and_measure(
    scan_vertices: Float[np.ndarray, "n 3"],
    scan_faces: Int[np.ndarray, "f 3"],
    scan_landmarks: Float[np.ndarray, "7 3"],
    prediction_vertices: Float[np.ndarray, "v 3"],
    prediction_faces: Int[np.ndarray, "g 3"],
    prediction_landmarks: Float[np.ndarray, "7 3"],
    protocol: Protocol,
    unit: str,
) -> Measurement:
    """Crop the scan, bring the prediction to it, and measure every kept scan vertex.

    The landmarks give a similarity (reflection allowed, as the challenge does; it is flagged).
    The refinement then minimises sum_i d_i^2 over scale, rotation and translation (7 parameters,
    or 6 where the protocol's scale is the unit's), d_i being the distance of kept scan vertex i
    to the nearest point of the predicted surface: no sampling, weights, cut-off or landmarks.
    The result does not depend on the frame the prediction is given in.

    Args:
        scan_vertices: (n, 3) mm.
        scan_faces: (f, 3) of the scan, possibly none. Distances go from the scan's vertices, so
            these protocols only check them.
        scan_landmarks: The seven of :data:`LANDMARK_NAMES` on the scan, mm.
        prediction_vertices: (v, 3) in ``unit``.
        prediction_faces: (g, 3); those without area are dropped and flagged.
        prediction_landmarks: The seven on the prediction, in ``unit``.
        protocol: One of :data:`PROTOCOLS`.
        unit: ``m``, ``cm`` or ``mm``. Where scale is estimated it serves as a check only.

    Raises:
        ValueError: Empty or non-finite input, faces out of range, landmarks that span no plane,
            an unknown unit, or no scan vertex near the landmarks.
    """
    if unit not in UNITS_MM:
        raise ValueError(f"expected a unit among {', '.join(UNITS_MM)}, got {unit!r}")
    _require_finite("scan vertices", scan_vertices)
    _require_finite("prediction vertices", prediction_vertices)
    _require_landmarks("scan landmarks", scan_landmarks)
    _require_landmarks("prediction landmarks", prediction_landmarks)
    _require_indices("scan", scan_faces, len(scan_vertices))

    scan = np.asarray(scan_vertices, np.float64)
    scan_marks = np.asarray(scan_landmarks, np.float64)
    marks = np.asarray(prediction_landmarks, np.float64)
    faces, dropped = _usable_faces(prediction_vertices, prediction_faces)
    kept = crop_scan(scan, scan_marks, protocol.crop_factor)

    fit = _landmark_similarity(marks, scan_marks)
    landmark_scale = fit.scale
    if protocol.scale == "unit":
        fit = _with_scale(fit, UNITS_MM[unit], marks, scan_marks)
    residuals = fit.apply(marks) - scan_marks
    # From here on everything is relative to the crop's middle, so that rounding and the steps'
    # conditioning do not see where either mesh has its origin.
    middle = scan[kept].mean(axis=0)
    points = scan[kept] - middle
    surface = fit.apply(np.asarray(prediction_vertices, np.float64)) - middle
    index = ClosestPointIndex(surface, faces)
    if protocol.refined:
        pose, distances, iterations, converged = _refine(
            points, surface, faces, index, scaled=protocol.scale == "estimated"
        )
    else:
        pose = _Pose(1.0, np.eye(3), np.zeros(3))
        distances = index.query(points).distances
        iterations, converged = 0, True
    # Into the middle's frame, the refinement, and back.
    shift = _Pose(1.0, np.eye(3), -middle)
    total = _Pose(1.0, np.eye(3), middle).after(pose.after(shift.after(fit)))

    return Measurement(
        distances_mm=distances,
        kept=kept,
        scale=total.scale,
        rotation=total.rotation,
        translation=total.translation,
        landmark_scale=landmark_scale,
        landmark_rms_mm=float(np.sqrt((residuals**2).sum(axis=1).mean())),
        iterations=iterations,
        flags=_flags(fit, landmark_scale, unit, dropped, converged),
    )


def pooled_statistics(distances_mm: Sequence[Float[np.ndarray, " _"]]) -> Statistics:
    """Median, mean and population standard deviation over all vertices of all images.

    Args:
        distances_mm: One array per image, of any lengths.
    """
    pooled = np.concatenate([np.zeros(0), *distances_mm]).astype(np.float64)
    if len(pooled) == 0:
        return Statistics(vertices=0, median_mm=None, mean_mm=None, std_mm=None)
    return Statistics(
        vertices=len(pooled),
        median_mm=float(np.median(pooled)),
        mean_mm=float(pooled.mean()),
        std_mm=float(pooled.std()),
    )


def cumulative_curve(
    distances_mm: Sequence[Float[np.ndarray, " _"]], thresholds_mm: Float[np.ndarray, " t"]
) -> Float[np.ndarray, " t"]:
    """Percent of all pooled vertices whose error is at most each threshold.

    Raises:
        ValueError: No distances at all.
    """
    pooled = np.sort(np.concatenate([np.zeros(0), *distances_mm]))
    if len(pooled) == 0:
        raise ValueError("expected distances of at least one image, got none")
    below = np.searchsorted(pooled, thresholds_mm, side="right")
    return 100.0 * below / len(pooled)


def _landmark_similarity(
    source: Float[np.ndarray, "7 3"], target: Float[np.ndarray, "7 3"]
) -> _Pose:
    """Least-squares similarity that may reflect: R = U V^T without fixing its determinant."""
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    covariance = (target - target_mean).T @ (source - source_mean)
    left, singular, right = np.linalg.svd(covariance)
    rotation = left @ right
    scale = float(singular.sum() / ((source - source_mean) ** 2).sum())
    return _Pose(scale, rotation, target_mean - scale * rotation @ source_mean)


def _with_scale(
    pose: _Pose,
    scale: float,
    source: Float[np.ndarray, "7 3"],
    target: Float[np.ndarray, "7 3"],
) -> _Pose:
    """The best rigid fit at a given scale: same rotation, the means brought together."""
    translation = target.mean(axis=0) - scale * pose.rotation @ source.mean(axis=0)
    return _Pose(scale, pose.rotation, translation)


def _refine(
    points: Float[np.ndarray, "k 3"],
    surface: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    index: ClosestPointIndex,
    *,
    scaled: bool,
) -> tuple[_Pose, Float[np.ndarray, " k"], int, bool]:
    """Minimise sum d_i^2 over the surface's pose by Levenberg-Marquardt.

    A step (w, u, g) moves a surface point y to exp(g) exp([w]x) y + u. With n the unit vector
    from the surface point to its scan point, the derivative of d is -(y x n, n, y.n); the
    surface point is body-fixed while differentiating and found anew at every evaluation.
    Rotation and log-scale are multiplied by the points' radius, so all parameters are in mm.

    Returns:
        The pose, distances at it, accepted steps, whether the steps had died out.
    """
    corners = surface[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    radius = float(np.sqrt((points**2).sum(axis=1).mean()))

    def evaluate(
        pose: _Pose,
    ) -> tuple[Float[np.ndarray, "k 3"], Float[np.ndarray, "k 3"], Float[np.ndarray, " k"]]:
        nearest = index.query(pose.undo(points))
        on_surface = pose.apply(nearest.points)
        offsets = points - on_surface
        distances = np.linalg.norm(offsets, axis=1)
        touching = distances < 1e-9
        offsets[touching] = normals[nearest.faces[touching]] @ pose.rotation.T
        directions = offsets / np.where(touching, 1.0, distances)[:, None]
        return on_surface, directions, distances

    pose = _Pose(1.0, np.eye(3), np.zeros(3))
    on_surface, directions, distances = evaluate(pose)
    objective = float(distances @ distances)
    damping, accepted = 1e-4, 0
    for _ in range(_MAX_ITERATIONS):
        columns = [np.cross(on_surface, directions) / radius, directions]
        if scaled:
            columns.append((on_surface * directions).sum(axis=1, keepdims=True) / radius)
        jacobian = -np.hstack(columns)
        normal_matrix = jacobian.T @ jacobian
        diagonal = np.diag(np.diag(normal_matrix) + 1e-12 * np.trace(normal_matrix) + 1e-300)
        step = np.linalg.solve(normal_matrix + damping * diagonal, -jacobian.T @ distances)
        if np.linalg.norm(step) < _STEP_TOLERANCE_MM:
            return pose, distances, accepted, True
        growth = float(np.exp(step[6] / radius)) if scaled else 1.0
        tried = _Pose(growth, _rotation(step[:3] / radius), step[3:6]).after(pose)
        candidate = evaluate(tried)
        tried_objective = float(candidate[2] @ candidate[2])
        if tried_objective >= objective:
            damping *= 10.0
            continue
        gain = (objective - tried_objective) / objective
        pose, objective = tried, tried_objective
        on_surface, directions, distances = candidate
        damping, accepted = max(damping / 10.0, 1e-9), accepted + 1
        if gain < _GAIN_TOLERANCE:
            return pose, distances, accepted, True
    return pose, distances, accepted, False


def _rotation(axis_angle: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "3 3"]:
    """Rodrigues' formula."""
    angle = float(np.linalg.norm(axis_angle))
    if angle == 0.0:
        return np.eye(3)
    x, y, z = axis_angle / angle
    skew = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    rotation: Float[np.ndarray, "3 3"] = (
        np.eye(3) + np.sin(angle) * skew + (1.0 - np.cos(angle)) * skew @ skew
    )
    return rotation


def _flags(
    fit: _Pose, landmark_scale: float, unit: str, dropped: int, converged: bool
) -> tuple[str, ...]:
    flags = []
    if np.linalg.det(fit.rotation) < 0:
        flags.append("mirrored: the landmarks fit only after a reflection; left and right swapped?")
    ratio = landmark_scale / UNITS_MM[unit]
    if not SCALE_RANGE[0] <= ratio <= SCALE_RANGE[1]:
        flags.append(
            f"scale: by the landmarks the prediction is {1 / ratio:.4g} times the scan's size if "
            f"its unit is {unit}; wrong unit or landmarks?"
        )
    if dropped:
        flags.append(f"degenerate: {dropped} faces without area dropped from the prediction")
    if not converged:
        flags.append(f"refinement: still moving after {_MAX_ITERATIONS} steps")
    return tuple(flags)


def _usable_faces(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> tuple[Int[np.ndarray, "g 3"], int]:
    """Faces with area, and how many had none."""
    _require_finite("prediction vertices", vertices)
    _require_indices("prediction", faces, len(vertices))
    corners = np.asarray(vertices, np.float64)[faces]
    doubled = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    extent = float(np.ptp(np.asarray(vertices, np.float64), axis=0).max())
    whole: Bool[np.ndarray, " f"] = np.linalg.norm(doubled, axis=1) > _AREA_TOLERANCE * extent**2
    if not whole.any():
        raise ValueError(
            f"expected a surface, got {len(faces)} faces of which none has area; a point cloud "
            "cannot be scored by scan-to-mesh distance"
        )
    return np.asarray(faces, np.int64)[whole], int((~whole).sum())


def _require_finite(what: str, values: Float[np.ndarray, "n 3"]) -> None:
    if len(values) == 0:
        raise ValueError(f"expected {what}, got none")
    bad = int((~np.isfinite(values).all(axis=1)).sum())
    if bad:
        raise ValueError(f"expected finite {what}, got {bad} of {len(values)} with NaN or infinity")


def _require_landmarks(what: str, landmarks: Float[np.ndarray, "m 3"]) -> None:
    if landmarks.shape != (7, 3):
        raise ValueError(f"expected {what} of shape (7, 3), got {landmarks.shape}")
    _require_finite(what, landmarks)
    spread = np.linalg.svd(landmarks - landmarks.mean(axis=0), compute_uv=False)
    if spread[1] <= 1e-6 * spread[0]:
        raise ValueError(f"expected {what} that span a plane, got points on one line or one spot")


def _require_indices(what: str, faces: Int[np.ndarray, "f 3"], vertices: int) -> None:
    if len(faces) and not (faces.min() >= 0 and faces.max() < vertices):
        raise ValueError(
            f"expected {what} faces within 0..{vertices - 1}, got {faces.min()}..{faces.max()}"
        )
