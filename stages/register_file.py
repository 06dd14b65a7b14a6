"""One scan file to FLAME, for ``faceline register``."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from models.geometry.registration import RegistrationError, Scan
from models.geometry.template import RegistrationModel
from stages.landmarking.landmark_files import read_scan_landmarks
from stages.registration.landmarks import guessed_unit, landmarker_of
from stages.registration.pictures import qa_picture
from stages.registration.scan import (
    MEASURES,
    cleaned_scan,
    fit_cleaned,
    mended,
    of_input,
    result_columns,
)
from stages.runtime import params
from stages.runtime.artifacts import atomic_directory, write_bytes, write_json, write_npz


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
        landmarks: See :func:`stages.landmarking.landmark_files.read_scan_landmarks`; None finds
            them in pictures of the scan, or places it by its shape.
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
            result, source = fit_cleaned(
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
    metrics = {name: columns[name] for name in ("status", "reason", *MEASURES)}
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
    picture = qa_picture(mended(the_scan, cleaned), shown, prepared_model, section)
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
        write_npz(arrays, scratch / "parameters.npz")
        residuals = of_input(result, cleaned, len(mesh.vertices))
        np.save(scratch / "residuals.npy", residuals.astype(np.float32))
        write_json(metrics, scratch / "metrics.json")
        write_bytes(scratch / "qa.png", picture)
    return metrics


def _parameters() -> params.Params:
    """The parameters of the working directory, or else of this checkout."""
    here = Path("params.yaml")
    return params.load(here if here.is_file() else Path(__file__).parents[1] / "params.yaml")
