"""Stage `pack`. Reads a raw data set in its owner's layout. Writes Parquet shards.

``images-00000.parquet``, ``scans-00000.parquet``, ... hold one row per input, failed ones included
(``status``, ``reason``), sorted by id, bucketed by ``sha256(subject) mod shards``.
``subjects.parquet`` counts each subject's items, ``meta.json`` says what this is. Subjects on the
takedown list leave no trace.

Shards are kept in ``.work/pack`` with what each of their rows was read from: a shard of which no
file changed is linked into the output again, in another one only the changed items are read.
"""

import argparse
import functools
import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages.datasets.base import (
    READ_ERRORS,
    ImageRow,
    ItemError,
    ItemRef,
    ScanRow,
    attributes_json,
    noting_files,
)
from stages.datasets.problems import is_synthetic
from stages.datasets.registry import DATASETS
from stages.datasets.source_files import SourceFile, SourceFiles
from stages.runtime.artifacts import (
    atomic_directory,
    read_table,
    shard_of,
    table_bytes,
    write_bytes,
    write_json,
    write_table,
)
from stages.runtime.compute import map_ordered
from stages.runtime.contracts import array_of, schema, table_of
from stages.runtime.params import ComputeParams, PackParams, load
from stages.runtime.row_cache import WORK, KeptFile, RowCache

logger = logging.getLogger(__name__)

_TABLE = {"image": "images", "scan": "scans"}
Outcome = tuple[str, str, str, str, str]


class PackError(RuntimeError):
    """Too much of a data set is unreadable."""


class KeptRow(NamedTuple):
    """What a row of a kept shard came from.

    Attributes:
        ref: The item's reference as JSON.
        sources: Every file that its adapter asked for.
        status: Of the row.
        reason: Of the row.
        sha256: Of the item's main file.
    """

    ref: str
    sources: list[SourceFile]
    status: str
    reason: str
    sha256: str


def row_of(dataset: str, root: Path, ref: ItemRef, files: SourceFiles) -> dict[str, Any]:
    """Read one item as a row of its table; what cannot be read becomes a failed row."""
    row: dict[str, Any] = {
        "item_id": ref.item_id,
        "subject_id": ref.subject_id,
        "status": "ok",
        "reason": "",
        "source_path": _text(ref.path),
        "source_sha256": "",
        "split": ref.split,
        "attributes": attributes_json(ref.attributes),
    }
    if ref.kind == "image":
        row["landmark_order"] = ""
    else:
        row |= {"landmark_order": "", "unit": DATASETS[dataset].unit, "neutral": False}
        row["capped"] = False
    try:
        row["source_sha256"] = files.hashed(ref.path).sha256
        content = DATASETS[dataset].read(root, ref)
        row |= _image_columns(content) if isinstance(content, ImageRow) else _scan_columns(content)
        row["attributes"] = attributes_json({**ref.attributes, **content.attributes})
    except READ_ERRORS as error:
        row |= {"status": "failed", "reason": _reason(error, root)}
    return row


def _reason(error: BaseException, root: Path) -> str:
    """One line that names files relative to the data set, so that it is the same anywhere."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}"
    elif isinstance(error, KeyError | IndexError | TypeError):
        text = f"{type(error).__name__}: {text}"
    for prefix in (f"{root.resolve()}/", f"{root}/"):
        text = text.replace(prefix, "")
    return _text(" ".join(text.split()))


def _text(name: str) -> str:
    """``name`` as valid UTF-8: file names may hold any bytes."""
    return name.encode("utf-8", "backslashreplace").decode()


def _flat(values: Any, dtype: str) -> Any:  # noqa: ANN401 - arrays or None
    """An array as one flat list column, None kept."""
    return None if values is None else values.astype(dtype).ravel()


def _image_columns(content: ImageRow) -> dict[str, Any]:
    return {
        "image": content.image,
        "height_px": content.height_px,
        "width_px": content.width_px,
        "landmarks_px": _flat(content.landmarks_px, "f4"),
        "landmark_order": content.landmark_order,
        "box_px": _flat(content.box_px, "f4"),
        "shape_para": _flat(content.shape_para, "f8"),
        "exp_para": _flat(content.exp_para, "f8"),
        "pose_para": _flat(content.pose_para, "f8"),
    }


def _scan_columns(content: ScanRow) -> dict[str, Any]:
    return {
        "vertices": _flat(content.vertices, "f4"),
        "faces": _flat(content.faces, "i4"),
        "colors": _flat(content.colors, "u1"),
        "unit": content.unit,
        "landmarks": _flat(content.landmarks, "f4"),
        "landmark_order": content.landmark_order,
        "neutral": content.neutral,
        "capped": content.capped,
    }


def pack_shard(
    item: tuple[int, tuple[ItemRef, ...]], *, dataset: str, root: Path, out: Path, cache: RowCache
) -> tuple[list[Outcome], list[str]]:
    """Write the tables of one bucket, and read those of its items that are not kept from before.

    Returns:
        (item id, subject id, kind, status, source SHA-256) of each item, and the keys of the shards
        in the cache.
    """
    bucket, refs = item
    by_kind: dict[str, list[ItemRef]] = defaultdict(list)
    for ref in refs:
        by_kind[ref.kind].append(ref)
    files = SourceFiles(root)
    outcomes: list[Outcome] = []
    keys = []
    for kind, wanted in by_kind.items():
        name = f"{_TABLE[kind]}-{bucket:05d}.parquet"
        rows, key = _write_table(out / name, wanted, dataset, root, files=files, cache=cache)
        keys.append(key)
        for ref, row in zip(wanted, rows, strict=True):
            if row.status == "failed":
                logger.warning("%s failed: %s", ref.item_id, row.reason)
            outcomes.append((ref.item_id, ref.subject_id, kind, row.status, row.sha256))
    cache.flush()
    return outcomes, keys


def _write_table(
    target: Path,
    refs: Sequence[ItemRef],
    dataset: str,
    root: Path,
    *,
    files: SourceFiles,
    cache: RowCache,
) -> tuple[list[KeptRow], str]:
    """Write the Parquet file of some items; what its rows came from, and its key in the cache."""
    import pyarrow as pa

    wanted = [
        json.dumps({name: getattr(ref, name) for name in ItemRef.__slots__}, sort_keys=True)
        for ref in refs
    ]
    rows: dict[str, KeptRow] = {}
    places: dict[str, int] = {}
    tables: list[Any] = []
    height = 0
    for key in cache.find(target.name):
        shard = cache.peek(key)
        if shard is None:
            continue
        kept, before = _kept(shard)
        valid = _still_valid(before, set(wanted) - rows.keys(), files)
        now = cache.give_file(kept, target) if valid else None
        if now is None:
            continue
        renewed = list(valid.values())
        if list(valid) == wanted and len(before) == len(wanted):
            if (now, renewed) != (kept, before):  # same content, other time stamps
                key = _keep(target.name, renewed, now, cache, refs)
            return renewed, key
        table = read_table(target)
        tables.append(pa.Table.from_arrays(table.columns, schema=schema(_TABLE[refs[0].kind])))
        places |= {row.ref: height + at for at, row in enumerate(before) if row.ref in valid}
        height += table.num_rows
        rows |= valid
    fresh: list[dict[str, Any]] = []
    for ref, text in zip(refs, wanted, strict=True):
        if text not in rows:
            with noting_files() as names:
                row = row_of(dataset, root, ref, files)
            sources = [files.hashed(path) for path in dict.fromkeys(names)]
            rows[text] = KeptRow(text, sources, row["status"], row["reason"], row["source_sha256"])
            places[text] = height + len(fresh)
            fresh.append(row)
    if fresh:
        tables.append(table_of(fresh, _TABLE[refs[0].kind]))
    table = pa.concat_tables(tables)
    if len(fresh) < len(wanted):
        table = table.take(array_of([places[text] for text in wanted], pa.int32()))
    data = table_bytes(table.combine_chunks())
    write_bytes(target, data)
    file = cache.keep_file(target, hashlib.sha256(data).hexdigest())
    ordered = [rows[text] for text in wanted]
    return ordered, _keep(target.name, ordered, file, cache, refs)


def _still_valid(
    before: Sequence[KeptRow], wanted: set[str], files: SourceFiles
) -> dict[str, KeptRow]:
    """Those of the wanted rows whose files did not change, by reference."""
    valid = {}
    for row in before:
        sources = files.unchanged(row.sources) if row.ref in wanted else None
        if sources is not None:
            valid[row.ref] = row._replace(sources=sources)
    return valid


def _kept(shard: bytes) -> tuple[KeptFile, list[KeptRow]]:
    """What :func:`_keep` kept."""
    (name, stamp), rows = json.loads(shard)
    return KeptFile(name, tuple(stamp)), [
        KeptRow(ref, [SourceFile(path, sha, tuple(stamp)) for path, sha, stamp in sources], *rest)
        for ref, sources, *rest in rows
    ]


def _keep(
    name: str, rows: Sequence[KeptRow], file: KeptFile, cache: RowCache, refs: Sequence[ItemRef]
) -> str:
    """Keep a shard for later runs; returns its key."""
    shard = json.dumps([file, rows]).encode()
    key = hashlib.sha256(shard).hexdigest()
    cache.put(key, shard, [name, file.sha256, *(ref.subject_id for ref in refs)])
    return key


def _summary(outcomes: Sequence[Outcome], shards: int) -> list[dict[str, Any]]:
    """Rows of ``subjects.parquet``."""
    items = Counter(subject for _, subject, _, _, _ in outcomes)
    failed = Counter(subject for _, subject, _, status, _ in outcomes if status == "failed")
    return [
        {
            "subject_id": subject,
            "items": items[subject],
            "failed": failed[subject],
            "shard": shard_of(subject, shards),
        }
        for subject in sorted(items)
    ]


def run(
    p: PackParams,
    *,
    dataset: str,
    raw: Path,
    out: Path,
    takedown: Sequence[str] = (),
    compute: ComputeParams,
    work: Path = WORK,
) -> None:
    """Pack one data set into ``out``, whole or not at all.

    Args:
        p: The stage's parameters.
        dataset: Key in ``stages.datasets.registry``.
        raw: Folder in the owner's layout.
        out: Destination folder.
        takedown: Subject ids to leave out.
        compute: How the work is spread.
        work: Folder of the shards of earlier runs.

    Raises:
        FileNotFoundError: The folder has not the owner's layout.
        PackError: More than the allowed fraction of items is unreadable.
    """
    adapter = DATASETS[dataset]
    problems = [problem for problem in adapter.validate(raw) if problem.required]
    if problems:
        listing = "\n".join(f"  {problem}" for problem in problems)
        raise FileNotFoundError(
            f"{adapter.title}: set datasets.{dataset}.root in params.yaml to your copy "
            f"({adapter.homepage}). Missing:\n{listing}"
        )
    raw = raw.resolve()  # workers may run in another folder
    withdrawn = set(takedown)
    found = adapter.discover(raw)
    own = {subject for subject in withdrawn if subject.split("/")[0] == adapter.prefix}
    for subject in sorted(own - {ref.subject_id for ref in found}):
        logger.warning("takedown: %s is not in %s; check the spelling", subject, raw)
    refs = [ref for ref in found if ref.subject_id not in withdrawn]
    buckets: dict[int, list[ItemRef]] = defaultdict(list)
    for ref in refs:
        buckets[shard_of(ref.subject_id, p.shards)].append(ref)
    tasks = [(bucket, tuple(buckets[bucket])) for bucket in sorted(buckets)]
    deciding = {"dataset": dataset, "shards": p.shards, "shared": adapter.shared(raw, refs)}
    known = RowCache.of("pack", section=deciding, inputs={}, work=work)
    cost = {"image": p.seconds_per_image, "scan": p.seconds_per_scan}
    with atomic_directory(out) as scratch:
        step = functools.partial(
            pack_shard, dataset=dataset, root=raw, out=scratch.resolve(), cache=known
        )
        results = map_ordered(
            step,
            tasks,
            compute=compute,
            seconds_per_item=sum(cost[ref.kind] for ref in refs) / max(len(tasks), 1),
            label=f"pack {dataset}",
        )
        outcomes = sorted(outcome for result, _ in results for outcome in result)
        known.use(key for _, keys in results for key in keys)
        known.forget_unused()
        _check(p, dataset, outcomes)
        write_table(
            table_of(_summary(outcomes, p.shards), "subjects"), scratch / "subjects.parquet"
        )
        write_json(_meta(dataset, raw, p, outcomes), scratch / "meta.json")
    logger.info(
        "%s: %d items of %d subjects", dataset, len(refs), len({r.subject_id for r in refs})
    )


def _check(p: PackParams, dataset: str, outcomes: Sequence[Outcome]) -> None:
    failed = [outcome[0] for outcome in outcomes if outcome[3] == "failed"]
    if not outcomes:
        raise PackError(
            f"{dataset}: no item is left to pack; check its folder and the takedown list"
        )
    if len(failed) > p.max_failed_fraction * len(outcomes):
        raise PackError(
            f"{dataset}: {len(failed)} of {len(outcomes)} items are unreadable, more than "
            f"pack.max_failed_fraction {p.max_failed_fraction:g}; the first are {failed[:3]}. See "
            "the warnings above for the reasons"
        )


def _meta(dataset: str, raw: Path, p: PackParams, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    adapter = DATASETS[dataset]
    kinds = Counter(kind for _, _, kind, _, _ in outcomes)
    failed = Counter(kind for _, _, kind, status, _ in outcomes if status == "failed")
    digest = hashlib.sha256(
        "".join(f"{item} {sha}\n" for item, _, _, _, sha in outcomes).encode()
    ).hexdigest()
    return {
        "dataset": dataset,
        "title": adapter.title,
        "synthetic": is_synthetic(raw),
        "licence": adapter.licence,
        "homepage": adapter.homepage,
        "unit": adapter.unit,
        "shards": p.shards,
        "items": dict(kinds),
        "failed": dict(failed),
        "subjects": len({outcome[1] for outcome in outcomes}),
        "sources_sha256": digest,
    }


def main() -> None:
    """Command line: names and paths only."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--dataset", required=True, choices=sorted(DATASETS))
    parser.add_argument("--raw", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()

    from stages.runtime.process import begin

    begin("pack")
    params = load()
    try:
        run(
            params.pack,
            dataset=arguments.dataset,
            raw=arguments.raw,
            out=arguments.out,
            takedown=params.takedown,
            compute=params.compute,
        )
    except (PackError, ItemError, FileNotFoundError) as error:
        raise SystemExit(f"pack: {error}") from error


if __name__ == "__main__":
    from stages.pack import main as imported_main  # Ray workers find it by name

    imported_main()
