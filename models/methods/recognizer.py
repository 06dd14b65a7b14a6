"""Face recogniser: a small iresnet trained with the additive angular margin.

Paper: ArcFace (Deng et al., CVPR 2019). Reference: ``arcface_torch``, whose parameter names the
encoder keeps. Departures: small widths and resolution as configured, and a milder margin, because
a few hundred identities of a few photographs each do not bear ``s = 64, m = 0.5`` from scratch.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.networks.encoders.iresnet import IResNet, IResNetConfig
from models.networks.losses import angular_margin_loss


@dataclass(frozen=True)
class RecognizerConfig:
    """Encoder size and margin.

    Attributes:
        encoder: Size of the network.
        identities: Number of classes seen in training.
        scale: Inverse temperature of the cosines.
        margin: Additive angle in radians.
    """

    encoder: IResNetConfig = field(default_factory=IResNetConfig)
    identities: int = 2
    scale: float = 64.0
    margin: float = 0.5


class Recognizer(nn.Module):
    """Encoder plus one centre per identity; only the encoder is exported."""

    def __init__(self, config: RecognizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = IResNet(config.encoder)
        self.centres = nn.Parameter(torch.empty(config.identities, config.encoder.embedding))
        nn.init.normal_(self.centres, 0, 0.01)

    def forward(self, image: Float[Tensor, "B 3 s s"]) -> Float[Tensor, "B d"]:
        """Embed aligned crops in [-1, 1]."""
        return self.encoder(image)

    def losses(self, output: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The margin loss of ``batch["label"]``."""
        loss = angular_margin_loss(
            output, self.centres, batch["label"], self.config.scale, self.config.margin
        )
        return {"loss": loss}
