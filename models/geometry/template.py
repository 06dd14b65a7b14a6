"""What registration knows about a FLAME model before it sees a scan."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse
from scipy.sparse.linalg import splu

from models.face.flame import FlameArrays
from models.geometry.mesh import (
    ambient_openness,
    connected_components,
    cotangent_laplacian,
    vertex_areas,
    vertex_normals,
)
from models.geometry.nearest import ClosestPointIndex

OPENNESS_LIMIT = 0.35
OPENNESS_RAYS = 48
OPENNESS_REACH_MM = 120.0
LID_REACH = 1.25
LOW_DATA_WEIGHT = 0.3
NECK, JAW = 1, 2
MOUTH = slice(31, 51)
"""The mouth among the 51 inner landmarks."""
UNDER_NOSE = 16
"""The middle of the nostrils' line among them."""
LOWER_FACE_DEPTH_MM = 45.0
LIP_REACH_MM = 6.0
LIP_DEPTH_MM = 12.0
LIP_OVERLAP_MM = 0.5
LIP_OPPOSED = -0.3
"""Largest cosine between the normals of two lip vertices that lie against each other."""


@dataclass(frozen=True)
class RegistrationModel:
    """A FLAME model prepared for registration; every length is in millimetres.

    Attributes:
        arrays: The model itself (metres).
        landmark_faces: (L,) triangles of the landmarks.
        landmark_bary: (L, 3) their barycentric weights.
        template: (V, 3) mean head.
        basis: (V, 3, S + E) identity then expression directions.
        joint_basis: (J, 3, S + E) motion of the joints with the coefficients.
        posedirs: (V, 3, P) pose correctives.
        normals: (V, 3) of the mean head.
        areas: (V,) of the mean head.
        skin: (V,) everything but the eyeballs.
        exposed: (V,) skin that a scanner sees: not inside lips, nostrils or sockets.
        face: (V,) the region in which residuals are reported.
        lower_face: (V,) what ``exposed`` and ``face`` have in front and below the nose, which an
            open mouth moves; nothing where the landmarks are not the 51.
        scalp: (V,) skin that hair covers.
        weight: (V,) data weight of each vertex, scalp counted as 1.
        eyeballs: Vertex ids of each eyeball and of the lid vertices that it follows.
        lips: (P, 2) vertices of the skin, numbered within ``skin_ids``, of the upper and the lower
            lip that lie against each other while the mouth is closed.
        lip_rest: (P,) how far apart they are in the mean head, along the upper one's normal.
        skin_ids: (N,) ids of the skin vertices, in an order in which a factor of the bi-Laplacian
            fills little.
        skin_faces: (M, 3) triangles of the skin, numbered within ``skin_ids``.
        skin_face_ids: (M,) their numbers in the model.
        bilaplacian: (N, N) integral of the squared Laplacian of a displacement of the skin.
        mass: (N,) areas of the skin vertices.
        skin_index: Search tree of the mean skin; it is refitted as the skin moves.
        head_index: The same of the whole head.
    """

    arrays: FlameArrays
    landmark_faces: Int[np.ndarray, " l"]
    landmark_bary: Float[np.ndarray, "l 3"]
    template: Float[np.ndarray, "V 3"]
    basis: Float[np.ndarray, "V 3 K"]
    joint_basis: Float[np.ndarray, "J 3 K"]
    posedirs: Float[np.ndarray, "V 3 P"]
    normals: Float[np.ndarray, "V 3"]
    areas: Float[np.ndarray, " V"]
    skin: Bool[np.ndarray, " V"]
    exposed: Bool[np.ndarray, " V"]
    face: Bool[np.ndarray, " V"]
    lower_face: Bool[np.ndarray, " V"]
    scalp: Bool[np.ndarray, " V"]
    weight: Float[np.ndarray, " V"]
    eyeballs: tuple[tuple[np.ndarray, np.ndarray], ...]
    lips: Int[np.ndarray, "p 2"]
    lip_rest: Float[np.ndarray, " p"]
    skin_ids: Int[np.ndarray, " N"]
    skin_faces: Int[np.ndarray, "M 3"]
    skin_face_ids: Int[np.ndarray, " M"]
    bilaplacian: sparse.csc_array
    mass: Float[np.ndarray, " N"]
    skin_index: ClosestPointIndex
    head_index: ClosestPointIndex

    @property
    def identity_modes(self) -> int:
        """Number of identity coefficients; the rest of the basis is expression."""
        return int(self.arrays.shapedirs.shape[-1])

    @property
    def landmarks(self) -> Float[np.ndarray, "l 3"]:
        """The landmarks on the mean head, mm."""
        corners = self.template[np.asarray(self.arrays.faces)[self.landmark_faces]]
        return np.asarray(np.einsum("lk,lka->la", self.landmark_bary, corners))

    @classmethod
    def build(
        cls,
        arrays: FlameArrays,
        landmark_faces: Int[np.ndarray, " l"],
        landmark_bary: Float[np.ndarray, "l 3"],
        masks: Mapping[str, Int[np.ndarray, " n"]] | None = None,
    ) -> "RegistrationModel":
        """Prepare a model; takes well under a second and is done once per process.

        Args:
            arrays: The model.
            landmark_faces: Triangles of the landmarks that the scans come with. Editions of this
                embedding differ by up to 13 mm on brows and nose ridge: take the edition that the
                landmarks were made with.
            landmark_bary: Their barycentric weights.
            masks: FLAME's vertex masks; ``face`` and ``scalp`` are used where present. Without
                them both regions are drawn from the landmarks.

        Raises:
            ValueError: A landmark's triangle does not exist.
        """
        faces = np.asarray(arrays.faces, dtype=np.int64)
        landmark_faces = np.asarray(landmark_faces, dtype=np.int64)
        if landmark_faces.min() < 0 or landmark_faces.max() >= len(faces):
            raise ValueError(
                f"landmark embedding: expected triangle numbers below {len(faces)}, got "
                f"{int(landmark_faces.min())} to {int(landmark_faces.max())}; it belongs to "
                "another topology"
            )
        template = 1e3 * np.asarray(arrays.v_template, dtype=np.float64)
        directions = np.concatenate([arrays.shapedirs, arrays.exprdirs], axis=-1)
        basis = np.ascontiguousarray(1e3 * directions.astype(np.float64))
        skin, eyes = _parts(len(template), faces)
        openness = ambient_openness(template, faces, OPENNESS_RAYS, OPENNESS_REACH_MM)
        exposed = skin & (openness >= OPENNESS_LIMIT)
        marks = np.einsum("lk,lka->la", landmark_bary, template[faces[landmark_faces]])
        normals = vertex_normals(template, faces)
        face, scalp = _regions(template, normals, skin, marks, masks or {})
        areas = vertex_areas(template, faces)
        skin_ids = np.flatnonzero(skin)
        renumber = np.full(len(template), -1)
        renumber[skin_ids] = np.arange(len(skin_ids))
        of_skin = np.flatnonzero(skin[faces].all(axis=1))
        skin_faces = renumber[faces[of_skin]]
        mass = np.maximum(vertex_areas(template[skin_ids], skin_faces), 1e-6)
        laplacian = cotangent_laplacian(template[skin_ids], skin_faces)
        bilaplacian = (laplacian.T @ sparse.diags_array(1.0 / mass) @ laplacian).tocsc()
        # Number the skin so that the smooth system is factored as it stands.
        order = _elimination_order(bilaplacian, mass)
        skin_ids, mass = skin_ids[order], mass[order]
        skin_faces = np.argsort(order)[skin_faces]
        bilaplacian = bilaplacian[order][:, order].tocsc()
        bilaplacian.sort_indices()
        lips = _facing_lips(template, normals, skin, marks)
        across = template[lips[:, 1]] - template[lips[:, 0]]
        renumber[skin_ids] = np.arange(len(skin_ids))
        return cls(
            arrays=arrays,
            landmark_faces=landmark_faces,
            landmark_bary=np.asarray(landmark_bary, dtype=np.float64),
            template=template,
            basis=basis,
            joint_basis=np.einsum("jv,vak->jak", arrays.joint_regressor, basis),
            posedirs=1e3 * arrays.posedirs.astype(np.float64),
            normals=normals,
            areas=areas,
            skin=skin,
            exposed=exposed,
            face=face,
            lower_face=_lower_face(template, face & exposed, marks),
            scalp=scalp,
            weight=np.where(face | scalp, 1.0, LOW_DATA_WEIGHT) * exposed,
            eyeballs=tuple((ball, _lids(template, skin_ids, ball)) for ball in eyes),
            lips=renumber[lips],
            lip_rest=np.einsum("pa,pa->p", across, normals[lips[:, 0]]),
            skin_ids=skin_ids,
            skin_faces=skin_faces,
            skin_face_ids=of_skin,
            bilaplacian=bilaplacian,
            mass=mass,
            skin_index=ClosestPointIndex(template[skin_ids], skin_faces),
            head_index=ClosestPointIndex(template, faces),
        )


def _elimination_order(
    bilaplacian: sparse.csc_array, mass: Float[np.ndarray, " N"]
) -> Int[np.ndarray, " N"]:
    """Minimum degree order of the smooth system, found once because its pattern never changes."""
    factor = splu(
        (bilaplacian + sparse.diags_array(mass)).tocsc(),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    return np.argsort(factor.perm_c)


def _parts(
    count: int, faces: Int[np.ndarray, "f 3"]
) -> tuple[Bool[np.ndarray, " V"], list[Int[np.ndarray, " n"]]]:
    """The skin (the largest connected part) and the other closed parts, the eyeballs."""
    parts, label = connected_components(count, faces)
    sizes = np.bincount(label, minlength=parts)
    largest = int(np.argmax(sizes))
    others = [np.flatnonzero(label == p) for p in range(parts) if p != largest and sizes[p] > 3]
    return label == largest, others


def _lids(
    template: Float[np.ndarray, "V 3"],
    skin_ids: Int[np.ndarray, " N"],
    ball: Int[np.ndarray, " n"],
) -> Int[np.ndarray, " m"]:
    """Skin vertices just outside an eyeball's sphere."""
    centre = template[ball].mean(axis=0)
    radius = float(np.linalg.norm(template[ball] - centre, axis=1).max())
    reach = np.linalg.norm(template[skin_ids] - centre, axis=1)
    near = skin_ids[reach < LID_REACH * radius]
    return near if len(near) else skin_ids[np.argsort(reach, kind="stable")[:8]]


def _facing_lips(
    template: Float[np.ndarray, "V 3"],
    normals: Float[np.ndarray, "V 3"],
    skin: Bool[np.ndarray, " V"],
    marks: Float[np.ndarray, "l 3"],
) -> Int[np.ndarray, "p 2"]:
    """Each vertex under the upper lip with the nearest of the lower lip that it faces.

    None where the landmarks are not the 51, or where the model's mouth has no inside.
    """
    none = np.zeros((0, 2), dtype=np.int64)
    if len(marks) != MOUTH.stop:
        return none
    low, high = marks[MOUTH].min(axis=0), marks[MOUTH].max(axis=0)
    inside = (template > low - [0, 0, LIP_DEPTH_MM]) & (template < high)
    near = np.flatnonzero(skin & inside.all(axis=1))
    upper = near[normals[near, 1] < LIP_OPPOSED]
    gap = template[near] - template[upper][:, None]
    distance = np.linalg.norm(gap, axis=2)
    faced = normals[upper] @ normals[near].T < LIP_OPPOSED
    faced &= np.einsum("una,ua->un", gap, normals[upper]) > -LIP_OVERLAP_MM
    faced &= distance < LIP_REACH_MM
    distance[~faced] = np.inf
    found = np.flatnonzero(faced.any(axis=1))
    if len(found) == 0:
        return none
    return np.stack([upper[found], near[np.argmin(distance[found], axis=1)]], axis=1)


def _lower_face(
    template: Float[np.ndarray, "V 3"],
    face: Bool[np.ndarray, " V"],
    marks: Float[np.ndarray, "l 3"],
) -> Bool[np.ndarray, " V"]:
    """The part of the face below the nose, back to where the cheeks turn away."""
    if len(marks) != MOUTH.stop:
        return np.zeros(len(template), dtype=bool)
    back = marks[MOUTH, 2].min() - LOWER_FACE_DEPTH_MM
    return face & (template[:, 1] < marks[UNDER_NOSE, 1]) & (template[:, 2] > back)


def _regions(
    template: Float[np.ndarray, "V 3"],
    normals: Float[np.ndarray, "V 3"],
    skin: Bool[np.ndarray, " V"],
    marks: Float[np.ndarray, "l 3"],
    masks: Mapping[str, Int[np.ndarray, " n"]],
) -> tuple[Bool[np.ndarray, " V"], Bool[np.ndarray, " V"]]:
    """Face and scalp, from the model's masks or drawn around the landmarks.

    The drawn face is a forward-facing oval that reaches from the hairline to the chin and, at the
    sides, a third of the landmarks' extent beyond them; seven eighths of its area and of the
    area of FLAME's own mask are common.
    """
    low, high = marks.min(axis=0), marks.max(axis=0)
    centre, half = (low + high) / 2, (high - low) / 2
    x, y, z = (template - centre).T
    if "face" in masks:
        face = np.zeros(len(template), dtype=bool)
        face[masks["face"]] = True
        face &= skin
    else:
        up = np.where(y > 0, y / (2.0 * half[1]), y / (1.9 * half[1]))
        oval = np.abs(x / (1.35 * half[0])) ** 3 + np.abs(up) ** 3 < 1
        face = skin & oval & (z > -half[2] - 40) & (normals[:, 2] > -0.2)
    if "scalp" in masks:
        scalp = np.zeros(len(template), dtype=bool)
        scalp[masks["scalp"]] = True
    else:
        scalp = np.zeros(len(template), dtype=bool)
    # The mask named scalp ends well above the nape; hair does not.
    scalp |= skin & ~face & ((y > 1.5 * half[1]) | ((y > -half[1]) & (z < -half[2] - 75)))
    return face, scalp & skin & ~face
