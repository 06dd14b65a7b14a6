"""Maps whose rows are computed once: found by content in a row cache, the others computed."""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from stages.runtime.compute import CHUNKS_PER_WORKER, map_ordered
from stages.runtime.params import ComputeParams
from stages.runtime.row_cache import RowCache
from stages.runtime.rows import Row, decode_row, encode_row

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


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
