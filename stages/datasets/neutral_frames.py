"""Which scans are neutral, where a data set does not say so itself: ``neutral_frames.csv``.

Its user looks at the scans once and lists the neutral ones, in the root of the data set::

    subject,scan
    F001,0001
    04203,04203d436

``scan`` is a file's name without folder and suffixes. Several lines per subject are allowed.
"""

import csv
import logging
from collections.abc import Mapping, Set
from pathlib import Path

from stages.datasets.base import ItemError, inside
from stages.datasets.problems import Expected, Problem

logger = logging.getLogger(__name__)

FILE_NAME = "neutral_frames.csv"
COLUMNS = ("subject", "scan")


_WHERE = f"your own selection: the header {','.join(COLUMNS)}, then lines such as "


def expected(example: str) -> Expected:
    """The optional file, for a data set's ``layout``.

    Args:
        example: A line of it, in the data set's own names.
    """
    return Expected(
        (FILE_NAME,),
        "knowing which scans are neutral: the data set does not say it, and without the file no "
        "scan counts as neutral, so that no subject enters the training set",
        _WHERE + example,
        required=False,
    )


def read_neutral_frames(root: Path) -> dict[str, frozenset[str]] | None:
    """Read the neutral scans of each subject; None when the data set has no such file.

    Returns:
        Stems of scans by the subject's own name, both as written.

    Raises:
        ItemError: Not that table; names the file and the line.
    """
    if not (root / FILE_NAME).is_file():
        return None
    try:
        text = inside(root, FILE_NAME).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ItemError(f"{FILE_NAME}: expected UTF-8 text ({error})") from error
    found: dict[str, set[str]] = {}
    header: list[str] | None = None
    try:
        for number, words in enumerate(csv.reader(text.splitlines(), strict=True), start=1):
            cells = [word.strip() for word in words]
            if not any(cells):
                continue
            if header is None:
                header = [cell.lower() for cell in cells]
                if sorted(header) != sorted(COLUMNS):
                    raise ItemError(
                        f"{FILE_NAME} line {number}: expected the header {','.join(COLUMNS)}, got "
                        f"{','.join(words)!r}"
                    )
                continue
            if len(cells) != len(COLUMNS) or not all(cells):
                raise ItemError(
                    f"{FILE_NAME} line {number}: expected a subject and a scan, got "
                    f"{','.join(words)!r}"
                )
            row = dict(zip(header, cells, strict=True))
            found.setdefault(row["subject"], set()).add(row["scan"])
    except csv.Error as error:
        raise ItemError(f"{FILE_NAME}: expected comma-separated values ({error})") from error
    if header is None:
        raise ItemError(f"{FILE_NAME} is empty; expected the header {','.join(COLUMNS)}")
    return {subject: frozenset(scans) for subject, scans in found.items()}


def problems(root: Path) -> list[Problem]:
    """What keeps the file from being used, for a data set's ``validate``; nothing when absent."""
    try:
        read_neutral_frames(root)
    except (ItemError, OSError) as error:
        purpose, where = "knowing which scans are neutral", _WHERE + "F001,0001"
        return [Problem(root / FILE_NAME, str(error), purpose, where)]
    return []


def warn_unmatched(
    listed: Mapping[str, frozenset[str]] | None, present: Mapping[str, Set[str]]
) -> None:
    """Warn of listed scans that the data set does not hold.

    Args:
        listed: What :func:`read_neutral_frames` returned.
        present: The scans that are there, by subject.
    """
    for subject, scans in sorted((listed or {}).items()):
        for scan in sorted(scans - present.get(subject, frozenset())):
            logger.warning(
                "%s: there is no scan %s of subject %s; check the spelling",
                FILE_NAME,
                scan,
                subject,
            )
