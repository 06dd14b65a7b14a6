"""The report's scores: the result in words, the tables, the cumulative curves."""

from collections.abc import Sequence
from typing import Any

from stages.reporting.charts import Line, dot_chart, key, line_chart
from stages.reporting.inputs import BASELINE, DATASET_TITLES, PROTOCOL_TITLES, Evaluation
from stages.reporting.markup import (
    Cell,
    Section,
    details,
    figure,
    missing,
    name,
    number,
    paragraph,
    source,
    table,
    text,
)
from stages.reporting.published import PublishedTable, published_tables

STATISTICS = ("median_mm", "mean_mm", "std_mm")
MOST_PEOPLE = 40
PER_TABLE = 2
"""Protocols side by side in one table."""
CHALLENGE_TITLES = {
    "multiview_neutral": "Neutral",
    "multiview_expressions": "Expressions",
    "multiview_occlusions": "Occlusions",
    "selfie": "Selfie",
}


def lede(evaluations: Sequence[Evaluation]) -> str:
    """The result in one or two sentences (markup)."""
    protocol = "now-metric"
    scored = [
        (e.protocols[protocol]["median_mm"], e)
        for e in evaluations
        if e.protocols.get(protocol, {}).get("median_mm") is not None
    ]
    trained = sorted(
        ((median, e) for median, e in scored if e.method != BASELINE), key=lambda entry: entry[0]
    )
    base = next(((median, e) for median, e in scored if e.method == BASELINE), None)
    if not trained:
        return "No trained method has been scored yet; the sections below show what there is."
    median, best = trained[0]
    facts = best.protocols[protocol]
    where = "synthetic " if best.synthetic else ""
    people = [p for p in facts.get("subjects", {}).values() if p.get("median_mm") is not None]
    sentence = (
        f"On {facts['scored']} {where}photographs of {len(people)} people, "
        f"{text(best.title)} reconstructs faces with a median error of "
        f"{median:.2f}&nbsp;mm in true size (NoW-metric)"
    )
    if base is None:
        return sentence + "."
    change = 100 * (median - base[0]) / base[0]
    word = "below" if change < 0 else "above"
    return (
        f"{sentence}, {abs(change):.0f}&nbsp;% {word} the {base[0]:.2f}&nbsp;mm of one average "
        "head for everybody."
    )


def score_section(evaluations: Sequence[Evaluation]) -> Section:
    """Score table, published numbers apart from it, curves, parts of the benchmark."""
    if not evaluations:
        return Section("scores", "Scores", missing("data/evaluation", "evaluate"))
    protocols = _protocols(evaluations)
    body = [
        paragraph(
            "Distance from every scan vertex around the face to the nearest point of the "
            "reconstructed surface, pooled over all photographs. "
            "<b>NoW</b> estimates the size of the prediction along with its pose; "
            "<b>NoW-metric</b> takes the size as predicted, so a wrong size counts. "
            "Lower is better."
        ),
        *[
            _score_table(evaluations, protocols[start : start + PER_TABLE])
            for start in range(0, len(protocols), PER_TABLE)
        ],
        "<h3>Cumulative error</h3>",
        _curves(evaluations, protocols),
        "<h3>By kind of photograph</h3>",
        _challenge_table(evaluations, protocols),
        "<h3>By person</h3>",
        _people_chart(evaluations, protocols[-1]),
        published_block(protocols),
        *_other_benchmarks(evaluations),
        _other_published([*protocols, *_others(evaluations)]),
    ]
    return Section("scores", "Scores", "\n".join(body))


def _protocols(evaluations: Sequence[Evaluation]) -> list[str]:
    found = {protocol for e in evaluations for protocol in e.protocols}
    return [p for p in PROTOCOL_TITLES if p in found] + sorted(found - set(PROTOCOL_TITLES))


def _score_table(evaluations: Sequence[Evaluation], protocols: Sequence[str]) -> str:
    best = _least(evaluations, protocols)
    rows = []
    for e in evaluations:
        row = [
            Cell(f"{key(e.style)}{text(e.title)}", "steady", header=True),
            Cell(source(synthetic=e.synthetic)),
            Cell(text(e.weights)),
        ]
        for protocol in protocols:
            facts = e.protocols.get(protocol, {})
            row += [_statistic(facts, s, best.get((protocol, s))) for s in STATISTICS]
        first = e.protocols.get(protocols[0], {})
        unscored = (first.get("missing") or 0) + (first.get("failed") or 0)
        row += [number(first.get("images"), 0), number(unscored, 0)]
        rows.append(row)
    return table(
        [
            Cell("Method"),
            Cell("Data"),
            Cell("Weights"),
            *[Cell(word, "num") for _ in protocols for word in ("median", "mean", "std")],
            Cell("images", "num"),
            Cell("not scored", "num"),
        ],
        rows,
        groups=[
            ("", 3),
            *((f"{PROTOCOL_TITLES.get(p, p)}, mm", 3) for p in protocols),
            ("", 2),
        ],
        caption=(
            "The lowest of each column is bold. Photographs without a prediction are counted "
            "under <i>not scored</i> and do not enter the statistics."
        ),
    )


def _others(evaluations: Sequence[Evaluation]) -> list[str]:
    """Protocols of the benchmarks beside NoW."""
    found = {protocol for e in evaluations for part in e.others.values() for protocol in part}
    return [p for p in PROTOCOL_TITLES if p in found] + sorted(found - set(PROTOCOL_TITLES))


def _other_benchmarks(evaluations: Sequence[Evaluation]) -> list[str]:
    """One table per benchmark beside NoW, and what was published by its protocols."""
    blocks = []
    for benchmark in sorted({found for e in evaluations for found in e.others}):
        parts = [(e, e.others.get(benchmark, {})) for e in evaluations]
        protocols = [p for p in _others(evaluations) if any(p in part for _, part in parts)]
        least = {
            (p, s): min(known)
            for p in protocols
            for s in (*STATISTICS[:2], "image_error_mm")
            if (known := [v for _, part in parts if (v := part.get(p, {}).get(s)) is not None])
        }
        reasons = {
            f"{PROTOCOL_TITLES.get(p, p)}: {part[p]['reason']}"
            for _, part in parts
            for p in part
            if "reason" in part[p]
        }
        seen = [e.title for e, part in parts if any(f.get("learned_from") for f in part.values())]
        note = f"{', '.join(seen)} has learned from people of this set. " if seen else ""
        rows = []
        for e, part in parts:
            row = [Cell(f"{key(e.style)}{text(e.title)}", "steady", header=True)]
            for p in protocols:
                facts = part.get(p, {})
                row += [
                    _statistic(facts, s, least.get((p, s)))
                    for s in (*STATISTICS[:2], "image_error_mm")
                ]
            first = part.get(protocols[0], {})
            unscored = (first.get("missing") or 0) + (first.get("failed") or 0)
            row += [Cell(source(synthetic=e.synthetic)), number(first.get("images"), 0)]
            rows.append([*row, number(unscored, 0)])
        titles = [PROTOCOL_TITLES.get(p, p) for p in protocols]
        blocks.append(f"<h3>{text(DATASET_TITLES.get(benchmark, benchmark))}</h3>")
        blocks.append(
            table(
                [
                    Cell("Method"),
                    *[Cell(w, "num") for _ in protocols for w in ("median", "mean", "own")],
                    Cell("Data"),
                    Cell("meshes", "num"),
                    Cell("not scored", "num"),
                ],
                rows,
                groups=[("", 1), *((f"{title}, mm", 3) for title in titles), ("", 3)],
                caption=(
                    "Median and mean are pooled over all scan vertices; <i>own</i> is the "
                    f"protocol's own figure of a mesh, averaged over the meshes. {text(note)}"
                    + " ".join(map(text, sorted(reasons)))
                ),
            )
        )
        blocks.append(published_block(protocols))
    return blocks


def published_block(protocols: Sequence[str]) -> str:
    """Other people's figures by these protocols, under a heading; empty without any (markup)."""
    found = [t for t in published_tables() if set(t.protocols) & set(protocols)]
    if not found:
        return ""
    heading = "<h3>Published results on real photographs, for orientation only</h3>"
    return "\n".join([heading, *map(_published_table, found)])


def _other_published(protocols: Sequence[str]) -> str:
    """Tables of protocols that nothing here was measured by, folded away."""
    shown = {*protocols, "likeness"}
    others = [t for t in published_tables() if not set(t.protocols) & shown]
    if not others:
        return ""
    return details("Published results by other protocols", "\n".join(map(_published_table, others)))


def _published_table(published: PublishedTable) -> str:
    rows = [
        [name(method), *[number(figure, published.digits) for figure in figures]]
        for method, figures in published.rows
    ]
    unit = published.unit
    return table(
        [Cell("Published method"), *[Cell(text(head), "num") for head in published.columns]],
        rows,
        groups=[("", 1), *((f"{title}, {unit}", count) for title, count in published.groups)]
        if published.groups
        else [("", 1), (unit, len(published.columns))],
        caption=(
            f"<b>Published, real data, not comparable</b> with figures measured here. "
            f"{text(published.title)}: {text(published.about)}. Source: {text(published.source)}."
        ),
        kind="quiet",
    )


def _curves(evaluations: Sequence[Evaluation], protocols: Sequence[str]) -> str:
    charts = []
    for protocol in protocols:
        lines = [
            Line(
                e.title,
                [point["error_mm"] for point in e.curves[protocol]],
                [point["percent"] for point in e.curves[protocol]],
                e.style,
            )
            for e in evaluations
            if e.curves.get(protocol)
        ]
        if lines:
            end = max(line.x[-1] for line in lines)
            chart = line_chart(
                PROTOCOL_TITLES.get(protocol, protocol),
                lines,
                "error, mm",
                "scan vertices, %",
                x_range=(0.0, end),
                y_range=(0.0, 100.0),
            )
            charts.append(f"<div>{chart}</div>")
    if not charts:
        return missing("data/evaluation/*/curves.json", "evaluate")
    return figure(
        f'<div class="beside">{"".join(charts)}</div>',
        "Share of the scan's vertices whose error is at most the value on the axis. "
        "A line further up and left is better.",
    )


def _challenge_table(evaluations: Sequence[Evaluation], protocols: Sequence[str]) -> str:
    challenges = [
        *CHALLENGE_TITLES,
        *sorted(
            {
                challenge
                for e in evaluations
                for facts in e.protocols.values()
                for challenge in facts.get("challenges", {})
            }
            - set(CHALLENGE_TITLES)
        ),
    ]
    rows = []
    for challenge in challenges:
        parts = [
            e.protocols.get(p, {}).get("challenges", {}) for p in protocols for e in evaluations
        ]
        part = next((p[challenge] for p in parts if challenge in p), None)
        if part is None:
            continue
        row = [name(CHALLENGE_TITLES.get(challenge, challenge)), number(part.get("images"), 0)]
        for protocol in protocols:
            medians = [_part(e, protocol, challenge).get("median_mm") for e in evaluations]
            known = [median for median in medians if median is not None]
            least = min(known) if known else None
            row += [number(m, kind="best" if m is not None and m == least else "") for m in medians]
        rows.append(row)
    return table(
        [
            Cell("Photographs"),
            Cell("images", "num"),
            *[Cell(text(e.title), "num") for _ in protocols for e in evaluations],
        ],
        rows,
        groups=[
            ("", 2),
            *((f"{PROTOCOL_TITLES.get(p, p)}, median, mm", len(evaluations)) for p in protocols),
        ],
        caption="The target is always the person's neutral face, whatever the photograph shows.",
    )


def _people_chart(evaluations: Sequence[Evaluation], protocol: str) -> str:
    """Each person's median by every method, the hardest for the first method on top."""
    found: dict[str, list[tuple[float, int]]] = {}
    for e in evaluations:
        for person, facts in e.protocols.get(protocol, {}).get("subjects", {}).items():
            if facts.get("median_mm") is not None:
                found.setdefault(person, []).append((facts["median_mm"], e.style))
    if not found:
        return paragraph("No person has been scored.")
    people = sorted(found, key=lambda person: (-found[person][0][0], person))
    rows = [(person.rsplit("/", maxsplit=1)[-1], found[person]) for person in people[:MOST_PEOPLE]]
    legend = " ".join(f"{key(e.style)}{text(e.title)}&emsp;" for e in evaluations)
    title = f"{PROTOCOL_TITLES.get(protocol, protocol)}, median of each person"
    more = f" The {MOST_PEOPLE} hardest of {len(people)}." if len(people) > MOST_PEOPLE else ""
    return figure(
        f'<p class="legend">{legend}</p><div class="middling">'
        f"{dot_chart(title, rows, 'median error, mm')}</div>",
        f"All photographs of a person pooled; sorted by the first method's error.{more}",
    )


def _part(evaluation: Evaluation, protocol: str, challenge: str) -> dict[str, Any]:
    found: dict[str, Any] = (
        evaluation.protocols.get(protocol, {}).get("challenges", {}).get(challenge, {})
    )
    return found


def _least(
    evaluations: Sequence[Evaluation], protocols: Sequence[str]
) -> dict[tuple[str, str], float]:
    least = {}
    for protocol in protocols:
        for statistic in STATISTICS:
            values = [e.protocols.get(protocol, {}).get(statistic) for e in evaluations]
            known = [value for value in values if value is not None]
            if known:
                least[protocol, statistic] = min(known)
    return least


def _statistic(facts: dict[str, Any], statistic: str, least: float | None) -> Cell:
    value = facts.get(statistic)
    return number(value, kind="best" if value is not None and value == least else "")
