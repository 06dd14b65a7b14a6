"""Speed and closeness of the FLAME registration against trimesh's `nricp_amberg`.

    python tests/benchmarks/registration.py --json results.json [--only real heads growth ...]

Reads the real scan, the test basis and FLAME's masks from ``../shared/data`` (research licences;
the script says so and stops where they are absent). BLAS runs on one thread; times are CPU time of
this process; methods take turns. What is done once per process (preparing the model, compiling)
is reported apart, and reading files is timed for nobody.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation
from threadpoolctl import threadpool_limits

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))  # this checkout, whichever is installed

import registration_heads as heads  # noqa: E402
from registration_peers import NRICP, Yardstick, nricp  # noqa: E402

from models.face.flame import NOW_SEVEN_IN_STATIC_51  # noqa: E402
from models.geometry.registration import Registration, Scan, register  # noqa: E402
from models.geometry.settings import FitSettings, QualityLimits  # noqa: E402
from models.geometry.template import RegistrationModel  # noqa: E402
from stages import params  # noqa: E402

DATA = REPOSITORY.parent / "shared" / "data"
TUNING_SEEDS = range(100, 108)  # looked at while settings were chosen
FRESH_SEEDS = range(900, 920)  # never looked at while settings were chosen
REPEATS = 12
REPEAT_NOISE_MM = 2.0
PRESETS = ("fast", "accurate")


class Case:
    """The real scan and everything that is read from files."""

    def __init__(self) -> None:
        from stages.datasets.flame_files import load_flame, read_masks, read_static_embedding
        from stages.datasets.meshes import read_mesh

        mesh = read_mesh(DATA / "real_scan/scan.obj")
        self.vertices = np.ascontiguousarray(mesh.vertices, dtype=np.float64)
        self.faces = np.ascontiguousarray(mesh.faces, dtype=np.int64)
        self.marks = np.load(DATA / "real_scan/scan_lmks51.npy", allow_pickle=False)
        self.embedding = read_static_embedding(DATA / "real_scan/flame_static_embedding.pkl")
        self.masks = read_masks(DATA / "flame_assets/FLAME_masks.pkl")
        self.arrays = load_flame(DATA / "open_head/flame_like.npz")
        section = params.load(REPOSITORY / "params.yaml").registration
        self.limits = QualityLimits(**section.limits.model_dump())
        self.settings = {
            name: FitSettings(**section.fit.model_dump(), **section.presets[name].model_dump())
            for name in PRESETS
        }
        start = time.process_time()
        self.model = RegistrationModel.build(self.arrays, *self.embedding, self.masks)
        self.model_s = time.process_time() - start
        self.first_s = {}
        for name in PRESETS:
            start = time.process_time()
            self.fit(name)
            self.first_s[name] = time.process_time() - start
        self.model_s_warm, self.model = timed(
            lambda: RegistrationModel.build(self.arrays, *self.embedding, self.masks)
        )

    def fit(
        self,
        preset: str,
        scan: Scan | None = None,
        marks: np.ndarray | None = None,
        model: RegistrationModel | None = None,
    ) -> Registration:
        """Our registration, by default of the real scan."""
        return register(
            Scan(self.vertices, self.faces) if scan is None else scan,
            self.marks if marks is None else marks,
            self.model if model is None else model,
            self.settings[preset],
            self.limits,
        )


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds and the result."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def in_scan_frame(found: Registration) -> np.ndarray:
    """Registered vertices in the scan's frame and unit."""
    return np.asarray((found.vertices - found.translation) @ found.rotation / found.scale)


def real(
    case: Case, rounds: int, strong_rounds: int, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """The real scan: everyone takes turns; what is known after each round is kept."""
    flame_faces = np.asarray(case.arrays.faces, dtype=np.int64)
    face = np.sort(case.masks["face"])
    yard = Yardstick(case.vertices, case.faces, flame_faces, face, in_scan_frame(case.fit("fast")))
    template = case.arrays.v_template.astype(np.float64)
    seconds: dict[str, list[float]] = {}
    meshes: dict[str, np.ndarray] = {}
    for turn in range(rounds):
        for name in PRESETS:
            used, found = timed(lambda name=name: case.fit(name))
            seconds.setdefault(name, []).append(used)
            meshes[name] = in_scan_frame(found)
        for name in NRICP:
            if name == "strong" and turn >= strong_rounds:
                continue
            used, moved = timed(
                lambda name=name: nricp(
                    name,
                    template,
                    flame_faces,
                    case.embedding,
                    case.vertices,
                    case.faces,
                    case.marks,
                )
            )
            seconds.setdefault("nricp " + name, []).append(used)
            meshes["nricp " + name] = moved
        # Ours once more on the other side of theirs, so that drift of the machine cancels.
        for name in PRESETS:
            seconds[name].append(timed(lambda name=name: case.fit(name))[0])
        keep(_judged(case, yard, meshes, seconds))
    return _judged(case, yard, meshes, seconds)


def _judged(
    case: Case,
    yard: Yardstick,
    meshes: dict[str, np.ndarray],
    seconds: dict[str, list[float]],
) -> dict[str, Any]:
    """Distances, times and their ratios."""
    flame_faces = np.asarray(case.arrays.faces, dtype=np.int64)
    template = case.arrays.v_template.astype(np.float64)
    back = {name: yard.to_scan_mm(mesh) for name, mesh in meshes.items()}
    common = np.all([seen for _, seen in back.values()], axis=0)
    triangles, bary = case.embedding
    rows: dict[str, Any] = {}
    for name, mesh in meshes.items():
        forth = yard.to_mesh_mm(mesh)
        distances, seen = back[name]
        marks = np.einsum("lk,lka->la", bary, mesh[flame_faces[triangles]])
        rows[name] = {
            "cpu_s": seconds[name],
            "cpu_s_median": float(np.median(seconds[name])),
            "median_mm": float(np.median(forth)),
            "mean_mm": float(forth.mean()),
            "q95_mm": float(np.percentile(forth, 95)),
            "back_median_mm": float(np.median(distances)),
            "back_q95_mm": float(np.percentile(distances, 95)),
            "back_visible": int(seen.sum()),
            "back_visible_q95_mm": float(np.percentile(distances[seen], 95)),
            "back_common_median_mm": float(np.median(distances[common])),
            "back_common_q95_mm": float(np.percentile(distances[common], 95)),
            "landmark_rms_mm": float(1e3 * np.sqrt(((marks - case.marks) ** 2).sum(axis=1).mean())),
            "flipped": yard.flipped(mesh),
        }
    out: dict[str, Any] = {
        "region": len(yard.region),
        "common_visible": int(common.sum()),
        "template_flipped": yard.flipped(template),
        "methods": rows,
        "ratios": {},
    }
    for ours in PRESETS:
        for name in NRICP:
            theirs = rows["nricp " + name]
            out["ratios"][f"{ours} / nricp {name}"] = {
                "speed": theirs["cpu_s_median"] / rows[ours]["cpu_s_median"],
                **{
                    key: rows[ours][key + "_mm"] / theirs[key + "_mm"]
                    for key in ("median", "q95", "back_visible_q95", "back_common_q95")
                },
            }
    return out


def nricp_heads(case: Case, path: Path) -> dict[str, Any]:
    """Tuned nricp on the fresh heads, once; kept in ``path`` because it takes minutes."""
    rows: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    flame_faces = np.asarray(case.arrays.faces, dtype=np.int64)
    template = case.arrays.v_template.astype(np.float64)
    for seed in FRESH_SEEDS:
        if str(seed) in rows:
            continue
        head = heads.make_head(case.arrays, seed, *case.embedding)
        used, moved = timed(
            lambda head=head: nricp(
                "tuned",
                template,
                flame_faces,
                case.embedding,
                head.vertices,
                head.faces,
                head.landmarks,
            )
        )
        gap = 1e3 * np.linalg.norm(moved - head.truth, axis=1)[case.model.face]
        rows[str(seed)] = {
            "median_mm": float(np.median(gap)),
            "q95_mm": float(np.percentile(gap, 95)),
            "cpu_s": used,
        }
        path.write_text(json.dumps(rows, indent=1))
    return rows


def correspondence(case: Case, seeds: range, theirs: dict[str, Any] | None) -> dict[str, Any]:
    """Distance of registered vertices to the known ones over the face, heads of known vertices."""
    model = RegistrationModel.build(heads.cut(case.arrays), *case.embedding, case.masks)
    seven = list(NOW_SEVEN_IN_STATIC_51)
    rows: dict[str, list[list[float]]] = {}
    for seed in seeds:
        head = heads.make_head(case.arrays, seed, *case.embedding)
        scan = Scan(head.vertices, head.faces, unit="m")
        for preset in PRESETS:
            for label, marks in ((preset, head.landmarks), (preset + " 7", head.landmarks[seven])):
                found = case.fit(preset, scan, marks, model)
                gap = 1e3 * np.linalg.norm(in_scan_frame(found) - head.truth, axis=1)[model.face]
                rows.setdefault(label, []).append(
                    [
                        float(np.median(gap)),
                        float(np.percentile(gap, 95)),
                        found.residual_median_mm,
                        found.residual_q95_mm,
                    ]
                )
    out: dict[str, Any] = {"seeds": list(seeds)}
    for label, values in rows.items():
        middle = np.median(values, axis=0)
        out[label] = {
            "median_mm": float(middle[0]),
            "q95_mm": float(middle[1]),
            "worst_median_mm": float(np.max(values, axis=0)[0]),
            "scan_to_mesh_median_mm": float(middle[2]),
            "scan_to_mesh_q95_mm": float(middle[3]),
        }
    if theirs:
        own = [[row["median_mm"], row["q95_mm"]] for row in theirs.values()]
        middle = np.median(own, axis=0)
        out["nricp tuned"] = {"median_mm": float(middle[0]), "q95_mm": float(middle[1])}
        for preset in PRESETS:
            out[f"{preset} / nricp tuned"] = {
                "median": out[preset]["median_mm"] / float(middle[0]),
                "q95": out[preset]["q95_mm"] / float(middle[1]),
            }
    for preset in PRESETS:
        out[f"{preset}, 7 / 51 landmarks"] = {
            key: out[preset + " 7"][key + "_mm"] / out[preset][key + "_mm"]
            for key in ("median", "q95")
        }
    return out


def growth(case: Case, rounds: int) -> dict[str, Any]:
    """The real scan and the same subdivided twice (16 times the vertices)."""
    vertices, faces = heads.subdivide(*heads.subdivide(case.vertices, case.faces))
    large = Scan(vertices, faces)
    out: dict[str, Any] = {"vertices": [len(case.vertices), len(vertices)]}
    for preset in PRESETS:
        small_s, large_s = [], []
        for _ in range(rounds):
            small_s.append(timed(lambda preset=preset: case.fit(preset))[0])
            used, found = timed(lambda preset=preset: case.fit(preset, large))
            large_s.append(used)
        out[preset] = {
            "cpu_s": [float(np.median(small_s)), float(np.median(large_s))],
            "growth": float(np.median(large_s) / np.median(small_s)),
            "residual_median_mm": found.residual_median_mm,
            "residual_q95_mm": found.residual_q95_mm,
        }
    return out


def repeatability(case: Case) -> dict[str, Any]:
    """The real scan in random positions with noisy landmarks: how much each vertex varies."""
    out: dict[str, Any] = {"repeats": REPEATS, "noise_mm": REPEAT_NOISE_MM}
    for preset in PRESETS:
        meshes = []
        for repeat in range(REPEATS):
            rng = np.random.default_rng([7, repeat])
            turn = Rotation.random(rng=rng).as_matrix()
            marks = case.marks + 1e-3 * REPEAT_NOISE_MM * rng.normal(size=case.marks.shape)
            scan = Scan(case.vertices @ turn.T, case.faces)
            meshes.append(1e3 * in_scan_frame(case.fit(preset, scan, marks @ turn.T)) @ turn)
        spread = np.sqrt(np.var(meshes, axis=0, ddof=1).sum(axis=1))[case.model.face]
        out[preset] = {
            "std_median_mm": float(np.median(spread)),
            "std_q95_mm": float(np.percentile(spread, 95)),
        }
    return out


def machine() -> dict[str, Any]:
    """Where it ran."""
    import scipy
    import trimesh

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "trimesh": trimesh.__version__,
    }


def table(value: dict[str, Any], indent: int = 0) -> list[str]:
    """Lines of a readable table."""
    lines = []
    for key, item in value.items():
        if isinstance(item, dict):
            lines += [" " * indent + str(key), *table(item, indent + 2)]
        elif key != "cpu_s" or len(item) == 2:
            shown = f"{item:.4g}" if isinstance(item, float) else str(item)
            lines.append(" " * indent + f"{key:<28} {shown}")
    return lines


SECTIONS = ("real", "heads", "growth", "repeatability")


def _run(arguments: argparse.Namespace) -> None:
    """The chosen sections, printed as they end."""
    case = Case()
    results: dict[str, Any] = {}
    if arguments.json.is_file():
        results = json.loads(arguments.json.read_text())
    results["machine"] = machine()
    results["once"] = {
        "model_and_compile_s": case.model_s,
        "model_s": case.model_s_warm,
        "first_registration_s": case.first_s,
    }
    peers = arguments.peers or arguments.json.with_suffix(".peers.json")

    def keep(name: str, value: dict[str, Any]) -> None:
        results[name] = value
        arguments.json.write_text(json.dumps(results, indent=1))

    def keep_real(value: dict[str, Any]) -> None:
        keep("real", value)

    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "real": lambda: real(case, arguments.rounds, arguments.strong_rounds, keep_real),
        "heads": lambda: correspondence(case, FRESH_SEEDS, nricp_heads(case, peers)),
        "tuning": lambda: correspondence(case, TUNING_SEEDS, None),
        "growth": lambda: growth(case, arguments.rounds),
        "repeatability": lambda: repeatability(case),
    }
    for name in arguments.only:
        keep(name, runs[name]())
        sys.stdout.write("\n".join(table({name: results[name]})) + "\n")
        sys.stdout.flush()
    sys.stdout.write("\n".join(table({k: results[k] for k in ("machine", "once")})) + "\n")


def main() -> int:
    """Run the chosen sections, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="results; updated in place")
    parser.add_argument("--only", nargs="+", choices=[*SECTIONS, "tuning"], default=SECTIONS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--strong-rounds", type=int, default=1, help="of the slowest peer")
    parser.add_argument("--peers", type=Path, help="kept results of nricp on the fresh heads")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.stderr.write(f"skipped: needs the real scan and test basis in {DATA}\n")
        return 0
    missing = [name for name in ("trimesh", "rtree") if find_spec(name) is None]
    if missing:
        sys.stderr.write(f"skipped: nricp_amberg needs {' and '.join(missing)}; pip install them\n")
        return 0
    with threadpool_limits(limits=1):
        _run(arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
