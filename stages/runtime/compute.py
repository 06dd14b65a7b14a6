"""The one door to Ray: maps over items and training workers.

A stage never knows whether its work ran in its own process, on a Ray started for it or on a running
cluster; results come back in input order, so the bytes it writes are the same each time.

``RAY_ADDRESS`` set: attach to that head. Otherwise a local Ray starts, but only when the estimated
work exceeds ``compute.ray_threshold_s``: its start costs many seconds, so shorter maps run in plain
processes, and the shortest in the stage's own.
"""

import importlib
import itertools
import logging
import multiprocessing
import multiprocessing.connection
import os
import shutil
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.context import BaseContext
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from stages.runtime.params import ComputeParams
from stages.runtime.process import (
    GPUS_VARIABLE,
    NO_CLOUD_PROBE,
    ON_ONE_MACHINE,
    ONE_THREAD,
    is_stage,
)

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNKS_PER_WORKER = 8
WORTH_PROCESSES_S = 4.0
WORTH_FORKING_S = 1.0  # in forks, or in processes that an earlier map of a session started
WORTH_SENDING_S = 5.0  # to a Ray that runs already
THREADED = frozenset({"open3d", "pymeshlab", "ray"})
"""Modules whose threads a fork cannot do without."""


def item_rng(seed: int, item_id: str) -> np.random.Generator:
    """Return the generator of one item; independent of order, shard and worker count."""
    return np.random.default_rng([seed, zlib.crc32(item_id.encode())])


def map_ordered(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    compute: ComputeParams,
    seconds_per_item: float,
    label: str,
) -> list[Result]:
    """Apply ``function`` to every item and return the results in input order.

    Args:
        function: Top-level callable or ``functools.partial`` of one. It turns the failures it
            expects into failure rows itself; an exception it raises ends the stage.
        items: Work items; each is sent to a worker.
        compute: Worker count and the threshold above which Ray is started.
        seconds_per_item: Rough estimate, only used for that choice.
        label: What the items are, for the log.

    Raises:
        RuntimeError: A worker process was ended from outside.
    """
    estimate = len(items) * seconds_per_item
    attached = "RAY_ADDRESS" in os.environ or _ray_runs()
    worth_ray = estimate >= (WORTH_SENDING_S if attached else compute.ray_threshold_s)
    at_hand = _kept is not None or _may_fork()
    worth_processes = estimate >= (WORTH_FORKING_S if at_hand else WORTH_PROCESSES_S)
    if len(items) < 2 or compute.workers == 1 or not (worth_ray or worth_processes):
        logger.info("%s: %d items in process", label, len(items))
        return _run_chunk(function, items)

    count = min(len(items), compute.workers * CHUNKS_PER_WORKER)
    bounds = list(itertools.pairwise(np.linspace(0, len(items), count + 1).astype(int)))
    if not worth_ray:
        logger.info("%s: %d items in %d processes", label, len(items), compute.workers)
        return _map_in_processes(function, items, bounds, compute.workers, label)

    logger.info("%s: %d items on %d Ray workers", label, len(items), compute.workers)
    with _ray(compute) as ray:
        run = ray.remote(num_cpus=1, max_retries=3, runtime_env={"env_vars": ONE_THREAD})(
            _run_chunk
        )
        shared = ray.put(function)
        futures = [run.remote(shared, list(items[start:stop])) for start, stop in bounds]
        return [result for future in futures for result in ray.get(future)]


def _map_in_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    bounds: list[tuple[int, int]],
    workers: int,
    label: str,
) -> list[Result]:
    """Run chunks of items in processes that an earlier map left, or that start now."""
    with _processes(workers) as executor, tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "function"  # sent once to each process, whatever it carries
        own.write_bytes(ForkingPickler.dumps(function))
        try:
            chunks = [executor.submit(_run_own, own, list(items[a:b])) for a, b in bounds]
            return [result for chunk in chunks for result in chunk.result()]
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"{label}: expected every worker to finish, got one that was ended from outside, "
                "by a signal or for memory; run the stage again, with fewer compute.workers where "
                "memory is short"
            ) from error


_kept: ProcessPoolExecutor | None = None


@contextmanager
def _processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes, which a session keeps for the maps that follow."""
    global _kept
    executor = _kept
    if executor is None:
        executor = ProcessPoolExecutor(workers, _context(), initializer=_begin)
    _kept = executor if _in_session else None
    try:
        yield executor
    except BaseException:
        _kept = None
        executor.shutdown(cancel_futures=True)
        raise
    if _kept is None:
        executor.shutdown()


def _may_fork() -> bool:
    """Whether a fork of this process can work: it has every module at once, but no thread.

    So it hangs where a thread held a lock. The libraries of a stage have one thread each, or stop
    theirs before a fork and start them after it (Arrow, OpenBLAS), but for :data:`THREADED`.
    """
    return is_stage() and THREADED.isdisjoint(sys.modules)


def _context() -> BaseContext:
    """How a process of a map starts: as a fork of this one, or of a server without threads."""
    if _may_fork():
        return multiprocessing.get_context("fork")
    context = multiprocessing.get_context("forkserver")
    main = getattr(sys.modules["__main__"], "__spec__", None)
    apart = {"stages", "" if main is None else main.name}  # each process runs the main module
    loaded = [name for name in sys.modules if name.split(".")[0] in {"models", "stages"}]
    context.set_forkserver_preload(sorted(set(loaded) - apart))
    return context


def _begin() -> None:
    """Prepare a process of a map, which ends when the stage does.

    The stage need not be its parent: a fork server lives as long as one of its children.
    """
    stage = multiprocessing.parent_process()
    if stage is not None:
        threading.Thread(target=_end_after, args=(stage.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    """End this process once the one behind a sentinel has."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


@lru_cache(maxsize=1)
def _own(file: Path) -> Callable[[Any], Any]:
    """The function of the map that this process works for; the stage wrote it for its processes."""
    function: Callable[[Any], Any] = ForkingPickler.loads(file.read_bytes())
    return function


def _run_own(file: Path, items: list[Any]) -> list[Any]:
    """Run one chunk inside a process of a map."""
    return _run_chunk(_own(file), items)


_in_session = False


@contextmanager
def session() -> Iterator[None]:
    """Keep the workers that a first map starts for the maps that follow, and stop them in the end.

    They start once, what they built stays with them, and smaller maps are worth sending to a Ray.
    """
    global _in_session, _kept
    _in_session = True
    try:
        yield
    finally:
        _in_session = False
        if _kept is not None:
            _kept.shutdown()
            _kept = None
        if _ray_runs():
            sys.modules["ray"].shutdown()


def _ray_runs() -> bool:
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _run_chunk(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Run the items one after another."""
    with _one_thread():
        return [function(item) for item in items]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Pin BLAS, OpenMP and OpenCV to one thread while items are the unit of parallelism."""
    from threadpoolctl import threadpool_limits

    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)
    with threadpool_limits(limits=1):
        yield


@contextmanager
def _ray(compute: ComputeParams) -> Iterator[Any]:
    """Attach to the running head, or start a private Ray and stop it again."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    quiet = {"logging_level": logging.WARNING, "log_to_driver": False}
    if ray.is_initialized():
        yield ray
        return
    if "RAY_ADDRESS" in os.environ:
        try:
            ray.init(**quiet)
        except (ConnectionError, RuntimeError) as error:
            raise RuntimeError(
                f"expected a Ray head at RAY_ADDRESS={os.environ['RAY_ADDRESS']}, got {error}; "
                "start one with `faceline up`, or unset RAY_ADDRESS; a head with tokens also "
                "needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
            ) from error
    else:
        os.environ.update(ON_ONE_MACHINE | os.environ)
        with _variables(NO_CLOUD_PROBE):
            ray.init(
                num_cpus=compute.workers,
                object_store_memory=compute.object_store_mb * 2**20,
                include_dashboard=False,
                **quiet,
            )
    try:
        yield ray
    finally:
        if not _in_session:
            ray.shutdown()


@contextmanager
def _variables(changed: dict[str, str]) -> Iterator[None]:
    """Set environment variables for what is started inside."""
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What one training worker knows of its run.

    Attributes:
        rank: This worker's number, from 0.
        world_size: Number of workers.
        resume_dir: Folder, shared by the workers, for the checkpoints of this very run.
        device: Where it trains, as torch names it.
    """

    rank: int
    world_size: int
    resume_dir: Path
    device: str = "cpu"

    def wrap_model(self, model: Any) -> Any:  # noqa: ANN401 - torch.nn.Module, imported late
        """Return ``model`` with gradients averaged over the workers (DDP), or itself."""
        if self.world_size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model)


def run_training(
    worker: Callable[[WorkerContext, dict[str, Any]], None],
    config: dict[str, Any],
    *,
    fingerprint: str,
    num_workers: int,
    compute: ComputeParams,
    work: Path = Path(".work"),
    use_gpu: bool = False,
) -> Path:
    """Run ``worker`` on ``num_workers`` Ray Train workers and return its resume folder.

    The worker keeps its own checkpoints in ``resume_dir``, which is named by the fingerprint of
    inputs, code and parameters: a killed run continues, a changed one starts anew.

    Args:
        worker: Top-level callable; called as ``worker(context, config)`` in every process.
        config: Plain, picklable arguments.
        fingerprint: Hex digest that names this run.
        num_workers: World size, 0 to run in this process without Ray (unit tests).
        compute: Object store size when no head is attached.
        work: Folder for resumable state.
        use_gpu: One GPU per worker and NCCL instead of gloo; without Ray, this process's GPU.

    Raises:
        RuntimeError: A worker failed more often than it may.
    """
    resume_dir = (work / "train" / fingerprint).resolve()
    resume_dir.mkdir(parents=True, exist_ok=True)
    if num_workers == 0:
        worker(WorkerContext(0, 1, resume_dir, "cuda" if use_gpu else "cpu"), config)
        return resume_dir

    storage = (work / "ray").resolve()
    shutil.rmtree(storage / fingerprint, ignore_errors=True)  # Ray resumes by name; we do not
    sized = compute.model_copy(update={"workers": max(compute.workers, num_workers)})
    # Ray's start waits for its processes, torch's import computes: seconds each.
    threading.Thread(target=importlib.import_module, args=("torch",), daemon=True).start()
    with _ray(sized):
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        trainer = (TorchTrainer if "RAY_ADDRESS" in os.environ else _trainer_alone())(
            _train_worker,
            train_loop_config={
                "worker": worker,
                "config": config,
                "resume_dir": str(resume_dir),
                "use_gpu": use_gpu,
            },
            scaling_config=ScalingConfig(
                num_workers=num_workers,
                use_gpu=use_gpu,
                resources_per_worker=worker_resources(use_gpu=use_gpu),
            ),
            run_config=RunConfig(
                name=fingerprint,
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=2),
                worker_runtime_env={"env_vars": ONE_THREAD},
            ),
        )
        result = trainer.fit()
    if result.error is not None:
        raise RuntimeError(f"training {fingerprint} failed: {result.error}") from result.error
    shutil.rmtree(storage / fingerprint, ignore_errors=True)
    return resume_dir


def _trainer_alone() -> Any:  # noqa: ANN401 - a class made of Ray's, imported late
    """A TorchTrainer for a Ray of one machine: without three actors that serve clusters.

    They ask an autoscaler for machines, tidy up after a crash and hand out Ray Data; each takes a
    process some seconds to start, two of them before the workers may.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    class Workers(FixedScalingPolicy):
        def after_controller_start(self, train_run_context: Any) -> None:  # noqa: ANN401
            """Nobody is asked."""

        def _maybe_send_resource_request(self) -> None:
            """Nobody is asked."""

    class Alone(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            needless = {"DatasetsCallback", "PlacementGroupCleanerCallback"}
            callbacks = super()._create_default_callbacks()
            return [c for c in callbacks if type(c).__name__ not in needless]

        def _initialize_and_run_controller(self, **arguments: Any) -> Any:  # noqa: ANN401
            arguments["scaling_policy"] = Workers(self.scaling_config)
            return super()._initialize_and_run_controller(**arguments)

    return Alone


def worker_resources(*, use_gpu: bool) -> dict[str, float]:
    """Return what one training worker asks of Ray: a core, and its share of the GPUs if any."""
    if not use_gpu:
        return {"CPU": 1}
    return {"CPU": 1, "GPU": float(os.environ.get(GPUS_VARIABLE, "1"))}


def _train_worker(loop: dict[str, Any]) -> None:
    """Entry point inside each Ray Train worker."""
    import ray.train
    from ray.train.torch import get_device

    train = ray.train.get_context()
    context = WorkerContext(
        train.get_world_rank(),
        train.get_world_size(),
        Path(loop["resume_dir"]),
        str(get_device()) if loop["use_gpu"] else "cpu",
    )
    loop["worker"](context, loop["config"])
