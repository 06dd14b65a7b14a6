"""The network that turns an embedding into a decoder's inputs."""

import itertools

import torch
import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor, nn

SLOPE = 0.2


class MappingNetwork(nn.Module):
    """Leaky-ReLU layers of one width and a linear one.

    Initialised as pi-GAN's (Chan et al. 2021) and MICA's releases are: Kaiming for the slope, the
    last layer's weights a quarter of that.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int) -> None:
        """Build it.

        Args:
            inputs: Size of the embedding.
            hidden: Width.
            outputs: Size of the result.
            layers: Leaky-ReLU layers; the linear one comes on top.
        """
        super().__init__()
        sizes = [inputs, *[hidden] * layers]
        self.network = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(sizes)])
        self.output = nn.Linear(hidden, outputs)
        for layer in (*self.network, self.output):
            nn.init.kaiming_normal_(layer.weight, a=SLOPE, nonlinearity="leaky_relu")
        with torch.no_grad():
            self.output.weight *= 0.25

    def forward(self, z: Float[Tensor, "B d"]) -> Float[Tensor, "B s"]:
        """Map embeddings."""
        for layer in self.network:
            z = nnf.leaky_relu(layer(z), SLOPE)
        return self.output(z)
