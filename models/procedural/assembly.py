"""Puts a person together for the camera: skin, eyes, teeth, garment, occluders, hair."""

from typing import TYPE_CHECKING, NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float, Int

from models.procedural.appearance import Appearance
from models.procedural.body import build_body, collar_height
from models.procedural.hair import build_hair
from models.procedural.head import to_canonical
from models.procedural.mouth import LIP_PROFILE
from models.procedural.occluders import OccluderMesh
from models.procedural.scene import Camera, angles_of_rotation, rotation_from_angles
from models.procedural.shading import (
    CLOTH,
    EYE,
    PALETTE,
    SKIN,
    TEETH,
    Surface,
    smooth_normals,
)
from models.procedural.teeth import build_oral
from models.procedural.topology import EYE_FRACTIONS, PARTS
from models.procedural.warp import HeadWarp
from models.rendering.jit import kernel

if TYPE_CHECKING:
    from models.procedural.head import ProceduralHead

_BULGE = 0.75
_EYE_CENTRES_MM = np.array([[31.2, 0.0, 70.5], [-31.2, 0.0, 70.5]])


class _Topology(NamedTuple):
    """The drawn head: vertices, then one vertex per skin edge."""

    faces: Int[np.ndarray, "f 3"]
    materials: Int[np.ndarray, "f"]
    edges: Int[np.ndarray, "e 2"]
    canonical: Float[np.ndarray, "w 3"]
    inner: Float[np.ndarray, "w"]


_TOPOLOGIES: dict[int, tuple["ProceduralHead", _Topology]] = {}


def _topology(head: "ProceduralHead") -> _Topology:
    """Split every skin triangle in four; kept per head."""
    known = _TOPOLOGIES.get(id(head))
    if known is not None:
        return known[1]
    faces = np.asarray(head.faces)
    count = len(head.canonical_mm)
    part, ring = head.mesh.part, head.mesh.ring
    on_eye = (part[faces] == PARTS.index("eyeball")).all(axis=1)
    skin = faces[~on_eye]
    sides = np.sort(skin[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    edges, inverse = np.unique(sides, axis=0, return_inverse=True)
    middle = inverse.reshape(-1, 3) + count
    a, b, c = skin.T
    ab, bc, ca = middle.T
    corners = ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))
    fine = np.concatenate([np.stack(corner, 1) for corner in corners])
    canonical = np.concatenate([head.canonical_mm, head.canonical_mm[edges].mean(axis=1)])
    inner = (part == PARTS.index("mouth")) & (ring > 1 + len(LIP_PROFILE))
    inner |= (part == PARTS.index("nostril")) & (ring > 1)
    inner |= (part == PARTS.index("eye")) & (ring > len(EYE_FRACTIONS) + 1)
    depth = inner.astype(np.float64)
    made = _Topology(
        np.concatenate([fine, faces[on_eye]]).astype(np.int32),
        np.repeat([SKIN, EYE], [len(fine), int(on_eye.sum())]).astype(np.int32),
        edges,
        canonical,
        np.concatenate([depth, depth[edges].mean(axis=1)]),
    )
    _TOPOLOGIES[id(head)] = (head, made)
    return made


@kernel
@no_type_check
def _bulged_midpoints(
    vertices: np.ndarray, normals: np.ndarray, edges: np.ndarray, bulge: float, out: np.ndarray
) -> None:
    """Phong tessellation (Boubekeur & Alexa 2008): midpoints pulled to the tangent planes."""
    for e in range(edges.shape[0]):
        a = edges[e, 0]
        b = edges[e, 1]
        ta = 0.0
        tb = 0.0
        for k in range(3):
            half = 0.5 * (vertices[b, k] - vertices[a, k])
            ta += half * normals[a, k]
            tb -= half * normals[b, k]
        for k in range(3):
            out[e, k] = 0.5 * (vertices[a, k] + vertices[b, k]) - 0.5 * bulge * (
                ta * normals[a, k] + tb * normals[b, k]
            )


def _tuck_neck(
    vertices: Float[np.ndarray, "v 3"], canonical_mm: Float[np.ndarray, "v 3"], neckline: int
) -> Float[np.ndarray, "v 3"]:
    """Draw the neck in below the collar, so that it stays under the garment."""
    low = np.flatnonzero(canonical_mm[:, 1] < -95.0)
    height = np.minimum(canonical_mm[low, 1], to_canonical(vertices[low])[:, 1])
    below = collar_height(canonical_mm[low], neckline) - 3.0 - height
    share = np.clip(below / 16.0, 0.0, 1.0)
    axis = vertices[canonical_mm[:, 1] < -135.0].mean(axis=0)
    ahead = canonical_mm[low, 2] + 20.0
    front = np.clip(ahead / (np.hypot(canonical_mm[low, 0], ahead) + 1e-9), 0.0, 1.0)
    pull = (0.15 + 0.33 * front) * share * share * (3.0 - 2.0 * share)
    tucked = vertices.copy()
    tucked[low] += pull[:, None] * ((axis - vertices[low]) * [1.0, 0.0, 1.0])
    return tucked


def head_surface(
    head: "ProceduralHead", vertices: Float[np.ndarray, "v 3"], camera: Camera, neckline: int
) -> Surface:
    """Skin down to the collar, and eyes."""
    topology = _topology(head)
    tucked = _tuck_neck(np.asarray(vertices, dtype=np.float64), head.canonical_mm, neckline)
    moved = camera.in_camera(tucked)
    coarse = smooth_normals(moved, np.asarray(head.faces))
    middle = np.empty((len(topology.edges), 3))
    _bulged_midpoints(moved, coarse, topology.edges, _BULGE, middle)
    positions = np.concatenate([moved, middle])
    extra = np.zeros((len(positions), 4))
    extra[:, 0] = topology.inner
    return Surface(
        positions,
        smooth_normals(positions, topology.faces),
        topology.canonical,
        extra,
        topology.faces,
        topology.materials,
    )


def _rigid(
    src: Float[np.ndarray, "n 3"], dst: Float[np.ndarray, "n 3"]
) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
    """Rotation and translation of least squares (Kabsch 1976)."""
    a, b = src.mean(axis=0), dst.mean(axis=0)
    u, _, vt = np.linalg.svd((dst - b).T @ (src - a))
    flip = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ flip @ vt
    return rotation, b - rotation @ a


def teeth_surface(
    head: "ProceduralHead",
    vertices: Float[np.ndarray, "v 3"],
    camera: Camera,
    placed: Float[np.ndarray, "n 3"] | None,
) -> Surface | None:
    """Teeth, gums and tongue; None behind closed lips.

    Args:
        head: The procedural head.
        vertices: Head-frame vertices, m.
        camera: Where from.
        placed: Head-frame vertices of the mouth's inside, or None to stand them rigidly in the
            upper and the lower half of the mouth's bag.
    """
    rings = head.mesh.patches["mouth"]
    edge = rings[1 + len(LIP_PROFILE)]
    side = head.mesh.lip[edge]
    gap = vertices[edge[side > 0], 1].mean() - vertices[edge[side < 0], 1].mean()
    if gap < 0.0008:
        return None
    oral = build_oral()
    if placed is None:
        deep = rings[-3:].ravel()
        lip = head.mesh.lip[deep]
        placed = np.empty_like(oral.vertices)
        for lower in (False, True):
            chosen = deep[lip < 0 if lower else lip > 0]
            rotation, shift = _rigid(head.canonical_mm[chosen] * 1e-3, vertices[chosen])
            which = oral.lower == lower
            placed[which] = oral.vertices[which] * 1e-3 @ rotation.T + shift
    positions = camera.in_camera(placed)
    depth = 82.0 - oral.vertices[:, 2]
    extra = np.zeros((len(positions), 4))
    extra[:, 0] = 0.10 + 0.85 * np.exp(-((np.maximum(depth, 0.0) / 9.0) ** 2))
    extra[:, 1] = oral.tissue
    return Surface(
        positions,
        smooth_normals(positions, oral.faces),
        oral.vertices,
        extra,
        oral.faces.astype(np.int32),
        np.full(len(oral.faces), TEETH, dtype=np.int32),
    )


def body_surface(appearance: Appearance, warp: HeadWarp, camera: Camera) -> Surface:
    """Shoulders follow about half of the head's turn, and less of its tilt."""
    points, faces, light = build_body(appearance.neckline)
    pivot = np.array([[0.0, -150.0, -22.0]])
    yaw, pitch, roll = angles_of_rotation(camera.rotation)
    relief = camera.rotation.T @ rotation_from_angles(0.6 * yaw, 0.5 * pitch, 0.45 * roll)
    base = warp(pivot)
    placed = base + (points - pivot) @ relief.T * 0.001
    positions = camera.in_camera(placed)
    extra = np.zeros((len(points), 4))
    extra[:, 0] = light
    return Surface(
        positions,
        smooth_normals(positions, faces),
        points,
        extra,
        faces,
        np.full(len(faces), CLOTH, dtype=np.int32),
    )


def occluder_surface(mesh: OccluderMesh, warp: HeadWarp, camera: Camera, first_row: int) -> Surface:
    """An occluder carried by the head; its palette starts at ``first_row``."""
    positions = camera.in_camera(warp(mesh.points, mesh.roots))
    return Surface(
        positions,
        smooth_normals(positions, mesh.faces),
        mesh.points,
        np.zeros((len(mesh.points), 4)),
        mesh.faces.astype(np.int32),
        (PALETTE + first_row + mesh.row).astype(np.int32),
    )


def hair_surface(
    head: "ProceduralHead",
    vertices: Float[np.ndarray, "v 3"],
    appearance: Appearance,
    warp: HeadWarp,
    camera: Camera,
    hides_above_mm: float | None,
) -> Surface | None:
    """The person's hair, less what lies higher than ``hides_above_mm``."""
    ear = head.mesh.part == PARTS.index("ear")
    expected = np.abs(warp(head.canonical_mm[ear])[:, 0])
    prominence = 1e3 * float((np.abs(vertices[ear, 0]) - expected).max())
    mesh = build_hair(appearance, ear_mm=7.0 + min(max(prominence, 0.0), 18.0))
    if mesh is None:
        return None
    placed = warp(mesh.points, mesh.roots)
    positions = camera.in_camera(placed)
    normals = smooth_normals(positions, mesh.faces)
    tips = camera.in_camera(placed + warp(mesh.points + 0.5 * mesh.flow) - warp(mesh.points))
    tangents = tips - positions
    tangents -= np.sum(tangents * normals, axis=1, keepdims=True) * normals
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True) + 1e-12
    coverage = mesh.coverage
    if hides_above_mm is not None:
        limit = np.clip((hides_above_mm - mesh.points[:, 1]) / 6.0, 0.0, 1.0)
        coverage = coverage * limit
    extra = np.concatenate([coverage[:, None], tangents], axis=1)
    faces = mesh.faces[(coverage > 0.03)[mesh.faces].any(axis=1)]
    return Surface(positions, normals, mesh.strand, extra, faces, np.zeros(len(faces), np.int32))


def gaze_matrices(
    vertices: Float[np.ndarray, "v 3"],
    warp: HeadWarp,
    camera: Camera,
    gaze_deg: tuple[float, float] | None,
) -> Float[np.ndarray, "2 3 3"]:
    """Rotations that take eyeball points to iris coordinates, left eye first."""
    out = np.empty((2, 3, 3))
    centres = warp(_EYE_CENTRES_MM)
    for side in range(2):
        if gaze_deg is None:
            if camera.orthographic:
                toward = camera.rotation.T @ np.array([0.0, 0.0, 1.0])
            else:
                toward = camera.rotation.T @ (-camera.translation) - centres[side]
            yaw = np.degrees(np.arctan2(toward[0], toward[2]))
            pitch = -np.degrees(np.arctan2(toward[1], np.hypot(toward[0], toward[2])))
            yaw = float(np.clip(yaw, -20.0, 20.0))
            pitch = float(np.clip(pitch, -10.0, 12.0))
        else:
            yaw, pitch = gaze_deg
        out[side] = (rotation_from_angles(yaw, 0, 0) @ rotation_from_angles(0, pitch, 0)).T
    return out
