"""A run as a person sees it: a live table on a terminal, a line per stage elsewhere, on stderr."""

import os
import time
from collections import Counter
from types import TracebackType
from typing import Any, Self

from pipelines.engine import Outcome, State

COLOURS = {
    State.RAN: "green",
    State.RESTORED: "cyan",
    State.UNCHANGED: "dim",
    State.FAILED: "red",
    State.SKIPPED: "yellow",
}


class Display:
    """Shows how a run goes.

    Args:
        stages: Stages of the selected graph.
        stale: Those of them that will run.
        console: A ``rich`` console; stderr unless given.
    """

    def __init__(self, stages: int, stale: int, console: Any = None) -> None:  # noqa: ANN401
        from rich.console import Console

        self.console = console or Console(stderr=True, soft_wrap=True)
        self._stale = stale
        self._done = 0
        self._start = time.monotonic()
        self._tasks: dict[str, Any] = {}
        self._progress: Any = None
        self._total: Any = None
        self.console.print(f"{stages} stages, {stale} to run")

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
            from rich.progress import TimeElapsedColumn as Elapsed

            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[note]}"),
                Elapsed(),
                console=self.console,
                transient=True,
            )
            self._progress.start()
            self._total = self._progress.add_task(
                "all stages", total=self._stale, note=f"0/{self._stale}"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def started(self, name: str) -> None:
        """Show a stage that runs from now on."""
        if self._progress is not None:
            self._tasks[name] = self._progress.add_task(name, total=None, note="")

    def ended(self, outcome: Outcome) -> None:
        """Print how a stage ended, and where its log lies if it failed."""
        self._done += 1
        colour = COLOURS[outcome.state]
        self.console.print(
            f"[{self._done:>2}/{self._stale}] [{colour}]{outcome.state.value:<9}[/] "
            f"{outcome.stage} [dim]{outcome.seconds:.1f} s[/]"
        )
        if outcome.state is State.FAILED and outcome.log is not None:
            self.console.print(f"        log: {os.path.relpath(outcome.log)}")
        if self._progress is not None:
            if (task := self._tasks.pop(outcome.stage, None)) is not None:
                self._progress.remove_task(task)
            self._progress.update(
                self._total, completed=self._done, note=f"{self._done}/{self._stale}"
            )

    def summarise(self, outcomes: list[Outcome]) -> None:
        """Print how many stages ended how, and the time of it all."""
        counts = Counter(outcome.state for outcome in outcomes)
        text = ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state])
        self.console.print(f"{text} in {time.monotonic() - self._start:.0f} s")
