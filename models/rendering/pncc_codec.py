"""Compact records of PNCC and offset maps: cropped, masked, quantised, predicted, compressed.

A record holds one photograph: a header, then one Zstandard frame of the face's bounding
box as a bit mask (rows padded to bytes) and, for each visible pixel and each of the six
planes, a 16-bit code in steps of 4 micrometres. Codes are written as the
difference to a prediction from the pixels to the left and above, folded so that small
differences of either sign are small numbers, low bytes first and high bytes after.
The integers come back exactly; a decoded length is within half a step.
"""

import struct
import threading
from functools import lru_cache
from typing import Any, NamedTuple, no_type_check

import numpy as np
from jaxtyping import Bool, Float, UInt8, UInt16

from models.rendering.jit import kernel
from models.rendering.pncc import PLANES, Crop, PnccMaps

STEP_MM = 0.004
MAGIC = b"PNC1"
OFFSET_ORIGIN_MM = -131.072
"""Length of code zero of the offset planes: codes span -131 .. 131 mm."""
_HEADER = struct.Struct("<4s6H6fI")
LEVEL = 1


class Codes(NamedTuple):
    """Quantised maps of a crop.

    Attributes:
        values: (6, h, w) codes of the crop, zero off the mask.
        mask: (h, w) where the face is seen.
        top: First row of the crop.
        left: First column of the crop.
        height: Rows of the whole picture.
        width: Columns of the whole picture.
        origin_mm: Length of code zero, per plane.
    """

    values: UInt16[np.ndarray, "6 h w"]
    mask: Bool[np.ndarray, "h w"]
    top: int
    left: int
    height: int
    width: int
    origin_mm: tuple[float, ...]


@kernel
@no_type_check
def _walk(mask: np.ndarray, at: np.ndarray, case: np.ndarray) -> None:
    """Flat position and prediction rule of each visible pixel, row by row.

    Rules: 0 planar from left, up and up-left; 1 up; 2 left; 3 the visible pixel before.
    """
    count = 0
    columns = mask.shape[1]
    for row in range(mask.shape[0]):
        for column in range(columns):
            if not mask[row, column]:
                continue
            left = column > 0 and mask[row, column - 1]
            up = row > 0 and mask[row - 1, column]
            rule = 3
            if left and up and mask[row - 1, column - 1]:
                rule = 0
            elif up:
                rule = 1
            elif left:
                rule = 2
            at[count] = row * columns + column
            case[count] = rule
            count += 1


@kernel
@no_type_check
def _predict(plane: np.ndarray, here: int, columns: int, rule: int, last: int) -> int:
    """The expected code at flat position ``here``."""
    if rule == 0:
        left = np.int64(plane[np.uint32(here - 1)])
        up = np.int64(plane[np.uint32(here - columns)])
        return left + up - np.int64(plane[np.uint32(here - columns - 1)])
    if rule == 1:
        return np.int64(plane[np.uint32(here - columns)])
    if rule == 2:
        return np.int64(plane[np.uint32(here - 1)])
    return last


@kernel
@no_type_check
def _fold(
    planes: np.ndarray,
    columns: int,
    at: np.ndarray,
    case: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> None:
    """Write the folded differences of the visible pixels, plane after plane."""
    count = at.shape[0]
    for index in range(planes.shape[0]):
        plane = planes[index]
        last = np.int64(0)
        for pixel in range(np.uint32(count)):
            here = at[pixel]
            value = np.int64(plane[here])
            expected = _predict(plane, here, columns, case[pixel], last)
            difference = (value - expected) & 0xFFFF
            signed = difference - 0x10000 if difference >= 0x8000 else difference
            folded = (signed << 1) ^ (signed >> 63)
            low[index, pixel] = folded & 0xFF
            high[index, pixel] = folded >> 8
            last = value


@kernel
@no_type_check
def _unfold(
    low: np.ndarray,
    high: np.ndarray,
    columns: int,
    at: np.ndarray,
    case: np.ndarray,
    planes: np.ndarray,
) -> None:
    """Undo ``_fold`` into zeroed planes."""
    count = at.shape[0]
    for index in range(planes.shape[0]):
        plane = planes[index]
        last = np.int64(0)
        for pixel in range(np.uint32(count)):
            here = at[pixel]
            folded = np.int64(low[index, pixel]) | (np.int64(high[index, pixel]) << 8)
            difference = (folded >> 1) ^ -(folded & 1)
            last = (_predict(plane, here, columns, case[pixel], last) + difference) & 0xFFFF
            plane[here] = last


@kernel
@no_type_check
def _extent(mask: np.ndarray) -> tuple[int, int, int, int, int]:
    """Number of visible pixels, and first and past-the-last row and column of them."""
    count = 0
    top, bottom, left, right = mask.shape[0], 0, mask.shape[1], 0
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            if mask[row, column]:
                count += 1
                top = min(top, row)
                bottom = row + 1
                left = min(left, column)
                right = max(right, column + 1)
    if count == 0:
        return 0, 0, 0, 0, 0
    return count, top, bottom, left, right


@kernel
@no_type_check
def _encode(
    lengths: np.ndarray,
    mask: np.ndarray,
    origin: np.ndarray,
    inverse: np.float32,
    bits: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> bool:
    """Quantise, predict and fold in one pass; False when a length has no code."""
    rows, columns = mask.shape
    above = np.zeros((columns + 1, PLANES), dtype=np.int32)
    here = np.zeros((columns + 1, PLANES), dtype=np.int32)
    last = np.zeros(PLANES, dtype=np.int32)
    pixel = np.uint32(0)
    for row in range(np.uint32(rows)):
        left, up_left = False, False
        for column in range(np.uint32(columns)):
            up = row > 0 and mask[np.uint32(row - 1), column]
            if mask[row, column]:
                bits[row, column >> 3] |= np.uint8(0x80 >> (column & 7))
                for index in range(PLANES):
                    code = np.rint((lengths[row, column, index] - origin[index]) * inverse)
                    if not (code >= 0.0 and code <= 65535.0):
                        return False
                    value = np.int32(code)
                    if left and up and up_left:
                        expected = (
                            here[column, index]
                            + above[np.uint32(column + 1), index]
                            - above[column, index]
                        )
                    elif up:
                        expected = above[np.uint32(column + 1), index]
                    else:
                        expected = last[index]
                    signed = np.int32(np.int16(value - expected))
                    folded = np.uint16((signed << 1) ^ (signed >> 31))
                    low[index, pixel] = np.uint8(folded)
                    high[index, pixel] = np.uint8(folded >> 8)
                    here[np.uint32(column + 1), index] = value
                    last[index] = value
                pixel += np.uint32(1)
                left = True
            else:
                left = False
            up_left = up
        above, here = here, above
    return True


@kernel
@no_type_check
def _decode(
    bits: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    origin: np.ndarray,
    step: np.float32,
    lengths: np.ndarray,
    mask: np.ndarray,
) -> None:
    """Undo ``_encode`` into zeroed lengths and mask."""
    rows, columns = mask.shape
    above = np.zeros((columns + 1, PLANES), dtype=np.int32)
    here = np.zeros((columns + 1, PLANES), dtype=np.int32)
    last = np.zeros(PLANES, dtype=np.int32)
    pixel = np.uint32(0)
    for row in range(np.uint32(rows)):
        left, up_left = False, False
        for column in range(np.uint32(columns)):
            up = row > 0 and mask[np.uint32(row - 1), column]
            if bits[row, column >> 3] & np.uint8(0x80 >> (column & 7)):
                mask[row, column] = True
                for index in range(PLANES):
                    folded = np.int32(low[index, pixel]) | (np.int32(high[index, pixel]) << 8)
                    difference = (folded >> 1) ^ -(folded & 1)
                    if left and up and up_left:
                        expected = (
                            here[column, index]
                            + above[np.uint32(column + 1), index]
                            - above[column, index]
                        )
                    elif up:
                        expected = above[np.uint32(column + 1), index]
                    else:
                        expected = last[index]
                    value = np.int32(np.uint16(expected + difference))
                    here[np.uint32(column + 1), index] = value
                    last[index] = value
                    lengths[row, column, index] = np.float32(value) * step + origin[index]
                pixel += np.uint32(1)
                left = True
            else:
                left = False
            up_left = up
        above, here = here, above


def _visible(mask: Bool[np.ndarray, "h w"]) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions and prediction rules of the visible pixels."""
    count = int(mask.sum())
    at, case = np.empty(count, dtype=np.uint32), np.empty(count, dtype=np.uint8)
    _walk(mask, at, case)
    return at, case


def origin_of(mean_mm: Float[np.ndarray, "V 3"]) -> tuple[float, ...]:
    """Length of code zero per plane for a mean face: its lower corner, in whole millimetres.

    Raises:
        ValueError: The face is larger than the codes reach.
    """
    low, extent = np.floor(mean_mm.min(axis=0)), np.ptp(mean_mm, axis=0).max()
    if not extent < 0xFFFF * STEP_MM - 1.0:
        raise ValueError(
            f"origin_of expects a mean face smaller than {0xFFFF * STEP_MM:.0f} mm, got "
            f"{extent:.0f} mm; is the model's unit right?"
        )
    return (*(float(length) for length in low), *3 * (OFFSET_ORIGIN_MM,))


def _unfit(lengths_mm: Float[np.ndarray, "n 6"], origin_mm: tuple[float, ...]) -> str:
    """Why these lengths have no codes."""
    known = lengths_mm[np.isfinite(lengths_mm)]
    found = f"{known.min():.1f}..{known.max():.1f} mm" if known.size else "none that is finite"
    return (
        f"a record holds lengths within {0xFFFF * STEP_MM:.0f} mm above {origin_mm}, got {found}; "
        "are the coefficients of this sample of another model?"
    )


def quantise(maps: PnccMaps, origin_mm: tuple[float, ...]) -> Codes:
    """Crop to the face's bounding box and round to codes.

    Args:
        maps: Rendered maps; may be empty.
        origin_mm: Length of code zero, per plane.

    Raises:
        ValueError: A length does not fit 16 bits above its origin, or is not finite.
    """
    height, width = maps.mask.shape
    rows, columns = np.flatnonzero(maps.mask.any(1)), np.flatnonzero(maps.mask.any(0))
    top, bottom = (int(rows[0]), int(rows[-1]) + 1) if rows.size else (0, 0)
    left, right = (int(columns[0]), int(columns[-1]) + 1) if columns.size else (0, 0)
    box = np.s_[top:bottom, left:right]
    mask = np.ascontiguousarray(maps.mask[box])
    lengths = np.concatenate([maps.pncc_mm[box], maps.offset_mm[box]], axis=2)
    codes = np.rint((lengths - np.asarray(origin_mm, dtype=np.float32)) * np.float32(1 / STEP_MM))
    seen = codes[mask]
    if seen.size and not (seen.min() >= 0 and seen.max() <= 0xFFFF):
        raise ValueError(_unfit(lengths[mask], origin_mm))
    values = np.where(mask, np.moveaxis(codes, 2, 0), 0).astype(np.uint16)
    return Codes(np.ascontiguousarray(values), mask, top, left, height, width, origin_mm)


def dequantise(codes: Codes) -> PnccMaps:
    """Lengths of codes, at the size of the whole picture."""
    lengths = np.zeros((codes.height, codes.width, PLANES), dtype=np.float32)
    mask = np.zeros((codes.height, codes.width), dtype=bool)
    rows, columns = codes.mask.shape
    box = np.s_[codes.top : codes.top + rows, codes.left : codes.left + columns]
    mask[box] = codes.mask
    scaled = np.moveaxis(codes.values, 0, 2) * np.float32(STEP_MM)
    scaled += np.asarray(codes.origin_mm, dtype=np.float32)
    lengths[box] = np.where(codes.mask[..., None], scaled, np.float32(0))
    return PnccMaps(lengths[..., :3], lengths[..., 3:], mask)


@lru_cache(maxsize=8)
def _compressor(thread: int) -> Any:  # noqa: ANN401 - zstandard's, imported late
    """The compressor of one thread; making one costs a tenth of a record."""
    import zstandard

    return zstandard.ZstdCompressor(level=LEVEL)


@lru_cache(maxsize=8)
def _decompressor(thread: int) -> Any:  # noqa: ANN401 - zstandard's, imported late
    """The decompressor of one thread."""
    import zstandard

    return zstandard.ZstdDecompressor()


def _record(
    size: tuple[int, int],
    box: tuple[int, int, int, int],
    origin_mm: tuple[float, ...],
    payload: UInt8[np.ndarray, " n"],
) -> bytes:
    """Header and frame of a payload; ``box`` is top, left, rows, columns."""
    frame = _compressor(threading.get_ident()).compress(payload.data)
    return _HEADER.pack(MAGIC, *size, *box, *origin_mm, payload.size) + frame


def pack(codes: Codes) -> bytes:
    """One record of ``codes``; the same codes always give the same bytes."""
    at, case = _visible(codes.mask)
    low, high = np.empty((2, PLANES, len(at)), dtype=np.uint8)
    rows, columns = codes.mask.shape
    _fold(codes.values.reshape(PLANES, -1), columns, at, case, low, high)
    bits = np.packbits(codes.mask, axis=1)
    payload = np.concatenate([bits.ravel(), low.ravel(), high.ravel()])
    box = codes.top, codes.left, rows, columns
    return _record((codes.height, codes.width), box, codes.origin_mm, payload)


class _Opened(NamedTuple):
    """One record's header fields and its decompressed parts."""

    size: tuple[int, int]
    box: tuple[int, int, int, int]
    origin_mm: tuple[float, ...]
    bits: UInt8[np.ndarray, "h b"]
    low: UInt8[np.ndarray, "6 n"]
    high: UInt8[np.ndarray, "6 n"]


def _open(record: bytes) -> _Opened:
    import zstandard

    if len(record) < _HEADER.size or record[:4] != MAGIC:
        raise ValueError(
            f"expected a PNCC record that begins with {MAGIC!r}, got {len(record)} bytes that begin"
            f" with {record[:4]!r}; check offset and length against the index"
        )
    _, height, width, top, left, rows, columns, *rest = _HEADER.unpack_from(record)
    origin, size = tuple(rest[:PLANES]), rest[PLANES]
    try:
        payload = _decompressor(threading.get_ident()).decompress(
            memoryview(record)[_HEADER.size :], max_output_size=size
        )
    except zstandard.ZstdError as error:
        raise ValueError(f"a PNCC record is damaged ({error}); render the shard again") from error
    length = (columns + 7) // 8
    data = np.frombuffer(payload, dtype=np.uint8)
    bits = data[: rows * length]
    count = int(np.bitwise_count(bits).sum()) * PLANES
    if len(payload) != rows * length + 2 * count:
        raise ValueError(
            f"a PNCC record expects {rows * length + 2 * count} bytes of payload, got "
            f"{len(payload)}; render the shard again"
        )
    if top + rows > height or left + columns > width:
        raise ValueError(
            f"a PNCC record's crop ({top}, {left}, {rows}, {columns}) leaves its picture of "
            f"{height} x {width}; render the shard again"
        )
    low, high = data[rows * length :].reshape(2, PLANES, count // PLANES)
    return _Opened(
        (height, width), (top, left, rows, columns), origin, bits.reshape(rows, length), low, high
    )


def unpack(record: bytes) -> Codes:
    """Codes of one record.

    Raises:
        ValueError: The bytes are not a whole record.
    """
    opened = _open(record)
    top, left, rows, columns = opened.box
    mask = np.unpackbits(opened.bits, axis=1, count=columns).astype(bool)
    values = np.zeros((PLANES, rows, columns), dtype=np.uint16)
    at, case = _visible(mask)
    _unfold(opened.low, opened.high, columns, at, case, values.reshape(PLANES, -1))
    return Codes(values, mask, top, left, *opened.size, opened.origin_mm)


class Record(NamedTuple):
    """One encoded photograph.

    Attributes:
        data: The bytes; see :func:`decode`.
        box: Top, left, rows and columns of the face in the picture, all zero without one.
    """

    data: bytes
    box: tuple[int, int, int, int]


def encode_crop(crop: Crop, origin_mm: tuple[float, ...]) -> Record:
    """Quantise, predict and compress in one pass; the bytes are ``pack(quantise(...))``.

    Raises:
        ValueError: A length does not fit 16 bits above its origin, or is not finite.
    """
    count, top, bottom, left, right = _extent(crop.mask)
    rows, columns = bottom - top, right - left
    split = rows * ((columns + 7) // 8)
    payload = np.empty(split + 2 * PLANES * count, dtype=np.uint8)
    payload[:split] = 0
    bits = payload[:split].reshape(rows, -1) if rows else np.empty((0, 0), np.uint8)
    low, high = payload[split:].reshape(2, PLANES, count)
    part = np.s_[top:bottom, left:right]
    fits = _encode(
        crop.lengths_mm[part],
        crop.mask[part],
        np.asarray(origin_mm, dtype=np.float32),
        np.float32(1 / STEP_MM),
        bits,
        low,
        high,
    )
    if not fits:
        raise ValueError(_unfit(crop.lengths_mm[crop.mask], origin_mm))
    box = (crop.top + top, crop.left + left, rows, columns) if count else (0, 0, 0, 0)
    return Record(_record((crop.height, crop.width), box, origin_mm, payload), box)


def encode(maps: PnccMaps, origin_mm: tuple[float, ...]) -> bytes:
    """Quantise and pack; see :func:`quantise` for the limits."""
    lengths = np.concatenate([maps.pncc_mm, maps.offset_mm], axis=2).astype(np.float32, copy=False)
    return encode_crop(Crop(lengths, maps.mask, 0, 0, *maps.mask.shape), origin_mm).data


def decode(record: bytes) -> PnccMaps:
    """Maps of one record, each length within half a step of what was encoded.

    Raises:
        ValueError: The bytes are not a whole record.
    """
    opened = _open(record)
    top, left, rows, columns = opened.box
    lengths = np.zeros((*opened.size, PLANES), dtype=np.float32)
    mask = np.zeros(opened.size, dtype=bool)
    box = np.s_[top : top + rows, left : left + columns]
    origin = np.asarray(opened.origin_mm, dtype=np.float32)
    _decode(
        opened.bits, opened.low, opened.high, origin, np.float32(STEP_MM), lengths[box], mask[box]
    )
    return PnccMaps(lengths[..., :3], lengths[..., 3:], mask)
