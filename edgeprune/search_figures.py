"""Pictures of a search as SVG: all trials with the front, and how much of the box the front dominates after every trial.

A point tells what it is when the mouse rests on it or the keyboard comes to it, and leads to the trial's recipe below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from edgeprune import report_figures

WIDTH, HEIGHT = 760, 400  # units of the drawing
LEFT, RIGHT, TOP, BOTTOM = 58, 22, 30, 44
BASE = HEIGHT - BOTTOM
KINDS = {
    "stopped": "given up early",
    "trial": "trial",
    "front": "front of the trials",
    "trained": "trained in full",
    "whole": "uncut network",
}
STYLE = """
.search { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; display: block; width: 100%; height: auto; }
.search text { fill: var(--muted, #5a6472); } .search .x { text-anchor: middle; } .search .y, .search .end { text-anchor: end; }
.search .grid { stroke: var(--line, #d8dde4); } .search .axis { stroke: var(--muted, #5a6472); }
.search .step { fill: none; stroke: var(--final, #0d8a6f); stroke-width: 1.6; }
.search .limit { stroke: var(--bad, #c2571a); stroke-dasharray: 5 4; }
.search .stopped { fill: var(--float, #7d8897); opacity: 0.3; } .search .trial { fill: var(--train, #3f7fd0); opacity: 0.45; }
.search .front { fill: var(--final, #0d8a6f); } .search .trained { fill: var(--val, #c2571a); } .search .whole { fill: var(--fg, #1a1f26); }
.search .told { visibility: hidden; fill: var(--fg, #1a1f26); paint-order: stroke; stroke: var(--card, #fff); stroke-width: 4px; }
.search a:hover .told, .search a:focus .told { visibility: visible; }
.search a:hover circle, .search a:focus circle { stroke: var(--fg, #1a1f26); stroke-width: 2; }
"""


class Point(NamedTuple):
    """A candidate.

    Attributes:
        kind: a key of ``KINDS``.
        cost, drop: where it lies.
        words: what is told of it.
        anchor: where its recipe stands on the page; "": nowhere.
    """

    kind: str
    cost: float
    drop: float
    words: str
    anchor: str


def scatter(
    label: str, points: Sequence[Point], axes: tuple[str, str], limits: tuple[float | None, float | None]
) -> Markup:
    """The drop of every candidate against a cost.

    Args:
        label: for those who do not see it.
        points: at least one.
        axes: what the cost and the drop are called.
        limits: the most that is allowed of the cost and of the drop, where there is a limit.
    """
    shown = [point for point in points if point.kind != "stopped"] or points
    right = max(point.cost for point in points) * 1.05
    low = min(0.0, *(point.drop for point in points))
    high = max(max(point.drop for point in shown), limits[1] or 0.0, 1e-3)
    across, up = _scale(0.0, right, LEFT, WIDTH - RIGHT), _scale(low - 0.04 * (high - low), high * 1.05, BASE, TOP)
    order = list(KINDS)
    drawn = [
        _point(point, across(point.cost), up(min(point.drop, high)))
        for point in sorted(points, key=lambda p: order.index(p.kind))
    ]
    parts = [_frame(across, up, (0.0, right), (low, high), axes), _legend(points), _limits(across, up, limits), *drawn]
    return _svg(label, parts)


def course(label: str, values: Sequence[float], axes: tuple[str, str]) -> Markup:
    """A figure after every trial, as a staircase."""
    top = max(*values, 1e-6) * 1.08
    across, up = _scale(0.0, float(len(values)), LEFT, WIDTH - RIGHT), _scale(0.0, top, BASE, TOP)
    steps = "".join(f"H{across(number)}V{up(value)}" for number, value in enumerate(values, 1))
    path = Markup('<path class="step" d="M{} {}{}"/>').format(across(0.0), up(0.0), steps)
    return _svg(label, [_frame(across, up, (0.0, float(len(values))), (0.0, top), axes), path])


def _svg(label: str, parts: Sequence[Markup]) -> Markup:
    return Markup(
        '<svg class="search" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img" aria-label="{}"><style>{}</style>{}</svg>'
    ).format(
        WIDTH,
        HEIGHT,
        label,
        Markup(STYLE),  # noqa: S704 - our own
        Markup("").join(parts),
    )


Scale = Callable[[float], float]


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    span = high - low or 1.0
    return lambda value: round(start + (value - low) / span * (end - start), 1)


def _point(point: Point, x: float, y: float) -> Markup:
    radius = {"stopped": 2.5, "trial": 3.5}.get(point.kind, 5)
    dot = Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format(point.kind, x, y, radius)
    end = x > WIDTH / 2
    words = Markup('<text class="told{}" x="{}" y="{}">{}</text>').format(
        " end" if end else "", x - 9 if end else x + 9, max(y - 9, TOP), point.words
    )
    title = Markup("<title>{}</title>").format(point.words)
    if not point.anchor:
        return Markup('<a tabindex="0">{}{}{}</a>').format(title, dot, words)
    return Markup('<a href="#{}">{}{}{}</a>').format(point.anchor, title, dot, words)


def _frame(
    across: Scale, up: Scale, wide: tuple[float, float], tall: tuple[float, float], axes: tuple[str, str]
) -> Markup:
    parts = []
    for value in report_figures.ticks(*tall, 5):
        parts.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(LEFT, up(value), WIDTH - RIGHT))
        parts.append(Markup('<text x="{}" y="{}" class="y">{}</text>').format(LEFT - 6, up(value) + 4, f"{value:.4g}"))
    for value in report_figures.ticks(*wide, 7):
        parts.append(Markup('<path class="grid" d="M{} {}V{}"/>').format(across(value), TOP, BASE))
        parts.append(
            Markup('<text x="{}" y="{}" class="x">{}</text>').format(across(value), BASE + 15, f"{value:,.6g}")
        )
    parts.append(Markup('<path class="axis" d="M{} {}H{}"/>').format(LEFT, BASE, WIDTH - RIGHT))
    parts.append(
        Markup('<text x="{}" y="{}" class="x">{}</text>').format((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, axes[0])
    )
    parts.append(Markup('<text x="6" y="14">{}</text>').format(axes[1]))
    return Markup("").join(parts)


def _limits(across: Scale, up: Scale, limits: tuple[float | None, float | None]) -> Markup:
    cost, drop = limits
    parts = []
    if cost is not None:
        parts.append(
            Markup('<path class="limit" d="M{} {}V{}"><title>limit</title></path>').format(across(cost), TOP, BASE)
        )
    if drop is not None:
        parts.append(
            Markup('<path class="limit" d="M{} {}H{}"><title>limit</title></path>').format(
                LEFT, up(drop), WIDTH - RIGHT
            )
        )
    return Markup("").join(parts)


def _legend(points: Sequence[Point]) -> Markup:
    """Every dot just before its word, whatever the word's width comes to; what is left over stands before the next dot."""
    parts, x = [], float(WIDTH - RIGHT)
    for kind in reversed([kind for kind in KINDS if any(point.kind == kind for point in points)]):
        x -= 6.6 * len(KINDS[kind])
        parts.append(Markup('<text x="{}" y="14">{}</text>').format(x, KINDS[kind]))
        x -= 9
        parts.append(Markup('<circle class="{}" cx="{}" cy="10" r="4"/>').format(kind, x))
        x -= 18
    return Markup("").join(parts)
