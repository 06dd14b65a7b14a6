"""MICA on photographs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch.nn.functional import normalize

from models.face.flame import FlameArrays, LandmarkEmbedding, shape_vertices
from models.methods.mica import Mica, MicaConfig
from models.methods.pose import fit_scaled_orthographic
from models.networks.encoders.arcface_crop import arcface_blob, arcface_crop, five_points
from models.networks.train_loop import load_state
from stages.inference.types import Reconstruction
from stages.runtime.artifacts import read_safetensors, sha256_file


class MicaReconstructor:
    """Five-point crop, network, FLAME or SIREN."""

    needs_landmarks = True

    def __init__(self, checkpoint: Path, flame: Path) -> None:
        """Read a checkpoint of the train stage and the converted FLAME folder.

        Raises:
            FileNotFoundError: One of them is not there.
            ValueError: The checkpoint is of another method.
        """
        state, facts = read_safetensors(checkpoint)
        if facts.get("method") != "mica":
            raise ValueError(
                f"expected a MICA checkpoint, got {facts.get('method')!r} in {checkpoint}"
            )
        self._arrays = FlameArrays.load(flame)
        self._net = Mica(MicaConfig.of(facts["config"]), template=self._arrays.v_template)
        load_state(self._net, state)
        self._net.eval()
        self._embedding = LandmarkEmbedding.load(flame)
        self.facts: dict[str, Any] = {
            "weights": facts["weights"],
            "synthetic": facts["synthetic"],
            "learned_from": sorted(facts["data"]["sets"]),
            "inputs": {
                "checkpoint": sha256_file(checkpoint),
                "flame": sha256_file(flame / "model.safetensors"),
            },
        }

    def shape_of(
        self,
        photographs: Sequence[tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "68 2"]]],
    ) -> Float[np.ndarray, " s"]:
        """One person's ``beta`` from the mean of the photographs' unit-length embeddings.

        Args:
            photographs: RGB pictures of one person with their landmarks (px).

        Raises:
            ValueError: The landmarks do not determine a crop, or the checkpoint has SIREN's
                decoder, which knows no ``beta``.
        """
        if self._net.flameModel is None:
            raise ValueError(
                "expected a MICA checkpoint with FLAME's decoder, whose answer is beta, got one "
                "with SIREN's; train with train.mica.decoder: flame"
            )
        crops = [
            arcface_blob(arcface_crop(image, five_points(points))) for image, points in photographs
        ]
        with torch.no_grad():
            identities = normalize(self._net.arcface(torch.from_numpy(np.stack(crops))))
            identity = normalize(identities.mean(dim=0, keepdim=True))
            beta = self._net.flameModel.regressor(identity)[0].numpy().astype(np.float64)
        return beta[: self._arrays.shapedirs.shape[-1]]

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], points_px: Float[np.ndarray, "68 2"]
    ) -> Reconstruction:
        """Predict the head's shape; the camera comes from the 51 inner landmarks.

        Raises:
            ValueError: The landmarks do not determine a crop.
        """
        blob = arcface_blob(arcface_crop(image, five_points(points_px)))
        with torch.no_grad():
            code = self._net(torch.from_numpy(blob)[None])
            if self._net.siren is not None:
                vertices = 1000.0 * self._net.decode(code)[0].numpy().astype(np.float64)
        coefficients = code[0].numpy().astype(np.float64)
        name = "embedding"
        if self._net.siren is None:
            name, usable = "beta", coefficients[: self._arrays.shapedirs.shape[-1]]
            vertices = 1000.0 * shape_vertices(self._arrays, usable)
        faces = self._arrays.faces
        inner = self._embedding.static(vertices, faces)
        return Reconstruction(
            vertices,
            faces,
            inner,
            vertices,
            fit_scaled_orthographic(inner, points_px[17:]),
            {name: coefficients.tolist()},
        )
