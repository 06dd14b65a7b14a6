"""The 68-point predictor as stages use it: a crop, several boxes, one averaged answer.

dlib's regression trees answer in whole pixels and depend on the box they start from. Here
the face is cropped at a fixed size, the box is drawn again, upright, from the first answers,
and the last answers of slightly moved boxes are averaged: finer than a pixel, hardly
dependent on the first box, and their spread says how sure the predictor is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from models.face.landmarks import MIRROR_68, canonical_box, face_size, roll_deg, square_box

FILE_NAME = "shape_predictor_68.dat"
FACE_PX = 256
"""Side of the box inside a crop, px."""
MARGIN = 0.6
"""What a crop shows around the box, fraction of its side."""
STARTS = (
    (0.0, 0.0, 1.0, 0.0),
    (0.0, 0.0, 1.0, -25.0),
    (0.0, 0.0, 1.0, 25.0),
    (0.0, 0.0, 0.8, 0.0),
    (-0.15, 0.0, 0.8, 0.0),
    (0.15, 0.0, 0.8, 0.0),
    (-0.25, 0.0, 0.75, 0.0),
    (0.25, 0.0, 0.75, 0.0),
)
"""Where the search starts in a given box: shifts, scale, roll in degrees. Detectors disagree on
what a face box holds, the brows, nose and mouth of a turned face lie near one side of it, and heads
are held askew."""
LOCATING_PASSES = 2
LOCATING_PX = 96
DISSENT_WEIGHT = 0.05
TRUSTED_DOUBT = 0.05
"""A first start that doubts itself less is taken without trying the others."""
CONTENDERS = 3
"""Starts that are looked at closely; the one whose votes agree best answers."""
CLOSE_VOTES = 3
"""How many of the votes those looks take."""
Vote = tuple[float, float, float]
VOTES: tuple[Vote, ...] = (
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
LARGEST_ROLL_DEG = 60.0


@dataclass(frozen=True, slots=True)
class FaceSquare:
    """Where a face lies in a photograph: a square whose lower side is below its chin.

    Attributes:
        centre: Photograph coordinates.
        side: px.
        roll_deg: How far it is turned in the image, clockwise as seen.
    """

    centre: Float[np.ndarray, "2"]
    side: float
    roll_deg: float = 0.0

    @classmethod
    def around(cls, points: Float[np.ndarray, "68 2"]) -> "FaceSquare":
        """The canonical box of the points after they were turned upright."""
        angle = float(np.clip(roll_deg(points), -LARGEST_ROLL_DEG, LARGEST_ROLL_DEG))
        turn = _turn(angle)
        box = canonical_box(points @ turn)
        return cls(0.5 * (box[:2] + box[2:]) @ turn.T, float(box[2] - box[0]), angle)

    @classmethod
    def of_box(cls, box: Float[np.ndarray, "4"]) -> "FaceSquare":
        """An upright square of a detector's box.

        Raises:
            ValueError: The box is empty.
        """
        square = square_box(np.asarray(box, dtype=np.float64))
        return cls(0.5 * (square[:2] + square[2:]), float(square[2] - square[0]))

    def moved(self, right: float, down: float, scale: float) -> "FaceSquare":
        """Shifted along its own sides by fractions of them, and scaled about its centre."""
        shift = _turn(self.roll_deg) @ np.array([right, down]) * self.side
        return FaceSquare(self.centre + shift, scale * self.side, self.roll_deg)

    def rolled(self, by_deg: float) -> "FaceSquare":
        """Turned about its centre."""
        return FaceSquare(self.centre, self.side, self.roll_deg + by_deg)

    def corners(self) -> Float[np.ndarray, "2 2"]:
        """Upper left and lower right corner as the face has them, photograph coordinates."""
        half = 0.5 * self.side * np.array([[-1.0, -1.0], [1.0, 1.0]])
        return self.centre + half @ _turn(self.roll_deg).T

    def apart(self, other: "FaceSquare") -> float:
        """Mean distance of the edges of two squares as if neither were turned."""
        half = 0.5 * (self.side - other.side)
        edges = (self.centre - other.centre)[:, None] + np.array([-half, half])
        return float(np.abs(edges).mean())


def _turn(angle_deg: float) -> Float[np.ndarray, "2 2"]:
    """Rotation clockwise as seen where y points down."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.array([[c, -s], [s, c]])


@dataclass(frozen=True, slots=True)
class FaceCrop:
    """A grey crop around a face, upright.

    Attributes:
        image: The crop.
        matrix: (2, 2) of ``crop = matrix @ photo + shift``, continuous coordinates.
        shift: (2,).
    """

    image: UInt8[np.ndarray, "h w"]
    matrix: Float[np.ndarray, "2 2"]
    shift: Float[np.ndarray, "2"]

    def to_crop(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Photograph coordinates to crop coordinates."""
        return points @ self.matrix.T + self.shift

    def to_photo(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Crop coordinates to photograph coordinates."""
        return np.asarray((points - self.shift) @ np.linalg.inv(self.matrix).T)

    def mirrored(self) -> "FaceCrop":
        """The crop with left and right exchanged; its coordinates still lead to the photograph."""
        flip = np.array([-1.0, 1.0])
        width = np.array([float(self.image.shape[1]), 0.0])
        flipped = np.ascontiguousarray(self.image[:, ::-1])
        return FaceCrop(flipped, flip[:, None] * self.matrix, flip * self.shift + width)


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
    image: UInt8[np.ndarray, "h w"], square: FaceSquare, face_px: int = FACE_PX
) -> FaceCrop:
    """Crop a square and its margin, turned upright, so that the square has ``face_px`` pixels."""
    import cv2

    scale = face_px / square.side
    size = round(face_px * (1.0 + 2.0 * MARGIN))
    linear = scale * _turn(square.roll_deg).T
    shift = 0.5 * size - linear @ square.centre
    # Continuous coordinates; OpenCV counts pixel centres from 0.
    matrix = np.column_stack([linear, shift + linear @ [0.5, 0.5] - 0.5])
    blurred = cv2.GaussianBlur(image, (0, 0), 0.4 / scale) if scale < 0.5 else image
    crop = cv2.warpAffine(
        blurred, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return FaceCrop(np.asarray(crop, dtype=np.uint8), linear, shift)


def rectangle(crop: FaceCrop, square: FaceSquare) -> Any:  # noqa: ANN401 - dlib.rectangle
    """The dlib rectangle (whole, inclusive pixels) nearest to a square of the crop's own roll."""
    import dlib

    corners = crop.to_crop(square.corners())
    left, top = (round(float(edge)) for edge in corners.min(axis=0))
    right, bottom = (round(float(edge)) for edge in corners.max(axis=0))
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

    def _points(self, crop: FaceCrop, square: FaceSquare) -> Float[np.ndarray, "68 2"]:
        """One answer, photograph coordinates; whole crop pixels lie at their centres."""
        found = self._predictor(crop.image, rectangle(crop, square))
        parts = np.array([(part.x, part.y) for part in found.parts()], dtype=np.float64)
        return crop.to_photo(parts + 0.5)

    def _both(
        self, crop: FaceCrop, mirror: FaceCrop, square: FaceSquare
    ) -> tuple[Float[np.ndarray, "68 2"], Float[np.ndarray, "68 2"]]:
        """The answers of a crop and of its mirror image, both in photograph coordinates."""
        return self._points(crop, square), self._points(mirror, square)[MIRROR_68]

    def __call__(self, image: UInt8[np.ndarray, "h w"], box: Float[np.ndarray, "4"]) -> Answer:
        """Find the landmarks of the face in ``box``.

        Args:
            image: Grey photograph.
            box: Left, top, right, bottom of the face, of any detector.

        Raises:
            ValueError: The box is empty.
        """
        given = FaceSquare.of_box(box)
        squares, doubts = [], []
        for right, down, scale, roll in STARTS:
            candidate = given.moved(right, down, scale).rolled(roll)
            for _ in range(LOCATING_PASSES):
                crop = crop_face(image, candidate, LOCATING_PX)
                candidate = FaceSquare.around(self._points(crop, candidate))
            crop = crop_face(image, candidate, LOCATING_PX)
            straight, mirrored = self._both(crop, crop.mirrored(), candidate)
            again = FaceSquare.around(0.5 * (straight + mirrored))
            apart = float(np.linalg.norm(straight - mirrored, axis=1).mean())
            squares.append(again)
            doubts.append((again.apart(candidate) + apart) / face_size(straight))
            if doubts[0] < TRUSTED_DOUBT:
                break
        tried = np.argsort(_dissent(squares, np.array(doubts)), kind="stable")[:CONTENDERS]
        rounds = [self._vote(image, squares[at], VOTES[:CLOSE_VOTES]) for at in tried]
        best = max(rounds, key=lambda answer: answer.score)
        return self._vote(image, FaceSquare.around(best.points), VOTES)

    def _vote(
        self, image: UInt8[np.ndarray, "h w"], square: FaceSquare, votes: Sequence[Vote]
    ) -> Answer:
        """The average of slightly moved squares and of the mirror image, and how far they agree."""
        crop = crop_face(image, square)
        mirror = crop.mirrored()
        cast = np.stack(
            [points for vote in votes for points in self._both(crop, mirror, square.moved(*vote))]
        )
        points = cast.mean(axis=0)
        spread = float(np.linalg.norm(cast - points, axis=2).mean()) / face_size(points)
        return Answer(points, float(np.clip(1.0 - spread / SPREAD_OF_ZERO_SCORE, 0.0, 1.0)))


def _dissent(
    squares: Sequence[FaceSquare], doubts: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """How doubtful each start is and how far from where the others ended."""
    gaps = np.array([[one.apart(other) / one.side for other in squares] for one in squares])
    return np.asarray(doubts + DISSENT_WEIGHT * np.median(gaps, axis=1))


@cache
def _frontal_detector() -> Any:  # noqa: ANN401 - dlib has no types
    """The one detector of this process, half a second to unpack; it holds no state."""
    import dlib

    return dlib.get_frontal_face_detector()


class FaceDetector:
    """dlib's frontal face detector (histograms of oriented gradients, part of the library)."""

    def __init__(self, *, min_score: float, max_side_px: int) -> None:
        """Prepare the detector.

        Args:
            min_score: Detections below it are not faces.
            max_side_px: Photographs are searched at most this large.
        """
        self._detector = _frontal_detector()
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
