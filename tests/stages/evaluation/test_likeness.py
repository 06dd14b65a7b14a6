"""Likeness of a tiny benchmark whose photographs are the portraits of the right predictions."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.face.portrait import portrait
from models.networks.encoders.iresnet import IResNet, IResNetConfig
from stages import evaluate
from stages.benchmarks.likeness import Encoder, load_gallery, measure_likeness
from stages.datasets.meshes import write_obj
from stages.runtime.artifacts import (
    read_json,
    read_table,
    write_json,
    write_safetensors,
    write_table,
)
from stages.runtime.contracts import schema, table_of
from stages.runtime.params import ComputeParams, EvaluateParams

COMPUTE = ComputeParams(workers=1, ray_threshold_s=1e9, object_store_mb=100)
SIZE = {"layers": [1, 1, 1, 1], "widths": [4, 4, 8, 8], "embedding": 16, "input_px": 28}
PEOPLE = ("anna", "bert", "cleo")


def encoder(folder: Path) -> Path:
    torch.manual_seed(3)
    net = IResNet(
        IResNetConfig(
            tuple(SIZE["layers"]), tuple(SIZE["widths"]), SIZE["embedding"], SIZE["input_px"]
        )
    )
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    facts = {"encoder": SIZE, "weights": "random", "synthetic": True}
    write_safetensors(state, folder / "model.safetensors", facts)
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, kit):
    """Three people of two photographs; the fifth photograph is broken, the sixth has no face."""
    folder = tmp_path_factory.mktemp("likeness")
    images, points, rows, scans = [], [], [], []
    raw = {"source_path": "x", "source_sha256": "0", "split": "val", "attributes": "{}"}
    for number in range(6):
        name = PEOPLE[number // 2]
        item = f"{name}/selfie/{number}"
        ok = {"item_id": item, "subject_id": f"NOW/{name}", "status": "ok", "reason": ""}
        vertices, faces = kit.relief(5.0, bump=12.0 * (number // 2) - 9.0 + 0.4 * (number % 2))
        drawn = portrait(vertices, faces, kit.seven())
        coded = cv2.imencode(".png", drawn.image[..., ::-1])[1].tobytes()
        images.append(raw | ok | {"image": coded[:40] if number == 4 else coded})
        sixty_eight = np.zeros((68, 2))
        right, left, sixty_eight[30], sixty_eight[48], sixty_eight[54] = drawn.five_px
        sixty_eight[36:42], sixty_eight[42:48] = right, left
        faceless = {"status": "failed", "reason": "no face"} if number == 5 else {}
        points.append(ok | {"points_px": sixty_eight.ravel(), "provider": "x"} | faceless)
        write_obj(folder / f"predictions/now/{item}.obj", vertices / 1000, faces, decimals=9)
        np.save(folder / f"predictions/now/{item}.npy", kit.seven() / 1000)
        files = {"mesh": f"now/{item}.obj", "landmarks": f"now/{item}.npy"}
        rows.append(ok | files | {"benchmark": "now"})
        if number % 2 == 0:
            shape = {"vertices": vertices.ravel(), "faces": faces.ravel(), "unit": "mm"}
            marks = {"landmarks": kit.seven().ravel(), "landmark_order": "now7"}
            scans.append(raw | ok | shape | marks)
    rows.append(rows[0] | {"item_id": "HQ/F1001_001", "benchmark": "stirling"})  # not compared
    write_table(table_of(images, "images"), folder / "now/images-00000.parquet")
    write_table(table_of(scans, "scans"), folder / "now/scans-00000.parquet")
    write_table(table_of(points, "landmarks"), folder / "landmarks/landmarks.parquet")
    write_table(table_of(rows, "predictions"), folder / "predictions/rows.parquet")
    facts = {"unit": "m", "synthetic": True, "weights": "random"}
    write_json(facts, folder / "predictions/meta.json")
    encoder(folder / "b")
    return folder


def measured(folder: Path, predictions: str = "predictions"):
    return measure_likeness(
        predictions=folder / predictions,
        unit_name="m",
        packed=folder / "now",
        landmarks=folder / "landmarks",
        recognizer=folder / "b",
        compute=COMPUTE,
    )


def test_photographs_that_are_the_renderings_score_one(inputs: Path) -> None:
    facts, rows = measured(inputs)
    assert facts["cosine_mean"] == pytest.approx(1.0, abs=1e-3)
    assert facts["recall"] == {"top1": 1.0, "top5": 1.0}
    assert (facts["photographs"], facts["people"], facts["renderings"]) == (4, 2, 4)
    assert (facts["photographs_without_face"], facts["not_rendered"]) == (2, 2)
    assert (facts["same_pairs"], facts["different_pairs"]) == (2, 4)
    assert facts["encoder"]["weights"] == "random"
    assert facts["encoder"]["synthetic"] is True
    assert [row["status"] for row in rows] == ["ok"] * 4 + ["failed"] * 2
    assert {row["reason"] for row in rows[4:]} == {"no face with landmarks on the photograph"}
    shares = facts["distributions"]
    assert shares["renderings"][-1] == shares["same"][-1] == shares["different"][-1] == 100.0
    assert all(len(shares[name]) == len(shares["cosine"]) for name in ("renderings", "same"))


def test_other_peoples_faces_are_not_recalled(inputs: Path, tmp_path: Path) -> None:
    """Predictions of the two people exchanged."""
    rows = read_table(inputs / "predictions/rows.parquet").to_pylist()
    files = {row["item_id"]: (row["mesh"], row["landmarks"]) for row in rows}
    for row in rows:
        other = {"anna": "bert", "bert": "anna"}.get(row["item_id"].split("/")[0])
        if other:
            number = int(row["item_id"][-1]) + (2 if other == "bert" else -2)
            row["mesh"], row["landmarks"] = files[f"{other}/selfie/{number}"]
            row["mesh"] = str((inputs / "predictions" / row["mesh"]).resolve())
            row["landmarks"] = str((inputs / "predictions" / row["landmarks"]).resolve())
    write_table(table_of(rows, "predictions"), tmp_path / "rows.parquet")
    facts, _ = measured(inputs, str(tmp_path))
    assert facts["recall"]["top1"] == 0.0


def test_a_broken_mesh_is_a_row_and_the_others_are_measured(inputs: Path, tmp_path: Path) -> None:
    rows = read_table(inputs / "predictions/rows.parquet").to_pylist()
    for row in rows:
        for key in ("mesh", "landmarks"):
            row[key] = str((inputs / "predictions" / row[key]).resolve())
    (tmp_path / "empty.obj").write_text("v 0 0 nan\n")
    rows[0]["mesh"] = str(tmp_path / "empty.obj")
    rows[1] |= {"status": "failed", "reason": "no face was found"}
    write_table(table_of(rows, "predictions"), tmp_path / "rows.parquet")
    facts, found = measured(inputs, str(tmp_path))
    assert facts["renderings"] == 2
    assert [row["status"] for row in found[:4]] == ["failed", "failed", "ok", "ok"]
    assert "empty.obj" in found[0]["reason"]
    assert found[1]["reason"] == "no face was found"


def test_nothing_to_compare_is_said_not_raised(inputs: Path, tmp_path: Path) -> None:
    rows = read_table(inputs / "predictions/rows.parquet").to_pylist()
    for row in rows:
        row |= {"status": "failed", "reason": "gone"}
    write_table(table_of(rows, "predictions"), tmp_path / "rows.parquet")
    facts, found = measured(inputs, str(tmp_path))
    assert facts["reason"] == "no prediction could be compared"
    assert {row["reason"] for row in found} == {"gone"}


def test_missing_recogniser_is_said(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run recognizer@b first"):
        Encoder(tmp_path / "b")
    assert len(load_gallery(inputs / "now", inputs / "landmarks").items) == 4


def test_the_stage_writes_what_was_measured(inputs: Path, tmp_path: Path) -> None:
    section = EvaluateParams(
        protocols=("now",),
        curve_max_mm=8.0,
        curve_step_mm=0.5,
        max_unscored_fraction=1.0,
        benchmarks={},
    )
    evaluate.run(
        section,
        COMPUTE,
        method="mica",
        predictions=inputs / "predictions",
        now=inputs / "now",
        out=tmp_path / "out",
        landmarks=inputs / "landmarks",
        recognizer=inputs / "b",
    )
    facts, rows = measured(inputs)
    assert read_json(tmp_path / "out/likeness.json") == facts
    table = read_table(tmp_path / "out/likeness.parquet")
    assert table.schema.equals(schema("likeness"), check_metadata=False)
    assert table.equals(table_of(rows, "likeness"))
