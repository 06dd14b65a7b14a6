"""The report's part on ablations: tables of switches, as ``faceline ablate`` gathered them.

Ablations are not in the graph, which never pays for them. What one measured is kept in
``ablations/measured/<method>.json`` and shown as it is, with the conditions it was measured under.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from stages.reporting.markup import (
    Cell,
    Section,
    details,
    missing,
    number,
    paragraph,
    source,
    table,
    text,
)
from stages.runtime.artifacts import read_json

TITLE: Final = "Ablations"
VERSION: Final = 1


def load_measured(folder: Path) -> list[dict[str, Any]]:
    """The documents of ``faceline ablate --keep``, by method.

    Raises:
        ValueError: One is of another version.
    """
    documents = []
    for path in sorted(folder.glob("*.json")):
        document = read_json(path)
        if document.get("version") != VERSION:
            raise ValueError(
                f"{path}: expected an ablation of version {VERSION}, got "
                f"{document.get('version')!r}; measure it again with faceline ablate --keep"
            )
        documents.append(document)
    return documents


def ablation_section(documents: Sequence[Mapping[str, Any]]) -> Section:
    """All methods' tables, each method's behind a heading that opens."""
    if not documents:
        return Section("ablations", TITLE, missing("ablations/measured/*.json", "ablate"))
    body = [
        paragraph(
            "Each table changes one switch and trains or reconstructs again; the figures are those "
            "of the evaluation stage. They were measured by <code>faceline ablate</code> and are "
            "kept with the code: building this page does not measure them again. Where there are "
            "several seeds, a figure is their mean and ± half the way from the least to the "
            "largest. Rows compare with each other; differences within ± say nothing."
        )
    ]
    for document in documents:
        tables = "".join(
            f"<h4>{text(section.title)}</h4>{section.body}" for section in switch_sections(document)
        )
        body.append(
            details(str(document["title"]), paragraph(text(conditions_of(document))) + tables)
        )
    return Section("ablations", TITLE, "\n".join(body))


def conditions_of(document: Mapping[str, Any]) -> str:
    """Data, weights, seeds and changed parameters of a document, in sentences."""
    rows = [document["base"], *[row for s in document["switches"] for row in s["rows"]]]
    known = {row["synthetic"] for row in rows if row["status"] == "ok"}
    if known == {True}:
        data = "Measured on synthetic data: the figures compare rows, nothing else."
    elif known == {False}:
        data = "Measured on real data."
    else:
        data = "What the data are is not the same for all rows, or not recorded."
    weights = sorted({row["weights"] for row in rows if row["weights"]})
    said = [data, f"Weights: {', '.join(weights) or 'none'}."]
    seeds = document["seeds"]
    if seeds:
        said.append(f"Seeds: {', '.join(map(str, seeds))}.")
    if document["common"]:
        changed = ", ".join(f"{key} = {value}" for key, value in document["common"].items())
        said.append(f"Other than the committed parameters, in all rows: {changed}.")
    if document["note"]:
        said.append(str(document["note"]))
    return " ".join(said)


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of those there are."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


def spread_of(values: Sequence[float | None]) -> float | None:
    """Half the way from the least to the largest; None below two."""
    there = [value for value in values if value is not None]
    return (max(there) - min(there)) / 2 if len(there) > 1 else None


def switch_sections(document: Mapping[str, Any]) -> list[Section]:
    """One table per switch, the unchanged parameters first, published figures in own columns."""
    figures = document["figures"]
    sections = []
    for switch in document["switches"]:
        rows = [document["base"], *switch["rows"]]
        best = {
            figure["name"]: min(
                (m for row in rows if (m := _mean(row, figure)) is not None), default=None
            )
            for figure in figures
        }
        body = []
        for row in rows:
            cells = [Cell(text(row["value"]), "steady", header=True)]
            for figure in figures:
                mean, spread = _mean(row, figure), spread_of(row["figures"].get(figure["name"], []))
                bold = "best" if mean is not None and mean == best[figure["name"]] else ""
                shown = number(mean, figure["digits"], bold)
                if spread is not None:
                    shown = Cell(f"{shown.html} ± {spread:.{figure['digits']}f}", shown.kind)
                cells.append(shown)
            unrun = row["reason"].startswith("not run")
            cells.append(
                Cell(source(synthetic=row["synthetic"]))
                if row["status"] == "ok"
                else Cell(text(row["reason"] if unrun else f"failed: {row['reason']}"))
            )
            published = row["published"] or [None] * len(switch["published"])
            cells += [number(value, 2, "quiet") for value in published]
            body.append(cells)
        caption = "The lowest of a column is bold."
        groups = [("", 1), ("measured here", len(figures) + 1)]
        if switch["published"]:
            groups.append(("published, real data, not comparable", len(switch["published"])))
            caption += f" Published figures: {text(switch['source'])}."
        heads = [Cell(text(f"{f['name']}, {f['unit']}"), "num") for f in figures]
        heads += [Cell("data"), *[Cell(text(head), "num") for head in switch["published"]]]
        content = table([Cell(text(switch["name"])), *heads], body, groups=groups, caption=caption)
        sections.append(
            Section(switch["name"], switch["name"], paragraph(text(switch["about"])) + content)
        )
    return sections


def _mean(row: Mapping[str, Any], figure: Mapping[str, Any]) -> float | None:
    return mean_of(row["figures"].get(figure["name"], []))
