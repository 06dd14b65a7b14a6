"""Pictures of a scan, and their pixels back on its surface."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from models.geometry.mesh import vertex_normals
from models.geometry.views import (
    BACKGROUND,
    Camera,
    clustered,
    draw,
    lift,
    looking_along,
    sphere_of_views,
)

SQUARE = np.array([[0, 1, 2], [0, 2, 3]])


def square(tilt: np.ndarray) -> np.ndarray:
    """A square of side 2 about the origin, tilted."""
    corners = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    return corners @ tilt.T


def ball(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """A sphere of radius 1."""
    u, v = np.meshgrid(np.linspace(0, 2 * np.pi, 2 * count), np.linspace(0, np.pi, count))
    points = np.stack([np.sin(v) * np.cos(u), np.cos(v), -np.sin(v) * np.sin(u)], -1)
    corner = (np.arange(count - 1)[:, None] * 2 * count + np.arange(2 * count - 1)).ravel()
    ids = np.stack([corner, corner + 2 * count, corner + 2 * count + 1, corner + 1], axis=1)
    return points.reshape(-1, 3), np.concatenate([ids[:, [0, 1, 2]], ids[:, [0, 2, 3]]])


@pytest.mark.parametrize("angle_deg", [0.0, 20.0, 55.0])
def test_points_of_a_plane_are_lifted_exactly(angle_deg: float) -> None:
    tilt = Rotation.from_euler("yx", [angle_deg, 0.4 * angle_deg], degrees=True).as_matrix()
    vertices = square(tilt)
    camera = Camera(np.eye(3), np.zeros(3), 40.0, 128)
    view = draw(vertices, SQUARE, vertex_normals(vertices, SQUARE), camera)
    inside = np.random.default_rng(0).uniform(-0.8, 0.8, (50, 2))
    truth = np.concatenate([inside, np.zeros((50, 1))], axis=1) @ tilt.T
    found = lift(camera.project(truth), view.ids, view.bary, vertices, SQUARE)
    np.testing.assert_allclose(found, truth, atol=1e-9)


def test_perspective_and_parallel_cameras_agree_at_the_target_and_on_lifting() -> None:
    vertices, faces = ball()
    rotation = Rotation.from_euler("xyz", [20, -40, 10], degrees=True).as_matrix()
    target = rotation.T @ [0, 0, 1.0]
    for distance in (None, 4.0):
        camera = Camera(rotation, target, 60.0, 160, distance)
        np.testing.assert_allclose(camera.project(target[None]), [[80.0, 80.0]], atol=1e-9)
        view = draw(vertices, faces, vertex_normals(vertices, faces), camera)
        found = lift(np.array([[80.0, 80.0], [100.0, 60.0]]), view.ids, view.bary, vertices, faces)
        np.testing.assert_allclose(found[0], target, atol=3e-3)
        back = camera.project(found)
        np.testing.assert_allclose(back, [[80.0, 80.0], [100.0, 60.0]], atol=0.02)


def first_hits(start: np.ndarray, along: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Nearest intersection of each ray with a triangle soup (Moeller and Trumbore 1997)."""
    a, u, v = triangles[:, 0], *(triangles[:, k] - triangles[:, 0] for k in (1, 2))
    out = np.full(start.shape, np.nan)
    for ray, (origin, way) in enumerate(zip(start, along, strict=True)):
        p, gap = np.cross(way, v), origin - a
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = 1 / (u * p).sum(axis=1)
            s, q = scale * (gap * p).sum(axis=1), np.cross(gap, u)
            t, far = scale * (q @ way), scale * (v * q).sum(axis=1)
            hit = (s >= 0) & (t >= 0) & (s + t <= 1)
        out[ray] = origin + far[hit].min() * way
    return out


def test_lifting_agrees_with_rays() -> None:
    vertices, faces = ball()
    camera = Camera(looking_along(np.array([1.0, 2, 3]), 30.0), np.zeros(3), 50.0, 128)
    view = draw(vertices, faces, vertex_normals(vertices, faces), camera)
    points = np.random.default_rng(1).uniform(34, 94, (40, 2))
    found = lift(points, view.ids, view.bary, vertices, faces)
    across = (points - 64) / 50 * [1, -1]
    start = np.concatenate([across, np.full((40, 1), 5.0)], axis=1) @ camera.rotation
    along = np.broadcast_to(-camera.rotation[2], start.shape)
    np.testing.assert_allclose(found, first_hits(start, along, vertices[faces]), atol=2e-3)


def test_off_the_silhouette_the_nearest_covered_pixel_counts_within_reach() -> None:
    vertices = square(np.eye(3))
    camera = Camera(np.eye(3), np.zeros(3), 10.0, 40)
    view = draw(vertices, SQUARE, vertex_normals(vertices, SQUARE), camera)
    points = np.array([[32.0, 20.5], [36.0, 20.5], [np.nan, 3.0], [-90.0, 5.0]])
    found = lift(points, view.ids, view.bary, vertices, SQUARE, reach_px=3.0)
    np.testing.assert_allclose(found[0], [0.95, -0.05, 0.0], atol=1e-9)
    assert np.isnan(found[1:]).all()


def test_a_step_in_depth_is_not_interpolated() -> None:
    near, far = square(np.eye(3)) * [0.5, 1, 1] + [0.5, 0, 0], square(np.eye(3)) - [0, 0, 5.0]
    vertices, faces = np.concatenate([near, far]), np.concatenate([SQUARE, SQUARE + 4])
    camera = Camera(np.eye(3), np.zeros(3), 20.0, 64)
    view = draw(vertices, faces, vertex_normals(vertices, faces), camera)
    points = np.array([[31.9, 32.5], [32.1, 32.5]])
    blurred = lift(points, view.ids, view.bary, vertices, faces)
    sharp = lift(points, view.ids, view.bary, vertices, faces, jump=1.0)
    assert ((blurred[:, 2] > -4) & (blurred[:, 2] < -1)).all()
    np.testing.assert_allclose(sharp[:, 2], [-5.0, 0.0], atol=1e-9)


def test_a_turned_scan_seen_by_a_turned_camera_is_the_same_picture() -> None:
    vertices, faces = ball(20)
    vertices = vertices * [0.8, 1.0, 0.6]
    turn = Rotation.random(rng=np.random.default_rng(3)).as_matrix()
    camera = Camera(looking_along(np.array([0.2, 0.1, 1.0])), np.zeros(3), 40.0, 96)
    other = Camera(camera.rotation @ turn.T, np.array([5.0, 6, 7]), 40.0, 96)
    one = draw(vertices, faces, vertex_normals(vertices, faces), camera)
    moved = vertices @ turn.T + [5.0, 6, 7]
    two = draw(moved, faces, vertex_normals(moved, faces), other)
    assert (one.ids != two.ids).mean() < 0.01
    assert np.abs(one.image.astype(int) - two.image).mean() < 0.5


def test_light_colours_and_the_inner_side() -> None:
    vertices = square(np.eye(3))
    normals = vertex_normals(vertices, SQUARE)
    camera = Camera(np.eye(3), np.zeros(3), 20.0, 64)
    red = np.tile(np.array([[200, 0, 0]], np.uint8), (4, 1))
    seen = draw(vertices, SQUARE, normals, camera, red).image[32, 32]
    assert seen[0] > 150
    assert seen[1] == seen[2] == 0
    behind = Camera(np.diag([-1.0, 1.0, -1.0]), np.zeros(3), 20.0, 64)
    both = draw(vertices, SQUARE, normals, behind, red)
    np.testing.assert_array_equal(both.image[32, 32], seen)
    outer = draw(vertices, SQUARE, normals, behind, red, inside=False)
    assert (outer.image == BACKGROUND).all()
    assert (outer.ids == -1).all()
    assert (draw(vertices, SQUARE, normals, camera, red, inside=False).ids[32, 32]) >= 0


def test_sphere_of_views_is_near_every_rotation() -> None:
    views = sphere_of_views(6)
    assert views.shape == (156, 3, 3)
    np.testing.assert_allclose(np.linalg.det(views), 1)
    every = Rotation.random(400, rng=np.random.default_rng(5)).as_matrix()
    cosine = (np.einsum("nab,mab->nm", every, views).max(axis=1) - 1) / 2
    assert np.degrees(np.arccos(cosine)).max() < 45


def test_a_view_needs_a_direction() -> None:
    np.testing.assert_allclose(looking_along(np.array([0.0, 0, 2])), np.eye(3), atol=1e-12)
    with pytest.raises(ValueError, match="direction other than zero"):
        looking_along(np.zeros(3))


def test_clusters_are_means_of_cells() -> None:
    vertices, faces = ball(60)
    coarse, triangles = clustered(vertices, faces, 0.2)
    assert len(coarse) < len(vertices) / 8
    assert np.abs(np.linalg.norm(coarse, axis=1) - 1).max() < 0.02
    assert (triangles[:, 0] != triangles[:, 1]).all()
    cell = np.floor((vertices - vertices.min(axis=0)) / 0.2).astype(int)
    slow = {
        tuple(c): vertices[(cell == c).all(axis=1)].mean(axis=0) for c in np.unique(cell, axis=0)
    }
    np.testing.assert_allclose(sorted(map(tuple, coarse)), sorted(map(tuple, slow.values())))
