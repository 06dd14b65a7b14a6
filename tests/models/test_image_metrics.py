"""Photometric, depth and landmark errors against closed forms."""

import numpy as np
import pytest

from models.metrics.images import depth_rmse, landmark_error_mm, landmark_nme, photometric_rmse


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_a_constant_colour_error_is_its_own_rmse_whatever_lies_outside_the_mask(
    rng: np.random.Generator,
) -> None:
    image = rng.uniform(0, 255, (7, 9, 3))
    mask = np.zeros((7, 9), bool)
    mask[2:5, 3:8] = True
    other = image + 12.0
    other[~mask] = np.nan
    assert photometric_rmse(other, image, mask) == pytest.approx(12.0)


def test_channels_are_averaged(rng: np.random.Generator) -> None:
    image = rng.uniform(0, 255, (4, 4, 3))
    shifted = image + np.array([6.0, 0.0, 0.0])
    found = photometric_rmse(shifted, image, np.ones((4, 4), bool))
    assert found == pytest.approx(6.0 / np.sqrt(3))


def test_depth_without_a_reference_does_not_count() -> None:
    reference = np.array([[600.0, np.nan], [610.0, 500.0]])
    predicted = np.array([[603.0, 0.0], [606.0, 0.0]])
    mask = np.array([[True, True], [True, False]])
    assert depth_rmse(predicted, reference, mask) == pytest.approx(np.sqrt((9 + 16) / 2))


def test_an_empty_mask_is_said() -> None:
    with pytest.raises(ValueError, match="got 0 of 0; check the face mask"):
        depth_rmse(np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2), bool))


def test_nme_is_a_share_of_the_eye_distance_and_keeps_under_similarities(
    rng: np.random.Generator,
) -> None:
    true = rng.uniform(0, 200, (3, 68, 2))
    true[:, 36], true[:, 45] = [50.0, 80.0], [130.0, 80.0]
    predicted = true + np.array([0.0, 4.0])
    assert landmark_nme(predicted, true) == pytest.approx(4.0 / 80.0)
    turn = 2.5 * np.array([[0.6, -0.8], [0.8, 0.6]])
    noisy = true + rng.normal(size=true.shape)
    moved = landmark_nme(noisy @ turn.T + 7.0, true @ turn.T + 7.0)
    assert moved == pytest.approx(landmark_nme(noisy, true))


def test_nme_needs_eyes_apart() -> None:
    true = np.zeros((2, 68, 2))
    true[0, 45] = 1.0
    with pytest.raises(ValueError, match="frame 1 with both in one place"):
        landmark_nme(true, true)


def test_landmark_error_is_the_mean_distance() -> None:
    true = np.zeros((2, 4, 3))
    predicted = true.copy()
    predicted[1, 0] = [3.0, 0.0, 4.0]
    assert landmark_error_mm(predicted, true) == pytest.approx([0.0, 5.0 / 4])
