"""The picture of a league: the metric against what a file costs, with the Pareto front, as SVG.

It stands in a page, whose colours it takes, or alone, as an image: then those after the commas in its own style hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from edgeprune import report_figures

WIDTH, HEIGHT = 760, 420  # units of the drawing
LEFT, RIGHT, TOP, BOTTOM = 58, 22, 30, 44
BASE = HEIGHT - BOTTOM
CHARACTER, LINE = 6.1, 13.0  # how much room a label takes, about
KINDS = {"nothing": "nothing removed", "weights": "zeros", "channels": "channels removed", "bytes": "weights shared"}
STYLE = """
.league { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
.league text { fill: var(--muted, #5a6472); }
.league .name { fill: var(--fg, #1a1f26); paint-order: stroke; stroke: var(--card, #ffffff); stroke-width: 3px; stroke-linejoin: round; }
.league .ground { fill: var(--card, #ffffff); }
.league .x { text-anchor: middle; } .league .y, .league .end { text-anchor: end; }
.league .grid { stroke: var(--line, #d8dde4); } .league .axis { stroke: var(--muted, #5a6472); }
.league .front { fill: none; stroke: var(--fg, #1a1f26); stroke-width: 1.3; stroke-dasharray: 5 4; opacity: 0.65; }
.league .nothing { fill: var(--float, #7d8897); stroke: var(--float, #7d8897); }
.league .weights { fill: var(--train, #3f7fd0); stroke: var(--train, #3f7fd0); }
.league .channels { fill: var(--final, #0d8a6f); stroke: var(--final, #0d8a6f); }
.league .bytes { fill: var(--val, #c2571a); stroke: var(--val, #c2571a); }
.league circle, .league path.below { fill-opacity: 0.35; } .league .bar { stroke-opacity: 0.45; } .league .best { fill-opacity: 1; }
"""


class Point(NamedTuple):
    """A row of a league.

    Attributes:
        name: what stands beside it.
        kind: a key of ``KINDS``, which colours it.
        cost: > 0.
        metric, spread: mean and standard deviation.
    """

    name: str
    kind: str
    cost: float
    metric: float
    spread: float


class _Box(NamedTuple):
    x1: float
    y1: float
    x2: float
    y2: float

    def meets(self, other: _Box) -> bool:
        return self.x1 < other.x2 and other.x1 < self.x2 and self.y1 < other.y2 and other.y1 < self.y2


def scatter(
    label: str, points: Sequence[Point], front: Sequence[int], axes: tuple[str, str], higher_is_better: bool = True
) -> Markup:
    """Every point, the front as a staircase, and the names of those on it.

    Args:
        label: what the picture shows, for those who do not see it.
        points: at least one.
        front: places of the points on the Pareto front, in order of cost.
        axes: what the cost and the metric are called. The cost's axis is logarithmic.
        higher_is_better: of the metric; points that are far worse than most are drawn at the edge.

    Returns:
        An ``<svg>``.
    """
    low, high = window([(point.metric, point.spread) for point in points], higher_is_better)
    costs = [point.cost for point in points]
    across = _Across(math.log10(min(costs) / 1.15), math.log10(max(costs) * 1.25))
    up = _Up(low, high)
    at = [(across(point.cost), up(point.metric)) for point in points]
    drawn = [
        _mark(point, *place, up, number in front) for number, (point, place) in enumerate(zip(points, at, strict=True))
    ]
    parts = [
        Markup("<style>{}</style>").format(Markup(STYLE)),  # noqa: S704 - our own
        Markup('<rect class="ground" width="{}" height="{}"/>').format(WIDTH, HEIGHT),
        _frame(across, up, axes),
        _legend(points),
        _staircase([at[place] for place in front]),
        *drawn,
        *_names([(points[place].name, *at[place]) for place in front], at),
    ]
    return Markup(
        '<svg class="league" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH, HEIGHT, label, Markup("").join(parts))


def window(values: Sequence[tuple[float, float]], higher_is_better: bool = True) -> tuple[float, float]:
    """What the metric's axis holds: all of them, or, where a few are far off, the better three quarters.

    Args:
        values: (mean, spread).

    >>> low, high = window([(0.98, 0.0), (0.97, 0.0), (0.96, 0.0), (0.1, 0.0)])
    >>> 0.95 < low < 0.96 and 0.98 < high < 0.985
    True
    """
    ordered = sorted(values, key=lambda pair: pair[0], reverse=higher_is_better)
    most = ordered[: max(1, math.ceil(0.75 * len(ordered)))]
    held = most if abs(ordered[-1][0] - most[0][0]) > 3 * abs(most[-1][0] - most[0][0]) > 0 else ordered
    low, high = min(mean - spread for mean, spread in held), max(mean + spread for mean, spread in held)
    air = max(0.06 * (high - low), 1e-3 * abs(high), 1e-9)
    return low - air, high + air


class _Across(NamedTuple):
    """Cost to drawing units, logarithmic."""

    low: float
    high: float

    def __call__(self, cost: float) -> float:
        return round(LEFT + (math.log10(cost) - self.low) / (self.high - self.low) * (WIDTH - LEFT - RIGHT), 1)


class _Up(NamedTuple):
    """Metric to drawing units; what is out of the window lies on its edge."""

    low: float
    high: float

    def __call__(self, metric: float) -> float:
        inside = min(max(metric, self.low), self.high)
        return round(BASE - (inside - self.low) / (self.high - self.low) * (BASE - TOP), 1)

    def holds(self, metric: float) -> bool:
        return self.low <= metric <= self.high


def _mark(point: Point, x: float, y: float, up: _Up, best: bool) -> Markup:
    """A dot with its spread; a triangle at the edge where the point lies beyond."""
    title = f"{point.name}: {point.metric:.4f} ± {point.spread:.4f}, {point.cost:,.0f}"
    if not up.holds(point.metric):
        tip = 8 if point.metric < up.low else -8
        return Markup('<path class="{} below" d="M{} {}l-4 {}h8z"><title>{}</title></path>').format(
            point.kind, x, y, -tip, title
        )
    bar = Markup('<path class="{} bar" d="M{} {}V{}"/>').format(
        point.kind, x, up(point.metric - point.spread), up(point.metric + point.spread)
    )
    dot = Markup('<circle class="{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>')
    return (bar if point.spread else Markup("")) + dot.format(
        f"{point.kind} best" if best else point.kind, x, y, 5 if best else 4, title
    )


def _staircase(at: Sequence[tuple[float, float]]) -> Markup:
    """What can be had at which cost: from point to point, first along, then up."""
    if len(at) < 2:
        return Markup("")
    steps = "".join(f"H{x}V{y}" for x, y in at[1:])
    return Markup('<path class="front" d="M{} {}{}"/>').format(*at[0], steps)


def _names(labels: Sequence[tuple[str, float, float]], at: Sequence[tuple[float, float]]) -> list[Markup]:
    """Names beside their points, where there is room for them."""
    taken = [_Box(x - 5, y - 5, x + 5, y + 5) for x, y in at]
    parts = []
    for name, x, y in reversed(labels):
        width = CHARACTER * len(name)
        for shift_x, shift_y, end in (
            (-8, -5, True),
            (8, 12, False),
            (-8, 12, True),
            (8, -5, False),
            (-8, -18, True),
            (8, 25, False),
        ):
            left = x + shift_x - (width if end else 0)
            box = _Box(left, y + shift_y - LINE + 3, left + width, y + shift_y + 3)
            inside = box.x1 >= LEFT and box.x2 <= WIDTH and box.y1 >= TOP - 12 and box.y2 <= BASE
            if inside and not any(box.meets(other) for other in taken):
                taken.append(box)
                style = "name end" if end else "name"
                parts.append(
                    Markup('<text x="{}" y="{}" class="{}">{}</text>').format(x + shift_x, y + shift_y, style, name)
                )
                break
    return parts


def _frame(across: _Across, up: _Up, axes: tuple[str, str]) -> Markup:
    """Axes, grid at round values, and their words."""
    parts = []
    heights = report_figures.ticks(up.low, up.high, 5)
    places = max((len(f"{value:.6f}".rstrip("0").partition(".")[2]) for value in heights), default=0)
    for value in heights:
        y = up(value)
        parts.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(LEFT, y, WIDTH - RIGHT))
        parts.append(Markup('<text x="{}" y="{}" class="y">{}</text>').format(LEFT - 6, y + 4, f"{value:.{places}f}"))
    for value in log_ticks(across.low, across.high):
        x = across(value)
        parts.append(Markup('<path class="grid" d="M{} {}V{}"/>').format(x, TOP, BASE))
        parts.append(Markup('<text x="{}" y="{}" class="x">{}</text>').format(x, BASE + 15, f"{value:,.10g}"))
    cost, metric = axes
    parts.append(Markup('<path class="axis" d="M{} {}H{}"/>').format(LEFT, BASE, WIDTH - RIGHT))
    parts.append(Markup('<text x="{}" y="{}" class="x">{}</text>').format((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, cost))
    parts.append(Markup('<text x="{}" y="{}">{}</text>').format(6, 14, metric))
    return Markup("").join(parts)


def log_ticks(low: float, high: float) -> list[float]:
    """Values 1, 2 and 5 times a power of ten between two powers of ten; the powers alone where that were many.

    >>> log_ticks(0.3, 1.4), log_ticks(3.0, 3.5)
    ([2.0, 5.0, 10.0, 20.0], [1000.0, 2000.0])
    """
    powers = range(math.floor(low) - 1, math.ceil(high) + 1)
    factors = (1, 2, 5) if high - low < 3 else (1,)
    found = [factor * 10.0**power for power in powers for factor in factors]
    return [value for value in found if low - 1e-9 <= math.log10(value) <= high + 1e-9]


def _legend(points: Sequence[Point]) -> Markup:
    """The colours that are there."""
    parts, x = [], float(WIDTH - RIGHT)
    for kind in reversed([kind for kind in KINDS if any(point.kind == kind for point in points)]):
        words = KINDS[kind]
        parts.append(Markup('<text x="{}" y="14" class="end">{}</text>').format(x, words))
        x -= 1.15 * CHARACTER * len(words) + 8
        parts.append(Markup('<circle class="{} best" cx="{}" cy="10" r="4"/>').format(kind, x))
        x -= 16
    return Markup("").join(parts)
