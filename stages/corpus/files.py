"""File formats that several owners share: OBJ, MATLAB 5, images, plain tables.

Every writer gives bytes that depend on its arguments alone: no time stamps, no host names.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

_MAT_HEADER = b"MATLAB 5.0 MAT-file, Platform: PCWIN64, Created on: Wed Nov 18 08:59:42 2015"
_MAT_TEXT = 116  # bytes of descriptive text at the head of a level 5 MAT-file


def format_rows(template: str, rows: Shaped[np.ndarray, "n k"]) -> str:
    """Return one line per row, ``template`` filled with the row's values."""
    return (template * len(rows)) % tuple(rows.ravel().tolist())


def obj_text(
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f k"] | Sequence[Int[np.ndarray, "f k"]],
    *,
    colors: Float[np.ndarray, "v 3"] | None = None,
    head: str = "",
    material: str | None = None,
    texture_indices: bool = False,
    decimals: int = 6,
) -> str:
    """Return a Wavefront OBJ.

    Args:
        vertices: In the owner's unit.
        faces: 0-based corners; several arrays when triangles and quads are mixed.
        colors: RGB in [0, 1], appended to each ``v`` line.
        head: Lines before the vertices, ending in a newline.
        material: Name for ``usemtl`` before the faces.
        texture_indices: Write ``f a/a b/b c/c`` with a planar ``vt`` per vertex.
        decimals: Digits after the point.
    """
    number = f"%.{decimals}f"
    if colors is None:
        parts = [head, format_rows(f"v {number} {number} {number}\n", vertices)]
    else:
        line = f"v {number} {number} {number} %.4f %.4f %.4f\n"
        parts = [head, format_rows(line, np.hstack([vertices, colors]))]
    if texture_indices:
        low, high = vertices[:, :2].min(0), vertices[:, :2].max(0)
        parts.append(format_rows("vt %.4f %.4f\n", (vertices[:, :2] - low) / (high - low)))
    if material is not None:
        parts.append(f"usemtl {material}\n")
    for group in [faces] if isinstance(faces, np.ndarray) else faces:
        corners = group.astype(np.int64) + 1
        if texture_indices:
            line = "f" + " %d/%d" * corners.shape[1] + "\n"
            parts.append(format_rows(line, np.repeat(corners, 2, axis=1)))
        else:
            parts.append(format_rows("f" + " %d" * corners.shape[1] + "\n", corners))
    return "".join(parts)


def mat_bytes(variables: Mapping[str, Shaped[np.ndarray, "..."]], *, compress: bool) -> bytes:
    """Return a MATLAB level 5 file with a fixed header text.

    scipy stamps the current time into the header; the stamp is replaced.
    """
    from scipy.io import savemat

    stream = io.BytesIO()
    savemat(stream, dict(variables), do_compression=compress)
    stream.seek(0)
    stream.write(_MAT_HEADER.ljust(_MAT_TEXT))
    return stream.getvalue()


def jpeg_bytes(image: UInt8[np.ndarray, "h w 3"], quality: int = 92) -> bytes:
    """Return an RGB image as JPEG."""
    return _encode(".jpg", image, [1, quality])


def png_bytes(image: UInt8[np.ndarray, "h w *c"], level: int = 3) -> bytes:
    """Return an RGB or grey image as PNG."""
    return _encode(".png", image, [16, level])


def bmp_bytes(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Return an RGB image as BMP."""
    return _encode(".bmp", image, [])


def _encode(kind: str, image: UInt8[np.ndarray, "h w *c"], flags: list[int]) -> bytes:
    import cv2

    ordered = image[..., ::-1] if image.ndim == 3 else image
    done, data = cv2.imencode(kind, np.ascontiguousarray(ordered), flags)
    if not done:
        raise ValueError(f"expected an image that encodes as {kind}, got shape {image.shape}")
    return data.tobytes()


def write(path: Path, content: bytes | str) -> None:
    """Write a file into a folder under construction, creating parents; text as latin-1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("latin1") if isinstance(content, str) else content)


def truncated(data: bytes) -> bytes:
    """Return the first third of a file, as an interrupted copy leaves it."""
    return data[: max(len(data) // 3, 16)]
