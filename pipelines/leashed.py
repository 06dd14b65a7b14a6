"""DVC on a leash: ``python -m pipelines.leashed PID DVC_ARGUMENT...``, leader of its own group.

PID is the starter's own. This process waits for DVC and ends the whole group whenever DVC or the
starter ends, however they end: killed with no chance to clean up, either would otherwise leave the
stage running, and the next run would start a second writer beside it.
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from stages.runtime.process import die_with_parent

GRACE_S = 2.0


def main() -> int:
    """Run DVC under the leash and return its exit status, 128 + signal if one ended it."""
    starter, *arguments = sys.argv[1:]
    die_with_parent()
    signal.signal(signal.SIGTERM, _end)
    if os.getppid() != int(starter):
        return 1  # the starter died before the leash was on
    leash = os.getpid()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        die_with_parent()
        if os.getppid() != leash:
            return 1
        from dvc.cli import main as dvc

        return int(dvc(arguments))
    _, status = os.waitpid(child, 0)
    end_rest_of_group()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    """Handle SIGTERM, the starter's or the kernel's after the starter's death."""
    end_rest_of_group()
    os._exit(128 + number)


def end_rest_of_group() -> None:
    """End every other process of this group: SIGTERM, after the grace time SIGKILL."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE_S
        signalled = False
        while others := [pid for pid in members(os.getpgrp()) if pid != os.getpid()]:
            if not signalled:
                for pid in others:
                    _signal(pid, number)
                signalled = number != signal.SIGKILL  # new children of a dying process as well
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)


def members(group: int) -> list[int]:
    """Return the living processes of a process group (Linux; elsewhere none are found)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if fields[0] not in "ZX" and int(fields[2]) == group:
            found.append(int(folder.name))
    return found


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(main())
