"""The report's reconstructions: photograph, scan, and every method's face with its error."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from models.metrics import PROTOCOLS, Measurement
from stages.benchmarks.scoring import measure, read_landmarks
from stages.benchmarks.truths import Truth, load_truths, packed_rows
from stages.datasets.meshes import Mesh, read_mesh
from stages.reporting.inputs import BASELINE, Evaluation, json_or_none
from stages.reporting.markup import Section, image, missing, paragraph, text
from stages.reporting.pictures import (
    ERROR_END_MM,
    Picture,
    clay,
    error_gradient,
    photograph,
    scan_colours,
    view_from_landmarks,
)
from stages.reporting.scores import CHALLENGE_TITLES
from stages.runtime.artifacts import read_table
from stages.runtime.compute import map_ordered
from stages.runtime.params import ComputeParams, ReportParams

logger = logging.getLogger(__name__)

PROTOCOL = "now-metric"
SECONDS_PER_FACE = 0.4
"""Rough cost of measuring and drawing one, for the choice of where it is done."""


@dataclass(frozen=True, slots=True)
class Example:
    """One photograph to be shown.

    Attributes:
        item_id: ``subject/challenge/image``.
        subject_id: Whose scan is the truth.
        why: Said with it; empty for a plain example.
    """

    item_id: str
    subject_id: str
    why: str


def reconstruction_section(
    data: Path, evaluations: Sequence[Evaluation], section: ReportParams, compute: ComputeParams
) -> Section:
    """Some photographs with truth, reconstructions and errors; the last is the worst one."""
    title = "Reconstructions"
    now = data / "packed" / "now"
    if not evaluations:
        return Section("faces", title, missing("data/evaluation", "evaluate"))
    if not any(now.glob("scans-*.parquet")) or not any(now.glob("images-*.parquet")):
        return Section("faces", title, missing("data/packed/now", "pack@now"))
    scores = {e.method: _medians(data / "evaluation" / e.method) for e in evaluations}
    examples = choose_examples(scores, section.reconstructions)
    if not examples:
        return Section("faces", title, missing(f"a photograph scored by {PROTOCOL}", "evaluate"))
    truths = load_truths(now)
    photos = _photos(now, {example.item_id for example in examples}, section.picture_px)
    methods = {e.method: _Method(data / "predictions" / e.method) for e in evaluations}
    heads = ["Photograph", "Scan"]
    heads = [text(head) for head in heads]
    heads += [part for e in evaluations for part in (text(e.title), "<span>its error</span>")]
    cells = [f'<div class="head">{head}</div>' for head in heads]
    rows = map_ordered(
        partial(
            _example_cells, methods=methods, evaluations=evaluations, size_px=section.picture_px
        ),
        [
            (example, truth, photos.get(example.item_id))
            for example in examples
            if isinstance(truth := truths.get(example.subject_id), Truth)
        ],
        compute=compute,
        seconds_per_item=SECONDS_PER_FACE * len(evaluations),
        label="reconstructions shown",
    )
    cells += [cell for row in rows for cell in row]
    columns = f"grid-template-columns: repeat({len(heads)}, minmax(0, 1fr))"
    bar = (
        f'<div class="bar"><span>0</span><i style="background: {error_gradient()}"></i>'
        f"<span>{ERROR_END_MM:.0f}&nbsp;mm and more, on the scan</span></div>"
    )
    worst = (
        " The last photograph is the one that the best trained method does worst on."
        if examples[-1].why
        else ""
    )
    body = [
        paragraph(
            "Each method's face, neutral and in its own size, placed on the person's scan by "
            "NoW-metric, and beside it the distance of every measured scan vertex to that face. "
            "Grey parts of a scan are not measured. The photographs are spread over people and "
            f"kinds of photograph.{worst}"
        ),
        bar,
        f'<div class="scroll"><div class="faces" style="{columns}">{"".join(cells)}</div></div>',
    ]
    return Section("faces", title, "\n".join(body))


def choose_examples(
    medians: Mapping[str, Mapping[tuple[str, str], float]], count: int
) -> list[Example]:
    """Photographs that every method has a score for, over people and challenges in turn.

    Args:
        medians: Median error by method and (subject, item).
        count: How many; the last is the worst of the trained method with the least mean of
            medians, where there is one.
    """
    shared: set[tuple[str, str]] = set.intersection(*(set(scored) for scored in medians.values()))
    if not shared or count == 0:
        return []
    trained = {method: scored for method, scored in medians.items() if method != BASELINE}
    worst = []
    if trained and count > 1:
        best = min(trained, key=lambda m: (np.mean([trained[m][key] for key in sorted(shared)]), m))
        subject, item = max(sorted(shared), key=lambda key: trained[best][key])
        worst = [Example(item, subject, "largest error")]
    by_subject: dict[str, list[str]] = defaultdict(list)
    for subject, item in sorted(shared):
        if not worst or item != worst[0].item_id:
            by_subject[subject].append(item)
    chosen: list[Example] = []
    used: dict[str, int] = defaultdict(int)
    subjects = sorted(by_subject)
    while len(chosen) < count - len(worst) and any(by_subject.values()):
        for subject in subjects:
            left = by_subject[subject]
            if left and len(chosen) < count - len(worst):
                item = min(left, key=lambda name: (used[_challenge(name)], name))
                left.remove(item)
                used[_challenge(item)] += 1
                chosen.append(Example(item, subject, ""))
    return chosen + worst


class _Method:
    """Predictions of one method, by item."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        facts = json_or_none(folder / "meta.json")
        self.unit = str(facts.get("unit", "m")) if isinstance(facts, dict) else "m"
        table = folder / "rows.parquet"
        rows = read_table(table).to_pylist() if table.is_file() else []
        self._rows = {row["item_id"]: row for row in rows if row["status"] == "ok"}

    def measured(self, item_id: str, truth: Truth) -> tuple[Mesh, Measurement] | None:
        """The predicted mesh and its measurement; None where either is impossible."""
        row = self._rows.get(item_id)
        if row is None:
            return None
        try:
            mesh = read_mesh(self._folder / row["mesh"])
            marks = read_landmarks(self._folder / row["landmarks"])
            protocol = PROTOCOLS[PROTOCOL]
            return mesh, measure(truth.mesh, truth.landmarks, mesh, marks, protocol, self.unit)
        except (OSError, ValueError) as error:
            logger.warning("%s not shown: %s", item_id, error)
            return None


def _example_cells(
    shown: tuple[Example, Truth, Picture | None],
    *,
    methods: Mapping[str, _Method],
    evaluations: Sequence[Evaluation],
    size_px: int,
) -> list[str]:
    """The row of one photograph: itself, the scan, every method's face and its error."""
    example, truth, photo = shown
    view = view_from_landmarks(truth.landmarks.copy())
    scan = clay(truth.mesh.vertices, truth.mesh.faces, view, size_px)
    cells = [
        _cell(photo, f"photograph {example.item_id}", _label(example)),
        _cell(scan, f"scan of {example.subject_id}", "neutral scan"),
    ]
    for e in evaluations:
        cells += _method_cells(methods[e.method], example, truth, view, size_px, e)
    return cells


def _method_cells(
    method: _Method,
    example: Example,
    truth: Truth,
    view: Any,  # noqa: ANN401 - (4, 4) array
    size_px: int,
    evaluation: Evaluation,
) -> list[str]:
    found = method.measured(example.item_id, truth)
    if found is None:
        return [_cell(None, "", "no prediction"), _cell(None, "", "")]
    mesh, result = found
    placed = result.scale * mesh.vertices @ result.rotation.T + result.translation
    colours = scan_colours(len(truth.mesh.vertices), result.kept, result.distances_mm)
    face = clay(placed, mesh.faces, view, size_px)
    errors = clay(truth.mesh.vertices, truth.mesh.faces, view, size_px, colours)
    median = float(np.median(result.distances_mm))
    what = f"{evaluation.title} for {example.item_id}"
    return [
        _cell(face, f"reconstruction by {what}", ""),
        _cell(errors, f"error of {what}", f"median <b>{median:.2f}</b>&nbsp;mm"),
    ]


def _medians(folder: Path) -> dict[tuple[str, str], float]:
    path = folder / "distances.parquet"
    if not path.is_file():
        return {}
    columns = ["item_id", "subject_id", "status", "protocol", "distances_mm"]
    return {
        (row["subject_id"], row["item_id"]): float(np.median(row["distances_mm"]))
        for row in read_table(path, columns).to_pylist()
        if row["status"] == "ok" and row["protocol"] == PROTOCOL
    }


def _photos(now: Path, wanted: set[str], size_px: int) -> dict[str, Picture]:
    photos = {}
    for row in packed_rows(now, "images", ["item_id", "image", "box_px"]):
        if row["item_id"] in wanted and row["image"] is not None:
            box = None if row["box_px"] is None else np.asarray(row["box_px"], np.float64)
            picture = photograph(row["image"], box, size_px)
            if picture is not None:
                photos[row["item_id"]] = picture
    return photos


def _cell(picture: Picture | None, description: str, caption: str) -> str:
    shown = image(picture.png, description, picture.width, picture.height) if picture else ""
    said = f"<p>{caption}</p>" if caption else ""
    return f'<div class="cell">{shown}{said}</div>'


def _label(example: Example) -> str:
    subject = example.item_id.split("/", maxsplit=1)[0]
    kind = CHALLENGE_TITLES.get(_challenge(example.item_id), _challenge(example.item_id))
    why = f"; <b>{text(example.why)}</b>" if example.why else ""
    return f"{text(subject)}, {text(kind.lower())}{why}"


def _challenge(item_id: str) -> str:
    parts = item_id.split("/")
    return parts[1] if len(parts) > 2 else ""
