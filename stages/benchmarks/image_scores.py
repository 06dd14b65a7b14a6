"""What was measured on one image, as a row and in summaries; distances are in millimetres."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float, Int

from models.metrics import Measurement, cumulative_curve, image_error, pooled_statistics
from stages.benchmarks.layouts import NOW_CHALLENGES

_NOTHING: Final = np.zeros(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageScore:
    """One image's distances, or why there are none.

    Attributes:
        item_id: Its name in the benchmark, such as ``subject/challenge/image``.
        subject_id: Whose scan it is measured on.
        status: ``ok``, ``missing`` (no prediction) or ``failed``.
        reason: Empty when ok.
        distances_mm: One per measured scan vertex; empty unless ok.
        flags: Doubts about the prediction.
        challenge: Part of the benchmark; empty: the second part of ``item_id``, if it has three.
        reverse_mm: From the prediction to the scan, where the protocol measures it.
        error_mm: The protocol's one number for this image; None unless ok.
        kept: Which scan vertices were measured, in the order of the distances; may be empty.
        scan: Name of the scan.
        measurement: How the distances came about; None unless just measured.
    """

    item_id: str
    subject_id: str
    status: Literal["ok", "missing", "failed"]
    reason: str
    distances_mm: Float[np.ndarray, " _"]
    flags: tuple[str, ...]
    challenge: str = ""
    reverse_mm: Float[np.ndarray, " _"] = field(default_factory=lambda: _NOTHING)
    error_mm: float | None = None
    kept: Int[np.ndarray, " _"] = field(default_factory=lambda: np.zeros(0, np.int64))
    scan: str = ""
    measurement: Measurement | None = None

    def __post_init__(self) -> None:
        parts = self.item_id.split("/")
        if not self.challenge and len(parts) > 2:
            object.__setattr__(self, "challenge", parts[1])


def row_of(score: ImageScore, protocol: str) -> dict[str, Any]:
    """A row of schema ``distances``; a row without a prediction has ``missing:`` as its reason."""
    reason = score.reason
    if score.status == "missing" and not reason.startswith("missing"):
        reason = f"missing: {reason}"
    row: dict[str, Any] = {
        "item_id": score.item_id,
        "subject_id": score.subject_id,
        "status": "ok" if score.status == "ok" else "failed",
        "reason": reason,
        "protocol": protocol,
        "challenge": score.challenge,
        "scan": score.scan,
        "flags": json.dumps(score.flags),
    }
    if score.status != "ok":
        return row
    row |= {
        "distances_mm": score.distances_mm.astype(np.float32),
        "reverse_mm": score.reverse_mm.astype(np.float32),
        "kept": score.kept.astype(np.int32),
        "error_mm": score.error_mm,
        "scan_vertices": len(score.distances_mm),
    }
    if score.measurement is not None:
        row |= {
            "scale": score.measurement.scale,
            "landmark_scale": score.measurement.landmark_scale,
            "landmark_rms_mm": score.measurement.landmark_rms_mm,
            "iterations": score.measurement.iterations,
        }
    return row


def summarise(
    scores: Iterable[ImageScore],
    challenges: Sequence[str] = NOW_CHALLENGES,
    statistic: str = "vertices",
) -> dict[str, Any]:
    """Statistics of all images, of each challenge and of each subject.

    Args:
        scores: Of one protocol.
        challenges: Their order.
        statistic: The protocol's published figure, see :class:`models.metrics.Protocol`.

    Returns:
        ``images``, ``scored``, ``missing``, ``failed``, ``flagged``, ``vertices``, ``median_mm``,
        ``mean_mm``, ``std_mm`` (pooled over vertices); ``image_mean_mm``, ``image_rmse_mm`` and
        ``image_error_mm`` (the protocol's own, of both directions where it has two), each the mean
        over images, with ``..._std_mm`` over images; the same under ``challenges``, ``subjects``.
    """
    listed = list(scores)
    found = {score.challenge for score in listed if score.challenge}
    known = [name for name in challenges if name in found]
    subjects = sorted({score.subject_id for score in listed})
    return {
        **_pool(listed, statistic),
        "challenges": {
            name: _pool([score for score in listed if score.challenge == name], statistic)
            for name in [*known, *sorted(found - set(challenges))]
        },
        "subjects": {
            name: _pool([score for score in listed if score.subject_id == name], statistic)
            for name in subjects
        },
    }


def curve_of(
    scores: Iterable[ImageScore], thresholds_mm: Float[np.ndarray, " t"]
) -> list[dict[str, float]]:
    """Percent of scan vertices within each threshold; empty when no image was scored."""
    distances = [score.distances_mm for score in scores if score.status == "ok"]
    if not distances:
        return []
    percent = cumulative_curve(distances, thresholds_mm)
    return [
        {"error_mm": round(float(at), 4), "percent": round(float(share), 4)}
        for at, share in zip(thresholds_mm, percent, strict=True)
    ]


def _pool(scores: Sequence[ImageScore], statistic: str) -> dict[str, Any]:
    counts = {
        status: sum(score.status == status for score in scores)
        for status in ("ok", "missing", "failed")
    }
    good = [score for score in scores if score.status == "ok"]
    figures: dict[str, Any] = asdict(pooled_statistics([score.distances_mm for score in good]))
    per_image = {
        "image_mean": [image_error(s.distances_mm, _NOTHING, "mean") for s in good],
        "image_rmse": [image_error(s.distances_mm, _NOTHING, "rmse") for s in good],
        "image_error": [
            image_error(s.distances_mm, s.reverse_mm, "rmse" if statistic == "rmse" else "mean")
            for s in good
        ],
    }
    for name, values in per_image.items():
        figures[f"{name}_mm"] = float(np.mean(values)) if values else None
        figures[f"{name}_std_mm"] = float(np.std(values)) if values else None
    return {
        "images": len(scores),
        "scored": counts["ok"],
        "missing": counts["missing"],
        "failed": counts["failed"],
        "flagged": sum(bool(score.flags) for score in scores),
        **{
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in figures.items()
        },
    }


def one_image(score: ImageScore) -> dict[str, Any]:
    """Summary of one image that was scored."""
    entry: dict[str, Any] = {
        "item_id": score.item_id,
        "status": score.status,
        "reason": score.reason,
        "flags": list(score.flags),
    }
    if score.status == "ok":
        pooled = asdict(pooled_statistics([score.distances_mm]))
        rmse = image_error(score.distances_mm, _NOTHING, "rmse")
        entry |= pooled | {"rmse_mm": rmse, "error_mm": score.error_mm, "scan": score.scan}
    return entry
