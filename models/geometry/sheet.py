"""The picture by which a person judges a registration."""

import numpy as np
from jaxtyping import Float, Int, UInt8

from models.geometry.mesh import vertex_normals

SCAN_RGB = (0.62, 0.66, 0.74)
MESH_RGB = (0.93, 0.72, 0.55)
NO_DATA_RGB = (0.45, 0.45, 0.45)
BACKGROUND = 255
AMBIENT = 0.25
# A perceptual ramp from dark blue over green to yellow and red: exact, small, large.
HEAT_RGB = (
    (0.10, 0.17, 0.42),
    (0.13, 0.45, 0.60),
    (0.36, 0.70, 0.47),
    (0.93, 0.85, 0.36),
    (0.90, 0.45, 0.20),
    (0.70, 0.09, 0.13),
)


def registration_sheet(
    scan_vertices: Float[np.ndarray, "n 3"],
    scan_faces: Int[np.ndarray, "m 3"],
    mesh_vertices: Float[np.ndarray, "v 3"],
    mesh_faces: Int[np.ndarray, "f 3"],
    residuals_mm: Float[np.ndarray, " n"],
    *,
    size_px: int,
    heat_max_mm: float,
    views_deg: tuple[float, ...] = (0.0, 45.0),
) -> UInt8[np.ndarray, "h w 3"]:
    """Scan, registered mesh, both interleaved, and the residuals on the scan; a row per view.

    Args:
        scan_vertices: In FLAME's frame, metres.
        scan_faces: Its triangles.
        mesh_vertices: The registered head, metres.
        mesh_faces: Its triangles.
        residuals_mm: Per scan vertex; NaN where nothing was measured, drawn grey.
        size_px: Side of one picture.
        heat_max_mm: Residual of the last colour.
        views_deg: Turns of the head about +y.

    Returns:
        RGB, ``len(views_deg) * size_px`` high and ``4 * size_px`` wide, with a colour bar.
    """
    import cv2

    low, high = mesh_vertices.min(axis=0), mesh_vertices.max(axis=0)
    centre = (low + high) / 2
    scale = 0.92 * size_px / float((high - low)[1])
    scan_color = np.broadcast_to(SCAN_RGB, scan_vertices.shape)
    mesh_color = np.broadcast_to(MESH_RGB, mesh_vertices.shape)
    heat = _heat(residuals_mm, heat_max_mm)
    rows = []
    for turn in views_deg:
        cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        view = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
        scan, mesh = (scan_vertices - centre) @ view.T, (mesh_vertices - centre) @ view.T
        both = np.concatenate([scan_faces, mesh_faces + len(scan)])
        rows.append(
            np.concatenate(
                [
                    _draw(scan, scan_faces, scan_color, scale, size_px),
                    _draw(mesh, mesh_faces, mesh_color, scale, size_px),
                    _draw(
                        np.concatenate([scan, mesh]),
                        both,
                        np.concatenate([scan_color, mesh_color]),
                        scale,
                        size_px,
                    ),
                    _draw(scan, scan_faces, heat, scale, size_px),
                ],
                axis=1,
            )
        )
    sheet = np.ascontiguousarray(np.concatenate(rows, axis=0))
    _color_bar(sheet, size_px, heat_max_mm)
    for column, text in enumerate(("scan", "FLAME", "both", "residual")):
        place = (column * size_px + 8, 20)
        cv2.putText(sheet, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (60, 60, 60), 1, cv2.LINE_AA)
    return sheet


def _draw(
    vertices: np.ndarray, faces: np.ndarray, colors: np.ndarray, scale: float, size_px: int
) -> np.ndarray:
    """Shaded picture of a mesh seen along -z, lit from the viewer's upper left."""
    from models.rendering.cameras import orthographic_clip
    from models.rendering.rasterize import interpolate, rasterize

    half = size_px / 2
    clip = orthographic_clip(vertices[None], scale, half, half, size_px, size_px)
    ids, bary, _ = rasterize(clip, faces, size_px, size_px)
    attributes = np.concatenate([vertex_normals(vertices, faces), colors], axis=1)
    pixels = interpolate(attributes[None], faces, ids, bary)[0]
    normals = pixels[..., :3]
    normals = normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)
    light = np.array([-0.35, 0.45, 0.82])
    shade = AMBIENT + (1 - AMBIENT) * np.abs(normals @ light)
    image = np.clip(255 * pixels[..., 3:] * shade[..., None], 0, 255).astype(np.uint8)
    image[ids[0] < 0] = BACKGROUND
    return image


def _heat(values: np.ndarray, top: float) -> np.ndarray:
    """Colours (n, 3) of residuals."""
    ramp = np.array(HEAT_RGB)
    known = np.isfinite(values)
    place = np.clip(np.where(known, values, 0.0) / top, 0, 1) * (len(ramp) - 1)
    stops = np.arange(len(ramp))
    colors = np.stack([np.interp(place, stops, ramp[:, a]) for a in range(3)], axis=1)
    colors[~known] = NO_DATA_RGB
    return colors


def _color_bar(sheet: np.ndarray, size_px: int, top: float) -> None:
    """Upright legend at the right border; drawn into ``sheet``."""
    import cv2

    height, right = size_px // 3, sheet.shape[1] - 8
    bar = (255 * _heat(np.linspace(top, 0, height), top)).astype(np.uint8)
    sheet[28 : 28 + height, right - 8 : right] = bar[:, None]
    for text, row in ((f"{top:g} mm", 22), ("0", 28 + height + 12)):
        width = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)[0][0]
        place = (right - width, row)
        cv2.putText(sheet, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (60, 60, 60), 1, cv2.LINE_AA)
