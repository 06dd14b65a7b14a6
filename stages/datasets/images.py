"""Photographs in files: complete or refused, decoded the same way everywhere."""

import struct
import zlib

import numpy as np
from jaxtyping import UInt8

MAX_PIXELS = 200_000_000
_JPEG, _PNG, _BMP = b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"BM"
_NO_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class ImageError(ValueError):
    """An image file cannot be used; the message says why."""


def decode_rgb(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image to RGB, orientation tag applied.

    Raises:
        ImageError: The bytes are no image, or not a complete one.
    """
    import cv2

    check_complete(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ImageError(f"the image does not decode: {error}") from error
    if image is None:
        raise ImageError("the image does not decode; expected a JPEG, PNG or BMP photograph")
    return np.ascontiguousarray(image[:, :, ::-1])


def image_size(data: bytes) -> tuple[int, int]:
    """Height and width in pixels after a full decode.

    Raises:
        ImageError: The bytes are no image, or not a complete one.
    """
    height, width, _ = decode_rgb(data).shape
    return int(height), int(width)


def check_complete(data: bytes) -> None:
    """Refuse empty and truncated files, which decoders fill up with grey without a word.

    JPEG: the markers are walked to the scan, which must end with the end-of-image marker. PNG: all
    chunks up to IEND must be there with their checksums. BMP: the announced length must be there.

    Raises:
        ImageError: The file is empty, truncated, damaged, too large or of another kind.
    """
    if not data:
        raise ImageError("the image file is empty")
    if data.startswith(_JPEG):
        height, width = _check_jpeg(data)
    elif data.startswith(_PNG):
        height, width = _check_png(data)
    elif data.startswith(_BMP):
        height, width = _check_bmp(data)
    else:
        raise ImageError(f"expected a JPEG, PNG or BMP file, got one starting with {data[:4]!r}")
    if height * width > MAX_PIXELS or height * width == 0:
        raise ImageError(f"the image announces {width} x {height} pixels; refused")


def _check_jpeg(data: bytes) -> tuple[int, int]:
    position, size = 2, (0, 0)
    while True:
        while data[position : position + 2] == b"\xff\xff":
            position += 1
        if position + 4 > len(data):
            raise ImageError("the JPEG file is truncated before its picture data")
        if data[position] != 0xFF:
            raise ImageError(f"the JPEG file is damaged at byte {position}")
        marker = data[position + 1]
        position += 2
        if marker in _NO_LENGTH:
            continue
        if marker == 0xD9:
            raise ImageError("the JPEG file ends without picture data")
        (length,) = struct.unpack_from(">H", data, position)
        if marker in _FRAMES and position + 7 <= len(data):
            size = struct.unpack_from(">HH", data, position + 3)
        position += length
        if marker == 0xDA:
            break
    if data.find(b"\xff\xd9", position) < 0:
        raise ImageError("the JPEG file is truncated: it has no end-of-image marker")
    return size


def _check_png(data: bytes) -> tuple[int, int]:
    position, size = len(_PNG), (0, 0)
    while True:
        if position + 12 > len(data):
            raise ImageError("the PNG file is truncated: it has no IEND chunk")
        (length,) = struct.unpack_from(">I", data, position)
        name = data[position + 4 : position + 8]
        end = position + 12 + length
        if end > len(data):
            raise ImageError(f"the PNG file is truncated inside its {name!r} chunk")
        (checksum,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(data[position + 4 : end - 4]) != checksum:
            raise ImageError(f"the PNG file is damaged: wrong checksum of its {name!r} chunk")
        if name == b"IHDR" and length == 13:
            width, height = struct.unpack_from(">II", data, position + 8)
            size = (height, width)
        if name == b"IEND":
            return size
        position = end


def _check_bmp(data: bytes) -> tuple[int, int]:
    if len(data) < 26:
        raise ImageError("the BMP file is truncated inside its header")
    offset, _, width, height = struct.unpack_from("<IIii", data, 10)
    bits = struct.unpack_from("<H", data, 28)[0] if len(data) >= 30 else 24
    compressed = len(data) >= 34 and struct.unpack_from("<I", data, 30)[0] in {1, 2, 4, 5}
    expected = offset + (abs(width) * bits + 31) // 32 * 4 * abs(height)
    if len(data) < expected and not compressed:
        raise ImageError(f"the BMP file is truncated: {len(data)} bytes, expected {expected}")
    return abs(height), abs(width)
