"""The pictures by which a person judges registrations: one scan, and the worst of a data set."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from models.geometry.mesh import vertex_normals

SCAN_RGB = (0.62, 0.66, 0.74)
MESH_RGB = (0.93, 0.72, 0.55)
BACKGROUND = 255
AMBIENT = 0.25
# Exact is pale, large is dark: lightness falls all the way, also for the colour-blind, and no step
# is as grey as what was not measured is blue.
HEAT_RGB = (
    (0.97, 0.95, 0.86),
    (0.99, 0.80, 0.48),
    (0.95, 0.53, 0.30),
    (0.76, 0.25, 0.36),
    (0.46, 0.09, 0.42),
    (0.15, 0.03, 0.22),
)
NO_DATA_RGB = (0.62, 0.72, 0.80)
HEAT_AMBIENT = 0.62  # flatter light, so that shade is not taken for residual
CELL_YAW_DEG = 25.0
CELL_MARGIN = 1.12  # of the face's extent
CELL_OVERSAMPLING = 2
TEXT_PX = 52  # two lines above each cell
LINE_PX = 22
GAP_PX = 28
NAME_TYPE = 0.58  # sizes of OpenCV's type
REASON_TYPE = 0.5
INK = (40, 40, 40)
VERDICT_INK = {"ok": (20, 95, 60), "rejected": (150, 30, 20)}
BAR_PX = (260, 12)


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
        residuals_mm: Per scan vertex; NaN where nothing was measured.
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
        view = _turned(turn)
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


@dataclass(frozen=True, slots=True)
class Cell:
    """One registration on the page of the worst.

    Attributes:
        image: From :func:`registration_cell`.
        name: Which scan.
        verdict: ``ok`` or ``rejected``.
        median_mm: Median residual; None where nothing was measured.
        q95_mm: 95th percentile of the residual; likewise.
        reason: Why it was rejected, empty where it was not.
    """

    image: UInt8[np.ndarray, "s w 3"]
    name: str
    verdict: str
    median_mm: float | None
    q95_mm: float | None
    reason: str


def registration_cell(
    scan_vertices: Float[np.ndarray, "n 3"],
    scan_faces: Int[np.ndarray, "m 3"],
    mesh_vertices: Float[np.ndarray, "v 3"],
    mesh_faces: Int[np.ndarray, "f 3"],
    residuals_mm: Float[np.ndarray, " n"],
    face: Bool[np.ndarray, " v"],
    *,
    size_px: int,
    heat_max_mm: float,
) -> UInt8[np.ndarray, "s w 3"]:
    """Scan, registered mesh and residuals of one face, turned a little, side by side.

    Args:
        scan_vertices: In FLAME's frame, metres.
        scan_faces: Its triangles.
        mesh_vertices: The registered head, metres.
        mesh_faces: Its triangles.
        residuals_mm: Per scan vertex; NaN where nothing was measured.
        face: Mesh vertices that the pictures are centred on and scaled to.
        size_px: Side of one picture.
        heat_max_mm: Residual of the last colour.

    Returns:
        RGB, ``size_px`` high and ``3 * size_px`` wide.
    """
    import cv2

    view = _turned(CELL_YAW_DEG)
    shown = mesh_vertices[face] @ view.T
    low, high = shown.min(axis=0), shown.max(axis=0)
    centre = (low + high) / 2
    side = CELL_OVERSAMPLING * size_px
    scale = side / (CELL_MARGIN * float((high - low)[:2].max()))
    scan, mesh = scan_vertices @ view.T - centre, mesh_vertices @ view.T - centre
    plain = np.broadcast_to(SCAN_RGB, scan.shape)
    heat = _heat(residuals_mm, heat_max_mm)
    skin = np.broadcast_to(MESH_RGB, mesh.shape)
    scan_pictures = _drawn(scan, scan_faces, ((plain, AMBIENT), (heat, HEAT_AMBIENT)), scale, side)
    (mesh_picture,) = _drawn(mesh, mesh_faces, ((skin, AMBIENT),), scale, side)
    wide = np.concatenate([scan_pictures[0], mesh_picture, scan_pictures[1]], axis=1)
    small = cv2.resize(wide, (3 * size_px, size_px), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8)


def worst_sheet(
    cells: Sequence[Cell], title: str, *, heat_max_mm: float, columns: int = 2
) -> UInt8[np.ndarray, "h w 3"]:
    """One page of cells in reading order, with one colour bar for all.

    Args:
        cells: At least one, pictures of equal size.
        title: Heading.
        heat_max_mm: Residual of the last colour in the cells.
        columns: Cells side by side.

    Raises:
        ValueError: There is no cell.
    """
    if not cells:
        raise ValueError("expected at least one cell, got none; leave the page out")
    height, width = cells[0].image.shape[:2]
    gap, head = GAP_PX, 64
    rows = -(-len(cells) // columns)
    pitch = height + TEXT_PX + gap
    page = np.full((head + rows * pitch, gap + columns * (width + gap), 3), BACKGROUND, np.uint8)
    _text(page, title, (gap, 38), 0.8, INK)
    _ruler(page, heat_max_mm, right=page.shape[1] - gap - 30, top=20)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        top, left = head + row * pitch, gap + column * (width + gap)
        figures = f"{cell.verdict}   median {_mm(cell.median_mm)}   95 % {_mm(cell.q95_mm)}"
        room = width - _text_width(figures, NAME_TYPE) - gap
        ink = VERDICT_INK.get(cell.verdict, INK)
        _text(page, _fitted(cell.name, NAME_TYPE, room), (left, top + 16), NAME_TYPE, INK)
        _text(page, figures, (left + room + gap, top + 16), NAME_TYPE, ink)
        reason = _fitted(cell.reason, REASON_TYPE, width)
        _text(page, reason, (left, top + 16 + LINE_PX), REASON_TYPE, INK)
        page[top + TEXT_PX : top + TEXT_PX + height, left : left + width] = cell.image
    return page


def _mm(value: float | None) -> str:
    return "- " if value is None else f"{value:.3f} mm"


def _text_width(text: str, size: float) -> int:
    import cv2

    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)[0][0])


def _fitted(text: str, size: float, room: int) -> str:
    """The text, or as much of it as is at most ``room`` pixels wide."""
    if _text_width(text, size) <= room:
        return text
    while text and _text_width(f"{text} ...", size) > room:
        text = text[:-1]
    return f"{text.rstrip()} ..."


def _text(
    page: np.ndarray, text: str, place: tuple[int, int], size: float, ink: tuple[int, int, int]
) -> None:
    """Write into ``page``; what OpenCV's type lacks becomes a question mark."""
    import cv2

    plain = text.encode("ascii", "replace").decode()
    cv2.putText(page, plain, place, cv2.FONT_HERSHEY_SIMPLEX, size, ink, 1, cv2.LINE_AA)


def _ruler(page: np.ndarray, top_mm: float, *, right: int, top: int) -> None:
    """Lying legend with five marks, and the colour of what was not measured."""
    width, height = BAR_PX
    left = right - width
    bar = (255 * _heat(np.linspace(0, top_mm, width), top_mm)).astype(np.uint8)
    page[top : top + height, left:right] = bar[None]
    for mark in np.linspace(0, top_mm, 5):
        at = left + round((width - 1) * float(mark) / top_mm)
        page[top + height : top + height + 4, at] = INK
        text = f"{mark:g}" + (" mm" if mark == top_mm else "")
        _text(page, text, (at - 6, top + height + 18), 0.45, INK)
    label = "scan to mesh"
    _text(page, label, (left - 12 - _text_width(label, 0.5), top + 11), 0.5, INK)
    absent = "not measured"
    start = left - 60 - _text_width(label, 0.5) - _text_width(absent, 0.5)
    _text(page, absent, (start, top + 11), 0.5, INK)
    page[top : top + height, start - 28 : start - 8] = np.array(NO_DATA_RGB) * 255


def _turned(yaw_deg: float) -> Float[np.ndarray, "3 3"]:
    """Rotation of the head about +y."""
    cos, sin = np.cos(np.radians(yaw_deg)), np.sin(np.radians(yaw_deg))
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


def _draw(
    vertices: np.ndarray, faces: np.ndarray, colors: np.ndarray, scale: float, size_px: int
) -> np.ndarray:
    """Shaded picture of a mesh seen along -z, lit from the viewer's upper left."""
    return _drawn(vertices, faces, ((colors, AMBIENT),), scale, size_px)[0]


def _drawn(
    vertices: np.ndarray,
    faces: np.ndarray,
    paints: Sequence[tuple[np.ndarray, float]],
    scale: float,
    size_px: int,
) -> list[np.ndarray]:
    """One picture per paint (vertex colours, share of ambient light) of one mesh."""
    from models.rendering.cameras import orthographic_clip
    from models.rendering.rasterize import draw

    half = size_px / 2
    clip = orthographic_clip(vertices[None], scale, half, half, size_px, size_px)
    attributes = np.concatenate(
        [vertex_normals(vertices, faces), *(colors for colors, _ in paints)], axis=1
    )
    ids, drawn = draw(clip, faces, attributes, size_px, size_px)
    pixels = drawn[0]
    normals = pixels[..., :3]
    normals = normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)
    light = np.array([-0.35, 0.45, 0.82])
    lit = np.abs(normals @ light)
    images = []
    for index, (_, ambient) in enumerate(paints):
        albedo = pixels[..., 3 + 3 * index : 6 + 3 * index]
        shade = ambient + (1 - ambient) * lit
        image = np.clip(255 * albedo * shade[..., None], 0, 255).astype(np.uint8)
        image[ids[0] < 0] = BACKGROUND
        images.append(image)
    return images


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
