"""Bulk orthographic drawing: closed form, the general rasteriser as twin, watertightness."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.rendering.orthographic import Projection, Surface
from models.rendering.rasterize import rasterize

IDENTITY = Projection(np.eye(3), np.zeros(3))


def full(surface, height, width):
    ids = np.full((height, width), -1)
    top, left, rows, columns = surface.rectangle
    ids[top : top + rows, left : left + columns] = surface.ids
    return ids


def drawn(points, faces, height, width, projection=IDENTITY):
    base = np.asarray(points, np.float32)
    surface = Surface(
        base, np.zeros_like(base), np.asarray(faces, np.int32), projection, height, width
    )
    return surface, full(surface, height, width)


def clip_of(points, height, width):
    x, y, z = np.asarray(points, np.float32).astype(np.float64).T
    depth = -z / (1 + np.abs(z).max())
    return np.stack([2 * x / width - 1, 1 - 2 * y / height, depth, np.ones(len(x))], -1)[None]


def test_triangle_covers_the_pixel_centres_inside_it_and_interpolates_linearly():
    points = [[0.25, 0.25, 0], [8.25, 0.25, 8], [0.25, 8.25, 16]]
    surface, ids = drawn(points, [[0, 1, 2]], 10, 12)
    row, column = np.mgrid[:10, :12] + 0.5
    inside = (column >= 0.25) & (row >= 0.25) & (column + row <= 8.5)
    np.testing.assert_array_equal(ids >= 0, inside)
    base = np.asarray(points, np.float32)
    values = np.zeros((10, 12, 6), np.float32)
    surface.interpolate(base, 2 * base, values)
    x, y = column - 0.25, row - 0.25
    expected = np.stack([column, row, x + 2 * y], -1)
    seen = ids >= 0
    np.testing.assert_allclose(values[seen][:, :3], expected[seen], atol=1e-5)
    np.testing.assert_allclose(values[seen][:, 3:], 2 * expected[seen], atol=2e-5)
    assert (values[~seen] == 0).all()


def test_a_surface_away_from_the_corner_is_written_where_it_is_seen():
    points = np.array([[5.25, 3.25, 0], [11.25, 3.25, 8], [5.25, 8.25, 16]], np.float32)
    surface, ids = drawn(points, [[0, 1, 2]], 14, 17)
    assert surface.rectangle == (3, 5, 5, 6)
    row, column = np.mgrid[:14, :17] + 0.5
    expected = np.stack([column, row, 8 * (column - 5.25) / 6 + 16 * (row - 3.25) / 5], -1)
    picture = np.zeros((14, 17, 6), np.float32)
    surface.interpolate(points, -points, picture)
    seen = ids >= 0
    np.testing.assert_allclose(picture[seen], np.c_[expected, -expected][seen], atol=1e-4)
    assert (picture[~seen] == 0).all()
    alone = np.zeros((seen.sum(), 6), np.float32)
    surface.interpolate_seen(points, -points, alone)
    np.testing.assert_array_equal(alone, picture[seen])


def test_arrays_that_do_not_fit_the_surface_are_refused():
    points = np.array([[5.25, 3.25, 0], [11.25, 3.25, 8], [5.25, 8.25, 16]], np.float32)
    surface, ids = drawn(points, [[0, 1, 2]], 14, 17)
    count, whole = int((ids >= 0).sum()), np.zeros((14, 17, 6), np.float32)
    for wrong in (
        np.zeros((*surface.ids.shape, 6), np.float32),  # of the rectangle alone
        np.zeros((17, 14, 6), np.float32),
        whole[..., :5],
        whole.astype(np.float64),
        np.zeros((14, 17, 12), np.float32)[..., ::2],
    ):
        with pytest.raises(ValueError, match=r"float32 picture of shape \(14, 17, 6\), got"):
            surface.interpolate(points, points, wrong)
    for wrong in (
        np.zeros((count - 1, 6), np.float32),
        np.zeros((count + 1, 6), np.float32),
        np.zeros((count, 6)),
        np.zeros((6, count), np.float32).T,
        whole,
    ):
        with pytest.raises(ValueError, match=rf"float32 out of shape \({count}, 6\), got"):
            surface.interpolate_seen(points, points, wrong)
    for wrong in (points[:2], points[:, :2], points.astype(np.float64)):
        with pytest.raises(ValueError, match=r"attributes of shape \(3, 3\)"):
            surface.interpolate(points, wrong, whole)
    assert (whole == 0).all()


def test_nearer_wins_and_both_sides_are_drawn():
    flat = [[0, 0], [9, 0], [0, 9]]
    points = [[*p, 1.0] for p in flat] + [[*p, 2.0] for p in flat]
    for near_first in ([[3, 4, 5], [0, 1, 2]], [[5, 4, 3], [0, 2, 1]]):
        _, ids = drawn(points, near_first, 9, 9)
        assert set(np.unique(ids)) == {-1, 0}
    _, ids = drawn([[*p, 1.0] for p in flat], [[0, 1, 2], [0, 1, 2]], 9, 9)
    assert set(np.unique(ids)) == {-1, 1}  # equally near: the later one


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.4, 3.0, 40.0]))
def test_equals_the_general_rasteriser(seed, size):
    rng = np.random.default_rng(seed)
    height, width, count = 23, 31, 60
    corners = rng.uniform([-5, -5, 0], [36, 28, 10], (count, 1, 3))
    points = (corners + size * rng.normal(size=(count, 3, 3))).reshape(-1, 3).astype(np.float32)
    faces = np.arange(3 * count).reshape(-1, 3)
    surface, ids = drawn(points, faces, height, width)
    expected = rasterize(clip_of(points, height, width), faces, height, width)
    np.testing.assert_array_equal(ids, expected[0][0])
    values = np.zeros((height, width, 6), np.float32)
    surface.interpolate(points, points, values)
    seen = ids >= 0
    wanted = (expected[1][0][..., None] * points[faces[ids]]).sum(2)
    np.testing.assert_allclose(values[seen][:, :3], wanted[seen], atol=2e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 2.5))
def test_a_fine_sheet_has_no_holes(seed, spacing):
    """Every pixel of a closed sheet's interior is covered, also where vertices hit centres."""
    rng = np.random.default_rng(seed)
    count = int(24 / spacing) + 3
    steps = spacing * np.arange(count) - 1.0
    x, y = np.meshgrid(steps, steps)
    jitter = 0.3 * spacing * rng.uniform(-1, 1, (2, count, count))
    jitter[:, [0, -1]] = jitter[:, :, [0, -1]] = 0
    if seed % 3 == 0:
        jitter = np.zeros_like(jitter)
    points = np.stack([x + jitter[0], y + jitter[1], np.zeros_like(x)], -1).reshape(-1, 3)
    corner = (np.arange(count - 1)[:, None] * count + np.arange(count - 1)).ravel()
    faces = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + count], 1),
            np.stack([corner + count, corner + 1, corner + count + 1], 1),
        ]
    )
    _, ids = drawn(points, faces, 20, 20)
    assert (ids >= 0).all()


@pytest.mark.parametrize("where", [[100.0, 0, 0], [-100.0, 0, 0], [0, 100.0, 0], [np.nan, 0, 0]])
def test_nothing_in_the_picture_is_an_empty_rectangle(where):
    points = np.array([[1.0, 1, 0], [5, 1, 0], [1, 5, 0]]) + where
    surface, ids = drawn(points, [[0, 1, 2]], 20, 20)
    assert surface.rectangle == (0, 0, 0, 0)
    assert (ids == -1).all()
