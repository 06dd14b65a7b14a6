"""Closest points: closed forms, a brute-force twin, equivariance, refusals."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.geometry import ClosestPointIndex, closest_points

TRIANGLE = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
ONE = np.array([[0, 1, 2]])


def brute_force(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Distances by minimising over plane projection, edges and corners of every triangle."""
    best = np.full(len(points), np.inf)
    for a, b, c in vertices[faces]:
        basis = np.stack([b - a, c - a], axis=1)
        if np.linalg.matrix_rank(basis) == 2:
            vw = np.linalg.lstsq(basis, (points - a).T, rcond=None)[0].T
            inside = (vw >= 0).all(axis=1) & (vw.sum(axis=1) <= 1)
            gap = np.linalg.norm(a + vw @ basis.T - points, axis=1)
            best = np.where(inside, np.minimum(best, gap), best)
        for p, q in ((a, b), (b, c), (c, a)):
            edge = q - p
            length = edge @ edge
            t = np.clip((points - p) @ edge / length, 0, 1) if length > 0 else np.zeros(len(points))
            best = np.minimum(best, np.linalg.norm(p + t[:, None] * edge - points, axis=1))
    return best


@pytest.mark.parametrize(
    ("point", "distance", "bary"),
    [
        ([0.25, 0.25, 2.0], 2.0, [0.5, 0.25, 0.25]),
        ([-3.0, -4.0, 0.0], 5.0, [1.0, 0.0, 0.0]),
        ([0.5, -1.0, 0.0], 1.0, [0.5, 0.5, 0.0]),
        ([1.0, 1.0, 0.0], np.sqrt(0.5), [0.0, 0.5, 0.5]),
        ([4.0, 0.0, 4.0], 5.0, [0.0, 1.0, 0.0]),
    ],
)
def test_closed_forms_of_the_regions(
    point: list[float], distance: float, bary: list[float]
) -> None:
    found = closest_points(np.array([point]), TRIANGLE, ONE)
    np.testing.assert_allclose(found.distances, distance, atol=1e-14)
    np.testing.assert_allclose(found.bary[0], bary, atol=1e-14)
    np.testing.assert_allclose(found.points[0], bary @ TRIANGLE, atol=1e-14)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 60))
def test_agrees_with_the_slow_twin(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    vertices = rng.normal(size=(count + 3, 3))
    faces = rng.integers(0, len(vertices), (count, 3))  # degenerate ones among them
    points = rng.normal(scale=1.5, size=(40, 3))
    found = closest_points(points, vertices, faces)
    np.testing.assert_allclose(found.distances, brute_force(points, vertices, faces), atol=1e-9)
    np.testing.assert_allclose(
        np.linalg.norm(found.points - points, axis=1), found.distances, atol=1e-9
    )
    assert (found.bary >= 0).all()
    np.testing.assert_allclose(found.bary.sum(axis=1), 1, atol=1e-12)


def test_sliver_and_far_coordinates() -> None:
    rng = np.random.default_rng(3)
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0.5, 1e-7, 0], [0.5, 1, 1e-9]]) + 1e3
    faces = np.array([[0, 1, 2], [1, 2, 3], [0, 0, 3]])
    points = rng.normal(size=(200, 3)) + 1e3
    found = closest_points(points, vertices, faces)
    np.testing.assert_allclose(found.distances, brute_force(points, vertices, faces), atol=1e-8)


def test_distance_does_not_change_under_a_rigid_motion() -> None:
    rng = np.random.default_rng(4)
    vertices, faces = rng.normal(size=(50, 3)), rng.integers(0, 50, (80, 3))
    points = rng.normal(size=(30, 3))
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    moved = closest_points(2 * points @ rotation.T + 5, 2 * vertices @ rotation.T + 5, faces)
    still = closest_points(points, vertices, faces)
    np.testing.assert_allclose(moved.distances, 2 * still.distances, atol=1e-12)


def test_ties_go_to_the_lowest_face() -> None:
    faces = np.repeat(ONE, 9, axis=0)
    assert closest_points(np.array([[0.2, 0.2, 1.0]]), TRIANGLE, faces).faces[0] == 0


def test_beyond_the_radius_nothing_is_found() -> None:
    found = ClosestPointIndex(TRIANGLE, ONE).query(
        np.array([[0.2, 0.2, 1.0], [0.2, 0.2, 3.0]]), max_distance=2.0
    )
    assert found.faces.tolist() == [0, -1]
    assert np.isinf(found.distances[1])
    assert np.isnan(found.points[1]).all()


def test_no_queries_is_an_empty_answer() -> None:
    assert closest_points(np.zeros((0, 3)), TRIANGLE, ONE).distances.shape == (0,)


@pytest.mark.parametrize(
    ("points", "vertices", "faces", "message"),
    [
        (TRIANGLE, TRIANGLE, np.zeros((0, 3), dtype=np.int64), "at least one triangle"),
        (TRIANGLE, TRIANGLE, np.array([[1, 2, 3]]), "1-based"),
        (TRIANGLE, TRIANGLE * np.nan, ONE, "finite vertices"),
        (TRIANGLE * np.nan, TRIANGLE, ONE, "finite queries"),
    ],
)
def test_refusals(
    points: np.ndarray, vertices: np.ndarray, faces: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        closest_points(points, vertices, faces)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 60))
@example(seed=1120, count=14)  # two triangles that are equally close but for rounding
def test_a_refitted_tree_answers_like_a_new_one(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    vertices = rng.normal(size=(count + 3, 3))
    faces = rng.integers(0, len(vertices), (count, 3))
    elsewhere = rng.normal(size=vertices.shape)
    points = rng.normal(size=(30, 3))
    old = ClosestPointIndex(vertices, faces)
    before = old.query(points)
    moved, new = old.moved(elsewhere).query(points), closest_points(points, elsewhere, faces)
    np.testing.assert_array_equal(moved.distances, new.distances)
    np.testing.assert_array_equal(moved.faces, new.faces)
    np.testing.assert_array_equal(old.query(points).distances, before.distances)


def test_a_tree_refuses_other_vertices() -> None:
    index = ClosestPointIndex(TRIANGLE, ONE)
    with pytest.raises(ValueError, match="as many as before"):
        index.moved(TRIANGLE[:2])
    with pytest.raises(ValueError, match="finite vertices"):
        index.moved(np.full_like(TRIANGLE, np.inf))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.02, 0.5]))
def test_a_tracker_answers_like_a_search_however_far_queries_move(seed: int, margin: float) -> None:
    rng = np.random.default_rng(seed)
    vertices, faces = rng.normal(size=(40, 3)), rng.integers(0, 40, size=(60, 3))
    points = 1.5 * rng.normal(size=(30, 3))
    index = ClosestPointIndex(vertices, faces)
    tracker = index.tracker(len(points), margin)
    for step in (0.0, 1e-4, 1e-2, 0.0, 0.3, 3.0, 1e-3):
        points = points + step * rng.normal(size=points.shape)
        tracked, searched = tracker.query(points), index.query(points)
        np.testing.assert_allclose(tracked.distances, searched.distances, rtol=0, atol=1e-12)
        corners = vertices[faces[tracked.faces]]
        np.testing.assert_allclose(
            np.einsum("nc,nca->na", tracked.bary, corners), tracked.points, atol=1e-12
        )
        np.testing.assert_allclose(
            np.linalg.norm(points - tracked.points, axis=1), tracked.distances, atol=1e-9
        )


def test_a_tracker_refuses_other_queries() -> None:
    vertices, faces = np.eye(3), np.array([[0, 1, 2]])
    index = ClosestPointIndex(vertices, faces)
    with pytest.raises(ValueError, match="expected 2 queries, got 3"):
        index.tracker(2, 0.1).query(vertices)
    with pytest.raises(ValueError, match="need finite queries"):
        index.tracker(1, 0.1).query(np.full((1, 3), np.nan))
    with pytest.raises(ValueError, match="expected a margin from 0"):
        index.tracker(1, -1.0)


@pytest.mark.parametrize("size", [1e-1, 1e-4, 1e-9, 1e-13])
def test_a_speck_far_from_its_queries_is_no_search_of_all_of_it(size: float) -> None:
    """Each triangle is about as close as any other, also within the margin and within rounding."""
    rng = np.random.default_rng(2)
    side = np.linspace(-1, 1, 41)
    x, y = np.meshgrid(side, side)
    vertices = size * np.stack([x, y, 0.3 * np.cos(2 * x) - 0.2 * y**2], axis=-1).reshape(-1, 3)
    at = np.arange(41**2).reshape(41, 41)
    corners = at[:-1, :-1], at[:-1, 1:], at[1:, 1:], at[1:, :-1]
    a, b, c, d = (corner.ravel() for corner in corners)
    faces = np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])
    points = np.array([0.0, 0.0, 80.0]) + 30.0 * rng.normal(size=(50, 3))
    index = ClosestPointIndex(vertices, faces)
    tracker = index.tracker(len(points), 0.1)
    steps = (0.0, 1e-3, 0.5)
    for step in steps:
        points = points + step
        found, tracked = index.query(points), tracker.query(points)
        assert index.tests <= 400 * len(points)
        np.testing.assert_allclose(tracked.distances, found.distances, rtol=0, atol=1e-12)
        slow = np.linalg.norm(points[:, None] - vertices, axis=2).min(axis=1)
        assert (found.distances <= slow + 1e-12).all()
        np.testing.assert_allclose(found.distances, slow, atol=0.1 * size + 1e-12)
    assert tracker.tests <= 400 * len(points) * len(steps)
