"""Raw files that rows were read from: their hashes, and whether they are still the same."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stages.datasets.base import ItemError, inside
from stages.runtime.artifacts import sha256_file

SETTLED_NS = 2 * 10**9
"""A file changed this shortly before it was hashed may change again without another time stamp."""


class SourceFile(NamedTuple):
    """One file as it was when it was hashed.

    Attributes:
        path: Relative to the data set's folder.
        sha256: In hex; empty where it is missing or refused.
        stamp: Size, device, inode and both times, by which it is known without being read; empty
            where it must be read again.
    """

    path: str
    sha256: str
    stamp: tuple[int, ...]


class SourceFiles:
    """Hashes of the files of one data set, each file read once.

    A file whose size, inode, modification and change times are as noted counts as unchanged, as it
    does for DVC, which would not even start the stage; any other is read.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, SourceFile] = {}

    def hashed(self, path: str) -> SourceFile:
        """The file as it is now."""
        if path not in self._known:
            try:
                file = inside(self._root, path)
                stamp = _stamp(file)
                self._known[path] = SourceFile(path, sha256_file(file), _settled(stamp))
            except (ItemError, OSError):
                self._known[path] = SourceFile(path, "", ())
        return self._known[path]

    def unchanged(self, before: Sequence[SourceFile]) -> list[SourceFile] | None:
        """The files as they are now, or None where the content of one is another."""
        now = []
        for file in before:
            if file.stamp and file.path not in self._known and self._stamped(file):
                self._known[file.path] = file
            now.append(self.hashed(file.path))
            if now[-1].sha256 != file.sha256:
                return None
        return now

    def _stamped(self, file: SourceFile) -> bool:
        try:
            return _stamp(f"{self._root}/{file.path}") == file.stamp
        except OSError:
            return False


def _stamp(file: str | Path) -> tuple[int, ...]:
    found = os.stat(file)  # noqa: PTH116 - a third of the time of Path.stat, once per raw file
    return (found.st_size, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)


def _settled(stamp: tuple[int, ...]) -> tuple[int, ...]:
    return stamp if time.time_ns() - max(stamp[3:]) > SETTLED_NS else ()
