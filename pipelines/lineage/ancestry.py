"""The ancestry of one artefact in one dvc.lock, down to raw inputs.

Only a single lock is walked: a union over history would merge runs that happened to produce equal
bytes and report ancestors that this artefact never had.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

CODE = ("models", "stages")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A path with the hash that dvc.lock recorded for it."""

    path: str
    md5: str
    size: int


@dataclass(slots=True)
class Ancestor:
    """A file, the stage that wrote it and what that stage read.

    Attributes:
        file: The artefact.
        stage: Name of the stage that wrote it; None for a raw input.
        activity: Digest over the stage's command, parameters and inputs; None for a raw input.
        parameters: The parameter values that the lock recorded.
        code: Code files and folders of the stage.
        inputs: Data that the stage read.
        outdated: The reader saw other bytes than the lock's last run of ``stage`` wrote, so what
            stands above this file is not exactly what it came from.
    """

    file: FileRecord
    stage: str | None = None
    activity: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    code: list[FileRecord] = field(default_factory=list)
    inputs: list["Ancestor"] = field(default_factory=list)
    outdated: bool = False


def read_lock(path: Path) -> dict[str, dict[str, Any]]:
    """Return the stages of a dvc.lock.

    Raises:
        FileNotFoundError: There is none; nothing was ever built here.
    """
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"expected {path}, found none: run `dvc repro` first")
    document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return dict(document.get("stages", {}))


def ancestry(target: str, stages: dict[str, dict[str, Any]]) -> Ancestor:
    """Walk from ``target``, a path inside some stage's output, to the raw inputs.

    Args:
        target: Path relative to the checkout, for example
            ``data/checkpoints/mica/model.safetensors``.
        stages: The lock's stages by name.

    Raises:
        KeyError: No stage in the lock wrote ``target``.
    """
    known: dict[str, Ancestor] = {}
    writer = _writer(target, stages)
    if writer is None:
        raise KeyError(f"expected a path that a stage of dvc.lock wrote, got {target}")
    name, record = writer
    return _walk(record, name, stages, known)


def _writer(path: str, stages: dict[str, dict[str, Any]]) -> tuple[str, FileRecord] | None:
    """Return the stage whose output is ``path`` or a folder around it."""
    wanted = PurePosixPath(path)
    for name, stage in stages.items():
        for out in stage.get("outs", ()):
            folder = PurePosixPath(out["path"])
            if folder == wanted or folder in wanted.parents:
                return name, _record(out)
    return None


def _writers_inside(path: str, stages: dict[str, dict[str, Any]]) -> list[tuple[str, FileRecord]]:
    """Return the stages whose outputs lie inside the folder ``path``."""
    folder = PurePosixPath(path)
    return [
        (name, _record(out))
        for name, stage in stages.items()
        for out in stage.get("outs", ())
        if folder in PurePosixPath(out["path"]).parents
    ]


def _record(entry: dict[str, Any]) -> FileRecord:
    return FileRecord(entry["path"], str(entry.get("md5", "")), int(entry.get("size", 0)))


def _walk(
    record: FileRecord,
    name: str | None,
    stages: dict[str, dict[str, Any]],
    known: dict[str, Ancestor],
) -> Ancestor:
    if record.path in known:
        return known[record.path]
    if name is None:
        known[record.path] = Ancestor(record)
        return known[record.path]
    stage = stages[name]
    node = Ancestor(record, name, activity_digest(stage), dict(stage.get("params", {})))
    known[record.path] = node
    once = {dep["path"]: dep for dep in stage.get("deps", ())}  # a foreach may name one twice
    for dep in once.values():
        entry = _record(dep)
        if entry.path.split("/")[0] in CODE:
            node.code.append(entry)
            continue
        writer = _writer(entry.path, stages)
        if writer is not None:
            child = _walk(entry, writer[0], stages, known)
            if entry.path == writer[1].path and entry.md5 != writer[1].md5:
                child.outdated = True
            node.inputs.append(child)
            continue
        inside = _writers_inside(entry.path, stages)
        if inside:
            node.inputs.extend(_walk(out, source, stages, known) for source, out in inside)
        else:
            node.inputs.append(_walk(entry, None, stages, known))
    return node


def activity_digest(stage: dict[str, Any]) -> str:
    """Return a digest over what a stage ran on: command, parameters, dependencies."""
    parts = {key: stage.get(key) for key in ("cmd", "params", "deps")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def as_document(node: Ancestor, seen: set[str] | None = None) -> dict[str, Any]:
    """Return the ancestry as nested JSON; a file met before is named, not repeated."""
    seen = set() if seen is None else seen
    document: dict[str, Any] = {
        "path": node.file.path,
        "md5": node.file.md5,
        "size": node.file.size,
    }
    if node.stage is None:
        return {**document, "raw": True}
    if node.file.path in seen:
        return {**document, "stage": node.stage, "see_above": True}
    seen.add(node.file.path)
    return {
        **document,
        "stage": node.stage,
        "outdated": node.outdated,
        "activity": node.activity,
        "parameters": node.parameters,
        "code": [{"path": code.path, "md5": code.md5} for code in node.code],
        "inputs": [as_document(child, seen) for child in node.inputs],
    }


def as_mermaid(node: Ancestor) -> str:
    """Return the ancestry as a Mermaid flowchart, one box per artefact."""
    lines: list[str] = ["flowchart LR"]
    numbers: dict[str, int] = {}

    def visit(current: Ancestor) -> int:
        path = current.file.path
        if path in numbers:
            return numbers[path]
        number = numbers[path] = len(numbers)
        label = current.stage or "raw input"
        lines.append(f'  n{number}["{path}<br/>{label}<br/>{current.file.md5[:8]}"]')
        for child in current.inputs:
            lines.append(f"  n{visit(child)} --> n{number}")
        return number

    visit(node)
    return "\n".join(lines)
