"""Real servers: up, deploy as shipped, run, fail, retry, cancel, kill, down; nothing is left."""

import base64
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
from typing import Any

import pytest
import yaml

from pipelines import servers
from stages.runtime.params import ServersParams
from tests.faults.conftest import CHAIN, MARK, Bench, chain, recorded, wait_for

pytestmark = pytest.mark.faults

MORE = """
  metrics:
    cmd: exec python measure.py
    deps: [c.txt, measure.py]
    outs: [metrics.json]
"""
MEASURE = """
import json, pathlib
pathlib.Path("metrics.json").write_text(json.dumps({"length": len(open("c.txt").read())}))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Api:
    """The server's REST interface, as an independent client sees it."""

    def __init__(self, server: servers.Server) -> None:
        self.url = server.address
        self.login = server.environment["PREFECT_API_AUTH_STRING"]

    def __call__(self, path: str, body: Any = None, *, login: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data=data)
        request.add_header("Content-Type", "application/json")
        secret = base64.b64encode((self.login if login is None else login).encode()).decode()
        request.add_header("Authorization", f"Basic {secret}")
        for attempt in range(10):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                if error.code != 503 or attempt == 9:  # SQLite is busy: clients try again
                    raise
                time.sleep(1)
        return None

    def start(self) -> str:
        deployment = self("/deployments/name/faceline/graph")["id"]
        return str(self(f"/deployments/{deployment}/create_flow_run", {})["id"])

    def state(self, run: str) -> str:
        return str(self(f"/flow_runs/{run}")["state"]["type"])

    def ends(self, run: str) -> str:
        wait_for(lambda: self.state(run) in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED"), 240)
        return self.state(run)

    def tasks(self, run: str, names: set[str]) -> dict[str, dict[str, Any]]:
        """Task runs by name, once the server has heard how each of these ended."""
        rows: dict[str, dict[str, Any]] = {}

        def settled() -> bool:
            found = self("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
            rows.update((row["name"], row) for row in found)
            ended = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
            return names <= set(rows) and all(
                row["state"]["type"] in ended or row["state"]["name"] == "NotReady"
                for row in rows.values()
            )

        wait_for(settled, 30)
        return rows


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Bench]:
    root = chain(tmp_path_factory.mktemp("servers") / "w")
    content = yaml.safe_load(CHAIN + MORE)
    content["stages"]["b"]["meta"] = {"run": {"retries": 1, "tags": ["ray"]}}
    (root / "dvc.yaml").write_text(yaml.safe_dump(content))
    (root / "measure.py").write_text(MEASURE)
    for name in ("deploy", "pipelines"):
        (root / name).symlink_to(repository / name)
    made = Bench(root, {})
    yield made
    made.release()
    servers.down(root)
    made.no_orphans()


@pytest.fixture(scope="module")
def api(bench: Bench) -> Iterator[Api]:
    """Everything up, by the code of ``faceline up --worker``."""
    section = ServersParams(
        host="127.0.0.1",
        folder=Path(".work/servers"),
        secrets=True,
        prefect_port=free_port(),
        ray_port=free_port(),
        ray_dashboard_port=None,
        ray_cpus=2,
        ray_object_store_mb=100,
    )
    os.environ[MARK] = str(bench.root)
    try:
        running = servers.up(bench.root, section, worker=True)
        assert [server.name for server in running] == ["prefect", "ray", "worker"]
        again = servers.up(bench.root, section, worker=True)
        assert again == running, "what runs is not started twice"
        yield Api(running[0])
    finally:
        del os.environ[MARK]


def test_a_wrong_secret_is_refused(api: Api) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        api("/flows/count", {}, login="faceline:guess")


def test_secrets_are_for_their_owner(api: Api, bench: Bench) -> None:
    for name in ("servers/prefect_secret", "servers/ray_token", "servers.json"):
        assert (bench.root / ".work" / name).stat().st_mode & 0o077 == 0


def test_a_stage_fails_is_tried_again_and_the_next_run_completes(api: Api, bench: Bench) -> None:
    (bench.root / "break-b").touch()
    run = api.start()
    assert api.ends(run) == "FAILED"
    tasks = api.tasks(run, {"a", "b", "c", "d", "metrics"})
    assert tasks["a"]["state"]["name"] == "Ran"
    assert tasks["b"]["state"]["type"] == "FAILED"
    assert tasks["b"]["run_count"] == 2, "meta.run.retries: 1"
    assert tasks["d"]["state"]["name"] == "Ran", "a sibling of the failed one finishes"
    assert tasks["c"]["state"]["name"] == "NotReady"
    (bench.root / "break-b").unlink()
    run = api.start()
    assert api.ends(run) == "COMPLETED"
    done = {"b", "c", "metrics"}
    assert set(api.tasks(run, done)) == done, "only what was not there"
    rows = api("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
    kinds = {row["key"]: row["type"] for row in rows}
    assert kinds == {
        "stages": "table", "metrics": "table", "lineage": "markdown", "logs": "markdown",
        None: "progress",
    }  # fmt: skip
    content = {row["key"]: row["data"] for row in rows}
    assert content[None] == 100
    assert "flowchart LR" in content["lineage"]
    assert '"length"' in content["metrics"]


def test_a_cancelled_run_leaves_no_stage(api: Api, bench: Bench) -> None:
    bench.hold()
    (bench.root / "source.txt").write_text("another\n")
    (bench.root / "held-b").unlink(missing_ok=True)
    run = api.start()
    stage = bench.held()
    api(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    assert api.ends(run) == "CANCELLED"
    deadline = time.monotonic() + 5
    while Path(f"/proc/{stage}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    bench.release()
    assert api.ends(api.start()) == "COMPLETED"


def test_a_killed_flow_is_marked_by_the_next(api: Api, bench: Bench) -> None:
    bench.hold()
    (bench.root / "source.txt").write_text("once more\n")
    (bench.root / "held-b").unlink(missing_ok=True)
    flow = bench.start("--engine", "prefect")
    bench.held()
    flow.kill()
    flow.wait()
    running = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
    left = {row["id"] for row in api("/flow_runs/filter", running)}
    assert len(left) == 1, "nobody told the server"
    bench.release()
    second = bench.start("--engine", "prefect")
    assert second.wait(timeout=240) == 0, bench.said()
    assert api.state(left.pop()) == "CRASHED"


def test_a_stage_attaches_to_the_head_and_survives_its_death(api: Api, bench: Bench) -> None:
    head = servers.ray_environment(bench.root)
    assert head["RAY_AUTH_MODE"] == "token"
    script = (
        "import ray, sys, logging; ray.init(logging_level=logging.ERROR, log_to_driver=False);"
        "print(sum(ray.get([ray.remote(lambda i: i).remote(i) for i in range(5)])))"
    )
    environment = {**bench.environment(), **head}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "10", done.stderr[-2000:]
    server = next(s for s in servers._state(bench.root) if s.name == "ray")
    os.kill(server.pid, 9)
    wait_for(lambda: not server.alive(), 5)
    assert servers.ray_environment(bench.root) == {}, "stages no longer look for it"


def test_down_ends_what_up_started_and_nothing_else(api: Api, bench: Bench) -> None:
    unmarked = {name: value for name, value in os.environ.items() if name != MARK}
    other = subprocess.Popen(["sleep", "600"], start_new_session=True, env=unmarked)
    try:
        assert set(servers.down(bench.root)) >= {"prefect", "worker"}
        bench.no_orphans()
        assert other.poll() is None
        assert servers.down(bench.root) == []
    finally:
        other.kill()
        other.wait()
    assert recorded(bench.root)
    shutil.rmtree(servers._short(bench.root / ".work" / "servers" / "ray"), ignore_errors=True)
