"""FLAME's arrays from the procedural head: PCA bases, joints, skinning and pose correctives."""

import numpy as np
from jaxtyping import Float

from models.face.flame import FlameArrays
from models.procedural.anatomy import smoothstep
from models.procedural.expression import UNITS, limited, sample_expression
from models.procedural.head import JOINTS, ProceduralHead, to_flame
from models.procedural.identity import Identity, shape_moments
from models.procedural.topology import SKIN_VERTICES
from models.procedural.traits import Place

PARENTS = np.array([-1, 0, 1, 1, 1], dtype=np.int64)
_EXPRESSION_SAMPLES = 360
_RIPPLES = 90
_RIPPLE_RMS_MM = 0.25


def rotation_matrix(turn: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """Rotation of an axis-angle vector (rad), Rodrigues' formula."""
    angle = float(np.linalg.norm(turn))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = turn / angle
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross


def turn_by_share(
    points: Float[np.ndarray, "v 3"],
    centre: Float[np.ndarray, "3"],
    turn: Float[np.ndarray, "3"],
    share: Float[np.ndarray, "v"],
) -> Float[np.ndarray, "v 3"]:
    """Rotate every point about ``centre`` by its own share of ``turn`` (axis-angle, rad)."""
    angle = float(np.linalg.norm(turn))
    if angle < 1e-12:
        return points.copy()
    axis = turn / angle
    offset = points - centre
    each = (angle * share)[:, None]
    along = (offset @ axis)[:, None] * axis
    moved = along + np.cos(each) * (offset - along) + np.sin(each) * np.cross(axis, offset)
    return moved + centre


def skinning_weights(head: ProceduralHead) -> Float[np.ndarray, "v 5"]:
    """Share of each joint per vertex; rows sum to one."""
    neck = head.neck_weight()
    weights = np.zeros((len(neck), len(JOINTS)))
    weights[:, 2] = head.jaw * neck
    weights[:, 1] = neck - weights[:, 2]
    weights[:, 0] = 1.0 - neck
    for joint, side in ((3, "left"), (4, "right")):
        ball = head.masks[f"{side}_eyeball"]
        weights[ball] = 0.0
        weights[ball, joint] = 1.0
    return weights


def identity_modes(
    head: ProceduralHead, count: int
) -> tuple[Float[np.ndarray, "v 3"], Float[np.ndarray, "v 3 n"], Float[np.ndarray, "k n"]]:
    """Mean head (m), PCA directions (m per sigma), and the map from ``Identity.shape`` to beta.

    The head is linear in its Gaussian shape vector, so the principal components are exact: with
    covariance C = L Lᵀ and basis B they are the left singular vectors of B L.

    Returns:
        The last entry gives ``beta = (shape - mean_shape) @ projector`` for the nearest head
        in the span.
    """
    mean_shape, covariance = shape_moments()
    basis = head.identity_mm.astype(np.float64) * 1e-3
    factor = np.linalg.cholesky(covariance)
    scaled = factor.T @ basis
    values, vectors = np.linalg.eigh(scaled @ scaled.T)
    order = np.argsort(values)[::-1][:count]
    directions = vectors[:, order].T @ scaled
    sign = np.sign(directions[np.arange(len(order)), np.abs(directions).argmax(axis=1)])
    directions *= sign[:, None]
    projector = basis @ (directions / values[order][:, None]).T
    mean = to_flame(head.canonical_mm) + (mean_shape @ basis).reshape(-1, 3)
    return mean, _last(directions), projector


def beta_of(identity: Identity, projector: Float[np.ndarray, "k n"]) -> Float[np.ndarray, "n"]:
    """The coefficients whose head is nearest to an identity's neutral head."""
    mean_shape, _ = shape_moments()
    beta: np.ndarray = (identity.shape - mean_shape) @ projector
    return beta


def _last(rows: Float[np.ndarray, "n v3"]) -> Float[np.ndarray, "v 3 n"]:
    return np.ascontiguousarray(np.moveaxis(rows.reshape(len(rows), -1, 3), 0, 2))


def expression_modes(
    head: ProceduralHead,
    mean_mm: Float[np.ndarray, "v 3"],
    count: int,
    rng: np.random.Generator,
    samples: int,
) -> Float[np.ndarray, "v 3 n"]:
    """PCA directions (m per sigma) of sampled expressions about neutral, jaw rotation excluded.

    Single movements, both lids and mixtures are sampled; faint smooth ripples of the face's
    front stand for what no named movement explains, so that all modes carry something.
    """
    jaw_open = UNITS.index("jaw_open")
    rows = []
    for _ in range(samples):
        weights = sample_expression(rng).weights.copy()
        weights[jaw_open] = 0.0
        weights += np.where(rng.random(len(UNITS)) < 0.05, rng.uniform(0.0, 1.0, len(UNITS)), 0.0)
        weights[jaw_open] = 0.0
        moved = head.posed_mm(mean_mm, limited(weights)) - mean_mm
        rows.append(moved.ravel() * 1e-3)
    deviations = np.stack(rows)
    deviations += rng.standard_normal((samples, _RIPPLES)) @ _ripples(head, rng) * 1e-3
    gram = deviations @ deviations.T / samples
    values, vectors = np.linalg.eigh(gram)
    order = np.argsort(values)[::-1][:count]
    directions = vectors[:, order].T @ deviations / np.sqrt(samples)
    sign = np.sign(directions[np.arange(len(order)), np.abs(directions).argmax(axis=1)])
    return _last(directions * sign[:, None])


def _ripples(head: ProceduralHead, rng: np.random.Generator) -> Float[np.ndarray, "r v3"]:
    points = head.canonical_mm
    heading = rng.standard_normal((_RIPPLES, 3))
    heading *= (2.0 * np.pi / rng.uniform(35.0, 80.0, _RIPPLES) / np.linalg.norm(heading, axis=1))[
        :, None
    ]
    direction = rng.standard_normal((_RIPPLES, 3)) / np.sqrt(3.0)
    phase = rng.uniform(0.0, 2.0 * np.pi, _RIPPLES)
    wave = np.cos(heading @ points.T + phase[:, None])[:, :, None] * direction[:, None, :]
    window = smoothstep(points[:, 2], 15.0, 55.0) * smoothstep(points[:, 1], -125.0, -105.0)
    window = window * smoothstep(points[:, 1], 75.0, 40.0)
    # lids and lips must not ripple apart
    place = Place(points)
    eyes = np.hypot(place.far - 31.2, place.y)
    window = window * smoothstep(eyes, 18.0, 28.0)
    lips = np.hypot(place.x / 30.0, (place.y + 65.0) / 15.0)
    window = window * smoothstep(lips, 0.8, 1.4)
    window[SKIN_VERTICES:] = 0.0
    scale = _RIPPLE_RMS_MM * np.sqrt(2.0 / _RIPPLES)
    return (scale * wave * window[None, :, None]).reshape(_RIPPLES, -1)


def _skin(
    joint: Float[np.ndarray, "3"],
    rotation: Float[np.ndarray, "3 3"],
    weight: Float[np.ndarray, "v"],
) -> tuple[Float[np.ndarray, "v 3 3"], Float[np.ndarray, "v 3"]]:
    """Blended linear map and offset of a joint against a resting parent."""
    matrix = np.eye(3) + weight[:, None, None] * (rotation - np.eye(3))
    return matrix, weight[:, None] * (joint - rotation @ joint)


def pose_correctives(
    head: ProceduralHead, mean_mm: Float[np.ndarray, "v 3"], weights: Float[np.ndarray, "v 5"]
) -> Float[np.ndarray, "v 3 36"]:
    """Correctives (m per entry of R - I) so that linear skinning follows the true rotations.

    True motion turns every point by its share of the angle; blending matrices shrinks instead.
    The difference, pulled back to the rest pose, is regressed on the nine entries of R - I for
    neck and jaw. Eyes are rigid and need none.
    """
    result = np.zeros((len(mean_mm), 3, 36))
    joints = head.joints(mean_mm)
    share = {1: weights[:, 1] + weights[:, 2] + weights[:, 3] + weights[:, 4], 2: weights[:, 2]}
    limits = {1: np.radians([35.0, 45.0, 30.0]), 2: np.radians([28.0, 8.0, 4.0])}
    for slot, joint in ((0, 1), (1, 2)):
        rng = np.random.default_rng(joint)
        turns = rng.uniform(-1.0, 1.0, (48, 3)) * limits[joint]
        if joint == 2:
            turns[:, 0] = np.abs(turns[:, 0])
        moving = np.flatnonzero((share[joint] > 1e-6) & (share[joint] < 1.0 - 1e-6))
        features, targets = [], []
        for turn in turns:
            rotation = rotation_matrix(turn)
            true = turn_by_share(mean_mm[moving], joints[joint], turn, share[joint][moving])
            matrix, offset = _skin(joints[joint], rotation, share[joint][moving])
            rest = np.linalg.solve(matrix, (true - offset)[:, :, None])[:, :, 0]
            features.append((rotation - np.eye(3)).ravel())
            targets.append((rest - mean_mm[moving]).ravel())
        design = np.stack(features)
        ridge = 1e-4 * np.trace(design.T @ design) / 9.0
        solution = np.linalg.solve(
            design.T @ design + ridge * np.eye(9), design.T @ np.stack(targets)
        )
        result[moving, :, 9 * slot : 9 * slot + 9] = (
            np.moveaxis(solution.reshape(9, -1, 3), 0, 2) * 1e-3
        )
    return result


def true_pose_mm(
    head: ProceduralHead, neutral: Float[np.ndarray, "v 3"], theta: Float[np.ndarray, "5 3"]
) -> Float[np.ndarray, "v 3"]:
    """The head's own articulation for FLAME's theta: what skinning with correctives imitates.

    Args:
        head: The head whose joints and weights articulate.
        neutral: Rest vertices (mm).
        theta: Axis-angle of global, neck, jaw, left and right eye (rad).
    """
    joints = head.joints(neutral)
    weights = skinning_weights(head)
    points = turn_by_share(neutral, joints[2], theta[2], weights[:, 2])
    for joint in (3, 4):
        points = turn_by_share(points, joints[joint], theta[joint], weights[:, joint])
    points = turn_by_share(points, joints[1], theta[1], 1.0 - weights[:, 0])
    return turn_by_share(points, joints[0], theta[0], np.ones(len(points)))


def build_flame(
    seed: int = 0,
    n_identity: int = 300,
    n_expression: int = 100,
    samples: int = _EXPRESSION_SAMPLES,
) -> FlameArrays:
    """FLAME's arrays for the procedural head.

    Args:
        seed: Of the expression samples and ripples.
        n_identity: Identity modes to keep.
        n_expression: Expression modes to keep.
        samples: Expressions that the expression modes are fitted to.

    Returns:
        Arrays in metres; 5,023 vertices, five joints, 36 pose correctives.
    """
    head = ProceduralHead.build()
    limit = len(head.identity_mm)
    if n_identity > limit or n_expression > samples:
        raise ValueError(
            f"build_flame has {limit} identity modes and {samples} expression samples, asked for "
            f"{n_identity} and {n_expression}; ask for fewer or sample more"
        )
    rng = np.random.default_rng(seed)
    mean, shapedirs, _ = identity_modes(head, n_identity)
    mean_mm = head.canonical_mm + 1e3 * (mean - to_flame(head.canonical_mm))
    weights = skinning_weights(head)
    return FlameArrays(
        v_template=mean.astype(np.float64),
        faces=head.faces,
        shapedirs=shapedirs,
        exprdirs=expression_modes(head, mean_mm, n_expression, rng, samples),
        posedirs=pose_correctives(head, mean_mm, weights),
        joint_regressor=head.joint_regressor,
        weights=weights,
        parents=PARENTS,
    )
