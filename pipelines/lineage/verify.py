"""Is an artefact, with everything behind it, still what dvc.lock says?"""

import json
from pathlib import Path

from pipelines.engine import changes
from pipelines.lineage.ancestry import Ancestor, ancestry, read_lock


def verify(target: str, root: Path) -> list[str]:
    """Compare the artefact's whole chain with dvc.lock and return what differs, one line each.

    DVC hashes what changed on disk since it last looked, by size and modification time.

    Args:
        target: Path relative to the checkout.
        root: The checkout.

    Raises:
        RuntimeError: DVC could not tell.
    """
    node = ancestry(target, read_lock(root / "dvc.lock"))
    found = changes(root, sorted(_stages(node, set())))
    return [f"{stage}: {json.dumps(what)}" for stage, what in sorted(found.items())]


def _stages(node: Ancestor, found: set[str]) -> set[str]:
    if node.stage is not None and node.stage not in found:
        found.add(node.stage)
        for child in node.inputs:
            _stages(child, found)
    return found
