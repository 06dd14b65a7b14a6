"""What a first run, a run with nothing to do and one more subject cost: toy rows, real row cache.

    python -m tests.benchmarks.incremental --stages 60 --rows 10000 100000

In an empty workspace, for each number of rows: a DVC graph of two stages per data set, `pack` and
`map`, its rows spread evenly over the data sets. `pack` buckets a list of subjects into Parquet
shards; `map` finds its rows by content in the row cache of the project and computes the others (a
sort of 2,000 numbers each). Then `dvc repro` for the first time, again, after one subject was added
to one data set, and after it was withdrawn. After both, the changed table is compared with one
computed without any cache.

Prints one JSON document: CPU seconds (user + system, of DVC and all stages), wall seconds (of a
machine that may be shared) and rows computed per step. The rows are toys: what a step costs here is
what the machinery costs.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
SHARDS = 8
VALUES = 2000


def toy_row(subject: str) -> dict[str, Any]:
    """A row that depends on the subject alone."""
    seed = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big")
    values = np.sort(np.random.default_rng(seed).random(VALUES))
    return {"subject_id": subject, "quartiles": values[:: VALUES // 4].astype(np.float32)}


def toy_rows(items: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a run of subjects, counted in ``computed.txt``."""
    for item in items:
        yield toy_row(item)
    with Path("computed.txt").open("a", encoding="utf-8") as file:
        file.write(f"{len(items)}\n")


def pack(subjects: Path, out: Path) -> None:
    """Bucket a list of subjects into shards."""
    import pyarrow as pa

    from stages.runtime.artifacts import atomic_directory, shard_of, write_table

    buckets: dict[int, list[str]] = defaultdict(list)
    for subject in sorted(subjects.read_text(encoding="utf-8").split()):
        buckets[shard_of(subject, SHARDS)].append(subject)
    with atomic_directory(out) as scratch:
        for bucket, names in buckets.items():
            table = pa.table({"subject_id": names, "item_id": [f"{name}/0" for name in names]})
            write_table(table, scratch / f"rows-{bucket:05d}.parquet")


def map_rows(packed: Path, out: Path, work: Path) -> None:
    """One row per packed row, known or computed."""
    import pyarrow as pa

    from stages.runtime.artifacts import atomic_directory, read_table, write_table
    from stages.runtime.cached_map import cached_map
    from stages.runtime.params import ComputeParams
    from stages.runtime.row_cache import RowCache
    from stages.runtime.rows import keys_of_shard

    cache = RowCache.of("landmarks", section={"toy": packed.name}, inputs={}, work=work)
    found = []
    for shard in sorted(packed.glob("*.parquet")):
        found += keys_of_shard(shard, cache, rows_at_once=1024)
    subjects = [
        subject
        for shard in sorted(packed.glob("*.parquet"))
        for subject in read_table(shard, ["subject_id"])["subject_id"].to_pylist()
    ]
    rows = cached_map(
        toy_rows,
        subjects,
        keys=[packed_key.key for packed_key in found],
        subjects=[[packed_key.subject_id] for packed_key in found],
        cache=cache,
        compute=ComputeParams(workers=1, ray_threshold_s=1e9, object_store_mb=100),
        seconds_per_item=1e-4,
        label="toy",
    )
    cache.forget_unused()
    rows.sort(key=lambda row: str(row["subject_id"]))
    table = pa.table({name: [row[name] for row in rows] for name in ("subject_id", "quartiles")})
    with atomic_directory(out) as scratch:
        write_table(table, scratch / "rows.parquet")


def write_graph(workspace: Path, sets: Sequence[str], rows: int) -> None:
    """The lists of subjects and the graph."""
    (workspace / "raw").mkdir()
    for number, name in enumerate(sets):
        count = len(range(number, rows, len(sets)))
        names = "".join(f"{name}/{k:06d}\n" for k in range(count))
        (workspace / "raw" / f"{name}.txt").write_text(names)
    python = f"{sys.executable} -m tests.benchmarks.incremental"
    stages: dict[str, Any] = {}
    for step, source, argument in (
        ("pack", "raw/${item}.txt", "--subjects"),
        ("map", "packed/${item}", "--packed"),
    ):
        out = {"pack": "packed/${item}", "map": "mapped/${item}"}[step]
        stages[step] = {
            "foreach": list(sets),
            "do": {
                "cmd": f"exec {python} --stage {step} {argument} {source} --out {out}",
                "deps": [source],
                "outs": [out],
            },
        }
    (workspace / "dvc.yaml").write_text(json.dumps({"stages": stages}))


def measured(workspace: Path, *arguments: str) -> dict[str, float]:
    """CPU and wall seconds of one DVC command, and the rows that its stages computed."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "DVC_NO_ANALYTICS": "1"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    (workspace / "computed.txt").unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=workspace,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"dvc {' '.join(arguments)} failed:\n{done.stdout}\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    counts = workspace / "computed.txt"
    return {
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "wall_s": round(time.perf_counter() - start, 2),
        "rows_computed": sum(map(int, counts.read_text().split())) if counts.exists() else 0,
        "stages_run": done.stdout.count("Running stage"),
    }


def same_as_scratch(workspace: Path, name: str) -> bool:
    """Whether a data set's table equals the one computed without any cache."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as other:
        os.chdir(other)
        try:
            map_rows(workspace / "packed" / name, Path(other) / "out", Path(other) / "work")
        finally:
            os.chdir(here)
        fresh = (Path(other) / "out" / "rows.parquet").read_bytes()
    return fresh == (workspace / "mapped" / name / "rows.parquet").read_bytes()


def benchmark(stages: int, rows: int) -> dict[str, Any]:
    """All steps at one size."""
    sets = [f"set{number:02d}" for number in range(stages // 2)]
    report: dict[str, Any] = {"stages": 2 * len(sets), "rows": rows}
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        write_graph(workspace, sets, rows)
        measured(workspace, "init", "--no-scm", "-q")
        subjects = workspace / "raw" / f"{sets[0]}.txt"
        before = subjects.read_text()
        report["first"] = measured(workspace, "repro")
        report["no_op"] = measured(workspace, "repro")
        report["status"] = measured(workspace, "status")
        subjects.write_text(f"{before}{sets[0]}/new\n")
        report["add_one"] = measured(workspace, "repro")
        report["add_one_equals_scratch"] = same_as_scratch(workspace, sets[0])
        subjects.write_text(before.split("\n", 1)[1] + f"{sets[0]}/new\n")
        report["withdraw_one"] = measured(workspace, "repro")
        report["withdraw_one_equals_scratch"] = same_as_scratch(workspace, sets[0])
        cache = sum(path.stat().st_size for path in (workspace / ".work").rglob("*.rows"))
        report["row_cache_mb"] = round(cache / 1e6, 1)
    return report


def main() -> None:
    """Command line: of the benchmark, and of its toy stages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stages", type=int, default=60)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--stage", choices=("pack", "map"), help=argparse.SUPPRESS)
    parser.add_argument("--subjects", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--packed", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage == "pack":
        pack(options.subjects, options.out)
    elif options.stage == "map":
        map_rows(options.packed, options.out, Path(".work"))
    else:
        reports = [benchmark(options.stages, rows) for rows in options.rows]
        sys.stdout.write(json.dumps(reports, indent=2) + "\n")


if __name__ == "__main__":
    from tests.benchmarks.incremental import main as imported_main  # one name for its functions

    imported_main()
