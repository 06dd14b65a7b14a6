"""ResNet-50 feature extractors of two kinds, ending in the average over the last map.

``v2``: pre-activation units as in TF-slim's ``resnet_v2_50`` (He et al., ECCV 2016): normalisation
and ReLU before each convolution, biases where no normalisation follows, and the stride in a stage's
last unit. ``v1.5``: the common post-activation form with the stride in a unit's 3x3 convolution
(23,508,032 parameters at full size).

Parameter names are those of the public torch checkpoints of the second kind (``layer1.0.conv1``,
``layer1.0.downsample.0`` ...). The first kind keeps the same names and adds ``bn1`` before a unit
and ``norm`` at the end; ``slim_state`` gives a TF checkpoint's variables those names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor, nn

STAGES = ("layer1", "layer2", "layer3", "layer4")
EXPANSION = 4


@dataclass(frozen=True)
class ResNetConfig:
    """Size and kind of the network.

    Attributes:
        kind: ``v2`` or ``v1.5``.
        layers: Units per stage; (3, 4, 6, 3) is ResNet-50.
        width: Channels of the stem; a stage's units have 1, 2, 4 and 8 times as many inside.
    """

    kind: Literal["v2", "v1.5"] = "v2"
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64

    @property
    def features(self) -> int:
        """Length of the feature vector; 2048 for ResNet-50."""
        return 8 * EXPANSION * self.width


class PreActivationUnit(nn.Module):
    """BN, ReLU, then 1x1, 3x3, 1x1 convolutions; the input is added unchanged where it fits."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * inner
        self.stride = stride
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1)
        self.downsample: nn.Module | None = None
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride))

    def forward(self, x: Float[Tensor, "B c h w"]) -> Float[Tensor, "B d i j"]:
        """Apply the unit."""
        before = nnf.relu(self.bn1(x))
        out = self.conv1(before)
        out = self.conv2(nnf.relu(self.bn2(out)))
        out = self.conv3(nnf.relu(self.bn3(out)))
        if self.downsample is not None:
            return out + self.downsample(before)
        return out + x[..., :: self.stride, :: self.stride]


class BottleneckUnit(nn.Module):
    """1x1, 3x3, 1x1 convolutions, each normalised; ReLU after the sum."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * inner
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Float[Tensor, "B c h w"]) -> Float[Tensor, "B d i j"]:
        """Apply the unit."""
        out = nnf.relu(self.bn1(self.conv1(x)))
        out = nnf.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return nnf.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """RGB image in [-1, 1], any size from 32 px, to a feature vector."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        second = config.kind == "v2"
        self.conv1 = nn.Conv2d(3, config.width, 7, 2, padding=3, bias=second)
        self.bn1 = None if second else nn.BatchNorm2d(config.width)
        unit = PreActivationUnit if second else BottleneckUnit
        inputs = config.width
        for number, (name, count) in enumerate(zip(STAGES, config.layers, strict=True)):
            inner = config.width * 2**number
            halved = number < 3 if second else number > 0
            where = count - 1 if second else 0
            units = []
            for index in range(count):
                stride = 2 if halved and index == where else 1
                units.append(unit(inputs, inner, stride))
                inputs = EXPANSION * inner
            self.add_module(name, nn.Sequential(*units))
        self.norm = nn.BatchNorm2d(inputs) if second else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image: Float[Tensor, "B 3 s s"]) -> Float[Tensor, "B d"]:
        """Features of images."""
        return self.first_map_and_features(image)[1]

    def first_map_and_features(
        self, image: Float[Tensor, "B 3 s s"]
    ) -> tuple[Float[Tensor, "B c h w"], Float[Tensor, "B d"]]:
        """What ``layer1`` gives, and the features of ``forward``."""
        x = self.conv1(image)
        if self.bn1 is not None:
            x = nnf.max_pool2d(nnf.relu(self.bn1(x)), 3, 2, padding=1)
        else:  # TF's SAME: what is missing is added below and to the right
            x = nnf.max_pool2d(nnf.pad(x, (0, 1, 0, 1), value=float("-inf")), 3, 2)
        first = x = self.get_submodule(STAGES[0])(x)
        for name in STAGES[1:]:
            x = self.get_submodule(name)(x)
        if self.norm is not None:
            x = nnf.relu(self.norm(x))
        return first, x.mean(dim=(2, 3))


def slim_state(
    variables: Mapping[str, Float[np.ndarray, "..."]], root: str = "resnet_v2_50"
) -> dict[str, Tensor]:
    """State of a ``v2`` network from a TF-slim checkpoint's variables.

    Args:
        variables: By name, e.g. ``resnet_v2_50/block1/unit_1/bottleneck_v2/conv1/weights``;
            kernels are (height, width, in, out).
        root: Scope of the network; variables outside it and the classifier are left out.

    Raises:
        ValueError: A name is not that of a slim variable.
    """
    parts = {
        "preact": "bn1",
        "conv1": "conv1",
        "conv1/BatchNorm": "bn2",
        "conv2": "conv2",
        "conv2/BatchNorm": "bn3",
        "conv3": "conv3",
        "shortcut": "downsample.0",
    }
    leaves = {
        "weights": "weight",
        "biases": "bias",
        "gamma": "weight",
        "beta": "bias",
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
    }
    state: dict[str, Tensor] = {}
    for name, value in variables.items():
        scope, _, leaf = name.rpartition("/")
        pieces = scope.split("/")
        if pieces[0] != root or pieces[1:2] == ["logits"]:
            continue
        part = "/".join(pieces[4:])
        if leaf not in leaves:
            raise ValueError(f"slim_state: expected a variable of {root}, got {name!r}")
        if pieces[1:] in (["conv1"], ["postnorm"]):
            ours = {"conv1": "conv1", "postnorm": "norm"}[pieces[1]]
        elif len(pieces) > 4 and part in parts:
            stage, unit = pieces[1].removeprefix("block"), pieces[2].removeprefix("unit_")
            ours = f"layer{stage}.{int(unit) - 1}.{parts[part]}"
        else:
            raise ValueError(f"slim_state: expected a variable of {root}, got {name!r}")
        array = np.asarray(value, np.float32)
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        state[f"{ours}.{leaves[leaf]}"] = torch.from_numpy(np.array(array))
        if leaf == "moving_mean":
            state[f"{ours}.num_batches_tracked"] = torch.tensor(0)
    return state
