"""Stage render: records, index, failures, determinism; one sample's pictures."""

import json

import cv2
import numpy as np
import pytest
import scipy.io
from safetensors.numpy import save_file

from models.face.morphable import LinearModel
from models.rendering.pncc import PnccRenderer, Sample, project_300w_lp
from models.rendering.pncc_codec import STEP_MM
from stages import export_png16, render
from stages.render import run as run_stage
from stages.render_sample import load_sample_model, render_sample_files
from stages.rendered import RenderedSet
from stages.runtime import row_cache
from stages.runtime.artifacts import read_json, write_json, write_table
from stages.runtime.contracts import schema, table_of
from stages.runtime.params import ComputeParams, RenderParams

SIZE = 64
COMPUTE = ComputeParams(workers=1, ray_threshold_s=100, object_store_mb=100)
PARAMS = RenderParams(
    shards=3,
    on_the_fly=False,
    max_failed_fraction=0.6,
    max_landmark_error=0.1,
    seconds_per_item=0.01,
    previews=2,
    preview_px=64,
)


def run(p, compute, *, out, work=None, **inputs):
    """The stage with records kept beside its output, unless told otherwise."""
    run_stage(p, compute, out=out, work=work or out.parent / f"work-{out.name}", **inputs)


def face_arrays(side=20, modes=6, expressions=4):
    """A bulging sheet in micrometres."""
    rng = np.random.default_rng(0)
    u, v = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    mean = np.stack([80e3 * u, 100e3 * v, 90e3 * (1 - 0.5 * (u**2 + v**2))], -1).reshape(-1, 3)
    waves = rng.uniform(0.5, 2, (2, modes + expressions))
    field = np.sin(u[..., None] * waves[0] + v[..., None] * waves[1]).reshape(side**2, 1, -1)
    field = (field * rng.normal(size=(1, 3, modes + expressions))).astype(np.float32)
    corner = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).reshape(-1)
    faces = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + side], 1),
            np.stack([corner + side, corner + 1, corner + side + 1], 1),
        ]
    )
    return {
        "mean_shape": mean.astype(np.float32),
        "shape_basis": np.ascontiguousarray(1e-2 * field[..., :modes]),
        "shape_sigma": np.full(modes, 3e5, np.float32),
        "mean_expression": np.zeros((side**2, 3), np.float32),
        "expression_basis": np.ascontiguousarray(1e3 * field[..., modes:]),
        "expression_sigma": np.ones(expressions, np.float32),
        "faces": faces.astype(np.int64),
        "keypoints": np.arange(68) * 5,
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_file(face_arrays(), folder / "model.safetensors")
    write_json({"kind": "3ddfa", "unit_m": 1e-6, "synthetic": True}, folder / "meta.json")
    return folder


def packed_row(index, **changes):
    rng = np.random.default_rng(index)
    image = cv2.imencode(".png", rng.integers(0, 255, (SIZE, SIZE, 3), np.uint8))[1].tobytes()
    row = {
        "item_id": f"AFW/face_{index:02d}",
        "subject_id": f"300W_LP/face_{index // 2}",
        "status": "ok",
        "reason": "",
        "source_path": "",
        "source_sha256": "",
        "split": "train",
        "attributes": "{}",
        "image": image,
        "height_px": SIZE,
        "width_px": SIZE,
        "landmark_order": "",
        "shape_para": rng.normal(size=6) * 2e5,
        "exp_para": rng.normal(size=4),
        "pose_para": [*rng.uniform(-0.4, 0.4, 3), 32.0, 32.0, 0.0, 2.4e-4],
    }
    return {**row, **changes}


def pack(folder, rows):
    half = len(rows) // 2
    for number, part in enumerate((rows[half:], rows[:half])):
        write_table(table_of(part, "images"), folder / f"images-{number:05d}.parquet")
    return folder


@pytest.fixture(scope="module")
def rows():
    return [packed_row(index) for index in range(7)]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory, model, rows):
    packed = pack(tmp_path_factory.mktemp("packed"), rows)
    out = tmp_path_factory.mktemp("out") / "300w_lp"
    run(PARAMS, COMPUTE, packed=packed, model=model, out=out)
    return out


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_photograph_is_stored_within_half_a_step(rendered, model, rows):
    stored = RenderedSet.open(rendered)
    assert stored.item_ids == [row["item_id"] for row in rows]
    renderer = PnccRenderer(LinearModel.load(model), 1e-6)
    for row in rows:
        sample = Sample(row["shape_para"], row["exp_para"], np.array(row["pose_para"]), SIZE, SIZE)
        drawn = renderer.render([sample])[0]
        maps = stored.maps(row["item_id"])
        assert maps.mask.sum() > 400
        np.testing.assert_array_equal(maps.mask, drawn.mask)
        np.testing.assert_allclose(maps.pncc_mm, drawn.pncc_mm, atol=0.51 * STEP_MM)
        np.testing.assert_allclose(maps.offset_mm, drawn.offset_mm, atol=0.51 * STEP_MM)


def test_index_meta_and_previews(rendered, rows):
    stored = RenderedSet.open(rendered)
    assert list(next(iter(stored.rows.values()))) == list(schema("rendered").names)
    assert stored.meta["synthetic"] is True
    assert stored.meta["failed"] == 0
    row = next(iter(stored.rows.values()))
    with (rendered / row["shard"]).open("rb") as file:
        file.seek(row["offset"])
        assert file.read(4).decode() == stored.meta["encoding"]
    assert stored.meta["flagged"] == 0
    assert row["landmark_error"] is None  # these photographs have no landmarks
    previews = sorted((rendered / "preview").glob("*.png"))
    assert [path.stem for path in previews] == ["AFW_face_00", "AFW_face_06"]
    assert cv2.imread(str(previews[0])).shape == (64, 192, 3)


def test_bytes_depend_on_nothing_but_the_content(rendered, tmp_path, model, rows):
    packed = pack(tmp_path / "packed", rows[::-1])
    run(PARAMS, COMPUTE, packed=packed, model=model, out=tmp_path / "again")
    assert contents(tmp_path / "again") == contents(rendered)


def test_one_more_subject_changes_only_its_shard(rendered, tmp_path, model, rows):
    extra = packed_row(20, subject_id="300W_LP/other")
    packed = pack(tmp_path / "packed", [*rows, extra])
    run(PARAMS, COMPUTE, packed=packed, model=model, out=tmp_path / "more")
    before, after = contents(rendered), contents(tmp_path / "more")
    changed = {name for name in after if name.endswith(".pncc") and after[name] != before.get(name)}
    assert changed == {RenderedSet.open(tmp_path / "more").rows["AFW/face_20"]["shard"]}
    stored = RenderedSet.open(tmp_path / "more")
    for row in rows:
        old = RenderedSet.open(rendered).maps(row["item_id"])
        np.testing.assert_array_equal(stored.maps(row["item_id"]).pncc_mm, old.pncc_mm)


def test_only_what_is_new_is_drawn(tmp_path, model, rows, monkeypatch):
    drawn = []
    draw = render._draw

    def counted(packed, folder):
        drawn.extend(row["item_id"] for row in packed)
        return draw(packed, folder)

    monkeypatch.setattr(render, "_draw", counted)
    work = tmp_path / "work"

    def again(name, items):
        packed = pack(tmp_path / name / "packed", items)
        drawn.clear()
        run(PARAMS, COMPUTE, packed=packed, model=model, out=tmp_path / name / "a", work=work)
        found = list(drawn)
        run(PARAMS, COMPUTE, packed=packed, model=model, out=tmp_path / name / "b")
        assert contents(tmp_path / name / "a") == contents(tmp_path / name / "b")
        return found

    assert len(again("first", [*rows, packed_row(31, pose_para=None)])) == 8
    extra = packed_row(20, subject_id="300W_LP/other")
    assert again("one more", [*rows, extra, packed_row(31, pose_para=None)]) == ["AFW/face_20"]
    assert again("one less", rows) == []
    changed = packed_row(0, exp_para=np.ones(4))
    assert again("another", [changed, *rows[1:]]) == ["AFW/face_00"]
    kept = b"".join(path.read_bytes() for path in work.glob("render/*/*.rows"))
    assert kept
    assert row_cache.purge(["300W_LP/face_3"], work) == 1


def test_failures_are_rows_and_the_rest_is_unharmed(tmp_path, model, rows):
    nan = np.array(rows[0]["shape_para"])
    nan = np.where(np.arange(6) == 2, np.nan, nan)
    bad = [
        packed_row(30, status="failed", reason="truncated image", image=None),
        packed_row(31, pose_para=None),
        packed_row(32, shape_para=np.zeros(199)),
        packed_row(33, shape_para=nan),
        packed_row(34, shape_para=np.full(6, 1e8)),
        packed_row(35, pose_para=[0, 0, 0, -500.0, 0, 0, 2e-4]),
    ]
    packed = pack(tmp_path / "packed", [*rows, *bad])
    run(PARAMS, COMPUTE, packed=packed, model=model, out=tmp_path / "out")
    stored = RenderedSet.open(tmp_path / "out")
    reasons = {item: row["reason"] for item, row in stored.rows.items() if row["status"] != "ok"}
    assert reasons["AFW/face_30"] == "not packed: truncated image"
    assert "pose_para" in reasons["AFW/face_31"]
    assert "199 coefficients" in reasons["AFW/face_32"]
    assert "not finite" in reasons["AFW/face_33"]
    assert "another model" in reasons["AFW/face_34"]
    assert "outside the photograph" in reasons["AFW/face_35"]
    assert len(reasons) == 6
    assert stored.maps("AFW/face_00").mask.any()
    with pytest.raises(ValueError, match="was not rendered"):
        stored.maps("AFW/face_31")
    strict = PARAMS.model_copy(update={"max_failed_fraction": 0.2})
    with pytest.raises(RuntimeError, match="6 of 13 photographs failed"):
        run(strict, COMPUTE, packed=packed, model=model, out=tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_on_the_fly_stores_an_index_alone(tmp_path, model, rows):
    packed = pack(tmp_path / "packed", [*rows, packed_row(31, pose_para=None)])
    run(
        PARAMS.model_copy(update={"on_the_fly": True, "previews": 0}),
        COMPUTE,
        packed=packed,
        model=model,
        out=tmp_path / "out",
    )
    assert set(contents(tmp_path / "out")) == {"index.parquet", "meta.json"}
    stored = RenderedSet.open(tmp_path / "out")
    assert len(stored.item_ids) == 7
    with pytest.raises(ValueError, match="on_the_fly"):
        stored.maps("AFW/face_00")


def test_missing_inputs_say_what_to_run(tmp_path, model):
    with pytest.raises(FileNotFoundError, match="pack stage"):
        run(PARAMS, COMPUTE, packed=tmp_path, model=model, out=tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="render stage"):
        RenderedSet.open(tmp_path)


def write_sample(folder, **changes):
    row = packed_row(1)
    (folder / "face.png").write_bytes(row["image"])
    pose = np.array([row["pose_para"]], dtype=np.float32)
    pixels = project_300w_lp(
        LinearModel(**face_arrays()).shape(row["shape_para"], row["exp_para"])[np.arange(68) * 5],
        pose[0].astype(np.float64),
        SIZE,
    )
    content = {
        "Shape_Para": row["shape_para"][:, None],
        "Exp_Para": row["exp_para"][:, None],
        "Pose_Para": pose,
        "pt2d": pixels.T + 0.5,
    }
    content.update(changes)
    kept = {name: value for name, value in content.items() if value is not None}
    scipy.io.savemat(folder / "face.mat", kept)
    return folder / "face.mat"


def test_one_sample_to_pictures(tmp_path, model):
    report = render_sample_files(write_sample(tmp_path), model, tmp_path / "out")
    assert report["landmarks_compared"] == 51  # the jaw of pt2d is a silhouette
    assert report["landmark_error_px"] < 1e-3
    assert report["note"] == ""
    names = {"pncc.png", "offset.png", "overlay.png", "pncc_16.png", "offset_16.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*names, "report.json"}
    deep = cv2.imread(str(tmp_path / "out" / "pncc_16.png"), cv2.IMREAD_UNCHANGED)
    assert deep.dtype == np.uint16
    sample = Sample(
        np.asarray(packed_row(1)["shape_para"]),
        np.asarray(packed_row(1)["exp_para"]),
        np.array(packed_row(1)["pose_para"], np.float32).astype(np.float64),
        SIZE,
        SIZE,
    )
    drawn = PnccRenderer(LinearModel.load(model), 1e-6).render([sample])[0]
    lengths = (deep[..., ::-1] - 1.0) * report["step_16_mm"] + report["origin_16_mm"][:3]
    np.testing.assert_array_equal(deep.any(axis=2), drawn.mask)
    np.testing.assert_allclose(lengths[drawn.mask], drawn.pncc_mm[drawn.mask], atol=0.0021)


def test_bad_samples_are_explained(tmp_path, model):
    for name in ("Pose_Para", "Shape_Para", "Exp_Para"):
        with pytest.raises(ValueError, match=f"no {name}"):
            render_sample_files(write_sample(tmp_path, **{name: None}), model, tmp_path / "out")
    flat, big = np.zeros((1, 7), np.float32), np.zeros((199, 1))
    with pytest.raises(ValueError, match="scale"):
        render_sample_files(write_sample(tmp_path, Pose_Para=flat), model, tmp_path / "out")
    with pytest.raises(ValueError, match="identity directions"):
        render_sample_files(write_sample(tmp_path, Shape_Para=big), model, tmp_path / "out")
    sample = write_sample(tmp_path)
    (tmp_path / "face.mat").write_bytes(b"MATLAB 5.0 MAT-file nonsense")
    with pytest.raises(ValueError, match="not a readable"):
        render_sample_files(sample, model, tmp_path / "out")
    sample = write_sample(tmp_path)
    (tmp_path / "face.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match="decodes"):
        render_sample_files(sample, model, tmp_path / "out")
    (tmp_path / "face.png").unlink()
    with pytest.raises(FileNotFoundError, match="photograph"):
        render_sample_files(sample, model, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors.*Model_Shape\.mat"):
        load_sample_model(tmp_path)
    assert not (tmp_path / "out").exists()


def test_real_sample_through_the_command(shared_data, tmp_path):
    folder = shared_data / "real_300wlp"
    report = render_sample_files(folder / "IBUG_image_008_1_0.mat", folder, tmp_path / "ibug")
    assert "mean face is drawn" in report["note"]
    assert 0.15 < report["covered_fraction"] < 0.3
    assert report["landmark_error_px"] < 5.0  # inner points, 40 + 10 of 199 + 29 directions
    report = render_sample_files(folder / "image00516.mat", folder, tmp_path / "aflw")
    assert report["landmark_error_px"] < 0.3
    assert report["landmarks_compared"] == 68


def test_four_workers_write_the_bytes_of_one(rendered, tmp_path, model, rows):
    """Whole folder, bit for bit, through Ray."""
    pytest.importorskip("ray")
    several = ComputeParams(workers=4, ray_threshold_s=0, object_store_mb=100)
    packed = pack(tmp_path / "packed", rows)
    run(PARAMS, several, packed=packed, model=model, out=tmp_path / "four")
    assert contents(tmp_path / "four") == contents(rendered)


@pytest.mark.parametrize("on_the_fly", [False, True])
def test_labels_that_disagree_are_flagged(tmp_path, model, rows, on_the_fly):
    """The contour may follow the silhouette; the inner points may not lie elsewhere."""
    renderer = PnccRenderer(LinearModel.load(model), 1e-6)
    moves = [np.zeros(2), np.array([15.0, -10.0]), np.full(2, np.nan)]
    labelled = []
    for row, move in zip(rows[:3], moves, strict=True):
        sample = Sample(row["shape_para"], row["exp_para"], np.array(row["pose_para"]), SIZE, SIZE)
        points = renderer.keypoints_px(sample) + move
        own = LinearModel.load(model).shape(sample.shape, sample.expression)[:340:5]
        expected = project_300w_lp(own, sample.pose, SIZE)
        np.testing.assert_allclose(points - move, expected + 0 * move, atol=2e-4)
        points[:17] += 9.0
        labelled.append({**row, "landmark_order": "ibug68", "landmarks_px": points.ravel()})
    packed = pack(tmp_path / "packed", [*labelled, rows[3]])
    params = PARAMS.model_copy(update={"on_the_fly": on_the_fly})
    run(params, COMPUTE, packed=packed, model=model, out=tmp_path / "out")
    stored = RenderedSet.open(tmp_path / "out")
    found = [stored.rows[row["item_id"]] for row in rows[:4]]
    assert [row["status"] for row in found] == ["ok"] * 4
    flag = json.dumps(["landmarks far from the posed model's"])
    assert [row["flags"] for row in found] == ["[]", flag, flag, "[]"]
    assert stored.meta["flagged"] == 2
    assert found[0]["landmark_error"] < 1e-4
    posed = project_300w_lp(
        LinearModel.load(model).shape(rows[1]["shape_para"], rows[1]["exp_para"])[85:340:5],
        np.array(rows[1]["pose_para"]),
        SIZE,
    )
    extent = np.ptp(posed, axis=0).max()
    assert found[1]["landmark_error"] == pytest.approx(np.hypot(15, 10) / extent, rel=1e-4)
    assert found[3]["landmark_error"] is None


def test_png16_holds_every_length_of_the_records(rendered, tmp_path, rows):
    stored = RenderedSet.open(rendered)
    assert export_png16.run(rendered=rendered, out=tmp_path / "all") == len(rows)
    told = read_json(tmp_path / "all/encoding.json")
    assert told["items"] == stored.item_ids
    for item in told["items"]:
        maps = stored.maps(item)
        for name in ("pncc", "offset"):
            path = tmp_path / "all" / f"{item}_{name}.png"
            values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[..., ::-1]
            assert values.dtype == np.uint16
            np.testing.assert_array_equal((values > 0).all(axis=2), maps.mask)
            lengths = told[f"{name}_origin_mm"] + (values - 1.0) * told["step_mm"]
            expected = getattr(maps, f"{name}_mm")
            np.testing.assert_array_equal(lengths[maps.mask], expected[maps.mask])
    shard = stored.rows[rows[0]["item_id"]]["shard"]
    some = export_png16.run(rendered=rendered, out=tmp_path / "one", shard=shard)
    assert 0 < some < len(rows)
    one = tmp_path / "one" / f"{rows[0]['item_id']}_pncc.png"
    assert one.read_bytes() == (tmp_path / "all" / f"{rows[0]['item_id']}_pncc.png").read_bytes()
    with pytest.raises(ValueError, match="found none; it has"):
        export_png16.run(rendered=rendered, out=tmp_path / "none", shard="maps-99.pncc")
