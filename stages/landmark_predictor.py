"""The 68-point predictor as stages use it: a crop, several boxes, one averaged answer.

dlib's regression trees answer in whole pixels and depend on the box they start from. Here
the face is cropped at a fixed size, the box is drawn again from the first answers,
and the last answers of slightly moved boxes are averaged: finer than a pixel, hardly
dependent on the first box, and their spread says how sure the predictor is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from models.landmarks import MIRROR_68, canonical_box, face_size, moved_box, square_box

FILE_NAME = "shape_predictor_68.dat"
FACE_PX = 256
"""Side of the box inside a crop, px."""
MARGIN = 0.6
"""What a crop shows around the box, fraction of its side."""
STARTS = (
    (0.0, 0.0, 1.0),
    (0.0, 0.0, 0.8),
    (-0.15, 0.0, 0.8),
    (0.15, 0.0, 0.8),
    (-0.25, 0.0, 0.75),
    (0.25, 0.0, 0.75),
)
"""Where the search starts in a given box, as shifts and scales: detectors disagree on what a face
box holds, and the brows, nose and mouth of a turned face lie near one side of it."""
LOCATING_PASSES = 2
LOCATING_PX = 96
DISSENT_WEIGHT = 0.05
TRUSTED_DOUBT = 0.05
"""A first start that doubts itself less is taken without trying the others."""
VOTES = (
    (0.0, 0.0, 1.0),
    (0.025, 0.0, 1.0),
    (-0.025, 0.0, 1.0),
    (0.0, 0.025, 1.0),
    (0.0, -0.025, 1.0),
    (0.0, 0.0, 1.05),
    (0.0, 0.0, 0.95),
)
"""Shifts (fractions of the side) and scales of the boxes whose answers are averaged."""
SPREAD_OF_ZERO_SCORE = 0.1


@dataclass(frozen=True, slots=True)
class FaceCrop:
    """A grey crop around a box.

    Attributes:
        image: The crop.
        left: Column coordinate of its left edge in the photograph.
        top: Row coordinate of its top edge.
        scale: Crop pixels per photograph pixel.
    """

    image: UInt8[np.ndarray, "h w"]
    left: float
    top: float
    scale: float

    def to_crop(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Photograph coordinates to crop coordinates."""
        return (points - [self.left, self.top]) * self.scale

    def to_photo(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Crop coordinates to photograph coordinates."""
        return points / self.scale + [self.left, self.top]

    def mirrored(self) -> "FaceCrop":
        """The crop with left and right exchanged about its own middle."""
        return FaceCrop(np.ascontiguousarray(self.image[:, ::-1]), self.left, self.top, self.scale)

    def reflected(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Photograph coordinates exchanged about the middle of the crop."""
        middle = self.left + 0.5 * self.image.shape[1] / self.scale
        return points * [-1.0, 1.0] + [2.0 * middle, 0.0]


@dataclass(frozen=True, slots=True)
class Answer:
    """Landmarks of one face.

    Attributes:
        points: iBUG-68, photograph coordinates.
        score: 1 where moved boxes agree, 0 where they differ by a tenth of the face.
    """

    points: Float[np.ndarray, "68 2"]
    score: float


def grey_of(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    """Luma of an RGB photograph."""
    import cv2

    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)


def crop_face(
    image: UInt8[np.ndarray, "h w"], box: Float[np.ndarray, "4"], face_px: int = FACE_PX
) -> FaceCrop:
    """Crop a square box with its margin, resampled so that the box has ``face_px`` pixels."""
    import cv2

    left, top, right, _ = square_box(box)
    side = right - left
    scale = face_px / side
    size = round(face_px * (1.0 + 2.0 * MARGIN))
    left, top = left - MARGIN * side, top - MARGIN * side
    # Continuous coordinates: crop = scale (photo - corner); OpenCV counts pixel centres from 0.
    matrix = np.array(
        [
            [scale, 0.0, scale * (0.5 - left) - 0.5],
            [0.0, scale, scale * (0.5 - top) - 0.5],
        ]
    )
    blurred = cv2.GaussianBlur(image, (0, 0), 0.4 / scale) if scale < 0.5 else image
    crop = cv2.warpAffine(
        blurred, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return FaceCrop(np.asarray(crop, dtype=np.uint8), float(left), float(top), scale)


def rectangle(box: Float[np.ndarray, "4"]) -> Any:  # noqa: ANN401 - dlib.rectangle
    """The dlib rectangle (whole, inclusive pixels) nearest to a box in crop coordinates."""
    import dlib

    left, top, right, bottom = (round(float(edge)) for edge in box)
    return dlib.rectangle(left, top, right - 1, bottom - 1)


class LandmarkPredictor:
    """A trained dlib shape predictor behind crops and votes."""

    def __init__(self, path: Path) -> None:
        """Load ``shape_predictor_68.dat``.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not a 68-point predictor.
        """
        import dlib

        if not path.is_file():
            raise FileNotFoundError(f"expected {path}; run the landmark_model stage")
        try:
            self._predictor = dlib.shape_predictor(str(path))
        except RuntimeError as error:
            raise ValueError(f"{path} is not a dlib shape predictor: {error}") from error
        blank = np.zeros((32, 32), np.uint8)
        parts = self._predictor(blank, dlib.rectangle(0, 0, 31, 31)).num_parts
        if parts != 68:
            raise ValueError(f"{path}: expected a predictor of 68 points, got {parts}")

    def _points(self, crop: FaceCrop, box: Float[np.ndarray, "4"]) -> Float[np.ndarray, "68 2"]:
        """One answer, photograph coordinates; whole crop pixels lie at their centres."""
        corners = crop.to_crop(box.reshape(2, 2)).reshape(4)
        found = self._predictor(crop.image, rectangle(corners))
        parts = np.array([(part.x, part.y) for part in found.parts()], dtype=np.float64)
        return crop.to_photo(parts + 0.5)

    def _both(
        self, crop: FaceCrop, mirror: FaceCrop, box: Float[np.ndarray, "4"]
    ) -> tuple[Float[np.ndarray, "68 2"], Float[np.ndarray, "68 2"]]:
        """The answers of a crop and of its mirror image, both in photograph coordinates."""
        right, left = mirror.reflected(box.reshape(2, 2))[:, 0]
        turned = np.array([left, box[1], right, box[3]])
        found = mirror.reflected(self._points(mirror, turned))[MIRROR_68]
        return self._points(crop, box), found

    def __call__(self, image: UInt8[np.ndarray, "h w"], box: Float[np.ndarray, "4"]) -> Answer:
        """Find the landmarks of the face in ``box``.

        Args:
            image: Grey photograph.
            box: Left, top, right, bottom of the face, of any detector.

        Raises:
            ValueError: The box is empty.
        """
        given = square_box(np.asarray(box, dtype=np.float64))
        boxes, doubts = [], []
        for right, down, scale in STARTS:
            candidate = moved_box(given, np.array([right, down]), scale)
            for _ in range(LOCATING_PASSES):
                candidate = self._located(image, candidate)
            crop = crop_face(image, candidate, LOCATING_PX)
            straight, mirrored = self._both(crop, crop.mirrored(), candidate)
            again = canonical_box(0.5 * (straight + mirrored))
            moved = float(np.abs(again - candidate).mean())
            apart = float(np.linalg.norm(straight - mirrored, axis=1).mean())
            boxes.append(again)
            doubts.append((moved + apart) / face_size(straight))
            if doubts[0] < TRUSTED_DOUBT:
                break
        best = boxes[_agreed(np.array(boxes), np.array(doubts))]
        return self._vote(image, canonical_box(self._vote(image, best).points))

    def _located(
        self, image: UInt8[np.ndarray, "h w"], box: Float[np.ndarray, "4"]
    ) -> Float[np.ndarray, "4"]:
        """The canonical box of one coarse answer."""
        return canonical_box(self._points(crop_face(image, box, LOCATING_PX), box))

    def _vote(self, image: UInt8[np.ndarray, "h w"], box: Float[np.ndarray, "4"]) -> Answer:
        """The average of slightly moved boxes and of the mirror image, and how far they agree."""
        crop = crop_face(image, box)
        mirror = crop.mirrored()
        votes = np.stack(
            [
                points
                for right, down, scale in VOTES
                for points in self._both(
                    crop, mirror, moved_box(box, np.array([right, down]), scale)
                )
            ]
        )
        points = votes.mean(axis=0)
        spread = float(np.linalg.norm(votes - points, axis=2).mean()) / face_size(points)
        return Answer(points, float(np.clip(1.0 - spread / SPREAD_OF_ZERO_SCORE, 0.0, 1.0)))


def _agreed(boxes: Float[np.ndarray, "n 4"], doubts: Float[np.ndarray, " n"]) -> int:
    """The start that is least doubtful and nearest to where the others ended."""
    sides = (boxes[:, 2:] - boxes[:, :2]).mean(axis=1)
    gaps = np.abs(boxes[:, None] - boxes[None]).mean(axis=2) / sides[:, None]
    return int(np.argmin(doubts + DISSENT_WEIGHT * np.median(gaps, axis=1)))


class FaceDetector:
    """dlib's frontal face detector (histograms of oriented gradients, part of the library)."""

    def __init__(self, *, min_score: float, max_side_px: int) -> None:
        """Prepare the detector.

        Args:
            min_score: Detections below it are not faces.
            max_side_px: Photographs are searched at most this large.
        """
        import dlib

        self._detector = dlib.get_frontal_face_detector()
        self._min_score = min_score
        self._max_side = max_side_px

    def __call__(
        self, image: UInt8[np.ndarray, "h w"]
    ) -> Sequence[tuple[Float[np.ndarray, "4"], float]]:
        """Boxes (left, top, right, bottom) and scores, best first."""
        import cv2

        zoom = min(1.0, self._max_side / max(image.shape))
        searched = image
        if zoom < 1.0:
            searched = np.asarray(
                cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA), np.uint8
            )
        boxes, scores, _ = self._detector.run(searched, 0, self._min_score)
        found = [
            (
                np.array([box.left(), box.top(), box.right() + 1, box.bottom() + 1]) / zoom,
                float(score),
            )
            for box, score in zip(boxes, scores, strict=True)
        ]
        return sorted(found, key=lambda face: -face[1])
