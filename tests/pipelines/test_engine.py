"""The graph from DVC and its parallel engine: order, states, retries, timeouts, no orphans."""

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable
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
    assert not runs(int((workspace / "hanging").read_text()))


def runs(pid: int) -> bool:
    """Whether the process exists and is not just waiting to be collected."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


FLOW = """
import sys
from pathlib import Path
from pipelines.dag import read_graph, select
from pipelines.engine import Runner, run_graph
root = Path(sys.argv[1])
graph = select(read_graph(root), ["left"])
run_graph(graph, set(graph), Runner(root, root / "logs"), parallel=1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the leash is Linux's PDEATHSIG")
def test_a_killed_run_leaves_no_stage_behind(workspace: Path, repository: Path) -> None:
    (workspace / "break-left.txt").write_text("hang")
    flow = subprocess.Popen([sys.executable, "-c", FLOW, str(workspace)], cwd=repository)
    try:
        hanging = workspace / "hanging"
        assert wait_for(lambda: hanging.is_file() and hanging.read_text() != "", 40)
        pid = int(hanging.read_text())
        assert runs(pid)
    finally:
        flow.kill()
        flow.wait()
    assert wait_for(lambda: not runs(pid), 5)


def test_a_stopped_runner_starts_nothing_more(workspace: Path) -> None:
    stage = read_graph(workspace).nodes["left"]["stage"]
    runner = Runner(workspace, workspace / ".work" / "logs")
    runner.stop()
    assert runner.run(stage).state is State.FAILED
    assert not (workspace / "left.txt").exists()


def test_data_outside_the_checkout_is_a_dependency_by_its_own_path(workspace: Path) -> None:
    outside = workspace.parent / "licensed"
    outside.mkdir()
    (outside / "scan.txt").write_text("scan")
    (workspace / "linked").symlink_to(outside)
    text = (workspace / "dvc.yaml").read_text()
    text = text.replace(
        "deps: [source.txt]\n    outs", f"deps: [{outside}/scan.txt, linked]\n    outs"
    )
    (workspace / "dvc.yaml").write_text(text)
    deps = read_graph(workspace).nodes["left"]["stage"].deps
    assert deps == ((outside / "scan.txt").as_posix(), "linked")


def test_states_are_read_from_what_dvc_says() -> None:
    assert read_state("Running stage 'left':\n> python step.py\n") is State.RAN
    assert read_state("Stage 'left' is cached - skipping run, checking out outputs") is (
        State.RESTORED
    )
    assert read_state("Stage 'left' didn't change, skipping") is State.UNCHANGED
