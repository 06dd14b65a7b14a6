"""Coefficients from maps: exact recovery, the energy, several photographs, the camera."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from models.methods.pix2face_fit import ModelFit, Moves
from models.methods.pose import fit_scaled_orthographic
from models.morphable import LinearModel

V, K, E = 300, 4, 3


@pytest.fixture
def model() -> LinearModel:
    """A bowl of points in micrometres, with correlated expression directions."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-60, 60, (2, V))
    mean = 1000 * np.stack([x, y, 90 - (x**2 + y**2) / 120], axis=1)
    return LinearModel(
        mean_shape=mean,
        shape_basis=rng.normal(size=(V, 3, K)) / np.sqrt(V),
        shape_sigma=np.array([9e4, 6e4, 4e4, 2e4]),
        mean_expression=np.full((V, 3), 10.0),
        expression_basis=5e3 * rng.normal(size=(V, 3, E)),
        expression_sigma=np.array([0.5, 0.3, 0.2]),
        faces=rng.integers(0, V, (500, 3)),
        keypoints=np.arange(68),
    )


def test_exact_offsets_give_back_the_coefficients(model: LinearModel) -> None:
    fit = ModelFit(model, 1e-6)
    rng = np.random.default_rng(1)
    z, w = rng.normal(size=K), rng.normal(size=E)
    seen = rng.choice(V, 120, replace=False)
    offset = (fit.posed_mm(z, w) - fit.mean_mm)[seen]
    solution = fit.solve([Moves(seen, offset, np.zeros((120, 2), np.int64))], prior=1e-6)
    np.testing.assert_allclose(solution.identity, z, atol=1e-4)
    np.testing.assert_allclose(solution.expressions[0], w, atol=1e-4)
    raw = model.shape(z * model.shape_sigma, w * model.expression_sigma) / 1000
    np.testing.assert_allclose(fit.posed_mm(z, w), raw, atol=1e-3)
    np.testing.assert_allclose(
        fit.neutral_mm(z), model.shape(z * model.shape_sigma) / 1000, atol=1e-3
    )


def test_solution_minimises_the_stated_energy(model: LinearModel) -> None:
    fit = ModelFit(model, 1e-6)
    rng = np.random.default_rng(2)
    photographs = []
    for count in (60, 80):
        seen = rng.choice(V, count, replace=False)
        offset = rng.normal(size=(count, 3))
        photographs.append(Moves(seen, offset, np.zeros((count, 2), np.int64)))
    prior = 2.0

    def energy(z: np.ndarray, ws: np.ndarray) -> float:
        total = prior**2 * (z @ z + (ws * ws).sum())
        for moves, w in zip(photographs, ws, strict=True):
            moved = fit.posed_mm(z, w) - fit.mean_mm
            total += ((moved[moves.vertices] - moves.offset_mm) ** 2).sum()
        return float(total)

    best = fit.solve(photographs, prior)
    lowest = energy(best.identity, best.expressions)
    for _ in range(40):
        dz, dw = 1e-3 * rng.normal(size=K), 1e-3 * rng.normal(size=(2, E))
        assert energy(best.identity + dz, best.expressions + dw) > lowest
    assert np.linalg.norm(fit.solve(photographs, 50.0).identity) < np.linalg.norm(best.identity)


def test_a_second_photograph_with_another_expression_steadies_the_identity(
    model: LinearModel,
) -> None:
    fit = ModelFit(model, 1e-6)
    rng = np.random.default_rng(3)
    errors: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(20):
        z = rng.normal(size=K)
        photographs = []
        for _ in range(2):
            seen = rng.choice(V, 40, replace=False)
            clean = (fit.posed_mm(z, rng.normal(size=E)) - fit.mean_mm)[seen]
            noisy = clean + 3 * rng.normal(size=clean.shape)
            photographs.append(Moves(seen, noisy, np.zeros((40, 2), np.int64)))
        for count in errors:
            guess = fit.solve(photographs[:count], 1.0).identity
            errors[count].append(float(np.linalg.norm(guess - z)))
    assert np.mean(errors[2]) < 0.9 * np.mean(errors[1])


def test_moves_gate_and_keep_each_vertex_once(model: LinearModel) -> None:
    fit = ModelFit(model, 1e-6)
    pncc = np.zeros((2, 3, 3))
    pncc[0, 0] = fit.mean_mm[7] + [0.5, 0, 0]
    pncc[0, 1] = fit.mean_mm[7] + [0.1, 0, 0]
    pncc[0, 2] = fit.mean_mm[20]
    pncc[1, 0] = fit.mean_mm[20] + [0, 0, 500]  # beyond the gate
    pncc[1, 1] = fit.mean_mm[30]  # not valid
    offset = np.arange(18.0).reshape(2, 3, 3)
    valid = np.ones((2, 3), bool)
    valid[1, 1] = valid[1, 2] = False
    moves = fit.moves(pncc, offset, valid, gate_mm=1.0)
    np.testing.assert_array_equal(moves.vertices, [7, 20])
    np.testing.assert_array_equal(moves.offset_mm, offset[0, 1:3])
    np.testing.assert_array_equal(moves.pixels, [[0, 1], [0, 2]])
    with pytest.raises(ValueError, match="needs >= 10 vertices seen, got 2"):
        fit.solve([moves], 1.0)


def test_scaled_orthographic_camera_is_recovered() -> None:
    rng = np.random.default_rng(4)
    points = rng.normal(size=(30, 3)) * 40
    R = Rotation.from_euler("yxz", [35, -10, 5], degrees=True).as_matrix()
    pixels = np.array([120.0, 90.0]) + 1.7 * (points @ R.T)[:, :2] * [1, -1]
    camera = fit_scaled_orthographic(points, pixels)
    np.testing.assert_allclose(camera.rotation, R, atol=1e-9)
    assert camera.scale_px == pytest.approx(1.7)
    np.testing.assert_allclose(camera.project(points), pixels, atol=1e-9)
    noisy = fit_scaled_orthographic(points, pixels + rng.normal(size=pixels.shape))
    assert np.linalg.det(noisy.rotation) == pytest.approx(1)
    with pytest.raises(ValueError, match="off a plane"):
        fit_scaled_orthographic(points * [1, 1, 0], pixels)
