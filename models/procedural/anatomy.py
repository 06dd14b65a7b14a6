"""The features that ride on the cage: brow, sockets, nose, cheeks, chin, throat (mm)."""

import numpy as np
from jaxtyping import Float

from models.procedural.cage import Cage

EYE_CENTRE_MM = np.array([31.2, 0.0, 70.5])
EYE_RADIUS_MM = 12.0
LID_RADIUS_MM = 13.6
MOUTH_CENTRE_MM = np.array([0.0, -65.0])
NOSTRIL_DOMAIN_MM = np.array([6.6, -36.4])

# Capsules and ellipsoids whose smooth union is the nose: the dorsum and its broad foot, the tip
# with two domes, the columella, the wings.
_CAPSULES = (
    # start, end, radius at start, radius at end
    ((0.0, 8.0, 85.5), (0.0, -28.0, 101.6), 5.2, 7.0),
    ((0.0, 4.0, 78.0), (0.0, -33.0, 92.5), 8.2, 10.8),
    ((0.0, -38.0, 105.5), (0.0, -42.0, 94.0), 3.1, 3.6),
)
_ELLIPSOIDS = (
    # centre, radii
    ((0.0, -33.5, 103.4), (9.2, 8.6, 9.0)),
    ((11.4, -38.4, 96.0), (6.4, 5.9, 8.6)),
    ((3.8, -35.0, 106.3), (4.9, 4.8, 4.9)),
)
_NOSE_BLEND_MM = 4.2


def bump(
    x: Float[np.ndarray, "n"],
    y: Float[np.ndarray, "n"],
    centre: tuple[float, float],
    sigma: tuple[float, float],
) -> Float[np.ndarray, "n"]:
    """A unit Gaussian bump on the plane."""
    return np.exp(-0.5 * (((x - centre[0]) / sigma[0]) ** 2 + ((y - centre[1]) / sigma[1]) ** 2))


def smoothstep(
    value: Float[np.ndarray, "..."], low: float, high: float
) -> Float[np.ndarray, "..."]:
    """0 below ``low``, 1 above ``high`` (either order), smooth in between."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def soft_maximum(
    a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"], width: float
) -> Float[np.ndarray, "n"]:
    """Smooth maximum of two heights that rounds the edge over about ``width``."""
    return width * np.logaddexp(a / width, b / width)


def _smooth_minimum(
    a: Float[np.ndarray, "..."], b: Float[np.ndarray, "..."], width: float
) -> Float[np.ndarray, "..."]:
    h = np.maximum(width - np.abs(a - b), 0.0) / width  # a may be infinite
    return np.minimum(a, b) - 0.25 * width * h * h


def nose_distance(points: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "..."]:
    """Approximate signed distance (mm, negative inside) to the mean nose's solid."""
    q = points.copy()
    q[..., 0] = np.abs(q[..., 0])
    distance = np.full(points.shape[:-1], np.inf)
    for start, end, radius_start, radius_end in _CAPSULES:
        a, b = np.array(start), np.array(end)
        t = np.clip(((q - a) @ (b - a)) / ((b - a) @ (b - a)), 0.0, 1.0)
        part = np.linalg.norm(q - a - t[..., None] * (b - a), axis=-1)
        part -= radius_start + (radius_end - radius_start) * t
        distance = _smooth_minimum(distance, part, _NOSE_BLEND_MM)
    for centre, radii in _ELLIPSOIDS:
        scaled = (q - np.array(centre)) / np.array(radii)
        length = np.linalg.norm(scaled, axis=-1)
        gradient = np.linalg.norm(scaled / np.array(radii), axis=-1)
        part = length * (length - 1.0) / np.maximum(gradient, 1e-9)
        distance = _smooth_minimum(distance, part, 3.4)
    return distance


def _raise_nose(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Move surface points along fixed rays onto the smooth union of the face and the nose.

    The rays tilt downward toward the base of the nose, so that its underside gets as many
    vertices as the ridge, and spread sideways over the wings.
    """
    near = (np.abs(points[:, 0]) < 34.0) & (points[:, 1] < 24.0) & (points[:, 1] > -62.0)
    near &= points[:, 2] > 40.0
    start = points[near]
    tilt = 0.12 + 0.6 * smoothstep(start[:, 1], -8.0, -28.0)
    spread = 0.048 * start[:, 0] * np.exp(-((start[:, 0] / 17.0) ** 4))
    ray = np.stack([spread, -tilt, np.ones_like(tilt)], axis=1)
    travel = np.linspace(36.0, -4.0, 121)

    def union(t: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        solid = nose_distance(start + t[:, None] * ray)
        return _smooth_minimum(solid, 0.92 * t, 5.0)

    values = np.stack([union(np.full(len(start), t)) for t in travel])
    first = np.argmax(values < 0.0, axis=0)
    low, high = travel[first], travel[np.maximum(first - 1, 0)]
    for _ in range(24):
        middle = 0.5 * (low + high)
        inside = union(middle) < 0.0
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    moved = points.copy()
    moved[near] = start + low[:, None] * ray
    return moved


def exterior(cage: Cage, parameters: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
    """Mean skin position (mm) at cage parameters (s, phi), without lids, lips and ears."""
    p = cage.point(parameters[:, 0], parameters[:, 1])
    p[np.abs(p[:, 0]) < 1e-9, 0] = 0.0
    x, y, z = np.abs(p[:, 0]), p[:, 1], p[:, 2]
    front = smoothstep(z, 10.0, 40.0)
    dz = (
        1.9 * bump(x, y, (17.0, 16.0), (12.0, 6.0))
        + 1.2 * bump(x, y, (36.0, 15.0), (9.0, 6.0))
        - 1.2 * bump(x, y, (0.0, 3.0), (7.0, 7.0))
        - 9.0 * bump(x, y, (30.5, -0.5), (15.5, 10.0))
        - 4.5 * bump(x, y, (16.5, -1.5), (5.0, 5.5))
        - 2.2 * bump(x, y, (47.0, 0.0), (6.0, 6.0))
        - 1.5 * bump(x, y, (24.0, -17.0), (9.0, 5.0))
        + 4.2 * bump(x, y, (43.0, -23.0), (14.0, 11.0))
        - 2.0 * bump(x, y, (44.0, -58.0), (12.0, 14.0))
        + 2.2 * bump(x, y, (0.0, -62.0), (21.0, 13.0))
        - 3.6 * bump(x, y, (0.0, -84.0), (17.0, 5.0))
        + 4.6 * bump(x, y, (0.0, -100.0), (15.0, 9.0))
        - 0.9 * bump(x, y, (0.0, -51.0), (2.6, 5.0))
        + 0.7 * bump(x, y, (5.6, -51.0), (2.2, 5.0))
        + 1.6 * bump(x, y, (30.0, 52.0), (18.0, 16.0))
    )
    # the fold from the wing of the nose to the corner of the mouth
    along = np.clip((-38.0 - y) / 26.0, 0.0, 1.2)
    fold = x - (18.5 + 12.5 * along)
    fade = smoothstep(y, -34.0, -42.0) * smoothstep(y, -72.0, -60.0)
    dz += fade * (
        -1.3 * np.exp(-0.5 * (fold / 3.2) ** 2) + 1.1 * np.exp(-0.5 * ((fold - 8) / 6) ** 2)
    )
    p[:, 2] += front * dz
    # temples hollow, zygomatic arch, jaw angle
    side = np.sign(p[:, 0])
    p[:, 0] += side * (
        -2.6 * bump(z, y, (50.0, 14.0), (14.0, 14.0)) * smoothstep(x, 25.0, 50.0)
        + 1.1 * bump(z, y, (34.0, -17.0), (22.0, 9.0)) * smoothstep(x, 25.0, 50.0)
        + 1.2 * bump(z, y, (8.0, -72.0), (12.0, 12.0)) * smoothstep(x, 25.0, 45.0)
    )
    # throat: larynx and the two cords from mastoid to sternum
    throat = smoothstep(y, -118.0, -135.0) * smoothstep(z, 0.0, 20.0)
    p[:, 2] += throat * 1.6 * bump(x, y, (0.0, -150.0), (7.0, 9.0))
    cord = x - (38.0 - 26.0 * np.clip((-128.0 - y) / 70.0, 0.0, 1.0))
    p[:, 2] += throat * 2.0 * np.exp(-0.5 * (cord / 7.0) ** 2)
    return _raise_nose(p)


def nostril_rings(outer: Float[np.ndarray, "k 3"], rings: int) -> Float[np.ndarray, "m 3"]:
    """Rings of a left nostril's pit inside its rim, then the closing point."""
    centre = outer.mean(axis=0)
    axis = np.array([-0.05, 0.9, -0.42])
    axis /= np.linalg.norm(axis)
    shrink = np.array([0.80, 0.74, 0.66, 0.5])[:rings]
    depth = np.array([0.9, 3.6, 7.5, 10.5])[:rings]
    flat = outer - centre
    flat -= (flat @ axis)[:, None] * axis * 0.25
    parts = [centre + scale * flat + deep * axis for scale, deep in zip(shrink, depth, strict=True)]
    return np.concatenate([*parts, (centre + (depth[-1] + 0.6) * axis)[None]])


def eye_rings(
    cage: Cage, outer_xy: Float[np.ndarray, "k 2"], fractions: tuple[float, ...]
) -> Float[np.ndarray, "m 3"]:
    """Rings of the left eye from the orbit inward to the lid margin, its inner edge and the cup.

    Args:
        cage: The surface that the lids grow out of.
        outer_xy: The orbit ring on the (x, y) domain plane (mm), counter-clockwise from +x.
        fractions: How far each lid ring is on its way from the orbit (0) to the margin (1).
    """
    angle = 2.0 * np.pi * np.arange(len(outer_xy)) / len(outer_xy)
    margin = lid_margin(angle)
    parts = []
    for fraction in fractions:
        xy = (1.0 - fraction) * outer_xy + fraction * margin
        found = cage.locate((0, 1), xy, "front")
        p = exterior(cage, found)
        offset = xy - EYE_CENTRE_MM[:2]
        square = (offset**2).sum(axis=1)
        inside = LID_RADIUS_MM**2 - square
        edge = 6.0
        height = np.where(
            inside > edge,
            np.sqrt(np.maximum(inside, edge)),
            np.sqrt(edge) + (inside - edge) / (2.0 * np.sqrt(edge)),
        )
        weight = smoothstep(np.array([fraction]), 0.0, 0.35)[0]
        lid = soft_maximum(p[:, 2], EYE_CENTRE_MM[2] + height, 0.9 + 1.6 * (1.0 - fraction))
        # a crease above the upper lid
        crease = 0.9 * np.exp(-0.5 * ((fraction - 0.55) / 0.12) ** 2) * np.clip(np.sin(angle), 0, 1)
        p[:, 2] += weight * (lid - p[:, 2]) - crease
        p[:, :2] = xy
        parts.append(p)
    rim = parts[-1]
    radial = rim - EYE_CENTRE_MM
    radius = np.linalg.norm(radial, axis=1, keepdims=True)
    radial /= radius
    # the lid's inner edge lies on the eyeball; at the corners it only turns inward
    inner = np.maximum(radius - 1.5, EYE_RADIUS_MM + 0.12)
    parts.append(EYE_CENTRE_MM + inner * radial)
    polar = np.arccos(np.clip(radial[:, 2], -1.0, 1.0))
    turn = np.arctan2(radial[:, 1], radial[:, 0])
    for share, far in ((0.28, 13.0), (0.62, 14.4)):
        bent = polar + share * (np.pi - polar)
        sphere = np.stack(
            [np.sin(bent) * np.cos(turn), np.sin(bent) * np.sin(turn), np.cos(bent)], axis=1
        )
        parts.append(EYE_CENTRE_MM + np.maximum(far, inner - 0.6) * sphere)
    parts.append((EYE_CENTRE_MM - np.array([0.0, 0.0, 15.0]))[None])
    return np.concatenate(parts)


def lid_margin(angle: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n 2"]:
    """The almond of the left eye's opening (mm): inner corner at angle pi, outer at 0."""
    u = np.cos(angle)
    x = 31.2 + 14.5 * u
    upper = 4.9 * (1.0 - np.abs(u + 0.10 * (1 - u * u)) ** 2.2) ** 0.85
    lower = -4.5 * (1.0 - np.abs(u - 0.12 * (1 - u * u)) ** 2.4) ** 0.9
    y = np.where(np.sin(angle) >= 0.0, upper, lower)
    gap = 0.25 * np.sign(np.sin(angle)) * (np.abs(np.sin(angle)) > 1e-9)
    return np.stack([x, y + gap + 0.9 * u - 0.3], axis=1)
