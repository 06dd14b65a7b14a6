"""Stage `register`: FLAME on every scan of a data set.

Reads packed scans with their landmarks and the converted FLAME model. Writes
``registrations.parquet`` (one row per scan, failures too; metres, FLAME's frame), ``qa/*.png`` and
``metrics.json``.
"""

import argparse
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from models.geometry.registration import Registration, RegistrationError, Scan
from models.geometry.registration import register as fit_scan
from models.geometry.settings import FitSettings, QualityLimits
from models.geometry.sheet import registration_sheet
from models.geometry.template import RegistrationModel
from stages import params
from stages.artifacts import atomic_directory, read_json, write_bytes, write_json, write_table
from stages.compute import map_ordered
from stages.contracts import table_of
from stages.landmark_files import COUNTS, read_scan_landmarks
from stages.process import begin
from stages.scan_landmarks import ScanLandmarker, guessed_unit, landmarker_of
from stages.unmarked import register_unmarked

logger = logging.getLogger(__name__)

SECONDS_PER_SCAN = 0.5
SCANS_AT_ONCE = 4


def register(
    scan: Scan,
    landmarks: Float[np.ndarray, "l 3"] | None,
    section: params.RegisterParams,
    model: RegistrationModel,
    *,
    preset: str | None = None,
) -> Registration:
    """Fit FLAME to one scan with the pipeline's parameters.

    Args:
        scan: The scan in its own unit.
        landmarks: In the scan's frame: 68, 51 or 7 points; None places the scan by its shape
            where the parameters allow it.
        section: Schedule, presets and limits.
        model: The prepared model.
        preset: Entry of ``section.presets``; None takes the section's own choice.

    Raises:
        RegistrationError: The input cannot be registered at all.
        ValueError: There is no such preset.
    """
    name = section.preset if preset is None else preset
    if name not in section.presets:
        raise ValueError(f"expected a preset among {sorted(section.presets)}, got {name!r}")
    if landmarks is None and not section.without_landmarks:
        raise RegistrationError("the scan has no landmarks; give 68, 51 or 7 to register it")
    settings = FitSettings(**section.fit.model_dump(), **section.presets[name].model_dump())
    return fit_scan(scan, landmarks, model, settings, QualityLimits(**section.limits.model_dump()))


def run(
    section: params.RegisterParams,
    compute: params.ComputeParams,
    *,
    packed: Path,
    model: Path,
    out: Path,
    landmark_model: Path | None = None,
    landmarks: params.LandmarksParams | None = None,
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

    Raises:
        FileNotFoundError: An input is missing.
        ValueError: More scans fail than the parameters tolerate.
    """
    from stages.artifacts import read_table

    shards = sorted(packed.glob("scans-*.parquet"))
    if not shards:
        raise FileNotFoundError(f"expected {packed}/scans-*.parquet; run its pack stage first")
    ids = sorted(
        i for shard in shards for i in read_table(shard, ["item_id"])["item_id"].to_pylist()
    )
    results = map_ordered(
        partial(
            register_shard,
            model=model,
            section=section,
            drawn=spread(ids, section.qa_pictures),
            landmark_model=landmark_model,
            landmarks=None if landmarks is None else landmarks.model_dump_json(),
        ),
        shards,
        compute=compute,
        seconds_per_item=SECONDS_PER_SCAN * len(ids) / len(shards),
        label=f"register {packed.name}",
    )
    found = sorted((pair for result in results for pair in result), key=lambda p: p[0]["item_id"])
    rows = [row for row, _ in found]
    meta = read_json(model / "meta.json") if (model / "meta.json").is_file() else {}
    metrics = summarise(rows) | {"dataset": packed.name, "synthetic_model": meta.get("synthetic")}
    with atomic_directory(out) as scratch:
        write_table(table_of(rows, "registrations"), scratch / "registrations.parquet")
        (scratch / "qa").mkdir()
        for row, picture in found:
            if picture:
                write_bytes(scratch / "qa" / f"{row['item_id'].replace('/', '_')}.png", picture)
        write_json(metrics, scratch / "metrics.json")
    logger.info("register %s: %s", packed.name, metrics["counts"])
    bad = len(rows) - metrics["counts"]["ok"]
    if bad > section.max_failed_fraction * len(rows):
        raise ValueError(
            f"expected at most {section.max_failed_fraction:.0%} failed registrations, got {bad} "
            f"of {len(rows)}; the reasons stand in {out / 'registrations.parquet'}"
        )


def spread(ids: list[str], count: int) -> frozenset[str]:
    """At most ``count`` of the ids, evenly spread over their order."""
    if not ids or count == 0:
        return frozenset()
    return frozenset(ids[i] for i in np.unique(np.linspace(0, len(ids) - 1, count).astype(int)))


def register_shard(
    shard: Path,
    *,
    model: Path,
    section: params.RegisterParams,
    drawn: frozenset[str],
    landmark_model: Path | None = None,
    landmarks: str | None = None,
) -> list[tuple[dict[str, Any], bytes]]:
    """Rows of one shard, each with its picture (empty where none is wanted)."""
    import pyarrow.parquet as pq

    out = []
    with pq.ParquetFile(shard) as file:
        for batch in file.iter_batches(batch_size=SCANS_AT_ONCE):
            for position in range(batch.num_rows):
                row = {name: batch.column(name)[position] for name in batch.schema.names}
                landmarker = None
                if landmark_model is not None and landmarks is not None and _unmarked(row):
                    views = section.views.model_dump_json()
                    landmarker = landmarker_of(landmark_model, landmarks, views)
                out.append(register_row(row, prepared(model), section, drawn, landmarker))
    return out


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
    drawn: frozenset[str],
    landmarker: ScanLandmarker | None = None,
) -> tuple[dict[str, Any], bytes]:
    """One packed scan to one row of the contract; what cannot be registered is a failed row.

    Args:
        row: Arrow scalars of one packed scan.
        model: The prepared model.
        section: Schedule and limits.
        drawn: Items that get a picture; rejected ones always do.
        landmarker: For a scan without landmarks; None places it by its shape.
    """
    name = row["item_id"].as_py()
    blank = {"item_id": name, "subject_id": row["subject_id"].as_py(), "flags": "[]"}
    if row["status"].as_py() != "ok":
        reason = f"the scan is not usable: {row['reason'].as_py()}"
        return {**blank, "status": "failed", "reason": reason}, b""
    try:
        landmarks = _packed_landmarks(row)
        scan = Scan(
            _values(row["vertices"]).astype(np.float64).reshape(-1, 3),
            _values(row["faces"]).astype(np.int64).reshape(-1, 3),
            unit=row["unit"].as_py() or "unknown",
            bald=bool(row["capped"].as_py()),
        )
        if landmarks is None:
            colors = _packed_colors(row)
            fit = partial(register, scan, model=model)
            result, source = register_unmarked(scan, colors, section, model, landmarker, fit)
        else:
            result, source = register(scan, landmarks, section, model), "file"
    except RegistrationError as error:
        logger.warning("%s: %s", name, error)
        return {**blank, "status": "failed", "reason": str(error)}, b""
    picture = b""
    if name in drawn or result.status != "ok":
        picture = qa_picture(scan, result, model, section)
    return {**blank, **result_columns(result), "landmark_source": source}, picture


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
        "landmark_rms_mm": _finite(result.landmark_rms_mm),
        "coverage": result.coverage,
        "flipped_faces": result.flipped_faces,
        "prior_energy": result.prior_energy,
        "flags": json.dumps(list(result.flags)),
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def qa_picture(
    scan: Scan, result: Registration, model: RegistrationModel, section: params.RegisterParams
) -> bytes:
    """PNG of scan, registered head, both, and residuals, from two sides."""
    import cv2

    sheet = registration_sheet(
        result.scale * np.asarray(scan.vertices, np.float64) @ result.rotation.T
        + result.translation,
        np.asarray(scan.faces, np.int64),
        result.vertices,
        np.asarray(model.arrays.faces, np.int64),
        result.residuals_mm,
        size_px=section.qa_size_px,
        heat_max_mm=section.qa_heat_max_mm,
    )
    return bytes(cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())


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
                "worst": round(float((min if name == "coverage" else max)(values)), 6),
            }
    metrics["not_ok"] = {row["item_id"]: row["reason"] for row in rows if row["status"] != "ok"}
    return metrics


_STATUSES = ("ok", "rejected", "failed")
_MEASURES = (
    "residual_median_mm",
    "residual_q95_mm",
    "landmark_rms_mm",
    "coverage",
    "flipped_faces",
    "prior_energy",
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
    mesh = read_mesh(scan)
    points = None if landmarks is None else read_scan_landmarks(landmarks, mesh.vertices)
    landmarker = None
    if landmarks is None and landmark_model is not None:
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
    try:
        with threadpool_limits(limits=1):
            if points is None:
                fit = partial(register, the_scan, model=prepared_model, preset=preset)
                result, source = register_unmarked(
                    the_scan, mesh.colors, section, prepared_model, landmarker, fit
                )
            else:
                result = register(the_scan, points, section, prepared_model, preset=preset)
                source = "file"
    except RegistrationError as error:
        metrics: dict[str, Any] = {"status": "failed", "reason": str(error), "scan": scan.name}
        with atomic_directory(out) as scratch:
            write_json(metrics, scratch / "metrics.json")
        return metrics
    columns = result_columns(result)
    metrics = {name: columns[name] for name in ("status", "reason", *_MEASURES)}
    metrics = {
        **metrics,
        "flags": list(result.flags),
        "landmark_source": source,
        "scan": scan.name,
        "scan_vertices": len(mesh.vertices),
        "face_vertices": int(np.isfinite(result.residuals_mm).sum()),
        "template_median_mm": result.template_median_mm,
        "template_q95_mm": result.template_q95_mm,
        "metres_per_scan_unit": result.scale,
        "preset": preset or section.preset,
    }
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
        np.save(scratch / "residuals.npy", result.residuals_mm.astype(np.float32))
        write_json(metrics, scratch / "metrics.json")
        write_bytes(scratch / "qa.png", qa_picture(the_scan, result, prepared_model, section))
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
