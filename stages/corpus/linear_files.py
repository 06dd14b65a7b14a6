"""The numbers behind a linear face model, in the unit of the file they go to."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, slots=True)
class LinearFiles:
    """A linear model before it takes an owner's form.

    Vectors are xyz interleaved over V vertices. Bases have unit-norm columns.

    Attributes:
        mean_shape: (3V,).
        shape_basis: (3V, K).
        shape_sigma: Standard deviations (K,).
        mean_expression: Offset added to the mean (3V,).
        expression_basis: (3V, E).
        expression_sigma: (E,).
        texture_mean: RGB in [0, 1] (3V,).
        texture_basis: (3V, T).
        texture_sigma: (T,).
        faces: 0-based, counter-clockwise seen from outside (F, 3).
        keypoints: iBUG-68 vertices (68,).
    """

    mean_shape: Float[np.ndarray, "n"]
    shape_basis: Float[np.ndarray, "n k"]
    shape_sigma: Float[np.ndarray, "k"]
    mean_expression: Float[np.ndarray, "n"]
    expression_basis: Float[np.ndarray, "n e"]
    expression_sigma: Float[np.ndarray, "e"]
    texture_mean: Float[np.ndarray, "n"]
    texture_basis: Float[np.ndarray, "n t"]
    texture_sigma: Float[np.ndarray, "t"]
    faces: Int[np.ndarray, "f 3"]
    keypoints: Int[np.ndarray, "68"]
