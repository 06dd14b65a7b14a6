"""RingNet's stage: rings, who is left out and why, the same bytes, resumed or not, heads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.networks.encoders.resnet import ResNet, ResNetConfig
from models.networks.train_loop import state_arrays
from stages import reconstruct, train
from stages.datasets.meshes import read_mesh
from stages.runtime.artifacts import (
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
    LoopParams,
    Pix2FaceFitParams,
    ReconstructParams,
    RingNetParams,
)
from stages.training import ringnet
from stages.training.assembly import user_trunk
from stages.training.ringnet import RingSampler, consistency
from tests.stages.training.conftest import AUGMENT, failed_row, image_row

TRUNK = {"kind": "v2", "layers": (1, 1, 1, 1), "width": 2}


@pytest.fixture
def section(loop: LoopParams) -> RingNetParams:
    return RingNetParams.model_validate({
        "size_px": 32, "trunk": TRUNK, "weights": None, "n_shape": 5, "n_expression": 3,
        "hidden": 8, "dropout": 0.2,
        "ring": {"size": 4, "weight": 1, "margin": 0.5, "pseudo_share": 0.4},
        "ief": {"n_iter": 2, "init_estimate": "mean", "balanced": True}, "contour": "dynamic",
        "landmark_weight": 60, "shape_penalty": 1e-4, "expression_penalty": 1e-4,
        "confidence_gate": 0.41, "box_scale": (1.4, 1.8), "box_shift": 0.1, "holdout": 0.2,
        "augment": {**AUGMENT, "flip": False},
        "fit": {**loop.model_dump(), "batch": 2, "steps": 4, "report_every": 2, "keep": "last"},
    })  # fmt: skip


def face_points(rng: np.random.Generator) -> np.ndarray:
    return np.asarray([70.0, 75.0] + rng.normal(size=(68, 2)) * 14)


def photographs(
    root: Path, name: str, people: dict[str, int], rng: np.random.Generator, split: str = "train"
) -> None:
    """A packed set and its landmarks; the last photograph of everybody has none."""
    rows, found = [failed_row("broken")], []
    for person, count in people.items():
        for shot in range(count + 1):
            item = f"{person}/{shot}"
            image = rng.integers(0, 255, (140, 140, 3)).astype(np.uint8)
            rows.append(image_row(item, f"{name}/{person}", image, split=split))
            ok = shot < count
            found.append({
                "item_id": item, "subject_id": f"{name}/{person}", "provider": "test",
                "status": "ok" if ok else "failed", "reason": "" if ok else "no face",
                "points_px": face_points(rng).ravel() if ok else None, "score": 0.9 if ok else None,
            })  # fmt: skip
    write_table(table_of(rows, "images"), root / f"packed/{name}/images-00000.parquet")
    write_json({"synthetic": True}, root / f"packed/{name}/meta.json")
    write_table(table_of(found, "landmarks"), root / f"landmarks/{name}/landmarks.parquet")


@pytest.fixture
def data(flame_folder: Path) -> Path:
    root = flame_folder.parents[1]
    rng = np.random.default_rng(3)
    photographs(root, "vggface2", {"a": 4, "b": 3, "c": 2, "d": 5, "e": 3}, rng)
    photographs(root, "300w_lp", {"x": 1, "y": 2}, rng)
    return root


def prepared(data: Path, section: RingNetParams, out: Path) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return ringnet.prepare(
        out, packed=data / "packed/vggface2", landmarks=data / "landmarks/vggface2",
        unlabelled=data / "packed/300w_lp", unlabelled_landmarks=data / "landmarks/300w_lp",
        model=data / "models/flame", section=section.model_dump(mode="json"), seed=3,
    )  # fmt: skip


class TestSampler:
    people = ("a", "a", "a", "b", "b", "c", "x", "y")
    pseudo = np.array([False] * 6 + [True] * 2)

    def sampler(self, **changes: Any) -> RingSampler:
        settings = {"usable": np.ones(8, bool), "size": 4, "pseudo_share": 0.5, **changes}
        return RingSampler(self.people, self.pseudo, **settings)

    def test_rings_are_one_person_and_somebody_else(self) -> None:
        sampler = self.sampler()
        rng = np.random.default_rng(0)
        rings = [sampler.draw(rng) for _ in range(300)]
        crops = 0
        for ring in rings:
            names = [self.people[k] for k in ring]
            assert len(ring) == 4
            assert len(set(names[:-1])) == 1
            assert names[-1] != names[0]
            if names[0] in "xy":
                assert len(set(ring[:-1].tolist())) == 1  # crops of one photograph
                crops += 1
            else:
                assert names[0] == "a"  # only a has three photographs
                assert sorted(ring[:-1].tolist()) == [0, 1, 2]
        assert 0.35 < crops / 300 < 0.65
        assert {self.people[r[-1]] for r in rings} == {"a", "b", "c", "x", "y"}

    def test_unusable_photographs_are_never_drawn(self) -> None:
        usable = np.array([True] * 4 + [False] * 4)
        sampler = self.sampler(usable=usable)
        rng = np.random.default_rng(1)
        assert all(usable[sampler.draw(rng)].all() for _ in range(50))

    def test_what_rings_need_is_said(self) -> None:
        with pytest.raises(ValueError, match="ring of 6 needs a person with >= 5 .* got 0 such"):
            self.sampler(size=6)
        alone = np.array([True] * 3 + [False] * 5)
        with pytest.raises(ValueError, match="a second person, got 1 such people of 1"):
            self.sampler(usable=alone)


def test_everybody_left_out_has_a_reason(
    data: Path, section: RingNetParams, tmp_path: Path
) -> None:
    facts = prepared(data, section, tmp_path / "out")
    assert facts["photographs"] == 17
    assert facts["unlabelled_photographs"] == 3
    assert facts["left_out"] == {"no landmarks: no face": 7, "not read: truncated": 2}
    short = {row["subject_id"]: row for row in facts["short"]}
    held = set(facts["validation_identities"])
    assert set(short) == {"vggface2/c"} - held
    for row in short.values():
        assert row["status"] == "failed"
        assert row["reason"].startswith("2 photographs with landmarks, expected >= 3 of one person")
    points, crops = np.load(tmp_path / "out/points.npy"), np.load(tmp_path / "out/crops.npy")
    side = crops.shape[1]
    assert crops.shape == (20, side, side, 3)
    assert 0 < points.min() < points.max() < side
    # the box of every photograph's landmarks is centred, and as large in the crop as asked
    low, high = points.min(axis=1), points.max(axis=1)
    np.testing.assert_allclose((low + high) / 2, side / 2, atol=1e-3)
    np.testing.assert_allclose((high - low).mean(axis=1), side / (1.8 * 1.2), rtol=1e-4)


def test_the_set_s_own_test_people_validate(
    data: Path, section: RingNetParams, tmp_path: Path
) -> None:
    table = data / "packed/vggface2/images-00000.parquet"
    rows = read_table(table).to_pylist()
    for row in rows:
        if row["subject_id"] == "vggface2/e":
            row["split"] = "test"
    write_table(table_of(rows, "images"), table)
    assert prepared(data, section, tmp_path / "out")["validation_identities"] == ["vggface2/e"]


def test_nobody_is_in_training_and_validation(
    data: Path, section: RingNetParams, tmp_path: Path
) -> None:
    """The splits of one person's photographs disagree."""
    rng = np.random.default_rng(4)
    photographs(data, "vggface2", {"a": 4, "b": 4, "c": 4}, rng)
    rows = read_table(data / "packed/vggface2/images-00000.parquet").to_pylist()
    for row in rows:
        row["split"] = "test" if row["item_id"] in {"a/0", "b/1"} else "train"
    write_table(table_of(rows, "images"), data / "packed/vggface2/images-00000.parquet")
    with pytest.raises(ValueError, match="both in training and in validation, got vggface2/a, vg"):
        prepared(data, section, tmp_path / "a")


def test_mirrored_photographs_are_refused(section: RingNetParams) -> None:
    changed = section.model_dump() | {"augment": {**AUGMENT, "flip": True}}
    with pytest.raises(ValueError, match="learns landmarks of photographs as they are"):
        RingNetParams.model_validate(changed)


def test_missing_inputs_are_named(data: Path, section: RingNetParams, tmp_path: Path) -> None:
    (data / "landmarks/300w_lp/landmarks.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="landmarks@300w_lp"):
        prepared(data, section, tmp_path / "out")
    without = section.ring.model_copy(update={"pseudo_share": 0.0})
    facts = prepared(data, section.model_copy(update={"ring": without}), tmp_path / "again")
    assert facts["unlabelled_photographs"] == 0


def test_batches_are_whole_rings_and_depend_on_nothing_else(
    data: Path, section: RingNetParams, tmp_path: Path
) -> None:
    prepared(data, section, tmp_path / "out")
    config = {**section.model_dump(mode="json"), "seed": 3, "batch": 2}
    job = ringnet.build(tmp_path / "out", config)
    both, second = job.batch(1, [0, 1]), job.batch(1, [1])
    assert both["image"].shape == (8, 3, 32, 32)
    assert both["landmarks"].shape == (8, 68, 2)
    assert np.allclose(both["confidence"], 0.9)
    for name, value in second.items():
        np.testing.assert_array_equal(both[name][4:], value)
    assert float(both["landmarks"].abs().max()) < 1.5
    with torch.no_grad():
        metrics = job.validate(job.model.eval())
    assert set(metrics) == {"landmark_percent", "within", "between", "shape"}


def run(data: Path, section: RingNetParams, compute: ComputeParams, out: Path) -> bytes:
    train.run(
        section, compute, method="ringnet", seed=3, data=data, out=out, work=data.parent / "work"
    )
    return (out / "model.safetensors").read_bytes()


def test_killed_and_continued_gives_the_same_bytes(
    data: Path, section: RingNetParams, compute: ComputeParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(data, section, compute, data / "whole")
    from stages.training.run import FileStore

    save = FileStore.save

    def die(store: FileStore, *content: Any) -> None:
        save(store, *content)
        raise KeyboardInterrupt

    monkeypatch.setattr(FileStore, "save", die)
    with pytest.raises(KeyboardInterrupt):
        run(data, section, compute, data / "killed")
    monkeypatch.undo()
    assert not (data / "killed").exists()
    assert run(data, section, compute, data / "killed") == whole
    metrics = read_json(data / "whole/metrics.json")
    assert metrics["weights"] == "synthetic-trained"
    assert metrics["data"]["left_out"]["no landmarks: no face"] == 7


def test_reconstructs_neutral_heads_and_places_them(
    data: Path, section: RingNetParams, compute: ComputeParams, pix2face_fit: Pix2FaceFitParams
) -> None:
    run(data, section, compute, data / "checkpoints/ringnet")
    rng = np.random.default_rng(8)
    photographs(data, "now", {"S1": 1, "S2": 1}, rng)
    options = ReconstructParams(
        pix2face=pix2face_fit, deng2019=Deng2019FitParams(aggregate="mean"),
        max_failed_fraction=0.7, detector_min_score=0.0, detector_max_side_px=640,
        photographs=BenchmarkSizes(now=None, stirling=0, florence=0, facewarehouse=0, bu3dfe=0),
    )  # fmt: skip
    reconstruct.load_method.cache_clear()
    out = data / "predictions/ringnet"
    reconstruct.run(options, compute, method="ringnet", data=data, out=out, work=data / ".work")
    rows = read_table(data / "predictions/ringnet/rows.parquet").to_pylist()
    status = {row["item_id"]: (row["status"], row["reason"]) for row in rows}
    assert status["S1/0"] == ("ok", "")
    assert status["S1/1"] == ("failed", "no landmarks: no face")
    mesh = read_mesh(data / "predictions/ringnet/now/S1/0.obj")
    assert 10 < np.ptp(mesh.vertices, axis=0).max() < 1000  # millimetres


def test_the_network_s_camera_lands_on_its_own_landmarks(
    data: Path, section: RingNetParams, compute: ComputeParams
) -> None:
    """The overlay's camera in image pixels is the network's in its crop."""
    from models.face.flame import head_yaw_deg
    from models.face.flame_layer import FlameLandmarks
    from models.methods.ringnet import crop_box, input_blob, project
    from models.networks.encoders.square_crop import crop_image, crop_matrix
    from stages.inference.ringnet import RingNetReconstructor

    run(data, section, compute, data / "checkpoints/ringnet")
    method = RingNetReconstructor(
        data / "checkpoints/ringnet/model.safetensors", data / "models/flame"
    )
    rng = np.random.default_rng(4)
    image, points = rng.integers(0, 255, (140, 140, 3)).astype(np.uint8), face_points(rng)
    answer = method(image, points)
    centre, side = crop_box(points)
    matrix = crop_matrix(centre, 1.6 * side, 32)
    blob = torch.from_numpy(np.ascontiguousarray(input_blob(crop_image(image, matrix, 32))))[None]
    with torch.no_grad():
        code = method._net.split(method._net(blob))
        marks = FlameLandmarks(method._arrays, method._embedding)
        seen = project(marks(code.beta, code.psi, code.theta), code.camera)[0].numpy()
    crop_px = (seen + 1.0) * 16.0
    expected = (crop_px - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    assert answer.shown_mm is not None
    assert answer.camera is not None
    yaw = head_yaw_deg(np.asarray(answer.coefficients["theta"]))
    shown = method._embedding.all68(answer.shown_mm, answer.faces, yaw)
    np.testing.assert_allclose(answer.camera.project(shown), expected, atol=1e-3)


def test_your_own_trunk_is_checked_strictly(tmp_path: Path) -> None:
    net = ResNet(ResNetConfig("v2", (1, 1, 1, 1), 2))
    state = state_arrays(net)
    file = tmp_path / "r50.safetensors"
    write_safetensors({**state, "fc.weight": np.zeros((3, 4), np.float32)}, file, {})
    loaded = user_trunk(file, TRUNK, "train.ringnet")
    np.testing.assert_array_equal(loaded["conv1.weight"], state["conv1.weight"])
    with pytest.raises(ValueError, match=r"names and shapes of train\.ringnet\.trunk"):
        user_trunk(file, {**TRUNK, "width": 3}, "train.ringnet")
    with pytest.raises(FileNotFoundError, match=r"train\.ringnet\.weights"):
        user_trunk(tmp_path / "absent.pth", TRUNK, "train.ringnet")


def test_consistency_of_known_shapes() -> None:
    beta = np.array([[0.0, 0], [0, 1], [3, 0]])
    got = consistency(beta, ["a", "a", "b"])
    assert got == {"within": 1.0, "between": (9 + 10) / 2, "shape": 10 / 3}
    assert consistency(beta[:1], ["a"])["within"] == 0.0
