"""The weak-perspective crop: known cameras recovered, the publication's samples."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from scipy.spatial.transform import Rotation

from models.networks.encoders.pos_crop import (
    STANDARD_POINTS,
    corner_points,
    pos_crop_matrix,
    pos_matrix,
    weak_perspective,
)


def seen(scale: float, shift: list[float], angles: tuple[float, ...] = (0, 0, 0)) -> np.ndarray:
    turned = Rotation.from_euler("xyz", angles).apply(STANDARD_POINTS)
    return scale * turned[:, :2] * [1, -1] + shift


def of_68(five: np.ndarray) -> np.ndarray:
    points = np.full((68, 2), 1e3)
    points[[36, 39]] = five[0] + [[-4, 1], [4, -1]]
    points[[42, 45]] = five[1] + [[-3, 2], [3, -2]]
    points[[30, 48, 54]] = five[2:]
    return points


@pytest.mark.parametrize("angles", [(0, 0, 0), (0.3, -0.5, 0.2)])
def test_a_known_camera_is_recovered(angles: tuple[float, ...]) -> None:
    scale, origin = weak_perspective(seen(37.0, [210.0, 95.5], angles), STANDARD_POINTS)
    assert scale == pytest.approx(37.0)
    np.testing.assert_allclose(origin, [210.0, 95.5])


@pytest.mark.parametrize("size_px", [224, 96])
def test_the_crop_has_the_published_scale_and_centre(size_px: int) -> None:
    five = seen(51.0, [300.0, 180.0])
    matrix = pos_crop_matrix(of_68(five), size_px)
    cropped = five @ matrix[:, :2].T + matrix[:, 2]
    expected = seen(102.0 * size_px / 224, [size_px / 2, size_px / 2])
    np.testing.assert_allclose(cropped, expected, atol=1e-9)
    np.testing.assert_allclose(corner_points(of_68(five)), five)
    assert matrix[0, 1] == matrix[1, 0] == 0
    assert matrix[0, 0] == matrix[1, 1]


def test_moving_and_scaling_the_photograph_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    five = seen(80.0, [100.0, 120.0], (0.1, 0.4, -0.2)) + rng.normal(size=(5, 2))
    moved = 1.7 * five + [30.0, -12.0]
    crops = [
        points @ pos_matrix(points)[:, :2].T + pos_matrix(points)[:, 2] for points in (five, moved)
    ]
    np.testing.assert_allclose(*crops, atol=1e-9)


def test_points_that_are_no_face_are_refused() -> None:
    with pytest.raises(ValueError, match="span a face"):
        pos_matrix(np.full((5, 2), 7.0))
    with pytest.raises(ValueError, match="finite points"):
        pos_matrix(np.full((5, 2), np.nan))


@pytest.mark.parametrize("name", ["000002", "000031", "000125"])
def test_the_published_photographs(shared_data: Path, name: str) -> None:
    """Within a pixel of the published arithmetic: indices, y up, the published standard points."""
    folder = shared_data / "deep3d"
    five = np.loadtxt(folder / f"{name}.txt")
    faces = scipy.io.loadmat(folder / "similarity_Lm3D_all.mat")["lm"]
    standard = np.stack([faces[[36, 39]].mean(0), faces[[42, 45]].mean(0), *faces[[30, 48, 54]]])
    np.testing.assert_allclose(STANDARD_POINTS, standard, atol=4e-3)
    scale, origin = weak_perspective(five * [1, -1], standard)
    expected = (five - origin * [1, -1]) * 102 / scale + 112
    matrix = pos_matrix(five + 0.5)
    cropped = (five + 0.5) @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(cropped, expected, atol=1.0)
    assert np.abs(cropped.mean(axis=0) - 112).max() < 20
    assert 50 < cropped[1, 0] - cropped[0, 0] < 75
