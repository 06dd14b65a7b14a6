"""What `make demo` prints at the end: the score table and where the report lies."""

import logging
import sys
from pathlib import Path
from typing import Any

from stages.runtime.artifacts import read_json

logger = logging.getLogger(__name__)


def score_rows(evaluation: Path) -> list[dict[str, Any]]:
    """Return one row per method and protocol from ``<evaluation>/<method>/metrics.json``."""
    rows = []
    for path in sorted(evaluation.glob("*/metrics.json")):
        metrics = read_json(path)
        for protocol, content in sorted(metrics["protocols"].items()):
            rows.append(
                {
                    "method": metrics["method"],
                    "weights": metrics["weights"],
                    "synthetic": metrics["synthetic"],
                    "protocol": protocol,
                    **{key: content[key] for key in ("median_mm", "mean_mm", "std_mm")},
                    "images": content["images"],
                    "missing": content["missing"] + content["failed"],
                }
            )
    return sorted(rows, key=lambda row: (row["protocol"], row["mean_mm"]))


def main() -> int:
    """Print the table; the folder is the first argument, ``data`` by default."""
    from rich.console import Console
    from rich.table import Table

    data = Path(sys.argv[1] if len(sys.argv) > 1 else "data")
    table = Table(title="Scan-to-mesh distance, mm", title_justify="left")
    for column in (
        "protocol",
        "method",
        "median",
        "mean",
        "std",
        "images",
        "missing",
        "data",
        "weights",
    ):
        table.add_column(
            column,
            justify="left" if column in ("protocol", "method", "data", "weights") else "right",
        )
    for row in score_rows(data / "evaluation"):
        table.add_row(
            row["protocol"],
            row["method"],
            *(f"{row[key]:.3f}" for key in ("median_mm", "mean_mm", "std_mm")),
            str(row["images"]),
            str(row["missing"]),
            "synthetic" if row["synthetic"] else "real",
            str(row["weights"]),
        )
    console = Console(soft_wrap=True, width=max(Console().width, 110))
    console.print(table)
    console.print(f"report: {(data / 'reports' / 'report.html').resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
