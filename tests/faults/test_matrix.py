"""The fault matrix: after every fault nothing is left, and a rerun gives the same hashes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.engine import environment
from tests.faults.conftest import Bench, chain, contents, wait_for

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="the leash is Linux's PDEATHSIG"),
]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
@pytest.mark.parametrize("victim", ["flow", "leash", "dvc", "stage"])
def test_a_killed_process_leaves_nothing_and_the_rerun_completes(
    bench: Bench, victim: str, number: signal.Signals
) -> None:
    bench.hold()
    flow = bench.start()
    stage = bench.held()
    dvc = parent(stage)
    leash = parent(dvc)
    assert parent(leash) == flow.pid, "flow, leash, dvc, stage: nothing in between"
    os.kill({"flow": flow.pid, "leash": leash, "dvc": dvc, "stage": stage}[victim], number)
    code = flow.wait(timeout=120)
    assert code == (-number if (victim, number) == ("flow", signal.SIGKILL) else code)
    assert code != 0, "the fault was noticed"
    bench.no_orphans()
    if victim != "flow":
        assert (bench.root / "d.txt").is_file(), "a stage beside the failed one finishes"
    bench.completes()


@pytest.mark.parametrize("pages", [0, 1, 3], ids=["none", "for-the-output", "for-the-cache"])
def test_a_full_disk_fails_the_run_and_no_more(bench: Bench, small_disk: Path, pages: int) -> None:
    """Room for nothing; for the stage's output alone; for DVC's copy of it, but not dvc.lock."""
    bench.root = chain(small_disk / "w")
    bench.hold()
    flow = bench.start()
    bench.held()
    wait_for(lambda: (bench.root / "d.txt").is_file() and "d" in bench.said(), 120)
    free = shutil.disk_usage(small_disk).free
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes((free // 4096 - pages) * 4096))
    bench.release()
    assert flow.wait(timeout=180) == 1, bench.said()
    bench.no_orphans()
    ballast.unlink()
    bench.completes()


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 2 MB; needs root."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_rotten_cache_file_is_not_taken_for_the_result(bench: Bench) -> None:
    bench.completes()
    for file in (bench.root / ".dvc/cache/files/md5").rglob("*"):
        if file.is_file():
            file.chmod(0o644)
            file.write_bytes(b"rotten" + file.read_bytes())
            file.chmod(0o444)
    for name in ("a.txt", "b.txt"):
        (bench.root / name).unlink()
    bench.completes()
    assert not any(text.startswith("rotten") for text in contents(bench.root).values())


@pytest.mark.parametrize("keep", [0, 7, 0.4, 0.8], ids=["empty", "header", "cut", "late"])
def test_a_cut_dvc_lock_is_repaired_and_nothing_runs_again(bench: Bench, keep: float) -> None:
    bench.hold("c")
    flow = bench.start()
    bench.held("c")
    flow.kill()
    flow.wait()
    bench.no_orphans()
    lock = bench.root / "dvc.lock"
    text = lock.read_bytes()
    lock.write_bytes(text[: int(keep * len(text)) if keep < 1 else int(keep)])
    stamps = {name: (bench.root / f"{name}.txt").stat().st_mtime_ns for name in "ab"}
    bench.completes()
    assert stamps == {name: (bench.root / f"{name}.txt").stat().st_mtime_ns for name in "ab"}


def test_locks_left_behind_do_not_stop_a_run(bench: Bench) -> None:
    folder = bench.root / ".dvc" / "tmp"
    folder.mkdir(exist_ok=True)
    for name in ("lock", "rwlock.lock"):
        (folder / name).write_text("123")
    a = str(bench.root / "a.txt")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    reused = subprocess.Popen(["sleep", "600"])  # another program got the number of a killed DVC
    try:
        entries = {"write": {a: {"pid": reused.pid, "cmd": "dvc repro"}},
                   "read": {a: [{"pid": dead.pid, "cmd": "dvc repro"}]}}  # fmt: skip
        (folder / "rwlock").write_text(json.dumps(entries))
        bench.completes()
    finally:
        reused.kill()
        reused.wait()
    (folder / "rwlock").write_text('{"write": {"')
    (bench.root / "a.txt").unlink()
    bench.completes()


def test_two_runs_at_once_take_turns(bench: Bench) -> None:
    bench.hold()
    first = bench.start()
    bench.held()
    second = bench.start()
    wait_for(lambda: "another run holds this checkout" in bench.said(), 60)
    bench.release()
    assert first.wait(timeout=180) == 0
    assert second.wait(timeout=180) == 0
    assert "4 stages, 0 to run" in bench.said(), "the second found everything done"
    bench.completes()


def test_a_dvc_beside_the_run_is_waited_for(bench: Bench) -> None:
    bench.hold("a")
    other = subprocess.Popen(
        [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "-q", "a"],
        cwd=bench.root,
        env=environment(),
    )
    bench.held("a")
    flow = bench.start()
    time.sleep(8)
    bench.release()
    assert flow.wait(timeout=180) == 0, bench.said()
    assert other.wait(timeout=60) == 0
    bench.completes()


def test_wrong_clocks_change_nothing(bench: Bench) -> None:
    bench.completes()
    for name, shift in (("source.txt", 10**9), ("a.txt", -(10**9)), ("step.py", 10**8)):
        os.utime(bench.root / name, (time.time() + shift, time.time() + shift))
    bench.completes()
    assert "4 stages, 0 to run" in bench.said()


def test_twenty_four_stages_at_once_all_succeed(bench: Bench) -> None:
    (bench.root / "dvc.yaml").write_text(
        "stages:\n"
        + "".join(
            f"  s{i}:\n    cmd: cp source.txt s{i}.txt\n    deps: [source.txt]\n"
            f"    outs: [s{i}.txt]\n"
            for i in range(24)
        )
    )
    flow = bench.start("--parallel", "24", "--json")
    assert flow.wait(timeout=400) == 0, bench.said()
    assert bench.said().count('"state": "Ran"') == 24
    bench.no_orphans()
