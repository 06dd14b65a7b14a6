"""Files that stages write: atomic, deterministic, never pickled.

Every writer here puts the bytes in a temporary file or folder beside the destination, flushes them
to disk and renames, so that a killed process leaves either the old artefact or the new one.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

FACTS_KEY = "faceline"  # the single metadata key: with several, safetensors' byte order varies
ROW_GROUP = 256


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically, creating the parent folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(content: Any, path: Path) -> None:  # noqa: ANN401 - any JSON document
    """Write ``content`` as sorted, indented JSON; NaN and infinity are refused."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def read_json(path: Path) -> Any:  # noqa: ANN401 - any JSON document
    """Read one JSON document."""
    return json.loads(path.read_text(encoding="utf-8"))


def table_bytes(table: Any) -> bytes:  # noqa: ANN401 - pyarrow.Table, imported late
    """A ``pyarrow.Table`` as a Parquet file with a fixed codec and row group size."""
    import io

    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", compression_level=1, row_group_size=ROW_GROUP)
    return buffer.getvalue()


def write_table(table: Any, path: Path) -> None:  # noqa: ANN401 - pyarrow.Table
    """Write :func:`table_bytes` to ``path``."""
    write_bytes(path, table_bytes(table))


def write_npz(arrays: Mapping[str, Any], path: Path) -> None:
    """Write arrays as an uncompressed ``.npz``, atomically, without pickles.

    The bytes depend on the arrays alone. Those of ``numpy.savez`` also depend on Python's patch
    version, by the zip version that an entry claims to need.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            entry = io.BytesIO()
            np.lib.format.write_array(entry, np.asanyarray(arrays[name]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), entry.getvalue())
    write_bytes(path, content.getvalue())


def read_table(path: Path, columns: list[str] | None = None) -> Any:  # noqa: ANN401
    """Read a Parquet file, or every ``*.parquet`` shard of a folder in name order, as one table."""
    import pyarrow as pa

    if path.is_dir():
        shards = sorted(path.glob("*.parquet"))
        if not shards:
            raise FileNotFoundError(f"expected Parquet shards in {path}, found none; run its stage")
        return pa.concat_tables([_read_one(shard, columns) for shard in shards])
    return _read_one(path, columns)


def _read_one(path: Path, columns: list[str] | None) -> Any:  # noqa: ANN401
    """Read one file; ``pyarrow.parquet.read_table`` imports the data set machinery for it."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        table = file.read(columns)
    return table if columns is None else table.select(columns)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes ``path`` when the block succeeds, or vanishes.

    An existing ``path`` is replaced only at the end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.{os.getpid()}."))
    scratch.chmod(0o755)
    try:
        yield scratch
        if path.exists():
            shutil.rmtree(path)
        scratch.replace(path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _sweep(path: Path) -> None:
    """Remove scratch folders that killed processes left beside ``path``."""
    for left in path.parent.glob(f".{path.name}.*"):
        owner = left.name.removeprefix(f".{path.name}.").split(".")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(left, ignore_errors=True)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(content: Any) -> str:  # noqa: ANN401 - any JSON document
    """Return the SHA-256 of ``content`` in canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def shard_of(subject_id: str, shards: int) -> int:
    """Return the fixed bucket of a subject: ``sha256(subject) mod shards``."""
    return int.from_bytes(hashlib.sha256(subject_id.encode()).digest()[:8], "big") % shards


def write_safetensors(
    tensors: Mapping[str, np.ndarray], path: Path, facts: Mapping[str, Any] | None = None
) -> None:
    """Write arrays as safetensors whose bytes depend on nothing but the content.

    Args:
        tensors: Name to array; stored contiguous, in name order.
        path: Destination.
        facts: Deterministic facts (fingerprint, inputs, parameters), kept as JSON under one key.
    """
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    text = json.dumps(dict(facts or {}), sort_keys=True, allow_nan=False)
    write_bytes(path, save(arrays, metadata={FACTS_KEY: text}))


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays and the facts of a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path), read_facts(path)
    except SafetensorError as error:
        raise ValueError(f"expected a safetensors file, got {path} ({error})") from error


def read_facts(path: Path) -> dict[str, Any]:
    """Return only the facts in a safetensors header, without reading the tensors."""
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) < 8:
            raise ValueError(f"expected a safetensors file, got {len(head)} bytes in {path}")
        (length,) = struct.unpack("<Q", head)
        if length > 100_000_000:
            raise ValueError(f"expected a safetensors file, got a {length}-byte header in {path}")
        header = json.loads(file.read(length))
    text = header.get("__metadata__", {}).get(FACTS_KEY, "{}")
    return dict(json.loads(text))
