"""The parametric fit: its model against FLAME's own twin, its derivatives, its optimum."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from models.face.flame import pose_vertices
from models.geometry.mesh import normals_and_rim
from models.geometry.parametric import (
    FitState,
    Subset,
    Surface,
    _schedule_of,
    fit_parameters,
    rotation_matrix,
    rotation_vector,
    sample_vertices,
)
from models.geometry.template import RegistrationModel


def random_state(model: RegistrationModel, seed: int) -> FitState:
    rng = np.random.default_rng(seed)
    return FitState(
        rng.normal(size=model.basis.shape[2]),
        neck=Rotation.from_rotvec(rng.normal(scale=0.2, size=3)).as_matrix(),
        jaw=Rotation.from_rotvec(rng.normal(scale=0.2, size=3)).as_matrix(),
        rotation=Rotation.from_rotvec(rng.normal(scale=0.2, size=3)).as_matrix(),
        translation=rng.normal(size=3),
    )


def test_evaluation_is_flame(toy_model: RegistrationModel) -> None:
    state = random_state(toy_model, 0)
    modes = toy_model.identity_modes
    beta, psi = state.coefficients[:modes], state.coefficients[modes:]
    expected = pose_vertices(toy_model.arrays, beta, psi, state.pose(5))
    ids = np.arange(0, len(expected), 7)
    np.testing.assert_allclose(
        Subset(toy_model, ids).evaluate(state)[0], 1e3 * expected[ids], atol=1e-9
    )


def test_jacobian_is_the_derivative(toy_model: RegistrationModel) -> None:
    state = random_state(toy_model, 1)
    ids = np.arange(0, len(toy_model.template), 13)
    subset = Subset(toy_model, ids)
    directions = np.random.default_rng(2).normal(size=(len(ids), 3))
    jacobian = subset.jacobian(state, directions)

    def moved(column: int, step: float) -> np.ndarray:
        change = np.zeros(jacobian.shape[1])
        change[column] = step
        spin = [Rotation.from_rotvec(change[i : i + 3]).as_matrix() for i in (0, 6, 9)]
        neck = spin[1] @ state.neck
        # Both small rotations act in FLAME's frame; the neck's carries the jaw along.
        jaw = state.neck.T @ spin[2] @ state.neck @ state.jaw
        other = FitState(state.coefficients + change[12:], neck, jaw)
        return (subset.evaluate(other)[0] @ spin[0].T + change[3:6]) @ np.eye(3)

    for column in range(jacobian.shape[1]):
        slope = (moved(column, 1e-5) - moved(column, -1e-5)) / 2e-5
        expected = (slope * directions).sum(axis=1)
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(jacobian[:, column], expected, atol=2e-6 * scale)


def test_fit_finds_the_parameters_of_a_face_in_its_span(toy_model, settings) -> None:
    rng = np.random.default_rng(3)
    modes = toy_model.identity_modes
    beta, psi = rng.normal(size=modes), 0.7 * rng.normal(size=toy_model.basis.shape[2] - modes)
    theta = np.zeros(15)
    theta[6] = 0.1
    head = 1e3 * pose_vertices(toy_model.arrays, beta, psi, theta)
    turn = Rotation.from_rotvec([0.05, -0.1, 0.03]).as_matrix()
    head = head @ turn.T + [1.0, 2.0, -3.0]
    faces = toy_model.arrays.faces
    marks = np.einsum("lk,lka->la", toy_model.landmark_bary, head[faces[toy_model.landmark_faces]])
    normals, rim = normals_and_rim(head, faces)
    surface = Surface(head, normals, rim, cKDTree(head))
    state = fit_parameters(toy_model, marks, surface, settings, bald=True)
    posed = Subset(toy_model, np.arange(len(head))).evaluate(state)[0]
    gap = (posed @ state.rotation.T + state.translation - head)[toy_model.face]
    assert np.median(np.linalg.norm(gap, axis=1)) < 1.0  # a smooth face lets the fit slide
    across = np.abs((gap * normals[toy_model.face]).sum(axis=1))
    assert np.percentile(across, 90) < 0.3
    np.testing.assert_allclose(state.coefficients[3], beta[3], atol=0.35)
    assert np.degrees(np.arccos((np.trace(state.rotation @ turn.T) - 1) / 2)) < 3


def test_fit_goes_on_from_a_given_start_and_leaves_it_as_it_is(toy_model, settings) -> None:
    truth = random_state(toy_model, 4)
    head = Subset(toy_model, np.arange(len(toy_model.template))).evaluate(truth)[0]
    head = head @ truth.rotation.T + truth.translation
    normals, rim = normals_and_rim(head, toy_model.arrays.faces)
    surface = Surface(head, normals, rim, cKDTree(head))
    none = np.full((51, 3), np.nan)
    kept = copy.deepcopy(truth)
    brief = replace(settings, icp_steps=2, data_weight_per_mm2=1e4)
    state = fit_parameters(toy_model, none, surface, brief, bald=True, start=truth)
    for name in ("coefficients", "neck", "jaw", "rotation", "translation"):
        # The data outweigh the prior by far, so that the truth is where the steps end.
        np.testing.assert_allclose(getattr(state, name), getattr(kept, name), atol=1e-2)
        np.testing.assert_array_equal(getattr(truth, name), getattr(kept, name))
    elsewhere = fit_parameters(toy_model, none, surface, brief, bald=True)
    assert np.abs(elsewhere.coefficients - truth.coefficients).max() > 0.1


def test_landmarks_alone_and_missing_ones(toy_model, settings) -> None:
    faces = toy_model.arrays.faces
    corners = toy_model.template[faces[toy_model.landmark_faces]]
    marks = np.einsum("lk,lka->la", toy_model.landmark_bary, corners) + np.array([3.0, 0, 0])
    marks[10:] = np.nan
    far = Surface(
        np.full((4, 3), 1e6) + np.eye(4, 3),
        np.ones((4, 3)),
        np.zeros(4, bool),
        cKDTree(np.full((4, 3), 1e6)),
    )
    state = fit_parameters(toy_model, marks, far, settings, bald=False)
    posed = Subset(toy_model, np.arange(len(toy_model.template))).evaluate(state)[0]
    shift = posed @ state.rotation.T + state.translation - toy_model.template
    assert np.abs(shift[toy_model.face].mean(axis=0) - [3, 0, 0]).max() < 0.5
    assert np.abs(state.coefficients).max() < 0.2


def test_samples_follow_the_area_and_leave_out_the_eyeballs(toy_model) -> None:
    chosen = sample_vertices(toy_model, 400, 0.1)
    assert (np.diff(chosen) > 0).all()
    assert toy_model.exposed[chosen].all()
    share = toy_model.scalp[chosen].mean()
    expected = (toy_model.areas * toy_model.weight)[toy_model.scalp].sum() * 0.1
    rest = (toy_model.areas * toy_model.weight)[~toy_model.scalp].sum()
    assert share == pytest.approx(expected / (expected + rest), abs=0.03)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 9e-5, 1.1e-4, 0.3, 3.0])
def test_rotations_agree_with_scipy(angle) -> None:
    axis = np.array([0.48, -0.6, 0.64])
    expected = Rotation.from_rotvec(angle * axis).as_matrix()
    np.testing.assert_allclose(rotation_matrix(angle * axis), expected, atol=1e-15)
    np.testing.assert_allclose(
        rotation_vector(expected), angle * axis, atol=2e-15 * (1 + 9 * angle)
    )


def test_fewer_landmarks_hold_the_face_as_firmly(settings) -> None:
    """n / sigma^2 is the same from seven landmarks to all; the steps at most double."""
    assert _schedule_of(51, settings) == (4, 16.0)
    assert _schedule_of(0, settings) == (4, 16.0)
    for count in (7, 12, 20, 40):
        steps, sigma = _schedule_of(count, settings)
        assert count / sigma**2 == pytest.approx(51 / 16.0**2)
        assert 4 <= steps <= 8
    assert _schedule_of(4, settings) == _schedule_of(7, settings)
    assert _schedule_of(7, settings)[0] == 8
    assert _schedule_of(7, replace(settings, landmark_sigma_end_mm=3.0))[1] == 1.5
    assert _schedule_of(7, replace(settings, landmark_sigma_end_mm=1.0))[1] == 1.0
