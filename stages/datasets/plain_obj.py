"""Compiled reading of plain OBJ files: the kind that scanners and trackers write by the thousand.

Plain means: ``v x y z``, ``f a b c`` (with or without ``/t/n``), anything else on lines of its own.
Whatever is not plain (colours, polygons, counting back, continued lines, numbers of more digits
than float64 holds exactly) is left to the general reader, as is every error message.
"""

import numba
import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

_POWERS = 10.0 ** np.arange(23)
_EXACT = 2**53
_BLANK, _NEWLINE, _RETURN, _TAB = 32, 10, 13, 9


def read_plain_obj(
    content: bytes,
) -> tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, "f 3"]] | None:
    """Vertices and 0-based faces of a plain OBJ; None where it is not plain.

    Numbers are read as correctly rounded float64: a mantissa up to 2^53 and a power of ten up to
    10^22 are both exact, so their quotient or product is rounded once (Clinger 1990, section 3).
    """
    text = np.frombuffer(content, dtype=np.uint8)
    vertices, faces = _count(text)
    if vertices == 0:
        return None
    points = np.empty((vertices, 3))
    corners = np.empty((faces, 3), dtype=np.int64)
    return (points, corners) if _fill(text, points, corners) else None


@numba.njit(cache=True)
def _count(text: NDArray[np.uint8]) -> tuple[int, int]:
    """Numbers of ``v`` and of ``f`` lines; (0, 0) where a line is not plain."""
    vertices = 0
    faces = 0
    size = text.shape[0]
    start = True
    for i in range(size):
        byte = text[i]
        if start:
            if byte in (_BLANK, _TAB) or byte > 127:
                return 0, 0
            if i + 1 < size and (text[i + 1] == _BLANK or text[i + 1] == _TAB):
                if byte == 118:  # v
                    vertices += 1
                elif byte == 102:  # f
                    faces += 1
        if byte == 0 or byte == 92:  # a backslash may continue a line
            return 0, 0
        if byte == _RETURN and not (i + 1 < size and text[i + 1] == _NEWLINE):
            return 0, 0
        start = byte == _NEWLINE
    return vertices, faces


@numba.njit(cache=True)
def _fill(text: NDArray[np.uint8], points: NDArray[np.float64], corners: NDArray[np.int64]) -> bool:
    """Parse every ``v`` and ``f`` line; False at the first that is not plain."""
    size = text.shape[0]
    vertex = 0
    face = 0
    i = 0
    while i < size:
        byte = text[i]
        keyed = i + 1 < size and (text[i + 1] == _BLANK or text[i + 1] == _TAB)
        if keyed and (byte == 118 or byte == 102):
            i += 1
            for axis in range(3):
                while i < size and (text[i] == _BLANK or text[i] == _TAB):
                    i += 1
                if byte == 118:
                    good, value, i = _number(text, i)
                    if not good:
                        return False
                    points[vertex, axis] = value
                else:
                    index = 0
                    first = i
                    while i < size and 48 <= text[i] <= 57:
                        index = 10 * index + (text[i] - 48)
                        i += 1
                    if i == first or i - first > 15 or index == 0:
                        return False
                    if i < size and text[i] == 47:  # texture and normal numbers
                        while i < size and (text[i] == 47 or 48 <= text[i] <= 57):
                            i += 1
                    corners[face, axis] = index - 1
                if i < size and text[i] > _BLANK:
                    return False
            while i < size and text[i] != _NEWLINE:
                if text[i] > _BLANK:
                    return False
                i += 1
            if byte == 118:
                vertex += 1
            else:
                face += 1
        else:
            while i < size and text[i] != _NEWLINE:
                i += 1
        i += 1
    return True


@numba.njit(cache=True, inline="always")
def _number(text: NDArray[np.uint8], i: int) -> tuple[bool, float, int]:
    """Whether a decimal number stands at ``i``, its value, and where it ends."""
    size = text.shape[0]
    negative = False
    if i < size and (text[i] == 45 or text[i] == 43):
        negative = text[i] == 45
        i += 1
    mantissa = 0
    digits = 0
    power = 0
    after_point = False
    while i < size:
        byte = text[i]
        if 48 <= byte <= 57:
            if mantissa >= _EXACT // 10:
                return False, 0.0, i
            mantissa = 10 * mantissa + (byte - 48)
            digits += 1
            if after_point:
                power -= 1
        elif byte == 46 and not after_point:
            after_point = True
        else:
            break
        i += 1
    if digits == 0:
        return False, 0.0, i
    if i < size and (text[i] == 101 or text[i] == 69):
        i += 1
        down = False
        if i < size and (text[i] == 45 or text[i] == 43):
            down = text[i] == 45
            i += 1
        exponent = 0
        first = i
        while i < size and 48 <= text[i] <= 57:
            exponent = 10 * exponent + (text[i] - 48)
            i += 1
        if i == first or i - first > 3:
            return False, 0.0, i
        power += -exponent if down else exponent
    if power < -22 or power > 22:
        return False, 0.0, i
    value = mantissa / _POWERS[-power] if power < 0 else mantissa * _POWERS[power]
    return True, (-value if negative else value), i
