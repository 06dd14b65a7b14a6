"""The non-rigid stage: kernels against assembled matrices, the solver, and what it must not do."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse
from scipy.sparse.linalg import spsolve
from scipy.spatial import cKDTree

from models.geometry import _couple
from models.geometry.mesh import normals_and_rim, vertex_normals
from models.geometry.nonrigid import DataRows, SmoothSystem, _solve, refine
from models.geometry.parametric import Surface


def random_rows(rng: np.random.Generator, vertices: int, count: int) -> DataRows:
    normals = rng.normal(size=(count, 3))
    return DataRows(
        corners=rng.integers(0, vertices, (count, 3)),
        bary=rng.dirichlet(np.ones(3), count),
        normals=normals / np.linalg.norm(normals, axis=1, keepdims=True),
        weights=rng.uniform(0.1, 2, count),
        wanted=rng.normal(size=(count, 3)),
    )


def assembled(rows: DataRows, tangential: float, vertices: int) -> tuple[np.ndarray, np.ndarray]:
    """The data term as one dense matrix (3V, 3V) and its right-hand side (3V,)."""
    matrix, right = np.zeros((3 * vertices,) * 2), np.zeros(3 * vertices)
    for c, b, n, w, d in zip(
        rows.corners, rows.bary, rows.normals, rows.weights, rows.wanted, strict=True
    ):
        pick = np.zeros((3, 3 * vertices))
        for vertex, share in zip(c, b, strict=True):
            pick[:, 3 * vertex : 3 * vertex + 3] += share * np.eye(3)
        metric = (1 - tangential) * np.outer(n, n) + tangential * np.eye(3)
        matrix += w * pick.T @ metric @ pick
        right += w * pick.T @ metric @ d
    return matrix, right


def test_kernels_apply_the_assembled_matrix() -> None:
    rng = np.random.default_rng(0)
    rows = random_rows(rng, 12, 30)
    matrix, right = assembled(rows, 0.05, 12)
    u = rng.normal(size=(12, 3))
    out, b, diagonal = np.zeros((12, 3)), np.zeros((12, 3)), np.zeros(12)
    _couple.apply_data(rows.corners, rows.bary, rows.normals, rows.weights, 0.05, u, out)
    _couple.right_side(
        rows.corners, rows.bary, rows.normals, rows.weights, 0.05, rows.wanted, b, diagonal
    )
    np.testing.assert_allclose(out.ravel(), matrix @ u.ravel(), atol=1e-12)
    np.testing.assert_allclose(b.ravel(), right, atol=1e-12)
    sums = matrix.reshape(12, 3, 12, 3)
    expected = np.einsum("iaja->i", sums) / 3
    np.testing.assert_allclose(diagonal, expected, atol=1e-12)


def test_solver_agrees_with_the_direct_solution(settings) -> None:
    rng = np.random.default_rng(1)
    rows = random_rows(rng, 20, 60)
    chain = sparse.diags_array([-1, 2.5, -1], offsets=[-1, 0, 1], shape=(20, 20)).tocsr()
    matrix, right = assembled(rows, 0.02, 20)
    direct = spsolve(
        (sparse.kron(chain, sparse.eye_array(3)) + sparse.csr_array(matrix)).tocsc(), right
    ).reshape(20, 3)
    half = SmoothSystem(
        0.5 * chain.tocsc(), 2.0, np.zeros(20), np.full(20, rows.weights.sum() / 60)
    )
    tight = replace(settings, solver_tolerance=1e-10)
    found = _solve(half, rows, right.reshape(20, 3), np.zeros((20, 3)), tight)
    np.testing.assert_allclose(found, direct, atol=1e-7)


def test_template_rows_agree_with_the_slow_twin() -> None:
    rng = np.random.default_rng(2)
    now, moved, trust = rng.normal(size=(9, 3)), rng.normal(size=(9, 3)), rng.uniform(size=9)
    surface, rim = rng.normal(size=(7, 3)), rng.random(7) < 0.3
    normals, across = (unit(rng.normal(size=(n, 3))) for n in (9, 7))
    ids, nearest = rng.integers(0, 9, 40), rng.integers(0, 7, 40)
    distance = np.where(rng.random(40) < 0.2, np.inf, rng.uniform(0, 3, 40))
    found = _couple.template_rows(
        ids, now, moved, normals, trust, distance, nearest, surface, across, rim, 0.0, 2.0
    )
    expected = []
    for v, s, d in zip(ids, nearest, distance, strict=True):
        if np.isfinite(d) and not rim[s] and normals[v] @ across[s] > 0:
            gap = (surface[s] - now[v]) @ across[s]
            weight = trust[v] * (1 + (d / 2.0) ** 2) ** -2
            expected.append((v, across[s], weight, moved[v] + gap * across[s]))
    assert 2 < len(expected) < 30
    corners, bary, rows, weights, wanted = found
    np.testing.assert_array_equal(corners, [[v] * 3 for v, *_ in expected])
    np.testing.assert_array_equal(bary, [[1, 0, 0]] * len(expected))
    np.testing.assert_allclose(rows, [n for _, n, _, _ in expected], atol=1e-14)
    np.testing.assert_allclose(weights, [w for _, _, w, _ in expected], rtol=1e-13)
    np.testing.assert_allclose(wanted, [w for *_, w in expected], atol=1e-13)


def test_scan_rows_agree_with_the_slow_twin() -> None:
    rng = np.random.default_rng(3)
    now, moved = rng.normal(size=(9, 3)), rng.normal(size=(9, 3))
    trust = np.where(rng.random(9) < 0.4, 0.0, rng.uniform(size=9))
    faces = np.array([[0, 1, 2], [2, 3, 4], [5, 6, 7], [6, 7, 8], [1, 3, 5]])
    points, normals = rng.normal(size=(20, 3)), unit(rng.normal(size=(20, 3)))
    found, bary = rng.integers(-1, 5, 20), rng.dirichlet(np.ones(3), 20)
    areas, squared = rng.uniform(size=20), rng.uniform(0, 9, 20)
    own = unit(rng.normal(size=(9, 3)))
    result = _couple.scan_rows(
        points, normals, areas, found, bary, squared, faces, now, moved, own, trust, 0.0, 2.0
    )
    expected = []
    for k, f in enumerate(found):
        if f < 0:
            continue
        across = unit((bary[k] @ own[faces[f]])[None])[0]
        weight = bary[k] @ trust[faces[f]]
        if weight > 0 and across @ normals[k] > 0:
            loss = (1 + squared[k] / 4.0) ** -2
            wanted = bary[k] @ moved[faces[f]] + points[k] - bary[k] @ now[faces[f]]
            expected.append((faces[f], bary[k], across, areas[k] * weight * loss, wanted))
    assert 0 < len(expected) < 20
    for got, want in zip(result, zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(got, np.array(want), rtol=1e-12, atol=1e-13)


def unit(directions: np.ndarray) -> np.ndarray:
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def surface_of(vertices: np.ndarray, faces: np.ndarray) -> Surface:
    normals, rim = normals_and_rim(vertices, faces)
    return Surface(vertices, normals, rim, cKDTree(vertices))


@pytest.fixture
def dent_at(toy_model) -> np.ndarray:
    """A point on the cheek."""
    wanted = np.linalg.norm(toy_model.template - [35.0, -25.0, 80.0], axis=1)
    return toy_model.template[np.argmin(wanted)]


@pytest.fixture
def skin_scan(toy, toy_model, dent_at):
    """The toy's skin, finer, with a smooth dent of 1 mm that the model does not have."""
    vertices, faces = toy.subdivide(toy_model.template[toy_model.skin_ids], toy_model.skin_faces)
    dent = np.exp(-((vertices - dent_at) ** 2).sum(axis=1) / (2 * 12.0**2))
    normals, _ = normals_and_rim(vertices, faces)
    return vertices - dent[:, None] * normals, faces


def test_refinement_reaches_a_dent_and_leaves_the_rest(
    toy_model, skin_scan, dent_at, settings
) -> None:
    vertices, faces = skin_scan
    surface = surface_of(vertices, faces)
    samples = np.flatnonzero(~surface.rim)
    areas = np.full(len(samples), 5.0)
    out = refine(toy_model, toy_model.template, surface, samples, areas, settings, bald=False)
    depth = np.linalg.norm(out - toy_model.template, axis=1)
    near = np.linalg.norm(toy_model.template - dent_at, axis=1) < 8
    assert np.median(depth[near & toy_model.face]) > 0.6
    far = np.linalg.norm(toy_model.template - dent_at, axis=1) > 60
    assert np.percentile(depth[far & toy_model.skin], 99) < 0.1


def test_without_a_scan_nothing_moves(toy_model, settings) -> None:
    away = np.array([[1e5, 0, 0], [1e5, 1, 0], [1e5, 0, 1.0]])
    surface = surface_of(away, np.array([[0, 1, 2]]))
    out = refine(
        toy_model, toy_model.template, surface, np.array([0]), np.ones(1), settings, bald=False
    )
    np.testing.assert_allclose(out, toy_model.template, atol=1e-9)


def test_hair_hardly_moves_the_scalp_unless_the_head_is_bald(toy, toy_model, settings) -> None:
    vertices, faces = toy.subdivide(toy_model.template[toy_model.skin_ids], toy_model.skin_faces)
    normals, _ = normals_and_rim(vertices, faces)
    hair = np.exp(-((vertices - [0, 80.0, -50.0]) ** 2).sum(axis=1) / (2 * 15.0**2))
    vertices = vertices + 3.0 * hair[:, None] * normals
    surface = surface_of(vertices, faces)
    samples = np.flatnonzero(~surface.rim)
    moved = []
    for bald in (False, True):
        out = refine(
            toy_model,
            toy_model.template,
            surface,
            samples,
            np.full(len(samples), 5.0),
            settings,
            bald=bald,
        )
        moved.append(np.linalg.norm(out - toy_model.template, axis=1)[toy_model.scalp].max())
    assert moved[1] > 1.5
    assert moved[0] < moved[1]


def test_eyeballs_follow_their_lids(toy_model, settings, toy) -> None:
    shift = np.array([0.0, 0.8, 0.6])
    vertices, faces = toy.subdivide(
        toy_model.template[toy_model.skin_ids] + shift, toy_model.skin_faces
    )
    surface = surface_of(vertices, faces)
    samples = np.flatnonzero(~surface.rim)
    out = refine(
        toy_model,
        toy_model.template,
        surface,
        samples,
        np.full(len(samples), 5.0),
        settings,
        bald=True,
    )
    for ball, lids in toy_model.eyeballs:
        motion = out[ball] - toy_model.template[ball]
        np.testing.assert_allclose(motion, np.broadcast_to(motion[0], motion.shape), atol=1e-9)
        expected = (out[lids] - toy_model.template[lids]).mean(axis=0)
        np.testing.assert_allclose(motion[0], expected, atol=1e-9)
        assert motion[0][2] > 0.3


def far_away(model) -> Surface:
    """A surface that is out of reach of every vertex."""
    return surface_of(model.template[model.skin_ids] + 1e4, model.skin_faces)


@pytest.mark.parametrize("extra_mm", [0.8, -0.8, 0.0])
def test_closed_lips_come_back_to_their_distance(toy_model, settings, extra_mm) -> None:
    """Without stiffness, w (n.(u_j - u_i) + d)^2 + e m |u|^2 has a solution on paper."""
    upper, lower = 700, 760
    fitted = toy_model.template
    skin = fitted[toy_model.skin_ids]
    normal = vertex_normals(skin, toy_model.skin_faces)[upper]
    gap = (skin[lower] - skin[upper]) @ normal
    mass = np.full(len(toy_model.mass), 2.5)
    model = replace(
        toy_model,
        lips=np.array([[upper, lower]]),
        lip_rest=np.array([gap - extra_mm]),
        mass=mass,
    )
    one_level = replace(
        settings,
        smoothing_mm=(1e-3,),
        template_to_scan=(True,),
        steps_per_level=(1,),
        solver_tolerance=1e-10,
        lip_gap_mm=1.5,
        lip_weight=2.0,
    )
    none = np.zeros(0, dtype=np.int64)
    out = refine(model, fitted, far_away(model), none, np.zeros(0), one_level, bald=True)
    moved = (out - fitted)[model.skin_ids]
    weight = 2.0 * 2.5 / (1 + (extra_mm / 1.5) ** 2) ** 2
    each = extra_mm * weight / (2 * weight + settings.pull * 2.5)
    np.testing.assert_allclose(moved[upper], each * normal, atol=1e-6)
    np.testing.assert_allclose(moved[lower], -each * normal, atol=1e-6)
    others = np.delete(moved, [upper, lower], axis=0)
    assert np.abs(others).max() < 1e-6


def test_an_open_mouth_is_left_open(toy_model, settings) -> None:
    upper, lower = 700, 760
    skin = toy_model.template[toy_model.skin_ids]
    normal = vertex_normals(skin, toy_model.skin_faces)[upper]
    gap = (skin[lower] - skin[upper]) @ normal
    model = replace(toy_model, lips=np.array([[upper, lower]]), lip_rest=np.array([gap - 1.6]))
    none = np.zeros(0, dtype=np.int64)
    away = far_away(model)
    out = refine(model, model.template, away, none, np.zeros(0), settings, bald=True)
    np.testing.assert_array_equal(out, model.template)
    closed = replace(model, lip_rest=np.array([gap - 1.4]))
    out = refine(closed, model.template, away, none, np.zeros(0), settings, bald=True)
    assert np.abs(out - model.template).max() > 0.05


def test_a_head_without_a_mouth_has_no_lips(toy_model) -> None:
    assert toy_model.lips.shape == (0, 2)
    assert toy_model.lip_rest.shape == (0,)
