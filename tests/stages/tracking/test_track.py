"""`faceline track` on a tiny synthetic clip: files, rows, resume, refusals."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stages.track
from models.face.face_path import acceleration_px
from models.methods.mica import Mica, MicaConfig
from models.methods.tracker import Frame, StartError
from models.networks.encoders.iresnet import IResNetConfig
from models.rendering.cameras import perspective_pixels
from pipelines.cli import main
from stages.corpus.clip import face_depth_mm, performer, shoot
from stages.inference.mica import MicaReconstructor
from stages.runtime import params
from stages.runtime.artifacts import (
    read_json,
    read_safetensors,
    read_table,
    sha256_file,
    write_safetensors,
)
from stages.track import read_depth, track_video
from stages.tracking import faces
from stages.tracking.mica import MicaTracking
from stages.tracking.types import Answer, Facts
from stages.video import Video, VideoError

FRAMES, SIZE = 5, 160


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def go(clip: Path, flame_data: Path, loaded: params.Params, tmp_path: Path, known_faces: None):
    def run(video: Path | None = None, out: str = "out", **more: Any) -> dict[str, Any]:
        options = {
            "method": "mica",
            "loaded": loaded,
            "data": flame_data,
            "work": tmp_path / ".work",
        }
        return track_video(video or clip / "frames", tmp_path / out, **(options | more))

    return run


def focal(clip: Path) -> float:
    with np.load(clip / "truth" / "truth.npz") as truth:
        return float(truth["focal_px"][0])


@pytest.fixture(scope="module")
def written(
    clip: Path, flame_data: Path, loaded: params.Params, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """One undisturbed run with depth and meshes."""
    from stages.landmarking.landmark_predictor import grey_of
    from tests.stages.tracking.conftest import KnowingPredictor

    with np.load(clip / "truth" / "truth.npz") as truth:
        KnowingPredictor.truth = truth["landmarks_px"]
    KnowingPredictor.greys = [grey_of(f.image).astype(float) for f in Video(clip / "frames")]
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faces, "LandmarkPredictor", KnowingPredictor)
        track_video(
            clip / "frames", folder / "out", method="mica", loaded=loaded, data=flame_data,
            work=folder / ".work", focal_px=focal(clip), depth=clip / "truth" / "depth",
            meshes=True,
        )  # fmt: skip
    assert not list((folder / ".work" / "track").iterdir()), "nothing is kept of a finished video"
    return folder / "out"


def test_what_is_written(written: Path, clip: Path) -> None:
    meta = read_json(written / "meta.json")
    assert (meta["status"], meta["tracked"], meta["frames"]) == ("ok", FRAMES, FRAMES)
    assert meta["synthetic"] is True
    assert meta["weights"] == "none"
    rows = read_table(written / "frames.parquet").to_pylist()
    with np.load(clip / "truth" / "truth.npz") as truth:
        true = truth["landmarks_px"]
    fitted = np.array([row["fitted_px"] for row in rows]).reshape(-1, 68, 2)
    assert np.linalg.norm(fitted - true, axis=2).mean() < 3.0
    assert all(row["status"] == "ok" and row["photometric_rmse"] < 60 for row in rows)
    assert meta["depth_rmse_mm_mean"] == pytest.approx(np.mean([r["depth_rmse_mm"] for r in rows]))
    assert meta["depth_rmse_mm_mean"] < 120
    assert meta["jitter_px"] == pytest.approx(acceleration_px(fitted))
    arrays, facts = read_safetensors(written / "parameters.safetensors")
    assert arrays["frame"].tolist() == list(range(FRAMES))
    assert arrays["psi"].shape == (FRAMES, 30)
    R = arrays["rotation"].astype(float)
    np.testing.assert_allclose(
        R @ R.transpose(0, 2, 1), np.tile(np.eye(3), (FRAMES, 1, 1)), atol=1e-5
    )
    assert facts["method"] == "mica"
    shown = list(Video(written / "overlay.mp4"))
    assert len(shown) == FRAMES
    assert shown[0].image.shape == (SIZE, 2 * SIZE, 3)
    assert len(list((written / "meshes").glob("*.obj"))) == FRAMES


def test_parameters_say_where_the_mesh_is_in_the_picture(written: Path) -> None:
    from stages.datasets.meshes import read_mesh

    arrays, _ = read_safetensors(written / "parameters.safetensors")
    row = read_table(written / "frames.parquet").to_pylist()[2]
    mesh = read_mesh(written / "meshes" / "000002.obj").vertices / 1000.0
    seen = mesh @ arrays["rotation"][2].T.astype(float) + arrays["translation"][2]
    pixels = perspective_pixels(seen[None], *arrays["camera_px"][2].tolist())[0]
    points = np.array(row["fitted_px"]).reshape(68, 2)
    apart = np.linalg.norm(points[:, None] - pixels[None], axis=2).min(axis=1)
    assert apart.max() < 4.0, "every landmark lies among the mesh's projected vertices"


def test_a_run_that_is_killed_goes_on_to_the_same_bytes(
    written: Path, clip: Path, go: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[int] = []
    whole = MicaTracking.fit

    def dying(self: MicaTracking, before: Any, frame: Any, *, jumped: bool) -> Any:
        if len(fitted) == 2:
            raise KeyboardInterrupt
        fitted.append(1)
        return whole(self, before, frame, jumped=jumped)

    def counting(self: MicaTracking, before: Any, frame: Any, *, jumped: bool) -> Any:
        fitted.append(1)
        return whole(self, before, frame, jumped=jumped)

    more = {"focal_px": focal(clip), "depth": clip / "truth" / "depth", "meshes": True}
    monkeypatch.setattr(MicaTracking, "fit", dying)
    with pytest.raises(KeyboardInterrupt):
        go(**more)
    assert not (tmp_path / "out").exists()
    kept = sorted(path.name for path in (tmp_path / ".work").rglob("0*.safetensors"))
    assert kept == ["000000.safetensors", "000001.safetensors"]
    next((tmp_path / ".work").rglob("000001.safetensors")).write_bytes(b"rotten")
    monkeypatch.setattr(MicaTracking, "fit", counting)
    monkeypatch.setattr(faces, "LandmarkPredictor", None)  # faces are not looked for again
    go(**more)
    assert len(fitted) == 2 + FRAMES - 1, "only the frame that was whole is not fitted again"
    assert files(tmp_path / "out") == files(written)


def test_gaps_are_bridged_or_become_rows(
    clip: Path, go: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = shutil.copytree(clip / "frames", tmp_path / "frames")
    (frames / "00004.png").write_bytes(b"")
    seen: list[int] = []

    class Blinking(faces.FaceDetector):
        def __call__(self, image: np.ndarray) -> Any:
            seen.append(1)
            return [] if len(seen) == 2 else super().__call__(image)

    monkeypatch.setattr(faces, "FaceDetector", Blinking)
    meta = go(frames)
    rows = read_table(tmp_path / "out" / "frames.parquet").to_pylist()
    assert [row["faces"] for row in rows] == [1, 0, 1, 1, 0]
    assert [row["box_source"] for row in rows[:3]] == ["detected", "interpolated", "detected"]
    assert (rows[1]["status"], rows[4]["status"]) == ("ok", "failed")
    assert "empty" in rows[4]["reason"]
    assert (meta["tracked"], meta["failed"], meta["status"]) == (4, 1, "ok")


def test_a_video_without_a_face_is_failed_rows(
    clip: Path, go: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faces.FaceDetector, "__call__", lambda self, image: [])
    meta = go()
    assert (meta["status"], meta["tracked"]) == ("failed", 0)
    assert "no face was detected in frames 0 to 4" in meta["reason"]
    rows = read_table(tmp_path / "out" / "frames.parquet").to_pylist()
    assert {row["status"] for row in rows} == {"failed"}
    assert (tmp_path / "out" / "overlay.mp4").is_file()
    assert not (tmp_path / "out" / "parameters.safetensors").exists()


def test_what_is_refused(clip: Path, go: Any, tmp_path: Path) -> None:
    frames = shutil.copytree(clip / "frames", tmp_path / "frames")
    import cv2

    small = cv2.resize(cv2.imread(str(frames / "00003.png")), (64, 64))
    cv2.imwrite(str(frames / "00003.png"), small)
    with pytest.raises(VideoError, match=r"64 x 64 px in frame 00003\.png"):
        go(frames)
    with pytest.raises(FileNotFoundError, match="expected a video"):
        go(tmp_path / "none.mp4")
    with pytest.raises(FileNotFoundError, match="68-point predictor"):
        go(data=tmp_path)
    with pytest.raises(ValueError, match="a method among"):
        go(method="deca")
    np.save(tmp_path / "long.npy", np.zeros(400))
    with pytest.raises(ValueError, match="1 to 10 shape coefficients"):
        go(shape=tmp_path / "long.npy")
    with pytest.raises(ValueError, match="focal length above 0"):
        go(focal_px=-1.0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="new or empty folder"):
        go(out="mine")
    (tmp_path / "depths").mkdir()
    with pytest.raises(FileNotFoundError, match="depth maps"):
        go(depth=tmp_path / "depths")
    np.save(tmp_path / "depths" / "0.npy", np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"one reference depth per frame \(5\), got 1"):
        go(depth=tmp_path / "depths")


def test_the_command_tells_wrong_requests_from_failed_work(
    clip: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.chdir(repository)
    out = ["--out", str(tmp_path / "out")]
    assert main(["track", str(tmp_path / "none.mp4"), *out]) == 2
    assert "expected a video" in caplog.text
    checkpoint = ["--checkpoint", str(tmp_path / "none.safetensors")]
    assert main(["track", str(clip / "clip.mp4"), *out, *checkpoint]) == 2
    assert main(["track", str(clip / "clip.mp4"), *out, "--preset", "huge"]) == 2
    assert "one of ['paper', 'small']" in caplog.text


class Still:
    """A method whose answers jump up and down by two pixels."""

    facts = Facts("none", True, {})
    faces = np.array([[0, 1, 2]])
    per_video = ()
    first_frames = 0

    def begin(self, frames: Any) -> dict[str, np.ndarray]:
        return {}

    def fit(self, before: Any, frame: Any, *, jumped: bool) -> dict[str, np.ndarray]:
        last = before.get("count", np.array([-1]))
        return {"count": last + 1}

    def points_px(self, state: Any, size: tuple[int, int]) -> np.ndarray:
        return np.full((68, 2), 50.0 + 2.0 * (int(state["count"][0]) % 2))

    def answer(self, state: Any, size: tuple[int, int]) -> Answer:
        return Answer({"count": state["count"]}, np.zeros((3, 3)))

    def draw(self, state: Any, image: np.ndarray) -> np.ndarray:
        return image


class Choosy(Still):
    """Starts on two frames together, of which some do not suit it."""

    first_frames = 2

    def __init__(self, shown: list[np.ndarray], bad: set[int], *, named: bool = True) -> None:
        self.shown, self.bad, self.named = shown, bad, named
        self.begun = self.fitted = 0
        self.dies_after = FRAMES

    def begin(self, frames: Any) -> dict[str, np.ndarray]:
        self.begun += 1
        for place, frame in enumerate(frames):
            index = next(k for k, image in enumerate(self.shown) if (image == frame.image).all())
            if index in self.bad:
                reason = f"cannot start on frame {index}"
                raise StartError(place, reason) if self.named else ValueError(reason)
        return {}

    def fit(self, before: Any, frame: Any, *, jumped: bool) -> dict[str, np.ndarray]:
        if self.fitted == self.dies_after:
            raise KeyboardInterrupt
        self.fitted += 1
        return super().fit(before, frame, jumped=jumped)


@pytest.mark.parametrize(
    ("bad", "named", "begun"),
    [
        ({0, 1}, False, 3),
        ({0, 2}, True, 3),  # frame 2 is the later one of the two that are tried
        ({0, 1, 2, 3}, True, 5),
    ],
)
def test_a_frame_that_cannot_be_started_on_is_a_row_and_the_next_one_is_tried(
    go: Any, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    bad: set[int], named: bool, begun: int,
) -> None:  # fmt: skip
    shown = [frame.image for frame in Video(clip / "frames")]
    runner = Choosy(shown, bad, named=named)
    monkeypatch.setattr("stages.track.load_method", lambda *given: runner)
    meta = go()
    assert (meta["failed"], runner.begun, runner.fitted) == (len(bad), begun, FRAMES - len(bad))
    rows = read_table(tmp_path / "out" / "frames.parquet").to_pylist()
    reasons = [f"cannot start on frame {k}" if k in bad else "" for k in range(FRAMES)]
    assert [row["reason"] for row in rows] == reasons
    assert [row["status"] for row in rows] == ["failed" if why else "ok" for why in reasons]
    runner.fitted, runner.dies_after = 0, FRAMES - len(bad) - 1
    with pytest.raises(KeyboardInterrupt):
        go(out="again")
    runner.begun, runner.dies_after = 0, FRAMES
    go(out="again")
    assert runner.begun == 0, "what was begun is kept, with the frames that were at fault"
    assert files(tmp_path / "again") == files(tmp_path / "out")


def test_a_video_that_can_be_started_on_nowhere_is_refused(
    go: Any, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [frame.image for frame in Video(clip / "frames")]
    runner = Choosy(shown, set(range(FRAMES)))
    monkeypatch.setattr("stages.track.load_method", lambda *given: runner)
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot start on frame 0"):
            go()
    assert runner.begun == 2 * FRAMES
    runner.first_frames = 0  # there is no frame to leave out
    monkeypatch.setattr(runner, "begin", lambda frames: int("none"))
    with pytest.raises(ValueError, match="invalid literal"):
        go()


@pytest.fixture
def mica(flame_data: Path, tmp_path: Path) -> Path:
    """A MICA checkpoint of random weights for the procedural FLAME."""
    torch.manual_seed(0)
    encoder = IResNetConfig((1, 1, 1, 1), (4, 4, 6, 8), 8, 28)
    config = MicaConfig(encoder=encoder, n_shape=10, hidden=8)
    plain = dataclasses.asdict(config)
    plain["siren"]["points"] = plain.pop("siren_points")
    state = {name: value.numpy() for name, value in Mica(config).state_dict().items()}
    facts = {
        "method": "mica", "config": plain, "weights": "random", "synthetic": True,
        "data": {"sets": {"tiny": {}}},
    }  # fmt: skip
    write_safetensors(state, tmp_path / "mica.safetensors", facts)
    return tmp_path / "mica.safetensors"


def test_the_shape_is_mica_s_of_the_first_frames(
    mica: Path, clip: Path, go: Any, loaded: params.Params, flame_data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    section = loaded.track.model_copy(update={"shape_init": "mica", "shape_frames": 2})
    more = {"loaded": loaded.model_copy(update={"track": section}), "checkpoint": mica}
    meta = go(**more)
    assert (meta["status"], meta["shape_init"], meta["weights"]) == ("ok", "mica", "random")
    assert meta["inputs"]["checkpoint"] == sha256_file(mica)
    beta = read_safetensors(tmp_path / "out" / "parameters.safetensors")[0]["beta"]
    photographs = [frame.image for frame in Video(clip / "frames")][:2]
    rows = read_table(tmp_path / "out" / "frames.parquet").to_pylist()
    points = [np.array(row["landmarks_px"]).reshape(68, 2) for row in rows]
    flame = flame_data / "models" / "flame"
    own = MicaReconstructor(mica, flame).shape_of(list(zip(photographs, points, strict=False)))
    assert np.abs(own).max() > 0
    np.testing.assert_allclose(beta, np.tile(own, (FRAMES, 1)), atol=1e-6)

    whole = stages.track.write_video

    def dying(path: Path, frames: Any, fps: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages.track, "write_video", dying)
    with pytest.raises(KeyboardInterrupt):
        go(out="again", **more)
    monkeypatch.setattr(stages.track, "write_video", whole)
    monkeypatch.setattr(MicaTracking, "begin", None)  # all was fitted before
    monkeypatch.setattr(MicaTracking, "fit", None)
    go(out="again", **more)
    assert files(tmp_path / "again") == files(tmp_path / "out")


def test_frames_that_are_started_on_anew_bring_their_own_shape(
    mica: Path, clip: Path, loaded: params.Params, flame_data: Path
) -> None:
    section = loaded.track.model_copy(update={"shape_init": "mica", "shape_frames": 1})
    with np.load(clip / "truth" / "truth.npz") as truth:
        marks = truth["landmarks_px"]
    frames = [
        Frame(frame.image, points)
        for frame, points in zip(Video(clip / "frames"), marks, strict=True)
    ]
    flame = flame_data / "models" / "flame"
    used, fresh = (MicaTracking(mica, flame, section) for _ in range(2))
    broken = Frame(frames[0].image, frames[0].points_px + 1e7)
    with pytest.raises(ValueError, match="the tracke"):
        used.begin([broken])
    for name, value in fresh.begin(frames[1:2]).items():
        np.testing.assert_array_equal(used.begin(frames[1:2])[name], value, err_msg=name)


def test_a_given_shape_is_kept_also_where_it_would_be_fitted(
    go: Any, loaded: params.Params, tmp_path: Path
) -> None:
    given = np.linspace(-1.0, 1.0, 10)
    np.save(tmp_path / "shape.npy", given)
    section = loaded.track.model_copy(update={"shape_init": "free"})
    more = {"loaded": loaded.model_copy(update={"track": section})}
    assert go(shape=tmp_path / "shape.npy", **more)["shape_init"] == "given"
    beta = read_safetensors(tmp_path / "out" / "parameters.safetensors")[0]["beta"]
    np.testing.assert_array_equal(beta, np.tile(given.astype(np.float32), (FRAMES, 1)))
    assert go(out="free", **more)["shape_init"] == "free"
    beta = read_safetensors(tmp_path / "free" / "parameters.safetensors")[0]["beta"]
    assert np.abs(beta).max() > 0, "without it the shape is fitted"


@pytest.mark.parametrize(("smooth", "expected"), [(1, 52.0), (3, 50.0 + 2.0 / 3.0)])
def test_pix2face_landmarks_are_smoothed_after_the_fit(
    go: Any, tmp_path: Path, loaded: params.Params, monkeypatch: pytest.MonkeyPatch,
    smooth: int, expected: float,
) -> None:  # fmt: skip
    monkeypatch.setattr("stages.track.load_method", lambda *given: Still())
    frames = params.SmoothParams(mica=3, pix2face=smooth)
    section = loaded.track.model_copy(update={"smooth": frames})
    go(method="pix2face", loaded=loaded.model_copy(update={"track": section}))
    rows = read_table(tmp_path / "out" / "frames.parquet").to_pylist()
    assert rows[1]["fitted_px"][0] == pytest.approx(expected, rel=1e-6)


def test_depth_files(tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), np.array([[0, 900]], np.uint16))
    np.testing.assert_array_equal(read_depth(tmp_path / "a.png"), [[np.nan, 900.0]])
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match="16-bit grey"):
        read_depth(tmp_path / "b.png")
    np.save(tmp_path / "c.npy", np.zeros(3))
    with pytest.raises(ValueError, match="2-D array"):
        read_depth(tmp_path / "c.npy")


def test_the_clip_is_its_own_truth(clip: Path) -> None:
    who = performer(5)
    shot, again = shoot(who, 2, SIZE, 5), shoot(who, 2, SIZE, 5)
    np.testing.assert_array_equal(shot.image, again.image)
    first = Video(clip / "frames")
    np.testing.assert_array_equal(list(first)[1].image, shot.image)
    assert (clip / "SYNTHETIC.txt").is_file()
    nearer = face_depth_mm(
        shot.vertices, shot.rotation, shot.translation + np.array([0, 0, 0.01]), shot.focal_px,
        shot.centre_px, SIZE,
    )  # fmt: skip
    both = np.isfinite(nearer) & np.isfinite(shot.depth_mm)
    assert both.sum() > 0.1 * SIZE**2
    assert np.median((shot.depth_mm - nearer)[both]) == pytest.approx(10.0, abs=0.5)
