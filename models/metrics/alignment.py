"""Bringing a predicted surface to scan points: by landmarks, then on the surface."""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Float

from models.geometry import ClosestPointIndex
from models.metrics._normal_equations import linearise

MAX_STEPS: Final = 100
_TOLERANCE_MM: Final = 2e-6
_COARSE_TOLERANCE_MM: Final = 1e-2
_GAIN_TOLERANCE: Final = 1e-13
_COARSE_POINTS: Final = (1500, 10000)
_MARGIN_MM: Final = 0.1
_START_POINTS: Final = 300
_START_STEPS: Final = 12


@dataclass(frozen=True, slots=True)
class Pose:
    """x' = scale R x + t; R may reflect."""

    scale: float
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, " 3"]

    @classmethod
    def identity(cls) -> "Pose":
        """The pose that changes nothing."""
        return cls(1.0, np.eye(3), np.zeros(3))

    def apply(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """Move points."""
        return points @ (self.scale * self.rotation.T) + self.translation

    def undo(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """Move points back."""
        return (points - self.translation) @ (self.rotation / self.scale)

    def after(self, first: "Pose") -> "Pose":
        """The pose that applies ``first``, then this one."""
        return Pose(
            self.scale * first.scale,
            self.rotation @ first.rotation,
            self.scale * self.rotation @ first.translation + self.translation,
        )


@dataclass(frozen=True, slots=True)
class Refined:
    """What a refinement found.

    Attributes:
        pose: Of the surface, relative to how it was given.
        distances: (k,) exact, at that pose, in the order of the points.
        steps: Accepted ones.
        converged: Whether the steps had died out.
        learnt: (p, p) what the steps taught about the second derivative, per point.
    """

    pose: Pose
    distances: Float[np.ndarray, " k"]
    steps: int
    converged: bool
    learnt: Float[np.ndarray, "p p"]


def landmark_similarity(source: Float[np.ndarray, "m 3"], target: Float[np.ndarray, "m 3"]) -> Pose:
    """Least-squares similarity that may reflect: R = U V^T without fixing its determinant."""
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    covariance = (target - target_mean).T @ (source - source_mean)
    left, singular, right = np.linalg.svd(covariance)
    rotation = left @ right
    scale = float(singular.sum() / ((source - source_mean) ** 2).sum())
    return Pose(scale, rotation, target_mean - scale * rotation @ source_mean)


def with_scale(
    pose: Pose,
    scale: float,
    source: Float[np.ndarray, "m 3"],
    target: Float[np.ndarray, "m 3"],
) -> Pose:
    """The best rigid fit at a given scale: same rotation, the means brought together."""
    translation = target.mean(axis=0) - scale * pose.rotation @ source.mean(axis=0)
    return Pose(scale, pose.rotation, translation)


def refine(
    points: Float[np.ndarray, "k 3"],
    index: ClosestPointIndex,
    normals: Float[np.ndarray, "f 3"],
    *,
    scaled: bool,
    start: Pose | None = None,
) -> Refined:
    """Minimise sum d_i^2 over the surface's pose.

    The surface point is body-fixed while differentiating and found anew at every evaluation.
    The first steps use every n-th point, the last ones all of them until they move less than
    2e-6 mm, so the result is a minimum over all points.

    Args:
        points: (k, 3) mm, around the origin, best in spatial order.
        index: Over the surface, mm.
        normals: (f, 3) unit normals of the surface's faces.
        scaled: Whether scale is free.
        start: Pose of the surface to start from; none is the identity.
    """
    pose, learnt, steps = start or Pose.identity(), None, 0
    for few in _COARSE_POINTS:
        stride = len(points) // few
        if stride > 1:
            coarse = _minimise(
                points[::stride],
                index,
                normals,
                pose,
                scaled=scaled,
                tolerance=_COARSE_TOLERANCE_MM,
                learnt=learnt,
            )
            pose, learnt, steps = coarse.pose, coarse.learnt, steps + coarse.steps
    fine = _minimise(
        points, index, normals, pose, scaled=scaled, tolerance=_TOLERANCE_MM, learnt=learnt
    )
    return replace(fine, steps=steps + fine.steps)


def best_start(
    points: Float[np.ndarray, "k 3"],
    index: ClosestPointIndex,
    normals: Float[np.ndarray, "f 3"],
    pivot: Float[np.ndarray, " 3"],
    *,
    scaled: bool,
) -> Pose:
    """The pose to refine from when one point is all that is known: the best of 27 short runs.

    They start from turns by -35, 0 and 35 degrees about the three axes through ``pivot``.
    """
    few = points[:: max(1, len(points) // _START_POINTS)]
    best, least = Pose.identity(), np.inf
    angles = np.radians([0.0, -35.0, 35.0])
    for x in angles:
        for y in angles:
            for z in angles:
                turn = (
                    rotation_of(np.array([x, 0.0, 0.0]))
                    @ rotation_of(np.array([0.0, y, 0.0]))
                    @ rotation_of(np.array([0.0, 0.0, z]))
                )
                pose = Pose(1.0, turn, pivot - turn @ pivot)
                found = _minimise(
                    few,
                    index,
                    normals,
                    pose,
                    scaled=scaled,
                    tolerance=_COARSE_TOLERANCE_MM,
                    most=_START_STEPS,
                )
                objective = float(found.distances @ found.distances)
                if objective < least:
                    best, least = found.pose, objective
    return best


def rotation_of(axis_angle: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "3 3"]:
    """Rotation of an axis-angle vector in rad, by Rodrigues' formula."""
    angle = float(np.linalg.norm(axis_angle))
    if angle == 0.0:
        return np.eye(3)
    x, y, z = axis_angle / angle
    skew = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    rotation: Float[np.ndarray, "3 3"] = (
        np.eye(3) + np.sin(angle) * skew + (1.0 - np.cos(angle)) * skew @ skew
    )
    return rotation


@dataclass(frozen=True, slots=True)
class _Linearised:
    """The objective around a pose."""

    pose: Pose
    distances: Float[np.ndarray, " k"]
    matrix: Float[np.ndarray, "p p"]
    vector: Float[np.ndarray, " p"]

    @property
    def objective(self) -> float:
        return float(self.distances @ self.distances)


def _minimise(
    points: Float[np.ndarray, "k 3"],
    index: ClosestPointIndex,
    normals: Float[np.ndarray, "f 3"],
    start: Pose,
    *,
    scaled: bool,
    tolerance: float,
    most: int = MAX_STEPS,
    learnt: Float[np.ndarray, "p p"] | None = None,
) -> Refined:
    """Damped steps with a learnt second derivative until one is shorter than ``tolerance`` mm.

    Gauss-Newton knows only part of the second derivative: how the closest triangles change as the
    surface moves is missing, and where residuals are large that makes its steps too long or too
    short by the same factor each time. The gradient is exact, so what is missing is learnt from its
    changes by symmetric rank-one updates (the structured secant idea of Dennis, Gay and Welsch
    1981) and forgotten when it makes the matrix indefinite or a step fail.

    Rotation and log-scale are multiplied by the points' radius, so all parameters are in mm.
    """
    points = np.ascontiguousarray(points)
    radius = float(np.sqrt((points**2).sum(axis=1).mean()))
    free = 7 if scaled else 6

    tracker = index.tracker(len(points), _MARGIN_MM)

    def evaluate(pose: Pose) -> _Linearised:
        nearest = tracker.query(pose.undo(points))
        distances, matrix, vector = linearise(
            points,
            nearest.points,
            normals,
            nearest.faces,
            pose.scale,
            pose.rotation,
            pose.translation,
            radius,
        )
        return _Linearised(pose, distances, matrix[:free, :free], vector[:free])

    here = evaluate(start)
    damping, accepted = 1e-4, 0
    nothing = np.zeros((free, free))
    learnt = nothing if learnt is None else learnt * len(points)
    for _ in range(most):
        diagonal = np.diag(here.matrix)
        diagonal = np.diag(diagonal + 1e-12 * diagonal.sum() + 1e-300)
        curvature = here.matrix + learnt
        least, *_, most_curved = np.linalg.eigvalsh(curvature)
        if least < 1e-6 * most_curved:
            curvature, learnt = here.matrix, nothing
        step = np.linalg.solve(curvature + damping * diagonal, -here.vector)
        if np.linalg.norm(step) < tolerance:
            return Refined(here.pose, here.distances, accepted, True, learnt / len(points))
        growth = float(np.exp(step[6] / radius)) if scaled else 1.0
        move = Pose(growth, rotation_of(step[:3] / radius), step[3:6])
        tried = evaluate(move.after(here.pose))
        if tried.objective >= here.objective:
            if learnt.any():
                learnt = nothing
            else:
                damping *= 10.0
            continue
        gain = (here.objective - tried.objective) / here.objective
        learnt = _secant(learnt, step, tried.vector - here.vector - tried.matrix @ step)
        here = tried
        damping, accepted = max(damping / 10.0, 1e-9), accepted + 1
        if gain < _GAIN_TOLERANCE:
            return Refined(here.pose, here.distances, accepted, True, learnt / len(points))
    return Refined(here.pose, here.distances, accepted, False, learnt / len(points))


def _secant(
    matrix: Float[np.ndarray, "p p"], step: Float[np.ndarray, " p"], change: Float[np.ndarray, " p"]
) -> Float[np.ndarray, "p p"]:
    """Symmetric rank-one update: the nearest such matrix that takes ``step`` to ``change``."""
    miss = change - matrix @ step
    along = float(miss @ step)
    if abs(along) < 1e-8 * float(np.linalg.norm(miss) * np.linalg.norm(step)):
        return matrix
    return matrix + np.outer(miss, miss) / along
