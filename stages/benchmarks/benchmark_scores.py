"""Scores of one method on the benchmarks beside NoW, from their owners' folders.

Only what `reconstruct` was asked for counts: its rows name the meshes, those that failed included.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.benchmarks.image_scores import ImageScore, curve_of, row_of
from stages.benchmarks.scoring import Planned, planned, planned_scores
from stages.runtime.artifacts import read_table
from stages.runtime.params import ComputeParams

logger = logging.getLogger(__name__)

Outcome = tuple[dict[str, Any], list[ImageScore]] | str
"""Summary and every image's distances, or why there are none."""


def score_benchmarks(
    protocols: Mapping[str, Sequence[str]],
    roots: Mapping[str, Path],
    *,
    predictions: Path,
    unit: str,
    thresholds_mm: np.ndarray,
    compute: ComputeParams,
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Measure every benchmark by each of its protocols.

    Args:
        protocols: Names in ``models.metrics``, by benchmark.
        roots: Folders in the owners' layouts, by benchmark.
        predictions: What `reconstruct` left.
        unit: Of the predicted meshes.
        thresholds_mm: (t,) of the cumulative curves.
        compute: Workers.

    Returns:
        By benchmark, then protocol, the summary of
        ``stages.benchmarks.image_scores.summarise`` with ``curve``, or ``reason`` where nothing
        could be measured; and the rows of schema
        ``distances``.
    """
    asked: dict[str, set[str]] = {}
    for row in read_table(predictions / "rows.parquet").to_pylist():
        asked.setdefault(row["benchmark"], set()).add(row["item_id"])
    plans: dict[tuple[str, str], Planned] = {}
    outcomes: dict[tuple[str, str], Outcome] = {}
    names = [(name, protocol) for name in sorted(protocols) for protocol in protocols[name]]
    for benchmark, protocol in names:
        try:
            plans[benchmark, protocol] = planned(
                protocol,
                roots[benchmark],
                predictions / benchmark,
                unit,
                among=asked.get(benchmark, set()),
            )
        except (OSError, ValueError) as error:
            outcomes[benchmark, protocol] = str(error)
    outcomes |= zip(plans, planned_scores(list(plans.values()), compute), strict=True)
    found: dict[str, dict[str, Any]] = {}
    rows = []
    for benchmark, protocol in names:
        outcome = outcomes[benchmark, protocol]
        if isinstance(outcome, str):
            entry: dict[str, Any] = {"protocol": protocol, "reason": outcome}
            logger.warning("%s by %s: %s", benchmark, protocol, outcome)
        else:
            entry, scores = outcome
            entry["curve"] = curve_of(scores, thresholds_mm)
            rows += [row_of(score, protocol) for score in scores]
        found.setdefault(benchmark, {})[protocol] = entry
    rows.sort(key=lambda row: (row["protocol"], row["item_id"]))
    return found, rows
