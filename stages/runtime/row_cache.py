"""Rows of a map stage that were computed before, found again by the content of their input.

A cache lies in ``.work/<stage>/<fingerprint>/``; the fingerprint covers the stage's code, its
parameters and its other inputs, the key of a row is the SHA-256 of the item it is computed from.
Nothing is found by name. Segments hold many rows each::

    FLROWS02 { key (32 bytes), length (u64, little-endian), SHA-256 of the tags and the row (32),
               number of tags (u32), tags (8 each), row }*

Tags say whose data a row holds, as the first bytes of the SHA-256 of each subject's id, so that a
withdrawn subject's rows are found in the caches of any code and parameters. Segments are written
beside their place and renamed, so a process killed at any moment leaves whole segments, and two
processes at once only add. Every row is verified when it is read; a damaged one is computed again,
with a warning. A row that was just computed passes through the same encoding as one that was found,
so both give the same bytes.

A whole output file can lie beside the segments as ``<its SHA-256>.file``, as long as a row carries
that hash as a tag. It is a hard link to the file that the stage wrote, and the next output folder
gets a hard link to it, or copies where there are no links. Sharing is safe because nothing here or
in DVC writes into a file: our writers rename, and DVC, which removes an output before it runs its
stage, unlinks. With ``cache.type`` ``reflink,copy`` DVC's own cache shares nothing with a workspace
file; with ``hardlink`` it would, and make it read-only, which changes neither content nor stamp.
"""

import errno
import hashlib
import logging
import os
import shutil
import struct
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stages.runtime.artifacts import sha256_file, sha256_json, write_bytes
from stages.runtime.fingerprint import hash_code, hash_input

logger = logging.getLogger(__name__)

WORK = Path(".work")
IMPORTS = "imports"
MAGIC = b"FLROWS02"
HEAD = struct.Struct("<32sQ32sI")
TAG_BYTES = 8
FLUSH_BYTES = 16 * 2**20
FLUSH_S = 5.0
MANY_SEGMENTS = 64
ABANDONED_S = 3600
NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP})


class _Place(NamedTuple):
    """Where a row lies: the segment, the offset of its record, its length, its tags in a row."""

    path: Path
    at: int
    length: int
    tags: bytes


class KeptFile(NamedTuple):
    """A file of the cache as it was when it was kept.

    Attributes:
        sha256: In hex; its name.
        stamp: Size, inode and modification time, by which it is known without being read. Not the
            change time: each link changes it.
    """

    sha256: str
    stamp: tuple[int, ...]


class RowCache:
    """The rows in one folder.

    Only the folder travels to workers; each reads the segments that are there when it starts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, _Place] | None = None
        self._counts: dict[Path, int | None] = {}
        self._spare: dict[str, list[_Place]] = {}
        self._pending: dict[str, tuple[bytes, bytes]] = {}
        self._pending_bytes = 0
        self._used: set[str] = set()
        self._flushed = time.monotonic()

    def __reduce__(self) -> tuple[type["RowCache"], tuple[Path]]:
        return RowCache, (self.folder,)

    @classmethod
    def of(
        cls,
        stage: str,
        *,
        section: Mapping[str, Any],
        inputs: Mapping[str, Path],
        work: Path = WORK,
    ) -> "RowCache":
        """The cache of a stage with these parameters and inputs.

        Args:
            stage: The stage's module is ``stages.<stage>``.
            section: Plain parameters that decide a row; leave out those that do not.
            inputs: Files and folders that every row depends on.
            work: Folder of resumable state.

        Raises:
            FileNotFoundError: An input is missing.
        """
        code = cls(work / IMPORTS / "of-files")
        recipe = {
            "code": hash_code(f"stages.{stage}", memory=code),
            "section": dict(section),
            "inputs": {name: hash_input(path) for name, path in sorted(inputs.items())},
        }
        code.flush()
        if len(code._segments()) > MANY_SEGMENTS:
            code.forget_unused()
        return cls((work / stage / sha256_json(recipe)[:16]).resolve())

    def get(self, key: str) -> bytes | None:
        """The row's bytes, or None where it is not there or damaged; counts as used."""
        self._used.add(key)
        return self.peek(key)

    def peek(self, key: str) -> bytes | None:
        """:meth:`get` that does not count as use, see :meth:`forget_unused`."""
        if key in self._pending:
            return self._pending[key][0]
        while (place := self._index().get(key)) is not None:
            row = _read(place, key)
            if row is not None:
                return row
            logger.warning("a row in %s is damaged or gone", place.path)
            spare = self._spare.get(key)  # written again after it was found damaged
            if spare:
                self._index()[key] = spare.pop()
            else:
                logger.warning("it is computed again")
                del self._index()[key]
        return None

    def put(self, key: str, row: bytes, tags: Iterable[str] = ()) -> None:
        """Keep a row; it is on disk after the next :meth:`flush`, at most some seconds later.

        Args:
            key: SHA-256 in hex of what the row is computed from.
            row: Its bytes.
            tags: Ids of the subjects whose data it holds, or any other name to :meth:`find` it by.
        """
        self._used.add(key)
        self._keep(key, row, b"".join(sorted({_tag(name) for name in tags})))

    def find(self, tag: str) -> list[str]:
        """Keys of the rows that carry a tag, sorted."""
        wanted = _tag(tag)
        lying = {key: place.tags for key, place in self._index().items()}
        lying |= {key: tags for key, (_, tags) in self._pending.items()}
        return sorted(
            key for key, tags in lying.items() if wanted in tags and wanted in _split(tags)
        )

    def use(self, keys: Iterable[str]) -> None:
        """Count rows as used that a worker was asked for, see :meth:`forget_unused`."""
        self._used.update(keys)

    def keep_file(self, file: Path, sha256: str) -> KeptFile:
        """Keep a finished file; it stays while a row has its hash among the tags.

        Args:
            file: Must not be written into any more, only replaced.
            sha256: Of its content, in hex.
        """
        kept = self._file(sha256)
        _link(file, kept)
        try:
            return KeptFile(sha256, _stamp(kept))
        except FileNotFoundError:  # another process forgot it: no row has it yet
            return KeptFile(sha256, ())

    def give_file(self, kept: KeptFile, target: Path) -> KeptFile | None:
        """Put a kept file at ``target``, replacing what is there.

        A file whose stamp is as noted is not read, as DVC would not read it; any other is hashed.

        Returns:
            The file as it is now; None where it is gone or damaged, and then it is dropped.
        """
        path = self._file(kept.sha256)
        try:
            now = KeptFile(kept.sha256, _stamp(path))
            if now == kept or sha256_file(path) == kept.sha256:
                _link(path, target)
                return now
            path.unlink()
        except FileNotFoundError:
            pass
        logger.warning("%s is damaged or gone; what it cannot give is computed again", path)
        return None

    def flush(self) -> None:
        """Write what is pending as one segment."""
        self._flushed = time.monotonic()
        if not self._pending:
            return
        self._write(self._pending)
        self._pending, self._pending_bytes = {}, 0

    def forget_unused(self) -> int:
        """Forget every row that this object was neither asked for nor given.

        So a withdrawn item leaves nothing here. Many small segments become few.

        Returns:
            The number of rows forgotten.
        """
        return self._forget(lambda key, _: key not in self._used)

    def forget_tagged(self, tags: Iterable[str]) -> int:
        """Forget every row that carries one of the tags, and segments that cannot be read.

        Returns:
            The number of rows forgotten.
        """
        gone = {_tag(name) for name in tags}
        return self._forget(lambda _, tags: not gone.isdisjoint(_split(tags)))

    def _forget(self, unwanted: Callable[[str, bytes], bool]) -> int:
        """Rewrite the segments that hold unwanted rows or damage, and small ones among many."""
        self.flush()
        self._places = None
        places = dict(self._index())
        held: dict[Path, list[str]] = {path: [] for path in self._segments()}
        for key, place in places.items():
            held.setdefault(place.path, []).append(key)
        bad = {key for key, place in places.items() if unwanted(key, place.tags)}
        crowded = len(held) > MANY_SEGMENTS
        rewritten, forgotten = [], 0
        for path, keys in held.items():
            left = [key for key in keys if key not in bad]
            small = crowded and sum(places[key].length for key in keys) < FLUSH_BYTES // 4
            if len(left) == self._counts.get(path) and not small:
                continue
            forgotten += len(keys) - len(left)
            rewritten.append(path)
            for key in left:
                row = self.peek(key)
                if row is not None:
                    self._keep(key, row, places[key].tags)
        self.flush()
        lying = {place.path for key, place in self._index().items() if key not in bad}
        for path in rewritten:
            if path not in lying:
                path.unlink(missing_ok=True)
        for scratch in self.folder.glob(".*.*.*"):  # of a process that was killed
            if time.time() - scratch.stat().st_mtime > ABANDONED_S:
                scratch.unlink(missing_ok=True)
        self._places = None
        tags = {tag for place in self._index().values() for tag in _split(place.tags)}
        for file in self.folder.glob("*.file"):
            if _tag(file.stem) not in tags:
                file.unlink(missing_ok=True)
        return forgotten

    def _file(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.file"

    def _keep(self, key: str, row: bytes, tags: bytes) -> None:
        self._pending[key] = (row, tags)
        self._pending_bytes += len(row)
        if self._pending_bytes > FLUSH_BYTES or time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def _write(self, rows: Mapping[str, tuple[bytes, bytes]]) -> None:
        parts, at = [MAGIC], len(MAGIC)
        name = hashlib.sha256()
        lying = {}
        for key in sorted(rows):
            row, tags = rows[key]
            count = len(tags) // TAG_BYTES
            head = HEAD.pack(bytes.fromhex(key), len(row), _digest(tags, row), count)
            parts += [head, tags, row]
            name.update(head)  # holds the hash of the rest
            lying[key] = (at, len(row), tags)
            at += HEAD.size + len(tags) + len(row)
        path = self.folder / f"{name.hexdigest()[:32]}.rows"
        write_bytes(path, b"".join(parts))
        self._index().update({key: _Place(path, *where) for key, where in lying.items()})
        self._counts[path] = len(lying)

    def _segments(self) -> list[Path]:
        return sorted(self.folder.glob("*.rows"))

    def _index(self) -> dict[str, _Place]:
        """Where each row lies; read once."""
        if self._places is None:
            self._places, self._counts, self._spare = {}, {}, {}
            for path in self._segments():
                found, whole = _records(path)
                for key in found.keys() & self._places.keys():
                    self._spare.setdefault(key, []).append(self._places[key])
                self._places |= found
                self._counts[path] = len(found) if whole else None
        return self._places


def collect(work: Path = WORK, *, max_age_days: float) -> list[Path]:
    """Remove the row caches, of any stage, that were not used for so long.

    Returns:
        The folders removed.
    """
    oldest = time.time() - 86400 * max_age_days
    gone = [folder for folder in _caches(work) if folder.stat().st_mtime < oldest]
    for folder in gone:
        shutil.rmtree(folder, ignore_errors=True)
    return gone


def purge(subjects: Collection[str], work: Path = WORK) -> int:
    """Remove the rows of withdrawn subjects from every row cache, whatever code it belongs to.

    Args:
        subjects: Ids as the packed tables name them.
        work: Folder of resumable state.

    Returns:
        The number of rows removed.
    """
    if not subjects:
        return 0
    return sum(RowCache(folder).forget_tagged(subjects) for folder in _caches(work))


def _caches(work: Path) -> list[Path]:
    """Folders of row caches, of any stage and fingerprint."""
    return sorted({file.parent for form in ("rows", "file") for file in work.glob(f"*/*/*.{form}")})


def _link(source: Path, target: Path) -> None:
    """``target`` becomes the same file as ``source``, or a copy where links are not possible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:  # another process kept the same content meanwhile
        pass
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        write_bytes(target, source.read_bytes())


def _stamp(file: Path) -> tuple[int, ...]:
    found = file.stat()
    return (found.st_size, found.st_ino, found.st_mtime_ns)


def _tag(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:TAG_BYTES]


def _split(tags: bytes) -> set[bytes]:
    return {tags[at : at + TAG_BYTES] for at in range(0, len(tags), TAG_BYTES)}


def _digest(tags: bytes, row: bytes) -> bytes:
    digest = hashlib.sha256(tags)
    digest.update(row)
    return digest.digest()


def _read(place: _Place, key: str) -> bytes | None:
    """The row at a place; None where it is damaged, gone or another."""
    try:
        with place.path.open("rb") as file:
            file.seek(place.at)
            stored, _, digest, _ = HEAD.unpack(file.read(HEAD.size))
            tags, row = file.read(len(place.tags)), file.read(place.length)
    except (FileNotFoundError, struct.error):
        return None
    return row if stored.hex() == key and _digest(tags, row) == digest else None


def _records(path: Path) -> tuple[dict[str, _Place], bool]:
    """Every whole record by key, and whether the segment is undamaged; the rest is left out."""
    found = {}
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            at = len(MAGIC)
            whole = file.read(at) == MAGIC
            while whole and at < size:
                head = file.read(HEAD.size)
                whole = len(head) == HEAD.size
                if whole:
                    key, length, _, count = HEAD.unpack(head)
                    end = at + HEAD.size + TAG_BYTES * count + length
                    whole = end <= size
                if whole:
                    tags = file.read(TAG_BYTES * count)
                    found[key.hex()] = _Place(path, at, length, tags)
                    file.seek(end)
                    at = end
    except FileNotFoundError:  # another process has rewritten it
        return {}, True
    if not whole:
        logger.warning("%s is damaged; what it cannot give is computed again", path)
    return found, whole
