"""A small DVC workspace with a diamond, used by the tests of graph, engine and lineage."""

import subprocess
from pathlib import Path

import pytest

from pipelines.engine import dvc_command, environment

DIAMOND = """
stages:
  left:
    cmd: exec python step.py left.txt source.txt
    deps: [source.txt]
    outs: [left.txt]
  right:
    cmd: exec python step.py right.txt source.txt
    deps: [source.txt]
    params: [gain]
    outs: [right.txt]
    meta: {run: {retries: 1, timeout: 60, tags: [ray]}}
  join:
    foreach: [a, b]
    do:
      cmd: exec python step.py join_${item}.txt left.txt right.txt
      deps: [left.txt, right.txt]
      outs: ["join_${item}.txt"]
"""

STEP = """
import os, pathlib, sys, time
out, *sources = sys.argv[1:]
switch = pathlib.Path("break-" + out)
if switch.exists():
    if switch.read_text() == "once":
        switch.unlink()
    if switch.exists() and switch.read_text() == "hang":
        from stages.runtime.process import begin
        begin("step")
        pathlib.Path("hanging").write_text(str(os.getpid()))
        time.sleep(600)
    sys.exit(3)
text = "".join(pathlib.Path(source).read_text() for source in sources)
pathlib.Path(out).write_text(out + ":" + text)
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A DVC workspace without git: source -> left, right -> join@a, join@b."""
    (tmp_path / "dvc.yaml").write_text(DIAMOND)
    (tmp_path / "step.py").write_text(STEP)
    (tmp_path / "source.txt").write_text("source\n")
    (tmp_path / "params.yaml").write_text("gain: 1\n")
    subprocess.run(
        [*dvc_command(), "init", "--no-scm", "-q"], cwd=tmp_path, env=environment(), check=True
    )
    return tmp_path
