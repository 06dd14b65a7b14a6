"""What is wrong with a folder of licensed files, said so that its user can act."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SYNTHETIC_LABEL = "SYNTHETIC.txt"


@dataclass(frozen=True, slots=True)
class Problem:
    """One missing or unusable file.

    Attributes:
        path: The file or folder, as looked for.
        reason: What is wrong with it.
        purpose: What it is for.
        where: Where its owner gives it.
        required: False when the pipeline runs without it, with less.
    """

    path: Path
    reason: str
    purpose: str
    where: str
    required: bool = True

    def __str__(self) -> str:
        need = "required" if self.required else "optional"
        return f"{self.path} ({need}): {self.reason}; for {self.purpose}; from {self.where}"


@dataclass(frozen=True, slots=True)
class Expected:
    """A file (or one of several) that a folder must or may hold.

    Attributes:
        names: Alternatives, any one suffices; relative to the root, globs allowed.
        purpose: What it is for.
        where: Where its owner gives it.
        required: False when the pipeline runs without it.
    """

    names: tuple[str, ...]
    purpose: str
    where: str
    required: bool = True

    def found(self, root: Path) -> Path | None:
        """The first match, in the order of the alternatives and of names."""
        for name in self.names:
            if any(mark in name for mark in "*?["):
                match = min(root.glob(name), default=None)
                if match is not None:
                    return match
            elif (root / name).exists():
                return root / name
        return None


def missing(root: Path, expected: Sequence[Expected]) -> list[Problem]:
    """The expected files that ``root`` lacks."""
    if not root.is_dir():
        return [
            Problem(root, "there is no such folder", entry.purpose, entry.where)
            for entry in expected
            if entry.required
        ][:1]
    return [
        Problem(root / entry.names[0], "missing", entry.purpose, entry.where, entry.required)
        for entry in expected
        if entry.found(root) is None
    ]


def is_synthetic(root: Path) -> bool:
    """Whether ``root`` carries the label of generated data."""
    return (root / SYNTHETIC_LABEL).is_file()
