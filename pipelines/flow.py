"""The same graph under Prefect: one task per stage, DVC keeps the state.

Prefect schedules, repeats, shows and records; it caches nothing, because its keys know nothing of
file hashes. Edges become ``wait_for``; the body of every task is ``engine.Runner.run_once``, and
``meta.run.retries`` become the task's retries, so that the server shows every attempt.

``faceline`` is what ``deploy/prefect.yaml`` deploys; ``run_flow`` is ``faceline run --engine
prefect``.
"""

import hashlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from uuid import UUID

import networkx as nx
from prefect import flow, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.context import get_run_context
from prefect.runtime import flow_run
from prefect.states import Completed, Crashed, Failed, StateType

from pipelines.engine import Outcome, Runner, State, count_gpus
from pipelines.lineage.ancestry import read_lock
from pipelines.metrics import metric_rows
from pipelines.run import attached, fetch, plan
from pipelines.workspace import hold

logger = logging.getLogger(__name__)

NAME = "faceline"
SWEPT = "its process ended without a word; found by the next run"
STATE_COLOURS = {
    State.RAN: "fill:#cdeccd",
    State.RESTORED: "fill:#cde4f5",
    State.UNCHANGED: "fill:#eeeeee",
    State.FAILED: "fill:#f5c6c6",
    State.SKIPPED: "fill:#f7e7b5",
}

_runners: dict[str, Runner] = {}  # of the flow runs of this process, for the hooks


class StageFailedError(Exception):
    """A stage failed; the message names its log."""


def _crashed(_flow: object, run: Any, _state: object) -> None:  # noqa: ANN401 - a FlowRun
    """Hook: end the stages of a run that crashed or was cancelled.

    A worker calls it in a process of its own; there the leash has ended them already.
    """
    runner = _runners.pop(str(run.id), None)
    if runner is not None:
        runner.stop()


@flow(
    name=NAME,
    on_crashed=[_crashed],
    on_cancellation=[_crashed],
    persist_result=False,
)
def faceline(
    targets: list[str] | None = None, parallel: int = 2, root: str = ".", pull: bool = False
) -> Any:  # noqa: ANN401 - a Prefect state
    """Bring the graph, or what targets need, up to date; the flow of the deployment.

    Args:
        targets: Stages or groups; none for everything.
        parallel: Stages at once.
        root: The checkout.
        pull: First fetch from the remote what ``dvc.lock`` names and the cache lacks.
    """
    folder = Path(root).resolve()
    with hold(folder):
        if pull:
            fetch(folder)
        todo = plan(folder, targets or [])
        runner = Runner(folder, folder / ".work" / "logs", pull=pull)
        gpus = None if attached(folder) else count_gpus()
        outcomes: dict[str, Outcome] = {}
        return _run_tasks(todo.graph, todo.stale, runner, outcomes, parallel=parallel, gpus=gpus)


def run_flow(
    graph: nx.DiGraph,
    stale: set[str],
    runner: Runner,
    *,
    parallel: int,
    gpus: float | None = None,
    on_start: Callable[[str], None] = lambda _: None,
    on_end: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Run the stale stages of ``graph`` as a Prefect flow and return one outcome per stage.

    A failed stage fails its task and skips its descendants; the others finish.

    Args:
        graph: The selected stages; see ``pipelines.dag``.
        stale: Names of the stages to run.
        runner: Starts and ends the stage processes.
        parallel: Most tasks at once.
        gpus: GPUs to share among the stages that ask for some; None where none are counted.
        on_start: Called with a stage's name before it runs, in the task's thread.
        on_end: Called with its outcome, likewise; for skipped stages at the end.
    """
    outcomes: dict[str, Outcome] = {}

    @flow(name=NAME, on_crashed=[_crashed], on_cancellation=[_crashed], persist_result=False)
    def from_the_command_line() -> Any:  # noqa: ANN401 - a Prefect state
        return _run_tasks(
            graph,
            stale,
            runner,
            outcomes,
            parallel=parallel,
            gpus=gpus,
            on_start=on_start,
            on_end=on_end,
        )

    end = from_the_command_line(return_state=True)
    failed = any(outcome.state is State.FAILED for outcome in outcomes.values())
    if not end.is_completed() and not failed:
        raise RuntimeError(f"the flow itself failed: {end.message}")
    order = list(nx.lexicographical_topological_sort(graph))
    return [outcomes.get(name, Outcome(name, State.SKIPPED, 0.0)) for name in order]


def _run_tasks(
    graph: nx.DiGraph,
    stale: set[str],
    runner: Runner,
    outcomes: dict[str, Outcome],
    *,
    parallel: int,
    gpus: float | None,
    on_start: Callable[[str], None] = lambda _: None,
    on_end: Callable[[Outcome], None] = lambda _: None,
) -> Any:  # noqa: ANN401 - a Prefect state
    """Body of both flows; fills ``outcomes`` and returns the state of the flow run."""
    run_id = str(flow_run.id)
    _runners[run_id] = runner
    with get_client(sync_client=True) as client:
        sweep(client, runner.root, current=run_id)
    order = [name for name in nx.lexicographical_topological_sort(graph) if name in stale]
    outcomes.update((n, Outcome(n, State.UNCHANGED, 0.0)) for n in graph if n not in stale)
    board = _Board(order)
    slots = threading.Semaphore(parallel)
    share = nullcontext() if gpus is None else threading.Semaphore(max(1, int(gpus)))

    @task(cache_policy=NO_CACHE, persist_result=False, log_prints=False)
    def run_stage(name: str) -> Any:  # noqa: ANN401 - a Prefect state
        stage = graph.nodes[name]["stage"]
        with share if stage.gpus else nullcontext(), slots:
            on_start(name)
            outcome = runner.run_once(stage)
        outcomes[name] = outcome
        last = get_run_context().task_run.run_count > stage.retries or runner.stopped
        if outcome.state is not State.FAILED or last:
            on_end(outcome)
            board.advance()
        if outcome.state is State.FAILED:
            raise StageFailedError(f"{name} failed; see {outcome.log}")
        return Completed(name=outcome.state.value)

    futures: dict[str, Any] = {}
    try:
        for name in order:
            stage = graph.nodes[name]["stage"]
            needed = [futures[need] for need in graph.predecessors(name) if need in futures]
            labelled = run_stage.with_options(
                name=name, task_run_name=name, tags=set(stage.tags), retries=stage.retries
            )
            futures[name] = labelled.submit(name, wait_for=needed)
        for future in futures.values():
            future.wait()
    except BaseException:  # Prefect would wait for the running stages before its hooks
        runner.stop()
        raise
    finally:
        _runners.pop(run_id, None)
    for name in order:
        if name not in outcomes:
            outcomes[name] = Outcome(name, State.SKIPPED, 0.0)
            on_end(outcomes[name])
    _publish(graph, order, outcomes, runner.root)
    failed = [name for name in order if outcomes[name].state is State.FAILED]
    if failed:
        return Failed(message=f"failed: {', '.join(failed)}")
    return Completed(message=f"{len(order)} of {len(graph)} stages")


class _Board:
    """The progress artifact of a flow run."""

    def __init__(self, order: list[str]) -> None:
        self._total = max(len(order), 1)
        self._done = 0
        self._lock = threading.Lock()
        self._id: UUID = create_progress_artifact(  # type: ignore[assignment]
            progress=0.0 if order else 100.0, description=f"{len(order)} stages to run"
        )

    def advance(self) -> None:
        """Count one more stage as ended."""
        with self._lock:
            self._done += 1
            update_progress_artifact(self._id, progress=round(100 * self._done / self._total, 1))


def _publish(graph: nx.DiGraph, order: list[str], outcomes: dict[str, Outcome], root: Path) -> None:
    """Leave what a person wants to see of the run: states, metrics, lineage, links."""
    states = [
        {
            "stage": name,
            "state": outcomes[name].state.value,
            "seconds": round(outcomes[name].seconds, 1),
        }
        for name in order
    ]
    create_table_artifact(table=states, key="stages", description="How every stage ended")
    rows = metric_rows(graph, root)
    if rows:
        create_table_artifact(
            table=rows, key="metrics", description="Numbers of the stages' metrics.json"
        )
    lock = root / "dvc.lock"
    create_markdown_artifact(
        markdown=mermaid(graph, outcomes, read_lock(lock) if lock.is_file() else {}),
        key="lineage",
        description="The graph, how its stages ended, and the hashes of what they wrote",
    )
    create_link_artifact(
        link=(root / ".work" / "logs").resolve().as_uri(),
        link_text=f"logs on {socket.gethostname()}",
        key="logs",
    )
    for name in graph:
        for path in graph.nodes[name]["stage"].outs:
            for page in sorted((root / path).glob("*.html")):
                create_link_artifact(
                    link=page.resolve().as_uri(),
                    link_text=f"{page.name} on {socket.gethostname()}",
                    key=f"page-{page.stem}".lower().replace("_", "-"),
                )


def mermaid(
    graph: nx.DiGraph,
    outcomes: dict[str, Outcome] | None = None,
    lock: dict[str, dict[str, Any]] | None = None,
) -> str:
    """Return the stage graph as a Mermaid block.

    Args:
        graph: The stages.
        outcomes: Colours each stage by how it ended.
        lock: Names the hashes of what each stage wrote, eight digits of each.
    """
    number = {name: index for index, name in enumerate(sorted(graph))}
    lines = ["```mermaid", "flowchart LR"]
    for name in sorted(graph):
        written = (lock or {}).get(name, {}).get("outs", [])
        hashes = "".join(f"<br/>{out['path']} {out['md5'][:8]}" for out in written)
        lines.append(f'  n{number[name]}["{name}{hashes}"]')
    lines += [f"  n{number[a]} --> n{number[b]}" for a, b in sorted(graph.edges)]
    if outcomes is not None:
        lines += [f"  classDef {s.value} {colour}" for s, colour in STATE_COLOURS.items()]
        lines += [f"  class n{number[n]} {outcomes[n].state.value}" for n in sorted(graph)]
    return "\n".join([*lines, "```"])


def sweep(client: SyncPrefectClient, root: Path, *, current: str) -> list[str]:
    """Mark runs of this checkout that a killed process left RUNNING as Crashed.

    The caller holds the checkout, so no other run of it can be alive.

    Args:
        client: Talks to the server.
        root: The checkout; runs are told apart by its path and host.
        current: The run that asks; gets the checkout's tag.

    Returns:
        Names of the marked runs.
    """
    tag = workspace_tag(root)
    mine = client.read_flow_run(UUID(current))
    client.update_flow_run(mine.id, tags=sorted({*mine.tags, tag}))
    left = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[NAME])),
        flow_run_filter=FlowRunFilter(
            tags=FlowRunFilterTags(all_=[tag]),
            state=FlowRunFilterState(
                type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.CANCELLING])
            ),
        ),
    )
    marked = []
    for run in left:
        if run.id == mine.id:
            continue
        client.set_flow_run_state(run.id, Crashed(message=SWEPT), force=True)
        for stage in client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        ):
            if stage.state is not None and not stage.state.is_final():
                client.set_task_run_state(stage.id, Crashed(message=SWEPT), force=True)
        marked.append(run.name)
        logger.warning("marked the run %s as crashed: %s", run.name, SWEPT)
    return marked


def workspace_tag(root: Path) -> str:
    """Return the tag that tells runs of one checkout on one host from others."""
    place = f"{socket.gethostname()}:{os.fspath(root.resolve())}"
    return f"checkout-{hashlib.sha256(place.encode()).hexdigest()[:12]}"
