"""The row cache: hits equal misses, damage is mended, and nothing is found by mistake."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.runtime import fingerprint, row_cache
from stages.runtime.artifacts import write_bytes, write_table
from stages.runtime.cached_map import cached_each, cached_map
from stages.runtime.params import ComputeParams
from stages.runtime.row_cache import RowCache
from stages.runtime.rows import decode_row, encode_row, key_of, keys_of_shard, read_rows

LOCAL = ComputeParams(workers=1, ray_threshold_s=1e9, object_store_mb=100)
CALLS: list[str] = []


def squares(items: Sequence[str]) -> Iterator[dict]:
    """A row per item, and a note that it was computed."""
    for item in items:
        CALLS.append(item)
        draw = np.random.default_rng(int(digest(item)[:8], 16))
        yield {"item_id": item, "values": draw.normal(size=5).astype(np.float32), "none": None}


def digest(item: str) -> str:
    return sha256(item.encode()).hexdigest()


def ask(items: Sequence[str], folder: Path, compute: ComputeParams = LOCAL) -> list[bytes]:
    """Rows through a cache that knows only what lies on disk, as bytes."""
    rows = cached_map(
        squares,
        items,
        keys=[digest(item) for item in items],
        subjects=[[item] for item in items],
        cache=RowCache(folder),
        compute=compute,
        seconds_per_item=1,
        label="test",
    )
    return [encode_row(row) for row in rows]


def scratch(items: Sequence[str]) -> list[bytes]:
    """The same from scratch, without any cache."""
    return [encode_row(row) for row in squares(items)]


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.binary(max_size=50),
)
dtypes = st.sampled_from(["<f2", "<f4", ">f8", "<i4", "|u1", "|b1"])


@given(
    st.dictionaries(st.text(max_size=5), values, max_size=5),
    st.dictionaries(st.text(max_size=5), st.tuples(dtypes, st.integers(0, 4)), max_size=3),
)
def test_rows_survive_their_encoding(plain, kinds) -> None:
    arrays = {
        f"a{name}": np.arange(2 * n).reshape(n, 2).astype(k) for name, (k, n) in kinds.items()
    }
    row = {f"p{name}": value for name, value in plain.items()} | arrays
    data = encode_row(row)
    found = decode_row(data)
    assert set(found) == set(row)
    for name, value in row.items():
        if isinstance(value, np.ndarray):
            assert found[name].dtype == value.dtype.newbyteorder("<")
            np.testing.assert_array_equal(found[name], value)
        else:
            assert type(found[name]) is type(value)
            assert found[name] == value
    assert encode_row(found) == data
    assert encode_row(dict(reversed(row.items()))) == data


def test_arrays_keep_nan_and_their_bits() -> None:
    array = np.array([np.nan, -0.0, np.inf, 1 / 3], np.float32)
    assert decode_row(encode_row({"a": array}))["a"].tobytes() == array.tobytes()


def test_what_cannot_be_kept_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode_row({"a": float("nan")})
    with pytest.raises(TypeError, match="column a: expected a number"):
        encode_row({"a": object()})
    with pytest.raises(TypeError, match="expected numbers, got an array of object"):
        encode_row({"a": np.array([object()])})


names = st.lists(st.sampled_from([f"s{i}" for i in range(12)]), max_size=12)


@settings(max_examples=40, deadline=None)
@given(rounds=st.lists(names, min_size=1, max_size=4))
def test_any_mixture_of_hits_and_misses_gives_the_bytes_of_a_rebuild(
    tmp_path_factory, rounds
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    seen: set[str] = set()
    for items in rounds:
        CALLS.clear()
        found = ask(items, folder)
        assert sorted(CALLS) == sorted(set(items) - seen)  # each once, known ones never
        assert found == scratch(items)
        seen |= set(items)


def test_few_files_hold_many_rows(tmp_path) -> None:
    items = [f"i{k}" for k in range(500)]
    ask(items, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    ask([*items, "one more"], tmp_path)
    assert CALLS[-1] == "one more"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign", "swap", "head"])
def test_damage_is_computed_again_with_a_warning(tmp_path, caplog, damage) -> None:
    items = [f"i{k}" for k in range(6)]
    ask(items, tmp_path)
    (segment,) = tmp_path.iterdir()
    data = bytearray(segment.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
    elif damage == "cut":
        del data[-3:]
    elif damage == "empty":
        data.clear()
    elif damage == "foreign":
        data[:8] = b"PAR1PAR1"
    elif damage == "swap":  # the row of another key, itself whole
        data[8:40], data[8 + len(data[8:]) // 6 :][:32] = bytes(32), bytes(32)
    else:  # a length beyond the file
        data[40:48] = (2**40).to_bytes(8, "little")
    segment.write_bytes(data)
    CALLS.clear()
    with caplog.at_level(logging.WARNING):
        found = ask(items, tmp_path)
    assert 1 <= len(CALLS) <= 6
    assert found == scratch(items)
    assert damage == "swap" or "computed again" in caplog.text
    CALLS.clear()
    assert ask(items, tmp_path) == found
    assert CALLS == []  # mended


def test_a_segment_that_vanishes_under_a_reader_is_computed_again(tmp_path, caplog) -> None:
    ask(["a", "b"], tmp_path)
    reader = RowCache(tmp_path)
    assert reader.get(digest("a")) is not None
    for segment in tmp_path.iterdir():
        segment.unlink()
    assert reader.get(digest("b")) is None
    assert "computed again" in caplog.text


def test_withdrawn_rows_leave_nothing_behind(tmp_path) -> None:
    items = [f"person-{k}" for k in range(5)]
    ask(items, tmp_path)
    left = items[:2] + items[3:]
    cache = RowCache(tmp_path)
    rows = cached_map(
        squares,
        left,
        keys=[digest(item) for item in left],
        subjects=[[item] for item in left],
        cache=cache,
        compute=LOCAL,
        seconds_per_item=1,
        label="test",
    )
    assert cache.forget_unused() == 1
    everything = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"person-2" not in everything
    assert all(item.encode() in everything for item in left)
    CALLS.clear()
    assert ask(left, tmp_path) == [encode_row(row) for row in rows]
    assert CALLS == []
    assert RowCache(tmp_path).forget_unused() == 4
    assert list(tmp_path.iterdir()) == []


def test_subjects_are_found_and_forgotten_under_any_code(tmp_path) -> None:
    """Also rows of several subjects, in pending rows, and segments of an older form."""
    for stage, fingerprint_ in (("pack", "a"), ("pack", "b"), ("render", "c")):
        cache = RowCache(tmp_path / stage / fingerprint_)
        cache.put(digest("1"), b"of ann", ["A/ann"])
        cache.put(digest("2"), b"of both", ["A/bob", "A/ann"])
        cache.put(digest("3"), b"of bob", ["A/bob"])
        assert cache.find("A/ann") == sorted([digest("1"), digest("2")])
        cache.flush()
        assert cache.find("A/ann") == sorted([digest("1"), digest("2")])
        assert RowCache(cache.folder).find("A/bob") == sorted([digest("2"), digest("3")])
    old = tmp_path / "pack" / "a" / "old.rows"
    old.write_bytes(b"FLROWS01 of ann")
    assert row_cache.purge([], tmp_path) == 0
    assert old.exists()
    assert row_cache.purge(["A/ann", "A/nobody"], tmp_path) == 6
    assert not old.exists()
    files = list(tmp_path.rglob("*.rows"))
    assert len(files) == 3
    assert all(b"ann" not in path.read_bytes() for path in files)
    cache = RowCache(tmp_path / "render" / "c")
    assert cache.get(digest("3")) == b"of bob"
    assert cache.get(digest("1")) is None
    assert cache.find("A/ann") == []


def test_what_is_only_looked_at_is_not_used(tmp_path) -> None:
    cache = RowCache(tmp_path)
    cache.put(digest("a"), b"1")
    cache.put(digest("b"), b"2")
    cache.flush()
    cache = RowCache(tmp_path)
    assert cache.peek(digest("a")) == b"1"
    cache.use([digest("b")])
    assert cache.forget_unused() == 1
    assert cache.peek(digest("a")) is None
    assert cache.peek(digest("b")) == b"2"


def test_tags_are_part_of_what_is_verified(tmp_path, caplog) -> None:
    cache = RowCache(tmp_path)
    cache.put(digest("a"), b"1", ["subject"])
    cache.flush()
    (segment,) = tmp_path.iterdir()
    data = bytearray(segment.read_bytes())
    data[8 + row_cache.HEAD.size] ^= 1
    segment.write_bytes(data)
    assert RowCache(tmp_path).get(digest("a")) is None
    assert "damaged" in caplog.text


def kept_file(cache: RowCache, out: Path, content: bytes, subject: str) -> row_cache.KeptFile:
    """A finished file of one subject, its row still pending."""
    write_bytes(out, content)
    kept = cache.keep_file(out, sha256(content).hexdigest())
    cache.put(digest(subject), b"row", [subject, kept.sha256])
    return kept


def test_files_are_kept_and_given_as_links(tmp_path) -> None:
    cache = RowCache(tmp_path / "cache")
    kept = kept_file(cache, tmp_path / "out-1" / "a", b"of ann", "ann")
    cache.flush()
    shutil.rmtree(tmp_path / "out-1")  # as DVC does
    (tmp_path / "b").write_bytes(b"something else")
    for target in (tmp_path / "out-2" / "a", tmp_path / "b"):
        assert RowCache(cache.folder).give_file(kept, target) == kept
        assert target.read_bytes() == b"of ann"
        assert target.stat().st_ino == kept.stamp[1]
    write_bytes(tmp_path / "b", b"replaced")  # never written into
    assert cache.give_file(kept, tmp_path / "c") == kept


@pytest.mark.parametrize("number", sorted(row_cache.NO_LINK))
def test_files_are_copied_where_links_are_not_possible(tmp_path, monkeypatch, number) -> None:
    def refuse(*_: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    cache = RowCache(tmp_path / "cache")
    kept = kept_file(cache, tmp_path / "a", b"of ann", "ann")
    assert cache.give_file(kept, tmp_path / "b") == kept
    assert (tmp_path / "b").read_bytes() == b"of ann"
    assert len({path.stat().st_ino for path in (tmp_path / "a", tmp_path / "b")}) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_damaged_files_are_dropped_and_kept_anew(tmp_path, caplog, damage) -> None:
    cache = RowCache(tmp_path / "cache")
    kept = kept_file(cache, tmp_path / "a", b"of ann", "ann")
    (file,) = cache.folder.glob("*.file")
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"of a" if damage == "cut" else b"of bnn")
        os.utime(file, ns=(kept.stamp[2] + 10**6,) * 2)  # clocks may be coarse
    assert cache.give_file(kept, tmp_path / "b") is None
    assert "damaged or gone" in caplog.text
    assert not (tmp_path / "b").exists()
    assert not file.exists()
    again = kept_file(cache, tmp_path / "a", b"of ann", "ann")
    assert cache.give_file(again, tmp_path / "b") == again
    os.utime(file, (5, 5))  # another stamp, the same content
    now = cache.give_file(again, tmp_path / "b")
    assert now is not None
    assert now != again
    assert now.sha256 == again.sha256


def test_files_go_with_their_rows(tmp_path) -> None:
    """Unused, withdrawn, without a row as after a kill; also in folders without segments."""
    cache = RowCache(tmp_path / "pack" / "a")
    for name in ("ann", "bob", "eve"):
        kept_file(cache, tmp_path / name, f"of {name}".encode(), name)
    other = RowCache(tmp_path / "pack" / "b")
    other.keep_file(tmp_path / "ann", sha256(b"of ann").hexdigest())  # killed before its row

    def left() -> list[bytes]:
        return sorted(path.read_bytes() for path in tmp_path.glob("pack/*/*.file"))

    assert cache.forget_tagged(["nobody"]) == 0
    assert left() == [b"of ann", b"of ann", b"of bob", b"of eve"]
    assert row_cache.purge(["ann"], tmp_path) == 1
    assert left() == [b"of bob", b"of eve"]
    again = RowCache(cache.folder)
    again.use([digest("eve")])
    assert again.forget_unused() == 1
    assert left() == [b"of eve"]
    for segment in cache.folder.glob("*.rows"):
        segment.write_bytes(b"FLROWS01 of eve")
    row_cache.purge(["ann"], tmp_path)
    assert left() == []


def test_a_file_that_another_process_forgets_is_missed_and_no_error(tmp_path) -> None:
    cache = RowCache(tmp_path / "cache")
    kept = kept_file(cache, tmp_path / "a", b"of ann", "ann")
    RowCache(cache.folder).forget_unused()  # the row is still pending here
    cache.flush()
    assert RowCache(cache.folder).find("ann") == [digest("ann")]
    assert cache.give_file(kept, tmp_path / "b") is None


KEEPER = """
import hashlib, sys
from pathlib import Path
sys.path.insert(0, {path!r})
from stages.runtime.artifacts import write_bytes
from stages.runtime.row_cache import RowCache
cache = RowCache(Path({folder!r}))
for k in range(200):
    content = b"content %d" % (k % 5)
    name = hashlib.sha256(content).hexdigest()
    write_bytes(Path({out!r}), content)
    kept = cache.keep_file(Path({out!r}), name)
    cache.put(name, b"row", [name])
cache.flush()
"""


def test_two_processes_keep_the_same_files(tmp_path, repository) -> None:
    folder = tmp_path / "cache"
    processes = []
    for k in range(2):
        code = KEEPER.format(path=str(repository), folder=str(folder), out=str(tmp_path / str(k)))
        processes.append(subprocess.Popen([sys.executable, "-c", code]))
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    files = {path.stem: path.read_bytes() for path in folder.glob("*.file")}
    assert files == {sha256(content).hexdigest(): content for content in files.values()}
    assert len(files) == 5


def finished(item: str, row: dict) -> tuple[str, bytes]:
    return item, row["values"].tobytes()


def test_rows_are_handed_on_item_by_item(tmp_path) -> None:
    """Known or computed, and to every item of equal content."""

    def each(items: list[str]) -> list[tuple[str, bytes]]:
        return cached_each(
            squares,
            items,
            finished,
            keys=[digest(item.lower()) for item in items],
            subjects=[[item] for item in items],
            cache=RowCache(tmp_path),
            compute=LOCAL,
            seconds_per_item=1,
            label="test",
        )

    first = each(["a", "A", "b"])
    assert [name for name, _ in first] == ["a", "A", "b"]
    assert first[0][1] == first[1][1] != first[2][1]
    CALLS.clear()
    assert each(["c", "B", "a", "A"])[1:] == [("B", first[2][1]), *first[:2]]
    assert CALLS == ["c"]
    assert RowCache(tmp_path).find("A") == [digest("a")]


def test_many_small_segments_become_few(tmp_path) -> None:
    items = [f"i{k}" for k in range(row_cache.MANY_SEGMENTS + 2)]
    for item in items:
        ask([item], tmp_path)
    assert len(list(tmp_path.iterdir())) == len(items)
    cache = RowCache(tmp_path)
    assert all(cache.get(digest(item)) for item in items)
    assert cache.forget_unused() == 0
    assert len(list(tmp_path.iterdir())) == 1
    CALLS.clear()
    ask(items, tmp_path)
    assert CALLS == []


def test_one_key_per_item_and_one_row(tmp_path) -> None:
    def call(function, keys):
        return cached_map(
            function,
            ["a", "b"],
            keys=keys,
            subjects=[["a"], ["b"]],
            cache=RowCache(tmp_path),
            compute=LOCAL,
            seconds_per_item=1,
            label="test",
        )

    with pytest.raises(ValueError, match="a key and subjects per item, got 1 keys and 2 lists"):
        call(squares, [digest("a")])
    with pytest.raises(ValueError, match="shorter"):
        call(lambda items: iter([{"x": 1}]), [digest("a"), digest("b")])


WORKER = """
import sys, time
from pathlib import Path
sys.path[:0] = {path!r}
import test_row_cache as t
from stages.runtime import cached_map, row_cache
row_cache.FLUSH_S = 0.02
slow, squares = {pause}, t.squares
def function(items):
    for row in squares(items):
        time.sleep(slow)
        print(row["item_id"], flush=True)
        yield row
items = [f"i{{k}}" for k in range({start}, {stop})]
cached_map.cached_map(function, items, keys=[t.digest(i) for i in items],
    subjects=[[i] for i in items], cache=row_cache.RowCache(Path({folder!r})), compute=t.LOCAL,
    seconds_per_item=1, label="w")
"""


def start(folder: Path, repository: Path, first: int, last: int, pause: float):
    path = [str(Path(__file__).parent), str(repository)]
    code = WORKER.format(path=path, pause=pause, start=first, stop=last, folder=str(folder))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_killed_in_the_middle_and_continued(tmp_path, repository) -> None:
    items = [f"i{k}" for k in range(40)]
    process = start(tmp_path, repository, 0, 40, 0.05)
    assert process.stdout is not None
    for _ in range(12):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    CALLS.clear()
    found = ask(items, tmp_path)
    assert 20 <= len(CALLS) <= 35  # what had been flushed was found
    assert found == scratch(items)


def test_killed_while_writing_leaves_no_half_segment(tmp_path, repository) -> None:
    """Kills at random moments of a process that writes all the time."""
    items = [f"i{k}" for k in range(300)]
    for wait in (0.0, 0.01, 0.03):
        process = start(tmp_path, repository, 0, 300, 0.0)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert ask(items, tmp_path) == scratch(items)
    for scrap in tmp_path.glob(".*"):
        os.utime(scrap, (0, 0))
    RowCache(tmp_path).forget_unused()
    assert list(tmp_path.iterdir()) == []


def test_two_processes_at_once(tmp_path, repository) -> None:
    processes = [
        start(tmp_path, repository, 0, 60, 0.005),
        start(tmp_path, repository, 20, 80, 0.005),
    ]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    CALLS.clear()
    items = [f"i{k}" for k in range(80)]
    assert ask(items, tmp_path) == [encode_row(row) for row in squares(items)]
    assert len(CALLS) == 80  # all by the comparison, none by the cache


def scalars(row: dict, kinds: dict) -> dict:
    table = pa.table({name: pa.array([value], kinds[name]) for name, value in row.items()})
    return {name: table[name][0] for name in table.schema.names}


KINDS = {
    "item_id": pa.string(),
    "subject_id": pa.string(),
    "vertices": pa.list_(pa.float32()),
    "image": pa.binary(),
    "capped": pa.bool_(),
    "texts": pa.list_(pa.string()),
}
BASE = {
    "item_id": "a",
    "subject_id": "p",
    "vertices": [1.0, 2.0],
    "image": b"x",
    "capped": True,
    "texts": ["a", "b"],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("item_id", "b"),
        ("item_id", None),
        ("item_id", ""),
        ("vertices", [1.0, 2.5]),
        ("vertices", []),
        ("vertices", None),
        ("vertices", [1.0, None]),
        ("image", b"y"),
        ("capped", False),
        ("texts", ["ab"]),
    ],
)
def test_every_column_counts(name, value) -> None:
    assert key_of(scalars(BASE | {name: value}, KINDS)) != key_of(scalars(BASE, KINDS))


def test_the_key_knows_types_and_names_but_not_the_place(tmp_path) -> None:
    key = key_of(scalars(BASE, KINDS))
    assert key_of(scalars(BASE, KINDS | {"vertices": pa.list_(pa.float64())})) != key
    renamed = {("id" if k == "item_id" else k): v for k, v in BASE.items()}
    assert key_of(scalars(renamed, KINDS | {"id": pa.string()})) != key
    other = {"item_id": "z", "subject_id": "q", "vertices": [9.0], "image": b"", "texts": []}
    other["capped"] = None
    table = pa.table({n: pa.array([other[n], BASE[n], other[n]], KINDS[n]) for n in BASE})
    write_table(table, tmp_path / "a.parquet")
    write_table(table.slice(1), tmp_path / "b.parquet")
    cache = RowCache(tmp_path / "cache")
    assert keys_of_shard(tmp_path / "a.parquet", cache, rows_at_once=2)[1] == (key, "p")
    assert keys_of_shard(tmp_path / "b.parquet", cache, rows_at_once=2)[0] == (key, "p")
    cache.flush()
    again = keys_of_shard(tmp_path / "a.parquet", RowCache(tmp_path / "cache"), rows_at_once=1)
    assert again[1].key == key
    assert len(again) == 3


def test_columns_can_be_chosen_and_rows_read_by_place(tmp_path) -> None:
    rows = [BASE | {"item_id": f"i{k}", "subject_id": f"s{k}"} for k in range(5)]
    table = pa.table({n: pa.array([row[n] for row in rows], KINDS[n]) for n in BASE})
    shard = tmp_path / "a.parquet"
    write_table(table, shard)
    cache = RowCache(tmp_path / "cache")
    some = keys_of_shard(shard, cache, rows_at_once=2, columns=["subject_id", "item_id"])
    assert some != keys_of_shard(shard, cache, rows_at_once=2)
    assert some == keys_of_shard(shard, cache, rows_at_once=5, columns=["item_id", "subject_id"])
    kinds = {name: KINDS[name] for name in ("item_id", "subject_id")}
    plain = {"item_id": "i3", "subject_id": "s3"}
    assert some[3] == (key_of(scalars(plain, kinds)), "s3")
    assert cache.find("s3") == cache.find("s0") != []
    found = read_rows([(shard, 1), (shard, 4)], rows_at_once=2, columns=["item_id"])
    assert [{n: v.as_py() for n, v in row.items()} for row in found] == [
        {"item_id": "i1"},
        {"item_id": "i4"},
    ]


@pytest.fixture
def checkout(repository, tmp_path, monkeypatch) -> Path:
    """A copy of the code that fingerprints are taken of."""
    for name in ("models", "stages"):
        shutil.copytree(repository / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pyc"))
    monkeypatch.setattr(fingerprint, "REPOSITORY", tmp_path)
    return tmp_path


def test_code_parameters_and_inputs_decide_the_folder(checkout, monkeypatch) -> None:
    (checkout / "model").mkdir()
    (checkout / "model/model.safetensors").write_bytes(b"1")

    def folder(section=None, stage="register") -> Path:
        inputs = {"model": checkout / "model"}
        return RowCache.of(stage, section=section or {"a": 1}, inputs=inputs, work=checkout).folder

    first = folder()
    assert first == folder()
    assert first.parent == (checkout / "register").resolve()
    different = {first, folder({"a": 2}), folder(stage="pack")}
    for name in ("stages/register.py", "models/geometry/nonrigid.py", "models/geometry/_bvh.py"):
        (checkout / name).write_text((checkout / name).read_text() + "\n# changed\n")
        different.add(folder())
    assert len(different) == 6
    before = folder()
    (checkout / "stages/unify.py").write_text("# changed\n")
    assert folder() == before  # no part of this stage
    (checkout / "model/model.safetensors").write_bytes(b"2")
    assert folder() != before
    with pytest.raises(FileNotFoundError, match="run the stage that writes it"):
        RowCache.of("register", section={}, inputs={"model": checkout / "none"}, work=checkout)


def test_old_caches_are_collected(tmp_path) -> None:
    for name, age in (("old", 40), ("new", 1)):
        ask(["a"], tmp_path / "register" / name)
        stamp = time.time() - 86400 * age
        os.utime(tmp_path / "register" / name, (stamp, stamp))
    (tmp_path / "train" / "old").mkdir(parents=True)
    os.utime(tmp_path / "train" / "old", (0, 0))
    assert row_cache.collect(tmp_path, max_age_days=30) == [tmp_path / "register" / "old"]
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["new", "old"]
    ask(["a"], tmp_path / "register" / "new")  # using it keeps it
    assert time.time() - (tmp_path / "register/new").stat().st_mtime < 60


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_leave_the_same_rows(tmp_path, workers) -> None:
    items = [f"i{k}" for k in range(60)]
    ask(items[:7], tmp_path)
    compute = ComputeParams(workers=workers, ray_threshold_s=0, object_store_mb=100)
    assert ask(items, tmp_path, compute) == scratch(items)
    CALLS.clear()
    ask(items, tmp_path)
    assert CALLS == []
