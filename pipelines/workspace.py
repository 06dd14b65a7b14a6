"""One run at a time in a checkout, and what a killed run left is put in order before the next.

DVC's own locks protect its files, not a run: two runs at once fail on each other's busy paths.
"""

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.lockfile import LockKeeper, sweep_path_locks

logger = logging.getLogger(__name__)

POLL_S = 0.2


@dataclass(frozen=True)
class Workspace:
    """A checkout that this process holds.

    Attributes:
        root: The checkout.
        keeper: Guards ``dvc.lock``.
        orderly: Whether the last run came to its end.
    """

    root: Path
    keeper: LockKeeper
    orderly: bool


@contextlib.contextmanager
def hold(root: Path) -> Iterator[Workspace]:
    """Hold the checkout; wait while another run holds it.

    The kernel gives the lock back when the process ends, however it ends.

    Args:
        root: The checkout.
    """
    path = root / ".work" / "run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        _lock(file.fileno(), path)
        file.seek(0)
        orderly = file.read().strip() in ("", "{}")
        _write(file.fileno(), json.dumps({"pid": os.getpid(), "started": time.time()}))
        keeper = LockKeeper(root)
        if not orderly:
            logger.warning("the last run here was cut off; putting in order what it left")
        for cleared in sweep_path_locks(root):
            logger.warning("cleared %s", cleared)
        keeper.start(orderly=orderly)
        try:
            yield Workspace(root, keeper, orderly)
        except (ValueError, RuntimeError):  # a wrong request, not a run cut off
            _write(file.fileno(), "{}")
            raise
        _write(file.fileno(), "{}")


def _lock(descriptor: int, path: Path) -> None:
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                owner = path.read_text().strip()
                logger.warning("another run holds this checkout (%s); waiting for its end", owner)
                told = True
            time.sleep(POLL_S)
        else:
            return


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
