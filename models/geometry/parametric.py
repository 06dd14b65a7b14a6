"""Gauss-Newton fit of FLAME's parameters to landmarks and a surface.

Unknown are identity, expression, the neck and jaw rotations and a rigid motion. The rigid motion
belongs to the scan: FLAME stays in its own frame with a zero global rotation.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import linalg
from scipy.spatial import cKDTree

from models.geometry.settings import FitSettings
from models.geometry.template import JAW, NECK, RegistrationModel

RIGID, POSE = 6, 6
LANDMARK_OUTLIER_MM = 15.0
SMALL_RAD = 1e-4
ALL_LANDMARKS, FEW_LANDMARKS = 51, 7
"""The number that the schedule is meant for, and the one below which it changes no further."""


@dataclass
class FitState:
    """The parameters of one fit.

    Attributes:
        coefficients: (S + E,) identity then expression.
        neck: (3, 3) rotation of the neck joint.
        jaw: (3, 3) rotation of the jaw joint.
        rotation: (3, 3) of the motion from FLAME's frame to the data's frame.
        translation: (3,) of that motion, mm.
    """

    coefficients: Float[np.ndarray, " k"]
    neck: Float[np.ndarray, "3 3"] = field(default_factory=lambda: np.eye(3))
    jaw: Float[np.ndarray, "3 3"] = field(default_factory=lambda: np.eye(3))
    rotation: Float[np.ndarray, "3 3"] = field(default_factory=lambda: np.eye(3))
    translation: Float[np.ndarray, "3"] = field(default_factory=lambda: np.zeros(3))

    def pose(self, joints: int) -> Float[np.ndarray, " t"]:
        """Axis-angle of all joints, radians; zero but for neck and jaw."""
        theta = np.zeros((joints, 3))
        theta[NECK] = rotation_vector(self.neck)
        theta[JAW] = rotation_vector(self.jaw)
        return theta.ravel()


@dataclass(frozen=True)
class Surface:
    """The data to fit, in millimetres.

    Attributes:
        vertices: (N, 3) scan vertices.
        normals: (N, 3) their unit normals.
        rim: (N,) whether a vertex lies on the scan's border.
        tree: Search tree over ``vertices``.
    """

    vertices: Float[np.ndarray, "n 3"]
    normals: Float[np.ndarray, "n 3"]
    rim: Bool[np.ndarray, " n"]
    tree: cKDTree


class Subset:
    """Evaluates FLAME and its derivatives at some vertices only."""

    def __init__(self, model: RegistrationModel, ids: Int[np.ndarray, " n"]) -> None:
        """Gather the model's rows for the vertices ``ids``, ascending where it is all of them."""
        self._model = model
        self.ids = ids
        self._template = model.template[ids]
        every = len(ids) == len(model.template)
        self._basis = model.basis if every else np.ascontiguousarray(model.basis[ids])
        # Only neck and jaw turn, so only their pose correctives act.
        used = [*range(9 * (NECK - 1), 9 * NECK), *range(9 * (JAW - 1), 9 * JAW)]
        self._correctives = np.ascontiguousarray(model.posedirs[ids][:, :, used])
        self._weights = np.asarray(model.arrays.weights, dtype=np.float64)[ids]
        self._joints = model.arrays.joint_regressor @ model.template
        self._parents = model.arrays.parents.tolist()

    def _chain(self, state: FitState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """World rotations (J,3,3), joint positions (J,3) and offsets (J,3) of the skeleton."""
        rest = self._joints + self._model.joint_basis @ state.coefficients
        turns, places = np.empty((len(rest), 3, 3)), np.empty((len(rest), 3))
        local = {NECK: state.neck, JAW: state.jaw}
        for j, parent in enumerate(self._parents):
            turn = local.get(j, np.eye(3))
            if parent < 0:
                turns[j], places[j] = turn, rest[j]
            else:
                turns[j] = turns[parent] @ turn
                places[j] = turns[parent] @ (rest[j] - rest[parent]) + places[parent]
        return turns, places, places - (turns @ rest[:, :, None])[:, :, 0]

    def linearise(self, state: FitState) -> "Linearised":
        """Positions, blended rotations and what their derivatives need, at ``state``."""
        turns, places, offsets = self._chain(state)
        count = len(self._template)
        blend = (self._weights @ turns.reshape(-1, 9)).reshape(count, 3, 3)
        flat = self._basis.reshape(3 * count, -1) @ state.coefficients
        features = np.concatenate(
            [(state.neck - np.eye(3)).ravel(), (state.jaw - np.eye(3)).ravel()]
        )
        flat += self._correctives.reshape(3 * count, -1) @ features
        shaped = self._template + flat.reshape(count, 3)
        posed = (blend @ shaped[:, :, None])[:, :, 0] + self._weights @ offsets
        return Linearised(state, turns, places, offsets, blend, shaped, posed)

    def evaluate(self, state: FitState) -> tuple[np.ndarray, np.ndarray]:
        """Positions (n, 3) in FLAME's frame, mm, and the blended rotations (n, 3, 3)."""
        at = self.linearise(state)
        return at.posed, at.blend

    def jacobian(
        self, state: FitState, directions: np.ndarray, at: "Linearised | None" = None
    ) -> np.ndarray:
        """Derivative of ``directions . vertices`` in FLAME's frame.

        Args:
            state: Where to differentiate.
            directions: (n, 3), in FLAME's frame.
            at: :meth:`linearise` of the same state, where it is known already.

        Returns:
            (n, 6 + 6 + K): twist (rotation about FLAME's origin, translation), small world
            rotations of neck and jaw, coefficients.
        """
        from models.geometry import _couple

        if at is None:
            at = self.linearise(state)
        turns, offsets = at.turns, at.offsets
        count = len(self._template)
        local = (directions[:, None, :] @ at.blend)[:, 0, :]
        columns = RIGID + POSE
        out = np.empty((count, columns + self._basis.shape[2]))
        out[:, :3] = _cross(at.posed, directions)
        out[:, 3:6] = directions
        for slot, (joint, turn) in enumerate(((NECK, state.neck), (JAW, state.jaw))):
            start = RIGID + 3 * slot
            below = self._below(joint)
            weight = self._weights[:, below]
            # Sum over the joints below of w (A_d s + b_d - place of the joint).
            carried = (weight @ turns[below].reshape(-1, 9)).reshape(count, 3, 3)
            arm = (carried @ at.shaped[:, :, None])[:, :, 0]
            arm += weight @ offsets[below] - weight.sum(axis=1)[:, None] * at.places[joint]
            before = turns[self._parents[joint]]
            spins = np.stack([before.T @ _spin(axis) @ before @ turn for axis in np.eye(3)])
            correct = self._correctives[:, :, 9 * slot : 9 * slot + 9]
            lean = (correct.reshape(-1, 9) @ spins.reshape(3, 9).T).reshape(count, 3, 3)
            out[:, start : start + 3] = _cross(arm, directions)
            out[:, start : start + 3] += (local[:, None, :] @ lean)[:, 0, :]
        pull = self._weights[:, :, None] * directions[:, None, :]
        moves = self._offset_moves(turns)
        rows = pull.reshape(count, -1) @ moves.reshape(-1, moves.shape[2])
        _couple.add_projected(local, self._basis, rows, columns, out)
        return out

    def _below(self, joint: int) -> list[int]:
        """The joint and its descendants."""
        found = [joint]
        for j in range(joint + 1, len(self._parents)):
            if self._parents[j] in found:
                found.append(j)
        return found

    def _offset_moves(self, turns: np.ndarray) -> np.ndarray:
        """(J, 3, K): how the offsets move with the coefficients, which move the joints."""
        moves = self._model.joint_basis
        place_moves, offset_moves = np.empty_like(moves), np.empty_like(moves)
        for j, parent in enumerate(self._parents):
            if parent < 0:
                place_moves[j] = moves[j]
            else:
                place_moves[j] = turns[parent] @ (moves[j] - moves[parent]) + place_moves[parent]
            offset_moves[j] = place_moves[j] - turns[j] @ moves[j]
        return offset_moves


class Linearised(NamedTuple):
    """FLAME at some vertices in one state; see :class:`Subset`.

    Attributes:
        state: The parameters.
        turns: (J, 3, 3) world rotations of the joints.
        places: (J, 3) joint positions, mm.
        offsets: (J, 3) translations of the skinning transforms, mm.
        blend: (n, 3, 3) blended rotations.
        shaped: (n, 3) before skinning, mm.
        posed: (n, 3) after it, mm.
    """

    state: FitState
    turns: np.ndarray
    places: np.ndarray
    offsets: np.ndarray
    blend: np.ndarray
    shaped: np.ndarray
    posed: np.ndarray


def rotation_matrix(vector: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """Rotation (3, 3) about ``vector`` by its length, radians (Rodrigues)."""
    angle = float(np.sqrt(vector @ vector))
    if angle < SMALL_RAD:
        sine, versine = 1.0 - angle**2 / 6, 0.5 - angle**2 / 24
    else:
        sine, versine = np.sin(angle) / angle, (1.0 - np.cos(angle)) / angle**2
    spin = _spin(vector)
    return np.eye(3) + sine * spin + versine * (spin @ spin)


def rotation_vector(matrix: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3"]:
    """Axis times angle (3,), radians, of a rotation by less than half a turn."""
    twice = np.array(
        [
            matrix[2, 1] - matrix[1, 2],
            matrix[0, 2] - matrix[2, 0],
            matrix[1, 0] - matrix[0, 1],
        ]
    )
    sine = 0.5 * float(np.sqrt(twice @ twice))
    angle = float(np.arctan2(sine, 0.5 * (np.trace(matrix) - 1.0)))
    return 0.5 * twice * (1.0 + angle**2 / 6 if sine < SMALL_RAD else angle / sine)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross products of rows (n, 3); numpy's own takes several times as long."""
    out = np.empty_like(a)
    out[:, 0] = a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1]
    out[:, 1] = a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2]
    out[:, 2] = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    return out


def _spin(axis: np.ndarray) -> np.ndarray:
    """The matrix of ``x -> axis x x``."""
    x, y, z = axis
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])


def sample_vertices(model: RegistrationModel, count: int, scalp: float) -> Int[np.ndarray, " n"]:
    """Template vertices for the surface term: a systematic sample by area and data weight."""
    weight = model.areas * model.weight * np.where(model.scalp, scalp, 1.0)
    order = np.argsort(model.template @ np.array([1.0, 31.7, 0.013]), kind="stable")
    cumulated = np.cumsum(weight[order])
    picks = (np.arange(count) + 0.5) / count * cumulated[-1]
    return np.unique(order[np.searchsorted(cumulated, picks)])


def fit_parameters(
    model: RegistrationModel,
    landmarks: Float[np.ndarray, "l 3"],
    surface: Surface,
    settings: FitSettings,
    *,
    bald: bool,
    start: FitState | None = None,
) -> FitState:
    """Fit the parameters by Gauss-Newton steps.

    Minimises ``sum w r^2 / sigma^2`` over landmarks and point-to-plane surface residuals (Geman
    and McClure's loss, scale shrinking from step to step) plus the unit Gaussian prior of the
    coefficients and a Gaussian prior of the pose.

    Args:
        model: The prepared model.
        landmarks: In the surface's frame, mm; NaN rows are missing, and the fewer there are, the
            more each counts at the end. Without any, the surface alone is fitted from where the
            model stands.
        surface: The scan.
        settings: Schedule and weights.
        bald: Whether the scalp is bare or capped, so that it can be trusted.
        start: Parameters to start from, left as they are; None starts from the mean head.
    """
    present = np.flatnonzero(np.isfinite(landmarks).all(axis=1))
    corners = np.asarray(model.arrays.faces, dtype=np.int64)[model.landmark_faces[present]]
    marks = Subset(model, np.tile(corners.ravel(), 3))  # once per axis
    mark_weights = model.landmark_bary[present].reshape(-1)
    target = landmarks[present]
    ids = sample_vertices(model, settings.sample_vertices, 1.0 if bald else settings.scalp_weight)
    points = Subset(model, ids)
    share = len(ids) / settings.sample_vertices
    state = FitState(np.zeros(model.basis.shape[2])) if start is None else replace(start)
    early = settings.landmark_steps if len(present) else 0
    icp_steps, last_sigma = _schedule_of(len(present), settings)
    for step in range(early + icp_steps):
        late = step - early
        progress = np.clip(late / max(icp_steps - 1, 1), 0.0, 1.0)
        sigma = _between(settings.landmark_sigma_start_mm, last_sigma, progress)
        blocks = []
        if len(present):
            blocks.append(
                _landmark_rows(state, marks, mark_weights, target, sigma, robust=late >= 0)
            )
        if late >= 0:
            robust = _between(settings.robust_start_mm, settings.robust_end_mm, progress)
            weight = settings.data_weight_per_mm2 / share
            blocks.append(_surface_rows(state, points, model, surface, robust, weight, settings))
        _step(state, blocks, settings)
    return state


def _schedule_of(landmarks: int, settings: FitSettings) -> tuple[int, float]:
    """Steps on the surface, and the landmarks' standard deviation at the last one, mm.

    The hold of ``n`` landmarks on the face is ``n / sigma^2``. Fewer than all keep the hold of all,
    by a smaller ``sigma``; because they also place the face less well, the surface gets more steps,
    in proportion to the error of a mean and twice as many at most.
    """
    if landmarks == 0:
        return settings.icp_steps, settings.landmark_sigma_end_mm
    few = float(np.sqrt(np.clip(landmarks, FEW_LANDMARKS, ALL_LANDMARKS) / ALL_LANDMARKS))
    start, end = settings.landmark_sigma_start_mm, settings.landmark_sigma_end_mm
    return round(settings.icp_steps * min(1 / few, 2.0)), max(few * end, min(start, end))


def _between(start: float, end: float, progress: float) -> float:
    """Geometric interpolation."""
    return float(start * (end / start) ** progress)


def _landmark_rows(
    state: FitState,
    marks: Subset,
    weights: np.ndarray,
    target: np.ndarray,
    sigma: float,
    *,
    robust: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Jacobian, residual and weight of the landmark term, in FLAME's frame.

    ``marks`` holds the landmarks' corners three times over, for the x, y and z rows.
    """
    at = marks.linearise(state)
    count = len(target)
    posed = at.posed[: 3 * count]
    model = (weights[:, None] * posed).reshape(count, 3, 3).sum(axis=1)
    gap = (target - state.translation) @ state.rotation - model
    axes = np.repeat(np.eye(3), 3 * count, axis=0)
    every = np.tile(weights, 3)[:, None] * marks.jacobian(state, axes, at)
    rows = every.reshape(3 * count, 3, -1).sum(axis=1)
    scale = np.ones(count)
    if robust:
        scale = (1 + (gap**2).sum(axis=1) / LANDMARK_OUTLIER_MM**2) ** -2
    return rows, gap.T.ravel(), np.tile(scale / sigma**2, 3)


def _surface_rows(
    state: FitState,
    points: Subset,
    model: RegistrationModel,
    surface: Surface,
    robust: float,
    weight: float,
    settings: FitSettings,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Jacobian, residual and weight of the point-to-plane term, in FLAME's frame."""
    at = points.linearise(state)
    moved = at.posed @ state.rotation.T + state.translation
    normals = (at.blend @ model.normals[points.ids][:, :, None])[:, :, 0] @ state.rotation.T
    distance, nearest = surface.tree.query(
        moved, distance_upper_bound=settings.gate_factor * robust
    )
    nearest = np.minimum(nearest, len(surface.vertices) - 1)
    across = surface.normals[nearest]
    facing = (normals * across).sum(axis=1)
    keep = np.isfinite(distance) & ~surface.rim[nearest]
    keep &= facing > np.cos(np.radians(settings.gate_angle_deg))
    scale = np.zeros(len(moved))
    scale[keep] = (1 + (distance[keep] / robust) ** 2) ** -2.0
    gap = ((surface.vertices[nearest] - moved) * across).sum(axis=1)
    return points.jacobian(state, across @ state.rotation, at), gap, weight * scale


def _step(
    state: FitState,
    blocks: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    settings: FitSettings,
) -> None:
    """One Gauss-Newton step on the stacked terms and the priors; changes ``state``."""
    K = len(state.coefficients)
    size = RIGID + POSE + K
    normal, right = np.zeros((size, size), order="F"), np.zeros(size)
    for rows, gap, weight in blocks:
        root = np.sqrt(weight)
        scaled = rows * root[:, None]
        # The transpose of a C-ordered block is what Fortran's symmetric product takes uncopied.
        normal = linalg.blas.dsyrk(1.0, scaled.T, beta=1.0, c=normal, overwrite_c=1, lower=1)
        right += scaled.T @ (root * gap)
    prior = np.full(size, 1.0)
    prior[:RIGID] = 1e-9
    prior[RIGID : RIGID + POSE] = settings.pose_sigma_rad**-2
    current = np.concatenate(
        [
            np.zeros(RIGID),
            rotation_vector(state.neck),
            rotation_vector(state.jaw),
            state.coefficients,
        ]
    )
    normal[np.diag_indices(size)] += prior
    factor = linalg.cho_factor(normal, lower=True, overwrite_a=True, check_finite=False)
    change = linalg.cho_solve(factor, right - prior * current, check_finite=False)
    state.coefficients = state.coefficients + change[RIGID + POSE :]
    neck = rotation_matrix(change[RIGID : RIGID + 3])
    jaw = rotation_matrix(change[RIGID + 3 : RIGID + 6])
    # Small rotations are taken in FLAME's frame; the jaw's own is seen from behind the neck.
    state.jaw = state.neck.T @ jaw @ state.neck @ state.jaw
    state.neck = neck @ state.neck
    turn = rotation_matrix(change[:3])
    state.translation = state.rotation @ change[3:6] + state.translation
    state.rotation = state.rotation @ turn
