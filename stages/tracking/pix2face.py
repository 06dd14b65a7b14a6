"""pix2face on the frames of a video: every frame by itself, landmarks smoothed afterwards."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from models.methods.pix2face_camera import FaceCamera
from models.methods.pix2face_fit import ModelFit
from models.methods.tracker import Frame
from models.morphable import LinearModel
from stages.artifacts import read_json
from stages.inference.overlay import clay_over
from stages.inference.pix2face import Pix2FaceReconstructor
from stages.params import Pix2FaceFitParams
from stages.tracking.types import Answer, Arrays, Facts


class Pix2FaceTracking:
    """One reconstruction per frame; nothing is carried from frame to frame."""

    per_video: tuple[str, ...] = ()
    first_frames = 0

    def __init__(self, checkpoint: Path, model: Path, section: Pix2FaceFitParams) -> None:
        """Read a checkpoint and the converted 3DDFA folder.

        Raises:
            FileNotFoundError: One of them is not there.
            ValueError: The checkpoint is of another method.
        """
        if not checkpoint.is_file():
            raise FileNotFoundError(
                f"expected a pix2face checkpoint at {checkpoint}; train one (faceline run "
                "train@pix2face) or give --checkpoint"
            )
        self._method = Pix2FaceReconstructor(checkpoint, model, section)
        linear = LinearModel.load(model)
        self.faces = linear.faces
        self._fit = ModelFit(linear, float(read_json(model / "meta.json")["unit_m"]))
        found = self._method.facts
        self.facts = Facts(found["weights"], found["synthetic"], found["inputs"])

    def begin(self, frames: Sequence[Frame]) -> Arrays:
        """Nothing is decided for the whole video."""
        return {}

    def fit(self, before: Arrays, frame: Frame, *, jumped: bool) -> Arrays:
        """Coefficients, mesh and camera of one frame.

        Raises:
            ValueError: Too few pixels show a face.
        """
        answer = self._method(frame.image, frame.points_px)
        camera, found = answer.camera, answer.coefficients
        assert isinstance(camera, FaceCamera), "pix2face always has a camera"
        return {
            "identity_sigma": np.array(found["identity_sigma"]),
            "expression_sigma": np.array(found["expression_sigma"]),
            "rotation": camera.rotation,
            "px_per_mm": np.array(camera.m),
            "inverse_distance_per_mm": np.array(camera.k),
            "shift_mm": camera.shift,
            "principal_point_px": camera.centre_px,
        }

    def points_px(self, state: Arrays, size: tuple[int, int]) -> Float[np.ndarray, "68 2"]:
        """The landmarks' vertices, those chosen in training where there are any."""
        chosen = self._method.landmark_vertices
        vertices = self._fit.keypoints if chosen is None else chosen
        return _camera(state).project(self._posed_mm(state)[vertices])

    def answer(self, state: Arrays, size: tuple[int, int]) -> Answer:
        """The mesh; no depth: its camera knows no true size."""
        return Answer(state, self._posed_mm(state))

    def draw(self, state: Arrays, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The face in clay."""
        camera, vertices = _camera(state), self._posed_mm(state)
        turned = (vertices @ camera.rotation.T).astype(np.float32)
        clip = np.ascontiguousarray(camera.clip(vertices, *image.shape[:2])[None])
        return clay_over(image, clip, turned, self.faces)

    def _posed_mm(self, state: Arrays) -> Float[np.ndarray, "V 3"]:
        return self._fit.posed_mm(state["identity_sigma"], state["expression_sigma"])


def _camera(state: Arrays) -> FaceCamera:
    return FaceCamera(
        state["rotation"],
        float(state["px_per_mm"]),
        float(state["inverse_distance_per_mm"]),
        state["shift_mm"],
        state["principal_point_px"],
    )
