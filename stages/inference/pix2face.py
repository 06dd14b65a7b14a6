"""pix2face on photographs."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from models.encoders.square_crop import crop_image, crop_matrix, landmark_square
from models.methods.pix2face import Boxes, Pix2Face, Pix2FaceConfig, face_pixels, input_blob
from models.methods.pix2face_fit import ModelFit
from models.methods.pose import fit_scaled_orthographic
from models.morphable import LinearModel
from models.train_loop import load_state
from stages.artifacts import read_json, read_safetensors, sha256_file
from stages.inference.types import NOW_SEVEN, Reconstruction
from stages.params import ReconstructParams


class Pix2FaceReconstructor:
    """Square crop, network, linear model fit."""

    needs_landmarks = True

    def __init__(self, checkpoint: Path, model: Path, section: ReconstructParams) -> None:
        """Read a checkpoint of the train stage and the converted 3DDFA folder.

        Raises:
            FileNotFoundError: One of them is not there.
            ValueError: The checkpoint is of another method.
        """
        state, facts = read_safetensors(checkpoint)
        if facts.get("method") != "pix2face":
            raise ValueError(
                f"expected a pix2face checkpoint, got {facts.get('method')!r} in {checkpoint}"
            )
        config, boxes = facts["config"], facts["data"]["boxes"]
        self._boxes = Boxes(
            tuple(boxes["pncc_low_mm"]), tuple(boxes["pncc_high_mm"]), boxes["offset_mm"]
        )
        self._net = Pix2Face(
            Pix2FaceConfig(config["size_px"], config["width"], config["depth"], boxes=self._boxes)
        )
        load_state(self._net, state)
        self._net.eval()
        self._size = int(config["size_px"])
        self._section = section
        self._fit = ModelFit(
            LinearModel.load(model), float(read_json(model / "meta.json")["unit_m"])
        )
        self.facts: dict[str, Any] = {
            "weights": facts["weights"],
            "synthetic": facts["synthetic"],
            "inputs": {
                "checkpoint": sha256_file(checkpoint),
                "model": sha256_file(model / "model.safetensors"),
            },
        }

    def planes_mm(
        self, image: UInt8[np.ndarray, "h w 3"], points_px: Float[np.ndarray, "68 2"]
    ) -> tuple[Float[np.ndarray, "s s 6"], Float[np.ndarray, "2 3"]]:
        """Predicted PNCC and offsets in mm, and T_crop_from_image."""
        centre, side = landmark_square(points_px)
        matrix = crop_matrix(centre, self._section.box_scale * side, self._size)
        blob = input_blob(crop_image(image, matrix, self._size))
        with torch.no_grad():
            out = self._net(torch.from_numpy(np.ascontiguousarray(blob))[None])[0].numpy()
        return self._boxes.decode(out.transpose(1, 2, 0).astype(np.float64)), matrix

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], points_px: Float[np.ndarray, "68 2"]
    ) -> Reconstruction:
        """Predict maps, fit identity and expression, keep the identity.

        Raises:
            ValueError: Too few pixels show a face.
        """
        planes, matrix = self.planes_mm(image, points_px)
        pncc, offset = planes[..., :3], planes[..., 3:]
        moves = self._fit.moves(pncc, offset, face_pixels(pncc), self._section.gate_mm)
        solution = self._fit.solve(
            [moves], self._section.coefficient_prior, self._section.min_correspondences
        )
        neutral = self._fit.neutral_mm(solution.identity)
        seen = pncc[moves.pixels[:, 0], moves.pixels[:, 1]] + moves.offset_mm
        crop_px = moves.pixels[:, ::-1] + 0.5
        image_px = (crop_px - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
        return Reconstruction(
            neutral,
            self._fit.faces,
            neutral[self._fit.keypoints[list(NOW_SEVEN)]],
            self._fit.posed_mm(solution.identity, solution.expressions[0]),
            fit_scaled_orthographic(seen, image_px),
            {
                "identity_sigma": solution.identity.tolist(),
                "expression_sigma": solution.expressions[0].tolist(),
            },
        )
