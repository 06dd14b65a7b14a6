"""FLAME: a linear head model posed by blend skinning (Li et al., SIGGRAPH Asia 2017).

``pose_vertices`` works on numpy arrays; the same function as a torch layer is
:class:`models.face.flame_layer.Flame`, apart so that stages which only need the arrays do not wait
for torch.

Symbols are the field's: ``beta`` identity, ``psi`` expression, ``theta`` five axis-angle rotations
in the order global, neck, jaw, left eye, right eye (radians). Vertices are metres, +x the subject's
left, +y up, +z toward the viewer. Joints are regressed from the shaped template, expression
included, as every public implementation does.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

__all__ = [
    "FlameArrays",
    "LandmarkEmbedding",
    "axis_angle_to_matrix",
    "contour_row",
    "head_yaw_deg",
    "pose_vertices",
    "shape_vertices",
    "surface_points",
]

CONTOUR_ROWS = 79
CONTOUR_LIMIT_DEG = 39
NOW_SEVEN_IN_STATIC_51 = (19, 22, 25, 28, 16, 31, 37)
"""The NoW seven (36, 39, 42, 45, 33, 48, 54 of 68) as rows of the 51 static landmarks."""


@dataclass(frozen=True)
class FlameArrays:
    """The model's arrays, whatever their source.

    Attributes:
        v_template: Mean head, metres.
        faces: Vertex ids, counter-clockwise seen from outside.
        shapedirs: Metres per unit of ``beta`` (one standard deviation).
        exprdirs: Metres per unit of ``psi``.
        posedirs: Metres per entry of (R - I) of the four non-root joints, row-major.
        joint_regressor: Rows sum to one; joints = joint_regressor @ shaped vertices.
        weights: Skinning weights, rows sum to one.
        parents: Joint parents, -1 for the root.
    """

    v_template: Float[np.ndarray, "V 3"]
    faces: Int[np.ndarray, "F 3"]
    shapedirs: Float[np.ndarray, "V 3 S"]
    exprdirs: Float[np.ndarray, "V 3 E"]
    posedirs: Float[np.ndarray, "V 3 P"]
    joint_regressor: Float[np.ndarray, "J V"]
    weights: Float[np.ndarray, "V J"]
    parents: Int[np.ndarray, "J"]

    def __post_init__(self) -> None:
        """Check that the arrays describe one model.

        Raises:
            ValueError: An array's shape contradicts the template's or the joints'.
        """
        V, J = len(self.v_template), len(self.parents)
        expected = {
            "v_template": (V, 3),
            "shapedirs": (V, 3, self.shapedirs.shape[-1]),
            "exprdirs": (V, 3, self.exprdirs.shape[-1]),
            "posedirs": (V, 3, 9 * (J - 1)),
            "joint_regressor": (J, V),
            "weights": (V, J),
        }
        for name, shape in expected.items():
            got = getattr(self, name).shape
            if got != shape:
                raise ValueError(
                    f"FLAME array {name}: expected shape {shape} for {V} vertices and {J} joints, "
                    f"got {got}; check that all arrays come from the same model file"
                )
        if int(self.parents[0]) != -1 or any(p >= j for j, p in enumerate(self.parents)):
            raise ValueError(
                f"FLAME parents: expected the root (-1) first and every parent before its child, "
                f"got {self.parents.tolist()}"
            )

    @classmethod
    def load(cls, path: Path | str) -> "FlameArrays":
        """Read a converted model.

        Args:
            path: ``model.safetensors``, or the folder that holds it.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: A key is missing or a shape is wrong.
        """
        from safetensors.numpy import load_file

        path = Path(path)
        file = path / "model.safetensors" if path.is_dir() else path
        if not file.is_file():
            raise FileNotFoundError(
                f"FLAME model: expected {file}; run the stage convert@flame to make it"
            )
        tensors = load_file(file)
        keys = {
            "v_template": "v_template",
            "faces": "faces",
            "shapedirs": "shapedirs",
            "exprdirs": "exprdirs",
            "posedirs": "posedirs",
            "joint_regressor": "J_regressor",
            "weights": "weights",
            "parents": "parents",
        }
        missing = sorted(set(keys.values()) - set(tensors))
        if missing:
            raise ValueError(f"FLAME model {file}: keys {missing} are missing; convert it again")
        return cls(**{field: tensors[key] for field, key in keys.items()})


def axis_angle_to_matrix(
    axis_angle: Float[np.ndarray, "*batch 3"],
) -> Float[np.ndarray, "*batch 3 3"]:
    """Rotation matrices of axis-angle vectors in radians (Rodrigues' formula), exact at zero."""
    v = np.asarray(axis_angle)
    squared = np.sum(v * v, axis=-1)[..., None, None]
    small = squared < 1e-8
    safe = np.where(small, 1.0, squared)
    angle = np.sqrt(safe)
    sine = np.where(small, 1.0 - squared / 6.0, np.sin(angle) / angle)
    cosine = np.where(small, 0.5 - squared / 24.0, (1.0 - np.cos(angle)) / safe)
    x, y, z = v[..., 0], v[..., 1], v[..., 2]
    o = np.zeros_like(x)
    K = np.stack([o, -z, y, z, o, -x, -y, x, o], axis=-1).reshape(*v.shape[:-1], 3, 3)
    return (np.eye(3, dtype=v.dtype) + sine * K + cosine * (K @ K)).astype(v.dtype)


def shape_vertices(
    arrays: FlameArrays,
    beta: Float[np.ndarray, "s"],
    psi: Float[np.ndarray, "e"] | None = None,
) -> Float[np.ndarray, "V 3"]:
    """The head in its rest pose: template plus identity and expression offsets, metres.

    Args:
        arrays: The model.
        beta: Identity; may be shorter than the basis, the rest counts as zero.
        psi: Expression, likewise; None means neutral.
    """
    shaped = arrays.v_template + arrays.shapedirs[..., : len(beta)] @ beta
    if psi is not None:
        shaped = shaped + arrays.exprdirs[..., : len(psi)] @ psi
    return shaped


def pose_vertices(
    arrays: FlameArrays,
    beta: Float[np.ndarray, "s"],
    psi: Float[np.ndarray, "e"],
    theta: Float[np.ndarray, "t"],
) -> Float[np.ndarray, "V 3"]:
    """FLAME on numpy arrays: vertices in metres for one set of parameters.

    Args:
        arrays: The model.
        beta: Identity, at most S values.
        psi: Expression, at most E values.
        theta: 15 axis-angle values in radians: global, neck, jaw, left eye, right eye.

    Raises:
        ValueError: ``theta`` does not hold three values per joint.
    """
    J = len(arrays.parents)
    if theta.shape != (3 * J,):
        raise ValueError(
            f"pose_vertices needs theta of {3 * J} values ({J} joints x 3), got {theta.shape}"
        )
    shaped = shape_vertices(arrays, beta, psi)
    joints = arrays.joint_regressor @ shaped
    R = axis_angle_to_matrix(theta.reshape(J, 3))
    posed = shaped + arrays.posedirs @ (R[1:] - np.eye(3)).reshape(-1)

    world_R: list[np.ndarray] = []
    world_t: list[np.ndarray] = []
    for j, parent in enumerate(arrays.parents.tolist()):
        if parent < 0:
            world_R.append(R[j])
            world_t.append(joints[j])
        else:
            offset = joints[j] - joints[parent]
            world_R.append(world_R[parent] @ R[j])
            world_t.append(world_R[parent] @ offset + world_t[parent])
    A = np.stack(world_R)
    b = np.stack([t - W @ joint for W, t, joint in zip(world_R, world_t, joints, strict=True)])
    blended_R = np.einsum("vj,jab->vab", arrays.weights, A)
    return np.einsum("vab,vb->va", blended_R, posed) + arrays.weights @ b


def surface_points(
    vertices: Float[np.ndarray, "V 3"],
    faces: Int[np.ndarray, "F 3"],
    face_ids: Int[np.ndarray, "n"],
    bary: Float[np.ndarray, "n 3"],
) -> Float[np.ndarray, "n 3"]:
    """Points given by a triangle and barycentric weights, in the frame of ``vertices``."""
    return np.einsum("nk,nkc->nc", bary, vertices[faces[face_ids]])


def contour_row(yaw_deg: float) -> int:
    """Row of the 79-row dynamic contour table for a head turned by ``yaw_deg`` about +y.

    Rows 0..39 are 0..39 degrees, rows 40..78 are -1..-39 degrees; the angle is rounded and
    clamped. The sign is right for upright heads (+y up); implementations that work with heads
    turned upside down negate it.
    """
    a = round(float(np.clip(yaw_deg, -CONTOUR_LIMIT_DEG, CONTOUR_LIMIT_DEG)))
    return a if a >= 0 else CONTOUR_LIMIT_DEG - a


def head_yaw_deg(theta: Float[np.ndarray, "t"]) -> float:
    """Yaw in degrees of the chain root-neck: the Euler angle about y of R = Rz Ry Rx."""
    root, neck = axis_angle_to_matrix(np.asarray(theta, dtype=np.float64)[:6].reshape(2, 3))
    R = root @ neck
    return float(np.degrees(np.arctan2(-R[2, 0], np.hypot(R[0, 0], R[1, 0]))))


@dataclass(frozen=True)
class LandmarkEmbedding:
    """iBUG landmarks on FLAME's surface: 51 fixed, 17 contour points that follow the yaw.

    Attributes:
        static_faces: Triangles of landmarks 17..67.
        static_bary: Their barycentric weights.
        dynamic_faces: Triangles of contour landmarks 0..16, one row per yaw.
        dynamic_bary: Their weights.
        full_faces: Triangles of all 68 with a fixed contour.
        full_bary: Their weights.
    """

    static_faces: Int[np.ndarray, "51"]
    static_bary: Float[np.ndarray, "51 3"]
    dynamic_faces: Int[np.ndarray, "79 17"]
    dynamic_bary: Float[np.ndarray, "79 17 3"]
    full_faces: Int[np.ndarray, "68"]
    full_bary: Float[np.ndarray, "68 3"]

    @classmethod
    def load(cls, path: Path | str) -> "LandmarkEmbedding":
        """Read a converted ``embeddings.npz``, or the folder that holds it.

        Raises:
            FileNotFoundError: There is no such file.
        """
        path = Path(path)
        file = path / "embeddings.npz" if path.is_dir() else path
        if not file.is_file():
            raise FileNotFoundError(
                f"FLAME landmark embedding: expected {file}; run the stage convert@flame"
            )
        with np.load(file) as arrays:
            return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})

    def static(
        self, vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]
    ) -> Float[np.ndarray, "51 3"]:
        """Landmarks 17..67 on ``vertices``."""
        return surface_points(vertices, faces, self.static_faces, self.static_bary)

    def contour(
        self, vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], yaw_deg: float
    ) -> Float[np.ndarray, "17 3"]:
        """Landmarks 0..16 as seen by a camera on +z with the head turned by ``yaw_deg``."""
        row = contour_row(yaw_deg)
        return surface_points(vertices, faces, self.dynamic_faces[row], self.dynamic_bary[row])

    def all68(
        self,
        vertices: Float[np.ndarray, "V 3"],
        faces: Int[np.ndarray, "F 3"],
        yaw_deg: float | None = None,
    ) -> Float[np.ndarray, "68 3"]:
        """All 68 in iBUG order: the contour of ``yaw_deg``, or the fixed one where it is None."""
        if yaw_deg is None:
            return surface_points(vertices, faces, self.full_faces, self.full_bary)
        return np.concatenate(
            [self.contour(vertices, faces, yaw_deg), self.static(vertices, faces)]
        )

    def now_seven(
        self, vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]
    ) -> Float[np.ndarray, "7 3"]:
        """NoW's seven: outer and inner eye corners, nose base, mouth corners."""
        return self.static(vertices, faces)[list(NOW_SEVEN_IN_STATIC_51)]
