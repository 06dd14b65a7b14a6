"""The graph, read from DVC: stages, their edges, their files and their ``meta.run`` settings."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx

from stages.runtime.params import section_files


@dataclass(frozen=True, slots=True)
class StageNode:
    """One resolved stage of ``dvc.yaml``.

    Attributes:
        name: Address, for example ``pack@lyhm``.
        command: The resolved shell command.
        deps: Paths that it reads, relative to the checkout; absolute outside it.
        outs: Paths that it writes, likewise.
        params: Dotted parameters that it reads.
        retries: How often a failed run is repeated.
        timeout_s: Wall-clock limit of one run.
        tags: Free labels, for example ``ray`` or ``gpu``.
        gpus: GPUs that it asks for where it uses any.
    """

    name: str
    command: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    params: tuple[str, ...]
    retries: int
    timeout_s: float
    tags: tuple[str, ...]
    gpus: float


def read_graph(root: Path = Path()) -> nx.DiGraph:
    """Return the stage graph; an edge runs from a stage to the stages that need its outputs.

    Each node carries its ``StageNode`` under the key ``stage``.

    Raises:
        ValueError: The folder holds no readable dvc.yaml.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(os.fspath(root)) as repository:
            index = repository.index
            base = Path(repository.root_dir)
            sections = {
                file: section for section, file in section_files(base / "params.yaml").items()
            }
            nodes = {_name(stage): _node(stage, base, sections) for stage in index.stages}
            edges = [(_name(needed), _name(stage)) for stage, needed in index.graph.edges]
    except DvcException as error:
        raise ValueError(f"expected a valid dvc.yaml in {root.resolve()}: {error}") from error
    graph = nx.DiGraph()
    for name in sorted(nodes):
        graph.add_node(name, stage=nodes[name])
    graph.add_edges_from(sorted(edges))
    return graph


def _name(stage: Any) -> str:  # noqa: ANN401 - dvc.stage.Stage
    """Return the stage's address; DVC's own is relative to the working directory."""
    return str(getattr(stage, "name", None) or stage.path_in_repo)


def _node(stage: Any, base: Path, sections: Mapping[str, str]) -> StageNode:  # noqa: ANN401 - dvc.stage.Stage
    """Translate one DVC stage; ``sections`` are those with a file of their own, by its name."""
    run = dict((getattr(stage, "meta", None) or {}).get("run", {}))
    unknown = set(run) - {"retries", "timeout", "tags", "gpus"}
    if unknown:
        raise ValueError(f"{_name(stage)}: unknown keys in meta.run: {sorted(unknown)}")
    command = stage.cmd if isinstance(stage.cmd, str) else " && ".join(stage.cmd or [])
    return StageNode(
        name=_name(stage),
        command=command,
        deps=_paths(stage.deps, base),
        outs=_paths(stage.outs, base),
        params=_parameters(stage.deps, base, sections),
        retries=int(run.get("retries", 0)),
        timeout_s=float(run.get("timeout", 86400)),
        tags=tuple(run.get("tags", ())),
        gpus=float(run.get("gpus", 0)),
    )


def _parameters(deps: Iterable[Any], base: Path, sections: Mapping[str, str]) -> tuple[str, ...]:
    """The parameters among DVC dependencies, by their dotted names whatever file they stand in."""
    found = []
    for dep in deps:
        if hasattr(dep, "params"):
            file = Path(os.path.relpath(dep.fs_path, base)).as_posix()
            if file not in sections:
                found += dep.params
            elif dep.params:
                found += [f"{sections[file]}.{name}" for name in dep.params]
            else:  # the whole file
                found.append(sections[file])
    return tuple(found)


def _paths(entries: Iterable[Any], base: Path) -> tuple[str, ...]:
    """Return the local paths of DVC dependencies or outputs, relative to ``base`` if inside it.

    Links are not followed: a licensed data set may lie elsewhere, linked or by absolute path.
    """
    paths = [
        Path(os.path.abspath(entry.fs_path))  # noqa: PTH100 - resolve() follows links
        for entry in entries
        if entry.protocol in ("local", "") and not hasattr(entry, "params")
    ]
    found = {
        (path.relative_to(base) if path.is_relative_to(base) else path).as_posix() for path in paths
    }
    return tuple(sorted(found))


def select(graph: nx.DiGraph, targets: Iterable[str]) -> nx.DiGraph:
    """Return the part of the graph that the targets need; all of it without targets.

    A target is a stage name (``train@mica``) or the name of a group (``train``).

    Raises:
        ValueError: A target names nothing.
    """
    wanted: set[str] = set()
    for target in targets:
        matched = {name for name in graph if name == target or name.split("@")[0] == target}
        if not matched:
            groups = sorted({name.split("@")[0] for name in graph})
            raise ValueError(f"expected a stage of dvc.yaml, got {target!r}; groups: {groups}")
        for name in matched:
            wanted |= {name} | nx.ancestors(graph, name)
    return graph.subgraph(wanted or set(graph)).copy()
