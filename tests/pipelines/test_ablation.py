"""Ablations as DVC experiments on a graph of two stages: run, failed rows, resume, tables."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from pipelines import ablation, ablation_table, cli
from pipelines.engine import dvc_command, environment
from stages.runtime.artifacts import read_table

GRAPH = """
stages:
  prepare:
    cmd: exec python step.py data/prepared
    deps: [step.py]
    outs: [data/prepared]
  evaluate:
    foreach: [toy]
    do:
      cmd: exec python step.py data/evaluation/${item}
      deps: [step.py, data/prepared]
      params: [train.toy]
      outs: ["data/evaluation/${item}"]
"""
STEP = """
import json, pathlib, sys, yaml
out = pathlib.Path(sys.argv[1])
toy = yaml.safe_load(pathlib.Path("params.yaml").read_text())["train"]["toy"]
if out.name == "toy" and toy["rate"] == 9:
    sys.exit("rate 9 is too much")
out.mkdir(parents=True)
found = {"median_mm": 2.0 / toy["rate"], "mean_mm": None}
facts = {"synthetic": True, "weights": "random", "protocols": {"now": found}}
(out / "metrics.json").write_text(json.dumps(facts))
"""
FILE = "data/evaluation/toy/metrics.json"
GRID = {
    "title": "Toy",
    "target": "evaluate@toy",
    "figures": [
        {"name": "median", "unit": "mm", "file": FILE, "at": "protocols/now/median_mm"},
        {"name": "mean", "unit": "mm", "file": FILE, "at": "protocols/now/mean_mm"},
    ],
    "switches": {
        "rate": {
            "about": "How fast.",
            "source": "Somebody 2020, table 1",
            "published": ["LQ, mm"],
            "rows": [
                {"value": "same", "set": {"train.toy.rate": 1}, "published": [1.5]},
                {"value": "four", "set": {"train.toy.rate": 4}, "published": [1.25]},
                {"value": "nine", "set": {"train.toy.rate": 9}},
            ],
        },
        "kind": {
            "about": "A word.",
            "rows": [{"value": "null", "set": {"train.toy.kind": "null"}}],
        },
    },
}


def accept(_params: object) -> None:
    """The toy's parameters are not the project's."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ablation")
    (root / "dvc.yaml").write_text(GRAPH)
    (root / "step.py").write_text(STEP)
    (root / "params.yaml").write_text("train:\n  toy: {rate: 1, kind: L4}  # a remark\n")
    (root / ".gitignore").write_text("/data/\n/out/\n")
    (root / "ablations").mkdir()
    (root / "ablations" / "toy.yaml").write_text(yaml.safe_dump(GRID))
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    for name in ("user.name", "user.email"):
        subprocess.run(["git", "config", name, "tests"], cwd=root, check=True)
    subprocess.run([*dvc_command(), "init", "-q"], cwd=root, env=environment(), check=True)
    subprocess.run(["git", "add", "-A"], cwd=root, check=True)
    subprocess.run(["git", "commit", "-qm", "toy"], cwd=root, check=True)
    return root


@pytest.fixture(scope="module")
def finished(checkout: Path) -> tuple[ablation.Grid, list, list]:
    """The switch ``rate``: run once, then without the failing row once more."""
    grid = ablation.load_grid("toy", checkout)
    trials = ablation.plan("toy", grid, checkout, only="rate", check=accept)
    ran = []
    runs = [
        ablation.run(
            grid,
            trials[:count],
            checkout,
            on_row=lambda result, now: ran.append((result.trial.value, now)),
        )
        for count in (4, 3)
    ]
    return grid, runs, ran


def test_rows_are_measured_failed_or_shared(finished) -> None:
    _, (first, _), _ = finished
    assert [(r.trial.value, r.status) for r in first] == [
        ("as configured", "ok"),
        ("same", "ok"),
        ("four", "ok"),
        ("nine", "failed"),
    ]
    assert [r.figures.get("median") for r in first] == [2.0, 2.0, 0.5, None]
    assert first[0].figures["mean"] is None
    assert first[0].synthetic is True
    assert first[0].weights == "random"
    assert first[0].trial.experiment == first[1].trial.experiment
    assert "evaluate@toy" in first[3].reason


def test_a_second_run_keeps_what_is_there(finished) -> None:
    _, (first, second), ran = finished
    assert first[:3] == second
    once = [("as configured", True), ("same", False), ("four", True), ("nine", True)]
    kept = [("as configured", False), ("same", False), ("four", False)]
    assert ran == once + kept


def test_the_checkout_is_left_as_it_was(checkout: Path, finished) -> None:
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=checkout, capture_output=True, text=True, check=True
    )
    assert finished
    assert status.stdout == ""
    assert "a remark" in (checkout / "params.yaml").read_text()
    assert not (checkout / "data").exists()


def test_tables_keep_ours_and_published_apart(finished, tmp_path: Path) -> None:
    grid, (first, second), _ = finished
    for name, results in (("one", first), ("two", [*second, first[3]])):
        ablation_table.write("toy", grid, results, tmp_path / name)
    for file in ("ablation.parquet", "ablation.md", "ablation.html"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    rows = read_table(tmp_path / "one" / "ablation.parquet").to_pylist()
    assert len(rows) == 4 * 2
    four = next(r for r in rows if r["value"] == "four" and r["figure"] == "median")
    assert (four["measured"], four["changes"]) == (0.5, json.dumps({"train.toy.rate": 4}))
    assert {r["status"] for r in rows if r["value"] == "nine"} == {"failed"}
    note = (tmp_path / "one" / "ablation.md").read_text()
    assert "| four | 0.500 | – | 1.25 |" in note
    assert "Published, real data, not comparable: Somebody 2020, table 1." in note
    assert "synthetic" in note
    page = (tmp_path / "one" / "ablation.html").read_text()
    assert not re.search(r"https?://|<script", page)
    assert 'class="num best">0.500' in page
    assert "failed: failed to reproduce" in page


def test_planning_refuses_what_cannot_be_run(checkout: Path) -> None:
    grid = ablation.Grid.model_validate(GRID)
    with pytest.raises(KeyError, match="switch among"):
        ablation.plan("toy", grid, checkout, only="speed", check=accept)
    with pytest.raises(FileNotFoundError, match=r"among \['toy'\], got 'nobody'"):
        ablation.load_grid("nobody", checkout)
    broken = json.loads(json.dumps(GRID).replace("train.toy.kind", "train.toy.sort"))
    with pytest.raises(KeyError, match=r"got train\.toy\.sort"):
        ablation.plan("toy", ablation.Grid.model_validate(broken), checkout, check=accept)
    (checkout / "stages").mkdir()
    (checkout / "stages" / "new.py").write_text("")
    try:
        with pytest.raises(ValueError, match=r"under git, got stages/new\.py"):
            ablation.plan("toy", grid, checkout, check=accept)
    finally:
        (checkout / "stages" / "new.py").unlink()


def test_a_change_of_code_or_parameters_names_other_experiments(checkout: Path) -> None:
    grid = ablation.Grid.model_validate(GRID)
    before = ablation.plan("toy", grid, checkout, check=accept)
    assert [t.experiment for t in before] == [
        t.experiment for t in ablation.plan("toy", grid, checkout, check=accept)
    ]
    step = checkout / "step.py"
    step.write_text(STEP + "\n")
    try:
        after = ablation.plan("toy", grid, checkout, check=accept)
    finally:
        step.write_text(STEP)
    assert {t.experiment for t in before}.isdisjoint(t.experiment for t in after)


def test_published_figures_need_their_source_and_number() -> None:
    lost = json.loads(json.dumps(GRID))
    del lost["switches"]["rate"]["source"]
    with pytest.raises(ValidationError, match="need a source"):
        ablation.Grid.model_validate(lost)
    short = json.loads(json.dumps(GRID).replace("[1.25]", "[1.25, 3.0]"))
    with pytest.raises(ValidationError, match="expected 1 published figures for 'four', got 2"):
        ablation.Grid.model_validate(short)
    odd = GRID | {"speed": 1}
    with pytest.raises(ValidationError, match="speed"):
        ablation.Grid.model_validate(odd)


@pytest.mark.parametrize("method", ["mica", "pix2face", "ringnet"])
def test_committed_grids_change_parameters_that_exist(
    method: str, repository: Path, tmp_path: Path
) -> None:
    grid = ablation.load_grid(method, repository)
    shutil.copy(repository / "params.yaml", tmp_path)
    identity = ["-c", "user.name=tests", "-c", "user.email=tests"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "parameters"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    trials = ablation.plan(method, grid, tmp_path)  # checks every row's parameters
    assert len(trials) == 1 + sum(len(switch.rows) for switch in grid.switches.values())
    assert grid.target == f"evaluate@{method}"


def test_the_command_lists_without_running(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(checkout)
    monkeypatch.setattr(ablation.plan, "__kwdefaults__", {"only": None, "check": accept})
    assert cli.main(["ablate", "toy", "--only", "kind", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["set"] for row in listed] == [{}, {"train.toy.kind": "null"}]
    assert cli.main(["ablate", "toy", "--only", "speed"]) == 2
