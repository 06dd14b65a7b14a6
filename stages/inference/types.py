"""What every method answers for one photograph."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int, UInt8

from models.methods.pix2face_camera import FaceCamera
from models.methods.pose import ScaledOrthographic


@dataclass(frozen=True)
class Reconstruction:
    """A neutral head in millimetres.

    Attributes:
        vertices_mm: Without expression or pose.
        faces: Triangles.
        inner_mm: The 51 inner landmarks on it: rows 17 to 67 of the 68.
        shown_mm: The mesh as the photograph shows it, for overlays.
        camera: Where ``shown_mm`` is in the photograph.
        coefficients: The method's own numbers, by name.
        points_mm: The 68 landmarks of ``shown_mm``, where the method has them.
        points_px: Where they are in the photograph, hidden ones too.
        cloud_mm: Observed surface points, one per face pixel, where the method sees such.
        cloud_rgb: Their colours.
    """

    vertices_mm: Float[np.ndarray, "V 3"]
    faces: Int[np.ndarray, "F 3"]
    inner_mm: Float[np.ndarray, "51 3"]
    shown_mm: Float[np.ndarray, "V 3"] | None = None
    camera: ScaledOrthographic | FaceCamera | None = None
    coefficients: dict[str, list[float]] = field(default_factory=dict)
    points_mm: Float[np.ndarray, "68 3"] | None = None
    points_px: Float[np.ndarray, "68 2"] | None = None
    cloud_mm: Float[np.ndarray, "m 3"] | None = None
    cloud_rgb: UInt8[np.ndarray, "m 3"] | None = None


class Reconstructor(Protocol):
    """A method with its weights and models in memory."""

    facts: dict[str, Any]
    """``weights``, ``synthetic`` and ``inputs`` for ``meta.json``; ``learned_from``, the scan sets
    that the method has learned from, where there are any."""
    needs_landmarks: bool
    """Whether the photograph and its landmarks matter at all."""

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], points_px: Float[np.ndarray, "68 2"]
    ) -> Reconstruction:
        """Reconstruct one photograph.

        Raises:
            ValueError: The photograph does not show enough.
        """
        ...
