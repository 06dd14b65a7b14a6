"""Compact records of PNCC and offset maps: cropped, masked, quantised, predicted, compressed.

A record holds one photograph: a header, then one Zstandard frame of the face's bounding
box as a bit mask (rows padded to bytes) and, for each visible pixel and each of the six
planes, a 16-bit code in steps of 4 micrometres. Codes are written as the
difference to a prediction from the pixels to the left and above, folded so that small
differences of either sign are small numbers, low bytes first and high bytes after.
The integers come back exactly; a decoded length is within half a step.
"""

import struct
from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Bool, Float, UInt16

from models.rendering.jit import kernel
from models.rendering.pncc import PnccMaps

STEP_MM = 0.004
PLANES = 6
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
        low, high = np.nanmin(lengths[mask]), np.nanmax(lengths[mask])
        raise ValueError(
            f"quantise expects lengths within {0xFFFF * STEP_MM:.0f} mm above {origin_mm}, got "
            f"{low:.1f}..{high:.1f} mm; are the coefficients of this sample of another model?"
        )
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


def pack(codes: Codes) -> bytes:
    """One record of ``codes``; the same codes always give the same bytes."""
    import zstandard

    at, case = _visible(codes.mask)
    low, high = np.empty((2, PLANES, len(at)), dtype=np.uint8)
    columns = codes.mask.shape[1]
    _fold(codes.values.reshape(PLANES, -1), columns, at, case, low, high)
    payload = np.packbits(codes.mask, axis=1).tobytes() + low.tobytes() + high.tobytes()
    frame = zstandard.ZstdCompressor(level=LEVEL).compress(payload)
    rows = codes.mask.shape[0]
    header = _HEADER.pack(
        MAGIC,
        codes.height,
        codes.width,
        codes.top,
        codes.left,
        rows,
        columns,
        *codes.origin_mm,
        len(payload),
    )
    return header + frame


def unpack(record: bytes) -> Codes:
    """Codes of one record.

    Raises:
        ValueError: The bytes are not a whole record.
    """
    import zstandard

    if len(record) < _HEADER.size or record[:4] != MAGIC:
        raise ValueError(
            f"expected a PNCC record that begins with {MAGIC!r}, got {len(record)} bytes that begin"
            f" with {record[:4]!r}; check offset and length against the index"
        )
    _, height, width, top, left, rows, columns, *rest = _HEADER.unpack_from(record)
    origin, size = tuple(rest[:PLANES]), rest[PLANES]
    try:
        payload = zstandard.ZstdDecompressor().decompress(
            record[_HEADER.size :], max_output_size=size
        )
    except zstandard.ZstdError as error:
        raise ValueError(f"a PNCC record is damaged ({error}); render the shard again") from error
    bits = (columns + 7) // 8
    packed = np.frombuffer(payload, dtype=np.uint8, count=rows * bits)
    mask = np.unpackbits(packed.reshape(rows, bits), axis=1, count=columns).astype(bool)
    count = int(mask.sum()) * PLANES
    if len(payload) != rows * bits + 2 * count:
        raise ValueError(
            f"a PNCC record expects {rows * bits + 2 * count} bytes of payload, got {len(payload)};"
            " render the shard again"
        )
    low = np.frombuffer(payload, dtype=np.uint8, count=count, offset=rows * bits)
    high = np.frombuffer(payload, dtype=np.uint8, count=count, offset=rows * bits + count)
    values = np.zeros((PLANES, rows, columns), dtype=np.uint16)
    at, case = _visible(mask)
    flat = values.reshape(PLANES, -1)
    _unfold(low.reshape(PLANES, -1), high.reshape(PLANES, -1), columns, at, case, flat)
    return Codes(values, mask, top, left, height, width, origin)


def encode(maps: PnccMaps, origin_mm: tuple[float, ...]) -> bytes:
    """Quantise and pack; see :func:`quantise` for the limits."""
    return pack(quantise(maps, origin_mm))


def decode(record: bytes) -> PnccMaps:
    """Maps of one record, each length within half a step of what was encoded."""
    return dequantise(unpack(record))
