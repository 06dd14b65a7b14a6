"""The procedural head: FLAME's composition, in FLAME's frame and scale, from numbers alone."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int

from models.procedural import topology
from models.procedural.anatomy import smoothstep
from models.procedural.cage import build_cage
from models.procedural.expression import (
    JAW_OPEN_DEG,
    LINEAR_UNITS,
    UNITS,
    Expression,
    jaw_weight,
    movement_basis,
)
from models.procedural.identity import Identity, identity_basis
from models.procedural.landmarks import Embeddings, build_embeddings, contour_row, evaluate
from models.procedural.regions import build_regions
from models.procedural.teeth import OralMesh, build_oral
from models.procedural.traits import Place

# Added to canonical millimetres before they become metres in FLAME's frame.
CANONICAL_TO_FLAME_MM = np.array([0.0, 21.4, -45.1])
JOINTS = ("global", "neck", "jaw", "left_eye", "right_eye")
_JAW_HINGE_MM = np.array([0.0, -18.0, 2.0])
_NECK_MM = np.array([0.0, -88.0, -22.0])
_ROOT_MM = np.array([0.0, -170.0, -30.0])


def to_flame(points_mm: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Canonical millimetres to FLAME's frame in metres."""
    return (points_mm + CANONICAL_TO_FLAME_MM) * 1e-3


def to_canonical(points_m: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """FLAME's frame in metres to canonical millimetres."""
    return points_m * 1e3 - CANONICAL_TO_FLAME_MM


def rotate_about_x(
    points: Float[np.ndarray, "n 3"],
    centre: Float[np.ndarray, "3"] | Float[np.ndarray, "n 3"],
    angle: Float[np.ndarray, "n"],
) -> Float[np.ndarray, "n 3"]:
    """Rotate each point about the x axis through ``centre`` by its own angle (rad)."""
    offset = points - centre
    cosine, sine = np.cos(angle), np.sin(angle)
    moved = np.stack(
        [
            offset[:, 0],
            cosine * offset[:, 1] - sine * offset[:, 2],
            sine * offset[:, 1] + cosine * offset[:, 2],
        ],
        axis=1,
    )
    return moved + centre


@dataclasses.dataclass(frozen=True)
class ProceduralHead:
    """Mean head, topology and bases; ``build()`` makes it once per process.

    Attributes:
        canonical_mm: Mean neutral position of each vertex (mm); the coordinate in which albedo,
            hair and every other map is defined. Skin 0-3930, left eyeball 3931-4476, right
            eyeball 4477-5022.
        faces: Triangles, counter-clockwise from outside.
        mesh: Topology with mirror map, parts and rings.
        identity_mm: Displacement per sigma of each shape coefficient, vertices flattened.
        movement_mm: Displacement at full strength of each linear expression unit, flattened.
        jaw: Share of the jaw's rotation each vertex follows.
        joint_regressor: Rows reproduce the joints from neutral vertices.
        masks: Vertex ids by region name (FLAME's names and counts, and the inner surfaces).
        embeddings: The 68 landmarks.
    """

    mesh: topology.Mesh
    identity_mm: Float[np.ndarray, "k v3"]
    movement_mm: Float[np.ndarray, "u v3"]
    jaw: Float[np.ndarray, "v"]
    joint_regressor: Float[np.ndarray, "5 v"]
    masks: dict[str, Int[np.ndarray, "n"]]
    embeddings: Embeddings

    @staticmethod
    def build() -> "ProceduralHead":
        """The one head (cached)."""
        return _build()

    @property
    def canonical_mm(self) -> Float[np.ndarray, "v 3"]:
        """Mean neutral positions in canonical millimetres."""
        return self.mesh.vertices_mm

    @property
    def faces(self) -> Int[np.ndarray, "f 3"]:
        """Triangles (9,976)."""
        return self.mesh.faces

    def joints(self, vertices: Float[np.ndarray, "v 3"]) -> Float[np.ndarray, "5 3"]:
        """Joint positions of a neutral head, in the unit and frame of ``vertices``."""
        return self.joint_regressor @ vertices

    def landmarks(self, vertices: Float[np.ndarray, "v 3"]) -> Float[np.ndarray, "68 3"]:
        """All 68 landmarks (iBUG order, frontal contour), in the unit and frame of ``vertices``."""
        return evaluate(vertices, self.faces, self.embeddings.full_faces, self.embeddings.full_bary)

    def contour_landmarks(
        self, vertices: Float[np.ndarray, "v 3"], yaw_deg: float
    ) -> Float[np.ndarray, "17 3"]:
        """The contour as seen when the head is turned by ``yaw_deg`` about +y."""
        row = contour_row(yaw_deg)
        table = self.embeddings
        return evaluate(vertices, self.faces, table.dynamic_faces[row], table.dynamic_bary[row])

    def vertices(
        self,
        identity: Identity,
        expression: Expression | None = None,
        *,
        gaze_deg: tuple[float, float] = (0.0, 0.0),
        neck_deg: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> Float[np.ndarray, "v 3"]:
        """Vertices (5023, 3) in metres, FLAME frame.

        Args:
            identity: Who.
            expression: What the face does; None is neutral.
            gaze_deg: Eye rotation, up and toward the subject's left.
            neck_deg: Rotation of the head on the neck about x, y, z (axis-angle, degrees).
        """
        neutral = self.neutral_mm(identity)
        return to_flame(self.posed_mm(neutral, expression, gaze_deg=gaze_deg, neck_deg=neck_deg))

    def neutral_mm(self, identity: Identity) -> Float[np.ndarray, "v 3"]:
        """The neutral head in canonical millimetres; linear in ``identity.shape``."""
        shape = identity.shape.astype(np.float32)
        return self.canonical_mm + (shape @ self.identity_mm).reshape(-1, 3).astype(np.float64)

    def posed_mm(
        self,
        neutral: Float[np.ndarray, "v 3"],
        expression: Expression | None,
        *,
        gaze_deg: tuple[float, float] = (0.0, 0.0),
        neck_deg: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> Float[np.ndarray, "v 3"]:
        """Move a neutral head (mm): skin, lids, then jaw, eyes and neck about their joints."""
        points = neutral.copy()
        joints = self.joints(neutral)
        if expression is not None:
            weights = expression.weights[len(UNITS) - len(LINEAR_UNITS) :].astype(np.float32)
            if weights.any():
                points += (weights @ self.movement_mm).reshape(-1, 3)
                self._keep_lids_off_balls(points, neutral, joints)
            for side, joint in (("left", 3), ("right", 4)):
                close = expression.weight(f"blink_{side}") - 0.28 * expression.weight(
                    f"eye_wide_{side}"
                )
                if close != 0.0:
                    self._close_lid(points, joints[joint], side, close)
            angle = np.radians(JAW_OPEN_DEG) * expression.weight("jaw_open")
            if angle:
                points = rotate_about_x(points, joints[2], angle * self.jaw)
        if any(gaze_deg):
            up, left = np.radians(gaze_deg)
            turn = _rotation(np.array([-up, left, 0.0]))
            for joint, start in ((3, 3931), (4, 4477)):
                ball = slice(start, start + topology.EYEBALL_VERTICES)
                points[ball] = (points[ball] - joints[joint]) @ turn.T + joints[joint]
        if any(neck_deg):
            points = self._turn_neck(points, joints[1], np.radians(neck_deg))
        return points

    def teeth(
        self,
        identity: Identity,
        expression: Expression | None = None,
        *,
        neck_deg: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> OralMesh:
        """Teeth, gums and tongue that go with ``vertices`` (metres, FLAME frame).

        A mesh for pictures only: FLAME's composition has no teeth. The rows keep to the bag of
        the mouth behind each lip; the lower row and the tongue follow the jaw.
        """
        oral = build_oral()
        neutral = self.neutral_mm(identity)
        rings = self.mesh.patches["mouth"]
        columns = rings.shape[1]
        sine = np.sin(2.0 * np.pi * np.arange(columns) / columns)
        points = oral.vertices.copy()
        for lower in (False, True):
            ring = rings[8][sine < -0.3 if lower else sine > 0.3]
            rest, now = self.canonical_mm[ring], neutral[ring]
            width = np.ptp(now[:, 0]) / np.ptp(rest[:, 0])
            middle = rest.mean(axis=0)
            which = oral.lower == lower
            offset = points[which] - middle
            points[which] = offset * np.array([width, 1.0, 1.0]) + now.mean(axis=0)
        joints = self.joints(neutral)
        if expression is not None:
            shift = np.array(
                [
                    6.0 * expression.weight("jaw_lateral"),
                    0.0,
                    5.0 * expression.weight("jaw_forward"),
                ]
            )
            points[oral.lower] += shift
            angle = np.radians(JAW_OPEN_DEG) * expression.weight("jaw_open")
            points = rotate_about_x(points, joints[2], angle * oral.lower)
        if any(neck_deg):
            turn = _rotation(np.radians(neck_deg))
            points = (points - joints[1]) @ turn.T + joints[1]
        return dataclasses.replace(oral, vertices=to_flame(points))

    def neck_weight(self) -> Float[np.ndarray, "v"]:
        """How much each vertex follows the neck joint: 1 on the head, 0 at the neck's end."""
        p = self.canonical_mm
        return smoothstep(p[:, 1] + 0.25 * (p[:, 2] + 20.0), -178.0, -92.0)

    def _turn_neck(
        self,
        points: Float[np.ndarray, "v 3"],
        centre: Float[np.ndarray, "3"],
        turn: Float[np.ndarray, "3"],
    ) -> Float[np.ndarray, "v 3"]:
        offset = points - centre
        angle = np.linalg.norm(turn)
        axis = turn / angle
        each = angle * self.neck_weight()[:, None]
        along = (offset @ axis)[:, None] * axis
        moved = along + np.cos(each) * (offset - along) + np.sin(each) * np.cross(axis, offset)
        return moved + centre

    def _keep_lids_off_balls(
        self,
        points: Float[np.ndarray, "v 3"],
        neutral: Float[np.ndarray, "v 3"],
        joints: Float[np.ndarray, "5 3"],
    ) -> None:
        """Push lid vertices back out to their neutral distance from the eye's centre, in place."""
        for side, joint in (("left", 3), ("right", 4)):
            lid = self.mesh.patches[f"eye_{side}"][2 : _MARGIN_RING + 2]
            offset = points[lid] - joints[joint]
            wanted = np.linalg.norm(neutral[lid] - joints[joint], axis=-1)
            length = np.linalg.norm(offset, axis=-1)
            points[lid] = joints[joint] + offset * np.maximum(1.0, wanted / length)[..., None]

    def _close_lid(
        self,
        points: Float[np.ndarray, "v 3"],
        centre: Float[np.ndarray, "3"],
        side: str,
        close: float,
    ) -> None:
        """Rotate the lid rings of one eye about its transverse axis, in place.

        ``close`` 1 brings the margins together, negative values open wider.
        """
        rings = self.mesh.patches[f"eye_{side}"]
        count = rings.shape[1]
        column = np.arange(count)
        opposite = (-column) % count
        upper = np.sin(2.0 * np.pi * column / count) > 1e-9
        lid = points[rings]
        # near the corners the margin lies beside the ball: there the lid slides, not rotates
        depth = lid[_MARGIN_RING, :, 2] - centre[2]
        depth = 0.5 * (depth + depth[opposite])
        on_ball = smoothstep(depth, 1.5, 5.5)
        elevation = np.arctan2(
            lid[_MARGIN_RING, :, 1] - centre[1],
            np.maximum(lid[_MARGIN_RING, :, 2] - centre[2], 1.5),
        )
        gap = elevation - elevation[opposite]  # positive on the upper lid
        meet = elevation[opposite] + 0.10 * gap + 0.02
        turn = np.where(upper, meet - elevation, -0.10 * gap)
        drop = lid[_MARGIN_RING][opposite] - lid[_MARGIN_RING]
        slide = np.where(upper, 0.86, 0.07)[:, None] * drop
        corner = np.abs(np.sin(2.0 * np.pi * column / count)) < 1e-9
        turn[corner], slide[corner] = 0.0, 0.0
        for ring, share in enumerate(_LID_SHARE):
            rotated = rotate_about_x(lid[ring], centre, -close * share * turn)
            slid = lid[ring] + close * share * slide
            moved = slid + on_ball[:, None] * (rotated - slid)
            radial = moved - centre
            radial /= np.linalg.norm(radial, axis=1, keepdims=True)
            lift = 0.55 * max(close, 0.0) * share * np.where(upper, 1.0, 0.3) * on_ball
            points[rings[ring]] = moved + lift[:, None] * radial


# Share of the margin's travel by lid ring, from the orbit to the lid's inner edge.
_LID_SHARE = (0.0, 0.14, 0.46, 0.74, 0.92, 1.0, 1.0)
_MARGIN_RING = len(topology.EYE_FRACTIONS)


def _rotation(turn: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """Rotation matrix of an axis-angle vector (Rodrigues)."""
    angle = float(np.linalg.norm(turn))
    if angle == 0.0:
        return np.eye(3)
    x, y, z = turn / angle
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross


def _joint_regressor(mesh: topology.Mesh) -> Float[np.ndarray, "5 v"]:
    """Rows of non-negative weights whose sums are one and which reproduce the mean joints."""
    points = mesh.vertices_mm
    skin = np.arange(len(points)) < topology.SKIN_VERTICES
    rows = np.zeros((len(JOINTS), len(points)))
    targets = ((0, _ROOT_MM, 40.0), (1, _NECK_MM, 34.0), (2, _JAW_HINGE_MM, 16.0))
    for row, target, reach in targets:
        # vertices of both sides about the joint's height and depth, moved onto it by a linear
        # correction of their weights (least norm, symmetric, so x vanishes)
        distance = np.hypot(points[:, 1] - target[1], points[:, 2] - target[2])
        weight = np.exp(-0.5 * (distance / reach) ** 2) * skin * (mesh.part == 0)
        weight[distance > 2.2 * reach] = 0.0
        basis = np.stack([np.ones(len(points)), points[:, 1], points[:, 2]])
        gram = (basis * weight) @ basis.T
        rows[row] = weight * (np.linalg.solve(gram, [1.0, target[1], target[2]]) @ basis)
    for row, start in ((3, 3931), (4, 4477)):
        ball = slice(start, start + topology.EYEBALL_VERTICES)
        centre = _EYE_CENTRES[row - 3]
        basis = np.concatenate([np.ones((1, topology.EYEBALL_VERTICES)), points[ball].T])
        rows[row, ball] = np.linalg.lstsq(basis, np.append(1.0, centre), rcond=None)[0]
    return rows


_EYE_CENTRES = (np.array([31.2, 0.0, 70.5]), np.array([-31.2, 0.0, 70.5]))


@functools.cache
def _build() -> ProceduralHead:
    mesh = topology.build_mesh(build_cage())
    points = mesh.vertices_mm
    basis = identity_basis(points)
    movement = movement_basis(points)
    for start, centre in ((3931, 0), (4477, 1)):
        ball = slice(start, start + topology.EYEBALL_VERTICES)
        # the eyeballs are rigid: they take the translation of their socket
        front = identity_basis(_EYE_CENTRES[centre][None] + np.array([[0.0, 0.0, 9.5]]))
        basis[:, ball] = front
        movement[:, ball] = 0.0
    jaw = jaw_weight(Place(points))
    jaw[topology.SKIN_VERTICES :] = 0.0
    jaw[mesh.part == topology.PARTS.index("ear")] = 0.0
    jaw[mesh.part == topology.PARTS.index("eye")] = 0.0
    return ProceduralHead(
        mesh=mesh,
        identity_mm=basis.reshape(len(basis), -1).astype(np.float32),
        movement_mm=movement.reshape(len(movement), -1).astype(np.float32),
        jaw=jaw,
        joint_regressor=_joint_regressor(mesh),
        masks=build_regions(mesh),
        embeddings=build_embeddings(mesh),
    )
