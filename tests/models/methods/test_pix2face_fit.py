"""Coefficients from maps: exact recovery, the energy, several photographs, the camera."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from models.face.morphable import LinearModel
from models.methods.pix2face_fit import ModelFit, Moves
from models.methods.pose import fit_scaled_orthographic

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
    np.testing.assert_array_equal(moves.near, [[0, 0], [0, 1], [0, 2]])
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


@pytest.mark.parametrize("photographs", [1, 3])
def test_known_coefficients_come_back_without_a_ridge(model: LinearModel, photographs: int) -> None:
    fit = ModelFit(model, 1e-6)
    rng = np.random.default_rng(5)
    z, ws = rng.normal(size=K), rng.normal(size=(photographs, E))
    seen = [_said(fit, np.sort(rng.choice(V, 90, replace=False)), z, w) for w in ws]
    for most in (None, 40):
        solution = fit.solve(seen, prior=0.0, most=most)
        np.testing.assert_allclose(solution.identity, z, atol=1e-6)
        np.testing.assert_allclose(solution.expressions, ws, atol=1e-6)


def _said(fit: ModelFit, seen: np.ndarray, z: np.ndarray, w: np.ndarray) -> Moves:
    """Exact moves, from the bases in double precision."""
    offset = fit._basis[seen].astype(np.float64) @ np.concatenate([z, w])
    return Moves(seen, offset, np.zeros((len(seen), 2), np.int64))


def test_elimination_gives_the_solution_of_the_dense_system(model: LinearModel) -> None:
    """Equation 5 written out: every block of the design matrix in its place."""
    fit = ModelFit(model, 1e-6)
    rng = np.random.default_rng(6)
    photographs, prior = [], 3.0
    for count in (30, 55, 40):
        seen = np.sort(rng.choice(V, count, replace=False))
        photographs.append(Moves(seen, rng.normal(size=(count, 3)), np.zeros((count, 2), int)))
    rows, right = [], []
    for n, moves in enumerate(photographs):
        D = fit._basis[moves.vertices].reshape(-1, K + E).astype(np.float64)
        block = np.zeros((len(D), K + 3 * E))
        block[:, :K], block[:, K + n * E : K + (n + 1) * E] = D[:, :K], D[:, K:]
        rows.append(block)
        right.append(moves.offset_mm.reshape(-1))
    rows.append(prior * np.eye(K + 3 * E))
    right.append(np.zeros(K + 3 * E))
    z = np.linalg.lstsq(np.concatenate(rows), np.concatenate(right), rcond=None)[0]
    solution = fit.solve(photographs, prior)
    np.testing.assert_allclose(solution.identity, z[:K], atol=1e-9)
    np.testing.assert_allclose(solution.expressions.reshape(-1), z[K:], atol=1e-9)


def test_moves_are_those_of_an_exhaustive_search(model: LinearModel) -> None:
    fit = ModelFit(model, 1e-6)
    rng = np.random.default_rng(7)
    pncc = fit.mean_mm[rng.integers(0, V, (12, 15))] + rng.normal(0, 2, (12, 15, 3))
    valid = rng.random((12, 15)) < 0.8
    moves = fit.moves(pncc, pncc, valid, gate_mm=3.0)
    distance = np.linalg.norm(pncc[:, :, None] - fit.mean_mm, axis=-1)
    expected = {}
    for row, column in zip(*np.nonzero(valid), strict=True):
        vertex = int(distance[row, column].argmin())
        gap = distance[row, column, vertex]
        if gap <= 3.0 and gap < expected.get(vertex, (np.inf,))[0]:
            expected[vertex] = (gap, row, column)
    assert moves.vertices.tolist() == sorted(expected)
    pixels = [expected[vertex][1:] for vertex in sorted(expected)]
    np.testing.assert_array_equal(moves.pixels, pixels)
    np.testing.assert_array_equal(moves.offset_mm, pncc[moves.pixels[:, 0], moves.pixels[:, 1]])


def test_the_ridge_is_that_of_raw_coefficients_over_four_sigma(model: LinearModel) -> None:
    """The published system in raw coefficients, weights 0.1 / (4 sigma), against ours at 0.025."""
    fit = ModelFit(model, 1e-6)
    rng = np.random.default_rng(8)
    seen = np.sort(rng.choice(V, 60, replace=False))
    offset = rng.normal(size=(60, 3))
    sigma = np.concatenate([model.shape_sigma, model.expression_sigma])
    D = np.concatenate([model.shape_basis, model.expression_basis], axis=2)[seen] / 1000  # um: mm
    D, G = D.reshape(-1, K + E), np.diag(0.1 / (4 * sigma))
    raw = np.linalg.solve(D.T @ D + G.T @ G, D.T @ offset.reshape(-1))
    ours = fit.solve([Moves(seen, offset, np.zeros((60, 2), np.int64))], prior=0.025)
    z = np.concatenate([ours.identity, ours.expressions[0]])
    np.testing.assert_allclose(z * sigma, raw, rtol=1e-4, atol=1e-4 * np.abs(raw).max())


def test_an_undetermined_solution_is_refused(model: LinearModel) -> None:
    fit = ModelFit(model, 1e-6)
    same = Moves(np.full(12, 5), np.zeros((12, 3)), np.zeros((12, 2), np.int64))
    fit._basis[5] = 0.0
    with pytest.raises(ValueError, match="use a prior above 0"):
        fit.solve([same], prior=0.0)


def test_a_shape_without_pncc_finds_its_vertices(model: LinearModel) -> None:
    fit = ModelFit(model, 1e-6)
    rng = np.random.default_rng(9)
    z, w = 0.4 * rng.normal(size=K), 0.2 * rng.normal(size=E)
    shape = fit.posed_mm(z, w)[:288].reshape(12, 24, 3)
    found = fit.moves_of_shape(shape, np.ones((12, 24), bool), 2.0, prior=0.01, rounds=8)
    ids = np.arange(288).reshape(12, 24)[found.pixels[:, 0], found.pixels[:, 1]]
    right = ids == found.vertices
    at_once = fit.moves(shape, shape, np.ones((12, 24), bool), 1e9)
    guess = np.arange(288).reshape(12, 24)[at_once.pixels[:, 0], at_once.pixels[:, 1]]
    assert right.mean() > 0.95
    assert right.sum() > (guess == at_once.vertices).sum()
