"""What a cached row is as bytes, and which content it is found by."""

import hashlib
import itertools
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.runtime.artifacts import sha256_file, sha256_json
from stages.runtime.contracts import is_numeric
from stages.runtime.row_cache import RowCache

Row = dict[str, Any]
ARRAY, BYTES = "array", "bytes"


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
        if values is not None and values.null_count == 0 and is_numeric(values.type):
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


def numbers_of(scalar: Any) -> np.ndarray:  # noqa: ANN401 - a pyarrow list scalar
    """The numbers of an Arrow list without a Python object each; empty where it is null."""
    if not scalar.is_valid:
        return np.zeros(0)
    values = scalar.values
    if values.null_count:
        return np.asarray(values.to_numpy(zero_copy_only=False))
    return np.frombuffer(_bytes_of(values), values.type.to_pandas_dtype())


def _bytes_of(values: Any) -> bytes:  # noqa: ANN401 - a pyarrow array of numbers without nulls
    """Its numbers, byte by byte; pyarrow's own way through NumPy would import pandas."""
    buffer, width = values.buffers()[1], values.type.bit_width // 8
    if buffer is None:
        return b""
    return bytes(memoryview(buffer)[values.offset * width : (values.offset + len(values)) * width])
