"""Compiled loops of the CPU rasteriser, one image each.

With M = [x; y; w] of one triangle (one column per corner), the edge values at a
pixel p are e = adj(M) (px, py, 1); they are linear in p, antisymmetric on a
shared edge, and sum(e * w) = det M everywhere (Olano & Greer 1997). After the
sign of det M is made positive, p is covered where all e >= 0, the
perspective-correct barycentrics are e / sum(e), and z/w is the linear function
sum(e * z) / det M. No division by w happens, so corners behind the camera need
no clipping.
"""

from typing import no_type_check

import numpy as np

from models.rendering.jit import kernel

BLOCK = 4096
"""Triangles boxed at a time: what is kept of them stays in the cache."""


@kernel
@no_type_check
def screen(clip: np.ndarray, height: int, width: int, place: np.ndarray) -> bool:
    """Column and row of each vertex, pixel centres at integers; NaN where w <= 0.

    Returns whether every w is 1, as orthographic cameras have it.
    """
    flat = True
    for vertex in range(clip.shape[0]):
        w = np.float64(clip[vertex, 3])
        flat &= w == 1.0
        if w > 0.0:
            place[vertex, 0] = (clip[vertex, 0] / w + 1.0) * (0.5 * width) - 0.5
            place[vertex, 1] = (1.0 - clip[vertex, 1] / w) * (0.5 * height) - 0.5
        else:
            place[vertex, 0] = np.nan
            place[vertex, 1] = np.nan
    return flat


@kernel
@no_type_check
def candidate_boxes(
    place: np.ndarray,
    faces: np.ndarray,
    start: int,
    stop: int,
    height: int,
    width: int,
    candidates: np.ndarray,
    boxes: np.ndarray,
) -> int:
    """List those of triangles start..stop whose box holds a pixel centre, and the boxes.

    Returns their number.

    Most triangles of a dense mesh fall between the pixels, unpredictably: they are
    overwritten, not branched around. A corner without a place makes the box the whole image.
    """
    last_column = np.float64(width - 1)
    last_row = np.float64(height - 1)
    count = np.uint32(0)
    for face in range(np.uint32(start), np.uint32(stop)):
        i0 = np.uint32(faces[face, 0])
        i1 = np.uint32(faces[face, 1])
        i2 = np.uint32(faces[face, 2])
        u0 = place[i0, 0]
        u1 = place[i1, 0]
        u2 = place[i2, 0]
        v0 = place[i0, 1]
        v1 = place[i1, 1]
        v2 = place[i2, 1]
        left = 0.0
        right = last_column
        top = 0.0
        bottom = last_row
        known = u0 + u1 + u2 + v0 + v1 + v2
        if known == known:
            left = max(left, np.ceil(min(u0, u1, u2) - 1e-7))
            right = min(right, np.floor(max(u0, u1, u2) + 1e-7))
            top = max(top, np.ceil(min(v0, v1, v2) - 1e-7))
            bottom = min(bottom, np.floor(max(v0, v1, v2) + 1e-7))
        kept = (left <= right) & (top <= bottom)
        candidates[count] = face
        boxes[count, 0] = np.int32(min(left, last_column))
        boxes[count, 1] = np.int32(max(right, -1.0)) + 1
        boxes[count, 2] = np.int32(min(top, last_row))
        boxes[count, 3] = np.int32(max(bottom, -1.0)) + 1
        count = np.uint32(count + np.uint32(kept))
    return count


@kernel
@no_type_check
def visible(
    clip: np.ndarray,
    place: np.ndarray,
    flat: bool,
    faces: np.ndarray,
    cull: bool,
    ids: np.ndarray,
    depth: np.ndarray,
) -> None:
    """Fill ``ids`` and ``depth`` (H, W) of one image; equal depths go to the later triangle.

    Written for triangles around a pixel in size: one branch rejects those between pixel
    centres, the winding's sign is a factor and not a branch, and z waits for a covered pixel.
    """
    height, width = ids.shape
    candidates = np.empty(BLOCK + 1, dtype=np.uint32)
    boxes = np.empty((BLOCK + 1, 4), dtype=np.int32)
    px = np.empty(width)
    py = np.empty(height)
    for column in range(width):
        px[column] = (column + 0.5) * (2.0 / width) - 1.0
    for row in range(height):
        py[row] = 1.0 - (row + 0.5) * (2.0 / height)
    for start in range(0, faces.shape[0], BLOCK):
        stop = min(start + BLOCK, faces.shape[0])
        count = candidate_boxes(place, faces, start, stop, height, width, candidates, boxes)
        for index in range(np.uint32(count)):
            face = candidates[index]
            i0 = np.uint32(faces[face, 0])
            i1 = np.uint32(faces[face, 1])
            i2 = np.uint32(faces[face, 2])
            x0 = np.float64(clip[i0, 0])
            x1 = np.float64(clip[i1, 0])
            x2 = np.float64(clip[i2, 0])
            y0 = np.float64(clip[i0, 1])
            y1 = np.float64(clip[i1, 1])
            y2 = np.float64(clip[i2, 1])
            # Rows of adj(M): edge i = a_i px + b_i py + c_i.
            c0 = x1 * y2 - x2 * y1
            c1 = x2 * y0 - x0 * y2
            c2 = x0 * y1 - x1 * y0
            if flat:
                a0 = y1 - y2
                a1 = y2 - y0
                a2 = y0 - y1
                b0 = x2 - x1
                b1 = x0 - x2
                b2 = x1 - x0
                determinant = c0 + c1 + c2
            else:
                w0 = np.float64(clip[i0, 3])
                w1 = np.float64(clip[i1, 3])
                w2 = np.float64(clip[i2, 3])
                if max(w0, w1, w2) <= 0.0:
                    continue
                a0 = y1 * w2 - y2 * w1
                a1 = y2 * w0 - y0 * w2
                a2 = y0 * w1 - y1 * w0
                b0 = x2 * w1 - x1 * w2
                b1 = x0 * w2 - x2 * w0
                b2 = x1 * w0 - x0 * w1
                determinant = c0 * w0 + c1 * w1 + c2 * w2
            sign = 1.0 if cull else np.copysign(1.0, determinant)
            if not ((sign * determinant > 0.0) & (abs(determinant) < np.inf)):
                continue
            z0 = np.float64(clip[i0, 2])
            z1 = np.float64(clip[i1, 2])
            z2 = np.float64(clip[i2, 2])
            left = np.uint32(boxes[index, 0])
            columns = np.uint32(boxes[index, 1]) - left
            row = np.uint32(boxes[index, 2])
            pixels = columns * (np.uint32(boxes[index, 3]) - row)
            column = left
            right = left + columns
            for _ in range(pixels):
                e0 = a0 * px[column] + (b0 * py[row] + c0)
                e1 = a1 * px[column] + (b1 * py[row] + c1)
                e2 = a2 * px[column] + (b2 * py[row] + c2)
                z = (e0 * z0 + e1 * z1 + e2 * z2) / determinant
                before = depth[row, column]
                inside = (sign * e0 >= 0.0) & (sign * e1 >= 0.0) & (sign * e2 >= 0.0)
                seen = inside & (z >= -1.0) & (z <= before)
                depth[row, column] = z if seen else before
                ids[row, column] = np.int32(face) if seen else ids[row, column]
                column = np.uint32(column + np.uint32(1))
                ended = column == right
                row = np.uint32(row + np.uint32(ended))
                column = left if ended else column


@kernel
@no_type_check
def barycentrics(clip: np.ndarray, faces: np.ndarray, ids: np.ndarray, bary: np.ndarray) -> None:
    """Fill ``bary`` (H, W, 3) of one image from pixel-relative edges, which lose no digits."""
    height, width = ids.shape
    for row in range(height):
        py = 1.0 - (row + 0.5) * (2.0 / height)
        for column in range(width):
            face = ids[row, column]
            if face < 0:
                continue
            px = (column + 0.5) * (2.0 / width) - 1.0
            i0 = np.uint32(faces[face, 0])
            i1 = np.uint32(faces[face, 1])
            i2 = np.uint32(faces[face, 2])
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
    for row in range(height):
        py = 1.0 - (row + 0.5) * (2.0 / height)
        for column in range(width):
            face = ids[row, column]
            if face < 0:
                continue
            px = (column + 0.5) * (2.0 / width) - 1.0
            i0 = np.uint32(faces[face, 0])
            i1 = np.uint32(faces[face, 1])
            i2 = np.uint32(faces[face, 2])
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
def interpolate(
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
            i0 = np.uint32(faces[face, 0])
            i1 = np.uint32(faces[face, 1])
            i2 = np.uint32(faces[face, 2])
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
def resolve(
    clip: np.ndarray,
    faces: np.ndarray,
    ids: np.ndarray,
    attributes: np.ndarray,
    out: np.ndarray,
) -> None:
    """Fill zeroed ``out`` (H, W, C) of one image: barycentrics and values in one pass."""
    height, width = ids.shape
    channels = attributes.shape[1]
    q = np.empty(3, dtype=clip.dtype)
    for row in range(height):
        py = 1.0 - (row + 0.5) * (2.0 / height)
        for column in range(width):
            face = ids[row, column]
            if face < 0:
                continue
            px = (column + 0.5) * (2.0 / width) - 1.0
            i0 = np.uint32(faces[face, 0])
            i1 = np.uint32(faces[face, 1])
            i2 = np.uint32(faces[face, 2])
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
            # Stored, so that they are rounded as those of ``barycentrics`` are.
            q[0] = e0 / total
            q[1] = e1 / total
            q[2] = e2 / total
            for channel in range(channels):
                out[row, column, channel] = (
                    q[0] * attributes[i0, channel]
                    + q[1] * attributes[i1, channel]
                    + q[2] * attributes[i2, channel]
                )


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
    channels = attributes.shape[1]
    for row in range(height):
        for column in range(width):
            face = ids[row, column]
            if face < 0:
                continue
            i0 = np.uint32(faces[face, 0])
            i1 = np.uint32(faces[face, 1])
            i2 = np.uint32(faces[face, 2])
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
