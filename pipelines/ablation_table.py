"""The table of an ablation: Parquet, Markdown and one self-contained page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.ablation import Grid, TrialResult
from stages.reporting.markup import (
    NONE,
    Cell,
    Section,
    number,
    page,
    paragraph,
    source,
    table,
    text,
)
from stages.runtime.artifacts import atomic_directory, write_bytes, write_table
from stages.runtime.contracts import table_of

FOOTER = (
    "Written by <code>faceline ablate</code>. Every row is a DVC experiment: "
    "<code>dvc exp apply NAME</code> brings its parameters into the checkout."
)


def write(method: str, grid: Grid, results: Sequence[TrialResult], out: Path) -> None:
    """Write ``ablation.parquet``, ``ablation.md`` and ``ablation.html``.

    Args:
        method: The method's name.
        grid: What was varied.
        results: One per row, see :func:`pipelines.ablation.run`.
        out: Replaced when all is written.
    """
    with atomic_directory(out) as scratch:
        write_table(table_of(rows(method, grid, results), "ablation"), scratch / "ablation.parquet")
        write_bytes(scratch / "ablation.md", markdown(grid, results).encode())
        write_bytes(scratch / "ablation.html", html(grid, results).encode())


def rows(method: str, grid: Grid, results: Sequence[TrialResult]) -> list[dict[str, Any]]:
    """Rows of schema ``ablation``: one per trial and figure, failures too."""
    return [
        {
            "method": method,
            "switch": result.trial.switch,
            "value": result.trial.value,
            "changes": json.dumps(dict(result.trial.changes), sort_keys=True),
            "experiment": result.trial.experiment,
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


def markdown(grid: Grid, results: Sequence[TrialResult]) -> str:
    """The table for notes and terminals; published figures in columns of their own."""
    lines = [f"# {grid.title}", "", _origin(results), ""]
    for switch, part in _parts(grid, results):
        declared = grid.switches[switch]
        heads = [f"{figure.name}, {figure.unit}" for figure in grid.figures]
        heads += [f"published: {head}" for head in declared.published]
        lines += [f"## {switch}", "", declared.about, ""]
        lines.append("| " + " | ".join(["value", *heads, "experiment"]) + " |")
        lines.append("|---|" + "---:|" * len(heads) + "---|")
        for result in part:
            cells = _figures(grid, result) + _published(declared.published, result)
            shown = [result.trial.value, *cells, f"`{result.trial.experiment}`"]
            lines.append("| " + " | ".join(shown) + " |")
        lines.append("")
        lines += [f"{r.trial.value}: {r.reason}\n" for r in part if r.reason]
        if declared.published:
            lines += [f"Published, real data, not comparable: {declared.source}.", ""]
    return "\n".join(lines)


def html(grid: Grid, results: Sequence[TrialResult]) -> str:
    """The table as a page that fetches nothing."""
    sections = []
    for switch, part in _parts(grid, results):
        declared = grid.switches[switch]
        best = {
            figure.name: min(
                (v for r in part if (v := r.figures.get(figure.name)) is not None), default=None
            )
            for figure in grid.figures
        }
        body = []
        for result in part:
            cells = [Cell(text(result.trial.value), "steady", header=True)]
            for figure in grid.figures:
                value = result.figures.get(figure.name)
                bold = "best" if value is not None and value == best[figure.name] else ""
                cells.append(number(value, figure.digits, bold))
            cells.append(
                Cell(source(synthetic=result.synthetic))
                if result.status == "ok"
                else Cell(text(f"failed: {result.reason}"))
            )
            cells += [Cell(c, "num quiet") for c in _published(declared.published, result)]
            body.append(cells)
        caption = "The lowest of a column is bold."
        groups = [("", 1), ("measured here", len(grid.figures) + 1)]
        if declared.published:
            groups.append(("published, real data, not comparable", len(declared.published)))
            caption += f" Published figures: {text(declared.source)}."
        heads = [Cell(text(f"{f.name}, {f.unit}"), "num") for f in grid.figures]
        heads += [Cell("data"), *[Cell(text(head), "num") for head in declared.published]]
        content = table([Cell(text(switch)), *heads], body, groups=groups, caption=caption)
        sections.append(Section(switch, switch, paragraph(text(declared.about)) + content))
    return page(grid.title, text(_origin(results)), "", sections, FOOTER)


def _parts(grid: Grid, results: Sequence[TrialResult]) -> list[tuple[str, list[TrialResult]]]:
    """The rows of each switch that was run, the unchanged parameters first."""
    base = [result for result in results if not result.trial.switch]
    return [
        (switch, base + part)
        for switch in grid.switches
        if (part := [result for result in results if result.trial.switch == switch])
    ]


def _origin(results: Sequence[TrialResult]) -> str:
    """What the figures rest on, in a sentence."""
    known = {result.synthetic for result in results if result.status == "ok"}
    if known == {True}:
        data = "Measured on synthetic data: the figures compare rows, nothing else."
    elif known == {False}:
        data = "Measured on real data."
    else:
        data = "What the data are is not the same for all rows, or not recorded."
    weights = sorted({result.weights for result in results if result.weights})
    return f"{data} Weights: {', '.join(weights) or 'none'}."


def _figures(grid: Grid, result: TrialResult) -> list[str]:
    return [
        NONE if (v := result.figures.get(figure.name)) is None else f"{v:.{figure.digits}f}"
        for figure in grid.figures
    ]


def _published(heads: Sequence[str], result: TrialResult) -> list[str]:
    figures = result.trial.published or (None,) * len(heads)
    return [NONE if figure is None else f"{figure:.2f}" for figure in figures]
