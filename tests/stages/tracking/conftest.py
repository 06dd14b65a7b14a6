"""A synthetic clip, a procedural FLAME and a predictor that knows the answer."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from stages.corpus.clip import write_clip
from stages.runtime import params
from stages.runtime.artifacts import write_json

FRAMES, SIZE = 5, 160


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five frames of 112 px with their truth."""
    folder = tmp_path_factory.mktemp("clip") / "clip"
    write_clip(folder, frames=FRAMES, size_px=SIZE, seed=5, first=1)
    return folder


@pytest.fixture(scope="session")
def flame_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a converted procedural FLAME and a stand-in for the predictor's file."""
    from models.procedural import rig
    from models.procedural.head import ProceduralHead

    data = tmp_path_factory.mktemp("data")
    folder = data / "models" / "flame"
    folder.mkdir(parents=True)
    arrays = rig.build_flame(samples=60, n_identity=10, n_expression=30)
    names = ("v_template", "shapedirs", "exprdirs", "posedirs", "weights")
    tensors = {n: np.ascontiguousarray(getattr(arrays, n), np.float32) for n in names}
    tensors["J_regressor"] = np.ascontiguousarray(arrays.joint_regressor, np.float32)
    tensors["faces"] = np.ascontiguousarray(arrays.faces, np.int64)
    tensors["parents"] = arrays.parents
    save_file(tensors, folder / "model.safetensors")
    head = ProceduralHead.build()
    np.savez(
        folder / "masks.npz",
        **{n: head.masks[n] for n in ("face", "left_eyeball", "right_eyeball")},
    )
    points = head.embeddings
    fields = ("static", "dynamic", "full")
    np.savez(
        folder / "embeddings.npz",
        **{f"{n}_faces": getattr(points, f"{n}_faces") for n in fields},
        **{f"{n}_bary": getattr(points, f"{n}_bary") for n in fields},
    )
    write_json({"synthetic": True, "unit": "m"}, folder / "meta.json")
    predictor = data / "landmark_model" / "shape_predictor_68.dat"
    predictor.parent.mkdir()
    predictor.write_bytes(b"stand-in")
    return data


@pytest.fixture(scope="session")
def loaded(repository: Path) -> params.Params:
    """The committed parameters with a schedule of few steps and the average head."""
    whole = params.load(repository / "params.yaml")
    full = whole.track.presets["small"]
    small = full.model_copy(
        update={
            "camera_steps": 20,
            "levels": tuple(level.model_copy(update={"steps": 3}) for level in full.levels),
        }
    )
    section = whole.track.model_copy(
        update={"presets": {"small": small}, "shape_init": "mean", "longest_gap": 1}
    )
    return whole.model_copy(update={"track": section})


class KnowingPredictor:
    """Takes the landmarks of the frame whose picture it is shown."""

    truth: np.ndarray
    greys: list[np.ndarray]

    def __init__(self, path: Path) -> None:
        assert path.is_file()

    def __call__(self, image: np.ndarray, box: np.ndarray) -> object:
        from stages.landmarking.landmark_predictor import Answer

        apart = [np.abs(image.astype(float) - grey).mean() for grey in self.greys]
        return Answer(self.truth[int(np.argmin(apart))], 0.9)


@pytest.fixture
def known_faces(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace dlib's predictor by the truth."""
    from stages.landmarking.landmark_predictor import grey_of
    from stages.tracking import faces
    from stages.video import Video

    with np.load(clip / "truth" / "truth.npz") as truth:
        KnowingPredictor.truth = truth["landmarks_px"]
    KnowingPredictor.greys = [grey_of(f.image).astype(float) for f in Video(clip / "frames")]
    monkeypatch.setattr(faces, "LandmarkPredictor", KnowingPredictor)
