"""Smooth lattice noise for procedural albedo: one fixed table, shifted per person."""

from functools import cache
from typing import no_type_check

import numpy as np
from jaxtyping import Float

from models.rendering.jit import leaf

SIZE = 32


@cache
def noise_table() -> Float[np.ndarray, "32 32 32"]:
    """Uniform values in [-1, 1] on a periodic lattice; the same for everyone."""
    values = np.random.default_rng(20_260_101).uniform(-1.0, 1.0, (SIZE, SIZE, SIZE))
    return values.astype(np.float32)


def noise_shift(seed: int) -> Float[np.ndarray, "3"]:
    """Where in the lattice one person's noise begins."""
    return np.random.default_rng([seed, 7]).uniform(0.0, SIZE, 3)


@leaf
@no_type_check
def lattice_noise(table: np.ndarray, x: float, y: float, z: float) -> float:
    """Trilinear value noise with smooth steps, about uniform in [-0.8, 0.8], cell size 1."""
    fx = np.floor(x)
    fy = np.floor(y)
    fz = np.floor(z)
    tx = x - fx
    ty = y - fy
    tz = z - fz
    tx = tx * tx * (3.0 - 2.0 * tx)
    ty = ty * ty * (3.0 - 2.0 * ty)
    tz = tz * tz * (3.0 - 2.0 * tz)
    i0 = np.uint32(np.int64(fx) & 31)
    j0 = np.uint32(np.int64(fy) & 31)
    k0 = np.uint32(np.int64(fz) & 31)
    i1 = np.uint32((i0 + 1) & 31)
    j1 = np.uint32((j0 + 1) & 31)
    k1 = np.uint32((k0 + 1) & 31)
    a = table[i0, j0, k0] + tz * (table[i0, j0, k1] - table[i0, j0, k0])
    b = table[i0, j1, k0] + tz * (table[i0, j1, k1] - table[i0, j1, k0])
    c = table[i1, j0, k0] + tz * (table[i1, j0, k1] - table[i1, j0, k0])
    d = table[i1, j1, k0] + tz * (table[i1, j1, k1] - table[i1, j1, k0])
    e = a + ty * (b - a)
    f = c + ty * (d - c)
    return e + tx * (f - e)
