"""Albedo of skin and eyes as a function of canonical coordinates, evaluated at any points.

Canonical coordinates are the position, in mm, of the same point on the mean neutral head: the
origin is mid-head, y = 0 at the pupils, z forward. Nothing is stored per vertex, so brows, lash
lines and the borders of lips and beards stay crisp at every picture size.
"""

from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Float, UInt8

from models.procedural.appearance import Appearance
from models.procedural.features import MOLE_SLOTS, eye_colour, skin_colour
from models.procedural.noise import noise_shift, noise_table
from models.rendering.jit import kernel

_BEARD_CODE = {"none": 0, "stubble": 1, "moustache": 2, "goatee": 3, "full": 4}
_SCALP_COVER = {"bald": 0.12, "receding": 0.5, "buzz": 0.8}


def pack_appearance(appearance: Appearance) -> Float[np.ndarray, "n"]:
    """Flatten what the kernels of ``features`` need into one vector (``PACKED_SIZE``,)."""
    skin, eyes, brows, beard = appearance.skin, appearance.eyes, appearance.brows, appearance.beard
    moles = np.full((MOLE_SLOTS, 3), 1e6)
    kept = skin.moles_mm[:MOLE_SLOTS]
    moles[: len(kept)] = kept
    return np.concatenate(
        [
            skin.tone,
            [skin.blotch, skin.freckles, skin.pores, skin.cheek_red, skin.nose_red],
            [skin.eye_bags, skin.wrinkles, skin.gloss, skin.roughness],
            skin.lip,
            [skin.lip_gloss, skin.lip_height, skin.melanin],
            brows.colour,
            [brows.thickness_mm, brows.arch_mm, brows.height_mm, brows.inner_mm, brows.density],
            eyes.inner,
            eyes.outer,
            [eyes.iris_mm, eyes.pupil_mm],
            eyes.sclera,
            [eyes.lash, eyes.liner],
            eyes.shadow,
            [eyes.shadow_strength, _BEARD_CODE[beard.style]],
            beard.colour,
            [beard.density, beard.cheek_mm, beard.shadow],
            appearance.hair.colour,
            [_SCALP_COVER.get(appearance.hair.style, 0.9)],
            noise_shift(appearance.seed),
            moles.ravel(),
        ]
    )


@kernel
@no_type_check
def _evaluate(
    points: np.ndarray,
    eye: np.ndarray,
    p: np.ndarray,
    table: np.ndarray,
    hairline: np.ndarray,
    colours: np.ndarray,
    specular: np.ndarray,
) -> None:
    out = np.empty(6)
    octaves = np.empty(4)
    for i in range(points.shape[0]):
        if eye[i]:
            eye_colour(points[i, 0], points[i, 1], points[i, 2], p, table, out)
        else:
            skin_colour(points[i, 0], points[i, 1], points[i, 2], p, table, hairline, octaves, out)
        colours[i, 0] = out[0]
        colours[i, 1] = out[1]
        colours[i, 2] = out[2]
        specular[i] = out[3]


def hairline_table(appearance: Appearance) -> Float[np.ndarray, "181 2"]:
    """Height (mm) of the hairline per degree of azimuth, and the cosine of its slope.

    Azimuth 0 is straight ahead, 90 the ear, 180 the nape.
    """
    hair = appearance.hair
    lift = hair.hairline_mm
    temple = 26.0 * hair.recession
    if hair.style == "receding":
        lift += 14.0
        temple += 14.0
    if hair.style == "bald":
        lift += 6.0
        temple += 8.0
    knots = np.array([0.0, 14, 28, 40, 50, 60, 70, 78, 84, 96, 108, 122, 140, 180])
    heights = np.array([76.0, 76, 76, 70, 56, 34, 12, -8, -12, 22, -14, -48, -70, -76])
    heights = heights + lift * np.interp(knots, [0, 40, 70], [1.0, 1.0, 0.0])
    heights = heights + temple * np.exp(-(((knots - 34.0) / 15.0) ** 2))
    degrees = np.arange(181.0)
    smooth = np.interp(degrees, knots, heights)
    window = np.array([1.0, 2, 3, 4, 3, 2, 1]) / 16.0
    padded = np.concatenate([smooth[3:0:-1], smooth, smooth[-2:-5:-1]])
    smooth = np.convolve(padded, window, mode="valid")
    slope = np.gradient(smooth) / 1.35
    return np.stack([smooth, 1.0 / np.sqrt(1.0 + slope**2)], axis=1)


def evaluate_albedo(
    canonical_mm: Float[np.ndarray, "n 3"], eye: Bool[np.ndarray, "n"], appearance: Appearance
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n"]]:
    """Albedo and specular strength at points of the head.

    Args:
        canonical_mm: Canonical positions, mm.
        eye: Which points lie on the eyeballs.
        appearance: The person.

    Returns:
        Linear RGB albedo (n, 3) in (0, 1], and specular strength (n,), 1 = ordinary skin.

    Raises:
        ValueError: The two arrays do not match.
    """
    if canonical_mm.ndim != 2 or canonical_mm.shape[1] != 3 or eye.shape != canonical_mm.shape[:1]:
        raise ValueError(
            "evaluate_albedo expected canonical_mm (n, 3) and eye (n,), got "
            f"{canonical_mm.shape} and {eye.shape}; pass one flag per point."
        )
    colours = np.empty((len(canonical_mm), 3))
    specular = np.empty(len(canonical_mm))
    _evaluate(
        np.ascontiguousarray(canonical_mm, dtype=np.float64),
        np.ascontiguousarray(eye),
        pack_appearance(appearance),
        noise_table(),
        hairline_table(appearance),
        colours,
        specular,
    )
    return np.clip(colours, 0.0, 1.0), specular


def albedo_bytes(
    canonical_mm: Float[np.ndarray, "n 3"], eye: Bool[np.ndarray, "n"], appearance: Appearance
) -> UInt8[np.ndarray, "n 3"]:
    """``evaluate_albedo`` as sRGB bytes, for vertex colours of scans and textures of models."""
    colours, _ = evaluate_albedo(canonical_mm, eye, appearance)
    srgb = np.where(colours <= 0.0031308, 12.92 * colours, 1.055 * colours ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(np.clip(srgb, 0, 1) * 255.0), dtype=np.uint8)
