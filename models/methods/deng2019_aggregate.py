"""Deng et al. 2019, the paper's C-Net: one identity from several photographs of a person.

Paper: sections 4 and 5 of Deng et al., see ``deng2019``; no code was published. A small network
reads what R-Net saw of a photograph and says how far each identity coefficient is to be believed;
the set's coefficients are the means so weighted, and must explain all of its photographs.

Departures: the paper's first map, 28 x 28 x 256, exists only in a ResNet whose first stage ends
with a stride; ours is 56 x 56 x 256 there, and is averaged over 2 x 2. ReLU between the layers is
assumed. The last layer starts at zero, so that all confidences are 0.5 and the first estimate is
the plain mean.
"""

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor, nn

from models.methods.deng2019 import Deng2019
from models.networks.encoders.resnet import EXPANSION, ResNetConfig

CONVOLUTIONS = 3
SET_PERCEPTUAL_WEIGHT = 0.1


class ConfidenceNet(nn.Module):
    """Trunk's first map and features to a confidence in 0..1 per identity coefficient."""

    def __init__(self, trunk: ResNetConfig, n_shape: int) -> None:
        """Build the network.

        Args:
            trunk: Sizes of the trunk whose map and features are read; the convolutions are as wide
                as its first map, 256 channels at full size, the hidden layer twice as wide.
            n_shape: Identity coefficients.
        """
        super().__init__()
        width = EXPANSION * trunk.width
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, 2, padding=1) for _ in range(CONVOLUTIONS)
        )
        self.fc1 = nn.Linear(width + trunk.features, 2 * width)
        self.fc2 = nn.Linear(2 * width, n_shape)
        for conv in self.convs:
            assert isinstance(conv, nn.Conv2d)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(
        self, first: Float[Tensor, "B c h w"], features: Float[Tensor, "B d"]
    ) -> Float[Tensor, "B k"]:
        """Confidences of photographs, each for itself.

        Args:
            first: ``layer1``'s map.
            features: Average of the last map.
        """
        x = nnf.avg_pool2d(first, 2)
        for conv in self.convs:
            x = nnf.relu(conv(x))
        hidden = nnf.relu(self.fc1(torch.cat([x.mean(dim=(2, 3)), features], dim=1)))
        return self.fc2(hidden).sigmoid()


def aggregate(
    alpha: Float[Tensor, "*n M k"], confidence: Float[Tensor, "*n M k"]
) -> Float[Tensor, "*n k"]:
    """Mean over M photographs of each coefficient, weighted by its confidence (eq. 7).

    ``sum_j c_j alpha_j / sum_j c_j``.

    Args:
        alpha: Coefficients.
        confidence: Above zero.
    """
    return (confidence * alpha).sum(-2) / confidence.sum(-2)


def weighed(
    confidence: Float[Tensor, "M k"], how: Literal["element", "scalar", "mean"]
) -> Float[Tensor, "M k"]:
    """What ``aggregate`` weighs by, of C-Net's confidences in M photographs of a person.

    Args:
        confidence: Per photograph and coefficient.
        how: Each coefficient by its own (the paper), all of a photograph by their mean, or none.
    """
    if how == "element":
        return confidence
    if how == "scalar":
        return confidence.mean(1, keepdim=True).expand_as(confidence)
    return torch.ones_like(confidence)


class Deng2019Set(nn.Module):
    """R-Net, frozen, and the C-Net that learns to weigh its estimates."""

    def __init__(self, r_net: Deng2019, set_size: int = 5) -> None:
        """Join a trained R-Net and a new C-Net.

        Args:
            r_net: Is taken over: frozen, kept in evaluation mode, its perceptual term counted with
                the paper's lower weight for sets (unless it was off).
            set_size: Photographs of a person, M.
        """
        super().__init__()
        self.set_size = set_size
        self.r_net = r_net.requires_grad_(False).eval()
        if r_net.config.perceptual_weight:
            r_net.config = replace(r_net.config, perceptual_weight=SET_PERCEPTUAL_WEIGHT)
        self.c_net = ConfidenceNet(r_net.config.trunk, r_net.config.n_shape)

    def train(self, mode: bool = True) -> "Deng2019Set":
        """Switch C-Net; R-Net keeps its statistics."""
        super().train(mode)
        self.r_net.eval()
        return self

    def forward(
        self, image: Float[Tensor, "n 3 s s"], set_size: int | None = None
    ) -> Float[Tensor, "n p"]:
        """R-Net's codes with each set's common identity.

        Args:
            image: RGB crops in [0, 1], whole sets one after the other, in any order within.
            set_size: Photographs per set; None is that of training.

        Raises:
            ValueError: The photographs are no whole number of sets.
        """
        size = self.set_size if set_size is None else set_size
        if size < 1 or len(image) % size:
            raise ValueError(
                f"Deng2019Set expects sets of {size} photographs, got {len(image)} in all; "
                "pass set_size"
            )
        code, confidence = self.estimates(image)
        K = confidence.shape[1]
        sets = (-1, size, K)
        common = aggregate(code[:, :K].reshape(sets), confidence.reshape(sets))
        return torch.cat([common.repeat_interleave(size, dim=0), code[:, K:]], dim=1)

    def estimates(
        self, image: Float[Tensor, "n 3 s s"]
    ) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n k"]]:
        """R-Net's code of each photograph, and the confidences of its identity coefficients."""
        with torch.no_grad():
            first, features = self.r_net.backbone.first_map_and_features(image)
            code = self.r_net.heads(features)
        return code, self.c_net(first, features)

    def losses(self, output: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """R-Net's terms, means over the photographs (eq. 8); the batch is R-Net's too.

        The photometric mean is over the pixels of the batch, as in R-Net's training.
        """
        return self.r_net.losses(output, batch)
