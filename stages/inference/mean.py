"""The average head: FLAME's template, whatever the photograph."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from models.face.flame import FlameArrays, LandmarkEmbedding
from stages.inference.types import Reconstruction
from stages.photos import is_synthetic
from stages.runtime.artifacts import sha256_file


class MeanHead:
    """Baseline that every trained method must beat."""

    needs_landmarks = False

    def __init__(self, flame: Path) -> None:
        """Read the converted FLAME folder.

        Raises:
            FileNotFoundError: It is not there.
        """
        arrays = FlameArrays.load(flame)
        vertices = 1000.0 * arrays.v_template.astype(np.float64)
        inner = LandmarkEmbedding.load(flame).static(vertices, arrays.faces)
        self._answer = Reconstruction(vertices, arrays.faces, inner)
        self.facts: dict[str, Any] = {
            "weights": "none",
            "synthetic": is_synthetic(flame),
            "inputs": {"flame": sha256_file(flame / "model.safetensors")},
        }

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], points_px: Float[np.ndarray, "68 2"]
    ) -> Reconstruction:
        """The template."""
        return self._answer
