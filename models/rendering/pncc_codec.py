"""Compact records of PNCC and offset maps: cropped, masked, quantised, predicted, compressed.

A record holds one photograph: a header, then one Zstandard frame of the face's bounding
box as a bit mask (rows padded to bytes) and, for each visible pixel and each of the six
planes, a 16-bit code in steps of 1/256 mm. Codes are written as the difference, modulo
2^16, to a prediction from the pixels to the left and above, folded so that small differences
of either sign are small numbers; all low bytes, plane by plane, and then all high bytes.
The integers come back exactly. Step and origins are whole numbers of 1/256 mm, so a code's
length is a float32 without rounding, and a decoded length is within half a step: 0.00195 mm.
"""

import struct
import threading
from functools import lru_cache
from typing import Any, NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float, UInt8

from models.rendering.jit import kernel, part
from models.rendering.pncc import PLANES, Crop, PnccMaps

STEP_MM = 1.0 / 256.0
MAGIC = b"PNC2"
OFFSET_ORIGIN_MM = -128.0
"""Length of code zero of the offset planes: codes span -128 .. 128 mm."""
_HEADER = struct.Struct("<4s6H6fI")
LEVEL, HASH_LOG, MIN_MATCH = 1, 8, 7
"""Zstandard's level 1 with a tiny table of long matches: noise has few, and it saves a sixth."""


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


@part
@no_type_check
def _expected(
    here: np.ndarray,
    above: np.ndarray,
    last: np.ndarray,
    column: int,
    plane: int,
    up: bool,
    planar: bool,
) -> int:
    """The code foretold: planar if three neighbours are seen, else the one above, else the last.

    ``here`` and ``above`` are two rows of codes that begin one column early.
    """
    left_code = here[column, plane]
    up_code = above[np.uint32(column + np.uint32(1)), plane]
    corner_code = above[column, plane]
    plain = up_code if up else last[plane]
    return left_code + up_code - corner_code if planar else plain


@kernel
@no_type_check
def _code_run(
    lengths: np.ndarray,
    origin: np.ndarray,
    first: int,
    end: int,
    seen_above: np.ndarray,
    here: np.ndarray,
    above: np.ndarray,
    last: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    pixel: int,
) -> bool:
    """Quantise, predict and fold seen columns first..end of one row; False without a code.

    Args:
        lengths: (6, columns) of this row.
        origin: (6,).
        first: First column of the run; the one before it is not seen.
        end: Past the last column.
        seen_above: (columns + 1,) of the row above; begins one column early, like the codes.
        here: (6, columns + 1) for the codes of this row.
        above: (6, columns + 1) codes of the row above.
        last: (6,) codes of the last pixel before the run; then of the run's last.
        low: (6, pixels) for the low bytes of the folded differences.
        high: (6, pixels) for the high bytes.
        pixel: Number of the run's first pixel.

    Chosen without branches and plane by plane, so that many columns are worked on at once.
    """
    length = np.int64(end) - np.int64(first)
    up_seen, corner_seen = seen_above[first + 1 : end + 1], seen_above[first:end]
    up_bits, corner_bits = np.empty(length, dtype=np.int32), np.empty(length, dtype=np.int32)
    for k in range(length):
        up_bits[k] = -np.int32(up_seen[k])
        corner_bits[k] = -np.int32(up_seen[k] & corner_seen[k])
    corner_bits[0] = 0
    folded = np.empty(length, dtype=np.int32)
    fits = True
    for plane in range(PLANES):
        values = lengths[plane, first:end]
        codes = here[plane, first + 1 : end + 1]
        start = origin[plane]
        misfits = 0
        for k in range(length):
            code = np.rint((values[k] - start) / STEP_MM)
            misfits |= (code < 0.0) | (code > 65535.0) | (code != code)
            codes[k] = np.int32(code)
        fits &= misfits == 0
        here[plane, first] = last[plane]
        left = here[plane, first:end]
        up, corner = above[plane, first + 1 : end + 1], above[plane, first:end]
        for k in range(length):
            keep_left = ~(up_bits[k] ^ corner_bits[k])
            expected = (left[k] & keep_left) + (up[k] & up_bits[k]) - (corner[k] & corner_bits[k])
            signed = np.int32(np.int16(codes[k] - expected))
            folded[k] = (signed << 1) ^ (signed >> 31)
        low_bytes = low[plane, pixel : pixel + length]
        for k in range(length):
            low_bytes[k] = np.uint8(folded[k])
        high_bytes = high[plane, pixel : pixel + length]
        for k in range(length):
            high_bytes[k] = np.uint8(folded[k] >> 8)
        last[plane] = codes[length - 1]
    return fits


@kernel
@no_type_check
def _encode(
    lengths: np.ndarray,
    mask: np.ndarray,
    origin: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> bool:
    """Fill the bytes of a payload from the seen pixels; False when a length has no code."""
    rows, columns = mask.shape
    planes = np.empty((PLANES, columns), dtype=np.float32)
    above = np.zeros((PLANES, columns + 1), dtype=np.int32)
    here = np.zeros((PLANES, columns + 1), dtype=np.int32)
    last = np.zeros(PLANES, dtype=np.int32)
    seen_above = np.zeros(columns + 1, dtype=np.bool_)
    pixel = 0
    for row in range(rows):
        first = 0
        while first < columns:
            if not mask[row, first]:
                first += 1
                continue
            end = first
            while end < columns and mask[row, end]:
                for plane in range(PLANES):
                    planes[plane, end] = lengths[pixel + end - first, plane]
                end += 1
            if not _code_run(
                planes, origin, first, end, seen_above, here, above, last, low, high, pixel
            ):
                return False
            pixel += end - first
            first = end
        seen_above[1:] = mask[row]
        above, here = here, above
    return True


@kernel
@no_type_check
def _decode(
    bits: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    origin: np.ndarray,
    lengths: np.ndarray,
    mask: np.ndarray,
) -> None:
    """Undo ``_encode`` into zeroed lengths and mask."""
    rows, columns = mask.shape
    # All at once, which vectorises; in the loop below it would not.
    differences = np.empty((PLANES, low.shape[1]), dtype=np.int16)
    for plane in range(PLANES):
        for pixel in range(np.uint32(low.shape[1])):
            folded = np.int32(low[plane, pixel]) | (np.int32(high[plane, pixel]) << 8)
            differences[plane, pixel] = (folded >> 1) ^ -(folded & 1)
    above = np.zeros((columns + 1, PLANES), dtype=np.int32)
    here = np.zeros((columns + 1, PLANES), dtype=np.int32)
    last = np.zeros(PLANES, dtype=np.int32)
    pixel = np.uint32(0)
    for row in range(np.uint32(rows)):
        left, up_left = False, False
        for column in range(np.uint32(columns)):
            up = row > 0 and mask[np.uint32(row - 1), column]
            seen = (bits[row, column >> 3] & np.uint8(0x80 >> (column & 7))) != 0
            if seen:
                mask[row, column] = True
                planar = left and up and up_left
                for plane in range(PLANES):
                    expected = _expected(here, above, last, column, plane, up, planar)
                    value = np.int32(np.uint16(expected + differences[plane, pixel]))
                    here[np.uint32(column + 1), plane] = value
                    last[plane] = value
                    lengths[row, column, plane] = value * STEP_MM + origin[plane]
                pixel += np.uint32(1)
            left = seen
            up_left = up
        above, here = here, above


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


@lru_cache(maxsize=8)
def _compressor(thread: int) -> Any:  # noqa: ANN401 - zstandard's, imported late
    """The compressor of one thread; making one costs a tenth of a record."""
    import zstandard

    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL, hash_log=HASH_LOG, min_match=MIN_MATCH
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


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


class Record(NamedTuple):
    """One encoded photograph.

    Attributes:
        data: The bytes; see :func:`decode`.
        box: Top, left, rows and columns of the face in the picture, all zero without one.
    """

    data: bytes
    box: tuple[int, int, int, int]


def encode_crop(crop: Crop, origin_mm: tuple[float, ...]) -> Record:
    """Quantise, predict and compress in one pass; the same maps always give the same bytes.

    Raises:
        ValueError: A length does not fit 16 bits above its origin, or is not finite.
    """
    count, top, bottom, left, right = _extent(crop.mask)
    rows, columns = bottom - top, right - left
    seen = np.ascontiguousarray(crop.mask[top:bottom, left:right])
    bits = np.packbits(seen, axis=1)
    payload = np.empty(bits.size + 2 * PLANES * count, dtype=np.uint8)
    payload[: bits.size] = bits.ravel()
    low, high = payload[bits.size :].reshape(2, PLANES, count)
    lengths = np.ascontiguousarray(crop.lengths_mm, dtype=np.float32)
    fits = _encode(lengths, seen, np.asarray(origin_mm, dtype=np.float64), low, high)
    if not fits:
        raise ValueError(_unfit(crop.lengths_mm, origin_mm))
    box = (crop.top + top, crop.left + left, rows, columns) if count else (0, 0, 0, 0)
    return Record(_record((crop.height, crop.width), box, origin_mm, payload), box)


def encode(maps: PnccMaps, origin_mm: tuple[float, ...]) -> bytes:
    """Record of whole maps; see :func:`encode_crop`."""
    parts = maps.pncc_mm[maps.mask], maps.offset_mm[maps.mask]
    lengths = np.concatenate(parts, axis=1).astype(np.float32, copy=False)
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
    origin = np.asarray(opened.origin_mm, dtype=np.float64)
    _decode(opened.bits, opened.low, opened.high, origin, lengths[box], mask[box])
    return PnccMaps(lengths[..., :3], lengths[..., 3:], mask)
