"""The face crop of ``arcface_crop`` as a differentiable layer: batches of torch images.

Coordinates are ours: pixel centres at +0.5, y down.
"""

import torch
import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor

from models.networks.encoders.arcface_crop import TEMPLATE_PX


def five_of_68(landmarks_px: Float[Tensor, "B 68 2"]) -> Float[Tensor, "B 5 2"]:
    """Torch twin of ``five_points``."""
    eyes = [landmarks_px[:, 36:42].mean(1), landmarks_px[:, 42:48].mean(1)]
    return torch.stack([*eyes, *(landmarks_px[:, k] for k in (30, 48, 54))], dim=1)


def template_matrices(landmarks_px: Float[Tensor, "B 68 2"]) -> Float[Tensor, "B 2 3"]:
    """T_112_from_image of each face: the least-squares similarity onto ``TEMPLATE_PX``.

    The closed form of ``similarity_2d``; points that coincide give a matrix of zeros.
    """
    src = five_of_68(landmarks_px)
    dst = torch.as_tensor(TEMPLATE_PX, dtype=src.dtype, device=src.device)
    from_centre, to_centre = src.mean(1), dst.mean(0)
    s, d = src - from_centre[:, None], dst - to_centre
    spread = s.square().sum((1, 2)).clamp_min(1e-8)
    a = (s * d).sum((1, 2)) / spread
    b = (s[..., 0] * d[:, 1] - s[..., 1] * d[:, 0]).sum(1) / spread
    linear = torch.stack([torch.stack([a, -b], dim=1), torch.stack([b, a], dim=1)], dim=1)
    shift = to_centre - (linear @ from_centre[..., None])[..., 0]
    return torch.cat([linear, shift[..., None]], dim=2)


def warp_images(
    images: Float[Tensor, "B C h w"], T_out_from_image: Float[Tensor, "B 2 3"], size_px: int
) -> Float[Tensor, "B C s s"]:
    """Bilinear crops, differentiable in the images; outside is zero.

    Args:
        images: Any values.
        T_out_from_image: Affine maps in pixels that can be inverted; a singular one samples
            nothing useful.
        size_px: Side of the crops.
    """
    height, width = images.shape[-2:]
    a, b, c, d = T_out_from_image[:, :, :2].reshape(-1, 4).unbind(1)
    determinant = a * d - b * c
    safe = torch.where(determinant == 0, torch.ones_like(determinant), determinant)
    inverse = torch.stack([d, -b, -c, a], dim=1).reshape(-1, 2, 2) / safe[:, None, None]
    origin = -(inverse @ T_out_from_image[:, :, 2:])
    # Out and in, -1 to 1 spans the picture from edge to edge: p = side (n + 1) / 2.
    half = 0.5 * size_px * inverse
    middle = origin + half.sum(dim=2, keepdim=True)
    extent = images.new_tensor([[2.0 / width], [2.0 / height]])
    theta = torch.cat([half, middle], dim=2) * extent
    theta = theta - images.new_tensor([[0.0, 0.0, 1.0]])
    grid = nnf.affine_grid(theta, [len(images), 1, size_px, size_px], align_corners=False)
    return nnf.grid_sample(images, grid, align_corners=False)
