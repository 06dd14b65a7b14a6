"""Registration of synthetic scans of known heads: recovery, invariances, refusals, limits."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from models.face.flame import NOW_SEVEN_IN_STATIC_51, pose_vertices, shape_vertices
from models.geometry.alignment import align_similarity
from models.geometry.mesh import face_normals, vertex_normals
from models.geometry.registration import (
    Registration,
    RegistrationError,
    Scan,
    inner_landmarks,
    place_scan,
    register,
)
from models.geometry.template import MOUTH
from models.geometry.winding import convexity


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    return Rotation.random(rng=rng).as_matrix()


class Case:
    """A head of known parameters as a scanner would give it."""

    def __init__(self, toy, model, seed: int, noise_mm: float = 1.0) -> None:
        rng = np.random.default_rng(seed)
        self.beta = rng.normal(size=model.identity_modes)
        psi = 0.7 * rng.normal(size=model.basis.shape[2] - model.identity_modes)
        theta = np.zeros(15)
        theta[6] = 0.12
        self.head = pose_vertices(model.arrays, self.beta, psi, theta)
        skin = model.skin_faces
        fine, self.faces = toy.subdivide(self.head[model.skin_ids], skin)
        fine, self.faces = toy.subdivide(fine, self.faces)
        wave = np.sin(fine @ rng.normal(scale=120, size=3)) * 2e-4
        fine = fine + wave[:, None] * vertex_normals(fine, self.faces)
        corners = self.head[model.arrays.faces[model.landmark_faces]]
        marks = np.einsum("lk,lka->la", model.landmark_bary, corners)
        marks = marks + rng.normal(scale=1e-3 * noise_mm, size=marks.shape)
        self.turn, self.shift = random_rotation(rng), rng.normal(scale=0.3, size=3)
        self.vertices, self.marks = (
            fine @ self.turn.T + self.shift,
            marks @ self.turn.T + self.shift,
        )

    def scan(self, **changes) -> Scan:
        return replace(Scan(self.vertices, self.faces, bald=True), **changes)


@pytest.fixture(scope="module")
def case(toy, toy_model) -> Case:
    return Case(toy, toy_model, seed=5)


@pytest.fixture(scope="module")
def fit(case, toy_model, settings, limits) -> Registration:
    return register(case.scan(), case.marks, toy_model, settings, limits)


@pytest.mark.parametrize("seed", [5, 6, 7])
def test_recovers_a_head_of_known_vertices(toy, toy_model, settings, limits, seed) -> None:
    known = Case(toy, toy_model, seed)
    found = register(known.scan(), known.marks, toy_model, settings, limits)
    assert found.status == "ok"
    assert found.reason == ""
    assert found.flags == ()
    assert found.residual_median_mm < 0.1
    assert found.residual_q95_mm < 0.4
    assert found.coverage > 0.95
    assert found.flipped_faces == 0
    back = (found.vertices - found.translation) @ found.rotation / found.scale
    true = known.head @ known.turn.T + known.shift
    gap = 1e3 * np.linalg.norm(back - true, axis=1)[toy_model.face]
    assert np.median(gap) < 1.2
    assert np.percentile(gap, 95) < 3.0


def test_reported_residuals_are_distances_to_the_reported_mesh(case, fit, toy_model) -> None:
    from models.geometry import closest_points

    placed = fit.scale * case.vertices @ fit.rotation.T + fit.translation
    distances = closest_points(placed, fit.vertices, toy_model.arrays.faces).distances
    face = np.isfinite(fit.residuals_mm)
    assert face.sum() > 1000
    np.testing.assert_allclose(fit.residuals_mm[face], 1e3 * distances[face], atol=1e-6)
    assert fit.residual_median_mm == pytest.approx(np.median(fit.residuals_mm[face]))
    assert fit.prior_energy == pytest.approx((fit.beta**2).sum() + (fit.psi**2).sum())
    np.testing.assert_array_equal(fit.theta[[0, 1, 2, *range(9, 15)]], 0)


def test_neutral_mesh_is_the_identity_plus_the_free_part(case, fit, toy_model) -> None:
    arrays = toy_model.arrays
    parametric = pose_vertices(arrays, fit.beta, fit.psi, fit.theta)
    free = np.linalg.norm(fit.vertices - parametric, axis=1)
    neutral = np.linalg.norm(fit.vertices_neutral - shape_vertices(arrays, fit.beta), axis=1)
    rigid = arrays.weights.max(axis=1) > 0.999
    np.testing.assert_allclose(neutral[rigid], free[rigid], atol=1e-7)
    assert neutral.max() < 1.2 * free.max()


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1e3), ("cm", 1e2), ("dm", 10.0), ("m", 1.0)])
def test_units_make_no_difference(case, fit, toy_model, settings, limits, unit, factor) -> None:
    scan = case.scan(vertices=factor * case.vertices, unit=unit)
    found = register(scan, factor * case.marks, toy_model, settings, limits)
    assert found.scale == pytest.approx(1 / factor)
    assert found.flags == ()
    np.testing.assert_allclose(found.vertices, fit.vertices, atol=2e-6)


def test_wrongly_declared_unit_and_strange_scale_are_flagged(
    case, toy_model, settings, limits
) -> None:
    declared = register(case.scan(unit="mm"), case.marks, toy_model, settings, limits)
    assert declared.flags == ("unit_mismatch",)
    scan = case.scan(vertices=0.37 * case.vertices)
    strange = register(scan, 0.37 * case.marks, toy_model, settings, limits)
    assert strange.flags == ("scale_not_metric",)
    assert strange.scale == pytest.approx(1 / 0.37, rel=0.08)
    assert strange.residual_median_mm < 0.15


def test_position_makes_no_difference(case, fit, toy_model, settings, limits) -> None:
    turn = random_rotation(np.random.default_rng(8))
    scan = case.scan(vertices=case.vertices @ turn.T + 0.7)
    found = register(scan, case.marks @ turn.T + 0.7, toy_model, settings, limits)
    np.testing.assert_allclose(found.vertices, fit.vertices, atol=2e-6)


def test_winding_makes_no_difference(case, fit, toy_model, settings, limits) -> None:
    scan = case.scan(faces=case.faces[:, ::-1])
    found = register(scan, case.marks, toy_model, settings, limits)
    assert found.flags == ("normals_flipped",)
    assert found.vertices.tobytes() == fit.vertices.tobytes()


def test_same_bytes_twice(case, fit, toy_model, settings, limits) -> None:
    again = register(case.scan(), case.marks, toy_model, settings, limits)
    assert again.vertices.tobytes() == fit.vertices.tobytes()
    assert again.residuals_mm.tobytes() == fit.residuals_mm.tobytes()


def test_seven_landmarks_and_a_missing_one_do(case, toy_model, settings, limits) -> None:
    seven = register(
        case.scan(), case.marks[list(NOW_SEVEN_IN_STATIC_51)], toy_model, settings, limits
    )
    assert seven.residual_median_mm < 0.12
    holes = case.marks.copy()
    holes[20] = np.nan
    assert register(case.scan(), holes, toy_model, settings, limits).residual_median_mm < 0.1


def test_three_landmarks_far_off_are_outvoted(case, toy_model, settings, limits) -> None:
    wrong = case.marks.copy()
    wrong[[3, 20, 40]] += 0.025
    found = register(case.scan(), wrong, toy_model, settings, limits)
    assert found.residual_median_mm < 0.12


def test_half_a_face_is_rejected_for_its_coverage(case, toy_model, settings, limits) -> None:
    centre = (case.vertices - case.shift) @ case.turn
    half = (centre[case.faces][:, :, 0] > 0.0).all(axis=1)
    found = register(
        case.scan(faces=case.faces[half]),
        case.marks,
        toy_model,
        settings,
        replace(limits, min_coverage=0.7),
    )
    assert found.status == "rejected"
    assert "coverage" in found.reason
    assert found.residual_median_mm < 0.2


def test_limits_reject_with_the_figure(case, toy_model, settings, limits) -> None:
    strict = replace(limits, max_median_mm=1e-4, max_prior_energy=0.1)
    found = register(case.scan(), case.marks, toy_model, settings, strict)
    assert found.status == "rejected"
    assert "residual median" in found.reason
    assert "prior energy" in found.reason


def test_68_landmarks_drop_the_contour() -> None:
    points = np.random.default_rng(0).normal(size=(68, 3))
    np.testing.assert_array_equal(inner_landmarks(points), points[17:])


def test_without_landmarks_a_unit_of_head_size_is_needed(case, toy_model, settings, limits) -> None:
    with pytest.raises(RegistrationError, match="no landmarks and unit 'unknown'"):
        register(case.scan(), None, toy_model, settings, limits)
    with pytest.raises(RegistrationError, match="120 to 900 mm"):
        register(case.scan(unit="mm"), None, toy_model, settings, limits)


def test_without_landmarks_a_known_head_is_found(case, fit, toy_model, settings, limits) -> None:
    found = register(case.scan(unit="m"), None, toy_model, settings, limits)
    assert "no_landmarks" in found.flags
    assert np.isnan(found.landmark_rms_mm)
    assert found.residual_median_mm < 0.15
    gap = 1e3 * np.linalg.norm(found.vertices - fit.vertices, axis=1)[toy_model.face]
    assert np.median(gap) < 4.0


def _refusals(case: Case) -> dict[str, tuple[Scan, np.ndarray, str]]:
    broken = case.vertices.copy()
    broken[7] = np.nan
    few = case.marks.copy()
    few[3:] = np.nan
    mirror = np.array([-1.0, 1, 1])
    return {
        "empty": (case.scan(vertices=np.zeros((0, 3))), case.marks, "no vertices"),
        "nan": (case.scan(vertices=broken), case.marks, "1 of .* NaN"),
        "cloud": (case.scan(faces=np.zeros((0, 3), int)), case.marks, "point cloud"),
        "range": (case.scan(faces=case.faces + len(case.vertices)), case.marks, "index"),
        "sixty-seven": (case.scan(), np.zeros((67, 3)), "got \\(67, 3\\)"),
        "few": (case.scan(), few, ">= 4 landmarks"),
        "line": (case.scan(), np.outer(np.arange(51.0), [1, 2, 3]), "do not place"),
        "mirrored scan": (
            case.scan(vertices=case.vertices * mirror),
            case.marks * mirror,
            "mirror image",
        ),
        "elsewhere": (case.scan(vertices=case.vertices + 5.0), case.marks, "within 160 mm"),
    }


@pytest.mark.parametrize(
    "name",
    ["empty", "nan", "cloud", "range", "sixty-seven", "few", "line", "mirrored scan", "elsewhere"],
)
def test_refusals_say_why(case, toy_model, settings, limits, name) -> None:
    scan, marks, message = _refusals(case)[name]
    with pytest.raises(RegistrationError, match=message):
        register(scan, marks, toy_model, settings, limits)


def test_shoulders_do_not_turn_the_scan_inside_out() -> None:
    """A front half of a ball, wound outward, above a large sheet that faces up."""
    u, v = np.meshgrid(np.linspace(0, np.pi, 30), np.linspace(0.1, np.pi - 0.1, 30))
    shell = 100 * np.stack([np.cos(u) * np.sin(v), np.cos(v), np.sin(u) * np.sin(v)], -1)
    a, b = np.meshgrid(np.linspace(-250, 250, 30), np.linspace(-100, 150, 30))
    sheet = np.stack([a, np.full_like(a, -200.0), b], -1)
    corner = (np.arange(29)[:, None] * 30 + np.arange(29)).ravel()
    ids = np.stack([corner, corner + 30, corner + 31, corner + 1], axis=1)
    grid = np.concatenate([ids[:, [0, 1, 2]], ids[:, [0, 2, 3]]])
    vertices = np.concatenate([shell.reshape(-1, 3), sheet.reshape(-1, 3)])
    outward = grid if convexity(vertices, grid) > 0 else grid[:, ::-1]
    assert convexity(vertices, outward) > 0
    middle = vertices[outward].mean(axis=1)
    assert ((face_normals(vertices, outward) * middle).sum(axis=1)[: 2 * 28 * 28] > 0).mean() > 0.99
    upward = grid if face_normals(vertices, grid + 900)[:, 1].mean() > 0 else grid[:, ::-1]
    both = np.concatenate([outward, upward + 900])
    assert convexity(vertices, both) > 0
    assert convexity(vertices, both[:, ::-1]) < 0


def test_a_thinned_scan_gives_nearly_the_same_and_measures_fewer(
    case, fit, toy_model, settings, limits
) -> None:
    few = replace(settings, surface_vertices=len(case.vertices) // 3)
    thin = register(case.scan(), case.marks, toy_model, few, limits)
    assert thin.status == "ok"
    measured, all_of_them = np.isfinite(thin.residuals_mm), np.isfinite(fit.residuals_mm)
    assert 0.25 < measured.sum() / all_of_them.sum() < 0.42
    gap = 1e3 * np.linalg.norm(thin.vertices - fit.vertices, axis=1)[toy_model.face]
    assert np.median(gap) < 0.8  # a smooth face slides within its surface
    assert thin.residual_median_mm < 1.3 * fit.residual_median_mm
    assert thin.template_median_mm < fit.template_median_mm + 0.05


def test_template_distances_are_nearly_those_to_the_surface(case, fit, toy_model) -> None:
    from models.geometry import closest_points

    placed = fit.scale * case.vertices @ fit.rotation.T + fit.translation
    exact = 1e3 * closest_points(fit.vertices[toy_model.face], placed, case.faces).distances
    assert fit.template_median_mm == pytest.approx(np.median(exact), abs=0.04)
    assert fit.template_q95_mm == pytest.approx(np.percentile(exact, 95), rel=0.15, abs=0.05)


def test_an_open_mouth_does_not_make_a_head_larger(toy_model) -> None:
    marks = 1.08 * toy_model.landmarks
    marks[MOUTH, 1] -= 35.0
    assert align_similarity(marks, toy_model.landmarks).scale < 0.8  # taken for no unit's
    placed, flags = place_scan("mm", marks, toy_model)
    assert (placed.scale, flags) == (1.0, [])
    # Where no unit fits, the scale is that of what lies above the mouth.
    placed, flags = place_scan("unknown", 2.7 * marks, toy_model)
    assert placed.scale == pytest.approx(1 / (2.7 * 1.08))
    assert flags == ["scale_not_metric"]
    # Too few landmarks above it: all count.
    few = marks.copy()
    few[:20] = np.nan
    _, flags = place_scan("mm", few, toy_model)
    assert flags == ["scale_not_metric"]
