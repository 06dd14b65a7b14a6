"""One scan to FLAME: mended, with the landmarks it has or those found in pictures of it, fitted.

What the stage does to every packed scan and ``faceline register`` to a file.
"""

import json
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from models.geometry.cleaning import Cleaned, clean_scan
from models.geometry.quality import QualityModel
from models.geometry.registration import Registration, RegistrationError, Scan
from models.geometry.registration import register as fit_scan
from models.geometry.settings import CleaningSettings, FitSettings, QualityLimits
from models.geometry.template import RegistrationModel
from stages.registration.landmarks import ScanLandmarker
from stages.registration.unmarked import register_unmarked
from stages.runtime.params import RegisterParams

MEASURES = (
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
"""Figures of a registration that are summed up."""


def register(
    scan: Scan,
    landmarks: Float[np.ndarray, "l 3"] | None,
    section: RegisterParams,
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
    result = _fitted(mended(scan, cleaned), landmarks, section, model=model, preset=preset)
    return replace(result, residuals_mm=of_input(result, cleaned, len(scan.vertices)))


def cleaned_scan(scan: Scan, section: RegisterParams) -> Cleaned:
    """The scan's mesh, mended, with a report of what was wrong."""
    return clean_scan(scan.vertices, scan.faces, CleaningSettings(**section.cleaning.model_dump()))


def mended(scan: Scan, cleaned: Cleaned) -> Scan:
    """The scan with its cleaned mesh."""
    return replace(scan, vertices=cleaned.vertices, faces=cleaned.faces)


def of_input(result: Registration, cleaned: Cleaned, count: int) -> Float[np.ndarray, " n"]:
    """Residuals by the input's vertices."""
    residuals = np.full(count, np.nan)
    residuals[cleaned.kept] = result.residuals_mm
    return residuals


def fit_cleaned(
    scan: Scan,
    cleaned: Cleaned,
    landmarks: Float[np.ndarray, "l 3"] | None,
    colors: UInt8[np.ndarray, "n 3"] | None,
    section: RegisterParams,
    *,
    model: RegistrationModel,
    landmarker: ScanLandmarker | None,
    preset: str | None,
) -> tuple[Registration, str]:
    """Fit FLAME to a cleaned scan, with landmarks or without.

    Args:
        scan: The scan in its own unit, as it came.
        cleaned: Its mended mesh.
        landmarks: In the scan's frame: 68, 51 or 7 points; None where there are none.
        colors: RGB per vertex of ``scan``, or None.
        section: Schedule, presets and limits.
        model: The prepared model, with the edition of the embedding that the landmarks follow.
        landmarker: Finds the landmarks of a scan without any; None places it by its shape.
        preset: Entry of ``section.presets``; None takes the section's own choice.

    Returns:
        The registration, its residuals those of the cleaned vertices, and where landmarks came
        from: ``file``, ``views`` or ``shape``.

    Raises:
        RegistrationError: The input cannot be registered at all.
        ValueError: There is no such preset.
    """
    mesh = mended(scan, cleaned)
    if landmarks is not None:
        return _fitted(mesh, landmarks, section, model=model, preset=preset), "file"
    kept = None if colors is None else colors[cleaned.kept]
    fit = partial(_fitted, mesh, model=model, preset=preset)
    return register_unmarked(mesh, kept, section, model, landmarker, fit)


def _fitted(
    scan: Scan,
    landmarks: Float[np.ndarray, "l 3"] | None,
    section: RegisterParams,
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
