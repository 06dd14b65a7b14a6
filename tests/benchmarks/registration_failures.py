"""Every way in which a scan goes wrong, on heads of known vertices: what comes out, is it right?

    python tests/benchmarks/registration_failures.py --heads 6 --out failures.json \\
        --landmark-model data/landmark_model

A verdict is right where what is accepted lies within 2 mm (median) and 6 mm (95 %) of the known
face; a wrong face that is accepted is a silent failure, a right one that is not a false rejection.
Scans without landmarks go the way of the stage, and once more by their shape alone.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from registration_calibration import (
    BY_SHAPE,
    REPOSITORY,
    heads_of,
    landmarker_from,
    load_cases,
    placed,
)

from models.geometry.quality import Evidence, QualityModel, evidence_of
from models.geometry.registration import Registration, Scan
from stages.registration.landmarks import ScanLandmarker
from stages.registration.scan import cleaned_scan, register
from stages.runtime import params

FIRST_SEED = 0
UNMARKED = "no landmarks"


@dataclass(frozen=True)
class Row:
    """One case over its heads."""

    case: str
    figures: dict[str, Any]

    def line(self) -> str:
        """One row of a Markdown table."""
        f = self.figures
        return (
            f"| {self.case} | {f['residual_median_mm']} / {f['residual_q95_mm']} "
            f"| {f['error_median_mm']} / {f['error_q95_mm']} | {f['worst_error_median_mm']} "
            f"| {f['score']} | {f['ok']} / {f['rejected']} / {f['failed']} "
            f"| {f['silent']} | {f['false_rejections']} |"
        )


HEADER = (
    "| case | residual median / 95 %, mm | error median / 95 %, mm | worst median | score "
    "| ok / rejected / failed | silent failures | false rejections |\n"
    "|---|---|---|---|---|---|---|---|"
)


def run_case(
    cases: Any,
    heads: Any,
    name: str,
    seeds: range,
    section: Any,
    landmarker: ScanLandmarker | None,
) -> list[dict[str, Any]]:
    """One result per head."""
    used: dict[str, Any] = {}

    def fit(scan: Scan, marks: np.ndarray | None) -> Registration:
        cleaned = cleaned_scan(scan, section)
        scan = replace(scan, vertices=cleaned.vertices, faces=cleaned.faces)

        def fitted(points: np.ndarray | None, changed: Any) -> Registration:
            return register(scan, points, changed, heads.model)

        views = None if name == BY_SHAPE else landmarker
        found, used["marks"] = placed(scan, marks, section, heads.model, views, fitted)
        return found

    case = UNMARKED if name == BY_SHAPE else name
    rows = []
    for seed in seeds:
        specimen = cases.spoiled(heads, case, seed)
        came = cases.outcome(specimen, fit, heads.model)
        row: dict[str, Any] = {
            "case": name,
            "seed": seed,
            "refused": cases.CASES[case].refused,
            "status": came.status,
            "reason": came.reason,
            "error_median_mm": came.error_median_mm,
            "error_q95_mm": came.error_q95_mm,
            "right": came.right,
        }
        if came.found is not None:
            row |= {
                "flags": list(came.found.flags),
                "residual_median_mm": came.found.residual_median_mm,
                "residual_q95_mm": came.found.residual_q95_mm,
                "evidence": asdict(evidence_of(came.found, used["marks"], heads.model)),
            }
        rows.append(row)
    return rows


def judged(row: dict[str, Any], section: Any) -> dict[str, Any]:
    """A result under the committed limits and weights, and whether that verdict is right."""
    anew = ("score ", "landmark drift")
    reasons = [part for part in row["reason"].split("; ") if part and not part.startswith(anew)]
    if row["status"] != "failed":
        drift, limit = row["evidence"]["landmark_drift_mm"], section.limits.max_landmark_drift_mm
        if drift > limit:
            reasons.append(f"landmark drift, mm, {drift:.3g} exceeds {limit:.3g}")
        model = QualityModel(**section.quality.model_dump(exclude={"provenance"}))
        row["score"] = model.score(Evidence(**row["evidence"]))
        if row["score"] < section.limits.min_score:
            reasons.append(f"score {row['score']:.3g} is below {section.limits.min_score:.3g}")
        row["status"] = "rejected" if reasons else "ok"
        row["reason"] = "; ".join(reasons)
    accepted, right = row["status"] == "ok", row["right"] and not row["refused"]
    row["verdict_right"] = accepted == right
    row["silent"] = accepted and not right
    row["false_rejection"] = right and not accepted
    return row


def summed(name: str, rows: list[dict[str, Any]]) -> Row:
    """Medians over the heads; a dash where nothing was registered or nothing is known."""

    def middle(key: str, pick: Any = np.median, digits: int = 2) -> str:
        values = [row[key] for row in rows if row.get(key, 1e9) < 1e9]
        return f"{pick(values):.{digits}f}" if values else "-"

    figures: dict[str, Any] = {
        status: sum(row["status"] == status for row in rows)
        for status in ("ok", "rejected", "failed")
    }
    figures |= {
        "residual_median_mm": middle("residual_median_mm", digits=3),
        "residual_q95_mm": middle("residual_q95_mm"),
        "error_median_mm": middle("error_median_mm"),
        "error_q95_mm": middle("error_q95_mm"),
        "worst_error_median_mm": middle("error_median_mm", np.max),
        "score": middle("score"),
        "silent": sum(row["silent"] for row in rows),
        "false_rejections": sum(row["false_rejection"] for row in rows),
    }
    return Row(name, figures)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--first", type=int, default=FIRST_SEED, help="seed of the first head")
    parser.add_argument("--source", choices=("procedural", "toy", "open"), default="procedural")
    parser.add_argument("--case", action="append", help="only this one; may be repeated")
    parser.add_argument("--landmark-model", type=Path, help="None: unmarked scans by shape alone")
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--gathered", type=Path, nargs="+", help="judge and print earlier --out files anew"
    )
    options = parser.parse_args()
    cases = load_cases()
    section = params.load(REPOSITORY / "params.yaml").registration
    rows: list[dict[str, Any]] = []
    if options.gathered:
        for path in options.gathered:
            rows += json.loads(path.read_text())["rows"]
    else:
        heads = heads_of(options.source)
        landmarker = landmarker_from(options.landmark_model)
        for name in options.case or (*cases.CASES, BY_SHAPE):
            seeds = range(options.first, options.first + options.heads)
            rows += run_case(cases, heads, name, seeds, section, landmarker)
            sys.stderr.write(f"{name}\n")
    rows = [judged(row, section) for row in rows]
    names = (*cases.CASES, BY_SHAPE)
    table = [summed(name, [r for r in rows if r["case"] == name]) for name in names]
    sys.stdout.write(HEADER + "\n")
    for row in table:
        if row.figures["ok"] + row.figures["rejected"] + row.figures["failed"]:
            sys.stdout.write(row.line() + "\n")
    totals = {
        "results": len(rows),
        "verdicts_right": sum(row["verdict_right"] for row in rows),
        "silent_failures": sum(row["silent"] for row in rows),
        "false_rejections": sum(row["false_rejection"] for row in rows),
    }
    sys.stdout.write("\n" + json.dumps(totals) + "\n")
    for row in rows:
        if not row["verdict_right"]:
            sys.stdout.write(
                f"{'SILENT' if row['silent'] else 'false rejection'}: {row['case']}, head "
                f"{row['seed']}: error {row['error_median_mm']:.2f} / {row['error_q95_mm']:.2f} mm"
                f"; {row['reason']}\n"
            )
    if options.out:
        content = {
            "totals": totals,
            "table": [[r.case, r.figures] for r in table],
            "rows": [_plain(row) for row in rows],
        }
        options.out.write_text(json.dumps(content, indent=1))


def _plain(value: Any) -> Any:
    """JSON has no infinity: it is written as 1e9."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, float) and not np.isfinite(value):
        return 1e9
    return value


if __name__ == "__main__":
    main()
