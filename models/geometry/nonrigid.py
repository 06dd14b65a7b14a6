"""Non-rigid refinement: a displacement field of the skin that stays close to FLAME.

The field u over the parametric fit minimises data + l^4 * integral |Laplacian u|^2 +
pull * integral |u|^2, with the Laplacian of FLAME's mean head, so that the matrix of the smooth
part never changes. The data term couples the three axes (it weighs normals fully, tangents little);
conjugate gradients solve it, preconditioned by one sparse factorisation of the scalar system.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from scipy.sparse.linalg import splu

from models.geometry.mesh import face_normals, vertex_normals
from models.geometry.nearest import ClosestPointIndex
from models.geometry.parametric import Surface
from models.geometry.settings import FitSettings
from models.geometry.template import RegistrationModel

MAX_ITERATIONS = 60


@dataclass(frozen=True)
class DataRows:
    """Rows of the data term: a surface point of the skin and where it should move.

    Attributes:
        corners: (K, 3) skin vertices.
        bary: (K, 3) their weights.
        normals: (K, 3) directions that weigh fully.
        weights: (K,) in mm^2 of surface.
        wanted: (K, 3) displacement of the point from the parametric fit, mm.
    """

    corners: Int[np.ndarray, "k 3"]
    bary: Float[np.ndarray, "k 3"]
    normals: Float[np.ndarray, "k 3"]
    weights: Float[np.ndarray, " k"]
    wanted: Float[np.ndarray, "k 3"]


def refine(
    model: RegistrationModel,
    fitted: Float[np.ndarray, "V 3"],
    surface: Surface,
    samples: Int[np.ndarray, " k"],
    sample_areas: Float[np.ndarray, " k"],
    settings: FitSettings,
    *,
    bald: bool,
) -> Float[np.ndarray, "V 3"]:
    """Move the parametric fit onto the scan.

    Args:
        model: The prepared model.
        fitted: Parametric fit in the scan's frame, mm.
        surface: The scan.
        samples: Scan vertices that carry data in the scan-to-template levels.
        sample_areas: Surface that each of them stands for, mm^2.
        settings: Levels and weights.
        bald: Whether the scalp can be trusted.

    Returns:
        (V, 3) refined vertices; eyeballs follow their lids.
    """
    from models.geometry._couple import right_side

    base = np.ascontiguousarray(fitted[model.skin_ids])
    trust = model.weight * np.where(model.scalp & (not bald), settings.scalp_weight, 1.0)
    moved = np.zeros_like(base)
    for smoothing, from_template, steps in zip(
        settings.smoothing_mm, settings.template_to_scan, settings.steps_per_level, strict=True
    ):
        factor = None
        smooth = smoothing**4 * model.bilaplacian + settings.pull * sparse.diags_array(model.mass)
        smooth = smooth.tocsr()
        for _ in range(steps):
            if from_template:
                rows = _template_rows(model, base, moved, surface, trust, settings)
            else:
                rows = _scan_rows(
                    model, base, moved, surface, samples, sample_areas, trust, settings
                )
            right = np.zeros_like(base)
            diagonal = np.zeros(len(base))
            right_side(
                rows.corners,
                rows.bary,
                rows.normals,
                rows.weights,
                settings.tangential,
                rows.wanted,
                right,
                diagonal,
            )
            if factor is None:
                factor = _factorise(smooth, diagonal)
            moved = _solve(smooth, rows, right, moved, factor, settings)
    out = fitted.copy()
    out[model.skin_ids] += moved
    for ball, lids in model.eyeballs:
        out[ball] += (out[lids] - fitted[lids]).mean(axis=0)
    return out


def _factorise(smooth: sparse.csr_array, diagonal: np.ndarray) -> Any:  # noqa: ANN401 - SuperLU
    """Sparse factor of the scalar system, symmetric mode."""
    return splu(
        (smooth + sparse.diags_array(diagonal)).tocsc(),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )


def _solve(
    smooth: sparse.csr_array,
    rows: DataRows,
    right: np.ndarray,
    start: np.ndarray,
    factor: Any,  # noqa: ANN401 - SuperLU
    settings: FitSettings,
) -> np.ndarray:
    """Preconditioned conjugate gradients on the coupled system, from ``start``."""
    from models.geometry._couple import apply_data

    def apply(u: np.ndarray) -> np.ndarray:
        out = smooth @ u
        apply_data(rows.corners, rows.bary, rows.normals, rows.weights, settings.tangential, u, out)
        return out

    x = start.copy()
    residual = right - apply(x)
    z = factor.solve(residual)
    direction = z
    rho = float(np.vdot(residual, z))
    limit = settings.solver_tolerance**2 * float(np.vdot(right, factor.solve(right)))
    for _ in range(MAX_ITERATIONS):
        if rho <= limit:
            break
        applied = apply(direction)
        step = rho / float(np.vdot(direction, applied))
        x += step * direction
        residual -= step * applied
        z = factor.solve(residual)
        previous, rho = rho, float(np.vdot(residual, z))
        direction = z + (rho / previous) * direction
    return x


def _robust(distance: np.ndarray, scale: float) -> np.ndarray:
    """Geman-McClure weights."""
    return (1 + (distance / scale) ** 2) ** -2.0


def _template_rows(
    model: RegistrationModel,
    base: np.ndarray,
    moved: np.ndarray,
    surface: Surface,
    trust: np.ndarray,
    settings: FitSettings,
) -> DataRows:
    """Every trusted skin vertex pulls toward its nearest scan vertex's tangent plane."""
    now = base + moved
    normals = vertex_normals(now, model.skin_faces)
    ids = np.flatnonzero(trust[model.skin_ids] > 0)
    robust = settings.robust_end_mm
    distance, nearest = surface.tree.query(
        now[ids], distance_upper_bound=settings.gate_factor * robust
    )
    nearest = np.minimum(nearest, len(surface.vertices) - 1)
    facing = (normals[ids] * surface.normals[nearest]).sum(axis=1)
    keep = np.isfinite(distance) & ~surface.rim[nearest]
    keep &= facing > np.cos(np.radians(settings.gate_angle_deg))
    ids, nearest, distance = ids[keep], nearest[keep], distance[keep]
    across = surface.normals[nearest]
    gap = ((surface.vertices[nearest] - now[ids]) * across).sum(axis=1)
    bary = np.zeros((len(ids), 3))
    bary[:, 0] = 1.0
    return DataRows(
        np.repeat(ids[:, None], 3, axis=1),
        bary,
        across,
        model.mass[ids] * trust[model.skin_ids[ids]] * _robust(distance, robust),
        moved[ids] + gap[:, None] * across,
    )


def _scan_rows(
    model: RegistrationModel,
    base: np.ndarray,
    moved: np.ndarray,
    surface: Surface,
    samples: np.ndarray,
    areas: np.ndarray,
    trust: np.ndarray,
    settings: FitSettings,
) -> DataRows:
    """Every scan sample pulls the template point closest to it."""
    now = base + moved
    index = ClosestPointIndex(now, model.skin_faces)
    robust = settings.robust_end_mm
    found = index.query(surface.vertices[samples], max_distance=settings.gate_factor * robust)
    hit = np.flatnonzero(found.faces >= 0)
    corners = model.skin_faces[found.faces[hit]]
    bary = found.bary[hit]
    flat = face_normals(now, model.skin_faces)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    normals = flat[found.faces[hit]]
    facing = (normals * surface.normals[samples[hit]]).sum(axis=1)
    weight = np.einsum("kc,kc->k", bary, trust[model.skin_ids][corners])
    keep = (facing > np.cos(np.radians(settings.gate_angle_deg))) & (weight > 0)
    hit, corners, bary, normals, weight = (a[keep] for a in (hit, corners, bary, normals, weight))
    gap = surface.vertices[samples[hit]] - found.points[hit]
    here = np.einsum("kc,kca->ka", bary, moved[corners])
    return DataRows(
        corners,
        bary,
        normals,
        areas[hit] * weight * _robust(found.distances[hit], robust),
        here + gap,
    )
