"""What is painted on a face: pigment, lines of age, beard, lips, brows, lids, eyes.

Each kernel reads the packed appearance ``p`` and changes ``out``: red, green, blue, specular
strength, roughness, ambient occlusion. Positions are canonical mm; ``n`` holds four octaves of
the person's noise, coarse to fine. Sizes and strengths are ours, chosen by looking.
"""

from typing import no_type_check

import numpy as np

from models.procedural.noise import lattice_noise
from models.rendering.jit import leaf

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


@leaf
@no_type_check
def smooth_step(low: float, high: float, value: float) -> float:
    """Cubic step from 0 at ``low`` to 1 at ``high``."""
    extent = high - low
    above = value - low
    if above * extent <= 0.0:
        return 0.0
    t = above / extent
    if t >= 1.0:
        return 1.0
    return t * t * (3.0 - 2.0 * t)


@leaf
@no_type_check
def fraction(value: float) -> float:
    """What is left above the next lower whole number: ``value % 1.0``, bit for bit and faster."""
    return value - np.floor(value)


@leaf
@no_type_check
def bell(square: float) -> float:
    """About exp(-square), zero from 4 on: (1 - square / 4)^4, many times as fast."""
    t = max(0.0, 1.0 - 0.25 * square)
    return t * t * t * t


@leaf
@no_type_check
def bump(dx: float, sx: float, dy: float, sy: float) -> float:
    """About the Gaussian exp(-(dx/sx)^2 - (dy/sy)^2), see ``bell``; mostly far away."""
    if abs(dx) > 2.0 * sx or abs(dy) > 2.0 * sy:
        return 0.0
    return bell((dx * dx) / (sx * sx) + (dy * dy) / (sy * sy))


@leaf
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


@leaf
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


@leaf
@no_type_check
def beard_cover(x: float, y: float, z: float, kind: float, cheek: float) -> float:
    """0..1 where facial hair of a kind grows; soft at the borders."""
    ax = abs(x)
    if kind < 0.5 or y > 5.0 or y < -150.0:
        return 0.0
    moustache = smooth_step(34.0, 22.0, ax)
    if moustache > 0.0:
        upper = smooth_step(-45.0, -54.0, y + 0.22 * ax)
        moustache *= upper * smooth_step(-78.0, -66.0, y + 0.5 * max(0.0, ax - 20.0))
    if kind < 1.5 or kind > 3.5:
        floor = -126.0 + 0.25 * max(0.0, ax - 25.0)
        below = smooth_step(floor - 16.0, floor + 10.0, y)
        # Most points do without the azimuth, whose arc tangent is slow: before 39 degrees the
        # cheeks' border is between -65 and -48, before 56 below -40, elsewhere below 0.1, and
        # nothing grows behind 95.
        border = cheek + (-47.9 if ax < 0.8 * z else (-40.0 if ax < 1.5 * z else 0.1))
        if below == 0.0 or y > border or z < -0.1 * ax:
            return moustache
        if ax < 0.8 * z and y < cheek - 65.1:
            return max(below, moustache)
        azimuth = np.arctan2(ax, z) * 57.29577951308232
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


@leaf
@no_type_check
def brow_height(s: float, height: float, arch: float) -> float:
    """Height (mm) of a brow's middle line, ``s`` 0 at its inner and 1 at its outer end."""
    rise = 1.0 - ((s - 0.6) / 0.6) ** 2 if s < 0.6 else 1.0 - 2.1 * ((s - 0.6) / 0.4) ** 2
    return 13.6 + height + (5.0 + arch) * rise


@leaf
@no_type_check
def brow_cover(x: float, y: float, z: float, p: np.ndarray, table: np.ndarray) -> float:
    """0..1 density of eyebrow hair, with strands."""
    if y < 4.0 or y > 36.0:
        return 0.0
    ax = abs(x)
    inner = p[BROW_INNER]
    s = (ax - inner) / (53.0 - inner)
    if s < -0.08 or s > 1.05:
        return 0.0
    centre = brow_height(s, p[BROW_HEIGHT], p[BROW_ARCH])
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


@leaf
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


@leaf
@no_type_check
def blend(out: np.ndarray, amount: float, r: float, g: float, b: float) -> None:
    """Cover the colour with another one."""
    out[0] += amount * (r - out[0])
    out[1] += amount * (g - out[1])
    out[2] += amount * (b - out[2])


@leaf
@no_type_check
def absorb(out: np.ndarray, r: float, g: float, b: float) -> None:
    """Take shares of the light away."""
    out[0] *= 1.0 - r
    out[1] *= 1.0 - g
    out[2] *= 1.0 - b


@leaf
@no_type_check
def paint_pigment(
    x: float, y: float, z: float, front: float, n: np.ndarray, p: np.ndarray, table: np.ndarray,
    out: np.ndarray,
) -> None:  # fmt: skip
    """Tone, mottling, redness, dark circles, freckles, moles; gloss."""
    ax = abs(x)
    red = 0.30 * p[BLOTCH] * (0.5 * n[1] + 0.4 * n[0] + 0.15 * n[2])
    red += 0.60 * p[CHEEK_RED] * bump(ax - 43.0, 17.0, y + 26.0, 15.0) * front
    red += 0.60 * p[NOSE_RED] * bump(x, 14.0, y + 36.0, 11.0) * front
    red += 0.22 * bump(x, 16.0, y + 98.0, 12.0) * front
    red -= 0.22 * bump(x, 50.0, y - 55.0, 22.0) * front
    red += 0.25 * bump(ax - 31.2, 15.0, y - 7.5, 4.0) * front
    red += 0.18 * bump(x, 30.0, y + 65.0, 16.0) * front
    if ax > 66.0 and z < 12.0:
        red += 0.45 * smooth_step(66.0, 74.0, ax) * bump(0.0, 1.0, y + 12.0, 34.0)
    red *= 1.0 - 0.6 * p[MELANIN]
    dark = 1.0 - p[BLOTCH] * (0.06 * n[0] + 0.07 * n[1] + 0.045 * n[2]) - p[PORES] * 0.10 * n[3]
    out[0] = p[TONE_R] * dark * (1.0 - 0.05 * red)
    out[1] = p[TONE_G] * dark * (1.0 - 0.30 * red)
    out[2] = p[TONE_B] * dark * (1.0 - 0.24 * red)
    bags = p[EYE_BAGS] * bump(ax - 28.0, 13.0, y + 12.0 - 0.05 * ax, 5.0) * front
    absorb(out, 0.26 * bags, 0.32 * bags, 0.26 * bags)
    if p[FRECKLES] > 0.0 and front > 0.0:
        spot = lattice_noise(
            table, (x + p[SHIFT_X]) * 0.85 + 9.0, (y + p[SHIFT_Y]) * 0.85, (z + p[SHIFT_Z]) * 0.85
        )
        zone = bump(x, 46.0, y + 22.0, 30.0) + 0.4 * bump(x, 50.0, y - 50.0, 26.0)
        spots = smooth_step(0.28, 0.5, spot) * p[FRECKLES] * min(1.0, zone) * front
        absorb(out, 0.22 * spots, 0.36 * spots, 0.44 * spots)
    for slot in range(MOLE_SLOTS):
        mx = p[MOLES + 3 * slot] - x
        my = p[MOLES + 3 * slot + 1] - y
        if abs(mx) < 3.0 and abs(my) < 3.0 and z > 0.0:
            mole = 1.0 - smooth_step(0.7, 1.5, np.sqrt(mx * mx + my * my) + 0.25 * n[3])
            absorb(out, 0.55 * mole, 0.68 * mole, 0.70 * mole)
    gloss = (
        0.65
        + 0.5 * bump(x, 12.0, y + 26.0, 22.0) * front
        + 0.4 * bump(x, 32.0, y - 50.0, 20.0) * front
        + 0.25 * bump(ax - 44.0, 15.0, y + 16.0, 10.0) * front
    )
    gloss *= (1.0 - 0.5 * p[MELANIN]) * (1.0 + 0.8 * p[PORES] * n[3] + 0.35 * n[2])
    out[3] = max(0.0, p[GLOSS] * gloss)
    out[4] = p[ROUGHNESS] * (1.0 + 0.12 * n[1])


@leaf
@no_type_check
def paint_age(
    x: float, y: float, front: float, n: np.ndarray, p: np.ndarray, out: np.ndarray
) -> None:
    """Lines across the forehead, beside the eyes, between the brows, from nose to mouth."""
    ax = abs(x)
    lines = 0.0
    if p[WRINKLES] > 0.02 and front > 0.0:
        if y > 38.0 and ax < 55.0:
            wave = y + 3.0 * n[0] + 0.0016 * x * x * np.sign(n[0] + 0.3)
            phase = np.abs(fraction((wave - 44.0) / 10.0) - 0.5) * 10.0
            fade = smooth_step(40.0, 47.0, y) * smooth_step(78.0, 70.0, y)
            lines += 0.8 * bell(phase * phase / 0.7) * fade * smooth_step(55.0, 34.0, ax)
        if ax > 47.0 and abs(y + 2.0) < 16.0:
            angle = np.arctan2(y + 1.0, ax - 40.0)
            phase = np.abs(fraction(angle * 3.2 + 0.5 + 0.2 * n[1]) - 0.5) * 3.4
            lines += 0.8 * bell(phase * phase * 6.0) * bump(ax - 56.0, 6.0, y + 2.0, 10.0)
        if ax < 9.0 and y > 8.0 and y < 34.0:
            frown = bell((ax - 5.0 - 0.8 * n[1]) ** 2 / 0.6)
            lines += 0.6 * frown * smooth_step(8.0, 15.0, y) * smooth_step(34.0, 26.0, y)
        lines *= max(p[WRINKLES], 0.25)
    if y < -34.0 and y > -84.0 and ax > 12.0 and ax < 40.0:  # outside, the band is beyond 2
        along = smooth_step(-36.0, -72.0, y)
        band = (ax - 18.0 - 13.0 * along) / (1.3 + 1.6 * along)
        fade = smooth_step(-34.0, -42.0, y) * smooth_step(-82.0, -66.0, y)
        lines += (0.2 + 0.6 * p[WRINKLES]) * bell(band * band) * fade * front
    lines *= 0.28
    absorb(out, 0.75 * lines, lines, lines)


@leaf
@no_type_check
def paint_beard(
    x: float, y: float, z: float, n: np.ndarray, p: np.ndarray, table: np.ndarray, out: np.ndarray
) -> None:
    """Shaved shadow under the skin, then whatever has grown; the lips stay free."""
    jitter = 2.6 * n[1] + 1.6 * n[2]
    if p[BEARD_SHADOW] > 0.01:
        zone = beard_cover(x, y + jitter, z, 1.0, p[BEARD_CHEEK])
        tint = p[BEARD_SHADOW] * zone * (0.26 + 0.09 * n[3])
        absorb(out, 1.15 * tint, 0.95 * tint, 0.80 * tint)
    if p[BEARD_KIND] < 0.5:
        return
    cover = beard_cover(x, y + jitter, z, p[BEARD_KIND], p[BEARD_CHEEK])
    if cover <= 0.0:
        return
    sx = x + p[SHIFT_X]
    sy = y + p[SHIFT_Y]
    sz = z + p[SHIFT_Z]
    if p[BEARD_KIND] < 1.5:
        dots = lattice_noise(table, sx * 1.9, sy * 1.9, sz * 1.9)
        grown = cover * p[BEARD_DENSITY] * (0.36 + 0.5 * smooth_step(-0.1, 0.35, dots))
    else:
        strand = lattice_noise(table, sx * 1.3, sy * 0.22, sz * 1.3)
        grown = smooth_step(0.05, 0.95, cover * (0.85 + 0.3 * p[BEARD_DENSITY]) + 0.3 * strand)
        grown *= min(1.0, 1.6 * cover) * (0.80 + 0.12 * p[BEARD_DENSITY])
    inside = vermilion(x, y, p[LIP_HEIGHT]) + 0.35 * n[2]
    on_lip = smooth_step(-0.9, 0.7, inside) * smooth_step(50.0, 60.0, z)
    grown = min(1.0, grown) * (1.0 - on_lip)
    tuft = lattice_noise(table, sx * 1.1, sy * 0.2, sz * 1.1)
    shade = 0.95 + 0.35 * n[3] + 0.55 * tuft
    blend(out, grown, p[BEARD_R] * shade, p[BEARD_G] * shade, p[BEARD_B] * shade)
    out[3] *= 1.0 - 0.35 * grown


@leaf
@no_type_check
def mouth_line(x: float) -> float:
    """Height (mm) of the closed mouth's line."""
    ax = abs(x)
    u = min(ax / 25.5, 1.2)
    middle = 0.5 * np.exp(-0.5 * (x / 6.0) ** 2)
    rise = 0.3 * np.exp(-0.5 * ((ax - 12.0) / 5.0) ** 2)
    return -65.0 - middle + rise - 0.7 * u**3


@leaf
@no_type_check
def paint_lips(
    x: float, y: float, z: float, n: np.ndarray, p: np.ndarray, table: np.ndarray, out: np.ndarray
) -> None:
    """The red of the lips with its fine creases, and the line between them."""
    inside = vermilion(x, y, p[LIP_HEIGHT]) + 0.35 * n[2]
    on_lip = smooth_step(-0.9, 0.7, inside) * smooth_step(50.0, 60.0, z)
    if on_lip > 0.0:
        crease = lattice_noise(table, (x + p[SHIFT_X]) * 1.1, (y + p[SHIFT_Y]) * 0.12, 3.0)
        tint = (1.0 if y < -65.0 else 0.88) * (1.0 + 0.09 * crease + 0.05 * n[1])
        tint *= 1.0 - 0.10 * bell(inside * inside / 1.2)
        blend(out, on_lip, p[LIP_R] * tint, p[LIP_G] * tint, p[LIP_B] * tint)
        out[3] += on_lip * (0.5 + 1.8 * p[LIP_GLOSS] - out[3]) * (1.0 + 0.4 * crease)
        out[4] += on_lip * (0.42 - 0.16 * p[LIP_GLOSS] - out[4])
    if abs(x) < 28.0:
        line = (y - mouth_line(x)) / 0.75
        slit = 0.62 * bell(line * line) * smooth_step(28.5, 25.0, abs(x))
        absorb(out, slit, 1.06 * slit, 1.06 * slit)
        out[3] *= 1.0 - slit


@leaf
@no_type_check
def lid_heights(t: float) -> tuple[float, float]:
    """Heights (mm) of the edges of the upper and lower lid; t is -1 at the inner corner."""
    u = min(1.0, max(-1.0, t))
    arc = 1.0 - u * u
    tilt = 0.9 * u - 0.3
    upper = 4.9 * max(0.0, 1.0 - abs(u + 0.10 * arc) ** 2.2) ** 0.85
    lower = 4.5 * max(0.0, 1.0 - abs(u - 0.12 * arc) ** 2.4) ** 0.9
    return upper + tilt, tilt - lower


@leaf
@no_type_check
def paint_lids(x: float, y: float, p: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """Eye shadow, the fold of the upper lid, wet rims, lashes, the inner corner."""
    t = (abs(x) - 31.2) / 14.5
    top, low = lid_heights(t)
    above = y - top
    below = low - y
    if p[SHADOW_STRENGTH] > 0.0 and above > 0.0:
        tint = p[SHADOW_STRENGTH] * bell((above - 2.5) ** 2 / 18.0)
        tint *= smooth_step(1.6, 0.95, abs(t))
        absorb(
            out, tint * (1.0 - p[SHADOW_R]), tint * (1.0 - p[SHADOW_G]), tint * (1.0 - p[SHADOW_B])
        )
    fold = above - 5.2 * (0.55 + 0.45 * (1.0 - min(1.0, t * t)))
    crease = 0.24 * bell(fold * fold) * smooth_step(1.3, 0.85, abs(t))
    absorb(out, 0.8 * crease, crease, crease)
    ends = smooth_step(1.2, 0.96, abs(t))
    rim = bell(min(above * above, below * below) / 0.5) * ends * (1.0 - 0.6 * p[MELANIN])
    absorb(out, 0.0, 0.20 * rim, 0.18 * rim)
    width = 0.55 + 0.75 * p[LASH] + 0.8 * p[LINER]
    width *= 1.0 + 0.5 * smooth_step(0.2, 1.0, t)
    hairs = lattice_noise(table, x * 1.4, 0.3 * y, 5.0)
    upper = bell((above - 0.25) ** 2 / (width * width * (1.0 + 0.35 * hairs)))
    upper *= smooth_step(1.25, 1.04, abs(t)) * (0.62 + 0.36 * p[LASH])
    width = 0.45 + 0.4 * p[LASH] + 0.4 * p[LINER]
    under = bell((below - 0.5) ** 2 / (width * width))
    under *= ends * (0.18 + 0.30 * p[LASH] + 0.3 * p[LINER]) * smooth_step(-1.0, 0.1, t)
    lash = max(upper, under)
    blend(out, lash, 0.018, 0.014, 0.012)
    out[3] *= 1.0 - lash
    pink = 0.6 * bump((t + 1.0) * 14.5, 1.6, y + 1.2, 1.5)
    blend(out, pink, 0.55, 0.22, 0.19)


@leaf
@no_type_check
def paint_scalp(
    x: float, y: float, excess: float, n: np.ndarray, p: np.ndarray, out: np.ndarray
) -> None:
    """Hair roots over the scalp, ``excess`` mm above the hairline."""
    cover = smooth_step(-6.0, 9.0, excess) * p[SCALP] * (0.9 + 0.15 * n[3])
    cover *= 1.0 - 0.9 * smooth_step(72.0, 77.0, abs(x)) * smooth_step(24.0, 14.0, y)
    cover = min(1.0, max(0.0, cover))
    blend(out, cover, 0.8 * p[HAIR_R], 0.8 * p[HAIR_G], 0.8 * p[HAIR_B])
    out[3] *= 1.0 - 0.8 * cover


@leaf
@no_type_check
def skin_colour(
    x: float, y: float, z: float, p: np.ndarray, table: np.ndarray, hairline: np.ndarray,
    n: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """Fill ``out`` for a point of the skin; ``n`` (4,) is working space."""
    sx = x + p[SHIFT_X]
    sy = y + p[SHIFT_Y]
    sz = z + p[SHIFT_Z]
    n[0] = lattice_noise(table, sx * 0.045, sy * 0.045, sz * 0.045)
    n[1] = lattice_noise(table, sx * 0.14, sy * 0.14, sz * 0.14)
    n[2] = lattice_noise(table, sx * 0.47, sy * 0.47, sz * 0.47)
    n[3] = lattice_noise(table, sx * 1.25, sy * 1.25, sz * 1.25)
    front = smooth_step(10.0, 40.0, z)
    paint_pigment(x, y, z, front, n, p, table, out)
    paint_age(x, y, front, n, p, out)
    if y < -40.0 and y > -80.0 and abs(x) < 30.0 and z > 50.0:
        paint_lips(x, y, z, n, p, table, out)
    if y < 6.0 and (p[BEARD_KIND] > 0.5 or p[BEARD_SHADOW] > 0.01):
        paint_beard(x, y, z, n, p, table, out)
    brow = brow_cover(x, y, z, p, table) * front
    if brow > 0.0:
        blend(out, brow, p[BROW_R], p[BROW_G], p[BROW_B])
        out[3] *= 1.0 - 0.7 * brow
    if abs(abs(x) - 31.2) < 24.0 and abs(y) < 17.0 and z > 40.0:
        paint_lids(x, y, p, table, out)
    if z < 48.0 or y > 18.0:
        excess = hairline_excess(x, y, z, hairline) + 2.5 * n[1] + 1.5 * n[2]
        if excess > -8.0:
            paint_scalp(x, y, excess, n, p, out)
    out[0] = max(0.004, out[0])
    out[1] = max(0.004, out[1])
    out[2] = max(0.004, out[2])
    out[3] = max(0.0, out[3])
    out[5] = _occlusion(x, y, z)


@leaf
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
