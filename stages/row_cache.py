"""Rows of a map stage that were computed before, found again by the content of their input.

A cache lies in ``.work/<stage>/<fingerprint>/``; the fingerprint covers the stage's code, its
parameters and its other inputs, the key of a row is the SHA-256 of the item it is computed from.
Nothing is found by name. Segments hold many rows each::

    FLROWS01 { key (32 bytes), length (u64, little-endian), SHA-256 of the row (32), row }*

They are written beside their place and renamed, so a process killed at any moment leaves whole
segments, and two processes at once only add. Every row is verified when it is read; a damaged one
is computed again, with a warning. A row that was just computed passes through the same encoding as
one that was found, so both give the same bytes.
"""

import hashlib
import itertools
import json
import logging
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from stages.artifacts import sha256_file, sha256_json, write_bytes
from stages.compute import CHUNKS_PER_WORKER, map_ordered
from stages.fingerprint import hash_code, hash_input
from stages.params import ComputeParams

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Row = dict[str, Any]

WORK = Path(".work")
MAGIC = b"FLROWS01"
HEAD = struct.Struct("<32sQ32s")
ARRAY, BYTES = "array", "bytes"
FLUSH_BYTES = 16 * 2**20
FLUSH_S = 5.0
MANY_SEGMENTS = 64
ABANDONED_S = 3600


class RowCache:
    """The rows in one folder.

    Only the folder travels to workers; each reads the segments that are there when it starts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, tuple[Path, int, int]] | None = None
        self._pending: dict[str, bytes] = {}
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
        recipe = {
            "code": hash_code(f"stages.{stage}"),
            "section": dict(section),
            "inputs": {name: hash_input(path) for name, path in sorted(inputs.items())},
        }
        return cls((work / stage / sha256_json(recipe)[:16]).resolve())

    def get(self, key: str) -> bytes | None:
        """The row's bytes, or None where it is not there or damaged."""
        self._used.add(key)
        if key in self._pending:
            return self._pending[key]
        place = self._index().get(key)
        if place is None:
            return None
        path, offset, length = place
        try:
            with path.open("rb") as file:
                file.seek(offset)
                stored, _, digest = HEAD.unpack(file.read(HEAD.size))
                row = file.read(length)
        except (FileNotFoundError, struct.error):
            stored, digest, row = b"", b"", b""
        if stored.hex() == key and hashlib.sha256(row).digest() == digest:
            return row
        logger.warning("a row in %s is damaged or gone; it is computed again", path)
        self._index().pop(key, None)
        return None

    def put(self, key: str, row: bytes) -> None:
        """Keep a row; it is on disk after the next :meth:`flush`, at most some seconds later."""
        self._used.add(key)
        self._pending[key] = row
        self._pending_bytes += len(row)
        if self._pending_bytes > FLUSH_BYTES or time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

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
        self.flush()
        self._places = None
        segments = self._segments()
        held: dict[Path, list[str]] = {path: [] for path in segments}
        for key, (path, _, _) in self._index().items():
            held.setdefault(path, []).append(key)
        crowded = len(segments) > MANY_SEGMENTS
        rewritten, forgotten = [], 0
        for path in segments:
            keys = held[path]
            left = [key for key in keys if key in self._used]
            small = crowded and sum(self._index()[key][2] for key in keys) < FLUSH_BYTES // 4
            if len(left) == len(_records(path)) and not small:
                continue
            forgotten += len(keys) - len(left)
            rewritten.append(path)
            for key in left:
                row = self.get(key)
                if row is not None:
                    self.put(key, row)
        self.flush()
        lying = {place[0] for key, place in self._index().items() if key in self._used}
        for path in rewritten:
            if path not in lying:
                path.unlink(missing_ok=True)
        for scratch in self.folder.glob(".*.rows.*"):  # of a process that was killed
            if time.time() - scratch.stat().st_mtime > ABANDONED_S:
                scratch.unlink(missing_ok=True)
        self._places = None
        return forgotten

    def _write(self, rows: Mapping[str, bytes]) -> None:
        parts, at = [MAGIC], len(MAGIC)
        places = {}
        for key in sorted(rows):
            row = rows[key]
            parts += [HEAD.pack(bytes.fromhex(key), len(row), hashlib.sha256(row).digest()), row]
            places[key] = (at, len(row))
            at += HEAD.size + len(row)
        data = b"".join(parts)
        path = self.folder / f"{hashlib.sha256(data).hexdigest()[:32]}.rows"
        write_bytes(path, data)
        self._index().update({key: (path, *place) for key, place in places.items()})

    def _segments(self) -> list[Path]:
        return sorted(self.folder.glob("*.rows"))

    def _index(self) -> dict[str, tuple[Path, int, int]]:
        """Where each row lies; read once."""
        if self._places is None:
            self._places = {}
            for path in self._segments():
                self._places |= {key: (path, *place) for key, place in _records(path)}
        return self._places


def cached_map(
    function: Callable[[Sequence[Item]], Iterable[Row]],
    items: Sequence[Item],
    *,
    keys: Sequence[str],
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
        cache: Where rows are kept.
        compute: Worker count and the threshold above which Ray is used.
        seconds_per_item: Rough estimate, only used for that choice.
        label: What the items are, for the log.

    Raises:
        ValueError: There is not one key per item, or not one row.
    """
    if len(keys) != len(items):
        raise ValueError(f"expected a key per item, got {len(keys)} keys of {len(items)} items")
    if cache.folder.is_dir():
        os.utime(cache.folder)  # for collect()
    rows = {key: row for key in dict.fromkeys(keys) if (row := cache.get(key)) is not None}
    # Two items of equal content are computed once.
    todo = {key: item for key, item in zip(keys, items, strict=True) if key not in rows}
    logger.info("%s: %d of %d rows known", label, len(items) - len(todo), len(items))
    if todo:
        pairs = list(todo.items())
        batches = min(len(pairs), CHUNKS_PER_WORKER * compute.workers if compute.workers > 1 else 1)
        bounds = np.linspace(0, len(pairs), batches + 1).astype(int)
        found = map_ordered(
            _Filling(function, cache),
            [pairs[a:b] for a, b in itertools.pairwise(bounds)],
            compute=compute,
            seconds_per_item=seconds_per_item * len(pairs) / batches,
            label=label,
        )
        rows |= {key: row for batch in found for key, row in batch}
    return [decode_row(rows[key]) for key in keys]


class _Filling:
    """Computes a batch and leaves its rows in the cache as they come."""

    def __init__(self, function: Callable[[Sequence[Any]], Iterable[Row]], cache: RowCache) -> None:
        self.function = function
        self.cache = cache

    def __call__(self, pairs: Sequence[tuple[str, Any]]) -> list[tuple[str, bytes]]:
        out = []
        try:
            results = self.function([item for _, item in pairs])
            for (key, _), row in zip(pairs, results, strict=True):
                out.append((key, encode_row(row)))
                self.cache.put(*out[-1])
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
            content = np.ascontiguousarray(values.to_numpy(zero_copy_only=False)).tobytes()
        else:
            value = scalar.as_py()
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
        digest.update(struct.pack("<Q", len(content)))
        digest.update(content)
    return digest.hexdigest()


def keys_of_shard(shard: Path, cache: RowCache, *, rows_at_once: int) -> list[str]:
    """:func:`key_of` of every row of a Parquet file, without reading a file that was read before.

    Args:
        shard: The file.
        cache: Remembers the keys by the file's hash.
        rows_at_once: How many rows are in memory together.
    """
    import pyarrow.parquet as pq

    name = sha256_json({"keys of shard": sha256_file(shard)})
    known = cache.get(name)
    if known is not None:
        return str(decode_row(known)["keys"]).split()
    keys = []
    with pq.ParquetFile(shard) as file:
        for batch in file.iter_batches(batch_size=rows_at_once):
            columns = batch.schema.names
            keys += [
                key_of({column: batch.column(column)[row] for column in columns})
                for row in range(batch.num_rows)
            ]
    cache.put(name, encode_row({"keys": " ".join(keys)}))
    return keys


def collect(work: Path = WORK, *, max_age_days: float) -> list[Path]:
    """Remove the row caches, of any stage, that were not used for so long.

    Returns:
        The folders removed.
    """
    oldest = time.time() - 86400 * max_age_days
    gone = sorted(
        folder
        for folder in {segment.parent for segment in work.glob("*/*/*.rows")}
        if folder.stat().st_mtime < oldest
    )
    for folder in gone:
        shutil.rmtree(folder, ignore_errors=True)
    return gone


def _is_numeric(kind: Any) -> bool:  # noqa: ANN401 - a pyarrow type
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _records(path: Path) -> list[tuple[str, tuple[int, int]]]:
    """Key, offset and length of every whole record; a damaged tail is left out."""
    found = []
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            at = len(MAGIC)
            whole = file.read(at) == MAGIC
            while whole and at < size:
                head = file.read(HEAD.size)
                whole = len(head) == HEAD.size
                if whole:
                    key, length, _ = HEAD.unpack(head)
                    whole = at + HEAD.size + length <= size
                if whole:
                    found.append((key.hex(), (at, length)))
                    at += HEAD.size + length
                    file.seek(at)
    except FileNotFoundError:  # another process has rewritten it
        return []
    if not whole:
        logger.warning("%s is damaged; what it cannot give is computed again", path)
    return found
