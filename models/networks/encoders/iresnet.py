"""The improved ResNet of ArcFace-type face recognition (Deng et al., CVPR 2019).

Pre-activation blocks with PReLU; the stride sits in a block's second convolution. Parameter names
are those of the public ``arcface_torch`` checkpoints (``layer1.0.bn1`` ...), so that users' weight
files load strictly. Full size: ``IResNetConfig(layers=(3, 13, 30, 3))``, 65,156,160 parameters.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor, nn

STAGES = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class IResNetConfig:
    """Size of the network.

    Attributes:
        layers: Blocks per stage.
        widths: Channels per stage; the stem has those of the first.
        embedding: Length of the feature vector.
        input_px: Side the network works at. 112 px crops are averaged down to it, so it must
            divide 112.
    """

    layers: tuple[int, int, int, int] = (3, 13, 30, 3)
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    embedding: int = 512
    input_px: int = 112

    def __post_init__(self) -> None:
        """Check that crops can be averaged down.

        Raises:
            ValueError: ``input_px`` does not divide 112.
        """
        if 112 % self.input_px:
            raise ValueError(
                f"IResNetConfig.input_px must divide 112, got {self.input_px}; try 112 or 56"
            )

    @property
    def final_px(self) -> int:
        """Side of the last feature map."""
        side = self.input_px
        for _ in STAGES:
            side = (side + 1) // 2
        return side


class IBasicBlock(nn.Module):
    """BN, 3x3, BN, PReLU, 3x3 with stride, BN; plus the (projected) input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Float[Tensor, "B c h w"]) -> Float[Tensor, "B d i j"]:
        """Apply the block."""
        out = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return out + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """Aligned 112 px RGB crop in [-1, 1] to an embedding (not normalised)."""

    def __init__(self, config: IResNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.widths[0]
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        for name, blocks, outputs in zip(STAGES, config.layers, config.widths, strict=True):
            stage = [IBasicBlock(width, outputs, stride=2)]
            stage += [IBasicBlock(outputs, outputs, stride=1) for _ in range(blocks - 1)]
            self.add_module(name, nn.Sequential(*stage))
            width = outputs
        self.bn2 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width * config.final_px**2, config.embedding)
        self.features = nn.BatchNorm1d(config.embedding)
        nn.init.constant_(self.features.weight, 1.0)
        self.features.weight.requires_grad = False
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def forward(self, image: Float[Tensor, "B 3 s s"]) -> Float[Tensor, "B d"]:
        """Embed crops.

        Args:
            image: ``arcface_blob`` crops; sides that are a multiple of ``input_px`` are averaged
                down to it.
        """
        factor = image.shape[-1] // self.config.input_px
        x = nnf.avg_pool2d(image, factor) if factor > 1 else image
        x = self.prelu(self.bn1(self.conv1(x)))
        for name in STAGES:
            x = self.get_submodule(name)(x)
        return self.features(self.fc(torch.flatten(self.bn2(x), 1)))
