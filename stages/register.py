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
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from models.geometry.cleaning import Cleaned, clean_scan
from models.geometry.quality import QualityModel
from models.geometry.registration import Registration, RegistrationError, Scan
from models.geometry.registration import register as fit_scan
from models.geometry.settings import CleaningSettings, FitSettings, QualityLimits
from models.geometry.template import RegistrationModel
from stages import params
from stages.artifacts import (
    atomic_directory,
    read_json,
    write_bytes,
    write_json,
    write_table,
)
from stages.contracts import table_of
from stages.landmark_files import COUNTS, read_scan_landmarks
from stages.process import begin
from stages.registration_pictures import (
    draw_pages,
    pages_of,
    picture_key,
    qa_cell,
    qa_picture,
    wanted_pictures,
)
from stages.row_cache import WORK, RowCache, cached_map, keys_of_shard, read_rows
from stages.scan_landmarks import ScanLandmarker, guessed_unit, landmarker_of
from stages.unmarked import register_unmarked

logger = logging.getLogger(__name__)

SECONDS_PER_SCAN = 0.5
SECONDS_PER_PICTURE = 0.3
SCANS_AT_ONCE = 4
SHOWN_ONLY = {"max_failed_fraction", "qa_pictures", "qa_size_px", "qa_heat_max_mm", "qa_cell_px"}
SHOWN_ONLY |= {"qa_worst", "qa_rejected"}  # parameters that change no row


def register(
    scan: Scan,
    landmarks: Float[np.ndarray, "l 3"] | None,
    section: params.RegisterParams,
    model: RegistrationModel,
    *,
    preset: str | None = None,
) -> Registration:
    """Clean one scan and fit FLAME to it with the pipeline's parameters.

    Args:
        scan: The scan in its own unit; a point cloud without faces is meshed.
        landmarks: In the scan's frame: 68, 51 or 7 points; None places the scan by its shape
            where the parameters allow it.
        section: Schedule, presets and limits.
        model: The prepared model.
        preset: Entry of ``section.presets``; None takes the section's own choice.

    Returns:
        The registration; its residuals are those of the scan's own vertices, NaN where cleaning
        dropped one.

    Raises:
        RegistrationError: The input cannot be registered at all.
        ValueError: There is no such preset.
    """
    cleaned = cleaned_scan(scan, section)
    result = _fitted(_mended(scan, cleaned), landmarks, section, model=model, preset=preset)
    return replace(result, residuals_mm=_of_input(result, cleaned, len(scan.vertices)))


def cleaned_scan(scan: Scan, section: params.RegisterParams) -> Cleaned:
    """The scan's mesh, mended, with a report of what was wrong."""
    return clean_scan(scan.vertices, scan.faces, CleaningSettings(**section.cleaning.model_dump()))


def _mended(scan: Scan, cleaned: Cleaned) -> Scan:
    """The scan with its cleaned mesh."""
    return replace(scan, vertices=cleaned.vertices, faces=cleaned.faces)


def _of_input(result: Registration, cleaned: Cleaned, count: int) -> Float[np.ndarray, " n"]:
    """Residuals by the input's vertices."""
    residuals = np.full(count, np.nan)
    residuals[cleaned.kept] = result.residuals_mm
    return residuals


def _fitted(
    scan: Scan,
    landmarks: Float[np.ndarray, "l 3"] | None,
    section: params.RegisterParams,
    *,
    model: RegistrationModel,
    preset: str | None,
) -> Registration:
    """Fit FLAME to a cleaned scan."""
    name = section.preset if preset is None else preset
    if name not in section.presets:
        raise ValueError(f"expected a preset among {sorted(section.presets)}, got {name!r}")
    if landmarks is None and not section.without_landmarks:
        raise RegistrationError("the scan has no landmarks; give 68, 51 or 7 to register it")
    settings = FitSettings(**section.fit.model_dump(), **section.presets[name].model_dump())
    return fit_scan(
        scan,
        landmarks,
        model,
        settings,
        QualityLimits(**section.limits.model_dump()),
        QualityModel(**section.quality.model_dump(exclude={"provenance"})),
    )


def _placed(
    scan: Scan,
    cleaned: Cleaned,
    landmarks: Float[np.ndarray, "l 3"] | None,
    colors: UInt8[np.ndarray, "n 3"] | None,
    section: params.RegisterParams,
    *,
    model: RegistrationModel,
    landmarker: ScanLandmarker | None,
    preset: str | None,
) -> tuple[Registration, str]:
    """Fit FLAME to a cleaned scan, with landmarks or without, and where landmarks came from.

    Residuals are those of the cleaned vertices.
    """
    mended = _mended(scan, cleaned)
    if landmarks is not None:
        return _fitted(mended, landmarks, section, model=model, preset=preset), "file"
    kept = None if colors is None else colors[cleaned.kept]
    fit = partial(_fitted, mended, model=model, preset=preset)
    return register_unmarked(mended, kept, section, model, landmarker, fit)


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
    deciding = section.model_dump(mode="json", exclude=SHOWN_ONLY) | {"dataset": packed.name}
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
        partial(draw_rows, model=model, section=section),
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


def register_rows(
    places: Sequence[tuple[Path, int]],
    *,
    model: Path,
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
        yield register_row(row, prepared(model), section, landmarker)


def draw_rows(
    places: Sequence[tuple[Path, int, Mapping[str, Any], bool, bool]],
    *,
    model: Path,
    section: params.RegisterParams,
) -> Iterator[dict[str, Any]]:
    """The picture (PNG) and the cell (array) of registered scans, empty and None if not wanted."""
    for shard, position, found, alone, celled in places:
        scan = packed_scan(next(read_rows([(shard, position)], rows_at_once=SCANS_AT_ONCE)))
        yield {
            "picture": qa_picture(scan, found, prepared(model), section) if alone else b"",
            "cell": qa_cell(scan, found, prepared(model), section) if celled else None,
        }


@cache
def prepared(model: Path) -> RegistrationModel:
    """The converted model in ``model``, prepared once per process."""
    from models.flame import FlameArrays, LandmarkEmbedding

    embedding = LandmarkEmbedding.load(model)
    masks: dict[str, np.ndarray] = {}
    if (model / "masks.npz").is_file():
        with np.load(model / "masks.npz") as arrays:
            masks = {name: arrays[name] for name in arrays.files}
    return RegistrationModel.build(
        FlameArrays.load(model), embedding.static_faces, embedding.static_bary, masks
    )


def _unmarked(row: Mapping[str, Any]) -> bool:
    """Whether a packed scan is usable but comes without landmarks."""
    return row["status"].as_py() == "ok" and _values(row["landmarks"]).size == 0


def register_row(
    row: Mapping[str, Any],
    model: RegistrationModel,
    section: params.RegisterParams,
    landmarker: ScanLandmarker | None = None,
) -> dict[str, Any]:
    """One packed scan to one row of the contract; what cannot be registered is a failed row.

    Args:
        row: Arrow scalars of one packed scan.
        model: The prepared model.
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
        result, source = _placed(
            scan,
            cleaned,
            _packed_landmarks(row),
            _packed_colors(row),
            section,
            model=model,
            landmarker=landmarker,
            preset=None,
        )
    except RegistrationError as error:
        logger.warning("%s: %s", name, error)
        return {**blank, "status": "failed", "reason": str(error)}
    shown = _of_input(result, cleaned, len(scan.vertices)).astype(np.float16)
    columns = {**blank, **result_columns(result), "landmark_source": source}
    return {**columns, "residuals_mm": shown}


def packed_scan(row: Mapping[str, Any]) -> Scan:
    """The scan of a packed row, as it is registered and drawn."""
    return Scan(
        _values(row["vertices"]).astype(np.float64).reshape(-1, 3),
        _values(row["faces"]).astype(np.int64).reshape(-1, 3),
        unit=row["unit"].as_py() or "unknown",
        bald=bool(row["capped"].as_py()),
    )


def result_columns(result: Registration) -> dict[str, Any]:
    """The contract's columns of one registration; a measure of nothing is None."""
    return {
        "status": result.status,
        "reason": result.reason,
        "beta": result.beta.astype(np.float32),
        "psi": result.psi.astype(np.float32),
        "theta": result.theta.astype(np.float32),
        "scale": result.scale,
        "rotation": result.rotation.ravel(),
        "translation": result.translation,
        "vertices": result.vertices.astype(np.float32).ravel(),
        "vertices_neutral": result.vertices_neutral.astype(np.float32).ravel(),
        "residual_median_mm": _finite(result.residual_median_mm),
        "residual_q95_mm": _finite(result.residual_q95_mm),
        "template_median_mm": _finite(result.template_median_mm),
        "template_q95_mm": _finite(result.template_q95_mm),
        "landmark_rms_mm": _finite(result.landmark_rms_mm),
        "coverage": result.coverage,
        "flipped_faces": result.flipped_faces,
        "prior_energy": result.prior_energy,
        "score": _finite(result.score),
        "flags": json.dumps(list(result.flags)),
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts, medians over the scans, and how often each reason occurred."""
    counts = {status: sum(r["status"] == status for r in rows) for status in _STATUSES}
    good = [row for row in rows if row["status"] == "ok"]
    metrics: dict[str, Any] = {"counts": counts, "scans": len(rows), "over_ok_scans": {}}
    for name in _MEASURES:
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
_MEASURES = (
    "residual_median_mm",
    "residual_q95_mm",
    "template_median_mm",
    "template_q95_mm",
    "landmark_rms_mm",
    "coverage",
    "flipped_faces",
    "prior_energy",
    "score",
)


def register_scan_files(
    scan: Path,
    landmarks: Path | None,
    embedding: Path | None,
    model: Path,
    out: Path,
    *,
    preset: str | None = None,
    landmark_model: Path | None = None,
) -> dict[str, Any]:
    """Register one scan file; writes mesh.obj, parameters.npz, residuals.npy, metrics.json, qa.png.

    Args:
        scan: OBJ or PLY.
        landmarks: See :func:`stages.landmark_files.read_scan_landmarks`; None finds them in
            pictures of the scan, or places it by its shape.
        embedding: The edition of FLAME's landmark embedding that the points follow; None takes
            the one in a converted model's folder.
        model: Converted folder, ``.npz`` or the owner's pickle.
        out: Replaced when all is done.
        preset: Entry of the parameters' presets.
        landmark_model: Folder of the trained predictor, where there are no landmarks; None
            places the scan by its shape alone.

    Returns:
        What ``metrics.json`` holds: status, reason, figures, flags.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file cannot be read, or no embedding is given.
    """
    from threadpoolctl import threadpool_limits

    from stages.datasets.flame_files import load_flame, read_masks, read_static_embedding
    from stages.datasets.meshes import read_mesh, write_obj

    if not scan.is_file():
        raise FileNotFoundError(f"expected a scan in {scan}, got no such file")
    if embedding is None:
        embedding = model / "embeddings.npz"
        if not embedding.is_file():
            raise ValueError(
                f"expected a landmark embedding (--embedding) or a converted folder with one, got "
                f"{model}; editions differ by up to 13 mm, so none is assumed"
            )
    loaded = _parameters()
    section = loaded.registration
    mesh = read_mesh(scan, allow_point_cloud=True)
    points = None if landmarks is None else read_scan_landmarks(landmarks, mesh.vertices)
    landmarker = None
    if points is None and landmark_model is not None:
        landmarker = landmarker_of(
            landmark_model, loaded.landmarks.model_dump_json(), section.views.model_dump_json()
        )
    masks: dict[str, np.ndarray] = {}
    if model.is_dir() and (model / "masks.npz").is_file():
        with np.load(model / "masks.npz") as arrays:
            masks = {name: arrays[name] for name in arrays.files}
    elif (model.parent / "FLAME_masks.pkl").is_file():
        masks = read_masks(model.parent / "FLAME_masks.pkl")
    prepared_model = RegistrationModel.build(
        load_flame(model), *read_static_embedding(embedding), masks
    )
    the_scan = Scan(mesh.vertices, mesh.faces)
    if points is None:
        the_scan = replace(the_scan, unit=guessed_unit(the_scan))
    cleaned = cleaned_scan(the_scan, section)
    try:
        with threadpool_limits(limits=1):
            result, source = _placed(
                the_scan,
                cleaned,
                points,
                mesh.colors,
                section,
                model=prepared_model,
                landmarker=landmarker,
                preset=preset,
            )
    except RegistrationError as error:
        metrics: dict[str, Any] = {
            "status": "failed",
            "reason": str(error),
            "scan": scan.name,
            "cleaning": cleaned.report,
        }
        with atomic_directory(out) as scratch:
            write_json(metrics, scratch / "metrics.json")
        return metrics
    columns = result_columns(result)
    metrics = {name: columns[name] for name in ("status", "reason", *_MEASURES)}
    metrics = {
        **metrics,
        "flags": list(result.flags),
        "landmark_source": source,
        "cleaning": cleaned.report,
        "scan": scan.name,
        "scan_vertices": len(mesh.vertices),
        "face_vertices": int(np.isfinite(result.residuals_mm).sum()),
        "metres_per_scan_unit": result.scale,
        "preset": preset or section.preset,
    }
    shown = {**columns, "residuals_mm": result.residuals_mm}
    picture = qa_picture(_mended(the_scan, cleaned), shown, prepared_model, section)
    with atomic_directory(out) as scratch:
        write_obj(scratch / "mesh.obj", result.vertices, prepared_model.arrays.faces)
        arrays = {
            "beta": result.beta,
            "psi": result.psi,
            "theta": result.theta,
            "scale": np.float64(result.scale),
            "rotation": result.rotation,
            "translation": result.translation,
            "vertices_neutral": result.vertices_neutral,
        }
        np.savez(scratch / "parameters.npz", allow_pickle=False, **arrays)
        residuals = _of_input(result, cleaned, len(mesh.vertices))
        np.save(scratch / "residuals.npy", residuals.astype(np.float32))
        write_json(metrics, scratch / "metrics.json")
        write_bytes(scratch / "qa.png", picture)
    return metrics


def _parameters() -> params.Params:
    """The parameters of the working directory, or else of this checkout."""
    here = Path("params.yaml")
    return params.load(here if here.is_file() else Path(__file__).parents[1] / "params.yaml")


def _values(scalar: Any) -> np.ndarray:  # noqa: ANN401 - an Arrow list scalar
    """The numbers of an Arrow list without a Python object each."""
    if not scalar.is_valid:
        return np.zeros(0)
    return np.asarray(scalar.values.to_numpy(zero_copy_only=False))


def _packed_landmarks(row: Mapping[str, Any]) -> Float[np.ndarray, "l 3"] | None:
    """The landmarks of a packed scan; None where it has none.

    Raises:
        RegistrationError: There is another number of them than we know.
    """
    values = _values(row["landmarks"])
    if values.size == 0:
        return None
    if values.size % 3 or values.size // 3 not in COUNTS:
        raise RegistrationError(
            f"expected 68, 51 or 7 landmarks of three coordinates, got {values.size} numbers"
        )
    return values.astype(np.float64).reshape(-1, 3)


def _packed_colors(row: Mapping[str, Any]) -> UInt8[np.ndarray, "n 3"] | None:
    """The colours of a packed scan; None where it has none, or not one per vertex."""
    values = _values(row["colors"])
    if values.size == 0 or values.size != _values(row["vertices"]).size:
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
