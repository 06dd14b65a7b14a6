"""The ancestry as a tree for the terminal."""

from pathlib import Path
from typing import Any

from pipelines.lineage.ancestry import Ancestor
from stages.runtime.artifacts import read_facts


def as_tree(node: Ancestor, path: Path) -> Any:  # noqa: ANN401 - rich.tree.Tree, imported late
    """Return a ``rich`` tree from the artefact down to raw inputs.

    Args:
        node: The ancestry.
        path: The artefact on disk; facts in a safetensors header are shown at the root.
    """
    from rich.tree import Tree

    tree = Tree(_label(node))
    if path.suffix == ".safetensors" and path.is_file():
        facts = read_facts(path)
        for key in ("method", "weights", "synthetic", "fingerprint"):
            if key in facts:
                tree.add(f"[dim]{key}:[/] {facts[key]}")
    _grow(tree, node, {node.file.path})
    return tree


def _label(node: Ancestor) -> str:
    size = f"{node.file.size / 1e6:.1f} MB"
    if node.stage is None:
        return f"[bold]{node.file.path}[/] [yellow]raw input[/] {node.file.md5[:10]} {size}"
    note = " [red]read before its stage last ran[/]" if node.outdated else ""
    return f"[bold]{node.file.path}[/] [green]{node.stage}[/] {node.file.md5[:10]} {size}{note}"


def _grow(tree: Any, node: Ancestor, seen: set[str]) -> None:  # noqa: ANN401 - rich.tree.Tree
    if node.stage is not None:
        names = "; ".join(
            ", ".join(sorted(values)) + ("" if file == "params.yaml" else f" ({file})")
            for file, values in sorted(node.parameters.items())
        )
        tree.add(f"[dim]code: {len(node.code)} files or folders; parameters: {names or 'none'}[/]")
    for child in node.inputs:
        if child.file.path in seen:
            tree.add(f"{_label(child)} [dim](shown above)[/]")
            continue
        seen.add(child.file.path)
        _grow(tree.add(_label(child)), child, seen)
