"""Six numbers and rotations."""

import torch

from models.face.flame_layer import rotation_matrices
from models.face.rotations import matrix_of_six, six_of_matrix


def test_round_trip_and_layout() -> None:
    R = rotation_matrices(torch.randn(50, 3, dtype=torch.float64))
    torch.testing.assert_close(matrix_of_six(six_of_matrix(R)), R)
    torch.testing.assert_close(six_of_matrix(R), torch.cat([R[:, 0], R[:, 1]], dim=1))


def test_any_six_numbers_give_a_rotation_that_ignores_lengths() -> None:
    six = torch.randn(50, 6, dtype=torch.float64)
    R = matrix_of_six(six)
    torch.testing.assert_close(R @ R.mT, torch.eye(3, dtype=R.dtype).expand(50, 3, 3))
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(50, dtype=R.dtype))
    torch.testing.assert_close(matrix_of_six(3.0 * six), R)
    assert torch.autograd.gradcheck(matrix_of_six, (six[:3].requires_grad_(),))
