"""The graph under Prefect with its real, local server; no tool of ours calls home."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.pipelines import sealed

SCRIPT = """
import json, sys
from pathlib import Path
from pipelines.dag import read_graph
from pipelines.engine import Runner, stale_stages
from pipelines.flow import run_flow
from stages.runtime.compute import map_ordered
from stages.runtime.params import ComputeParams
root = Path(sys.argv[1])
graph = read_graph(root)
outcomes = run_flow(graph, stale_stages(graph, root), Runner(root, root / "logs"), parallel=2)
print("STATES" + json.dumps({o.stage: o.state.value for o in outcomes}))
compute = ComputeParams(workers=2, ray_threshold_s=0, object_store_mb=80)
print("RAY", map_ordered(abs, [-1, -2, -3], compute=compute, seconds_per_item=9, label="numbers"))
"""


@pytest.mark.slow
def test_flow_fails_only_what_has_to_and_nothing_calls_home(
    workspace: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (workspace / "break-join_a.txt").write_text("always")
    command = [sys.executable, "-c", SCRIPT, str(workspace)]
    env = {
        **os.environ,
        "PREFECT_HOME": str(workspace / ".prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PYTHONPATH": str(repository),
    }
    for switch in ("DVC_NO_ANALYTICS", "DO_NOT_TRACK", "PREFECT_SERVER_ANALYTICS_ENABLED",
                   "RAY_USAGE_STATS_ENABLED"):  # fmt: skip
        env.pop(switch, None)  # ours has to set them
    if not sealed.available():
        pytest.skip("counting packets needs root and Linux namespaces")
    result = sealed.run(command, tmp_path_factory.mktemp("sealed"), cwd=repository, env=env)
    lines = [line for line in result.stdout.splitlines() if line.startswith("STATES")]
    assert lines, result.stderr[-3000:]
    assert json.loads(lines[-1].removeprefix("STATES")) == {
        "left": "Ran",
        "right": "Ran",
        "join@a": "Failed",
        "join@b": "Ran",
    }
    assert "RAY [1, 2, 3]" in result.stdout, result.stderr[-3000:]
    assert result.packets == [], "something wanted out"


def test_the_seal_counts_what_wants_out(tmp_path: Path) -> None:
    if not sealed.available():
        pytest.skip("counting packets needs root and Linux namespaces")
    for attempt in (
        "import socket; socket.create_connection(('198.51.100.7', 443), timeout=0.2)",
        "import socket; socket.getaddrinfo('telemetry.example', 443)",
    ):
        result = sealed.run(
            [sys.executable, "-c", attempt], tmp_path, cwd=tmp_path, env=dict(os.environ)
        )
        assert result.code == 1
        assert any("198.51.100." in packet for packet in result.packets), attempt
    quiet = sealed.run(["true"], tmp_path, cwd=tmp_path, env=dict(os.environ))
    assert (quiet.code, quiet.packets) == (0, [])
