"""RingNet: FLAME shape, expression, pose and camera from a photograph, learned without 3D.

Paper: Sanyal, Bolkart, Feng, Black, "Learning to Regress 3D Face Shape and Expression from an Image
without 3D Supervision", CVPR 2019. Reference: github.com/soubhiksanyal/RingNet (inference only).

Photographs come in rings: R - 1 of one person and one of somebody else. A ResNet-50 and a regressor
that corrects its own estimate give 159 numbers per photograph; landmarks on the decoded head must
fall on detected ones, and shapes must agree within a person and differ from the other's.

Departures: the landmark term is averaged as in HMR, whose weight of 60 it borrows (the printed sum
is some 300 times larger); regularisers are means over photographs; heads stand upright and the
camera's y axis points down in the image, so that a zero pose faces the viewer; the first estimate
may be an average camera (``init_estimate="mean"``), because at scale zero no gradient reaches the
shape, and its corrections may be counted in units of comparable effect on the landmarks
(``balanced``), because Adam moves all outputs alike while a metre of translation moves the picture
by thousands of pixels; crop (after DECA), batch and number of corrections are not published and are
parameters.

Command: ``dvc repro train@ringnet``. At full size (``bench`` preset: ResNet-50, 224 px, 68,000
steps) days on one GPU from ImageNet weights; the paper reports 1.23 mm median on NoW, the average
head 1.24.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor, nn

from models.face.flame import FlameArrays, LandmarkEmbedding
from models.face.flame_layer import FlameLandmarks
from models.networks.encoders.resnet import ResNet, ResNetConfig
from models.networks.losses import gated_l1, ring_loss

CAMERA, POSE = 3, 6


@dataclass(frozen=True)
class RingNetConfig:
    """Sizes, ring and weights.

    Attributes:
        trunk: Feature extractor.
        n_shape: Identity coefficients.
        n_expression: Expression coefficients.
        hidden: Width of the regressor.
        dropout: Chance that a hidden unit is silent in training.
        n_iter: Corrections of the estimate; only the last enters the losses.
        init_estimate: First estimate: all zero, or the average camera.
        balanced: Count corrections of camera and head rotation in ``balanced_units``.
        ring_size: R.
        margin: Eta of the shape consistency.
        ring_weight: Of the shape consistency; 0 switches it off.
        landmark_weight: Of the landmark term.
        shape_penalty: Of the mean squared norm of beta.
        expression_penalty: Of the mean squared norm of psi.
        confidence_gate: Landmarks count above it.
        contour: ``dynamic`` follows the head's yaw, ``static`` stays that of a frontal head.
    """

    trunk: ResNetConfig = field(default_factory=ResNetConfig)
    n_shape: int = 100
    n_expression: int = 50
    hidden: int = 512
    dropout: float = 0.5
    n_iter: int = 3
    init_estimate: Literal["zeros", "mean"] = "zeros"
    balanced: bool = False
    ring_size: int = 6
    margin: float = 0.5
    ring_weight: float = 1.0
    landmark_weight: float = 60.0
    shape_penalty: float = 1e-4
    expression_penalty: float = 1e-4
    confidence_gate: float = 0.41
    contour: Literal["dynamic", "static"] = "dynamic"

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> "RingNetConfig":
        """The configuration that a checkpoint's plain ``config`` describes.

        Args:
            section: ``trunk`` (kind, layers, width), ``ring`` (size, weight, margin), ``ief``
                (n_iter, init_estimate, balanced) and the other fields by name; more is not read.
        """
        trunk, ring, ief = section["trunk"], section["ring"], section["ief"]
        plain = (
            "n_shape",
            "n_expression",
            "hidden",
            "dropout",
            "landmark_weight",
            "shape_penalty",
            "expression_penalty",
            "confidence_gate",
            "contour",
        )
        return cls(
            trunk=ResNetConfig(trunk["kind"], tuple(trunk["layers"]), trunk["width"]),
            n_iter=ief["n_iter"],
            init_estimate=ief["init_estimate"],
            balanced=ief["balanced"],
            ring_size=ring["size"],
            margin=ring["margin"],
            ring_weight=ring["weight"],
            **{name: section[name] for name in plain},
        )

    @property
    def outputs(self) -> int:
        """Numbers per photograph: 3 + 6 + shape + expression; 159 in the paper."""
        return CAMERA + POSE + self.n_shape + self.n_expression


class FaceCode(NamedTuple):
    """The network's numbers by meaning.

    Attributes:
        camera: Scale and translation (s, t_x, t_y) of ``project``.
        pose: Axis-angle of head and jaw, rad.
        beta: Identity.
        psi: Expression.
    """

    camera: Float[Tensor, "B 3"]
    pose: Float[Tensor, "B 6"]
    beta: Float[Tensor, "B s"]
    psi: Float[Tensor, "B e"]

    @property
    def theta(self) -> Float[Tensor, "B 15"]:
        """FLAME's pose: global, neck (zero), jaw, eyes (zero)."""
        zero = torch.zeros_like(self.pose[:, :3])
        return torch.cat([self.pose[:, :3], zero, self.pose[:, 3:], zero, zero], dim=1)


class Regressor(nn.Module):
    """Adds its correction to an estimate, as often as told (the paper's eq. 3)."""

    def __init__(self, features: int, config: RingNetConfig) -> None:
        super().__init__()
        self.config = config
        outputs = config.outputs
        self.fc1 = nn.Linear(features + outputs, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.hidden)
        self.fc3 = nn.Linear(config.hidden, outputs)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
        bound = (3 * 0.01 / (0.5 * (config.hidden + outputs))) ** 0.5
        nn.init.uniform_(self.fc3.weight, -bound, bound)
        for layer in (self.fc1, self.fc2, self.fc3):
            nn.init.zeros_(layer.bias)

    def forward(
        self, features: Float[Tensor, "B d"], estimate: Float[Tensor, "B p"]
    ) -> Float[Tensor, "B p"]:
        """The estimate after all corrections."""
        p = self.config.dropout
        for _ in range(self.config.n_iter):
            h = nnf.relu(self.fc1(torch.cat([features, estimate], dim=1)))
            h = nnf.dropout(h, p, self.training)
            h = nnf.dropout(nnf.relu(self.fc2(h)), p, self.training)
            estimate = estimate + self.fc3(h)
        return estimate


class RingNet(nn.Module):
    """Face crop to camera, pose, shape and expression; FLAME is not part of the state."""

    initial: Tensor
    unit: Tensor

    def __init__(
        self,
        config: RingNetConfig,
        flame: FlameArrays | None = None,
        embedding: LandmarkEmbedding | None = None,
        camera: Float[np.ndarray, "3"] | None = None,
    ) -> None:
        """Build the network.

        Args:
            config: Sizes and switches.
            flame: Decoder; only the losses need it.
            embedding: Its landmarks; likewise.
            camera: ``mean_camera`` of the training set, for ``init_estimate="mean"`` and
                ``balanced``; a trained state brings both along.

        Raises:
            ValueError: FLAME has fewer coefficients than the network gives.
        """
        super().__init__()
        self.config = config
        self.trunk = ResNet(config.trunk)
        self.regressor = Regressor(config.trunk.features, config)
        initial, unit = torch.zeros(config.outputs), torch.ones(config.outputs)
        if config.init_estimate == "mean" and camera is not None:
            initial[:CAMERA] = torch.as_tensor(camera, dtype=torch.float32)
        if config.balanced and camera is not None:
            units = balanced_units(float(camera[0]))
            unit[: len(units)] = torch.as_tensor(units, dtype=torch.float32)
        self.register_buffer("initial", initial)
        self.register_buffer("unit", unit)
        self.landmarks: FlameLandmarks | None = None
        if flame is not None and embedding is not None:
            S, E = flame.shapedirs.shape[-1], flame.exprdirs.shape[-1]
            if config.n_shape > S or config.n_expression > E:
                raise ValueError(
                    f"RingNet needs FLAME with >= {config.n_shape} + {config.n_expression} "
                    f"coefficients, got {S} + {E}; lower n_shape or n_expression"
                )
            self.landmarks = FlameLandmarks(flame, embedding, dynamic=config.contour == "dynamic")

    def forward(self, image: Float[Tensor, "B 3 s s"]) -> Float[Tensor, "B p"]:
        """Numbers of ``split`` for RGB crops in [-1, 1].

        The regressor sees and corrects the estimate relative to the first one, in ``unit``.
        """
        features = self.trunk(image)
        start = torch.zeros_like(self.initial).expand(len(image), -1)
        return self.initial + self.unit * self.regressor(features, start)

    def split(self, code: Float[Tensor, "B p"]) -> FaceCode:
        """Name the network's numbers."""
        sizes = [CAMERA, POSE, self.config.n_shape, self.config.n_expression]
        return FaceCode(*torch.split(code, sizes, dim=1))

    def losses(self, output: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The four terms of eq. 8; ``loss`` is their weighted sum.

        Args:
            output: Codes of whole rings, one after the other.
            batch: ``landmarks`` (B, 68, 2) in crop coordinates (-1 to 1, y down) and their
                ``confidence`` (B, 68).

        Raises:
            ValueError: The network was built without FLAME.
        """
        if self.landmarks is None:
            raise ValueError("RingNet.losses needs FLAME; build RingNet(config, flame, embedding)")
        c = self.config
        code = self.split(output)
        points = project(self.landmarks(code.beta, code.psi, code.theta), code.camera)
        ring = ring_loss(code.beta.reshape(-1, c.ring_size, c.n_shape), c.margin)
        seen = gated_l1(points, batch["landmarks"], batch["confidence"], c.confidence_gate)
        shape = code.beta.square().sum(1).mean()
        expression = code.psi.square().sum(1).mean()
        total = c.ring_weight * ring + c.landmark_weight * seen
        total = total + c.shape_penalty * shape + c.expression_penalty * expression
        terms = {"ring": ring, "landmarks": seen, "shape": shape, "expression": expression}
        return {"loss": total, **terms}


def project(points: Float[Tensor, "B n 3"], camera: Float[Tensor, "B 3"]) -> Float[Tensor, "B n 2"]:
    """Weak perspective: ``(s (x + t_x), -s (y + t_y))`` in crop coordinates (-1 to 1, y down).

    The translation is inside the scale, in metres; the minus sign turns FLAME's y up into y down.
    """
    flipped = points.new_tensor([1.0, -1.0])
    return camera[:, None, :1] * (points[..., :2] + camera[:, None, 1:]) * flipped


def balanced_units(scale: float) -> Float[np.ndarray, "6"]:
    """Steps of camera (s, t_x, t_y) and head rotation that move a face's landmarks alike.

    A tenth of the usual scale, a tenth of the crop's half side (in metres at that scale) and
    0.3 rad move landmarks by some 0.1 in crop coordinates. Jaw, shape and expression stay as they
    are.

    Args:
        scale: The average camera's.
    """
    return np.array([0.1 * scale, 0.1 / scale, 0.1 / scale, 0.3, 0.3, 0.3])


def mean_camera(
    template: Float[np.ndarray, "68 3"], landmarks: Float[np.ndarray, "n 68 2"]
) -> Float[np.ndarray, "3"]:
    """The camera (s, t_x, t_y) that puts the upright template nearest to the mean landmarks.

    Least squares over the 68 points.

    Args:
        template: Landmarks of the mean head, metres.
        landmarks: In crop coordinates, y down.
    """
    seen = landmarks.mean(axis=0) * [1.0, -1.0]
    flat = template[:, :2]
    dx, du = flat - flat.mean(axis=0), seen - seen.mean(axis=0)
    s = float((dx * du).sum() / (dx * dx).sum())
    return np.array([s, *(seen.mean(axis=0) / s - flat.mean(axis=0))])


def crop_box(points_px: Float[np.ndarray, "68 2"]) -> tuple[Float[np.ndarray, "2"], float]:
    """Centre and side of the landmarks' square: the mean of its width and height (after DECA).

    Raises:
        ValueError: The points do not span a box.
    """
    low, high = points_px.min(axis=0), points_px.max(axis=0)
    side = float((high - low).mean())
    if not np.isfinite(side) or side <= 0:
        raise ValueError(f"expected landmarks that span a box, got corners {low} and {high}")
    return (low + high) / 2, side


def input_blob(crop: Float[np.ndarray, "s s 3"]) -> Float[np.ndarray, "3 s s"]:
    """RGB in 0..255 to the network's input: CHW float32 in [-1, 1].

    The result is contiguous: stacked views would make a batch whose channels vary fastest, with
    which torch 2.13's convolutions of very few channels wrote beyond their buffers on the CPU.
    """
    return np.ascontiguousarray((crop.astype(np.float32) / 127.5 - 1.0).transpose(2, 0, 1))
