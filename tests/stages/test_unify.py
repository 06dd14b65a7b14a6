"""The unify stage: choice of the neutral scan, MICA's layout, the eight rows."""

import io

import cv2
import numpy as np
import pytest

from models.face.flame import FlameArrays
from models.networks.encoders.arcface_crop import TEMPLATE_PX, arcface_blob, arcface_crop
from stages.datasets.meshes import read_mesh
from stages.runtime import params
from stages.runtime.artifacts import (
    read_json,
    read_table,
    write_json,
    write_safetensors,
    write_table,
)
from stages.runtime.contracts import table_of
from stages.unify import COUNTED, choose, eight_rows, run

V = 12
SHIFT = np.array([20, 30])


@pytest.fixture
def flame(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "v_template": rng.normal(size=(V, 3)).astype(np.float32),
        "faces": np.array([[0, 1, 2], [2, 3, 4]]),
        "shapedirs": np.zeros((V, 3, 4), np.float32),
        "exprdirs": np.zeros((V, 3, 2), np.float32),
        "posedirs": np.zeros((V, 3, 36), np.float32),
        "J_regressor": np.full((5, V), 1 / V, np.float32),
        "weights": np.full((V, 5), 0.2, np.float32),
        "parents": np.array([-1, 0, 1, 1, 1]),
    }
    write_safetensors(tensors, tmp_path / "flame/model.safetensors")
    assert len(FlameArrays.load(tmp_path / "flame").v_template) == V
    return tmp_path / "flame"


def registration(item: str, subject: str, median: float, **changes) -> dict:
    return {
        "item_id": item,
        "subject_id": subject,
        "status": "ok",
        "reason": "",
        "beta": [1.0, 2.0, 3.0, 4.0],
        "psi": [0.5, -0.5],
        "theta": np.arange(15) / 10,
        "vertices_neutral": np.arange(3 * V, dtype=np.float32) / 100,
        "residual_median_mm": median,
        "flags": "[]",
        **changes,
    }


def scan(item: str, subject: str, neutral: bool = True) -> dict:
    return {
        "item_id": item,
        "subject_id": subject,
        "status": "ok",
        "reason": "",
        "source_path": f"scans/{item.split('/')[1]}.obj",
        "neutral": neutral,
    }


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (160, 160, 3), dtype=np.uint8)
    return cv2.imencode(".png", cv2.GaussianBlur(pixels, (0, 0), 3))[1].tobytes()


def photo(item: str, subject: str, seed: int, **changes) -> dict:
    return {
        "item_id": item,
        "subject_id": subject,
        "status": "ok",
        "reason": "",
        "source_path": f"photos/{item.split('/')[1]}.png",
        "image": picture(seed),
        "height_px": 160,
        "width_px": 160,
        "landmark_order": "",
        **changes,
    }


def points68() -> np.ndarray:
    """Points whose five anchors are the crop's template moved by (20, 30)."""
    points = np.zeros((68, 2))
    points[36:42], points[42:48] = TEMPLATE_PX[0], TEMPLATE_PX[1]
    points[30], points[48], points[54] = TEMPLATE_PX[2:]
    return points + SHIFT


@pytest.fixture
def inputs(tmp_path, flame):
    registered, packed, marks = (tmp_path / n for n in ("registered", "packed", "landmarks"))
    found = [
        registration("F1/F1_N", "STIRLING/F1", 0.2),
        registration("F1/F1_NH", "STIRLING/F1", 0.1),
        registration("F1/F1_A", "STIRLING/F1", 0.01),
        registration("M2/M2_N", "STIRLING/M2", 0.3, status="rejected", reason="coverage 0.1"),
    ]
    write_table(table_of(found, "registrations"), registered / "stirling/registrations.parquet")
    scans = [scan(r["item_id"], r["subject_id"], r["item_id"] != "F1/F1_A") for r in found]
    folder = packed / "stirling"
    write_table(table_of(scans, "scans"), folder / "scans-00000.parquet")
    photos = [
        photo("F1/F1_001", "STIRLING/F1", 1),
        photo("F1/F1_002", "STIRLING/F1", 2),
        photo("F1/F1_003", "STIRLING/F1", 3, status="failed", reason="truncated", image=b""),
        photo("M2/M2_001", "STIRLING/M2", 4),
    ]
    write_table(table_of(photos, "images"), folder / "images-00000.parquet")
    write_json({"synthetic": True}, folder / "meta.json")
    rows = [
        {
            "item_id": "F1/F1_001",
            "subject_id": "STIRLING/F1",
            "status": "ok",
            "reason": "",
            "points_px": points68().ravel(),
            "score": 1.0,
            "provider": "test",
        },
        {
            "item_id": "F1/F1_002",
            "subject_id": "STIRLING/F1",
            "status": "failed",
            "reason": "no face",
            "provider": "test",
        },
    ]
    write_table(table_of(rows, "landmarks"), marks / "stirling/landmarks.parquet")
    return {"registered": registered, "packed": packed, "landmarks": marks, "model": flame}


SECTION = params.UnifyParams(arcface_size_px=112, images_per_subject=9, min_landmark_score=0.0)
COMPUTE = params.ComputeParams(workers=1, ray_threshold_s=1e9, object_store_mb=80)


def test_layout_is_the_published_one(inputs, tmp_path) -> None:
    out = tmp_path / "unified"
    run(SECTION, COMPUTE, **inputs, out=out)
    files = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert files == {
        "STIRLING/FLAME_parameters/F1/F1_NH.npz",
        "STIRLING/registrations/F1/F1_NH.obj",
        "STIRLING/images/F1/F1_001.png",
        "STIRLING/images/F1/F1_002.png",
        "STIRLING/arcface_input/F1/F1_001.npy",
        "STIRLING/arcface_input/F1/F1_001.jpg",
        "image_paths/STIRLING.json",
        "subjects.parquet",
        "table.json",
    }
    with np.load(out / "STIRLING/FLAME_parameters/F1/F1_NH.npz", allow_pickle=False) as content:
        assert sorted(content.files) == ["betas", "pose"]
        assert content["pose"].shape == (15,)
        assert content["betas"].shape == (400,)
        assert content["betas"][:4].tolist() == [1, 2, 3, 4]
        assert content["betas"][300:302].tolist() == [0.5, -0.5]
        assert np.count_nonzero(content["betas"]) == 6
    mesh = read_mesh(out / "STIRLING/registrations/F1/F1_NH.obj")
    np.testing.assert_allclose(mesh.vertices.ravel(), np.arange(3 * V) / 100, atol=1e-6)
    assert (out / "STIRLING/images/F1/F1_001.png").read_bytes() == picture(1)
    paths = read_json(out / "image_paths/STIRLING.json")
    assert paths == {"F1": [["F1/F1_001.png", "F1/F1_002.png"], "F1/F1_NH.npz"]}


def test_crop_is_the_template_window(inputs, tmp_path) -> None:
    """The points are the template moved by whole pixels: the crop is a window of the photograph."""
    run(SECTION, COMPUTE, **inputs, out=tmp_path / "u")
    path = tmp_path / "u/STIRLING/arcface_input/F1/F1_001.npy"
    blob = np.load(path, allow_pickle=False)
    assert blob.shape == (3, 112, 112)
    assert blob.dtype == np.float32
    pixels = cv2.imdecode(np.frombuffer(picture(1), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    window = pixels[30:142, 20:132]
    np.testing.assert_allclose(blob, arcface_blob(window), atol=1.01 / 127.5)
    np.testing.assert_array_equal(blob, arcface_blob(arcface_crop(pixels, TEMPLATE_PX + SHIFT)))


def test_subjects_and_table(inputs, tmp_path) -> None:
    run(SECTION, COMPUTE, **inputs, out=tmp_path / "u")
    rows = read_table(tmp_path / "u/subjects.parquet").to_pylist()
    assert [(r["subject_id"], r["status"], r["reason"]) for r in rows] == [
        ("STIRLING/F1", "ok", ""),
        ("STIRLING/M2", "failed", "coverage 0.1"),
    ]
    assert rows[0]["item_id"] == "F1/F1_NH"
    assert rows[0]["images"] == ["STIRLING/images/F1/F1_001.png", "STIRLING/images/F1/F1_002.png"]
    table = read_json(tmp_path / "u/table.json")
    assert len(table["rows"]) == 8
    by_name = {row["dataset"]: row for row in table["rows"]}
    assert by_name["STIRLING"]["status"] == "attached"
    assert by_name["STIRLING"]["subjects"] == 1
    assert by_name["STIRLING"]["photographs"] == 2
    assert by_name["STIRLING"]["crops"] == 1
    assert by_name["STIRLING"]["not_unified"] == 1
    assert by_name["STIRLING"]["synthetic"] is True
    assert by_name["STIRLING"]["subjects_found"] == 2
    scans = [by_name["STIRLING"][f"scans_{status}"] for status in ("ok", "rejected", "failed")]
    assert scans == [3, 1, 0]
    roles = {name: row["role"] for name, row in by_name.items()}
    assert roles.pop("FLORENCE") == "validation"
    assert set(roles.values()) == {"train"}
    assert by_name["FRGC"]["status"] == "not attached"
    assert by_name["FRGC"]["published_subjects"] == 531
    assert table["total"]["published_subjects"] == 2315


def test_rerun_gives_the_same_bytes(inputs, tmp_path) -> None:
    for name in ("a", "b"):
        run(SECTION, COMPUTE, **inputs, out=tmp_path / name)
    for file in (tmp_path / "a").rglob("*"):
        if file.is_file():
            twin = tmp_path / "b" / file.relative_to(tmp_path / "a")
            assert file.read_bytes() == twin.read_bytes(), file


def test_photographs_are_limited_and_namesakes_kept_apart(inputs, tmp_path) -> None:
    folder = inputs["packed"] / "stirling"
    twins = [
        photo("F1/a", "STIRLING/F1", 1, source_path="HQ/same.png"),
        photo("F1/b", "STIRLING/F1", 2, source_path="LQ/same.png"),
        photo("F1/c", "STIRLING/F1", 3),
    ]
    write_table(table_of(twins, "images"), folder / "images-00000.parquet")
    few = SECTION.model_copy(update={"images_per_subject": 2})
    run(few, COMPUTE, **inputs, out=tmp_path / "u")
    names = sorted(p.name for p in (tmp_path / "u/STIRLING/images/F1").iterdir())
    assert names == ["LQ_same.png", "same.png"]


def test_gzipped_sources_are_named_by_what_they_hold(inputs, tmp_path) -> None:
    scans = {"a/x": scan("a/x", "D/a") | {"source_path": "Fall2003range/04203d436.abs.gz"}}
    assert choose([registration("a/x", "D/a", 0.1)], scans)[0].stem == "04203d436"
    folder = inputs["packed"] / "stirling"
    found = [
        photo("F1/a", "STIRLING/F1", 1, source_path="s/04203d437.ppm.gz"),
        photo("F1/b", "STIRLING/F1", 2, source_path="s/04203d439.ppm"),
    ]
    write_table(table_of(found, "images"), folder / "images-00000.parquet")
    run(SECTION, COMPUTE, **inputs, out=tmp_path / "u")
    names = sorted(p.name for p in (tmp_path / "u/STIRLING/images/F1").iterdir())
    assert names == ["04203d437.png", "04203d439.png"]


def test_packed_points_serve_without_a_landmarks_folder(inputs, tmp_path) -> None:
    own = photo(
        "F1/F1_001", "STIRLING/F1", 1, landmark_order="ibug68", landmarks_px=points68().ravel()
    )
    folder = inputs["packed"] / "stirling"
    write_table(table_of([own], "images"), folder / "images-00000.parquet")
    run(SECTION, COMPUTE, **{**inputs, "landmarks": tmp_path / "none"}, out=tmp_path / "u")
    assert (tmp_path / "u/STIRLING/arcface_input/F1/F1_001.npy").is_file()


def test_scale_that_is_not_metric_and_missing_neutrals_are_refused() -> None:
    rows = [
        registration("a/x", "S/a", 0.1, flags='["scale_not_metric"]'),
        registration("b/x", "S/b", 0.1),
    ]
    scans = {"a/x": scan("a/x", "S/a"), "b/x": scan("b/x", "S/b", neutral=False)}
    choices = choose(rows, scans)
    assert [c.item_id for c in choices] == ["", ""]
    assert "not metric" in choices[0].reason
    assert "none of 1 scans is neutral" in choices[1].reason
    unread = registration("c/x", "S/c", 0.1, status="failed", reason="the file is empty")
    assert choose([unread], {})[0].reason == "the file is empty"


def test_ties_go_to_the_lower_item() -> None:
    rows = [registration(f"a/{k}", "S/a", 0.1) for k in "zyx"]
    scans = {row["item_id"]: scan(row["item_id"], "S/a") for row in rows}
    assert choose(rows, scans)[0].item_id == "a/x"


def test_the_ground_truth_of_a_set_wins_over_a_smaller_residual() -> None:
    rows = [registration("a/one", "S/a", 0.3), registration("a/two", "S/a", 0.1)]
    scans = {
        "a/one": {**scan("a/one", "S/a"), "attributes": '{"ground_truth":true}'},
        "a/two": {**scan("a/two", "S/a"), "attributes": '{"ground_truth":false}'},
    }
    assert choose(rows, scans)[0].item_id == "a/one"
    rows[0]["status"] = "rejected"
    assert choose(rows, scans)[0].item_id == "a/two"


def test_the_validation_set_is_unified_but_counted_apart(inputs, tmp_path) -> None:
    for folder in ("registered", "packed", "landmarks"):
        (inputs[folder] / "florence").symlink_to(inputs[folder] / "stirling")
    run(SECTION, COMPUTE, **inputs, out=tmp_path / "u")
    table = read_json(tmp_path / "u/table.json")
    by_name = {row["dataset"]: row for row in table["rows"]}
    assert by_name["FLORENCE"]["subjects"] == by_name["STIRLING"]["subjects"] == 1
    assert (table["total"]["subjects"], table["total"]["train_subjects"]) == (2, 1)
    assert (tmp_path / "u/FLORENCE/FLAME_parameters/F1/F1_NH.npz").is_file()


def test_a_set_beyond_the_eight_gets_a_row() -> None:
    here = {**dict.fromkeys(COUNTED, 0), "subjects": 3, "photographs": 4, "synthetic": False}
    table = eight_rows({"OURS": here})
    assert len(table["rows"]) == 9
    ours = next(row for row in table["rows"] if row["dataset"] == "OURS")
    assert ours["published_subjects"] is None
    assert table["total"]["subjects"] == 3


def test_nothing_registered_says_what_to_run(inputs, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="register stage"):
        run(SECTION, COMPUTE, **{**inputs, "registered": tmp_path / "no"}, out=tmp_path / "u")


def test_not_one_subject_is_an_error(inputs, tmp_path) -> None:
    rows = [registration("F1/F1_N", "STIRLING/F1", 1.0, status="failed", reason="NaN")]
    table = inputs["registered"] / "stirling/registrations.parquet"
    write_table(table_of(rows, "registrations"), table)
    with pytest.raises(ValueError, match="at least one unified subject.*NaN"):
        run(SECTION, COMPUTE, **inputs, out=tmp_path / "u")
    assert not (tmp_path / "u").exists()


def test_no_archive_is_pickled(inputs, tmp_path) -> None:
    run(SECTION, COMPUTE, **inputs, out=tmp_path / "u")
    for path in (tmp_path / "u").rglob("*.np[yz]"):
        np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
