"""``faceline ablate``: its options, its rows, its call."""

import argparse
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

from pipelines import ablation

logger = logging.getLogger("faceline")


class Measured(NamedTuple):
    """What was measured: rows of the table, the tables as text, and whether a row failed."""

    rows: list[dict[str, Any]]
    tables: str
    failed: bool


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``faceline ablate``."""
    parser.add_argument("method", metavar="METHOD", help="one that has ablations/METHOD.yaml")
    parser.add_argument("--only", metavar="SWITCH", help="one switch of the grid")
    parser.add_argument("--list", action="store_true", help="show the rows, run nothing")
    parser.add_argument(
        "--out", type=Path, help="folder of the table (default out/ablations/METHOD)"
    )
    parser.add_argument(
        "--keep", action="store_true", help="also keep it in ablations/measured, for the report"
    )
    parser.add_argument(
        "--stages",
        type=Path,
        metavar="DATA",
        help="no experiments: run the rows' own stages on this built data folder",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        metavar="N",
        help="with --stages: each row with each of these",
    )
    parser.add_argument("--jobs", type=int, default=1, help="with --stages: rows at a time")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=JSON",
        help="with --stages: parameters changed in all rows",
    )
    parser.add_argument("--limit-s", type=float, default=86400.0, help="with --stages: seconds")
    parser.add_argument("--note", default="", help="what the table says of its conditions")
    parser.add_argument("--json", action="store_true")


def rows(options: argparse.Namespace, root: Path) -> list[dict[str, Any]]:
    """The rows that would be run.

    Raises:
        KeyError, ValueError: The grid or an option cannot be used.
    """
    _, trials = _planned(options, root)
    return [
        {
            "switch": trial.switch,
            "value": trial.value,
            "set": dict(trial.changes),
            "name": trial.experiment,
        }
        for trial in trials
    ]


def line(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    changes = ", ".join(f"{key}={json.dumps(to)}" for key, to in row["set"].items())
    return f"{_name(row['switch'], row['value'])}  [{changes or 'no change'}]\n"


def measure(options: argparse.Namespace, root: Path) -> Measured:
    """Run a grid and write its tables.

    Raises:
        KeyError, ValueError: The grid or an option cannot be used.
    """
    from pipelines import ablation_stages, ablation_table
    from stages.runtime.artifacts import write_json
    from stages.runtime.params import load

    grid, trials = _planned(options, root)
    common = _common(options)
    if options.stages is None:
        results = ablation.run(
            grid,
            trials,
            root,
            on_row=lambda result, ran: _tell(result, "" if ran else ", kept from before"),
        )
    else:
        results = ablation_stages.run(
            grid,
            trials,
            root,
            data=options.stages,
            work=root / ".work" / "ablations",
            seeds=options.seeds or [load(root / "params.yaml").seed],
            jobs=options.jobs,
            common=common,
            limit_s=options.limit_s,
            on_row=lambda result: _tell(result, f", seed {result.seed}"),
        )
    out = options.out or root / "out" / "ablations" / options.method
    found = ablation_table.write(
        options.method, grid, results, out, common=common, note=options.note
    )
    if options.keep:
        write_json(found, root / ablation_table.MEASURED / f"{options.method}.json")
    logger.info("table: %s", out / "ablation.html")
    return Measured(
        ablation_table.rows(options.method, grid, results),
        ablation_table.markdown(found),
        any(result.status != "ok" for result in results),
    )


def _planned(options: argparse.Namespace, root: Path) -> tuple[ablation.Grid, list[ablation.Trial]]:
    from pipelines import ablation_stages

    grid = ablation.load_grid(options.method, root)
    common = _common(options)
    if options.stages is not None:
        state = ablation_stages.code_state(root) + json.dumps(common, sort_keys=True)
        return grid, ablation.trials_of(options.method, grid, root, state, only=options.only)
    if options.seeds or common:
        raise ValueError("--seeds and --set need --stages; DVC's rows are those of the grid")
    return grid, ablation.plan(options.method, grid, root, only=options.only)


def _common(options: argparse.Namespace) -> dict[str, ablation.Value]:
    """Parameters changed in all rows."""
    return {key: json.loads(to) for key, _, to in (text.partition("=") for text in options.set)}


def _tell(result: ablation.TrialResult, word: str) -> None:
    name = _name(result.trial.switch, result.trial.value)
    reason = f": {result.reason}"[:400] if result.reason else ""
    logger.info("%s: %s%s%s", name, result.status, word, reason)


def _name(switch: str, value: str) -> str:
    return f"{switch}: {value}" if switch else value
