# ruff: noqa: T201
"""What one more subject costs a packed set, and one subject less.

    python -m tests.benchmarks.pack_subjects [SCANS] --copies 80 --shards 64

SCANS is a built ``data/raw/synthetic/LYHM``; without it eight subjects are generated once, in the
temporary folder, with photographs and scans of real size (Headspace has 60,000 to 180,000 vertices
a scan), because the cost of reading them grows with it and that of keeping them does not. The
subjects, linked under further numbers until the
set has the size of a real one, are packed into an empty folder; then nothing changes; then one more
subject is there; then one is on the takedown list; each by the stage's own command in a process of
its own. Prints one JSON document: CPU seconds (user and system, workers included) of each step, its
share of the first, and whether both results are the bytes of a pack from nothing.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ruamel.yaml import YAML

from stages.runtime.fingerprint import hash_input
from stages.runtime.params import ComputeParams, load, section_files
from stages.synthesize import synthesize

REPOSITORY = Path(__file__).resolve().parents[2]


def made(scan_vertices: int, size_px: int) -> Path:
    """Eight generated subjects with scans of that many vertices."""
    folder = Path(tempfile.gettempdir()) / f"faceline-pack-{scan_vertices}-{size_px}"
    params = load(REPOSITORY / "params.yaml")
    large = {"subjects": 8, "scan_vertices": scan_vertices, "size_px": size_px}
    sizes = params.synthesize.model_copy(
        update={"broken": 0, "lyhm": params.synthesize.lyhm.model_copy(update=large)}
    )
    if not (folder / "LYHM").exists():
        alone = ComputeParams(workers=1, ray_threshold_s=1e9, object_store_mb=100)
        synthesize("lyhm", folder / "LYHM", folder / "truth", sizes, alone, params.seed)
    return folder / "LYHM"


def link_tree(source: Path, target: Path) -> None:
    """The same files under another folder."""
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        own = target / file.relative_to(source)
        own.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, own)


def enlarge(source: Path, target: Path, copies: int) -> list[str]:
    """A set with ``copies`` times the subjects; returns their numbers."""
    (target / "SYNTHETIC.txt").parent.mkdir(parents=True)
    os.link(source / "SYNTHETIC.txt", target / "SYNTHETIC.txt")
    names = sorted({path.name for path in source.glob("headspace*/subjects/*")})
    numbers = []
    for copy in range(copies):
        for name in names:
            number = f"{(int(name) + 2000 * copy):05d}"
            numbers.append(number)
            for part in sorted(source.glob(f"headspace*/subjects/{name}")):
                own = target / part.parent.relative_to(source) / number
                link_tree(part, own)
                for file in list(own.rglob(f"*{name}*")):
                    file.rename(file.with_name(file.name.replace(name, number)))
    return numbers


def packed(folder: Path, raw: Path, shards: int, withdrawn: list[str]) -> float:
    """Pack in ``folder``; CPU seconds."""
    yaml = YAML()
    params = yaml.load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    params["pack"]["shards"] = shards
    params["takedown"] = withdrawn
    params["compute"]["workers"] = 1  # so that all of it is counted
    (folder / "params").mkdir(exist_ok=True)
    for name in section_files(REPOSITORY / "params.yaml").values():
        shutil.copy(REPOSITORY / name, folder / name)
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(params, file)
    command = [sys.executable, "-m", "stages.pack", "--dataset", "lyhm", "--out", "out"]
    command += ["--raw", str(raw)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        command,
        cwd=folder, check=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "FACELINE_LOG": "ERROR"},
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scans", type=Path, nargs="?")
    parser.add_argument("--copies", type=int, default=80)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--scan-vertices", type=int, default=60000, help="of what is generated")
    parser.add_argument("--size-px", type=int, default=1024, help="of what is generated")
    options = parser.parse_args()
    scans = options.scans or made(options.scan_vertices, options.size_px)
    with tempfile.TemporaryDirectory(dir=scans.resolve().parent) as scratch:
        raw, here, anew = (Path(scratch) / name for name in ("raw", "here", "anew"))
        numbers = enlarge(scans, raw, options.copies)
        here.mkdir()
        away, more = Path(scratch) / "away", numbers[-1]
        for part in sorted(raw.glob(f"headspace*/subjects/{more}")):
            (away / part.parent.relative_to(raw)).mkdir(parents=True)
            part.rename(away / part.relative_to(raw))
        seconds = {"first": packed(here, raw, options.shards, [])}
        seconds["nothing changed"] = packed(here, raw, options.shards, [])
        for part in sorted(away.glob(f"headspace*/subjects/{more}")):
            part.rename(raw / part.relative_to(away))
        seconds["one added"] = packed(here, raw, options.shards, [])
        added = hash_input(here / "out")
        seconds["one withdrawn"] = packed(here, raw, options.shards, [f"LYHM/{numbers[0]}"])
        less = hash_input(here / "out")
        same = []
        for name, withdrawn, found in (("all", [], added), ("less", [f"LYHM/{numbers[0]}"], less)):
            (anew / name).mkdir(parents=True)
            packed(anew / name, raw, options.shards, withdrawn)
            same.append(hash_input(anew / name / "out") == found)
    print(
        json.dumps(
            {
                "subjects": len(numbers),
                "shards": options.shards,
                "cpu_s": seconds,
                "of_first": {name: value / seconds["first"] for name, value in seconds.items()},
                "added_equals_anew": same[0],
                "withdrawn_equals_anew": same[1],
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
