"""The graph under Prefect with its real, local server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
from pathlib import Path
from pipelines.dag import read_graph
from pipelines.engine import Runner, stale_stages
from pipelines.flow import run_flow
root = Path(sys.argv[1])
graph = read_graph(root)
outcomes = run_flow(graph, stale_stages(graph, root), Runner(root, root / "logs"), parallel=2)
print("STATES" + json.dumps({o.stage: o.state.value for o in outcomes}))
"""


def run(workspace: Path, repository: Path) -> dict[str, str]:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(workspace)],
        cwd=repository,
        env={
            **os.environ,
            "PREFECT_HOME": str(workspace / ".prefect"),
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith("STATES")]
    assert lines, result.stderr[-3000:]
    return dict(json.loads(lines[-1].removeprefix("STATES")))


@pytest.mark.slow
def test_flow_runs_the_graph_and_a_failure_skips_only_descendants(
    workspace: Path, repository: Path
) -> None:
    (workspace / "break-join_a.txt").write_text("always")
    assert run(workspace, repository) == {
        "left": "Ran",
        "right": "Ran",
        "join@a": "Failed",
        "join@b": "Ran",
    }
