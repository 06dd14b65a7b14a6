"""Lips and the bag of the mouth: explicit profiles swept along the mouth line (mm)."""

import numpy as np
from jaxtyping import Float

HALF_WIDTH_MM = 25.5
# One profile per ring, from the red border inward: half-width of the ring, then offsets (y, z)
# from the mouth line for the upper and for the lower lip at mid-mouth.
LIP_PROFILE = np.array(
    [
        [27.0, 7.4, 1.5, -9.2, -1.3],
        [26.6, 5.0, 2.9, -6.8, 1.5],
        [26.2, 2.3, 3.5, -3.3, 3.0],
        [25.8, 0.55, 2.1, -0.75, 2.0],
        [25.5, 0.04, 0.1, -0.04, 0.1],
    ]
)
BAG_PROFILE = np.array(
    [
        [25.0, 0.35, -3.5, -0.35, -3.5],
        [23.5, 8.5, -7.5, -8.5, -7.5],
        [21.0, 10.0, -19.0, -9.0, -19.0],
        [12.0, 5.0, -31.0, -5.0, -31.0],
    ]
)


def _wave(x: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """The tubercle in the middle of the mouth line and the rise on its two sides (mm)."""
    rise = np.exp(-0.5 * ((np.abs(x) - 12.0) / 5.0) ** 2)
    return 0.3 * rise - 0.5 * np.exp(-0.5 * (x / 6.0) ** 2)


def line(x: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n 2"]:
    """Height and depth (y, z) of the closed mouth line at ``x`` (mm)."""
    u = np.clip(np.abs(x) / HALF_WIDTH_MM, 0.0, 1.2)
    return np.stack([-65.0 + _wave(x) - 0.7 * u**3, 94.6 - 10.6 * u**2.3], axis=1)


def mouth_rings(
    skin: tuple[Float[np.ndarray, "k 3"], ...], count: int
) -> tuple[Float[np.ndarray, "m 3"], Float[np.ndarray, "m"]]:
    """Rings from the last skin ring inward, and the closing point of the bag.

    Args:
        skin: The two skin rings outside the red border, outermost first, as the face without
            lips has them; the second is blended toward the border.
        count: Points per ring, counter-clockwise from the left corner, a multiple of four.

    Returns:
        Positions of every ring after the outermost, and a label per vertex: +1 upper lip,
        -1 lower lip, 0 at the corners.
    """
    angle = 2.0 * np.pi * np.arange(count) / count
    cosine, sine = np.cos(angle), np.sin(angle)
    cosine[np.abs(cosine) < 1e-12] = 0.0
    sine[np.abs(sine) < 1e-12] = 0.0
    upper = sine >= 0.0
    rings = []
    for half_width, up_y, up_z, low_y, low_z in np.concatenate([LIP_PROFILE, BAG_PROFILE]):
        x = half_width * cosine
        taper = np.abs(sine) ** 1.25
        here = line(x)
        dy = np.where(upper, up_y, low_y) * taper
        dz = np.where(upper, up_z, low_z)
        if half_width >= HALF_WIDTH_MM:
            dz = dz * taper + (0.0 if half_width > HALF_WIDTH_MM else -0.3) * (1.0 - taper)
            if up_y > 4.0:  # cupid's bow on the border and the ring below it
                bow = -0.9 * np.exp(-0.5 * (x / 2.6) ** 2) + 0.7 * np.exp(
                    -0.5 * ((np.abs(x) - 6.0) / 3.0) ** 2
                )
                dy += np.where(upper, bow * (up_y / 7.4), 0.0)
        flatten = _wave(x) * (np.exp(-np.abs(dy) / 2.5) - 1.0)  # the wave stays at the line
        rings.append(np.stack([x, here[:, 0] + dy + flatten, here[:, 1] + dz], axis=1))
    border = rings[0]
    joined = 0.5 * skin[1] + 0.5 * (0.5 * (skin[0] + border))
    pole = np.array([[0.0, -65.0, 94.6 - 34.0]])
    positions = np.concatenate([joined, *rings, pole])
    label = np.concatenate([np.tile(np.sign(sine), len(rings) + 1), [0.0]])
    return positions, label
