"""Ablations as DVC experiments on a graph of two stages: run, failed rows, resume, tables."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from pipelines import ablation, ablation_stages, ablation_table, cli
from pipelines.dag import read_graph
from pipelines.engine import dvc_command, environment
from stages.reporting.ablations import ablation_section, load_measured
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
      params: [params/train.yaml: [toy]]
      outs: ["data/evaluation/${item}"]
"""
STEP = """
import json, pathlib, sys, yaml
out = pathlib.Path(sys.argv[1])
toy = yaml.safe_load(pathlib.Path("params/train.yaml").read_text())["toy"]
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
    (root / "params.yaml").write_text("seed: 0\n")
    (root / "params").mkdir()
    (root / "params/train.yaml").write_text("toy: {rate: 1, kind: L4}  # a remark\n")
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
    assert "a remark" in (checkout / "params/train.yaml").read_text()
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
    method: str, repository: Path, tmp_path: Path, copy_params: Callable[[Path], None]
) -> None:
    grid = ablation.load_grid(method, repository)
    copy_params(tmp_path)
    identity = ["-c", "user.name=tests", "-c", "user.email=tests"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "parameters"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    trials = ablation.plan(method, grid, tmp_path)  # checks every row's parameters
    assert len(trials) == 1 + sum(len(switch.rows) for switch in grid.switches.values())
    assert grid.target == f"evaluate@{method}"


@pytest.mark.parametrize("method", ["tracker", "pix2face-video"])
def test_grids_of_commands_change_parameters_that_exist(method: str, repository: Path) -> None:
    grid = ablation.load_grid(method, repository)
    trials = ablation.trials_of(method, grid, repository, "")
    assert len(trials) == 1 + sum(len(switch.rows) for switch in grid.switches.values())
    with pytest.raises(ValueError, match="not in the graph: run its rows with --stages"):
        ablation.plan(method, grid, repository)


def test_the_command_lists_without_running(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(checkout)
    monkeypatch.setattr(ablation.plan, "__kwdefaults__", {"only": None, "check": accept})
    assert cli.main(["ablate", "toy", "--only", "kind", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["set"] for row in listed] == [{}, {"train.toy.kind": "null"}]
    assert cli.main(["ablate", "toy", "--only", "speed"]) == 2


CHAINED = {
    **GRID,
    "target": "evaluate@toy",
    "chain": ["train@toy", "evaluate@toy"],
    "figures": [
        {"name": "score", "unit": "mm", "file": "data/evaluation/toy/metrics.json", "at": "score"},
        {
            "name": "trained",
            "unit": "",
            "file": "data/evaluation/toy/metrics.json",
            "at": "trained",
        },
    ],
    "switches": {
        "rate": {"about": "How fast.", "rows": [{"value": "four", "set": {"train.toy.rate": 4}}]},
        "judge": {
            "about": "Who judges.",
            "rows": [
                {"value": "three", "set": {"judge.factor": 3}},
                {"value": "nine", "set": {"judge.factor": 9}},
            ],
        },
    },
}
CHAIN = """
stages:
  train:
    foreach: {toy: {root: data/raw}}
    do:
      cmd: exec python -m step train ${item.root} data/checkpoints/${key}
      params: [seed, params/train.yaml: ['${key}']]
      outs: ['data/checkpoints/${key}']
  evaluate:
    foreach: [toy]
    do:
      cmd: exec python -m step evaluate data/checkpoints/${item} data/evaluation/${item}
      params: [judge]
      outs: ['data/evaluation/${item}']
"""
CHAIN_STEP = """
import json, pathlib, sys, yaml
what, source, out = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
params = yaml.safe_load(pathlib.Path("params.yaml").read_text())
if what == "train":
    found = {"rate": params["train"]["toy"]["rate"], "seed": params["seed"]}
    found["raw"] = (source / "raw.txt").read_text()
else:
    if params["judge"]["factor"] == 9:
        sys.exit("nine is too much")
    before = json.loads((source / "metrics.json").read_text())
    found = {"score": params["judge"]["factor"] * before["rate"] + before["seed"], "trained": 1}
    found |= {"synthetic": True, "weights": "random"}
out.mkdir(parents=True)
(out / "metrics.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def chained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chained")
    (root / "dvc.yaml").write_text(CHAIN)
    (root / "step.py").write_text(CHAIN_STEP)
    (root / "params.yaml").write_text("seed: 0\njudge: {factor: 2}\n")
    (root / "params").mkdir()
    (root / "params/train.yaml").write_text("toy: {rate: 1, kind: L4}\n")
    for folder in ("data/raw", "data/checkpoints/other", "models"):
        (root / folder).mkdir(parents=True)
    (root / "data" / "raw" / "raw.txt").write_text("made elsewhere")
    init = [*dvc_command(), "init", "-q", "--no-scm"]
    subprocess.run(init, cwd=root, env=environment(), check=True)
    return root


def test_rows_run_their_own_stages_on_what_is_built(chained: Path, tmp_path: Path) -> None:
    grid = ablation.Grid.model_validate(CHAINED)
    state = ablation_stages.code_state(chained)
    trials = ablation.trials_of("toy", grid, chained, state, check=accept)
    seen = []

    def measure(limit_s: float = 60.0) -> list[ablation.TrialResult]:
        return ablation_stages.run(
            grid,
            trials,
            chained,
            data=chained / "data",
            work=tmp_path / "rows",
            seeds=(10, 20),
            jobs=2,
            common={"judge.factor": 5},
            limit_s=limit_s,
            on_row=seen.append,
        )

    results = measure()
    scores = {(r.trial.value, r.seed): r.figures.get("score") for r in results}
    assert scores[ablation.BASE, 10] == 5 * 1 + 10
    assert scores["four", 20] == 5 * 4 + 20
    assert scores["three", 20] == 3 * 1 + 20
    failed = [r for r in results if r.status != "ok"]
    assert {(r.trial.value, r.seed) for r in failed} == {("nine", 10), ("nine", 20)}
    assert all("nine is too much" in r.reason for r in failed)
    three = next(t for t in trials if t.value == "three")
    own = tmp_path / "rows" / three.experiment / "10" / "data"
    assert (own / "checkpoints" / "toy").is_symlink()  # the unchanged row's training, not its own
    assert (own / "raw").resolve() == chained / "data" / "raw"
    assert sorted(p.name for p in (chained / "data").iterdir()) == ["checkpoints", "raw"]
    again = measure(limit_s=0.0)  # nothing is run: finished rows are there, the failed one is not
    assert [r.figures for r in again if r.status == "ok"] == [
        r.figures for r in results if r.status == "ok"
    ]
    assert {r.reason for r in again if r.status != "ok"} == {"not run: the time given was over"}

    found = ablation_table.write(
        "toy", grid, results, tmp_path / "table", common={"judge.factor": 5}, note="A toy."
    )
    assert found["seeds"] == [10, 20]
    note = (tmp_path / "table" / "ablation.md").read_text()
    assert "| four | 35.000 ± 5.000 |" in note  # 5 * 4 + the mean of both seeds
    assert "judge.factor = 5" in note
    assert "A toy." in note
    (tmp_path / "kept").mkdir()
    shutil.copy(tmp_path / "table" / "ablation.json", tmp_path / "kept" / "toy.json")
    section = ablation_section(load_measured(tmp_path / "kept"))
    assert "failed: -m step evaluate: nine is too much" in section.body
    assert "± 5.000" in section.body


def test_the_report_refuses_another_version_and_says_what_is_missing(tmp_path: Path) -> None:
    assert "ablations/measured" in ablation_section(load_measured(tmp_path)).body
    (tmp_path / "toy.json").write_text('{"version": 0}')
    with pytest.raises(ValueError, match="version 1, got 0"):
        load_measured(tmp_path)


def test_a_chain_is_made_of_stages(chained: Path, repository: Path, tmp_path: Path) -> None:
    nodes = read_graph(repository).nodes
    for method in ("mica", "pix2face", "ringnet"):
        grid = ablation.load_grid(method, repository)
        assert set(grid.chain) <= set(nodes)
        for switch in grid.switches.values():
            for key in {key for row in switch.rows for key in row.set}:
                read = [name for stage in grid.chain for name in nodes[stage]["stage"].params]
                assert any(f"{key}.".startswith(f"{name}.") for name in read), key
    wrong = ablation.Grid.model_validate({**CHAINED, "chain": ["none", CHAINED["target"]]})
    with pytest.raises(KeyError, match="none"):
        ablation_stages.run(
            wrong, [], chained, data=tmp_path, work=tmp_path, seeds=(), jobs=1, common={}
        )


def test_what_the_figures_rest_on_is_read_from_any_of_their_files() -> None:
    texts = {"a.json": '{"x": 1}', "b.json": '{"y": 2, "synthetic": true, "weights": "random"}'}
    figures = [
        {"name": n, "unit": "", "file": f, "at": n} for n, f in (("x", "a.json"), ("y", "b.json"))
    ]
    grid = ablation.Grid.model_validate({**CHAINED, "figures": figures})
    trial = ablation.Trial(switch="", value="v", changes={}, published=(), experiment="e")
    found = ablation.read_figures(grid, trial, texts.__getitem__)
    assert (found.figures, found.synthetic, found.weights) == ({"x": 1, "y": 2}, True, "random")
