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

from models.geometry.mesh import vertex_normals
from models.geometry.parametric import Surface
from models.geometry.settings import FitSettings
from models.geometry.template import RegistrationModel

MAX_ITERATIONS = 60


@dataclass(frozen=True)
class DataRows:
    """Rows of the data term: a surface point of the skin and where it should move.

    Attributes:
        corners: (K, 3) skin vertices.
        bary: (K, 3) their weights; a row about a difference of two vertices has -1, 1 and 0.
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
    base = np.ascontiguousarray(fitted[model.skin_ids])
    trust = model.weight * np.where(model.scalp & (not bald), settings.scalp_weight, 1.0)
    skin_trust = np.ascontiguousarray(trust[model.skin_ids])
    moved = np.zeros_like(base)
    lips = _lip_rows(model, base, settings)
    for smoothing, from_template, steps in zip(
        settings.smoothing_mm, settings.template_to_scan, settings.steps_per_level, strict=True
    ):
        system = None
        for _ in range(steps):
            pulled = _template_rows(model, base, moved, surface, skin_trust, settings)
            if from_template:
                rows = pulled
            else:
                pulling = _scan_rows(
                    model, base, moved, surface, samples, sample_areas, skin_trust, settings
                )
                rows = _both(pulling, pulled, settings.template_share)
            rows = _both(rows, lips, 1.0)
            right, diagonal = _right_side(rows, len(base), settings)
            if system is None:
                system = SmoothSystem(
                    model.bilaplacian, smoothing**4, settings.pull * model.mass, diagonal
                )
            moved = _solve(system, rows, right, moved, settings)
    out = fitted.copy()
    out[model.skin_ids] += moved
    for ball, lids in model.eyeballs:
        out[ball] += (out[lids] - fitted[lids]).mean(axis=0)
    return out


def _right_side(rows: DataRows, count: int, settings: FitSettings) -> tuple[np.ndarray, np.ndarray]:
    """Right-hand side (N, 3) of the data term, and its diagonal (N,)."""
    from models.geometry import _couple

    right, diagonal = np.zeros((count, 3)), np.zeros(count)
    _couple.right_side(
        rows.corners,
        rows.bary,
        rows.normals,
        rows.weights,
        settings.tangential,
        rows.wanted,
        right,
        diagonal,
    )
    return right, diagonal


class SmoothSystem:
    """The smooth part of the matrix, and a factor of it with a diagonal of data added."""

    def __init__(
        self,
        stiffness: sparse.csc_array,
        weight: float,
        smooth_diagonal: Float[np.ndarray, " N"],
        data_diagonal: Float[np.ndarray, " N"],
    ) -> None:
        """Factorise, in the order in which the vertices are numbered.

        Args:
            stiffness: (N, N) symmetric, its diagonal stored.
            weight: Multiplies the stiffness.
            smooth_diagonal: (N,) what the smooth part has beside it.
            data_diagonal: (N,) what the data add; only the factor has it.
        """
        count = stiffness.shape[0]
        columns = np.repeat(np.arange(count), np.diff(stiffness.indptr))
        on_diagonal = np.flatnonzero(stiffness.indices == columns)
        values = weight * stiffness.data
        values[on_diagonal] += smooth_diagonal
        # A symmetric matrix reads the same by rows and by columns.
        self.smooth = sparse.csr_array(
            (values, stiffness.indices, stiffness.indptr), shape=stiffness.shape
        )
        factored = values.copy()
        factored[on_diagonal] += data_diagonal
        self._factor: Any = splu(
            sparse.csc_array((factored, stiffness.indices, stiffness.indptr), stiffness.shape),
            permc_spec="NATURAL",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )

    def precondition(self, residual: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
        """Solve the scalar system for each axis."""
        return np.ascontiguousarray(self._factor.solve(residual))


def _solve(
    system: SmoothSystem,
    rows: DataRows,
    right: np.ndarray,
    start: np.ndarray,
    settings: FitSettings,
) -> np.ndarray:
    """Preconditioned conjugate gradients on the coupled system, from ``start``.

    They stop where the residual's norm, in the preconditioner's metric, falls below the tolerance
    times the norm of the solution in the matrix's.
    """
    from models.geometry._couple import apply_data

    def apply(u: np.ndarray) -> np.ndarray:
        out = system.smooth @ u
        apply_data(rows.corners, rows.bary, rows.normals, rows.weights, settings.tangential, u, out)
        return out

    x = start.copy()
    residual = right - apply(x)
    z = system.precondition(residual)
    direction = z
    rho = float(np.vdot(residual, z))
    for _ in range(MAX_ITERATIONS):
        if rho <= settings.solver_tolerance**2 * abs(float(np.vdot(right, x))):
            break
        applied = apply(direction)
        step = rho / float(np.vdot(direction, applied))
        x += step * direction
        residual -= step * applied
        z = system.precondition(residual)
        previous, rho = rho, float(np.vdot(residual, z))
        direction = z + (rho / previous) * direction
    return x


def _template_rows(
    model: RegistrationModel,
    base: np.ndarray,
    moved: np.ndarray,
    surface: Surface,
    trust: np.ndarray,
    settings: FitSettings,
) -> DataRows:
    """Every trusted skin vertex pulls toward its nearest scan vertex's tangent plane."""
    from models.geometry import _couple

    now = base + moved
    ids = np.flatnonzero(trust > 0)
    robust = settings.robust_end_mm
    distance, nearest = surface.tree.query(
        now[ids], distance_upper_bound=settings.gate_factor * robust
    )
    return DataRows(
        *_couple.template_rows(
            ids,
            now,
            moved,
            vertex_normals(now, model.skin_faces),
            model.mass * trust,
            distance,
            np.minimum(nearest, len(surface.vertices) - 1),
            surface.vertices,
            surface.normals,
            surface.rim,
            np.cos(np.radians(settings.gate_angle_deg)),
            robust,
        )
    )


def _lip_rows(model: RegistrationModel, base: np.ndarray, settings: FitSettings) -> DataRows:
    """Lips that lie against each other in the mean head stay so, where the fit has them closed.

    No scan shows the inside of a closed mouth, so nothing else keeps its lips from parting or from
    passing through each other. Each row is about a difference: what the lower vertex moves more
    than the upper one should make up for ``gap - rest`` along the upper one's normal, and counts
    less the larger that is (Geman and McClure's weight). Where the median of ``gap - rest`` says
    that the fit has the mouth open, there are no rows.
    """
    upper, lower = model.lips.T
    normals = vertex_normals(base, model.skin_faces)[upper]
    gap = np.einsum("pa,pa->p", base[lower] - base[upper], normals) - model.lip_rest
    if len(gap) and np.median(gap) > settings.lip_gap_mm:
        upper, lower, normals, gap = upper[:0], lower[:0], normals[:0], gap[:0]
    loss = 1.0 + (gap / settings.lip_gap_mm) ** 2
    mass = 0.5 * (model.mass[upper] + model.mass[lower])
    return DataRows(
        np.stack([upper, lower, lower], axis=1),
        np.tile([-1.0, 1.0, 0.0], (len(upper), 1)),
        normals,
        settings.lip_weight * mass / loss**2,
        -gap[:, None] * normals,
    )


def _both(one: DataRows, other: DataRows, share: float) -> DataRows:
    """The rows of both, the other's weights multiplied by ``share``."""
    return DataRows(
        np.concatenate([one.corners, other.corners]),
        np.concatenate([one.bary, other.bary]),
        np.concatenate([one.normals, other.normals]),
        np.concatenate([one.weights, share * other.weights]),
        np.concatenate([one.wanted, other.wanted]),
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
    from models.geometry import _couple

    now = base + moved
    robust = settings.robust_end_mm
    points = surface.vertices[samples]
    found = model.skin_index.moved(now).query(points, max_distance=settings.gate_factor * robust)
    return DataRows(
        *_couple.scan_rows(
            points,
            surface.normals[samples],
            areas,
            found.faces,
            found.bary,
            found.distances**2,
            model.skin_faces,
            now,
            moved,
            vertex_normals(now, model.skin_faces),
            trust,
            np.cos(np.radians(settings.gate_angle_deg)),
            robust,
        )
    )
