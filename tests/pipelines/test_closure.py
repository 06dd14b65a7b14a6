"""The committed dvc.yaml: code deps equal import closures, and the shape the design fixes."""

import re
from pathlib import Path

import pytest
import yaml

from pipelines import closure
from pipelines.dag import read_graph
from stages.synthesize import SOURCES


def test_code_deps_of_every_stage_equal_its_import_closure(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    assert closure.differences(repository) == {}


def test_the_graph_stays_small_and_has_every_group(repository: Path) -> None:
    graph = read_graph(repository)
    # Stages are per data set and method, never per subject: DVC's own cost grows faster than their
    # number.
    assert len(graph) < 60
    assert {name.split("@")[0] for name in graph} == {
        "synthesize_models",
        "synthesize_photos",
        "synthesize_scans",
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


def test_the_report_depends_on_all_data_it_reads(repository: Path) -> None:
    stage = read_graph(repository).nodes["report"]["stage"]
    read = set()
    for path in sorted((repository / "stages/reporting").glob("*.py")):
        for found in re.findall(r'\bdata((?: / "[\w.]+")+)', path.read_text()):
            read.add("data/" + "/".join(re.findall(r"[\w.]+", found)))
    assert {"data/models", "data/unified/table.json"} <= read
    assert not [
        path for path in read if not any(f"{path}/".startswith(f"{dep}/") for dep in stage.deps)
    ]


def test_a_command_that_is_no_stage_module_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 'python -m stages.NAME ...'"):
        closure.stage_module("bash run.sh")


def _toy(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_folder_stands_for_its_modules_when_several_are_needed(tmp_path: Path) -> None:
    root = _toy(tmp_path, {f"stages/parts/{name}.py": "" for name in "abcdefghij"})
    one = {"stages.parts.a"}
    assert closure.files_of(one, root) == ["stages/parts/a.py"]
    more = one | {"stages.parts.b"}
    assert closure.files_of(more, root) == ["stages/parts"]
    kept_out = closure.files_of(more, root, apart={"stages.parts.e"})
    assert kept_out == ["stages/parts/a.py", "stages/parts/b.py"]


def test_an_init_counts_when_it_holds_code(tmp_path: Path) -> None:
    root = _toy(tmp_path, {"models/__init__.py": '"""Words."""\n', "models/x.py": ""})
    assert closure.files_of({"models", "models.x"}, root) == ["models/x.py"]
    other = _toy(tmp_path / "other", {"models/__init__.py": "A = 1\n", "models/x.py": ""})
    assert closure.files_of({"models", "models.x"}, other) == ["models/__init__.py", "models/x.py"]


def test_one_methods_training_does_not_list_another_method() -> None:
    listed = closure.expected_code("exec python -m stages.train --method mica --out x")
    assert "models/methods/mica.py" in listed
    assert not any("pix2face.py" in path or path.endswith("models/methods") for path in listed)
    assert "stages/training" not in listed


def test_synthesis_lists_every_section_that_its_generators_read(repository: Path) -> None:
    """A generator reads ``order.sizes.SECTION``; the stage that runs it must list the section."""
    stages = yaml.safe_load((repository / "dvc.yaml").read_text())["stages"]
    groups = {name: body for name, body in stages.items() if name.startswith("synthesize")}
    graph = read_graph(repository)
    assert len(groups) == 3
    for name, body in groups.items():
        sources = re.search(r"--sources ([\w ]+?) --raw", body["cmd"])
        assert sources is not None
        read = set()
        for source in sources[1].split():
            module = SOURCES[source][1].__module__
            text = (repository / Path(*module.split("."))).with_suffix(".py").read_text()
            read |= set(re.findall(r"order\.sizes\.(\w+)", text))
        listed = set(graph.nodes[name]["stage"].params)
        assert {f"synthesize.{section}" for section in read} <= listed, name
