"""The command line: exit status, messages, JSON on stdout only."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from pipelines import presets
from pipelines.cli import main
from stages import params


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


def test_presets_change_values_and_keep_comments(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / "presets", tmp_path / "presets")
    shutil.copy(repository / "params.yaml", tmp_path / "params.yaml")
    assert presets.apply("tiny", tmp_path)
    assert "# Raw data sets." in (tmp_path / "params.yaml").read_text()
    params.load(tmp_path / "params.yaml")
    presets.apply("paper", tmp_path)
    assert presets.apply("demo", tmp_path)
    restored = params.load(tmp_path / "params.yaml")
    assert restored == params.load(repository / "params.yaml")
    for name in ("bench", "paper"):
        presets.apply(name, tmp_path)
        params.load(tmp_path / "params.yaml")
    with pytest.raises(FileNotFoundError, match="expected one of the presets"):
        presets.apply("huge", tmp_path)
    (tmp_path / "presets" / "odd.yaml").write_text("sede: 3\n")
    with pytest.raises(KeyError, match="names sede"):
        presets.apply("odd", tmp_path)


def test_committed_params_are_valid_and_unknown_keys_refused(
    repository: Path, tmp_path: Path
) -> None:
    params.load(repository / "params.yaml")
    text = (repository / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text + "\nsede: 3\n")
    with pytest.raises(ValueError, match="sede"):
        params.load(tmp_path / "params.yaml")


def test_clean_cache_removes_old_rows_only(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_bytes((repository / name).read_bytes())
    for name, stamp in (("old", 0.0), ("new", time.time())):
        folder = tmp_path / ".work" / "register" / name
        folder.mkdir(parents=True)
        (folder / "a.rows").write_bytes(b"")
        os.utime(folder, (stamp, stamp))
    monkeypatch.chdir(tmp_path)
    assert main(["clean-cache", "--older-than", "7"]) == 0
    assert [path.name for path in (tmp_path / ".work/register").iterdir()] == ["new"]
