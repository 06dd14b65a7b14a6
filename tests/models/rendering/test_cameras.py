"""Cameras: closed forms, agreement of pixels and clip coordinates, gradients."""

import numpy as np
import pytest
import torch

from models.rendering.cameras import (
    look_at,
    orthographic_clip,
    orthographic_pixels,
    perspective_clip,
    perspective_pixels,
    pixels_of_ndc,
    transform_points,
)
from models.rendering.rasterize import rasterize

POINTS = np.random.default_rng(2).uniform(-0.1, 0.1, (2, 7, 3)) - [0, 0, 1.0]


def pixels_of(clip, height, width):
    x, y, _, w = np.moveaxis(clip, -1, 0)
    return np.stack([(x / w + 1) * width / 2, (1 - y / w) * height / 2], -1)


def test_perspective_closed_form():
    point = np.array([[[0.1, 0.2, -2.0]]])
    assert perspective_pixels(point, 500.0, 40.0, 30.0).tolist() == [[[65.0, -20.0]]]


def test_perspective_clip_meets_pixels_and_depth_range():
    focal = np.array([400.0, 500.0])
    pixels = perspective_pixels(POINTS, focal, 31.0, 27.5)
    clip = perspective_clip(POINTS, focal, 31.0, 27.5, 50, 60, near=0.5, far=3.0)
    np.testing.assert_allclose(pixels_of(clip, 50, 60), pixels, atol=1e-9)
    planes = np.array([[[0, 0, -0.5], [0, 0, -3.0]]])
    ends = perspective_clip(planes, 1.0, 0.0, 0.0, 50, 60, near=0.5, far=3.0)
    np.testing.assert_allclose(ends[0, :, 2] / ends[0, :, 3], [-1, 1])


def test_orthographic_clip_meets_pixels_and_nearer_is_smaller():
    pixels = orthographic_pixels(POINTS, 300.0, 31.0, 27.5)
    clip = orthographic_clip(POINTS, 300.0, 31.0, 27.5, 50, 60)
    np.testing.assert_allclose(pixels_of(clip, 50, 60), pixels, atol=1e-9)
    assert (clip[..., 3] == 1).all()
    assert (np.abs(clip[..., 2]) < 1).all()
    order = np.argsort(POINTS[0, :, 2])
    assert (np.diff(clip[0, order, 2]) < 0).all()


def test_up_in_space_is_a_lower_row_and_left_of_the_subject_is_a_larger_column():
    triangle = np.array([[[0.02, 0.02, 0], [0.04, 0.02, 0], [0.03, 0.04, 0]]])
    clip = orthographic_clip(triangle, 500.0, 32.0, 32.0, 64, 64, depth_range=(-1.0, 1.0))
    rows, columns = np.nonzero(rasterize(clip, np.array([[0, 1, 2]]), 64, 64, True)[0][0] == 0)
    assert len(rows)
    assert rows.max() <= 32 - 10
    assert columns.min() >= 32 + 10


def test_look_at_is_rigid_and_puts_the_target_ahead():
    camera = look_at(np.array([1.0, 2, 3]), np.array([0.5, 0, 0]), np.array([0, 1.0, 0]))
    np.testing.assert_allclose(camera[:3, :3] @ camera[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(camera[:3, :3]) == pytest.approx(1)
    target = transform_points(camera, np.array([[0.5, 0, 0]]))[0]
    distance = np.linalg.norm([0.5, 2, 3])
    np.testing.assert_allclose(target, [0, 0, -distance], atol=1e-12)
    above = transform_points(camera, np.array([[0.5, 0.1, 0]]))[0]
    assert above[1] > 0
    assert abs(above[0]) < 1e-12


def test_torch_equals_numpy_and_carries_gradients():
    points = torch.from_numpy(POINTS)
    focal = torch.tensor([400.0, 500.0], dtype=torch.float64, requires_grad=True)
    clip = perspective_clip(points, focal, 31.0, 27.5, 50, 60, near=0.5, far=3.0)
    expected = perspective_clip(
        POINTS, np.array([400.0, 500.0]), 31.0, 27.5, 50, 60, near=0.5, far=3.0
    )
    np.testing.assert_allclose(clip.detach().numpy(), expected, atol=1e-12)
    clip.sum().backward()
    assert (focal.grad != 0).all()
    flat = orthographic_clip(points, 300.0, 31.0, 27.5, 50, 60)
    np.testing.assert_allclose(
        flat.numpy(), orthographic_clip(POINTS, 300.0, 31.0, 27.5, 50, 60), atol=1e-12
    )


def test_wrong_requests_are_refused():
    with pytest.raises(ValueError, match="0 < near < far"):
        perspective_clip(POINTS, 1.0, 0.0, 0.0, 4, 4, near=0.0, far=1.0)
    with pytest.raises(ValueError, match="depth range"):
        orthographic_clip(POINTS, 1.0, 0.0, 0.0, 4, 4, depth_range=(1.0, 1.0))
    with pytest.raises(ValueError, match="off the view axis"):
        look_at(np.zeros(3), np.array([0, 1.0, 0]), np.array([0, 1.0, 0]))


@pytest.mark.parametrize(("height", "width"), [(240, 320), (320, 240), (256, 256)])
def test_ndc_camera_equals_pytorch3d_equations(height, width):
    f, px, py = 3.7, 0.11, -0.23
    x, y, z = np.moveaxis(POINTS * [-1, 1, -1], -1, 0)  # +x left, +z into the scene
    side = min(height, width)
    u = width / 2 - side / 2 * (f * x / z + px)
    v = height / 2 - side / 2 * (f * y / z + py)
    got = perspective_pixels(POINTS, *pixels_of_ndc(f, px, py, height, width))
    np.testing.assert_allclose(got, np.stack([u, v], -1))
