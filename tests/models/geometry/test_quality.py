"""The score: closed forms, monotony, drift; the limits and their reasons."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from models.face.flame import shape_vertices
from models.geometry.quality import EVIDENCE, Evidence, QualityModel, evidence_of, judge
from models.geometry.registration import Registration

NOTHING = Evidence(*[0.0] * len(EVIDENCE))


def weights(**values: float) -> QualityModel:
    return QualityModel(**({"intercept": 3.0} | dict.fromkeys(EVIDENCE, 0.0) | values))


@pytest.fixture
def perfect(toy_model) -> tuple[Registration, np.ndarray]:
    """The mean head registered to itself, and its landmarks in a scan of 2 mm per unit."""
    arrays = toy_model.arrays
    beta = np.zeros(toy_model.identity_modes)
    vertices = shape_vertices(arrays, beta)
    corners = vertices[np.asarray(arrays.faces)[toy_model.landmark_faces]]
    marks = np.einsum("lk,lka->la", toy_model.landmark_bary, corners)
    turn = Rotation.from_rotvec([0.3, -0.2, 0.9]).as_matrix()
    result = Registration(
        status="ok",
        reason="",
        beta=beta,
        psi=np.zeros(6),
        theta=np.zeros(15),
        scale=0.002,
        rotation=turn,
        translation=np.array([0.1, 0.2, 0.3]),
        vertices=vertices,
        vertices_neutral=vertices.copy(),
        residuals_mm=np.zeros(3),
        residual_median_mm=0.0,
        residual_q95_mm=0.0,
        template_median_mm=0.0,
        template_q95_mm=0.0,
        landmark_rms_mm=0.0,
        coverage=1.0,
        lower_face=1.0,
        flipped_faces=0,
        prior_energy=0.0,
        flags=(),
    )
    return result, (marks - result.translation) @ turn / result.scale


def test_nothing_speaks_against_a_perfect_one(perfect, toy_model) -> None:
    result, marks = perfect
    found = evidence_of(result, marks, toy_model)
    for name in EVIDENCE:
        expected = 1 / 51 if name == "scarcity" else 0.0
        assert getattr(found, name) == pytest.approx(expected, abs=1e-9), name
    none = evidence_of(result, np.full((51, 3), np.nan), toy_model)
    assert none == replace(NOTHING, no_landmarks=1.0)


def test_drift_is_the_rigid_part_of_the_landmark_error(perfect, toy_model) -> None:
    result, marks = perfect
    # 5 mm along one axis of the scan: 2.5 of its units.
    shifted = evidence_of(result, marks + np.array([2.5, 0, 0]), toy_model)
    assert shifted.landmark_drift_mm == pytest.approx(5.0)
    assert shifted.landmark_median_mm == pytest.approx(5.0)
    middle = marks.mean(axis=0)
    turn = Rotation.from_rotvec([0, 0, 0.1]).as_matrix()
    turned = evidence_of(result, (marks - middle) @ turn.T + middle, toy_model)
    chord = 2 * np.sin(0.05) * np.linalg.norm((marks - middle)[:, :2], axis=1)
    assert turned.landmark_drift_mm == pytest.approx(2 * np.sqrt((chord**2).mean()), rel=1e-6)
    rng = np.random.default_rng(0)
    noisy = evidence_of(result, marks + 2.5 * rng.normal(size=marks.shape), toy_model)
    assert noisy.landmark_median_mm > 6
    # Six of 153 degrees of freedom.
    assert noisy.landmark_drift_mm < 0.35 * noisy.landmark_median_mm
    outliers = marks.copy()
    outliers[[3, 20, 40]] += 12.5
    assert evidence_of(result, outliers, toy_model).landmark_median_mm < 1e-9


def test_few_landmarks_and_landmarks_on_a_line(perfect, toy_model) -> None:
    result, marks = perfect
    few = np.full_like(marks, np.nan)
    few[[0, 20]] = marks[[0, 20]] + 5
    assert evidence_of(result, few, toy_model).landmark_drift_mm == 0.0
    assert evidence_of(result, few, toy_model).scarcity == 0.5


def test_free_displacement_is_of_the_face_only(perfect, toy_model) -> None:
    result, marks = perfect
    grown = result.vertices_neutral.copy()
    grown[toy_model.face, 2] += 0.004
    found = evidence_of(replace(result, vertices_neutral=grown), marks, toy_model)
    assert found.free_q95_mm == pytest.approx(4.0)
    grown[~toy_model.face] += 0.1
    again = evidence_of(replace(result, vertices_neutral=grown), marks, toy_model)
    assert again.free_q95_mm == pytest.approx(4.0)


def test_score_in_closed_form() -> None:
    model = weights(residual_q95_mm=2.0, flipped_faces=1.0)
    evidence = replace(NOTHING, residual_q95_mm=1.0, flipped_faces=3.0)
    odds = np.exp(3.0) / (2.0**2 * 4.0)
    assert model.score(evidence) == pytest.approx(odds / (1 + odds))
    assert model.score(NOTHING) == pytest.approx(1 / (1 + np.exp(-3.0)))
    assert model.score(replace(NOTHING, residual_q95_mm=float("inf"))) == 0.0
    assert weights().score(replace(NOTHING, residual_q95_mm=float("inf"))) > 0.9


@examples(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_worse_figures_never_raise_the_score(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = weights(**dict(zip(EVIDENCE, rng.exponential(size=len(EVIDENCE)), strict=True)))
    base = Evidence(*rng.exponential(5.0, len(EVIDENCE)))
    for field in fields(Evidence):
        worse = replace(base, **{field.name: getattr(base, field.name) + rng.exponential()})
        assert model.score(worse) <= model.score(base)
    assert 0.0 <= model.score(base) <= 1.0


def test_a_weight_that_rewards_is_refused() -> None:
    with pytest.raises(ValueError, match="uncovered: expected >= 0, got -1"):
        weights(uncovered=-1.0)


def test_a_low_score_rejects_and_names_what_spoke_against_it(perfect, toy_model, limits) -> None:
    result, marks = perfect
    strict = replace(limits, min_score=0.5)
    model = weights(landmark_drift_mm=3.0, residual_q95_mm=1.0)
    far = evidence_of(result, marks + np.array([2.5, 0, 0]), toy_model)
    judged = judge(result, strict, model, far)
    assert judged.status == "rejected"
    assert "score 0.0851 is below 0.5 (landmark_drift_mm 5)" in judged.reason
    slid = judge(result, strict, None, replace(far, landmark_drift_mm=6.5))
    assert slid.reason == "landmark drift, mm, 6.5 exceeds 6"
    fine = judge(result, strict, model, evidence_of(result, marks, toy_model))
    assert fine.status == "ok"
    assert fine.score == pytest.approx(1 / (1 + np.exp(-3.0)))
    assert np.isnan(judge(result, strict).score)


def test_every_limit_and_the_score_are_named_together(perfect, limits) -> None:
    result, _ = perfect
    bad = replace(
        result,
        residual_median_mm=9.0,
        residual_q95_mm=9.0,
        landmark_rms_mm=99.0,
        prior_energy=1e4,
        flipped_faces=999,
        coverage=0.1,
        lower_face=0.2,
    )
    evidence = replace(NOTHING, residual_median_mm=9.0)
    judged = judge(bad, replace(limits, min_score=0.9), weights(residual_median_mm=9.0), evidence)
    assert judged.reason.split("; ") == [
        "residual median, mm, 9 exceeds 0.5",
        "residual 95th percentile, mm, 9 exceeds 3",
        "landmark RMS, mm, 99 exceeds 8",
        "prior energy 1e+04 exceeds 200",
        "flipped triangles 999 exceeds 20",
        "coverage 0.1 is below 0.5",
        "lower face on the scan 0.2 is below 0.5",
        judged.reason.split("; ")[-1],
    ]
    assert judged.reason.split("; ")[-1].startswith("score 2.01e-08 is below 0.9")


def test_committed_weights_on_measured_figures(repository) -> None:
    """A procedural head, and a sphere with landmarks on it that passes the limits on residuals."""
    from stages.runtime import params

    section = params.load(repository / "params.yaml").registration
    model = QualityModel(**section.quality.model_dump(exclude={"provenance"}))
    head = Evidence(
        landmark_drift_mm=0.253,
        landmark_median_mm=1.78,
        scarcity=0.0196,
        no_landmarks=0.0,
        residual_median_mm=0.0874,
        residual_q95_mm=0.359,
        free_q95_mm=1.54,
        uncovered=0.131,
        flipped_faces=0.0,
        prior_energy=24.2,
    )
    sphere = Evidence(
        landmark_drift_mm=1.5,
        landmark_median_mm=7.19,
        scarcity=0.0196,
        no_landmarks=0.0,
        residual_median_mm=0.0232,
        residual_q95_mm=0.335,
        free_q95_mm=8.26,
        uncovered=0.174,
        flipped_faces=2.0,
        prior_energy=164.0,
    )
    assert model.score(head) > 0.97
    assert model.score(sphere) < 0.2 < section.limits.min_score
