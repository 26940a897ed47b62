"""What a report says about channels that were removed for good, stage by stage, in words and as a table."""

from __future__ import annotations

from typing import Any

from edgeprune.report_time import milliseconds
from edgeprune.report_view import ABSENT, Block, big, block, count, number, percent, reason, rows

SHOWN = 12  # groups, in a sentence


def stages(report: Block) -> list[dict[str, Any]]:
    """For each stage that removed channels: ``name``, ``words``, ``groups`` (rows of the table) and ``blocks``."""
    return [
        {
            "name": str(name),
            "words": sentence(block(block(report, "shrink"), name)),
            "groups": [_row(group) for group in rows(block(block(report, "shrink"), name), "groups")],
            "blocks": _blocks(block(block(report, "shrink"), name)),
        }
        for name in block(report, "shrink")
    ]


def paragraphs(report: Block) -> list[str]:
    """The same for the terminal: what changed of the whole, and the groups that lost something."""
    found = []
    for stage in stages(report):
        cut = [f"{row['name']} {row['before']} to {row['after']}" for row in stage["groups"] if row["cut"]]
        more = f" and {len(cut) - SHOWN} more groups" if len(cut) > SHOWN else ""
        found.append(f"{stage['name']}: {stage['words']}")
        found += [f"Channels: {', '.join(cut[:SHOWN])}{more}."] if cut else []
        found += [f"Whole blocks: {stage['blocks']}."] if stage["blocks"] else []
    return found


def sentence(stage: Block) -> str:
    """'MACs 534 k to 255 k (48 %), parameters 20 k to 9.26 k (46 %), by taylor over the network, in 2 rounds.'"""
    parts = [_change(stage, key, label) for key, label in (("macs", "MACs"), ("params", "parameters"))]
    scope = {"layer": "within each group", "network": "over the network", "isomorphic": "among groups built alike"}
    given = stage.get("scope")
    where = scope.get(given, given) if isinstance(given, str) else "within groups named by expressions"
    by = f"by {stage.get('criterion', '?')} {where}"
    rounds = number(stage.get("rounds"))
    if number(stage.get("latency_ms_after")) is not None:
        parts.append(_latency(stage))
    return ", ".join([*parts, by, *([f"in {count(rounds)} rounds"] if rounds and rounds > 1 else [])]) + "."


def _change(stage: Block, key: str, label: str) -> str:
    before, after = number(stage.get(f"{key}_before")), number(stage.get(f"{key}_after"))
    if before is None or after is None:
        return f"{label} {ABSENT}"
    return f"{label} {big(before)} to {big(after)}" + (f" ({percent(after / before)})" if before else "")


def _latency(stage: Block) -> str:
    """'predicted latency 12.3 ms to 6.1 ms (50 %)'."""
    before, after = (number(stage.get(f"latency_ms_{when}")) or 0.0 for when in ("before", "after"))
    share = f" ({percent(after / before)})" if before else ""
    return f"predicted latency {milliseconds(before)} to {milliseconds(after)}{share}"


def _row(group: Block) -> dict[str, Any]:
    """One group of the table."""
    step = number(group.get("step")) or 1
    before, after = number(group.get("units_before")), number(group.get("units_after"))
    known = before is not None and after is not None
    kept = number(group.get("score_kept"))
    layers = group.get("layers")
    return {
        "name": str(group.get("name", "?")),
        "layers": ", ".join(map(str, layers)) if isinstance(layers, list) else "",
        "before": ABSENT if before is None else count(before * step),
        "after": ABSENT if after is None else count(after * step),
        "width": round(100 * after / before, 2) if before and after is not None else 0,
        "score": ABSENT if kept is None else percent(kept),
        "cut": known and after != before,
        "reason": reason(group, ""),
    }


def _blocks(stage: Block) -> str:
    return ", ".join(str(removed.get("name", "?")) for removed in rows(stage, "blocks"))
