"""CPU rasteriser: triangle ids by edge functions, then barycentrics of the visible pixels.

With M = [x; y; w] of one triangle (one column per corner), the edge values at a
pixel p are e = adj(M) (px, py, 1); they are linear in p, antisymmetric on a
shared edge, and sum(e * w) = det M everywhere (Olano & Greer 1997). After the
sign of det M is made positive, p is covered where all e >= 0, the
perspective-correct barycentrics are e / sum(e), and z/w is the linear function
sum(e * z) / det M. No division by w happens, so corners behind the camera need
no clipping.
"""

from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float, Int, Integer

from models.rendering.jit import kernel

MINIMUM_AREA_PX2 = 0.01
"""Triangles smaller than this (in pixels squared) pass no gradient."""


class Fragments(NamedTuple):
    """What is seen at each pixel.

    Attributes:
        ids: (B, H, W) int32 triangle index, -1 where nothing is.
        bary: (B, H, W, 3) perspective-correct barycentrics, zero where nothing is.
        depth: (B, H, W) z/w, 1 where nothing is.
    """

    ids: Int[np.ndarray, "b h w"]
    bary: Float[np.ndarray, "b h w 3"]
    depth: Float[np.ndarray, "b h w"]


@kernel
@no_type_check
def _screen(clip: np.ndarray, height: int, width: int, place: np.ndarray) -> None:
    """Column and row of each vertex, pixel centres at integers; NaN where w <= 0."""
    for vertex in range(clip.shape[0]):
        w = np.float64(clip[vertex, 3])
        if w > 0.0:
            place[vertex, 0] = (clip[vertex, 0] / w + 1.0) * (0.5 * width) - 0.5
            place[vertex, 1] = (1.0 - clip[vertex, 1] / w) * (0.5 * height) - 0.5
        else:
            place[vertex, 0] = np.nan
            place[vertex, 1] = np.nan


@kernel
@no_type_check
def _visible(
    clip: np.ndarray,
    place: np.ndarray,
    faces: np.ndarray,
    cull: bool,
    ids: np.ndarray,
    depth: np.ndarray,
) -> None:
    """Fill ``ids`` and ``depth`` (H, W) of one image; equal depths go to the later triangle."""
    height, width = ids.shape
    step_x = 2.0 / width
    step_y = 2.0 / height
    for face in range(np.uint32(faces.shape[0])):
        i0 = np.uint32(faces[face, 0])
        i1 = np.uint32(faces[face, 1])
        i2 = np.uint32(faces[face, 2])
        u0 = place[i0, 0]
        u1 = place[i1, 0]
        u2 = place[i2, 0]
        left = 0
        right = width - 1
        top = 0
        bottom = height - 1
        if u0 == u0 and u1 == u1 and u2 == u2:
            v0 = place[i0, 1]
            v1 = place[i1, 1]
            v2 = place[i2, 1]
            low_u = min(u0, u1, u2) - 1e-7
            high_u = max(u0, u1, u2) + 1e-7
            low_v = min(v0, v1, v2) - 1e-7
            high_v = max(v0, v1, v2) + 1e-7
            if not (low_u <= right and high_u >= 0.0 and low_v <= bottom and high_v >= 0.0):
                continue
            if low_u > 0.0:
                left = int(np.ceil(low_u))
            if high_u < right:
                right = int(np.floor(high_u))
            if low_v > 0.0:
                top = int(np.ceil(low_v))
            if high_v < bottom:
                bottom = int(np.floor(high_v))
            if left > right or top > bottom:
                continue
        w0 = np.float64(clip[i0, 3])
        w1 = np.float64(clip[i1, 3])
        w2 = np.float64(clip[i2, 3])
        if w0 <= 0.0 and w1 <= 0.0 and w2 <= 0.0:
            continue
        x0 = np.float64(clip[i0, 0])
        x1 = np.float64(clip[i1, 0])
        x2 = np.float64(clip[i2, 0])
        y0 = np.float64(clip[i0, 1])
        y1 = np.float64(clip[i1, 1])
        y2 = np.float64(clip[i2, 1])
        # Rows of adj(M): edge i = a_i px + b_i py + c_i.
        a0 = y1 * w2 - y2 * w1
        a1 = y2 * w0 - y0 * w2
        a2 = y0 * w1 - y1 * w0
        b0 = x2 * w1 - x1 * w2
        b1 = x0 * w2 - x2 * w0
        b2 = x1 * w0 - x0 * w1
        c0 = x1 * y2 - x2 * y1
        c1 = x2 * y0 - x0 * y2
        c2 = x0 * y1 - x1 * y0
        determinant = c0 * w0 + c1 * w1 + c2 * w2
        if determinant < 0.0 and not cull:
            a0, a1, a2 = -a0, -a1, -a2
            b0, b1, b2 = -b0, -b1, -b2
            c0, c1, c2 = -c0, -c1, -c2
            determinant = -determinant
        if not (0.0 < determinant < np.inf):
            continue
        z0 = np.float64(clip[i0, 2]) / determinant
        z1 = np.float64(clip[i1, 2]) / determinant
        z2 = np.float64(clip[i2, 2]) / determinant
        az = a0 * z0 + a1 * z1 + a2 * z2
        bz = b0 * z0 + b1 * z1 + b2 * z2
        cz = c0 * z0 + c1 * z1 + c2 * z2
        for row in range(np.uint32(top), np.uint32(bottom + 1)):
            py = 1.0 - (row + 0.5) * step_y
            d0 = b0 * py + c0
            d1 = b1 * py + c1
            d2 = b2 * py + c2
            dz = bz * py + cz
            for column in range(np.uint32(left), np.uint32(right + 1)):
                px = (column + 0.5) * step_x - 1.0
                if a0 * px + d0 >= 0.0 and a1 * px + d1 >= 0.0 and a2 * px + d2 >= 0.0:
                    z = az * px + dz
                    if z >= -1.0 and z <= depth[row, column]:
                        depth[row, column] = z
                        ids[row, column] = face


@kernel
@no_type_check
def _barycentrics(clip: np.ndarray, faces: np.ndarray, ids: np.ndarray, bary: np.ndarray) -> None:
    """Fill ``bary`` (H, W, 3) of one image from pixel-relative edges, which lose no digits."""
    height, width = ids.shape
    for row in range(height):
        py = 1.0 - (row + 0.5) * (2.0 / height)
        for column in range(width):
            face = ids[row, column]
            if face < 0:
                continue
            px = (column + 0.5) * (2.0 / width) - 1.0
            i0 = faces[face, 0]
            i1 = faces[face, 1]
            i2 = faces[face, 2]
            x0 = clip[i0, 0] - px * clip[i0, 3]
            x1 = clip[i1, 0] - px * clip[i1, 3]
            x2 = clip[i2, 0] - px * clip[i2, 3]
            y0 = clip[i0, 1] - py * clip[i0, 3]
            y1 = clip[i1, 1] - py * clip[i1, 3]
            y2 = clip[i2, 1] - py * clip[i2, 3]
            e0 = x1 * y2 - x2 * y1
            e1 = x2 * y0 - x0 * y2
            e2 = x0 * y1 - x1 * y0
            total = e0 + e1 + e2
            bary[row, column, 0] = e0 / total
            bary[row, column, 1] = e1 / total
            bary[row, column, 2] = e2 / total


@kernel
@no_type_check
def _backward(
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
    for row in range(height):
        py = 1.0 - (row + 0.5) * (2.0 / height)
        for column in range(width):
            face = ids[row, column]
            if face < 0:
                continue
            px = (column + 0.5) * (2.0 / width) - 1.0
            i0 = faces[face, 0]
            i1 = faces[face, 1]
            i2 = faces[face, 2]
            w0 = np.float64(clip[i0, 3])
            w1 = np.float64(clip[i1, 3])
            w2 = np.float64(clip[i2, 3])
            x0 = clip[i0, 0] - px * w0
            x1 = clip[i1, 0] - px * w1
            x2 = clip[i2, 0] - px * w2
            y0 = clip[i0, 1] - py * w0
            y1 = clip[i1, 1] - py * w1
            y2 = clip[i2, 1] - py * w2
            determinant = (
                w0 * (x1 * y2 - x2 * y1) + w1 * (x2 * y0 - x0 * y2) + w2 * (x0 * y1 - x1 * y0)
            )
            if determinant == 0.0:
                continue
            depth_product = w0 * w1 * w2
            if depth_product > 0.0 and (
                abs(determinant) * area_scale < minimum_area_px2 * depth_product
            ):
                continue
            q0 = np.float64(bary[row, column, 0])
            q1 = np.float64(bary[row, column, 1])
            q2 = np.float64(bary[row, column, 2])
            g0 = np.float64(gradient[row, column, 0])
            g1 = np.float64(gradient[row, column, 1])
            g2 = np.float64(gradient[row, column, 2])
            mean = g0 * q0 + g1 * q1 + g2 * q2
            g0 -= mean
            g1 -= mean
            g2 -= mean
            lx = g0 * (y1 * w2 - y2 * w1) + g1 * (y2 * w0 - y0 * w2) + g2 * (y0 * w1 - y1 * w0)
            ly = g0 * (x2 * w1 - x1 * w2) + g1 * (x0 * w2 - x2 * w0) + g2 * (x1 * w0 - x0 * w1)
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
def _interpolate(
    attributes: np.ndarray, faces: np.ndarray, ids: np.ndarray, bary: np.ndarray, out: np.ndarray
) -> None:
    """Fill ``out`` (H, W, C) of one image."""
    height, width = ids.shape
    channels = attributes.shape[1]
    for row in range(height):
        for column in range(width):
            face = ids[row, column]
            if face < 0:
                continue
            i0 = faces[face, 0]
            i1 = faces[face, 1]
            i2 = faces[face, 2]
            q0 = bary[row, column, 0]
            q1 = bary[row, column, 1]
            q2 = bary[row, column, 2]
            for channel in range(channels):
                out[row, column, channel] = (
                    q0 * attributes[i0, channel]
                    + q1 * attributes[i1, channel]
                    + q2 * attributes[i2, channel]
                )


@kernel
@no_type_check
def _interpolate_backward(
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
    channels = attributes.shape[1]
    for row in range(height):
        for column in range(width):
            face = ids[row, column]
            if face < 0:
                continue
            i0 = faces[face, 0]
            i1 = faces[face, 1]
            i2 = faces[face, 2]
            q0 = bary[row, column, 0]
            q1 = bary[row, column, 1]
            q2 = bary[row, column, 2]
            s0 = 0.0
            s1 = 0.0
            s2 = 0.0
            for channel in range(channels):
                g = gradient[row, column, channel]
                s0 += g * attributes[i0, channel]
                s1 += g * attributes[i1, channel]
                s2 += g * attributes[i2, channel]
                to_attributes[i0, channel] += g * q0
                to_attributes[i1, channel] += g * q1
                to_attributes[i2, channel] += g * q2
            to_bary[row, column, 0] = s0
            to_bary[row, column, 1] = s1
            to_bary[row, column, 2] = s2


def rasterize_numba(
    clip: Float[np.ndarray, "b v 4"],
    faces: Integer[np.ndarray, "f 3"],
    height: int,
    width: int,
    *,
    cull: bool = False,
) -> Fragments:
    """Rasterise on the CPU; see ``models.rendering.rasterize.rasterize`` for the conventions.

    Edges and depths are computed in float64 whatever the input; ``bary`` and
    ``depth`` come back in the dtype of ``clip``.
    """
    clip = np.ascontiguousarray(clip)
    indices = np.ascontiguousarray(faces, dtype=np.int32)
    count = clip.shape[0]
    ids = np.full((count, height, width), -1, dtype=np.int32)
    depth = np.full((count, height, width), 1.0, dtype=np.float64)
    bary = np.zeros((count, height, width, 3), dtype=clip.dtype)
    place = np.empty((clip.shape[1], 2), dtype=np.float64)
    for image in range(count):
        _screen(clip[image], height, width, place)
        _visible(clip[image], place, indices, cull, ids[image], depth[image])
        _barycentrics(clip[image], indices, ids[image], bary[image])
    return Fragments(ids, bary, depth.astype(clip.dtype, copy=False))


def rasterize_numba_backward(
    clip: Float[np.ndarray, "b v 4"],
    faces: Integer[np.ndarray, "f 3"],
    ids: Int[np.ndarray, "b h w"],
    bary: Float[np.ndarray, "b h w 3"],
    gradient: Float[np.ndarray, "b h w 3"],
    *,
    minimum_area_px2: float = MINIMUM_AREA_PX2,
) -> Float[np.ndarray, "b v 4"]:
    """Gradient of a loss with respect to ``clip``, given its gradient with respect to ``bary``.

    The visible triangle is held fixed and its plane extended without bound, so a
    corner keeps its gradient when it moves across the pixel (Genova et al. 2018).
    With the pixel moved to the origin (X = x - px w, Y = y - py w), h = g - g.b:
    lx = -sum_i h_i (Y_j w_k - Y_k w_j) / det, ly likewise, lw = -(px lx + py ly),
    and each corner c receives b_c (lx, ly, 0, lw).
    """
    clip = np.ascontiguousarray(clip)
    indices = np.ascontiguousarray(faces, dtype=np.int32)
    out = np.zeros(clip.shape, dtype=np.float64)
    for image in range(clip.shape[0]):
        _backward(
            clip[image],
            indices,
            ids[image],
            bary[image],
            np.ascontiguousarray(gradient[image]),
            minimum_area_px2,
            out[image],
        )
    return out.astype(clip.dtype, copy=False)


def interpolate_numba(
    attributes: Float[np.ndarray, "b v c"],
    faces: Integer[np.ndarray, "f 3"],
    ids: Int[np.ndarray, "b h w"],
    bary: Float[np.ndarray, "b h w 3"],
) -> Float[np.ndarray, "b h w c"]:
    """Weighted sums of vertex attributes at the visible pixels, zero elsewhere."""
    attributes = np.ascontiguousarray(attributes)
    indices = np.ascontiguousarray(faces, dtype=np.int32)
    out = np.zeros((*ids.shape, attributes.shape[2]), dtype=attributes.dtype)
    for image in range(ids.shape[0]):
        _interpolate(attributes[image], indices, ids[image], bary[image], out[image])
    return out


def interpolate_numba_backward(
    attributes: Float[np.ndarray, "b v c"],
    faces: Integer[np.ndarray, "f 3"],
    ids: Int[np.ndarray, "b h w"],
    bary: Float[np.ndarray, "b h w 3"],
    gradient: Float[np.ndarray, "b h w c"],
) -> tuple[Float[np.ndarray, "b v c"], Float[np.ndarray, "b h w 3"]]:
    """Gradients of ``interpolate_numba`` with respect to the attributes and the barycentrics."""
    attributes = np.ascontiguousarray(attributes)
    indices = np.ascontiguousarray(faces, dtype=np.int32)
    to_attributes = np.zeros(attributes.shape, dtype=np.float64)
    to_bary = np.zeros_like(bary)
    for image in range(ids.shape[0]):
        _interpolate_backward(
            attributes[image],
            indices,
            ids[image],
            bary[image],
            np.ascontiguousarray(gradient[image]),
            to_attributes[image],
            to_bary[image],
        )
    return to_attributes.astype(attributes.dtype, copy=False), to_bary
