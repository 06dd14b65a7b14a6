"""The face of a video: a box and 68 landmarks per frame, or why there are none."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from models.face.face_path import MISSING, fill_boxes, gaps_of, nearest_faces, smooth_points
from stages.landmarking.landmark_predictor import (
    FILE_NAME,
    FaceDetector,
    LandmarkPredictor,
    grey_of,
)
from stages.runtime.params import TrackParams
from stages.video import Video

Tell = Callable[[str, int, int], None]
"""Called with what is being done, how many frames are done, how many there are (0: not known)."""


@dataclass(frozen=True)
class FacePath:
    """What was found in every frame.

    Attributes:
        names: Of the frames.
        size: Height and width of all of them.
        boxes_px: Left, top, right, bottom; NaN where missing.
        sources: detected, interpolated, held or missing.
        counts: How many faces were detected.
        scores: Of the landmarks, 0 to 1; NaN where missing.
        raw_px: Landmarks as predicted; NaN where missing.
        points_px: Averaged over neighbouring frames.
        reasons: Empty, or why a frame cannot be used.
    """

    names: tuple[str, ...]
    size: tuple[int, int]
    boxes_px: Float[np.ndarray, "n 4"]
    sources: tuple[str, ...]
    counts: tuple[int, ...]
    scores: Float[np.ndarray, " n"]
    raw_px: Float[np.ndarray, "n 68 2"]
    points_px: Float[np.ndarray, "n 68 2"]
    reasons: tuple[str, ...]

    @property
    def usable(self) -> list[int]:
        """Frames with landmarks."""
        return [index for index, reason in enumerate(self.reasons) if not reason]


def find_faces(
    video: Video, predictor: Path, p: TrackParams, tell: Tell, *, smooth: int
) -> FacePath:
    """Detect, choose, interpolate, predict, smooth.

    Args:
        video: Read twice.
        predictor: Folder of the trained 68-point predictor.
        p: Detection and gaps.
        tell: Progress.
        smooth: Frames over which the landmarks are averaged.

    Raises:
        FileNotFoundError: The predictor is not there.
        VideoError: The video changes its size or has no readable frame.
    """
    predict = LandmarkPredictor(predictor / FILE_NAME)
    detect = FaceDetector(min_score=p.detector_min_score, max_side_px=p.detector_max_side_px)
    names: list[str] = []
    unread: dict[int, str] = {}
    found: list[list[Float[np.ndarray, 4]]] = []
    size = (0, 0)
    for frame in video:
        names.append(frame.name)
        if frame.image is None:
            unread[frame.index] = frame.reason
            found.append([])
            continue
        size = (int(frame.image.shape[0]), int(frame.image.shape[1]))
        found.append([box for box, _ in detect(grey_of(frame.image))])
        tell("faces", len(names), video.announced)
    path = fill_boxes(nearest_faces(found), p.longest_gap)
    scores, raw = np.full(len(names), np.nan), np.full((len(names), 68, 2), np.nan)
    reasons = _gap_reasons(path.sources, p.longest_gap)
    for frame in video:
        if frame.image is None:
            reasons[frame.index] = unread[frame.index]
            continue
        if path.sources[frame.index] == MISSING:
            continue
        answer = predict(grey_of(frame.image), path.boxes_px[frame.index])
        scores[frame.index] = answer.score
        if answer.score < p.min_landmark_score:
            reasons[frame.index] = (
                f"landmarks disagree: score {answer.score:.2f} below {p.min_landmark_score:.2f}"
            )
        else:
            raw[frame.index] = answer.points
        tell("landmarks", frame.index + 1, len(names))
    return FacePath(
        tuple(names), size, path.boxes_px, path.sources,
        tuple(len(boxes) for boxes in found), scores, raw,
        smooth_points(raw, smooth), tuple(reasons),
    )  # fmt: skip


def _gap_reasons(sources: tuple[str, ...], longest_gap: int) -> list[str]:
    """Why frames without a box have none."""
    reasons = [""] * len(sources)
    missing = np.array([source == MISSING for source in sources])
    for first, stop in gaps_of(~missing):
        reasons[first:stop] = [
            f"no face was detected in frames {first} to {stop - 1}, more than the {longest_gap} "
            "that are bridged"
        ] * (stop - first)
    return reasons
