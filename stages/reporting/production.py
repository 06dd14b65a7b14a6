"""The report's other parts: data, landmarks, ground-truth renders, training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.reporting.charts import Line, line_chart
from stages.reporting.inputs import (
    DATASET_TITLES,
    METHOD_TITLES,
    Packed,
    flatten,
    json_or_none,
    weights_in_words,
)
from stages.reporting.markup import (
    NONE,
    Cell,
    Section,
    details,
    figure,
    image,
    missing,
    name,
    number,
    paragraph,
    source,
    table,
    text,
)
from stages.reporting.pictures import from_file
from stages.runtime.artifacts import read_table
from stages.runtime.params import ReportParams

UNIT_SIGNS = {"um": "µm"}


def data_section(data: Path, packed: Sequence[Packed]) -> Section:
    """What was packed, failures with reasons, the unified training sets, the face models."""
    if not packed:
        return Section("data", "Data", missing("data/packed", "pack"))
    rows = []
    for one in packed:
        rows.append(
            [
                Cell(text(one.title), header=True),
                Cell(source(synthetic=one.meta.get("synthetic"))),
                number(one.subjects, 0),
                *[
                    _count(one.counts, kind, usable=usable)
                    for kind in ("images", "scans")
                    for usable in (True, False)
                ],
            ]
        )
    body = [
        paragraph(
            "Every input file is one row: what could not be read is kept with its reason and "
            "reported, never skipped."
        ),
        table(
            [
                Cell("Data set"),
                Cell("Source"),
                Cell("subjects", "num"),
                *[Cell(word, "num") for _ in range(2) for word in ("usable", "failed")],
            ],
            rows,
            groups=[("", 3), ("Images", 2), ("Scans", 2)],
        ),
    ]
    failures = [(one.title, failure) for one in packed for failure in one.failures]
    if failures:
        body.append(
            details(
                f"Inputs that could not be used, and why: {len(failures)}",
                table(
                    [Cell("Data set"), Cell("Item"), Cell("Kind"), Cell("Reason")],
                    [
                        [name(title), Cell(text(f.item_id)), Cell(f.kind), Cell(text(f.reason))]
                        for title, f in failures
                    ],
                ),
            )
        )
    body += [_unified_table(data), _model_table(data)]
    return Section("data", "Data", "\n".join(body))


def landmark_section(data: Path) -> Section:
    """The trained landmark predictor and what it found."""
    body = []
    metrics = json_or_none(data / "landmark_model" / "metrics.json")
    if metrics is None:
        body.append(missing("data/landmark_model/metrics.json", "landmark_model"))
    else:
        body += [_landmark_model(metrics), details("All figures", _facts(metrics, ""))]
    tables = sorted((data / "landmarks").glob("*/landmarks.parquet"))
    rows = []
    for path in tables:
        found = read_table(path, ["status", "provider"])
        status = found.column("status").to_pylist()
        providers = sorted({word for word in found.column("provider").to_pylist() if word})
        rows.append(
            [
                name(DATASET_TITLES.get(path.parent.name, path.parent.name)),
                number(sum(word == "ok" for word in status), 0),
                number(sum(word != "ok" for word in status), 0),
                Cell(text(", ".join(providers) or NONE)),
            ]
        )
    if rows:
        head = [Cell("Images of"), Cell("found", "num"), Cell("not found", "num"), Cell("Provider")]
        body += ["<h3>Landmarks found</h3>", table(head, rows)]
    else:
        body.append(missing("data/landmarks", "landmarks"))
    return Section("landmarks", "Landmarks", "\n".join(body))


def render_section(data: Path, section: ReportParams) -> Section:
    """Previews of the correspondence ground truth."""
    paths = sorted((data / "rendered").glob("*/preview/*.png"))[: section.pncc_pictures]
    pictures = picture_figures(paths, [path.stem for path in paths], 3 * section.picture_px)
    if not pictures:
        return Section("renders", "Ground truth", missing("data/rendered/*/preview", "render"))
    body = [
        paragraph(
            "Where every visible pixel of a face lies on the model: the projected normalised "
            "coordinate code (PNCC), whose colours are positions on the average face, and the "
            "offset of the person's surface from it."
        ),
        "<h3>Photograph with the code over it, code, offset</h3>",
        f'<div class="strip wide">{"".join(pictures)}</div>',
    ]
    return Section("renders", "Ground truth", "\n".join(body))


def training_section(data: Path) -> Section:
    """Loss curves and final figures of everything that was trained."""
    folders = [
        *sorted(path for path in (data / "checkpoints").glob("*") if path.is_dir()),
        *sorted(path for path in (data / "recognizers").glob("*") if path.is_dir()),
    ]
    if not folders:
        return Section("training", "Training", missing("data/checkpoints", "train"))
    charts, rows, facts = [], [], []
    for folder in folders:
        title = METHOD_TITLES.get(folder.name, folder.name)
        if folder.parent.name == "recognizers":
            title = f"Recogniser {folder.name}"
        metrics = json_or_none(folder / "metrics.json")
        known = metrics if isinstance(metrics, Mapping) else {}
        for part, label, lines in history_lines(json_or_none(folder / "history.json") or known):
            heading = f"{title}, {part}"
            chart = line_chart(heading, lines, "step", label, legend="above")
            charts.append(f"<div>{chart}</div>")
        rows.append(
            [
                Cell(text(title), "steady", header=True),
                Cell(text(weights_in_words(known.get("weights"), folder.name)), "steady"),
                number(known.get("parameters"), 0),
                number(known.get("step"), 0),
                Cell(_pairs(known.get("train"))),
                Cell(_pairs(known.get("validation"))),
            ]
        )
        facts.append(f"<h3>{text(title)}</h3>{_facts(known, '')}")
    head = [Cell("Model"), Cell("Weights"), Cell("parameters", "num"), Cell("step kept", "num")]
    body = [
        table(
            [*head, Cell("Training"), Cell("Held out")],
            rows,
            caption="Losses and figures at the step whose weights were kept.",
        )
    ]
    if charts:
        body.append(
            figure(
                f'<div class="beside">{"".join(charts)}</div>',
                "Mean training loss since the last report, and what was measured on held-out "
                "subjects at that step. Scales differ; an axis that spans more than a factor of "
                "20 is logarithmic.",
            )
        )
    body.append(details("Everything recorded about each training", "".join(facts)))
    return Section("training", "Training", "\n".join(body))


def history_lines(history: object) -> list[tuple[str, str, list[Line]]]:
    """What to draw of a training history.

    Args:
        history: Rows of ``step``, ``train`` and perhaps ``validation``, the latter two mapping
            terms to values; or the same under a key ``history``.

    Returns:
        Part, label of the vertical axis, lines: the training loss, then the held-out measures in
        millimetres, or where there are none the others. Empty where there is nothing to draw.
    """
    rows = history.get("history") if isinstance(history, Mapping) else history
    if not isinstance(rows, list):
        return []
    rows = [row for row in rows if isinstance(row, Mapping) and "step" in row]
    train, held_out = _series(rows, "train"), _series(rows, "validation")
    parts = []
    loss = next((term for term in ("loss", "total", *train) if term in train), None)
    if loss is not None:
        lines = [Line("training", *train[loss], 3)]
        if loss in held_out:
            lines.append(Line("held out", *held_out.pop(loss), 4))
        parts.append(("training", "loss", lines))
    lengths = [term for term in held_out if term.endswith("_mm")]
    shown = (lengths or list(held_out))[:4]
    if shown:
        lines = [
            Line(term.removesuffix("_mm").replace("_", " "), *held_out[term], (4 + at) % 6)
            for at, term in enumerate(shown)
        ]
        parts.append(("held out", "mm" if lengths else "share", lines))
    return parts


def _series(
    rows: Sequence[Mapping[str, Any]], part: str
) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values of every term of one part, terms in order."""
    points = [(row["step"], row[part]) for row in rows if isinstance(row.get(part), Mapping)]
    terms = sorted({term for _, values in points for term in values})
    return {
        term: (
            [float(step) for step, values in points if term in values],
            [float(values[term]) for _, values in points if term in values],
        )
        for term in terms
    }


_UNIFIED = {
    "subjects_found": "found",
    "subjects": "unified",
    "scans_ok": "scans ok",
    "scans_rejected": "rejected",
    "scans_failed": "failed",
    "photographs": "photographs",
    "crops": "crops",
}


def _unified_table(data: Path) -> str:
    """The eight sets of scans with photographs, what is here and what was published."""
    content = json_or_none(data / "unified" / "table.json")
    if not isinstance(content, Mapping) or not content.get("rows"):
        return missing("data/unified/table.json", "unify")
    rows = []
    for row in content["rows"]:
        here = row.get("status") == "attached"
        rows.append(
            [
                name(row["dataset"]),
                Cell(source(synthetic=row.get("synthetic")) if here else "not attached"),
                Cell(text(row.get("role") or NONE)),
                *[number(row.get(column) if here else None, 0) for column in _UNIFIED],
                number(row.get("published_subjects"), 0, "quiet"),
            ]
        )
    head = [Cell("Set"), Cell("Source"), Cell("Role")]
    head += [Cell(text(words), "num") for words in (*_UNIFIED.values(), "in the paper")]
    return "<h3>Scans with photographs, in one shape</h3>" + table(
        head,
        rows,
        caption="One neutral FLAME mesh per subject and the subject's photographs, as MICA is "
        "trained on; a set whose role is validation is never trained on. <i>Found</i> are people "
        "with scans; scans are registered (ok), rejected by their quality, or failed. Subjects "
        f"<i>in the paper</i>: {text(content.get('published_source', NONE))}.",
    )


def _model_table(data: Path) -> str:
    """The converted face models."""
    rows = []
    for path in sorted((data / "models").glob("*/meta.json")):
        meta = json_or_none(path)
        if isinstance(meta, Mapping):
            rows.append(
                [
                    name(meta.get("title") or meta.get("kind") or path.parent.name),
                    Cell(source(synthetic=meta.get("synthetic"))),
                    Cell(text(_unit(meta))),
                    Cell(text(meta.get("licence") or NONE)),
                ]
            )
    if not rows:
        return missing("data/models", "convert")
    head = [Cell("Model"), Cell("Source"), Cell("Unit"), Cell("Licence of the owner's files")]
    return "<h3>Face models</h3>" + table(head, rows)


def _unit(meta: Mapping[str, Any]) -> str:
    unit = str(meta.get("unit") or NONE)
    return UNIT_SIGNS.get(unit, unit)


def _landmark_model(metrics: Mapping[str, Any]) -> str:
    """What the trained predictor was measured to do, in a sentence."""
    said = (
        "The 68-point predictor is trained here, on packed 300W-LP photographs, and used wherever "
        "no licensed weights are given."
    )
    if metrics.get("held_out_images"):
        said += (
            f" On {metrics['held_out_images']} photographs of "
            f"{metrics.get('held_out_subjects', NONE)} people held out, its mean error is "
            f"<b>{metrics['mean_error_percent']:.2f}&nbsp;%</b> of the outer-eye distance "
            f"(median {metrics['median_error_percent']:.2f}, 95&nbsp;% below "
            f"{metrics['q95_error_percent']:.2f}); "
            f"{metrics['mean_error_percent_frontal']:.2f}&nbsp;% on the faces not turned away."
        )
    return paragraph(said)


def _pairs(content: object) -> str:
    """Names and values of a mapping as one line (markup)."""
    leaves = [(key, value) for key, value in flatten(content) if isinstance(value, (int, float))]
    shown = [f"{text(key.replace('_', ' '))}&nbsp;{value:.4g}" for key, value in leaves]
    return ", ".join(shown) if isinstance(content, Mapping) and shown else NONE


def picture_figures(paths: Sequence[Path], labels: Sequence[str], longest_px: int) -> list[str]:
    """Image files as figures with captions; what is no image is left out."""
    parts = []
    for path, label in zip(paths, labels, strict=True):
        picture = from_file(path, longest_px)
        if picture is not None:
            shown = image(picture.png, label, picture.width, picture.height)
            parts.append(figure(shown, text(label)))
    return parts


def _facts(content: Any, caption: str) -> str:  # noqa: ANN401 - any JSON document
    rows = []
    for key, value in flatten(content):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            shown = Cell(text(NONE if value is None else value))
        elif isinstance(value, int):
            shown = number(value, 0)
        else:
            shown = Cell(f"{value:,.4g}", "num")
        rows.append([name(key.replace("_", " ").replace(".", " · ")), shown])
    return table([Cell("Figure"), Cell("Value", "num")], rows, caption=caption)


def _count(counts: Mapping[tuple[str, bool], int], kind: str, *, usable: bool) -> Cell:
    if not any(known == kind for known, _ in counts):
        return Cell(NONE, "num")
    return number(counts.get((kind, usable), 0), 0)
