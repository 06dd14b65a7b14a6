"""A decoder without a basis: a sine network that moves a template's points, driven by an embedding.

FiLM-SIREN of pi-GAN (Chan et al., CVPR 2021, section 3.1) on the vertices of a template, which MICA
(Zielonka et al. 2022, supplement) compares with FLAME's linear basis. MICA prints 1,976,327
parameters for it; the network here, read off pi-GAN, has 1,975,299 at that size.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.networks.mapping import MappingNetwork

FREQUENCY_SPREAD = 0.5
"""Of a frequency, for each unit that the mapping network answers."""
GAIN = 25.0


@dataclass(frozen=True)
class SirenConfig:
    """Size of the decoder.

    Attributes:
        width: Of every sine layer; 256 in the publication.
        layers: Sine layers, the first of which takes coordinates; 9 there.
        mapping: Width of the mapping network's three layers; 256 there.
        frequency: Of every sine layer where the mapping network answers zero; 30 there.
    """

    width: int = 256
    layers: int = 9
    mapping: int = 256
    frequency: float = 30.0


class SirenDecoder(nn.Module):
    """Embedding to vertices: template plus an offset that is a function of the template's point.

    Sine layer l computes ``sin(f_l (W_l x + b_l) + p_l)``; the mapping network gives every layer's
    ``f_l = f (1 + f'_l / 2)`` and ``p_l``, first all frequencies, then all phases; f is the
    configured frequency, of which a lower one makes a smoother surface. Points and offsets are in
    a frame in which the template's longest side spans -1 to 1. First-layer weights start in
    U(+-1/3), the others in U(+-sqrt(6/width)/25); biases as torch leaves them.
    """

    template: Tensor
    points: Tensor

    def __init__(
        self,
        template: Float[np.ndarray, "V 3"],
        embedding: int = 512,
        config: SirenConfig | None = None,
    ) -> None:
        """Build the network; the template (metres) is no part of its state.

        Raises:
            ValueError: The template has no extent, or there is no layer.
        """
        super().__init__()
        self.config = config = config or SirenConfig()
        low, high = template.min(axis=0), template.max(axis=0)
        self.half_m = float((high - low).max()) / 2
        if not self.half_m > 0 or config.layers < 1:
            raise ValueError(
                f"SirenDecoder needs a template with an extent and >= 1 layer, got half a side of "
                f"{self.half_m} m and {config.layers} layers"
            )
        for name, value in (
            ("template", template),
            ("points", (template - (low + high) / 2) / self.half_m),
        ):
            tensor = torch.as_tensor(np.array(value), dtype=torch.float32)
            self.register_buffer(name, tensor, persistent=False)
        sizes = [3, *[config.width] * (config.layers - 1)]
        self.network = nn.ModuleList([nn.Linear(size, config.width) for size in sizes])
        self.final = nn.Linear(config.width, 3)
        self.mapping = MappingNetwork(
            embedding,
            config.mapping,
            2 * config.layers * config.width,
            layers=3,
            kaiming_output=True,
        )
        bound = (6.0 / config.width) ** 0.5 / GAIN
        bounds = [1.0 / 3.0, *[bound] * config.layers]
        for layer, largest in zip((*self.network, self.final), bounds, strict=True):
            assert isinstance(layer, nn.Linear)
            nn.init.uniform_(layer.weight, -largest, largest)

    def forward(
        self, z: Float[Tensor, "B d"], vertices: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, "B n 3"]:
        """Vertices in metres of embeddings of unit length; ``vertices`` picks some by id."""
        picked = slice(None) if vertices is None else vertices
        frequencies, phases = self.mapping(z)[:, None].chunk(2, dim=-1)  # B 1 layers*width
        width, frequency = self.config.width, self.config.frequency
        h = self.points[picked][None]
        for k, layer in enumerate(self.network):
            part = slice(k * width, (k + 1) * width)
            f = frequencies[..., part] * (FREQUENCY_SPREAD * frequency) + frequency
            h = torch.sin(f * layer(h) + phases[..., part])
        return self.template[picked] + self.half_m * self.final(h)
