"""What a report says about where the time goes, before and after, in words, bars and a table.

Reads the report's ``time`` block: ``kind`` (measured, predicted), ``how`` (in words), ``runtime``, ``ops`` (role ->
``index``, ``op``, ``layer``, ``ms`` of each), ``fixed_ms`` (role -> once per inference), and ``runtimes`` (of the final
model: ``runtime`` and ``latency`` under each).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeprune.report_view import ABSENT, ROLES, Block, block, candidate, number, percent, rows

BEFORE, AFTER = "dense_int8", "final"
SHOWN = 5  # ops, in a sentence
NOTABLE = 0.2  # share of the latency that is once per inference: above it the ops are told alone, too
WORTH_SAYING = 1.05  # times as fast: below it two runtimes are alike


def milliseconds(value: float) -> str:
    """Three digits, in microseconds below a tenth of a millisecond.

    >>> milliseconds(12.345), milliseconds(0.0123), milliseconds(1234.5), milliseconds(0)
    ('12.3 ms', '12.3 µs', '1,234 ms', '0 ms')
    """
    if 0 < value < 0.1:
        return f"{1000 * value:.3g} µs"
    return f"{value:,.0f} ms" if value >= 1000 else f"{value:.3g} ms"


def sentences(report: Block) -> list[str]:
    """What is faster by how much, where the time goes, and whether another runtime would do better; [] where unknown."""
    time = block(report, "time")
    warning = block(candidate(report, AFTER), "latency").get("warning")
    doubt = f"{str(warning)[:1].upper()}{str(warning)[1:]}." if warning and time else ""
    found = [speed_up(report), doubt, ops_alone(time), _slowest(time), faster_runtime(time)]
    return [words for words in found if words]


def speed_up(report: Block) -> str:
    """'12.3 ms, dense int8 28.5 ms: 2.32 times as fast (predicted by ..., ± 4.1 %).'; '' where either is absent."""
    before, after = (number(block(candidate(report, role), "latency").get("ms")) for role in (BEFORE, AFTER))
    if not before or not after:
        return ""
    times = before / after
    words = "as fast as dense int8" if 0.995 <= times <= 1.005 else f"{times:.2f} times as fast as dense int8"
    latency = block(candidate(report, AFTER), "latency")
    error = number(latency.get("error_pct"))
    origin = ", ".join(
        str(part)
        for part in (latency.get("kind"), block(report, "time").get("how"), error is not None and f"± {error:.3g} %")
        if part
    )
    return f"{milliseconds(after)}, {words} ({milliseconds(before)}); {origin}."


def ops_alone(time: Block) -> str:
    """The same without what is once per inference, where that is so much that it hides what became of the ops."""
    sums = {role: sum(number(op.get("ms")) or 0.0 for op in rows(block(time, "ops"), role)) for role in (BEFORE, AFTER)}
    fixed = number(block(time, "fixed_ms").get(AFTER)) or 0.0
    if not sums[BEFORE] or not sums[AFTER] or fixed < NOTABLE * (fixed + sums[AFTER]):
        return ""
    return (
        f"Of that {milliseconds(fixed)} are once per inference, whatever the ops. The ops alone take {milliseconds(sums[AFTER])}, in "
        f"the dense int8 model {milliseconds(sums[BEFORE])}: {sums[BEFORE] / sums[AFTER]:.2f} times as fast."
    )


def _slowest(time: Block) -> str:
    """'Most of it goes to conv_4 (CONV_2D, 12 %), ...'"""
    ops = [op for op in rows(block(time, "ops"), AFTER) if number(op.get("ms")) is not None]
    total = sum(op["ms"] for op in ops)
    if not total:
        return ""
    first = sorted(ops, key=lambda op: -op["ms"])[:SHOWN]
    named = [f"{op.get('layer') or op.get('index')} ({op.get('op')}, {percent(op['ms'] / total)})" for op in first]
    return f"The slowest ops: {', '.join(named)}."


def faster_runtime(time: Block) -> str:
    """Whether the model would be faster under another runtime, and by how much; '' where nothing is known of one."""
    known = [(str(one.get("runtime")), number(block(one, "latency").get("ms"))) for one in rows(time, "runtimes")]
    figures = [(name, ms) for name, ms in known if ms]
    own = [ms for name, ms in figures if name == time.get("runtime")]
    others = [(name, ms) for name, ms in figures if name != time.get("runtime")]
    if not own or not others:
        return ""
    name, ms = min(others, key=lambda pair: pair[1])
    times = own[0] / ms
    if times > WORTH_SAYING:
        return (
            f"Under {name} it would take {milliseconds(ms)}, {times:.2f} times as fast as under {time.get('runtime')}."
        )
    if times < 1 / WORTH_SAYING:
        return f"Under {name} it would take {milliseconds(ms)}: {time.get('runtime')} is {1 / times:.2f} times as fast."
    return f"Under {name} it would take about as long: {milliseconds(ms)}."


def context(report: Block) -> dict[str, Any]:
    """What the page shows: ``time_words``, ``time_layers`` (two bars each) and ``time_kinds`` (rows of a table)."""
    ops = {role: rows(block(block(report, "time"), "ops"), role) for role in (BEFORE, AFTER)}
    fixed = {role: number(block(block(report, "time"), "fixed_ms").get(role)) for role in ops}
    known = any(number(op.get("ms")) is not None for found in ops.values() for op in found)
    return {
        "time_words": sentences(report),
        "time_layers": _layers(ops) if known else [],
        "time_kinds": _kinds(ops, fixed) if known else [],
        "time_roles": {role: ROLES[role] for role in ops},
    }


def _layers(ops: Mapping[str, Sequence[Block]]) -> list[dict[str, Any]]:
    """One row per layer in the order of the uncompressed file: its milliseconds before and after, as bars on one scale."""
    by_layer = {role: _sums(found, _label) for role, found in ops.items()}
    names = dict.fromkeys([*by_layer[BEFORE], *by_layer[AFTER]])
    longest = max([ms for sums in by_layer.values() for ms in sums.values()], default=0.0) or 1.0
    return [
        {
            "name": name,
            "text": _text(by_layer[AFTER].get(name)),
            "title": f"{name}: {_text(by_layer[BEFORE].get(name))} before, {_text(by_layer[AFTER].get(name))} after",
            "bars": [
                {"role": role, "width": round(100 * by_layer[role].get(name, 0.0) / longest, 2)}
                for role in (BEFORE, AFTER)
            ],
        }
        for name in names
    ]


def _kinds(ops: Mapping[str, Sequence[Block]], fixed: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """Milliseconds by kind of op, the costliest first, then what is once per inference, then all."""
    sums = {role: _sums(found, lambda op: str(op.get("op", "?"))) for role, found in ops.items()}
    totals = {role: (sum(found.values()) + (fixed[role] or 0.0)) if found else None for role, found in sums.items()}
    names = sorted({*sums[BEFORE], *sums[AFTER]}, key=lambda name: -max(s.get(name, 0.0) for s in sums.values()))
    lines = [(name, {role: found.get(name) for role, found in sums.items()}) for name in names]
    if any(fixed.values()):
        lines.append(("once per inference", {role: fixed[role] if sums[role] else None for role in sums}))
    return [_kind(name, values, totals) for name, values in [*lines, ("all", totals)]]


def _kind(name: str, values: Mapping[str, float | None], totals: Mapping[str, float | None]) -> dict[str, Any]:
    after, total = values[AFTER], totals[AFTER]
    return {
        "name": name,
        "before": _text(values[BEFORE]),
        "after": _text(after),
        "share": percent(after / total) if after is not None and total else "",
        "width": round(100 * after / total, 2) if after is not None and total else 0,
    }


def _sums(ops: Sequence[Block], key: Any) -> dict[str, float]:
    """Milliseconds by a word, in the order of the ops; ops without a figure are left out."""
    found: dict[str, float] = {}
    for op in ops:
        ms = number(op.get("ms"))
        if ms is not None:
            found[key(op)] = found.get(key(op), 0.0) + ms
    return found


def _label(op: Block) -> str:
    """The op's layer; an op that stands for no layer has its kind."""
    return str(op.get("layer") or f"({op.get('op', '?')})")


def _text(value: float | None) -> str:
    return ABSENT if value is None else milliseconds(value)
