"""The differentiable crop: NumPy's matrices, OpenCV's picture, gradients."""

import numpy as np
import torch

from models.networks.encoders.arcface_crop import TEMPLATE_PX, five_points, similarity_2d
from models.networks.encoders.augment import warp
from models.networks.encoders.warp_layer import five_of_68, template_matrices, warp_images


def test_matrices_are_those_of_numpy() -> None:
    points = np.random.default_rng(0).normal(size=(3, 68, 2)) * 20 + 50
    landmarks = torch.as_tensor(points)
    for face, five, matrix in zip(
        points, five_of_68(landmarks), template_matrices(landmarks), strict=True
    ):
        np.testing.assert_allclose(five, five_points(face))
        np.testing.assert_allclose(matrix, similarity_2d(five_points(face), TEMPLATE_PX))


def test_points_that_coincide_give_finite_matrices() -> None:
    matrix = template_matrices(torch.full((1, 68, 2), 7.0))
    assert bool(matrix.isfinite().all())
    assert bool(warp_images(torch.ones(1, 3, 8, 8), matrix, 4).isfinite().all())


def test_a_crop_is_opencv_s() -> None:
    rng = np.random.default_rng(1)
    image = rng.random((40, 50, 3)).astype(np.float32)
    angle = 0.3
    A = 1.3 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrices = np.stack([np.c_[A, [12.0, -5.0]], np.c_[np.diag([0.8, 1.1]), [5.0, 2.5]]])
    images = torch.as_tensor(np.stack([image, image[::-1].copy()]).transpose(0, 3, 1, 2).copy())
    crops = warp_images(images, torch.as_tensor(matrices, dtype=torch.float32), 32)
    for crop, source, matrix in zip(crops, (image, image[::-1].copy()), matrices, strict=True):
        expected = warp(source, matrix, 32, 32)
        inside = warp(np.ones((40, 50), np.float32), matrix, 32, 32) == 1
        assert 0.3 < inside.mean() < 1
        ours = crop.permute(1, 2, 0).numpy()
        np.testing.assert_allclose(ours[inside], expected[inside], atol=0.02)
        assert np.abs(ours - expected)[inside].mean() < 0.005


def test_what_is_outside_is_black() -> None:
    moved = torch.tensor([[[1.0, 0.0, 3.0], [0.0, 1.0, -2.0]]])
    crop = warp_images(torch.ones(1, 1, 6, 6), moved, 6)[0, 0]
    expected = torch.zeros(6, 6)
    expected[:4, 3:] = 1.0
    assert torch.equal(crop, expected)


def test_an_identity_keeps_every_bit_and_gradients_are_exact() -> None:
    image = torch.rand(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    same = torch.eye(2, 3, dtype=torch.float64)[None]
    torch.testing.assert_close(warp_images(image, same, 6), image)
    turned = torch.tensor([[[0.9, -0.2, 0.7], [0.2, 0.9, -0.4]]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: warp_images(x, turned, 5), (image,))
