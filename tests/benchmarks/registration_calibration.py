"""Fit and check the weights of the registration score on scans of known heads.

    python tests/benchmarks/registration_calibration.py gather fit.json --seeds 1000 1005 \\
        --landmark-model data/landmark_model
    python tests/benchmarks/registration_calibration.py gather check.json --seeds 2000 2008 \\
        --landmark-model data/landmark_model
    python tests/benchmarks/registration_calibration.py fit fit.json --check check.json
    python tests/benchmarks/registration_calibration.py check check.json

``gather`` registers spoiled scans of the corpus's procedural heads and writes, per scan, the
evidence and whether the face came to lie within 2 mm (median) and 6 mm (95 %) of the known
vertices. Scans whose landmarks are withheld go the way of the stage: landmarks lifted from
pictures, or the shape; some by the shape alone, as without a landmark model. ``fit`` prints the
weights for ``register.quality`` and how reliable the score is on the seeds that were not used;
``check`` does the second with the committed weights. ``--heads toy|open`` gathers from other heads,
to check only.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from models.geometry.cleaning import clean_scan
from models.geometry.quality import EVIDENCE, evidence_of
from models.geometry.registration import Registration, Scan, inner_landmarks, register
from models.geometry.settings import CleaningSettings, FitSettings, QualityLimits
from models.geometry.template import RegistrationModel
from stages.registration.landmarks import ScanLandmarker
from stages.registration.unmarked import register_unmarked
from stages.runtime import params

REPOSITORY = Path(__file__).resolve().parents[2]
PER_SEED = 10
BY_SHAPE = "no landmarks, by shape alone"
RIDGE = 0.02
BINS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 1.0)


def load_cases() -> ModuleType:
    """The heads and the ways to spoil them, shared with the tests."""
    if "failure_cases" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "failure_cases", REPOSITORY / "tests/models/geometry/failure_cases.py"
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules["failure_cases"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["failure_cases"])
    return sys.modules["failure_cases"]


def heads_of(name: str) -> Any:
    """The heads to scan: procedural, toy, or open (research data beside the checkout)."""
    cases = load_cases()
    if name == "procedural":
        return cases.ProceduralHeads.build()
    if name == "toy":
        return cases.LinearHeads.toy()
    from stages.datasets.flame_files import load_flame, read_masks, read_static_embedding

    data = REPOSITORY.parent / "shared" / "data"
    full = load_flame(data / "open_head/flame_like.npz")
    known = replace(full, shapedirs=full.shapedirs[..., :30], exprdirs=full.exprdirs[..., :20])
    embedding = read_static_embedding(data / "flame_assets/flame_static_embedding.pkl")
    masks = read_masks(data / "flame_assets/FLAME_masks.pkl")
    return cases.LinearHeads(full, RegistrationModel.build(known, *embedding, masks))


def landmarker_from(folder: Path | None) -> ScanLandmarker | None:
    """The landmarker of the stage; None without a folder of the trained predictor."""
    if folder is None:
        return None
    loaded = params.load(REPOSITORY / "params.yaml")
    return ScanLandmarker.load(folder, loaded.landmarks, loaded.registration.views)


def placed(
    scan: Scan,
    marks: np.ndarray | None,
    section: params.RegisterParams,
    model: RegistrationModel,
    landmarker: ScanLandmarker | None,
    fit: Callable[[np.ndarray | None, params.RegisterParams], Registration],
) -> tuple[Registration, np.ndarray]:
    """Fit a cleaned scan as the stage does, and the (51, 3) landmarks that placed it, or NaN."""
    none = np.full((51, 3), np.nan)
    if marks is not None:
        return fit(marks, section), inner_landmarks(marks)
    asked: list[np.ndarray | None] = []

    def watched(points: np.ndarray | None, changed: params.RegisterParams) -> Registration:
        asked.append(points)
        return fit(points, changed)

    found, source = register_unmarked(scan, None, section, model, landmarker, watched)
    lifted = [points for points in asked if points is not None]
    return found, inner_landmarks(lifted[-1]) if source == "views" else none


def spoilt(heads: Any, seed: int, draw: int) -> tuple[Any, str]:
    """One scan spoiled in up to four ways of random strength, and what was done."""
    c = load_cases()
    rng = np.random.default_rng([seed, draw, 74])
    kind = seed + draw % 2  # two scans of each person
    expression = ("none", "mild", "strong", "blink")[kind % 4]
    cover = ("cap", "hair", "none")[kind % 3]
    s, done = heads.specimen(seed, expression=expression, cover=cover), [expression, cover]
    kind = rng.choice(["head", "ball", "none", "shape"], p=[0.54, 0.08, 0.22, 0.16])
    if kind == "ball":
        bumps = rng.uniform(0, 8)
        s = c._ball(s, rng, bumps)
        done.append(f"ball {bumps:.1f}")
    else:
        change = rng.choice(["noise", "shift", "turn", "few wrong", "keep"])
        if change == "noise":
            sigma = rng.uniform(0, 15)
            s = c._marks(s, lambda m: m + rng.normal(scale=sigma / 3**0.5, size=m.shape))
            done.append(f"landmark noise {sigma:.1f}")
        elif change == "shift":
            by = rng.uniform(0, 40)
            s = c._marks(s, lambda m: c._shifted(m, rng, by))
            done.append(f"landmarks shifted {by:.1f}")
        elif change == "turn":
            angle = rng.uniform(0, 45)
            s = c._marks(s, lambda m: c._turned(m, rng, angle))
            done.append(f"landmarks turned {angle:.1f}")
        elif change == "few wrong":
            s = c._marks(s, lambda m: c._three_off(m, rng))
            done.append("three landmarks off")
        if rng.random() < 0.3:
            kept = int(rng.choice([4, 5, 6, 8]))
            s = c._thinned(s, rng, kept)
            done.append(f"{kept} landmarks")
        if kind in ("none", "shape"):
            s = replace(s, marks=None)
            done.append("no landmarks" if kind == "none" else BY_SHAPE)
    if rng.random() < 0.4:
        sigma = rng.uniform(0, 0.8)
        s = c.noisy(s, rng, sigma)
        done.append(f"noise {sigma:.2f}")
    if rng.random() < 0.3 and s.head is not None:
        way = rng.normal(size=3) * [1, 1, 0.3]
        middle = s.head[heads.model.face].mean(axis=0)
        height = (s.vertices - middle) @ way / np.linalg.norm(way)
        at = rng.uniform(-60, 20)
        s = c.cropped(s, height > at)
        done.append(f"cut at {at:.0f}")
    if rng.random() < 0.1:
        s = c._dirty(s, rng)
        done.append("dirty")
    unit_mm, unit = 1.0, "mm"
    if rng.random() < 0.1 and s.marks is not None:
        unit_mm, unit = float(rng.uniform(1.5, 5)), "unknown"
        done.append(f"scale {1 / unit_mm:.2f}")
    return c.posed(s, rng, unit_mm, unit), ", ".join(done)


def gather(out: Path, source: str, seeds: range, landmarker: ScanLandmarker | None) -> None:
    """Register every draw of every seed; one row each."""
    c = load_cases()
    section = params.load(REPOSITORY / "params.yaml").registration
    limits = QualityLimits(**section.limits.model_dump())
    cleaning = CleaningSettings(**section.cleaning.model_dump())
    heads = heads_of(source)
    used: dict[str, Any] = {}

    def run(scan: Scan, marks: np.ndarray | None) -> Registration:
        mended = clean_scan(scan.vertices, scan.faces, cleaning)
        scan = replace(scan, vertices=mended.vertices, faces=mended.faces)

        def fit(points: np.ndarray | None, changed: params.RegisterParams) -> Registration:
            schedule = changed.fit.model_dump() | changed.presets[changed.preset].model_dump()
            return register(scan, points, heads.model, FitSettings(**schedule), limits)

        with_views = None if used["by_shape"] else landmarker
        found, used["marks"] = placed(scan, marks, section, heads.model, with_views, fit)
        return found

    rows = []
    for seed in seeds:
        for draw in range(PER_SEED):
            specimen, done = spoilt(heads, seed, draw)
            used["by_shape"] = BY_SHAPE in done
            came = c.outcome(specimen, run, heads.model)
            row: dict[str, Any] = {"seed": seed, "draw": draw, "done": done, "status": came.status}
            row |= {"reason": came.reason, "right": came.right}
            row["errors_mm"] = [came.error_median_mm, came.error_q95_mm]
            if came.found is not None:
                row["flags"] = list(came.found.flags)
                row["evidence"] = asdict(evidence_of(came.found, used["marks"], heads.model))
            rows.append(row)
        sys.stderr.write(f"seed {seed}: {len(rows)} scans\n")
        heads._cache.clear()
        out.write_text(json.dumps({"heads": source, "rows": rows}))


def _table(rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """(n, k) log(1 + evidence) and (n,) whether right; a residual of nothing counts as 1 m."""
    evidence = np.array([[row["evidence"][name] for name in EVIDENCE] for row in rows])
    return np.log1p(np.minimum(evidence, 1e3)), np.array([row["right"] for row in rows])


def fit_weights(x: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Intercept and weights >= 0 by penalised maximum likelihood."""
    scale = np.maximum(x.std(axis=0), 1e-9)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        odds = values[0] - x / scale @ values[1:]
        gap = expit(odds) - right
        value = np.logaddexp(0, np.where(right, -odds, odds)).mean()
        gradient = np.concatenate([[gap.mean()], -(x / scale).T @ gap / len(x)])
        gradient[1:] += RIDGE * values[1:]
        return value + 0.5 * RIDGE * (values[1:] ** 2).sum(), gradient

    bounds = [(None, None), *[(0, None)] * x.shape[1]]
    found = minimize(loss, np.zeros(1 + x.shape[1]), jac=True, bounds=bounds, method="L-BFGS-B")
    return np.concatenate([found.x[:1], found.x[1:] / scale])


def reliability(score: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Brier score beside that of always saying the base rate, and predicted against observed."""
    table = []
    for low, high in pairwise(BINS):
        inside = (score >= low) & ((score < high) | ((high == BINS[-1]) & (score <= high)))
        if inside.any():
            table.append(
                {
                    "score": f"{low:g}-{high:g}",
                    "scans": int(inside.sum()),
                    "predicted": round(float(score[inside].mean()), 3),
                    "observed": round(float(right[inside].mean()), 3),
                }
            )
    base = float(right.mean())
    return {
        "scans": len(right),
        "right": round(base, 3),
        "brier": round(float(((score - right) ** 2).mean()), 4),
        "brier_of_base_rate": round(base * (1 - base), 4),
        "table": table,
    }


def read_rows(paths: list[Path]) -> list[dict[str, Any]]:
    """The rows in which a registration came out."""
    rows = [row for path in paths for row in json.loads(path.read_text())["rows"]]
    return [row for row in rows if "evidence" in row]


def committed_weights() -> np.ndarray:
    """Intercept and weights of params.yaml."""
    kept = params.load(REPOSITORY / "params.yaml").registration.quality.model_dump()
    return np.array([kept[name] for name in ("intercept", *EVIDENCE)])


def check(values: np.ndarray, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How reliable the score is on these rows, and what would be accepted."""
    limits = params.load(REPOSITORY / "params.yaml").registration.limits
    x, right = _table(rows)
    score = expit(values[0] - x @ values[1:])
    gated = np.array(
        [
            not _gated(row["reason"])
            and row["evidence"]["landmark_drift_mm"] <= limits.max_landmark_drift_mm
            for row in rows
        ]
    )
    accepted = gated & (score >= limits.min_score)
    wrong = [
        f"{row['seed']}/{row['draw']} {row['done']}: score {s:.2f}, errors {row['errors_mm']}"
        for row, s, a in zip(rows, score, accepted, strict=True)
        if a and not row["right"]
    ]
    return {
        "all": reliability(score, right),
        "within_the_limits": reliability(score[gated], right[gated]),
        "accepted": int(accepted.sum()),
        "accepted_but_wrong": wrong,
        "right_but_refused_by_limits": int((right & ~gated).sum()),
        "right_but_refused_by_score": int((right & gated & ~accepted).sum()),
    }


def _gated(reason: str) -> bool:
    """Whether a hard limit refused it; the score's own refusal is judged anew."""
    return any(part and not part.startswith("score ") for part in reason.split("; "))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("gather")
    one.add_argument("out", type=Path)
    one.add_argument("--seeds", type=int, nargs=2, default=(1000, 1016))
    one.add_argument("--landmark-model", type=Path, help="None: unmarked scans by shape alone")
    one.add_argument("--heads", choices=("procedural", "toy", "open"), default="procedural")
    two = commands.add_parser("fit")
    two.add_argument("files", type=Path, nargs="+")
    two.add_argument("--check", type=Path, nargs="*", default=[])
    three = commands.add_parser("check")
    three.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    if options.command == "gather":
        landmarker = landmarker_from(options.landmark_model)
        gather(options.out, options.heads, range(*options.seeds), landmarker)
        return
    report: dict[str, Any] = {}
    values = committed_weights()
    checked = options.files
    if options.command == "fit":
        rows = read_rows(options.files)
        fitted = fit_weights(*_table(rows))
        values = np.array([float(f"{value:.3g}") for value in fitted])
        report["fitted_on"] = check(values, rows)
        checked = options.check
    report["weights"] = dict(zip(("intercept", *EVIDENCE), values.tolist(), strict=True))
    for path in checked:
        report[path.name] = check(values, read_rows([path]))
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
