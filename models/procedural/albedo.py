"""Albedo of skin and eyes as a function of canonical coordinates, evaluated at any points.

Canonical coordinates are the position, in mm, of the same point on the mean neutral head: the
origin is mid-head, y = 0 at the pupils, z forward. Nothing is stored per vertex, so brows, lash
lines and the borders of lips and beards stay crisp at every picture size.
"""

from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Float, UInt8

from models.procedural.appearance import Appearance
from models.procedural.noise import lattice_noise, noise_shift, noise_table
from models.rendering.jit import kernel

EYE_CENTRE_MM = (31.2, 0.0, 70.5)
MOUTH_Y_MM = -65.0
MOUTH_HALF_WIDTH_MM = 25.5

# Places in the packed appearance.
(
    TONE_R, TONE_G, TONE_B, BLOTCH, FRECKLES, PORES, CHEEK_RED, NOSE_RED, EYE_BAGS, WRINKLES,
    GLOSS, ROUGHNESS, LIP_R, LIP_G, LIP_B, LIP_GLOSS, LIP_HEIGHT, MELANIN,
    BROW_R, BROW_G, BROW_B, BROW_THICKNESS, BROW_ARCH, BROW_HEIGHT, BROW_INNER, BROW_DENSITY,
    IRIS_IN_R, IRIS_IN_G, IRIS_IN_B, IRIS_OUT_R, IRIS_OUT_G, IRIS_OUT_B, IRIS_MM, PUPIL_MM,
    SCLERA_R, SCLERA_G, SCLERA_B, LASH, LINER, SHADOW_R, SHADOW_G, SHADOW_B, SHADOW_STRENGTH,
    BEARD_KIND, BEARD_R, BEARD_G, BEARD_B, BEARD_DENSITY, BEARD_CHEEK, BEARD_SHADOW,
    HAIR_R, HAIR_G, HAIR_B, SCALP, SHIFT_X, SHIFT_Y, SHIFT_Z, MOLES,
) = range(58)  # fmt: skip
MOLE_SLOTS = 8
PACKED_SIZE = MOLES + 3 * MOLE_SLOTS

_BEARD_CODE = {"none": 0, "stubble": 1, "moustache": 2, "goatee": 3, "full": 4}
_SCALP_COVER = {"bald": 0.12, "receding": 0.5, "buzz": 0.8}


def pack_appearance(appearance: Appearance) -> Float[np.ndarray, "n"]:
    """Flatten what the skin and eye kernels need into one vector (``PACKED_SIZE``,)."""
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
def smooth_step(low: float, high: float, value: float) -> float:
    """Cubic step from 0 at ``low`` to 1 at ``high``."""
    t = (value - low) / (high - low)
    t = min(1.0, max(0.0, t))
    return t * t * (3.0 - 2.0 * t)


@kernel
@no_type_check
def bell(square: float) -> float:
    """About exp(-square), zero from 4 on: (1 - square / 4)^4, many times as fast."""
    t = max(0.0, 1.0 - 0.25 * square)
    return t * t * t * t


@kernel
@no_type_check
def bump(dx: float, sx: float, dy: float, sy: float) -> float:
    """About the Gaussian exp(-(dx/sx)^2 - (dy/sy)^2), see ``bell``."""
    return bell((dx * dx) / (sx * sx) + (dy * dy) / (sy * sy))


@kernel
@no_type_check
def hairline_excess(x: float, y: float, z: float, hairline: np.ndarray) -> float:
    """Signed distance (mm, roughly) above the hairline; positive where scalp hair grows.

    ``hairline`` (181, 2) holds, per degree of azimuth, the height and the cosine of its slope.
    """
    azimuth = np.arctan2(abs(x), z) * 57.29577951308232
    index = min(179, int(azimuth))
    t = azimuth - index
    height = hairline[index, 0] * (1.0 - t) + hairline[index + 1, 0] * t
    cosine = hairline[index, 1] * (1.0 - t) + hairline[index + 1, 1] * t
    return (y - height) * cosine


@kernel
@no_type_check
def vermilion(x: float, y: float, height: float) -> float:
    """Signed inside-ness (mm) of the lips: positive on the red of the lips.

    The upper border has a Cupid's bow, the lower one is a plain arc.
    """
    t = abs(x) / 26.5
    if t >= 1.0:
        return -0.6 - 1.5 * (abs(x) - 26.5)
    upper = 7.2 * height * (1.0 - t**1.7) * (1.0 - 0.2 * bell(x * x / 10.0))
    lower = 8.6 * height * (1.0 - t**2.2)
    d = y + 65.0
    return min(upper - d, d + lower)


@kernel
@no_type_check
def beard_cover(x: float, y: float, z: float, kind: float, cheek: float) -> float:
    """0..1 where facial hair of a kind grows; soft at the borders."""
    ax = abs(x)
    if kind < 0.5 or y > 5.0 or y < -150.0:
        return 0.0
    azimuth = np.arctan2(ax, z) * 57.29577951308232
    moustache = (
        smooth_step(-45.0, -54.0, y + 0.22 * ax)
        * smooth_step(-78.0, -66.0, y + 0.5 * max(0.0, ax - 20.0))
        * smooth_step(34.0, 22.0, ax)
    )
    if kind < 1.5 or kind > 3.5:
        if azimuth < 20.0:
            line = -50.0
        elif azimuth < 40.0:
            line = -50.0 - 6.0 * (azimuth - 20.0) / 20.0
        elif azimuth < 62.0:
            line = -56.0 + 18.0 * (azimuth - 40.0) / 22.0
        elif azimuth < 78.0:
            line = -38.0 + 36.0 * (azimuth - 62.0) / 16.0
        else:
            line = -2.0
        line += cheek
        cheeks = smooth_step(line + 2.0, line - 9.0, y)
        back = smooth_step(92.0, 74.0, azimuth + 0.30 * max(0.0, -y - 55.0))
        floor = -126.0 + 0.25 * max(0.0, ax - 25.0)
        below = smooth_step(floor - 16.0, floor + 10.0, y)
        full = cheeks * back * below
        return max(full, moustache)
    if kind < 2.5:
        return moustache
    middle = y + 82.0
    ellipse = np.sqrt((ax * (1.0 + 0.012 * max(0.0, -66.0 - y)) / 30.0) ** 2 + (middle / 34.0) ** 2)
    bare = 0.9 * bump(ax - 13.0, 7.0, y + 78.0, 4.5)
    return max(
        moustache, smooth_step(1.12, 0.82, ellipse) * (1.0 - bare) * smooth_step(-50.0, -60.0, y)
    )


@kernel
@no_type_check
def brow_cover(x: float, y: float, z: float, p: np.ndarray, table: np.ndarray) -> float:
    """0..1 density of eyebrow hair, with strands."""
    ax = abs(x)
    inner = p[BROW_INNER]
    s = (ax - inner) / (53.0 - inner)
    if s < -0.08 or s > 1.05 or y < 4.0 or y > 36.0:
        return 0.0
    rise = 1.0 - ((s - 0.6) / 0.6) ** 2 if s < 0.6 else 1.0 - 1.25 * ((s - 0.6) / 0.4) ** 2
    centre = 16.5 + p[BROW_HEIGHT] + (2.6 + p[BROW_ARCH]) * rise
    taper = min(1.0, 0.72 + 1.4 * max(s, 0.0)) * (1.0 - smooth_step(0.35, 1.05, s) * 0.82)
    half = p[BROW_THICKNESS] * taper
    d = (y - centre) / half
    if abs(d) > 1.9:
        return 0.0
    lean = 1.25 - 1.1 * smooth_step(0.0, 0.45, s)
    cl = np.cos(lean)
    sl = np.sin(lean)
    along = cl * ax + sl * y
    across = -sl * ax + cl * y
    side = 37.0 if x > 0.0 else 0.0
    strand = lattice_noise(table, across * 1.5 + side, along * 0.16 + p[SHIFT_Y], p[SHIFT_X])
    coarse = lattice_noise(table, ax * 0.35 + side, y * 0.35, p[SHIFT_Z])
    edge = abs(d) + 0.42 * strand + 0.2 * coarse
    cover = 1.0 - smooth_step(0.45, 1.25, edge)
    cover *= smooth_step(-0.05, 0.12, s + 0.03 * strand) * (1.0 - smooth_step(0.88, 1.03, s))
    return min(1.0, cover * (0.75 + 0.35 * strand + 0.25) * p[BROW_DENSITY])


@kernel
@no_type_check
def _occlusion(x: float, y: float, z: float) -> float:
    """Ambient light that reaches a point of the neutral face, 0..1, from its position alone."""
    ax = abs(x)
    shade = 1.0
    if z > 20.0:
        shade -= 0.30 * bump(ax - 17.0, 7.0, y - 3.0, 9.0)
        shade -= 0.14 * bump(ax - 30.0, 17.0, y - 10.5, 4.5)
        shade -= 0.85 * bump(ax - 6.8, 3.6, y + 44.0, 2.6) * smooth_step(84.0, 92.0, z)
        shade -= 0.22 * bump(ax - 17.5, 3.2, y + 40.0, 6.0)
        shade -= 0.20 * bump(x, 15.0, y + 48.5, 4.0)
        shade -= 0.20 * bump(x, 16.0, y + 80.0, 4.5)
        shade -= 0.18 * bump(ax - 28.0, 3.5, y + 66.0, 4.5)
    under = smooth_step(-100.0, -130.0, y) * smooth_step(85.0, 62.0, z)
    shade -= 0.40 * under * smooth_step(-45.0, 40.0, z)
    return max(0.08, shade)


@kernel
@no_type_check
def skin_colour(
    x: float,
    y: float,
    z: float,
    p: np.ndarray,
    table: np.ndarray,
    hairline: np.ndarray,
    out: np.ndarray,
) -> None:
    """Fill ``out`` with albedo (3), specular strength, roughness, ambient occlusion."""
    ax = abs(x)
    sx = x + p[SHIFT_X]
    sy = y + p[SHIFT_Y]
    sz = z + p[SHIFT_Z]
    n1 = lattice_noise(table, sx * 0.045, sy * 0.045, sz * 0.045)
    n2 = lattice_noise(table, sx * 0.14, sy * 0.14, sz * 0.14)
    n3 = lattice_noise(table, sx * 0.47, sy * 0.47, sz * 0.47)
    n4 = lattice_noise(table, sx * 1.25, sy * 1.25, sz * 1.25)
    pale = 1.0 - 0.6 * p[MELANIN]
    mottle = p[BLOTCH] * (0.06 * n1 + 0.07 * n2 + 0.045 * n3)
    grain = p[PORES] * 0.10 * n4
    red = 0.30 * p[BLOTCH] * (0.5 * n2 + 0.4 * n1 + 0.15 * n3)
    front = smooth_step(10.0, 40.0, z)
    red += 0.60 * p[CHEEK_RED] * bump(ax - 43.0, 17.0, y + 26.0, 15.0) * front
    red += 0.60 * p[NOSE_RED] * bump(x, 14.0, y + 36.0, 11.0) * front
    red += 0.22 * bump(x, 16.0, y + 98.0, 12.0) * front
    red -= 0.22 * bump(x, 50.0, y - 55.0, 22.0) * front
    red += 0.25 * bump(ax - 31.2, 15.0, y - 7.5, 4.0) * front
    red += 0.18 * bump(x, 30.0, y + 65.0, 16.0) * front
    if ax > 66.0 and z < 12.0:
        red += 0.45 * smooth_step(66.0, 74.0, ax) * bump(0.0, 1.0, y + 12.0, 34.0)
    red *= pale
    dark = 1.0 - mottle - grain
    r = p[TONE_R] * dark * (1.0 - 0.05 * red)
    g = p[TONE_G] * dark * (1.0 - 0.30 * red)
    b = p[TONE_B] * dark * (1.0 - 0.24 * red)

    # Under the eyes, and lids.
    bags = p[EYE_BAGS] * bump(ax - 28.0, 13.0, y + 12.0 - 0.05 * ax, 5.0) * front
    r *= 1.0 - 0.26 * bags
    g *= 1.0 - 0.32 * bags
    b *= 1.0 - 0.26 * bags
    if p[FRECKLES] > 0.0 and front > 0.0:
        spot = lattice_noise(table, sx * 0.85 + 9.0, sy * 0.85, sz * 0.85)
        zone = bump(x, 46.0, y + 22.0, 30.0) + 0.4 * bump(x, 50.0, y - 50.0, 26.0)
        spots = smooth_step(0.28, 0.5, spot) * p[FRECKLES] * min(1.0, zone) * front
        r *= 1.0 - 0.22 * spots
        g *= 1.0 - 0.36 * spots
        b *= 1.0 - 0.44 * spots
    for slot in range(MOLE_SLOTS):
        mx = p[MOLES + 3 * slot] - x
        my = p[MOLES + 3 * slot + 1] - y
        if abs(mx) < 3.0 and abs(my) < 3.0 and z > 0.0:
            spot = 1.0 - smooth_step(0.7, 1.5, np.sqrt(mx * mx + my * my) + 0.25 * n4)
            r *= 1.0 - 0.55 * spot
            g *= 1.0 - 0.68 * spot
            b *= 1.0 - 0.70 * spot

    # Lines of age.
    lines = 0.0
    if p[WRINKLES] > 0.02 and front > 0.0:
        if y > 38.0 and ax < 55.0:
            wave = y + 3.0 * n1 + 0.0016 * x * x * np.sign(n1 + 0.3)
            phase = np.abs(((wave - 44.0) / 10.0) % 1.0 - 0.5) * 10.0
            fade = smooth_step(40.0, 47.0, y) * smooth_step(78.0, 70.0, y)
            lines += 0.8 * bell(phase * phase / 0.7) * fade * smooth_step(55.0, 34.0, ax)
        if ax > 47.0 and abs(y + 2.0) < 16.0:
            angle = np.arctan2(y + 1.0, ax - 40.0)
            phase = np.abs((angle * 3.2 + 0.5 + 0.2 * n2) % 1.0 - 0.5) * 3.4
            lines += 0.8 * bell(phase * phase * 6.0) * bump(ax - 56.0, 6.0, y + 2.0, 10.0)
        if ax < 9.0 and y > 8.0 and y < 34.0:
            frown = bell((ax - 5.0 - 0.8 * n2) ** 2 / (0.6))
            lines += 0.6 * frown * smooth_step(8.0, 15.0, y) * smooth_step(34.0, 26.0, y)
    fold = 18.0 + 13.0 * smooth_step(-36.0, -72.0, y)
    if y < -34.0 and y > -84.0:
        band = (ax - fold) / (1.3 + 1.6 * smooth_step(-36.0, -72.0, y))
        fade = smooth_step(-34.0, -42.0, y) * smooth_step(-82.0, -66.0, y)
        lines += (
            (0.25 + 0.75 * p[WRINKLES])
            * bell(band * band)
            * fade
            / max(p[WRINKLES], 0.25)
            * 0.8
            * front
        )
    lines *= max(p[WRINKLES], 0.25) * 0.28
    r *= 1.0 - 0.75 * lines
    g *= 1.0 - lines
    b *= 1.0 - lines

    specular = p[GLOSS] * (
        0.65
        + 0.5 * bump(x, 12.0, y + 26.0, 22.0) * front
        + 0.4 * bump(x, 32.0, y - 50.0, 20.0) * front
        + 0.25 * bump(ax - 44.0, 15.0, y + 16.0, 10.0) * front
    )
    specular *= (1.0 - 0.5 * p[MELANIN]) * (1.0 + 0.8 * p[PORES] * n4 + 0.35 * n3)
    roughness = p[ROUGHNESS] * (1.0 + 0.12 * n2)
    ao = _occlusion(x, y, z)

    # Shaved shadow and beard.
    grown = 0.0
    if y < 6.0 and (p[BEARD_KIND] > 0.5 or p[BEARD_SHADOW] > 0.01):
        jitter = 2.6 * n2 + 1.6 * n3
        zone = beard_cover(x, y + jitter, z, 1.0, p[BEARD_CHEEK])
        if p[BEARD_SHADOW] > 0.01:
            tint = p[BEARD_SHADOW] * zone * (0.26 + 0.09 * n4)
            r *= 1.0 - 1.15 * tint
            g *= 1.0 - 0.95 * tint
            b *= 1.0 - 0.80 * tint
        if p[BEARD_KIND] > 0.5:
            cover = beard_cover(x, y + jitter, z, p[BEARD_KIND], p[BEARD_CHEEK])
            if p[BEARD_KIND] < 1.5:
                dots = lattice_noise(table, sx * 1.9, sy * 1.9, sz * 1.9)
                grown = cover * p[BEARD_DENSITY] * (0.36 + 0.5 * smooth_step(-0.1, 0.35, dots))
            else:
                strand = lattice_noise(table, sx * 1.3, sy * 0.22, sz * 1.3)
                grown = smooth_step(
                    0.12, 0.62, cover * (0.8 + 0.35 * p[BEARD_DENSITY]) + 0.2 * strand
                )
                grown *= cover**0.35
            grown = min(1.0, grown)

    # Lips.
    inside = vermilion(x, y, p[LIP_HEIGHT]) + 0.35 * n3
    on_lip = smooth_step(-0.9, 0.7, inside) * smooth_step(50.0, 60.0, z)
    if on_lip > 0.0:
        crease = lattice_noise(table, sx * 1.1, sy * 0.12, 3.0)
        lower = 1.0 if y < -65.0 else 0.88
        tint = lower * (1.0 + 0.09 * crease + 0.05 * n2)
        edge = 1.0 - 0.10 * bell(inside * inside / 1.2)
        r += on_lip * (p[LIP_R] * tint * edge - r)
        g += on_lip * (p[LIP_G] * tint * edge - g)
        b += on_lip * (p[LIP_B] * tint * edge - b)
        specular += on_lip * (0.5 + 1.8 * p[LIP_GLOSS] - specular) * (1.0 + 0.4 * crease)
        roughness += on_lip * (0.42 - 0.16 * p[LIP_GLOSS] - roughness)
        grown *= 1.0 - on_lip
    if ax < 28.0 and abs(y + 65.0) < 4.0 and z > 55.0:
        line = (y + 65.0 - 0.9 * (1.0 - (ax / 26.0) ** 2) * np.cos(x * 0.24)) / 0.75
        slit = 0.62 * bell(line * line) * smooth_step(28.5, 25.0, ax)
        r *= 1.0 - slit
        g *= 1.0 - 1.06 * slit
        b *= 1.0 - 1.06 * slit
        specular *= 1.0 - slit
    if grown > 0.0:
        tuft = lattice_noise(table, sx * 1.1, sy * 0.2, sz * 1.1)
        shade = 0.85 + 0.25 * n4 + 0.35 * tuft
        r += grown * (p[BEARD_R] * shade - r)
        g += grown * (p[BEARD_G] * shade - g)
        b += grown * (p[BEARD_B] * shade - b)
        specular *= 1.0 - 0.35 * grown

    # Brows.
    brow = brow_cover(x, y, z, p, table) * front
    if brow > 0.0:
        r += brow * (p[BROW_R] - r)
        g += brow * (p[BROW_G] - g)
        b += brow * (p[BROW_B] - b)
        specular *= 1.0 - 0.7 * brow

    # Lids: eye shadow, rims, lashes.
    ex = ax - 31.2
    if abs(ex) < 24.0 and abs(y) < 17.0 and z > 40.0:
        t = ex / 15.2
        arc = 1.0 - min(1.0, t * t)
        top = 4.7 * arc - 0.4 * t
        low = -4.4 * arc - 0.4 * t
        above = y - top
        below = low - y
        if p[SHADOW_STRENGTH] > 0.0 and above > 0.0:
            tint = p[SHADOW_STRENGTH] * bell((above - 2.5) ** 2 / (18.0))
            tint *= smooth_step(1.55, 0.9, abs(t))
            r *= 1.0 - tint * (1.0 - p[SHADOW_R])
            g *= 1.0 - tint * (1.0 - p[SHADOW_G])
            b *= 1.0 - tint * (1.0 - p[SHADOW_B])
        ends = smooth_step(1.16, 0.92, abs(t))
        # A crease above the upper lid.
        fold_line = (above - 5.2 * (0.55 + 0.45 * arc)) / 1.0
        crease = 0.24 * bell(fold_line * fold_line) * smooth_step(1.25, 0.8, abs(t))
        r *= 1.0 - 0.8 * crease
        g *= 1.0 - crease
        b *= 1.0 - crease
        # Wet rim just outside the opening, then the lash line.
        rim = np.exp(-((min(abs(above), abs(below))) ** 2) / 0.5) * ends
        g *= 1.0 - 0.2 * rim * pale
        b *= 1.0 - 0.18 * rim * pale
        wing = 1.0 + 0.5 * smooth_step(0.2, 1.0, t)
        width = (0.55 + 0.75 * p[LASH] + 0.8 * p[LINER]) * wing
        hairs = lattice_noise(table, x * 1.4, 0.3 * y, 5.0)
        upper = bell((above - 0.25) ** 2 / (width * width * (1.0 + 0.35 * hairs)))
        upper *= smooth_step(1.2, 1.0, abs(t)) * (0.62 + 0.36 * p[LASH])
        lower_width = 0.45 + 0.4 * p[LASH] + 0.4 * p[LINER]
        under = bell((below - 0.5) ** 2 / (lower_width * lower_width))
        under *= ends * (0.18 + 0.30 * p[LASH] + 0.3 * p[LINER]) * smooth_step(-1.0, 0.1, t)
        lash = max(upper, under)
        r += lash * (0.018 - r)
        g += lash * (0.014 - g)
        b += lash * (0.012 - b)
        specular *= 1.0 - lash
        # The caruncle.
        pink = bump(ex + 14.6, 1.6, y + 0.9, 1.5)
        r += pink * (0.55 - r) * 0.6
        g += pink * (0.22 - g) * 0.6
        b += pink * (0.19 - b) * 0.6

    # Scalp under the hair.
    excess = -99.0
    if z < 48.0 or y > 18.0:
        excess = hairline_excess(x, y, z, hairline) + 2.5 * n2 + 1.5 * n3
    if excess > -8.0:
        cover = smooth_step(-6.0, 9.0, excess) * p[SCALP] * (0.9 + 0.15 * n4)
        cover *= 1.0 - 0.9 * smooth_step(72.0, 77.0, ax) * smooth_step(24.0, 14.0, y)
        cover = min(1.0, max(0.0, cover))
        r += cover * (0.8 * p[HAIR_R] - r)
        g += cover * (0.8 * p[HAIR_G] - g)
        b += cover * (0.8 * p[HAIR_B] - b)
        specular *= 1.0 - 0.8 * cover
    out[0] = max(0.004, r)
    out[1] = max(0.004, g)
    out[2] = max(0.004, b)
    out[3] = max(0.0, specular)
    out[4] = roughness
    out[5] = ao


@kernel
@no_type_check
def eye_colour(
    x: float, y: float, z: float, p: np.ndarray, table: np.ndarray, out: np.ndarray
) -> None:
    """Fill ``out`` for a point of an eyeball: sclera, limbal ring, iris fibres, pupil."""
    dx = abs(x) - 31.2
    dy = y
    dz = z - 70.5
    radius = np.sqrt(dx * dx + dy * dy)
    if dz < 0.0:
        radius = 20.0
    veins = lattice_noise(table, x * 0.5 + p[SHIFT_X], y * 1.1, z * 0.5)
    corner = smooth_step(6.0, 12.0, abs(dx))
    r = p[SCLERA_R] * (1.0 - 0.05 * corner)
    g = p[SCLERA_G] * (1.0 - 0.22 * corner - 0.07 * max(0.0, veins))
    b = p[SCLERA_B] * (1.0 - 0.22 * corner - 0.07 * max(0.0, veins))
    specular = 1.0
    limbus = 1.0 - smooth_step(0.90, 1.08, radius / p[IRIS_MM])
    if limbus > 0.0:
        angle = np.arctan2(dy, dx)
        side = 11.0 if x > 0.0 else 0.0
        rho = radius / p[IRIS_MM]
        fibres = lattice_noise(table, np.cos(angle) * 7.0 + side, np.sin(angle) * 7.0, rho * 1.6)
        fine = lattice_noise(table, np.cos(angle) * 17.0, np.sin(angle) * 17.0 + side, rho * 2.5)
        blend = smooth_step(0.38, 0.66, rho + 0.09 * fibres)
        tone = 1.0 + 0.38 * fibres + 0.30 * fine
        ring = 0.8 * (1.0 - 0.75 * smooth_step(0.68, 0.98, rho))
        lower = 1.0 + 0.25 * smooth_step(0.3, -0.6, dy / p[IRIS_MM])
        tone *= ring * lower
        pupil = smooth_step(p[PUPIL_MM] - 0.25, p[PUPIL_MM] + 0.25, radius)
        tone *= 0.02 + 0.98 * pupil
        ir = (p[IRIS_IN_R] + blend * (p[IRIS_OUT_R] - p[IRIS_IN_R])) * tone
        ig = (p[IRIS_IN_G] + blend * (p[IRIS_OUT_G] - p[IRIS_IN_G])) * tone
        ib = (p[IRIS_IN_B] + blend * (p[IRIS_OUT_B] - p[IRIS_IN_B])) * tone
        r += limbus * (ir - r)
        g += limbus * (ig - g)
        b += limbus * (ib - b)
    out[0] = max(0.003, r)
    out[1] = max(0.003, g)
    out[2] = max(0.003, b)
    out[3] = specular
    out[4] = 0.1
    out[5] = 1.0


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
    for i in range(points.shape[0]):
        if eye[i]:
            eye_colour(points[i, 0], points[i, 1], points[i, 2], p, table, out)
        else:
            skin_colour(points[i, 0], points[i, 1], points[i, 2], p, table, hairline, out)
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
