"""Results travel through an S3 remote: a fresh checkout takes them instead of computing."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.engine import dvc_command, environment
from pipelines.run import fetch

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server on this machine, with an empty bucket ``store``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                request = urllib.request.Request(f"{address}/store", method="PUT")
                with urllib.request.urlopen(request, timeout=5):
                    break
            except urllib.error.URLError:
                time.sleep(0.1)
        else:
            pytest.fail("the S3 server did not start")
        yield address
    finally:
        server.terminate()
        server.wait()


def dvc(folder: Path, *arguments: str) -> None:
    subprocess.run([*dvc_command(), *arguments], cwd=folder, env=environment(), check=True)


@pytest.mark.slow
def test_a_fresh_checkout_pulls_what_another_pushed(
    s3: str,
    workspace: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    dvc(workspace, "remote", "add", "-q", "-d", "store", "s3://store/faceline")
    dvc(workspace, "remote", "modify", "-q", "store", "endpointurl", s3)
    monkeypatch.chdir(workspace)
    assert main(["run"]) == 0
    dvc(workspace, "push", "-q", "--run-cache")
    written = {path.name: path.read_bytes() for path in workspace.glob("*.txt")}

    fresh = tmp_path_factory.mktemp("fresh")
    for name in ("dvc.yaml", "dvc.lock", "step.py", "params.yaml", "source.txt"):
        shutil.copy(workspace / name, fresh / name)
    shutil.copytree(
        workspace / ".dvc", fresh / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp")
    )
    monkeypatch.chdir(fresh)
    capsys.readouterr()
    assert main(["run", "--pull", "--json"]) == 0
    states = {row["state"] for row in json.loads(capsys.readouterr().out)}
    assert "Ran" not in states
    assert {path.name: path.read_bytes() for path in fresh.glob("*.txt")} == written


def test_without_a_remote_pull_says_what_to_do(workspace: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a DVC remote, .*docs/remotes.md"):
        fetch(workspace)
    assert not os.path.lexists(workspace / "left.txt")
