"""The register stage on packed scans."""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import pytest

from models.geometry.settings import FitSettings, QualityLimits
from stages import register as register_module
from stages.register import run as run_stage
from stages.register import summarise
from stages.runtime import params
from stages.runtime.artifacts import read_json, read_table, write_json, write_table
from stages.runtime.contracts import table_of


def run(section, compute, *, out: Path, work: Path | None = None, **inputs: Path) -> None:
    """The stage with the rows of earlier runs in a folder of the test."""
    run_stage(section, compute, out=out, work=work or out.parent / f"work-{out.name}", **inputs)


@pytest.fixture(scope="module")
def section(repository) -> params.RegisterParams:
    loaded = params.load(repository / "params.yaml").registration
    return loaded.model_copy(
        update={
            "landmarks": {"toy": params.ScanLandmarksParams(order="ibug51", edition="mica")},
            "max_failed_fraction": 0.9,
            "qa_size_px": 64,
            "qa_cell_px": 128,
        }
    )


@pytest.fixture
def compute() -> params.ComputeParams:
    return params.ComputeParams(workers=1, ray_threshold_s=1e9, object_store_mb=80)


def packed_row(item: str, vertices, faces, marks, **changes) -> dict:
    return {
        "item_id": item,
        "subject_id": f"TOY/{item.split('/')[0]}",
        "status": "ok",
        "reason": "",
        "source_path": f"{item}.obj",
        "source_sha256": "",
        "split": "",
        "attributes": "{}",
        "vertices": np.asarray(vertices, np.float32).ravel(),
        "faces": np.asarray(faces, np.int32).ravel(),
        "unit": "mm",
        "landmarks": None if marks is None else np.asarray(marks, np.float32).ravel(),
        "landmark_order": "ibug51" if marks is not None else "",
        "neutral": True,
        "capped": True,
        **changes,
    }


@pytest.fixture(scope="module")
def packed(toy, tmp_path_factory) -> Path:
    """Two good scans and one of every kind of bad one, in two shards."""
    out = tmp_path_factory.mktemp("packed") / "toy"
    vertices, faces, marks = toy.scan_of(1)
    broken = vertices.copy()
    broken[5] = np.nan
    good = [packed_row(f"s{i}/a", *toy.scan_of(i)) for i in (1, 2)]
    bad = [
        packed_row("bad/unread", [], [], None, status="failed", reason="file is truncated"),
        packed_row("bad/no-landmarks", vertices, faces, None, landmark_order=""),
        packed_row("bad/cloud", vertices, [], marks),
        packed_row("bad/empty", [], [], marks),
        packed_row("bad/nan", broken, faces, marks),
        packed_row("bad/sixty-seven", vertices, faces, np.zeros((67, 3))),
        packed_row("bad/mirrored", vertices * [1, 1, -1], faces, marks * [1, 1, -1]),
    ]
    write_table(table_of([*bad[:4], good[1]], "scans"), out / "scans-00000.parquet")
    write_table(table_of([good[0], *bad[4:]], "scans"), out / "scans-00001.parquet")
    return out


@pytest.fixture(scope="module")
def registered(section, packed, flame, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("registered") / "toy"
    compute = params.ComputeParams(workers=1, ray_threshold_s=1e9, object_store_mb=80)
    run(section, compute, packed=packed, model=flame, out=out)
    return out


def test_every_input_is_a_row_with_its_reason(registered) -> None:
    rows = {r["item_id"]: r for r in read_table(registered / "registrations.parquet").to_pylist()}
    assert list(rows) == sorted(rows)
    assert len(rows) == 9
    for item in ("s1/a", "s2/a"):
        assert rows[item]["status"] == "ok"
        assert rows[item]["reason"] == ""
        assert rows[item]["residual_median_mm"] < 0.1
        assert rows[item]["scale"] == pytest.approx(1e-3)
        assert json.loads(rows[item]["flags"]) == []
        assert len(rows[item]["vertices"]) == len(rows[item]["vertices_neutral"])
    expected = {
        "bad/unread": "truncated",
        "bad/empty": "no vertices",
        "bad/nan": "NaN",
        "bad/sixty-seven": "expected 51 landmarks of three coordinates (ibug51), got 201 numbers",
        "bad/mirrored": "mirror",
    }
    for item, words in expected.items():
        assert rows[item]["status"] == "failed"
        assert words in rows[item]["reason"]
        assert rows[item]["vertices"] is None
        assert rows[item]["score"] is None
    for item, row in rows.items():
        assert (json.loads(row["cleaning"]) == {}) == (item != "bad/cloud"), item


def test_a_point_cloud_is_meshed_and_says_so(registered) -> None:
    rows = {r["item_id"]: r for r in read_table(registered / "registrations.parquet").to_pylist()}
    row = rows["bad/cloud"]
    assert row["status"] == "ok"
    assert json.loads(row["cleaning"])["meshed_point_cloud"] > 5000
    assert row["residual_median_mm"] < 0.1
    assert 0.5 < row["score"] <= 1.0
    gap = np.subtract(row["vertices"], rows["s1/a"]["vertices"]).reshape(-1, 3)
    assert 1e3 * np.median(np.linalg.norm(gap, axis=1)) < 1.0


def test_placement_takes_the_scan_to_the_mesh(registered, toy) -> None:
    row = read_table(registered / "registrations.parquet").to_pylist()
    row = next(r for r in row if r["item_id"] == "s1/a")
    vertices, _, _ = toy.scan_of(1)
    rotation = np.reshape(row["rotation"], (3, 3))
    placed = row["scale"] * vertices @ rotation.T + row["translation"]
    mesh = np.reshape(row["vertices"], (-1, 3))
    assert np.abs(placed.mean(axis=0) - mesh[:1753].mean(axis=0)).max() < 0.01
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_a_scan_without_landmarks_is_placed_by_its_shape_or_refused(
    registered, section, compute, packed, flame, tmp_path
) -> None:
    def row_of(folder: Path) -> dict:
        rows = read_table(folder / "registrations.parquet").to_pylist()
        return next(row for row in rows if row["item_id"] == "bad/no-landmarks")

    free = row_of(registered)
    assert "no_landmarks" in json.loads(free["flags"])
    assert free["landmark_rms_mm"] is None
    strict = section.model_copy(update={"without_landmarks": False})
    run(strict, compute, packed=packed, model=flame, out=tmp_path / "out")
    refused = row_of(tmp_path / "out")
    assert refused["status"] == "failed"
    assert "has no landmarks" in refused["reason"]


def test_metrics_and_pictures(registered) -> None:
    metrics = read_json(registered / "metrics.json")
    assert metrics["counts"]["ok"] >= 2
    assert metrics["synthetic_model"] is True
    assert metrics["over_ok_scans"]["residual_median_mm"]["worst"] < 0.1
    assert set(metrics["not_ok"]) >= {"bad/nan", "bad/empty"}
    pictures = sorted(path.name for path in (registered / "qa").iterdir())
    assert "s2_a.png" in pictures


def test_same_bytes_again_and_in_one_shard(section, compute, packed, flame, registered, tmp_path):
    run(section, compute, packed=packed, model=flame, out=tmp_path / "again")
    for name in ("registrations.parquet", "metrics.json", "qa/s2_a.png"):
        one, other = registered / name, tmp_path / "again" / name
        if name == "metrics.json":
            assert read_json(one) == read_json(other)
        else:
            assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_write_the_same_bytes(section, packed, flame, registered, tmp_path, workers):
    compute = params.ComputeParams(workers=workers, ray_threshold_s=0, object_store_mb=80)
    run(section, compute, packed=packed, model=flame, out=tmp_path / "toy")
    assert_same_files(registered, tmp_path / "toy")


def assert_same_files(one: Path, other: Path) -> None:
    names = [path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file()]
    assert names == [p.relative_to(other) for p in sorted(other.rglob("*")) if p.is_file()]
    assert len(names) > 3
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """Ids of the scans that are registered from now on."""
    ids: list[str] = []
    original = register_module.register_row

    def register_row(row, *rest):
        ids.append(row["item_id"].as_py())
        return original(row, *rest)

    monkeypatch.setattr(register_module, "register_row", register_row)
    return ids


def test_one_more_subject_computes_its_scans_only_and_one_less_none(
    section, compute, packed, flame, registered, tmp_path, counted
) -> None:
    fewer = tmp_path / "fewer" / packed.name
    for shard in sorted(packed.glob("*.parquet")):
        table = read_table(shard)
        kept = [item != "s1/a" for item in table["item_id"].to_pylist()]
        write_table(table.filter(kept), fewer / shard.name)
    work = tmp_path / "work"
    run(section, compute, packed=fewer, model=flame, out=tmp_path / "before", work=work)
    assert len(counted) == 8
    counted.clear()
    run(section, compute, packed=packed, model=flame, out=tmp_path / "after", work=work)
    assert counted == ["s1/a"]
    assert_same_files(registered, tmp_path / "after")
    counted.clear()
    run(section, compute, packed=fewer, model=flame, out=tmp_path / "again", work=work)
    assert counted == []
    assert_same_files(tmp_path / "before", tmp_path / "again")
    left = b"".join(path.read_bytes() for path in work.rglob("*.rows"))
    assert b"s2/a" in left
    assert b"s1/a" not in left  # withdrawn from the cache as well


def test_a_damaged_row_is_registered_again(
    section, compute, packed, flame, registered, tmp_path, counted, caplog
) -> None:
    work = tmp_path / "work"
    run(section, compute, packed=packed, model=flame, out=tmp_path / "a", work=work)
    counted.clear()
    damaged = 0
    for segment in work.rglob("*.rows"):
        data = segment.read_bytes()
        at = data.find(b"s2/a")
        if at > 0:
            segment.write_bytes(data[:at] + b"S2/A" + data[at + 4 :])
            damaged += 1
    assert damaged >= 1
    run(section, compute, packed=packed, model=flame, out=tmp_path / "b", work=work)
    assert counted == ["s2/a"]
    assert "computed again" in caplog.text
    assert_same_files(registered, tmp_path / "b")


def test_parameters_and_model_decide_what_is_computed(
    section, compute, packed, flame, tmp_path, counted
) -> None:
    two = tmp_path / "two" / packed.name
    table = read_table(packed / "scans-00000.parquet")
    ids = table["item_id"].to_pylist()
    kept = table.filter([item in ("s2/a", "bad/empty") for item in ids])
    write_table(kept, two / "scans-00000.parquet")
    section = section.model_copy(update={"max_failed_fraction": 1.0})

    def computed(parameters, model: Path) -> int:
        counted.clear()
        out = tmp_path / "out"
        run(parameters, compute, packed=two, model=model, out=out, work=tmp_path / "work")
        return len(counted)

    assert computed(section, flame) == 2
    shown = {"qa_pictures": 0, "qa_size_px": 80, "qa_worst": 1, "qa_cell_px": 130}
    assert computed(section.model_copy(update=shown), flame) == 0
    limits = section.limits.model_copy(update={"max_q95_mm": 0.001})
    assert computed(section.model_copy(update={"limits": limits}), flame) == 2
    other = tmp_path / "flame"
    shutil.copytree(flame, other)
    assert computed(section, other) == 0  # the same content elsewhere
    write_json({"synthetic": False}, other / "meta.json")
    assert computed(section, other) == 2


def test_the_worst_have_a_page(section, compute, packed, flame, registered, tmp_path) -> None:
    rows = read_table(registered / "registrations.parquet").to_pylist()
    drawn = [row for row in rows if row["status"] != "failed"]
    page = cv2.imread(str(registered / "qa/worst.png"))
    cell = 52 + section.qa_cell_px + 28
    assert page.shape == (
        64 + -(-len(drawn) // 2) * cell,
        28 + 2 * (3 * section.qa_cell_px + 28),
        3,
    )
    none = section.model_copy(update={"qa_worst": 0, "qa_rejected": 0, "qa_pictures": 0})
    run(none, compute, packed=packed, model=flame, out=tmp_path / "none")
    rejected = [r["item_id"].replace("/", "_") for r in rows if r["status"] == "rejected"]
    assert sorted(p.stem for p in (tmp_path / "none/qa").iterdir()) == sorted(rejected)


def test_template_distances_are_stored(registered) -> None:
    table = read_table(registered / "registrations.parquet")
    assert table.schema.field("template_q95_mm").metadata[b"unit"] == b"mm"
    row = next(r for r in table.to_pylist() if r["item_id"] == "s1/a")
    assert 0 < row["template_median_mm"] < row["template_q95_mm"]
    metrics = read_json(registered / "metrics.json")["over_ok_scans"]
    assert metrics["template_median_mm"]["worst"] >= metrics["template_median_mm"]["median"] > 0


def test_too_many_failures_stop_the_stage(section, compute, packed, flame, tmp_path) -> None:
    strict = section.model_copy(update={"max_failed_fraction": 0.1})
    with pytest.raises(ValueError, match="at most 10% failed"):
        run(strict, compute, packed=packed, model=flame, out=tmp_path / "out")


def test_missing_scans_say_what_to_run(section, compute, flame, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="pack stage"):
        run(section, compute, packed=tmp_path, model=flame, out=tmp_path / "out")


def test_summary_of_nothing_ok() -> None:
    metrics = summarise([{"item_id": "a", "status": "failed", "reason": "no"}])
    assert metrics["counts"] == {"ok": 0, "rejected": 0, "failed": 1}
    assert metrics["over_ok_scans"] == {}


def test_parameters_are_the_settings_and_no_more() -> None:
    given = {*params.ScanFitParams.model_fields, *params.FitPreset.model_fields}
    assert given == {field.name for field in fields(FitSettings)}
    limits = set(params.QualityParams.model_fields)
    assert limits == {field.name for field in fields(QualityLimits)}


def rows_of(out: Path) -> dict[str, dict]:
    rows = read_table(out / "registrations.parquet").to_pylist()
    return {row["item_id"]: row for row in rows}


def few(packed: Path, folder: Path, *items: str) -> Path:
    """A data set of the same name with some of the scans."""
    out = folder / packed.name
    for shard in sorted(packed.glob("*.parquet")):
        table = read_table(shard)
        kept = [item in items for item in table["item_id"].to_pylist()]
        if any(kept):
            write_table(table.filter(kept), out / shard.name)
    return out


def declared(section, order: str, edition: str):
    points = params.ScanLandmarksParams(order=order, edition=edition)
    return section.model_copy(update={"landmarks": {"toy": points}, "max_failed_fraction": 1.0})


def test_every_data_set_of_the_graph_declares_its_landmarks(repository) -> None:
    import yaml

    graph = yaml.safe_load((repository / "dvc.yaml").read_text())["stages"]["register"]["foreach"]
    section = params.load(repository / "params.yaml").registration
    assert set(section.landmarks) == set(graph)


def test_a_data_set_that_declares_nothing_is_refused(
    section, compute, packed, flame, tmp_path
) -> None:
    silent = section.model_copy(update={"landmarks": {}})
    with pytest.raises(ValueError, match=r"register\.landmarks .* of toy are, got nothing"):
        run(silent, compute, packed=packed, model=flame, out=tmp_path / "out")


@pytest.mark.parametrize("order", ["ibug68", "now7", "none"])
def test_landmarks_in_another_order_than_declared_fail(
    section, compute, packed, flame, tmp_path, order
) -> None:
    one = few(packed, tmp_path, "s2/a")
    run(declared(section, order, "mica"), compute, packed=one, model=flame, out=tmp_path / "out")
    row = rows_of(tmp_path / "out")["s2/a"]
    assert row["status"] == "failed"
    assert f"declares, {order}, got ibug51" in row["reason"]


def test_the_edition_decides_where_the_landmarks_are(
    section, compute, packed, flame, registered, tmp_path, counted
) -> None:
    """The other edition has the brows on the ridge of the nose."""
    model = tmp_path / "flame"
    shutil.copytree(flame, model)
    with np.load(flame / "embeddings.npz") as arrays:
        faces, bary = arrays["static_faces"].copy(), arrays["static_bary"]
    faces[:10] = faces[10]
    np.savez(model / "embedding-flame-fitting.npz", static_faces=faces, static_bary=bary)
    one = few(packed, tmp_path, "s2/a")
    work = tmp_path / "work"
    own, other = declared(section, "ibug51", "mica"), declared(section, "ibug51", "flame-fitting")
    run(own, compute, packed=one, model=model, out=tmp_path / "own", work=work)
    run(other, compute, packed=one, model=model, out=tmp_path / "other", work=work)
    assert counted == ["s2/a", "s2/a"]
    was, own_row, other_row = (
        rows_of(folder)["s2/a"] for folder in (registered, tmp_path / "own", tmp_path / "other")
    )
    assert own_row["vertices"] == was["vertices"]
    assert other_row["landmark_rms_mm"] > own_row["landmark_rms_mm"] + 1.0
    stated = read_json(tmp_path / "other" / "metrics.json")["landmarks"]
    assert stated == {"order": "ibug51", "edition": "flame-fitting"}


def test_a_missing_edition_says_what_makes_it(section, compute, packed, flame, tmp_path) -> None:
    other = declared(section, "ibug51", "flame-fitting")
    with pytest.raises(FileNotFoundError, match=r"convert@flame on a folder with flame-fitting/"):
        run(other, compute, packed=packed, model=flame, out=tmp_path / "out")
