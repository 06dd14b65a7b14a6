"""MICA: metrical head shape from one photograph.

Paper: Zielonka, Bolkart, Thies, "Towards Metrical Reconstruction of Human Faces", ECCV 2022.
Reference: github.com/Zielon/MICA, whose parameter names are kept (``arcface.*``,
``flameModel.regressor.network.0..3``, ``flameModel.regressor.output``).

A face-recognition encoder's unit-length embedding goes through a mapping network to FLAME's 300
identity coefficients, or (``decoder="siren"``) into a sine network that moves the template's points
and needs no basis; the loss is a region-weighted L1 on the neutral mesh in metres.

Departures: frozen stages stay in evaluation mode (the reference lets their batch statistics drift;
``bn_drift="reference"`` restores that), and ``shape_penalty`` may pull coefficients (FLAME) or
offsets (SIREN) toward zero, which a training set of a hundred subjects needs and the paper's 2,315
do not. SIREN's last layers follow pi-GAN, because MICA does not print them; ``siren_points`` trains
it on a random part of the vertices in each step.

Command: ``dvc repro train@mica``. At full size (iresnet100, 160,000 steps of 16 images) about one
day on one large GPU; the paper reports 1.08 mm median on NoW metric. The small preset takes about a
minute on two cores and proves the pipeline, not the paper.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as nnf
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.face.flame import FlameArrays
from models.face.flame_layer import Flame
from models.networks.encoders.iresnet import IResNet, IResNetConfig
from models.networks.losses import weighted_l1
from models.networks.mapping import MappingNetwork
from models.networks.siren import SirenConfig, SirenDecoder

Trainable = Literal["none", "L4", "L3-4", "L2-4", "all"]
_FROZEN: dict[str, tuple[str, ...]] = {
    "L4": ("conv1", "bn1", "prelu", "layer1", "layer2", "layer3"),
    "L3-4": ("conv1", "bn1", "prelu", "layer1", "layer2"),
    "L2-4": ("conv1", "bn1", "prelu", "layer1"),
    "all": (),
}
MAPPING_LAYERS = 4
"""Leaky-ReLU layers of the mapping network as released; the paper counts three."""
_EVERYTHING = (*_FROZEN["L4"], "layer4", "bn2", "fc", "features")


@dataclass(frozen=True)
class MicaConfig:
    """Sizes, trainable part and region weights.

    Attributes:
        encoder: Recognition network.
        n_shape: Identity coefficients predicted.
        hidden: Width of the mapping network.
        trainable: Encoder stages that learn, besides the mapping network.
        bn_drift: ``frozen`` keeps frozen batch norms in evaluation mode, ``reference`` does not.
        face_weight: Vertex weight in the face region.
        side_weight: Vertex weight of eyeballs and ears.
        rest_weight: Vertex weight elsewhere.
        shape_penalty: Weight of the mean squared coefficient; with SIREN, of the mean squared
            offset from the template in millimetres.
        decoder: FLAME's basis, or a network on the template's points.
        siren: Size of that network.
        siren_points: Vertices drawn for a training step of SIREN; 0 takes all.
    """

    encoder: IResNetConfig = field(default_factory=IResNetConfig)
    n_shape: int = 300
    hidden: int = 300
    trainable: Trainable = "L4"
    bn_drift: Literal["frozen", "reference"] = "frozen"
    face_weight: float = 150.0
    side_weight: float = 0.01
    rest_weight: float = 1.0
    shape_penalty: float = 0.0
    decoder: Literal["flame", "siren"] = "flame"
    siren: SirenConfig = field(default_factory=SirenConfig)
    siren_points: int = 0

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> "MicaConfig":
        """The configuration that a checkpoint's plain ``config`` describes.

        Args:
            section: ``encoder`` (layers, widths, embedding, input_px), ``siren`` (width, layers,
                mapping, frequency, points) and the other fields by name; more is not read.
        """
        encoder, siren = section["encoder"], section["siren"]
        plain = (
            "n_shape",
            "hidden",
            "trainable",
            "bn_drift",
            "face_weight",
            "side_weight",
            "rest_weight",
            "shape_penalty",
            "decoder",
        )
        return cls(
            encoder=IResNetConfig(
                tuple(encoder["layers"]),
                tuple(encoder["widths"]),
                encoder["embedding"],
                encoder["input_px"],
            ),
            siren=SirenConfig(
                siren["width"], siren["layers"], siren["mapping"], siren["frequency"]
            ),
            siren_points=siren["points"],
            **{name: section[name] for name in plain},
        )


class ShapeModel(nn.Module):
    """Mapping network and FLAME decoder; FLAME's arrays are not part of the state."""

    def __init__(self, regressor: MappingNetwork, flame: Flame | None) -> None:
        super().__init__()
        self.regressor = regressor
        self.flame = flame


class Mica(nn.Module):
    """Aligned crop to a neutral head: FLAME's identity coefficients, or SIREN's embedding."""

    vertex_weights: Tensor

    def __init__(
        self,
        config: MicaConfig,
        flame: FlameArrays | None = None,
        vertex_weights: Float[np.ndarray, " V"] | None = None,
        template: Float[np.ndarray, "V 3"] | None = None,
    ) -> None:
        """Build the network.

        Args:
            config: Sizes and switches.
            flame: FLAME decoder; only the losses and ``decode`` need it, SIREN never does.
            vertex_weights: ``region_weights`` of the same model; only the losses need them.
            template: SIREN's template, metres.

        Raises:
            ValueError: SIREN is asked for without a template.
        """
        super().__init__()
        self.config = config
        self.arcface = IResNet(config.encoder)
        self.flameModel: ShapeModel | None = None
        self.siren: SirenDecoder | None = None
        if config.decoder == "flame":
            regressor = MappingNetwork(
                config.encoder.embedding,
                config.hidden,
                config.n_shape,
                MAPPING_LAYERS,
                kaiming_output=False,
            )
            self.flameModel = ShapeModel(regressor, None if flame is None else Flame(flame))
        elif template is None:
            raise ValueError("Mica with the SIREN decoder needs Mica(config, template=...)")
        else:
            self.siren = SirenDecoder(template, config.encoder.embedding, config.siren)
        weights = np.zeros(0) if vertex_weights is None else vertex_weights
        self.register_buffer(
            "vertex_weights", torch.as_tensor(weights, dtype=torch.float32), persistent=False
        )
        for name in self.frozen_modules():
            self.arcface.get_submodule(name).requires_grad_(False)

    def frozen_modules(self) -> tuple[str, ...]:
        """Names of the encoder's modules that do not learn."""
        return _EVERYTHING if self.config.trainable == "none" else _FROZEN[self.config.trainable]

    def train(self, mode: bool = True) -> "Mica":
        """Switch to training; frozen stages keep their stored batch statistics."""
        super().train(mode)
        if mode and self.config.bn_drift == "frozen":
            for name in self.frozen_modules():
                self.arcface.get_submodule(name).eval()
        return self

    def forward(self, image: Float[Tensor, "B 3 s s"]) -> Float[Tensor, "B s_"]:
        """What ``decode`` takes, from aligned crops in [-1, 1]: ``beta``, or SIREN's embedding."""
        identity = nnf.normalize(self.arcface(image))
        return identity if self.flameModel is None else self.flameModel.regressor(identity)

    def decode(
        self, code: Float[Tensor, "B s"], vertices: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, "B V 3"]:
        """Neutral vertices in metres; ``vertices`` picks some by id.

        Raises:
            ValueError: The network was built without FLAME.
        """
        if self.siren is not None:
            return self.siren(code, vertices)
        if self.flameModel is None or self.flameModel.flame is None:
            raise ValueError("Mica.decode needs FLAME; build Mica(config, flame=...)")
        shaped = self.flameModel.flame.shaped(code)
        return shaped if vertices is None else shaped[:, vertices]

    def losses(self, output: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Region-weighted L1 to the neutral mesh; ``loss`` is the total.

        Args:
            output: Of ``forward``.
            batch: The truth: ``beta`` (B, s), or for SIREN ``vertices`` (B, V, 3) in metres. In
                training SIREN draws ``siren_points`` of them.
        """
        if self.siren is not None:
            return self._siren_losses(output, batch["vertices"])
        with torch.no_grad():
            target = self.decode(batch["beta"])
        vertices = weighted_l1(self.decode(output), target, self.vertex_weights)
        prior = output.square().mean()
        total = vertices + self.config.shape_penalty * prior
        return {"loss": total, "vertices": vertices, "coefficients": prior}

    def _siren_losses(
        self, output: Float[Tensor, "B d"], truth: Float[Tensor, "B V 3"]
    ) -> dict[str, Tensor]:
        assert self.siren is not None
        chosen = torch.arange(truth.shape[1], device=truth.device)
        if self.training and 0 < self.config.siren_points < len(chosen):
            chosen = torch.randperm(len(chosen), device=truth.device)[: self.config.siren_points]
        predicted = self.siren(output, chosen)
        vertices = weighted_l1(predicted, truth[:, chosen], self.vertex_weights[chosen])
        prior = (1000.0 * (predicted - self.siren.template[chosen])).square().mean()
        total = vertices + self.config.shape_penalty * prior
        return {"loss": total, "vertices": vertices, "offsets": prior}

    def parameter_groups(self) -> Iterator[tuple[str, list[nn.Parameter]]]:
        """Learning parameters by group: encoder, then what follows it."""
        yield "encoder", [p for p in self.arcface.parameters() if p.requires_grad]
        decoder = self.siren if self.flameModel is None else self.flameModel
        assert decoder is not None
        yield "mapping", list(decoder.parameters())


def region_weights(
    config: MicaConfig, masks: Mapping[str, Int[np.ndarray, " n"]], vertices: int
) -> Float[np.ndarray, " V"]:
    """Vertex weights from FLAME's masks: the rest, then eyeballs, then ears, then the face.

    Raises:
        KeyError: A mask is missing.
    """
    weights = np.full(vertices, config.rest_weight)
    for name in ("left_eyeball", "right_eyeball", "left_ear", "right_ear"):
        weights[masks[name]] = config.side_weight
    weights[masks["face"]] = config.face_weight
    return weights


def public_state(
    arcface: Mapping[str, Tensor], flame_model: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Our state names for the two dictionaries of a released MICA checkpoint.

    The released decoder also stores FLAME's own arrays under ``generator.``; they are left out.

    Raises:
        ValueError: The second dictionary holds something else.
    """
    state = {f"arcface.{name}": value for name, value in arcface.items()}
    for name, value in flame_model.items():
        if name.startswith("regressor."):
            state[f"flameModel.{name}"] = value
        elif not name.startswith("generator."):
            raise ValueError(f"MICA checkpoint: expected regressor.* and generator.*, got {name!r}")
    return state
