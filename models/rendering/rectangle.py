"""The part of a picture that a projected mesh can touch."""

from typing import NamedTuple

import numpy as np


class Rectangle(NamedTuple):
    """The pixels whose centres lie between the outermost vertices.

    Attributes:
        top: First row.
        left: First column.
        rows: Height, zero when nothing projects into the picture.
        columns: Width, zero likewise.
    """

    top: int
    left: int
    rows: int
    columns: int

    @classmethod
    def between(
        cls, bounds: tuple[float, float, float, float], height: int, width: int
    ) -> "Rectangle":
        """Of a picture of ``height`` and ``width``.

        Args:
            bounds: Lowest and highest x, lowest and highest y in pixels, centres at integers;
                lowest above highest where there is no vertex.
            height: Rows.
            width: Columns.
        """
        left, columns = _range(bounds[0], bounds[1], width)
        top, rows = _range(bounds[2], bounds[3], height)
        return cls(top, left, rows, columns) if rows * columns else cls(0, 0, 0, 0)


def _range(low: float, high: float, size: int) -> tuple[int, int]:
    """First pixel and pixel count of [low, high] inside 0 .. size - 1."""
    if not (low <= size - 1 and high >= 0.0):
        return 0, 0
    first, last = int(np.ceil(max(low, 0.0))), int(np.floor(min(high, size - 1.0)))
    return first, max(last - first + 1, 0)
