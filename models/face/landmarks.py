"""68 facial landmarks in iBUG order: boxes around them and how errors are measured."""

import numpy as np
from jaxtyping import Float

OUTER_EYES = (36, 45)
INNER = slice(17, 68)
BOX_SCALE = 1.35
BOX_RISE = 0.06
MIRROR_68 = np.concatenate(
    [
        np.arange(16, -1, -1),
        np.arange(26, 16, -1),
        np.arange(27, 31),
        np.arange(35, 30, -1),
        [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40],
        [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55],
        [64, 63, 62, 61, 60, 67, 66, 65],
    ]
)
"""Which landmark of a face becomes which of its mirror image."""


def outer_eye_distance(points: Float[np.ndarray, "*n 68 2"]) -> Float[np.ndarray, "*n"]:
    """Distance between the outer eye corners, in the unit of the points."""
    right, left = OUTER_EYES
    return np.asarray(np.linalg.norm(points[..., left, :] - points[..., right, :], axis=-1))


def face_size(points: Float[np.ndarray, "68 2"]) -> float:
    """Size of a face that turning hardly changes: the larger extent of its inner points."""
    inner = points[INNER]
    return float((inner.max(axis=0) - inner.min(axis=0)).max())


def roll_deg(points: Float[np.ndarray, "68 2"]) -> float:
    """How far a face is turned in the image plane, clockwise as seen, degrees.

    0 where the mouth lies straight below the eyes; a head turned sideways adds a constant that
    depends on the turn alone.

    Args:
        points: iBUG-68, y down.
    """
    down = points[48:].mean(axis=0) - points[36:48].mean(axis=0)
    return float(np.degrees(np.arctan2(-down[0], down[1])))


def canonical_box(points: Float[np.ndarray, "68 2"]) -> Float[np.ndarray, "4"]:
    """Square around brows, eyes, nose and mouth, like that of a frontal face detector.

    Args:
        points: iBUG-68, y down; the jaw is not used, since its 2D points follow the
            visible contour.

    Returns:
        Left, top, right, bottom.
    """
    inner = points[INNER]
    low, high = inner.min(axis=0), inner.max(axis=0)
    side = BOX_SCALE * float((high - low).max())
    centre = 0.5 * (low + high) + np.array([0.0, BOX_RISE * side])
    return np.concatenate([centre - 0.5 * side, centre + 0.5 * side])


def moved_box(
    box: Float[np.ndarray, "4"], shift: Float[np.ndarray, "2"], scale: float
) -> Float[np.ndarray, "4"]:
    """A box shifted by fractions of its side and scaled about its centre."""
    extent = box[2:] - box[:2]
    centre = 0.5 * (box[:2] + box[2:]) + shift * extent
    return np.concatenate([centre - 0.5 * scale * extent, centre + 0.5 * scale * extent])


def square_box(box: Float[np.ndarray, "4"]) -> Float[np.ndarray, "4"]:
    """The square of the same centre and mean side.

    Raises:
        ValueError: The box is empty or not finite.
    """
    extent = box[2:] - box[:2]
    if not (np.isfinite(box).all() and (extent > 0).all()):
        raise ValueError(f"expected a box left < right, top < bottom, got {box.tolist()}")
    half = 0.25 * float(extent.sum())
    centre = 0.5 * (box[:2] + box[2:])
    return np.concatenate([centre - half, centre + half])


def relative_error(
    points: Float[np.ndarray, "*n 68 2"], truth: Float[np.ndarray, "*n 68 2"]
) -> Float[np.ndarray, "*n"]:
    """Mean distance over the 68 points as a fraction of the true outer-eye distance."""
    distance = np.linalg.norm(points - truth, axis=-1).mean(axis=-1)
    return np.asarray(distance / outer_eye_distance(truth))
