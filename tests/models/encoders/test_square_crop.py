"""Square crops and augmentation: where points land, masks that do not leak, seeds."""

import numpy as np

from models.networks.encoders.augment import Augmentation, augment, jitter_matrix, occlude, relight
from models.networks.encoders.square_crop import (
    crop_image,
    crop_matrix,
    crop_planes,
    landmark_square,
)


def test_landmark_square_and_its_matrix() -> None:
    points = np.array([[10.0, 20], [50, 90], [30, 40]])
    centre, side = landmark_square(points)
    np.testing.assert_allclose(centre, [30, 55])
    assert side == 70
    M = crop_matrix(centre, side, 35)
    np.testing.assert_allclose(M[:, :2] @ centre + M[:, 2], [17.5, 17.5])
    np.testing.assert_allclose(M[:, :2] @ [-5, 20] + M[:, 2], [0, 0])


def test_a_linear_ramp_is_resampled_exactly_at_pixel_centres() -> None:
    y, x = np.mgrid[:60, :80] + 0.5
    planes = np.stack([x, y, x + y], axis=-1)
    M = crop_matrix(np.array([40.0, 30.0]), 30.0, 20)
    values, seen = crop_planes(planes, np.ones((60, 80), bool), M, 20)
    assert seen.all()
    v, u = np.mgrid[:20, :20] + 0.5
    np.testing.assert_allclose(values[..., 0], 25 + 1.5 * u, atol=0.05)
    np.testing.assert_allclose(values[..., 1], 15 + 1.5 * v, atol=0.05)


def test_background_does_not_leak_into_planes() -> None:
    planes = np.full((40, 40, 6), 70.0)
    planes[:, 20:] = -1e6
    mask = np.zeros((40, 40), bool)
    mask[:, :20] = True
    values, seen = crop_planes(planes, mask, crop_matrix(np.array([20.0, 20.0]), 30.0, 64), 64)
    np.testing.assert_allclose(values[seen], 70.0, rtol=1e-4)
    assert seen.mean() == 0.5
    assert (values[~seen] == 0).all()


def test_reduction_averages_instead_of_sampling() -> None:
    checker = np.indices((128, 128)).sum(0) % 2 * 255
    image = np.repeat(checker[..., None], 3, axis=2).astype(np.uint8)
    small = crop_image(image, crop_matrix(np.array([64.0, 64.0]), 128.0, 32), 32)
    assert small.std() < 5
    assert abs(small.mean() - 127.5) < 2


def test_outside_is_black() -> None:
    image = np.full((20, 20, 3), 200, np.uint8)
    crop = crop_image(image, crop_matrix(np.array([0.0, 0.0]), 20.0, 20), 20)
    assert (crop[:9, :9] == 0).all()
    assert (crop[11:, 11:] == 200).all()


def test_augmentation_depends_on_its_generator_only() -> None:
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    change = Augmentation(0.1, 0.1, 10, 0.5, 0.2, 5, True)
    a = augment(image, change, np.random.default_rng(1))
    np.testing.assert_array_equal(a, augment(image, change, np.random.default_rng(1)))
    assert not np.array_equal(a, augment(image, change, np.random.default_rng(2)))
    np.testing.assert_array_equal(augment(image, Augmentation(), np.random.default_rng(3)), image)


def test_jitter_stays_within_its_limits_and_flips_half() -> None:
    change = Augmentation(shift=0.05, zoom=0.1, rotate_deg=10, flip=True)
    flipped = 0
    for seed in range(200):
        M = jitter_matrix(100, change, np.random.default_rng(seed))
        scale = np.sqrt(abs(np.linalg.det(M[:, :2])))
        flipped += np.linalg.det(M[:, :2]) < 0
        assert 0.9 <= scale <= 1.1
        moved = M[:, :2] @ [50, 50] + M[:, 2] - 50
        assert np.abs(moved).max() <= 5 + 1e-9
    assert 70 < flipped < 130


def test_relight_brightens_with_gain_and_keeps_black() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[4:] = 100
    lit = relight(image, Augmentation(gamma=1.0), np.random.default_rng(5))
    assert (lit[:4] == 0).all()
    assert len(np.unique(lit[4:])) == 1


def test_occlusion_paints_one_colour_as_often_as_asked() -> None:
    image = np.full((40, 40, 3), 7, np.uint8)
    hidden = 0
    for seed in range(100):
        changed = occlude(image, Augmentation(occlude=0.3), np.random.default_rng(seed))
        different = (changed != 7).any(axis=-1)
        hidden += bool(different.any())
        assert len(np.unique(changed[different].reshape(-1, 3), axis=0)) <= 1
    assert 18 <= hidden <= 42
    np.testing.assert_array_equal(occlude(image, Augmentation(), np.random.default_rng(0)), image)
