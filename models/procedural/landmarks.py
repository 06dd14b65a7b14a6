"""The 68 landmarks (iBUG order) as points of triangles, with a contour that follows the view."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from models.procedural import topology
from models.procedural.topology import PARTS, Mesh

MAX_YAW_DEG = 39
_RAYS = 181
# Where the contour starts beside the ear, and the middle it is traced about (mm).
_CONTOUR_TOP_MM = -6.0
_CONTOUR_CENTRE_MM = np.array([0.0, -25.0])


@dataclasses.dataclass(frozen=True, slots=True)
class Embeddings:
    """Landmarks as triangle ids and barycentric weights.

    Attributes:
        static_faces, static_bary: The 51 inner landmarks (iBUG 17 to 67).
        dynamic_faces, dynamic_bary: 17 contour points per yaw: row a for 0..39 degrees about
            +y, row 39 - a for a = -1..-39.
        full_faces, full_bary: All 68, the contour as seen from the front.
    """

    static_faces: Int[np.ndarray, "51"]
    static_bary: Float[np.ndarray, "51 3"]
    dynamic_faces: Int[np.ndarray, "79 17"]
    dynamic_bary: Float[np.ndarray, "79 17 3"]
    full_faces: Int[np.ndarray, "68"]
    full_bary: Float[np.ndarray, "68 3"]


def contour_row(yaw_deg: float) -> int:
    """Row of the dynamic contour for a yaw about +y (degrees), clamped at 39."""
    yaw = int(np.clip(np.rint(yaw_deg), -MAX_YAW_DEG, MAX_YAW_DEG))
    return yaw if yaw >= 0 else MAX_YAW_DEG - yaw


class _Surface:
    """Faces by edge and nearest-point queries on the mean head's skin."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        skin = (mesh.faces < topology.SKIN_VERTICES).all(axis=1)
        self.face_ids = np.flatnonzero(skin)
        self.by_edge: dict[tuple[int, int], int] = {}
        for face in self.face_ids[::-1]:
            a, b, c = (int(v) for v in mesh.faces[face])
            for u, v in ((a, b), (b, c), (c, a)):
                self.by_edge[min(u, v), max(u, v)] = int(face)

    def on_edge(self, a: int, b: int, t: float) -> tuple[int, Float[np.ndarray, "3"]]:
        """The point (1 - t) a + t b of a mesh edge."""
        face = self.by_edge[min(a, b), max(a, b)]
        bary = np.zeros(3)
        corners = self.mesh.faces[face].tolist()
        bary[corners.index(a)] = 1.0 - t
        bary[corners.index(b)] += t
        return face, bary

    def on_ring(
        self, ring: Int[np.ndarray, "k"], columns: Int[np.ndarray, "m"], x: float
    ) -> tuple[int, Float[np.ndarray, "3"]]:
        """The point of a ring at ``x`` between consecutive ``columns``."""
        at = self.mesh.vertices_mm[ring[columns], 0]
        for left, right, a, b in zip(at[:-1], at[1:], columns[:-1], columns[1:], strict=True):
            if min(left, right) - 1e-9 <= x <= max(left, right) + 1e-9:
                t = 0.0 if left == right else float((x - left) / (right - left))
                return self.on_edge(int(ring[a]), int(ring[b]), t)
        raise ValueError(
            f"x = {x} mm is outside the ring, whose columns span {at.min()}..{at.max()}"
        )

    def in_front(self, x: float, y: float) -> tuple[int, Float[np.ndarray, "3"]]:
        """The foremost exterior point at (x, y)."""
        faces = self.mesh.faces[self.face_ids]
        p = self.mesh.vertices_mm[faces]
        a, b, c = p[:, 0, :2], p[:, 1, :2], p[:, 2, :2]
        target = np.array([x, y])

        def cross(
            u: Float[np.ndarray, "n 2"], v: Float[np.ndarray, "n 2"]
        ) -> Float[np.ndarray, "n"]:
            return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]

        area = cross(b - a, c - a)
        with np.errstate(divide="ignore", invalid="ignore"):
            bary = (
                np.stack(
                    [
                        cross(b - target, c - target),
                        cross(c - target, a - target),
                        cross(a - target, b - target),
                    ],
                    axis=1,
                )
                / area[:, None]
            )
        inside = (bary >= -1e-9).all(axis=1) & (area > 1e-12)
        depth = np.where(inside, np.einsum("fk,fk->f", np.nan_to_num(bary), p[:, :, 2]), -np.inf)
        best = int(np.argmax(depth))
        if not inside[best]:
            raise ValueError(
                f"no skin in front of ({x}, {y}) mm; the landmark table is off the face"
            )
        weights = np.clip(bary[best], 0.0, None)
        return int(self.face_ids[best]), weights / weights.sum()


# Right-side brow (17-21), nose ridge (27-30) and nose base (31-35) on the (x, y) plane, mm.
_BROW_MM = ((-50.0, 11.5), (-43.5, 17.5), (-34.0, 20.0), (-24.0, 18.6), (-14.5, 15.0))
_RIDGE_MM = ((0.0, 1.0), (0.0, -10.5), (0.0, -22.0), (0.0, -33.0))
_BASE_MM = ((-13.0, -43.2), (-7.0, -45.6), (0.0, -46.2), (7.0, -45.6), (13.0, -43.2))


def _static(surface: _Surface) -> list[tuple[int, Float[np.ndarray, "3"]]]:
    points = [surface.in_front(x, y) for x, y in _BROW_MM]
    points += [surface.in_front(-x, y) for x, y in reversed(_BROW_MM)]
    points += [surface.in_front(x, y) for x, y in (*_RIDGE_MM, *_BASE_MM)]
    patches = surface.mesh.patches
    margin = len(topology.EYE_FRACTIONS)
    count = topology.EYE_POINTS
    upper = np.arange(0, count // 2 + 1)
    lower = np.arange(count // 2, count + 1) % count
    left, right = patches["eye_left"][margin], patches["eye_right"][margin]
    outer, inner = (
        surface.mesh.vertices_mm[left[0], 0],
        surface.mesh.vertices_mm[left[count // 2], 0],
    )
    third, two_thirds = outer + 0.32 * (inner - outer), outer + 0.68 * (inner - outer)
    for ring, sign in ((right, -1.0), (left, 1.0)):
        # right eye: outer corner, lid outer and inner, inner corner, lower lid inner and outer;
        # the left eye starts at its inner corner
        first, last = (third, two_thirds) if sign < 0 else (two_thirds, third)
        corner_first, corner_last = (outer, inner) if sign < 0 else (inner, outer)
        points.append(surface.on_ring(ring, upper, sign * corner_first))
        points.append(surface.on_ring(ring, upper, sign * first))
        points.append(surface.on_ring(ring, upper, sign * last))
        points.append(surface.on_ring(ring, upper, sign * corner_last))
        points.append(surface.on_ring(ring, lower, sign * last))
        points.append(surface.on_ring(ring, lower, sign * first))
    count = topology.MOUTH_POINTS
    upper = np.arange(0, count // 2 + 1)
    lower = np.arange(count // 2, count + 1) % count
    border, contact, corner = patches["mouth"][2], patches["mouth"][6], patches["mouth"][5]
    edge = float(surface.mesh.vertices_mm[corner[0], 0])
    points.append(surface.on_ring(corner, upper, -edge))
    points += [surface.on_ring(border, upper, x) for x in (-15.5, -5.8, 0.0, 5.8, 15.5)]
    points.append(surface.on_ring(corner, upper, edge))
    points += [surface.on_ring(border, lower, x) for x in (15.5, 7.0, 0.0, -7.0, -15.5)]
    inside = float(surface.mesh.vertices_mm[contact[0], 0]) - 2.0
    points += [surface.on_ring(contact, upper, x) for x in (-inside, -9.0, 0.0, 9.0, inside)]
    points += [surface.on_ring(contact, lower, x) for x in (9.0, 0.0, -9.0)]
    return points


def _outline_faces(mesh: Mesh) -> Int[np.ndarray, "f"]:
    """Triangles that may lie on the visible contour: face and jaw, no ears, no throat."""
    p = mesh.vertices_mm
    jaw_line = -88.0 - 29.0 * np.clip(p[:, 2], 0.0, 85.0) / 85.0
    fit = (mesh.part != PARTS.index("ear")) & (np.arange(len(p)) < topology.SKIN_VERTICES)
    fit &= (p[:, 1] < 18.0) & (p[:, 1] > jaw_line) & (p[:, 2] > -4.0)
    fit &= ~((p[:, 2] < 6.0) & (p[:, 1] > -50.0) & (np.abs(p[:, 0]) < 60.0))
    nose = (np.abs(p[:, 0]) < 22.0) & (p[:, 1] > -50.0)
    fit &= ~nose & (mesh.part != PARTS.index("mouth"))
    return np.flatnonzero(fit[mesh.faces].all(axis=1))


class _Border:
    """Edges that can lie on the outline: between a seen and a hidden triangle, or at the rim."""

    def __init__(self, mesh: Mesh) -> None:
        faces = _outline_faces(mesh)
        corners = mesh.faces[faces]
        a, b, c = (mesh.vertices_mm[corners[:, k]] for k in range(3))
        self.normals = np.cross(b - a, c - a)
        edges = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]])
        local = np.tile(np.arange(len(faces)), 3)
        self.edges, first, inverse = np.unique(
            np.sort(edges, axis=1), axis=0, return_index=True, return_inverse=True
        )
        one = local[first]
        other = np.full(len(self.edges), -1)
        other[inverse] = local  # the last triangle of each edge
        self.one, self.other = one, other
        self.owner = faces[one]

    def seen(self, yaw: float) -> tuple[Int[np.ndarray, "e 2"], Int[np.ndarray, "e"]]:
        """Outline edges and a triangle of each, for a turn about +y (rad)."""
        facing = self.normals @ np.array([-np.sin(yaw), 0.0, np.cos(yaw)]) > 0.0
        keep = (self.one == self.other) | (facing[self.one] != facing[self.other])
        return self.edges[keep], self.owner[keep]


def _contour(
    mesh: Mesh, border: "_Border", yaw_deg: float
) -> tuple[Int[np.ndarray, "17"], Float[np.ndarray, "17 3"]]:
    """Trace the outline of the face turned by ``yaw_deg`` about +y and space 17 points on it."""
    yaw = np.radians(yaw_deg)
    p = mesh.vertices_mm
    image = np.stack([np.cos(yaw) * p[:, 0] + np.sin(yaw) * p[:, 2], p[:, 1]], axis=1)
    chin = np.array([0.0, -108.0, 88.0])
    chin_x = np.cos(yaw) * chin[0] + np.sin(yaw) * chin[2]
    centre = np.array([0.6 * chin_x, _CONTOUR_CENTRE_MM[1]])
    edges, owner = border.seen(yaw)
    start, end = image[edges[:, 0]] - centre, image[edges[:, 1]] - centre
    # rays from the top right of the face (subject's right) under the chin to the top left
    angles = np.linspace(np.radians(140.0), np.radians(400.0), _RAYS)
    rays = np.stack([np.cos(angles), np.sin(angles)])
    normals = np.stack([-rays[1], rays[0]])
    side_start, side_end = start @ normals, end @ normals
    crosses = (side_start <= 0.0) != (side_end <= 0.0)
    t = np.where(crosses, side_start / np.where(crosses, side_start - side_end, 1.0), 0.0)
    along = start @ rays
    radius = np.where(crosses, along + t * (end @ rays - along), -np.inf)
    found_edge = radius.argmax(axis=0)
    found_t = t[found_edge, np.arange(_RAYS)]
    found_radius = radius[found_edge, np.arange(_RAYS)]
    outline = centre + found_radius[:, None] * rays.T
    below = outline[:, 1] < _CONTOUR_TOP_MM
    middle = int(np.argmin(np.abs(outline[:, 0] - chin_x) + 1e3 * (outline[:, 1] > -85.0)))
    first = middle - int(np.argmin(below[middle::-1])) + 1
    last = middle + int(np.argmin(below[middle:])) - 1
    picks: list[int] = []
    for low, high, number in ((first, middle, 8), (middle, last, 9)):
        length = np.concatenate(
            [[0.0], np.cumsum(np.linalg.norm(np.diff(outline[low : high + 1], axis=0), axis=1))]
        )
        steps = np.arange(number) / 8.0 * length[-1]
        picks += [low + int(np.argmin(np.abs(length - step))) for step in steps]
    chosen = np.array(picks)
    ids = owner[found_edge[chosen]]
    bary = np.zeros((17, 3))
    for row, (face, edge, t) in enumerate(
        zip(ids, found_edge[chosen], found_t[chosen], strict=True)
    ):
        corners = mesh.faces[face].tolist()
        bary[row, corners.index(int(edges[edge, 0]))] += 1.0 - t
        bary[row, corners.index(int(edges[edge, 1]))] += t
    return ids, bary


def build_embeddings(mesh: Mesh) -> Embeddings:
    """Landmarks on the mean neutral head."""
    static = _static(_Surface(mesh))
    static_faces = np.array([face for face, _ in static], dtype=np.int64)
    static_bary = np.stack([bary for _, bary in static])
    border = _Border(mesh)
    yaws = [*range(MAX_YAW_DEG + 1), *(-a for a in range(1, MAX_YAW_DEG + 1))]
    rows = [_contour(mesh, border, float(yaw)) for yaw in yaws]
    dynamic_faces = np.stack([faces for faces, _ in rows]).astype(np.int64)
    dynamic_bary = np.stack([bary for _, bary in rows])
    return Embeddings(
        static_faces=static_faces,
        static_bary=static_bary,
        dynamic_faces=dynamic_faces,
        dynamic_bary=dynamic_bary,
        full_faces=np.concatenate([dynamic_faces[0], static_faces]),
        full_bary=np.concatenate([dynamic_bary[0], static_bary]),
    )


def evaluate(
    vertices: Float[np.ndarray, "v 3"],
    triangles: Int[np.ndarray, "f 3"],
    faces: Int[np.ndarray, "l"],
    bary: Float[np.ndarray, "l 3"],
) -> Float[np.ndarray, "l 3"]:
    """Landmark positions on a posed mesh, in its own unit and frame."""
    return np.einsum("lk,lkc->lc", bary, vertices[triangles[faces]])
