"""The same graph under Prefect: one task per stage, DVC keeps the state.

Prefect schedules, shows and records; it caches nothing, because its keys know nothing of file
hashes. Edges become ``wait_for``; the body of every task is ``engine.Runner.run``.
"""

from typing import Any

import networkx as nx

from pipelines.engine import Outcome, Runner, State


def run_flow(graph: nx.DiGraph, stale: set[str], runner: Runner, *, parallel: int) -> list[Outcome]:
    """Run the stale stages of ``graph`` as a Prefect flow and return one outcome per stage.

    A failed stage fails its task and skips its descendants; the others finish.

    Args:
        graph: The selected stages; see ``pipelines.dag``.
        stale: Names of the stages to run.
        runner: Starts and ends the stage processes.
        parallel: Most tasks at once.
    """
    from prefect import flow, task
    from prefect.artifacts import create_markdown_artifact, create_table_artifact
    from prefect.cache_policies import NO_CACHE
    from prefect.states import Completed, Failed
    from prefect.task_runners import ThreadPoolTaskRunner

    order = [name for name in nx.lexicographical_topological_sort(graph) if name in stale]
    outcomes = {name: Outcome(name, State.UNCHANGED, 0.0) for name in graph if name not in stale}

    @task(cache_policy=NO_CACHE, persist_result=False, log_prints=False)
    def run_stage(name: str) -> Any:  # noqa: ANN401 - a Prefect state
        outcome = runner.run(graph.nodes[name]["stage"])
        outcomes[name] = outcome
        if outcome.state is State.FAILED:
            return Failed(message=f"{name} failed; see {outcome.log}")
        return Completed(name=outcome.state.value)

    def crashed(*_: Any) -> None:  # noqa: ANN401 - Prefect passes flow, run and state
        runner.stop()

    @flow(
        name="faceline",
        task_runner=ThreadPoolTaskRunner(max_workers=parallel),  # type: ignore[arg-type]
        on_crashed=[crashed],
        on_cancellation=[crashed],
        persist_result=False,
    )
    def faceline() -> Any:  # noqa: ANN401 - a Prefect state
        futures: dict[str, Any] = {}
        try:
            for name in order:
                needed = [futures[need] for need in graph.predecessors(name) if need in futures]
                label = run_stage.with_options(name=name, tags=set(graph.nodes[name]["stage"].tags))
                futures[name] = label.submit(name, wait_for=needed)
            for future in futures.values():
                future.wait()
        except BaseException:  # Prefect would wait for the running stages before its hooks
            runner.stop()
            raise
        for name in order:
            outcomes.setdefault(name, Outcome(name, State.SKIPPED, 0.0))
        rows = [
            {
                "stage": name,
                "state": outcomes[name].state.value,
                "seconds": round(outcomes[name].seconds, 1),
            }
            for name in order
        ]
        create_table_artifact(table=rows, key="stages", description="How every stage ended")
        create_markdown_artifact(markdown=mermaid(graph), key="graph", description="The graph")
        failed = [name for name in order if outcomes[name].state is State.FAILED]
        if failed:
            return Failed(message=f"failed: {', '.join(failed)}")
        return Completed(message=f"{len(order)} stages")

    faceline(return_state=True)
    for name in order:
        outcomes.setdefault(name, Outcome(name, State.SKIPPED, 0.0))
    return [outcomes[name] for name in nx.lexicographical_topological_sort(graph)]


def mermaid(graph: nx.DiGraph) -> str:
    """Return the stage graph as a Mermaid block."""
    number = {name: index for index, name in enumerate(sorted(graph))}
    lines = ["```mermaid", "flowchart LR"]
    lines += [f'  n{number[name]}["{name}"]' for name in sorted(graph)]
    lines += [f"  n{number[a]} --> n{number[b]}" for a, b in sorted(graph.edges)]
    return "\n".join([*lines, "```"])
