"""Products of coefficients and directions: against float64, and to the bit against exact sums."""

import numba
import numpy as np
import pytest

from models.rendering import displacement
from models.rendering.displacement import Directions

needs_long_double = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 63, reason="needs a long double wider than a double"
)


def factors(seed, rows, count, columns):
    rng = np.random.default_rng(seed)
    coefficients = rng.normal(scale=2, size=(rows, count)).astype(np.float32)
    return coefficients, rng.normal(scale=9, size=(count, columns)).astype(np.float32)


def exact_steps(coefficients, directions):
    """One rounding to float32 per direction; a product of two fits a long double exactly."""
    total = np.zeros((len(coefficients), directions.shape[1]), np.float32)
    for weight, direction in zip(coefficients.T, directions, strict=True):
        step = weight[:, None].astype(np.longdouble) * direction
        total = (total + step).astype(np.float32)
    return total


@needs_long_double
@pytest.mark.parametrize(
    ("rows", "count", "columns"), [(1, 1, 1), (3, 7, 50), (8, 20, 96), (64, 228, 1000), (17, 3, 33)]
)
def test_sums_are_those_of_fused_steps_to_the_bit(rows, count, columns):
    coefficients, matrix = factors(rows, rows, count, columns)
    directions = Directions(matrix)
    found = directions.times(coefficients, directions.room(rows))
    np.testing.assert_array_equal(found, exact_steps(coefficients, matrix))
    wide = coefficients.astype(np.float64) @ matrix.astype(np.float64)
    np.testing.assert_allclose(found, wide, atol=2e-7 * 18 * 4 * count)


def test_a_row_does_not_depend_on_its_company_or_on_what_the_room_held():
    coefficients, matrix = factors(5, 30, 12, 200)
    directions = Directions(matrix)
    room = directions.room(30)
    together = directions.times(coefficients, room).copy()
    room[:] = np.nan
    for number in (0, 13, 29):
        alone = directions.times(coefficients[number : number + 1], room)
        np.testing.assert_array_equal(alone[0], together[number])


@needs_long_double
@pytest.mark.parametrize(("lanes", "rows", "vectors"), [(16, 8, 2), (8, 4, 3), (4, 3, 1)])
def test_bits_do_not_depend_on_the_processors_width(monkeypatch, lanes, rows, vectors):
    coefficients, matrix = factors(9, 21, 15, 130)
    given = {"LANES": lanes, "ROWS": rows, "VECTORS": vectors, "PANEL": lanes * vectors}
    for name, value in given.items():
        monkeypatch.setattr(displacement, name, value)
    again = numba.njit(displacement._multiply.py_func)
    monkeypatch.setattr(displacement, "_multiply", again)
    directions = Directions(matrix)
    found = directions.times(coefficients, directions.room(21))
    np.testing.assert_array_equal(found, exact_steps(coefficients, matrix))


def test_without_directions_nothing_moves_and_without_rows_there_is_nothing():
    directions = Directions(np.zeros((0, 40), np.float32))
    moved = directions.times(np.zeros((2, 0), np.float32), directions.room(2))
    np.testing.assert_array_equal(moved, np.zeros((2, 40)))
    assert directions.times(np.zeros((0, 0), np.float32), directions.room(1)).shape == (0, 40)
