"""What a stage process does first."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import numpy, sys
from stages.runtime.process import begin
if sys.argv[1] == "begin":
    begin("test")
from threadpoolctl import threadpool_info
import cv2, torch
pools = max(pool["num_threads"] for pool in threadpool_info())
print(pools, torch.get_num_threads(), cv2.getNumThreads())
"""


def threads(repository: Path, word: str) -> list[int]:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, word],
        cwd=repository,
        env={"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(number) for number in result.stdout.split()]


def test_a_stage_takes_one_thread_whatever_the_environment_says(repository: Path) -> None:
    assert max(threads(repository, "free")) > 1
    assert threads(repository, "begin") == [1, 1, 1]
