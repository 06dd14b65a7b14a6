"""The train stage end to end on tiny stand-ins, then reconstruction with what it wrote."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from models.face.flame import FlameArrays, shape_vertices
from models.face.morphable import LinearModel
from models.networks.encoders.iresnet import IResNet, IResNetConfig
from models.networks.encoders.square_crop import crop_matrix
from models.networks.train_loop import state_arrays
from models.rendering.pncc import PnccMaps, PnccRenderer, Sample, Window
from models.rendering.pncc_codec import encode, origin_of
from stages import reconstruct, train
from stages.datasets.meshes import read_mesh, write_obj
from stages.inference.pix2face import Pix2FaceReconstructor
from stages.landmarking.landmark_scores import score_landmarks
from stages.runtime.artifacts import (
    read_json,
    read_safetensors,
    read_table,
    write_bytes,
    write_json,
    write_safetensors,
    write_table,
)
from stages.runtime.contracts import table_of
from stages.runtime.params import (
    AugmentParams,
    BenchmarkSizes,
    ComputeParams,
    Deng2019FitParams,
    LandmarkChoiceParams,
    LoopParams,
    MicaParams,
    Pix2FaceFitParams,
    Pix2FaceParams,
    ReconstructParams,
    SirenParams,
)
from stages.training.mica import (
    aligned_distance_mm,
    build,
    equal_parts,
    prepare,
    validation_subjects,
)
from stages.training.pix2face_planes import COLUMNS, DrawnPlanes, save_coefficients
from stages.training.run import FileStore
from tests.stages.training.conftest import AUGMENT, ENCODER, failed_row, image_row, landmarks_68

PLAIN_ENCODER = {k: list(v) if isinstance(v, tuple) else v for k, v in ENCODER.items()}
Run = Callable[[str, Path], bytes]


@pytest.fixture
def mica(loop: LoopParams) -> MicaParams:
    return MicaParams(
        trainable="L4", bn_drift="frozen", pretrained=True, weights=None, decoder="flame",
        siren=SirenParams(width=6, layers=2, mapping=4, frequency=15, points=20, truth="shapes"),
        exclude=(), n_shape=10, hidden=12, face_weight=150, side_weight=0.01, rest_weight=1,
        shape_penalty=0.1, encoder_rate=1, images_per_subject=2, holdout=0.3,
        augment=AugmentParams(**AUGMENT, flip=False), fit=loop,
    )  # fmt: skip


@pytest.fixture
def pix2face(loop: LoopParams) -> Pix2FaceParams:
    return Pix2FaceParams(
        size_px=16, width=4, depth=3, up="bilinear", target="pncc_offset",
        background_weight=0.3, target_box="fitted", largest_offset_mm=25, colour="augment",
        landmarks=LandmarkChoiceParams(
            frames=4, gate_mm=1e4, coefficient_prior=1.0, camera="pinhole"
        ),
        box_scale=(1.0, 1.5), box_shift=0.1, holdout=0.3,
        augment=AugmentParams(**AUGMENT, flip=False), fit=loop,
    )  # fmt: skip


@pytest.fixture
def section(pix2face_fit: Pix2FaceFitParams) -> ReconstructParams:
    return ReconstructParams(
        photographs=BenchmarkSizes(now=None, stirling=0, florence=0, facewarehouse=0, bu3dfe=0),
        pix2face=pix2face_fit, deng2019=Deng2019FitParams(aggregate="mean"),
        max_failed_fraction=0.5, detector_min_score=0.0, detector_max_side_px=640,
    )  # fmt: skip


@pytest.fixture
def data(tmp_path: Path, flame_folder: Path) -> Path:
    """A data folder with everything that MICA, pix2face and reconstruction read."""
    root = flame_folder.parents[1]
    rng = np.random.default_rng(7)
    encoder = IResNet(IResNetConfig((1, 1, 1, 1), (4, 4, 6, 8), 8, 28))
    write_safetensors(
        state_arrays(encoder), root / "recognizers/a/model.safetensors", {"encoder": PLAIN_ENCODER}
    )
    for actor in range(6):
        folder = root / "unified/LYHM"
        beta = np.pad(rng.normal(size=10), (0, 390))
        parameters = folder / f"FLAME_parameters/{actor:05d}/fit.npz"
        parameters.parent.mkdir(parents=True)
        np.savez(parameters, pose=np.zeros(15), betas=beta)
        for shot in range(2):
            blob = rng.uniform(-1, 1, (3, 112, 112)).astype(np.float32)
            file = folder / f"arcface_input/{actor:05d}/{shot}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, blob)
    lonely = root / "unified/LYHM/FLAME_parameters/00099/fit.npz"
    lonely.parent.mkdir()
    np.savez(lonely, betas=np.zeros(400))

    _three_ddfa(root, rng)
    photos, found, index, shard = [failed_row("AFW/broken")], [], [], b""
    for number in range(8):
        picture = rng.integers(0, 255, (140, 140, 3)).astype(np.uint8)
        item = f"AFW/{number}"
        points = landmarks_68()
        photos.append(image_row(item, f"W/{number}", picture, landmarks_px=points.ravel()))
        mask = np.zeros((140, 140), bool)
        mask[35:105, 35:105] = True
        y, x = np.mgrid[:140, :140]
        pncc = np.stack([x - 70.0, 70.0 - y, np.full_like(x, 80.0)], axis=-1)
        maps = PnccMaps(pncc * mask[..., None], 2.0 * mask[..., None] * np.ones(3), mask)
        record = encode(maps, origin_of(np.array([[-70.0, -70, 60], [70, 70, 90]])))
        index.append(
            {
                "item_id": item,
                "subject_id": f"W/{number}",
                "status": "ok",
                "reason": "",
                "split": "",
                "shard": "shard-00000.bin",
                "offset": len(shard),
                "length": len(record),
                "crop": [0, 0, 1, 1],
                "height_px": 140,
                "width_px": 140,
            }
        )
        shard += record
    write_table(table_of(photos, "images"), root / "packed/300w_lp/images-00000.parquet")
    write_json({"synthetic": True}, root / "packed/300w_lp/meta.json")
    rendered = root / "rendered/300w_lp"
    write_bytes(rendered / "shard-00000.bin", shard)
    write_table(table_of(index, "rendered"), rendered / "index.parquet")
    write_json({"on_the_fly": False, "synthetic": True}, rendered / "meta.json")

    now = [failed_row("S1/selfie/IMG_9")]
    for subject in ("S1", "S2"):
        item = f"{subject}/selfie/IMG_1"
        picture = rng.integers(0, 255, (140, 140, 3)).astype(np.uint8)
        now.append(image_row(item, f"NOW/{subject}", picture))
        status = "ok" if subject == "S1" else "failed"
        found.append(
            {
                "item_id": item,
                "subject_id": f"NOW/{subject}",
                "status": status,
                "reason": "" if status == "ok" else "no face",
                "provider": "dlib",
                "points_px": landmarks_68().ravel() if status == "ok" else None,
            }
        )
    now.append(image_row("S2/selfie/IMG_2", "NOW/S2", np.zeros((140, 140, 3), np.uint8)))
    found.append({**found[0], "item_id": "S2/selfie/IMG_2", "subject_id": "NOW/S2"})
    write_table(table_of(now, "images"), root / "packed/now/images-00000.parquet")
    write_table(table_of(found, "landmarks"), root / "landmarks/now/landmarks.parquet")
    return root


def _three_ddfa(root: Path, rng: np.random.Generator) -> None:
    y, x = np.mgrid[-60:61:6, -60:61:6]
    mean = np.stack([x, y, np.full_like(x, 80)], axis=-1).reshape(-1, 3) * 1e3
    mean[:, 2] += 50.0 * rng.normal(size=len(mean)) * 100
    V = len(mean)
    tensors = {
        "mean_shape": mean, "shape_basis": rng.normal(size=(V, 3, 3)) / np.sqrt(V),
        "shape_sigma": np.array([3e4, 2e4, 1e4]), "mean_expression": np.zeros((V, 3)),
        "expression_basis": rng.normal(size=(V, 3, 2)) * 1e3,
        "expression_sigma": np.array([0.5, 0.3]),
    }  # fmt: skip
    arrays = {name: value.astype(np.float32) for name, value in tensors.items()}
    arrays["faces"] = rng.integers(0, V, (200, 3)).astype(np.int64)
    arrays["keypoints"] = np.arange(68)
    folder = root / "models/3ddfa"
    folder.mkdir(parents=True)
    save_file(arrays, folder / "model.safetensors")
    write_json({"unit_m": 1e-6, "synthetic": True}, folder / "meta.json")


@pytest.fixture
def trained(data: Path, mica: MicaParams, pix2face: Pix2FaceParams, compute: ComputeParams) -> Run:
    sections = {"mica": mica, "pix2face": pix2face}

    def run(method: str, out: Path) -> bytes:
        train.run(
            sections[method], compute, method=method, seed=3, data=data, out=out,
            work=data.parent / "work",
        )  # fmt: skip
        return (out / "model.safetensors").read_bytes()

    return run


@pytest.mark.parametrize("method", ["mica", "pix2face"])
def test_trains_to_the_same_bytes_with_its_facts(method: str, trained: Run, data: Path) -> None:
    out = data / "checkpoints" / method
    assert trained(method, out) == trained(method, data / "again")
    _, facts = read_safetensors(out / "model.safetensors")
    metrics, history = read_json(out / "metrics.json"), read_json(out / "history.json")
    assert facts["weights"] == metrics["weights"] == "synthetic-trained"
    assert facts["method"] == method
    assert set(facts["inputs"]) == set(train.RECIPES[method](_section(method), 3, data).inputs)
    assert [row["step"] for row in history] == [3, 6]
    assert np.isfinite(list(metrics["validation"].values())).all()
    assert metrics["step"] in (3, 6)


def _on_the_fly(data: Path) -> None:
    """Give the photographs coefficients, and let the render stage have stored nothing."""
    packed = data / "packed/300w_lp/images-00000.parquet"
    rows = read_table(packed).to_pylist()
    for number, row in enumerate(rows):
        if row["status"] == "ok":
            rng = np.random.default_rng(number)
            row |= {"shape_para": rng.normal(size=3) * 1e4, "exp_para": rng.normal(size=2) * 0.3}
            row["pose_para"] = np.array([0.1, 0.2, 0.0, 70.0, 70.0, 0.0, 5e-4])
    write_table(table_of(rows, "images"), packed)
    write_json({"on_the_fly": True, "synthetic": True}, data / "rendered/300w_lp/meta.json")


def test_pix2face_trains_on_windows_drawn_on_the_fly(trained: Run, data: Path) -> None:
    stored = trained("pix2face", data / "stored")
    _on_the_fly(data)
    drawn = trained("pix2face", data / "drawn")
    assert drawn == trained("pix2face", data / "again")
    assert drawn != stored
    metrics = read_json(data / "drawn/metrics.json")["validation"]
    assert np.isfinite(list(metrics.values())).all()
    assert metrics["zero_offset_mm"] > 0


def test_drawn_windows_do_not_depend_on_their_company(data: Path, tmp_path: Path) -> None:
    _on_the_fly(data)
    rows = read_table(data / "packed/300w_lp/images-00000.parquet").to_pylist()
    rows = [row for row in rows if row["status"] == "ok"]
    bases = [crop_matrix(np.array([70.0, 66 + n]), 100.0, 50) for n in range(len(rows))]
    save_coefficients(tmp_path, data / "models/3ddfa", rows, bases)
    planes = DrawnPlanes(tmp_path, 1e-6)
    matrices = [crop_matrix(np.array([25.0, 26.0]), 20.0 + n, 32) for n in range(len(rows))]
    together = planes.targets(range(len(rows)), matrices, 32)
    for index, target in enumerate(together):
        [alone] = planes.targets([index], [matrices[index]], 32)
        np.testing.assert_array_equal(alone.planes_mm, target.planes_mm)
        # the window written out: base = (image - corner) / 2, window centre (25, 26) of the base
        side = 2.0 * (20 + index)
        centre = 2.0 * np.array([25.0, 26.0]) + [20.0, 16.0 + index]
        row = dict(zip(COLUMNS, (rows[index][name] for name in COLUMNS), strict=True))
        sample = Sample(
            np.array(row["shape_para"]), np.array(row["exp_para"]), np.array(row["pose_para"]),
            row["height_px"], row["width_px"],
        )  # fmt: skip
        window = Window(centre[0] - side / 2, centre[1] - side / 2, side, 32)
        model = LinearModel.load(data / "models/3ddfa")
        expected = PnccRenderer(model, 1e-6).render([sample], [window])[0]
        assert expected.mask.sum() > 100
        assert (expected.mask != target.mask).mean() < 0.01
        both = expected.mask & target.mask
        gaps = np.abs(expected.pncc_mm - target.planes_mm[..., :3])[both].max(axis=1)
        assert np.quantile(gaps, 0.98) < 1e-2


def _section(method: str) -> object:
    from stages.runtime import params

    root = Path(__file__).resolve().parents[3]
    return getattr(params.load(root / "params.yaml").train, method)


def test_mica_leaves_out_subjects_without_photographs(trained: Run, data: Path) -> None:
    trained("mica", data / "checkpoints/mica")
    facts = read_json(data / "checkpoints/mica/metrics.json")["data"]
    lacking = {"subject_id": "LYHM/00099", "status": "failed", "reason": "no photograph"}
    assert facts["skipped"] == [lacking]
    assert facts["subjects"] + len(facts["validation_subjects"]) == 6
    assert facts["photographs"] == 12


def test_missing_inputs_are_named(trained: Run, data: Path) -> None:
    (data / "packed/300w_lp/images-00000.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="pack@300w_lp"):
        trained("pix2face", data / "out")


@pytest.mark.parametrize("method", ["mean", "mica", "pix2face"])
def test_reconstructs_every_photograph_or_says_why_not(
    method: str, trained: Run, data: Path, section: ReconstructParams, compute: ComputeParams
) -> None:
    if method != "mean":
        trained(method, data / "checkpoints" / method)
    out = data / "predictions" / method
    reconstruct.load_method.cache_clear()
    reconstruct.run(section, compute, method=method, data=data, out=out, work=data / "work")
    rows = {row["item_id"]: row for row in read_table(out / "rows.parquet").to_pylist()}
    assert list(rows) == sorted(rows)
    assert rows["S1/selfie/IMG_9"]["reason"] == "truncated"
    row = rows["S1/selfie/IMG_1"]
    if method == "pix2face":
        _landmarks_of_held_out_people(data, out)
    if method == "mean":
        assert rows["S2/selfie/IMG_1"]["status"] == "ok"
    else:
        assert rows["S2/selfie/IMG_1"]["reason"] == "no landmarks: no face"
    if row["status"] == "failed":  # an untrained network may see no face at all
        assert "vertices seen" in row["reason"]
        return
    assert row["challenge"] == "selfie"
    assert row["mesh"] == "now/S1/selfie/IMG_1.obj"
    mesh = read_mesh(out / row["mesh"])
    seven = np.load(out / row["landmarks"])
    assert seven.shape == (7, 3)
    assert np.isfinite(seven).all()
    meta = read_json(out / "meta.json")
    assert meta["unit"] == "mm"
    assert meta["weights"] == ("none" if method == "mean" else "synthetic-trained")
    assert np.ptp(mesh.vertices, axis=0).max() > 10  # millimetres, not metres


def _landmarks_of_held_out_people(data: Path, out: Path) -> None:
    """One row per photograph of the people whom the training left out, and its score."""
    facts = read_json(data / "checkpoints/pix2face/metrics.json")["data"]
    found = read_table(out / "landmarks.parquet").to_pylist()
    assert {row["subject_id"] for row in found} == set(facts["validation_subjects"])
    assert len(found) == facts["validation_photographs"]
    assert all(row["reason"] for row in found if row["status"] == "failed")
    scores = score_landmarks(out)["300w_lp"]
    assert scores["scored"] + sum(scores["failed"].values()) == len(found)
    fitted, failed = facts["landmark_frames"], facts["landmark_frames_failed"]
    assert fitted + sum(failed.values()) == 4
    vertices = facts["landmark_vertices"]
    assert (vertices is None) == (fitted == 0)
    if vertices is not None:
        assert len(vertices) == 68
        assert facts["landmark_error_px"] > 0


@pytest.mark.parametrize(
    "changes",
    [{"up": "transposed"}, {"target": "xyz"}, {"colour": "published"}, {"rotate_deg": 20}],
    ids=str,
)
def test_pix2face_variants_train(
    changes: dict[str, Any], pix2face: Pix2FaceParams, data: Path, compute: ComputeParams
) -> None:
    degrees = changes.pop("rotate_deg", 0)
    augment = pix2face.augment.model_copy(update={"rotate_deg": degrees})
    section = pix2face.model_copy(update={**changes, "augment": augment})
    out = data / "variant"
    train.run(
        section, compute, method="pix2face", seed=3, data=data, out=out, work=data.parent / "work"
    )
    _, facts = read_safetensors(out / "model.safetensors")
    assert facts["config"]["up"] == section.up
    metrics = read_json(out / "metrics.json")["validation"]
    assert ("pncc_mm" in metrics) == (section.target == "pncc_offset")
    assert np.isfinite(metrics["xyz_mm"])
    model = data / "models/3ddfa"
    options = Pix2FaceFitParams(
        box_scale=1.4, gate_mm=1e4, coefficient_prior=1.0, min_correspondences=10,
        most_vertices=None, camera="affine", joint=1, landmark_photographs=0,
    )  # fmt: skip
    method = Pix2FaceReconstructor(out / "model.safetensors", model, options)
    answers, reasons = method.together([(np.zeros((90, 90, 3), np.uint8), landmarks_68())] * 2)
    assert all((answer is None) == bool(why) for answer, why in zip(answers, reasons, strict=True))


def test_an_older_checkpoint_is_refused(trained: Run, data: Path) -> None:
    trained("pix2face", data / "old")
    state, facts = read_safetensors(data / "old/model.safetensors")
    facts["data"].pop("landmark_vertices")
    write_safetensors(state, data / "old/model.safetensors", facts)
    options = Pix2FaceFitParams(
        box_scale=1.4, gate_mm=1e4, coefficient_prior=1.0, min_correspondences=10,
        most_vertices=None, camera="affine", joint=1, landmark_photographs=0,
    )  # fmt: skip
    with pytest.raises(ValueError, match="run train@pix2face again"):
        Pix2FaceReconstructor(data / "old/model.safetensors", data / "models/3ddfa", options)


def test_only_new_photographs_are_reconstructed(
    data: Path,
    section: ReconstructParams,
    compute: ComputeParams,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mean head needs no photograph: one answer per person serves all of theirs."""
    done: list[str] = []
    once = reconstruct.reconstruct_job

    def noted(job: Any, load: Any) -> Any:
        done.append(job.subject_id)
        return once(job, load)

    monkeypatch.setattr(reconstruct, "reconstruct_job", noted)
    shard = data / "packed/now/images-00000.parquet"
    table = read_table(shard)
    lenient = section.model_copy(update={"max_failed_fraction": 1.0})

    def again(rows: Any) -> list[str]:
        write_table(rows, shard)
        outs, answered = [], []
        for work in ("work", f"scratch-{rows.num_rows}"):
            done.clear()
            out = tmp_path / "out"
            arguments = {"method": "mean", "data": data, "out": out, "work": tmp_path / work}
            reconstruct.run(lenient, compute, **arguments)
            answered.append(list(done))
            files = sorted(path for path in out.rglob("*") if path.is_file())
            outs.append({path.relative_to(out): path.read_bytes() for path in files})
        assert outs[0] == outs[1]
        return answered[0]

    less = table.filter([name.as_py() == "NOW/S1" for name in table["subject_id"]])
    assert set(again(less)) == {"NOW/S1"}
    others = set(table["subject_id"].to_pylist()) - {"NOW/S1"}
    assert set(again(table)) == others > {"NOW/S2"}
    assert again(less) == []


def test_too_many_failures_stop_the_stage(
    data: Path, section: ReconstructParams, compute: ComputeParams
) -> None:
    strict = section.model_copy(update={"max_failed_fraction": 0.1})
    with pytest.raises(ValueError, match="got 3 of 4: truncated"):
        reconstruct.run(strict, compute, method="mean", data=data, out=data / "out", work=data)
    with pytest.raises(FileNotFoundError, match="run train@mica"):
        reconstruct.run(
            section, compute, method="mica", data=data / "no", out=data / "out", work=data
        )
    assert not (data / "out").exists()


def test_aligned_distance_ignores_rigid_motion_only() -> None:
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(0)
    a = rng.normal(size=(50, 3))
    R = Rotation.random(random_state=1).as_matrix()
    assert aligned_distance_mm(a @ R.T + 3, a) == pytest.approx(0, abs=1e-9)
    assert aligned_distance_mm(1.1 * a, a) > 1
    assert aligned_distance_mm(a * [-1, 1, 1], a) > 1


def _add_florence(data: Path) -> None:
    """Two people of the validation set, shaped unlike anybody else."""
    for actor in ("subject_01", "subject_02"):
        folder = data / "unified/FLORENCE"
        parameters = folder / f"FLAME_parameters/{actor}/110920150452.npz"
        parameters.parent.mkdir(parents=True)
        np.savez(parameters, pose=np.zeros(15), betas=np.full(400, 3.0))
        file = folder / f"arcface_input/{actor}/frame_0010.npy"
        file.parent.mkdir(parents=True)
        np.save(file, np.zeros((3, 112, 112), np.float32))


def _prepared(data: Path, mica: MicaParams, out: Path) -> dict[str, object]:
    out.mkdir()
    return prepare(
        out, unified=data / "unified", encoder=None, model=data / "models/flame",
        section=mica.model_dump(mode="json", exclude={"fit"}), seed=3,
    )  # fmt: skip


def test_florence_validates_and_is_never_trained_on(
    data: Path, mica: MicaParams, tmp_path: Path
) -> None:
    before = _prepared(data, mica, tmp_path / "a")
    assert before["subjects"] == 4  # a part of the six is held out
    assert not np.load(tmp_path / "a/validation.npy").all()
    _add_florence(data)
    after = _prepared(data, mica, tmp_path / "b")
    assert after["subjects"] == 6
    assert after["validation_subjects"] == ["FLORENCE/subject_01", "FLORENCE/subject_02"]
    validation, betas = np.load(tmp_path / "b/validation.npy"), np.load(tmp_path / "b/betas.npy")
    np.testing.assert_array_equal(validation, (betas == 3.0).all(axis=1))


def test_nobody_is_in_training_and_validation(data: Path, mica: MicaParams, tmp_path: Path) -> None:
    _add_florence(data)
    (data / "unified/LYHM/FLAME_parameters/00000").rename(
        data / "unified/LYHM/FLAME_parameters/subject_01"
    )
    (data / "unified/LYHM/arcface_input/00000").rename(
        data / "unified/LYHM/arcface_input/subject_01"
    )
    with pytest.raises(ValueError, match="nobody both in training and in FLORENCE, got LYHM/subj"):
        _prepared(data, mica, tmp_path / "a")


def test_a_set_is_left_out_by_name(data: Path, mica: MicaParams, tmp_path: Path) -> None:
    _add_florence(data)
    without = mica.model_copy(update={"exclude": ("FLORENCE",)})
    facts = _prepared(data, without, tmp_path / "a")
    assert facts["excluded"] == ["FLORENCE"]
    assert facts["sets"] == {"LYHM": 4}  # without Florence a part of the others validates again
    with pytest.raises(ValueError, match=r"exclude: expected data sets .*LYHM.*got \['FRGC'\]"):
        _prepared(data, mica.model_copy(update={"exclude": ("FRGC",)}), tmp_path / "b")
    nobody = mica.model_copy(update={"exclude": ("LYHM",)})
    with pytest.raises(ValueError, match=">= 2 training subjects .* got 2 in all, 2 of them for"):
        _prepared(data, nobody, tmp_path / "c")


def test_every_subject_is_drawn_equally_often(data: Path, mica: MicaParams, tmp_path: Path) -> None:
    """K photographs of a subject, and the subject's chance does not grow with its photographs."""
    folder = data / "unified/LYHM/arcface_input/00000"
    for extra in range(30):
        np.save(folder / f"more{extra}.npy", np.zeros((3, 112, 112), np.float32))
    _prepared(data, mica, tmp_path / "a")
    config = mica.model_dump(mode="json") | {"seed": 1, "encoder": PLAIN_ENCODER}
    job = build(tmp_path / "a", config | {"augment": {}})
    drawn = np.concatenate([job.batch(step, list(range(8)))["beta"].numpy() for step in range(150)])
    assert (drawn[::2] == drawn[1::2]).all()  # slots 2k and 2k + 1 show one subject
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    validating = np.load(tmp_path / "a/validation.npy")
    assert len(counts) == (~validating).sum()
    assert counts.min() > 0.75 * counts.mean()
    assert counts.max() < 1.25 * counts.mean()


def test_photographs_of_one_draw_differ(data: Path, mica: MicaParams, tmp_path: Path) -> None:
    """K of a subject without repetition; a subject with fewer starts over."""
    for actor in sorted(path.name for path in (data / "unified/LYHM/arcface_input").iterdir()):
        for shot in range(4):
            value = np.float32(-0.9 + 0.4 * shot)
            file = data / f"unified/LYHM/arcface_input/{actor}/{shot}.npy"
            np.save(file, np.full((3, 112, 112), value, np.float32))
    _prepared(data, mica, tmp_path / "a")
    config = mica.model_dump(mode="json") | {"seed": 1, "encoder": PLAIN_ENCODER, "augment": {}}
    job = build(tmp_path / "a", config | {"images_per_subject": 4})
    for step in range(20):
        grey = job.batch(step, list(range(8)))["image"].mean(dim=(1, 2, 3)).numpy()
        assert (np.diff(np.sort(grey.reshape(2, 4), axis=1)) > 0.3).all()
    job = build(tmp_path / "a", config | {"images_per_subject": 5})
    grey = job.batch(0, list(range(5)))["image"].mean(dim=(1, 2, 3)).numpy()
    assert grey[4] == grey[0]


def test_everybody_validates_with_as_many_photographs() -> None:
    numbers = [np.arange(10), np.arange(10, 14), np.arange(20, 23)]
    assert equal_parts(numbers).tolist() == [0, 4, 9, 10, 11, 13, 20, 21, 22]
    assert equal_parts(numbers, most=1).tolist() == [0, 10, 20]


def test_more_coefficients_than_the_model_has_are_refused(
    data: Path, mica: MicaParams, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"n_shape: expected at most the \d+ shape .* 999"):
        _prepared(data, mica.model_copy(update={"n_shape": 999}), tmp_path / "a")


def test_siren_trains_without_a_basis_and_reconstructs(
    data: Path,
    mica: MicaParams,
    section: ReconstructParams,
    compute: ComputeParams,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    siren = mica.model_copy(update={"decoder": "siren"})
    work = data.parent / "work"
    _prepared(data, siren, data / "prepared")
    assert not (data / "prepared/flame.safetensors").exists()
    heads, betas = np.load(data / "prepared/heads.npy"), np.load(data / "prepared/betas.npy")
    arrays = FlameArrays.load(data / "models/flame")
    np.testing.assert_allclose(heads[2], shape_vertices(arrays, betas[2]), atol=1e-6)

    def trained(name: str) -> bytes:
        train.run(siren, compute, method="mica", seed=3, data=data, out=data / name, work=work)
        return (data / name / "model.safetensors").read_bytes()

    whole = trained("checkpoints/mica")
    save = FileStore.save

    def die(store: FileStore, *content: Any) -> None:
        save(store, *content)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "save", die)
        with pytest.raises(KeyboardInterrupt):
            trained("again")
    assert trained("again") == whole  # the drawn vertices too depend on the step alone
    state, _ = read_safetensors(data / "again/model.safetensors")
    per_vertex = [name for name, value in state.items() if value.shape[:1] == (40,)]
    assert per_vertex == []  # neither template nor basis
    metrics = read_json(data / "again/metrics.json")
    assert set(metrics["train"]) == {"loss", "vertices", "offsets"}
    assert metrics["validation"]["face_mm"] > 0
    assert metrics["validation"]["template_mm"] > 0

    reconstruct.load_method.cache_clear()
    out = data / "predictions/mica"
    reconstruct.run(section, compute, method="mica", data=data, out=out, work=data / "work")
    reconstruct.load_method.cache_clear()
    rows = {row["item_id"]: row for row in read_table(out / "rows.parquet").to_pylist()}
    row = rows["S1/selfie/IMG_1"]
    assert row["status"] == "ok"
    mesh = read_mesh(out / row["mesh"])
    assert mesh.vertices.shape == (40, 3)
    template_mm = 1000 * arrays.v_template
    assert 0 < np.abs(mesh.vertices - template_mm).max() < 100


def test_siren_learns_registered_meshes_that_no_basis_holds(
    data: Path, mica: MicaParams, tmp_path: Path
) -> None:
    registered = mica.siren.model_copy(update={"truth": "registrations"})
    siren = mica.model_copy(update={"decoder": "siren", "siren": registered})
    with pytest.raises(FileNotFoundError, match=r"registrations/00000/fit\.obj"):
        _prepared(data, siren, tmp_path / "a")
    rng = np.random.default_rng(5)
    faces = np.array([[0, 1, 2]])
    meshes = [rng.normal(size=(40, 3)) * 0.05 for _ in range(6)]
    for actor, vertices in enumerate(meshes):
        mesh = data / f"unified/LYHM/registrations/{actor:05d}/fit.obj"
        write_obj(mesh, vertices, faces)
    _prepared(data, siren, tmp_path / "b")
    np.testing.assert_allclose(np.load(tmp_path / "b/heads.npy"), meshes, atol=1e-6)
    write_obj(mesh, meshes[0][:39], faces)
    with pytest.raises(ValueError, match="expected the 40 vertices of the face model, got 39"):
        _prepared(data, siren, tmp_path / "c")


def test_own_encoder_weights_start_mica(
    data: Path, mica: MicaParams, compute: ComputeParams, tmp_path: Path
) -> None:
    torch.manual_seed(9)
    net = IResNet(IResNetConfig((1, 1, 1, 1), (4, 4, 6, 8), 8, 28))
    file = tmp_path / "backbone.pth"
    torch.save(net.state_dict(), file)
    own = mica.model_copy(update={"weights": file, "trainable": "none"})
    arguments = {"method": "mica", "seed": 3, "data": data, "work": data.parent / "work"}
    train.run(own, compute, out=data / "own", **arguments)
    state, _ = read_safetensors(data / "own/model.safetensors")
    for name, value in state_arrays(net).items():
        np.testing.assert_array_equal(state[f"arcface.{name}"], value, err_msg=name)
    torch.save({"conv1.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"train\.mica\.weights: .* does not fit the encoder"):
        train.run(own, compute, out=data / "own", **arguments)
    absent = own.model_copy(update={"weights": tmp_path / "absent.pth"})
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        train.run(absent, compute, out=data / "own", **arguments)


def test_who_validates() -> None:
    names = [f"LYHM/{k}" for k in range(10)]
    assert validation_subjects([], 0.3, 1) == set()
    assert len(validation_subjects(names, 0.3, 1)) == 3
    assert validation_subjects([*names, "FLORENCE/subject_01"], 0.3, 1) == {"FLORENCE/subject_01"}
