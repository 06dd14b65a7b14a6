"""The vector steps against the same arithmetic in NumPy, bit for bit."""

import numpy as np
import pytest

from models.rendering.jit import kernel
from models.rendering.lanes import (
    LINE_BYTES,
    blend_2,
    blend_3,
    clear_line,
    fetch,
    finish_clearing,
    place_3,
)


@kernel
def placed(base, offset, camera, out, seen):
    for point in range(len(seen)):
        start = np.uint64(3 * point)
        fetch(offset, start + np.uint64(512))  # past the end: asking for it is allowed
        seen[point] = place_3(base, offset, start, camera, out)


@kernel
def blended(values, weights, out):
    p, q, r = weights
    blend_3(values, np.uint64(0), np.uint64(3), np.uint64(6), p, q, r, out, np.uint64(0))


@kernel
def blended_pair(values, weights, out):
    p, q, r = weights
    blend_2(values, np.uint64(0), np.uint64(2), np.uint64(4), p, q, r, out, np.uint64(0))


@kernel
def cleared(values, start):
    clear_line(values, np.uint64(start))
    finish_clearing()


@pytest.mark.parametrize("seed", range(4))
def test_placed_points_are_the_affine_image_to_the_bit(seed: int):
    rng = np.random.default_rng(seed)
    base, offset = (rng.normal(scale=90, size=(41, 3)).astype(np.float32) for _ in range(2))
    matrix, shift = rng.normal(size=(3, 3)), rng.normal(scale=200, size=3)
    camera = np.zeros((4, 4))
    camera[:3, :3], camera[3, :3] = matrix.T, shift
    out, seen = np.full(3 * 41 + 1, 7.0, np.float32), np.empty((41, 2), np.float32)
    placed(base.reshape(-1), offset.reshape(-1), camera.reshape(-1), out, seen)
    x, y, z = (base + offset).T.astype(np.float64)
    expected = [matrix[k, 0] * x + matrix[k, 1] * y + matrix[k, 2] * z + shift[k] for k in range(3)]
    expected = np.stack(expected, axis=1).astype(np.float32)
    np.testing.assert_array_equal(out[:-1].reshape(-1, 3), expected)
    np.testing.assert_array_equal(seen, expected[:, :2])
    assert out[-1] == 7.0  # three numbers are written, not four


def test_nan_stays_where_it_is():
    base, offset = np.zeros(6, np.float32), np.zeros(6, np.float32)
    offset[1] = np.nan
    out, seen = np.empty(6, np.float32), np.empty((2, 2), np.float32)
    placed(base, offset, np.eye(4).reshape(-1), out, seen)
    assert np.isnan(out[1])
    assert not np.isnan(out[3:]).any()


def test_blended_numbers_are_rounded_one_by_one():
    rng = np.random.default_rng(3)
    values, weights = rng.normal(size=9).astype(np.float32), rng.random(3).astype(np.float32)
    out = np.full(4, 7.0, np.float32)
    blended(values, tuple(weights), out)
    p, q, r = weights
    np.testing.assert_array_equal(out[:3], p * values[:3] + q * values[3:6] + r * values[6:])
    assert out[3] == 7.0


def test_a_pair_of_numbers_is_blended_and_no_third():
    rng = np.random.default_rng(4)
    values, weights = rng.normal(size=6).astype(np.float32), rng.random(3)
    out = np.full(3, 7.0, np.float32)
    blended_pair(values, tuple(weights), out)
    p, q, r = weights
    expected = (p * values[:2] + q * values[2:4] + r * values[4:]).astype(np.float32)
    np.testing.assert_array_equal(out[:2], expected)
    assert out[2] == 7.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_cache_line_is_cleared(dtype):
    line = LINE_BYTES // np.dtype(dtype).itemsize
    values = np.full(5 * line, 7.0, dtype)
    begin = -values.ctypes.data % LINE_BYTES // values.itemsize + line
    cleared(values, begin)
    expected = np.full(5 * line, 7.0)
    expected[begin : begin + line] = 0.0
    np.testing.assert_array_equal(values, expected)
