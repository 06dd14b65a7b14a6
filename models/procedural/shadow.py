"""One shadow map: the scene's depth as the first light sees it, and how much light passes it."""

from typing import no_type_check

import numpy as np
from jaxtyping import Float, Int

from models.procedural.scene import Light
from models.rendering.jit import leaf

_TURNS = 2.399963 * np.arange(8)
_TAPS = np.sqrt((np.arange(8) + 0.5) / 8)[:, None] * np.stack([np.cos(_TURNS), np.sin(_TURNS)], 1)
"""Offsets of the shadow filter: a sunflower of unit radius."""


@leaf
@no_type_check
def lit_share(
    px: float, py: float, pz: float, shadow: np.ndarray, shadow_frame: np.ndarray, softness: float
) -> float:
    """Share of the key light that reaches a camera-frame point, by a few bilinear taps.

    ``shadow`` and ``shadow_frame`` as :func:`shadow_map` gives them. A tap between four depths
    on one side of the point's is exactly 1 or 0; only the others are weighted.
    """
    size = shadow.shape[1]
    u = shadow_frame[0, 0] * px + shadow_frame[0, 1] * py + shadow_frame[0, 2] * pz
    v = shadow_frame[1, 0] * px + shadow_frame[1, 1] * py + shadow_frame[1, 2] * pz
    w = shadow_frame[2, 0] * px + shadow_frame[2, 1] * py + shadow_frame[2, 2] * pz
    u = (u + shadow_frame[0, 3] + 1.0) * 0.5 * size - 0.5
    v = (1.0 - v - shadow_frame[1, 3]) * 0.5 * size - 0.5
    depth = -(w + shadow_frame[2, 3]) - 0.012
    inside = min(u, v) >= softness and max(u, v) < size - 1.0 - softness
    total = 0.0
    for k in range(_TAPS.shape[0]):
        fu = u + softness * _TAPS[k, 0]
        fv = v + softness * _TAPS[k, 1]
        low_u = np.floor(fu)
        low_v = np.floor(fv)
        if not inside and (
            low_u < 0.0 or low_v < 0.0 or low_u >= size - 1.0 or low_v >= size - 1.0
        ):
            total += 1.0
            continue
        iu = np.uint32(np.int32(low_u))
        iv = np.uint32(np.int32(low_v))
        if shadow[1, iv, iu] >= depth:
            total += 1.0
            continue
        if shadow[2, iv, iu] < depth:
            continue
        au = fu - low_u
        av = fv - low_v
        ju = np.uint32(iu + np.uint32(1))
        jv = np.uint32(iv + np.uint32(1))
        low = (shadow[0, iv, iu] >= depth) * (1.0 - au) + (shadow[0, iv, ju] >= depth) * au
        high = (shadow[0, jv, iu] >= depth) * (1.0 - au) + (shadow[0, jv, ju] >= depth) * au
        total += low * (1.0 - av) + high * av
    return total / _TAPS.shape[0]


SHADOW_SIZE = 160


def shadow_map(
    surfaces: list[tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"]]],
    light: Light,
    centre: Float[np.ndarray, "3"],
    *,
    reach_m: float = 0.24,
) -> tuple[Float[np.ndarray, "3 s s"], Float[np.ndarray, "3 4"]]:
    """Depth of the scene as the first light sees it.

    Args:
        surfaces: Camera-frame vertices and faces of everything that casts a shadow.
        light: Its first direction is used.
        centre: Camera-frame point in the middle of the map.
        reach_m: Half the width of the map.

    Returns:
        The map (3, s, s) and the rows that take a camera-frame point to (u, v, w) in [-1, 1].
        The map holds each cell's depth, and the least and the greatest of it and the cells
        right, below and below right.
    """
    import cv2

    from models.rendering.rasterize import rasterize

    toward = light.directions[0] / np.linalg.norm(light.directions[0])
    side = np.cross([0.0, 1.0, 0.0] if abs(toward[1]) < 0.95 else [1.0, 0.0, 0.0], toward)
    side /= np.linalg.norm(side)
    frame = np.stack([side, np.cross(toward, side), toward]) / reach_m
    offset = -(frame @ centre)
    clips = []
    faces = []
    start = 0
    for vertices, triangles in surfaces:
        seen = vertices @ frame.T + offset
        clip = np.ones((len(vertices), 4))
        clip[:, :2] = seen[:, :2]
        clip[:, 2] = np.clip(-seen[:, 2], -0.999, 0.999)
        clips.append(clip)
        faces.append(triangles + start)
        start += len(vertices)
    clip_all: np.ndarray = np.concatenate(clips)[None]
    triangles_all: np.ndarray = np.concatenate(faces).astype(np.int32)
    _, _, depth = rasterize(clip_all, triangles_all, SHADOW_SIZE, SHADOW_SIZE)
    square = np.ones((2, 2), dtype=np.uint8)
    least, greatest = (
        around(depth[0], square, anchor=(0, 0)) for around in (cv2.erode, cv2.dilate)
    )
    maps = np.stack([depth[0], least, greatest])
    return maps, np.concatenate([frame, offset[:, None]], axis=1)
