"""Losses shared by the methods. Distances are metres, angles radians."""

import math

import torch
import torch.nn.functional as nnf
from jaxtyping import Bool, Float, Int
from torch import Tensor


def weighted_l1(
    predicted: Float[Tensor, "B V 3"],
    target: Float[Tensor, "B V 3"],
    weights: Float[Tensor, " V"],
    scale: float = 1000.0,
) -> Float[Tensor, ""]:
    """``scale`` times the mean over batch, vertices and axes of ``w_v |p - t|``.

    MICA's vertex loss (Zielonka et al. 2022, eq. 4), with vertices in metres and scale 1000.
    """
    return scale * ((predicted - target).abs() * weights[:, None]).mean()


def angular_margin_logits(
    cosine: Float[Tensor, "B C"], labels: Int[Tensor, " B"], scale: float, margin: float
) -> Float[Tensor, "B C"]:
    """Logits of the additive angular margin (Deng et al., CVPR 2019, eq. 3).

    The true class gets ``s cos(angle + m)``. Where ``angle + m`` exceeds pi the cosine would rise
    again; there the value continues linearly, ``s (cos(angle) - m sin(m))``, as is customary.
    """
    true = cosine.gather(1, labels[:, None]).squeeze(1)
    sine = (1.0 - true * true).clamp_min(1e-12).sqrt()
    shifted = true * math.cos(margin) - sine * math.sin(margin)
    shifted = torch.where(true > -math.cos(margin), shifted, true - margin * math.sin(margin))
    one_hot = nnf.one_hot(labels, cosine.shape[1]).bool()
    return scale * torch.where(one_hot, shifted[:, None], cosine)


def angular_margin_loss(
    embedding: Float[Tensor, "B d"],
    centres: Float[Tensor, "C d"],
    labels: Int[Tensor, " B"],
    scale: float,
    margin: float,
) -> Float[Tensor, ""]:
    """Cross-entropy over margin logits of the cosines between embeddings and class centres."""
    cosine = nnf.linear(nnf.normalize(embedding), nnf.normalize(centres)).clamp(-1.0, 1.0)
    return nnf.cross_entropy(angular_margin_logits(cosine, labels, scale, margin), labels)


def masked_l1(
    predicted: Float[Tensor, "B C h w"],
    target: Float[Tensor, "B C h w"],
    mask: Bool[Tensor, "B h w"] | None = None,
    background_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """Mean absolute difference over planes and pixels, background pixels weighted.

    Args:
        predicted: Network output.
        target: The same planes, background already filled in.
        mask: True on the face; None counts every pixel alike.
        background_weight: Weight of the pixels outside ``mask``; the mean is over all weights.
    """
    error = (predicted - target).abs().mean(dim=1)
    if mask is None:
        return error.mean()
    one = torch.ones_like(error)
    weight = torch.where(mask, one, background_weight * one)
    return (error * weight).sum() / weight.sum().clamp_min(1.0)


def ring_loss(beta: Float[Tensor, "B R s"], margin: float) -> Float[Tensor, ""]:
    """Shape consistency of rings (Sanyal et al. 2019, eqs. 5 and 6, as printed).

    The sum over rings i and j, k < R of ``max(0, |b_ij - b_ik|^2 - |b_ij - b_iR|^2 + margin)``,
    divided by the number of rings times R. The terms j = k are part of the printed sum: a hinge on
    the distance to the other person alone.

    Args:
        beta: Coefficients of each ring's photographs, the last of another person.
        margin: By how much the other person must be further away, squared distance.

    Raises:
        ValueError: A ring has fewer than three photographs.
    """
    B, R, _ = beta.shape
    if R < 3:
        raise ValueError(f"ring_loss needs >= 3 photographs per ring (2 + 1), got {R}")
    same, other = beta[:, :-1], beta[:, -1:]
    matched = (same[:, :, None] - same[:, None]).square().sum(-1)
    unmatched = (same - other).square().sum(-1)
    return (matched - unmatched[..., None] + margin).clamp_min(0.0).sum() / (B * R)


def gated_l1(
    predicted: Float[Tensor, "B n 2"],
    target: Float[Tensor, "B n 2"],
    confidence: Float[Tensor, "B n"],
    gate: float,
) -> Float[Tensor, ""]:
    """Mean absolute coordinate difference of the points whose confidence exceeds ``gate``.

    ``sum w |d|_1 / (2 sum w)`` over the batch with w = 1 above the gate and 0 elsewhere (Sanyal et
    al. 2019, eq. 7, with the normalisation of Kanazawa et al. 2018); 0 where no point counts.
    """
    weight = (confidence > gate).to(predicted.dtype)
    error = ((predicted - target).abs().sum(-1) * weight).sum()
    return error / (2.0 * weight.sum()).clamp_min(1.0)
