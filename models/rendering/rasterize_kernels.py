"""Compiled loops of the CPU rasteriser: which triangle each pixel sees, one image each.

With M = [x; y; w] of one triangle (one column per corner), the edge values at a
pixel p are e = adj(M) (px, py, 1); they are linear in p, antisymmetric on a
shared edge, and sum(e * w) = det M everywhere (Olano & Greer 1997). Where all
e have the sign of det M, p is covered, and z/w is sum(e * z) / det M.

Visibility needs signs and z/w alone. In front of the camera these follow from positions on
the screen: with the pixel at the origin, edge (j, k) is u_j v_k - u_k v_j, which is e times
-(H W / 4) / (w_j w_k), and z/w is linear on the screen. Only triangles that pass behind the
camera are drawn from clip coordinates, without being cut.
"""

from typing import no_type_check

import numpy as np

from models.rendering.jit import kernel
from models.rendering.triangle_lanes import ROW, box_triangle, edges_at_pixel

BLOCK = 512
"""Triangles boxed at a time: what is kept of them stays in the cache."""
ROOM = 4 * BLOCK
"""Covered pixels held back before they are compared in depth."""


@kernel
@no_type_check
def screen(
    clip: np.ndarray, height: int, width: int, place: np.ndarray
) -> tuple[bool, tuple[float, float, float, float]]:
    """Column, row (pixel centres at integers) and z/w of each vertex; NaN where w <= 0.

    Returns:
        Whether none is NaN; and least and greatest column, least and greatest row of the others.
    """
    low_x, high_x, low_y, high_y, all_known = np.inf, -np.inf, np.inf, -np.inf, True
    for vertex in range(np.uint32(clip.shape[0])):
        w = np.float64(clip[vertex, 3])
        column = (clip[vertex, 0] / w + 1.0) * (0.5 * width) - 0.5
        row = (1.0 - clip[vertex, 1] / w) * (0.5 * height) - 0.5
        nearness = clip[vertex, 2] / w
        known = (w > 0.0) & (abs(column) + abs(row) + abs(nearness) < np.inf)
        place[vertex, 0] = column if known else np.nan
        place[vertex, 1] = row if known else np.nan
        place[vertex, 2] = nearness if known else np.nan
        all_known &= known
        low_x = column if known & (column < low_x) else low_x
        high_x = column if known & (column > high_x) else high_x
        low_y = row if known & (row < low_y) else low_y
        high_y = row if known & (row > high_y) else high_y
    return all_known, (low_x, high_x, low_y, high_y)


@kernel
@no_type_check
def passes_the_camera(clip: np.ndarray, faces: np.ndarray, face: int) -> bool:
    """Whether a triangle has corners on both sides of the camera, all of them finite."""
    before, behind, total = False, False, 0.0
    for corner in range(3):
        vertex = np.uint32(faces[face, corner])
        w = clip[vertex, 3]
        before |= w > 0.0
        behind |= w <= 0.0
        for axis in range(4):
            total += abs(clip[vertex, axis])
    return before & behind & (total < np.inf)


@kernel
@no_type_check
def candidate_boxes(
    place: np.ndarray,
    clip: np.ndarray,
    faces: np.ndarray,
    start: int,
    stop: int,
    limits: np.ndarray,
    candidates: np.ndarray,
    boxes: np.ndarray,
    corners: np.ndarray,
) -> int:
    """List those of triangles start..stop whose box holds a pixel centre.

    Args:
        place: (V, 3) column, row and depth of each vertex.
        clip: (V, 4) for triangles that pass the camera, or (0, 4).
        faces: (F, 3).
        start: First triangle.
        stop: Past the last one.
        limits: (4,) first column, first row, last column, last row of the image.
        candidates: (n,) for the triangles.
        boxes: (n, 4) for first column, first row, last column, last row.
        corners: (n, ROW) for their columns and rows, which are then read in order; the first
            is NaN for a triangle that passes the camera.

    Returns:
        Their number.

    Most triangles of a dense mesh fall between the pixels, unpredictably: they are
    overwritten, not branched around.
    """
    places, of_corners, of_boxes = place.reshape(-1), corners.reshape(-1), boxes.reshape(-1)
    three, row, four = np.uint64(3), np.uint64(ROW), np.uint64(4)
    count = np.uint32(0)
    for face in range(np.uint32(start), np.uint32(stop)):
        i = three * np.uint64(np.uint32(faces[face, 0]))
        j = three * np.uint64(np.uint32(faces[face, 1]))
        k = three * np.uint64(np.uint32(faces[face, 2]))
        known, holds = box_triangle(
            places, i, j, k, limits, of_corners, row * np.uint64(count), of_boxes,
            four * np.uint64(count),
        )  # fmt: skip
        candidates[count] = face
        if not known:
            if clip.shape[0] and passes_the_camera(clip, faces, face):
                corners[count, 0] = np.nan
                count = np.uint32(count + np.uint32(1))
            continue
        count = np.uint32(count + np.uint32(holds))
    return count


@kernel
@no_type_check
def keep_nearest(
    place: np.ndarray,
    faces: np.ndarray,
    near: float,
    count: int,
    owners: np.ndarray,
    pixels: np.ndarray,
    edges: np.ndarray,
    ids: np.ndarray,
    depth: np.ndarray,
) -> None:
    """Let the first ``count`` covered (triangle, pixel) pairs compete in depth, in order.

    ``ids`` and ``depth`` are flat. A degenerate triangle's depth is 0 / 0, which wins nowhere.
    """
    for index in range(np.uint32(count)):
        face = owners[index]
        pixel = pixels[index]
        e2 = edges[index, 0]
        e0 = edges[index, 1]
        e1 = edges[index, 2]
        z0 = place[np.uint32(faces[face, 0]), 2]
        z1 = place[np.uint32(faces[face, 1]), 2]
        z2 = place[np.uint32(faces[face, 2]), 2]
        z = (e0 * z0 + e1 * z1 + e2 * z2) / (e0 + e1 + e2)
        before = depth[pixel]
        seen = (z >= near) & (z <= before)
        depth[pixel] = z if seen else before
        ids[pixel] = np.int32(face) if seen else ids[pixel]


@kernel
@no_type_check
def draw_passing(
    place: np.ndarray,
    clip: np.ndarray,
    faces: np.ndarray,
    face: int,
    cull: bool,
    near: float,
    ids: np.ndarray,
    depth: np.ndarray,
) -> None:
    """Draw a triangle that passes the camera.

    An edge with both ends before the camera takes the value that its other triangle
    has on the screen, so that no pinhole opens between the two.
    """
    height, width = ids.shape
    i0, i1, i2 = faces[face, 0], faces[face, 1], faces[face, 2]
    x, y, z, w = np.empty(3), np.empty(3), np.empty(3), np.empty(3)
    u, v, e = np.empty(3), np.empty(3), np.empty(3)
    for corner, vertex in enumerate((i0, i1, i2)):
        x[corner], y[corner] = clip[vertex, 0], clip[vertex, 1]
        z[corner], w[corner] = clip[vertex, 2], clip[vertex, 3]
        u[corner], v[corner] = place[vertex, 0], place[vertex, 1]
    determinant = (
        w[0] * (x[1] * y[2] - x[2] * y[1])
        + w[1] * (x[2] * y[0] - x[0] * y[2])
        + w[2] * (x[0] * y[1] - x[1] * y[0])
    )
    sign = 1.0 if cull else np.copysign(1.0, determinant)
    if not sign * determinant > 0.0:
        return
    for row in range(height):
        py = 1.0 - (row + 0.5) * (2.0 / height)
        for column in range(width):
            px = (column + 0.5) * (2.0 / width) - 1.0
            for corner in range(3):
                j, k = (corner + 1) % 3, (corner + 2) % 3
                if (w[j] > 0.0) & (w[k] > 0.0):
                    e[corner] = (
                        (u[k] - column) * (v[j] - row) - (u[j] - column) * (v[k] - row)
                    ) * (w[j] * w[k] * (4.0 / (height * width)))
                else:
                    e[corner] = (x[j] - px * w[j]) * (y[k] - py * w[k]) - (x[k] - px * w[k]) * (
                        y[j] - py * w[j]
                    )
            if (sign * e[0] >= 0.0) & (sign * e[1] >= 0.0) & (sign * e[2] >= 0.0):
                found = (e[0] * z[0] + e[1] * z[1] + e[2] * z[2]) / determinant
                if (found >= near) & (found <= depth[row, column]):
                    depth[row, column] = found
                    ids[row, column] = face


@kernel
@no_type_check
def visible(
    place: np.ndarray,
    clip: np.ndarray,
    faces: np.ndarray,
    cull: bool,
    near: float,
    top: int,
    left: int,
    ids: np.ndarray,
    depth: np.ndarray,
) -> None:
    """Fill ``ids`` and ``depth`` (H, W) of one image; equal depths go to the later triangle.

    Args:
        place: (V, 3) column, row (pixel centres at integers) and depth (smaller is nearer);
            triangles with a NaN corner need ``clip``.
        clip: (V, 4) as :func:`screen` took it, or (0, 4) where nothing passes the camera.
        faces: (F, 3).
        cull: Draw only triangles that turn counter-clockwise where rows go down.
        near: Depth before which nothing is seen.
        top: Row of the first row of ``ids``; 0 if anything passes the camera.
        left: Column of the first column of ``ids``; likewise.
        ids: Triangles, -1 to begin with.
        depth: Farthest depths to begin with.

    Made for triangles around a pixel in size, of which any one's fate is a coin toss: each
    pass writes to the end of a list and moves the end on, or not, where a branch would be
    guessed wrong. Edges are taken relative to the pixel, z waits until a pixel is covered.
    """
    rows, columns = ids.shape
    number = place.dtype.type
    one, x_of_left, y_of_top = number(1), number(left), number(top)
    both = not cull
    limits = np.array([left, top, left + columns - 1, top + rows - 1], dtype=place.dtype)
    candidates = np.empty(BLOCK + 1, dtype=np.uint32)
    boxes = np.empty((BLOCK + 1, 4), dtype=place.dtype)
    corners = np.zeros((BLOCK + 1, ROW), dtype=place.dtype)
    room = ROOM + rows * columns + 1  # one triangle may cover everything; untouched otherwise
    owners = np.empty(room, dtype=np.uint32)
    pixels = np.empty(room, dtype=np.uint32)
    edges = np.empty((room, 4), dtype=place.dtype)
    of_corners, of_edges = corners.reshape(-1), edges.reshape(-1)
    flat_ids, flat_depth = ids.reshape(-1), depth.reshape(-1)
    for start in range(0, faces.shape[0], BLOCK):
        stop = min(start + BLOCK, faces.shape[0])
        count = candidate_boxes(place, clip, faces, start, stop, limits, candidates, boxes, corners)
        kept = np.uint32(0)
        for index in range(np.uint32(count)):
            face = candidates[index]
            u0 = corners[index, 0]
            if (kept > ROOM) | (u0 != u0):
                keep_nearest(place, faces, near, kept, owners, pixels, edges, flat_ids, flat_depth)
                kept = np.uint32(0)
                if u0 != u0:
                    draw_passing(place, clip, faces, face, cull, near, ids, depth)
                    continue
            first = boxes[index, 0]
            x = first
            y = boxes[index, 1]
            width = np.uint32(np.int32(boxes[index, 2] - first)) + np.uint32(1)
            height = np.uint32(np.int32(boxes[index, 3] - y)) + np.uint32(1)
            pixel = np.uint32(np.int32(y - y_of_top)) * np.uint32(columns) + np.uint32(
                np.int32(x - x_of_left)
            )
            to_next_row = np.uint32(columns) - width + np.uint32(1)
            in_row = width
            row = np.uint64(ROW) * np.uint64(index)
            for _ in range(width * height):
                owners[kept] = face
                pixels[kept] = pixel
                none_positive, none_negative = edges_at_pixel(
                    of_corners, row, x, y, of_edges, np.uint64(4) * np.uint64(kept)
                )
                inside = none_positive | (both & none_negative)
                kept = np.uint32(kept + np.uint32(inside))
                in_row = np.uint32(in_row - np.uint32(1))
                ended = in_row == np.uint32(0)  # known sooner than from x
                in_row = width if ended else in_row
                pixel = np.uint32(pixel + (to_next_row if ended else np.uint32(1)))
                x = first if ended else x + one
                y = y + one if ended else y
        keep_nearest(place, faces, near, kept, owners, pixels, edges, flat_ids, flat_depth)
