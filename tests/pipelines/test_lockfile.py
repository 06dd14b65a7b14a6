"""``dvc.lock`` cut anywhere is whole again after a repair; DVC's own locks are swept."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipelines.engine import dvc_command, environment
from pipelines.lockfile import LockKeeper, discard_rotten, sweep_path_locks

MD5 = "0123456789abcdef0123456789abcdef"


def entry(name: str, outs: int = 2) -> dict[str, object]:
    return {
        "cmd": f"run {name}",
        "deps": [{"path": "in.txt", "hash": "md5", "md5": MD5, "size": 1234}],
        "params": {"params.yaml": {"gain": 1}},
        "outs": [
            {"path": f"{name}{k}", "hash": "md5", "md5": MD5 + ".dir", "size": 17, "nfiles": 21}
            for k in range(outs)
        ],
    }


@pytest.fixture
def keeper(tmp_path: Path) -> LockKeeper:
    subprocess.run(
        [*dvc_command(), "init", "--no-scm", "-q"], cwd=tmp_path, env=environment(), check=True
    )
    stages = {name: entry(name) for name in ("a", "b", "c")}
    text = yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False)
    (tmp_path / "dvc.lock").write_text(text)
    made = LockKeeper(tmp_path)
    made.keep()
    return made


def stages(keeper: LockKeeper) -> dict[str, object]:
    return dict(yaml.safe_load(keeper.path.read_text())["stages"])


def test_a_lock_cut_at_any_line_or_within_one_is_whole_again(keeper: LockKeeper) -> None:
    text = keeper.path.read_bytes()
    whole = stages(keeper)
    ends = [i + 1 for i, byte in enumerate(text) if byte == ord("\n")][:-1]
    for cut in sorted({0, *ends, *range(5, len(text) - 1, 41)}):
        keeper.path.write_bytes(text[:cut])
        keeper.start(orderly=False)
        assert stages(keeper) == whole, f"cut after {cut} bytes"


def test_what_was_taken_out_on_purpose_stays_out(keeper: LockKeeper) -> None:
    text = yaml.safe_dump({"schema": "2.0", "stages": {"a": entry("a")}}, sort_keys=False)
    keeper.path.write_text(text)
    assert keeper.start(orderly=True) == []
    assert keeper.path.read_text() == text
    assert keeper.copy.read_text() == text


def test_a_newer_entry_is_not_replaced_by_the_copy(keeper: LockKeeper) -> None:
    newer = {**entry("b"), "cmd": "run b --again"}
    content = {"schema": "2.0", "stages": {"a": entry("a"), "b": newer}}
    keeper.path.write_text(yaml.safe_dump(content, sort_keys=False))
    assert keeper.start(orderly=False) == ["c"]
    assert stages(keeper) == {"a": entry("a"), "b": newer, "c": entry("c")}


def test_a_cut_lock_is_never_kept(keeper: LockKeeper) -> None:
    good = keeper.copy.read_bytes()
    keeper.path.write_bytes(keeper.path.read_bytes()[:-30])
    keeper.keep()
    assert keeper.copy.read_bytes() == good


def test_path_locks_of_other_programs_and_of_the_dead_are_swept(tmp_path: Path) -> None:
    folder = tmp_path / ".dvc" / "tmp"
    folder.mkdir(parents=True)
    lock = folder / "rwlock"
    assert sweep_path_locks(tmp_path) == []
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    sleeper = subprocess.Popen(["sleep", "60"])
    dvc = subprocess.Popen(["sh", "-c", "sleep 60; exit", "dvc"])
    try:
        for process in (sleeper, dvc):  # its command line is there a moment after its start
            while not Path(f"/proc/{process.pid}/cmdline").read_bytes():
                time.sleep(0.01)
        alive = {"pid": dvc.pid, "cmd": "dvc repro"}
        other = {"pid": sleeper.pid, "cmd": "dvc repro"}
        dead = {"pid": ended.pid, "cmd": "dvc repro"}
        content = {"write": {"a": other, "b": alive}, "read": {"c": [dead, alive], "d": [dead]}}
        lock.write_text(json.dumps(content))
        assert sweep_path_locks(tmp_path) == ["busy paths of ended processes"]
        assert json.loads(lock.read_text()) == {"write": {"b": alive}, "read": {"c": [alive]}}
        assert sweep_path_locks(tmp_path) == []
    finally:
        for process in (sleeper, dvc):
            process.kill()
            process.wait()
    lock.write_text('{"write": {"a": {"pi')
    assert sweep_path_locks(tmp_path) == ["the cut list of busy paths"]
    assert not lock.exists()


def test_rotten_files_are_dropped_and_sound_ones_left(keeper: LockKeeper, tmp_path: Path) -> None:
    import hashlib

    cache = tmp_path / ".dvc" / "cache" / "files" / "md5"
    texts = {"sound": b"sound", "folder/x": b"x", "folder/y": b"y"}
    hashes = {name: hashlib.md5(text).hexdigest() for name, text in texts.items()}
    rows = [{"md5": hashes[f"folder/{n}"], "relpath": n} for n in "xy"]
    listing = json.dumps(rows).encode()
    listed = hashlib.md5(listing).hexdigest() + ".dir"
    for md5, text in [(hashes[n], t) for n, t in texts.items()] + [(listed, listing)]:
        (cache / md5[:2]).mkdir(parents=True, exist_ok=True)
        (cache / md5[:2] / md5[2:]).write_bytes(text)
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text)
    outs = [{"path": "sound", "md5": hashes["sound"], "size": 5},
            {"path": "folder", "md5": listed, "size": 2, "nfiles": 2}]  # fmt: skip
    lock = {"schema": "2.0", "stages": {"s": {"cmd": "s", "outs": outs}}}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock))
    assert discard_rotten(tmp_path, "s") == []
    y = cache / hashes["folder/y"][:2] / hashes["folder/y"][2:]
    for damaged in (y, tmp_path / "folder" / "y"):
        damaged.write_bytes(b"z")
    assert discard_rotten(tmp_path, "s") == ["folder"]
    assert not os.path.lexists(tmp_path / "folder")
    assert not y.exists()
    assert (tmp_path / "sound").read_bytes() == b"sound"
