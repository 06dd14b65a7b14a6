"""Binary PPM photographs as PNG: the same pixels in a file that every reader takes."""

import gzip
import re
import zlib

import numpy as np

from stages.datasets.images import MAX_PIXELS, ImageError

_HEADER = re.compile(rb"P6(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\s")
_HEADER_BYTES = 4096


def png_of_ppm(data: bytes) -> bytes:
    """Return an 8-bit PPM (``P6``), gzipped or not, as PNG without loss.

    Raises:
        ImageError: Not a complete PPM of that kind.
    """
    import cv2

    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ImageError(f"the gzipped photograph is truncated or damaged ({error})") from error
    header = _HEADER.match(data[:_HEADER_BYTES])
    if header is None:
        raise ImageError(f"expected a binary PPM photograph (P6), got one starting {data[:8]!r}")
    width, height, top = (int(word) for word in header.groups())
    if top != 255 or height * width > MAX_PIXELS or height * width == 0:
        raise ImageError(
            f"expected an 8-bit PPM photograph, got {width} x {height} pixels up to {top}"
        )
    size = 3 * height * width
    pixels = np.frombuffer(data[header.end() : header.end() + size], dtype=np.uint8)
    if len(pixels) < size:
        raise ImageError(
            f"the PPM photograph is truncated: {len(pixels)} bytes of pixels, expected {size}"
        )
    image = np.ascontiguousarray(pixels.reshape(height, width, 3)[..., ::-1])
    done, png = cv2.imencode(".png", image)
    assert done, "PNG encoding of a uint8 picture cannot fail"
    return bytes(png.tobytes())
