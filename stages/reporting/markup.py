"""HTML as strings: escaped text, tables, figures, sections and the page around them."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from stages.reporting.style import CSS

NONE: Final = "–"
"""What a table shows where there is no value."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One table cell.

    Attributes:
        html: Content, already markup.
        kind: CSS classes; ``num`` aligns right.
        header: Whether it names its row.
    """

    html: str
    kind: str = ""
    header: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the page, reachable by its anchor."""

    anchor: str
    title: str
    body: str


def text(value: object) -> str:
    """Any value as escaped text."""
    return escape(str(value), quote=True)


def number(value: int | float | None, digits: int = 2, kind: str = "") -> Cell:
    """A right-aligned number with fixed digits."""
    shown = NONE if value is None else f"{value:,.{digits}f}"
    return Cell(shown, f"num {kind}".strip())


def name(value: object) -> Cell:
    """A cell that names its row."""
    return Cell(text(value), header=True)


def tag(word: str) -> str:
    """A small framed word."""
    return f'<span class="tag">{text(word)}</span>'


def source(*, synthetic: bool | None) -> str:
    """Whether something rests on synthetic data (markup)."""
    if synthetic is None:
        return "not recorded"
    return tag("synthetic") if synthetic else "real"


def table(
    head: Sequence[Cell],
    rows: Iterable[Sequence[Cell]],
    *,
    caption: str = "",
    groups: Sequence[tuple[str, int]] = (),
    kind: str = "",
) -> str:
    """A table in a box that scrolls sideways where the page is narrow.

    Args:
        head: Column headings.
        rows: Cells.
        caption: Markup below the table.
        groups: Headings over runs of columns: text and how many columns.
        kind: CSS classes.
    """
    lines = [f'<div class="scroll"><table class="{kind}">']
    lines.append("<thead>")
    if groups:
        spans = "".join(
            f'<th class="span" scope="colgroup" colspan="{count}"><span>{text(title)}</span></th>'
            if title
            else f'<td colspan="{count}"></td>'
            for title, count in groups
        )
        lines.append(f'<tr class="group">{spans}</tr>')
    lines.append("<tr>" + "".join(_cell(cell, "th", "col") for cell in head) + "</tr></thead>")
    lines.append("<tbody>")
    for row in rows:
        cells = (_cell(cell, "th" if cell.header else "td", "row") for cell in row)
        lines.append("<tr>" + "".join(cells) + "</tr>")
    lines.append("</tbody></table></div>")
    if caption:
        lines.append(f'<p class="caption">{caption}</p>')
    return "\n".join(lines)


def image(data: bytes, description: str, width: int, height: int, *, kind: str = "png") -> str:
    """An embedded image file of a kind; its size keeps the page from jumping."""
    coded = base64.b64encode(data).decode("ascii")
    return (
        f'<img src="data:image/{kind};base64,{coded}" alt="{text(description)}" '
        f'width="{width}" height="{height}">'
    )


def figure(body: str, caption: str) -> str:
    """A figure with its caption (markup)."""
    return f"<figure>{body}<figcaption>{caption}</figcaption></figure>"


def paragraph(content: str) -> str:
    """A paragraph of markup."""
    return f"<p>{content}</p>"


def missing(what: str, stage: str) -> str:
    """Said where an input of the report is not there."""
    return (
        f'<p class="missing">Nothing to show: <code>{text(what)}</code> is not there. '
        f"The stage <code>{text(stage)}</code> writes it.</p>"
    )


def details(summary: str, body: str) -> str:
    """Something long that opens on request."""
    return f"<details><summary>{text(summary)}</summary>{body}</details>"


def page(title: str, lede: str, notice: str, sections: Sequence[Section], footer: str) -> str:
    """The whole document: nothing in it is fetched from anywhere.

    Args:
        title: Plain text.
        lede: Markup, the result in a sentence or two.
        notice: Markup of the framed remark under it; empty for none.
        sections: In reading order.
        footer: Markup.
    """
    links = "".join(f'<li><a href="#{s.anchor}">{text(s.title)}</a></li>' for s in sections)
    framed = f'<div class="notice" role="note"><p>{notice}</p></div>' if notice else ""
    bodies = "\n".join(
        f'<section id="{s.anchor}"><h2>{text(s.title)}</h2>\n{s.body}\n</section>' for s in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{text(title)}</title>
<link rel="icon" href="data:,">
<style>{CSS}</style>
</head>
<body>
<div class="frame">
<header>
<h1>{text(title)}</h1>
<p class="lede">{lede}</p>
{framed}
<nav aria-label="Contents"><ol>{links}</ol></nav>
</header>
<main>
{bodies}
</main>
<footer>{footer}</footer>
</div>
</body>
</html>
"""


def _cell(cell: Cell, element: str, scope: str) -> str:
    kind = f' class="{cell.kind}"' if cell.kind else ""
    reach = f' scope="{scope}"' if element == "th" else ""
    return f"<{element}{kind}{reach}>{cell.html}</{element}>"
