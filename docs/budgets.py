"""Builds that budgets drove as a table, from what benchmarks/budget.py measured; ``docs/generate.py`` writes what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
HEADS = ("network", "asked for", "dense int8", "what came out (test split)", "final", "trained", "all met")
WORDS = {
    "max_drop": ("drop ≤ {:g}", "drop {:.4f}"),
    "max_latency_ms": ("≤ {:g} ms", "{:.3f} ms"),
    "max_size_kib": ("≤ {:g} KiB", "{:.1f} KiB"),
    "max_macs": ("≤ {:,.0f} MACs", "{:,.0f} MACs"),
    "max_arena_kib": ("arena ≤ {:g} KiB", "arena {:.2f} KiB"),
}


def table(record: Record) -> str:
    """A row for each build; below, what those that missed say."""
    builds = {
        **{name: row for name, row in record.get("cifar10", {}).items()},
        **{f"demo, {name}": row for name, row in record.get("demo", {}).items()},
    }
    missed = [f"{name}: {row['verdict']}" for name, row in builds.items() if not _met(row)]
    parts = [_drawn(HEADS, [_row(name, row) for name, row in builds.items()]), *missed]
    return "\n\n".join(parts) + "\n"


def _row(name: str, row: Record) -> tuple[str, ...]:
    made = [one for one in row["attempts"] if one["same_as"] is None]
    asked = ", ".join(WORDS[key][0].format(given["limit"]) for key, given in row["budget"].items())
    found = ", ".join(WORDS[key][1].format(given["actual"]) for key, given in row["budget"].items())
    whole, final = (_whole(row["candidates"][role]) for role in ("dense_int8", "final"))
    return name, asked, whole, found, final, str(len(made)), "yes" if _met(row) else "no"


def _whole(model: Record) -> str:
    return f"{model['macs']:,} MACs, {model['ms']:.3f} ms, {model['size_bytes'] / 1024:.1f} KiB"


def _met(row: Record) -> bool:
    return all(given["met"] for given in row["budget"].values())


def _drawn(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
