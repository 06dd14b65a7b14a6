"""Packing again: what did not change is not read, and the bytes are those of a rebuild."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from stages import pack
from stages.datasets import source_files
from stages.datasets.base import noting_files
from stages.datasets.registry import DATASETS
from stages.datasets.source_files import SourceFiles
from stages.runtime import row_cache
from stages.runtime.artifacts import shard_of
from stages.runtime.params import ComputeParams
from tests.stages.datasets import raw_trees
from tests.stages.test_pack import COMPUTE, PARAMS, digest


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Items that were read since it was last cleared."""
    items: list[str] = []
    row_of = pack.row_of

    def counted(dataset: str, root: Path, ref: Any, files: SourceFiles) -> dict[str, Any]:
        items.append(ref.item_id)
        return row_of(dataset, root, ref, files)

    monkeypatch.setattr(pack, "row_of", counted)
    return items


@pytest.fixture
def packed(tmp_path: Path):
    """Pack with one cache, into a new folder each time; ``scratch=True`` without it."""
    count = 0

    def run(dataset: str, raw: Path, *, scratch: bool = False, **changed: Any) -> dict[str, str]:
        nonlocal count
        count += 1
        out = tmp_path / f"out-{count}"
        arguments = {"p": PARAMS, "compute": COMPUTE, **changed}
        work = tmp_path / (f"work-{count}" if scratch else "work")
        pack.run(arguments.pop("p"), dataset=dataset, raw=raw, out=out, work=work, **arguments)
        return digest(out)

    return run


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust time stamps at once, as if the tree had been there for a while."""
    monkeypatch.setattr(source_files, "SETTLED_NS", -1)


def grown(raw: Path) -> None:
    """One more subject, with a scan and photographs."""
    for part in ("headspaceOnline", "headspacePngTka"):
        subjects = raw / part / "subjects"
        shutil.copytree(subjects / "00007", subjects / "00017")


@pytest.mark.parametrize("trusted", [True, False])
def test_one_more_subject_is_all_that_is_read(
    tmp_path: Path, packed: Any, read: list[str], monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    if trusted:
        settle(monkeypatch)
    raw = raw_trees.lyhm(tmp_path / "raw")
    first = packed("lyhm", raw)
    read.clear()
    assert packed("lyhm", raw) == first
    assert read == []
    grown(raw)
    more = packed("lyhm", raw)
    assert {item.split("/")[0] for item in read} == {"00017"}
    assert more == packed("lyhm", raw, scratch=True) != first
    read.clear()
    assert packed("lyhm", raw, takedown=["LYHM/00017"]) == first
    assert read == []
    for path in (tmp_path / "work").rglob("*"):
        assert path.is_dir() or b"00017/13" not in path.read_bytes()


def test_kept_shards_are_linked_and_not_read(
    tmp_path: Path, packed: Any, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the other shards of a withdrawal, whose subject's files leave the cache."""
    settle(monkeypatch)
    raw = raw_trees.lyhm(tmp_path / "raw")
    first = packed("lyhm", raw)

    def inodes(out: str) -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in (tmp_path / out).glob("*-*.parquet")}

    def kept() -> list[int]:
        return sorted(path.stat().st_ino for path in (tmp_path / "work").rglob("*.file"))

    assert kept() == sorted(inodes("out-1").values())
    monkeypatch.setattr(row_cache, "sha256_file", None)  # nothing is hashed
    monkeypatch.setattr(pack, "write_bytes", None)  # nor written
    assert packed("lyhm", raw) == first
    assert inodes("out-2") == inodes("out-1")
    monkeypatch.undo()
    settle(monkeypatch)
    packed("lyhm", raw, takedown=["LYHM/00001"])
    before, after = inodes("out-1"), inodes("out-3")
    changed = {name for name in after if before[name] != after[name]}
    assert changed == {f"scans-{shard_of('LYHM/00001', 3):05d}.parquet"} | {
        f"images-{shard_of('LYHM/00001', 3):05d}.parquet"
    }
    assert kept() == sorted(after.values())


def test_a_damaged_kept_shard_is_read_from_the_files_again(
    tmp_path: Path, packed: Any, read: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    raw = raw_trees.lyhm(tmp_path / "raw")
    first = packed("lyhm", raw)
    for file in (tmp_path / "work").rglob("*.file"):
        file.write_bytes(file.read_bytes()[:-9])
    read.clear()
    assert packed("lyhm", raw) == first
    assert len(read) == len(DATASETS["lyhm"].discover(raw))
    assert "damaged or gone" in caplog.text


def test_files_that_a_row_was_read_from_decide_and_no_time_stamp(
    tmp_path: Path, packed: Any, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch)
    raw = raw_trees.lyhm(tmp_path / "raw")
    first = packed("lyhm", raw)
    subjects = raw / "headspaceOnline" / "subjects"
    read.clear()
    marks = subjects / "00001" / "ldmks130925161610.txt"
    text = marks.read_text()
    marks.write_text("2\n" + text.split("\n", 1)[1])
    changed = packed("lyhm", raw)
    assert read == ["00001/130925161610"]
    assert changed == packed("lyhm", raw, scratch=True) != first
    marks.write_text(text)
    assert packed("lyhm", raw) == first

    read.clear()
    opened: list[Path] = []
    hashed = source_files.sha256_file
    monkeypatch.setattr(source_files, "sha256_file", lambda p: opened.append(p) or hashed(p))
    os.utime(subjects / "00002" / "130925161611.obj", (5, 5))
    assert packed("lyhm", raw) == first
    assert (read, [path.name for path in opened]) == ([], ["130925161611.obj"])
    opened.clear()
    assert packed("lyhm", raw) == first  # the new stamp was kept
    assert opened == []

    (subjects / "00007" / "130925161616.obj").unlink()
    without = packed("lyhm", raw)
    assert read == []
    assert without == packed("lyhm", raw, scratch=True) != first


def test_a_file_that_was_missing_is_looked_for_again(
    tmp_path: Path, packed: Any, read: list[str]
) -> None:
    raw = raw_trees.now(tmp_path / "raw")
    packed("now", raw)
    (there,) = raw.rglob("FaMoS_180424_03335_TA/selfie/IMG_0041.jpg")
    (there.parent / "IMG_0099.jpg").write_bytes(raw_trees.picture())
    read.clear()
    now = packed("now", raw)
    assert [item.rsplit("/", 1)[1] for item in read] == ["IMG_0099"]
    assert now == packed("now", raw, scratch=True)


def test_rows_of_several_row_groups_are_put_together_as_if_never_apart(
    tmp_path: Path, packed: Any, read: list[str]
) -> None:
    """300 rows in one shard, holes, failures and nulls among them; one more in the middle."""
    raw = raw_trees.vggface2(tmp_path / "raw")
    one = PARAMS.model_copy(update={"shards": 1})
    data = raw_trees.picture(height=8, width=8)
    for k in range(300):
        content = data if k % 7 else data[:-9]
        raw_trees.write(raw / "train" / f"n{k % 40:06d}" / f"{k:04d}_01.jpg", content)
    packed("vggface2", raw, p=one)
    raw_trees.write(raw / "train" / "n000020" / "9999_01.jpg", data)
    shutil.rmtree(raw / "train" / "n000011")
    read.clear()
    more = packed("vggface2", raw, p=one)
    assert read == ["n000020/9999_01"]
    assert more == packed("vggface2", raw, p=one, scratch=True)


OPENED: list[str] = []
LISTENING = threading.Event()


@pytest.fixture(scope="module")
def listening():
    """Names of the files that Python opens while ``LISTENING`` is set; a hook stays for good."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and LISTENING.is_set() and isinstance(arguments[0], str | Path):
            OPENED.append(str(arguments[0]))

    sys.addaudithook(hook)
    yield
    LISTENING.clear()


@pytest.mark.parametrize("dataset", sorted(DATASETS))
def test_adapters_open_nothing_but_what_is_noted(
    dataset: str, tmp_path: Path, listening: None
) -> None:
    root = raw_trees.TREES[dataset](tmp_path / "raw").resolve()
    raw_trees.write(root / "landmark_vertices.txt", "".join(f"{k % 4 + 1}\n" for k in range(68)))
    seen = 0
    for ref in DATASETS[dataset].discover(root):
        files = SourceFiles(root)
        OPENED.clear()
        with noting_files() as names:
            LISTENING.set()
            pack.row_of(dataset, root, ref, files)
            LISTENING.clear()
        inner = {Path(name) for name in OPENED if name.startswith(str(root))}
        assert inner <= {(root / name).resolve() for name in names}, ref
        assert ref.path in names
        seen += len(inner)
    assert seen > 0


def test_blendshapes_are_read_again_when_the_borrowed_polygons_change(
    tmp_path: Path, packed: Any, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = DATASETS["facewarehouse"]
    raw = raw_trees.facewarehouse(tmp_path / "raw")
    packed("facewarehouse", raw)
    read.clear()
    packed("facewarehouse", raw)
    assert read == []
    monkeypatch.setattr(type(adapter), "shared", lambda self, root, refs: "other polygons")
    packed("facewarehouse", raw)
    assert len(read) == len(adapter.discover(raw))


WORKER = """
import sys, time
from pathlib import Path
sys.path[:0] = {path!r}
from stages import pack
from tests.stages.test_pack import COMPUTE, PARAMS
row_of = pack.row_of
def slow(*arguments):
    print("reading", flush=True)
    time.sleep(0.03)
    return row_of(*arguments)
pack.row_of = slow
pack.run(PARAMS, dataset="lyhm", raw=Path({raw!r}), out=Path({out!r}), work=Path({work!r}),
    compute=COMPUTE)
"""


def test_killed_in_the_middle_and_run_again(
    tmp_path: Path, packed: Any, read: list[str], repository: Path
) -> None:
    raw = raw_trees.lyhm(tmp_path / "raw")
    items = len(DATASETS["lyhm"].discover(raw))
    out, work = tmp_path / "out-1", tmp_path / "work"
    code = WORKER.format(path=[str(repository)], raw=str(raw), out=str(out), work=str(work))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    deadline = time.monotonic() + 120
    while not list(work.glob("pack/*/*.rows")):  # the first bucket is kept
        assert process.stdout.readline()
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    again = packed("lyhm", raw)
    assert 0 < len(read) < items
    assert again == packed("lyhm", raw, scratch=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out-1",
        "out-2",
        "raw",
        *(["work", "work-2"]),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_keep_and_find_the_same_shards(
    tmp_path: Path, packed: Any, read: list[str], workers: int
) -> None:
    raw = raw_trees.lyhm(tmp_path / "raw")
    several = ComputeParams(workers=workers, ray_threshold_s=0, object_store_mb=100)
    first = packed("lyhm", raw, compute=several)
    assert packed("lyhm", raw) == first
    assert read == []  # found by one process what several kept
    grown(raw)
    assert packed("lyhm", raw, compute=several) == packed("lyhm", raw, scratch=True)


def test_damaged_shards_are_read_from_the_files_again(
    tmp_path: Path, packed: Any, read: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    raw = raw_trees.stirling(tmp_path / "raw")
    first = packed("stirling", raw)
    for segment in (tmp_path / "work").glob("pack/*/*.rows"):
        data = bytearray(segment.read_bytes())
        data[-1] ^= 1
        segment.write_bytes(data)
    read.clear()
    assert packed("stirling", raw) == first
    assert read
    assert "damaged" in caplog.text
    assert row_cache.purge(["STIRLING/F1001"], tmp_path / "work") > 0
