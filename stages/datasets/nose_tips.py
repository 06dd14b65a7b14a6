"""Where the nose tips of scans are, which protocols crop around: ``nose_tips.csv``.

No data set ships them. Its user picks one point on each person's scan and lists it, in the root of
the data set, in the scan's own unit and frame::

    subject,x,y,z
    subject_01,-3.2,14.8,96.1
"""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from stages.datasets.base import ItemError, inside
from stages.datasets.problems import Expected, Problem

FILE_NAME = "nose_tips.csv"
COLUMNS = ("subject", "x", "y", "z")
FARTHEST_MM = 10.0
"""A picked point farther from every vertex belongs to another scan, frame or unit."""

EXPECTED = Expected(
    (FILE_NAME,),
    "the nose tip of each scan, around which benchmark protocols crop it",
    f"your own annotation: the header {','.join(COLUMNS)}, one line per subject",
    required=False,
)


def read_nose_tips(root: Path) -> dict[str, tuple[float, float, float]]:
    """Read the nose tip of each subject; empty when the data set has no such file.

    Returns:
        Scan coordinates by the subject's own name, as written.

    Raises:
        ItemError: Not that table, or a subject is there twice; names the file and the line.
    """
    if not (root / FILE_NAME).is_file():
        return {}
    try:
        text = inside(root, FILE_NAME).read_text(encoding="utf-8-sig")
        rows = list(csv.reader(text.splitlines(), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ItemError(f"{FILE_NAME}: expected comma-separated UTF-8 text ({error})") from error
    lines = [(k, [word.strip() for word in row]) for k, row in enumerate(rows, 1) if any(row)]
    if not lines or sorted(word.lower() for word in lines[0][1]) != sorted(COLUMNS):
        got = ",".join(lines[0][1]) if lines else ""
        raise ItemError(f"{FILE_NAME}: expected the header {','.join(COLUMNS)}, got {got!r}")
    header = [word.lower() for word in lines[0][1]]
    found: dict[str, tuple[float, float, float]] = {}
    for number, words in lines[1:]:
        row = dict(zip(header, words, strict=False))
        point = _point(row) if len(words) == len(COLUMNS) and row["subject"] else None
        if point is None:
            raise ItemError(
                f"{FILE_NAME} line {number}: expected a subject and three numbers, got "
                f"{','.join(words)!r}"
            )
        if row["subject"] in found:
            raise ItemError(f"{FILE_NAME} line {number}: {row['subject']} is there twice")
        found[row["subject"]] = point
    return found


def problems(root: Path) -> list[Problem]:
    """What keeps the file from being used, for a data set's ``validate``; nothing when absent."""
    try:
        read_nose_tips(root)
    except (ItemError, OSError) as error:
        return [Problem(root / FILE_NAME, str(error), EXPECTED.purpose, EXPECTED.where)]
    return []


def _point(row: Mapping[str, str]) -> tuple[float, float, float] | None:
    try:
        x, y, z = (float(row[axis]) for axis in "xyz")
    except ValueError:
        return None
    return (x, y, z) if np.isfinite([x, y, z]).all() else None


def check_on_scan(
    tip: tuple[float, float, float], vertices: Float[np.ndarray, "n 3"], unit_mm: float
) -> None:
    """Refuse a nose tip that does not lie on its scan.

    Args:
        tip: Scan coordinates.
        vertices: The scan.
        unit_mm: Millimetres per unit of the scan.

    Raises:
        ItemError: Every vertex is farther than ``FARTHEST_MM``.
    """
    away_mm = unit_mm * float(np.linalg.norm(vertices - np.array(tip), axis=1).min())
    if away_mm > FARTHEST_MM:
        raise ItemError(
            f"{FILE_NAME}: the nose tip is {away_mm:.0f} mm from the scan, expected at most "
            f"{FARTHEST_MM:g}; pick it on this scan, in its own unit and frame"
        )
