"""One run of the graph from preflight to table: what ``faceline run`` and the deployment share."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import networkx as nx

from pipelines.dag import read_graph, select
from pipelines.engine import (
    Outcome,
    Preflight,
    Runner,
    State,
    count_gpus,
    dvc_command,
    environment,
    run_graph,
)
from pipelines.progress import Display
from pipelines.servers import prefect_environment, ray_environment
from pipelines.workspace import hold

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What a run has to do.

    Attributes:
        graph: The selected stages.
        stale: Those that are not up to date, and what follows from them.
    """

    graph: nx.DiGraph
    stale: set[str]


def plan(root: Path, targets: Iterable[str]) -> Plan:
    """Read the graph and find what is stale, both at once.

    Raises:
        ValueError: A target names nothing, or dvc.yaml is not valid.
        RuntimeError: DVC could not tell what is stale.
    """
    with Preflight(root) as preflight:
        graph = select(read_graph(root), targets)
        return Plan(graph, preflight.stale(graph))


def run(
    root: Path, targets: list[str], *, engine: str, parallel: int, pull: bool = False
) -> list[Outcome]:
    """Run what is stale and show it on stderr.

    Args:
        root: The checkout.
        targets: Stages or groups; empty for everything.
        engine: ``local`` or ``prefect``.
        parallel: Stages at once.
        pull: First fetch from the remote what ``dvc.lock`` names and the cache lacks.

    Raises:
        ValueError: A target names nothing.
        RuntimeError: DVC could not tell what is stale, or the remote could not be read.
    """
    with hold(root):
        if pull:
            fetch(root)
        todo = plan(root, targets)
        display = Display(len(todo.graph), len(todo.stale))
        if not todo.stale:
            return [Outcome(name, State.UNCHANGED, 0.0) for name in todo.graph]
        runner = Runner(root, root / ".work" / "logs", pull=pull)
        with stopped_by_sigterm(runner), display:
            if engine == "prefect":
                os.environ.update(prefect_environment(root))
                from pipelines.flow import run_flow

                execute: Callable[..., list[Outcome]] = run_flow
            else:
                execute = run_graph
            outcomes = execute(
                todo.graph,
                todo.stale,
                runner,
                parallel=parallel,
                gpus=None if attached(root) else count_gpus(),
                on_start=display.started,
                on_end=display.ended,
            )
        display.summarise(outcomes)
    return outcomes


def attached(root: Path) -> bool:
    """Whether stages attach to a running Ray head, which then hands out the GPUs."""
    return "RAY_ADDRESS" in os.environ or bool(ray_environment(root))


def fetch(root: Path) -> None:
    """Fetch the outputs and remembered runs that the remote has; what it lacks is computed.

    Raises:
        ValueError: No remote is configured.
        RuntimeError: It cannot be read.
    """
    from dvc.repo import Repo

    with Repo(os.fspath(root)) as repository:
        if not repository.config["remote"]:
            raise ValueError(
                "expected a DVC remote, got none; add one (docs/remotes.md) or leave out --pull"
            )
    result = subprocess.run(
        [*dvc_command(), "--wait-for-lock", "pull", "--run-cache", "--allow-missing"],
        cwd=root,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise RuntimeError(
            "expected a DVC remote that can be read (docs/remotes.md), got: "
            f"{result.stderr.strip()[-2000:]}"
        )


@contextmanager
def stopped_by_sigterm(runner: Runner) -> Iterator[None]:
    """End the stages and leave with 128 + 15 when SIGTERM comes meanwhile."""

    def terminate(number: int, _frame: FrameType | None) -> None:
        runner.stop()
        sys.exit(128 + number)

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
