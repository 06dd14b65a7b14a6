"""The rectangle of a projected mesh: what it holds, and that it holds no more."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.rendering.rectangle import Rectangle

COORDINATE = st.one_of(
    st.floats(-30.0, 30.0),
    st.integers(-3, 12).map(float),
    st.sampled_from([-1e300, 1e300]),
)


def test_pixel_centres_on_the_outermost_vertices_are_held():
    assert Rectangle.between((2.0, 4.0, 0.5, 1.0), 9, 9) == (1, 2, 1, 3)


@pytest.mark.parametrize(
    "bounds",
    [
        (np.inf, -np.inf, np.inf, -np.inf),  # no vertex
        (2.2, 2.8, 1.0, 5.0),  # between two columns
        (-5.0, -0.5, 1.0, 5.0),
        (8.5, 20.0, 1.0, 5.0),
        (1.0, 5.0, 7.5, 20.0),
    ],
)
def test_nothing_is_held_where_no_centre_lies(bounds):
    assert Rectangle.between(bounds, 8, 9) == (0, 0, 0, 0)


@given(st.tuples(COORDINATE, COORDINATE), st.tuples(COORDINATE, COORDINATE))
def test_the_centres_between_the_bounds_and_no_others(x, y):
    (low_x, high_x), (low_y, high_y) = sorted(x), sorted(y)
    top, left, rows, columns = Rectangle.between((low_x, high_x, low_y, high_y), 7, 9)
    inside = np.zeros((7, 9), dtype=bool)
    inside[top : top + rows, left : left + columns] = True
    row, column = np.mgrid[:7, :9]
    expected = (row >= low_y) & (row <= high_y) & (column >= low_x) & (column <= high_x)
    np.testing.assert_array_equal(inside, expected)
