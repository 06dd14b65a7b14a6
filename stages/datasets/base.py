"""What every raw data set looks like to the pipeline: references to items, rows read from them.

``discover`` lists a tree without opening its images and scans; ``read`` turns one reference into
one row, independently of every other. An item that cannot be read raises one of ``READ_ERRORS``
with a message for its row; nothing is substituted.
"""

import json
import os
import struct
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

from stages.datasets.problems import Expected, Problem, missing

Kind = Literal["image", "scan"]
READ_ERRORS = (
    ValueError,
    OSError,
    LookupError,
    TypeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    struct.error,
    zlib.error,
)


class ItemError(ValueError):
    """One item of a data set cannot be used; the message is its row's reason."""


@dataclass(frozen=True, slots=True)
class ItemRef:
    """One input of a data set.

    Attributes:
        item_id: Unique in the data set, e.g. ``F1001/F1001_001``.
        subject_id: ``DATASET/subject``.
        kind: An image or a scan.
        path: Main file, relative to the root, with forward slashes.
        split: ``train``, ``val``, ``test`` or empty.
        attributes: JSON-able facts that every row of this item carries, readable or not.
        facts: What ``discover`` learnt from lists and tables, and only ``read`` needs.
    """

    item_id: str
    subject_id: str
    kind: Kind
    path: str
    split: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One readable photograph.

    Attributes:
        image: The encoded file, unchanged; PNG of the same pixels where the owner's is PPM.
        height_px: As decoded, orientation tag applied.
        width_px: As decoded, orientation tag applied.
        landmarks_px: Points in our pixel convention (pixel centres at +0.5), or None.
        landmark_order: ``ibug68``, or empty when the order is the data set's own.
        box_px: Left, top, right, bottom, or None.
        shape_para: 300W-LP identity coefficients, or None.
        exp_para: 300W-LP expression coefficients, or None.
        pose_para: 300W-LP pose, or None.
        attributes: JSON-able facts, besides those of the reference.
    """

    image: bytes
    height_px: int
    width_px: int
    landmarks_px: Float[np.ndarray, "n 2"] | None = None
    landmark_order: str = ""
    box_px: Float[np.ndarray, "4"] | None = None
    shape_para: Float[np.ndarray, " k"] | None = None
    exp_para: Float[np.ndarray, " e"] | None = None
    pose_para: Float[np.ndarray, "7"] | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScanRow:
    """One readable scan, in its own unit and frame.

    Attributes:
        vertices: Positions in file order.
        faces: 0-based triangles.
        colors: RGB per vertex, or None.
        unit: ``m``, ``dm``, ``cm``, ``mm`` or ``unknown``.
        landmarks: Points on the scan, or None.
        landmark_order: ``ibug68``, ``ibug51``, ``now7`` or empty.
        neutral: Whether the data set says that the expression is neutral.
        capped: Whether a cap hides the hair and the skull is not the person's own surface.
        attributes: JSON-able facts, besides those of the reference.
    """

    vertices: Float[np.ndarray, "n 3"]
    faces: Int[np.ndarray, "f 3"]
    unit: str
    colors: UInt8[np.ndarray, "n 3"] | None = None
    landmarks: Float[np.ndarray, "l 3"] | None = None
    landmark_order: str = ""
    neutral: bool = False
    capped: bool = False
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Adapter(ABC):
    """One raw data set.

    Attributes:
        name: Key in ``params.yaml``.
        title: What people call it.
        prefix: First part of its subject ids.
        licence: Kind of licence.
        homepage: Where its owner gives it.
        unit: Unit of its scans; empty without scans.
        layout: What its folder must and may hold.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    prefix: ClassVar[str]
    licence: ClassVar[str]
    homepage: ClassVar[str]
    unit: ClassVar[str] = ""
    layout: ClassVar[tuple[Expected, ...]] = ()

    @abstractmethod
    def discover(self, root: Path) -> list[ItemRef]:
        """Every input below ``root``, sorted by ``item_id``.

        Raises:
            FileNotFoundError: The tree has not the owner's layout.
        """

    @abstractmethod
    def read(self, root: Path, ref: ItemRef) -> ImageRow | ScanRow:
        """Read one item.

        Raises:
            ValueError, OSError: It cannot be used; the message says why.
        """

    def shared(self, root: Path, refs: Sequence[ItemRef]) -> str:
        """What rows of several items depend on besides the files that ``read`` asks for.

        Returns:
            Any text that changes with it; empty where there is nothing.
        """
        del root, refs
        return ""

    def validate(self, root: Path) -> list[Problem]:
        """Files and folders that ``root`` lacks, with what they are for and where to get them."""
        return missing(root, self.layout)

    def subject(self, name: str) -> str:
        """The subject id of a person's own name in the data set."""
        return f"{self.prefix}/{name}"


_NOTED: ContextVar[list[str] | None] = ContextVar("noted", default=None)


@contextmanager
def noting_files() -> Iterator[list[str]]:
    """Collect the relative names that :func:`inside` is asked for, refused ones too."""
    names: list[str] = []
    token = _NOTED.set(names)
    try:
        yield names
    finally:
        _NOTED.reset(token)


def inside(root: Path, relative: str) -> Path:
    """The file of a reference, refused when it lies outside the data set's folder.

    Every file that ``read`` opens goes through here, so that a row is known by what it came from.

    Raises:
        ItemError: The path is absolute, climbs out with ``..`` or through a symbolic link.
        FileNotFoundError: There is no such file.
    """
    noted = _NOTED.get()
    if noted is not None:
        noted.append(relative)
    home = root.resolve()
    path = root / relative
    if Path(relative).is_absolute() or not path.resolve().is_relative_to(home):
        raise ItemError(f"{relative} leads outside the data set's folder; refused")
    if not path.is_file():
        raise FileNotFoundError(f"{relative}: the file is missing")
    return path


def relative(root: Path, path: Path) -> str:
    """``path`` below ``root`` with forward slashes."""
    return path.relative_to(root).as_posix()


def entries_of(folder: str | Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name; nothing where it is missing or closed to us, as for ``glob``.

    Less than half the time of ``Path.glob``, which counts in trees of thousands of folders.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def folders_in(folder: str | Path) -> list[os.DirEntry[str]]:
    """The folders among :func:`entries_of`, symbolic links to folders too."""
    return [entry for entry in entries_of(folder) if entry.is_dir()]


def ordered(refs: Sequence[ItemRef]) -> list[ItemRef]:
    """References sorted by id; those that share one get ``@folder``, then ``@path``, appended.

    Ids become file names later: parts that climb (``..``) or are empty turn into ``_``.
    """
    tamed = [_tamed(ref) for ref in refs]
    by_folder = _told_apart(tamed, lambda ref: PurePosixPath(ref.path).parent.name)
    by_path = _told_apart(by_folder, lambda ref: _tame(ref.path))
    return sorted(by_path, key=lambda ref: ref.item_id)


def _tamed(ref: ItemRef) -> ItemRef:
    item, subject = _tame(ref.item_id), _tame(ref.subject_id)
    if (item, subject) == (ref.item_id, ref.subject_id):
        return ref
    return replace(ref, item_id=item, subject_id=subject)


def _told_apart(refs: Sequence[ItemRef], mark: Callable[[ItemRef], str]) -> list[ItemRef]:
    counts = Counter(ref.item_id for ref in refs)
    return [
        replace(ref, item_id=f"{ref.item_id}@{mark(ref)}") if counts[ref.item_id] > 1 else ref
        for ref in refs
    ]


def _tame(name: str) -> str:
    """``name`` without control characters or parts that lead elsewhere as a path."""
    if not name.isprintable() or "\\" in name:
        name = "".join(c if c.isprintable() and c != "\\" else "_" for c in name)
    return "/".join("_" if part in {"", ".", ".."} else part for part in name.split("/"))


def number_rows(path: Path, *, columns: int, skip: int = 0) -> Float[np.ndarray, "n k"]:
    """Read a text file of whitespace-separated numbers, one record per line; blank lines ignored.

    Raises:
        ItemError: A line has not ``columns`` numbers; names the file and the line.
    """
    rows = []
    lines = path.read_text(encoding="latin1").splitlines()[skip:]
    for number, line in enumerate(lines, start=skip + 1):
        words = line.split()
        if not words:
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if len(values) != columns:
            raise ItemError(f"{path.name} line {number}: expected {columns} numbers, got {line!r}")
        rows.append(values)
    out = np.array(rows, dtype=np.float64).reshape(-1, columns)
    if not np.isfinite(out).all():
        raise ItemError(f"{path.name} holds NaN or infinite values")
    return out


def attributes_json(attributes: Mapping[str, Any]) -> str:
    """Attributes as they are stored: compact sorted JSON."""
    return json.dumps(attributes, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
