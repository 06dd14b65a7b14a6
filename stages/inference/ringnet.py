"""RingNet on photographs."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from models.face.flame import FlameArrays, LandmarkEmbedding, pose_vertices, shape_vertices
from models.methods.pose import ScaledOrthographic
from models.methods.ringnet import RingNet, RingNetConfig, crop_box, input_blob
from models.networks.encoders.square_crop import crop_image, crop_matrix
from models.networks.train_loop import load_state
from stages.inference.types import Reconstruction
from stages.runtime.artifacts import read_safetensors, sha256_file


class RingNetReconstructor:
    """Square crop, network, FLAME; the landmarks only place the crop."""

    needs_landmarks = True

    def __init__(self, checkpoint: Path, flame: Path) -> None:
        """Read a checkpoint of the train stage and the converted FLAME folder.

        Raises:
            FileNotFoundError: One of them is not there.
            ValueError: The checkpoint is of another method.
        """
        state, facts = read_safetensors(checkpoint)
        if facts.get("method") != "ringnet":
            raise ValueError(
                f"expected a RingNet checkpoint, got {facts.get('method')!r} in {checkpoint}"
            )
        config = facts["config"]
        self._net = RingNet(RingNetConfig.of(config))
        load_state(self._net, state)
        self._net.eval()
        self._size = int(config["size_px"])
        self._scale = float(np.mean(config["box_scale"]))
        self._arrays = FlameArrays.load(flame)
        self._embedding = LandmarkEmbedding.load(flame)
        self.facts: dict[str, Any] = {
            "weights": facts["weights"],
            "synthetic": facts["synthetic"],
            "inputs": {
                "checkpoint": sha256_file(checkpoint),
                "flame": sha256_file(flame / "model.safetensors"),
            },
        }

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], points_px: Float[np.ndarray, "68 2"]
    ) -> Reconstruction:
        """Predict everything, keep the identity; the network's own camera places the overlay.

        Raises:
            ValueError: The landmarks do not determine a crop.
        """
        centre, side = crop_box(points_px)
        matrix = crop_matrix(centre, self._scale * side, self._size)
        blob = input_blob(crop_image(image, matrix, self._size))
        with torch.no_grad():
            code = self._net.split(self._net(torch.from_numpy(np.ascontiguousarray(blob))[None]))
            theta = code.theta
        beta, psi, pose = (v[0].numpy().astype(np.float64) for v in (code.beta, code.psi, theta))
        camera = code.camera[0].numpy().astype(np.float64)
        beta_used = beta[: self._arrays.shapedirs.shape[-1]]
        neutral = 1000.0 * shape_vertices(self._arrays, beta_used)
        faces = self._arrays.faces
        # crop coordinates -1..1 span the crop; the crop spans scale * side image pixels
        half = 0.5 * self._scale * side
        scale_px = float(camera[0]) * half
        shift = np.array([camera[1], -camera[2]]) * scale_px
        return Reconstruction(
            neutral,
            faces,
            self._embedding.static(neutral, faces),
            1000.0 * pose_vertices(self._arrays, beta_used, psi, pose),
            ScaledOrthographic(np.eye(3), scale_px / 1000.0, centre + shift),
            {
                "beta": beta.tolist(),
                "psi": psi.tolist(),
                "theta": pose.tolist(),
                "camera": camera.tolist(),
            },
        )
