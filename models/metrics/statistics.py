"""From distances to scores: pooled over vertices, per image, and as a cumulative curve."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from models.metrics.protocols import Statistic


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Pooled error: every scan vertex of every image counts once. None without any distance."""

    vertices: int
    median_mm: float | None
    mean_mm: float | None
    std_mm: float | None


def pooled_statistics(distances_mm: Sequence[Float[np.ndarray, " _"]]) -> Statistics:
    """Median, mean and population standard deviation over all vertices of all images.

    Args:
        distances_mm: One array per image, of any lengths.
    """
    pooled = np.concatenate([np.zeros(0), *distances_mm]).astype(np.float64)
    if len(pooled) == 0:
        return Statistics(vertices=0, median_mm=None, mean_mm=None, std_mm=None)
    return Statistics(
        vertices=len(pooled),
        median_mm=float(np.median(pooled)),
        mean_mm=float(pooled.mean()),
        std_mm=float(pooled.std()),
    )


def image_error(
    distances_mm: Float[np.ndarray, " _"], reverse_mm: Float[np.ndarray, " _"], statistic: Statistic
) -> float:
    """One number for one image.

    Args:
        distances_mm: From the scan to the prediction, at least one.
        reverse_mm: From the prediction to the scan; empty where the protocol has one direction.
            With two directions the error is the mean of the two directions' errors.
        statistic: ``rmse``, or anything else for the mean.

    Raises:
        ValueError: No distances.
    """
    if len(distances_mm) == 0:
        raise ValueError("expected at least one distance, got none")
    sides = [np.asarray(side, np.float64) for side in (distances_mm, reverse_mm) if len(side)]
    if statistic == "rmse":
        return float(np.mean([np.sqrt(np.mean(side**2)) for side in sides]))
    return float(np.mean([side.mean() for side in sides]))


def cumulative_curve(
    distances_mm: Sequence[Float[np.ndarray, " _"]], thresholds_mm: Float[np.ndarray, " t"]
) -> Float[np.ndarray, " t"]:
    """Percent of all pooled vertices whose error is at most each threshold.

    Raises:
        ValueError: No distances at all.
    """
    pooled = np.sort(np.concatenate([np.zeros(0), *distances_mm]))
    if len(pooled) == 0:
        raise ValueError("expected distances of at least one image, got none")
    below = np.searchsorted(pooled, thresholds_mm, side="right")
    return 100.0 * below / len(pooled)
