"""Packing: one row per input, failed ones too; same bytes however it runs; nothing escapes."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.datasets.registry import DATASETS
from stages.pack import PackError, run
from stages.runtime.artifacts import read_table, shard_of
from stages.runtime.contracts import schema
from stages.runtime.params import ComputeParams, PackParams
from tests.stages.datasets import raw_trees

COMPUTE = ComputeParams(workers=1, ray_threshold_s=1000, object_store_mb=100)
PARAMS = PackParams(
    shards=3, max_failed_fraction=0.6, seconds_per_image=0.01, seconds_per_scan=0.01
)


def pack(dataset: str, raw: Path, out: Path, **changed: Any) -> Path:
    arguments: dict[str, Any] = {"p": PARAMS, "compute": COMPUTE, **changed}
    p = arguments.pop("p")
    work = arguments.pop("work", out.parent / f"work-{out.name}")
    run(p, dataset=dataset, raw=raw, out=out, work=work, **arguments)
    return out


def rows(out: Path, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path in sorted(out.glob(f"{table}-*.parquet")):
        found += read_table(path).to_pylist()
    return found


def digest(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("dataset", sorted(DATASETS))
def test_one_row_per_input_and_the_schema(dataset: str, tmp_path: Path) -> None:
    raw = raw_trees.TREES[dataset](tmp_path / "raw")
    out = pack(dataset, raw, tmp_path / "out")
    refs = {ref.item_id: ref for ref in DATASETS[dataset].discover(raw)}
    seen = {}
    for kind, table in (("image", "images"), ("scan", "scans")):
        for path in out.glob(f"{table}-*.parquet"):
            content = read_table(path)
            assert content.schema.names == schema(table).names
            assert content.schema.metadata == schema(table).metadata
            bucket = int(path.stem.split("-")[1])
            ids = content.column("item_id").to_pylist()
            assert ids == sorted(ids)
            for row in content.to_pylist():
                seen[row["item_id"]] = row
                assert refs[row["item_id"]].kind == kind
                assert shard_of(row["subject_id"], 3) == bucket
                json.loads(row["attributes"])
                good = row["status"] == "ok"
                assert good == (row["reason"] == "")
                assert str(tmp_path) not in row["reason"]
                if good:
                    source = raw / row["source_path"]
                    expected = hashlib.sha256(source.read_bytes()).hexdigest()
                    assert row["source_sha256"] == expected
    assert seen.keys() == refs.keys()
    subjects = read_table(out / "subjects.parquet").to_pylist()
    assert sum(row["items"] for row in subjects) == len(refs)
    failed = sum(row["status"] == "failed" for row in seen.values())
    assert sum(row["failed"] for row in subjects) == failed
    meta = json.loads((out / "meta.json").read_text())
    assert sum(meta["items"].values()) == len(refs)
    assert sum(meta["failed"].values()) == failed
    assert meta["synthetic"] is False


def test_reasons_are_clear(tmp_path: Path) -> None:
    tripwire = tmp_path / "executed"
    reasons = {}
    for dataset, build in raw_trees.TREES.items():
        raw = tmp_path / dataset
        if dataset == "now":
            raw_trees.now(raw, raw_trees.evil_npy(tripwire))
        else:
            build(raw)
        out = pack(dataset, raw, tmp_path / f"{dataset}-out")
        for row in rows(out, "images") + rows(out, "scans"):
            reasons[f"{dataset}:{row['item_id']}"] = row["reason"]
    assert not tripwire.exists()
    for item, expected in {
        "300w_lp:LFPW/LFPW_image_test_0001_0": (
            "LFPW/LFPW_image_test_0001_0.mat has no Pose_Para; expected 7 numbers"
        ),
        "300w_lp:LFPW/LFPW_image_test_0002_0": "the JPEG file is truncated",
        "lyhm:00003/130925161612": "ldmks130925161612.txt has 67 landmarks, expected 68",
        "lyhm:00004/130925161613": "130925161613.obj is empty",
        "lyhm:00005/130925161614": "1 of 81 vertices are NaN or infinite",
        "lyhm:00006/130925161615": "has 3 vertices but no faces",
        "now:FaMoS_180424_03335_TA/selfie/IMG_0041": "IMG_0041.npy refers to io.open",
        "now:FaMoS_180424_03335_TA/selfie/IMG_0099": "IMG_0099.jpg: the file is missing",
    }.items():
        assert expected in reasons[item], reasons[item]
    missing = [row for row in rows(tmp_path / "now-out", "images") if "0099" in row["item_id"]]
    assert json.loads(missing[0]["attributes"]) == {"challenge": "selfie"}
    (escape,) = [item for item in reasons if "passwd" in item]
    assert "leads outside the data set's folder" in reasons[escape]


def test_content_survives(tmp_path: Path) -> None:
    raw = raw_trees.w300lp(tmp_path / "raw")
    by_id = {row["item_id"]: row for row in rows(pack("300w_lp", raw, tmp_path / "o"), "images")}
    row = by_id["AFW/AFW_1_0"]
    assert row["image"] == (raw / "AFW" / "AFW_1_0.jpg").read_bytes()
    landmarks = np.array(row["landmarks_px"]).reshape(68, 2)
    np.testing.assert_allclose(landmarks, raw_trees.points68() - 0.5, atol=1e-4)
    assert len(row["pose_para"]) == 7
    assert row["box_px"] is None
    assert by_id["LFPW/LFPW_image_test_0001_0"]["image"] is None

    raw = raw_trees.lyhm(tmp_path / "lyhm")
    by_id = {row["item_id"]: row for row in rows(pack("lyhm", raw, tmp_path / "s"), "scans")}
    row = by_id["00001/130925161610"]
    vertices = np.array(row["vertices"]).reshape(-1, 3)
    assert vertices.shape == (80, 3)
    np.testing.assert_array_equal(np.array(row["landmarks"]).reshape(68, 3), vertices[:68])
    assert np.array(row["faces"]).max() == 79
    assert row["colors"] is None


def test_same_bytes_in_any_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_trees.stirling(tmp_path / "raw")
    first = digest(pack("stirling", raw, tmp_path / "a"))
    again = raw_trees.stirling(tmp_path / "elsewhere" / "raw")
    monkeypatch.chdir(tmp_path)
    assert digest(pack("stirling", again.relative_to(tmp_path), tmp_path / "b")) == first


@pytest.mark.slow
def test_same_bytes_on_ray_workers(tmp_path: Path) -> None:
    raw = raw_trees.lyhm(tmp_path / "raw")
    alone = digest(pack("lyhm", raw, tmp_path / "a"))
    two = ComputeParams(workers=2, ray_threshold_s=0, object_store_mb=100)
    assert digest(pack("lyhm", raw, tmp_path / "b", compute=two)) == alone


def test_takedown_leaves_no_trace_and_other_shards_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = raw_trees.lyhm(tmp_path / "raw")
    whole = pack("lyhm", raw, tmp_path / "a")
    without = pack("lyhm", raw, tmp_path / "b", takedown=["LYHM/00001", "LYHM/99999"])
    assert "LYHM/99999 is not in" in caplog.text
    assert "LYHM/00001 is not in" not in caplog.text
    for path in without.rglob("*"):
        assert b"00001/13" not in path.read_bytes()
    subjects = read_table(without / "subjects.parquet").column("subject_id").to_pylist()
    assert "LYHM/00001" not in subjects
    touched = f"-{shard_of('LYHM/00001', 3):05d}"
    before, after = digest(whole), digest(without)
    shards = [name for name in after if name.startswith(("images-", "scans-"))]
    assert shards
    assert all(before[name] == after[name] for name in shards if touched not in name)


def test_too_many_failures_stop_the_stage_and_keep_the_old_output(tmp_path: Path) -> None:
    raw = raw_trees.lyhm(tmp_path / "raw")
    out = pack("lyhm", raw, tmp_path / "out")
    before = digest(out)
    strict = PARAMS.model_copy(update={"max_failed_fraction": 0.1})
    with pytest.raises(PackError, match="5 of 21 items are unreadable.*max_failed_fraction 0.1"):
        pack("lyhm", raw, out, p=strict)
    assert digest(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw", "work-out"]


def test_missing_folder_and_nothing_left(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"(?s)datasets\.now\.root in params\.yaml.*no such"
    ):
        pack("now", tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    told = r"(?s)iphone_pictures \(required\): missing; for the photographs.*now\.is\.tue\.mpg\.de"
    with pytest.raises(FileNotFoundError, match=told):
        pack("now", tmp_path / "empty", tmp_path / "out")
    raw = raw_trees.facewarehouse(tmp_path / "raw")
    with pytest.raises(PackError, match="no item is left"):
        pack("facewarehouse", raw, tmp_path / "out", takedown=["FACEWAREHOUSE/Tester_1"])


def test_links_out_of_the_folder_are_failed_rows(tmp_path: Path) -> None:
    raw = raw_trees.stirling(tmp_path / "raw")
    secret = raw_trees.write(tmp_path / "secret.obj", raw_trees.SQUARE)
    (raw / "F_3D_N" / "F1009_N.obj").symlink_to(secret)
    found = {row["item_id"]: row for row in rows(pack("stirling", raw, tmp_path / "o"), "scans")}
    assert found["F1009/F1009_N"]["status"] == "failed"
    assert "leads outside" in found["F1009/F1009_N"]["reason"]
    assert found["F1009/F1009_N"]["source_sha256"] == ""


def test_file_names_of_any_bytes(tmp_path: Path) -> None:
    raw = raw_trees.vggface2(tmp_path / "raw")
    strange = os.fsencode(raw / "train" / "n000003") + b"/\xff\xfe.jpg"
    Path(os.fsdecode(strange)).write_bytes(raw_trees.picture())
    found = [row for row in rows(pack("vggface2", raw, tmp_path / "o"), "images")]
    (row,) = [row for row in found if "\\udcff" in row["source_path"]]
    assert (row["item_id"], row["status"]) == ("n000003/__", "ok")


def test_the_synthetic_label_is_recorded(tmp_path: Path) -> None:
    raw = raw_trees.facewarehouse(tmp_path / "raw")
    raw_trees.write(raw / "SYNTHETIC.txt", "made by a program\n")
    out = pack("facewarehouse", raw, tmp_path / "o")
    assert json.loads((out / "meta.json").read_text())["synthetic"] is True
