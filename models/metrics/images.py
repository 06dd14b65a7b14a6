"""Errors measured in photographs and video frames: colours, depths, landmarks.

Sources: MICA's tracking evaluation (Zielonka et al. 2022, supplement: photometric and depth RMSE
inside the face mask) and pix2face's landmark evaluation (Crispell and Bazik 2017, by the first 3D
Face Tracking in-the-wild challenge: 2-D error over the interocular distance, 3-D error).
Cumulative curves over frames come from :func:`models.metrics.cumulative_curve`.
"""

import numpy as np
from jaxtyping import Bool, Float

OUTER_EYE_CORNERS = (36, 45)
"""Rows of the iBUG 68 whose distance normalises 2-D errors."""


def photometric_rmse(
    predicted: Float[np.ndarray, "h w 3"],
    observed: Float[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
) -> float:
    """Root mean squared colour error over the mask, in the unit of the colours.

    sqrt( mean over pixels and channels of (predicted - observed)^2 ). MICA's supplement does not
    say whether its channels are averaged or summed; here they are averaged (summed is sqrt(3) times
    this). Its figures are of RGB in [0, 255].

    Raises:
        ValueError: Nothing is in the mask, or a colour in it is not finite.
    """
    return _rms(_masked(predicted, observed, mask, "colour"))


def depth_rmse(
    predicted_mm: Float[np.ndarray, "h w"],
    reference_mm: Float[np.ndarray, "h w"],
    mask: Bool[np.ndarray, "h w"],
) -> float:
    """Root mean squared depth error over the mask, mm.

    Args:
        predicted_mm: Depth of the rendered face along the optical axis.
        reference_mm: Depth by stereo; not finite where it has none, those pixels do not count.
        mask: Valid face pixels.

    Raises:
        ValueError: No pixel of the mask has a reference, or a predicted depth there is not finite.
    """
    return _rms(_masked(predicted_mm, reference_mm, mask & np.isfinite(reference_mm), "depth"))


def landmark_nme(
    predicted_px: Float[np.ndarray, "n 68 2"], true_px: Float[np.ndarray, "n 68 2"]
) -> Float[np.ndarray, " n"]:
    """Mean landmark error of every frame over the true distance of the outer eye corners.

    The corners are iBUG's convention; pix2face's paper says interocular distance only.

    Raises:
        ValueError: The eye corners of a frame coincide.
    """
    right, left = OUTER_EYE_CORNERS
    across = np.linalg.norm(true_px[:, left] - true_px[:, right], axis=-1)
    if (across <= 0).any():
        raise ValueError(
            f"landmark_nme needs outer eye corners apart, got frame {int(np.argmin(across))} with "
            "both in one place; check the order of the 68 points"
        )
    return np.linalg.norm(predicted_px - true_px, axis=-1).mean(axis=1) / across


def landmark_error_mm(
    predicted_mm: Float[np.ndarray, "n k 3"], true_mm: Float[np.ndarray, "n k 3"]
) -> Float[np.ndarray, " n"]:
    """Mean distance of every frame's 3-D landmarks to the true ones, mm, without any alignment."""
    return np.linalg.norm(predicted_mm - true_mm, axis=-1).mean(axis=1)


def _masked(
    predicted: Float[np.ndarray, "..."],
    observed: Float[np.ndarray, "..."],
    mask: Bool[np.ndarray, "h w"],
    what: str,
) -> Float[np.ndarray, "..."]:
    """Errors inside the mask."""
    errors = np.asarray(predicted[mask], np.float64) - np.asarray(observed[mask], np.float64)
    if not errors.size or not np.isfinite(errors).all():
        raise ValueError(
            f"expected finite {what} values at one pixel of the mask at least, got "
            f"{int(np.isfinite(errors).sum())} of {errors.size}; check the face mask"
        )
    return errors


def _rms(errors: Float[np.ndarray, "..."]) -> float:
    return float(np.sqrt(np.mean(errors**2)))
