"""Lineage of one artefact in one lock: edges through folders, raw inputs, no duplicates."""

import json
from pathlib import Path

import pytest

from pipelines.lineage.ancestry import (
    activity_digest,
    ancestry,
    as_document,
    as_mermaid,
    read_lock,
)

STAGES = {
    "pack@lyhm": {
        "cmd": "pack lyhm",
        "deps": [
            {"path": "data/raw/LYHM", "md5": "r1.dir", "size": 10},
            {"path": "stages/pack.py", "md5": "c1", "size": 1},
        ],
        "params": {"params.yaml": {"seed": 1}},
        "outs": [{"path": "data/packed/lyhm", "md5": "p1.dir", "size": 5}],
    },
    "pack@now": {
        "cmd": "pack now",
        "deps": [{"path": "data/raw/NOW", "md5": "r2.dir", "size": 10}],
        "outs": [{"path": "data/packed/now", "md5": "p2.dir", "size": 5}],
    },
    "unify": {
        "cmd": "unify",
        "deps": [{"path": "data/packed/lyhm", "md5": "p1.dir", "size": 5}],
        "outs": [{"path": "data/unified", "md5": "u1.dir", "size": 5}],
    },
    "train@mica": {
        "cmd": "train mica",
        "deps": [
            {"path": "data/unified", "md5": "u1.dir", "size": 5},
            {"path": "data/unified", "md5": "u1.dir", "size": 5},  # as a foreach may name it twice
            {"path": "data/packed/lyhm/images-00000.parquet", "md5": "s0", "size": 2},
            {"path": "stages/train.py", "md5": "c2", "size": 1},
        ],
        "outs": [{"path": "data/checkpoints/mica", "md5": "m1.dir", "size": 7}],
    },
    "report": {
        "cmd": "report",
        "deps": [{"path": "data/packed", "md5": "x.dir", "size": 10}],
        "outs": [{"path": "data/reports", "md5": "z.dir", "size": 1}],
    },
}


def raw_inputs(node: object) -> set[str]:
    document = as_document(node)  # type: ignore[arg-type]
    found = set()

    def visit(entry: dict) -> None:
        if entry.get("raw"):
            found.add(entry["path"])
        for child in entry.get("inputs", []):
            visit(child)

    visit(document)
    return found


def test_a_file_inside_an_output_folder_leads_to_raw_inputs() -> None:
    node = ancestry("data/checkpoints/mica/model.safetensors", STAGES)
    assert node.stage == "train@mica"
    assert raw_inputs(node) == {"data/raw/LYHM"}  # never the benchmark
    assert [code.path for code in node.code] == ["stages/train.py"]
    assert [child.file.path for child in node.inputs].count("data/unified") == 1


def test_a_file_dependency_inside_a_folder_output_is_linked() -> None:
    node = ancestry("data/checkpoints/mica", STAGES)
    writers = {child.stage for child in node.inputs}
    assert writers == {"unify", "pack@lyhm"}


def test_a_folder_dependency_around_outputs_is_linked_to_every_writer() -> None:
    node = ancestry("data/reports", STAGES)
    assert {child.stage for child in node.inputs} == {"pack@lyhm", "pack@now"}
    assert raw_inputs(node) == {"data/raw/LYHM", "data/raw/NOW"}


def test_the_digest_changes_with_parameters_only_when_they_change() -> None:
    stage = STAGES["pack@lyhm"]
    assert activity_digest(stage) == activity_digest(dict(reversed(stage.items())))
    assert activity_digest(stage) != activity_digest({**stage, "params": {"params.yaml": {}}})


def test_an_input_read_before_its_stage_ran_again_is_marked() -> None:
    assert not any(child.outdated for child in ancestry("data/checkpoints/mica", STAGES).inputs)
    newer = {**STAGES["unify"], "outs": [{"path": "data/unified", "md5": "u2.dir", "size": 5}]}
    node = ancestry("data/checkpoints/mica", {**STAGES, "unify": newer})
    assert {child.file.path for child in node.inputs if child.outdated} == {"data/unified"}


def test_unknown_artefacts_and_missing_locks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="expected a path that a stage of dvc.lock wrote"):
        ancestry("data/elsewhere", STAGES)
    with pytest.raises(FileNotFoundError, match="run `dvc repro` first"):
        read_lock(tmp_path / "dvc.lock")


def test_mermaid_has_one_box_per_artefact_and_json_is_serialisable() -> None:
    node = ancestry("data/checkpoints/mica", STAGES)
    text = as_mermaid(node)
    assert text.count('["data/packed/lyhm') == 1 + text.count('["data/packed/lyhm/')
    assert text.startswith("flowchart LR")
    json.dumps(as_document(node))
