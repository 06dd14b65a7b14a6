"""The report's part on registered scans."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from stages.reporting.charts import histogram
from stages.reporting.inputs import DATASET_TITLES
from stages.reporting.markup import (
    Cell,
    Section,
    details,
    figure,
    image,
    missing,
    name,
    number,
    paragraph,
    table,
    text,
)
from stages.reporting.pictures import photographic
from stages.reporting.production import picture_figures
from stages.runtime.artifacts import read_table
from stages.runtime.compute import map_ordered
from stages.runtime.params import ComputeParams, ReportParams

SECONDS_PER_SET = 0.5
"""Rough cost of a set's pictures, for the choice of where they are encoded."""


def registration_section(data: Path, section: ReportParams, compute: ComputeParams) -> Section:
    """Residuals of every registered scan set, how they spread, and its worst registrations."""
    folders = sorted(p.parent for p in (data / "registered").glob("*/registrations.parquet"))
    if not folders:
        return Section("registration", "Registration", missing("data/registered", "register"))
    rows = [_registration_row(folder) for folder in folders]
    body = [
        paragraph(
            "Head scans brought into FLAME's topology: shape, expression and pose are fitted, then "
            "the vertices move freely onto the scan. The residual is the distance from the "
            "registered face to the scan."
        ),
        table(
            [
                Cell("Scan set"),
                *[
                    Cell(word, "num")
                    for word in (
                        "accepted",
                        "rejected",
                        "failed",
                        "median, mm",
                        "95&nbsp;%, mm",
                        "landmarks, mm",
                        "coverage, %",
                    )
                ],
            ],
            rows,
            caption=(
                "Medians over the accepted scans of each scan's median residual, its 95&nbsp;% "
                "residual, the root mean square at its landmarks, and the share of the face that "
                "has a scan beside it."
            ),
        ),
    ]
    left_out = [entry for folder in folders for entry in _left_out(folder)]
    if left_out:
        body.append(
            details(
                f"Scans that were not accepted, and why: {len(left_out)}",
                table([Cell("Scan set"), Cell("Scan"), Cell("Status"), Cell("Reason")], left_out),
            )
        )
    body += map_ordered(
        partial(_set, section=section),
        folders,
        compute=compute,
        seconds_per_item=SECONDS_PER_SET,
        label="scan sets shown",
    )
    return Section("registration", "Registration", "\n".join(body))


def _registration_row(folder: Path) -> list[Cell]:
    columns = ["status", "residual_median_mm", "residual_q95_mm", "landmark_rms_mm", "coverage"]
    found = read_table(folder / "registrations.parquet", columns).to_pydict()
    accepted = [index for index, word in enumerate(found["status"]) if word == "ok"]

    def middle(column: str, factor: float = 1.0) -> float | None:
        values = [found[column][index] for index in accepted]
        known = [value for value in values if value is not None]
        return factor * float(np.median(known)) if known else None

    return [
        Cell(f'<a href="#{_anchor(folder)}">{text(_title(folder))}</a>', header=True),
        *[
            number(sum(word == status for word in found["status"]), 0)
            for status in ("ok", "rejected", "failed")
        ],
        number(middle("residual_median_mm"), 3),
        number(middle("residual_q95_mm")),
        number(middle("landmark_rms_mm")),
        number(middle("coverage", 100.0), 0),
    ]


def _left_out(folder: Path) -> list[list[Cell]]:
    """Rejected and failed scans with their reasons, as table rows."""
    columns = ["item_id", "status", "reason"]
    rows = read_table(folder / "registrations.parquet", columns).to_pylist()
    return [
        [name(_title(folder)), *[Cell(text(row[column])) for column in columns]]
        for row in sorted(rows, key=lambda row: str(row["item_id"]))
        if row["status"] != "ok"
    ]


def _set(folder: Path, section: ReportParams) -> str:
    """One scan set: how its residuals spread, the pages of the worst, some single scans."""
    parts = [f'<h3 id="{_anchor(folder)}">{text(_title(folder))}</h3>', _spread(folder)]
    pages = _pages(folder)
    for page in pages[: section.sheet_pages]:
        picture = photographic(page, section.sheet_px)
        if picture is not None:
            shown = image(
                picture.data,
                f"{_title(folder)}: the worst registrations",
                picture.width,
                picture.height,
                kind=picture.kind,
            )
            parts.append(figure(shown, _page_caption(page, pages, section)))
    verdicts = _verdicts(folder)
    single = [path for path in sorted((folder / "qa").glob("*.png")) if path not in pages]
    single = single[: section.qa_pictures]
    labels = [f"{_title(folder)}: {verdicts.get(path.stem, path.stem)}" for path in single]
    pictures = picture_figures(single, labels, 3 * section.picture_px)
    if pictures:
        body = f'<div class="strip wide">{"".join(pictures)}</div>'
        parts.append(details("Scan, registered head, both interleaved, residual, whole head", body))
    return "\n".join(parts)


def _page_caption(page: Path, pages: Sequence[Path], section: ReportParams) -> str:
    said = (
        "The largest residuals and the rejected scans, worst first: scan, registered head, "
        "distance from scan to head. The colours mean the same millimetres in every cell."
    )
    if page != pages[0]:
        said = "Continued."
    hidden = len(pages) - section.sheet_pages
    if page == pages[: section.sheet_pages][-1] and hidden > 0:
        said += f" {hidden} more in <code>{text(page.parent.parent.name)}/qa</code>."
    return said


def _spread(folder: Path) -> str:
    """Histogram of the scans' median residuals."""
    found = read_table(
        folder / "registrations.parquet", ["status", "residual_median_mm"]
    ).to_pylist()
    groups = []
    for label, status, style in (("accepted", "ok", 1), ("rejected", "rejected", 2)):
        values = [row["residual_median_mm"] for row in found if row["status"] == status]
        known = [float(value) for value in values if value is not None]
        if known:
            groups.append((label, known, style))
    if not groups:
        return paragraph("No scan of this set has a residual.")
    title = f"Median residual of each scan, {_title(folder)}"
    chart = histogram(title, groups, "median residual, mm", "scans")
    return f'<div class="middling">{chart}</div>'


def _pages(folder: Path) -> list[Path]:
    """The pages of the worst in their order."""
    found = [p for p in (folder / "qa").glob("*.png") if re.fullmatch(r"worst(-\d+)?", p.stem)]
    return sorted(found, key=lambda path: (len(path.stem), path.stem))


def _anchor(folder: Path) -> str:
    return text(f"registration-{folder.name}")


def _title(folder: Path) -> str:
    return DATASET_TITLES.get(folder.name, folder.name)


def _verdicts(folder: Path) -> dict[str, str]:
    """What became of every scan, by the name of its picture."""
    found = read_table(folder / "registrations.parquet", ["item_id", "status"]).to_pylist()
    words = {"ok": "accepted", "rejected": "rejected", "failed": "failed"}
    return {
        row["item_id"].replace("/", "_"): f"{row['item_id']}, {words[row['status']]}"
        for row in found
        if row["item_id"]
    }
