"""The five-point crop against known transforms."""

import numpy as np
import pytest

from models.networks.encoders.arcface_crop import (
    TEMPLATE_PX,
    arcface_blob,
    arcface_crop,
    five_points,
    similarity_2d,
)


def disc_image(points: np.ndarray, shape: tuple[int, int], radius: float) -> np.ndarray:
    """Soft white discs at ``points`` on black, drawn in our pixel convention."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    image = np.zeros(shape)
    for px, py in points:
        image += np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * radius**2))
    return np.repeat((np.clip(image, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=2)


def centroids(image: np.ndarray, near: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    out = []
    for px, py in near:
        w = image[..., 0] * (np.hypot(x - px, y - py) < 8)
        out.append([(w * x).sum() / w.sum(), (w * y).sum() / w.sum()])
    return np.array(out)


def test_similarity_recovers_a_known_transform() -> None:
    rng = np.random.default_rng(0)
    src = rng.normal(size=(5, 2)) * 20
    a, s, t = 0.7, 1.8, np.array([5.0, -3.0])
    R = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    M = similarity_2d(src, s * src @ R.T + t)
    np.testing.assert_allclose(M, np.c_[s * R, t], atol=1e-12)


def test_similarity_is_least_squares() -> None:
    rng = np.random.default_rng(1)
    src, dst = rng.normal(size=(5, 2)), rng.normal(size=(5, 2))

    def cost(parameters: np.ndarray) -> float:
        a, b, tx, ty = parameters
        M = np.array([[a, -b, tx], [b, a, ty]])
        return float(((src @ M[:, :2].T + M[:, 2] - dst) ** 2).sum())

    M = similarity_2d(src, dst)
    best = np.array([M[0, 0], M[1, 0], M[0, 2], M[1, 2]])
    for step in rng.normal(size=(50, 4)) * 1e-3:
        assert cost(best + step) > cost(best)


def test_points_land_on_the_template_at_any_size() -> None:
    a, s, t = 0.3, 2.3, np.array([150.0, 90.0])
    R = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    points = s * (TEMPLATE_PX - 56) @ R.T + t
    photo = disc_image(points, (220, 300), radius=5)
    for size in (112, 224):
        crop = arcface_crop(photo, points, size)
        assert crop.shape == (size, size, 3)
        want = TEMPLATE_PX * size / 112
        np.testing.assert_allclose(centroids(crop, want), want, atol=0.05)


def test_five_points_of_68() -> None:
    landmarks = np.arange(136.0).reshape(68, 2)
    points = five_points(landmarks)
    np.testing.assert_allclose(points[0], landmarks[[36, 37, 38, 39, 40, 41]].mean(0))
    np.testing.assert_allclose(points[2:], landmarks[[30, 48, 54]])


def test_blob_is_channel_first_and_spans_minus_one_to_one() -> None:
    crop = np.zeros((4, 4, 3), np.uint8)
    crop[1, 2] = [255, 0, 128]
    blob = arcface_blob(crop)
    assert blob.dtype == np.float32
    np.testing.assert_allclose(blob[:, 1, 2], [1, -1, 0.5 / 127.5], atol=1e-6)


def test_blobs_and_batches_of_them_have_their_channels_apart() -> None:
    blob = arcface_blob(np.zeros((6, 6, 3), np.uint8))
    assert blob.flags.c_contiguous
    assert np.stack([blob, blob]).flags.c_contiguous


def test_coinciding_points_are_refused() -> None:
    with pytest.raises(ValueError, match="do not coincide"):
        arcface_crop(np.zeros((9, 9, 3), np.uint8), np.ones((5, 2)))
