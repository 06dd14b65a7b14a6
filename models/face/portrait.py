"""A head as a passport photograph: fixed camera, fixed light, frontal by its own landmarks.

The picture does not depend on where and how the mesh lies in its frame, so that pictures of
different methods can be compared (Genova et al. 2018, section 4.3: camera and light fixed).
"""

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from models.rendering.cameras import perspective_clip, perspective_pixels
from models.rendering.rasterize_numba import draw_numba
from models.rendering.shading import normalize, vertex_normals

SIZE_PX: Final = 224
DISTANCE_MM: Final = 900.0
FOCAL_PX: Final = 720.0
"""So that 280 mm across the face fill the picture."""
SKIN: Final = (0.60, 0.38, 0.28)
"""Linear RGB of a head without colours."""
LIGHT: Final = (0.25, 0.45, 0.86)
AMBIENT: Final = 0.35
_NOSE_REACH: Final = 0.35


class Portrait(NamedTuple):
    """A drawn head and where its five points are.

    Attributes:
        image: sRGB, black behind the head.
        five_px: Eye centres, nose tip, mouth corners, subject's right first; y down, pixel
            centres at +0.5.
    """

    image: UInt8[np.ndarray, "s s 3"]
    five_px: Float[np.ndarray, "5 2"]


def face_frame(seven: Float[np.ndarray, "7 3"]) -> Float[np.ndarray, "3 4"]:
    """[R | t] from a mesh's frame to one centred between eyes and mouth.

    x runs along the outer eye corners to the subject's left, y from the mouth's middle to the
    eyes', z toward the viewer; right-handed, lengths kept.

    Args:
        seven: NoW's landmarks.

    Raises:
        ValueError: They do not span a plane.
    """
    eyes, mouth = seven[:4].mean(axis=0), seven[5:].mean(axis=0)
    x = seven[3] - seven[0]
    length = float(np.linalg.norm(x))
    x = x / max(length, 1e-12)
    y = eyes - mouth
    y = y - (y @ x) * x
    height = float(np.linalg.norm(y))
    if not np.isfinite(seven).all() or min(length, height) < 1e-6 * max(length, height, 1e-12):
        raise ValueError(
            "face_frame needs seven finite landmarks with eyes apart and mouth below them, got "
            f"{length:.3g} between the outer eye corners and {height:.3g} from mouth to eyes"
        )
    y = y / height
    R = np.stack([x, y, np.cross(x, y)])
    return np.concatenate([R, -(R @ (eyes + mouth) / 2)[:, None]], axis=1)


def nose_tip(
    vertices: Float[np.ndarray, "v 3"], seven: Float[np.ndarray, "7 3"]
) -> Float[np.ndarray, " 3"]:
    """The foremost vertex near the nose base, both in :func:`face_frame`.

    Near is 0.35 of the outer eye distance; without any vertex there, the nose base itself.
    """
    reach = _NOSE_REACH * float(np.linalg.norm(seven[3] - seven[0]))
    near = vertices[np.linalg.norm(vertices[:, :2] - seven[4, :2], axis=1) < reach]
    near = near[near[:, 1] > seven[5:, 1].max()]
    return near[near[:, 2].argmax()] if len(near) else seven[4]


def portrait(
    vertices_mm: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    seven_mm: Float[np.ndarray, "7 3"],
    colours: UInt8[np.ndarray, "v 3"] | None = None,
) -> Portrait:
    """Draw a head.

    Args:
        vertices_mm: In any frame.
        faces: Counter-clockwise seen from outside.
        seven_mm: NoW's landmarks on it.
        colours: sRGB of every vertex; None draws one skin tone.

    Raises:
        ValueError: The landmarks do not span a plane, or the head reaches the camera.
    """
    T = face_frame(np.asarray(seven_mm, np.float64))
    placed = vertices_mm @ T[:, :3].T + T[:, 3]
    seven = seven_mm @ T[:, :3].T + T[:, 3]
    nearest, farthest = DISTANCE_MM - placed[:, 2].max(), DISTANCE_MM - placed[:, 2].min()
    if not nearest > 0:
        raise ValueError(
            f"portrait expects a head less than {DISTANCE_MM:.0f} mm deep, got a vertex "
            f"{placed[:, 2].max():.0f} mm before the face; check the unit"
        )
    five = np.stack(
        [seven[:2].mean(axis=0), seven[2:4].mean(axis=0), nose_tip(placed, seven), *seven[5:]]
    )
    away = np.array([0.0, 0.0, -DISTANCE_MM])
    middle = SIZE_PX / 2
    five_px = perspective_pixels((five + away)[None], FOCAL_PX, middle, middle)[0]
    clip = perspective_clip(
        (placed + away)[None].astype(np.float32),
        FOCAL_PX,
        middle,
        middle,
        SIZE_PX,
        SIZE_PX,
        near=0.9 * float(nearest),
        far=1.1 * float(farthest),
    )
    albedo = (
        np.tile(np.array(SKIN, np.float32), (len(placed), 1))
        if colours is None
        else _linear(colours / 255.0).astype(np.float32)
    )
    normals = vertex_normals(placed, faces).astype(np.float32)
    values = np.concatenate([normals, albedo], axis=1)
    ids, drawn = draw_numba(clip, np.asarray(faces, np.int32), values[None], SIZE_PX, SIZE_PX)
    shade = np.clip(normalize(drawn[0, ..., :3]) @ normalize(np.array(LIGHT, np.float32)), 0, 1)
    linear = drawn[0, ..., 3:] * (AMBIENT + (1.0 - AMBIENT) * shade[..., None])
    encoded = np.rint(255.0 * _encoded(np.clip(linear, 0.0, 1.0))) * (ids[0] >= 0)[..., None]
    return Portrait(encoded.astype(np.uint8), five_px)


def _linear(encoded: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Light of sRGB values in [0, 1] (IEC 61966-2-1)."""
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def _encoded(linear: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    """The inverse of :func:`_linear`."""
    root = 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, 12.92 * linear, root)
