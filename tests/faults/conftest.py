"""A chain a -> b -> c whose middle stage can be held, so that faults strike at a known moment."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.engine import dvc_command, environment

CHAIN = """
stages:
  a:
    cmd: exec python step.py a source.txt
    deps: [source.txt, step.py]
    outs: [a.txt]
  b:
    cmd: exec python step.py b a.txt
    deps: [a.txt, step.py]
    outs: [b.txt]
  c:
    cmd: exec python step.py c b.txt
    deps: [b.txt, step.py]
    outs: [c.txt]
  d:
    cmd: exec python step.py d a.txt
    deps: [a.txt, step.py]
    outs: [d.txt]
"""

STEP = """
import os, pathlib, sys, time
name, source = sys.argv[1:]
if pathlib.Path("break-" + name).exists():
    sys.exit("broken on purpose")
hold = pathlib.Path("hold-" + name)
if hold.exists():
    pathlib.Path("held-" + name).write_text(str(os.getpid()))
    while hold.exists():
        time.sleep(0.05)
text = name + ":" + pathlib.Path(source).read_text()[:40]
pathlib.Path(name + ".txt").write_text(text * 20)
"""

MARK = "FACELINE_FAULT_TEST"


@dataclass
class Bench:
    """A workspace under fault.

    Attributes:
        root: Its folder.
        reference: Hashes of every output of an undisturbed run.
    """

    root: Path
    reference: dict[str, str]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start ``faceline run`` and leave it running."""
        log = (self.root.parent / f"run{len(self.started)}.log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", "run", *arguments],
            cwd=self.root,
            env=self.environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        self.started.append(process)
        return process

    def environment(self) -> dict[str, str]:
        return {**environment(), MARK: str(self.root)}

    def hold(self, stage: str = "b") -> None:
        (self.root / f"hold-{stage}").touch()

    def held(self, stage: str = "b") -> int:
        """Wait until the stage is held; its process number."""
        file = self.root / f"held-{stage}"
        wait_for(lambda: file.is_file() and file.read_text() != "", 120)
        return int(file.read_text())

    def release(self) -> None:
        for file in self.root.glob("hold-*"):
            file.unlink()

    def survivors(self) -> list[str]:
        """Living processes that were started from here, by their environment."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if f"{MARK}={self.root}".encode() in variables and state not in "ZX":
                found.append(f"{folder.name} {command}")
        return found

    def no_orphans(self) -> None:
        """Nothing of a run that ended is alive five seconds later."""
        deadline = time.monotonic() + 5
        while left := self.survivors():
            assert time.monotonic() < deadline, left
            time.sleep(0.1)

    def completes(self) -> None:
        """A rerun ends well, and every output has the hash of the undisturbed run."""
        self.release()
        process = self.start()
        assert process.wait(timeout=300) == 0, self.said()
        self.no_orphans()
        assert recorded(self.root) == self.reference
        for name, text in contents(self.root).items():
            assert text.startswith(name), "an output is not what its stage writes"

    def said(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.root.parent.glob("run*.log")))


def recorded(root: Path) -> dict[str, str]:
    """Hash of every output by path, as dvc.lock has it."""
    stages = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def contents(root: Path) -> dict[str, str]:
    return {name: (root / f"{name}.txt").read_text() for name in "abcd"}


def wait_for(condition: Callable[[], Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def chain(root: Path) -> Path:
    """Write the workspace and make it a DVC repository without git."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dvc.yaml").write_text(CHAIN)
    (root / "step.py").write_text(STEP)
    (root / "source.txt").write_text("source\n")
    (root / "params.yaml").write_text("gain: 1\n")
    subprocess.run(
        [*dvc_command(), "init", "--no-scm", "-q"], cwd=root, env=environment(), check=True
    )
    return root


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of a run that nothing disturbs, by plain ``dvc repro``."""
    root = chain(tmp_path_factory.mktemp("undisturbed"))
    subprocess.run(
        [*dvc_command(), "--wait-for-lock", "repro", "-q"], cwd=root, env=environment(), check=True
    )
    return recorded(root)


@pytest.fixture
def bench(tmp_path: Path, undisturbed: dict[str, str]) -> Any:
    """A fresh chain; whatever a failed test leaves running is ended."""
    made = Bench(chain(tmp_path / "w"), undisturbed)
    yield made
    for line in made.survivors():
        os.kill(int(line.split()[0]), signal.SIGKILL)
    for process in made.started:
        process.wait(timeout=10)
