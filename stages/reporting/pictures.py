"""Pictures of the report: clay renders, error maps, photographs, all as PNG bytes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float, Int, UInt8

ERROR_END_MM: Final = 5.0
"""Error at which the error map's last colour is reached."""

_ERROR_COLOURS: Final = (
    (0.00, (0.93, 0.92, 0.90)),
    (0.20, (0.96, 0.80, 0.52)),
    (0.45, (0.87, 0.49, 0.27)),
    (0.75, (0.62, 0.16, 0.31)),
    (1.00, (0.26, 0.05, 0.27)),
)
_CLAY: Final = (0.62, 0.58, 0.55)
_REST: Final = (0.42, 0.44, 0.47)
_YAW_DEG: Final = 20.0
_HALF_VIEW_MM: Final = 138.0
_OVERSAMPLING: Final = 2
_WEBP_QUALITY: Final = 82


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded PNG and its size in pixels."""

    png: bytes
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Photographic:
    """An image compressed with loss, which kind, and its size in pixels."""

    data: bytes
    kind: str
    width: int
    height: int


def error_gradient() -> str:
    """The error map's colours as a CSS gradient."""
    stops = (
        f"rgb({' '.join(str(round(255 * channel)) for channel in colour)}) {100 * at:.0f}%"
        for at, colour in _ERROR_COLOURS
    )
    return f"linear-gradient(to right, {', '.join(stops)})"


def error_colours(errors_mm: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 3"]:
    """Colour of every error, from pale to dark, so that it reads without hue."""
    at = np.array([stop for stop, _ in _ERROR_COLOURS])
    colours = np.array([colour for _, colour in _ERROR_COLOURS])
    share = np.clip(errors_mm / ERROR_END_MM, 0.0, 1.0)
    return np.stack([np.interp(share, at, colours[:, k]) for k in range(3)], axis=-1)


def scan_colours(
    count: int, kept: Int[np.ndarray, " k"], errors_mm: Float[np.ndarray, " k"]
) -> Float[np.ndarray, "n 3"]:
    """Vertex colours of a scan: errors where it was measured, grey elsewhere."""
    colours = np.tile(np.array(_REST), (count, 1))
    colours[kept] = error_colours(errors_mm)
    return colours


def view_from_landmarks(landmarks: Float[np.ndarray, "7 3"]) -> Float[np.ndarray, "4 4"]:
    """T_view_from_scan: x along the eyes, y up, z toward the viewer, a little from the side.

    Args:
        landmarks: The scan's seven, in millimetres.
    """
    across = landmarks[3] - landmarks[0]
    across /= np.linalg.norm(across)
    up = landmarks[:4].mean(axis=0) - landmarks[5:].mean(axis=0)
    up -= (up @ across) * across
    up /= np.linalg.norm(up)
    frontal = np.stack([across, up, np.cross(across, up)])
    angle = np.deg2rad(_YAW_DEG)
    turn = np.array(
        [
            [np.cos(angle), 0.0, np.sin(angle)],
            [0.0, 1.0, 0.0],
            [-np.sin(angle), 0.0, np.cos(angle)],
        ]
    )
    view = np.eye(4)
    view[:3, :3] = turn @ frontal
    bridge = landmarks[[1, 2]].mean(axis=0)
    # The middle of the head lies some way behind its surface: turning about it keeps it centred.
    pivot = bridge - 60.0 * frontal[2]
    view[:3, 3] = -view[:3, :3] @ pivot
    return view


def clay(
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    view: Float[np.ndarray, "4 4"],
    size_px: int,
    colours: Float[np.ndarray, "v 3"] | None = None,
) -> Picture:
    """A shaded orthographic picture of a mesh on a transparent ground.

    Args:
        vertices: Millimetres, in the frame ``view`` starts from.
        faces: Triangles; either side is drawn.
        view: T_view_from_mesh, see :func:`view_from_landmarks`.
        size_px: Side of the square picture.
        colours: Linear RGB of every vertex; None is clay.
    """
    from models.rendering.cameras import orthographic_clip, transform_points
    from models.rendering.rasterize import draw
    from models.rendering.shading import vertex_normals

    side = size_px * _OVERSAMPLING
    seen = transform_points(view, np.asarray(vertices, np.float64))
    faces = np.ascontiguousarray(faces, np.int64)
    clip = orthographic_clip(seen[None], side / (2 * _HALF_VIEW_MM), side / 2, side / 2, side, side)
    base = np.tile(np.array(_CLAY), (len(seen), 1)) if colours is None else colours
    attributes = np.concatenate([vertex_normals(seen, faces), base], axis=1)
    ids, pixels = draw(clip, faces, attributes, side, side)
    normals, albedo = pixels[0, ..., :3], pixels[0, ..., 3:]
    normals = normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)
    normals *= np.where(normals[..., 2:] < 0, -1.0, 1.0)
    covered = (ids[0] >= 0).astype(np.float64)[..., None]
    shaded = np.clip(albedo * _light(normals), 0.0, 1.0) * covered
    return _encode(_reduced(np.concatenate([shaded, covered], axis=-1)))


def photograph(
    encoded: bytes, box_px: Float[np.ndarray, " 4"] | None, size_px: int
) -> Picture | None:
    """A square cut around the face; None when the bytes are no image.

    Args:
        encoded: The image file's bytes.
        box_px: left, top, right, bottom of the face; None takes the whole image.
        size_px: Side of the picture.
    """
    import cv2

    image = _decode(encoded)
    if image is None:
        return None
    height, width = image.shape[:2]
    if box_px is None:
        middle, side = np.array([width / 2, height / 2]), float(min(height, width))
    else:
        middle = np.array([(box_px[0] + box_px[2]) / 2, (box_px[1] + box_px[3]) / 2])
        side = 1.7 * float(max(box_px[2] - box_px[0], box_px[3] - box_px[1]))
    side = min(side, float(min(height, width)))
    middle = np.clip(middle, side / 2, np.array([width, height]) - side / 2)
    left, top = (round(float(value) - side / 2) for value in middle)
    cut = image[max(top, 0) : top + round(side), max(left, 0) : left + round(side)]
    return _encode_bgr(cv2.resize(cut, (size_px, size_px), interpolation=cv2.INTER_AREA))


def from_file(path: Path, longest_px: int) -> Picture | None:
    """An image file, made smaller when it is larger than that; None when it is no image."""
    image = _decode(path.read_bytes())
    return (
        None if image is None else _encode_bgr(_smaller(image, longest_px / max(image.shape[:2])))
    )


def photographic(path: Path, width_px: int) -> Photographic | None:
    """An image file as WebP, made smaller when it is wider than that; None when it is no image."""
    import cv2

    image = _decode(path.read_bytes())
    if image is None:
        return None
    image = _smaller(image, width_px / image.shape[1])
    done, buffer = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, _WEBP_QUALITY])
    assert done
    return Photographic(buffer.tobytes(), "webp", image.shape[1], image.shape[0])


def _smaller(image: UInt8[np.ndarray, "h w 3"], factor: float) -> UInt8[np.ndarray, "i j 3"]:
    """The image scaled by a factor below one, or itself."""
    import cv2

    if factor >= 1:
        return image
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _light(normals: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 1"]:
    """Soft sky, a key light from the upper left and a faint one from the right."""
    sky = 0.5 + 0.5 * normals[..., 1]
    total = 0.05 + 0.14 * sky
    for direction, strength in (((-0.62, 0.48, 0.62), 0.80), ((0.85, 0.0, 0.52), 0.16)):
        unit = np.array(direction) / np.linalg.norm(direction)
        total = total + strength * np.maximum(normals @ unit, 0.0)
    return total[..., None]


def _reduced(image: Float[np.ndarray, "h w 4"]) -> Float[np.ndarray, "i j 4"]:
    """Average blocks of pixels of premultiplied colour, then divide by coverage."""
    n = _OVERSAMPLING
    height, width = image.shape[0] // n, image.shape[1] // n
    blocks = image.reshape(height, n, width, n, 4).mean(axis=(1, 3))
    blocks[..., :3] /= np.maximum(blocks[..., 3:], 1e-9)
    return blocks


def _encode(linear: Float[np.ndarray, "h w 4"]) -> Picture:
    """Linear RGB and coverage to an sRGB PNG with alpha."""
    colour = np.clip(linear[..., :3], 0.0, 1.0)
    encoded = np.where(
        colour <= 0.0031308, 12.92 * colour, 1.055 * np.maximum(colour, 1e-9) ** (1 / 2.4) - 0.055
    )
    rgba = np.concatenate([encoded[..., ::-1], linear[..., 3:]], axis=-1)
    return _encode_bgr(np.round(255 * np.clip(rgba, 0, 1)).astype(np.uint8))


def _decode(encoded: bytes) -> UInt8[np.ndarray, "h w 3"] | None:
    import cv2

    if not encoded:
        return None
    image: UInt8[np.ndarray, "h w 3"] | None = cv2.imdecode(
        np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR
    )
    return image


def _encode_bgr(image: UInt8[np.ndarray, "h w c"]) -> Picture:
    import cv2

    done, buffer = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 6])
    assert done
    return Picture(buffer.tobytes(), image.shape[1], image.shape[0])
