"""Masked equals shrunk as a table, from what benchmarks/surgery_proof.py measured; ``docs/generate.py`` writes what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
HEADS = ("network", "groups that can be cut", "cuts proven", "worst difference", "MACs left in a Pi 4's steps")
COUNTED = ("network", "MACs before", "after", "instructions before", "after", "cycles")


def table(record: Record) -> str:
    """The networks, the random graphs in a sentence, and where the emulator counted them the instructions."""
    parts = [_drawn(HEADS, [_app(name, row) for name, row in record.get("apps", {}).items()])]
    if record.get("graphs", {}).get("number"):
        parts.append(_graphs(record["graphs"], float(record["limit"])))
    if record.get("pairs"):
        parts.append(_drawn(COUNTED, [_pair(name, row) for name, row in record["pairs"].items()]))
    return "\n\n".join(parts) + "\n"


def _app(name: str, row: Record) -> tuple[str, ...]:
    proven = sum(not cut["excess"] and cut["macs_after"] <= cut["macs_before"] for cut in row["cuts"])
    steps = [cut["macs_after"] / cut["macs_before"] for cut in row["cuts"] if cut["cut"].startswith("steps of")]
    left = f"{100 * sum(steps) / len(steps):.0f} %" if steps else "–"
    return (
        *(f"`{name}`", f"{row['cuttable']} of {row['groups']}", f"{proven} of {len(row['cuts'])}"),
        *(f"{row['worst_difference']:.1e}", left),
    )


def _graphs(total: Record, limit: float) -> str:
    told = (
        f"{total['number']} random graphs, {total['cuts']} cuts of them: {total['cuttable']} of {total['groups']} groups can be cut, "
        f"worst difference {total['worst_difference']:.1e} of the output's range ({limit:g} is the bar), "
        f"{total['slower'] or 'none'} with more MACs than before, {100 * total['macs_left']:.0f} % of them left on average."
    )
    return told + (f" Failed: {len(total['failed'])}." if total["failed"] else "")


def _pair(name: str, row: Record) -> tuple[str, ...]:
    millions = (
        f"{row[key] / 1e6:,.1f} M" for key in ("macs_before", "macs_after", "instructions_before", "instructions_after")
    )
    return (f"`{name}`", *millions, f"{row['cycles_before'] / row['cycles_after']:.2f} times fewer")


def _drawn(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
