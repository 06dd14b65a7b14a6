"""Procedural backgrounds: what stands, out of focus, behind the head."""

import numpy as np
from jaxtyping import Float

from models.procedural.scene import Background

_CANVAS = 56


def _waves(
    rng: np.random.Generator, height: int, width: int, cell: float, octaves: int
) -> Float[np.ndarray, "h w"]:
    """Fractal value noise in about [-1, 1], by resizing random grids."""
    import cv2

    total = np.zeros((height, width), dtype=np.float32)
    weight = 0.0
    for octave in range(octaves):
        n = max(2, int(np.ceil(max(height, width) / cell * 2**octave)) + 2)
        grid = rng.uniform(-1, 1, (n, n)).astype(np.float32)
        size = max(height, width)
        total += (
            0.5**octave
            * cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)[:height, :width]
        )
        weight += 0.5**octave
    return total / weight


def _bokeh(
    rng: np.random.Generator,
    base: Float[np.ndarray, "h w 3"],
    colours: Float[np.ndarray, "c 3"],
    count: int,
) -> None:
    """Scatter soft discs and boxes over a canvas, in place."""
    height, width, _ = base.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    for _ in range(count):
        cx, cy = rng.uniform(0, width), rng.uniform(0, height)
        radius = rng.uniform(0.04, 0.26) * width
        colour = colours[int(rng.integers(len(colours)))] * rng.uniform(0.5, 1.6)
        if rng.random() < 0.5:
            distance = np.hypot(x - cx, y - cy) - radius
        else:
            tall = rng.uniform(0.6, 4.0)
            distance = np.maximum(np.abs(x - cx), np.abs(y - cy) / tall) - 0.6 * radius
        cover = np.clip(0.5 - distance / (0.08 * width), 0, 1) * rng.uniform(0.35, 0.95)
        base += cover[..., None] * (colour - base)


def paint_background(background: Background, height: int, width: int) -> Float[np.ndarray, "h w 3"]:
    """Paint a background in linear RGB.

    Args:
        background: Kind, palette and seed; the same three give the same picture.
        height: Rows.
        width: Columns.

    Raises:
        ValueError: The kind is unknown.
    """
    import cv2

    rng = np.random.default_rng([background.seed, 11])
    colours = background.colours.astype(np.float32)
    n = _CANVAS
    rows = np.linspace(0, 1, n, dtype=np.float32)[:, None, None]
    canvas: Float[np.ndarray, "h w 3"] = np.tile(colours[0], (n, n, 1))
    if background.kind == "plain":
        canvas = canvas * (1 + 0.06 * _waves(rng, n, n, 30, 1)[..., None])
    elif background.kind == "gradient":
        angle = rng.uniform(0, 2 * np.pi)
        y, x = np.mgrid[0:n, 0:n].astype(np.float32) / n - 0.5
        t = np.clip(0.5 + x * np.cos(angle) + y * np.sin(angle), 0, 1)[..., None]
        canvas = colours[0] * (1 - t) + colours[1] * t
    elif background.kind == "bokeh":
        canvas = canvas * (1 - 0.3 * rows)
        _bokeh(rng, canvas, colours, 18)
    elif background.kind == "wall":
        canvas = canvas * (1 + 0.25 * _waves(rng, n, n, 12, 3)[..., None])
        _bokeh(rng, canvas, colours, 3)
    elif background.kind == "outdoor":
        sky = np.array([0.55, 0.70, 0.92], dtype=np.float32) * rng.uniform(0.5, 1.0)
        green = np.array([0.10, 0.17, 0.05], dtype=np.float32) * rng.uniform(0.5, 2.0)
        horizon = rng.uniform(0.2, 0.7) + 0.12 * _waves(rng, n, n, 14, 2)[..., None]
        t = np.clip((rows - horizon) / 0.08 + 0.5, 0, 1)
        leaves = 1 + 0.8 * _waves(rng, n, n, 8, 3)[..., None]
        canvas = sky * (1 - t) + green * leaves * t
    elif background.kind == "studio":
        y, x = np.mgrid[0:n, 0:n].astype(np.float32) / n - 0.5
        glow = np.exp(-(x**2 + (y + 0.1) ** 2) / 0.18)[..., None]
        canvas = canvas * (0.45 + 0.75 * glow) * (1 + 0.05 * _waves(rng, n, n, 20, 2)[..., None])
    else:
        raise ValueError(
            f"paint_background expected a kind of BACKGROUND_KINDS, got {background.kind!r}."
        )
    picture = cv2.resize(
        np.ascontiguousarray(canvas, dtype=np.float32),
        (width, height),
        interpolation=cv2.INTER_CUBIC,
    )
    grain = 0.06 if background.kind in ("wall", "outdoor") else 0.015
    coarse = _waves(rng, height, width, max(height, width) / 40.0, 2)
    return np.asarray(np.clip(picture * (1 + grain * coarse[..., None]), 0.0, 4.0))
