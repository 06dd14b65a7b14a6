"""The whole graph on the tiny preset, end to end, in a clone of its own.

One run of ``dvc repro`` is shared by the tests of this module.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipelines import presets
from pipelines.engine import dvc_command, environment
from stages.datasets.registry import DATASETS
from stages.runtime.artifacts import read_json, read_table

pytestmark = pytest.mark.slow


def dvc(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*dvc_command(), "--wait-for-lock", *arguments],
        cwd=clone,
        env={**environment(), "PYTHONPATH": str(clone)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def clone(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the checkout with the tiny preset, built once; compiled kernels are copied too."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=repository, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (repository / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repository / name, folder / name)  # kernels are dated by their sources
    for package in ("models", "stages"):
        for kernel in (repository / package).rglob("__pycache__/*.nb[ci]"):
            copy = folder / kernel.relative_to(repository)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(kernel, copy)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    presets.apply("tiny", folder)
    result = dvc(folder, "repro")
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_every_stage_left_its_outputs(clone: Path) -> None:
    lock = yaml.safe_load((clone / "dvc.lock").read_text())["stages"]
    for stage in lock.values():
        for out in stage["outs"]:
            assert (clone / out["path"]).exists(), out["path"]
    assert (clone / "data/reports/report.html").stat().st_size > 10_000


def test_the_next_repro_changes_nothing(clone: Path) -> None:
    before = (clone / "dvc.lock").read_bytes()
    result = dvc(clone, "repro")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "Running stage" not in result.stdout
    assert (clone / "dvc.lock").read_bytes() == before


def test_broken_inputs_are_rows_and_the_rest_is_unharmed(clone: Path) -> None:
    for dataset in DATASETS:
        rows = []
        for kind in ("images", "scans"):
            for shard in sorted((clone / "data/packed" / dataset).glob(f"{kind}-*.parquet")):
                columns = ["item_id", "status", "reason"]
                rows += read_table(shard, columns).to_pylist()
        good = [row for row in rows if row["status"] == "ok"]
        failed = [row for row in rows if row["status"] != "ok"]
        assert len(good) > len(failed), dataset
        assert all(row["reason"] for row in failed), dataset
    lyhm = read_table(clone / "data/registered/lyhm/registrations.parquet").to_pylist()
    assert any(row["status"] == "ok" for row in lyhm)
    assert all(row["reason"] for row in lyhm if row["status"] != "ok")


def test_scores_say_what_they_ran_on(clone: Path) -> None:
    for method in ("mean", "mica", "pix2face", "ringnet"):
        metrics = read_json(clone / "data/evaluation" / method / "metrics.json")
        assert metrics["synthetic"] is True
        assert set(metrics["protocols"]) == {"now", "now-metric"}
        assert metrics["protocols"]["now"]["scored"] > 0
    html = (clone / "data/reports/report.html").read_text()
    assert "synthetic" in html.lower()
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_lineage_of_a_checkpoint_reaches_raw_inputs_but_no_benchmark(clone: Path) -> None:
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pipelines.cli",
            "lineage",
            "show",
            "data/checkpoints/mica/model.safetensors",
            "--json",
        ],
        cwd=clone,
        env={**os.environ, "PYTHONPATH": str(clone)},
        capture_output=True,
        text=True,
        check=True,
    )
    text = result.stdout
    assert json.loads(text)["stage"] == "train@mica"
    assert "data/raw/synthetic/LYHM" in text
    assert "data/raw/synthetic/NOW" not in text


def test_nothing_written_is_a_pickle(clone: Path) -> None:
    for path in (clone / "data").rglob("*"):
        if path.is_file() and "raw" not in path.relative_to(clone).parts:
            assert path.suffix not in (".pkl", ".pickle", ".pt", ".pth"), path
            head = path.open("rb").read(2)
            assert head not in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), path
