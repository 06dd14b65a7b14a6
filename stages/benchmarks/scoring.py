"""Scoring of files: one scan against one prediction, or a benchmark folder against a submission.

Every function returns plain dicts that JSON can hold; distances are in millimetres.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from models.metrics import (
    Measurement,
    Protocol,
    Target,
    pooled_statistics,
    protocol_named,
    with_options,
)
from stages.benchmarks.image_scores import ImageScore, one_image, row_of, summarise
from stages.benchmarks.layouts import (
    Case,
    Layout,
    ScanFiles,
    layout_of,
    list_images,
    read_pairs,
)
from stages.benchmarks.official import write_feng_results, write_now_results
from stages.benchmarks.points import Order, read_landmarks
from stages.datasets.meshes import Mesh, read_mesh
from stages.datasets.vrml import read_vrml
from stages.runtime.artifacts import atomic_directory, write_json, write_table
from stages.runtime.compute import map_ordered
from stages.runtime.contracts import table_of
from stages.runtime.params import ComputeParams

__all__ = [
    "list_images",
    "measure",
    "planned",
    "planned_scores",
    "read_landmarks",
    "score_dataset",
    "score_files",
]

logger = logging.getLogger(__name__)

SCAN_UNITS_MM: Final = {"m": 1000.0, "dm": 100.0, "cm": 10.0, "mm": 1.0}
"""Millimetres per unit that scans may be in."""

IMAGES_PER_TASK: Final = 16
SECONDS_PER_IMAGE: Final = 0.5
_CONTENT = (OSError, ValueError)
_NOTHING: Final = np.zeros(0)


def score_files(
    protocol: str,
    scan: Path,
    scan_landmarks: Path | None,
    prediction: Path,
    prediction_landmarks: Path | None,
    unit: str = "m",
    distances_out: Path | None = None,
    order: Order = "position",
    *,
    options: Mapping[str, str] | None = None,
    scan_unit: str | None = None,
    pairs: Path | None = None,
) -> dict[str, Any]:
    """Score one predicted mesh against one scan.

    Args:
        protocol: One of :data:`models.metrics.PROTOCOLS`.
        scan: Mesh file in ``scan_unit``.
        scan_landmarks: Its landmarks, see :func:`read_landmarks`; none where vertices correspond.
        prediction: Mesh file in ``unit``.
        prediction_landmarks: Its landmarks, in ``unit``.
        unit: ``m``, ``cm`` or ``mm``.
        distances_out: Where to keep the distances (k,) float64 mm as ``.npy``.
        order: Of the points of a ``.pp`` file.
        options: See :func:`models.metrics.with_options`.
        scan_unit: Of the scan and its landmarks; the benchmark's own when None.
        pairs: Corresponding vertices, see :func:`stages.benchmarks.layouts.read_pairs`.

    Returns:
        Pooled statistics, the alignment found, and flags.

    Raises:
        FileNotFoundError: An input is not there.
        ValueError: An input is not what the protocol needs.
    """
    if distances_out is not None and distances_out.suffix != ".npy":
        raise ValueError(f"expected a .npy file for the distances, got {distances_out}")
    chosen = with_options(protocol_named(protocol), options or {})
    layout = layout_of(protocol)
    if layout.counts and (scan_landmarks is None or prediction_landmarks is None):
        raise ValueError(f"expected landmarks of scan and prediction for {protocol}, got none")
    factor = _scan_factor(scan_unit, layout)
    target = _target(ScanFiles(scan, scan_landmarks), chosen, layout, factor, order)
    result, flags = _measure_files(
        target, prediction, prediction_landmarks, layout, unit, order, None, pairs
    )
    if distances_out is not None:
        distances_out.parent.mkdir(parents=True, exist_ok=True)
        np.save(distances_out, result.distances_mm, allow_pickle=False)
    matrix = np.eye(4)
    matrix[:3, :3] = result.scale * result.rotation
    matrix[:3, 3] = result.translation
    return {
        "protocol": protocol,
        "unit": unit,
        **asdict(pooled_statistics([result.distances_mm])),
        "error_mm": result.error_mm,
        "statistic": chosen.statistic,
        "landmark_rms_mm": result.landmark_rms_mm,
        "landmark_scale_mm_per_unit": result.landmark_scale,
        "scale_mm_per_unit": result.scale,
        "T_scan_from_prediction": matrix.tolist(),
        "iterations": result.iterations,
        "flags": list(flags),
    }


def score_dataset(
    protocol: str,
    dataset_dir: Path,
    submission_dir: Path,
    unit: str = "m",
    *,
    out: Path | None = None,
    images: Path | None = None,
    order: Order = "position",
    options: Mapping[str, str] | None = None,
    scan_unit: str | None = None,
    pairs: Path | None = None,
    method: str = "submission",
    compute: ComputeParams | None = None,
) -> dict[str, Any]:
    """Score a submission folder against a benchmark in its owner's layout.

    Args:
        protocol: One of :data:`models.metrics.PROTOCOLS`.
        dataset_dir: As :mod:`stages.benchmarks.layouts` describes for the benchmark.
        submission_dir: Holds a mesh (``.obj``, else ``.ply``) and landmarks (``.npy``, else
            another kind) per image.
        unit: Of the submission.
        out: Replaced by a folder with the distances of all images (``distances.parquet``), the
            scores (``scores.json``) and, where the benchmark has them, ``official/`` result files.
        images: A list that says which images count, instead of the data set's own.
        order: Of the points of ``.pp`` files.
        options: See :func:`models.metrics.with_options`.
        scan_unit: Of the scans; the benchmark's own when None.
        pairs: Corresponding vertices; ``correspondence.npy`` or ``.txt`` in the data set when None.
        method: Name of the submission in official files.
        compute: Workers; one process when None.

    Returns:
        :func:`summarise` of all images, with one entry per image under ``per_image`` and those
        that could not be scored under ``unscored``.

    Raises:
        FileNotFoundError: The data set's list of images or the submission is not there.
        ValueError: The protocol is unknown.
        OSError, ValueError: Not one subject has a usable scan with landmarks; that of the first.
    """
    plan = planned(
        protocol,
        dataset_dir,
        submission_dir,
        unit,
        images=images,
        order=order,
        options=options,
        scan_unit=scan_unit,
        pairs=pairs,
    )
    found = planned_scores([plan], compute)[0]
    if isinstance(found, str):
        raise ValueError(found)  # noqa: TRY004 - a reason, not a wrong type
    result, scores = found
    if out is not None:
        with atomic_directory(out) as scratch:
            rows = [row_of(score, protocol) for score in scores]
            write_table(table_of(rows, "distances"), scratch / "distances.parquet")
            write_json(result, scratch / "scores.json")
            _write_official(scratch / "official", plan.protocol, method, scores)
    return result


@dataclass(frozen=True, slots=True)
class Planned:
    """A data set and a submission by one protocol, ready to be measured by :func:`planned_scores`.

    Attributes:
        cases: The images, in order.
        protocol: What to do.
        challenges: Their order in summaries.
        facts: What the results say of how they were made.
        run: Scores of a group of cases, but for ``protocol`` and ``scale_mm``.
    """

    cases: Sequence[Case]
    protocol: Protocol
    challenges: Sequence[str]
    facts: dict[str, Any]
    run: "partial[list[ImageScore]]"


def planned(
    protocol: str,
    dataset_dir: Path,
    submission_dir: Path,
    unit: str = "m",
    *,
    images: Path | None = None,
    order: Order = "position",
    options: Mapping[str, str] | None = None,
    scan_unit: str | None = None,
    pairs: Path | None = None,
    among: Collection[str] | None = None,
) -> Planned:
    """What :func:`score_dataset` would measure; see there for all arguments but the last.

    Args:
        protocol: As there, like all others but the last.
        dataset_dir: The benchmark.
        submission_dir: The predictions.
        unit: Theirs.
        images: A list of those that count.
        order: Of ``.pp`` files.
        options: Of the protocol.
        scan_unit: Of the scans.
        pairs: Corresponding vertices.
        among: Names of predictions, without suffix; images that have none of these names do not
            count, not even as missing. None: all count.
    """
    chosen = with_options(protocol_named(protocol), options or {})
    layout = layout_of(protocol)
    if not submission_dir.is_dir():
        raise FileNotFoundError(f"expected a submission folder, got {submission_dir}")
    factor = _scan_factor(scan_unit, layout)
    cases = layout.list_cases(dataset_dir, images)
    if among is not None:
        cases = [case for case in cases if not set(among).isdisjoint(case.stems)]
    _require_usable(cases)
    if pairs is None:
        found = (dataset_dir / f"correspondence{suffix}" for suffix in (".npy", ".txt"))
        pairs = next((path for path in found if path.is_file()), None)
    run = partial(
        _score_group,
        layout=replace(layout, scan_unit_mm=factor),
        submission=submission_dir,
        unit=unit,
        order=order,
        pairs=pairs,
    )
    facts: dict[str, Any] = {"protocol": protocol, "unit": unit, "statistic": chosen.statistic}
    return Planned(cases, chosen, layout.challenges, facts, run)


def planned_scores(
    plans: Sequence[Planned], compute: ComputeParams | None = None
) -> list[tuple[dict[str, Any], list[ImageScore]] | str]:
    """What :func:`score_dataset` returns, and every image's distances, of several plans at once.

    All images of all plans are one map, so that none waits for another plan's last image. A plan
    of which not one subject has a usable scan, or without a prediction where it needs one, gives
    the reason in words.
    """
    scales: dict[int, float | None] = dict.fromkeys(range(len(plans)))
    globally = [at for at, plan in enumerate(plans) if plan.protocol.scale == "global"]
    tried = [(plans[at], replace(plans[at].protocol, scale="estimated"), None) for at in globally]
    for at, scores in zip(globally, _scores(tried, compute), strict=True):
        found = [score.measurement.scale for score in scores if score.measurement]
        scales[at] = float(np.median(found)) if found else None
    kept = [at for at in range(len(plans)) if at not in globally or scales[at] is not None]
    measured = _scores([(plans[at], plans[at].protocol, scales[at]) for at in kept], compute)
    by_plan = dict(zip(kept, measured, strict=True))
    results: list[tuple[dict[str, Any], list[ImageScore]] | str] = []
    for at, plan in enumerate(plans):
        if at not in by_plan:
            results.append("expected predictions to take the global scale from, got none")
        elif not by_plan[at]:
            results.append("expected images to score, got none of the benchmark's")
        elif all(score.reason.startswith("scan: ") for score in by_plan[at]):
            results.append(by_plan[at][0].reason.removeprefix("scan: "))
        else:
            results.append((_result(plan, by_plan[at], scales[at]), by_plan[at]))
    return results


def _result(plan: Planned, scores: list[ImageScore], scale_mm: float | None) -> dict[str, Any]:
    scaled = {} if scale_mm is None else {"global_scale_mm_per_unit": scale_mm}
    return {
        **plan.facts,
        **scaled,
        **summarise(scores, plan.challenges, plan.protocol.statistic),
        "per_image": [one_image(score) for score in scores],
        "unscored": [
            {"item_id": score.item_id, "status": score.status, "reason": score.reason}
            for score in scores
            if score.status != "ok"
        ],
    }


def measure(
    scan: Mesh,
    scan_landmarks: Float[np.ndarray, "m 3"],
    prediction: Mesh,
    landmarks: Float[np.ndarray, "l 3"],
    protocol: Protocol,
    unit: str,
) -> Measurement:
    """One prediction on one scan in mm, both as meshes; see :class:`models.metrics.Target`."""
    target = Target(scan.vertices, scan.faces, scan_landmarks, protocol)
    return target.measure(prediction.vertices, prediction.faces, landmarks, unit)


def _scores(
    wanted: Sequence[tuple[Planned, Protocol, float | None]], compute: ComputeParams | None
) -> list[list[ImageScore]]:
    """Scores of each plan's cases in their order; a group shares its scans' structures."""
    tasks: list[tuple[partial[list[ImageScore]], list[Case]]] = []
    owners: list[int] = []
    for owner, (plan, protocol, scale_mm) in enumerate(wanted):
        run = partial(plan.run, protocol=protocol, scale_mm=scale_mm)
        for case in sorted(plan.cases, key=lambda case: (case.subject_id, case.item_id)):
            group = tasks[-1][1] if tasks and owners[-1] == owner else []
            if group and group[0].subject_id == case.subject_id and len(group) < IMAGES_PER_TASK:
                group.append(case)
            else:
                tasks.append((run, [case]))
                owners.append(owner)
    if not tasks:
        return [[] for _ in wanted]
    images = sum(len(plan.cases) for plan, _, _ in wanted)
    results = map_ordered(
        _run_task,
        tasks,
        compute=compute or ComputeParams(workers=1, ray_threshold_s=0, object_store_mb=80),
        seconds_per_item=SECONDS_PER_IMAGE * images / max(1, len(tasks)),
        label="score",
    )
    found: list[list[ImageScore]] = [[] for _ in wanted]
    for owner, scores in zip(owners, results, strict=True):
        found[owner] += scores
    for scores, (plan, _, _) in zip(found, wanted, strict=True):
        position = {case.item_id: place for place, case in enumerate(plan.cases)}
        scores.sort(key=lambda score: position[score.item_id])
    return found


def _run_task(task: "tuple[partial[list[ImageScore]], list[Case]]") -> list[ImageScore]:
    run, cases = task
    return run(cases)


def _score_group(
    cases: Sequence[Case],
    *,
    protocol: Protocol,
    layout: Layout,
    submission: Path,
    unit: str,
    order: Order,
    pairs: Path | None,
    scale_mm: float | None,
) -> list[ImageScore]:
    """Images of one subject; whatever is wrong with one of them stays its own."""
    targets: dict[ScanFiles, Target | str] = {}
    scores = []
    for case in cases:
        blank = ImageScore(
            item_id=case.item_id,
            subject_id=case.subject_id,
            status="failed",
            reason="",
            distances_mm=_NOTHING,
            flags=(),
            challenge=case.challenge,
        )
        try:
            mesh = _first_existing(submission, case, (".obj", ".ply"))
            kinds = (".npy", ".txt", ".lnd", ".ljson", ".pp")
            points = _first_existing(submission, case, kinds) if layout.counts else None
        except FileNotFoundError as error:
            scores.append(replace(blank, status="missing", reason=str(error)))
            continue
        tried: list[ImageScore] = []
        for scan in case.scans:
            if protocol.best_of_scans and scan.tip is not None and tried:
                continue  # the one nose tip belongs to the first scan
            if scan not in targets:
                targets[scan] = _target_or_reason(scan, protocol, layout, order)
            target = targets[scan]
            if isinstance(target, str):
                tried.append(replace(blank, reason=f"scan: {target}"))
                continue
            tried.append(
                _score_one(blank, target, scan, mesh, points, layout, unit, order, scale_mm, pairs)
            )
            if not protocol.best_of_scans:
                break
        good = [score for score in tried if score.error_mm is not None]
        scores.append(min(good, key=lambda s: s.error_mm or 0.0) if good else tried[-1])
    return scores


def _score_one(
    blank: ImageScore,
    target: Target,
    scan: ScanFiles,
    mesh: Path,
    points: Path | None,
    layout: Layout,
    unit: str,
    order: Order,
    scale_mm: float | None,
    pairs: Path | None,
) -> ImageScore:
    try:
        result, flags = _measure_files(target, mesh, points, layout, unit, order, scale_mm, pairs)
    except _CONTENT as error:
        return replace(blank, reason=str(error))
    return replace(
        blank,
        status="ok",
        distances_mm=result.distances_mm,
        reverse_mm=result.reverse_mm,
        error_mm=result.error_mm,
        kept=result.kept,
        scan=scan.mesh.stem if scan.mesh else "",
        flags=flags,
        measurement=result,
    )


def _measure_files(
    target: Target,
    prediction: Path,
    landmarks: Path | None,
    layout: Layout,
    unit: str,
    order: Order,
    scale_mm: float | None,
    pairs: Path | None,
) -> tuple[Measurement, tuple[str, ...]]:
    mesh = _mesh(prediction)
    marks = np.zeros((0, 3))
    if landmarks is not None and layout.counts:
        marks = read_landmarks(landmarks, order, layout.counts)
    corresponding = None
    if not layout.counts and pairs is not None:
        corresponding = read_pairs(pairs)
    result = target.measure(
        mesh.vertices, mesh.faces, marks, unit, scale_mm=scale_mm, pairs=corresponding
    )
    flags = result.flags
    if mesh.colors is not None:
        flags += (
            "coloured: vertices with colours were read as such; public codes may take the colours "
            "for vertices",
        )
    return result, flags


def _target_or_reason(
    scan: ScanFiles, protocol: Protocol, layout: Layout, order: Order
) -> Target | str:
    if scan.reason:
        return scan.reason
    try:
        return _target(scan, protocol, layout, layout.scan_unit_mm, order)
    except _CONTENT as error:
        return str(error)


def _target(
    scan: ScanFiles, protocol: Protocol, layout: Layout, factor: float, order: Order
) -> Target:
    if scan.mesh is None:
        raise FileNotFoundError(scan.reason)
    mesh = _mesh(scan.mesh, cloud=True)
    marks = np.zeros((0, 3))
    if scan.tip is not None:
        marks = np.array([scan.tip])
    elif scan.landmarks is not None and layout.counts:
        marks = read_landmarks(scan.landmarks, order, layout.counts)
    if scan.crop_mm and protocol.name == "micc-ganfit":
        protocol = replace(protocol, crop_mm=scan.crop_mm)
    return Target(factor * mesh.vertices, mesh.faces, factor * marks, protocol)


def _scan_factor(unit: str | None, layout: Layout) -> float:
    if unit is None:
        return layout.scan_unit_mm
    if unit not in SCAN_UNITS_MM:
        raise ValueError(f"expected a scan unit among {', '.join(SCAN_UNITS_MM)}, got {unit!r}")
    return SCAN_UNITS_MM[unit]


def _require_usable(cases: Sequence[Case]) -> None:
    reasons = [scan.reason for case in cases for scan in case.scans]
    if reasons and all(reasons):
        raise FileNotFoundError(reasons[0])


def _first_existing(folder: Path, case: Case, suffixes: Sequence[str]) -> Path:
    for suffix in suffixes:
        for stem in case.stems:
            path = folder / f"{stem}{suffix}"
            if path.is_file():
                return path
    raise FileNotFoundError(
        f"expected {case.stems[0]}{' or '.join(suffixes)} in the submission, got none"
    )


def _mesh(path: Path, *, cloud: bool = False) -> Mesh:
    """Read a mesh; a scan may be a cloud, since distances start at its vertices."""
    if not path.is_file():
        raise FileNotFoundError(f"expected a mesh in {path}, got no such file")
    if path.suffix.lower() == ".wrl":
        return read_vrml(path)
    return read_mesh(path, allow_point_cloud=cloud)


def _write_official(
    folder: Path, protocol: Protocol, method: str, scores: Sequence[ImageScore]
) -> None:
    good = [score for score in scores if score.status == "ok"]
    if protocol.name.startswith("feng2018"):
        for score in good:
            path = folder / score.challenge if score.challenge else folder
            name = score.item_id.split("/")[-1]
            write_feng_results(path, name, score.kept, score.distances_mm)
    if protocol.name.startswith(("now", "stirling-now")):
        parts = ["", *dict.fromkeys(score.challenge for score in scores if score.challenge)]
        for part in parts:
            chosen = [score for score in good if not part or score.challenge == part]
            listed = sum(1 for score in scores if not part or score.challenge == part)
            write_now_results(
                folder,
                method,
                [score.item_id for score in chosen],
                [score.distances_mm for score in chosen],
                listed - len(chosen),
                metric=protocol.scale == "unit",
                challenge=part,
            )
