"""Rays from inside meet the outer surface; the curved surface is nearer to a smooth one."""

import numpy as np
import pytest

from stages.corpus.surface import Anchors, barycentric, outer_anchors, vertex_normals


def sphere(levels: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """A unit sphere of subdivided octahedron triangles."""
    vertices = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    points = [np.array(v, dtype=float) for v in vertices]
    faces = [(0, 2, 4), (2, 1, 4), (1, 3, 4), (3, 0, 4), (2, 0, 5), (1, 2, 5), (3, 1, 5), (0, 3, 5)]
    for _ in range(levels):
        middle: dict[tuple[int, int], int] = {}
        finer = []
        for a, b, c in faces:
            ids = []
            for i, j in ((a, b), (b, c), (c, a)):
                key = (min(i, j), max(i, j))
                if key not in middle:
                    middle[key] = len(points)
                    point = points[i] + points[j]
                    points.append(point / np.linalg.norm(point))
                ids.append(middle[key])
            ab, bc, ca = ids
            finer += [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
        faces = finer
    return np.array(points), np.array(faces)


@pytest.fixture(scope="module")
def hits() -> tuple[np.ndarray, np.ndarray, Anchors, np.ndarray]:
    vertices, faces = sphere()
    directions = np.random.default_rng(0).normal(size=(500, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    anchors, hit = outer_anchors(vertices, faces, np.zeros(3), directions, 3.0)
    assert hit.all()
    return vertices, faces, anchors, directions


def test_hits_lie_on_the_rays(hits: tuple) -> None:
    vertices, _, anchors, directions = hits
    points = anchors.flat(vertices)
    np.testing.assert_allclose(np.cross(points, directions), 0.0, atol=2e-6)
    assert (np.einsum("ni,ni->n", points, directions) > 0.9).all()


def test_curved_points_are_nearer_to_the_sphere(hits: tuple) -> None:
    vertices, faces, anchors, _ = hits
    flat = np.abs(np.linalg.norm(anchors.flat(vertices), axis=1) - 1.0)
    normals = vertex_normals(vertices, faces)
    curved = np.abs(np.linalg.norm(anchors.curved(vertices, normals), axis=1) - 1.0)
    assert curved.mean() < 0.4 * flat.mean()


def test_anchors_follow_an_affine_map(hits: tuple) -> None:
    vertices, _, anchors, _ = hits
    rng = np.random.default_rng(1)
    A, t = rng.normal(size=(3, 3)), rng.normal(size=3)
    moved = anchors.flat(vertices @ A.T + t)
    np.testing.assert_allclose(moved, anchors.flat(vertices) @ A.T + t, atol=1e-12)


def test_a_ray_that_misses_is_reported() -> None:
    vertices = np.array([[0.0, 0, 1], [1, 0, 1], [0, 1, 1]])
    directions = np.array([[0.2, 0.2, 1.0], [0.0, 0.0, -1.0]])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    _, hit = outer_anchors(vertices, np.array([[0, 1, 2]]), np.zeros(3), directions, 5.0)
    assert hit.tolist() == [True, False]


def test_barycentric_weights_reproduce_points() -> None:
    rng = np.random.default_rng(2)
    corners = rng.normal(size=(40, 3, 3))
    weights = rng.dirichlet([1, 1, 1], 40)
    points = np.einsum("nk,nkc->nc", weights, corners)
    np.testing.assert_allclose(barycentric(points, corners), weights, atol=1e-9)


def test_vertex_normals_of_a_sphere_point_outward() -> None:
    vertices, faces = sphere()
    normals = vertex_normals(vertices, faces)
    assert (np.einsum("ni,ni->n", normals, vertices) > 0.99).all()
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1.0)
