"""pix2face: per-pixel face coordinates by image translation, then a linear face model fit.

Paper: Crispell and Bazik, "Pix2Face: Direct 3D Face Model Estimation", ICCV workshops 2017.
Reference: github.com/VSI-Vision/pix2face_net, whose parameter names are kept (``conv1..``,
``dconv1..``).

A U-Net maps a 256 px face crop to six planes: PNCC (the mean face's coordinates of the surface
point seen) and the offset from there to the observed face, both in mm, scaled to [-1, 1] by boxes.

Variants for ablations: transposed convolutions in the decoder (the paper dropped them for their
checkerboards), and three planes with the observed point itself instead of PNCC and offset.

Departures: the boxes are fitted to the face model in use and travel with the checkpoint; targets
are floats, not 8-bit images; width and depth are options; background pixels carry a weight.

Command: ``dvc repro train@pix2face``. At full size (60 epochs of 100,000 images, batch 4) several
GPU-days; the small preset takes about a minute on two cores.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as nnf
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from models.networks.encoders.upsample import doubled
from models.networks.losses import masked_l1

ORIGIN_RADIUS_MM = 10.0
"""Predicted coordinates nearer to the origin than this are background."""


Target = Literal["pncc_offset", "xyz"]
"""What the planes hold: the mean face's point and the way from it, or the observed point."""
PLANES: dict[Target, int] = {"pncc_offset": 6, "xyz": 3}


@dataclass(frozen=True)
class Boxes:
    """Ranges in mm that [-1, 1] stands for; the published ones, unless others are given.

    Attributes:
        pncc_low_mm: Lower corner of the mean face's box.
        pncc_high_mm: Upper corner.
        offset_mm: Offsets span minus to plus this.
    """

    pncc_low_mm: tuple[float, float, float] = (-100.0, -130.0, -25.0)
    pncc_high_mm: tuple[float, float, float] = (100.0, 100.0, 150.0)
    offset_mm: float = 25.0

    def ranges(self, target: Target = "pncc_offset") -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends of the planes in mm; the observed point's is both boxes' sum."""
        low, high = np.array(self.pncc_low_mm), np.array(self.pncc_high_mm)
        if target == "xyz":
            return low - self.offset_mm, high + self.offset_mm
        offset = np.full(3, self.offset_mm)
        return np.concatenate([low, -offset]), np.concatenate([high, offset])

    def encode(
        self, planes_mm: Float[np.ndarray, "*n c"], target: Target = "pncc_offset"
    ) -> Float[np.ndarray, "*n c"]:
        """Millimetres to [-1, 1], clipped."""
        low, high = self.ranges(target)
        return np.clip((planes_mm - low) / (high - low) * 2.0 - 1.0, -1.0, 1.0)

    def decode(
        self, planes: Float[np.ndarray, "*n c"], target: Target = "pncc_offset"
    ) -> Float[np.ndarray, "*n c"]:
        """[-1, 1] to millimetres."""
        low, high = self.ranges(target)
        return (planes + 1.0) / 2.0 * (high - low) + low


def published_boxes(mean_mm: Float[np.ndarray, "V 3"]) -> Boxes:
    """The published boxes, for a face model that they hold.

    Raises:
        ValueError: The mean face leaves them, so that its targets would be clipped.
    """
    boxes = Boxes()
    low, high = mean_mm.min(axis=0), mean_mm.max(axis=0)
    if (low < boxes.pncc_low_mm).any() or (high > boxes.pncc_high_mm).any():
        raise ValueError(
            f"the published box {boxes.pncc_low_mm}..{boxes.pncc_high_mm} mm does not hold a mean "
            f"face of {low.round(1).tolist()}..{high.round(1).tolist()} mm; set target_box: fitted"
        )
    return boxes


def fit_boxes(
    mean_mm: Float[np.ndarray, "V 3"], largest_offset_mm: float, step_mm: float = 5.0
) -> Boxes:
    """Boxes for a face model: its mean's bounds and an offset range, rounded outward.

    Args:
        mean_mm: Mean face in the frame of the targets.
        largest_offset_mm: Offsets beyond this are clipped.
        step_mm: Rounding.

    Raises:
        ValueError: The mean face comes nearer to the origin than ``ORIGIN_RADIUS_MM``, where it
            could not be told from background.
    """
    nearest = float(np.linalg.norm(mean_mm, axis=1).min())
    if nearest <= ORIGIN_RADIUS_MM:
        raise ValueError(
            f"pix2face needs every vertex of the mean face > {ORIGIN_RADIUS_MM} mm from the origin,"
            f" got {nearest:.1f} mm; move the model's frame"
        )
    low = np.floor(np.minimum(mean_mm.min(axis=0), 0) / step_mm - 1) * step_mm
    high = np.ceil(np.maximum(mean_mm.max(axis=0), 0) / step_mm + 1) * step_mm
    offset = math.ceil(largest_offset_mm / step_mm) * step_mm
    return Boxes(tuple(low.tolist()), tuple(high.tolist()), float(offset))


@dataclass(frozen=True)
class Pix2FaceConfig:
    """Sizes and ranges.

    Attributes:
        size_px: Side of the input and of the six output planes.
        width: Channels of the first convolution; doubled three times at most.
        depth: Number of halvings; ``2 ** depth`` may not exceed ``size_px``.
        background_weight: Loss weight of pixels off the face, against 1 on it.
        boxes: Ranges of the targets.
        up: How the decoder doubles: bilinear and a 3x3 convolution, or a 4x4 transposed one.
        target: What the planes hold.
    """

    size_px: int = 256
    width: int = 64
    depth: int = 8
    background_weight: float = 1.0
    boxes: Boxes = Boxes()
    up: Literal["bilinear", "transposed"] = "bilinear"
    target: Target = "pncc_offset"

    def __post_init__(self) -> None:
        """Check the depth.

        Raises:
            ValueError: The crop cannot be halved ``depth`` times.
        """
        if self.depth < 3 or self.size_px % 2**self.depth:
            raise ValueError(
                f"Pix2FaceConfig: size_px must be a multiple of 2**depth and depth >= 3, got "
                f"size_px={self.size_px}, depth={self.depth}"
            )


class Pix2Face(nn.Module):
    """U-Net from a face crop to normalised PNCC and offsets."""

    def __init__(self, config: Pix2FaceConfig) -> None:
        super().__init__()
        self.config = config
        depth = config.depth
        widths = [config.width * min(2**i, 8) for i in range(depth)]
        for i, (inputs, outputs) in enumerate(zip([3, *widths], widths, strict=False)):
            self.add_module(f"conv{i + 1}", nn.Conv2d(inputs, outputs, 4, 2, 1))
        decoded = widths[-1]
        for i in range(depth):
            inputs = decoded if i == 0 else decoded + widths[depth - 1 - i]
            decoded = widths[depth - 2 - i] if i < depth - 1 else PLANES[config.target]
            layer = (
                nn.Conv2d(inputs, decoded, 3, 1, 1)
                if config.up == "bilinear"
                else nn.ConvTranspose2d(inputs, decoded, 4, 2, 1)
            )
            self.add_module(f"dconv{i + 1}", layer)

    def forward(self, image: Float[Tensor, "B 3 s s"]) -> Float[Tensor, "B c s s"]:
        """Predict the planes in [-1, 1].

        Args:
            image: RGB in [-0.5, 0.5].
        """
        depth = self.config.depth
        skips: list[Tensor] = []
        x = image
        for i in range(depth):
            if i > 0:
                x = nnf.leaky_relu(x, 0.2)
            x = self.get_submodule(f"conv{i + 1}")(x)
            if 0 < i < depth - 1:
                x = nnf.instance_norm(x)
            skips.append(x)
        for i in range(depth):
            if i > 0:
                x = torch.cat([x, skips[depth - 1 - i]], dim=1)
            x = nnf.relu(x)
            if self.config.up == "bilinear":
                x = doubled(x)
            x = self.get_submodule(f"dconv{i + 1}")(x)
            if i < depth - 1:
                x = nnf.instance_norm(x)
        return torch.tanh(x)

    def losses(self, output: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """L1 to ``batch["target"]``; ``batch["mask"]`` tells face from background."""
        loss = masked_l1(output, batch["target"], batch["mask"], self.config.background_weight)
        return {"loss": loss}


def input_blob(crop: Float[np.ndarray, "s s 3"]) -> Float[np.ndarray, "3 s s"]:
    """RGB in 0..255 to the network's input: CHW float32, x / 255 - 0.5."""
    return (crop.astype(np.float32) / 255.0 - 0.5).transpose(2, 0, 1)


def target_planes(
    pncc_mm: Float[np.ndarray, "h w 3"],
    offset_mm: Float[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    boxes: Boxes,
    target: Target = "pncc_offset",
) -> Float[np.ndarray, "c h w"]:
    """Normalised targets; background holds the encoding of the zero vector."""
    if target == "xyz":
        planes = pncc_mm + offset_mm
    else:
        planes = np.concatenate([pncc_mm, offset_mm], axis=-1)
    planes[~mask] = 0.0
    return boxes.encode(planes, target).astype(np.float32).transpose(2, 0, 1)


def published_jitter(
    image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The paper's colour jitter as its code has it: gamma, channel gains, brightest value kept.

    v^g over 0..255 values with g = 1 + 0.4 (U - 0.5), times 1 - 0.2 U per channel, scaled so that
    the largest value of the picture is again what it was.
    """
    exponent = 1.0 + 0.4 * (rng.random() - 0.5)
    gains = 1.0 - 0.2 * rng.random(3)
    curve = np.arange(256.0)[:, None] ** exponent * gains
    lit = np.stack([curve[image[..., c], c] for c in range(3)], axis=-1)
    scale = float(image.max()) / max(float(lit.max()), 1e-12)
    return np.rint(scale * lit).astype(np.uint8)


def face_pixels(pncc_mm: Float[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    """Pixels that show the face: coordinates (PNCC or xyz) off the origin, 3x3 eroded."""
    valid = np.linalg.norm(pncc_mm, axis=-1) > ORIGIN_RADIUS_MM
    padded = np.pad(valid, 1)
    h, w = valid.shape
    for dy in range(3):
        for dx in range(3):
            valid = valid & padded[dy : dy + h, dx : dx + w]
    return valid
