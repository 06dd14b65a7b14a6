"""FLAME on a scan without landmarks: by landmarks lifted from its pictures, or by its shape."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from jaxtyping import Float, UInt8

from models.geometry.registration import (
    MOUTH_OVERRULED,
    Registration,
    RegistrationError,
    Scan,
    check_scan,
)
from models.geometry.template import RegistrationModel
from stages.landmarking.landmark_providers import NoFaceError
from stages.registration.landmarks import ScanLandmarker
from stages.runtime.params import RegisterParams

MOUTH = slice(48, 68)
"""The mouth in iBUG's order."""

Fit = Callable[[Float[np.ndarray, "l 3"] | None, RegisterParams], Registration]


def register_unmarked(
    scan: Scan,
    colors: UInt8[np.ndarray, "n 3"] | None,
    section: RegisterParams,
    model: RegistrationModel,
    landmarker: ScanLandmarker | None,
    fit: Fit,
) -> tuple[Registration, str]:
    """Fit FLAME to a scan that has no landmarks.

    Landmarks lifted from pictures of the scan place it; those of a mouth that the surface says is
    open otherwise do not count. Where something speaks against them, its
    shape places it as well and the better fit is kept; without a landmarker its shape alone does.

    Args:
        scan: The scan in its own unit.
        colors: RGB per vertex, or None.
        section: Schedule, presets and limits.
        model: The prepared model.
        landmarker: Finds landmarks; None where no landmark model is there.
        fit: Fits the scan from landmarks, or by its shape, with a section's parameters.

    Returns:
        The registration, flagged ``landmarks_from_views`` or ``no_landmarks``, and ``views`` or
        ``shape``. A scan in whose pictures no face is found is rejected at best.

    Raises:
        RegistrationError: The scan cannot be registered at all.
    """
    if not section.without_landmarks or landmarker is None:
        return fit(None, section), "shape"
    check_scan(scan)
    views = section.views
    faceless = ""
    doubts: tuple[str, ...] = ()
    fits: list[tuple[Registration, str]] = []
    errors: list[RegistrationError] = []
    try:
        found = landmarker(scan, colors, model)
    except NoFaceError as error:
        faceless = str(error)
    else:
        doubts = found.doubts
        patient = {
            "landmark_sigma_start_mm": views.landmark_sigma_mm,
            "icp_steps": views.icp_steps,
        }
        loose = section.model_copy(update={"fit": section.fit.model_copy(update=patient)})
        try:
            result = fit(found.points, loose)
            if MOUTH_OVERRULED in result.flags:
                result = fit(_without_mouth(found.points), loose)
                result = replace(result, flags=(*result.flags, MOUTH_OVERRULED))
            flags = dict.fromkeys((*result.flags, "landmarks_from_views"))
            fits.append((replace(result, flags=tuple(flags)), "views"))
        except RegistrationError as error:
            errors.append(error)
    if not fits or doubts or fits[0][0].status != "ok":
        try:
            fits.append((fit(None, section), "shape"))
        except RegistrationError as error:
            errors.append(error)
    if not fits:
        raise RegistrationError("; ".join(dict.fromkeys(str(e) for e in errors))) from errors[0]
    best, source = max(fits, key=lambda pair: _merit(pair[0]))
    if faceless:
        reason = "; ".join(part for part in (best.reason, faceless) if part)
        best = replace(best, status="rejected", reason=reason)
    return best, source


def _without_mouth(points: Float[np.ndarray, "68 3"]) -> Float[np.ndarray, "68 3"]:
    """The points, the mouth's missing."""
    kept = points.copy()
    kept[MOUTH] = np.nan
    return kept


def _merit(result: Registration) -> tuple[bool, float]:
    """Orders fits of one scan: accepted ones first, then by how much of the face is how near."""
    return result.status == "ok", result.coverage / (1.0 + result.residual_q95_mm)
