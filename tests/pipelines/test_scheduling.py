"""Who may run beside whom, what a person sees of it, and what the tables hold; no DVC started."""

import io
import json
import re
import socket
import threading
import time
from pathlib import Path

import networkx as nx
import pytest
from rich.console import Console

from pipelines import servers
from pipelines.dag import StageNode
from pipelines.engine import Outcome, Runner, State, run_graph
from pipelines.flow import mermaid, workspace_tag
from pipelines.metrics import metric_rows
from pipelines.progress import Display
from pipelines.workspace import hold


def node(name: str, gpus: float = 0, outs: tuple[str, ...] = ()) -> StageNode:
    return StageNode(name, "true", (), outs, (), 0, 60.0, (), gpus)


def graph_of(nodes: list[StageNode], edges: tuple[tuple[str, str], ...] = ()) -> nx.DiGraph:
    graph = nx.DiGraph()
    for each in nodes:
        graph.add_node(each.name, stage=each)
    graph.add_edges_from(edges)
    return graph


class Fake(Runner):
    """Counts what runs at once instead of running it."""

    def __init__(self) -> None:
        self.now: list[StageNode] = []
        self.most_gpus = 0.0
        self.most = 0
        self.guard = threading.Lock()

    def run(self, stage: StageNode) -> Outcome:
        with self.guard:
            self.now.append(stage)
            self.most = max(self.most, len(self.now))
            self.most_gpus = max(self.most_gpus, sum(each.gpus for each in self.now))
        time.sleep(0.05)
        with self.guard:
            self.now.remove(stage)
        return Outcome(stage.name, State.RAN, 0.0)

    def stop(self) -> None:
        """Nothing runs on."""


@pytest.mark.parametrize(("gpus", "most"), [(1.0, 1.0), (2.0, 2.0), (None, 4.0)])
def test_gpus_are_shared_and_what_needs_none_goes_on(gpus: float | None, most: float) -> None:
    graph = graph_of([node(f"g{i}", 1) for i in range(4)] + [node(f"c{i}") for i in range(4)])
    runner = Fake()
    outcomes = run_graph(graph, set(graph), runner, parallel=8, gpus=gpus)
    assert {outcome.state for outcome in outcomes} == {State.RAN}
    assert runner.most_gpus == most
    assert runner.most > most, "stages without a GPU do not wait"


def test_a_stage_that_asks_for_more_gpus_than_there_are_runs_alone() -> None:
    graph = graph_of([node("big", 4), node("small", 1)])
    runner = Fake()
    run_graph(graph, set(graph), runner, parallel=2, gpus=2.0)
    assert runner.most == 1


def test_the_lineage_names_states_and_hashes() -> None:
    graph = graph_of([node("a"), node("b")], (("a", "b"),))
    outcomes = {"a": Outcome("a", State.RAN, 1.0), "b": Outcome("b", State.SKIPPED, 0.0)}
    lock = {"a": {"outs": [{"path": "a.txt", "md5": "0123456789abcdef"}]}}
    text = mermaid(graph, outcomes, lock)
    assert 'n0["a<br/>a.txt 01234567"]' in text
    assert "n0 --> n1" in text
    assert "class n1 Skipped" in text


def test_metrics_are_flattened(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    content = {"now": {"median_mm": 1.25, "ok": True}, "images": 3, "curve": [1, 2], "name": "x"}
    (tmp_path / "out" / "metrics.json").write_text(json.dumps(content))
    rows = metric_rows(graph_of([node("evaluate@m", outs=("out",)), node("z")]), tmp_path)
    assert rows == [
        {"stage": "evaluate@m", "metric": "now.median_mm", "value": 1.25},
        {"stage": "evaluate@m", "metric": "images", "value": 3},
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_every_end_is_a_line_and_a_failure_names_its_log(terminal: bool, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, no_color=True)
    display = Display(5, 2, console)
    with display:
        display.started("left")
        display.ended(Outcome("left", State.FAILED, 1.5, tmp_path / "left.log"))
        display.ended(Outcome("join", State.SKIPPED, 0.0))
    display.summarise([Outcome("left", State.FAILED, 1.5), Outcome("join", State.SKIPPED, 0.0)])
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())  # type: ignore[attr-defined]
    for expected in ("5 stages, 2 to run", "[ 1/2] Failed", "left.log", "1 Failed, 1 Skipped"):
        assert expected in text


def test_a_run_that_was_cut_off_is_known_to_the_next(tmp_path: Path) -> None:
    with hold(tmp_path) as first:
        assert first.orderly
    with pytest.raises(SystemExit), hold(tmp_path):
        raise SystemExit(143)
    seen: list[bool] = []

    def asks_for_nonsense() -> None:
        with hold(tmp_path) as third:
            seen.append(third.orderly)
            raise ValueError("wrong target")

    with pytest.raises(ValueError, match="wrong"):
        asks_for_nonsense()
    assert seen == [False]
    with hold(tmp_path) as fourth:
        assert fourth.orderly


def test_a_taken_port_is_named_with_its_parameter() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"{port} to be free.*servers.ray_port"):
            servers._expect_free("127.0.0.1", port, "servers.ray_port")


def test_a_secret_is_made_once_for_its_owner(tmp_path: Path) -> None:
    secret = servers._secret(tmp_path / "secret")
    assert len(secret) == 64
    assert servers._secret(tmp_path / "secret") == secret
    assert (tmp_path / "secret").stat().st_mode & 0o077 == 0


def test_checkouts_have_tags_of_their_own(tmp_path: Path) -> None:
    assert workspace_tag(tmp_path) == workspace_tag(tmp_path / "x" / "..")
    assert workspace_tag(tmp_path) != workspace_tag(tmp_path / "x")
