"""The stage of Deng et al.: crops, skin, both trainings, resumed or not, faces in photographs."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from models.face.landmarks import MIRROR_68
from models.face.morphable import LinearModel
from models.methods.deng2019 import Deng2019, Deng2019Config, FaceSurface, front_vertices
from models.networks.encoders.iresnet import IResNet, IResNetConfig
from models.networks.encoders.pos_crop import pos_crop_matrix
from models.networks.encoders.resnet import ResNet, ResNetConfig
from models.networks.train_loop import state_arrays
from stages import reconstruct, train
from stages.datasets.meshes import read_mesh
from stages.inference.deng2019 import Deng2019Reconstructor
from stages.runtime.artifacts import (
    read_facts,
    read_json,
    read_table,
    write_json,
    write_safetensors,
    write_table,
)
from stages.runtime.contracts import table_of
from stages.runtime.params import (
    BenchmarkSizes,
    ComputeParams,
    Deng2019FitParams,
    Deng2019Params,
    LoopParams,
    Pix2FaceFitParams,
    ReconstructParams,
)
from stages.training import deng2019, deng2019_sets
from stages.training.run import FileStore
from tests.stages.training.conftest import AUGMENT, ENCODER, failed_row, image_row

TRUNK = {"kind": "v1.5", "layers": (1, 1, 1, 1), "width": 2}
SIDE = 160
SKIN_RGB, BACK_RGB = (205, 150, 120), (30, 90, 140)


def face_model() -> LinearModel:
    """A bump of 0.16 m with landmarks where a face has them, texture and three kinds of basis."""
    rng = np.random.default_rng(0)
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.085)
    points = np.asarray(ball.vertices) * [0.9, 1.1, 1.0]
    targets = landmarks_3d()
    keypoints = np.array([np.argmin(np.linalg.norm(points - target, axis=1)) for target in targets])
    points[keypoints] = targets

    def basis(count: int, size: float) -> np.ndarray:
        directions = rng.normal(size=(3, 3 * count)) * size / 0.085
        return (points @ directions).reshape(len(points), 3, count)

    return LinearModel(
        mean_shape=points, shape_basis=basis(4, 1.0), shape_sigma=np.full(4, 0.002),
        mean_expression=np.zeros_like(points), expression_basis=basis(3, 1.0),
        expression_sigma=np.full(3, 0.001), faces=np.asarray(ball.faces), keypoints=keypoints,
        texture_mean=np.full_like(points, 0.6), texture_basis=basis(4, 1.0),
        texture_sigma=np.full(4, 0.02),
    )  # fmt: skip


def landmarks_3d() -> np.ndarray:
    """68 points on the front of a head, metres, in a plain iBUG arrangement."""
    jaw = np.radians(np.linspace(170, 370, 17))
    rows = [np.stack([0.07 * np.cos(jaw), 0.075 * np.sin(jaw) + 0.01], 1)]
    for centre, width in ((-0.031, 0.02), (0.031, 0.02)):
        rows.append(np.stack([centre + np.linspace(-width, width, 5), np.full(5, 0.05)], 1))
    rows.append(np.stack([np.zeros(4), np.linspace(0.03, -0.0046, 4)], 1))
    rows.append(np.stack([np.linspace(-0.012, 0.012, 5), np.full(5, -0.015)], 1))
    for centre in (-0.031, 0.031):
        around = np.radians([180, 120, 60, 0, -60, -120])
        rows.append(np.stack([centre + 0.012 * np.cos(around), 0.029 + 0.005 * np.sin(around)], 1))
    around = np.radians(np.linspace(180, -180, 13)[:-1])
    rows.append(np.stack([0.025 * np.cos(around), -0.038 + 0.012 * np.sin(around)], 1))
    around = np.radians(np.linspace(180, -180, 9)[:-1])
    rows.append(np.stack([0.018 * np.cos(around), -0.038 + 0.004 * np.sin(around)], 1))
    flat = np.concatenate(rows)
    depth = 0.085 * np.sqrt(np.clip(1 - (flat[:, 0] / 0.09) ** 2 - (flat[:, 1] / 0.1) ** 2, 0.1, 1))
    depth[30] += 0.015
    return np.c_[flat, depth]


def photograph(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A skin-coloured disc with landmarks on it; RGB and (68, 2) px."""
    points, scale = landmarks_3d(), rng.uniform(550, 700)
    centre = SIDE / 2 + rng.uniform(-8, 8, 2)
    seen = centre + scale * points[:, :2] * [1, -1] + rng.normal(size=(68, 2))
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    inside = ((x - centre[0]) / 75) ** 2 + ((y - centre[1]) / 90) ** 2 < (scale / 900) ** 2
    image = np.where(inside[..., None], SKIN_RGB, BACK_RGB) + rng.normal(0, 6, (SIDE, SIDE, 3))
    return np.clip(image, 0, 255).astype(np.uint8), seen


def packed_set(
    root: Path, name: str, people: dict[str, int], rng: np.random.Generator, split: str = "train"
) -> None:
    """A packed set and its landmarks; the last photograph of everybody has none."""
    rows, found = [failed_row("broken")], []
    for person, count in people.items():
        for shot in range(count + 1):
            item, ok = f"{person}/{shot}", shot < count
            image, points = photograph(rng)
            rows.append(image_row(item, f"{name}/{person}", image, split=split))
            found.append({
                "item_id": item, "subject_id": f"{name}/{person}", "provider": "test",
                "status": "ok" if ok else "failed", "reason": "" if ok else "no face",
                "points_px": points.ravel() if ok else None, "score": 0.9 if ok else None,
            })  # fmt: skip
    write_table(table_of(rows, "images"), root / f"packed/{name}/images-00000.parquet")
    write_json({"synthetic": True}, root / f"packed/{name}/meta.json")
    write_table(table_of(found, "landmarks"), root / f"landmarks/{name}/landmarks.parquet")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    rng = np.random.default_rng(3)
    packed_set(root, "vggface2", {"a": 3, "b": 2, "c": 3, "d": 2}, rng)
    packed_set(root, "300w_lp", {"x": 1, "y": 1}, rng)
    arrays = {name: value for name, value in vars(face_model()).items() if value is not None}
    write_safetensors(arrays, root / "models/bfm2009/model.safetensors", {})
    write_json({"synthetic": True, "unit_m": 1.0}, root / "models/bfm2009/meta.json")
    torch.manual_seed(0)
    encoder = IResNet(IResNetConfig((1, 1, 1, 1), (4, 4, 6, 8), 8, 28))
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in ENCODER.items()}
    state = state_arrays(encoder)
    write_safetensors(state, root / "recognizers/a/model.safetensors", {"encoder": plain})
    return root


@pytest.fixture
def section(loop: LoopParams) -> Deng2019Params:
    fit = {**loop.model_dump(), "batch": 2, "steps": 4, "report_every": 2, "keep": "last"}
    return Deng2019Params.model_validate({
        "size_px": 32, "trunk": TRUNK, "weights": None, "unlabelled": True, "mesh_faces": 400,
        "n_shape": 4, "n_expression": 3, "n_texture": 4, "lighting": "rgb", "skin": "thresh",
        "photo_weight": 1.92, "landmark_weight": 1.6e-3, "perceptual_weight": 0.2,
        "coefficient_weight": 3e-4, "expression_factor": 0.8, "texture_factor": 1.7e-2,
        "reflectance_weight": 5, "gamma_weight": 10, "inner_weight": 20, "holdout": 0.25,
        "augment": {**AUGMENT, "flip": True}, "fit": fit,
        "sets": {"photographs": 2, "fit": {**fit, "batch": 1, "steps": 2, "report_every": 1}},
    })  # fmt: skip


def prepared(data: Path, section: Deng2019Params, out: Path) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return deng2019.prepare(
        out, packed=data / "packed/vggface2", landmarks=data / "landmarks/vggface2",
        unlabelled=data / "packed/300w_lp", unlabelled_landmarks=data / "landmarks/300w_lp",
        model=data / "models/bfm2009", recognizer=data / "recognizers/a/model.safetensors",
        section=section.model_dump(mode="json"), set_photographs=section.sets.photographs, seed=3,
    )  # fmt: skip


def plain(section: Deng2019Params) -> dict[str, Any]:
    return {**section.model_dump(mode="json"), "seed": 3, "batch": 2}


def run(data: Path, section: Deng2019Params, compute: ComputeParams, out: Path) -> bytes:
    train.run(section, compute, method="deng2019", seed=3, data=data, out=out, work=data / ".work")
    return (out / "model.safetensors").read_bytes()


def test_everybody_left_out_has_a_reason(
    data: Path, section: Deng2019Params, tmp_path: Path
) -> None:
    facts = prepared(data, section, tmp_path / "out")
    assert facts["photographs"] == 10
    assert facts["unlabelled_photographs"] == 2
    assert facts["left_out"] == {"no landmarks: no face": 6, "not read: truncated": 2}
    assert len(facts["validation_identities"]) == 1
    assert facts["identities"] == 3
    assert np.load(tmp_path / "out/known.npy").sum() == 10


def test_benchmark_photographs_of_unknown_people_are_left_out(
    data: Path, section: Deng2019Params, tmp_path: Path
) -> None:
    packed_set(data, "300w_lp", {"x": 2}, np.random.default_rng(1), split="test")
    facts = prepared(data, section, tmp_path / "out")
    assert facts["unlabelled_photographs"] == 0
    assert facts["left_out"]["benchmark photograph"] == 3


def test_skin_counts_and_the_background_does_not(
    data: Path, section: Deng2019Params, tmp_path: Path
) -> None:
    prepared(data, section, tmp_path / "out")
    weights, crops = np.load(tmp_path / "out/skin.npy"), np.load(tmp_path / "out/crops.npy")
    like_skin = np.abs(crops.astype(int) - SKIN_RGB).max(axis=-1) < 20
    like_back = np.abs(crops.astype(int) - BACK_RGB).max(axis=-1) < 20
    assert like_skin.sum() > 1000
    assert weights[like_skin].mean() > 250
    assert weights[like_back].mean() < 60
    off = section.model_copy(update={"skin": "off"})
    prepared(data, off, tmp_path / "off")
    assert (np.load(tmp_path / "off/skin.npy") == 255).all()


def test_the_drawn_face_is_coarser_and_keeps_its_landmarks(
    data: Path, section: Deng2019Params, tmp_path: Path
) -> None:
    prepared(data, section, tmp_path / "coarse")
    prepared(data, section.model_copy(update={"mesh_faces": None}), tmp_path / "whole")
    coarse, whole = (
        deng2019.network(tmp_path / name, plain(section)).face for name in ("coarse", "whole")
    )
    assert coarse is not None
    assert whole is not None
    assert len(coarse.faces) <= 400 < len(whole.faces)
    shape, expression = torch.ones(1, 4), torch.ones(1, 3)
    marks = [face.vertices(shape, expression)[0, face.keypoints] for face in (coarse, whole)]
    torch.testing.assert_close(*marks, atol=1e-5, rtol=0)


def test_a_mirrored_sample_exchanges_left_and_right(
    data: Path, section: Deng2019Params, tmp_path: Path
) -> None:
    prepared(data, section, tmp_path / "out")
    photographs = deng2019.Photographs(tmp_path / "out", plain(section))
    straight = photographs.sample(0, photographs.standard)
    mirror = np.array([[-1.0, 0.0, 32.0], [0.0, 1.0, 0.0]])
    start = photographs.standard
    mirrored = photographs.sample(
        0, np.c_[mirror[:, :2] @ start[:, :2], mirror @ [*start[:, 2], 1]]
    )
    np.testing.assert_array_equal(mirrored["image"], straight["image"][:, :, ::-1])
    np.testing.assert_array_equal(mirrored["skin"], straight["skin"][:, ::-1])
    expected = straight["landmarks"][MIRROR_68] * [-1, 1] + [32, 0]
    np.testing.assert_allclose(mirrored["landmarks"], expected, atol=1e-4)


def test_batches_are_contiguous(data: Path, section: Deng2019Params, tmp_path: Path) -> None:
    prepared(data, section, tmp_path / "out")
    batch = deng2019.build(tmp_path / "out", plain(section)).batch(0, [0, 1])
    assert batch["image"].is_contiguous()
    assert batch["image"].min() >= 0.0
    assert 0.5 < batch["image"].max() <= 1.0


def test_even_albedo_is_asked_of_cheeks_nose_and_forehead_alone() -> None:
    linear = face_model()
    skin = deng2019.skin_vertices(linear.mean, linear.keypoints)
    front = linear.mean[:, 2] > 0.04
    height = linear.mean[:, 1]
    marks = linear.mean[linear.keypoints]
    chosen = np.isin(np.arange(len(linear.mean)), skin)
    between = front & (np.abs(linear.mean[:, 0]) < 0.01)
    assert chosen[between & (height < 0.0) & (height > -0.02)].mean() > 0.8  # nose and lip
    for part in (slice(36, 42), slice(42, 48), slice(48, 60)):
        middle = marks[part].mean(axis=0)
        near = front & (np.linalg.norm(linear.mean[:, :2] - middle[:2], axis=1) < 0.004)
        assert near.any()
        assert not chosen[near].any()


def test_a_set_is_of_one_person_who_trains(
    data: Path, section: Deng2019Params, tmp_path: Path
) -> None:
    prepared(data, section, tmp_path / "out")
    photographs = deng2019.Photographs(tmp_path / "out", plain(section))
    sampler = deng2019_sets.SetSampler(photographs, 2)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        chosen = sampler.draw(rng)
        assert len(set(chosen.tolist())) == 2
        assert len(set(photographs.people[chosen])) == 1
        assert photographs.known[chosen].all()
        assert not photographs.validation[chosen].any()
        seen |= set(chosen.tolist())
    assert seen == set(np.flatnonzero(photographs.known & ~photographs.validation).tolist())
    assert len(deng2019_sets.SetSampler(photographs, 3).groups) == len(
        [name for name in ("a", "c") if f"vggface2/{name}" in photographs.people[
            photographs.known & ~photographs.validation]]
    )  # fmt: skip
    for group in deng2019_sets.sets_of(photographs, 2):
        assert photographs.validation[group].all()


def test_what_sets_need_is_said_before_any_training(
    data: Path, section: Deng2019Params, tmp_path: Path
) -> None:
    sets = section.sets.model_copy(update={"photographs": 4})
    with pytest.raises(ValueError, match=r"sets\.photographs: expected somebody with 4 .* 0 and 0"):
        prepared(data, section.model_copy(update={"sets": sets}), tmp_path / "out")


def test_unknown_people_can_be_left_out(
    data: Path, section: Deng2019Params, compute: ComputeParams
) -> None:
    shutil.rmtree(data / "packed/300w_lp")
    shutil.rmtree(data / "landmarks/300w_lp")
    out = data / "checkpoints/deng2019"
    run(data, section.model_copy(update={"unlabelled": False}), compute, out)
    facts = read_facts(out / "model.safetensors")
    assert facts["data"]["unlabelled_photographs"] == 0
    assert "unlabelled" not in facts["inputs"]
    assert facts["second"]["step"] == 2
    assert facts["second"]["fit"]["steps"] == 2


def test_killed_and_continued_gives_the_same_bytes(
    data: Path, section: Deng2019Params, compute: ComputeParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the first training and again in the second."""
    whole = run(data, section, compute, data / "whole")
    save, saved = FileStore.save, []

    def die(store: FileStore, *content: Any) -> None:
        save(store, *content)
        saved.append(store.path)
        if len(saved) in (1, 3):
            raise KeyboardInterrupt

    monkeypatch.setattr(FileStore, "save", die)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(data, section, compute, data / "killed")
        assert not (data / "killed").exists()
    monkeypatch.undo()
    assert len({path.parent for path in saved}) == 2
    assert run(data, section, compute, data / "killed") == whole
    assert not list((data / ".work/train").iterdir())
    facts = read_facts(data / "whole/model.safetensors")
    assert (facts["weights"], facts["synthetic"]) == ("synthetic-trained", True)
    history = read_json(data / "whole/history.json")
    assert [row["step"] for row in history] == [2, 4, 5, 6]
    assert "landmark_percent" in history[0]["validation"]
    assert "set_loss" in history[-1]["validation"]
    metrics = read_json(data / "whole/metrics.json")
    assert metrics["validation"] == history[1]["validation"]
    assert metrics["second"]["validation"] == history[3]["validation"]


def test_your_own_trunk_is_where_training_starts(
    data: Path, section: Deng2019Params, tmp_path: Path
) -> None:
    trunk = ResNet(ResNetConfig("v1.5", (1, 1, 1, 1), 2))
    file = tmp_path / "r50.safetensors"
    write_safetensors(state_arrays(trunk), file, {})
    own = section.model_copy(update={"weights": file})
    prepared(data, own, tmp_path / "out")
    model = deng2019.network(tmp_path / "out", plain(own))
    torch.testing.assert_close(model.backbone.conv1.weight, trunk.conv1.weight)


def test_a_face_model_that_does_not_do_is_refused(
    data: Path, section: Deng2019Params, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="n_texture: expected at most the 4 directions"):
        prepared(data, section.model_copy(update={"n_texture": 5}), tmp_path / "out")


@pytest.fixture
def trained(data: Path, section: Deng2019Params, compute: ComputeParams) -> Path:
    run(data, section, compute, data / "checkpoints/deng2019")
    return data / "checkpoints/deng2019/model.safetensors"


def test_overlay_camera_is_the_networks(data: Path, trained: Path) -> None:
    """Landmarks through the camera of the answer, and through the network's in its crop."""
    method = Deng2019Reconstructor(
        trained, data / "models/bfm2009", Deng2019FitParams(aggregate="element")
    )
    image, points = photograph(np.random.default_rng(9))
    answer = method(image, points)
    matrix = pos_crop_matrix(points, 32)
    config = Deng2019Config.of(read_facts(trained)["config"])
    linear = face_model()
    single = Deng2019(config, FaceSurface(linear, 1.0, front_vertices(linear, 1.0)))
    code = torch.zeros(1, config.outputs)
    named = answer.coefficients
    numbers = [
        *named["shape_sigma"], *named["expression_sigma"], *named["texture_sigma"],
        *named["angles_rad"], *named["light"], *(np.array(named["translation_mm"]) / 100),
    ]  # fmt: skip
    code[0] = torch.tensor(numbers)
    crop_px = single.decode(code).landmarks[0].double().numpy()
    expected = (crop_px - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    assert answer.points_px is not None
    np.testing.assert_allclose(answer.points_px, expected, atol=0.05)
    assert answer.camera is not None
    assert 10 < np.ptp(answer.vertices_mm, axis=0).max() < 400  # millimetres


def test_photographs_of_a_person_share_an_identity_in_any_order(data: Path, trained: Path) -> None:
    answers = {}
    rng = np.random.default_rng(2)
    photos = [photograph(rng) for _ in range(19)]
    bad = (photos[0][0], np.full((68, 2), 5.0))
    for how in ("element", "scalar", "mean"):
        method = Deng2019Reconstructor(
            trained, data / "models/bfm2009", Deng2019FitParams(aggregate=how)
        )
        torch.manual_seed(1)  # networks that tell photographs apart
        torch.nn.init.normal_(method._net.c_net.fc2.weight, std=5.0)
        torch.nn.init.normal_(method._net.r_net.final_layers[0].weight, std=1.0)
        answers[how], reasons = method.together([*photos, bad])
        assert answers[how][-1] is None
        assert "span a face" in reasons[-1]
        for answer in answers[how][1:-1]:
            np.testing.assert_array_equal(answer.vertices_mm, answers[how][0].vertices_mm)
        turned, _ = method.together(photos[::-1])
        np.testing.assert_allclose(turned[0].vertices_mm, answers[how][0].vertices_mm, atol=1e-3)
    singles = np.mean([method(*photo).vertices_mm for photo in photos], axis=0)
    np.testing.assert_allclose(answers["mean"][0].vertices_mm, singles, atol=1e-3)
    for one, other in (("element", "scalar"), ("element", "mean"), ("scalar", "mean")):
        apart = np.abs(answers[one][0].vertices_mm - answers[other][0].vertices_mm).max()
        assert apart > 1e-3


def test_reconstructs_the_benchmarks(
    data: Path, trained: Path, compute: ComputeParams, pix2face_fit: Pix2FaceFitParams
) -> None:
    packed_set(data, "now", {"S1": 1, "S2": 1}, np.random.default_rng(8))
    options = ReconstructParams(
        pix2face=pix2face_fit, deng2019=Deng2019FitParams(aggregate="element"),
        max_failed_fraction=0.7, detector_min_score=0.0, detector_max_side_px=640,
        photographs=BenchmarkSizes(now=None, stirling=0, florence=0, facewarehouse=0, bu3dfe=0),
    )  # fmt: skip
    reconstruct.load_method.cache_clear()
    out = data / "predictions/deng2019"
    reconstruct.run(options, compute, method="deng2019", data=data, out=out, work=data / ".work")
    rows = read_table(out / "rows.parquet").to_pylist()
    status = {row["item_id"]: (row["status"], row["reason"]) for row in rows}
    assert status["S1/0"] == ("ok", "")
    assert status["S1/1"] == ("failed", "no landmarks: no face")
    mesh = read_mesh(out / "now/S1/0.obj")
    assert 100 < np.ptp(mesh.vertices, axis=0).max() < 400
