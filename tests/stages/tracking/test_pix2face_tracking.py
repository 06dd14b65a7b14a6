"""pix2face's states: what a file keeps of a frame is enough to draw it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from models.face.morphable import LinearModel
from models.methods.pix2face_camera import FaceCamera
from models.methods.tracker import Frame
from stages.tracking import pix2face
from stages.tracking.pix2face import Pix2FaceTracking


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("k", [0.0, 1 / 900])
def test_landmarks_and_drawing_come_from_the_kept_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: float, learned: bool
) -> None:
    rng = np.random.default_rng(0)
    V, K, E = 80, 3, 2
    model = LinearModel(
        mean_shape=rng.normal(size=(V, 3)) * 40,
        shape_basis=rng.normal(size=(V, 3, K)),
        shape_sigma=np.ones(K),
        mean_expression=np.full((V, 3), 0.5),
        expression_basis=rng.normal(size=(V, 3, E)),
        expression_sigma=np.ones(E),
        faces=rng.integers(0, V, (60, 3)),
        keypoints=rng.permutation(V)[:68],
    )
    vertices = rng.permutation(V)[:68]
    camera = FaceCamera(np.eye(3), 1.1, k, np.array([4.0, -3.0]), np.array([64.0, 64.0]))
    shape, expression = rng.normal(size=K), rng.normal(size=E)
    coefficients = {
        "identity_sigma": shape.tolist(),
        "expression_sigma": expression.tolist(),
        "rotation_cam_from_head": camera.rotation.ravel().tolist(),
        "px_per_mm": [camera.m],
        "inverse_distance_per_mm": [camera.k],
        "shift_mm": camera.shift.tolist(),
        "principal_point_px": camera.centre_px.tolist(),
        "head_yaw_pitch_roll_deg": [0.0, 0.0, 0.0],
        "only_sometimes": [1.0],
    }

    class Answering:
        landmark_vertices = vertices if learned else None

        def __init__(self, *given: object) -> None:
            self.facts = {"weights": "random", "synthetic": True, "inputs": {}}

        def __call__(self, image: np.ndarray, points: np.ndarray) -> SimpleNamespace:
            return SimpleNamespace(coefficients=coefficients)

    monkeypatch.setattr(pix2face, "Pix2FaceReconstructor", Answering)
    monkeypatch.setattr(LinearModel, "load", lambda path: model)
    monkeypatch.setattr(pix2face, "read_json", lambda path: {"unit_m": 0.001})
    (tmp_path / "model.safetensors").write_bytes(b"")
    tracking = Pix2FaceTracking(tmp_path / "model.safetensors", tmp_path, None)
    image = np.full((128, 128, 3), 90, np.uint8)
    state = tracking.fit({}, Frame(image, np.zeros((68, 2))), jumped=False)
    assert "only_sometimes" not in state, "rows of one table have the same columns"
    posed = model.mean_shape + 0.5 + model.shape_basis @ shape + model.expression_basis @ expression
    marks = vertices if learned else model.keypoints
    expected = camera.project(posed[marks])
    np.testing.assert_allclose(tracking.points_px(state, (128, 128)), expected, atol=1e-3)
    drawn = tracking.draw(state, image)
    changed = (drawn != image).any(axis=2)
    assert 0.02 < changed.mean() < 0.98
    with pytest.raises(FileNotFoundError, match="pix2face checkpoint"):
        Pix2FaceTracking(tmp_path / "none", tmp_path, None)
