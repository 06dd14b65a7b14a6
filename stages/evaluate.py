"""Stage `evaluate`: predictions against the scans of every benchmark.

Reads one method's predicted meshes and landmarks, the packed NoW images and scans, and the other
benchmarks' folders. Writes ``distances.parquet`` (one row per image and protocol, failures too, all
distances kept), ``metrics.json`` (pooled statistics, by challenge, by subject), ``curves.json`` and
``benchmarks.json`` (those beside NoW); with a recogniser, ``likeness.parquet`` and
``likeness.json`` (see ``stages.benchmarks.likeness``); where the method predicts landmarks of
annotated photographs, ``landmarks.json`` (see ``stages.landmarking.landmark_scores``). A NoW image
whose scan, prediction and protocols are those of an earlier run is not measured again.
"""

import argparse
import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from models.metrics import PROTOCOLS, UNITS_MM, Protocol, Target
from stages.benchmarks.benchmark_scores import score_benchmarks
from stages.benchmarks.image_scores import ImageScore, curve_of, row_of, summarise
from stages.benchmarks.scoring import read_landmarks, score_dataset, score_files
from stages.benchmarks.truths import Truth, load_truths, packed_rows
from stages.datasets.meshes import Mesh, read_mesh
from stages.landmarking.landmark_scores import TABLE, score_landmarks
from stages.runtime import params
from stages.runtime.artifacts import (
    atomic_directory,
    read_json,
    read_table,
    sha256_file,
    write_json,
    write_table,
)
from stages.runtime.cached_map import cached_map
from stages.runtime.compute import session
from stages.runtime.contracts import table_of
from stages.runtime.row_cache import WORK, RowCache
from stages.runtime.rows import Row, key_of_values

__all__ = ["run", "score_dataset", "score_files"]

logger = logging.getLogger(__name__)

SECONDS_PER_IMAGE = 0.6
"""Rough cost of both protocols, for the choice between in process and Ray."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One benchmark image and what a method left for it.

    Attributes:
        item_id: ``subject/challenge/image``.
        subject_id: As in the packed tables.
        mesh: Predicted mesh file; None when there is none.
        landmarks: Its seven landmarks; None when there are none.
        reason: Why there is no prediction; empty when there is one.
    """

    item_id: str
    subject_id: str
    mesh: Path | None
    landmarks: Path | None
    reason: str


def run(
    section: params.EvaluateParams,
    compute: params.ComputeParams,
    *,
    method: str,
    predictions: Path,
    now: Path,
    out: Path,
    landmarks: Path | None = None,
    recognizer: Path | None = None,
    benchmarks: Mapping[str, Path] | None = None,
    work: Path = WORK,
) -> None:
    """Score one method by every protocol and write distances, metrics and curves.

    Args:
        section: Protocols, curve, tolerated share of images without a score.
        compute: Workers.
        method: Name, for the metrics.
        predictions: Holds ``rows.parquet``, ``meta.json`` and the meshes.
        now: Packed NoW: ``images-*.parquet``, ``scans-*.parquet``.
        out: Replaced when all is done.
        landmarks: 68 points of the NoW photographs; with ``recognizer``, the likeness of the
            predictions to the photographs is measured too.
        recognizer: Folder of the evaluation encoder.
        benchmarks: The other benchmarks' folders in their owners' layouts; those that
            ``section.benchmarks`` names are scored.
        work: Folder of the rows of earlier runs.

    Raises:
        FileNotFoundError: An input is missing.
        ValueError: The predictions' unit is unknown, or too many images have no score.
    """
    facts = read_json(predictions / "meta.json")
    unit = facts.get("unit")
    if unit not in UNITS_MM:
        raise ValueError(
            f"expected a unit among {', '.join(UNITS_MM)} in {predictions / 'meta.json'}, "
            f"got {unit!r}; run reconstruct again"
        )
    truths = load_truths(now)
    entries = load_entries(predictions, now, truths)
    deciding = {"method": method, "protocols": list(section.protocols), "unit": unit}
    known = RowCache.of("evaluate", section=deciding, inputs={}, work=work)
    found = cached_map(
        partial(score_entries, truths=truths, protocols=section.protocols, unit=unit),
        entries,
        keys=_keys(entries, truths),
        subjects=[[entry.subject_id] for entry in entries],
        cache=known,
        compute=compute,
        seconds_per_item=SECONDS_PER_IMAGE,
        label=f"evaluate {method}",
    )
    known.forget_unused()
    rows = [row for columns in found for row in _by_protocol(columns, section.protocols)]
    rows.sort(key=lambda row: (section.protocols.index(row["protocol"]), row["item_id"]))
    metrics: dict[str, Any] = {
        "method": method,
        "synthetic": facts.get("synthetic"),
        "weights": facts.get("weights"),
        "protocols": {},
    }
    curves = {}
    steps = round(section.curve_max_mm / section.curve_step_mm)
    thresholds = np.linspace(0.0, section.curve_max_mm, steps + 1)
    for protocol in section.protocols:
        scores = [_score_of(row) for row in rows if row["protocol"] == protocol]
        _require_enough(scores, section.max_unscored_fraction, method, protocol)
        metrics["protocols"][protocol] = summarise(scores, statistic=PROTOCOLS[protocol].statistic)
        curves[protocol] = curve_of(scores, thresholds)
    roots = dict(benchmarks or {})
    if unlisted := sorted(roots.keys() - section.benchmarks.keys()):
        raise ValueError(f"expected protocols for {unlisted} in evaluate.benchmarks, got none")
    others, further = score_benchmarks(
        {name: section.benchmarks[name] for name in roots},
        roots,
        predictions=predictions,
        unit=unit,
        thresholds_mm=thresholds,
        compute=compute,
    )
    rows += further
    for name, measured in others.items():
        for entry in measured.values():
            entry["learned_from"] = name.upper() in facts.get("learned_from", [])
    with atomic_directory(out) as scratch:
        write_json(others, scratch / "benchmarks.json")
        write_table(table_of(rows, "distances"), scratch / "distances.parquet")
        write_json(metrics, scratch / "metrics.json")
        write_json(curves, scratch / "curves.json")
        if (predictions / TABLE).is_file():
            write_json(score_landmarks(predictions), scratch / "landmarks.json")
        if landmarks is not None and recognizer is not None:
            from stages.benchmarks.likeness import measure_likeness

            likeness, compared = measure_likeness(
                predictions=predictions,
                unit_name=unit,
                packed=now,
                landmarks=landmarks,
                recognizer=recognizer,
                compute=compute,
            )
            write_json(likeness, scratch / "likeness.json")
            write_table(table_of(compared, "likeness"), scratch / "likeness.parquet")


def load_entries(predictions: Path, now: Path, truths: Mapping[str, Truth | str]) -> list[Entry]:
    """Every NoW image that can be scored, with its prediction, in order of ``item_id``.

    Those are the images of the validation list; where the data set has none, the images of the
    people who have a scan. The test scans are not public.

    Raises:
        FileNotFoundError: There are no packed images, or the predictions have no table.
    """
    table = predictions / "rows.parquet"
    if not table.is_file():
        raise FileNotFoundError(f"expected {table}; run reconstruct first")
    predicted = {row["item_id"]: row for row in read_table(table).to_pylist()}
    images = packed_rows(now, "images", ["item_id", "subject_id", "status", "reason", "split"])
    listed = [image for image in images if image["split"] == "val"]
    scorable = listed or [image for image in images if image["subject_id"] in truths]
    logger.info("%d of %d images can be scored", len(scorable), len(images))
    entries = []
    for image in sorted(scorable, key=lambda row: str(row["item_id"])):
        row = predicted.get(image["item_id"])
        mesh = landmarks = None
        if row is None:
            reason = image["reason"] or "the method left no row for this image"
        elif row["status"] != "ok":
            reason = row["reason"] or row["status"]
        else:
            reason = ""
            mesh, landmarks = predictions / row["mesh"], predictions / row["landmarks"]
        entries.append(Entry(image["item_id"], image["subject_id"], mesh, landmarks, reason))
    return entries


def _keys(entries: Sequence[Entry], truths: Mapping[str, Truth | str]) -> list[str]:
    """SHA-256 of what decides each image's distances: the scan and the predicted files."""
    scans = {
        subject: key_of_values(
            {"reason": truth}
            if isinstance(truth, str)
            else {
                "vertices": truth.mesh.vertices,
                "faces": truth.mesh.faces,
                "landmarks": truth.landmarks,
            }
        )
        for subject, truth in truths.items()
    }
    keys = []
    for entry in entries:
        values: Row = {"item_id": entry.item_id, "subject_id": entry.subject_id}
        values |= {"reason": entry.reason, "scan": scans.get(entry.subject_id)}
        for name, path in (("mesh", entry.mesh), ("landmarks", entry.landmarks)):
            values[name] = None if path is None else str(path)  # stands in the reasons of failures
            if path is not None and path.is_file():
                values[f"{name}_sha256"] = sha256_file(path)
        keys.append(key_of_values(values))
    return keys


def score_entries(
    entries: Sequence[Entry],
    *,
    truths: Mapping[str, Truth | str],
    protocols: Sequence[str],
    unit: str,
) -> Iterator[Row]:
    """The rows of each image, those of all protocols in one: columns ``<protocol>/<column>``.

    A scan is made ready once for the images of one subject that follow each other.
    """
    for subject, group in itertools.groupby(entries, key=lambda entry: entry.subject_id):
        truth = truths.get(subject, "the subject has no scan")
        targets = {name: _target(truth, PROTOCOLS[name]) for name in protocols}
        for entry in group:
            rows = score_entry(entry, targets, unit)
            yield {f"{row['protocol']}/{name}": _kept(row[name]) for row in rows for name in row}


def score_entry(
    entry: Entry, targets: Mapping[str, Target | str], unit: str
) -> list[dict[str, Any]]:
    """Rows of schema ``distances`` for one image, one per protocol.

    A row that failed because there is no prediction has a reason that begins with ``missing``.
    """
    found: _Files | str = "no scan to measure on"
    if entry.mesh and entry.landmarks and any(isinstance(t, Target) for t in targets.values()):
        found = _read(entry.mesh, entry.landmarks)
    return [row_of(_score(entry, target, found, unit), name) for name, target in targets.items()]


def _kept(value: Any) -> Any:  # noqa: ANN401 - any column
    """Floats as arrays, which may be NaN in a kept row."""
    return np.asarray(value) if isinstance(value, float) else value


def _by_protocol(columns: Row, protocols: Sequence[str]) -> list[dict[str, Any]]:
    """The rows that :func:`score_entries` put together."""
    plain = {
        name: value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
        for name, value in columns.items()
    }
    return [
        {
            name.removeprefix(f"{protocol}/"): value
            for name, value in plain.items()
            if name.startswith(f"{protocol}/")
        }
        for protocol in protocols
    ]


_Files = tuple[Mesh, np.ndarray]
"""A predicted mesh and its seven landmarks."""


def _read(mesh: Path, landmarks: Path) -> _Files | str:
    """What the method left, or why it cannot be read."""
    try:
        return read_mesh(mesh), read_landmarks(landmarks)
    except (OSError, ValueError) as error:
        return str(error)


def _score(entry: Entry, target: Target | str, files: _Files | str, unit: str) -> ImageScore:
    blank = ImageScore(
        item_id=entry.item_id,
        subject_id=entry.subject_id,
        status="failed",
        reason="",
        distances_mm=np.zeros(0),
        flags=(),
    )
    if entry.mesh is None or entry.landmarks is None:
        return replace(blank, status="missing", reason=f"missing: {entry.reason}")
    if isinstance(target, str):
        return replace(blank, reason=target)
    if isinstance(files, str):
        return replace(blank, reason=files)
    mesh, landmarks = files
    try:
        result = target.measure(mesh.vertices, mesh.faces, landmarks, unit)
    except ValueError as error:
        return replace(blank, reason=str(error))
    return replace(
        blank,
        status="ok",
        distances_mm=result.distances_mm,
        reverse_mm=result.reverse_mm,
        error_mm=result.error_mm,
        kept=result.kept,
        flags=result.flags,
        measurement=result,
    )


def _target(truth: Truth | str, protocol: Protocol) -> Target | str:
    """The scan made ready, or why it cannot be used."""
    if isinstance(truth, str):
        return truth
    try:
        return Target(truth.mesh.vertices, truth.mesh.faces, truth.landmarks, protocol)
    except ValueError as error:
        return str(error)


def main() -> None:
    """Command line of the stage: paths and the method's name only."""
    parser = argparse.ArgumentParser(description="Score predictions on the NoW scans.")
    parser.add_argument("--method", required=True)
    parser.add_argument("--predictions", type=Path, required=True)
    parser.add_argument("--now", type=Path, required=True)
    parser.add_argument("--landmarks", type=Path, required=True)
    parser.add_argument("--recognizer", type=Path, required=True)
    parser.add_argument("--benchmarks", nargs="*", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    from stages.runtime.process import begin

    begin("evaluate")
    loaded = params.load()
    with session():
        run(
            loaded.evaluate,
            loaded.compute,
            method=args.method,
            predictions=args.predictions,
            now=args.now,
            out=args.out,
            landmarks=args.landmarks,
            recognizer=args.recognizer,
            benchmarks={
                name: Path(at) for name, _, at in (b.partition("=") for b in args.benchmarks)
            },
        )


def _score_of(row: Mapping[str, Any]) -> ImageScore:
    """A row as the table keeps it (float32), so that the table alone gives the same statistics."""
    missing = row["reason"].startswith("missing")
    return ImageScore(
        item_id=row["item_id"],
        subject_id=row["subject_id"],
        status="ok" if row["status"] == "ok" else "missing" if missing else "failed",
        reason=row["reason"],
        distances_mm=np.asarray(row.get("distances_mm", ()), np.float64),
        reverse_mm=np.asarray(row.get("reverse_mm", ()), np.float64),
        flags=tuple(json.loads(row["flags"])),
    )


def _require_enough(
    scores: Sequence[ImageScore], tolerated: float, method: str, protocol: str
) -> None:
    unscored = [score for score in scores if score.status != "ok"]
    if not scores or len(unscored) > tolerated * len(scores):
        reasons = sorted({score.reason for score in unscored})[:3]
        raise ValueError(
            f"expected scores for at least {1 - tolerated:.0%} of the images, got "
            f"{len(scores) - len(unscored)} of {len(scores)} for {method} by {protocol}: "
            f"{'; '.join(reasons)}"
        )


if __name__ == "__main__":
    from stages.evaluate import main as imported_main  # Ray workers find it by name

    imported_main()
