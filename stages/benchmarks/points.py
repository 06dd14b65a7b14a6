"""Landmarks on scans and predictions, in the forms that the benchmarks' files have."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
from jaxtyping import Float

from models.metrics import LANDMARK_NAMES
from stages.runtime.unpickle import read_npy

logger = logging.getLogger(__name__)

Order = Literal["position", "name"]

SUFFIXES: Final = (".npy", ".txt", ".pp", ".lnd", ".ljson")
"""Kinds of landmark file."""

_POINT: Final = re.compile(r"<point\b([^>]*?)/?>", re.IGNORECASE)
_ATTRIBUTE: Final = re.compile(r"""(\w+)\s*=\s*["']([^"']*)["']""")


def read_landmarks(
    path: Path, order: Order = "position", counts: Sequence[int] = (7,)
) -> Float[np.ndarray, "m 3"]:
    """3D landmarks of a benchmark's file, in its own unit.

    Args:
        path: ``.npy`` of shape (m, 3) or (1, m, 3); ``.txt`` of lines of three numbers; MeshLab's
            ``.pp`` (PickedPoints); ``.lnd`` (rows ``number x y z``, FG2018); ``.ljson`` (menpo,
            as the landmarks published for MICC).
        order: How a ``.pp`` file's points are ordered. ``position`` takes them as they stand, as
            the NoW challenge does. ``name`` goes by their names: 0-6, 1-7, or those of
            :data:`models.metrics.LANDMARK_NAMES` with any of space, ``_`` and ``-`` between words.
        counts: Numbers of points that will do.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Another kind of file, another number of points, or names not understood.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected landmarks in {path}, got no such file")
    readers = {
        ".npy": _read_npy,
        ".txt": _read_text,
        ".pp": _read_picked_points,
        ".lnd": _read_numbered,
        ".ljson": _read_ljson,
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise ValueError(f"expected landmarks as {', '.join(readers)}, got {path.name}")
    points, names = readers[suffix](path)
    if points.ndim == 3 and len(points) == 1:
        points = points[0]
    if points.ndim != 2 or points.shape[1] != 3 or len(points) not in counts:
        wanted = " or ".join(str(count) for count in counts)
        raise ValueError(
            f"expected {wanted} landmarks of 3 coordinates in {path}, got {points.shape}"
        )
    if len(points) != 7:
        return points
    named = _order_by_name(names)
    if order == "name" and names:
        if named is None:
            raise ValueError(
                f"expected the names {', '.join(LANDMARK_NAMES)} (or 0-6, 1-7) in {path}, got "
                f"{', '.join(names)}; use the order of the file instead"
            )
        return points[named]
    if named is not None and named != list(range(7)):
        logger.warning("%s: points are not in the order of their names; order kept", path)
    return points


def _read_npy(path: Path) -> tuple[Float[np.ndarray, "..."], list[str]]:
    content = read_npy(path)
    if not isinstance(content, np.ndarray) or content.dtype.kind not in "fiu":
        raise ValueError(f"expected an array of numbers in {path}, got {type(content).__name__}")
    return np.asarray(content, np.float64), []


def _rows(path: Path, width: int, what: str) -> Float[np.ndarray, "n k"]:
    rows = [line.replace(",", " ").split() for line in path.read_text("utf-8").split("\n")]
    rows = [row for row in rows if row]
    if any(len(row) != width for row in rows):
        raise ValueError(f"expected lines of {what} in {path}, got lines of other lengths")
    try:
        return np.array([[float(word) for word in row] for row in rows]).reshape(-1, width)
    except ValueError as error:
        raise ValueError(f"expected lines of {what} in {path}: {error}") from error


def _read_text(path: Path) -> tuple[Float[np.ndarray, "..."], list[str]]:
    return _rows(path, 3, "x y z"), []


def _read_numbered(path: Path) -> tuple[Float[np.ndarray, "..."], list[str]]:
    rows = _rows(path, 4, "number x y z")
    return rows[:, 1:], [f"{number:g}" for number in rows[:, 0]]


def _read_ljson(path: Path) -> tuple[Float[np.ndarray, "..."], list[str]]:
    """Menpo's landmarks: version 3 has named groups, version 2 has not."""
    try:
        content = json.loads(path.read_text("utf-8"))
        groups = content.get("groups")
        if groups:
            content = groups["LJSON"] if "LJSON" in groups else groups[min(groups)]
        points = content["landmarks"]["points"]
        return np.array(points, np.float64).reshape(len(points), -1), []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"expected menpo landmarks in {path}: {error}") from error


def _read_picked_points(path: Path) -> tuple[Float[np.ndarray, "..."], list[str]]:
    points, names = [], []
    for match in _POINT.finditer(path.read_text(encoding="utf-8", errors="replace")):
        attributes: Mapping[str, str] = dict(_ATTRIBUTE.findall(match[1]))
        try:
            points.append([float(attributes[axis]) for axis in "xyz"])
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"expected x, y and z of every point in {path}, got <point {match[1].strip()}>"
            ) from error
        names.append(attributes.get("name", ""))
    return np.array(points).reshape(-1, 3), names


def _order_by_name(names: Sequence[str]) -> list[int] | None:
    """Positions of the seven landmarks by their names; None when the names do not say."""
    plain = [" ".join(re.split(r"[\s_-]+", name.strip().lower())) for name in names]
    for wanted in (
        [str(number) for number in range(7)],
        [str(number) for number in range(1, 8)],
        list(LANDMARK_NAMES),
    ):
        if sorted(plain) == sorted(wanted):
            return [plain.index(name) for name in wanted]
    return None
