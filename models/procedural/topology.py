"""Vertices and triangles of the head: 3,931 skin vertices and two eyeballs of 546.

Exterior vertices live on the sphere map of the cage. Feature rings are fixed, the rest is
placed by weighted Lloyd relaxation on the left half and mirrored; the triangles are the convex
hull of the directions. Eyes, mouth, nostrils and ears are strips of rings inside their holes.
"""

import dataclasses
import itertools

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import ConvexHull, cKDTree

from models.procedural import anatomy, ears, mouth
from models.procedural.cage import Cage

SKIN_VERTICES = 3931
EYEBALL_VERTICES = 546

EYE_POINTS = 32
EYE_FRACTIONS = (0.36, 0.62, 0.80, 0.92, 1.0)
MOUTH_POINTS = 36
NOSTRIL_POINTS = 12
NOSTRIL_RINGS = 4
EAR_POINTS = 48
NECK_POINTS = 60
MIDLINE_FREE = 70

_LLOYD_ROUNDS = 30
_SAMPLES_PER_VERTEX = 40
_FLIP = np.array([-1.0, 1.0, 1.0])


@dataclasses.dataclass(frozen=True, slots=True)
class Mesh:
    """The mean head with its topology.

    Attributes:
        vertices_mm: Canonical positions of skin then left and right eyeball.
        faces: Counter-clockwise from outside.
        mirror: For each vertex the index of its mirror image.
        part: Name index per vertex into ``PARTS``.
        ring: Ring number inside its patch (0 outside patches; 1 is the first inner ring).
        lip: +1 on the upper, -1 on the lower side of the mouth patch, 0 elsewhere.
        patches: Vertex indices by ring (outer rim first) and column of ``eye_left``,
            ``eye_right``, ``nostril_left``, ``nostril_right``, ``ear_left``, ``ear_right`` and
            ``mouth``.
    """

    vertices_mm: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    mirror: Int[np.ndarray, "v"]
    part: Int[np.ndarray, "v"]
    ring: Int[np.ndarray, "v"]
    lip: Float[np.ndarray, "v"]
    patches: dict[str, Int[np.ndarray, "r k"]]


PARTS = ("exterior", "eye", "mouth", "nostril", "ear", "eyeball")


def _target_edge(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
    """Wanted edge length (mm) at base surface points."""
    x, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]

    def near(
        cx: float, cy: float, cz: float, sx: float, sy: float, sz: float
    ) -> Float[np.ndarray, "n"]:
        return np.exp(-0.5 * (((x - cx) / sx) ** 2 + ((y - cy) / sy) ** 2 + ((z - cz) / sz) ** 2))

    face = anatomy.smoothstep(z, 5.0, 45.0) * anatomy.smoothstep(y, 75.0, 40.0)
    face = face * anatomy.smoothstep(y, -126.0, -112.0)
    inverse = (1.0 - face) / 11.5 + face / 6.0
    inverse += 0.27 * near(0, -31, 95, 15, 12, 25) + 0.10 * near(0, -6, 90, 11, 13, 25)
    inverse += 0.07 * near(24, 16, 85, 24, 6, 25)
    inverse += 0.09 * near(31, 0, 80, 18, 13, 20) + 0.13 * near(0, -66, 90, 26, 13, 20)
    inverse += 0.16 * near(72, -13, -8, 14, 30, 20)
    inverse += 0.03 * near(0, -100, 85, 30, 16, 30)
    inverse += 0.03 * anatomy.smoothstep(y, -125.0, -150.0)
    return 1.0 / inverse


def _inside_polygon(
    points: Float[np.ndarray, "n 2"], polygon: Float[np.ndarray, "k 2"]
) -> Int[np.ndarray, "n"]:
    inside = np.zeros(len(points), dtype=bool)
    for a, b in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        crosses = (a[1] > points[:, 1]) != (b[1] > points[:, 1])
        if a[1] == b[1]:
            continue
        at = a[0] + (points[:, 1] - a[1]) / (b[1] - a[1]) * (b[0] - a[0])
        inside ^= crosses & (points[:, 0] < at)
    return inside


def _in_ring(
    direction: Float[np.ndarray, "n 3"], ring: Float[np.ndarray, "k 3"]
) -> Int[np.ndarray, "n"]:
    """Which directions lie inside a ring of directions (gnomonic projection at its centre)."""
    centre = ring.mean(axis=0)
    centre /= np.linalg.norm(centre)
    east = np.cross([0.0, 1.0, 0.0], centre)
    east /= np.linalg.norm(east)
    north = np.cross(centre, east)
    basis = np.stack([east, north], axis=1)
    facing = direction @ centre
    close = facing > 0.2
    result = np.zeros(len(direction), dtype=bool)
    flat = (direction[close] @ basis) / facing[close, None]
    polygon = (ring @ basis) / (ring @ centre)[:, None]
    result[close] = _inside_polygon(flat, polygon)
    return result


class _Layout:
    """Directions of the exterior vertices: midline, left half, rings of the left and middle."""

    def __init__(self, cage: Cage) -> None:
        self.cage = cage
        angle = 2.0 * np.pi * np.arange(EYE_POINTS) / EYE_POINTS
        self.eye_xy = np.stack([31.6 + 19.5 * np.cos(angle), 0.6 + 14.0 * np.sin(angle)], axis=1)
        eye = cage.locate((0, 1), self.eye_xy, "front")
        angle = 2.0 * np.pi * np.arange(NOSTRIL_POINTS) / NOSTRIL_POINTS
        centre = anatomy.NOSTRIL_DOMAIN_MM
        nostril_xy = np.stack(
            [
                centre[0] + 2.7 * np.cos(angle) - 0.9 * np.sin(angle),
                centre[1] + 4.4 * np.sin(angle),
            ],
            axis=1,
        )
        nostril = cage.locate((0, 1), nostril_xy, "front")
        ear = cage.locate((1, 2), ears.ear_plane(EAR_POINTS)[0], "left")
        angle = 2.0 * np.pi * np.arange(MOUTH_POINTS) / MOUTH_POINTS
        oval = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        oval[np.abs(oval) < 1e-12] = 0.0
        sizes = np.where(oval[:, 1:] > 0.0, [[33.5, 15.0]], [[33.5, 18.0]])
        self.mouth_xy = oval * sizes + anatomy.MOUTH_CENTRE_MM
        sizes = np.where(oval[:, 1:] > 0.0, [[30.0, 11.0]], [[30.0, 13.5]])
        self.mouth_inner_xy = oval * sizes + anatomy.MOUTH_CENTRE_MM
        mouth_ring = cage.locate((0, 1), self.mouth_xy, "front")
        mouth_ring[oval[:, 0] == 0.0, 1] = 0.0
        phi = 2.0 * np.pi * np.arange(NECK_POINTS) / NECK_POINTS
        neck = np.stack([np.ones(NECK_POINTS), np.where(phi > np.pi, phi - 2 * np.pi, phi)], axis=1)
        self.rings = {"eye": eye, "nostril": nostril, "ear": ear, "mouth": mouth_ring, "neck": neck}
        self.ring_directions = {
            name: cage.direction(part[:, 0], part[:, 1]) for name, part in self.rings.items()
        }
        for name in ("mouth", "neck"):
            ring = self.ring_directions[name]
            ring[np.abs(ring[:, 0]) < 1e-9, 0] = 0.0
        self.midline = self._place_midline()
        self.free = self._relax()

    def _place_midline(self) -> Float[np.ndarray, "m 2"]:
        """Free midline parameters, spaced by the wanted edge length (pole first)."""
        top, bottom = (
            self.rings["mouth"][MOUTH_POINTS // 4],
            self.rings["mouth"][3 * MOUTH_POINTS // 4],
        )
        spans = [
            (np.linspace(0.0, top[0], 800), 0.0),
            (np.linspace(bottom[0], 1.0, 800), 0.0),
            (np.linspace(0.0, 1.0, 800), np.pi),
        ]
        lengths = []
        for s, phi in spans:
            points = self.cage.point(s, np.full_like(s, phi))
            edge = _target_edge(points)
            steps = np.linalg.norm(np.diff(points, axis=0), axis=1) / (0.5 * (edge[1:] + edge[:-1]))
            lengths.append(np.concatenate([[0.0], np.cumsum(steps)]))
        total = sum(length[-1] for length in lengths)
        wanted = MIDLINE_FREE - 1
        # a span of n edges holds n - 1 points strictly inside it
        counts = [max(1, round((wanted + 3) * length[-1] / total) - 1) for length in lengths]
        counts[2] += wanted - sum(counts)
        placed = [np.array([[0.0, 0.0]])]
        for (s, phi), length, count in zip(spans, lengths, counts, strict=True):
            at = np.interp(np.linspace(0.0, length[-1], count + 2)[1:-1], length, s)
            placed.append(np.column_stack([at, np.full(count, phi)]))
        return np.concatenate(placed)

    def midline_directions(self) -> Float[np.ndarray, "m 3"]:
        directions = self.cage.direction(self.midline[:, 0], self.midline[:, 1])
        directions[:, 0] = 0.0
        directions[0] = [0.0, 1.0, 0.0]
        return directions

    def fixed_left(self) -> Float[np.ndarray, "n 3"]:
        """Ring directions strictly on the left half."""
        parts = [self.ring_directions[name] for name in ("eye", "nostril", "ear")]
        parts += [
            ring[ring[:, 0] > 1e-9]
            for ring in (self.ring_directions["mouth"], self.ring_directions["neck"])
        ]
        return np.concatenate(parts)

    def free_count(self) -> int:
        patch_left = EYE_POINTS * (len(EYE_FRACTIONS) + 3) + 1
        patch_left += NOSTRIL_POINTS * NOSTRIL_RINGS + 1
        patch_left += EAR_POINTS * (ears.RING_COUNT - 1) + 1
        mouth_rings = 1 + len(mouth.LIP_PROFILE) + len(mouth.BAG_PROFILE)
        central = MOUTH_POINTS * mouth_rings + 1
        rings_left = EYE_POINTS + NOSTRIL_POINTS + EAR_POINTS
        total = SKIN_VERTICES - 2 * (patch_left + rings_left) - central
        total -= MOUTH_POINTS + NECK_POINTS + MIDLINE_FREE
        if total <= 0 or total % 2:
            raise ValueError(
                f"the free vertices of one half must be a positive whole number, got {total}/2; "
                "change MIDLINE_FREE by one or use smaller rings"
            )
        return total // 2

    def _relax(self) -> Float[np.ndarray, "n 3"]:
        """Free directions of the left half after weighted Lloyd relaxation."""
        count = self.free_count()
        rows, columns = 640, 420
        s_of_rows = (np.arange(rows) + 0.5) / rows
        phi = (np.arange(columns) + 0.5) / columns * np.pi
        s, phi = (part.ravel() for part in np.meshgrid(s_of_rows, phi, indexing="ij"))
        step = 1e-4
        here = self.cage.point(s, phi)
        ds = (self.cage.point(s + step * np.where(s > 0.5, -1, 1), phi) - here) / step
        dphi = (self.cage.point(s, phi + step) - here) / step
        area = np.linalg.norm(np.cross(ds, dphi), axis=1)
        edge = _target_edge(here)
        direction = self.cage.direction(s, phi)
        keep = np.ones(len(s), dtype=bool)
        for name in ("eye", "nostril", "ear", "mouth"):
            keep &= ~_in_ring(direction, self.ring_directions[name])
        mass = np.where(keep, area / edge**2, 0.0)
        # Sort of a blue-noise resample: every other row is read backward so runs stay local.
        grid = np.arange(rows * columns).reshape(rows, columns)
        grid[1::2] = grid[1::2, ::-1]
        order = grid.ravel()
        cumulative = np.cumsum(mass[order])
        wanted = count * _SAMPLES_PER_VERTEX
        picks = order[
            np.searchsorted(cumulative, (np.arange(wanted) + 0.5) / wanted * cumulative[-1])
        ]
        samples = direction[picks]
        # local mm per radian on the sphere, from the area of the map
        ds_theta = np.gradient(np.interp(s_of_rows, *self.cage.theta_of_s), s_of_rows)
        sphere_area = np.repeat(ds_theta, columns) * np.hypot(direction[:, 0], direction[:, 2])
        weight = (area / sphere_area / edge**2)[picks]
        rng = np.random.default_rng(20)
        free = samples[np.sort(rng.choice(wanted, count, replace=False))]
        middle = self.midline_directions()
        ring_middle = np.concatenate(
            [
                ring[np.abs(ring[:, 0]) < 1e-9]
                for ring in (self.ring_directions["mouth"], self.ring_directions["neck"])
            ]
        )
        left = self.fixed_left()
        fixed = np.concatenate([left, left * _FLIP, middle, ring_middle])
        for _ in range(_LLOYD_ROUNDS):
            generators = np.concatenate([free, free * _FLIP, fixed])
            owner = cKDTree(generators).query(samples)[1]
            mine = owner < count
            total = np.bincount(owner[mine], weight[mine], minlength=count)
            moved = np.stack(
                [
                    np.bincount(owner[mine], weight[mine] * samples[mine, k], minlength=count)
                    for k in range(3)
                ],
                axis=1,
            )
            filled = total > 0
            free[filled] = moved[filled] / total[filled, None]
            free /= np.linalg.norm(free, axis=1, keepdims=True)
        return free


def _strips(rings: list[Int[np.ndarray, "k"]], pole: int | None) -> list[tuple[int, int, int]]:
    """Triangles of nested closed rings (outermost first), closed by an optional pole."""
    faces: list[tuple[int, int, int]] = []
    for outer, inner in itertools.pairwise(rings):
        for k in range(len(outer)):
            nxt = (k + 1) % len(outer)
            faces.append((outer[k], outer[nxt], inner[nxt]))
            faces.append((outer[k], inner[nxt], inner[k]))
    if pole is not None:
        last = rings[-1]
        faces += [(last[k], last[(k + 1) % len(last)], pole) for k in range(len(last))]
    return faces


def _hull_faces(
    directions: Float[np.ndarray, "n 3"],
    rings: dict[str, Int[np.ndarray, "k"]],
    mirror: Int[np.ndarray, "n"],
) -> Int[np.ndarray, "f 3"]:
    """Hull triangles outside the holes: the left half's with one apex at -x, then mirrored.

    All midline directions lie on one great circle, so with the apex the hull keeps every
    midline edge and no triangle crosses the middle.
    """
    left = np.flatnonzero(directions[:, 0] >= 0.0)
    hull = ConvexHull(np.concatenate([directions[left], [[-1.0, 0.0, 0.0]]]))
    faces = hull.simplices
    faces = left[faces[(faces < len(left)).all(axis=1)]]
    a, b, c = (directions[faces[:, k]] for k in range(3))
    inward = np.einsum("ij,ij->i", np.cross(b - a, c - a), a + b + c) < 0.0
    faces[inward] = faces[inward][:, [0, 2, 1]]
    keep = np.ones(len(faces), dtype=bool)
    for ring in rings.values():
        keep &= ~np.isin(faces, ring).all(axis=1)
    faces = faces[keep]
    return np.concatenate([faces, mirror[faces][:, [0, 2, 1]]])


def eyeball(
    centre_mm: Float[np.ndarray, "3"], outward: float
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"]]:
    """One eyeball of 546 vertices and 1,088 triangles, its pole at the pupil, cornea bulged.

    Args:
        centre_mm: Where the eye turns.
        outward: +1 for the left eye, -1 for the right one, so that the two are mirror images.
    """
    rings, around = 17, 32
    # finer toward the pupil: rings at the iris edge matter to shading and to the cornea's bulge
    polar = np.pi * (np.arange(1, rings + 1) / (rings + 1)) ** 1.25
    turn = 2.0 * np.pi * np.arange(around) / around
    polar_grid, turn_grid = (part.ravel() for part in np.meshgrid(polar, turn, indexing="ij"))
    unit = np.stack(
        [
            outward * np.sin(polar_grid) * np.cos(turn_grid),
            np.sin(polar_grid) * np.sin(turn_grid),
            np.cos(polar_grid),
        ],
        axis=1,
    )
    unit = np.concatenate([[[0.0, 0.0, 1.0]], unit, [[0.0, 0.0, -1.0]]])
    angle = np.arccos(np.clip(unit[:, 2], -1.0, 1.0))
    radius = anatomy.EYE_RADIUS_MM * (1.0 + 0.035 * anatomy.smoothstep(angle, 0.56, 0.10))
    index = 1 + np.arange(rings * around).reshape(rings, around)
    faces: list[tuple[int, int, int]] = [
        (0, index[0, k], index[0, (k + 1) % around]) for k in range(around)
    ]
    for r in range(rings - 1):
        for k in range(around):
            nxt = (k + 1) % around
            faces.append((index[r, k], index[r + 1, k], index[r + 1, nxt]))
            faces.append((index[r, k], index[r + 1, nxt], index[r, nxt]))
    last = rings * around + 1
    faces += [(index[-1, k], last, index[-1, (k + 1) % around]) for k in range(around)]
    triangles = np.array(faces, dtype=np.int64)
    if outward < 0.0:
        triangles = triangles[:, [0, 2, 1]]
    return centre_mm + radius[:, None] * unit, triangles


class _Assembler:
    """Collects vertex blocks with their mirror images, labels and triangles."""

    def __init__(self) -> None:
        self.count = 0
        self.blocks: list[np.ndarray] = []
        self.mirrors: list[np.ndarray] = []
        self.parts: list[np.ndarray] = []
        self.rings: list[np.ndarray] = []
        self.lips: list[np.ndarray] = []
        self.faces: list[np.ndarray] = []
        self.patches: dict[str, np.ndarray] = {}

    @property
    def mirror(self) -> Int[np.ndarray, "n"]:
        """Mirror image of every vertex so far."""
        return np.concatenate(self.mirrors)

    def rows(self, index: Int[np.ndarray, "k"]) -> Float[np.ndarray, "k 3"]:
        """Positions of vertices added so far (mm)."""
        return np.concatenate(self.blocks)[index]

    def add(
        self,
        block: Float[np.ndarray, "n 3"],
        mirror_of: Int[np.ndarray, "n"],
        part: str,
        ring: Int[np.ndarray, "n"] | int = 0,
        lip: Float[np.ndarray, "n"] | float = 0.0,
    ) -> Int[np.ndarray, "n"]:
        """Append vertices whose mirror images are ``mirror_of`` (absolute); return their ids."""
        n = len(block)
        index = np.arange(self.count, self.count + n)
        self.blocks.append(block)
        self.mirrors.append(mirror_of)
        self.parts.append(np.full(n, PARTS.index(part)))
        self.rings.append(np.broadcast_to(np.asarray(ring), (n,)))
        self.lips.append(np.broadcast_to(np.asarray(lip, dtype=float), (n,)))
        self.count += n
        return index

    def add_pair(
        self, block: Float[np.ndarray, "n 3"], part: str, ring: Int[np.ndarray, "n"] | int = 0
    ) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
        """Append a left block and its mirror image; return both blocks' ids."""
        n = len(block)
        left = self.add(block, np.arange(self.count + n, self.count + 2 * n), part, ring)
        right = self.add(block * _FLIP, left, part, ring)
        return left, right

    def add_faces(self, left: Int[np.ndarray, "f 3"]) -> None:
        """Append triangles of the left half and their mirror images."""
        self.faces += [left, self.mirror[left][:, [0, 2, 1]]]

    def close(self, rim: Int[np.ndarray, "k"], block: Float[np.ndarray, "n 3"], name: str) -> None:
        """Fill a left hole and its mirror image with rings and a closing point."""
        points = len(rim)
        rings = (len(block) - 1) // points
        number = np.append(np.repeat(np.arange(1, rings + 1), points), rings + 1)
        left, _ = self.add_pair(block, name, number)
        split = [rim, *np.split(left[:-1], rings)]
        self.patches[f"{name}_left"] = np.stack(split)
        self.patches[f"{name}_right"] = self.mirror[self.patches[f"{name}_left"]]
        self.add_faces(np.array(_strips(split, int(left[-1]))))

    def close_mouth(self, rim: Int[np.ndarray, "k"], skin: Float[np.ndarray, "k 3"]) -> None:
        """Fill the mouth's hole with lips and bag; ``skin`` is the second skin ring."""
        block, lip = mouth.mouth_rings((self.rows(rim), skin), MOUTH_POINTS)
        rings = (len(block) - 1) // MOUTH_POINTS
        partner = (MOUTH_POINTS // 2 - np.arange(MOUTH_POINTS)) % MOUTH_POINTS
        partners = np.concatenate(
            [partner + r * MOUTH_POINTS for r in range(rings)] + [[len(block) - 1]]
        )
        block = 0.5 * (block + block[partners] * _FLIP)
        number = np.append(np.repeat(np.arange(1, rings + 1), MOUTH_POINTS), rings + 1)
        index = self.add(block, self.count + partners, "mouth", number, lip)
        split = [rim, *np.split(index[:-1], rings)]
        self.patches["mouth"] = np.stack(split)
        triangles = np.array(_strips(split, int(index[-1])))
        left = self.rows(triangles.ravel())[:, 0].reshape(-1, 3).sum(axis=1) > 0.0
        self.add_faces(triangles[left])

    def add_exterior(self, cage: Cage, layout: _Layout) -> dict[str, Int[np.ndarray, "k"]]:
        """Append midline, free vertices and rings with the hull's triangles; return the rings."""
        middle = layout.midline_directions()
        block = anatomy.exterior(cage, layout.midline)
        block[:, 0] = 0.0
        self.add(block, np.arange(len(middle)), "exterior")
        self.add_pair(anatomy.exterior(cage, cage.parameters(layout.free)), "exterior")
        directions = [middle, layout.free, layout.free * _FLIP]
        rims: dict[str, np.ndarray] = {}
        for name in ("eye", "nostril", "ear"):
            pair = self.add_pair(anatomy.exterior(cage, layout.rings[name]), "exterior")
            rims[name], rims[f"{name}_right"] = pair
            directions += [layout.ring_directions[name], layout.ring_directions[name] * _FLIP]
        for name in ("mouth", "neck"):
            block = anatomy.exterior(cage, layout.rings[name])
            k = np.arange(len(block))
            partner = (len(block) // 2 - k if name == "mouth" else -k) % len(block)
            block = 0.5 * (block + block[partner] * _FLIP)
            rims[name] = self.add(block, self.count + partner, "exterior")
            ring = layout.ring_directions[name]
            directions.append(0.5 * (ring + ring[partner] * _FLIP))
        self.faces.append(_hull_faces(np.concatenate(directions), rims, self.mirror))
        return rims


def build_mesh(cage: Cage) -> Mesh:
    """The mean head: 5,023 vertices, 9,976 triangles, mirror-exact."""
    layout = _Layout(cage)
    head = _Assembler()
    rims = head.add_exterior(cage, layout)
    head.close(rims["eye"], anatomy.eye_rings(cage, layout.eye_xy, EYE_FRACTIONS), "eye")
    nostril = anatomy.nostril_rings(head.rows(rims["nostril"]), NOSTRIL_RINGS)
    head.close(rims["nostril"], nostril, "nostril")
    head.close(rims["ear"], ears.ear_rings(cage, EAR_POINTS), "ear")
    skin = cage.locate((0, 1), layout.mouth_inner_xy, "front")
    head.close_mouth(rims["mouth"], anatomy.exterior(cage, skin))
    if head.count != SKIN_VERTICES:
        raise ValueError(f"expected {SKIN_VERTICES} skin vertices, got {head.count}")
    for outward in (1.0, -1.0):
        centre = anatomy.EYE_CENTRE_MM * np.array([outward, 1.0, 1.0])
        block, triangles = eyeball(centre, outward)
        start = head.count
        partner = np.arange(EYEBALL_VERTICES) + start + int(outward) * EYEBALL_VERTICES
        head.add(block, partner, "eyeball")
        head.faces.append(triangles + start)
    return Mesh(
        vertices_mm=np.concatenate(head.blocks),
        faces=np.concatenate(head.faces).astype(np.int64),
        mirror=head.mirror,
        part=np.concatenate(head.parts),
        ring=np.concatenate(head.rings),
        lip=np.concatenate(head.lips),
        patches=head.patches,
    )
