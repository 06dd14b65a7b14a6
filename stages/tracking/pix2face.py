"""pix2face on the frames of a video: every frame by itself, landmarks smoothed afterwards."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from models.face.morphable import LinearModel
from models.methods.pix2face_camera import FaceCamera
from models.methods.pix2face_fit import ModelFit
from models.methods.tracker import Frame
from stages.inference.overlay import clay_over
from stages.inference.pix2face import Pix2FaceReconstructor
from stages.runtime.artifacts import read_json
from stages.runtime.params import Pix2FaceFitParams
from stages.tracking.types import Answer, Arrays, Facts

PARAMETERS = (
    "identity_sigma", "expression_sigma", "rotation_cam_from_head", "px_per_mm",
    "inverse_distance_per_mm", "shift_mm", "principal_point_px", "head_yaw_pitch_roll_deg",
)  # fmt: skip
"""What of a reconstruction's coefficients makes a frame's state."""


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
        learned = self._method.landmark_vertices
        self._marks = self._fit.keypoints if learned is None else learned
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
        found = self._method(frame.image, frame.points_px).coefficients
        return {name: np.array(found[name]) for name in PARAMETERS}

    def points_px(self, state: Arrays, size: tuple[int, int]) -> Float[np.ndarray, "68 2"]:
        """The learned landmark vertices, or the model's own where the checkpoint has none."""
        return _camera(state).project(self._posed_mm(state)[self._marks])

    def answer(self, state: Arrays, size: tuple[int, int]) -> Answer:
        """The mesh. The camera's distance is too weakly determined to give depth."""
        return Answer(state, self._posed_mm(state))

    def draw(self, state: Arrays, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The face in clay."""
        camera, posed = _camera(state), self._posed_mm(state)
        clip = np.ascontiguousarray(camera.clip(posed, *image.shape[:2])[None])
        return clay_over(image, clip, posed @ camera.rotation.T, self.faces)

    def _posed_mm(self, state: Arrays) -> Float[np.ndarray, "V 3"]:
        return self._fit.posed_mm(state["identity_sigma"], state["expression_sigma"])


def _camera(state: Arrays) -> FaceCamera:
    return FaceCamera(
        state["rotation_cam_from_head"].reshape(3, 3),
        float(state["px_per_mm"][0]),
        float(state["inverse_distance_per_mm"][0]),
        state["shift_mm"],
        state["principal_point_px"],
    )
