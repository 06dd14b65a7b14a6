"""Cameras from correspondences: exact recovery, noise, the Jacobian, what determines no camera."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from models.methods.pix2face_camera import (
    FaceCamera,
    _linearised,
    fit_affine,
    fit_pinhole,
    rotation_of,
)
from models.methods.pose import fit_scaled_orthographic

CENTRE = np.array([320.0, 240.0])


def face_points(rng: np.random.Generator, count: int) -> np.ndarray:
    """A bowl the size of a face, mm."""
    x, y = rng.uniform([[-70], [-90]], [[70], [90]], (2, count))
    return np.stack([x, y, 110 - (x**2 + y**2) / 130 + rng.normal(0, 3, count)], axis=1)


def random_camera(rng: np.random.Generator, distance: float, focal_px: float) -> FaceCamera:
    angles = rng.uniform([-90, -35, -40], [90, 35, 40])
    R = Rotation.from_euler("YXZ", angles, degrees=True).as_matrix()
    shift = 0.1 * distance * rng.uniform(-1, 1, 2)
    return FaceCamera(R, focal_px / distance, 1.0 / distance, shift, CENTRE)


def test_a_thousand_pinholes_are_recovered_from_the_default_start() -> None:
    worst = np.zeros(3)
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        distance, focal = rng.uniform(250, 4000), rng.uniform(200, 6000)
        camera = random_camera(rng, distance, focal)
        points = face_points(rng, 60)
        found = fit_pinhole(points, camera.project(points), CENTRE)
        errors = (
            abs(found.focal_px / focal - 1),
            abs(found.distance / distance - 1),
            np.abs(found.rotation - camera.rotation).max(),
        )
        worst = np.maximum(worst, errors)
    assert worst[0] < 1e-6
    assert worst[1] < 1e-6
    assert worst[2] < 1e-6


def test_a_thousand_affine_cameras_are_recovered() -> None:
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        angles = rng.uniform([-90, -60, -180], [90, 60, 180])
        R = Rotation.from_euler("YXZ", angles, degrees=True).as_matrix()
        camera = FaceCamera(R, rng.uniform(0.2, 8), 0.0, rng.uniform(-50, 50, 2), CENTRE)
        points = face_points(rng, 30)
        found = fit_affine(points, camera.project(points), CENTRE)
        np.testing.assert_allclose(found.rotation, R, atol=1e-9)
        assert found.m == pytest.approx(camera.m, rel=1e-9)
        np.testing.assert_allclose(found.shift, camera.shift, atol=1e-7)
        assert found.focal_px == np.inf


def test_a_pixel_of_noise_leads_nowhere_else() -> None:
    """No divergence: as near as the true camera, in front of the face, and no worse than affine."""
    for seed in range(150):
        rng = np.random.default_rng(seed)
        distance = rng.uniform(300, 4000)
        camera = random_camera(rng, distance, distance * rng.uniform(0.5, 3))
        points = face_points(rng, 150)
        noisy = camera.project(points) + rng.normal(size=(150, 2))
        found = fit_pinhole(points, noisy, CENTRE)

        def cost(one: FaceCamera, points=points, noisy=noisy) -> float:
            return float(((one.project(points) - noisy) ** 2).sum())

        assert cost(found) <= cost(camera) * (1 + 1e-9)
        assert cost(found) <= cost(fit_affine(points, noisy, CENTRE)) * (1 + 1e-9)
        assert 0 <= found.k * (points @ found.rotation[2]).max() < 1
        turned = Rotation.from_matrix(found.rotation @ camera.rotation.T).magnitude()
        assert np.degrees(turned) < 10


def test_a_picture_without_perspective_gives_an_affine_camera() -> None:
    rng = np.random.default_rng(5)
    R = Rotation.from_euler("YXZ", [25, -8, 4], degrees=True).as_matrix()
    true = FaceCamera(R, 1.7, 0.0, np.array([3.0, -2.0]), CENTRE)
    points = face_points(rng, 80)
    inward = FaceCamera(R, 1.7, -1 / 3000, true.shift, CENTRE)  # what no camera does
    for camera in (true, inward):
        found = fit_pinhole(points, camera.project(points), CENTRE)
        assert found.k == pytest.approx(0, abs=1e-8)
        assert np.isfinite(found.project(points)).all()
    assert found.focal_px == np.inf
    assert found.distance == np.inf


def test_jacobian_is_the_derivative() -> None:
    rng = np.random.default_rng(0)
    camera = random_camera(rng, 700, 900)
    X = face_points(rng, 12)
    up = rng.normal(size=(12, 2))

    def residual(w: np.ndarray) -> np.ndarray:
        R = Rotation.from_rotvec(w[:3]).as_matrix() @ camera.rotation
        t = camera.shift + w[3:5]
        return _linearised(X, up, R, t, np.log(camera.m) + w[5], camera.k + w[6])[0]

    _, J = _linearised(X, up, camera.rotation, camera.shift, np.log(camera.m), camera.k)
    steps = np.array([1e-6, 1e-6, 1e-6, 1e-4, 1e-4, 1e-6, 1e-9])
    for column, step in enumerate(steps):
        move = np.eye(7)[column] * step
        numeric = (residual(move) - residual(-move)) / (2 * step)
        np.testing.assert_allclose(J[:, column], numeric, rtol=1e-5, atol=1e-4)


def test_projection_written_out_and_the_other_camera_class() -> None:
    R = Rotation.from_euler("YXZ", [30, -10, 5], degrees=True).as_matrix()
    camera = FaceCamera(R, 1.5, 1 / 600, np.array([4.0, -7.0]), CENTRE)
    X = np.array([[10.0, 20, 90], [-30, 5, 60]])
    Y = X @ R.T + [4, -7, -600]  # in front of a camera at the origin, z negative
    expected = CENTRE + 900 * Y[:, :2] / -Y[:, 2:] * [1, -1]  # f = m / k = 900
    np.testing.assert_allclose(camera.project(X), expected, atol=1e-9)
    assert camera.focal_px == pytest.approx(900)
    moved = camera.moved(2.0, np.array([3.0, -1.0]))
    np.testing.assert_allclose(moved.project(X), 2 * expected + [3, -1], atol=1e-9)
    points = face_points(np.random.default_rng(1), 40)
    far = FaceCamera(R, 1.5, 0.0, np.zeros(2), CENTRE)
    ortho = fit_scaled_orthographic(points, far.project(points))
    np.testing.assert_allclose(ortho.project(points), far.project(points), atol=1e-9)


@pytest.mark.parametrize("k", [0.0, 1 / 400])
def test_clip_coordinates_meet_the_pixels_and_order_depth(k: float) -> None:
    rng = np.random.default_rng(2)
    camera = FaceCamera(
        random_camera(rng, 400, 500).rotation, 1.2, k, np.array([5.0, 2.0]), np.array([32.0, 24.0])
    )
    points = face_points(rng, 50)
    clip = camera.clip(points, 48, 64).astype(np.float64)
    ndc = clip[:, :3] / clip[:, 3:]
    pixels = np.stack([(ndc[:, 0] + 1) * 32, (1 - ndc[:, 1]) * 24], axis=1)
    np.testing.assert_allclose(pixels, camera.project(points), atol=1e-3)
    nearest_first = np.argsort(-(points @ camera.rotation[2]))
    assert (np.diff(ndc[nearest_first, 2]) > 0).all()
    assert np.abs(ndc[:, 2]).max() <= 1 + 1e-6


@pytest.mark.parametrize("angles", [(0, 0, 0), (40, 0, 0), (0, -25, 0), (0, 0, 30), (50, 20, -10)])
def test_head_angles(angles: tuple[float, float, float]) -> None:
    R = Rotation.from_euler("YXZ", angles, degrees=True).as_matrix()
    camera = FaceCamera(R, 1.0, 0.0, np.zeros(2), np.zeros(2))
    np.testing.assert_allclose(camera.head_angles_deg(), angles, atol=1e-9)
    if angles == (40, 0, 0):  # the nose, in front of the face, goes to the right of the picture
        assert camera.project(np.array([[0.0, 0, 100]]))[0, 0] > 50


@pytest.mark.parametrize("fit", [fit_affine, fit_pinhole])
def test_what_determines_no_camera(fit) -> None:
    rng = np.random.default_rng(3)
    points = face_points(rng, 50)
    with pytest.raises(ValueError, match="needs >= 10 correspondences, got 9"):
        fit(points[:9], points[:9, :2], CENTRE)
    turned = (points * [1, 1, 0]) @ Rotation.random(random_state=4).as_matrix()
    with pytest.raises(ValueError, match="off a plane"):
        fit(turned, points[:, :2], CENTRE)
    with pytest.raises(ValueError, match="finite"):
        fit(np.where(points == points[0, 0], np.nan, points), points[:, :2], CENTRE)


def test_a_turn_has_the_bits_of_scipys() -> None:
    rng = np.random.default_rng(5)
    turns = rng.normal(size=(500, 3)) * 10.0 ** rng.uniform(-9, 0.5, (500, 1))
    for turn in [*turns, np.zeros(3), np.array([0.0, 0.0, np.pi])]:
        np.testing.assert_array_equal(
            rotation_of(*turn.tolist()), Rotation.from_rotvec(turn).as_matrix()
        )
