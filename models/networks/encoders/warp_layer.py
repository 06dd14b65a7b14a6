"""The face crop of ``arcface_crop`` as a differentiable layer: batches of torch images.

Coordinates are ours: pixel centres at +0.5, y down.
"""

import torch
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

    Written with ``gather``, because the gradient of ``grid_sample`` is not the same in every run
    on a GPU.

    Args:
        images: Any values.
        T_out_from_image: Affine maps in pixels that can be inverted; a singular one samples
            nothing useful.
        size_px: Side of the crops.
    """
    B, C, height, width = images.shape
    a, b, c, d = T_out_from_image[:, :, :2].reshape(-1, 4).unbind(1)
    determinant = a * d - b * c
    safe = torch.where(determinant == 0, torch.ones_like(determinant), determinant)
    inverse = torch.stack([d, -b, -c, a], dim=1).reshape(-1, 2, 2) / safe[:, None, None]
    centres = torch.arange(size_px, dtype=images.dtype, device=images.device) + 0.5
    out = torch.cartesian_prod(centres, centres).flip(1)  # x, y; rows after one another
    place = (out - T_out_from_image[:, None, :, 2]) @ inverse.mT - 0.5
    corner = place.floor()
    ahead = place - corner
    flat, crop = images.flatten(2), images.new_zeros(B, C, size_px * size_px)
    for right, down in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, row = corner[..., 0] + right, corner[..., 1] + down
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        share_x = ahead[..., 0] if right else 1.0 - ahead[..., 0]
        share_y = ahead[..., 1] if down else 1.0 - ahead[..., 1]
        weight = torch.where(inside, share_x * share_y, 0.0)
        index = torch.where(inside, row * width + column, 0.0).long()
        crop = crop + weight[:, None] * flat.gather(2, index[:, None].expand(-1, C, -1))
    return crop.reshape(B, C, size_px, size_px)
