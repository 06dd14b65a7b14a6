"""Normals, rims, areas, Laplacian, components, openness: closed forms and slow twins."""

from collections import Counter

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from models.geometry.mesh import (
    ambient_openness,
    coarser,
    connected_components,
    cotangent_laplacian,
    crop,
    face_normals,
    normals_and_rim,
    surface_at,
    vertex_areas,
    vertex_normals,
)


def grid(rows: int, columns: int, jitter: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A triangulated square of side 1 in the plane z = 0, seen from +z."""
    y, x = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, columns), indexing="ij")
    vertices = np.stack([x, y, np.zeros_like(x)], axis=-1).reshape(-1, 3)
    inner = ((vertices[:, :2] > 0) & (vertices[:, :2] < 1)).all(axis=1)
    shift = np.random.default_rng(0).uniform(-1, 1, vertices.shape) * [1, 1, 0]
    vertices += jitter * inner[:, None] * shift / max(rows, columns)
    faces = []
    for r in range(rows - 1):
        for c in range(columns - 1):
            a = r * columns + c
            faces += [(a, a + 1, a + columns), (a + 1, a + columns + 1, a + columns)]
    return vertices, np.array(faces)


def sphere(toy) -> tuple[np.ndarray, np.ndarray]:
    return toy._sphere(24, 40)


def test_normals_of_a_sphere_are_its_points(toy) -> None:
    vertices, faces = sphere(toy)
    normals, rim = normals_and_rim(3 * vertices + 7, faces)
    assert (np.einsum("va,va->v", normals, vertices) > 0.999).all()
    assert not rim.any()


def test_normals_turn_with_the_mesh_and_flip_with_the_winding() -> None:
    vertices, faces = grid(5, 6, jitter=0.3)
    vertices[:, 2] = vertices[:, 0] ** 2
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    turn[:, 0] *= np.linalg.det(turn)
    np.testing.assert_allclose(
        vertex_normals(vertices @ turn.T, faces),
        vertex_normals(vertices, faces) @ turn.T,
        atol=1e-12,
    )
    np.testing.assert_allclose(
        vertex_normals(vertices, faces[:, ::-1]), -vertex_normals(vertices, faces)
    )
    assert vertex_normals(np.vstack([vertices, [[9, 9, 9]]]), faces)[-1].tolist() == [0, 0, 0]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_rim_agrees_with_counting_edges(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vertices, faces = grid(9, 8)
    faces = faces[rng.random(len(faces)) > 0.15]
    flip = rng.random(len(faces)) < 0.05
    faces[flip] = faces[flip][:, ::-1]
    edges = Counter((int(a), int(b)) for f in faces for a, b in zip(f, np.roll(f, -1), strict=True))
    slow = np.ones(len(vertices), dtype=bool)
    slow[np.unique(faces)] = False
    for (a, b), count in edges.items():
        if count != 1 or edges.get((b, a), 0) != 1:
            slow[[a, b]] = True
    fast = normals_and_rim(vertices, faces)[1]
    # The sums cancel only where they should: nothing on the rim is missed but a vertex whose
    # missing and doubled edges balance, which takes a flipped triangle inside a flipped fan.
    assert not (fast & ~slow).any()
    assert (fast == slow).mean() > 0.97
    if not flip.any():
        np.testing.assert_array_equal(fast, slow)


def test_areas_add_up() -> None:
    vertices, faces = grid(7, 9, jitter=0.4)
    areas = vertex_areas(2 * vertices, faces)
    assert areas.sum() == pytest.approx(4)
    assert areas.sum() == pytest.approx(
        np.linalg.norm(face_normals(2 * vertices, faces), axis=1).sum() / 2
    )


def test_laplacian_of_linear_and_quadratic_functions() -> None:
    vertices, faces = grid(11, 13, jitter=0.4)
    laplacian = cotangent_laplacian(vertices, faces)
    rim = normals_and_rim(vertices, faces)[1]
    dense = laplacian.toarray()
    np.testing.assert_allclose(dense, dense.T, atol=1e-12)
    np.testing.assert_allclose(dense.sum(axis=1), 0, atol=1e-11)
    assert np.linalg.eigvalsh(dense).min() > -1e-9
    np.testing.assert_allclose((laplacian @ (vertices @ [2, -3, 1.0]))[~rim], 0, atol=1e-10)
    # Dirichlet energy of x is the area of the square.
    assert vertices[:, 0] @ (laplacian @ vertices[:, 0]) == pytest.approx(1)
    regular, faces = grid(11, 11)
    value = cotangent_laplacian(regular, faces) @ (regular[:, 0] ** 2 + regular[:, 1] ** 2)
    inner = ~normals_and_rim(regular, faces)[1]
    np.testing.assert_allclose(value[inner] / vertex_areas(regular, faces)[inner], -4, atol=1e-9)


def test_laplacian_does_not_depend_on_position_or_size() -> None:
    vertices, faces = grid(6, 6, jitter=0.4)
    one = cotangent_laplacian(vertices, faces).toarray()
    other = cotangent_laplacian(50 * vertices[:, [2, 0, 1]] - 3, faces).toarray()
    np.testing.assert_allclose(one, other, atol=1e-9)


def test_components_of_two_pieces_and_a_loose_vertex() -> None:
    count, label = connected_components(7, np.array([[0, 1, 2], [3, 4, 5]]))
    assert count == 3
    assert label[0] == label[1] == label[2]
    assert label[3] == label[4] == label[5]
    assert len({label[0], label[3], label[6]}) == 3


def test_openness_of_a_ball_and_of_a_bowl(toy) -> None:
    vertices, faces = sphere(toy)
    np.testing.assert_array_equal(ambient_openness(vertices, faces, 32, 10.0), 1.0)
    inside = ambient_openness(vertices, faces[:, ::-1], 32, 10.0)
    np.testing.assert_array_equal(inside, 0.0)
    # A half ball seen from inside at its pole: the opening's rim stands at 45 degrees, and by
    # cosine the share of the sky inside that cone is a half.
    half = faces[(vertices[faces][:, :, 1] < 1e-9).all(axis=1)]
    bowl = ambient_openness(vertices, half[:, ::-1], 2000, 10.0)
    assert bowl[-1] == pytest.approx(0.5, abs=0.02)


def test_openness_reaches_no_further_than_told(toy) -> None:
    vertices, faces = sphere(toy)
    near = ambient_openness(vertices, faces[:, ::-1], 64, 0.05)
    assert near.mean() > 0.9


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_crop_agrees_with_the_slow_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vertices, faces = rng.normal(size=(40, 3)), rng.integers(0, 40, (60, 3))
    centre, radius = rng.normal(size=3), rng.uniform(0.5, 3.0)
    ids, kept = crop(vertices, faces, centre, radius)
    near = np.linalg.norm(vertices - centre, axis=1) < radius
    expected = faces[near[faces].all(axis=1)]
    np.testing.assert_array_equal(ids, np.unique(expected))
    np.testing.assert_array_equal(ids[kept].reshape(-1, 3), expected)


def test_crop_far_from_the_mesh_is_empty() -> None:
    vertices, faces = grid(4, 4)
    ids, kept = crop(vertices, faces, np.array([9.0, 0, 0]), 1.0)
    assert ids.shape == (0,)
    assert kept.shape == (0, 3)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_surface_at_some_vertices_is_that_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vertices, faces = grid(6, 7)
    vertices = vertices + 0.02 * rng.normal(size=vertices.shape)
    wanted = rng.random(len(vertices)) < 0.3
    some = surface_at(vertices, faces, wanted)
    normals, rim = normals_and_rim(vertices, faces)
    np.testing.assert_array_equal(some[0][wanted], normals[wanted])
    np.testing.assert_array_equal(some[1][wanted], rim[wanted])
    np.testing.assert_allclose(some[2][wanted], vertex_areas(vertices, faces)[wanted], rtol=1e-12)


def test_a_coarser_mesh_keeps_vertices_surface_and_sides():
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.1)
    vertices, faces = np.asarray(ball.vertices), np.asarray(ball.faces)
    coarse = coarser(vertices, faces, 600)
    assert 500 < len(coarse) <= 600
    assert coarse.dtype == faces.dtype
    a, b, c = (vertices[coarse[:, k]] for k in range(3))
    normals = np.cross(b - a, c - a)
    assert ((normals * (a + b + c)).sum(axis=1) > 0).all()
    centres = np.linalg.norm((a + b + c) / 3, axis=1)
    assert centres.min() > 0.097
    assert np.linalg.norm(normals, axis=1).sum() / 2 == pytest.approx(ball.area, rel=0.02)
    assert coarser(vertices, faces, len(faces)) is faces
