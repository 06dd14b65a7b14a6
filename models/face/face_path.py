"""One face along a video: which box is it in each frame, where was it missed, how steady is it.

The rules are pix2face's (Crispell and Bazik 2017, section 4): of several detected faces the one
nearest to the boxes of neighbouring frames, missing boxes by linear interpolation between
neighbours, two-dimensional landmarks averaged over three frames.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

DETECTED, INTERPOLATED, HELD, MISSING = "detected", "interpolated", "held", "missing"


class BoxPath(NamedTuple):
    """A box per frame.

    Attributes:
        boxes_px: Left, top, right, bottom; NaN where ``sources`` says missing.
        sources: Where each box comes from: detected, interpolated, held or missing.
    """

    boxes_px: Float[np.ndarray, "n 4"]
    sources: tuple[str, ...]


def nearest_faces(
    found: Sequence[Sequence[Float[np.ndarray, "4"]]],
) -> Float[np.ndarray, "n 4"]:
    """Pick one face per frame, so that the same person is followed.

    The path starts in the frame with the largest detected face (of equal ones, in the first) and is
    followed forward and backward: each frame takes the box nearest to the one picked in the closest
    frame already done. The distance of two boxes is the mean distance of their edges.

    Args:
        found: Detected boxes of each frame, in pixels, in any order.

    Returns:
        One box per frame; NaN where nothing was detected.
    """
    path = np.full((len(found), 4), np.nan)
    best, start, box = -1.0, -1, np.zeros(4)
    for frame, boxes in enumerate(found):
        for candidate in boxes:
            area = float(np.prod(candidate[2:] - candidate[:2]))
            if area > best:
                best, start, box = area, frame, np.asarray(candidate, np.float64)
    if start < 0:
        return path
    path[start] = box
    for step in (range(start + 1, len(found)), range(start - 1, -1, -1)):
        last = box
        for frame in step:
            if len(found[frame]):
                gaps = [float(np.abs(candidate - last).mean()) for candidate in found[frame]]
                last = np.asarray(found[frame][int(np.argmin(gaps))], np.float64)
                path[frame] = last
    return path


def fill_boxes(boxes_px: Float[np.ndarray, "n 4"], longest_gap: int) -> BoxPath:
    """Fill the frames without a box.

    Between two detections every edge moves linearly; before the first and after the last detection
    the box is held. A gap of more than ``longest_gap`` frames stays missing, whole: a face that was
    away that long is not known to have moved straight.

    Args:
        boxes_px: One box per frame, NaN where there is none.
        longest_gap: Longest run of frames that is filled.
    """
    count = len(boxes_px)
    known = np.isfinite(boxes_px).all(axis=1)
    sources = [DETECTED if is_known else MISSING for is_known in known]
    filled = np.where(known[:, None], boxes_px, np.nan)
    at = np.flatnonzero(known)
    if len(at):
        frames = np.arange(count)
        straight = np.stack([np.interp(frames, at, boxes_px[at, k]) for k in range(4)], axis=1)
        for first, stop in gaps_of(known):
            if stop - first <= longest_gap:
                filled[first:stop] = straight[first:stop]
                inside = first > 0 and stop < count
                sources[first:stop] = [INTERPOLATED if inside else HELD] * (stop - first)
    return BoxPath(filled, tuple(sources))


def gaps_of(known: Bool[np.ndarray, " n"]) -> list[tuple[int, int]]:
    """Runs of frames that are not known, as (first, one past the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], known, [True]]).astype(np.int8)))
    pairs: Int[np.ndarray, "g 2"] = edges.reshape(-1, 2)
    return [(int(first), int(stop)) for first, stop in pairs]


def smooth_points(points_px: Float[np.ndarray, "n k 2"], window: int) -> Float[np.ndarray, "n k 2"]:
    """Centred moving average of points over frames.

    The window shrinks at the ends of the video and at frames without points (NaN), which stay
    without: x_i becomes the mean of those of x_{i-h}..x_{i+h} that exist, h = (window - 1) / 2, and
    no average reaches over a frame that does not.

    Args:
        points_px: NaN in frames without points.
        window: Frames, odd; 1 leaves the points as they are, the paper has 3.

    Raises:
        ValueError: The window is even or not positive.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"smooth_points needs an odd window of 1 frame or more, got {window}")
    half, known = window // 2, np.isfinite(points_px).all(axis=(1, 2))
    smoothed = np.array(points_px, dtype=np.float64)
    for frame in np.flatnonzero(known).tolist():
        first: int = int(frame)
        last: int = first
        while first > max(frame - half, 0) and known[first - 1]:
            first -= 1
        while last < min(frame + half, len(known) - 1) and known[last + 1]:
            last += 1
        smoothed[frame] = points_px[first : last + 1].mean(axis=0)
    return smoothed


def acceleration_px(points_px: Float[np.ndarray, "n k 2"]) -> float:
    """Jitter: mean length of x_{i-1} - 2 x_i + x_{i+1} over frames and points, pixels.

    Zero for points that move straight at constant speed. Frames next to one without points (NaN) do
    not count.

    Raises:
        ValueError: No three neighbouring frames have points.
    """
    bend = np.linalg.norm(points_px[:-2] - 2.0 * points_px[1:-1] + points_px[2:], axis=-1)
    bend = bend[np.isfinite(bend).all(axis=1)]
    if not len(bend):
        raise ValueError(
            f"acceleration_px needs three neighbouring frames with points, got {len(points_px)} "
            "frames without such a run"
        )
    return float(bend.mean())
