"""Run the graph: stale stages only, in parallel where their edges allow, with nothing left behind.

DVC owns state: every stage runs as ``dvc --wait-for-lock repro --single-item STAGE`` in a process
group of its own, on a leash: nothing survives the process that started it, however it ends. This
module decides the order, enforces timeouts, repeats failures as ``meta.run`` says and reports one
state per stage.
"""

import dataclasses
import enum
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import networkx as nx

from pipelines.dag import StageNode
from pipelines.lockfile import LockKeeper, discard_rotten
from pipelines.servers import ray_environment
from stages.runtime.process import GPUS_VARIABLE, OFFLINE

logger = logging.getLogger(__name__)

GRACE_S = 4.0  # longer than that of the leash, which ends its group itself
BUSY = "is busy, it is being blocked by"
BUSY_WAIT_S = 1.0
BUSY_TRIES = 60


class State(enum.Enum):
    """How a stage ended."""

    RAN = "Ran"
    RESTORED = "Restored"
    UNCHANGED = "Unchanged"
    FAILED = "Failed"
    SKIPPED = "Skipped"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one stage: its state, wall seconds and the log that tells why."""

    stage: str
    state: State
    seconds: float
    log: Path | None = None


class Runner:
    """Runs single stages in process groups and can end them all.

    Args:
        root: The checkout.
        logs: Folder for one log file per stage.
        pull: Fetch from the remote what the cache lacks, instead of computing it.
    """

    def __init__(self, root: Path, logs: Path, *, pull: bool = False) -> None:
        self.root = root
        self.logs = logs
        self.pull = pull
        self.keeper = LockKeeper(root)
        self._groups: set[int] = set()
        self._lock = threading.Lock()
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._stopped

    def run(self, stage: StageNode) -> Outcome:
        """Bring one stage up to date, repeating it as often as its ``retries`` allow."""
        start = time.monotonic()
        for attempt in range(stage.retries + 1):
            outcome = self.run_once(stage)
            if outcome.state is not State.FAILED or self._stopped:
                break
            if attempt < stage.retries:
                logger.warning(
                    "%s failed, attempt %d of %d", stage.name, attempt + 1, stage.retries + 1
                )
        return dataclasses.replace(outcome, seconds=time.monotonic() - start)

    def run_once(self, stage: StageNode) -> Outcome:
        """Bring one stage up to date or fail; leaves ``dvc.lock`` whole either way."""
        start = time.monotonic()
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{stage.name.replace('@', '_')}.log"
        for _ in range(BUSY_TRIES):
            state, words = self._attempt(stage, log)
            if state is not State.FAILED or self._stopped or BUSY not in words:
                break
            time.sleep(BUSY_WAIT_S)  # a DVC outside this run has the paths: no failure of the stage
        if state is State.RESTORED and (rotten := discard_rotten(self.root, stage.name)):
            logger.warning("%s: the cache of %s was damaged", stage.name, ", ".join(rotten))
            state, _ = self._attempt(stage, log, "--force")
        if state is State.FAILED:
            self.keeper.repair()
        elif state is not State.UNCHANGED:
            self.keeper.keep()
        return Outcome(stage.name, state, time.monotonic() - start, log)

    def _attempt(self, stage: StageNode, log: Path, *more: str) -> tuple[State, str]:
        """Run one stage once and return what DVC said; a stopped runner starts nothing more."""
        leash = [sys.executable, "-m", "pipelines.leashed", str(os.getpid())]
        options = ["--pull", "--allow-missing"] if self.pull else []
        asked = {GPUS_VARIABLE: str(stage.gpus)} if stage.gpus else {}
        with log.open("ab") as output:
            before = output.tell()
            with self._lock:
                if self._stopped:
                    return State.FAILED, "stopped"
                process = subprocess.Popen(
                    [
                        *leash,
                        "--wait-for-lock",
                        "repro",
                        "--single-item",
                        *options,
                        *more,
                        stage.name,
                    ],
                    cwd=self.root,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                    env={**environment(), **ray_environment(self.root), **asked},
                )
                self._groups.add(process.pid)
            try:
                code = process.wait(timeout=stage.timeout_s)
            except subprocess.TimeoutExpired:
                logger.warning("%s ran past its %.0f s and is ended", stage.name, stage.timeout_s)
                end_group(process.pid, process.poll)
                process.wait()
                code = -1
            finally:
                with self._lock:
                    self._groups.discard(process.pid)
            if code != 0:
                end_group(process.pid)  # the leash itself may have been killed
        words = log.read_bytes()[before:].decode(errors="replace")
        return (State.FAILED if code != 0 else read_state(words)), words

    def stop(self) -> None:
        """End every stage that still runs and start no other; used on SIGINT and SIGTERM."""
        with self._lock:
            self._stopped = True
            groups = list(self._groups)
        for group in groups:
            end_group(group)


def dvc_command() -> list[str]:
    """Return the DVC of this very interpreter, so that PATH cannot pick another."""
    return [sys.executable, "-m", "dvc"]


def environment() -> dict[str, str]:
    """Return the environment of a stage: telemetry off, this interpreter first on PATH."""
    merged = {**OFFLINE, **os.environ}
    merged["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), merged.get("PATH", "")])
    return merged


def end_group(group: int, reap: Callable[[], object] = lambda: None) -> None:
    """End a process group: SIGTERM, then SIGKILL for what is left after the grace time.

    Args:
        group: Number of the group.
        reap: Called while waiting; collects the ended leader where no other thread waits for it.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline:
            reap()
            try:
                os.killpg(group, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)


def read_state(log: str) -> State:
    """Tell from DVC's own words about one run whether it computed anything."""
    if "Running stage" in log:
        return State.RAN
    if "is cached - skipping run" in log:
        return State.RESTORED
    return State.UNCHANGED


class Preflight:
    """A ``dvc status`` that runs beside whatever else has to be found out before a run."""

    def __init__(self, root: Path, stages: Iterable[str] = ()) -> None:
        self._root, self._stages = root, tuple(stages)
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*dvc_command(), "--wait-for-lock", "status", "--json", *self._stages],
            cwd=self._root,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    def changes(self) -> dict[str, Any]:
        """Return what is changed, per stage.

        Raises:
            RuntimeError: DVC could not tell.
        """
        output, errors = self._process.communicate()
        for _ in range(BUSY_TRIES):
            if self._process.returncode == 0 or BUSY not in errors:
                break
            time.sleep(BUSY_WAIT_S)  # a DVC outside this run has the paths
            self._process = self._start()
            output, errors = self._process.communicate()
        if self._process.returncode != 0:
            raise RuntimeError(f"dvc status failed: {errors.strip()[-2000:]}")
        # DVC may print hints before the document.
        match = re.search(r"^\{.*", output, flags=re.DOTALL | re.MULTILINE)
        return dict(json.loads(match[0])) if match else {}

    def stale(self, graph: nx.DiGraph) -> set[str]:
        """Return the stages of ``graph`` that are changed, and all their descendants in it."""
        found = set(self.changes()) & set(graph)
        for name in list(found):
            found |= nx.descendants(graph, name)
        return found


def stale_stages(graph: nx.DiGraph, root: Path) -> set[str]:
    """Return the stages that ``dvc status`` calls changed, and all their descendants."""
    with Preflight(root) as preflight:
        return preflight.stale(graph)


def changes(root: Path, stages: Iterable[str] = ()) -> dict[str, Any]:
    """Return what ``dvc status`` finds changed, per stage; of all stages when none is named.

    Raises:
        RuntimeError: DVC could not tell.
    """
    with Preflight(root, stages) as preflight:
        return preflight.changes()


def run_graph(
    graph: nx.DiGraph,
    stale: Iterable[str],
    runner: Runner,
    *,
    parallel: int,
    gpus: float | None = None,
    on_start: Callable[[str], None] = lambda _: None,
    on_end: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Run the stale stages of ``graph``, at most ``parallel`` at once.

    A failure skips the failed stage's descendants only; everything else finishes.

    Args:
        graph: The selected stages.
        stale: Names of those to run.
        runner: Runs them.
        parallel: Most stages at once.
        gpus: GPUs to share among the stages that ask for some; None where they need not be
            counted, because there are none or Ray hands them out.
        on_start: Called with the name of each stage before it runs.
        on_end: Called with the outcome of each stage that ran or was skipped.

    Returns:
        One outcome per stage of the graph, in topological order.
    """
    todo = set(stale)
    order = list(nx.lexicographical_topological_sort(graph))
    outcomes: dict[str, Outcome] = {
        name: Outcome(name, State.UNCHANGED, 0.0) for name in order if name not in todo
    }
    running: dict[Future[Outcome], str] = {}
    with ThreadPoolExecutor(max_workers=parallel) as pool:
        try:
            while len(outcomes) < len(order):
                for name in order:
                    if name in outcomes or name in running.values():
                        continue
                    needed = list(graph.predecessors(name))
                    if any(
                        outcomes[need].state in (State.FAILED, State.SKIPPED)
                        for need in needed
                        if need in outcomes
                    ):
                        outcomes[name] = Outcome(name, State.SKIPPED, 0.0)
                        on_end(outcomes[name])
                    elif (
                        all(need in outcomes for need in needed)
                        and len(running) < parallel
                        and _gpus_suffice(graph, [*running.values()], name, gpus)
                    ):
                        on_start(name)
                        running[pool.submit(runner.run, graph.nodes[name]["stage"])] = name
                if not running:
                    continue
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    name = running.pop(future)
                    outcomes[name] = future.result()
                    on_end(outcomes[name])
        except BaseException:
            runner.stop()
            raise
    return [outcomes[name] for name in order]


def _gpus_suffice(graph: nx.DiGraph, running: list[str], name: str, gpus: float | None) -> bool:
    """Whether a stage finds its GPUs beside the running ones; one that is alone always runs."""
    asked = graph.nodes[name]["stage"].gpus
    taken = sum(graph.nodes[other]["stage"].gpus for other in running)
    return gpus is None or asked == 0 or taken == 0 or taken + asked <= gpus


def count_gpus() -> float | None:
    """Return the number of NVIDIA GPUs here, None where there are none."""
    found = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    return float(found) if found else None
