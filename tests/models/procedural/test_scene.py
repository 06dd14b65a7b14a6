"""Cameras invert, lights stay in range, scenes repeat."""

import numpy as np
import pytest

from models.procedural.backdrop import paint_background
from models.procedural.scene import (
    BACKGROUND_KINDS,
    Background,
    angles_of_rotation,
    colour_of_temperature,
    orthographic_camera,
    perspective_camera,
    rotation_from_angles,
    sample_background,
    sample_light,
    sample_scene,
)


@pytest.mark.parametrize("angles", [(0, 0, 0), (30, -10, 5), (-80, 25, -40), (12, 0, 90)])
def test_angles_come_back(angles: tuple[float, float, float]) -> None:
    rotation = rotation_from_angles(*angles)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    np.testing.assert_allclose(angles_of_rotation(rotation), angles, atol=1e-9)


def test_signs_of_the_angles() -> None:
    nose = np.array([[0.0, 0.0, 0.1]])
    camera = perspective_camera(rotation_from_angles(20, 0, 0), (100, 100))
    assert camera.project(nose)[0, 0] > camera.project(np.zeros((1, 3)))[0, 0]
    camera = perspective_camera(rotation_from_angles(0, 20, 0), (100, 100))
    assert camera.project(nose)[0, 1] > camera.project(np.zeros((1, 3)))[0, 1]
    camera = perspective_camera(rotation_from_angles(0, 0, 20), (100, 100))
    left_ear = camera.project(np.array([[0.08, 0.0, 0.0]]))[0]
    assert left_ear[1] < camera.project(np.zeros((1, 3)))[0, 1]


def test_perspective_frames_the_target() -> None:
    target = (0.01, 0.02, 0.03)
    camera = perspective_camera(
        rotation_from_angles(33, 4, 9), (200, 160), distance_m=0.9, face_fraction=0.5,
        centre_fraction=(0.5, 0.5), target_m=target,
    )  # fmt: skip
    np.testing.assert_allclose(camera.project(np.array([target])), [[80.0, 100.0]], atol=1e-9)
    ends = camera.in_camera(np.array([target]))[0] + np.array([[0, 0.1, 0], [0, -0.1, 0]])
    back = (ends - camera.translation) @ camera.rotation
    pixels = camera.project(back)
    assert abs(pixels[1, 1] - pixels[0, 1]) == pytest.approx(100.0)


def test_orthographic_ignores_depth() -> None:
    camera = orthographic_camera(np.eye(3), 1000.0, (50.0, 60.0), target_m=(0.0, 0.01, 0.0))
    points = np.array([[0.01, 0.02, 0.3], [0.01, 0.02, -0.3]])
    np.testing.assert_allclose(camera.project(points), [[60.0, 50.0], [60.0, 50.0]])


def test_points_behind_the_camera_are_refused() -> None:
    camera = perspective_camera(np.eye(3), (64, 64), distance_m=1.0)
    with pytest.raises(ValueError, match="in front of the camera"):
        camera.project(np.array([[0.0, 0.0, 1.5]]))


def test_temperature_is_neutral_at_daylight_and_warm_below() -> None:
    np.testing.assert_allclose(colour_of_temperature(6500.0), 1.0, atol=1e-12)
    warm = colour_of_temperature(3000.0)
    assert warm[0] > 1.0 > warm[2]
    assert warm @ [0.2126, 0.7152, 0.0722] == pytest.approx(1.0)


def test_lights_are_unit_directions_with_a_steady_sum() -> None:
    for seed in range(40):
        light = sample_light(np.random.default_rng(seed))
        np.testing.assert_allclose(np.linalg.norm(light.directions, axis=1), 1.0)
        front = light.ambient[0] + light.ambient[2] + 2 * light.ambient[6]
        front = front + light.colours.T @ np.maximum(light.directions[:, 2], 0.0)
        assert 0.55 < front.mean() < 1.8


@pytest.mark.parametrize("kind", BACKGROUND_KINDS)
def test_backgrounds_repeat_and_stay_in_range(kind: str) -> None:
    rng = np.random.default_rng(3)
    base = sample_background(rng)
    background = Background(kind, base.colours, base.seed)
    first = paint_background(background, 40, 60)
    assert first.shape == (40, 60, 3)
    assert np.isfinite(first).all()
    assert first.min() >= 0.0
    np.testing.assert_array_equal(first, paint_background(background, 40, 60))
    other = Background(kind, base.colours, base.seed + 1)
    assert not np.array_equal(first, paint_background(other, 40, 60))


def test_unknown_background_is_an_error() -> None:
    with pytest.raises(ValueError, match="BACKGROUND_KINDS"):
        paint_background(Background("moon", np.ones((5, 3)), 1), 8, 8)


def test_scene_repeats_and_keeps_its_ranges() -> None:
    first = sample_scene(np.random.default_rng(5), (96, 80), yaw_range_deg=(10, 20))
    again = sample_scene(np.random.default_rng(5), (96, 80), yaw_range_deg=(10, 20))
    np.testing.assert_array_equal(first.camera.rotation, again.camera.rotation)
    np.testing.assert_array_equal(first.light.colours, again.light.colours)
    assert first.finish == again.finish
    assert 10.0 <= first.camera.yaw_deg <= 20.0
