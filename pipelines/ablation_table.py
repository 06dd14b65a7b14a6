"""An ablation's table: a document for the report, Parquet, Markdown and a page of its own."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.ablation import Grid, TrialResult, Value
from stages.reporting.ablations import (
    VERSION,
    conditions_of,
    mean_of,
    spread_of,
    switch_sections,
)
from stages.reporting.markup import NONE, page, text
from stages.runtime.artifacts import atomic_directory, write_bytes, write_json, write_table
from stages.runtime.contracts import table_of

MEASURED = Path("ablations") / "measured"
FOOTER = (
    "Written by <code>faceline ablate</code>. Rows that DVC ran are experiments: "
    "<code>dvc exp apply NAME</code> brings their parameters into the checkout."
)


def write(
    method: str,
    grid: Grid,
    results: Sequence[TrialResult],
    out: Path,
    *,
    common: Mapping[str, Value] | None = None,
    note: str = "",
) -> dict[str, Any]:
    """Write ``ablation.{json,parquet,md,html}`` and return the first's content.

    Args:
        method: The method's name.
        grid: What was varied.
        results: One per row and seed, see :func:`pipelines.ablation.run`.
        out: Replaced when all is written.
        common: Parameters that were changed in all rows.
        note: What else to know of the conditions.
    """
    found = document(method, grid, results, common=common, note=note)
    with atomic_directory(out) as scratch:
        write_json(found, scratch / "ablation.json")
        write_table(table_of(rows(method, grid, results), "ablation"), scratch / "ablation.parquet")
        write_bytes(scratch / "ablation.md", markdown(found).encode())
        write_bytes(scratch / "ablation.html", html(found).encode())
    return found


def document(
    method: str,
    grid: Grid,
    results: Sequence[TrialResult],
    *,
    common: Mapping[str, Value] | None = None,
    note: str = "",
) -> dict[str, Any]:
    """Everything that a table needs; seeds of a row side by side. See :func:`write`."""

    def row_of(part: Sequence[TrialResult]) -> dict[str, Any]:
        good = [result for result in part if result.status == "ok"]
        first = (good or part)[0]
        return {
            "value": first.trial.value,
            "changes": dict(first.trial.changes),
            "published": list(first.trial.published),
            "experiment": first.trial.experiment,
            "status": "ok" if len(good) == len(part) else "failed",
            "reason": next((result.reason for result in part if result.reason), ""),
            "synthetic": first.synthetic,
            "weights": first.weights,
            "figures": {f.name: [r.figures.get(f.name) for r in part] for f in grid.figures},
        }

    switches = []
    for name, switch in grid.switches.items():
        part = [result for result in results if result.trial.switch == name]
        if part:
            values = dict.fromkeys(result.trial.value for result in part)
            switches.append(
                {
                    "name": name,
                    "about": switch.about,
                    "source": switch.source,
                    "published": list(switch.published),
                    "rows": [row_of([r for r in part if r.trial.value == v]) for v in values],
                }
            )
    return {
        "version": VERSION,
        "method": method,
        "title": grid.title,
        "seeds": sorted({result.seed for result in results if result.seed is not None}),
        "common": dict(common or {}),
        "note": note,
        "figures": [f.model_dump(include={"name", "unit", "digits"}) for f in grid.figures],
        "base": row_of([result for result in results if not result.trial.switch]),
        "switches": switches,
    }


def rows(method: str, grid: Grid, results: Sequence[TrialResult]) -> list[dict[str, Any]]:
    """Rows of schema ``ablation``: one per trial, seed and figure, failures too."""
    return [
        {
            "method": method,
            "switch": result.trial.switch,
            "value": result.trial.value,
            "changes": json.dumps(dict(result.trial.changes), sort_keys=True),
            "experiment": result.trial.experiment,
            "seed": result.seed,
            "status": result.status,
            "reason": result.reason,
            "figure": figure.name,
            "unit": figure.unit,
            "measured": result.figures.get(figure.name),
            "synthetic": result.synthetic,
            "weights": result.weights,
        }
        for result in results
        for figure in grid.figures
    ]


def markdown(found: Mapping[str, Any]) -> str:
    """The tables of a document for notes and terminals; published figures in own columns."""
    lines = [f"# {found['title']}", "", conditions_of(found), ""]
    for switch in found["switches"]:
        part = [found["base"], *switch["rows"]]
        heads = [f"{figure['name']}, {figure['unit']}" for figure in found["figures"]]
        heads += [f"published: {head}" for head in switch["published"]]
        lines += [f"## {switch['name']}", "", switch["about"], ""]
        lines.append("| " + " | ".join(["value", *heads, "experiment"]) + " |")
        lines.append("|---|" + "---:|" * len(heads) + "---|")
        for row in part:
            published = row["published"] or [None] * len(switch["published"])
            cells = [_figure(row, figure) for figure in found["figures"]]
            cells += [NONE if value is None else f"{value:.2f}" for value in published]
            lines.append("| " + " | ".join([row["value"], *cells, f"`{row['experiment']}`"]) + " |")
        lines.append("")
        lines += [f"{row['value']}: {row['reason']}\n" for row in part if row["reason"]]
        if switch["published"]:
            lines += [f"Published, real data, not comparable: {switch['source']}.", ""]
    return "\n".join(lines)


def html(found: Mapping[str, Any]) -> str:
    """The tables of a document as a page that fetches nothing."""
    sections = switch_sections(found)
    return page(str(found["title"]), text(conditions_of(found)), "", sections, FOOTER)


def _figure(row: Mapping[str, Any], figure: Mapping[str, Any]) -> str:
    values, digits = row["figures"].get(figure["name"], []), figure["digits"]
    mean, spread = mean_of(values), spread_of(values)
    if mean is None:
        return NONE
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")
