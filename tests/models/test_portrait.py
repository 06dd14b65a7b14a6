"""Portraits: the same picture wherever the mesh lies, points where they should be."""

import numpy as np
import pytest
from numpy.random import default_rng
from scipy.spatial.transform import Rotation

from models.face.portrait import (
    DISTANCE_MM,
    FOCAL_PX,
    SIZE_PX,
    face_frame,
    nose_tip,
    portrait,
)

SEVEN = np.array(
    [
        [-45.0, 35.0, -12.0],
        [-17.0, 34.0, 0.0],
        [17.0, 34.0, 0.0],
        [45.0, 35.0, -12.0],
        [0.0, -12.0, 18.0],
        [-25.0, -36.0, 4.0],
        [25.0, -36.0, 4.0],
    ]
)


def ball(bump: float = 20.0) -> tuple[np.ndarray, np.ndarray]:
    """A sphere behind the landmarks with a bump for a nose."""
    rings, around = 24, 36
    theta = np.linspace(0.05, np.pi - 0.05, rings)
    phi = np.linspace(0, 2 * np.pi, around, endpoint=False)
    t, p = np.meshgrid(theta, phi, indexing="ij")
    points = np.stack([np.sin(t) * np.cos(p), np.cos(t), np.sin(t) * np.sin(p)], -1).reshape(-1, 3)
    vertices = points * [75.0, 105.0, 90.0] + [0.0, 0.0, -85.0]
    rise = np.exp(-((vertices[:, 0] / 9) ** 2) - ((vertices[:, 1] + 2) / 12) ** 2)
    vertices[:, 2] += bump * rise * (vertices[:, 2] > -60)
    index = np.arange(rings * around).reshape(rings, around)
    a, b = index[:-1].ravel(), np.roll(index, -1, axis=1)[:-1].ravel()
    c, d = index[1:].ravel(), np.roll(index, -1, axis=1)[1:].ravel()
    return vertices, np.concatenate([np.stack([a, b, c], -1), np.stack([b, d, c], -1)])


def test_the_picture_does_not_depend_on_the_frame() -> None:
    vertices, faces = ball()
    expected = portrait(vertices, faces, SEVEN)
    R = Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix()
    moved = portrait(vertices @ R.T + [900.0, -20.0, 3.0], faces, SEVEN @ R.T + [900.0, -20.0, 3.0])
    np.testing.assert_allclose(moved.five_px, expected.five_px, atol=1e-9)
    differing = (np.abs(moved.image.astype(int) - expected.image) > 1).any(-1)
    assert differing.mean() < 0.002  # float32 edges


def test_face_frame_is_rigid_and_takes_eyes_and_mouth_to_the_plane() -> None:
    T = face_frame(SEVEN + 5.0)
    np.testing.assert_allclose(T[:, :3] @ T[:, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(T[:, :3]) == pytest.approx(1.0)
    placed = (SEVEN + 5.0) @ T[:, :3].T + T[:, 3]
    np.testing.assert_allclose(placed[:4].mean(0) + placed[5:].mean(0), 0.0, atol=1e-9)
    assert placed[3, 0] > placed[0, 0]
    assert placed[:4, 1].mean() > placed[5:, 1].mean()
    assert placed[4, 2] > 0  # the nose is before the face


def test_points_are_where_the_pinhole_puts_them() -> None:
    vertices, faces = ball()
    five = portrait(vertices, faces, SEVEN).five_px
    T = face_frame(SEVEN)
    mouth = T[:, :3] @ SEVEN[5] + T[:, 3]
    factor = FOCAL_PX / (DISTANCE_MM - mouth[2])
    expected = [SIZE_PX / 2 + factor * mouth[0], SIZE_PX / 2 - factor * mouth[1]]
    assert five[3] == pytest.approx(expected)
    assert five[0, 0] < five[2, 0] < five[1, 0]  # the subject's right is on the left


def test_the_nose_tip_is_the_foremost_point_between_eyes_and_mouth() -> None:
    vertices, _ = ball()
    T = face_frame(SEVEN)
    placed = vertices @ T[:, :3].T + T[:, 3]
    tip = nose_tip(placed, SEVEN @ T[:, :3].T + T[:, 3])
    near = np.abs(vertices[:, 0]) < 10
    foremost = placed[near][placed[near][:, 2].argmax()]
    np.testing.assert_allclose(tip, foremost)
    alone = nose_tip(placed[:0], SEVEN)
    np.testing.assert_array_equal(alone, SEVEN[4])


def test_the_head_is_lit_from_above_on_black_and_takes_colours() -> None:
    vertices, faces = ball()
    image = portrait(vertices, faces, SEVEN).image
    assert (image[0, 0] == 0).all()
    assert image[112, 112].min() > 40
    assert image[60, 112].sum() > image[180, 112].sum()
    green = np.tile(np.array([0, 200, 0], np.uint8), (len(vertices), 1))
    coloured = portrait(vertices, faces, SEVEN, green).image
    assert coloured[112, 112, 1] > 100
    assert coloured[..., [0, 2]].max() == 0


def test_bad_input_is_said() -> None:
    vertices, faces = ball()
    with pytest.raises(ValueError, match="eyes apart and mouth below"):
        face_frame(np.zeros((7, 3)))
    with pytest.raises(ValueError, match="check the unit"):
        portrait(50 * vertices, faces, 50 * SEVEN + default_rng(0).normal(size=(7, 3)))
