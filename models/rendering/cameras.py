"""From our frame to pixels and to clip coordinates.

The camera frame is the project's: x right, y up, z toward the viewer, so a
perspective camera at the origin sees points with negative z. Pixel coordinates
are continuous, y down, with pixel (column 0, row 0) centred at (0.5, 0.5).
Every function takes NumPy arrays or torch tensors and returns the same kind;
camera numbers may be floats or arrays of shape (B,).
"""

from typing import Any, TypeVar, cast

import numpy as np

Array = TypeVar("Array")


def _stack(columns: list[Any], like: Any) -> Any:  # noqa: ANN401
    """Stack along a new last axis, broadcasting the columns, with the library of ``like``."""
    if isinstance(like, np.ndarray):
        shaped = np.broadcast_arrays(*columns)
        return np.stack(shaped, axis=-1).astype(like.dtype, copy=False)
    import torch

    return torch.stack(torch.broadcast_tensors(*columns), dim=-1)  # type: ignore[no-untyped-call]


def _column(number: Any, like: Any) -> Any:  # noqa: ANN401
    """Give a per-image number of shape (B,) a vertex axis; leave plain numbers alone."""
    if isinstance(number, (int, float)):
        return number
    if isinstance(like, np.ndarray):
        values: Any = np.asarray(number)
    else:
        import torch

        values = torch.as_tensor(number, dtype=like.dtype, device=like.device)
    return values[..., None] if values.ndim else values


def perspective_pixels(
    vertices: Array,
    focal_px: float | Array,
    centre_x_px: float | Array,
    centre_y_px: float | Array,
) -> Array:
    """Project camera-frame points through a pinhole.

    x_px = cx + f x / -z and y_px = cy - f y / -z.

    Args:
        vertices: (B, V, 3) camera frame, in front where z < 0.
        focal_px: Focal length, pixels.
        centre_x_px: Column coordinate of the principal point.
        centre_y_px: Row coordinate of the principal point.

    Returns:
        (B, V, 2) pixel coordinates.
    """
    points = cast("Any", vertices)
    x, y, distance = points[..., 0], points[..., 1], -points[..., 2]
    focal = _column(focal_px, points)
    return cast(
        "Array",
        _stack(
            [
                _column(centre_x_px, points) + focal * x / distance,
                _column(centre_y_px, points) - focal * y / distance,
            ],
            points,
        ),
    )


def perspective_clip(
    vertices: Array,
    focal_px: float | Array,
    centre_x_px: float | Array,
    centre_y_px: float | Array,
    height: int,
    width: int,
    *,
    near: float,
    far: float,
) -> Array:
    """Clip coordinates of camera-frame points seen through a pinhole.

    Args:
        vertices: (B, V, 3) camera frame, in front where z < 0.
        focal_px: Focal length, pixels.
        centre_x_px: Column coordinate of the principal point.
        centre_y_px: Row coordinate of the principal point.
        height: Rows of the image.
        width: Columns of the image.
        near: Distance mapped to z/w = -1, > 0.
        far: Distance mapped to z/w = 1, > near.

    Returns:
        (B, V, 4); x/w and y/w meet :func:`perspective_pixels`.

    Raises:
        ValueError: The depth range is not 0 < near < far.
    """
    if not 0.0 < near < far:
        raise ValueError(f"perspective_clip expects 0 < near < far, got {near} and {far}")
    points = cast("Any", vertices)
    x, y, w = points[..., 0], points[..., 1], -points[..., 2]
    focal = _column(focal_px, points)
    right = 2.0 * (_column(centre_x_px, points) * w + focal * x) / width - w
    up = w - 2.0 * (_column(centre_y_px, points) * w - focal * y) / height
    depth = ((far + near) * w - 2.0 * far * near) / (far - near)
    return cast("Array", _stack([right, up, depth, w], points))


def pixels_of_ndc(
    focal_ndc: float | Array,
    principal_x_ndc: float | Array,
    principal_y_ndc: float | Array,
    height: int,
    width: int,
) -> tuple[float | Array, float | Array, float | Array]:
    """Intrinsics in pixels of a PyTorch3D perspective camera in normalised device coordinates.

    There +x is left, +y up, +z into the scene, and the shorter side of the image spans -1..1:
    x_px = W/2 - s/2 (f x/z + p_x), y_px = H/2 - s/2 (f y/z + p_y) with s = min(H, W). Our camera
    frame is that one turned by half a turn about y, (-x, y, -z), and the image is that of
    :func:`perspective_pixels` with what is returned here.

    Args:
        focal_ndc: Focal length f.
        principal_x_ndc: Principal point p_x, positive to the left.
        principal_y_ndc: Principal point p_y, positive upward.
        height: Rows.
        width: Columns.

    Returns:
        Focal length, column and row of the principal point, pixels.
    """
    half = 0.5 * min(height, width)
    f, x, y = cast("Any", focal_ndc), cast("Any", principal_x_ndc), cast("Any", principal_y_ndc)
    return half * f, 0.5 * width - half * x, 0.5 * height - half * y


def orthographic_pixels(
    vertices: Array,
    scale_px: float | Array,
    centre_x_px: float | Array,
    centre_y_px: float | Array,
) -> Array:
    """Project along z: x_px = cx + s x and y_px = cy - s y.

    Args:
        vertices: (B, V, 3) camera frame.
        scale_px: Pixels per unit of ``vertices``.
        centre_x_px: Column coordinate of the frame's origin.
        centre_y_px: Row coordinate of the frame's origin.

    Returns:
        (B, V, 2) pixel coordinates.
    """
    points = cast("Any", vertices)
    scale = _column(scale_px, points)
    return cast(
        "Array",
        _stack(
            [
                _column(centre_x_px, points) + scale * points[..., 0],
                _column(centre_y_px, points) - scale * points[..., 1],
            ],
            points,
        ),
    )


def orthographic_clip(
    vertices: Array,
    scale_px: float | Array,
    centre_x_px: float | Array,
    centre_y_px: float | Array,
    height: int,
    width: int,
    *,
    depth_range: tuple[float, float] | None = None,
) -> Array:
    """Clip coordinates of camera-frame points seen along z.

    Args:
        vertices: (B, V, 3) camera frame, larger z nearer.
        scale_px: Pixels per unit of ``vertices``.
        centre_x_px: Column coordinate of the frame's origin.
        centre_y_px: Row coordinate of the frame's origin.
        height: Rows of the image.
        width: Columns of the image.
        depth_range: Smallest and largest z drawn; None takes them from the
            batch, so nothing is cut away.

    Returns:
        (B, V, 4) with w = 1.

    Raises:
        ValueError: The depth range is empty.
    """
    points = cast("Any", vertices)
    pixels = cast("Any", orthographic_pixels(points, scale_px, centre_x_px, centre_y_px))
    if depth_range is None:
        low, high = float(points[..., 2].min()), float(points[..., 2].max())
        margin = 0.01 * (high - low) + 1e-12
        low, high = low - margin, high + margin
    else:
        low, high = depth_range
    if not low < high:
        raise ValueError(f"orthographic_clip expects a depth range low < high, got {low}, {high}")
    depth = (high + low - 2.0 * points[..., 2]) / (high - low)
    return cast(
        "Array",
        _stack(
            [
                2.0 * pixels[..., 0] / width - 1.0,
                1.0 - 2.0 * pixels[..., 1] / height,
                depth,
                0.0 * depth + 1.0,
            ],
            points,
        ),
    )


def look_at(eye: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """T_cam_from_world of a camera at ``eye`` whose -z axis passes through ``target``.

    Args:
        eye: (3,) world position of the camera.
        target: (3,) world point at the image centre.
        up: (3,) world direction that is up in the image.

    Returns:
        (4, 4) rigid transform, float64.

    Raises:
        ValueError: ``eye`` equals ``target`` or ``up`` is along the view axis.
    """
    backward = np.asarray(eye, dtype=np.float64) - np.asarray(target, dtype=np.float64)
    right = np.cross(np.asarray(up, dtype=np.float64), backward)
    lengths = np.linalg.norm(backward), np.linalg.norm(right)
    if min(lengths) < 1e-12:
        raise ValueError(
            f"look_at expects eye, target apart and up off the view axis, got {eye}, {target}, {up}"
        )
    z = backward / lengths[0]
    x = right / lengths[1]
    rotation = np.stack([x, np.cross(z, x), z])
    transform = np.eye(4)
    transform[:3, :3] = rotation
    transform[:3, 3] = -rotation @ np.asarray(eye, dtype=np.float64)
    return transform


def transform_points(transform: Array, points: Array) -> Array:
    """Apply (4, 4) or (B, 4, 4) rigid or affine transforms to (..., V, 3) points."""
    matrix, values = cast("Any", transform), cast("Any", points)
    rotated = values @ matrix[..., :3, :3].swapaxes(-1, -2)
    return cast("Array", rotated + matrix[..., None, :3, 3])
