"""The committed dvc.yaml: code deps equal import closures, and the shape the design fixes."""

import re
from pathlib import Path

import pytest

from pipelines import closure
from pipelines.dag import read_graph


def test_code_deps_of_every_stage_equal_its_import_closure(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    assert closure.differences(repository) == {}


def test_the_graph_stays_small_and_has_every_group(repository: Path) -> None:
    graph = read_graph(repository)
    # Stages are per data set and method, never per subject: DVC's own cost grows faster than their
    # number. Eight scan sets with four stages each are 32, and three methods are still to come.
    assert len(graph) <= 72
    assert {name.split("@")[0] for name in graph} == {
        "synthesize",
        "convert",
        "pack",
        "landmark_model",
        "landmarks",
        "register",
        "unify",
        "render",
        "recognizer",
        "train",
        "reconstruct",
        "evaluate",
        "report",
    }


def test_no_shell_stays_between_dvc_and_a_stage(repository: Path) -> None:
    for _, data in read_graph(repository).nodes(data=True):
        assert data["stage"].command.startswith("exec python -m stages.")


def test_every_stage_dies_with_its_parent(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    for _, data in read_graph(repository).nodes(data=True):
        module = closure.stage_module(data["stage"].command)
        assert "begin(" in Path(*module.split(".")).with_suffix(".py").read_text(), module


def test_the_report_depends_on_every_data_folder_it_reads(repository: Path) -> None:
    stage = read_graph(repository).nodes["report"]["stage"]
    read = set()
    for path in sorted((repository / "stages/reporting").glob("*.py")):
        read |= {f"data/{name}" for name in re.findall(r'\bdata / "(\w+)"', path.read_text())}
    assert "data/models" in read
    assert read <= set(stage.deps)


def test_a_command_that_is_no_stage_module_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 'python -m stages.NAME ...'"):
        closure.stage_module("bash run.sh")
