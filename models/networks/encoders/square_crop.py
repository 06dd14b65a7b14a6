"""Square face crops for image-to-image networks: boxes, anti-aliased resampling, masked planes."""

import numpy as np
from jaxtyping import Bool, Float, UInt8

from models.networks.encoders.augment import warp

BLUR_PER_FACTOR = 0.4
"""Gaussian sigma, in source pixels, per unit of reduction beyond one."""


def landmark_square(points_px: Float[np.ndarray, "n 2"]) -> tuple[Float[np.ndarray, "2"], float]:
    """Centre and side of the square around landmarks: the longer side of their bounding box."""
    low, high = points_px.min(axis=0), points_px.max(axis=0)
    return (low + high) / 2, float((high - low).max())


def crop_matrix(
    centre_px: Float[np.ndarray, "2"], side_px: float, size_px: int
) -> Float[np.ndarray, "2 3"]:
    """T_crop_from_image of a square, in our pixel coordinates."""
    scale = size_px / side_px
    return np.c_[scale * np.eye(2), size_px / 2 - scale * np.asarray(centre_px)]


def crop_image(
    image: UInt8[np.ndarray, "h w 3"], T_crop_from_image: Float[np.ndarray, "2 3"], size_px: int
) -> UInt8[np.ndarray, "s s 3"]:
    """Resample a photograph; blurred first where the crop is coarser than it. Outside is black."""
    import cv2

    factor = 1.0 / float(np.sqrt(abs(np.linalg.det(T_crop_from_image[:, :2]))))
    if factor > 1.0:
        sigma = BLUR_PER_FACTOR * factor
        image = cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return warp(image, T_crop_from_image, size_px, size_px)


def crop_planes(
    planes: Float[np.ndarray, "h w c"],
    mask: Bool[np.ndarray, "h w"],
    T_crop_from_image: Float[np.ndarray, "2 3"],
    size_px: int,
) -> tuple[Float[np.ndarray, "s s c"], Bool[np.ndarray, "s s"]]:
    """Resample values that exist only on a mask, without mixing in what is off it.

    Returns:
        Values (zero off the mask) and the mask: pixels with at least half their weight on it.
    """
    masked = np.where(mask[..., None], planes, 0).astype(np.float32)
    weight = warp(mask.astype(np.float32), T_crop_from_image, size_px, size_px)
    channels = [
        warp(np.ascontiguousarray(masked[..., c : c + 3]), T_crop_from_image, size_px, size_px)
        for c in range(0, planes.shape[-1], 3)
    ]
    seen = weight >= 0.5
    values = np.concatenate(channels, axis=-1) / np.maximum(weight, 0.5)[..., None]
    return np.where(seen[..., None], values, 0.0), seen
