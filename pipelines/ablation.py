"""Ablations: a declared grid of parameter changes, each run as a DVC experiment, one table.

A grid is ``ablations/<method>.yaml``; nothing of it is in the graph, which never pays for it.
Every row is one ``dvc exp run --temp``: a copy of the checkout with some parameters changed, in
which only what depends on them is computed. DVC keeps the results. A row's experiment is named by
the commit it starts from, what was changed since, and the parameters, so that a row that exists is
not run again: an interrupted ablation goes on where it was.
"""

import copy
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.engine import end_group, environment
from stages.runtime.artifacts import sha256_json
from stages.runtime.params import Params, document, located

logger = logging.getLogger("faceline")

FOLDER: Final = "ablations"
BASE: Final = "as configured"
CODE: Final = ("models", "stages", "pipelines")
_REFS: Final = "refs/exps"

Value = bool | int | float | str | list[Any] | None


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Part):
    """A number that every row of the table shows."""

    name: str = Field(description="heading")
    unit: str
    file: str = Field(description="JSON document that the target writes")
    at: str = Field(description="keys from its top to the number, joined by /")
    digits: int = Field(default=3, ge=0)


class Row(_Part):
    """One setting of a switch."""

    value: str = Field(description="as the table says it")
    set: dict[str, Value] = Field(min_length=1, description="dotted parameter: its value")
    published: list[float | None] = Field(default=[], description="the paper's figures for it")


class Switch(_Part):
    """Something that can be turned off, on or to other values."""

    about: str
    source: str = Field(default="", description="paper and table of the published figures")
    published: list[str] = Field(default=[], description="their headings")
    rows: list[Row] = Field(min_length=1)

    @model_validator(mode="after")
    def _complete(self) -> "Switch":
        if self.published and not self.source:
            raise ValueError("published figures need a source")
        for row in self.rows:
            if row.published and len(row.published) != len(self.published):
                raise ValueError(
                    f"expected {len(self.published)} published figures for {row.value!r}, got "
                    f"{len(row.published)}"
                )
        return self


class Grid(_Part):
    """All of a method's ablations."""

    title: str
    target: str = Field(
        default="", description="stage of the graph that brings every figure up to date"
    )
    chain: list[str] = Field(
        default=[], description="the target and the stages before it that rows may change, in order"
    )
    commands: list[str] = Field(
        default=[],
        description="instead of a target, for what no graph holds: run in a row's folder; "
        "{seed} is the row's",
    )
    figures: list[Figure] = Field(min_length=1)
    switches: dict[str, Switch] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_way(self) -> "Grid":
        if bool(self.target) == bool(self.commands):
            raise ValueError("expected a target of the graph or commands, one of the two")
        if self.chain and self.chain[-1] != self.target:
            raise ValueError(f"expected a chain that ends in {self.target}, got {self.chain}")
        return self


@dataclass(frozen=True, slots=True)
class Trial:
    """One row to run.

    Attributes:
        switch: Its switch; empty for the parameters as they are.
        value: As the table says it.
        changes: Dotted parameter to value, only those that differ from ``params.yaml``.
        published: The paper's figures for it.
        experiment: Name of its DVC experiment.
    """

    switch: str
    value: str
    changes: Mapping[str, Value]
    published: tuple[float | None, ...]
    experiment: str


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What a row gave.

    Attributes:
        trial: The row.
        status: ``ok`` or ``failed``.
        reason: Why it failed.
        figures: By name; None where the number is not there.
        synthetic: Whether the figures rest on synthetic data; None when not recorded.
        weights: Where the method's weights come from, in words.
        seed: Root of the draws where it is not that of ``params.yaml``.
        seconds: What its stages took, where they were run one by one.
    """

    trial: Trial
    status: str
    reason: str
    figures: Mapping[str, float | None]
    synthetic: bool | None
    weights: str
    seed: int | None = None
    seconds: float | None = None


def load_grid(method: str, root: Path) -> Grid:
    """Read a method's grid.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is not as declared here (pydantic says where).
    """
    file = root / FOLDER / f"{method}.yaml"
    if not file.is_file():
        known = sorted(path.stem for path in (root / FOLDER).glob("*.yaml"))
        raise FileNotFoundError(f"expected a method with an ablation among {known}, got {method!r}")
    return Grid.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))


def plan(
    method: str,
    grid: Grid,
    root: Path,
    *,
    only: str | None = None,
    check: Callable[[Any], object] = Params.model_validate,
) -> list[Trial]:
    """The rows of a grid, first the parameters as they are.

    Args:
        method: Begins the experiments' names.
        grid: What to vary.
        root: The checkout.
        only: One switch; None takes all.
        check: Refuses parameters that no stage would take.

    Raises:
        KeyError: There is no such switch, or no such parameter.
        ValueError: A changed parameter is out of range, or code is not under git and would be
            missing from the experiments.
    """
    if not grid.target:
        raise ValueError(f"{method} is not in the graph: run its rows with --stages")
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", "--", *CODE).split()
    if untracked:
        raise ValueError(
            f"expected all code under git, got {untracked[0]}; git add it, experiments run on what "
            "git knows"
        )
    state = _git(root, "rev-parse", "HEAD") + _git(root, "diff", "--binary", "HEAD")
    return trials_of(method, grid, root, state, only=only, check=check)


def trials_of(
    method: str,
    grid: Grid,
    root: Path,
    state: str,
    *,
    only: str | None = None,
    check: Callable[[Any], object] = Params.model_validate,
) -> list[Trial]:
    """The rows of a grid; see :func:`plan`.

    Args:
        method: Begins the rows' names.
        grid: What to vary.
        root: The checkout.
        state: Stands for all code in a row's name.
        only: One switch; None takes all.
        check: Refuses parameters that no stage would take.

    Raises:
        KeyError: There is no such switch, or no such parameter.
        ValueError: A changed parameter is out of range.
    """
    if only is not None and only not in grid.switches:
        raise KeyError(f"expected a switch among {sorted(grid.switches)}, got {only!r}")
    rows: list[tuple[str, str, Mapping[str, Value], tuple[float | None, ...]]]
    rows = [("", BASE, {}, ())]
    for name, switch in grid.switches.items():
        if only in (None, name):
            rows += [(name, row.value, row.set, tuple(row.published)) for row in switch.rows]
    base = document(root / "params.yaml")
    trials = []
    for switch_name, value, wanted, published in rows:
        params = copy.deepcopy(base)
        changes = {key: to for key, to in wanted.items() if replace_at(params, key, to) != to}
        check(params)
        stamp = sha256_json([state, grid.target, sorted(changes.items())])[:12]
        trials.append(Trial(switch_name, value, changes, published, f"{method}-{stamp}"))
    return trials


def run(
    grid: Grid,
    trials: Sequence[Trial],
    root: Path,
    *,
    on_row: Callable[[TrialResult, bool], None] = lambda _result, _ran: None,
) -> list[TrialResult]:
    """Run the rows that have not been run, one after another, and read every row's figures.

    A row that fails is a failed row; the others are run all the same.

    Args:
        grid: Target and figures.
        trials: See :func:`plan`.
        root: The checkout; its files are left as they are.
        on_row: Called after each row: the result, and whether it was run now.
    """
    done: dict[str, TrialResult] = {}
    results = []
    for trial in trials:
        ran = False
        if trial.experiment in done:  # the same parameters under another name
            result = replace(done[trial.experiment], trial=trial)
        else:
            reason = ""
            revision = _experiment(trial.experiment, root)
            if revision is None:
                ran = True
                reason = _run_one(grid.target, trial, root)
                revision = None if reason else _experiment(trial.experiment, root)
            if revision is None:
                reason = reason or "the experiment left no result"
                result = TrialResult(trial, "failed", reason, {}, None, "")
            else:
                result = _read(grid, trial, revision, root)
            done[trial.experiment] = result
        results.append(result)
        on_row(result, ran)
    return results


def _run_one(target: str, trial: Trial, root: Path) -> str:
    """Run one experiment; return why it failed, or nothing."""
    command = [sys.executable, "-m", "pipelines.leashed", str(os.getpid()), "--wait-for-lock"]
    command += ["exp", "run", "--temp", "--name", trial.experiment]
    for key, value in sorted(trial.changes.items()):
        file, name = located(key, root / "params.yaml")
        command += ["--set-param", f"{file}:{name}={json.dumps(value)}"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, target],
            cwd=root,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=environment(),
        )
        try:
            code = process.wait()
        except BaseException:
            end_group(process.pid, process.poll)
            process.wait()
            raise
        log.seek(0)
        said = log.read().decode(errors="replace")
    if code == 0:
        return ""
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")]
    logger.debug("%s", said)
    return (errors or said.splitlines()[-1:] or [f"exit status {code}"])[0].removeprefix("ERROR: ")


def _experiment(name: str, root: Path) -> str | None:
    """The commit of an experiment that starts from the present commit."""
    head = _git(root, "rev-parse", "HEAD").strip()
    where = f"{_REFS}/{head[:2]}/{head[2:]}/{name}"
    return _git(root, "for-each-ref", "--format=%(objectname)", where).strip() or None


def _read(grid: Grid, trial: Trial, revision: str, root: Path) -> TrialResult:
    """Read the figures that an experiment left."""
    import dvc.api

    def text_of(file: str) -> str:
        return str(dvc.api.read(file, repo=str(root), rev=revision))

    return read_figures(grid, trial, text_of)


def read_figures(grid: Grid, trial: Trial, text_of: Callable[[str], str]) -> TrialResult:
    """A row's figures from the documents that it left.

    Args:
        grid: Which figures.
        trial: The row.
        text_of: Content of a file by its path in the checkout.
    """
    documents: dict[str, Any] = {}
    figures: dict[str, float | None] = {}
    for figure in grid.figures:
        if figure.file not in documents:
            try:
                documents[figure.file] = json.loads(text_of(figure.file))
            except OSError as error:
                reason = f"expected {figure.file} in experiment {trial.experiment}: {error}"
                return TrialResult(trial, "failed", reason, {}, None, "")
        found = documents[figure.file]
        for key in figure.at.split("/"):
            found = found.get(key) if isinstance(found, dict) else None
        is_number = isinstance(found, int | float) and not isinstance(found, bool)
        figures[figure.name] = float(found) if is_number else None
    synthetic, weights = (
        next((found[key] for found in documents.values() if key in found), None)
        for key in ("synthetic", "weights")
    )
    return TrialResult(trial, "ok", "", figures, synthetic, str(weights or "not recorded"))


def replace_at(params: dict[str, Any], key: str, value: Value) -> object:
    """Put a value at a dotted place and return the one that was there.

    Raises:
        KeyError: There is no such place.
    """
    *path, last = key.split(".")
    place: Any = params
    for part in path:
        place = place.get(part) if isinstance(place, dict) else None
    if not isinstance(place, dict) or last not in place:
        raise KeyError(f"expected a parameter of params.yaml or params/, got {key}")
    old = place[last]
    place[last] = value
    return old


def _git(root: Path, *arguments: str) -> str:
    """What git says.

    Raises:
        ValueError: It refuses; ablations need a commit to start from.
    """
    result = subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, errors="replace", check=False
    )
    if result.returncode != 0:
        raise ValueError(
            f"expected a git checkout with a commit at {root}, got: {result.stderr.strip()}"
        )
    return result.stdout
