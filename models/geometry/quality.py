"""How far a registration can be trusted: hard limits, and a calibrated score.

The score estimates the probability that the face lies where it should (see
``docs/registration-quality.md``): a logistic model of evidence that only ever counts against a
result, so that worse figures never raise it. Its weights are parameters, fitted by
``tests/benchmarks/registration_calibration.py`` on scans of known heads.
"""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from models.face.flame import shape_vertices
from models.geometry.alignment import align_similarity
from models.geometry.settings import QualityLimits
from models.geometry.template import RegistrationModel

if TYPE_CHECKING:
    from models.geometry.registration import Registration

NAMED = 3


@dataclass(frozen=True, slots=True)
class Evidence:
    """What speaks against a registration; each is zero for a perfect one.

    Attributes:
        landmark_drift_mm: RMS of the rigid motion that takes the mesh's landmarks to the given
            ones: large where the whole face slid, small where landmarks only scatter.
        landmark_median_mm: Median landmark distance.
        scarcity: One over the number of landmarks; zero without any.
        no_landmarks: 1 where the scan was placed by its shape, else 0.
        residual_median_mm: Median scan-to-mesh distance over the face.
        residual_q95_mm: Its 95th percentile.
        free_q95_mm: 95th percentile over the face of what was added to the model's own shape: large
            on what is no head.
        uncovered: Share of the face's area that does not lie on the scan.
        flipped_faces: Triangles turned over by the refinement.
        prior_energy: Sum of squared coefficients.
    """

    landmark_drift_mm: float
    landmark_median_mm: float
    scarcity: float
    no_landmarks: float
    residual_median_mm: float
    residual_q95_mm: float
    free_q95_mm: float
    uncovered: float
    flipped_faces: float
    prior_energy: float


@dataclass(frozen=True)
class QualityModel:
    """Log odds of a right registration: intercept less the weighted ``log(1 + x)`` of the evidence.

    Attributes:
        intercept: Log odds of a registration against which nothing speaks.
        landmark_drift_mm: Weight of that evidence, and so on; none is negative.
        landmark_median_mm: See ``Evidence``.
        scarcity: See ``Evidence``.
        no_landmarks: See ``Evidence``.
        residual_median_mm: See ``Evidence``.
        residual_q95_mm: See ``Evidence``.
        free_q95_mm: See ``Evidence``.
        uncovered: See ``Evidence``.
        flipped_faces: See ``Evidence``.
        prior_energy: See ``Evidence``.
    """

    intercept: float
    landmark_drift_mm: float
    landmark_median_mm: float
    scarcity: float
    no_landmarks: float
    residual_median_mm: float
    residual_q95_mm: float
    free_q95_mm: float
    uncovered: float
    flipped_faces: float
    prior_energy: float

    def __post_init__(self) -> None:
        """Check that no evidence speaks for a registration.

        Raises:
            ValueError: A weight is negative.
        """
        for name in EVIDENCE:
            if getattr(self, name) < 0:
                raise ValueError(
                    f"quality weight {name}: expected >= 0, got {getattr(self, name)}; worse "
                    "figures may not raise the score"
                )

    def costs(self, evidence: Evidence) -> dict[str, float]:
        """What each piece of evidence takes off the log odds; infinite evidence takes all."""
        return {
            name: float(getattr(self, name) * np.log1p(getattr(evidence, name)))
            if getattr(self, name) > 0
            else 0.0
            for name in EVIDENCE
        }

    def score(self, evidence: Evidence) -> float:
        """Estimated probability that the registration is right."""
        return float(expit(self.intercept - sum(self.costs(evidence).values())))


EVIDENCE = tuple(field.name for field in fields(Evidence))


def evidence_of(
    result: "Registration", marks: Float[np.ndarray, "l 3"], model: RegistrationModel
) -> Evidence:
    """Gather what speaks against a registration.

    Args:
        result: The registration.
        marks: The model's landmarks in the scan's frame; NaN where not given.
        model: The prepared model.
    """
    given = np.flatnonzero(np.isfinite(marks).all(axis=1))
    corners = np.asarray(model.arrays.faces)[model.landmark_faces[given]]
    own = 1e3 * np.einsum("lk,lka->la", model.landmark_bary[given], result.vertices[corners])
    placed = 1e3 * (result.scale * marks[given] @ result.rotation.T + result.translation)
    distances = np.linalg.norm(placed - own, axis=1)
    free = result.vertices_neutral - shape_vertices(model.arrays, result.beta)
    return Evidence(
        landmark_drift_mm=_drift(own, placed),
        landmark_median_mm=float(np.median(distances)) if len(given) else 0.0,
        scarcity=1.0 / len(given) if len(given) else 0.0,
        no_landmarks=float(len(given) == 0),
        residual_median_mm=result.residual_median_mm,
        residual_q95_mm=result.residual_q95_mm,
        free_q95_mm=1e3 * float(np.percentile(np.linalg.norm(free[model.face], axis=1), 95)),
        uncovered=float(np.clip(1.0 - result.coverage, 0.0, 1.0)),
        flipped_faces=float(result.flipped_faces),
        prior_energy=result.prior_energy,
    )


def _drift(own: Float[np.ndarray, "l 3"], placed: Float[np.ndarray, "l 3"]) -> float:
    """RMS motion of the rigid map that takes the mesh's landmarks to the given ones, mm."""
    if len(own) < 3:
        return 0.0
    try:
        motion = align_similarity(own, placed, fixed_scale=1.0)
    except ValueError:  # all on one line
        return float(np.sqrt(((placed - own) ** 2).sum(axis=1).mean()))
    return float(np.sqrt(((motion.apply(own) - own) ** 2).sum(axis=1).mean()))


def judge(
    result: "Registration",
    limits: QualityLimits,
    quality: QualityModel | None = None,
    evidence: Evidence | None = None,
) -> "Registration":
    """Score a result and reject one that exceeds a limit, naming each.

    Args:
        result: The registration.
        limits: Hard gates.
        quality: Weights of the score; None gives none.
        evidence: Needed for the landmark drift and the score.
    """
    drift = evidence.landmark_drift_mm if evidence is not None else 0.0
    reasons = [
        f"{name} {value:.3g} exceeds {limit:.3g}"
        for name, value, limit in (
            ("residual median, mm,", result.residual_median_mm, limits.max_median_mm),
            ("residual 95th percentile, mm,", result.residual_q95_mm, limits.max_q95_mm),
            ("landmark RMS, mm,", result.landmark_rms_mm, limits.max_landmark_rms_mm),
            ("landmark drift, mm,", drift, limits.max_landmark_drift_mm),
            ("prior energy", result.prior_energy, limits.max_prior_energy),
            ("flipped triangles", result.flipped_faces, limits.max_flipped_faces),
        )
        if value > limit
    ]
    reasons += [
        f"{name} {value:.3g} is below {limit:.3g}"
        for name, value, limit in (
            ("coverage", result.coverage, limits.min_coverage),
            ("lower face on the scan", result.lower_face, limits.min_lower_face),
        )
        if value < limit
    ]
    if quality is not None and evidence is not None:
        result = replace(result, score=quality.score(evidence))
        if result.score < limits.min_score:
            costs = quality.costs(evidence)
            worst = sorted((n for n in costs if costs[n] > 0), key=lambda n: -costs[n])[:NAMED]
            named = ", ".join(f"{name} {getattr(evidence, name):.3g}" for name in worst)
            reasons.append(f"score {result.score:.3g} is below {limits.min_score:.3g} ({named})")
    if not reasons:
        return result
    return replace(result, status="rejected", reason="; ".join(reasons))
