"""FLAME and its landmarks as torch layers; symbols and units are those of ``models.face.flame``."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.face.flame import CONTOUR_LIMIT_DEG, CONTOUR_ROWS, FlameArrays, LandmarkEmbedding


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
    """FLAME as a differentiable layer. All arrays are buffers that no checkpoint stores.

    Joints are linear in the coefficients, so their template and directions are regressed once; a
    layer of some vertices then needs none of the others.
    """

    v_template: Tensor
    shapedirs: Tensor
    exprdirs: Tensor
    posedirs: Tensor
    weights: Tensor
    joint_template: Tensor
    joint_shapedirs: Tensor
    joint_exprdirs: Tensor

    def __init__(
        self,
        arrays: FlameArrays,
        dtype: torch.dtype = torch.float32,
        vertices: Int[np.ndarray, " n"] | None = None,
    ) -> None:
        """Copy ``arrays`` into buffers of type ``dtype``.

        Args:
            arrays: The model.
            dtype: Of every result.
            vertices: Ids of the vertices to compute, in the order of the results; None means all.
        """
        super().__init__()
        picked = slice(None) if vertices is None else vertices
        regressor = arrays.joint_regressor.astype(np.float64)
        content = {
            "v_template": arrays.v_template[picked],
            "shapedirs": arrays.shapedirs[picked],
            "exprdirs": arrays.exprdirs[picked],
            "posedirs": arrays.posedirs[picked],
            "weights": arrays.weights[picked],
            "joint_template": regressor @ arrays.v_template,
            "joint_shapedirs": np.tensordot(regressor, arrays.shapedirs, 1),
            "joint_exprdirs": np.tensordot(regressor, arrays.exprdirs, 1),
        }
        for name, value in content.items():
            tensor = torch.as_tensor(np.array(value), dtype=dtype)
            self.register_buffer(name, tensor, persistent=False)
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

    def joints(
        self, beta: Float[Tensor, "B s"], psi: Float[Tensor, "B e"]
    ) -> Float[Tensor, "B J 3"]:
        """Joints of the head at rest, metres."""
        S, E = beta.shape[1], psi.shape[1]
        moved = torch.einsum("jcs,bs->bjc", self.joint_shapedirs[..., :S], beta)
        moved = moved + torch.einsum("jce,be->bjc", self.joint_exprdirs[..., :E], psi)
        return self.joint_template + moved

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
        return self.articulated(beta, psi, rotation_matrices(theta.reshape(B, J, 3)))

    def articulated(
        self,
        beta: Float[Tensor, "B s"],
        psi: Float[Tensor, "B e"],
        R: Float[Tensor, "B J 3 3"],
    ) -> Float[Tensor, "B V 3"]:
        """Posed vertices in metres from the joints' rotation matrices, in the order of theta."""
        B = len(beta)
        shaped = self.shaped(beta, psi)
        joints = self.joints(beta, psi)
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


def head_yaws_deg(theta: Float[Tensor, "B t"]) -> Float[Tensor, " B"]:
    """Torch twin of ``models.face.flame.head_yaw_deg``: yaw of the chain root-neck, degrees."""
    R = rotation_matrices(theta[:, :6].reshape(-1, 2, 3))
    chain = R[:, 0] @ R[:, 1]
    across = torch.hypot(chain[:, 0, 0], chain[:, 1, 0])
    return torch.rad2deg(torch.atan2(-chain[:, 2, 0], across))


def contour_rows(yaw_deg: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Torch twin of ``models.face.flame.contour_row``; rounding has no gradient."""
    a = yaw_deg.detach().clamp(-CONTOUR_LIMIT_DEG, CONTOUR_LIMIT_DEG).round().long()
    return torch.where(a >= 0, a, CONTOUR_LIMIT_DEG - a)


class FlameLandmarks(nn.Module):
    """The 68 iBUG landmarks of a posed head, contour first, without the rest of its surface.

    The contour (0..16) follows the head's yaw row by row of the embedding's table, or stays at the
    embedding's full set. Which row is taken carries no gradient; the points do.
    """

    corners: Tensor
    bary: Tensor

    def __init__(
        self,
        arrays: FlameArrays,
        embedding: LandmarkEmbedding,
        dtype: torch.dtype = torch.float32,
        *,
        dynamic: bool = True,
    ) -> None:
        """Gather the vertices that any landmark needs.

        Args:
            arrays: The model.
            embedding: Its landmarks.
            dtype: Of the results.
            dynamic: False keeps the contour of a frontal head.
        """
        super().__init__()
        if dynamic:
            static_faces = np.tile(embedding.static_faces, (CONTOUR_ROWS, 1))
            static_bary = np.tile(embedding.static_bary, (CONTOUR_ROWS, 1, 1))
            faces = np.concatenate([embedding.dynamic_faces, static_faces], axis=1)
            bary = np.concatenate([embedding.dynamic_bary, static_bary], axis=1)
        else:
            faces, bary = embedding.full_faces[None], embedding.full_bary[None]
        used, corners = np.unique(arrays.faces[faces], return_inverse=True)
        self.dynamic = dynamic
        self.flame = Flame(arrays, dtype, used)
        corners = corners.reshape(*faces.shape, 3)
        self.register_buffer("corners", torch.as_tensor(corners), persistent=False)
        self.register_buffer("bary", torch.as_tensor(bary, dtype=dtype), persistent=False)

    def forward(
        self,
        beta: Float[Tensor, "B s"],
        psi: Float[Tensor, "B e"],
        theta: Float[Tensor, "B t"],
    ) -> Float[Tensor, "B 68 3"]:
        """Landmarks in metres; the arguments are those of ``Flame``."""
        vertices = self.flame(beta, psi, theta)
        rows = torch.zeros(len(theta), dtype=torch.int64, device=theta.device)
        if self.dynamic:
            rows = contour_rows(head_yaws_deg(theta))
        batch = torch.arange(len(theta), device=theta.device)[:, None, None]
        return (self.bary[rows][..., None] * vertices[batch, self.corners[rows]]).sum(2)
