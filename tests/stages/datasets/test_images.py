"""Image files: complete ones decode, truncated and foreign ones are refused with the reason."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from stages.datasets.images import ImageError, check_complete, decode_rgb, image_size
from tests.stages.datasets.raw_trees import picture


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_complete_files(suffix: str) -> None:
    assert image_size(picture(suffix, 40, 60)) == (40, 60)


def test_colours_come_as_rgb() -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 2] = 255
    data = cv2.imencode(".png", red)[1].tobytes()
    np.testing.assert_array_equal(decode_rgb(data)[0, 0], [255, 0, 0])


def test_grey_images_become_three_channels() -> None:
    data = cv2.imencode(".png", np.full((5, 7), 9, np.uint8))[1].tobytes()
    assert decode_rgb(data).shape == (5, 7, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_every_truncation_is_noticed(suffix: str) -> None:
    data = picture(suffix, 20, 24)
    for length in range(0, len(data) - 2, 7):
        with pytest.raises(ImageError):
            check_complete(data[:length])


def test_a_truncated_progressive_jpeg_is_noticed() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    assert image_size(data) == (64, 64)
    with pytest.raises(ImageError, match="no end-of-image"):
        check_complete(data[: len(data) // 2])


def test_a_thumbnail_inside_does_not_hide_the_truncation() -> None:
    data = picture(".jpg")
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + len(data)) + data
    whole = data[:2] + thumbnail + data[2:]
    assert image_size(whole) == (40, 60)
    with pytest.raises(ImageError, match="no end-of-image"):
        check_complete(whole[:-30])


def test_a_flipped_png_bit_is_noticed() -> None:
    data = bytearray(picture(".png"))
    data[len(data) // 2] ^= 1
    with pytest.raises(ImageError, match="checksum"):
        check_complete(bytes(data))


def test_trailing_bytes_are_allowed() -> None:
    assert image_size(picture(".jpg") + b"\0" * 100) == (40, 60)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "got one starting with b'<htm'"),
        (b"\xff\xd8\xff\xd9", "truncated before|without picture"),
        (b"\xff\xd8" + b"\xff" * 40, "truncated before"),
        (b"BM123", "truncated inside its header"),
    ],
)
def test_other_files(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode_rgb(data)


def test_a_bomb_is_refused_before_decoding() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = b""
    for name, body in ((b"IHDR", header), (b"IDAT", b""), (b"IEND", b"")):
        chunks += struct.pack(">I", len(body)) + name + body
        chunks += struct.pack(">I", zlib.crc32(name + body))
    with pytest.raises(ImageError, match="60000 x 60000"):
        decode_rgb(b"\x89PNG\r\n\x1a\n" + chunks)
