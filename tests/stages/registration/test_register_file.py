"""The function behind ``faceline register``: one scan file."""

from pathlib import Path

import numpy as np
import pytest

from stages.datasets.meshes import read_mesh, write_obj
from stages.register_file import register_scan_files
from stages.runtime.artifacts import read_json


def write_case(toy, folder: Path) -> tuple[Path, Path]:
    vertices, faces, marks = toy.scan_of(4)
    write_obj(folder / "scan.obj", vertices, faces)
    np.save(folder / "marks.npy", marks)
    return folder / "scan.obj", folder / "marks.npy"


def test_one_scan_from_files(toy, flame, tmp_path) -> None:
    scan, marks = write_case(toy, tmp_path)
    out = tmp_path / "out"
    metrics = register_scan_files(scan, marks, None, flame, out, preset="fast")
    assert metrics["status"] == "ok"
    assert metrics == read_json(out / "metrics.json")
    mesh = read_mesh(out / "mesh.obj")
    assert len(mesh.vertices) == len(toy.toy_head().v_template)
    residuals = np.load(out / "residuals.npy", allow_pickle=False)
    assert np.nanmedian(residuals) == pytest.approx(metrics["residual_median_mm"], rel=1e-5)
    with np.load(out / "parameters.npz", allow_pickle=False) as parameters:
        assert parameters["theta"].shape == (15,)
        assert parameters["beta"].shape == (14,)
    assert (out / "qa.png").stat().st_size > 1000


def test_a_dirty_file_is_cleaned_and_keeps_its_vertices(toy, flame, tmp_path) -> None:
    scan, marks = write_case(toy, tmp_path)
    clean = register_scan_files(scan, marks, None, flame, tmp_path / "clean", preset="fast")
    assert clean["cleaning"] == {}
    mesh = read_mesh(scan)
    rng = np.random.default_rng(0)
    far = np.array([900.0, 0, 0]) + rng.normal(size=(30, 3))
    junk = np.arange(30).reshape(-1, 3) + len(mesh.vertices)
    write_obj(
        scan,
        np.concatenate([mesh.vertices, far]),
        np.concatenate([mesh.faces, junk, mesh.faces[:7]]),
    )
    dirty = register_scan_files(scan, marks, None, flame, tmp_path / "dirty", preset="fast")
    assert dirty["cleaning"]["junk_faces"] == 10
    assert dirty["cleaning"]["duplicate_faces"] == 7
    assert dirty["score"] == pytest.approx(clean["score"], abs=0.01)
    residuals = [np.load(tmp_path / f"{name}/residuals.npy") for name in ("clean", "dirty")]
    assert len(residuals[1]) == len(mesh.vertices) + 30
    assert np.isnan(residuals[1][-30:]).all()
    both = np.isfinite(residuals[0]) & np.isfinite(residuals[1][:-30])
    assert both.sum() > 0.98 * np.isfinite(residuals[0]).sum()
    assert np.abs(residuals[0][both] - residuals[1][:-30][both]).max() < 0.3


def test_one_bad_scan_leaves_its_reason(toy, flame, tmp_path) -> None:
    scan, marks = write_case(toy, tmp_path)
    np.save(marks, np.load(marks) * [1, 1, -1])
    metrics = register_scan_files(scan, marks, None, flame, tmp_path / "out")
    assert metrics["status"] == "failed"
    assert "mirror" in metrics["reason"]
    assert read_json(tmp_path / "out/metrics.json") == metrics


def test_a_scan_of_one_triangle_is_refused_not_a_crash(toy, flame, tmp_path) -> None:
    scan, marks = write_case(toy, tmp_path)
    write_obj(scan, np.load(marks)[:3], np.array([[0, 1, 2]]))
    metrics = register_scan_files(scan, marks, None, flame, tmp_path / "out")
    assert metrics["status"] == "failed"
    assert "scan vertices with surface" in metrics["reason"]


def test_a_scan_that_is_no_face_has_no_residual(toy, flame, tmp_path) -> None:
    scan, marks = write_case(toy, tmp_path)
    rng = np.random.default_rng(0)
    write_obj(scan, 80 * rng.normal(size=(3000, 3)), rng.integers(0, 3000, (5000, 3)))
    metrics = register_scan_files(scan, marks, None, flame, tmp_path / "out")
    assert metrics["status"] == "rejected"
    assert metrics["residual_median_mm"] is None
    assert metrics["face_vertices"] == 0
    assert read_json(tmp_path / "out/metrics.json") == metrics


def test_missing_scan_is_named(flame, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a scan in .*none.obj"):
        register_scan_files(tmp_path / "none.obj", tmp_path / "m.npy", None, flame, tmp_path / "o")


def test_no_embedding_is_never_guessed(toy, flame, tmp_path) -> None:
    scan, marks = write_case(toy, tmp_path)
    model = flame / "model.safetensors"
    with pytest.raises(ValueError, match="landmark embedding"):
        register_scan_files(scan, marks, None, model, tmp_path / "out")


def test_unknown_preset(toy, flame, tmp_path) -> None:
    scan, marks = write_case(toy, tmp_path)
    with pytest.raises(ValueError, match="preset among"):
        register_scan_files(scan, marks, None, flame, tmp_path / "out", preset="best")
