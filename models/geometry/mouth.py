"""A mouth that is as far open in the fit as on the scan.

From a closed mouth an open one is out of reach, whether the scan was placed by its shape or by
landmarks that call it closed: the chin is drawn to the lower lip and all around it fits. What gives
such a fit away is that its lower face bridges the mouth's opening, where there is no scan.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from models.geometry.closeness import disc_distances
from models.geometry.parametric import FitState, Subset, Surface, fit_parameters, rotation_matrix
from models.geometry.settings import FitSettings
from models.geometry.template import MOUTH, RegistrationModel

OPENINGS_RAD = (0.28, 0.14, 0.42, 0.0)
"""Turns of the jaw from which a doubtful lower face is fitted again, the likeliest first."""
STEPS = 6
GAIN = 0.03
"""How much more of the lower face has to be supported before the landmarks are overruled."""
SUPPORT_MM = 2.0
"""Distance at which a vertex counts half as supported."""


def lower_face_support(
    model: RegistrationModel, state: FitState, surface: Surface, areas: Float[np.ndarray, " k"]
) -> float:
    """Share of the lower face's area that a parametric fit has on the scan; 1 without a region.

    A vertex at the distance ``d`` counts ``1 / (1 + (d / 2 mm)^2)``.

    Args:
        model: The prepared model.
        state: The fit.
        surface: The scan, mm.
        areas: (K,) surface that each of its vertices stands for, mm^2.
    """
    ids = np.flatnonzero(model.lower_face)
    if len(ids) == 0:
        return 1.0
    posed, _ = Subset(model, ids).evaluate(state)
    distances = disc_distances(posed @ state.rotation.T + state.translation, surface, areas)
    share = model.areas[ids] / (1.0 + (distances / SUPPORT_MM) ** 2)
    return float(share.sum() / model.areas[ids].sum())


def with_the_mouth_as_open(
    model: RegistrationModel,
    state: FitState,
    marks: Float[np.ndarray, "l 3"],
    surface: Surface,
    areas: Float[np.ndarray, " k"],
    settings: FitSettings,
    *,
    bald: bool,
) -> tuple[FitState, float]:
    """A fit, or one that goes on from it without the mouth's landmarks and supports more.

    Nothing is tried where ``settings.mouth_support`` of the lower face is supported.

    Args:
        model: The prepared model.
        state: The fit.
        marks: (L, 3) landmarks, mm; NaN rows are missing.
        surface: The scan, mm.
        areas: (K,) surface that each of its vertices stands for, mm^2.
        settings: Schedule; the number of steps is this module's own.
        bald: Whether the scalp can be trusted.

    Returns:
        The better fit, ``state`` itself where no other is clearly better, and its support.
    """
    kept, support = state, lower_face_support(model, state, surface, areas)
    if support >= settings.mouth_support:
        return kept, support
    others = marks.copy()
    if len(others) == MOUTH.stop:
        others[MOUTH] = np.nan
    schedule = replace(settings, landmark_steps=0, icp_steps=STEPS)
    least = support + GAIN
    for opening in OPENINGS_RAD:
        start = replace(state, jaw=rotation_matrix(np.array([opening, 0.0, 0.0])))
        again = fit_parameters(model, others, surface, schedule, bald=bald, start=start)
        found = lower_face_support(model, again, surface, areas)
        if found > max(least, support):
            kept, support = again, found
        if support >= settings.mouth_support:
            break
    return kept, support
