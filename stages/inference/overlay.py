"""A reconstructed head drawn over its photograph."""

import numpy as np
from jaxtyping import Float, Int, UInt8

from models.rendering.rasterize_numba import interpolate_numba, rasterize_numba
from models.rendering.shading import vertex_normals
from stages.inference.types import Reconstruction

CLAY_RGB = (214.0, 196.0, 180.0)
DOT_RGB = (46, 116, 220)
LIGHT = (0.25, 0.45, 0.86)
OPACITY = 0.78


def overlay(
    image: UInt8[np.ndarray, "h w 3"], answer: Reconstruction
) -> UInt8[np.ndarray, "h w2 3"]:
    """The photograph beside itself with the clay head on it.

    Raises:
        ValueError: The answer has no camera.
    """
    if answer.camera is None or answer.shown_mm is None:
        raise ValueError("overlay needs a reconstruction with a camera; the average head has none")
    height, width = image.shape[:2]
    camera = answer.camera
    turned = (answer.shown_mm @ camera.rotation.T).astype(np.float32)
    clip = np.ascontiguousarray(camera.clip(answer.shown_mm, height, width)[None])
    shown = clay_over(image, clip, turned, answer.faces)
    if answer.points_px is not None:
        shown = _dotted(shown, answer.points_px)
    return np.ascontiguousarray(np.concatenate([image, shown], axis=1))


def clay_over(
    image: UInt8[np.ndarray, "h w 3"],
    clip: Float[np.ndarray, "1 V 4"],
    vertices: Float[np.ndarray, "V 3"],
    faces: Int[np.ndarray, "F 3"],
) -> UInt8[np.ndarray, "h w 3"]:
    """A mesh in clay over a photograph, half transparent.

    Args:
        image: RGB.
        clip: The mesh in the photograph's clip coordinates.
        vertices: The mesh in the camera frame, for its normals.
        faces: Triangles.
    """
    height, width = image.shape[:2]
    corners = np.ascontiguousarray(faces, dtype=np.int32)
    points = np.ascontiguousarray(vertices, dtype=np.float32)
    ids, bary, _ = rasterize_numba(clip, corners, height, width)
    normals = interpolate_numba(vertex_normals(points, corners)[None], corners, ids, bary)[0]
    light = np.array(LIGHT) / np.linalg.norm(LIGHT)
    shade = 0.35 + 0.65 * np.clip(normals @ light, 0.0, 1.0)
    clay = np.array(CLAY_RGB) * shade[..., None]
    alpha = OPACITY * (ids[0] >= 0)[..., None]
    drawn = (1.0 - alpha) * image + alpha * clay
    return np.clip(np.rint(drawn), 0, 255).astype(np.uint8)


def _dotted(
    image: UInt8[np.ndarray, "h w 3"], points_px: Float[np.ndarray, "68 2"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Landmarks as small dots."""
    import cv2

    dotted, eighths = image.copy(), 3  # sub-pixel bits of cv2's drawing
    radius = max(1.0, np.ptp(points_px, axis=0).max() / 110)
    for x, y in points_px - 0.5:
        at = round(x * 2**eighths), round(y * 2**eighths)
        cv2.circle(dotted, at, round(radius * 2**eighths), DOT_RGB, -1, cv2.LINE_AA, eighths)
    return dotted
