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
"""

import hashlib
import itertools
import json
import logging
import os
import shutil
import struct
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from stages.runtime.artifacts import sha256_file, sha256_json, write_bytes
from stages.runtime.compute import CHUNKS_PER_WORKER, map_ordered
from stages.runtime.fingerprint import hash_code, hash_input
from stages.runtime.params import ComputeParams

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
Row = dict[str, Any]

WORK = Path(".work")
IMPORTS = "imports"
MAGIC = b"FLROWS02"
HEAD = struct.Struct("<32sQ32sI")
TAG_BYTES = 8
ARRAY, BYTES = "array", "bytes"
FLUSH_BYTES = 16 * 2**20
FLUSH_S = 5.0
MANY_SEGMENTS = 64
ABANDONED_S = 3600


class _Place(NamedTuple):
    """Where a row lies: the segment, the offset of its record, its length, its tags in a row."""

    path: Path
    at: int
    length: int
    tags: bytes


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
        return sorted(key for key, tags in lying.items() if wanted in _split(tags))

    def use(self, keys: Iterable[str]) -> None:
        """Count rows as used that a worker was asked for, see :meth:`forget_unused`."""
        self._used.update(keys)

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
        for scratch in self.folder.glob(".*.rows.*"):  # of a process that was killed
            if time.time() - scratch.stat().st_mtime > ABANDONED_S:
                scratch.unlink(missing_ok=True)
        self._places = None
        return forgotten

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


def cached_map(
    function: Callable[[Sequence[Item]], Iterable[Row]],
    items: Sequence[Item],
    *,
    keys: Sequence[str],
    subjects: Sequence[Sequence[str]],
    cache: RowCache,
    compute: ComputeParams,
    seconds_per_item: float,
    label: str,
) -> list[Row]:
    """The row of every item in input order; computed only where the cache lacks it.

    Args:
        function: Top-level callable, or a ``functools.partial`` of one, that yields a row per item
            of a run of items, in order. Rows map names to None, bool, int, float, str, bytes or
            arrays, and depend on nothing but the item and what the cache's fingerprint covers.
        items: Work items; each is sent to a worker.
        keys: SHA-256 in hex of each item's content.
        subjects: Ids of the subjects whose data each item's row holds.
        cache: Where rows are kept.
        compute: Worker count and the threshold above which Ray is used.
        seconds_per_item: Rough estimate, only used for that choice.
        label: What the items are, for the log.

    Raises:
        ValueError: There is not one key and one tuple of subjects per item, or not one row.
    """
    return cached_each(
        function,
        items,
        _the_row,
        keys=keys,
        subjects=subjects,
        cache=cache,
        compute=compute,
        seconds_per_item=seconds_per_item,
        label=label,
    )


def cached_each(
    function: Callable[[Sequence[Item]], Iterable[Row]],
    items: Sequence[Item],
    finish: Callable[[Item, Row], Result],
    *,
    keys: Sequence[str],
    subjects: Sequence[Sequence[str]],
    cache: RowCache,
    compute: ComputeParams,
    seconds_per_item: float,
    label: str,
) -> list[Result]:
    """:func:`cached_map` that hands each row on at once, so that not all are in memory together.

    Args:
        function: As in :func:`cached_map`.
        items: Work items; each is sent to a worker.
        finish: Top-level callable, or a ``functools.partial`` of one: what becomes of an item and
            its row, such as a file written. Runs where the row was computed, or here.
        keys: SHA-256 in hex of each item's content.
        subjects: Ids of the subjects whose data each item's row holds.
        cache: Where rows are kept.
        compute: Worker count and the threshold above which Ray is used.
        seconds_per_item: Rough estimate, only used for that choice.
        label: What the items are, for the log.

    Returns:
        What ``finish`` returned, in input order.

    Raises:
        ValueError: There is not one key and one tuple of subjects per item, or not one row.
    """
    if not len(keys) == len(subjects) == len(items):
        raise ValueError(
            f"expected a key and subjects per item, got {len(keys)} keys and {len(subjects)} "
            f"lists of subjects of {len(items)} items"
        )
    if cache.folder.is_dir():
        os.utime(cache.folder)  # for collect()
    same: dict[str, list[int]] = {}  # items of equal content are computed once
    for at, key in enumerate(keys):
        same.setdefault(key, []).append(at)
    results: dict[int, Result] = {}
    todo = []
    for key, places in same.items():
        row = cache.get(key)
        if row is None:
            tags = sorted({name for at in places for name in subjects[at]})
            todo.append((key, tags, [items[at] for at in places]))
        else:
            results |= {at: finish(items[at], decode_row(row)) for at in places}
    logger.info("%s: %d of %d rows known", label, len(results), len(items))
    if todo:
        batches = min(len(todo), CHUNKS_PER_WORKER * compute.workers if compute.workers > 1 else 1)
        bounds = np.linspace(0, len(todo), batches + 1).astype(int)
        found = map_ordered(
            _Filling(function, finish, cache),
            [todo[a:b] for a, b in itertools.pairwise(bounds)],
            compute=compute,
            seconds_per_item=seconds_per_item * len(todo) / batches,
            label=label,
        )
        cache.use(key for key, _, _ in todo)
        done = (finished for batch in found for finished in batch)
        for (key, _, _), finished in zip(todo, done, strict=True):
            results |= dict(zip(same[key], finished, strict=True))
    return [results[at] for at in range(len(items))]


def _the_row(_: Any, row: Row) -> Row:  # noqa: ANN401 - any item
    return row


class _Filling:
    """Computes a batch, leaves its rows in the cache as they come, and finishes them."""

    def __init__(
        self,
        function: Callable[[Sequence[Any]], Iterable[Row]],
        finish: Callable[[Any, Row], Any],
        cache: RowCache,
    ) -> None:
        self.function = function
        self.finish = finish
        self.cache = cache

    def __call__(self, todo: Sequence[tuple[str, list[str], list[Any]]]) -> list[list[Any]]:
        out = []
        try:
            results = self.function([items[0] for _, _, items in todo])
            for (key, tags, items), row in zip(todo, results, strict=True):
                data = encode_row(row)
                self.cache.put(key, data, tags)
                out.append([self.finish(item, decode_row(data)) for item in items])
        finally:
            self.cache.flush()
        return out


def encode_row(row: Mapping[str, Any]) -> bytes:
    """A row as bytes: a JSON head, then the arrays. Equal rows give equal bytes.

    Raises:
        TypeError: A value is of another kind than :func:`cached_map` allows.
        ValueError: A float is NaN or infinite; use None, or an array.
    """
    head: dict[str, Any] = {}
    blobs: list[bytes] = []
    for name in sorted(row):
        value = row[name]
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in "biuf":
                raise TypeError(f"column {name}: expected numbers, got an array of {value.dtype}")
            array = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
            head[name] = {ARRAY: [array.dtype.str, list(value.shape)]}
            blobs.append(array.tobytes())
        elif isinstance(value, bytes):
            head[name] = {BYTES: len(value)}
            blobs.append(value)
        elif value is None or isinstance(value, bool | int | float | str):
            head[name] = value
        else:
            raise TypeError(
                f"column {name}: expected a number, text, bytes or an array, got {type(value)}"
            )
    text = json.dumps(head, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()
    return b"".join([struct.pack("<I", len(text)), text, *blobs])


def decode_row(data: bytes) -> Row:
    """The row of :func:`encode_row`; its arrays are read-only."""
    (length,) = struct.unpack_from("<I", data)
    at = 4 + length
    row: Row = {}
    for name, value in json.loads(data[4:at]).items():
        if isinstance(value, dict) and BYTES in value:
            row[name] = data[at : at + value[BYTES]]
            at += value[BYTES]
        elif isinstance(value, dict):
            kind, shape = np.dtype(value[ARRAY][0]), value[ARRAY][1]
            count = int(np.prod(shape))
            row[name] = np.frombuffer(data, kind, count, at).reshape(shape)
            at += count * kind.itemsize
        else:
            row[name] = value
    return row


def key_of(row: Mapping[str, Any]) -> str:
    """SHA-256 of one row of an Arrow table, given as Arrow scalars by column.

    Names, types, nulls and values count, so that no column can change unnoticed.
    """
    digest = hashlib.sha256()
    for name in sorted(row):
        scalar = row[name]
        kind = getattr(scalar.type, "value_type", None)  # what lists call their items is no matter
        kind = scalar.type if kind is None else f"list of {kind}"
        digest.update(f"{name}\0{kind}\0{int(scalar.is_valid)}\0".encode())
        if not scalar.is_valid:
            continue
        values = getattr(scalar, "values", None)
        if values is not None and values.null_count == 0 and _is_numeric(values.type):
            content = _bytes_of(values)
        else:
            value = scalar.as_py()
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
        digest.update(struct.pack("<Q", len(content)))
        digest.update(content)
    return digest.hexdigest()


def key_of_values(values: Mapping[str, Any]) -> str:
    """SHA-256 in hex of named values of the kinds that :func:`cached_map` allows in a row."""
    return hashlib.sha256(encode_row(values)).hexdigest()


class PackedKey(NamedTuple):
    """One row of a packed shard: the hash of its content, and whose it is."""

    key: str
    subject_id: str


def keys_of_shard(
    shard: Path, cache: RowCache, *, rows_at_once: int, columns: Sequence[str] | None = None
) -> list[PackedKey]:
    """:func:`key_of` of every row of a packed file, without reading a file that was read before.

    Args:
        shard: The file.
        cache: Remembers the keys by the file's hash.
        rows_at_once: How many rows are in memory together.
        columns: Those that decide a row, ``subject_id`` among them; None takes all.
    """
    import pyarrow.parquet as pq

    wanted = None if columns is None else sorted(columns)
    name = sha256_json({"keys of shard": sha256_file(shard), "columns": wanted})
    known = cache.get(name)
    if known is not None:
        return [PackedKey(*pair) for pair in json.loads(decode_row(known)["keys"])]
    keys = []
    with pq.ParquetFile(shard) as file:
        for batch in file.iter_batches(batch_size=rows_at_once, columns=wanted):
            named = {column: batch.column(column) for column in batch.schema.names}
            for at in range(batch.num_rows):
                row = {column: values[at] for column, values in named.items()}
                keys.append(PackedKey(key_of(row), str(row["subject_id"].as_py())))
    cache.put(name, encode_row({"keys": json.dumps(keys)}), {key.subject_id for key in keys})
    return keys


def read_rows(
    places: Sequence[tuple[Path, int]], *, rows_at_once: int, columns: Sequence[str] | None = None
) -> Iterator[Mapping[str, Any]]:
    """Rows of packed files as Arrow scalars by column.

    Args:
        places: Files and positions in them, in ascending order.
        rows_at_once: How many rows are in memory together.
        columns: Those to read; None reads all.
    """
    import pyarrow.parquet as pq

    for shard, group in itertools.groupby(places, key=lambda place: place[0]):
        positions = {position for _, position in group}
        first = 0
        with pq.ParquetFile(shard) as file:
            for batch in file.iter_batches(batch_size=rows_at_once, columns=columns):
                for inner in range(batch.num_rows):
                    if first + inner in positions:
                        yield {name: batch.column(name)[inner] for name in batch.schema.names}
                first += batch.num_rows
                if first > max(positions):
                    break


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
    return sorted({segment.parent for segment in work.glob("*/*/*.rows")})


def _tag(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:TAG_BYTES]


def _split(tags: bytes) -> set[bytes]:
    return {tags[at : at + TAG_BYTES] for at in range(0, len(tags), TAG_BYTES)}


def _digest(tags: bytes, row: bytes) -> bytes:
    digest = hashlib.sha256(tags)
    digest.update(row)
    return digest.digest()


def _bytes_of(values: Any) -> bytes:  # noqa: ANN401 - a pyarrow array of numbers without nulls
    """Its numbers, byte by byte; pyarrow's own way through NumPy would import pandas."""
    buffer, width = values.buffers()[1], values.type.bit_width // 8
    if buffer is None:
        return b""
    return bytes(memoryview(buffer)[values.offset * width : (values.offset + len(values)) * width])


def _is_numeric(kind: Any) -> bool:  # noqa: ANN401 - a pyarrow type
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


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
