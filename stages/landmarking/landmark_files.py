"""Landmarks on a scan, in the forms that scan data sets and annotation tools write."""

import re
from pathlib import Path

import numpy as np
from jaxtyping import Float

COUNTS = (7, 51, 68)
_POINT = re.compile(r"<point\s([^>]*)>", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"(\w+)\s*=\s*\"([^\"]*)\"")


def read_scan_landmarks(
    path: Path | str, vertices: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "l 3"]:
    """Read 7 (NoW), 51 (inner iBUG) or 68 (iBUG) landmarks of a scan.

    Args:
        path: ``.npy`` (l, 3); ``.pp`` (MeshLab PickedPoints, in file order); ``.lnd`` (rows
            ``number x y z``); any other suffix is text with ``x y z`` rows, or one 1-based vertex
            number per row as Headspace's ``ldmks*.txt``.
        vertices: The scan, for landmarks given as vertex numbers.

    Returns:
        Points in the scan's frame and unit.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read so, or holds another number of landmarks.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected landmarks in {path}, got no such file")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        points = np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)
        points = points[0] if points.ndim == 3 and len(points) == 1 else points
    elif suffix == ".pp":
        points = _picked(path)
    else:
        points = _rows(path, vertices)
    if points.ndim != 2 or points.shape[1] != 3 or len(points) not in COUNTS:
        raise ValueError(
            f"expected 7, 51 or 68 landmarks of three coordinates in {path}, got {points.shape}"
        )
    return points


def _picked(path: Path) -> np.ndarray:
    points = []
    for match in _POINT.finditer(path.read_text(encoding="utf-8", errors="replace")):
        values = dict(_ATTRIBUTE.findall(match[1]))
        try:
            points.append([float(values[axis]) for axis in "xyz"])
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"expected x, y and z of every point in {path}, got <point {match[1].strip()}>"
            ) from error
    return np.array(points).reshape(-1, 3)


def _rows(path: Path, vertices: np.ndarray) -> np.ndarray:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [line.replace(",", " ").split() for line in lines]
    rows = [row for row in rows if row and not row[0].startswith("#")]
    try:
        numbers = [[float(word) for word in row] for row in rows]
    except ValueError as error:
        raise ValueError(f"expected rows of numbers in {path}: {error}") from error
    widths = {len(row) for row in numbers}
    if widths == {1}:
        index = np.array(numbers)[:, 0]
        if (index != np.round(index)).any() or index.min() < 1 or index.max() > len(vertices):
            raise ValueError(
                f"expected 1-based vertex numbers up to {len(vertices)} in {path}, got "
                f"{index.min():g} to {index.max():g}"
            )
        return np.asarray(vertices, dtype=np.float64)[index.astype(np.int64) - 1]
    if widths == {3}:
        return np.array(numbers)
    if widths == {4}:
        return np.array(numbers)[:, 1:]
    raise ValueError(
        f"expected rows of 1 (vertex number), 3 (x y z) or 4 (number x y z) values in {path}, got "
        f"rows of {sorted(widths)}"
    )
