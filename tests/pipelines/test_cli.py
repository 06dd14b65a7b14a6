"""The command line: exit status, messages, JSON on stdout only."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines import presets
from pipelines.cli import main
from stages.datasets.meshes import write_obj
from stages.runtime import params


def test_a_wrong_request_exits_with_two_and_says_what_to_do(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["lineage", "show", "data/x"]) == 2
    assert "expected to run inside a checkout" in caplog.text
    assert main(["score", "now", "--dataset", "d"]) == 2
    assert "expected both --dataset and --submission" in caplog.text
    assert capsys.readouterr().out == ""


def test_unknown_commands_and_options_exit_with_two() -> None:
    for arguments in (["fly"], ["run", "--engine", "steam"], []):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2


def test_run_and_lineage_on_a_small_workspace(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace)
    assert main(["run", "--json", "join@a"]) == 0
    states = {row["stage"]: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert states == {"left": "Ran", "right": "Ran", "join@a": "Ran"}
    assert main(["lineage", "show", "join_a.txt", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["stage"] == "join@a"
    assert {child["stage"] for child in document["inputs"]} == {"left", "right"}
    assert main(["lineage", "show", "join_a.txt"]) == 0
    assert "source.txt raw input" in " ".join(capsys.readouterr().out.split())
    assert main(["lineage", "verify", "join_a.txt"]) == 0
    (workspace / "left.txt").write_text("tampered")
    assert main(["lineage", "verify", "join_a.txt"]) == 1
    assert "left" in capsys.readouterr().out


def test_a_failing_stage_makes_the_run_exit_with_one(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    (workspace / "break-left.txt").write_text("always")
    assert main(["run", "left"]) == 1


def test_presets_change_values_and_keep_comments(
    repository: Path, tmp_path: Path, copy_params: Callable[[Path], None]
) -> None:
    shutil.copytree(repository / "presets", tmp_path / "presets")
    copy_params(tmp_path)
    assert presets.apply("tiny", tmp_path)
    assert "# Raw data sets." in (tmp_path / "params.yaml").read_text()
    params.load(tmp_path / "params.yaml")
    presets.apply("paper", tmp_path)
    assert presets.apply("demo", tmp_path)
    for name in ["params.yaml", *params.section_files(repository / "params.yaml").values()]:
        assert (tmp_path / name).read_text() == (repository / name).read_text()
    restored = params.load(tmp_path / "params.yaml")
    assert restored == params.load(repository / "params.yaml")
    for name in ("bench", "large", "paper"):
        presets.apply(name, tmp_path)
        params.load(tmp_path / "params.yaml")
    with pytest.raises(FileNotFoundError, match="expected one of the presets"):
        presets.apply("huge", tmp_path)
    (tmp_path / "presets" / "odd.yaml").write_text("sede: 3\n")
    with pytest.raises(KeyError, match="names sede"):
        presets.apply("odd", tmp_path)


def test_committed_params_are_valid_and_unknown_keys_refused(
    repository: Path, tmp_path: Path, copy_params: Callable[[Path], None]
) -> None:
    params.load(repository / "params.yaml")
    copy_params(tmp_path)
    text = (repository / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text + "\nsede: 3\n")
    with pytest.raises(ValueError, match="sede"):
        params.load(tmp_path / "params.yaml")


def test_clean_cache_removes_old_rows_only(
    repository: Path,
    tmp_path: Path,
    copy_params: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy_params(tmp_path)
    (tmp_path / "dvc.yaml").write_bytes((repository / "dvc.yaml").read_bytes())
    for name, stamp in (("old", 0.0), ("new", time.time())):
        folder = tmp_path / ".work" / "register" / name
        folder.mkdir(parents=True)
        (folder / "a.rows").write_bytes(b"")
        os.utime(folder, (stamp, stamp))
    monkeypatch.chdir(tmp_path)
    assert main(["clean-cache", "--older-than", "7"]) == 0
    assert [path.name for path in (tmp_path / ".work/register").iterdir()] == ["new"]


@pytest.fixture
def stirling(tmp_path: Path) -> Path:
    """One neutral scan with a nose, its seven points, two photographs, one prediction."""
    axis = np.arange(-90.0, 91.0, 6.0)
    x, y = np.meshgrid(axis, axis)
    z = 40 * np.exp(-(x**2 / 70**2 + y**2 / 90**2)) + 20 * np.exp(-(x**2 + y**2) / 20**2)
    vertices = np.stack([x, y, z], axis=-1).reshape(-1, 3)
    index = np.arange(len(axis) ** 2).reshape(len(axis), len(axis))
    a, b, c, d = (index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1])
    faces = np.concatenate([np.stack(t, -1).reshape(-1, 3) for t in ((a, b, c), (a, c, d))])
    marks = vertices[index[[19, 19, 19, 19, 10, 6, 6], [8, 12, 18, 22, 15, 11, 19]]]
    write_obj(tmp_path / "data" / "F_3D_N" / "F1001_N.obj", vertices, faces)
    rows = "".join(f"{k} {p[0]} {p[1]} {p[2]}\n" for k, p in enumerate(marks))
    (tmp_path / "data" / "F1001_N.lnd").write_text(rows)
    for name in ("HQ/F1001_001", "LQ/F1001_008"):
        path = tmp_path / "data" / f"{name}.jpg"
        path.parent.mkdir()
        path.touch()
    write_obj(tmp_path / "sub" / "HQ" / "F1001_001.obj", vertices / 1000, faces, decimals=8)
    np.save(tmp_path / "sub" / "HQ" / "F1001_001.npy", marks / 1000)
    return tmp_path


def test_a_submission_is_shown_with_what_is_missing_beside_each_score(
    stirling: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--dataset", str(stirling / "data"), "--submission", str(stirling / "sub")]
    out = ["--out", str(stirling / "out"), "--method", "ours"]
    assert main(["score", "feng2018", *folders, *out]) == 0
    lines = capsys.readouterr().out.splitlines()
    parts = {line.split()[0]: line.split()[1:5] for line in lines if line.split()}
    assert parts["all"] == ["2", "1", "1", "0"]  # images, scored, missing, failed
    assert parts["LQ"] == ["1", "0", "1", "0"]
    assert any(line.startswith("LQ/F1001_008: missing: expected") for line in lines)
    assert (stirling / "out" / "official" / "HQ" / "F1001_001_distances.txt").is_file()
    assert main(["score", "feng2018", *folders, "--set", "statistic=rmse", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["statistic"], result["scored"]) == ("rmse", 1)
    assert result["image_error_mm"] < 0.01
    assert main(["score", "feng2018", *folders, "--set", "statistic"]) == 2
    assert main(["score", "feng2018", *folders, "--set", "statistic=mode"]) == 2
    assert main(["score", "then", *folders]) == 2


def test_clean_cache_removes_the_rows_of_withdrawn_subjects(
    repository: Path,
    tmp_path: Path,
    copy_params: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from stages.runtime.row_cache import RowCache

    copy_params(tmp_path)
    (tmp_path / "dvc.yaml").write_bytes((repository / "dvc.yaml").read_bytes())
    text = (repository / "params.yaml").read_text()
    withdrawn = text.replace("takedown: []", "takedown: [LYHM/00417]")
    assert withdrawn != text
    (tmp_path / "params.yaml").write_text(withdrawn)
    cache = RowCache(tmp_path / ".work" / "pack" / "of other code")
    cache.put("aa" * 32, b"withdrawn", ["LYHM/00417"])
    cache.put("bb" * 32, b"stays", ["LYHM/00418"])
    cache.flush()
    monkeypatch.chdir(tmp_path)
    assert main(["clean-cache"]) == 0
    assert RowCache(cache.folder).get("aa" * 32) is None
    assert RowCache(cache.folder).get("bb" * 32) == b"stays"
    assert all(b"withdrawn" not in path.read_bytes() for path in cache.folder.iterdir())
