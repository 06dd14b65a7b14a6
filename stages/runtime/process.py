"""What every stage process does first: die with its parent, take one thread, stay offline."""

import ctypes
import logging
import os
import signal
import sys

OFFLINE = {
    "DVC_NO_ANALYTICS": "1",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
}
ONE_THREAD = {
    name: "1"
    for name in (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "OPENCV_FOR_THREADS_NUM",
    )
}
SAME_SUMS_ON_GPU = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""cuBLAS's condition for giving the same bits twice; read when a process first uses a GPU."""
NO_CLOUD_PROBE = {"http_proxy": "http://127.0.0.1:9"}
"""For the processes of Ray: its dashboard asks the metadata services of three clouds over HTTP at
every start, whatever the usage statistics are set to. Nobody listens at port 9; gRPC takes no
proxy in Ray."""
ON_ONE_MACHINE = {
    "RAY_prestart_worker_first_driver": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
}
"""For a Ray that one stage starts for itself: each of its processes takes seconds to start, so none
that will not be used, none that waits for a cloud to take machines back; and a training of seconds
is not noticed to have ended two seconds late."""
GPUS_VARIABLE = "FACELINE_GPUS"
"""GPUs of one training worker, from the stage's ``meta.run``; decides no byte, only placement."""
_PR_SET_PDEATHSIG = 1


def go_offline() -> None:
    """Switch every telemetry of our dependencies off, unless the user set it."""
    for name, value in OFFLINE.items():
        os.environ.setdefault(name, value)


def die_with_parent() -> None:
    """Let the kernel end this process when its parent dies (Linux only).

    A killed ``dvc`` must not leave a stage behind that writes beside the next one. Only the direct
    parent counts: a shell in between would break the chain.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def use_one_thread() -> None:
    """Give BLAS, OpenMP and OpenCV one thread.

    Of the first two, how many there are decides the last bits of a result; the last's wait for work
    at full load, beside the other workers.

    Libraries that are loaded already are told, those that come later read the environment.
    """
    from threadpoolctl import threadpool_limits

    os.environ.update(ONE_THREAD)
    threadpool_limits(limits=1)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)


_stages: list[str] = []


def is_stage() -> bool:
    """Whether this process is a stage's, prepared by :func:`begin`."""
    return bool(_stages)


def begin(stage: str) -> logging.Logger:
    """Prepare a stage process and return its logger."""
    _stages.append(stage)
    go_offline()
    die_with_parent()
    use_one_thread()
    logging.basicConfig(
        level=os.environ.get("FACELINE_LOG", "INFO"),
        format=f"%(asctime)s {stage}: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    return logging.getLogger(f"faceline.{stage}")
