"""The report's part on landmarks by reconstruction: 2-D and 3-D errors, cumulative curves."""

from collections.abc import Sequence
from typing import Any

from stages.reporting.charts import Line, line_chart
from stages.reporting.inputs import Evaluation
from stages.reporting.markup import (
    NONE,
    Cell,
    Section,
    figure,
    missing,
    number,
    paragraph,
    source,
    table,
    text,
)

TITLE = "Landmarks by reconstruction"
SET_TITLES = {"300w_lp": "300W-LP, people held out", "aflw2000": "AFLW2000-3D"}


def landmark_error_section(evaluations: Sequence[Evaluation]) -> Section:
    """Landmark errors of the methods that place a fitted head in the photograph."""
    measured = [e for e in evaluations if e.landmarks]
    if not measured:
        what = missing("data/evaluation/*/landmarks.json", "evaluate")
        return Section("landmark-errors", TITLE, what)
    body = [
        paragraph(
            "A fitted head places all 68 points in the photograph, hidden ones too: its landmark "
            "vertices, chosen on training photographs, are projected by the estimated camera. "
            "<b>2-D</b>: mean distance to the annotated points over the distance of the outer eye "
            "corners. <b>3-D</b>: mean distance to the annotation's own head, in the frame of the "
            "face model, without alignment. Faces are cropped by their annotation. Lower is "
            "better."
        ),
        _table(measured),
        _curves(measured),
    ]
    return Section("landmark-errors", TITLE, "\n".join(body))


def _table(evaluations: Sequence[Evaluation]) -> str:
    rows = []
    for e in evaluations:
        for key, facts in e.landmarks.items():
            nme = ("nme_mean", "nme_median", "nme_inner_mean")
            rows.append(
                [
                    Cell(text(e.title), header=True),
                    Cell(text(SET_TITLES.get(key, key))),
                    Cell(source(synthetic=e.synthetic)),
                    number(facts["photographs"], 0),
                    number(facts["people"], 0),
                    number(facts["photographs"] - facts["scored"], 0),
                    *[number(_percent(facts.get(name)), 2) for name in nme],
                    *[number(facts.get(name), 2) for name in ("mm_mean", "mm_inner_mean")],
                    Cell(_reasons(facts)),
                ]
            )
    plain = ["Method", "Set", "Data"]
    right = ["photos", "people", "failed", "mean", "median", "inner 51", "all 68", "inner 51"]
    head = [Cell(word) for word in plain] + [Cell(word, "num") for word in right]
    return table(
        [*head, Cell("Why failed")],
        rows,
        groups=[("", 6), ("2-D, % of the eye distance", 3), ("3-D, mm", 2), ("", 1)],
        caption="The contour's annotated points (17 of the 68) slide along the cheek when the head "
        "turns, which no fixed vertex follows; the inner 51 are given apart.",
    )


def _curves(evaluations: Sequence[Evaluation]) -> str:
    charts = []
    for name, title, label, factor in (
        ("nme", "2-D error", "% of the outer eye distance", 100.0),
        ("mm", "3-D error", "mm", 1.0),
    ):
        lines = [
            Line(
                f"{e.title}, {key}" if len(evaluations) > 1 else SET_TITLES.get(key, key),
                [factor * x for x in facts[f"{name}_grid"]],
                facts[f"{name}_percent"],
                2 * e.style + at,
            )
            for e in evaluations
            for at, (key, facts) in enumerate(e.landmarks.items())
            if f"{name}_grid" in facts
        ]
        if lines:
            chart = line_chart(
                title,
                lines,
                label,
                "photographs, %",
                x_range=(0.0, max(line.x[-1] for line in lines)),
                y_range=(0.0, 100.0),
                legend="above",
            )
            charts.append(f"<div>{chart}</div>")
    if not charts:
        return ""
    return figure(
        f'<div class="beside">{"".join(charts)}</div>',
        "Share of photographs whose mean error is at most the value below. Photographs that failed "
        "count and are never reached.",
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else 100.0 * share


def _reasons(facts: dict[str, Any]) -> str:
    said = [f"{count}&times; {text(reason)}" for reason, count in facts["failed"].items()]
    return "; ".join(said) or NONE
