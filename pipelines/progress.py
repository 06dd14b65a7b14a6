"""`faceline run` as a person sees it: preflight, a line per stage, a table at the end."""

import logging
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from pipelines.dag import read_graph, select
from pipelines.engine import Outcome, Runner, State, run_graph, stale_stages

logger = logging.getLogger("faceline")

COLOURS = {
    State.RAN: "green",
    State.RESTORED: "cyan",
    State.UNCHANGED: "dim",
    State.FAILED: "red",
    State.SKIPPED: "yellow",
}


def run_with_progress(
    root: Path, targets: list[str], *, engine: str, parallel: int
) -> list[Outcome]:
    """Run what is stale and show it on stderr.

    Args:
        root: The checkout.
        targets: Stages or groups; empty for everything.
        engine: ``local`` or ``prefect``.
        parallel: Stages at once.

    Raises:
        ValueError: A target names nothing.
    """
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True)
    graph = select(read_graph(root), targets)
    stale = stale_stages(graph, root)
    console.print(f"{len(graph)} stages, {len(stale)} to run")
    if not stale:
        return [Outcome(name, State.UNCHANGED, 0.0) for name in graph]

    runner = Runner(root, root / ".work" / "logs")
    previous = signal.getsignal(signal.SIGTERM)

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        runner.stop()
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, terminate)
    start = time.monotonic()
    done = 0

    def ended(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        colour = COLOURS[outcome.state]
        console.print(
            f"[{done:>2}/{len(stale)}] [{colour}]{outcome.state.value:<9}[/] "
            f"{outcome.stage} [dim]{outcome.seconds:.1f} s[/]"
        )
        if outcome.state is State.FAILED and outcome.log is not None:
            console.print(f"        log: {os.path.relpath(outcome.log)}")

    try:
        if engine == "prefect":
            from pipelines.flow import run_flow

            outcomes = run_flow(graph, stale, runner, parallel=parallel)
            for outcome in outcomes:
                if outcome.stage in stale:
                    ended(outcome)
        else:
            outcomes = run_graph(graph, stale, runner, parallel=parallel, on_end=ended)
    finally:
        signal.signal(signal.SIGTERM, previous)
    counts = {state: sum(o.state is state for o in outcomes) for state in State}
    text = ", ".join(f"{count} {state.value}" for state, count in counts.items() if count)
    console.print(f"{text} in {time.monotonic() - start:.0f} s")
    return outcomes
