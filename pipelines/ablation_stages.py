"""Rows of an ablation without DVC: each in a folder of its own, many at a time, with several seeds.

For a machine with many cores and no DVC, or for more than one seed, which DVC would carry down to
the raw data. A row's folder holds its ``params.yaml`` and links to a built graph's outputs. Of the
grid's chain the stages from the first one that a row's changes reach are run, with the commands of
``dvc.yaml``; what they need from before is the unchanged row's of the same seed. The figures come
from the same files as those of an experiment.
"""

import copy
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from pipelines.ablation import CODE, Grid, Trial, TrialResult, Value, read_figures, replace_at
from stages.runtime.artifacts import read_json, write_bytes, write_json
from stages.runtime.process import ONE_THREAD

LIMIT_S = 86400.0


@dataclass(frozen=True, slots=True)
class Step:
    """A stage of the chain.

    Attributes:
        name: Its address in ``dvc.yaml``.
        command: What it runs.
        params: Dotted parameters that it reads.
        outs: What it writes, relative to the row's folder.
    """

    name: str
    command: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]


def code_state(root: Path) -> str:
    """A hash of all code, which names the rows as a commit does for experiments."""
    digest = hashlib.sha256()
    for folder in CODE:
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def resolve(root: Path, name: str, params: Mapping[str, Any]) -> Step:
    """A stage of ``dvc.yaml`` with its names filled in, without DVC.

    Raises:
        KeyError: There is no such stage.
    """
    base, _, key = name.partition("@")
    stage = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"].get(base)
    if stage is None or bool(key) != ("foreach" in stage):
        raise KeyError(f"expected a stage of dvc.yaml, got {name}")
    known: dict[str, Any] = dict(params)
    if key:
        items = stage["foreach"]
        if key not in items:
            raise KeyError(f"expected {base}@ one of {sorted(items)}, got {name}")
        known |= {"key": key, "item": items[key] if isinstance(items, dict) else key}
        stage = stage["do"]

    def filled(text: str) -> str:
        def value(match: re.Match[str]) -> str:
            found: Any = known
            for part in match.group(1).split("."):
                found = found[part]
            return str(found)

        return re.sub(r"\$\{([^}]+)\}", value, text)

    command = shlex.split(filled(stage["cmd"]))
    command = command[1:] if command[0] == "exec" else command
    if command[0] == "python":
        command[0] = sys.executable
    return Step(
        name,
        tuple(command),
        tuple(filled(text) for text in stage.get("params", [])),
        tuple(filled(text) for text in stage["outs"]),
    )


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
    """
    until = time.monotonic() + limit_s
    text = (root / "params.yaml").read_text(encoding="utf-8")
    base = yaml.safe_load(text)
    for key, value in common.items():
        replace_at(base, key, value)
    steps = [resolve(root, name, base) for name in grid.chain or [grid.target] if name]
    done: dict[tuple[str, int], Future[TrialResult]] = {}

    def first(trial: Trial) -> int:
        """The first step that a row's changes reach."""
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
        rest = work / trials[0].experiment / str(seed)
        result = _row(grid, trial, params, steps, start, root, data, work, rest, until)
        on_row(result)
        return result

    ordered = sorted(trials, key=lambda trial: 0 if not trial.changes else first(trial) > 0)
    with ThreadPoolExecutor(jobs) as pool:
        for (
            trial
        ) in ordered:  # rows that rest on another come after it, so that none waits for ever
            for seed in seeds:
                if (trial.experiment, seed) not in done:
                    rests = steps and trial.changes and first(trial) > 0
                    before = done[(trials[0].experiment, seed)] if rests else None
                    done[(trial.experiment, seed)] = pool.submit(one, trial, seed, before)
        return [
            replace(done[(trial.experiment, seed)].result(), trial=trial)
            for trial in trials
            for seed in seeds
        ]


def _row(
    grid: Grid,
    trial: Trial,
    params: dict[str, Any],
    steps: Sequence[Step],
    start: int,
    root: Path,
    data: Path,
    work: Path,
    rest: Path,
    until: float,
) -> TrialResult:
    """Run one row with one seed, or read what it left before."""
    seed = int(params["seed"])
    folder = work / trial.experiment / str(seed)
    finished = folder / "finished.json"
    if not finished.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_bytes(folder / "params.yaml", yaml.safe_dump(params, sort_keys=False).encode())
        (folder / "dvc.yaml").symlink_to((root / "dvc.yaml").resolve())  # it is a checkout, too
        _link(data.resolve(), folder / "data", {Path(out) for step in steps for out in step.outs})
        for step in steps[:start]:
            for out in step.outs:
                (folder / out).symlink_to((rest / out).resolve())
        commands = [step.command for step in steps[start:]]
        if grid.commands:
            filled = [command.replace("{seed}", str(seed)) for command in grid.commands]
            commands = [tuple(shlex.split(command)) for command in filled]
            commands = [(sys.executable, *c[1:]) if c[0] == "python" else c for c in commands]
        began = time.monotonic()
        for command in commands:
            reason = _call(command, folder, root, until - time.monotonic())
            if reason:
                return TrialResult(trial, "failed", reason, {}, None, "", seed)
        write_json({"seconds": round(time.monotonic() - began, 2)}, finished)
    result = read_figures(grid, trial, lambda file: (folder / file).read_text(encoding="utf-8"))
    return replace(result, seed=seed, seconds=float(read_json(finished)["seconds"]))


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
