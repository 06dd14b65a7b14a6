"""300W-LP and AFLW2000-3D file contents and their projection convention.

Coefficients give micrometre vertices V; the picture position is
``P = s R V + t`` with ``R = Rx(pitch) Ry(yaw) Rz(roll)`` in the transposed-sign convention
(Zhu et al., 3DDFA), y up, 1-based MATLAB pixels: the image row is ``H + 1 - P_y``.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from stages.corpus.files import mat_bytes

Variables = dict[str, np.ndarray]  # MATLAB variables by name
SIZE_PX = 450
# Right to left exchange of the iBUG-68 order.
MIRROR_68 = np.concatenate(
    [
        np.r_[16:-1:-1, 26:16:-1, 27:31, 35:30:-1],
        [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40],
        np.r_[54:47:-1, 59:54:-1, 64:59:-1, 67:64:-1],
    ]
)
AFLW_21 = np.array(
    [17, 19, 21, 22, 24, 26, 36, 37, 39, 42, 44, 45, 0, 31, 30, 35, 16, 48, 62, 54, 8]
)  # iBUG stand-ins for AFLW's own 21 points


@dataclass(frozen=True, slots=True)
class Pose:
    """``Pose_Para``: radians, pixels, pixels per micrometre."""

    pitch: float
    yaw: float
    roll: float
    x_px: float
    y_px: float
    z_px: float
    scale: float

    def row(self) -> Float[np.ndarray, "1 7"]:
        """Return the (1, 7) float32 row of the file."""
        values = [self.pitch, self.yaw, self.roll, self.x_px, self.y_px, self.z_px, self.scale]
        return np.array([values], dtype=np.float32)

    def mirrored(self, width_px: int) -> "Pose":
        """Return the pose of the horizontally flipped picture."""
        return Pose(
            self.pitch, -self.yaw, -self.roll, width_px + 1 - self.x_px, self.y_px, self.z_px,
            self.scale,
        )  # fmt: skip

    def rounded(self) -> "Pose":
        """Return the pose as float32 stores it, which is what a reader gets."""
        return Pose(*(float(value) for value in self.row()[0]))


def rotation(pitch: float, yaw: float, roll: float) -> Float[np.ndarray, "3 3"]:
    """Return R = Rx Ry Rz with the data set's signs."""
    (cx, cy, cz), (sx, sy, sz) = np.cos([pitch, yaw, roll]), np.sin([pitch, yaw, roll])
    Rx = np.array([[1.0, 0.0, 0.0], [0.0, cx, sx], [0.0, -sx, cx]])
    Ry = np.array([[cy, 0.0, -sy], [0.0, 1.0, 0.0], [sy, 0.0, cy]])
    Rz = np.array([[cz, sz, 0.0], [-sz, cz, 0.0], [0.0, 0.0, 1.0]])
    return np.asarray(Rx @ Ry @ Rz)


def project(vertices: Float[np.ndarray, "n 3"], pose: Pose) -> Float[np.ndarray, "n 3"]:
    """Return P = s R V + t: x, y up, z toward the viewer, 1-based pixels."""
    R = rotation(pose.pitch, pose.yaw, pose.roll)
    return pose.scale * vertices @ R.T + np.array([pose.x_px, pose.y_px, pose.z_px])


def matlab_points(projected: Float[np.ndarray, "n 3"], height_px: int) -> Float[np.ndarray, "n 2"]:
    """Return 1-based MATLAB picture positions, y down."""
    return np.stack([projected[:, 0], height_px + 1 - projected[:, 1]], axis=1)


def mirrored_points(points: Float[np.ndarray, "68 2"], width_px: int) -> Float[np.ndarray, "68 2"]:
    """Return 1-based points of the flipped picture, in iBUG order again."""
    flipped = points[MIRROR_68].copy()
    flipped[:, 0] = width_px + 1 - flipped[:, 0]
    return flipped


def appearance_fields(rng: np.random.Generator) -> Variables:
    """Draw the texture, light and colour fields, which readers rarely use but expect."""
    sigma = 9000.0 * 0.97 ** np.arange(199)
    light = np.concatenate(
        [
            rng.uniform(0.5, 0.95, 3),
            rng.uniform(0.5, 1.1, 3),
            rng.uniform(-0.5, 0.5, 1),
            rng.uniform(-2.0, 2.0, 1),
            [0.0, 20.0],
        ]
    )
    color = np.concatenate([rng.uniform(0.6, 1.3, 3), rng.uniform(-0.4, 0.0, 3), [1.0]])
    return {
        "Illum_Para": light[None],
        "Color_Para": color[None].astype(np.float32),
        "Tex_Para": (sigma * rng.standard_normal(199))[:, None],
    }


def sample_mat(
    shape: Float[np.ndarray, "199"],
    expression: Float[np.ndarray, "29"],
    pose: Pose | None,
    points: Float[np.ndarray, "68 2"],
    roi: Int[np.ndarray, "4"],
    appearance: Variables,
) -> bytes:
    """Return the ``.mat`` beside an image; without a pose the file is deliberately broken."""
    variables: Variables = {
        "pt2d": points.T.astype(np.float64),
        "roi": roi[None].astype(np.int16),
        **appearance,
        "Shape_Para": shape[:, None].astype(np.float64),
        "Exp_Para": expression[:, None].astype(np.float64),
    }
    if pose is not None:
        variables["Pose_Para"] = pose.row()
    return mat_bytes(variables, compress=True)


def points_mat(visible: Float[np.ndarray, "68 2"], solid: Float[np.ndarray, "68 2"]) -> bytes:
    """Return ``landmarks/<set>/<name>_pts.mat``; ``pts_3d`` is only the xy projection."""
    variables = {"pts_2d": visible.astype(np.float64), "pts_3d": solid.astype(np.float64)}
    return mat_bytes(variables, compress=True)


def aflw_mat(
    shape: Float[np.ndarray, "199"],
    expression: Float[np.ndarray, "29"],
    pose: Pose,
    solid: Float[np.ndarray, "68 3"],
    visible: Float[np.ndarray, "21 2"],
    roi: Int[np.ndarray, "4"],
    appearance: Variables,
) -> bytes:
    """Return an AFLW2000 ``.mat``.

    A face without expression has ``Exp_Para`` as uint8 zeros: MATLAB stores integral doubles
    in the smallest type when it writes some files.

    Args:
        shape: Coefficients.
        expression: Coefficients, possibly all zero.
        pose: Pose.
        solid: 3D landmarks: x, y down (1-based), z.
        visible: 21 points, -1 where hidden.
        roi: Box in the source photograph.
        appearance: See ``appearance_fields``.
    """
    coefficients = expression[:, None].astype(np.float64)
    if not coefficients.any():
        coefficients = coefficients.astype(np.uint8)
    return mat_bytes(
        {
            "pt2d": visible.T.astype(np.float64),
            **appearance,
            "Shape_Para": shape[:, None].astype(np.float64),
            "Exp_Para": coefficients,
            "Pose_Para": pose.row(),
            "roi": roi[None].astype(np.int16),
            "pt3d_68": solid.T.astype(np.float32),
        },
        compress=True,
    )
