"""Random changes of training photographs, each a pure function of its generator."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8


@dataclass(frozen=True)
class Augmentation:
    """Largest changes.

    Attributes:
        shift: Shift in each axis, fraction of the side.
        zoom: Relative change of scale.
        rotate_deg: Rotation in the image.
        gamma: Absolute log2 of the exponent.
        gain: Relative change of each channel.
        noise: Standard deviation of pixel noise, of 255.
        flip: Mirror half of the images.
        occlude: Chance that a flat patch hides part of the image.
    """

    shift: float = 0.0
    zoom: float = 0.0
    rotate_deg: float = 0.0
    gamma: float = 0.0
    gain: float = 0.0
    noise: float = 0.0
    flip: bool = False
    occlude: float = 0.0


def jitter_matrix(
    side_px: int, change: Augmentation, rng: np.random.Generator
) -> Float[np.ndarray, "2 3"]:
    """A random similarity about the image centre, in our pixel coordinates."""
    angle = np.radians(rng.uniform(-change.rotate_deg, change.rotate_deg))
    scale = 1.0 + rng.uniform(-change.zoom, change.zoom)
    shift = side_px * rng.uniform(-change.shift, change.shift, 2)
    A = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if rng.random() < 0.5 and change.flip:
        A = A @ np.diag([-1.0, 1.0])
    centre = np.full(2, side_px / 2)
    return np.c_[A, centre + shift - A @ centre]


def warp(
    image: np.ndarray, matrix: Float[np.ndarray, "2 3"], height_px: int, width_px: int
) -> np.ndarray:
    """Bilinear warp with ``matrix`` = T_out_from_in in our pixel coordinates; outside is zero.

    Bytes or floats, any number of channels up to four.
    """
    import cv2

    M = np.array(matrix, dtype=np.float64)
    M[:, 2] += M[:, :2] @ [0.5, 0.5] - 0.5  # cv2 puts pixel centres on integers
    return np.asarray(cv2.warpAffine(image, M, (width_px, height_px), flags=cv2.INTER_LINEAR))


def relight(
    image: UInt8[np.ndarray, "h w 3"], change: Augmentation, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Random gamma, channel gains and noise."""
    import cv2

    exponent = 2.0 ** rng.uniform(-change.gamma, change.gamma)
    gains = 1.0 + rng.uniform(-change.gain, change.gain, 3)
    curve = 255.0 * (np.arange(256) / 255.0)[:, None] ** exponent * gains
    lit = cv2.LUT(image, curve.astype(np.float32)[:, None])
    if change.noise > 0:
        lit += np.float32(change.noise) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(lit, out=lit), 0, 255, out=lit).astype(np.uint8)


def occlude(
    image: UInt8[np.ndarray, "s s 3"], change: Augmentation, rng: np.random.Generator
) -> UInt8[np.ndarray, "s s 3"]:
    """Hide a turned rectangle of one colour: the crudest form of glasses, scarves and hands.

    Its sides are 0.12 to 1.2 and 0.12 to 0.45 of the image's.
    """
    if rng.random() >= change.occlude:
        return image
    side = len(image)
    centre, angle = rng.uniform(0.1, 0.9, 2) * side, rng.uniform(0, np.pi)
    half = 0.5 * side * np.array([rng.uniform(0.12, 1.2), rng.uniform(0.12, 0.45)])
    colour = rng.integers(0, 256, 3)
    y, x = np.mgrid[:side, :side] + 0.5
    along = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
    across = (y - centre[1]) * np.cos(angle) - (x - centre[0]) * np.sin(angle)
    hidden = (np.abs(along) < half[0]) & (np.abs(across) < half[1])
    return np.where(hidden[..., None], colour, image).astype(np.uint8)


def augment(
    image: UInt8[np.ndarray, "s s 3"], change: Augmentation, rng: np.random.Generator
) -> UInt8[np.ndarray, "s s 3"]:
    """A random variant of a square photograph of the same size."""
    side = len(image)
    moved = warp(image, jitter_matrix(side, change, rng), side, side)
    return relight(occlude(moved, change, rng), change, rng)
