"""FaceWarehouse's topology has the published counts and lies on the head, right side out."""

import numpy as np

from models.procedural.expression import Expression
from models.procedural.identity import Identity
from stages.corpus import facewarehouse, studio


def test_counts_of_vertices_and_polygons() -> None:
    quads, triangles = facewarehouse.polygons()
    assert quads.shape[1] == 4
    assert triangles.shape[1] == 3
    assert len(quads) + len(triangles) == facewarehouse.POLYGONS == 11540
    used = np.unique(np.concatenate([quads.ravel(), triangles.ravel()]))
    np.testing.assert_array_equal(used, np.arange(11510))


def test_polygons_face_outward_and_form_one_oriented_surface() -> None:
    mean = studio.mean_vertices()
    points = facewarehouse.mesh_of(mean)
    origin = studio.shape_of(mean).origin_mm
    quads, triangles = facewarehouse.polygons()
    faces = np.concatenate([quads[:, :3], quads[:, [0, 2, 3]], triangles])
    corners = points[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    outward = np.einsum("fi,fi->f", normal, corners.mean(axis=1) - origin) > 0
    assert outward.mean() > 0.99
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    assert len(np.unique(edges, axis=0)) == len(edges)


def test_mesh_follows_the_jaw_without_tearing() -> None:
    head = studio.head()
    shut = facewarehouse.mesh_of(np.asarray(head.vertices(Identity.mean())))
    wide = np.asarray(head.vertices(Identity.mean(), Expression.prototype("mouth_open")))
    moved = np.linalg.norm(facewarehouse.mesh_of(wide) - shut, axis=1)
    assert moved.max() > 15.0
    quads, _ = facewarehouse.polygons()
    step = np.abs(moved[quads] - moved[np.roll(quads, 1, axis=1)]).max(axis=1)
    # only across the lips do neighbours part by more than a few millimetres
    assert (step > 6.0).mean() < 0.02


def test_landmark_vertices_lie_on_the_landmarks() -> None:
    mean = studio.mean_vertices()
    landmarks = studio.MM * np.asarray(studio.head().landmarks(mean))
    points = facewarehouse.mesh_of(mean)[facewarehouse.landmark_vertices()]
    assert np.median(np.linalg.norm(points - landmarks, axis=1)) < 2.0


def test_seventy_four_points() -> None:
    points = np.random.default_rng(0).random((68, 2))
    made = facewarehouse.seventy_four(points)
    assert made.shape == (74, 2)
    np.testing.assert_allclose(made[[0, 14]], points[[0, 16]])
    np.testing.assert_allclose(made[15:66], points[17:])
