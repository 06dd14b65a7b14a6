"""Compiled loops of the CPU rasteriser: what the seen triangle has at a pixel, and gradients of it.

The perspective-correct barycentrics of a pixel are e / sum(e), with the edge values e of
:mod:`models.rendering.rasterize_kernels` for the pixel moved to the origin, which keeps them exact
for triangles smaller than a pixel. Outside the triangle they are continued (Genova et al. 2018,
3.2.1).
"""

from typing import no_type_check

import numpy as np

from models.rendering.jit import kernel, part
from models.rendering.lanes import (
    LINE_BYTES,
    blend_2,
    blend_4,
    blend_8,
    clear_line,
    fetch,
    finish_clearing,
    unblend_4,
    unblend_8,
)
from models.rendering.triangle_lanes import weights_3

LARGE_BYTES = 1 << 21
"""Of a picture: what no core's own caches hold."""


@part
@no_type_check
def edges_at(
    clip: np.ndarray, corners: tuple[int, int, int], px: float, py: float
) -> tuple[
    tuple[float, float, float],
    tuple[float, float, float],
    tuple[float, float, float],
    tuple[float, float, float],
]:
    """x, y (the pixel moved to the origin) and w of three corners, and the edge values."""
    i0, i1, i2 = corners
    w0 = np.float64(clip[i0, 3])
    w1 = np.float64(clip[i1, 3])
    w2 = np.float64(clip[i2, 3])
    x0 = clip[i0, 0] - px * w0
    x1 = clip[i1, 0] - px * w1
    x2 = clip[i2, 0] - px * w2
    y0 = clip[i0, 1] - py * w0
    y1 = clip[i1, 1] - py * w1
    y2 = clip[i2, 1] - py * w2
    edges = x1 * y2 - x2 * y1, x2 * y0 - x0 * y2, x0 * y1 - x1 * y0
    return (x0, x1, x2), (y0, y1, y2), (w0, w1, w2), edges


@part
@no_type_check
def pass_to_clip(
    corners: tuple[int, int, int],
    x: tuple[float, float, float],
    y: tuple[float, float, float],
    w: tuple[float, float, float],
    e: tuple[float, float, float],
    weights: tuple[float, float, float],
    to_weights: tuple[float, float, float],
    px: float,
    py: float,
    area_scale: float,
    minimum_area_px2: float,
    out: np.ndarray,
) -> None:
    """Add what the gradient of one pixel's barycentrics means for its corners to ``out`` (V, 4)."""
    determinant = w[0] * e[0] + w[1] * e[1] + w[2] * e[2]
    depth_product = w[0] * w[1] * w[2]
    too_small = depth_product > 0.0 and (
        abs(determinant) * area_scale < minimum_area_px2 * depth_product
    )
    if not (determinant == 0.0 or too_small):
        i0, i1, i2 = corners
        q0, q1, q2 = np.float64(weights[0]), np.float64(weights[1]), np.float64(weights[2])
        g0, g1, g2 = np.float64(to_weights[0]), np.float64(to_weights[1]), np.float64(to_weights[2])
        mean = g0 * q0 + g1 * q1 + g2 * q2
        g0 -= mean
        g1 -= mean
        g2 -= mean
        lx = (
            g0 * (y[1] * w[2] - y[2] * w[1])
            + g1 * (y[2] * w[0] - y[0] * w[2])
            + g2 * (y[0] * w[1] - y[1] * w[0])
        )
        ly = (
            g0 * (x[2] * w[1] - x[1] * w[2])
            + g1 * (x[0] * w[2] - x[2] * w[0])
            + g2 * (x[1] * w[0] - x[0] * w[1])
        )
        lx /= -determinant
        ly /= -determinant
        lw = -(px * lx + py * ly)
        out[i0, 0] += lx * q0
        out[i0, 1] += ly * q0
        out[i0, 3] += lw * q0
        out[i1, 0] += lx * q1
        out[i1, 1] += ly * q1
        out[i1, 3] += lw * q1
        out[i2, 0] += lx * q2
        out[i2, 1] += ly * q2
        out[i2, 3] += lw * q2


@kernel
@no_type_check
def backward(
    clip: np.ndarray,
    faces: np.ndarray,
    ids: np.ndarray,
    bary: np.ndarray,
    gradient: np.ndarray,
    minimum_area_px2: float,
    out: np.ndarray,
) -> None:
    """Add d loss / d clip of one image to ``out`` (V, 4), float64."""
    height, width = ids.shape
    area_scale = 0.125 * width * height
    for row in range(np.uint32(height)):
        py = 1.0 - (row + 0.5) * (2.0 / height)
        for column in range(np.uint32(width)):
            if ids[row, column] < 0:
                continue
            face = np.uint32(ids[row, column])
            px = (column + 0.5) * (2.0 / width) - 1.0
            corners = (
                np.uint32(faces[face, 0]),
                np.uint32(faces[face, 1]),
                np.uint32(faces[face, 2]),
            )
            x, y, w, e = edges_at(clip, corners, px, py)
            weights = bary[row, column, 0], bary[row, column, 1], bary[row, column, 2]
            given = gradient[row, column, 0], gradient[row, column, 1], gradient[row, column, 2]
            pass_to_clip(
                corners, x, y, w, e, weights, given, px, py, area_scale, minimum_area_px2, out
            )


@part
@no_type_check
def blend(
    values: np.ndarray,
    places: tuple[int, int, int],
    weights: tuple[float, float, float],
    channels: int,
    out: np.ndarray,
    start: int,
) -> None:
    """Write one pixel's ``channels`` from ``start`` on, given the places of its corners' values."""
    i, j, k = places
    p, q, r = weights
    c = np.uint64(0)
    while c + np.uint64(8) <= channels:
        blend_8(values, i + c, j + c, k + c, p, q, r, out, start + c)
        c += np.uint64(8)
    if c + np.uint64(4) <= channels:
        blend_4(values, i + c, j + c, k + c, p, q, r, out, start + c)
        c += np.uint64(4)
    if c + np.uint64(2) <= channels:
        blend_2(values, i + c, j + c, k + c, p, q, r, out, start + c)
        c += np.uint64(2)
    while c < channels:
        out[start + c] = p * values[i + c] + q * values[j + c] + r * values[k + c]
        c += np.uint64(1)


@part
@no_type_check
def places_of(corners: tuple[int, int, int], channels: int) -> tuple[int, int, int]:
    """Where the corners' values begin in the flat array of all."""
    i0, i1, i2 = corners
    return np.uint64(i0) * channels, np.uint64(i1) * channels, np.uint64(i2) * channels


@kernel
@no_type_check
def interpolate(
    attributes: np.ndarray, faces: np.ndarray, ids: np.ndarray, bary: np.ndarray, out: np.ndarray
) -> None:
    """Set ``out`` (H, W, C) of one image, zero where nothing is seen."""
    height, width = ids.shape
    channels, start = np.uint64(attributes.shape[1]), np.uint64(0)
    values, drawn = attributes.reshape(-1), out.reshape(-1)
    for row in range(np.uint32(height)):
        drawn[start : start + channels * np.uint64(width)] = 0.0
        for column in range(np.uint32(width)):
            if ids[row, column] < 0:
                start += channels
                continue
            face = np.uint32(ids[row, column])
            corners = (
                np.uint32(faces[face, 0]),
                np.uint32(faces[face, 1]),
                np.uint32(faces[face, 2]),
            )
            weights = bary[row, column, 0], bary[row, column, 1], bary[row, column, 2]
            blend(values, places_of(corners, channels), weights, channels, drawn, start)
            start += channels


@part
@no_type_check
def weights_at(
    flat_clip: np.ndarray, corners: tuple[int, int, int], px: float, py: float
) -> tuple[float, float, float]:
    """Perspective-correct barycentrics from pixel-relative edges, which lose no digits."""
    i0, i1, i2 = corners
    four = np.uint64(4)
    return weights_3(
        flat_clip, np.uint64(i0) * four, np.uint64(i1) * four, np.uint64(i2) * four, px, py
    )


@kernel
@no_type_check
def barycentrics(clip: np.ndarray, faces: np.ndarray, ids: np.ndarray, bary: np.ndarray) -> None:
    """Set ``bary`` (H, W, 3) of one image, zero where nothing is seen."""
    height, width = ids.shape
    flat_clip = clip.reshape(-1)
    for row in range(np.uint32(height)):
        py = 1.0 - (row + 0.5) * (2.0 / height)
        for column in range(np.uint32(width)):
            if ids[row, column] < 0:
                bary[row, column, 0] = 0.0
                bary[row, column, 1] = 0.0
                bary[row, column, 2] = 0.0
                continue
            face = np.uint32(ids[row, column])
            px = (column + 0.5) * (2.0 / width) - 1.0
            corners = (
                np.uint32(faces[face, 0]),
                np.uint32(faces[face, 1]),
                np.uint32(faces[face, 2]),
            )
            q0, q1, q2 = weights_at(flat_clip, corners, px, py)
            bary[row, column, 0] = q0
            bary[row, column, 1] = q1
            bary[row, column, 2] = q2


@part
@no_type_check
def clear(values: np.ndarray, start: int, stop: int) -> None:
    """Zero ``values[start:stop]``, flat; whole cache lines of a large array past the caches.

    A line that is not in the caches is read before it is stored to, in vain, and a large picture
    takes longer to zero so than to draw. A small one is left in the caches for its reader.
    """
    size = np.uint64(values.itemsize)
    line, address = np.uint64(LINE_BYTES) // size, np.uint64(values.ctypes.data)
    if (values.nbytes > LARGE_BYTES) & (address % size == 0):
        into_line = (address // size + start) % line
        first = min(start + (line - into_line) % line, stop)
        values[start:first] = 0.0
        start = first
        while start + line <= stop:
            clear_line(values, start)
            start += line
    values[start:stop] = 0.0


@part
@no_type_check
def list_seen(
    ids: np.ndarray, faces: np.ndarray, row: int, left: int, columns: int, seen: np.ndarray
) -> int:
    """Put those columns of a row that see something into ``seen``; their number."""
    flat_faces, count = faces.reshape(-1), np.uint32(0)
    for column in range(np.uint32(left), np.uint32(left + columns)):
        face = ids[row, column]
        fetch(flat_faces, np.uint64(3) * np.uint64(max(face, 0)))
        seen[count] = column
        count = np.uint32(count + np.uint32(face >= 0))
    return count


@kernel
@no_type_check
def resolve(
    clip: np.ndarray,
    faces: np.ndarray,
    ids: np.ndarray,
    attributes: np.ndarray,
    rectangle: tuple[int, int, int, int],
    out: np.ndarray,
) -> None:
    """Set ``out`` (H, W, C) of one image: barycentrics and values in one pass.

    ``rectangle`` has the top, left, height and width of what holds all that is seen. A row is gone
    through three times, so that triangles, then vertices are asked for well ahead of their use.
    """
    height, width = ids.shape
    top, left, rows, columns = rectangle
    rounded, flat_clip = clip.dtype.type, clip.reshape(-1)
    channels, done = np.uint64(attributes.shape[1]), np.uint64(0)
    values, drawn = attributes.reshape(-1), out.reshape(-1)
    seen = np.empty(columns + 1, dtype=np.uint32)
    corners = np.empty((columns + 1, 3), dtype=np.uint32)
    for row in range(np.uint32(top), np.uint32(top + rows)):
        count = list_seen(ids, faces, row, left, columns, seen)
        for index in range(np.uint32(count)):
            face = np.uint32(ids[row, seen[index]])
            for corner in range(3):
                vertex = np.uint32(faces[face, corner])
                corners[index, corner] = vertex
                fetch(flat_clip, np.uint64(4) * np.uint64(vertex))
                fetch(values, channels * np.uint64(vertex))
        first_of_row = channels * np.uint64(row) * np.uint64(width)
        start = first_of_row + channels * np.uint64(left)
        clear(drawn, done, start)
        done = start + channels * np.uint64(columns)
        drawn[start:done] = 0.0
        py = 1.0 - (row + 0.5) * (2.0 / height)
        for index in range(np.uint32(count)):
            column = seen[index]
            px = (column + 0.5) * (2.0 / width) - 1.0
            here = first_of_row + channels * np.uint64(column)
            of_pixel = corners[index, 0], corners[index, 1], corners[index, 2]
            q0, q1, q2 = weights_at(flat_clip, of_pixel, px, py)
            # Rounded as ``barycentrics`` stores them.
            weights = rounded(q0), rounded(q1), rounded(q2)
            blend(values, places_of(of_pixel, channels), weights, channels, drawn, here)
    clear(drawn, done, np.uint64(drawn.size))
    finish_clearing()


@part
@no_type_check
def unblend(
    values: np.ndarray,
    places: tuple[int, int, int],
    weights: tuple[float, float, float],
    channels: int,
    gradient: np.ndarray,
    start: int,
    to_values: np.ndarray,
) -> tuple[float, float, float]:
    """Pass one pixel's gradient to its corners' values; its products with these."""
    i, j, k = places
    p, q, r = weights
    s0, s1, s2 = 0.0, 0.0, 0.0
    c = np.uint64(0)
    while c + np.uint64(8) <= channels:
        t0, t1, t2 = unblend_8(values, i + c, j + c, k + c, p, q, r, gradient, start + c, to_values)
        s0 += t0
        s1 += t1
        s2 += t2
        c += np.uint64(8)
    if c + np.uint64(4) <= channels:
        t0, t1, t2 = unblend_4(values, i + c, j + c, k + c, p, q, r, gradient, start + c, to_values)
        s0 += t0
        s1 += t1
        s2 += t2
        c += np.uint64(4)
    while c < channels:
        g = gradient[start + c]
        to_values[i + c] += g * p
        to_values[j + c] += g * q
        to_values[k + c] += g * r
        s0 += g * values[i + c]
        s1 += g * values[j + c]
        s2 += g * values[k + c]
        c += np.uint64(1)
    return s0, s1, s2


@kernel
@no_type_check
def interpolate_backward(
    attributes: np.ndarray,
    faces: np.ndarray,
    ids: np.ndarray,
    bary: np.ndarray,
    gradient: np.ndarray,
    to_attributes: np.ndarray,
    to_bary: np.ndarray,
) -> None:
    """Add the gradients of one image to ``to_attributes`` (V, C) and set ``to_bary`` (H, W, 3)."""
    height, width = ids.shape
    channels, start = np.uint64(attributes.shape[1]), np.uint64(0)
    values, to_values = attributes.reshape(-1), to_attributes.reshape(-1)
    given = gradient.reshape(-1)
    for row in range(np.uint32(height)):
        for column in range(np.uint32(width)):
            s0, s1, s2 = 0.0, 0.0, 0.0
            if ids[row, column] >= 0:
                face = np.uint32(ids[row, column])
                corners = (
                    np.uint32(faces[face, 0]),
                    np.uint32(faces[face, 1]),
                    np.uint32(faces[face, 2]),
                )
                weights = bary[row, column, 0], bary[row, column, 1], bary[row, column, 2]
                places = places_of(corners, channels)
                s0, s1, s2 = unblend(values, places, weights, channels, given, start, to_values)
            to_bary[row, column, 0] = s0
            to_bary[row, column, 1] = s1
            to_bary[row, column, 2] = s2
            start += channels


@kernel
@no_type_check
def resolve_backward(
    clip: np.ndarray,
    faces: np.ndarray,
    ids: np.ndarray,
    attributes: np.ndarray,
    gradient: np.ndarray,
    minimum_area_px2: float,
    to_attributes: np.ndarray,
    to_clip: np.ndarray,
) -> None:
    """Add the gradients of one image to ``to_attributes`` (V, C) and ``to_clip`` (V, 4), float64.

    ``interpolate_backward`` and ``backward`` in one pass, with the barycentrics found again:
    to the last bit the same, and quicker than reading them.
    """
    height, width = ids.shape
    rounded = clip.dtype.type
    area_scale = 0.125 * width * height
    channels, start = np.uint64(attributes.shape[1]), np.uint64(0)
    values, to_values = attributes.reshape(-1), to_attributes.reshape(-1)
    given = gradient.reshape(-1)
    for row in range(np.uint32(height)):
        py = 1.0 - (row + 0.5) * (2.0 / height)
        for column in range(np.uint32(width)):
            here = start
            start += channels
            if ids[row, column] < 0:
                continue
            face = np.uint32(ids[row, column])
            px = (column + 0.5) * (2.0 / width) - 1.0
            i0 = np.uint32(faces[face, 0])
            i1 = np.uint32(faces[face, 1])
            i2 = np.uint32(faces[face, 2])
            x, y, w, e = edges_at(clip, (i0, i1, i2), px, py)
            inverse = 1.0 / (e[0] + e[1] + e[2])
            weights = rounded(e[0] * inverse), rounded(e[1] * inverse), rounded(e[2] * inverse)
            places = places_of((i0, i1, i2), channels)
            s0, s1, s2 = unblend(values, places, weights, channels, given, here, to_values)
            to_weights = rounded(s0), rounded(s1), rounded(s2)
            pass_to_clip(
                (i0, i1, i2), x, y, w, e, weights, to_weights, px, py, area_scale,
                minimum_area_px2, to_clip,
            )  # fmt: skip
