"""The jaw contour of a turned head, found on a head model itself.

The procedure is that of Sanyal et al. (CVPR 2019, section 3.4): turn the mean head from -20 to 40
degrees, draw it, find the contour landmarks in the picture, carry them back to the surface, and
give the trajectories of one side to the other by reflection. Past 20 degrees toward the viewer a
side keeps its place.

The publication asks a landmark detector where the contour is. ``outline`` answers instead by
tracing the border of the drawn face, so that no detector is needed; any function of a ``View`` can
take its place.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from models.face.flame import CONTOUR_LIMIT_DEG, surface_points
from models.geometry.nearest import ClosestPointIndex
from models.rendering.cameras import orthographic_clip
from models.rendering.rasterize_numba import rasterize_numba

TOWARD_DEG, AWAY_DEG = -20, 40
"""A side's contour is followed from this far toward the viewer to this far away from it."""
SIDE = 9
"""Landmarks 8 (chin) to 16 (beside the subject's left eye)."""
PX_PER_M = 1000.0
_MARGIN_PX = 4
_MIDDLE_M = 0.006
_RAYS = 721
_EYE_CORNERS, _NOSE_BASE = (19, 28), 16
"""Rows of the 51 inner landmarks: 36 and 45, 33."""


@dataclass(frozen=True)
class View:
    """A drawn face, turned about +y.

    Attributes:
        yaw_deg: Turn.
        face_ids: Triangle seen at each pixel, -1 for none.
        bary: Its weights there.
        inner_px: The 51 inner landmarks, y down.
        chin_px: Where the lowest point of the face's middle is.
    """

    yaw_deg: float
    face_ids: Int[np.ndarray, "h w"]
    bary: Float[np.ndarray, "h w 3"]
    inner_px: Float[np.ndarray, "51 2"]
    chin_px: Float[np.ndarray, "2"]


Finder = Callable[[View], Float[np.ndarray, "9 2"]]
"""Pixels (x, y down) of landmarks 8 to 16 in a view."""


def outline(view: View) -> Float[np.ndarray, "9 2"]:
    """Landmarks 8 to 16 on the border of the drawn face, from the chin to the height of the eyes.

    The border is what rays from the nose base see last; the points are equally far apart on it.

    Raises:
        ValueError: The face does not reach from the chin to the eyes.
    """
    height, width = view.face_ids.shape
    chin, nose = view.chin_px, view.inner_px[_NOSE_BASE]
    centre = np.array([0.4 * nose[0] + 0.6 * chin[0], nose[1]])
    angles = np.radians(np.linspace(-60.0, 180.0, _RAYS))  # 0 is down, 90 the picture's right
    direction = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    reach = np.arange(0.0, np.hypot(height, width), 0.5)
    samples = centre + reach[:, None] * direction[:, None]
    column, row = np.floor(samples[..., 0]).astype(int), np.floor(samples[..., 1]).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    seen = inside & (view.face_ids[row.clip(0, height - 1), column.clip(0, width - 1)] >= 0)
    last = seen.shape[1] - 1 - seen[:, ::-1].argmax(axis=1)
    border = np.where(seen.any(axis=1)[:, None], samples[np.arange(_RAYS), last], centre)
    below = border[:, 1] > nose[1]
    first = int(np.argmin(np.abs(border[:, 0] - chin[0]) + np.where(below, 0.0, np.inf)))
    top = float(view.inner_px[list(_EYE_CORNERS), 1].mean())
    above = np.flatnonzero(border[first:, 1] < top)
    if not below.any() or len(above) == 0:
        raise ValueError(
            f"outline: expected a face from chin to eyes at {view.yaw_deg:g} degrees, got "
            f"{int((view.face_ids >= 0).sum())} pixels; check the region of the contour"
        )
    path = border[first : first + int(above[0]) + 1]
    length = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))]
    steps = np.linspace(0.0, length[-1], SIDE)
    return np.stack([np.interp(steps, length, path[:, axis]) for axis in range(2)], axis=-1)


def draw_view(
    vertices: Float[np.ndarray, "V 3"],
    faces: Int[np.ndarray, "F 3"],
    region: Int[np.ndarray, " r"],
    inner: Float[np.ndarray, "51 3"],
    yaw_deg: float,
) -> View:
    """Draw the triangles ``region`` of a head turned by ``yaw_deg`` about +y, seen along z.

    Args:
        vertices: Head, metres.
        faces: All its triangles.
        region: Ids of the triangles that may carry the contour.
        inner: The 51 inner landmarks on it.
        yaw_deg: Turn; positive toward the subject's left.
    """
    a = np.radians(yaw_deg)
    R = np.array([[np.cos(a), 0.0, np.sin(a)], [0.0, 1.0, 0.0], [-np.sin(a), 0.0, np.cos(a)]])
    turned = vertices @ R.T
    used = np.unique(faces[region])
    low, high = turned[used].min(axis=0), turned[used].max(axis=0)
    width, height = (np.ceil((high - low)[:2] * PX_PER_M).astype(int) + 2 * _MARGIN_PX).tolist()
    x, y = _MARGIN_PX - low[0] * PX_PER_M, _MARGIN_PX + high[1] * PX_PER_M
    clip = orthographic_clip(turned[None], PX_PER_M, x, y, height, width)
    ids, bary, _ = rasterize_numba(clip, faces[region], height, width)
    aside = np.abs(vertices[used, 0])
    middle = used[aside <= max(_MIDDLE_M, 1.01 * float(aside.min()))]
    chin = turned[middle[np.argmin(vertices[middle, 1])]]

    def pixels(points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 2"]:
        return np.asarray([x, y] + PX_PER_M * points[..., :2] * [1.0, -1.0])

    named = np.where(ids[0] >= 0, region[ids[0].clip(0)], -1)
    return View(yaw_deg, named, bary[0].astype(np.float64), pixels(inner @ R.T), pixels(chin))


def dynamic_contour(
    vertices: Float[np.ndarray, "V 3"],
    faces: Int[np.ndarray, "F 3"],
    region: Int[np.ndarray, " r"],
    inner: Float[np.ndarray, "51 3"],
    find: Finder = outline,
) -> tuple[Int[np.ndarray, "79 17"], Float[np.ndarray, "79 17 3"]]:
    """The table of contour landmarks by yaw, as ``LandmarkEmbedding`` stores it.

    Args:
        vertices: The mean head, upright, symmetric about x = 0, metres.
        faces: Its triangles.
        region: Ids of the triangles that may carry the contour: the face, without ears and neck.
        inner: The 51 inner landmarks on it.
        find: Where the contour is in a picture.

    Returns:
        Triangle ids and barycentric weights; rows 0..39 for 0..39 degrees, 40..78 for -1..-39.

    Raises:
        ValueError: ``find`` failed on a view, or the region holds no triangle.
    """
    if len(region) == 0:
        raise ValueError("dynamic_contour needs triangles that may carry the contour, got none")
    ids, bary = {}, {}
    for yaw in range(TOWARD_DEG, AWAY_DEG + 1):
        view = draw_view(vertices, faces, region, inner, float(yaw))
        rows, columns = np.nonzero(view.face_ids >= 0)
        centres = np.stack([columns, rows], axis=-1) + 0.5
        gaps = ((centres[:, None] - find(view)) ** 2).sum(axis=-1)
        nearest = gaps.argmin(axis=0)
        ids[yaw] = view.face_ids[rows[nearest], columns[nearest]]
        bary[yaw] = view.bary[rows[nearest], columns[nearest]]

    surface = ClosestPointIndex(vertices, faces[region])
    mirrored_ids, mirrored_bary = {}, {}
    for yaw in ids:
        points = surface_points(vertices, faces, ids[yaw], bary[yaw])
        found = surface.query(points * [-1.0, 1.0, 1.0])
        mirrored_ids[yaw], mirrored_bary[yaw] = region[found.faces], found.bary

    all_faces, all_bary = [], []
    limit = CONTOUR_LIMIT_DEG
    for yaw in [*range(limit + 1), *range(-1, -limit - 1, -1)]:
        left, right = (int(np.clip(a, TOWARD_DEG, AWAY_DEG)) for a in (yaw, -yaw))
        chin_faces, chin_bary = (ids, bary) if yaw >= 0 else (mirrored_ids, mirrored_bary)
        chin = left if yaw >= 0 else right
        all_faces.append(np.r_[mirrored_ids[right][:0:-1], chin_faces[chin][:1], ids[left][1:]])
        all_bary.append(
            np.concatenate([mirrored_bary[right][:0:-1], chin_bary[chin][:1], bary[left][1:]])
        )
    return np.stack(all_faces), np.stack(all_bary)
