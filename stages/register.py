"""Stage `register`: FLAME on every scan of a data set.

Reads packed scans with their landmarks and the converted FLAME model. Writes
``registrations.parquet`` (one row per scan, failures too; metres, FLAME's frame), ``qa/*.png``
(some scans, every rejected one, and ``worst.png``) and ``metrics.json``. A scan that the same code
registered before with the same parameters and model is not registered again.
"""

import argparse
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from models.geometry.registration import RegistrationError, Scan
from models.geometry.template import RegistrationModel
from stages.datasets.flame_files import edition_path, read_static_embedding
from stages.registration.landmarks import ScanLandmarker, landmarker_of
from stages.registration.pictures import (
    draw_pages,
    pages_of,
    picture_key,
    qa_cell,
    qa_picture,
    wanted_pictures,
)
from stages.registration.scan import (
    MEASURES,
    cleaned_scan,
    fit_cleaned,
    of_input,
    result_columns,
)
from stages.runtime import params
from stages.runtime.artifacts import (
    atomic_directory,
    read_json,
    write_bytes,
    write_json,
    write_table,
)
from stages.runtime.cached_map import cached_map
from stages.runtime.compute import session
from stages.runtime.contracts import table_of
from stages.runtime.process import begin
from stages.runtime.row_cache import WORK, RowCache
from stages.runtime.rows import keys_of_shard, numbers_of, read_rows

logger = logging.getLogger(__name__)

SECONDS_PER_SCAN = 0.5
SECONDS_PER_PICTURE = 0.3
SCANS_AT_ONCE = 4
SHOWN_ONLY = {"max_failed_fraction", "qa_pictures", "qa_size_px", "qa_heat_max_mm", "qa_cell_px"}
LANDMARKS_IN = {"ibug68": 68, "ibug51": 51, "now7": 7}
SHOWN_ONLY |= {"qa_worst", "qa_rejected"}  # parameters that change no row


def run(
    section: params.RegisterParams,
    compute: params.ComputeParams,
    *,
    packed: Path,
    model: Path,
    out: Path,
    landmark_model: Path | None = None,
    landmarks: params.LandmarksParams | None = None,
    work: Path = WORK,
) -> None:
    """Register every packed scan of one data set.

    Args:
        section: Schedule and limits.
        compute: Workers.
        packed: Folder of ``scans-*.parquet``.
        model: Converted FLAME: model, embeddings, masks.
        out: Replaced when all is done.
        landmark_model: Folder of the trained predictor, for scans without landmarks; None
            places them by their shape alone.
        landmarks: Names the provider of such landmarks; needed with ``landmark_model``.
        work: Folder of the rows of earlier runs.

    Raises:
        FileNotFoundError: An input is missing.
        ValueError: More scans fail than the parameters tolerate.
    """
    shards = sorted(packed.glob("scans-*.parquet"))
    if not shards:
        raise FileNotFoundError(f"expected {packed}/scans-*.parquet; run its pack stage first")
    points = landmarks_of(packed.name, section)
    edition_path(model, points.edition)  # missing: say so before any work
    deciding = section.model_dump(mode="json", exclude=SHOWN_ONLY | {"landmarks"})
    deciding |= {"dataset": packed.name, "points": points.model_dump(mode="json")}
    inputs = {"model": model}
    if landmark_model is not None and landmarks is not None:
        inputs["landmark_model"] = landmark_model
        deciding["landmarks"] = landmarks.model_dump(mode="json")
    known = RowCache.of("register", section=deciding, inputs=inputs, work=work)
    places, keys, subjects = [], [], []
    for shard in shards:
        of_shard = keys_of_shard(shard, known, rows_at_once=SCANS_AT_ONCE)
        places += [(shard, position) for position in range(len(of_shard))]
        keys += [packed_key.key for packed_key in of_shard]
        subjects += [[packed_key.subject_id] for packed_key in of_shard]
    found = cached_map(
        partial(
            register_rows,
            model=model,
            points=points,
            section=section,
            landmark_model=landmark_model,
            landmarks=landmarks,
        ),
        places,
        keys=keys,
        subjects=subjects,
        cache=known,
        compute=compute,
        seconds_per_item=SECONDS_PER_SCAN,
        label=f"register {packed.name}",
    )
    meta = read_json(model / "meta.json") if (model / "meta.json").is_file() else {}
    wanted = wanted_pictures(found, section)
    picture_keys = [picture_key(keys[at], kinds, section) for at, kinds in wanted.items()]
    pictures = cached_map(
        partial(draw_rows, model=model, edition=points.edition, section=section),
        [(*places[at], found[at], *kinds) for at, kinds in wanted.items()],
        keys=picture_keys,
        subjects=[subjects[at] for at in wanted],
        cache=known,
        compute=compute,
        seconds_per_item=SECONDS_PER_PICTURE,
        label=f"pictures of {packed.name}",
    )
    drawn = list(zip(picture_keys, (found[at] for at in wanted), pictures, strict=True))
    pages = pages_of([(key, row, p["cell"]) for key, row, p in drawn if p["cell"] is not None])
    sheets = cached_map(
        partial(draw_pages, dataset=packed.name, section=section),
        pages,
        keys=[page.key for page in pages],
        subjects=[sorted({name for at in wanted for name in subjects[at]})] * len(pages),
        cache=known,
        compute=compute,
        seconds_per_item=SECONDS_PER_PICTURE,
        label=f"pages of {packed.name}",
    )
    known.forget_unused()
    order = sorted(range(len(found)), key=lambda at: found[at]["item_id"])
    rows = [{k: v for k, v in found[at].items() if k != "residuals_mm"} for at in order]
    metrics = summarise(rows) | {"dataset": packed.name, "synthetic_model": meta.get("synthetic")}
    metrics["landmarks"] = points.model_dump(mode="json")
    with atomic_directory(out) as scratch:
        write_table(table_of(rows, "registrations"), scratch / "registrations.parquet")
        (scratch / "qa").mkdir()
        for _, row, made in drawn:
            name = row["item_id"].replace("/", "_")
            if made["picture"]:
                write_bytes(scratch / "qa" / f"{name}.png", made["picture"])
        for page, sheet in zip(pages, sheets, strict=True):
            write_bytes(scratch / "qa" / page.file_name, sheet["page"])
        write_json(metrics, scratch / "metrics.json")
    logger.info("register %s: %s", packed.name, metrics["counts"])
    bad = len(rows) - metrics["counts"]["ok"]
    if bad > section.max_failed_fraction * len(rows):
        raise ValueError(
            f"expected at most {section.max_failed_fraction:.0%} failed registrations, got {bad} "
            f"of {len(rows)}; the reasons stand in {out / 'registrations.parquet'}"
        )


def landmarks_of(dataset: str, section: params.RegisterParams) -> params.ScanLandmarksParams:
    """What the parameters say of a data set's landmarks.

    Raises:
        ValueError: Nothing; orders and editions differ, so none is assumed.
    """
    if dataset not in section.landmarks:
        raise ValueError(
            f"expected register.landmarks to say in which order and edition the landmarks of "
            f"{dataset} are, got {', '.join(sorted(section.landmarks)) or 'nothing'}; add it to "
            "params.yaml"
        )
    return section.landmarks[dataset]


def register_rows(
    places: Sequence[tuple[Path, int]],
    *,
    model: Path,
    points: params.ScanLandmarksParams,
    section: params.RegisterParams,
    landmark_model: Path | None = None,
    landmarks: params.LandmarksParams | None = None,
) -> Iterator[dict[str, Any]]:
    """The rows of packed scans, each with the residuals that its pictures show."""
    for row in read_rows(places, rows_at_once=SCANS_AT_ONCE):
        landmarker = None
        if landmark_model is not None and landmarks is not None and _unmarked(row):
            landmarker = landmarker_of(
                landmark_model, landmarks.model_dump_json(), section.views.model_dump_json()
            )
        yield register_row(row, prepared(model, points.edition), points, section, landmarker)


def draw_rows(
    places: Sequence[tuple[Path, int, Mapping[str, Any], bool, bool]],
    *,
    model: Path,
    edition: str,
    section: params.RegisterParams,
) -> Iterator[dict[str, Any]]:
    """The picture (PNG) and the cell (array) of registered scans, empty and None if not wanted."""
    for shard, position, found, alone, celled in places:
        scan = packed_scan(next(read_rows([(shard, position)], rows_at_once=SCANS_AT_ONCE)))
        flame = prepared(model, edition)
        yield {
            "picture": qa_picture(scan, found, flame, section) if alone else b"",
            "cell": qa_cell(scan, found, flame, section) if celled else None,
        }


@cache
def prepared(model: Path, edition: str) -> RegistrationModel:
    """The converted model in ``model`` with an edition of its landmarks, once per process.

    Raises:
        FileNotFoundError: The folder lacks the model or the edition.
    """
    from models.face.flame import FlameArrays

    embedding = read_static_embedding(edition_path(model, edition))
    masks: dict[str, np.ndarray] = {}
    if (model / "masks.npz").is_file():
        with np.load(model / "masks.npz") as arrays:
            masks = {name: arrays[name] for name in arrays.files}
    return RegistrationModel.build(FlameArrays.load(model), *embedding, masks)


def _unmarked(row: Mapping[str, Any]) -> bool:
    """Whether a packed scan is usable but comes without landmarks."""
    return row["status"].as_py() == "ok" and numbers_of(row["landmarks"]).size == 0


def register_row(
    row: Mapping[str, Any],
    model: RegistrationModel,
    points: params.ScanLandmarksParams,
    section: params.RegisterParams,
    landmarker: ScanLandmarker | None = None,
) -> dict[str, Any]:
    """One packed scan to one row of the contract; what cannot be registered is a failed row.

    Args:
        row: Arrow scalars of one packed scan.
        model: The prepared model.
        points: What the data set's landmarks are.
        section: Schedule and limits.
        landmarker: For a scan without landmarks; None places it by its shape.

    Returns:
        The contract's columns, and ``residuals_mm`` of the scan's vertices for the pictures.
    """
    name = row["item_id"].as_py()
    blank = {
        "item_id": name,
        "subject_id": row["subject_id"].as_py(),
        "flags": "[]",
        "cleaning": "{}",
    }
    if row["status"].as_py() != "ok":
        reason = f"the scan is not usable: {row['reason'].as_py()}"
        return {**blank, "status": "failed", "reason": reason}
    try:
        scan = packed_scan(row)
        cleaned = cleaned_scan(scan, section)
        blank["cleaning"] = json.dumps(cleaned.report)
        result, source = fit_cleaned(
            scan,
            cleaned,
            _packed_landmarks(row, points.order),
            _packed_colors(row),
            section,
            model=model,
            landmarker=landmarker,
            preset=None,
        )
    except RegistrationError as error:
        logger.warning("%s: %s", name, error)
        return {**blank, "status": "failed", "reason": str(error)}
    shown = of_input(result, cleaned, len(scan.vertices)).astype(np.float16)
    columns = {**blank, **result_columns(result), "landmark_source": source}
    return {**columns, "residuals_mm": shown}


def packed_scan(row: Mapping[str, Any]) -> Scan:
    """The scan of a packed row, as it is registered and drawn."""
    return Scan(
        numbers_of(row["vertices"]).astype(np.float64).reshape(-1, 3),
        numbers_of(row["faces"]).astype(np.int64).reshape(-1, 3),
        unit=row["unit"].as_py() or "unknown",
        bald=bool(row["capped"].as_py()),
    )


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts, medians over the scans, and how often each reason occurred."""
    counts = {status: sum(r["status"] == status for r in rows) for status in _STATUSES}
    good = [row for row in rows if row["status"] == "ok"]
    metrics: dict[str, Any] = {"counts": counts, "scans": len(rows), "over_ok_scans": {}}
    for name in MEASURES:
        values = [float(row[name]) for row in good if row[name] is not None]
        if values:
            metrics["over_ok_scans"][name] = {
                "median": round(float(np.median(values)), 6),
                "worst": round(float((min if name in _HIGHER else max)(values)), 6),
            }
    metrics["not_ok"] = {row["item_id"]: row["reason"] for row in rows if row["status"] != "ok"}
    return metrics


_HIGHER = ("coverage", "score")  # the better, the higher
_STATUSES = ("ok", "rejected", "failed")


def _packed_landmarks(row: Mapping[str, Any], order: str) -> Float[np.ndarray, "l 3"] | None:
    """The landmarks of a packed scan; None where it has none.

    Raises:
        RegistrationError: They are in another order than declared, or not as many as it has.
    """
    values = numbers_of(row["landmarks"])
    if values.size == 0:
        return None
    packed = row["landmark_order"].as_py() or "no"
    if packed != order:
        raise RegistrationError(
            f"expected landmarks in the order that register.landmarks declares, {order}, got "
            f"{packed} order; correct the parameter or the reader"
        )
    if values.size != 3 * LANDMARKS_IN[order]:
        raise RegistrationError(
            f"expected {LANDMARKS_IN[order]} landmarks of three coordinates ({order}), got "
            f"{values.size} numbers"
        )
    return values.astype(np.float64).reshape(-1, 3)


def _packed_colors(row: Mapping[str, Any]) -> UInt8[np.ndarray, "n 3"] | None:
    """The colours of a packed scan; None where it has none, or not one per vertex."""
    values = numbers_of(row["colors"])
    if values.size == 0 or values.size != numbers_of(row["vertices"]).size:
        return None
    return values.astype(np.uint8).reshape(-1, 3)


def main() -> None:
    """Command line of the stage: paths only."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packed", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--landmark-model", type=Path, help="for scans without landmarks")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    begin("register")
    loaded = params.load()
    with session():
        run(
            loaded.registration,
            loaded.compute,
            packed=args.packed,
            model=args.model,
            out=args.out,
            landmark_model=args.landmark_model,
            landmarks=loaded.landmarks,
        )


if __name__ == "__main__":
    from stages.register import main as imported_main  # Ray workers find it by name

    imported_main()
