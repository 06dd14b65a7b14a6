"""Is an artefact, with everything behind it, still what dvc.lock says?"""

import json
import re
import subprocess
from pathlib import Path

from pipelines.engine import dvc_command, environment
from pipelines.lineage.ancestry import Ancestor, ancestry, read_lock


def verify(target: str, root: Path) -> list[str]:
    """Rehash the artefact's whole chain and return what differs, one line each.

    Args:
        target: Path relative to the checkout.
        root: The checkout.
    """
    node = ancestry(target, read_lock(root / "dvc.lock"))
    stages = sorted(_stages(node, set()))
    result = subprocess.run(
        [*dvc_command(), "--wait-for-lock", "status", "--json", *stages],
        cwd=root,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        return [f"dvc status failed: {result.stderr.strip()[-1000:]}"]
    match = re.search(r"^\{.*", result.stdout, flags=re.DOTALL | re.MULTILINE)
    changes = json.loads(match[0]) if match else {}
    return [f"{stage}: {json.dumps(what)}" for stage, what in sorted(changes.items())]


def _stages(node: Ancestor, found: set[str]) -> set[str]:
    if node.stage is not None and node.stage not in found:
        found.add(node.stage)
        for child in node.inputs:
            _stages(child, found)
    return found
