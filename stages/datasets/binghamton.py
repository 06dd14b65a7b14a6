"""What the two sets of Binghamton University share: 83 points per scan, in an order of their own.

Public readers agree on the groups (8 points per eye, 10 per brow, 12 on the nose, 12 and 8 on the
mouth, 15 along the jaw; e.g. menpo's ``face_bu3dfe_83``), but not on which brow comes first, and
none says where within a group the points begin. So they are not used as landmarks: they are kept as
an attribute.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.datasets.base import ItemError, inside

POINTS = 83


def points83(path: Path) -> list[list[float]]:
    """Read a ``.bnd`` or ``.bndplus``: a line per point, ``x y z`` or ``index x y z``.

    Raises:
        ItemError: Not 83 such lines, separated by blanks or commas.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="latin1").splitlines(), start=1):
        words = line.replace(",", " ").split()
        if not words:
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if len(values) not in {3, 4} or not all(abs(value) < 1e9 for value in values):
            raise ItemError(f"{path.name} line {number}: expected x y z, got {line[:60]!r}")
        found.append(values[-3:])
    if len(found) != POINTS:
        raise ItemError(f"{path.name} has {len(found)} points, expected {POINTS}")
    return found


def point_attributes(root: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The points of a scan as attributes; unreadable ones are told and do not cost the scan.

    Args:
        root: The data set's folder.
        facts: Of the reference; ``points`` names the file where there is one.
    """
    if "points" not in facts:
        return {}
    try:
        return {"points83": points83(inside(root, facts["points"]))}
    except (ItemError, OSError) as error:
        return {"points83_problem": str(error)}
