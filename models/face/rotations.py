"""Rotations as six continuous numbers (Zhou et al., CVPR 2019): what optimisers like best.

The six numbers are the first two rows of the matrix, before they are made orthonormal; PyTorch3D's
``rotation_6d_to_matrix`` has the same layout.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize


def matrix_of_six(six: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation whose first two rows are the Gram-Schmidt basis of the two halves of ``six``.

    b1 = a1 / |a1|, b2 = (a2 - (b1 . a2) b1) / |...|, b3 = b1 x b2 (Zhou et al., eq. 15). Halves
    that are parallel span no plane; the result is then no rotation.
    """
    a1, a2 = six[..., :3], six[..., 3:]
    b1 = normalize(a1, dim=-1)
    b2 = normalize(a2 - (b1 * a2).sum(-1, keepdim=True) * b1, dim=-1)
    return torch.stack([b1, b2, torch.cross(b1, b2, dim=-1)], dim=-2)


def six_of_matrix(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 6"]:
    """The first two rows; ``matrix_of_six`` takes them back to a rotation matrix exactly."""
    return matrix[..., :2, :].reshape(*matrix.shape[:-2], 6).clone()
