"""MATLAB level 5 files of other people: numeric arrays only, and damage never more than an error.

Written out here because the common reader's compiled code crashes the process on damaged files,
which would take a whole data set down with one file. Cells, structures, text and sparse matrices
are passed over: no input of ours needs them.

Source: MathWorks, MAT-File Format, "Level 5 MAT-File Format".
"""

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

_HEADER = 128
_MATRIX, _COMPRESSED, _INT8, _INT32, _UINT32 = 14, 15, 1, 5, 6
_STORED = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
_NUMERIC_CLASSES = range(6, 16)  # double, single, and the integers
_COMPLEX_FLAG = 0x0800
_PEEK = 1024  # bytes of a compressed variable that surely hold its name
_MAX_BYTES = 4 * 2**30


class MatError(ValueError):
    """A .mat file cannot be used; the message names it and says why."""


def read_mat(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Read the real numeric variables of a MATLAB level 5 (v7 or older) file.

    Args:
        path: The file.
        names: Only these variables; None for all.

    Returns:
        Arrays in the type and shape in which they are stored.

    Raises:
        MatError: The file is damaged, is of the HDF5 based v7.3, or is not MATLAB's.
        FileNotFoundError: There is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected {path}; the file is missing")
    data = path.read_bytes()
    if data.startswith(b"\x89HDF") or data[512:516] == b"\x89HDF" or b"MATLAB 7.3" in data[:116]:
        raise MatError(
            f"{path} is a MATLAB v7.3 (HDF5) file; expected v7 or older as its owner gives it"
        )
    try:
        return dict(_variables(memoryview(data), None if names is None else frozenset(names)))
    except (ValueError, struct.error, zlib.error, OverflowError, MemoryError) as error:
        raise MatError(f"{path} is not a readable .mat file ({error}); fetch it again") from error


def numeric(content: dict[str, np.ndarray], name: str, path: Path, size: int) -> np.ndarray:
    """Return variable ``name`` as finite float64, flattened.

    Raises:
        MatError: It is missing, not finite, or has not ``size`` numbers.
    """
    if name not in content:
        raise MatError(f"{path} has no {name}; expected {size} numbers, got {sorted(content)}")
    value = content[name]
    if value.size != size:
        raise MatError(
            f"{path}: {name} is {value.shape} of {value.dtype}, expected {size} real numbers"
        )
    flat = value.astype(np.float64).ravel()
    if not np.isfinite(flat).all():
        raise MatError(f"{path}: {name} holds NaN or infinite values")
    return flat


def _variables(data: memoryview, wanted: frozenset[str] | None) -> Iterator[tuple[str, np.ndarray]]:
    if len(data) < _HEADER:
        raise ValueError(f"{len(data)} bytes, shorter than a header")
    order = {b"IM": "<", b"MI": ">"}.get(bytes(data[126:128]))
    if order is None:
        raise ValueError("no MATLAB level 5 header")
    position = _HEADER
    while position < len(data):
        kind, start, stop, following = _element(data, position, order)
        if kind == _COMPRESSED:
            found = _compressed(data[start:stop], order, wanted)
            following = stop
        elif kind == _MATRIX:
            found = _matrix(data[start:stop], order, wanted)
        else:
            raise ValueError(f"unexpected element of type {kind} at byte {position}")
        if found is not None:
            yield found
        position = following


def _element(data: memoryview, position: int, order: str) -> tuple[int, int, int, int]:
    """Type, first and last byte of the content, and the next element's place."""
    if position + 8 > len(data):
        raise ValueError(f"truncated at byte {position}")
    first, size = struct.unpack_from(f"{order}II", data, position)
    if first >> 16:
        kind, size, start = first & 0xFFFF, first >> 16, position + 4
        if size > 4:
            raise ValueError(f"small element of {size} bytes at byte {position}")
        return kind, start, start + size, position + 8
    start = position + 8
    if start + size > len(data):
        raise ValueError(f"truncated inside the element at byte {position}")
    return first, start, start + size, start + size + (-size) % 8


def _compressed(
    data: memoryview, order: str, wanted: frozenset[str] | None
) -> tuple[str, np.ndarray] | None:
    if wanted is not None:
        peek = zlib.decompressobj().decompress(data, _PEEK)
        name = _name(memoryview(peek)[8:], order)
        if name is not None and name not in wanted:
            return None
    machine = zlib.decompressobj()
    content = memoryview(machine.decompress(data, _MAX_BYTES))
    if not machine.eof:
        raise ValueError("truncated inside a compressed variable")
    kind, start, stop, _ = _element(content, 0, order)
    if kind != _MATRIX:
        raise ValueError(f"compressed element of type {kind}, expected an array")
    return _matrix(content[start:stop], order, wanted)


def _name(data: memoryview, order: str) -> str | None:
    """The variable's name from the beginning of an array element; None where it is not reached."""
    try:
        position = 0
        for _ in range(2):
            _, _, _, position = _element(data, position, order)
        _, start, stop, _ = _element(data, position, order)
    except ValueError:
        return None
    return bytes(data[start:stop]).decode("latin1")


def _matrix(
    data: memoryview, order: str, wanted: frozenset[str] | None
) -> tuple[str, np.ndarray] | None:
    kind, start, stop, position = _element(data, 0, order)
    if kind != _UINT32 or stop - start != 8:
        raise ValueError("array without flags")
    (flags,) = struct.unpack_from(f"{order}I", data, start)
    kind, start, stop, position = _element(data, position, order)
    if kind != _INT32 or (stop - start) % 4 or not 2 <= (stop - start) // 4 <= 32:
        raise ValueError("array without dimensions")
    shape = struct.unpack_from(f"{order}{(stop - start) // 4}i", data, start)
    kind, start, stop, position = _element(data, position, order)
    if kind != _INT8:
        raise ValueError("array without a name")
    name = bytes(data[start:stop]).decode("latin1")
    if (wanted is not None and name not in wanted) or flags & 0xFF not in _NUMERIC_CLASSES:
        return None
    if flags & _COMPLEX_FLAG:
        raise ValueError(f"{name} is complex, expected real numbers")
    if any(length < 0 for length in shape):
        raise ValueError(f"{name} has the shape {shape}")
    kind, start, stop, _ = _element(data, position, order)
    if kind not in _STORED:
        raise ValueError(f"{name} is stored as type {kind}")
    dtype = np.dtype(order + _STORED[kind])
    if math.prod(shape) * dtype.itemsize != stop - start:
        raise ValueError(f"{name} {shape} has {stop - start} bytes of {dtype}")
    flat = np.frombuffer(data, dtype, math.prod(shape), start)
    native = flat.astype(dtype.newbyteorder("="))
    return name, native.reshape(shape, order="F")
