"""What a report says of the attempts that budgets took: in words, as a table, and as pictures of drop against cost."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from edgeprune import budget_limits
from edgeprune.report_figures import Axes, Series, curves
from edgeprune.report_view import ABSENT, Block, block, count, decimals, number, percent, rows

CUTS_SHOWN = 6  # groups, in a cell


def words(report: Block) -> list[str]:
    """What came of the search, and on what it was judged; empty where the budgets drove nothing."""
    given = block(report, "budgeting")
    if not given:
        return []
    split = (
        "the validation split" if given.get("split") == "validation" else "calibration samples, which were trained on"
    )
    return [
        str(given.get("verdict", "")),
        f"Drops of attempts are judged on {count(number(given.get('samples')) or 0)} samples of {split}; the figures above are "
        "of the test split, on which nothing was chosen.",
    ]


def paragraphs(report: Block) -> list[str]:
    """The same for the terminal, with a line for each attempt."""
    lines = [f"{row['number']}: {row['drop']}, {row['costs']}{row['verdict']}" for row in table(report)]
    return [*words(report), *lines]


def table(report: Block) -> list[dict[str, Any]]:
    """A row for each attempt: ``number``, ``why``, ``drop``, ``costs``, ``kept``, ``chosen`` and ``verdict``."""
    limits = block(block(report, "budgeting"), "limits")
    return [_row(entry, limits) for entry in rows(report, "attempts")]


def _row(entry: Block, limits: Block) -> dict[str, Any]:
    costs = block(entry, "costs")
    asked = [name for name in costs if name in limits] or [name for name in costs if name in budget_limits.NAMES]
    same, chosen = entry.get("same_as"), entry.get("chosen") is True
    return {
        "number": f"{entry.get('number', '?')}",
        "why": str(entry.get("why", "")) + (f"; the same cut as attempt {same}" if same else ""),
        "drop": _drop(entry),
        "costs": ", ".join(_cost(name, number(costs[name]), number(limits.get(name))) for name in asked),
        "kept": _kept(block(entry, "kept")),
        "chosen": chosen,
        "verdict": ": taken" if chosen else "",
    }


def _drop(entry: Block) -> str:
    """'drop 0.0069 ± 0.0049'."""
    drop, error = number(entry.get("drop")), number(entry.get("drop_error"))
    if drop is None:
        return f"drop {ABSENT}"
    return f"drop {decimals(drop)}" + ("" if error is None else f" ± {decimals(error)}")


def _cost(name: str, value: float | None, most: float | None) -> str:
    """'latency 1.25 ms (97 % of the limit)'."""
    if value is None:
        return f"{name} {ABSENT}"
    share = "" if not most else f" ({percent(value / most)} of the limit)"
    return budget_limits.amount(name, value) + share


def _kept(kept: Block) -> str:
    """'conv1 16 to 8, conv2 32 to 24', units of the groups that lost some."""
    cut = [f"{name} {whole} to {left}" for name, (left, whole) in kept.items() if left != whole]
    more = f" and {len(cut) - CUTS_SHOWN} more" if len(cut) > CUTS_SHOWN else ""
    return ", ".join(cut[:CUTS_SHOWN]) + more if cut else "nothing is cut"


def pictures(report: Block) -> list[tuple[str, Markup]]:
    """For every cost that was limited (or made small) its title and the attempts, drop over cost, with the limits."""
    given = block(report, "budgeting")
    names = list(block(given, "limits")) or [str(given.get("objective", ""))]
    return [(_title(name), _picture(report, given, name)) for name in names if number(block(given, "whole").get(name))]


def _title(name: str) -> str:
    return budget_limits.LIMITS[budget_limits.NAMES[name]].title if name in budget_limits.NAMES else name


def _picture(report: Block, given: Block, name: str) -> Markup:
    """Attempts as dots; the limits of cost and drop as lines, below and left of which is what was asked for."""
    whole = number(block(given, "whole").get(name)) or 1.0
    dots = [
        (str(entry.get("number")), entry.get("chosen") is True, cost / whole, drop)
        for entry in rows(report, "attempts")
        if (cost := number(block(entry, "costs").get(name))) is not None
        and (drop := number(entry.get("drop"))) is not None
    ]
    most, drop_limit = number(block(given, "limits").get(name)), number(given.get("max_drop"))
    heights = [0.0, *(drop for *_, drop in dots), *([] if drop_limit is None else [drop_limit])]
    lines = [] if drop_limit is None else [Series("most drop", "zeros", [(0.0, drop_limit), (1.0, drop_limit)])]
    if most is not None and most <= whole:
        lines.append(Series("limit", "zeros", [(most / whole, min(heights)), (most / whole, max(heights))]))
    attempts = [
        Series(f"attempt {label}", "train" if chosen else "val", [(cost, drop)]) for label, chosen, cost, drop in dots
    ]
    axes = Axes(f"{_title(name)}, share of the uncut int8 model's", "", False)
    return curves(f"drop over {_title(name)} of every attempt", [*lines, *attempts], axes=axes, holds=heights)
