"""The evaluate stage on a tiny packed benchmark."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.metrics import PROTOCOLS
from stages import evaluate
from stages.runtime.artifacts import read_json, read_table, write_json, write_table
from stages.runtime.contracts import schema, table_of
from stages.runtime.params import ComputeParams, EvaluateParams, load

SECTION = EvaluateParams(
    protocols=("now", "now-metric"),
    curve_max_mm=8.0,
    curve_step_mm=0.5,
    max_unscored_fraction=0.5,
    benchmarks={},
)
COMPUTE = ComputeParams(workers=1, ray_threshold_s=1e9, object_store_mb=100)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, kit):
    folder = tmp_path_factory.mktemp("benchmark")
    kit.write_packed_now(folder / "now")
    kit.write_predictions(folder / "predictions")
    return folder


def run(folder, out, section=SECTION, work=None):
    evaluate.run(
        section,
        COMPUTE,
        method="mica",
        predictions=folder / "predictions",
        now=folder / "now",
        out=out,
        work=work or out.parent / f"work-{out.name}",
    )


@pytest.fixture(scope="module")
def scored(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "evaluation"
    run(inputs, out)
    return out


def test_one_row_per_image_and_protocol_failures_too(scored, kit):
    table = read_table(scored / "distances.parquet")
    assert table.schema.equals(schema("distances"), check_metadata=False)
    rows = table.to_pylist()
    assert [(r["protocol"], r["item_id"]) for r in rows] == [
        (protocol, item) for protocol in SECTION.protocols for item in kit.images()
    ]
    lost = [row for row in rows if row["status"] != "ok"]
    assert [row["reason"] for row in lost] == ["missing: truncated image"] * 2
    assert all(row["distances_mm"] is None for row in lost)


def test_metrics_follow_from_the_table_alone(scored):
    metrics = read_json(scored / "metrics.json")
    assert (metrics["method"], metrics["synthetic"], metrics["weights"]) == ("mica", True, "random")
    rows = pq.read_table(scored / "distances.parquet").to_pylist()
    for name, result in metrics["protocols"].items():
        kept = [r for r in rows if r["protocol"] == name and r["status"] == "ok"]
        pooled = np.concatenate([np.array(row["distances_mm"]) for row in kept])
        assert result["vertices"] == len(pooled) == sum(row["scan_vertices"] for row in kept)
        assert result["median_mm"] == round(float(np.median(pooled)), 4)
        assert result["std_mm"] == round(float(pooled.std()), 4)
        assert (result["images"], result["scored"], result["missing"]) == (6, 5, 1)
        assert sum(c["vertices"] for c in result["challenges"].values()) == len(pooled)
        curve = read_json(scored / "curves.json")[name]
        assert len(curve) == 17
        assert curve[4]["percent"] == pytest.approx(100 * np.mean(pooled <= 2.0), abs=1e-3)


def test_a_rerun_gives_the_same_bytes(inputs, scored, tmp_path):
    run(inputs, tmp_path / "again")
    for name in ("distances.parquet", "metrics.json", "curves.json"):
        assert (tmp_path / "again" / name).read_bytes() == (scored / name).read_bytes()


def test_only_new_predictions_and_scans_are_measured(tmp_path, kit, monkeypatch):
    measured = []
    once = evaluate.score_entry

    def counted(entry, *arguments):
        measured.append(entry.item_id)
        return once(entry, *arguments)

    monkeypatch.setattr(evaluate, "score_entry", counted)
    section = SECTION.model_copy(update={"protocols": ("now-metric",)})

    def again():
        measured.clear()
        run(tmp_path, tmp_path / "kept", section, work=tmp_path / "work")
        found = list(measured)
        run(tmp_path, tmp_path / "fresh", section, work=tmp_path / f"work-{len(measured)}")
        for name in ("distances.parquet", "metrics.json", "curves.json"):
            kept, fresh = (tmp_path / way / name for way in ("kept", "fresh"))
            assert kept.read_bytes() == fresh.read_bytes()
        return found

    kit.write_packed_now(tmp_path / "now")
    kit.write_predictions(tmp_path / "predictions")
    items = kit.images()
    assert again() == items
    assert again() == []
    kit.submit(tmp_path / "predictions" / "now", items[1], 2.0)
    assert again() == [items[1]]
    subject = items[0].split("/")[0]
    (shard,) = [
        path
        for path in (tmp_path / "now").glob("scans-*.parquet")
        if read_table(path)["subject_id"][0].as_py() == f"NOW/{subject}"
    ]
    (row,) = read_table(shard).to_pylist()
    row["vertices"][0] += 0.25
    write_table(table_of([row], "scans"), shard)
    assert again() == [item for item in items if item.split("/")[0] == subject]


def test_a_broken_prediction_is_a_row_and_spares_the_rest(tmp_path, kit):
    kit.write_packed_now(tmp_path / "now")
    kit.write_predictions(tmp_path / "predictions")
    items = kit.images()
    (tmp_path / "predictions" / "now" / f"{items[0]}.obj").write_text("v 1 2\n")
    (tmp_path / "predictions" / "now" / f"{items[1]}.npy").unlink()
    run(tmp_path, tmp_path / "out")
    metrics = read_json(tmp_path / "out" / "metrics.json")["protocols"]["now"]
    assert (metrics["scored"], metrics["failed"], metrics["missing"]) == (3, 2, 1)


def test_too_many_gaps_stop_the_stage_and_leave_no_output(inputs, tmp_path):
    strict = SECTION.model_copy(update={"max_unscored_fraction": 0.1})
    with pytest.raises(ValueError, match=r"at least 90% of the images, got 5 of 6 .*truncated"):
        run(inputs, tmp_path / "out", strict)
    assert not (tmp_path / "out").exists()


def test_a_subject_without_a_usable_scan_is_said(tmp_path, kit):
    kit.write_packed_now(tmp_path / "now")
    kit.write_predictions(tmp_path / "predictions")
    path = tmp_path / "now" / "scans-00001.parquet"
    row = read_table(path).to_pylist()[0]
    write_table(table_of([row | {"landmark_order": "", "landmarks": None}], "scans"), path)
    run(tmp_path, tmp_path / "out")
    rows = read_table(tmp_path / "out" / "distances.parquet").to_pylist()
    assert "seven landmarks" in next(row["reason"] for row in rows if "S_002" in row["item_id"])


def test_missing_inputs_say_what_to_run(tmp_path, kit):
    kit.write_predictions(tmp_path / "predictions")
    with pytest.raises(FileNotFoundError, match="run pack@now first"):
        run(tmp_path, tmp_path / "out")
    kit.write_packed_now(tmp_path / "now")
    (tmp_path / "predictions" / "rows.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="run reconstruct first"):
        run(tmp_path, tmp_path / "out")
    write_json({"unit": "inch"}, tmp_path / "predictions" / "meta.json")
    with pytest.raises(ValueError, match="expected a unit among m, cm, mm"):
        run(tmp_path, tmp_path / "out")


def test_committed_parameters_name_protocols_there_are(repository):
    section = load(repository / "params.yaml").evaluate
    assert set(section.protocols) <= set(PROTOCOLS)
    for name in ("now", "now-metric", "feng2018", "feng2018-metric"):
        assert name in PROTOCOLS
        assert EvaluateParams(**section.model_dump() | {"protocols": (name,)})
    with pytest.raises(ValueError, match="expected protocols among"):  # needs other landmarks
        EvaluateParams(**section.model_dump() | {"protocols": ("micc-deng",)})
    with pytest.raises(ValueError, match="expected protocols among"):
        EvaluateParams(**section.model_dump() | {"protocols": ("then",)})


def test_flags_reach_the_table(tmp_path, kit):
    kit.write_packed_now(tmp_path / "now")
    kit.write_predictions(tmp_path / "predictions")
    item = kit.images()[0]
    mirrored = kit.seven()[[3, 2, 1, 0, 4, 6, 5]] / 1000
    np.save(tmp_path / "predictions" / "now" / f"{item}.npy", mirrored)
    run(tmp_path, tmp_path / "out")
    row = read_table(tmp_path / "out" / "distances.parquet").to_pylist()[0]
    assert json.loads(row["flags"])[0].startswith("mirrored")
    assert read_json(tmp_path / "out" / "metrics.json")["protocols"]["now"]["flagged"] == 1


def test_images_beyond_the_validation_list_are_out_of_scope(tmp_path, kit):
    """Where there is no list, people without any scan are; the test scans are not public."""
    kit.write_packed_now(tmp_path / "now")
    kit.write_predictions(tmp_path / "predictions")
    path = tmp_path / "now" / "images-00000.parquet"
    rows = read_table(path).to_pylist()
    truths = evaluate.load_truths(tmp_path / "now")
    for row in rows[1:]:
        row["split"] = "test"
    write_table(table_of(rows, "images"), path)
    entries = evaluate.load_entries(tmp_path / "predictions", tmp_path / "now", truths)
    assert [entry.item_id for entry in entries] == kit.images()[:1]
    for row in rows:
        row["split"] = ""
    rows[2]["subject_id"] = "NOW/nobody"
    write_table(table_of(rows, "images"), path)
    entries = evaluate.load_entries(tmp_path / "predictions", tmp_path / "now", truths)
    assert [entry.item_id for entry in entries] == [*kit.images()[:2], *kit.images()[3:]]
