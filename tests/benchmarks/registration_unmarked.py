# ruff: noqa: T201
"""Registration without landmarks against the same scans' registration with true landmarks.

Known units, uniformly random rotations. A case is right where median and 95th percentile of the
residuals are within 1.2 times the landmarked run's and the registered face lies where that run's
does (median within ``--same-mm``); wrong cases have to be flagged: rejected or failed.

    python tests/benchmarks/registration_unmarked.py --model data/models/flame \\
        --landmark-model data/landmark_model --synthetic 48 --real 6 --real-data ../shared/data
"""

import argparse
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits
from unmarked_cases import Case, real_cases, synthetic_cases

from models.geometry.registration import Registration, RegistrationError
from models.geometry.template import RegistrationModel
from stages.datasets.flame_files import load_flame, read_masks, read_static_embedding
from stages.register import prepared
from stages.registration.landmarks import ScanLandmarker
from stages.registration.scan import register
from stages.registration.unmarked import register_unmarked
from stages.runtime import params

FACTOR = 1.2


def in_scan(found: Registration) -> np.ndarray:
    """Registered vertices in the scan's frame, scan units."""
    return (found.vertices - found.translation) @ found.rotation / found.scale


def judged(
    cases: Iterable[Case],
    section: params.RegisterParams,
    model: RegistrationModel,
    landmarker: ScanLandmarker | None,
    same_mm: float,
) -> list[tuple[str, str, float]]:
    """Source, verdict and CPU seconds of each case, printed as they come."""
    rows = []
    for case in cases:
        guided = register(case.scan, case.marks, section, model)
        start = time.process_time()
        try:
            fit = partial(register, case.scan, model=model)
            found, source = register_unmarked(
                case.scan, case.colors, section, model, landmarker, fit
            )
        except RegistrationError as error:
            cpu = time.process_time() - start
            rows.append(("-", "flagged", cpu))
            print(f"{case.name:34} flagged  failed: {error}", flush=True)
            continue
        cpu = time.process_time() - start
        gap = np.linalg.norm(in_scan(found) - in_scan(guided), axis=1)[model.face]
        gap_mm = 1e3 * guided.scale * gap
        median = found.residual_median_mm / guided.residual_median_mm
        q95 = found.residual_q95_mm / guided.residual_q95_mm
        right = max(median, q95) <= FACTOR and np.median(gap_mm) <= same_mm
        verdict = "right" if right and found.status == "ok" else "flagged"
        if found.status == "ok" and not right:
            verdict = "SILENT"
        rows.append((source, verdict, cpu))
        print(
            f"{case.name:34} {verdict:8} {source:6} {found.status:9} median x{median:.2f} "
            f"q95 x{q95:.2f} gap {np.median(gap_mm):.2f}/{np.percentile(gap_mm, 95):.2f} mm "
            f"landmarks {found.landmark_rms_mm:.1f} mm cpu {cpu:.2f} s {found.reason}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="converted FLAME")
    parser.add_argument("--landmark-model", type=Path, help="None: by shape alone")
    parser.add_argument("--synthetic", type=int, default=48)
    parser.add_argument("--start", type=int, default=0, help="first synthetic case")
    parser.add_argument("--real", type=int, default=6)
    parser.add_argument("--real-data", type=Path, help="folder of the real samples")
    parser.add_argument("--same-mm", type=float, default=2.5)
    options = parser.parse_args()
    loaded = params.load(Path(__file__).parents[2] / "params.yaml")
    section = loaded.registration
    landmarker = None
    if options.landmark_model:
        landmarker = ScanLandmarker.load(options.landmark_model, loaded.landmarks, section.views)
    with threadpool_limits(limits=1):
        if options.real and options.real_data:
            data = options.real_data
            real_model = RegistrationModel.build(
                load_flame(data / "open_head/flame_like.npz"),
                *read_static_embedding(data / "real_scan/flame_static_embedding.pkl"),
                read_masks(data / "flame_assets/FLAME_masks.pkl"),
            )
            cases = real_cases(data / "real_scan", options.real)
            table("real", judged(cases, section, real_model, landmarker, options.same_mm))
        cases = synthetic_cases(options.synthetic, options.start)
        rows = judged(cases, section, prepared(options.model, "mica"), landmarker, options.same_mm)
        table("synthetic", rows)


def table(name: str, rows: list[tuple[str, str, float]]) -> None:
    """Counts per verdict and source, and CPU seconds."""
    for verdict in ("right", "flagged", "SILENT"):
        sources = [source for source, what, _ in rows if what == verdict]
        counts = {source: sources.count(source) for source in sorted(set(sources))}
        print(f"{name}: {verdict} {len(sources)} of {len(rows)} {counts}")
    if not rows:
        return
    seconds = np.array([cpu for *_, cpu in rows])
    print(f"{name}: CPU median {np.median(seconds):.2f} s, worst {seconds.max():.2f} s")


if __name__ == "__main__":
    main()
