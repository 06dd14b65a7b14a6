"""Pictures of a scan from chosen directions, and pixels taken back to its surface.

A view remembers which triangle each pixel shows and where on it, so that a landmark found in the
picture is a point of the scan.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.spatial.transform import Rotation

from models.rendering.cameras import orthographic_clip, perspective_clip
from models.rendering.rasterize import interpolate, rasterize

CLAY_RGB = (0.72, 0.66, 0.61)
BACKGROUND = 96
AMBIENT = 0.15
LIGHT = (0.0, 0.45, 0.89)
"""Toward the light, camera frame: from above the viewer, so that brows shade the eyes."""


@dataclass(frozen=True, slots=True)
class Camera:
    """Where a scan is looked at from.

    Attributes:
        rotation: (3, 3) R_cam_from_scan; the camera looks along its -z, +y is up.
        target: (3,) scan point in the middle of the picture.
        px_per_unit: Pixels per scan unit at the target's depth.
        size_px: Side of the square picture.
        distance: From the target, scan units; None looks along parallel rays.
    """

    rotation: Float[np.ndarray, "3 3"]
    target: Float[np.ndarray, "3"]
    px_per_unit: float
    size_px: int
    distance: float | None = None

    def project(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 2"]:
        """Scan points to continuous pixel coordinates, y down."""
        seen = (points - self.target) @ self.rotation.T
        scale = np.full(len(seen), self.px_per_unit)
        if self.distance is not None:
            scale = scale * self.distance / (self.distance - seen[:, 2])
        return 0.5 * self.size_px + scale[:, None] * seen[:, :2] * [1.0, -1.0]


@dataclass(frozen=True, slots=True)
class View:
    """What a camera sees of a scan.

    Attributes:
        image: (S, S, 3) RGB.
        ids: (S, S) triangle of each pixel, -1 where there is none.
        bary: (S, S, 3) where on it.
    """

    image: UInt8[np.ndarray, "s s 3"]
    ids: Int[np.ndarray, "s s"]
    bary: Float[np.ndarray, "s s 3"]


def draw(
    vertices: Float[np.ndarray, "n 3"],
    faces: Int[np.ndarray, "m 3"],
    normals: Float[np.ndarray, "n 3"],
    camera: Camera,
    colors: UInt8[np.ndarray, "n 3"] | None = None,
    *,
    inside: bool = True,
) -> View:
    """Picture of a scan, lit from above the camera.

    Args:
        vertices: Scan frame.
        faces: Triangles.
        normals: Unit normals of the vertices.
        camera: The view.
        colors: RGB per vertex; None draws clay.
        inside: Draw what is seen from behind its normals too, shaded alike. Otherwise it hides
            what lies behind it and is left blank: a face seen from inside looks like a face.
    """
    size, half = camera.size_px, 0.5 * camera.size_px
    seen = (vertices - camera.target) @ camera.rotation.T
    reach = float(np.abs(seen[:, 2]).max()) if len(seen) else 0.0
    if camera.distance is None:
        clip = orthographic_clip(seen[None], camera.px_per_unit, half, half, size, size)
    else:
        seen[:, 2] -= camera.distance
        clip = perspective_clip(
            seen[None],
            camera.px_per_unit * camera.distance,
            half,
            half,
            size,
            size,
            near=max(0.02 * camera.distance, camera.distance - 1.1 * reach),
            far=camera.distance + 1.1 * reach + 1e-6 * camera.distance,
        )
    ids, bary, _ = rasterize(clip, faces, size, size)
    covered = ids[0] >= 0
    attributes = normals if colors is None else np.concatenate([normals, colors / 255.0], axis=1)
    pixels = interpolate(np.ascontiguousarray(attributes), faces, ids, bary)[0][covered]
    across = pixels[:, :3] @ camera.rotation.T
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-12)
    away = across[:, 2] < 0
    across[away] *= -1.0
    shade = AMBIENT + (1 - AMBIENT) * np.clip(across @ np.array(LIGHT), 0.0, 1.0)
    paint = np.array(CLAY_RGB) if colors is None else pixels[:, 3:]
    image = np.full((size, size, 3), BACKGROUND, dtype=np.uint8)
    image[covered] = np.clip(255 * shade[:, None] * paint, 0, 255).astype(np.uint8)
    if not inside:
        blank = covered.copy()
        blank[covered] = away
        image[blank], ids[0][blank], bary[0][blank] = BACKGROUND, -1, 0.0
    return View(image, ids[0], bary[0])


def lift(
    points_px: Float[np.ndarray, "k 2"],
    ids: Int[np.ndarray, "h w"],
    bary: Float[np.ndarray, "h w 3"],
    vertices: Float[np.ndarray, "n 3"],
    faces: Int[np.ndarray, "m 3"],
    *,
    reach_px: float = 3.0,
    jump: float = np.inf,
) -> Float[np.ndarray, "k 3"]:
    """Points of a picture on the surface that it shows.

    Between pixel centres the surface is interpolated linearly, which is exact on a plane seen
    along parallel rays. Where one of the four neighbours shows nothing, or a surface further off
    than ``jump``, the others alone count; where none shows anything, the nearest covered pixel.

    Args:
        points_px: Continuous pixel coordinates, x right, y down, centres at +0.5.
        ids: Triangle of each pixel, -1 for none.
        bary: Where on it.
        vertices: The scan.
        faces: Its triangles.
        reach_px: Farthest covered pixel that may stand for a point.
        jump: Largest distance between neighbouring pixels' points on one surface, scan units.

    Returns:
        NaN where no covered pixel is near, or the point itself is not finite.
    """
    height, width = ids.shape
    covered = ids >= 0
    out = np.full((len(points_px), 3), np.nan)
    radius = int(np.ceil(reach_px))

    def surface(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        corners = vertices[faces[ids[rows, columns]]]
        return np.asarray(np.einsum("nk,nka->na", bary[rows, columns], corners))

    for number, (x, y) in enumerate(points_px):
        inside = -reach_px <= x <= width + reach_px and -reach_px <= y <= height + reach_px
        if not inside:  # also where a coordinate is NaN
            continue
        left, top = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
        low_x, low_y = max(left - radius, 0), max(top - radius, 0)
        block = covered[low_y : top + radius + 2, low_x : left + radius + 2]
        rows, columns = np.nonzero(block)
        rows, columns = rows + low_y, columns + low_x
        if len(rows) == 0:
            continue
        away = np.hypot(columns + 0.5 - x, rows + 0.5 - y)
        first = int(np.argmin(away))
        if away[first] > reach_px:
            continue
        weight = np.clip(1 - np.abs(columns + 0.5 - x), 0, None)
        weight = weight * np.clip(1 - np.abs(rows + 0.5 - y), 0, None)
        near = np.flatnonzero(weight > 0)
        if len(near) == 0:
            near, weight = np.array([first]), np.ones(len(rows))
        places = surface(rows[near], columns[near])
        centre = surface(rows[first : first + 1], columns[first : first + 1])[0]
        same = np.linalg.norm(places - centre, axis=1) <= jump
        share = weight[near] * same
        out[number] = share @ places / share.sum() if share.sum() > 0 else centre
    return out


def looking_along(
    direction: Float[np.ndarray, "3"], roll_deg: float = 0.0
) -> Float[np.ndarray, "3 3"]:
    """R_cam_from_scan of a camera that stands in ``direction`` from the scan.

    Args:
        direction: From the target toward the camera, any length but zero.
        roll_deg: Turn of the camera about its axis of view.

    Raises:
        ValueError: The direction is zero.
    """
    length = float(np.linalg.norm(direction))
    if not length > 0:
        raise ValueError(f"expected a direction other than zero, got {np.asarray(direction)}")
    z = np.asarray(direction, dtype=np.float64) / length
    up = np.array([0.0, 1.0, 0.0]) if abs(z[1]) < 0.9 else np.array([0.0, 0.0, 1.0])
    x = np.cross(up, z)
    x /= np.linalg.norm(x)
    turn = Rotation.from_euler("z", roll_deg, degrees=True).as_matrix()
    return np.asarray(turn @ np.stack([x, np.cross(z, x), z]))


@lru_cache(maxsize=4)
def sphere_of_views(rolls: int) -> Float[np.ndarray, "n 3 3"]:
    """Rotations of 26 directions (faces, edges, corners of a cube), each with ``rolls`` rolls."""
    directions = [np.array(d) for d in product((-1.0, 0.0, 1.0), repeat=3) if any(d)]
    return np.stack([looking_along(d, 360.0 * k / rolls) for d in directions for k in range(rolls)])


def clustered(
    vertices: Float[np.ndarray, "n 3"], faces: Int[np.ndarray, "m 3"], cell: float
) -> tuple[Float[np.ndarray, "k 3"], Int[np.ndarray, "l 3"]]:
    """A coarse copy for small pictures: the vertices of each cubic cell become their mean.

    Triangles whose corners fall together vanish (Rossignac and Borrel 1993).

    Args:
        vertices: The scan.
        faces: Its triangles.
        cell: Side of a cell, in the vertices' unit.
    """
    low = vertices.min(axis=0)
    place = np.floor((vertices - low) / cell).astype(np.int64)
    size = place.max(axis=0) + 1
    key = (place[:, 0] * size[1] + place[:, 1]) * size[2] + place[:, 2]
    _, number, count = np.unique(key, return_inverse=True, return_counts=True)
    sums = [np.bincount(number, vertices[:, axis]) for axis in range(3)]
    corners = number[faces]
    distinct = (corners != np.roll(corners, 1, axis=1)).all(axis=1)
    return np.stack(sums, axis=1) / count[:, None], corners[distinct]
