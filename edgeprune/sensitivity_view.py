"""What a sensitivity analysis says, in words, and as a page: one self-contained HTML file that sends no request."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from edgeprune import report_figures, report_html, sensitivity, sensitivity_ratios
from edgeprune.report_view import big, count, decimals, percent, points, signed

Plain = Mapping[str, Any]
AXES = report_figures.Axes("share of channels removed", "MACs saved", False)
COSTS = {"macs": "MACs", "params": "parameters", "latency_ms": "ms"}  # what costs are called
MOST_HEAT = 0.45  # how opaque the colour of the worst cell is, so that its figures can be read


class Cell(NamedTuple):
    """A point in a table.

    Attributes:
        change: of the metric, short: ``−1.39``.
        metric: its value.
        saved: share of the model's MACs that the cut saves.
        heat: 0 for no loss, `MOST_HEAT` for the largest in the table.
        title: the whole point in words.
        good: whether it is within the drop that was asked for, or None.
    """

    change: str
    metric: str
    saved: str
    heat: float
    title: str
    good: bool | None


class Row(NamedTuple):
    """A group in a table: its cells in the order of the ratios, None where the cut would be the one before it."""

    name: str
    channels: str
    cells: Sequence[Cell | None]


def headline(result: Plain) -> str:
    """The group that loses least and the one that loses most, each where about half of it goes."""
    middle = {group["name"]: _middle(group) for group in result["groups"] if group["points"]}
    if not middle:
        return f"{len(result['blocks'])} branches that can go whole"
    easiest, hardest = (pick(middle, key=lambda name: middle[name]["drop"]) for pick in (min, max))
    if easiest == hardest:
        return _lost(result, easiest, middle)
    return f"Easiest to cut: {_lost(result, easiest, middle)}. Hardest: {_lost(result, hardest, middle)}"


def _lost(result: Plain, name: str, middle: Mapping[str, Plain]) -> str:
    point = middle[name]
    return f"{name} ({change(result, point['drop'], True)} at {percent(point['removed'])})".replace(" %", "\u00a0%")


def _middle(group: Plain) -> Plain:
    """The point that is nearest to half of the group."""
    found: Plain = min(group["points"], key=lambda point: abs(point["removed"] - 0.5))
    return found


def summary(result: Plain) -> str:
    """On what, by what, for what: one sentence or two."""
    metric, macs = result["metric"], result["costs"]["macs"]
    split = {"calibration": "calibration (no validation split; these are training samples)"}
    where = split.get(result["split"], f"{result['split']} (never trained on, never those of the test)")
    return (
        f"Uncut: {metric['name']} {decimals(metric['value'])}, {big(macs)} MACs, {big(result['costs']['params'])} parameters. "
        f"Every figure is of one group cut alone, without fine-tuning, on {count(result['samples'])} samples of the split "
        f"{where}. The channels that {result['criterion']} ranks lowest go first, {_steps(result)}."
    )


def _steps(result: Plain) -> str:
    if result["multiple"] is None:
        return f"in steps that pay on {result['target_title']}"
    return "as many as the ratio says" if result["multiple"] == 1 else f"in steps of {result['multiple']}"


def resolution(result: Plain) -> str:
    """How coarse the figures are, for a metric that counts samples; empty for others."""
    if not result["metric"]["name"].startswith("accuracy"):
        return ""
    return f"One sample is {points(1 / result['samples'])} points: smaller differences than a few of these say nothing."


def in_points(result: Plain) -> bool:
    """Whether the metric is a share, so that differences are read as points of 100."""
    values = [result["metric"]["value"], *(point["metric"] for point in sensitivity.points(result))]
    return bool(result["metric"]["higher_is_better"]) and all(0 <= value <= 1 for value in values)


def change(result: Plain, drop: float, unit: bool = False) -> str:
    """What the metric does: '−1.39', with ``unit`` '−1.39 points'; an error that grows is '+0.0120'."""
    if not drop:
        return "±0"
    if in_points(result):
        return signed(-drop, f"{100 * abs(drop):.{1 if abs(drop) >= 0.1 else 2}f}{' points' if unit else ''}")
    up = result["metric"]["higher_is_better"] == (drop < 0)
    return signed(1 if up else -1, f"{decimals(abs(drop))}{' ' + result['metric']['name'] if unit else ''}")


def unit(result: Plain) -> str:
    """What the figures of ``change`` are: 'points of accuracy', 'mae'."""
    name = str(result["metric"]["name"])
    return f"points of {name}" if in_points(result) else name


def rows(result: Plain) -> list[Row]:
    """The groups that have points."""
    worst = max([point["drop"] for point in sensitivity.points(result)], default=0.0)
    found = []
    for group in result["groups"]:
        by_ratio = {point["ratio"]: point for point in group["points"]}
        cells = [_cell(result, by_ratio.get(ratio), worst, group) for ratio in result["ratios"]]
        if by_ratio:
            found.append(Row(group["name"], count(group["units"] * group["step"]), cells))
    return found


def _cell(result: Plain, point: Plain | None, worst: float, group: Plain) -> Cell | None:
    if point is None:
        return None
    most = result["max_drop"]
    left, all_ = point["kept"] * group["step"], group["units"] * group["step"]
    return Cell(
        change(result, point["drop"]),
        decimals(point["metric"]),
        saved(result, point),
        round(MOST_HEAT * max(point["drop"], 0.0) / worst, 3) if worst > 0 else 0.0,
        f"{group['name']}, {left} of {all_} channels stay: {result['metric']['name']} {decimals(point['metric'])} "
        f"({change(result, point['drop'], True)}); saves {savings(result, point)}",
        None if most is None else point["drop"] <= most,
    )


def saved(result: Plain, point: Plain, name: str = "macs") -> str:
    """The share of the whole model's cost that is saved: '12.5 %'."""
    whole = result["costs"][name]
    return percent(point[f"{name}_saved"] / whole) if whole else ""


def savings(result: Plain, point: Plain) -> str:
    """All that is saved: '12.5 k MACs (3.1 %), 640 parameters (3.2 %)'."""
    return ", ".join(
        f"{_amount(name, point)} {COSTS.get(name, name)} ({saved(result, point, name)})" for name in result["costs"]
    )


def _amount(name: str, point: Plain) -> str:
    """How much of a cost is saved: counts in k, M or G, all else in three figures."""
    value = point[f"{name}_saved"]
    return big(value) if name in ("macs", "params") else f"{value:.3g}"


def whole(result: Plain) -> list[tuple[str, str]]:
    """Why groups have no points: reason and names."""
    by_reason: dict[str, list[str]] = {}
    for group in result["groups"]:
        if group["reason"]:
            by_reason.setdefault(group["reason"], []).append(group["name"])
    return [(why, ", ".join(names)) for why, names in by_reason.items()]


def together(result: Plain) -> str:
    """What the chosen ratios do all at once; empty where none were asked for."""
    if result["together"] is None:
        return ""
    if not any(result["chosen"].values()):
        return f"No group can be cut at these ratios for at most {decimals(result['max_drop'])} of {result['metric']['name']}."
    point = result["together"]
    return (
        f"All chosen ratios at once, before any fine-tuning: {result['metric']['name']} {decimals(point['metric'])} "
        f"({change(result, point['drop'], True)}); saves {savings(result, point)}. What groups lose alone does not add up."
    )


def usage(result: Plain, folder: str) -> str:
    """The command that uses the chosen ratios, in the place of the recipe's own aim."""
    data = f" --data {shlex.quote(result['data'])}"
    changes = ("macs=null", "scope=layer", f"ratios={folder}/ratios.yaml")
    sets = "".join(f" --set {shlex.quote(f'stages.shrink.{change}')}" for change in changes)
    return f"edgeprune build {shlex.quote(result['origin'])}{data} --target {result['target']} --recipe shrink50{sets}"


# The page


def html(result: Plain) -> str:
    """The page of a result; the same result gives the same bytes."""
    return report_html.render(
        "sensitivity.html.j2",
        title=f"Sensitivity of {result['model']}",
        result=result,
        headline=headline(result),
        summary=summary(result),
        resolution=resolution(result),
        unit=unit(result),
        ratios=[f"{ratio:g}" for ratio in result["ratios"]],
        rows=rows(result),
        blocks=[_branch(result, block) for block in result["blocks"]],
        pictures=[(_title(group), picture(result, group)) for group in result["groups"] if group["points"]],
        whole=whole(result),
        inexact=[
            (group["name"], "; ".join(group["inexact"]))
            for group in result["groups"]
            if group["inexact"] and group["points"]
        ],
        lines=_lines(result),
        costs=[COSTS.get(name, name) for name in result["costs"]],
        together=together(result),
        fragment=sensitivity_ratios.fragment(result) if result["chosen"] else "",
    )


def picture(result: Plain, group: Plain) -> Markup:
    """The metric over the share of the group's channels that went, before the MACs that this saves; scales as in all others."""
    metric, macs = result["metric"], result["costs"]["macs"] or 1
    curve = [(0.0, metric["value"]), *((point["removed"], point["metric"]) for point in group["points"])]
    area = [(0.0, 0.0), *((point["removed"], point["macs_saved"] / macs) for point in group["points"])]
    every = [point["metric"] for one in result["groups"] for point in one["points"]]
    label = f"{metric['name']} and MACs saved over the share of {group['name']} that is removed"
    series = [report_figures.Series(metric["name"], "train", curve)]
    return report_figures.curves(label, series, area, AXES, [metric["value"], *every])


def _title(group: Plain) -> str:
    more = f" (made by {len(group['layers'])} layers)" if len(group["layers"]) > 1 else ""
    return f"{group['name']}, {count(group['units'] * group['step'])} channels{more}"


def _branch(result: Plain, block: Plain) -> dict[str, str]:
    return {
        "name": block["name"],
        "layers": ", ".join(block["layers"]),
        "metric": decimals(block["metric"]),
        "change": change(result, block["drop"]),
        "saved": saved(result, block),
    }


def _lines(result: Plain) -> list[dict[str, Any]]:
    """Every point of every group, for the long table."""
    return [
        {
            "group": group["name"],
            "ratio": f"{point['ratio']:g}",
            "kept": f"{point['kept'] * group['step']} of {group['units'] * group['step']}",
            "metric": decimals(point["metric"]),
            "change": change(result, point["drop"]),
            "saved": [f"{_amount(name, point)} ({saved(result, point, name)})" for name in result["costs"]],
        }
        for group in result["groups"]
        for point in group["points"]
    ]
