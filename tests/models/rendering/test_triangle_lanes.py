"""The vector steps of triangles against the same arithmetic in NumPy, bit for bit."""

import numpy as np
import pytest

from models.rendering.jit import kernel
from models.rendering.triangle_lanes import ROW, box_triangle, edges_at_pixel, weights_3

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@kernel
def boxed(place, faces, limits, corners, boxes, flags):
    flat, of_corners, of_boxes = place.reshape(-1), corners.reshape(-1), boxes.reshape(-1)
    three, row, four = np.uint64(3), np.uint64(ROW), np.uint64(4)
    for face in range(len(faces)):
        i, j, k = three * faces[face, 0], three * faces[face, 1], three * faces[face, 2]
        flags[face] = box_triangle(
            flat,
            np.uint64(i),
            np.uint64(j),
            np.uint64(k),
            limits,
            of_corners,
            row * np.uint64(face),
            of_boxes,
            four * np.uint64(face),
        )


@kernel
def crossed(corners, x, y, edges, flags):
    of_corners, of_edges = corners.reshape(-1), edges.reshape(-1)
    for face in range(len(corners)):
        flags[face] = edges_at_pixel(
            of_corners, np.uint64(ROW) * np.uint64(face), x, y, of_edges, np.uint64(4 * face)
        )


@kernel
def weighed(clip, faces, px, py, found):
    flat, four = clip.reshape(-1), np.uint64(4)
    for face in range(len(faces)):
        i, j, k = faces[face, 0], faces[face, 1], faces[face, 2]
        found[face] = weights_3(
            flat, np.uint64(i) * four, np.uint64(j) * four, np.uint64(k) * four, px, py
        )


def triangles(dtype, seed=5, scale=4.0):
    """Places around a picture of 12 x 9, some of them at pixel centres, and triangles."""
    rng = np.random.default_rng(seed)
    place = rng.normal([6, 4, 0], scale, (40, 3))
    place[::5] = place[::5].round()
    return place.astype(dtype), rng.integers(0, 40, (80, 3)).astype(np.uint64)


def box_of(place, faces):
    """Corners, boxes and flags of triangles."""
    limits = np.array([0, 0, 11, 8], place.dtype)
    corners = np.zeros((len(faces), ROW), place.dtype)
    boxes, flags = np.empty((len(faces), 4), place.dtype), np.empty((len(faces), 2), bool)
    boxed(place, faces, limits, corners, boxes, flags)
    return corners, boxes, flags


@DTYPES
def test_boxes_hold_the_pixel_centres_between_the_outermost_corners(dtype):
    place, faces = triangles(dtype)
    corners, boxes, flags = box_of(place, faces)
    given = place[faces.astype(int)]
    u, v = given[..., 0], given[..., 1]
    np.testing.assert_array_equal(corners[:, :3], u)
    np.testing.assert_array_equal(corners[:, 4:7], v)
    expected = np.stack(
        [
            np.ceil(u.min(1)).clip(min=0),
            np.ceil(v.min(1)).clip(min=0),
            np.floor(u.max(1)).clip(max=11),
            np.floor(v.max(1)).clip(max=8),
        ],
        axis=1,
    )
    np.testing.assert_array_equal(boxes, expected)
    holds = (expected[:, 0] <= expected[:, 2]) & (expected[:, 1] <= expected[:, 3])
    assert 0 < holds.sum() < len(holds)
    np.testing.assert_array_equal(flags[:, 1], holds)
    assert flags[:, 0].all()


@DTYPES
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("corner", range(3))
def test_a_corner_that_is_no_number_is_told(dtype, axis, corner):
    place, _ = triangles(dtype)
    place[corner, axis] = np.nan
    faces = np.array([[0, 1, 2], [3, 4, 5]], np.uint64)
    np.testing.assert_array_equal(box_of(place, faces)[2][:, 0], [False, True])


@DTYPES
def test_edges_are_cross_products_to_the_bit_and_their_signs_are_told(dtype):
    place, faces = triangles(dtype, scale=6.0)
    faces[0] = 7  # one vertex thrice: every edge is zero
    corners = box_of(place, faces)[0]
    x, y = dtype(6.0), dtype(4.0)
    edges, flags = np.empty((len(faces), 4), dtype), np.empty((len(faces), 2), bool)
    crossed(corners, x, y, edges, flags)
    a, b = corners[:, :3] - x, corners[:, 4:7] - y
    expected = np.stack(
        [a[:, j] * b[:, k] - a[:, k] * b[:, j] for j, k in ((0, 1), (1, 2), (2, 0))], axis=1
    )
    np.testing.assert_array_equal(edges[:, :3], expected)
    np.testing.assert_array_equal(flags[:, 0], (expected <= 0).all(1))
    np.testing.assert_array_equal(flags[:, 1], (expected >= 0).all(1))
    assert flags[0].all()
    assert (flags.sum(0) > 3).all()


@DTYPES
def test_weights_are_the_edge_values_over_their_sum_to_the_bit(dtype):
    rng = np.random.default_rng(5)
    clip, faces = rng.normal(size=(30, 4)).astype(dtype), rng.integers(0, 30, (50, 3))
    px, py = 0.37, -0.81
    found = np.empty((50, 3))
    weighed(clip, faces, px, py, found)
    x, y, _, w = np.moveaxis(clip.astype(np.float64)[faces], -1, 0)
    x, y = x - px * w, y - py * w
    edges = np.stack(
        [x[:, j] * y[:, k] - x[:, k] * y[:, j] for j, k in ((1, 2), (2, 0), (0, 1))], axis=1
    )
    with np.errstate(divide="ignore", invalid="ignore"):  # a corner may be drawn twice
        expected = edges * (1.0 / (edges[:, 0] + edges[:, 1] + edges[:, 2]))[:, None]
    np.testing.assert_array_equal(found, expected)
