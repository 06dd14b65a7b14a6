"""Published results, as data with their sources: ``published.toml`` beside this file."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).with_name("published.toml")
_KEYS: Final = {
    *("key", "title", "about", "source", "protocols", "unit", "digits"),
    *("groups", "columns", "rows"),
}


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """One table of somebody else's figures, all on real data.

    Attributes:
        key: Unique name.
        title: What was evaluated.
        about: How, in words.
        source: Paper and table.
        protocols: Ours that measure the same; ``likeness`` for recognition measures.
        unit: Of the figures.
        digits: Decimals shown.
        groups: Headings over runs of columns: text and how many; empty for none.
        columns: Headings.
        rows: Method, then a figure per column; None where there is none.
    """

    key: str
    title: str
    about: str
    source: str
    protocols: tuple[str, ...]
    unit: str
    digits: int
    groups: tuple[tuple[str, int], ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]


@cache
def published_tables(file: Path = FILE) -> tuple[PublishedTable, ...]:
    """All published tables, in the file's order.

    Raises:
        ValueError: A key is unknown, a source or figure is missing, or a row has another length.
    """
    content = tomllib.loads(file.read_text(encoding="utf-8"))
    return tuple(_table(entry, file) for entry in content["table"])


def _table(entry: dict[str, object], file: Path) -> PublishedTable:
    where = f"{file.name}, table {entry.get('key', '?')}"
    if unknown := sorted(set(entry) - _KEYS):
        raise ValueError(f"{where}: expected keys among {sorted(_KEYS)}, got {unknown}")
    for needed in ("key", "title", "about", "source", "protocols", "columns", "rows"):
        if not entry.get(needed):
            raise ValueError(f"{where}: expected a {needed}, got none")
    columns = tuple(_list(entry["columns"]))
    groups = tuple((str(title), int(count)) for title, count in _list(entry.get("groups", [])))
    if groups and sum(count for _, count in groups) != len(columns):
        raise ValueError(f"{where}: expected groups over {len(columns)} columns, got {groups}")
    rows = []
    for method, *figures in _list(entry["rows"]):
        if len(figures) != len(columns):
            raise ValueError(
                f"{where}: expected {len(columns)} figures for {method}, got {len(figures)}"
            )
        rows.append((str(method), tuple(None if f == "-" else float(f) for f in figures)))
    return PublishedTable(
        key=str(entry["key"]),
        title=str(entry["title"]),
        about=str(entry["about"]),
        source=str(entry["source"]),
        protocols=tuple(_list(entry["protocols"])),
        unit=str(entry.get("unit", "mm")),
        digits=int(str(entry.get("digits", 2))),
        groups=groups,
        columns=columns,
        rows=tuple(rows),
    )


def _list(value: object) -> list:
    if not isinstance(value, list):
        raise ValueError(f"expected a list, got {value!r}")  # noqa: TRY004 - the file is wrong
    return value
