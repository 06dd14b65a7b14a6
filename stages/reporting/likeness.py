"""The report's part on likeness: does a rendering look like the person to a face encoder?"""

from collections.abc import Sequence
from typing import Any

from stages.reporting.charts import Line, key, line_chart
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
from stages.reporting.scores import published_block

TITLE = "Likeness"
DEPTHS = ("top1", "top5")
COLUMNS = ("cosine_mean", "cosine_std", "emd_same", "emd_different")


def likeness_section(evaluations: Sequence[Evaluation]) -> Section:
    """Similarity, earth mover's distances and recall of every method, then the distributions."""
    measured = [e for e in evaluations if e.likeness]
    if not measured:
        return Section("likeness", TITLE, missing("data/evaluation/*/likeness.json", "evaluate"))
    compared = [e for e in measured if "recall" in e.likeness]
    body = [paragraph(_how(measured[0].likeness)), _table(measured)]
    if compared:
        body += [_chart(compared), _reference(compared[0].likeness)]
    body.append(published_block(["likeness"]))
    return Section("likeness", TITLE, "\n".join(body))


def _how(facts: dict[str, Any]) -> str:
    encoder = facts["encoder"]
    return (
        "Every reconstruction is drawn without expression by one camera under one light and "
        "compared with the photographs by a face encoder that no method has seen: "
        f"<b>{text(encoder['name'])}</b>, weights {text(encoder['weights'])}, trained on "
        f"{source(synthetic=encoder['synthetic'])} photographs. A head without colours is drawn in "
        "one skin tone, so hair, brows and beards are missing from its picture and cosines stay "
        "low: compare methods with each other."
    )


def _table(evaluations: Sequence[Evaluation]) -> str:
    best = {
        column: pick(e.likeness[column] for e in evaluations if e.likeness.get(column) is not None)
        for column, pick in (("cosine_mean", _most), ("emd_same", _least))
    }
    tops = {
        depth: _most(e.likeness["recall"][depth] for e in evaluations if "recall" in e.likeness)
        for depth in DEPTHS
    }
    rows = []
    for e in evaluations:
        facts = e.likeness
        row = [
            Cell(f"{key(e.style)}{text(e.title)}", "steady", header=True),
            Cell(source(synthetic=e.synthetic)),
        ]
        if "reason" in facts:
            row += [Cell(text(facts["reason"])), *[Cell(NONE, "num")] * 5]
        else:
            row += [_figure(facts[column], best.get(column), 3) for column in COLUMNS]
            row += [_figure(facts["recall"][depth], tops[depth], 2) for depth in DEPTHS]
        row += [number(facts["renderings"], 0), number(facts["not_rendered"], 0)]
        rows.append(row)
    compared = next((e.likeness for e in evaluations if "chance" in e.likeness), None)
    if compared is not None:
        chance = [number(compared["chance"][depth], 2, "quiet") for depth in DEPTHS]
        blank = [Cell(NONE, "num quiet")]
        rows.append(
            [Cell("By chance", "quiet", header=True), Cell(""), *blank * 4, *chance, *blank * 2]
        )
    heads = ("mean", "std", "same person", "others", "top 1", "top 5", "rendered", "not rendered")
    return table(
        [Cell("Method"), Cell("Data"), *[Cell(head, "num") for head in heads]],
        rows,
        groups=[
            ("", 2),
            ("cosine to the photograph", 2),
            ("earth mover's distance", 2),
            ("recall", 2),
            ("", 2),
        ],
        caption=(
            "Cosine of a photograph and its rendering: higher is better. Earth mover's distance "
            "from these cosines to those of pairs of photographs: good is near <i>same person</i> "
            "and far from <i>others</i>, on the side of the former. Recall: share of renderings "
            "with a photograph of the right person among the first one or five of all "
            "photographs; ties count against. The best of a column is bold."
        ),
    )


def _chart(evaluations: Sequence[Evaluation]) -> str:
    shared = evaluations[0].likeness["distributions"]
    lines = [
        Line(e.title, e.likeness["distributions"]["cosine"], shares, e.style)
        for e in evaluations
        if (shares := e.likeness["distributions"]["renderings"])
    ]
    style = 1 + max(e.style for e in evaluations)
    pairs = (("same", "pairs, same person"), ("different", "pairs, two people"))
    for number_, (kind, label) in enumerate(pairs):
        if shared[kind]:
            lines.append(Line(label, shared["cosine"], shared[kind], style + number_))
    chart = line_chart(
        "Cosines",
        lines,
        "cosine",
        "share up to it, %",
        x_range=(-1.0, 1.0),
        y_range=(0.0, 100.0),
        legend="none",
    )
    legend = " ".join(f"{key(line.style)}{text(line.label)}&emsp;" for line in lines)
    return figure(
        f'<p class="legend">{legend}</p><div class="middling">{chart}</div>',
        "Cumulative shares. The area between a method's line and that of the pairs is its earth "
        "mover's distance; a line further right is better.",
    )


def _reference(facts: dict[str, Any]) -> str:
    def shown(key: str) -> str:
        value = facts[key]
        return NONE if value is None else f"{value:.3f}"

    return (
        f'<p class="caption">{facts["photographs"]} photographs of {facts["people"]} people with a '
        f"face that was found ({facts['photographs_without_face']} without). Mean cosine of "
        f"{facts['same_pairs']:,} pairs of one person {shown('same_mean')}, of "
        f"{facts['different_pairs']:,} pairs of two people {shown('different_mean')}.</p>"
    )


def _figure(value: float | None, best: float | None, digits: int) -> Cell:
    return number(value, digits, "best" if value is not None and value == best else "")


def _most(values: Any) -> float | None:  # noqa: ANN401 - an iterable of numbers
    return max(values, default=None)


def _least(values: Any) -> float | None:  # noqa: ANN401 - an iterable of numbers
    return min(values, default=None)
