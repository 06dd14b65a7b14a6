"""Gauss-Newton fit of FLAME's parameters to landmarks and a surface.

Unknown are identity, expression, the neck and jaw rotations and a rigid motion. The rigid motion
belongs to the scan: FLAME stays in its own frame with a zero global rotation.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import linalg
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from models.geometry.settings import FitSettings
from models.geometry.template import JAW, NECK, RegistrationModel

RIGID, POSE = 6, 6
LANDMARK_OUTLIER_MM = 15.0


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
        theta[NECK] = Rotation.from_matrix(self.neck).as_rotvec()
        theta[JAW] = Rotation.from_matrix(self.jaw).as_rotvec()
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
        """Gather the model's rows for the vertices ``ids``."""
        self._model = model
        self.ids = ids
        self._template = model.template[ids]
        self._basis = np.ascontiguousarray(model.basis[ids])
        self._posedirs = model.posedirs[ids]
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
        return turns, places, places - np.einsum("jab,jb->ja", turns, rest)

    def evaluate(self, state: FitState) -> tuple[np.ndarray, np.ndarray]:
        """Positions (n, 3) in FLAME's frame, mm, and the blended rotations (n, 3, 3)."""
        turns, _, offsets = self._chain(state)
        blend = np.einsum("nj,jab->nab", self._weights, turns)
        posed = self._template + self._basis @ state.coefficients
        posed += self._posedirs @ self._features(state)
        return np.einsum("nab,nb->na", blend, posed) + self._weights @ offsets, blend

    def _features(self, state: FitState) -> np.ndarray:
        """FLAME's pose feature: R - I of the joints below the root, row-major."""
        features = np.zeros((len(self._parents) - 1, 3, 3))
        features[NECK - 1] = state.neck - np.eye(3)
        features[JAW - 1] = state.jaw - np.eye(3)
        return features.ravel()

    def jacobian(self, state: FitState, directions: np.ndarray) -> np.ndarray:
        """Derivative of ``directions . vertices`` in FLAME's frame.

        Args:
            state: Where to differentiate.
            directions: (n, 3), in FLAME's frame.

        Returns:
            (n, 6 + 6 + K): twist (rotation about FLAME's origin, translation), small world
            rotations of neck and jaw, coefficients.
        """
        turns, places, offsets = self._chain(state)
        blend = np.einsum("nj,jab->nab", self._weights, turns)
        shaped = self._template + self._basis @ state.coefficients
        shaped += self._posedirs @ self._features(state)
        posed = np.einsum("nab,nb->na", blend, shaped) + self._weights @ offsets
        local = np.einsum("na,nab->nb", directions, blend)
        columns = RIGID + POSE
        out = np.empty((len(directions), columns + self._basis.shape[2]))
        out[:, :3] = np.cross(posed, directions)
        out[:, 3:6] = directions
        for slot, (joint, turn) in enumerate(((NECK, state.neck), (JAW, state.jaw))):
            start = RIGID + 3 * slot
            below = self._below(joint)
            weight = self._weights[:, below]
            # Sum over the joints below of w (A_d s + b_d - place of the joint).
            arm = np.einsum("nj,jab,nb->na", weight, turns[below], shaped)
            arm += weight @ offsets[below] - weight.sum(axis=1)[:, None] * places[joint]
            out[:, start : start + 3] = np.cross(arm, directions)
            before = turns[self._parents[joint]]
            correct = self._posedirs[:, :, 9 * (joint - 1) : 9 * joint]
            for axis in range(3):
                spin = before.T @ np.cross(np.eye(3)[axis], np.eye(3)).T @ before @ turn
                out[:, start + axis] += np.einsum("na,nap,p->n", local, correct, spin.ravel())
        out[:, columns:] = np.einsum("na,nak->nk", local, self._basis)
        out[:, columns:] += self._joint_rows(turns, directions)
        return out

    def _below(self, joint: int) -> list[int]:
        """The joint and its descendants."""
        found = [joint]
        for j in range(joint + 1, len(self._parents)):
            if self._parents[j] in found:
                found.append(j)
        return found

    def _joint_rows(self, turns: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """How the joints' own motion with the coefficients moves ``directions . vertices``."""
        moves = self._model.joint_basis
        place_moves, offset_moves = np.empty_like(moves), np.empty_like(moves)
        for j, parent in enumerate(self._parents):
            if parent < 0:
                place_moves[j] = moves[j]
            else:
                place_moves[j] = turns[parent] @ (moves[j] - moves[parent]) + place_moves[parent]
            offset_moves[j] = place_moves[j] - turns[j] @ moves[j]
        rows = np.zeros((len(directions), moves.shape[2]))
        for j in range(len(moves)):
            if np.abs(offset_moves[j]).max() > 1e-12:
                rows += self._weights[:, j : j + 1] * (directions @ offset_moves[j])
        return rows


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
) -> FitState:
    """Fit the parameters by Gauss-Newton steps.

    Minimises ``sum w r^2 / sigma^2`` over landmarks and point-to-plane surface residuals (Geman
    and McClure's loss, scale shrinking from step to step) plus the unit Gaussian prior of the
    coefficients and a Gaussian prior of the pose.

    Args:
        model: The prepared model.
        landmarks: In the surface's frame, mm; NaN rows are missing. Without any, the surface
            alone is fitted from where the model stands.
        surface: The scan.
        settings: Schedule and weights.
        bald: Whether the scalp is bare or capped, so that it can be trusted.
    """
    present = np.flatnonzero(np.isfinite(landmarks).all(axis=1))
    corners = np.asarray(model.arrays.faces, dtype=np.int64)[model.landmark_faces[present]]
    marks = Subset(model, corners.ravel())
    mark_weights = model.landmark_bary[present].reshape(-1)
    target = landmarks[present]
    ids = sample_vertices(model, settings.sample_vertices, 1.0 if bald else settings.scalp_weight)
    points = Subset(model, ids)
    share = len(ids) / settings.sample_vertices
    state = FitState(np.zeros(model.basis.shape[2]))
    early = settings.landmark_steps if len(present) else 0
    for step in range(early + settings.icp_steps):
        late = step - early
        progress = np.clip(late / max(settings.icp_steps - 1, 1), 0.0, 1.0)
        sigma = _between(settings.landmark_sigma_start_mm, settings.landmark_sigma_end_mm, progress)
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
    """Jacobian, residual and weight of the landmark term, in FLAME's frame."""
    posed, _ = marks.evaluate(state)
    count = len(target)
    model = (weights[:, None] * posed).reshape(count, 3, 3).sum(axis=1)
    gap = (target - state.translation) @ state.rotation - model
    rows = [
        (weights[:, None] * marks.jacobian(state, np.broadcast_to(np.eye(3)[axis], posed.shape)))
        .reshape(count, 3, -1)
        .sum(axis=1)
        for axis in range(3)
    ]
    scale = np.ones(count)
    if robust:
        scale = (1 + (gap**2).sum(axis=1) / LANDMARK_OUTLIER_MM**2) ** -2
    return np.concatenate(rows), gap.T.ravel(), np.tile(scale / sigma**2, 3)


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
    posed, blend = points.evaluate(state)
    moved = posed @ state.rotation.T + state.translation
    normals = np.einsum("nab,nb->na", blend, model.normals[points.ids]) @ state.rotation.T
    distance, nearest = surface.tree.query(
        moved, distance_upper_bound=settings.gate_factor * robust
    )
    nearest = np.minimum(nearest, len(surface.vertices) - 1)
    facing = (normals * surface.normals[nearest]).sum(axis=1)
    keep = np.isfinite(distance) & ~surface.rim[nearest]
    keep &= facing > np.cos(np.radians(settings.gate_angle_deg))
    scale = np.where(keep, (1 + (distance / robust) ** 2) ** -2.0, 0.0)
    scale[~keep] = 0.0
    across = surface.normals[nearest]
    gap = ((surface.vertices[nearest] - moved) * across).sum(axis=1)
    return points.jacobian(state, across @ state.rotation), gap, weight * scale


def _step(
    state: FitState,
    blocks: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    settings: FitSettings,
) -> None:
    """One Gauss-Newton step on the stacked terms and the priors; changes ``state``."""
    K = len(state.coefficients)
    size = RIGID + POSE + K
    normal, right = np.zeros((size, size)), np.zeros(size)
    for rows, gap, weight in blocks:
        used = weight > 0
        scaled = rows[used] * weight[used, None]
        normal += scaled.T @ rows[used]
        right += scaled.T @ gap[used]
    prior = np.full(size, 1.0)
    prior[:RIGID] = 1e-9
    prior[RIGID : RIGID + POSE] = settings.pose_sigma_rad**-2
    current = np.concatenate(
        [
            np.zeros(RIGID),
            Rotation.from_matrix(state.neck).as_rotvec(),
            Rotation.from_matrix(state.jaw).as_rotvec(),
            state.coefficients,
        ]
    )
    normal[np.diag_indices(size)] += prior
    change = linalg.solve(normal, right - prior * current, assume_a="pos", check_finite=False)
    state.coefficients = state.coefficients + change[RIGID + POSE :]
    neck = Rotation.from_rotvec(change[RIGID : RIGID + 3]).as_matrix()
    jaw = Rotation.from_rotvec(change[RIGID + 3 : RIGID + 6]).as_matrix()
    # Small rotations are taken in FLAME's frame; the jaw's own is seen from behind the neck.
    state.jaw = state.neck.T @ jaw @ state.neck @ state.jaw
    state.neck = neck @ state.neck
    turn = Rotation.from_rotvec(change[:3]).as_matrix()
    state.translation = state.rotation @ change[3:6] + state.translation
    state.rotation = state.rotation @ turn
