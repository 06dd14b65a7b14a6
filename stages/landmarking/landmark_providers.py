"""Where 68 points of a photograph can come from; every answer names its source."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from stages.datasets.images import ImageError, decode_rgb
from stages.landmarking.landmark_predictor import (
    FILE_NAME,
    FaceDetector,
    LandmarkPredictor,
    grey_of,
)
from stages.runtime.params import LandmarksParams

FAN_NAME = "2DFAN4-11f355bf06.pth.tar"
S3FD_NAME = "s3fd-619a316812.pth"
WHERE = "adrianbulat.com/downloads/python-fan"
TRUNCATION_PX = 0.5
"""face-alignment cuts its positions down to whole pixels; their expected value is this more."""


class NoFaceError(ValueError):
    """A photograph has no usable answer; the message is the row's reason."""


@dataclass(frozen=True, slots=True)
class Found:
    """One answer.

    Attributes:
        points_px: iBUG-68 in our pixels.
        score: 0 to 1.
        box_px: Left, top, right, bottom of the face that was looked at.
        provider: Where points and box come from.
    """

    points_px: Float[np.ndarray, "68 2"]
    score: float
    box_px: Float[np.ndarray, "4"]
    provider: str


Provider = Callable[[dict[str, Any]], Found]


def _decoded(row: dict[str, Any]) -> UInt8[np.ndarray, "h w 3"]:
    try:
        return decode_rgb(row["image"] or b"")
    except ImageError as error:
        raise NoFaceError(str(error)) from error


def _given_box(row: dict[str, Any]) -> Float[np.ndarray, "4"] | None:
    """The data set's own face box, if it has a usable one."""
    if row["box_px"] is None:
        return None
    box = np.asarray(row["box_px"], dtype=np.float64)
    if box.shape != (4,) or not np.isfinite(box).all() or not (box[2:] > box[:2]).all():
        raise NoFaceError(f"the data set's face box is unusable: {row['box_px']}")
    if not (box[0] < row["width_px"] and box[2] > 0 and box[1] < row["height_px"] and box[3] > 0):
        raise NoFaceError(f"the data set's face box lies outside the photograph: {row['box_px']}")
    return box


def _only(faces: list[tuple[Float[np.ndarray, "4"], float]]) -> Float[np.ndarray, "4"]:
    """The one detected box."""
    if not faces:
        raise NoFaceError("no face was detected")
    if len(faces) > 1:
        raise NoFaceError(f"several faces were detected ({len(faces)}); give this one a box")
    return faces[0][0]


class DlibProvider:
    """The predictor trained here, started from the data set's box or a detected one."""

    def __init__(self, model: Path, p: LandmarksParams) -> None:
        """Load the predictor of ``data/landmark_model``."""
        self._predict = LandmarkPredictor(model / FILE_NAME)
        self._detect = FaceDetector(min_score=p.detector_min_score, max_side_px=p.detector_max_px)

    def __call__(self, row: dict[str, Any]) -> Found:
        """Answer one packed row."""
        image = grey_of(_decoded(row))
        box, source = _given_box(row), "dlib, data set's box"
        if box is None:
            box, source = _only(list(self._detect(image))), "dlib, detected box"
        answer = self._predict(image, box)
        return Found(answer.points, answer.score, box, source)


class FaceAlignmentProvider:
    """face-alignment's 2D network with the user's own weight files."""

    def __init__(self, p: LandmarksParams) -> None:
        """Load both networks from files; nothing is downloaded.

        Raises:
            FileNotFoundError: A weight file is not given or not there.
            ValueError: A file does not hold that network's weights.
        """
        given = {
            "fan": (p.face_alignment.fan, FAN_NAME),
            "s3fd": (p.face_alignment.s3fd, S3FD_NAME),
        }
        for name, (path, usual) in given.items():
            if path is None or not path.is_file():
                raise FileNotFoundError(
                    f"face_alignment.{name} in params/landmarks.yaml: expected your copy of "
                    f"{usual} ({WHERE}), got {path}; or set landmarks.provider to dlib"
                )
        self._network = offline_face_alignment(
            *(path for path, _ in given.values() if path is not None)
        )

    def __call__(self, row: dict[str, Any]) -> Found:
        """Answer one packed row."""
        image = _decoded(row)
        box, source = _given_box(row), "face-alignment, data set's box"
        if box is None:
            faces = self._network.face_detector.detect_from_image(image.copy())
            box = _only(
                [(np.asarray(face[:4], dtype=np.float64), float(face[4])) for face in faces]
            )
            source = "face-alignment, detected box"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            points, scores, _ = self._network.get_landmarks_from_image(
                image, [np.array([*box, 1.0])], return_landmark_score=True
            )
        confidence = float(np.clip(np.mean(np.asarray(scores[0])), 0.0, 1.0))
        at = np.asarray(points[0], dtype=np.float64)[:, :2] + TRUNCATION_PX
        return Found(at, confidence, box, source)


def offline_face_alignment(fan: Path, s3fd: Path) -> Any:  # noqa: ANN401 - FaceAlignment
    """face-alignment's predictor built from two weight files, without its downloader.

    Raises:
        ValueError: A file does not hold that network's weights.
    """
    import pickle

    import torch
    from face_alignment import FaceAlignment, LandmarksType
    from face_alignment.models import FAN

    class Offline(FaceAlignment):  # type: ignore[misc]
        """Loads the landmark network from the given file."""

        def _load_native(
            self, network_name: str, network_size: int, device: str, dtype: torch.dtype
        ) -> torch.nn.Module:
            del network_name
            network: torch.nn.Module = FAN(network_size)
            network.load_state_dict(torch.load(fan, map_location=device, weights_only=True))
            return network.to(device, dtype=dtype).eval()

    try:
        return Offline(
            LandmarksType.TWO_D,
            device="cpu",
            compile=False,
            face_detector="sfd",
            face_detector_kwargs={"path_to_detector": str(s3fd)},
        )
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, AttributeError) as error:
        raise ValueError(
            f"expected the weights {FAN_NAME} and {S3FD_NAME}, got {fan} and {s3fd}: {error}"
        ) from error


def from_files(row: dict[str, Any]) -> Found:
    """The points that came with the data set."""
    from models.face.landmarks import canonical_box

    if row["landmark_order"] != "ibug68" or len(row["landmarks_px"] or ()) != 136:
        raise NoFaceError("the data set gives no 68 landmarks for this photograph")
    points = np.asarray(row["landmarks_px"], dtype=np.float64).reshape(68, 2)
    if not np.isfinite(points).all():
        raise NoFaceError("the data set's landmarks are not all finite")
    box = _given_box(row)
    return Found(points, 1.0, canonical_box(points) if box is None else box, "files")


def provider_of(name: str, p: LandmarksParams, model: Path) -> Provider:
    """The provider called ``name`` in params/landmarks.yaml."""
    if name == "files":
        return from_files
    if name == "face-alignment":
        return FaceAlignmentProvider(p)
    return DlibProvider(model, p)
