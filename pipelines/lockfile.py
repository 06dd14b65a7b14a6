"""``dvc.lock`` survives a killed DVC: a copy is kept, entries that were lost are put back.

DVC rewrites ``dvc.lock`` in place, so that DVC killed in the middle leaves it cut: unreadable, or
readable with stages missing. The same holds for ``.dvc/tmp/rwlock``. An entry that is put back is
never trusted blindly: DVC compares its command, parameters and hashes with the files before it
calls the stage up to date.
"""

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from stages.runtime.artifacts import write_bytes

logger = logging.getLogger(__name__)

HASH_DIGITS = 32
DVC_COMMANDS = (b"dvc", b"pipelines", b"faceline")
READS = 5
READ_PAUSE_S = 0.1


class LockKeeper:
    """Keeps ``.work/dvc.lock.good``, the newest whole ``dvc.lock``, and repairs from it.

    Args:
        root: The checkout.
    """

    def __init__(self, root: Path) -> None:
        self.path = root / "dvc.lock"
        self.copy = root / ".work" / "dvc.lock.good"
        self._root = root
        self._mutex = threading.Lock()

    def keep(self) -> None:
        """Copy ``dvc.lock`` if it is whole; a stage that writes it right now is waited for."""
        with self._mutex:
            known = set(_entries(_read(self.copy)))
            for _ in range(READS):
                text = _read(self.path)
                found = _entries(text)
                if found and known <= set(found) and all(map(_whole, found.values())):
                    write_bytes(self.copy, text)
                    return
                time.sleep(READ_PAUSE_S)

    def start(self, *, orderly: bool) -> list[str]:
        """Repair what the last run left, then keep a copy; return the names put back.

        Args:
            orderly: The last run came to its end. Then entries that ``dvc.lock`` lacks were taken
                out on purpose, by a checkout say, and only an unreadable file is repaired.
        """
        broken = self.path.is_file() and not _readable(_read(self.path))
        restored = [] if orderly and not broken else self.repair()
        text = _read(self.path)
        if (found := _entries(text)) and all(map(_whole, found.values())):
            write_bytes(self.copy, text)
        return restored

    def repair(self) -> list[str]:
        """Put entries back that the copy has and ``dvc.lock`` lost; return their names.

        Holds DVC's own lock meanwhile, so that no stage writes the file.
        """
        with self._mutex:
            if not self._lost():
                return []
            from dvc.repo import Repo

            with Repo(os.fspath(self._root), _wait_for_lock=True) as repository, repository.lock:
                lost = self._lost()
                if lost:
                    from dvc.utils.serialize import dumps_yaml

                    good = _entries(_read(self.copy))
                    now = {name: e for name, e in self._intact().items() if name not in lost}
                    stages = {name: now.get(name, entry) for name, entry in good.items()}
                    text = dumps_yaml({"schema": "2.0", "stages": {**stages, **now}})
                    write_bytes(self.path, text.encode())
                    logger.warning(
                        "dvc.lock was cut by a killed process; put back: %s", ", ".join(lost)
                    )
            return lost

    def _lost(self) -> list[str]:
        """Names that the copy has whole and ``dvc.lock`` does not."""
        now = self._intact()
        return [
            name
            for name, entry in _entries(_read(self.copy)).items()
            if name not in now or _is_start_of(now[name], entry)
        ]

    def _intact(self) -> dict[str, Any]:
        """Entries of ``dvc.lock`` that are whole by themselves."""
        text = _read(self.path)
        entries = _entries(text)
        if entries and not text.endswith(b"\n"):
            entries.popitem()  # the last number may lack digits
        return {name: entry for name, entry in entries.items() if _whole(entry)}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _parse(text: bytes) -> Any:  # noqa: ANN401 - any YAML document
    import yaml

    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except (yaml.YAMLError, UnicodeDecodeError):
        return None


def _entries(text: bytes) -> dict[str, Any]:
    """Stages of a ``dvc.lock``; none where it cannot be read."""
    content = _parse(text)
    stages = content.get("stages") if isinstance(content, dict) else None
    return dict(stages) if isinstance(stages, dict) else {}


def _readable(text: bytes) -> bool:
    """Whether DVC could read it: version and stages are there, every stage is whole."""
    content = _parse(text)
    return (
        isinstance(content, dict)
        and "schema" in content
        and isinstance(content.get("stages"), dict)
        and all(map(_whole, content["stages"].values()))
    )


def _whole(entry: Any) -> bool:  # noqa: ANN401 - what YAML gave
    """Whether one stage's entry has its command and the full hash of every file."""
    if not isinstance(entry, dict) or not entry.get("cmd"):
        return False
    return all(map(_whole_file, [*(entry.get("deps") or []), *(entry.get("outs") or [])]))


def _is_start_of(entry: Any, whole: Any) -> bool:  # noqa: ANN401 - what YAML gave
    """Whether an entry was cut between two lines: equal as far as it goes, and not to the end."""
    if entry is None or entry == whole:
        return entry != whole
    if isinstance(entry, dict) and isinstance(whole, dict):
        left, full = list(entry.items()), list(whole.items())
    elif isinstance(entry, list) and isinstance(whole, list):
        left, full = list(enumerate(entry)), list(enumerate(whole))
    else:
        return False
    if left[:-1] != full[: len(left) - 1] or len(left) > len(full):
        return False
    (key, last), (same, other) = left[-1], full[len(left) - 1]
    return key == same and (last == other or _is_start_of(last, other))


def _whole_file(file: Any) -> bool:  # noqa: ANN401 - what YAML gave
    """Whether a file's entry has its path and full hash; files in buckets have other hashes."""
    if not isinstance(file, dict) or not file.get("path"):
        return False
    if "md5" in file:
        return len(str(file["md5"]).removesuffix(".dir")) == HASH_DIGITS and "size" in file
    return bool({"etag", "checksum", "version_id"} & set(file))


def discard_rotten(root: Path, stage: str) -> list[str]:
    """Remove outputs of a stage that are not the bytes ``dvc.lock`` names, in the cache as well.

    DVC restores a remembered run without hashing: it trusts a cache file for being read-only. What
    rotted there, or was cut by a full disk, would come back as if it were the result.

    Args:
        root: The checkout.
        stage: Name of the stage; every file of its outputs is read.

    Returns:
        Paths of the removed outputs, as ``dvc.lock`` names them; the stage has to run again.
    """
    from dvc.repo import Repo

    outs = (_entries(_read(root / "dvc.lock")).get(stage) or {}).get("outs") or []
    with Repo(os.fspath(root)) as repository:
        cache = Path(repository.cache.local.path)
    removed = []
    for out in outs:
        if "md5" not in out:
            continue  # kept in a bucket, whose owner hashes it
        files, rotten = _files_of(root / out["path"], str(out["md5"]), cache)
        wrong = [md5 for file, md5 in files if not file.is_file() or _md5(file) != md5]
        for md5 in {*wrong, *rotten}:
            held = cache / md5[:2] / md5[2:]
            if held.is_file() and _md5(held) != md5.removesuffix(".dir"):
                held.unlink()
        if wrong or rotten:
            _remove(root / out["path"])
            removed.append(str(out["path"]))
    return removed


def _files_of(path: Path, md5: str, cache: Path) -> tuple[list[tuple[Path, str]], list[str]]:
    """Files of an output with their recorded hashes; hashes of unreadable lists of folders."""
    if not md5.endswith(".dir"):
        return [(path, md5)], []
    listing = cache / md5[:2] / md5[2:]
    if not listing.is_file() or _md5(listing) != md5.removesuffix(".dir"):
        return [], [md5]
    rows = json.loads(listing.read_bytes())
    return [(path / row["relpath"], str(row["md5"])) for row in rows], []


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep_path_locks(root: Path) -> list[str]:
    """Clear DVC's list of busy paths of what killed processes left in it.

    A list that is cut is removed. An entry goes when its process is another program by now: DVC
    itself only asks whether any process has the number.

    Returns:
        What was cleared, in words.
    """
    path = root / ".dvc" / "tmp" / "rwlock"
    content: Any = None
    for _ in range(READS):
        text = _read(path)
        if not path.is_file():
            return []
        try:
            content = json.loads(text)
            break
        except ValueError:
            time.sleep(READ_PAUSE_S)  # another DVC may be writing it
    if not isinstance(content, dict):
        path.unlink(missing_ok=True)
        return ["the cut list of busy paths"]
    writers = {p: e for p, e in content.get("write", {}).items() if _is_dvc(e)}
    readers = {
        p: kept
        for p, entries in content.get("read", {}).items()
        if (kept := [e for e in entries if _is_dvc(e)])
    }
    if (writers, readers) == (content.get("write", {}), content.get("read", {})):
        return []
    write_bytes(path, json.dumps({"write": writers, "read": readers}).encode())
    return ["busy paths of ended processes"]


def _is_dvc(entry: Any) -> bool:  # noqa: ANN401 - what JSON gave
    """Whether the process of an entry still lives and runs DVC."""
    if not isinstance(entry, dict) or "pid" not in entry:
        return False
    folder = Path("/proc", str(entry["pid"]))
    try:
        command = (folder / "cmdline").read_bytes()
        ended = (folder / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return not Path("/proc/self").exists()  # no /proc: leave the question to DVC
    just_started = command == b""
    return not ended and (just_started or any(name in command for name in DVC_COMMANDS))
