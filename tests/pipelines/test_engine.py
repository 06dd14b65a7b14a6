"""The graph from DVC and its parallel engine: order, states, retries, timeouts, no orphans."""

import dataclasses
import subprocess
import time
from pathlib import Path

import pytest

from pipelines.dag import read_graph, select
from pipelines.engine import Runner, State, read_state, run_graph, stale_stages


def run(workspace: Path, parallel: int = 2) -> dict[str, State]:
    graph = read_graph(workspace)
    runner = Runner(workspace, workspace / ".work" / "logs")
    outcomes = run_graph(graph, stale_stages(graph, workspace), runner, parallel=parallel)
    return {outcome.stage: outcome.state for outcome in outcomes}


def test_graph_holds_stages_edges_and_settings(workspace: Path) -> None:
    graph = read_graph(workspace)
    assert set(graph) == {"left", "right", "join@a", "join@b"}
    assert set(graph.predecessors("join@a")) == {"left", "right"}
    right = graph.nodes["right"]["stage"]
    assert (right.retries, right.timeout_s, right.tags) == (1, 60.0, ("ray",))
    assert right.deps == ("source.txt",)
    assert right.outs == ("right.txt",)


def test_select_takes_a_target_with_its_ancestors_only(workspace: Path) -> None:
    graph = read_graph(workspace)
    assert set(select(graph, ["join@a"])) == {"left", "right", "join@a"}
    assert set(select(graph, ["join"])) == set(graph)
    assert set(select(graph, [])) == set(graph)
    with pytest.raises(ValueError, match="expected a stage of dvc.yaml, got 'middle'"):
        select(graph, ["middle"])


def test_runs_everything_once_then_nothing_then_only_what_changed(workspace: Path) -> None:
    assert set(run(workspace).values()) == {State.RAN}
    assert (workspace / "join_a.txt").read_text() == (
        "join_a.txt:left.txt:source\nright.txt:source\n"
    )
    assert set(run(workspace).values()) == {State.UNCHANGED}
    (workspace / "params.yaml").write_text("gain: 2\n")
    assert run(workspace) == {
        "left": State.UNCHANGED,
        "right": State.RAN,
        "join@a": State.UNCHANGED,  # right.txt came out with the same bytes
        "join@b": State.UNCHANGED,
    }


def test_a_failure_skips_only_its_descendants(workspace: Path) -> None:
    (workspace / "break-join_a.txt").write_text("always")
    states = run(workspace)
    assert states["join@a"] is State.FAILED
    assert states["join@b"] is State.RAN
    (workspace / "break-join_a.txt").unlink()
    (workspace / "break-left.txt").write_text("always")
    (workspace / "source.txt").write_text("changed\n")
    states = run(workspace)
    assert states == {
        "left": State.FAILED,
        "right": State.RAN,
        "join@a": State.SKIPPED,
        "join@b": State.SKIPPED,
    }


def test_a_failure_that_passes_is_retried(workspace: Path) -> None:
    (workspace / "break-right.txt").write_text("once")
    assert run(workspace)["right"] is State.RAN


def test_a_stage_past_its_time_is_ended_with_its_children(workspace: Path) -> None:
    (workspace / "break-left.txt").write_text("hang")
    graph = read_graph(workspace)
    stage = dataclasses.replace(graph.nodes["left"]["stage"], timeout_s=4.0)
    start = time.monotonic()
    outcome = Runner(workspace, workspace / ".work" / "logs").run(stage)
    assert outcome.state is State.FAILED
    assert time.monotonic() - start < 20
    pattern = "step.py left.txt source.txt"
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False)
    cwds = [Path(f"/proc/{pid}/cwd").resolve() for pid in found.stdout.split()]
    assert workspace.resolve() not in cwds


def test_states_are_read_from_what_dvc_says() -> None:
    assert read_state("Running stage 'left':\n> python step.py\n") is State.RAN
    assert read_state("Stage 'left' is cached - skipping run, checking out outputs") is (
        State.RESTORED
    )
    assert read_state("Stage 'left' didn't change, skipping") is State.UNCHANGED
