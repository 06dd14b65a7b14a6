"""Numbers of a run for its table: every ``metrics.json`` that the stages wrote."""

from pathlib import Path
from typing import Any

import networkx as nx

from stages.runtime.artifacts import read_json

MOST_ROWS = 500


def metric_rows(graph: nx.DiGraph, root: Path) -> list[dict[str, Any]]:
    """Return one row per number: stage, metric (keys joined by dots), value.

    Args:
        graph: The stages; those whose outputs hold a ``metrics.json`` are read.
        root: The checkout.
    """
    rows = [
        {"stage": name, "metric": metric, "value": value}
        for name in sorted(graph)
        for out in graph.nodes[name]["stage"].outs
        for path in (root / out, root / out / "metrics.json")
        if path.name == "metrics.json" and path.is_file()
        for metric, value in _numbers(read_json(path))
    ]
    return rows[:MOST_ROWS]


def _numbers(content: Any, prefix: str = "") -> list[tuple[str, float]]:  # noqa: ANN401
    """Numbers of a nested JSON object by dotted key; lists are left out."""
    if isinstance(content, bool):
        return []
    if isinstance(content, int | float):
        return [(prefix, content)]
    if isinstance(content, dict):
        return [
            pair
            for key, value in content.items()
            for pair in _numbers(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    return []
