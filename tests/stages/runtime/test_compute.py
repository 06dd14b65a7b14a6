"""The map and training doors: same results in process and on Ray, resumable training folders."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.runtime import compute
from stages.runtime.compute import WorkerContext, worker_resources
from stages.runtime.params import ComputeParams
from stages.runtime.process import GPUS_VARIABLE

LOCAL = ComputeParams(workers=1, ray_threshold_s=1e9, object_store_mb=100)
ON_RAY = ComputeParams(workers=2, ray_threshold_s=0, object_store_mb=100)
IN_PROCESSES = ComputeParams(workers=2, ray_threshold_s=1e9, object_store_mb=100)


def draw(item: str) -> float:
    return float(compute.item_rng(7, item).normal())


def record(context: WorkerContext, config: dict[str, Any]) -> None:
    name = f"rank{context.rank}of{context.world_size}"
    (context.resume_dir / name).write_text(str(config["value"]))


def test_item_rng_depends_on_seed_and_item_only() -> None:
    assert draw("a") == draw("a")
    assert draw("a") != draw("b")
    assert compute.item_rng(1, "a").normal() != compute.item_rng(2, "a").normal()


def test_training_in_process_uses_a_folder_named_by_the_fingerprint(tmp_path: Path) -> None:
    folder = compute.run_training(
        record, {"value": 3}, fingerprint="abc", num_workers=0, compute=LOCAL, work=tmp_path
    )
    assert folder == (tmp_path / "train" / "abc").resolve()
    assert (folder / "rank0of1").read_text() == "3"


def draw_there(item: str) -> tuple[float, int]:
    return draw(item), os.getpid()


def refuse(item: str) -> float:
    raise ValueError(f"not {item}")


def test_a_session_keeps_its_processes_for_the_maps_that_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(compute, "_ray_runs", lambda: False)
    items = [f"item{index}" for index in range(4)]

    def processes(function: Any, seconds: float) -> set[int]:
        found = compute.map_ordered(
            function, items, compute=IN_PROCESSES, seconds_per_item=seconds, label="test"
        )
        assert [number for number, _ in found] == [draw(item) for item in items]
        return {process for _, process in found}

    with compute.session():
        assert processes(draw_there, 0.5) == {os.getpid()}
        first = processes(draw_there, 2)
        assert os.getpid() not in first
        assert processes(draw_there, 0.5) & first  # worth sending now
        assert processes(partial(draw_there), 2) & first  # another function
        with pytest.raises(ValueError, match="not item0"):
            compute.map_ordered(
                refuse, items, compute=IN_PROCESSES, seconds_per_item=2, label="test"
            )
        assert not processes(draw_there, 2) & first
    assert compute._kept is None
    assert processes(draw_there, 0.5) == {os.getpid()}


def test_processes_give_the_same_results_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(compute, "_ray_runs", lambda: False)
    items = [f"item{index}" for index in range(37)]
    found = compute.map_ordered(
        draw_there, items, compute=IN_PROCESSES, seconds_per_item=1, label="test"
    )
    assert [number for number, _ in found] == [draw(item) for item in items]
    assert os.getpid() not in {process for _, process in found}
    short = compute.map_ordered(
        draw_there, items, compute=IN_PROCESSES, seconds_per_item=0.001, label="test"
    )
    assert {process for _, process in short} == {os.getpid()}


def fail_at_three(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 103:
        raise ValueError("item 103 is impossible")
    return item


def test_what_ends_a_process_ends_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_ray_runs", lambda: False)
    with pytest.raises(RuntimeError, match="test: expected every worker to finish"):
        compute.map_ordered(
            fail_at_three, range(20), compute=IN_PROCESSES, seconds_per_item=1, label="test"
        )
    with pytest.raises(ValueError, match="item 103"):
        compute.map_ordered(
            fail_at_three, range(100, 120), compute=IN_PROCESSES, seconds_per_item=1, label="test"
        )


MAP = """
from stages.runtime import compute
from stages.runtime.params import ComputeParams
from tests.stages.runtime.test_compute import wait_long
compute.map_ordered(
    wait_long, range(4), seconds_per_item=9, label="waiting",
    compute=ComputeParams(workers=2, ray_threshold_s=1e9, object_store_mb=100),
)
"""


STAGE = f"""
from stages.runtime.process import begin
begin("waiting")
{MAP}
"""


def wait_long(item: int) -> int:
    sys.stdout.write(f"{os.getpid()} {os.getppid()}\n")
    sys.stdout.flush()
    time.sleep(60)
    return item


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize(
    ("script", "forks"),
    [(MAP, False), (STAGE, True), (f"import sys\nsys.modules['open3d'] = sys\n{STAGE}", False)],
)
def test_the_processes_of_a_map_end_with_their_stage(
    repository: Path, how: int, script: str, forks: bool
) -> None:
    stage = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert stage.stdout is not None
    lines = [stage.stdout.readline().split() for _ in range(2)]
    workers, parents = zip(*(map(int, line) for line in lines), strict=True)
    assert (set(parents) == {stage.pid}) is forks
    stage.send_signal(how)
    stage.wait()
    until = time.monotonic() + 5
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < until, "a worker outlives its stage"
        time.sleep(0.05)
    stage.stdout.close()


@pytest.mark.slow
def test_ray_gives_the_same_results_in_order_and_trains_on_two_workers(tmp_path: Path) -> None:
    items = [f"item{index}" for index in range(37)]
    serial = compute.map_ordered(draw, items, compute=LOCAL, seconds_per_item=1, label="test")
    parallel = compute.map_ordered(draw, items, compute=ON_RAY, seconds_per_item=9, label="test")
    assert serial == parallel
    assert np.isfinite(serial).all()
    folder = compute.run_training(
        record, {"value": 5}, fingerprint="two", num_workers=2, compute=ON_RAY, work=tmp_path
    )
    assert sorted(path.name for path in folder.iterdir()) == ["rank0of2", "rank1of2"]


def test_gpus_are_asked_for_as_meta_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GPUS_VARIABLE, "0.5")
    assert worker_resources(use_gpu=True) == {"CPU": 1, "GPU": 0.5}
    assert worker_resources(use_gpu=False) == {"CPU": 1}
    monkeypatch.delenv(GPUS_VARIABLE)
    assert worker_resources(use_gpu=True) == {"CPU": 1, "GPU": 1}


def test_a_dead_head_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refuse(**_: object) -> None:
        raise ConnectionError("nobody answers")

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(RuntimeError, match=r"expected a Ray head at RAY_ADDRESS=127.0.0.1:9"):
        compute.map_ordered(draw, ["a", "b"], compute=ON_RAY, seconds_per_item=9, label="test")
