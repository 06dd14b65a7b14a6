"""One head scan to FLAME: units, alignment, parameters, free vertices, and what came of it."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from models.face.flame import NOW_SEVEN_IN_STATIC_51
from models.geometry.alignment import Similarity, align_similarity
from models.geometry.closeness import COVER_MM, Closeness, measure
from models.geometry.mesh import crop, surface_at
from models.geometry.mouth import with_the_mouth_as_open
from models.geometry.nonrigid import refine
from models.geometry.parametric import (
    FitState,
    Subset,
    Surface,
    fit_parameters,
)
from models.geometry.placement import place_by_shape
from models.geometry.quality import QualityModel, evidence_of, judge
from models.geometry.settings import FitSettings, QualityLimits
from models.geometry.template import MOUTH, RegistrationModel
from models.geometry.winding import convexity

UNITS_MM = {"m": 1e3, "dm": 1e2, "cm": 1e1, "mm": 1.0}
INNER = 51
MIN_LANDMARKS = 4
MIN_ABOVE = 20
"""Landmarks above the mouth from which the scale is taken."""
MIN_SURFACE = 500
SNAP = 1.25
HEAD_EXTENT_MM = (120.0, 900.0)
SHAPE_CANDIDATES = 5


MOUTH_OVERRULED = "mouth_from_surface"


class RegistrationError(ValueError):
    """A scan or its landmarks cannot be registered; the message says why."""


@dataclass(frozen=True, slots=True)
class Scan:
    """A head scan in its own frame.

    Attributes:
        vertices: (N, 3) in ``unit``.
        faces: (M, 3) triangles, either winding as long as it is the same throughout.
        unit: What the data set declares: m, dm, cm, mm or unknown.
        bald: The scalp is bare or under a tight cap, so its surface is the head's.
    """

    vertices: Float[np.ndarray, "n 3"]
    faces: Int[np.ndarray, "m 3"]
    unit: str = "unknown"
    bald: bool = False


@dataclass(frozen=True, slots=True)
class Registration:
    """FLAME on a scan.

    FLAME's frame is the frame of the result: the global rotation in ``theta`` is zero and the
    similarity ``x_flame = scale * rotation @ x_scan + translation`` places the scan.

    Attributes:
        status: ``ok``, or ``rejected`` where a quality limit is exceeded.
        reason: Which limit, empty when ok.
        beta: (S,) identity, standard deviations.
        psi: (E,) expression.
        theta: (15,) pose, radians.
        scale: Metres per scan unit.
        rotation: (3, 3).
        translation: (3,) metres.
        vertices: (V, 3) registered head, metres.
        vertices_neutral: (V, 3) the same without expression and pose, metres.
        residuals_mm: (N,) distance of each scan vertex of the face to the registered surface;
            NaN outside the face, and at vertices passed over in a scan of very many.
        residual_median_mm: Median of those.
        residual_q95_mm: Their 95th percentile.
        template_median_mm: Median distance from the face's vertices to the scan.
        template_q95_mm: 95th percentile of that, including what the scan does not show.
        landmark_rms_mm: Root mean square distance of the landmarks; NaN without any.
        coverage: Share of the face's area that lies on the scan.
        lower_face: Share of the lower face that the parametric fit has on the scan: little where it
            bridges an open mouth.
        flipped_faces: Triangles of the skin turned over by the refinement.
        prior_energy: Sum of squares of beta and psi.
        flags: What a reader should know: ``scale_not_metric``, ``unit_mismatch``,
            ``normals_flipped``, ``mouth_from_surface`` (its landmarks were overruled),
            ``no_landmarks``, ``landmarks_from_views`` (set by the stage).
        score: Estimated probability that the registration is right; NaN where not scored.
    """

    status: str
    reason: str
    beta: Float[np.ndarray, " s"]
    psi: Float[np.ndarray, " e"]
    theta: Float[np.ndarray, " t"]
    scale: float
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]
    vertices: Float[np.ndarray, "V 3"]
    vertices_neutral: Float[np.ndarray, "V 3"]
    residuals_mm: Float[np.ndarray, " n"]
    residual_median_mm: float
    residual_q95_mm: float
    template_median_mm: float
    template_q95_mm: float
    landmark_rms_mm: float
    coverage: float
    lower_face: float
    flipped_faces: int
    prior_energy: float
    flags: tuple[str, ...]
    score: float = float("nan")


def register(
    scan: Scan,
    landmarks: Float[np.ndarray, "l 3"] | None,
    model: RegistrationModel,
    settings: FitSettings,
    limits: QualityLimits,
    quality: QualityModel | None = None,
) -> Registration:
    """Fit FLAME to one scan.

    Args:
        scan: The scan.
        landmarks: In the scan's frame and unit: 68 in iBUG order, its inner 51, or the NoW seven
            (told apart by their number). NaN rows are missing. None places the scan by its shape,
            which needs a declared unit and is flagged ``no_landmarks``.
        model: The prepared model, with the landmark embedding that the points follow.
        settings: Schedule.
        limits: Where a result is rejected.
        quality: Weights of the score; None leaves it NaN and unjudged.

    Raises:
        RegistrationError: The input cannot be registered at all.
    """
    vertices, faces = check_scan(scan)
    if landmarks is None:
        marks = np.full((len(model.landmark_faces), 3), np.nan)
        inward = convexity(vertices, faces) < 0
        faces = _turned_over(faces) if inward else faces
        placements, flags = _placed_by_shape(scan, vertices, faces, model)
        schedule = _patient(settings)
        views = [_view(vertices, faces, marks, p, model, settings) for p in placements]
    else:
        marks = inner_landmarks(landmarks)
        placed, flags = place_scan(scan.unit, marks, model)
        placements, schedule = [placed], settings
        views = [_view(vertices, faces, marks, placed, model, settings)]
        inward = _facing(views[0], model) < 0
        if inward:
            # Measured again, so that both windings of a scan give the same bytes.
            views = [_view(vertices, _turned_over(faces), marks, placed, model, settings)]
    if inward:
        flags.append("normals_flipped")
    fits = [
        fit_parameters(model, view.marks, view.surface, schedule, bald=scan.bald) for view in views
    ]
    whole = Subset(model, np.arange(len(model.template)))
    best = 0
    if len(fits) > 1:
        best = int(np.argmax([_fit_score(model, *pair) for pair in zip(fits, views, strict=True)]))
    view, placed = views[best], placements[best]
    first = fits[best]
    if landmarks is None:
        # The stiff jaw of that schedule leaves an open mouth too closed.
        first = fit_parameters(
            model, view.marks, view.surface, settings, bald=scan.bald, start=first
        )
    state, lower_face = with_the_mouth_as_open(
        model, first, view.marks, view.surface, view.areas, settings, bald=scan.bald
    )
    if state is not first and landmarks is not None:
        flags.append(MOUTH_OVERRULED)
    posed, blend = whole.evaluate(state)
    fitted = posed @ state.rotation.T + state.translation
    samples, sample_areas = _scan_samples(view.surface, view.areas, fitted, settings)
    refined = refine(model, fitted, view.surface, samples, sample_areas, settings, bald=scan.bald)
    measured = measure(model, refined, fitted, view.surface, view.areas, view.marks)
    residuals = np.full(len(vertices), np.nan)
    residuals[view.ids] = measured.residuals_mm
    result = _result(
        model, state, placed, refined, posed, blend, measured, lower_face, residuals, flags
    )
    return judge(result, limits, quality, evidence_of(result, marks, model))


def _patient(settings: FitSettings) -> FitSettings:
    """A schedule for a start without landmarks: longer, from further off, with a stiff neck.

    Nothing but the prior then tells a turned head from a bent neck.
    """
    return replace(
        settings,
        icp_steps=4 * settings.icp_steps,
        robust_start_mm=3 * settings.robust_start_mm,
        pose_sigma_rad=settings.pose_sigma_rad / 4,
    )


def _turned_over(faces: np.ndarray) -> np.ndarray:
    """The same triangles wound the other way."""
    return np.ascontiguousarray(faces[:, ::-1])


@dataclass(frozen=True, slots=True)
class _View:
    """What is used of a scan placed in FLAME's frame, mm.

    Attributes:
        marks: (L, 3) landmarks.
        ids: (K,) scan vertices of ``surface``.
        surface: Vertices around the face, thinned out where there are very many.
        areas: (K,) surface that each of them stands for, mm^2.
    """

    marks: np.ndarray
    ids: np.ndarray
    surface: Surface
    areas: np.ndarray


def _view(
    vertices: np.ndarray,
    faces: np.ndarray,
    marks: np.ndarray,
    placed: Similarity,
    model: RegistrationModel,
    settings: FitSettings,
) -> _View:
    """Place the scan and crop it around the landmarks, or around the template's.

    Raises:
        RegistrationError: Hardly any surface is left.
    """
    marks_mm = placed.apply(marks)
    given = np.isfinite(marks_mm).all(axis=1)
    centre = (marks_mm[given] if given.any() else model.landmarks).mean(axis=0)
    near, triangles = crop(vertices, faces, placed.invert(centre), settings.crop_mm / placed.scale)
    at_mm = placed.apply(vertices[near])
    count = min(len(near), settings.surface_vertices)
    wanted = np.zeros(len(near), dtype=bool)
    wanted[((np.arange(count) + 0.5) * len(near) / max(count, 1)).astype(np.int64)] = True
    normals, rim, areas = surface_at(at_mm, triangles, wanted)
    used = np.flatnonzero(wanted & (np.einsum("na,na->n", normals, normals) > 0))
    if len(used) < MIN_SURFACE:
        raise RegistrationError(
            f"expected >= {MIN_SURFACE} scan vertices with surface within {settings.crop_mm:g} mm "
            f"of the landmarks, got {len(used)}; check the landmarks' unit and frame"
        )
    # A tree that is built once and asked a few thousand times is best built loosely.
    tree = cKDTree(at_mm[used], balanced_tree=False, compact_nodes=False)
    surface = Surface(at_mm[used], normals[used], rim[used], tree)
    return _View(marks_mm, near[used], surface, areas[used] * (len(near) / count))


def _placed_by_shape(
    scan: Scan, vertices: np.ndarray, faces: np.ndarray, model: RegistrationModel
) -> tuple[list[Similarity], list[str]]:
    """Candidate placements of a scan without landmarks.

    Raises:
        RegistrationError: The unit is unknown, or the scan is no head's size in it.
    """
    if scan.unit not in UNITS_MM:
        raise RegistrationError(
            f"expected landmarks, or a scan whose unit is one of {', '.join(UNITS_MM)}, got no "
            f"landmarks and unit {scan.unit!r}"
        )
    scale = UNITS_MM[scan.unit]
    extent = scale * float(np.ptp(vertices, axis=0).max())
    if not HEAD_EXTENT_MM[0] < extent < HEAD_EXTENT_MM[1]:
        raise RegistrationError(
            f"expected a head scan {HEAD_EXTENT_MM[0]:g} to {HEAD_EXTENT_MM[1]:g} mm large, got "
            f"{extent:.3g} mm in the declared unit {scan.unit}; give landmarks"
        )
    normals, _, areas = surface_at(vertices, faces, np.ones(len(vertices), dtype=bool))
    candidates = place_by_shape(vertices, normals, areas, model, scale, most=SHAPE_CANDIDATES)
    return candidates, ["no_landmarks"]


def _fit_score(model: RegistrationModel, state: FitState, view: _View) -> float:
    """Share of the fitted face's area near scan that faces the same way."""
    ids = np.flatnonzero(model.face & model.exposed)
    posed, blend = Subset(model, ids).evaluate(state)
    normals = np.einsum("nab,nb->na", blend, model.normals[ids]) @ state.rotation.T
    distance, nearest = view.surface.tree.query(posed @ state.rotation.T + state.translation)
    facing = (view.surface.normals[nearest] * normals).sum(axis=1)
    near = np.clip(facing, 0, 1) / (1 + (distance / COVER_MM) ** 2)
    return float((near * model.areas[ids]).sum() / model.areas[ids].sum())


def inner_landmarks(landmarks: Float[np.ndarray, "l 3"]) -> Float[np.ndarray, "51 3"]:
    """The 51 landmarks inside the face in iBUG order, NaN where not given.

    Raises:
        RegistrationError: Not 68, 51 or 7 points, or fewer than four of use.
    """
    points = np.asarray(landmarks, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or len(points) not in (68, INNER, 7):
        raise RegistrationError(
            "expected 68 (iBUG), 51 (inner iBUG) or 7 (NoW) landmarks of three coordinates, got "
            f"{points.shape}"
        )
    marks = np.full((INNER, 3), np.nan)
    if len(points) == 7:
        marks[list(NOW_SEVEN_IN_STATIC_51)] = points
    else:
        marks[:] = points[-INNER:]
    given = np.isfinite(marks).all(axis=1)
    if int(given.sum()) < MIN_LANDMARKS:
        raise RegistrationError(
            f"expected >= {MIN_LANDMARKS} landmarks inside the face, got {int(given.sum())}"
        )
    marks[~given] = np.nan
    return marks


def place_scan(
    unit: str, marks: Float[np.ndarray, "51 3"], model: RegistrationModel
) -> tuple[Similarity, list[str]]:
    """Similarity from the scan to FLAME's frame in millimetres, by the landmarks.

    The scale is snapped to a power of ten where it is within 25 % of one, because heads differ in
    size and scanners measure; a scale that fits none is kept and flagged. An open mouth makes a
    face longer by up to a fifth, so that the landmarks above it say how large the head is, where
    enough of them are given.

    Raises:
        RegistrationError: The landmarks are a mirror image, or lie on a line.
    """
    given = np.isfinite(marks).all(axis=1)
    target, source = model.landmarks[given], marks[given]
    try:
        free = align_similarity(source, target)
    except ValueError as error:
        raise RegistrationError(f"landmarks do not place the scan: {error}") from error
    if free.mirrored and align_similarity(source * [-1, 1, 1], target).rms < 0.6 * free.rms:
        raise RegistrationError(
            "expected landmarks of a face, got its mirror image: the scan is mirrored, or left "
            "and right are swapped in the landmarks"
        )
    flags: list[str] = []
    scale = free.scale
    above = np.flatnonzero(given[: MOUTH.start])
    if len(above) >= MIN_ABOVE:
        scale = align_similarity(marks[above], model.landmarks[above]).scale
    power = 10.0 ** np.round(np.log10(scale))
    if not 1 / SNAP < scale / power < SNAP:
        flags.append("scale_not_metric")
        return align_similarity(source, target, fixed_scale=scale), flags
    if unit in UNITS_MM and not np.isclose(power, UNITS_MM[unit]):
        flags.append("unit_mismatch")
    return align_similarity(source, target, fixed_scale=float(power)), flags


def check_scan(scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """The scan's arrays, float64 and int64.

    Raises:
        RegistrationError: Empty, not finite, without faces, or damaged.
    """
    vertices = np.ascontiguousarray(scan.vertices, dtype=np.float64)
    faces = np.ascontiguousarray(scan.faces, dtype=np.int64)
    if vertices.size == 0:
        raise RegistrationError("expected a scan, got no vertices")
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise RegistrationError(f"expected scan vertices (n, 3), got {vertices.shape}")
    broken = int((~np.isfinite(vertices).all(axis=1)).sum())
    if broken:
        raise RegistrationError(
            f"expected finite scan vertices, got {broken} of {len(vertices)} NaN or infinite"
        )
    if faces.size == 0:
        raise RegistrationError(
            "expected a triangulated scan, got a point cloud without faces; mesh it first"
        )
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise RegistrationError(
            f"expected faces that index {len(vertices)} vertices from 0, got numbers "
            f"{int(faces.min())} to {int(faces.max())}"
        )
    return vertices, faces


def _facing(view: _View, model: RegistrationModel) -> float:
    """Agreement of the placed scan's normals with the template's around the landmarks."""
    given = np.flatnonzero(np.isfinite(view.marks).all(axis=1))
    corners = np.asarray(model.arrays.faces)[model.landmark_faces[given]]
    expected = model.normals[corners].sum(axis=1)
    _, nearest = view.surface.tree.query(view.marks[given], k=list(range(1, 9)))
    return float(np.einsum("lka,la->", view.surface.normals[nearest], expected))


def _scan_samples(
    surface: Surface, areas: np.ndarray, fitted: np.ndarray, settings: FitSettings
) -> tuple[np.ndarray, np.ndarray]:
    """A systematic sample by area of the scan's inner vertices near the fit, and their areas."""
    low = fitted.min(axis=0) - settings.robust_end_mm
    high = fitted.max(axis=0) + settings.robust_end_mm
    inside = ((surface.vertices > low) & (surface.vertices < high)).all(axis=1)
    ids = np.flatnonzero(inside & ~surface.rim & (areas > 0))
    if len(ids) == 0:
        return ids, np.zeros(0)
    cumulated = np.cumsum(areas[ids])
    picks = (np.arange(settings.scan_samples) + 0.5) / settings.scan_samples * cumulated[-1]
    slots = np.minimum(np.searchsorted(cumulated, picks), len(ids) - 1)
    chosen, counts = np.unique(slots, return_counts=True)
    return ids[chosen], counts * cumulated[-1] / settings.scan_samples


def _result(
    model: RegistrationModel,
    state: FitState,
    placed: Similarity,
    refined: np.ndarray,
    posed: np.ndarray,
    blend: np.ndarray,
    measured: Closeness,
    lower_face: float,
    residuals: np.ndarray,
    flags: list[str],
) -> Registration:
    """Everything in FLAME's frame and metres."""
    modes = model.identity_modes
    in_flame = (refined - state.translation) @ state.rotation
    beta, psi = state.coefficients[:modes], state.coefficients[modes:]
    free = ((in_flame - posed)[:, None, :] @ blend)[:, 0, :]
    directions = model.basis.reshape(model.template.size, -1)
    neutral = model.template.ravel() + directions[:, :modes] @ beta
    rotation = state.rotation.T @ placed.rotation
    shift = state.rotation.T @ (placed.translation - state.translation)
    face = residuals[np.isfinite(residuals)]
    return Registration(
        status="ok",
        reason="",
        beta=beta,
        psi=psi,
        theta=state.pose(len(model.arrays.parents)),
        scale=placed.scale / 1e3,
        rotation=rotation,
        translation=shift / 1e3,
        vertices=in_flame / 1e3,
        vertices_neutral=(neutral.reshape(-1, 3) + free) / 1e3,
        residuals_mm=residuals,
        residual_median_mm=float(np.median(face)) if len(face) else float("inf"),
        residual_q95_mm=float(np.percentile(face, 95)) if len(face) else float("inf"),
        template_median_mm=float(np.median(measured.template_mm)),
        template_q95_mm=float(np.percentile(measured.template_mm, 95)),
        landmark_rms_mm=measured.landmark_rms_mm,
        coverage=measured.coverage,
        lower_face=lower_face,
        flipped_faces=measured.flipped_faces,
        prior_energy=float((state.coefficients**2).sum()),
        flags=tuple(flags),
    )
