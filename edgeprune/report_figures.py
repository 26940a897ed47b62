"""The pictures of a report, as SVG that takes its colours and fonts from the page around it.

Drawn here and not with a plotting library: the page can then be dark or light, its words stay words (selectable, read
aloud), the same report gives the same bytes, and a board without such a library can draw it too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 400, 230  # units of the drawing; about one pixel each where a phone shows it
LEFT, RIGHT, TOP, BOTTOM = 44, 44, 12, 36
DOTS_UP_TO = 40  # epochs; more would run together

Point = tuple[float, float | None]  # (x, y), y None where the figure is absent


class Series(NamedTuple):
    """One curve: its name, its style in the page (``train`` or ``val``), its points in order of x."""

    name: str
    style: str
    points: Sequence[Point]


class Axes(NamedTuple):
    """What the axes of curves are called, and whether x is counted (labels at whole numbers alone)."""

    x: str
    area: str
    counted: bool


EPOCHS = Axes("epoch", "sparsity", True)


class Bar(NamedTuple):
    """A horizontal bar in percent of its row: where it starts and how long it is."""

    start: float
    width: float


def bars(values: Sequence[float | None]) -> list[Bar]:
    """Bars on one scale that holds 0, so that lengths compare as the figures do; an absent figure has none.

    >>> bars([2.0, 1.0, None])
    [Bar(start=0.0, width=100.0), Bar(start=0.0, width=50.0), Bar(start=0.0, width=0.0)]
    """
    known = [value for value in values if value is not None]
    low, high = min([0.0, *known]), max([0.0, *known])
    span = (high - low) or 1.0
    return [
        Bar(0.0, 0.0)
        if value is None
        else Bar(round(100 * (min(value, 0.0) - low) / span, 3), round(100 * abs(value) / span, 3))
        for value in values
    ]


def ticks(low: float, high: float, at_most: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside a range.

    >>> ticks(0.0, 1.0), ticks(0.93, 0.98, 4)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.94, 0.96, 0.98])
    """
    if not high > low:
        return [low]
    raw = (high - low) / at_most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


class _Scale(NamedTuple):
    """Data to drawing units, linear."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = (self.high - self.low) or 1.0
        return round(self.start + (value - self.low) / span * (self.end - self.start), 2)


def curves(
    label: str,
    series: Sequence[Series],
    area: Sequence[Point] = (),
    axes: Axes = EPOCHS,
    holds: Sequence[float] = (),
) -> Markup:
    """Curves over epochs, with the sparsity of the schedule as an area behind them on an axis of its own (0..1, right).

    Args:
        label: What the picture shows, for those who do not see it.
        series: The curves, in the order in which they are drawn.
        area: (epoch, sparsity) in order; empty where nothing was pruned.
        axes: What is shown in the place of epochs and sparsity.
        holds: Further figures that the vertical scale has room for, so that pictures can be compared.

    Returns:
        An ``<svg>`` whose classes the page's style sheet colours.
    """
    ends = [x for one in series for x, _ in one.points] + [x for x, _ in area]
    across = _Scale(0.0, max([1.0, *ends]), LEFT, WIDTH - RIGHT)
    up = _vertical([*holds, *(y for one in series for _, y in one.points if y is not None)])
    parts = [_grid(up), _x_axis(across, axes)]
    if area:
        parts.append(_area(area, across, axes.area))
    parts += [_curve(one, across, up, axes.x) for one in series]
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}" preserveAspectRatio="xMidYMid meet">{}</svg>'
    ).format(WIDTH, HEIGHT, label, Markup("").join(parts))


def _vertical(values: Sequence[float]) -> _Scale:
    """A scale that holds the values with a little air, and does not magnify a flat line into a landscape."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    air = max((high - low) * 0.08, abs(high) * 0.005, 1e-9)
    return _Scale(low - air if low < 0 else max(low - air, 0.0), high + air, HEIGHT - BOTTOM, TOP)


def _text(x: float, y: float, words: str, style: str) -> Markup:
    return Markup('<text x="{}" y="{}" class="{}">{}</text>').format(x, y, style, words)


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(x1, y1, x2, y2, style)


def _grid(up: _Scale) -> Markup:
    """Horizontal lines at round values, with the values."""
    at = ticks(up.low, up.high, 4)
    places = max((_decimals(value) for value in at), default=0)
    return Markup("").join(
        _line(LEFT, up(value), WIDTH - RIGHT, up(value), "grid")
        + _text(LEFT - 6, up(value) + 4, f"{value:.{places}f}", "y")
        for value in at
    )


def _decimals(value: float) -> int:
    """How many decimals a tick needs: ``0.25`` two."""
    text = f"{value:.6f}".rstrip("0")
    return len(text) - text.index(".") - 1


def _x_axis(across: _Scale, axes: Axes) -> Markup:
    base = HEIGHT - BOTTOM
    shown = [value for value in ticks(across.low, across.high, 6) if value == round(value) or not axes.counted]
    return (
        _line(LEFT, base, WIDTH - RIGHT, base, "axis")
        + Markup("").join(_text(across(value), base + 15, f"{value:g}", "x") for value in shown)
        + _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, axes.x, "x name")
    )


def _area(area: Sequence[Point], across: _Scale, name: str) -> Markup:
    """The schedule: an area under its line, its axis at the right."""
    up = _Scale(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    points = [(across(x), up(y)) for x, y in area if y is not None]
    if not points:
        return Markup("")
    line = " ".join(f"{x},{y}" for x, y in points)
    base = HEIGHT - BOTTOM
    labels = Markup("").join(_text(WIDTH - RIGHT + 5, up(v) + 4, f"{v:g}", "y2") for v in (0.0, 0.5, 1.0))
    return (
        Markup('<polygon class="zeros" points="{},{} {} {},{}"/>').format(points[0][0], base, line, points[-1][0], base)
        + Markup('<polyline class="zeros" points="{}"/>').format(line)
        + labels
        + Markup('<text class="y2 name" transform="translate({} {}) rotate(-90)">{}</text>').format(
            WIDTH - 4, (TOP + base) / 2, name
        )
    )


def _curve(one: Series, across: _Scale, up: _Scale, x_name: str) -> Markup:
    """A line, broken where a figure is absent, with a dot and its value at each epoch where there is room."""
    runs: list[list[str]] = [[]]
    dots: list[Markup] = []
    for x, y in one.points:
        if y is None:
            runs.append([])
            continue
        runs[-1].append(f"{across(x)},{up(y)}")
        if len(one.points) <= DOTS_UP_TO:
            words = f"{x_name} {x:g}: {one.name} {y:.4g}"
            dot = Markup('<circle class="{}" cx="{}" cy="{}" r="2.4"><title>{}</title></circle>')
            dots.append(dot.format(one.style, across(x), up(y), words))
    lines = [
        Markup('<polyline class="{}" points="{}"/>').format(one.style, " ".join(run)) for run in runs if len(run) > 1
    ]
    return Markup("").join(lines + dots)
