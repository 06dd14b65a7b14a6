"""Surfaces seen along z, drawn in the rectangle that holds them.

The special case of ``rasterize_numba`` for bulk work: points are placed and displaced in one
pass, in float32, and all buffers are as large as the surface's box, not as the picture. The
visibility loop is the same. Both sides of a triangle are drawn, the nearer one wins, and of
equally near ones the later triangle.
"""

from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float, Int32

from models.rendering.jit import kernel
from models.rendering.lanes import blend_3, fetch, place_3
from models.rendering.rasterize_kernels import visible
from models.rendering.rectangle import Rectangle

AHEAD = np.uint64(512)
"""Numbers between an offset and the one that is asked for ahead of its use."""
_CENTRE = np.array([0.5, 0.5, 0.0])
_CHANNELS = 6
_NOTHING_PASSES_THE_CAMERA = np.empty((0, 4), dtype=np.float32)


class Projection(NamedTuple):
    """An affine camera: position = matrix @ point + shift.

    Attributes:
        matrix: Rows give column (px), row (px, down) and nearness (any unit, larger nearer).
        shift: Added to it, with pixel centres at +0.5.
    """

    matrix: Float[np.ndarray, "3 3"]
    shift: Float[np.ndarray, "3"]


@kernel
@no_type_check
def _place(
    base: np.ndarray, offset: np.ndarray, camera: np.ndarray, place: np.ndarray
) -> tuple[float, float, float, float]:
    """Bounds of x and y of base + offset projected to ``place``; ``camera`` as ``place_3`` has it.

    The offsets come from main memory, where nothing else foretells that they are wanted soon.
    """
    bases, offsets, places = base.reshape(-1), offset.reshape(-1), place.reshape(-1)
    low_x, high_x = np.float32(np.inf), np.float32(-np.inf)
    low_y, high_y = np.float32(np.inf), np.float32(-np.inf)
    for vertex in range(np.uint64(base.shape[0])):
        start = np.uint64(3) * vertex
        fetch(offsets, start + AHEAD)
        column, row = place_3(bases, offsets, start, camera, places)
        low_x = column if column < low_x else low_x
        high_x = column if column > high_x else high_x
        low_y = row if row < low_y else low_y
        high_y = row if row > high_y else high_y
    return low_x, high_x, low_y, high_y


@kernel
@no_type_check
def _resolve(
    place: np.ndarray,
    faces: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    top: int,
    left: int,
    ids: np.ndarray,
    out: np.ndarray,
    width: int,
) -> None:
    """Interpolate two attributes at the seen pixels into the flat ``out``, six numbers a pixel.

    With a ``width``, ``out`` is a picture of as many columns; with none, it holds the seen pixels
    alone, row by row. In the numbers and the order in which ``visible`` tested the pixel, so that
    no weight is negative.
    """
    rows, columns = ids.shape
    ones, others = first.reshape(-1), second.reshape(-1)
    three, six, one = np.uint64(3), np.uint64(6), np.float32(1.0)
    start = np.uint64(0)
    for row in range(np.uint32(rows)):
        y = np.float32(top + row)
        if width:
            start = six * (np.uint64(top + row) * np.uint64(width) + np.uint64(left))
        for column in range(np.uint32(columns)):
            face = ids[row, column]
            if face < 0:
                start += six if width else np.uint64(0)
                continue
            x = np.float32(left + column)
            i0 = np.uint32(faces[np.uint32(face), 0])
            i1 = np.uint32(faces[np.uint32(face), 1])
            i2 = np.uint32(faces[np.uint32(face), 2])
            a0 = place[i0, 0] - x
            a1 = place[i1, 0] - x
            a2 = place[i2, 0] - x
            b0 = place[i0, 1] - y
            b1 = place[i1, 1] - y
            b2 = place[i2, 1] - y
            e0 = a1 * b2 - a2 * b1
            e1 = a2 * b0 - a0 * b2
            e2 = a0 * b1 - a1 * b0
            inverse = one / (e0 + e1 + e2)
            p, q, r = e0 * inverse, e1 * inverse, e2 * inverse
            i, j, k = np.uint64(i0) * three, np.uint64(i1) * three, np.uint64(i2) * three
            blend_3(ones, i, j, k, p, q, r, out, start)
            blend_3(others, i, j, k, p, q, r, out, start + three)
            start += six


class Surface:
    """A projected mesh, and which triangle each pixel of its rectangle sees.

    Attributes:
        rectangle: Where in the picture the surface is.
        ids: Triangle seen at each pixel of the rectangle, -1 where none is.
    """

    def __init__(
        self,
        base: Float[np.ndarray, "v 3"],
        offset: Float[np.ndarray, "v 3"],
        faces: Int32[np.ndarray, "f 3"],
        projection: Projection,
        height: int,
        width: int,
    ) -> None:
        """Project the points base + offset and find what is seen.

        Args:
            base: float32 positions.
            offset: float32 displacements.
            faces: Triangles.
            projection: Camera in pixels of the picture.
            height: Rows of the picture.
            width: Columns of the picture.
        """
        self._faces, self._size = faces, (height, width)
        self._place = np.empty(base.shape, dtype=np.float32)
        # Pixel centres at integers; the third number is depth, larger is farther.
        camera = np.zeros((4, 4))
        camera[:3, :3] = projection.matrix.T
        camera[3, :3] = projection.shift - _CENTRE
        camera[:, 2] *= -1.0
        bounds = _place(base, offset, camera.reshape(-1), self._place)
        self.rectangle = Rectangle.between(bounds, height, width)
        top, left, rows, columns = self.rectangle
        self.ids: Int32[np.ndarray, "h w"] = np.full((rows, columns), -1, dtype=np.int32)
        depth = np.full((rows, columns), np.inf, dtype=np.float32)
        visible(
            self._place,
            _NOTHING_PASSES_THE_CAMERA,
            faces,
            False,
            -np.inf,
            top,
            left,
            self.ids,
            depth,
        )

    def interpolate(
        self,
        first: Float[np.ndarray, "v 3"],
        second: Float[np.ndarray, "v 3"],
        picture: Float[np.ndarray, "h w 6"],
    ) -> None:
        """Write two float32 vertex attributes to the pixels of a picture that see the surface.

        Args:
            first: Numbers 0-2 of a pixel.
            second: Numbers 3-5.
            picture: float32, C-contiguous, of the projection's height and width.

        Raises:
            ValueError: An array has another shape or type, or the picture another layout.
        """
        self._resolve(first, second, "picture", picture, self._size)

    def interpolate_seen(
        self,
        first: Float[np.ndarray, "v 3"],
        second: Float[np.ndarray, "v 3"],
        out: Float[np.ndarray, "n 6"],
    ) -> None:
        """As :meth:`interpolate`, of the pixels that see the surface alone, row by row.

        Args:
            first: Numbers 0-2 of a pixel.
            second: Numbers 3-5.
            out: float32, C-contiguous, a row for each pixel of ``ids`` that is not -1.

        Raises:
            ValueError: An array has another shape or type, or ``out`` another layout.
        """
        self._resolve(first, second, "out", out, (int(np.count_nonzero(self.ids >= 0)),))

    def _resolve(
        self,
        first: np.ndarray,
        second: np.ndarray,
        name: str,
        out: np.ndarray,
        size: tuple[int, ...],
    ) -> None:
        """Check, and fill ``out``: a picture of (height, width), or (seen pixels,)."""
        for values in (first, second):
            if values.shape != self._place.shape or values.dtype != np.float32:
                raise ValueError(
                    f"Surface expects float32 attributes of shape {self._place.shape}, one row per "
                    f"projected point, got {values.dtype} {values.shape}"
                )
        shape = (*size, _CHANNELS)
        if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
            layout = "C-contiguous" if out.flags.c_contiguous else "strided"
            raise ValueError(
                f"Surface expects a C-contiguous float32 {name} of shape {shape}, "
                f"got a {layout} {out.dtype} one of shape {out.shape}"
            )
        top, left, _, _ = self.rectangle
        width, flat = size[1] if len(size) > 1 else 0, out.reshape(-1)
        _resolve(self._place, self._faces, first, second, top, left, self.ids, flat, width)
