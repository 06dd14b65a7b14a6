"""Benchmarks in their owners' layouts: what is listed, read, flagged and written."""

import json
import shutil

import numpy as np
import pytest

from stages.benchmarks import scoring
from stages.benchmarks.benchmark_scores import score_benchmarks
from stages.benchmarks.layouts import layout_of, list_stirling, read_pairs
from stages.benchmarks.points import read_landmarks
from stages.benchmarks.scoring import planned, planned_scores, score_dataset, score_files
from stages.datasets.meshes import read_mesh, write_obj
from stages.runtime.artifacts import read_json, read_table, write_table
from stages.runtime.contracts import schema, table_of
from stages.runtime.params import ComputeParams
from stages.runtime.unpickle import read_npy


def lnd(points) -> str:
    return "".join(f"{k} {x} {y} {z}\n" for k, (x, y, z) in enumerate(points))


def ljson(points) -> str:
    return json.dumps({"version": 3, "groups": {"LJSON": {"landmarks": {"points": points}}}})


def sixty_eight(kit) -> np.ndarray:
    xy = np.random.default_rng(4).uniform(-55, 55, (68, 2))
    xy[[30, 27, 8]] = [[0, -5], [0, 30], [0, -70]]
    return np.column_stack([xy, kit.height(xy[:, 0], xy[:, 1])])


@pytest.fixture
def stirling(tmp_path, kit):
    """Two people with irregular names; three photographs, and a list of the scans' points."""
    root = tmp_path / "stirling"
    vertices, faces = kit.relief(4.0)
    for folder, stem in (("F_3D_N", "f1001_NH"), ("F_3D_N", "f1001_N"), ("M_3D_N", "M1002_2_N")):
        write_obj(root / folder / f"{stem}.obj", vertices, faces)
        points = root / "annotations" / folder / f"{stem.upper()}.lnd"
        points.parent.mkdir(parents=True, exist_ok=True)
        points.write_text(lnd(kit.seven()))
    for name in ("HQ/F1001_001", "LQ/F1001_008", "LQ/m1002_003", "LQ/F1003_001"):
        path = root / "Real_images__Subset_2D_FG2018" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def test_stirling_names_are_matched_by_person_and_code(stirling):
    cases = {case.item_id: case for case in list_stirling(stirling)}
    assert list(cases) == ["HQ/F1001_001", "LQ/F1001_008", "LQ/F1003_001", "LQ/m1002_003"]
    first = cases["HQ/F1001_001"]
    assert (first.subject_id, first.challenge) == ("F1001", "HQ")
    assert first.scans[0].mesh.stem == "f1001_N"  # before _NH
    assert first.scans[0].landmarks.name == "F1001_N.lnd"
    assert cases["LQ/m1002_003"].scans[0].mesh.stem == "M1002_2_N"
    assert "expected a neutral scan such as F1003_N.obj" in cases["LQ/F1003_001"].scans[0].reason


def test_feng_scores_parts_gaps_and_the_official_files(stirling, tmp_path, kit):
    submission, out = tmp_path / "s", tmp_path / "out"
    kit.submit(submission, "HQ/F1001_001", bump=1.0)
    kit.submit(submission, "F1001_008", bump=2.0)  # a flat folder will do
    kit.submit(submission, "F1003_001", bump=1.0)
    result = score_dataset("feng2018", stirling, submission, out=out)
    assert (result["images"], result["scored"]) == (4, 2)
    assert (result["missing"], result["failed"]) == (1, 1)
    assert list(result["challenges"]) == ["HQ", "LQ"]
    assert (result["challenges"]["LQ"]["scored"], result["challenges"]["LQ"]["missing"]) == (1, 1)
    table = read_table(out / "distances.parquet")
    assert table.schema.equals(schema("distances"), check_metadata=False)
    rows = {row["item_id"]: row for row in table.to_pylist()}
    good = [row for row in rows.values() if row["status"] == "ok"]
    means = [np.mean(row["distances_mm"]) for row in good]
    assert result["image_error_mm"] == pytest.approx(np.mean(means), abs=1e-4)
    assert result["image_error_std_mm"] == pytest.approx(np.std(means), abs=1e-4)
    rmse = [np.sqrt(np.mean(np.square(row["distances_mm"]))) for row in good]
    assert result["image_rmse_mm"] == pytest.approx(np.mean(rmse), abs=1e-4)
    official = np.loadtxt(out / "official" / "HQ" / "F1001_001_distances.txt")
    row = rows["HQ/F1001_001"]
    np.testing.assert_array_equal(official[:, 0], row["kept"])
    np.testing.assert_allclose(official[:, 1], row["distances_mm"], atol=1e-6)
    assert read_json(out / "scores.json") == json.loads(json.dumps(result))
    assert rows["LQ/m1002_003"]["reason"].startswith("missing: ")
    assert rows["LQ/F1003_001"]["reason"].startswith("scan: expected a neutral scan")


def test_the_stage_counts_what_was_asked_for_only(stirling, tmp_path, kit):
    predictions = tmp_path / "predictions"
    kit.submit(predictions / "stirling", "HQ/F1001_001", bump=1.0)
    blank = {"benchmark": "stirling", "challenge": "", "provider": "", "reason": ""}
    rows = [
        blank | {"item_id": "HQ/F1001_001", "subject_id": "F1001", "status": "ok"},
        blank | {"item_id": "LQ/F1001_008", "subject_id": "F1001", "status": "failed"},
    ]
    rows[1]["reason"] = "no face was found"
    write_table(table_of(rows, "predictions"), predictions / "rows.parquet")
    found, table = score_benchmarks(
        {"stirling": ("feng2018", "stirling-now"), "bu3dfe": ("bu3dfe",)},
        {"stirling": stirling, "bu3dfe": tmp_path / "nothing"},
        predictions=predictions,
        unit="m",
        thresholds_mm=np.linspace(0, 4, 5),
        compute=ComputeParams(workers=1, ray_threshold_s=1e9, object_store_mb=100),
    )
    for protocol in ("feng2018", "stirling-now"):
        facts = found["stirling"][protocol]
        assert (facts["images"], facts["scored"], facts["missing"]) == (2, 1, 1)
        assert facts["curve"][-1]["percent"] == pytest.approx(100)
        assert facts["curve"][0]["percent"] < 100
    assert "expected a submission folder" in found["bu3dfe"]["bu3dfe"]["reason"]
    assert [row["status"] for row in table] == ["ok", "failed", "ok", "failed"]
    assert table_of(table, "distances").num_rows == 4


def test_plans_measured_together_are_those_measured_alone(stirling, tmp_path, kit):
    submission = tmp_path / "s"
    kit.submit(submission, "HQ/F1001_001", bump=1.0)
    kit.submit(submission, "LQ/F1001_008", bump=2.0)
    mesh = read_mesh(submission / "LQ" / "F1001_008.obj")  # metres declared as millimetres, once
    write_obj(submission / "LQ" / "F1001_008.obj", mesh.vertices / 1000, mesh.faces, decimals=12)
    marks = np.load(submission / "LQ" / "F1001_008.npy")
    np.save(submission / "LQ" / "F1001_008.npy", marks / 1000)
    names = ("feng2018", "stirling-now-metric")
    plans = [planned(name, stirling, submission) for name in names]
    globally = planned("stirling-now", stirling, submission, options={"scale": "global"})
    nothing = planned("feng2018", stirling, submission, among=())
    *together, scaled, none = planned_scores([*plans, globally, nothing])
    for name, found in zip(names, together, strict=True):
        alone = score_dataset(name, stirling, submission)
        assert json.dumps(found[0]) == json.dumps(alone)
        assert (alone["scored"], alone["flagged"]) == (2, 1)
        assert alone["per_image"][1]["flags"][0].startswith("scale: ")
    assert scaled[0]["global_scale_mm_per_unit"] > 0
    assert none == "expected images to score, got none of the benchmark's"


def test_stirling_by_now_pools_and_takes_a_list_of_images(stirling, tmp_path, kit):
    submission = tmp_path / "s"
    kit.submit(submission, "HQ/F1001_001", bump=1.0)
    listed = tmp_path / "list.txt"
    listed.write_text("HQ/F1001_001.jpg\n")
    result = score_dataset("stirling-now", stirling, submission, images=listed)
    assert (result["images"], result["scored"], result["missing"]) == (1, 1, 0)
    single = score_files(
        "now",
        stirling / "F_3D_N" / "f1001_N.obj",
        stirling / "annotations" / "F_3D_N" / "F1001_N.lnd",
        submission / "HQ" / "F1001_001.obj",
        submission / "HQ" / "F1001_001.npy",
    )
    assert result["mean_mm"] == pytest.approx(single["mean_mm"], abs=1e-4)


@pytest.fixture
def micc(tmp_path, kit):
    """Two people: one with two scans and menpo landmarks, one with a line of nose_tips.csv."""
    root = tmp_path / "micc"
    vertices, faces = kit.relief(4.0)
    points = sixty_eight(kit)
    for person, view, shift in (
        ("subject_01", "frontal1", 0.0), ("subject_01", "frontal2", 3.0),
        ("subject_02", "frontal1", 0.0),
    ):  # fmt: skip
        folder = root / person / "Model" / view / "obj"
        bumped = vertices + [0.0, 0.0, shift] * np.exp(-((vertices[:, :1] - 25) ** 2) / 400)
        write_obj(folder / "110920150452.obj", bumped, faces)
        if person == "subject_01":
            path = root / "MICC_landmarks" / person / "Model" / view / "obj" / "110920150452.ljson"
            path.parent.mkdir(parents=True)
            path.write_text(ljson(points.tolist()))
    x, y, z = points[30]
    (root / "nose_tips.csv").write_text(f"subject,x,y,z\nsubject_02,{x},{y},{z}\n")
    return root


def put(folder, item, vertices, faces, marks):
    write_obj(folder / f"{item}.obj", vertices, faces, decimals=8)
    np.save(folder / f"{item}.npy", marks)


def test_micc_settings_landmarks_and_the_better_of_two_scans(micc, tmp_path, kit):
    vertices, faces = kit.relief(5.0)
    points = sixty_eight(kit)
    submission = tmp_path / "s"
    put(submission, "subject_01/PTZ-Indoor", vertices / 1000, faces, points / 1000)
    put(submission, "subject_02/PTZ-Indoor", vertices / 1000, faces, points[30:31] / 1000)
    result = score_dataset("micc-ganfit", micc, submission)
    assert (result["images"], result["scored"], result["missing"]) == (6, 2, 4)
    assert list(result["challenges"]) == ["Indoor-Cooperative", "PTZ-Indoor", "PTZ-Outdoor"]
    assert result["challenges"]["PTZ-Indoor"]["missing"] == 0
    assert result["challenges"]["PTZ-Outdoor"]["missing"] == 2
    one = next(e for e in result["per_image"] if e["item_id"] == "subject_01/PTZ-Indoor")
    files = [
        score_files(
            "micc-ganfit",
            micc / "subject_01" / "Model" / view / "obj" / "110920150452.obj",
            micc / "MICC_landmarks" / "subject_01" / "Model" / view / "obj" / "110920150452.ljson",
            submission / "subject_01" / "PTZ-Indoor.obj",
            submission / "subject_01" / "PTZ-Indoor.npy",
        )["error_mm"]
        for view in ("frontal1", "frontal2")
    ]
    assert files[0] < files[1]
    assert one["error_mm"] == pytest.approx(min(files), abs=1e-9)
    deng = score_dataset("micc-deng", micc, submission)
    assert deng["statistic"] == "rmse"
    assert deng["scored"] == 2
    genova = score_dataset("micc-genova", micc, submission, options={"scale": "global"})
    assert genova["global_scale_mm_per_unit"] == pytest.approx(1000, rel=0.02)


def test_micc_falls_back_to_the_second_scan(micc, tmp_path, kit):
    vertices, faces = kit.relief(5.0)
    submission = tmp_path / "s"
    put(submission, "subject_01/PTZ-Indoor", vertices, faces, sixty_eight(kit))
    bad = micc / "subject_01" / "Model" / "frontal1" / "obj" / "110920150452.obj"
    bad.write_text("v nan 0 0\nf 1 1 1\n")
    result = score_dataset("micc-deng", micc, submission, "mm")
    entry = next(e for e in result["per_image"] if e["item_id"] == "subject_01/PTZ-Indoor")
    assert entry["status"] == "ok"
    shutil.rmtree(micc / "subject_01" / "Model" / "frontal2")
    result = score_dataset("micc-deng", micc, submission, "mm")
    entry = next(e for e in result["per_image"] if e["item_id"] == "subject_01/PTZ-Indoor")
    assert entry["status"] == "failed"
    assert "NaN" in entry["reason"]


def test_facewarehouse_in_decimetres_by_pairs(tmp_path, kit):
    vertices, faces = kit.relief(6.0)
    root, submission = tmp_path / "fw", tmp_path / "s"
    for pose in (0, 10, 2):
        write_obj(root / "Tester_1" / "TrainingPose" / f"pose_{pose}.obj", vertices / 100, faces)
    chosen = np.arange(0, len(vertices), 5)
    one = np.array([[0, 1, 2]])
    write_obj(submission / "Tester_1" / "pose_2.obj", vertices[chosen] / 1000, one)
    pairs = np.column_stack([np.arange(len(chosen)), chosen])
    np.savetxt(root / "correspondence.txt", pairs, fmt="%d")
    result = score_dataset("facewarehouse", root, submission)
    assert [entry["item_id"] for entry in result["per_image"]] == [
        "Tester_1/pose_0", "Tester_1/pose_2", "Tester_1/pose_10",
    ]  # fmt: skip
    assert (result["scored"], result["missing"], result["flagged"]) == (1, 2, 0)
    assert result["image_error_mm"] < 1e-3
    (root / "correspondence.txt").write_text("0.5 1\n")
    result = score_dataset("facewarehouse", root, submission)
    assert "whole vertex numbers" in result["unscored"][1]["reason"]


def test_bu3dfe_reads_vrml_and_needs_a_nose_tip(tmp_path, kit):
    root, submission = tmp_path / "bu", tmp_path / "s"
    vertices, faces = kit.relief(5.0)
    points = ", ".join(f"{x:.5f} {y:.5f} {z:.5f}" for x, y, z in vertices)
    corners = ", ".join(f"{a}, {b}, {c}, -1" for a, b, c in faces)
    text = (
        "#VRML V2.0 utf8\nShape { geometry IndexedFaceSet { coord Coordinate { point [ "
        f"{points} ] }} coordIndex [ {corners} ] }} }}\n"
    )
    for person in ("F0001", "F0002"):
        (root / person).mkdir(parents=True)
        (root / person / f"{person}_NE00WH_RAW.wrl").write_text(text)
    tip = sixty_eight(kit)[30]
    (root / "nose_tips.csv").write_text("subject,x,y,z\nF0001,{},{},{}\n".format(*tip))
    for person in ("F0001", "F0002"):
        put(submission, person, vertices, faces, tip[None])
    result = score_dataset("bu3dfe", root, submission, "mm")
    assert (result["scored"], result["failed"]) == (1, 1)
    assert result["image_error_mm"] < 1e-3
    assert "nose_tips.csv" in result["unscored"][0]["reason"]


def test_now_official_files_are_what_the_public_code_reads(tmp_path, kit):
    data, submission, out = tmp_path / "now", tmp_path / "s", tmp_path / "out"
    kit.write_now_raw(data)
    for item in kit.images()[:4]:
        kit.submit(submission, item, bump=1.0)
    result = score_dataset("now-metric", data, submission, out=out, method="ours")
    content = read_npy(out / "official" / "ours_metrical_computed_distances.npy")
    assert content["num_missing_files"] == 2
    pooled = np.hstack(content["computed_distances"])
    assert len(content["input_files"]) == 4
    assert (len(pooled), result["median_mm"]) == (result["vertices"], round(np.median(pooled), 4))
    part = read_npy(out / "official" / "ours_metrical_computed_distances_selfie.npy")
    assert len(part["computed_distances"]) == 1


def test_how_images_are_shared_out_changes_no_byte(tmp_path, kit, monkeypatch):
    data, submission = tmp_path / "now", tmp_path / "s"
    kit.write_now_raw(data)
    for item in kit.images():
        kit.submit(submission, item, bump=1.0)
    for images_per_task in (1, 16):
        monkeypatch.setattr(scoring, "IMAGES_PER_TASK", images_per_task)
        score_dataset("now", data, submission, out=tmp_path / str(images_per_task))
    for name in ("distances.parquet", "scores.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "16" / name).read_bytes()


def test_everything_wrong_at_once_spares_the_rest(tmp_path, kit):
    """One submission with every bad input; one good image; a subject without a scan."""
    data, submission = tmp_path / "now", tmp_path / "s"
    kit.write_now_raw(data)
    names = (
        "good", "coloured", "flat", "six", "swapped", "unit", "posed", "nan", "empty", "absent",
    )  # fmt: skip
    items = [f"FaMoS_001/selfie/{name}" for name in names] + ["FaMoS_009/selfie/lost"]
    (data / "imagepathsvalidation.txt").write_text("".join(f"{item}.jpg\n" for item in items))
    for item in items:
        kit.submit(submission, item, bump=1.0)
    vertices, faces = kit.relief(6.0, bump=1.0)
    base = submission / "FaMoS_001" / "selfie"
    paint = np.full((len(vertices), 3), 128, np.uint8)
    write_obj(base / "coloured.obj", vertices / 1000, faces, paint, decimals=8)
    write_obj(base / "flat.obj", vertices / 1000, np.vstack([faces, [[1, 1, 2]]]), decimals=8)
    np.save(base / "six.npy", kit.seven()[:6] / 1000)
    np.save(base / "swapped.npy", kit.seven()[[3, 2, 1, 0, 4, 6, 5]] / 1000)
    kit.submit(submission, "FaMoS_001/selfie/unit", bump=1.0, unit_mm=10.0)
    turned = vertices[:, [2, 1, 0]] * [-1, 1, 1] / 1000  # a quarter turn, landmarks left behind
    write_obj(base / "posed.obj", turned, faces, decimals=8)
    (base / "nan.obj").write_text("v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (base / "empty.obj").write_text("")
    (base / "absent.obj").unlink()
    result = score_dataset("now-metric", data, submission)
    found = {entry["item_id"].split("/")[-1]: entry for entry in result["per_image"]}
    assert found["good"]["status"] == "ok"
    assert found["good"]["flags"] == []
    for name, flag in (
        ("coloured", "coloured"), ("flat", "degenerate"), ("swapped", "mirrored"),
        ("unit", "scale"), ("posed", "landmarks"),
    ):  # fmt: skip
        assert found[name]["status"] == "ok"
        assert [f.split(":")[0] for f in found[name]["flags"]].count(flag) == 1, found[name]
    for name, reason in (
        ("six", r"expected 7 landmarks"), ("nan", "NaN"), ("empty", "empty"),
        ("lost", "expected one .obj"),
    ):  # fmt: skip
        assert found[name]["status"] == "failed"
        assert reason in found[name]["reason"]
    assert found["absent"]["status"] == "missing"
    assert (result["scored"], result["failed"], result["missing"]) == (6, 4, 1)
    for name in ("coloured", "flat"):
        assert found[name]["median_mm"] == pytest.approx(found["good"]["median_mm"], abs=1e-6)


def test_landmarks_as_lnd_and_ljson(tmp_path, kit):
    (tmp_path / "a.lnd").write_text(lnd(kit.seven()))
    np.testing.assert_array_equal(read_landmarks(tmp_path / "a.lnd"), kit.seven())
    shuffled = [3, 1, 0, 2, 6, 5, 4]
    rows = "".join(f"{k} {' '.join(map(repr, map(float, kit.seven()[k])))}\n" for k in shuffled)
    (tmp_path / "b.lnd").write_text(rows)
    np.testing.assert_array_equal(read_landmarks(tmp_path / "b.lnd", "name"), kit.seven())
    points = sixty_eight(kit)
    (tmp_path / "c.ljson").write_text(ljson(points.tolist()))
    np.testing.assert_array_equal(read_landmarks(tmp_path / "c.ljson", counts=(1, 68)), points)
    (tmp_path / "d.ljson").write_text(json.dumps({"landmarks": {"points": points.tolist()}}))
    np.testing.assert_array_equal(read_landmarks(tmp_path / "d.ljson", counts=(68,)), points)
    with pytest.raises(ValueError, match="expected 7 landmarks"):
        read_landmarks(tmp_path / "c.ljson")
    (tmp_path / "e.ljson").write_text("[]")
    with pytest.raises(ValueError, match="expected menpo landmarks"):
        read_landmarks(tmp_path / "e.ljson", counts=(68,))


def test_pairs_files(tmp_path):
    np.save(tmp_path / "region.npy", np.array([4, 7, 9]))
    for side in read_pairs(tmp_path / "region.npy"):
        np.testing.assert_array_equal(side, [4, 7, 9])
    (tmp_path / "pairs.txt").write_text("0 5\n1, 6\n")
    ours, theirs = read_pairs(tmp_path / "pairs.txt")
    np.testing.assert_array_equal([ours, theirs], [[0, 1], [5, 6]])
    (tmp_path / "pairs.txt").write_text("0 x\n")
    with pytest.raises(ValueError, match="expected rows of vertex numbers"):
        read_pairs(tmp_path / "pairs.txt")
    with pytest.raises(FileNotFoundError, match="expected pairs of vertices"):
        read_pairs(tmp_path / "absent.npy")


def test_every_protocol_has_a_layout():
    from models.metrics import PROTOCOLS

    for name, protocol in PROTOCOLS.items():
        counts = {"seven": (7,), "nose-tip": (1, 51, 68), "correspondence": ()}
        assert layout_of(name).counts == counts[protocol.landmarks]
