"""The limits that a recipe's ``budget`` can have of what a model costs, and how they are called; it needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

LATENCY, SIZE, MACS, ARENA = "latency_ms", "size_bytes", "macs", "arena_bytes"  # names of costs


class Limit(NamedTuple):
    """What a limit of the recipe's ``budget`` is of.

    Attributes:
        cost: its name among the costs of a candidate.
        unit: how many of the cost's units are one of the limit's: 1024 for KiB.
        title: what people call it.
    """

    cost: str
    unit: float
    title: str


LIMITS: Mapping[str, Limit] = {
    "max_latency_ms": Limit(LATENCY, 1.0, "latency"),
    "max_size_kib": Limit(SIZE, 1024.0, "size"),
    "max_macs": Limit(MACS, 1.0, "MACs"),
    "max_arena_kib": Limit(ARENA, 1024.0, "tensor arena"),
}
NAMES = {limit.cost: name for name, limit in LIMITS.items()}


def limits(budget: Mapping[str, Any]) -> dict[str, float]:
    """The recipe's ``budget`` block -> cost -> the most, in the cost's own unit.

    >>> limits({"max_drop": 0.01, "max_size_kib": 2, "max_macs": None})
    {'size_bytes': 2048.0}
    """
    return {of.cost: float(budget[name]) * of.unit for name, of in LIMITS.items() if budget.get(name) is not None}


def amount(cost: str, value: float) -> str:
    """
    >>> amount("size_bytes", 2048), amount("latency_ms", 1.25), amount("macs", 1234567.0)
    ('size 2.0 KiB', 'latency 1.25 ms', 'MACs 1,234,567')
    """
    of = LIMITS[NAMES[cost]]
    if of.unit == 1024:
        return f"{of.title} {value / 1024:,.1f} KiB"
    return f"{of.title} {value:.4g} ms" if cost == LATENCY else f"{of.title} {value:,.0f}"
