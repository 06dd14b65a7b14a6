"""Rows of an ablation beside DVC: each in a folder of its own, many at a time, with several seeds.

DVC runs one experiment of a checkout at a time and would carry a seed down to the raw data. Here a
row's folder holds its ``params.yaml`` and links to a built graph's outputs. Of the grid's chain the
stages from the first one that a row's changes reach are run, with their own commands; what they
need from before is the unchanged row's of the same seed. The figures come from the same files as
those of an experiment.
"""

import copy
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from pipelines.ablation import CODE, Grid, Trial, TrialResult, Value, read_figures, replace_at
from pipelines.dag import StageNode, read_graph
from stages.runtime.artifacts import read_json, write_bytes, write_json
from stages.runtime.params import document
from stages.runtime.process import ONE_THREAD

LIMIT_S = 86400.0
FINISHED = "finished.json"


def code_state(root: Path) -> str:
    """A hash of all code, which names the rows as a commit does for experiments."""
    digest = hashlib.sha256()
    for folder in CODE:
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def run(
    grid: Grid,
    trials: Sequence[Trial],
    root: Path,
    *,
    data: Path,
    work: Path,
    seeds: Sequence[int],
    jobs: int,
    common: Mapping[str, Value],
    limit_s: float = LIMIT_S,
    on_row: Callable[[TrialResult], None] = lambda _result: None,
) -> list[TrialResult]:
    """Run every row with every seed; what an earlier call finished is kept.

    Args:
        grid: Chain or commands, and the figures.
        trials: See :func:`pipelines.ablation.trials_of`; the first is the unchanged row.
        root: The checkout: code, ``params.yaml``, ``dvc.yaml``.
        data: A built graph's outputs, read only.
        work: Folder of the rows.
        seeds: Roots of the draws, each instead of ``seed``.
        jobs: Rows at a time.
        common: Parameters changed in all rows.
        limit_s: Rows are started, and their stages run, no longer than this.
        on_row: Called when a row is done.

    Returns:
        Trial by trial, seed by seed.

    Raises:
        KeyError: The chain names a stage that there is not.
    """
    until = time.monotonic() + limit_s
    base = document(root / "params.yaml")
    for key, value in common.items():
        replace_at(base, key, value)
    steps = _steps(grid, root)
    done: dict[tuple[str, int], Future[TrialResult]] = {}

    def first(trial: Trial) -> int:
        """The first step that a row's changes reach; of the unchanged row the very first."""
        if not trial.changes:
            return 0
        reached = [
            place
            for place, step in enumerate(steps)
            for key in trial.changes
            if any(key == name or key.startswith(f"{name}.") for name in step.params)
        ]
        return min(reached, default=len(steps))

    def one(trial: Trial, seed: int, before: "Future[TrialResult] | None") -> TrialResult:
        if before is not None and before.result().status != "ok":
            reason = "the unchanged row failed, on which this one rests"
            return TrialResult(trial, "failed", reason, {}, None, "", seed)
        params = copy.deepcopy(base)
        params["seed"] = seed
        for key, value in trial.changes.items():
            replace_at(params, key, value)
        start = first(trial)
        folder, rest = (work / row.experiment / str(seed) for row in (trial, trials[0]))
        if not (folder / FINISHED).is_file():
            _prepare(folder, params, root, data.resolve(), steps)
            for out in (out for step in steps[:start] for out in step.outs):
                (folder / out).symlink_to((rest / out).resolve())
        reason = _finish(folder, _commands(grid, steps[start:], seed), root, until)
        if reason:
            result = TrialResult(trial, "failed", reason, {}, None, "", seed)
        else:
            figures = read_figures(grid, trial, lambda file: (folder / file).read_text("utf-8"))
            seconds = float(read_json(folder / FINISHED)["seconds"])
            result = replace(figures, seed=seed, seconds=seconds)
        on_row(result)
        return result

    with ThreadPoolExecutor(jobs) as pool:
        # Rows that rest on another come after it, so that none waits for ever.
        for trial in sorted(trials, key=lambda trial: first(trial) > 0):
            for seed in seeds:
                if (trial.experiment, seed) not in done:
                    before = done[trials[0].experiment, seed] if first(trial) > 0 else None
                    done[trial.experiment, seed] = pool.submit(one, trial, seed, before)
        return [
            replace(done[trial.experiment, seed].result(), trial=trial)
            for trial in trials
            for seed in seeds
        ]


def _steps(grid: Grid, root: Path) -> list[StageNode]:
    """The stages of a grid's chain, in order; none where it has commands instead."""
    if grid.commands:
        return []
    nodes = read_graph(root).nodes
    names = grid.chain or [grid.target]
    unknown = [name for name in names if name not in nodes]
    if unknown:
        raise KeyError(f"expected stages of dvc.yaml, got {unknown}")
    return [nodes[name]["stage"] for name in names]


def _commands(grid: Grid, steps: Sequence[StageNode], seed: int) -> list[list[str]]:
    """What runs a row, by the Python that runs this."""
    texts = [step.command.removeprefix("exec ") for step in steps]
    texts += [command.replace("{seed}", str(seed)) for command in grid.commands]
    commands = [shlex.split(text) for text in texts]
    return [[sys.executable, *c[1:]] if c[0] == "python" else c for c in commands]


def _prepare(
    folder: Path, params: dict[str, Any], root: Path, data: Path, steps: Sequence[StageNode]
) -> None:
    """Make a row's folder anew: its parameters, and links to everything built that it lets be."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_bytes(folder / "params.yaml", yaml.safe_dump(params, sort_keys=False).encode())
    (folder / "dvc.yaml").symlink_to((root / "dvc.yaml").resolve())  # it is a checkout, too
    _link(data, folder / "data", {Path(out) for step in steps for out in step.outs})


def _finish(folder: Path, commands: Sequence[Sequence[str]], root: Path, until: float) -> str:
    """Run a row's commands unless an earlier call did; return why one failed, or nothing."""
    if (folder / FINISHED).is_file():
        return ""
    began = time.monotonic()
    for command in commands:
        if reason := _call(command, folder, root, until - time.monotonic()):
            return reason
    write_json({"seconds": round(time.monotonic() - began, 2)}, folder / FINISHED)
    return ""


def _call(command: Sequence[str], folder: Path, root: Path, limit_s: float) -> str:
    """Run a command in a row's folder; return why it failed, or nothing."""
    if limit_s <= 0:
        return "not run: the time given was over"
    path = os.pathsep.join([str(root.resolve()), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": path.rstrip(os.pathsep)}
    with (folder / "log.txt").open("ab") as log:
        try:
            code = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=limit_s,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return f"{' '.join(command[1:4])}: not finished when the time given was over"
    if code == 0:
        return ""
    said = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    return f"{' '.join(command[1:4])}: {said[-1] if said else f'exit status {code}'}"


def _link(source: Path, target: Path, written: set[Path]) -> None:
    """Links to everything built, but for what the row's own stages write (``data/...``)."""
    target.mkdir()
    own = {Path(*out.parts[1:]) for out in written}
    parents = {parent for out in own for parent in out.parents}
    for entry in sorted(source.iterdir()):
        place = Path(entry.name)
        if place in own:
            continue
        if place not in parents:
            (target / entry.name).symlink_to(entry)
            continue
        (target / entry.name).mkdir()
        for inner in sorted(entry.iterdir()):
            if place / inner.name not in own:
                (target / entry.name / inner.name).symlink_to(inner)
    for out in own:
        (target / out).parent.mkdir(parents=True, exist_ok=True)
