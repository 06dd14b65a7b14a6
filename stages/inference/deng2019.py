"""Deng et al. 2019 on photographs, one by one or several of one person."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from models.face.morphable import LinearModel
from models.methods.deng2019 import (
    DISTANCE_DM,
    FOCAL_224_PX,
    Deng2019,
    Deng2019Config,
    FaceSurface,
    front_vertices,
    rotation,
)
from models.methods.deng2019_aggregate import Deng2019Set, aggregate, weighed
from models.methods.pix2face_camera import FaceCamera
from models.networks.encoders.pos_crop import POS_SIZE_PX, pos_crop_matrix
from models.networks.encoders.square_crop import crop_image
from models.networks.train_loop import load_state
from stages.inference.types import Reconstruction
from stages.runtime.artifacts import read_json, read_safetensors, sha256_file
from stages.runtime.params import Deng2019FitParams

MM_PER_DM = 100.0
CHUNK = 16
"""Photographs of a person, or frames of a video, that go through the network at once."""


class Deng2019Reconstructor:
    """Crop by five landmarks, R-Net, face model; C-Net where a person is in several photographs."""

    needs_landmarks = True
    joint = 2
    """Photographs of a person from which on ``together`` answers."""

    def __init__(self, checkpoint: Path, model: Path, section: Deng2019FitParams) -> None:
        """Read a checkpoint of the train stage and the converted BFM 2009 folder.

        Raises:
            FileNotFoundError: One of them is not there.
            ValueError: The checkpoint is of another method.
        """
        state, facts = read_safetensors(checkpoint)
        if facts.get("method") != "deng2019":
            raise ValueError(
                f"expected a checkpoint of Deng et al., got {facts.get('method')!r} in {checkpoint}"
            )
        config = Deng2019Config.of(facts["config"])
        linear = LinearModel.load(model)
        unit_m = float(read_json(model / "meta.json")["unit_m"])
        self._face = FaceSurface(linear, unit_m, front_vertices(linear, unit_m))
        self._net = Deng2019Set(
            Deng2019(config, self._face), facts["config"]["sets"]["photographs"]
        )
        load_state(self._net, state)
        self._net.eval()
        self._config = config
        self._how = section.aggregate
        self.facts: dict[str, Any] = {
            "weights": facts["weights"],
            "synthetic": facts["synthetic"],
            "inputs": {
                "checkpoint": sha256_file(checkpoint),
                "model": sha256_file(model / "model.safetensors"),
            },
        }

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], points_px: Float[np.ndarray, "68 2"]
    ) -> Reconstruction:
        """R-Net on one photograph.

        Raises:
            ValueError: The landmarks do not determine a crop.
        """
        return self._answers([(image, points_px)])[0]

    def together(
        self, photographs: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> tuple[list[Reconstruction | None], list[str]]:
        """Photographs (RGB, 68 points) of one person: one identity, weighed by C-Net.

        Returns:
            Per photograph the reconstruction, or None; and why not, empty where there is one.
        """
        reasons = []
        for _, points in photographs:
            try:
                pos_crop_matrix(points, self._config.size_px)
                reasons.append("")
            except ValueError as error:
                reasons.append(str(error))
        usable = [one for one, why in zip(photographs, reasons, strict=True) if not why]
        found = iter(self._answers(usable) if usable else [])
        return [None if why else next(found) for why in reasons], reasons

    def _answers(
        self, photographs: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> list[Reconstruction]:
        """Reconstructions of one person's photographs; they share their identity."""
        size = self._config.size_px
        matrices = [pos_crop_matrix(points, size) for _, points in photographs]
        crops = [
            crop_image(image, matrix, size)
            for (image, _), matrix in zip(photographs, matrices, strict=True)
        ]
        codes, confidences = [], []
        for start in range(0, len(crops), CHUNK):
            blob = np.stack(crops[start : start + CHUNK]).astype(np.float32).transpose(0, 3, 1, 2)
            with torch.no_grad():
                code, confidence = self._net.estimates(
                    torch.from_numpy(np.ascontiguousarray(blob / 255.0))
                )
            codes.append(code)
            confidences.append(confidence)
        code, K = torch.cat(codes), self._config.n_shape
        code[:, :K] = aggregate(code[:, :K], weighed(torch.cat(confidences), self._how))
        return [self._answer(one[None], matrix) for one, matrix in zip(code, matrices, strict=True)]

    def _answer(self, code: torch.Tensor, matrix: Float[np.ndarray, "2 3"]) -> Reconstruction:
        """Meshes and the camera in the photograph, given its T_crop_from_image."""
        named, face = self._net.r_net.split(code), self._face
        neutral, shown = (
            MM_PER_DM * face.vertices(named.shape, expression)[0].double().numpy()
            for expression in (torch.zeros_like(named.expression), named.expression)
        )
        keypoints = face.keypoints.numpy()
        x, y, z = named.translation[0].double().tolist()
        R_cam_from_face = rotation(named.angles.double())[0].numpy()
        zoom, size = float(matrix[0, 0]), self._config.size_px
        distance_mm = MM_PER_DM * (DISTANCE_DM - z)
        focal_px = FOCAL_224_PX * size / POS_SIZE_PX / zoom
        camera = FaceCamera(
            R_cam_from_face,
            focal_px / distance_mm,
            1.0 / distance_mm,
            MM_PER_DM * np.array([x, y]),
            (size / 2 - matrix[:, 2]) / zoom,
        )
        return Reconstruction(
            neutral,
            face.faces.numpy(),
            neutral[keypoints[17:]],
            shown,
            camera,
            {
                "shape_sigma": named.shape[0].tolist(),
                "expression_sigma": named.expression[0].tolist(),
                "texture_sigma": named.texture[0].tolist(),
                "angles_rad": named.angles[0].tolist(),
                "light": named.gamma[0].reshape(-1).tolist(),
                "translation_mm": [MM_PER_DM * v for v in (x, y, z)],
            },
            shown[keypoints],
            camera.project(shown[keypoints]),
        )
