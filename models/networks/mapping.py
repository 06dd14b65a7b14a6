"""The network that turns an embedding into a decoder's inputs."""

import itertools

import torch
import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor, nn

SLOPE = 0.2


class MappingNetwork(nn.Module):
    """Leaky-ReLU layers of one width and a linear one.

    The layers start from Kaiming's weights for the slope, the linear one from a quarter of
    Kaiming's (pi-GAN's release, Chan et al. 2021) or of torch's own (MICA's, Zielonka et al. 2022),
    which are 2.4 times smaller.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, layers: int, *, kaiming_output: bool
    ) -> None:
        """Build it.

        Args:
            inputs: Size of the embedding.
            hidden: Width.
            outputs: Size of the result.
            layers: Leaky-ReLU layers; the linear one comes on top.
            kaiming_output: Where the linear one starts: pi-GAN's way, else MICA's.
        """
        super().__init__()
        sizes = [inputs, *[hidden] * layers]
        hidden_layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        self.network = nn.ModuleList(hidden_layers)
        self.output = nn.Linear(hidden, outputs)
        for layer in [*hidden_layers, self.output] if kaiming_output else hidden_layers:
            nn.init.kaiming_normal_(layer.weight, a=SLOPE, nonlinearity="leaky_relu")
        with torch.no_grad():
            self.output.weight *= 0.25

    def forward(self, z: Float[Tensor, "B d"]) -> Float[Tensor, "B s"]:
        """Map embeddings."""
        for layer in self.network:
            z = nnf.leaky_relu(layer(z), SLOPE)
        return self.output(z)
