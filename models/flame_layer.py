"""FLAME as a torch layer; the equations, symbols and units are those of ``models.flame``."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.flame import FlameArrays


def rotation_matrices(axis_angle: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Torch twin of ``axis_angle_to_matrix``; its gradient is finite and right at zero."""
    squared = (axis_angle * axis_angle).sum(-1)[..., None, None]
    small = squared < 1e-8
    safe = torch.where(small, torch.ones_like(squared), squared)
    angle = safe.sqrt()
    sine = torch.where(small, 1.0 - squared / 6.0, angle.sin() / angle)
    cosine = torch.where(small, 0.5 - squared / 24.0, (1.0 - angle.cos()) / safe)
    x, y, z = axis_angle.unbind(-1)
    o = torch.zeros_like(x)
    K = torch.stack([o, -z, y, z, o, -x, -y, x, o], dim=-1).reshape(*axis_angle.shape[:-1], 3, 3)
    eye = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return eye + sine * K + cosine * (K @ K)


class Flame(nn.Module):
    """FLAME as a differentiable layer. All arrays are buffers that no checkpoint stores."""

    v_template: Tensor
    faces: Tensor
    shapedirs: Tensor
    exprdirs: Tensor
    posedirs: Tensor
    joint_regressor: Tensor
    weights: Tensor

    def __init__(self, arrays: FlameArrays, dtype: torch.dtype = torch.float32) -> None:
        """Copy ``arrays`` into buffers of type ``dtype``."""
        super().__init__()
        for name in (
            "v_template",
            "shapedirs",
            "exprdirs",
            "posedirs",
            "joint_regressor",
            "weights",
        ):
            value = torch.as_tensor(np.array(getattr(arrays, name)), dtype=dtype)
            self.register_buffer(name, value, persistent=False)
        faces = torch.as_tensor(np.array(arrays.faces), dtype=torch.int64)
        self.register_buffer("faces", faces, persistent=False)
        self.parents: list[int] = arrays.parents.tolist()

    @classmethod
    def load(cls, path: Path | str) -> "Flame":
        """Read a converted model; see ``FlameArrays.load``."""
        return cls(FlameArrays.load(path))

    def shaped(
        self, beta: Float[Tensor, "B s"], psi: Float[Tensor, "B e"] | None = None
    ) -> Float[Tensor, "B V 3"]:
        """Rest-pose vertices in metres; shorter coefficient vectors are padded with zeros."""
        out = self.v_template + torch.einsum(
            "vcs,bs->bvc", self.shapedirs[..., : beta.shape[1]], beta
        )
        if psi is not None:
            out = out + torch.einsum("vce,be->bvc", self.exprdirs[..., : psi.shape[1]], psi)
        return out

    def forward(
        self,
        beta: Float[Tensor, "B s"],
        psi: Float[Tensor, "B e"],
        theta: Float[Tensor, "B t"],
    ) -> Float[Tensor, "B V 3"]:
        """Posed vertices in metres.

        Args:
            beta: Identity, at most S values.
            psi: Expression, at most E values.
            theta: 15 axis-angle values in radians: global, neck, jaw, left eye, right eye.

        Raises:
            ValueError: ``theta`` does not hold three values per joint.
        """
        B, J = len(beta), len(self.parents)
        if theta.shape != (B, 3 * J):
            raise ValueError(
                f"Flame needs theta of shape {(B, 3 * J)} ({J} joints x 3), "
                f"got {tuple(theta.shape)}"
            )
        shaped = self.shaped(beta, psi)
        joints = torch.einsum("jv,bvc->bjc", self.joint_regressor, shaped)
        R = rotation_matrices(theta.reshape(B, J, 3))
        eye = torch.eye(3, dtype=R.dtype, device=R.device)
        feature = (R[:, 1:] - eye).reshape(B, -1)
        posed = shaped + torch.einsum("vcp,bp->bvc", self.posedirs, feature)

        world_R: list[Tensor] = []
        world_t: list[Tensor] = []
        for j, parent in enumerate(self.parents):
            if parent < 0:
                world_R.append(R[:, j])
                world_t.append(joints[:, j])
            else:
                offset = joints[:, j] - joints[:, parent]
                turned = torch.einsum("bac,bc->ba", world_R[parent], offset)
                world_R.append(world_R[parent] @ R[:, j])
                world_t.append(turned + world_t[parent])
        A = torch.stack(world_R, dim=1)  # B J 3 3
        b = torch.stack(world_t, dim=1) - torch.einsum("bjac,bjc->bja", A, joints)
        blended_R = torch.einsum("vj,bjac->bvac", self.weights, A)
        blended_t = torch.einsum("vj,bja->bva", self.weights, b)
        return torch.einsum("bvac,bvc->bva", blended_R, posed) + blended_t
