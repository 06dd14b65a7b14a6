"""Where a head scan lies when nobody has marked it: trimmed ICP from many turns.

Needs the scale. Every cube rotation is tried from the matched centroids; the starts that agree best
in both directions, positions and normals, are what registration then fits and compares.
"""

from itertools import permutations, product

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from models.geometry.alignment import Similarity
from models.geometry.template import RegistrationModel

POINTS, STEPS = 400, 25
FIRST_POINTS, FIRST_STEPS, FIRST_KEPT = 160, 12, 4
NODS_DEG = (0.0, -30.0, 30.0)
TRIM = 0.65
FACING = 0.4
REACH_MM = 8.0
DUPLICATE_DEG = 12.0

_Candidate = tuple[float, np.ndarray, np.ndarray]


def cube_rotations() -> Float[np.ndarray, "24 3 3"]:
    """The 24 rotations that take a cube to itself."""
    found = []
    for order in permutations(range(3)):
        for signs in product((1.0, -1.0), repeat=3):
            turn = np.zeros((3, 3))
            turn[np.arange(3), order] = signs
            if np.linalg.det(turn) > 0:
                found.append(turn)
    return np.stack(found)


def place_by_shape(
    vertices: Float[np.ndarray, "n 3"],
    normals: Float[np.ndarray, "n 3"],
    areas: Float[np.ndarray, " n"],
    model: RegistrationModel,
    scale: float,
    *,
    most: int,
) -> list[Similarity]:
    """Candidate placements of a scan in FLAME's frame, the most plausible first.

    Args:
        vertices: Scan vertices in the scan's unit.
        normals: Their unit normals, pointing outward.
        areas: Surface around each, any unit.
        model: The prepared model.
        scale: Millimetres per scan unit.
        most: Candidates to return.

    Returns:
        Similarities to millimetres in FLAME's frame.
    """
    scan = scale * vertices
    picks = systematic_sample(areas, scan, 20 * POINTS)
    own, own_normals = scan[picks], normals[picks]
    tree = cKDTree(own)
    ids = systematic_sample(model.areas * model.exposed, model.template, POINTS)
    points, point_normals = model.template[ids], model.normals[ids]
    wide = systematic_sample(model.areas * model.exposed, model.template, 10 * POINTS)
    template_tree, template_normals = cKDTree(model.template[wide]), model.normals[wide]
    few = np.linspace(0, len(own) - 1, min(POINTS, len(own))).astype(np.int64)

    def settle(start: tuple[np.ndarray, np.ndarray], used: np.ndarray, steps: int) -> _Candidate:
        turn, shift = _icp(
            points[used], point_normals[used], tree, own_normals, *start, steps=steps
        )
        forward = _agreement(
            points[used] @ turn.T + shift, point_normals[used] @ turn.T, tree, own_normals
        )
        back = _agreement(
            (own[few] - shift) @ turn, own_normals[few] @ turn, template_tree, template_normals
        )
        return -(forward + back), turn, shift

    middle, home = own.mean(axis=0), points.mean(axis=0)
    first = np.linspace(0, len(points) - 1, min(FIRST_POINTS, len(points))).astype(np.int64)
    rough = [settle((turn, middle - turn @ home), first, FIRST_STEPS) for turn in cube_rotations()]
    rough.sort(key=lambda c: c[0])
    every = np.arange(len(points))
    candidates = []
    for _, turn, shift in rough[:FIRST_KEPT]:
        # A cranium slides in its own surface: nod it, and let the face decide.
        for nod_deg in NODS_DEG:
            nodded = turn @ Rotation.from_euler("x", nod_deg, degrees=True).as_matrix()
            start = shift + (turn - nodded) @ home
            candidates.append(settle((nodded, start), every, STEPS))
    candidates.sort(key=lambda c: c[0])
    kept: list[_Candidate] = []
    for candidate in candidates:
        if all(_angle_deg(candidate[1], other[1]) > DUPLICATE_DEG for other in kept):
            kept.append(candidate)
    return [Similarity(scale, turn.T, -turn.T @ shift) for _, turn, shift in kept[:most]]


def systematic_sample(
    weights: Float[np.ndarray, " n"], points: Float[np.ndarray, "n 3"], count: int
) -> Int[np.ndarray, " k"]:
    """Numbers of about ``count`` points, as dense as their weights, evenly spread in space."""
    order = np.argsort(points @ np.array([1.0, 31.7, 0.013]), kind="stable")
    cumulated = np.cumsum(weights[order])
    picks = (np.arange(count) + 0.5) / count * cumulated[-1]
    slots = np.minimum(np.searchsorted(cumulated, picks), len(order) - 1)
    return np.unique(order[slots])


def _icp(
    points: np.ndarray,
    normals: np.ndarray,
    tree: cKDTree,
    scan_normals: np.ndarray,
    turn: np.ndarray,
    shift: np.ndarray,
    *,
    steps: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Rigid point-to-plane motion of the template onto the scan; the closest share counts."""
    for _ in range(steps):
        moved = points @ turn.T + shift
        distance, nearest = tree.query(moved)
        across = scan_normals[nearest]
        facing = (across * (normals @ turn.T)).sum(axis=1)
        cost = np.where(facing > 0, distance, np.inf)
        kept = np.argsort(cost, kind="stable")[: int(TRIM * len(points))]
        kept = kept[np.isfinite(cost[kept])]
        if len(kept) < 20:
            break
        middle = moved[kept].mean(axis=0)
        rows = np.concatenate([np.cross(moved[kept] - middle, across[kept]), across[kept]], axis=1)
        gap = ((tree.data[nearest[kept]] - moved[kept]) * across[kept]).sum(axis=1)
        scale = max(float(np.median(np.abs(gap))), 0.5)
        weight = 1 / (1 + (gap / (2 * scale)) ** 2)
        normal = rows.T @ (weight[:, None] * rows)
        normal[:3, :3] += 1e2 * len(kept) * 1e-2 * np.eye(3)
        normal[3:, 3:] += 1e-3 * len(kept) * np.eye(3)
        change = np.linalg.solve(normal, rows.T @ (weight * gap))
        spin = Rotation.from_rotvec(change[:3]).as_matrix()
        shift = spin @ (shift - middle) + middle + change[3:]
        turn = spin @ turn
        if np.abs(change[:3]).max() < 1e-3 and np.abs(change[3:]).max() < 0.05:
            break
    return turn, shift


def _agreement(points: np.ndarray, normals: np.ndarray, tree: cKDTree, other: np.ndarray) -> float:
    """Share of the points that lie near the other surface and face the same way, softly."""
    distance, nearest = tree.query(points)
    facing = (other[nearest] * normals).sum(axis=1)
    return float((np.clip(facing - FACING, 0, 1) / (1 + (distance / REACH_MM) ** 2)).mean())


def _angle_deg(one: np.ndarray, other: np.ndarray) -> float:
    """Angle between two rotations."""
    return float(np.degrees(Rotation.from_matrix(one.T @ other).magnitude()))
