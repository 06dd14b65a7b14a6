"""Line charts as inline SVG: colour, dash and marker each tell the lines apart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from stages.reporting.markup import text

WIDTH: Final = 520
HEIGHT: Final = 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 34, 46
_DASHES: Final = ("", "7 4", "2 3", "10 3 2 3", "4 2", "1 4", "12 4", "6 2 1 2 1 2")
_MARKERS: Final = 7  # per line


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart.

    Attributes:
        label: In the legend.
        x: Ascending.
        y: Same length.
        style: 0-7; the same number is the same thing in every chart.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: int


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    legend: str = "inside",
) -> str:
    """A chart of one or more lines.

    The y axis is logarithmic when the values are positive, span more than a factor of 20 and no
    range is given.

    Args:
        title: Heading within the drawing.
        lines: At least one, at least one point each.
        x_label: With unit.
        y_label: With unit.
        x_range: None takes it from the data.
        y_range: None takes it from the data.
        legend: ``inside`` at the bottom right, ``above`` the plot, or ``none``; a single line has
            none.
    """
    xs = np.concatenate([np.asarray(line.x, np.float64) for line in lines])
    ys = np.concatenate([np.asarray(line.y, np.float64) for line in lines])
    low_x, high_x = x_range or (float(xs.min()), float(xs.max()))
    if high_x <= low_x:
        high_x = low_x + 1.0
    logarithmic = y_range is None and bool(ys.min() > 0 and ys.max() > 20 * ys.min())
    low_y, high_y = y_range or _span(ys, logarithmic=logarithmic)

    top = _TOP + 22 if legend == "above" and len(lines) > 1 else _TOP

    def column(value: float) -> float:
        return _LEFT + (value - low_x) / (high_x - low_x) * (WIDTH - _LEFT - _RIGHT)

    def row(value: float) -> float:
        if logarithmic:
            share = math.log(value / low_y) / math.log(high_y / low_y)
        else:
            share = (value - low_y) / (high_y - low_y)
        return HEIGHT - _BOTTOM - share * (HEIGHT - top - _BOTTOM)

    bottom = HEIGHT - _BOTTOM
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}">',
        f'<text class="heading" x="{_LEFT}" y="16">{text(title)}</text>',
    ]
    for tick in _log_ticks(low_y, high_y) if logarithmic else _ticks(low_y, high_y):
        at = row(tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">'
            f"{_number(tick)}</text>"
        )
    for tick in _ticks(low_x, high_x):
        at = column(tick)
        parts.append(
            f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
            f'<text class="tick" x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">'
            f"{_number(tick)}</text>"
        )
    parts.append(
        f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>'
        f'<text class="label" x="{(_LEFT + WIDTH - _RIGHT) / 2:.1f}" y="{HEIGHT - 8}" '
        f'text-anchor="middle">{text(x_label)}</text>'
        f'<text class="label" transform="translate(13 {(top + bottom) / 2:.1f}) rotate(-90)" '
        f'text-anchor="middle">{text(y_label)}</text>'
    )
    for line in lines:
        points = [
            (column(x), row(min(max(y, low_y), high_y)))
            for x, y in zip(line.x, line.y, strict=True)
            if low_x <= x <= high_x
        ]
        parts.append(_stroke(points, line.style))
        step = max(1, len(points) // _MARKERS) if len(points) > 2 * _MARKERS else 1
        offset = (line.style * step) // 4 % step
        parts += [_marker(x, y, line.style) for x, y in points[offset::step]]
    if len(lines) > 1 and legend != "none":
        parts.append(_legend(lines, legend))
    parts.append("</svg>")
    return "".join(parts)


def dot_chart(
    title: str, rows: Sequence[tuple[str, Sequence[tuple[float, int]]]], x_label: str
) -> str:
    """Values of several things on one row per item, from zero.

    Args:
        title: Heading within the drawing.
        rows: Label and (value, style) of each dot, top row first; at least one dot in all.
        x_label: With unit.
    """
    left, top, step = 190, 34, 22
    bottom = top + step * len(rows)
    end = 1.05 * max(value for _, dots in rows for value, _ in dots) or 1.0
    width = WIDTH + 180

    def column(value: float) -> float:
        return left + value / end * (width - left - _RIGHT)

    parts = [
        f'<svg viewBox="0 0 {width} {bottom + 46}" role="img" aria-label="{text(title)}">',
        f'<text class="heading" x="{left}" y="16">{text(title)}</text>',
    ]
    for tick in _ticks(0.0, end):
        at = column(tick)
        parts.append(
            f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top - 6}" y2="{bottom}"/>'
            f'<text class="tick" x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">'
            f"{_number(tick)}</text>"
        )
    parts.append(
        f'<text class="label" x="{(left + width - _RIGHT) / 2:.1f}" y="{bottom + 38}" '
        f'text-anchor="middle">{text(x_label)}</text>'
    )
    for index, (label, dots) in enumerate(rows):
        y = float(top + step * index + step / 2)
        parts.append(
            f'<text class="tick" x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">'
            f"{text(label)}</text>"
        )
        if dots:
            ends = [column(value) for value, _ in dots]
            parts.append(
                f'<line class="axis" x1="{min(ends):.1f}" x2="{max(ends):.1f}" y1="{y:.1f}" '
                f'y2="{y:.1f}"/>'
            )
        parts += [_marker(column(value), y, style) for value, style in dots]
    return "".join([*parts, "</svg>"])


def histogram(
    title: str,
    groups: Sequence[tuple[str, Sequence[float], int]],
    x_label: str,
    y_label: str,
    *,
    bins: int = 24,
) -> str:
    """How often values occur, groups stacked on each other, from zero to the largest value.

    Args:
        title: Heading within the drawing.
        groups: Label, values and style of each; at least one value in all, none negative.
        x_label: With unit.
        y_label: What is counted.
        bins: Bars over the range.
    """
    end = max(value for _, values, _ in groups for value in values) or 1.0
    step = _ticks(0.0, end)[1] / max(1, round(_ticks(0.0, end)[1] / end * bins))
    edges = np.arange(math.ceil(end / step + 1e-9) + 1) * step
    counts = [np.histogram(values, edges)[0] for _, values, _ in groups]
    most = float(max(1, np.sum(counts, axis=0).max()))
    width, bottom, top = float(WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM, _TOP + 22

    def row(count: float) -> float:
        return bottom - count / most * (bottom - top)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}">',
        f'<text class="heading" x="{_LEFT}" y="16">{text(title)}</text>',
    ]
    for count in sorted({round(tick) for tick in _ticks(0.0, most)}):
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{row(count):.1f}" '
            f'y2="{row(count):.1f}"/><text class="tick" x="{_LEFT - 7}" y="{row(count) + 4:.1f}" '
            f'text-anchor="end">{count}</text>'
        )
    for tick in _ticks(0.0, float(edges[-1])):
        at = _LEFT + tick / float(edges[-1]) * width
        parts.append(
            f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
            f'<text class="tick" x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">'
            f"{_number(tick)}</text>"
        )
    below = np.zeros(len(edges) - 1)
    for (_, _, style), group in zip(groups, counts, strict=True):
        for index in np.flatnonzero(group):
            left = _LEFT + width * index / len(group)
            high = row(float(below[index] + group[index]))
            parts.append(
                f'<rect class="f{style % 8}" x="{left + 0.5:.1f}" y="{high:.1f}" '
                f'width="{width / len(group) - 1:.1f}" '
                f'height="{row(float(below[index])) - high:.1f}"/>'
            )
        below += group
    x = float(_LEFT)
    for label, _, style in groups:
        parts.append(
            f'<rect class="f{style % 8}" x="{x:.1f}" y="28" width="12" height="12"/>'
            f'<text class="name" x="{x + 18:.1f}" y="38.5">{text(label)}</text>'
        )
        x += 40 + 7.2 * len(label)
    parts.append(
        f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>'
        f'<text class="label" x="{_LEFT + width / 2:.1f}" y="{HEIGHT - 8}" '
        f'text-anchor="middle">{text(x_label)}</text>'
        f'<text class="label" transform="translate(13 {(top + bottom) / 2:.1f}) rotate(-90)" '
        f'text-anchor="middle">{text(y_label)}</text></svg>'
    )
    return "".join(parts)


def key(style: int) -> str:
    """A line's sample, for use in text and tables."""
    return (
        '<span class="key"><svg viewBox="0 0 34 12" aria-hidden="true">'
        f"{_stroke([(0.0, 6.0), (34.0, 6.0)], style)}{_marker(17.0, 6.0, style)}</svg></span>"
    )


def _stroke(points: Sequence[tuple[float, float]], style: int) -> str:
    if not points:
        return ""
    dash = _DASHES[style % len(_DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="line s{style % 8}" d="{path}"{dashed}/>'


def _marker(x: float, y: float, style: int) -> str:
    kind = f'class="f{style % 8}"'
    shapes = (
        f'<circle {kind} cx="{x:.1f}" cy="{y:.1f}" r="3.4"/>',
        f'<rect {kind} x="{x - 3.2:.1f}" y="{y - 3.2:.1f}" width="6.4" height="6.4"/>',
        f'<path {kind} d="M{x:.1f} {y - 4.4:.1f}l4.2 7.4h-8.4z"/>',
        f'<path {kind} d="M{x:.1f} {y - 4.6:.1f}l4.6 4.6l-4.6 4.6l-4.6 -4.6z"/>',
        f'<path {kind} d="M{x:.1f} {y + 4.4:.1f}l4.2 -7.4h-8.4z"/>',
        f'<path {kind} d="M{x - 4:.1f} {y - 1.2:.1f}h8v2.4h-8z"/>',
        f'<path {kind} d="M{x - 1.2:.1f} {y - 4:.1f}h2.4v8h-2.4z"/>',
        f'<path {kind} d="M{x - 4.2:.1f} {y - 3.6:.1f}l8.4 3.6l-8.4 3.6z"/>',
    )
    return shapes[style % len(shapes)]


def _legend(lines: Sequence[Line], place: str) -> str:
    longest = max(len(line.label) for line in lines)
    x, y = WIDTH - _RIGHT - 52 - 7.2 * longest, float(HEIGHT - _BOTTOM - 14)
    y -= 19.0 * (len(lines) - 1)
    if place == "above":
        x, y = float(_LEFT), 36.0
    parts = []
    for line in lines:
        parts.append(
            _stroke([(x, y), (x + 34, y)], line.style)
            + _marker(x + 17, y, line.style)
            + f'<text class="name" x="{x + 42:.1f}" y="{y + 4.5:.1f}">{text(line.label)}</text>'
        )
        if place == "above":
            x += 60 + 7.2 * len(line.label)
        else:
            y += 19
    return "".join(parts)


def _span(values: np.ndarray, *, logarithmic: bool) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if logarithmic:
        return low / 1.15, high * 1.15
    if low >= 0 and low < 0.5 * high:
        low = 0.0
    if high <= low:
        high = low + max(abs(low), 1.0)
    margin = 0.05 * (high - low)
    return low if low == 0 else low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers within the range."""
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 8:
            break
    return ticks


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"
