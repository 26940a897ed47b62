"""The league of criteria as tables and as a picture, from what benchmarks/criteria_league.py measured.

Pure functions of the record; ``docs/generate.py`` writes what they return. Cells that are not there yet are left out, and the
text says how many there are.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from page_parts import table, text

Cell = Mapping[str, Any]
Record = Mapping[str, Any]

IMAGE = "![Accuracy against the share of multiply-accumulates left, for every criterion](pictures/criteria_league.svg)"
BASELINE = "random"
SCHEDULES = ("one-shot", "iterative")
WIDTH, HEIGHT = 1100, 780  # of the picture
LEAST_LEFT = 0.0  # at the right edge; MACs fall from left to right
PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, GAP_X, GAP_Y = 300, 250, 64, 120, 240, 100
COLOURS = {"best": "#0072b2", "worst": "#d55e00", "random": "#000000", "other": "#c4c4c4"}  # Okabe & Ito
SHIFTS = {"best": -5.0, "random": 0.0, "worst": 5.0}  # so that the spreads do not hide each other


class Figure(NamedTuple):
    """Mean and sample standard deviation over seeds; the latter 0 with one seed."""

    mean: float
    spread: float
    seeds: int

    def __str__(self) -> str:
        if self.seeds == 1:
            return f"{self.mean:.3f} (1 seed)"
        return f"{self.mean:.3f} ± {self.spread:.3f}" + (" (2 seeds)" if self.seeds == 2 else "")


def figure(cells: Iterable[Cell], key: str = "metric") -> Figure | None:
    """What cells that differ in their seed alone say together; None if none of them has the figure."""
    values = [cell[key] for cell in cells if key in cell]
    if not values:
        return None
    return Figure(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))


# Tables


def tables(record: Record) -> str:
    """Every league of every network, best first, and what stands out."""
    parts = [IMAGE, _state(record), _together(record)]
    for network in record["networks"]:
        parts.append(f"### {network}\n\n{_float(record, network)}")
        for aim in sorted(record["aims"]["channels"]):
            parts.append(_channels(record, network, aim))
        parts.append(_weights(record, network))
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _state(record: Record) -> str:
    done, planned = len(record["cells"]), record["planned"]
    if done >= planned:
        return f"All {planned} cells are there."
    return f"**{done} of {planned} cells are there**; tables and picture show those, and say where seeds are missing."


def _together(record: Record) -> str:
    """Which place every criterion has among those that cut as much, over networks, shares and schedules."""
    places: dict[str, list[int]] = {}
    for network, aim, schedule in product(record["networks"], record["aims"]["channels"], SCHEDULES):
        groups = _by_criterion(_scheduled(_of(record, network, "channels", aim), schedule))
        found = {
            name: one.mean
            for name, cells in groups.items()
            if (one := figure(cells)) and not any("left_whole" in cell for cell in cells)
        }
        for place, name in enumerate(sorted(found, key=lambda name: -found[name]), 1):
            places.setdefault(name, []).append(place)
    if not places:
        return ""
    most = max(map(len, places.values()))
    rows = [
        (_named(name), f"{statistics.fmean(each):.1f}", str(min(each)), str(max(each)), f"{len(each)} of {most}")
        for name, each in sorted(places.items(), key=lambda item: statistics.fmean(item[1]))
    ]
    head = ("criterion", "mean place", "best", "worst", "cuts")
    return f"### All cuts of channels together\n\n{table(head, rows)}"


def _float(record: Record, network: str) -> str:
    """The uncut network and how it was trained and judged."""
    facts = record["networks"][network]
    rows = [row for name, row in record["float"].items() if name.startswith(f"{network}, seed ")]
    samples = (
        f"Trained on {facts['float_samples']:,} images for {facts['float_epochs']} epochs, fine-tuned on {facts['samples']:,} of them for "
        f"{record['fine_tuning']['epochs']} epochs in all, judged on {facts['test']:,} test images."
    )
    found = figure(rows)
    if found is None:
        return samples
    one = rows[0]
    size = f", {one['int8_bytes'] / 1024:.1f} KiB as int8" if "int8_bytes" in one else ""
    cost = f"{one['macs']:,} MACs, {one['params']:,} parameters{size}"
    noise = math.sqrt(found.mean * (1 - found.mean) / facts["test"])
    return f"Uncut: accuracy {found}, {cost}. {samples} So many test images tell an accuracy to about ± {noise:.3f}."


def _channels(record: Record, network: str, aim: float) -> str:
    """One network that lost one share of its channels."""
    groups = _by_criterion(_of(record, network, "channels", aim))
    if not groups:
        return f"#### {aim:g} of the channels gone\n\nNot measured yet."
    rows, absent, apart = [], [], []
    for name, cells in groups.items():
        if reasons := [cell["reason"] for cell in cells if "reason" in cell]:
            absent.append((name, reasons[0]))
            continue
        tuned = [figure(_scheduled(cells, schedule)) for schedule in SCHEDULES]
        cost = [statistics.fmean(cell[key] for cell in cells) for key in ("macs", "params", "int8_bytes")]
        words = [str(found) if found else "" for found in (figure(cells, "metric_untuned"), *tuned)]
        if whole := cells[0].get("left_whole"):
            apart.append(
                f"`{name}` cannot score {_listed(whole)} and leaves them whole: it cuts less, and is not compared."
            )
        row = (_named(name), *words, f"{cost[0]:,.0f}", f"{cost[1]:,.0f}", f"{cost[2] / 1024:.1f}")
        rows.append(((not whole, _rank(tuned)), row))
    rows.sort(key=lambda pair: pair[0], reverse=True)
    head = ("criterion", "at once, untuned", "at once", "in three rounds", "MACs", "parameters", "int8, KiB")
    notes = [
        *(_noticed(groups, schedule) for schedule in SCHEDULES),
        *(f"`{name}` does not take part: {reason.rstrip('.')}." for name, reason in absent),
        *apart,
    ]
    return (
        f"#### {aim:g} of the channels gone\n\n{table(head, [row for _, row in rows])}\n{' '.join(filter(None, notes))}"
    )


def _weights(record: Record, network: str) -> str:
    """One network with zeros among its weights."""
    aims = sorted(record["aims"]["weights"])
    by_aim = {aim: _by_criterion(_of(record, network, "weights", aim)) for aim in aims}
    names = list(dict.fromkeys(name for groups in by_aim.values() for name in groups))
    if not names:
        return "#### Single weights\n\nNot measured yet."
    rows, absent = [], []
    for name in names:
        cells = [by_aim[aim].get(name, []) for aim in aims]
        if reasons := [cell["reason"] for part in cells for cell in part if "reason" in cell]:
            absent.append(f"`{name}` does not take part: {reasons[0].rstrip('.')}.")
            continue
        found = [figure(part) for part in cells]
        words = [str(one) if one else "" for part in cells for one in (figure(part, "metric_untuned"), figure(part))]
        rows.append((_rank(found[::-1]), (_named(name), *words)))
    rows.sort(key=lambda pair: pair[0], reverse=True)
    head = ("criterion", *(word for aim in aims for word in (f"{aim:g} zeros, untuned", f"{aim:g} zeros")))
    return f"#### Single weights\n\n{table(head, [row for _, row in rows])}\n{' '.join(absent)}"


def _of(record: Record, network: str, league: str, aim: float) -> list[Cell]:
    wanted = (network, league, aim)
    return [cell for cell in record["cells"] if (cell["network"], cell["league"], cell["aim"]) == wanted]


def _by_criterion(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell["criterion"], []).append(cell)
    return groups


def _scheduled(cells: Iterable[Cell], schedule: str) -> list[Cell]:
    return [cell for cell in cells if cell["schedule"] == schedule]


def _rank(found: Sequence[Figure | None]) -> float:
    """What rows are sorted by: the mean of what is there."""
    return statistics.fmean([one.mean for one in found if one] or [-1.0])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _named(criterion: str) -> str:
    return f"**`{criterion}`**" if criterion == BASELINE else f"`{criterion}`"


def _noticed(groups: Mapping[str, Sequence[Cell]], schedule: str) -> str:
    """How many criteria chance leaves behind, in one sentence; empty until all have as many seeds."""
    whole = {name for name, cells in groups.items() if any("left_whole" in cell for cell in cells)}
    found = {
        name: one
        for name, cells in groups.items()
        if (one := figure(_scheduled(cells, schedule))) and name not in whole
    }
    chance = found.pop(BASELINE, None)
    if chance is None or not found or any(one.seeds != chance.seeds for one in found.values()) or chance.seeds < 2:
        return ""
    better = sum(one.mean - one.spread > chance.mean + chance.spread for one in found.values())
    worse = sum(one.mean + one.spread < chance.mean - chance.spread for one in found.values())
    how = "At once" if schedule == "one-shot" else "In three rounds"
    return f"{how}, {better} of {len(found)} criteria are above `{BASELINE}` by more than the spreads of both, {worse} below."


# Picture


class _Panel(NamedTuple):
    """One network and schedule: where it is drawn, and accuracies to drawing units."""

    x: float
    y: float
    low: float
    high: float

    def across(self, share: float) -> float:
        return self.x + 20 + (PANEL_WIDTH - 40) * (1 - share) / (1 - LEAST_LEFT)

    def up(self, value: float) -> float:
        return self.y + PANEL_HEIGHT * (self.high - value) / ((self.high - self.low) or 1.0)


def picture(record: Record) -> str:
    """Accuracy against MACs as an SVG: every criterion, and by colour the best, the worst and chance.

    Colours and fonts are its own, on a white ground, as an image in a page takes none from it.
    """
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="Accuracy after fine-tuning against the share of multiply-accumulates left, for every criterion" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#222222">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        text(
            LEFT, 30, "What channels are chosen by: accuracy against the share of MACs left", "start", 'font-size="18"'
        ),
        _legend(record),
    ]
    for row, network in enumerate(record["networks"]):
        lines = {schedule: _curves(record, network, schedule) for schedule in SCHEDULES}
        low, high = _range([point for found in lines.values() for points in found.values() for point in points])
        for column, schedule in enumerate(SCHEDULES):
            panel = _Panel(LEFT + column * (PANEL_WIDTH + GAP_X), TOP + row * (PANEL_HEIGHT + GAP_Y), low, high)
            how = "cut at once" if schedule == "one-shot" else "cut in three rounds"
            parts += [_frame(panel, f"{network}, {how}"), _drawn(panel, lines[schedule])]
    return "\n".join([*parts, "</svg>"]) + "\n"


Point = tuple[float, Figure]


def _curves(record: Record, network: str, schedule: str) -> dict[str, list[Point]]:
    """Criterion -> accuracy at every share of the uncut network's MACs, in order; the first point is the uncut one's.

    Criteria that leave groups whole are left out: they cut less.
    """
    rows = [row for name, row in record["float"].items() if name.startswith(f"{network}, seed ")]
    uncut = figure(rows)
    if uncut is None:
        return {}
    found: dict[str, list[Point]] = {}
    for aim in sorted(record["aims"]["channels"]):
        for name, cells in _by_criterion(_scheduled(_of(record, network, "channels", aim), schedule)).items():
            accuracy = figure(cells)
            if accuracy and not any("left_whole" in cell for cell in cells):
                macs = statistics.fmean(cell["macs"] for cell in cells if "macs" in cell)
                found.setdefault(name, [(1.0, uncut)]).append((macs / rows[0]["macs"], accuracy))
    return found


def _range(points: Sequence[Point]) -> tuple[float, float]:
    edges = [edge for _, one in points for edge in (one.mean - one.spread, one.mean + one.spread)] or [0.0, 1.0]
    air = 0.04 * (max(edges) - min(edges)) or 0.01
    return min(edges) - air, max(edges) + air


def _roles(curves: Mapping[str, Sequence[Point]]) -> dict[str, str]:
    """Criterion -> how it is drawn; best and worst where the least is left, of those that were cut that far."""
    longest = max(map(len, curves.values()), default=0)
    last = {name: points[-1][1].mean for name, points in curves.items() if len(points) == longest and name != BASELINE}
    roles = dict.fromkeys(curves, "other")
    if last:
        roles |= {min(last, key=lambda name: last[name]): "worst", max(last, key=lambda name: last[name]): "best"}
    return roles | ({BASELINE: "random"} if BASELINE in curves else {})


def _drawn(panel: _Panel, curves: Mapping[str, Sequence[Point]]) -> str:
    if not curves:
        return text(panel.x + PANEL_WIDTH / 2, panel.y + PANEL_HEIGHT / 2, "not measured yet", "middle")
    roles = _roles(curves)
    order = sorted(curves, key=lambda name: ("other", "worst", "random", "best").index(roles[name]))
    parts = [_curve(panel, name, curves[name], roles[name]) for name in order]
    marked = {name: curves[name][-1] for name in curves if roles[name] != "other"}
    return "\n".join([*parts, *_labels(panel, marked, roles)])


def _curve(panel: _Panel, name: str, points: Sequence[Point], role: str) -> str:
    colour, shift = COLOURS[role], SHIFTS.get(role, 0.0)
    at = [(panel.across(share) + shift * (share < 1), panel.up(one.mean)) for share, one in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    wide, dashed = (1, "") if role == "other" else (2.2, ' stroke-dasharray="6 4"' if role == "random" else "")
    parts = [f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{wide}"{dashed}/>']
    if role != "other":
        for (x, y), (_, one) in zip(at[1:], points[1:], strict=True):
            low, high = panel.up(one.mean - one.spread), panel.up(one.mean + one.spread)
            parts.append(
                f'<path d="M{x:.1f} {low:.1f}V{high:.1f}M{x - 3:.1f} {low:.1f}h6M{x - 3:.1f} {high:.1f}h6" '
                f'stroke="{colour}" stroke-width="1.6" fill="none"/>'
            )
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4" fill="{colour}"><title>{name}: {one}</title></circle>'
            )
    return "\n".join(parts)


def _labels(panel: _Panel, marked: Mapping[str, Point], roles: Mapping[str, str]) -> list[str]:
    """Names at the right of the last points, moved apart where they would cover each other."""
    parts, lowest = [], -math.inf
    for name, (_, one) in sorted(marked.items(), key=lambda pair: -pair[1][1].mean):
        y = lowest = max(panel.up(one.mean) + 4, lowest + 15)
        colour = COLOURS[roles[name]]
        style = f'fill="{colour}" font-weight="bold" stroke="#ffffff" stroke-width="3" paint-order="stroke"'
        parts.append(text(panel.x + PANEL_WIDTH + 8, y, f"{name} {one.mean:.3f}", "start", style))
    return parts


def _frame(panel: _Panel, title: str) -> str:
    """Title, axes, grid and their words."""
    base = panel.y + PANEL_HEIGHT
    parts = [text(panel.x, panel.y - 10, title, "start", 'font-weight="bold"')]
    for value in _ticks(panel.low, panel.high):
        y = panel.up(value)
        parts.append(f'<path d="M{panel.x} {y:.1f}h{PANEL_WIDTH}" stroke="#e6e6e6"/>')
        parts.append(text(panel.x - 8, y + 4, f"{value:g}", "end"))
    for share in (0.2, 0.4, 0.6, 0.8, 1.0):
        parts.append(text(panel.across(share), base + 18, f"{share:g}", "middle"))
    parts.append(f'<path d="M{panel.x} {panel.y}V{base}h{PANEL_WIDTH}" stroke="#666666" fill="none"/>')
    parts.append(text(panel.x + PANEL_WIDTH / 2, base + 38, "share of the MACs left", "middle"))
    return "\n".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Round values, some five of them, inside a range."""
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= (high - low) / 5)
    return [round(step * place, 10) for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _legend(record: Record) -> str:
    words = {
        "best": "best where least is left",
        "random": "random, the baseline",
        "worst": "worst",
        "other": "all other criteria",
    }
    parts, x = [], float(LEFT)
    for role, label in words.items():
        dashed = ' stroke-dasharray="6 4"' if role == "random" else ""
        parts.append(f'<path d="M{x} 52h26" stroke="{COLOURS[role]}" stroke-width="2.4"{dashed}/>')
        parts.append(text(x + 32, 56, label, "start"))
        x += 58 + 6.6 * len(label)
    done, planned = len(record["cells"]), record["planned"]
    state = "" if done >= planned else f"; {done} of {planned} cells"
    return "\n".join([*parts, text(LEFT, 78, f"bars: sample standard deviation over seeds{state}", "start")])
