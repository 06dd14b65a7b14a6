"""The 224 px face crop of Deng et al. 2019: five points by weak perspective onto standard ones.

Reference: ``util/preprocess.py`` of github.com/sicxu/Deep3DFaceRecon_pytorch. The camera that takes
the standard points to the photograph's gives the scale and the shift of the crop; the head's
rotation stays in the picture.

Departures: nothing is rounded (the reference rounds the resized picture's sides and the crop's
corner to whole pixels), which also spares its vertical offset of one pixel; points are in our pixel
coordinates (centres at +0.5, y down; the reference mixes indices with y up); the standard points
are made symmetric and rounded to a thousandth; the picture is resampled by whoever applies the
matrix (the reference: bicubic).
"""

import numpy as np
from jaxtyping import Float

POS_SIZE_PX = 224
POS_SCALE_PX = 102.0
"""Pixels per unit of ``STANDARD_POINTS`` in a crop of ``POS_SIZE_PX``."""
STANDARD_POINTS = np.array(
    [
        [-0.311, 0.290, 0.133],  # right eye
        [0.311, 0.290, 0.133],  # left eye
        [0.000, -0.046, 0.552],  # nose tip
        [-0.250, -0.381, 0.223],  # right mouth corner
        [0.250, -0.381, 0.223],  # left mouth corner
    ]
)
"""Five points of an average face in decimetres, x to the subject's left, y up, z to the viewer."""


def corner_points(landmarks_px: Float[np.ndarray, "68 2"]) -> Float[np.ndarray, "5 2"]:
    """Eyes, nose tip and mouth corners of 68 iBUG points, in the order of ``STANDARD_POINTS``.

    An eye is the middle of its two corners.
    """
    return np.stack(
        [
            landmarks_px[[36, 39]].mean(axis=0),
            landmarks_px[[42, 45]].mean(axis=0),
            landmarks_px[30],
            landmarks_px[48],
            landmarks_px[54],
        ]
    )


def weak_perspective(
    points_px: Float[np.ndarray, "n 2"], standard: Float[np.ndarray, "n 3"]
) -> tuple[float, Float[np.ndarray, "2"]]:
    """Scale and shift of the affine camera that takes standard points nearest to image points.

    Least squares ``min sum |A X + t - p|^2`` over the eight unknowns; the scale is the mean norm of
    the two rows of A (the POS step of DeMenthon and Davis 1995).

    Args:
        points_px: In our pixel coordinates.
        standard: The same points on the face, y up.

    Returns:
        Pixels per unit of ``standard``, and the image of its origin.

    Raises:
        ValueError: The points are not finite, or all but coincide.
    """
    if not np.isfinite(points_px).all():
        raise ValueError(
            "weak_perspective needs finite points, got NaN or infinity; check the face landmarks"
        )
    design = np.c_[standard, np.ones(len(standard))]
    camera = np.linalg.lstsq(design, np.asarray(points_px, np.float64), rcond=None)[0]
    scale = float(np.linalg.norm(camera[:3], axis=0).mean())
    if scale < 1e-6:
        raise ValueError(
            f"weak_perspective needs points that span a face, got {points_px.tolist()}; "
            "check the face landmarks"
        )
    return scale, camera[3]


def pos_matrix(
    points_px: Float[np.ndarray, "5 2"], size_px: int = POS_SIZE_PX
) -> Float[np.ndarray, "2 3"]:
    """T_crop_from_image of five points in the order of ``STANDARD_POINTS``: scale and shift.

    The scale becomes ``POS_SCALE_PX * size_px / POS_SIZE_PX``, the standard points' origin the
    middle of the crop.

    Raises:
        ValueError: The points do not determine a camera.
    """
    scale, origin = weak_perspective(points_px, STANDARD_POINTS)
    factor = POS_SCALE_PX * size_px / (POS_SIZE_PX * scale)
    return np.c_[factor * np.eye(2), size_px / 2 - factor * origin]


def pos_crop_matrix(
    points_px: Float[np.ndarray, "68 2"], size_px: int = POS_SIZE_PX
) -> Float[np.ndarray, "2 3"]:
    """T_crop_from_image of 68 iBUG points, in our pixel coordinates; see ``pos_matrix``.

    Raises:
        ValueError: The points do not determine a camera.
    """
    return pos_matrix(corner_points(points_px), size_px)
