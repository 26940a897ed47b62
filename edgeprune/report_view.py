"""From the figures of a report to what people read: numbers with units, the closing table, the headline.

Every function takes the report (or a block of it) as it is in ``report.json``: any block and any figure may be absent,
and an absent figure is shown as a dash with its reason, never as 0. No colours and no markup here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

ABSENT = "–"
ROLES = {"float": "float", "dense_int8": "dense int8", "final": "final"}
Block = Mapping[str, Any]


class Figure(NamedTuple):
    """A figure to show, or why there is none."""

    value: float | None
    short: str
    reason: str = ""
    origin: str = ""  # where a latency is from: "measured, 4 threads"

    @property
    def text(self) -> str:
        return f"{self.short} ({self.origin})" if self.origin else self.short


class Row(NamedTuple):
    """One line of the table float / dense int8 / final."""

    key: str
    label: str
    figures: tuple[Figure, ...]


def number(value: Any) -> float | None:
    """The number, or None for anything that is not a finite one (``True`` is not a number here)."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    return None


def block(parent: Any, key: str) -> Block:
    """A mapping inside a mapping; an empty one where it is absent or something else."""
    inner = parent.get(key) if isinstance(parent, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def rows(parent: Any, key: str) -> list[Block]:
    """The mappings of a list inside a mapping."""
    inner = parent.get(key) if isinstance(parent, Mapping) else None
    return [item for item in inner if isinstance(item, Mapping)] if isinstance(inner, list) else []


def reason(value: Any, default: str = "not recorded") -> str:
    """Why a figure is absent."""
    given = value.get("reason") if isinstance(value, Mapping) else None
    return str(given) if given else default


# Numbers


def decimals(value: float) -> str:
    """Four significant decimals for what is near 1, fewer for what is large.

    >>> decimals(0.98), decimals(12.3456), decimals(0.00012)
    ('0.9800', '12.35', '1.20e-04')
    """
    if value and abs(value) < 0.001:
        return f"{value:.2e}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.2f}"


def kib(size: float) -> str:
    """Bytes as KiB.

    >>> kib(29_600)
    '28.9 KiB'
    """
    return f"{size / 1024:,.1f} KiB"


def memory(size: float) -> str:
    """Bytes at work, as KiB or MiB.

    >>> memory(58_432), memory(31_457_280)
    ('57.1 KiB', '30.0 MiB')
    """
    return kib(size) if size < 2**20 else f"{size / 2**20:,.1f} MiB"


def count(value: float) -> str:
    """A whole number with separators."""
    return f"{value:,.0f}"


def big(value: float) -> str:
    """A count in k, M or G.

    >>> big(78_666), big(12_501_632), big(640)
    ('78.7 k', '12.5 M', '640')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}" if abs(value) < 999.5 * size else f"{value / size:,.0f} {unit}"
    return f"{value:.0f}"


def share(value: float) -> str:
    """A share 0..1, in three decimals (sparsity is never a percentage)."""
    return f"{value:.3f}"


def percent(value: float) -> str:
    """A share in words: '50 %', and never a rounded '100 %' or '0 %' that is not true.

    >>> percent(0.5), percent(0.9996), percent(0.0004), percent(1.0)
    ('50 %', '> 99.9 %', '< 0.1 %', '100 %')
    """
    if 0.999 < value < 1:
        return "> 99.9 %"
    if 0 < value < 0.001:
        return "< 0.1 %"
    return f"{100 * value:.1f}".removesuffix(".0") + " %"


def signed(value: float, text: str) -> str:
    """A number's text with a true minus or a plus."""
    return f"{'−' if value < 0 else '+'}{text}"


# The three candidates


def metric_name(report: Block) -> str:
    return str(block(report, "metric").get("name") or "metric")


def higher_is_better(report: Block) -> bool:
    return block(report, "metric").get("higher_is_better") is not False


def candidate(report: Block, role: str) -> Block:
    return block(block(report, "candidates"), role)


def figure(of: Block, key: str, render: Any = decimals) -> Figure:
    """One figure of a candidate; where the whole candidate is absent, its reason is the figure's."""
    value = number(of.get(key))
    if value is not None:
        return Figure(value, render(value))
    return Figure(None, ABSENT, reason(of.get(key), reason(of)))


def latency(of: Block) -> Figure:
    """Milliseconds with what they are (measured, predicted ± error), or the reason why there are none."""
    given = block(of, "latency")
    ms = number(given.get("ms"))
    if ms is None:
        return Figure(None, ABSENT, reason(given, reason(of)))
    words = [str(given.get("kind") or "of unknown origin")]
    error = number(given.get("error_pct"))
    if error is not None:
        words.append(f"± {error:.3g} %")
    threads = number(given.get("threads"))
    if threads is not None:
        words.append(f"{threads:.0f} thread{'' if threads == 1 else 's'}")
    return Figure(ms, f"{ms:.3g} ms" if ms < 1000 else f"{ms:,.0f} ms", origin=", ".join(words))


def drop(report: Block, role: str) -> Figure:
    """How much worse than float, in units of the metric; negative: better."""
    baseline, own = figure(candidate(report, "float"), "metric"), figure(candidate(report, role), "metric")
    if baseline.value is None or own.value is None:
        missing = own if own.value is None else Figure(None, ABSENT, f"no float baseline: {baseline.reason}")
        return Figure(None, ABSENT, missing.reason)
    worse = baseline.value - own.value if higher_is_better(report) else own.value - baseline.value
    return Figure(worse, against_float(report, worse))


def in_points(report: Block) -> bool:
    """Whether the metric is a share, so that differences are read as points of 100."""
    values = [number(candidate(report, role).get("metric")) for role in ROLES]
    return higher_is_better(report) and all(value is None or 0 <= value <= 1 for value in values)


def points(value: float) -> str:
    """
    >>> points(0.004), points(0.00278), points(0.000001)
    ('0.4', '0.28', '< 0.01')
    """
    text = f"{100 * abs(value):.2f}".rstrip("0").rstrip(".")
    return "< 0.01" if text == "0" and value else text


def against_float(report: Block, worse: float) -> str:
    """'−0.28 points': what the metric does, so a loss in an error metric is '+0.0120 (worse)'."""
    if worse == 0:
        return "equal"
    if in_points(report):
        return signed(-worse, f"{100 * abs(worse):.2f} points")
    change = -worse if higher_is_better(report) else worse
    return f"{signed(change, decimals(abs(worse)))} ({'worse' if worse > 0 else 'better'})"


def table(report: Block) -> list[Row]:
    """The closing table: one row per figure, one column per candidate of `ROLES`."""
    of = [candidate(report, role) for role in ROLES]
    kinds: list[tuple[str, str, list[Figure]]] = [
        ("metric", metric_name(report), [figure(c, "metric") for c in of]),
        ("drop", "against float", [Figure(0.0, "baseline"), *(drop(report, role) for role in list(ROLES)[1:])]),
        ("size_bytes", "size", [figure(c, "size_bytes", kib) for c in of]),
        ("size_gzip_bytes", "compressed", [figure(c, "size_gzip_bytes", kib) for c in of]),
        ("params", "parameters", [figure(c, "params", count) for c in of]),
        ("macs", "MACs", [figure(c, "macs", big) for c in of]),
        ("sparsity", "sparsity", [figure(c, "sparsity", share) for c in of]),
        ("latency", "latency", [latency(c) for c in of]),
    ]
    return [Row(key, label, tuple(figures)) for key, label, figures in kinds]


def absences(table_rows: Sequence[Row]) -> list[str]:
    """Why figures of the table are absent: one sentence for each reason and the candidates that share it."""
    about: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for row in table_rows:
        missing = [(name, f.reason) for name, f in zip(ROLES.values(), row.figures, strict=True) if f.value is None]
        for why in dict.fromkeys(why for _, why in missing):
            whose = tuple(name for name, its in missing if its == why)
            about.setdefault((why, whose), []).append(row.label)
    return [f"{_subject(labels, whose, len(table_rows))}: {why}" for (why, whose), labels in about.items()]


def _subject(labels: Sequence[str], whose: Sequence[str], all_labels: int) -> str:
    """'latency of float', 'latency' (of all), 'final' (all its figures)."""
    names = " and ".join(whose)
    if len(labels) == all_labels:
        return names
    return ", ".join(labels) + ("" if len(whose) == len(ROLES) else f" of {names}")


def target_title(report: Block) -> str:
    return str(report.get("target_title") or report.get("target") or "an unnamed target")


def headline(report: Block) -> str:
    """'28.9 KiB int8, 0.4 points below float, 50 % zeros, on Raspberry Pi 4'; what is absent is left out."""
    final = candidate(report, "final")
    size, zeros, worse = figure(final, "size_bytes", kib), number(final.get("sparsity")), drop(report, "final")
    parts = []
    if size.value is not None:
        parts.append(f"{size.text} {dtype_words(report)}".strip())
    if worse.value is not None:
        parts.append(_distance(report, worse.value))
    macs = [number(candidate(report, role).get("macs")) for role in ("dense_int8", "final")]
    if macs[0] and macs[1] is not None and macs[1] < macs[0]:
        parts.append(f"{percent(1 - macs[1] / macs[0])} fewer MACs")
    if zeros is not None:
        parts.append(f"{percent(zeros)} zeros" if zeros else "no zeros")
    if not parts:
        return f"No final model for {target_title(report)}: {reason(final, 'the build did not get there')}"
    return f"{', '.join(parts)}, on {target_title(report)}"


def _distance(report: Block, worse: float) -> str:
    if worse == 0:
        return "equal to float"
    if in_points(report):
        return f"{points(worse)} points {'below' if worse > 0 else 'above'} float"
    return f"{metric_name(report)} {decimals(abs(worse))} {'worse' if worse > 0 else 'better'} than float"


def dtype_words(report: Block) -> str:
    """'int8', or how much of the model is, as proven on the file."""
    int8 = number(block(report, "verify").get("int8_share"))
    if int8 is None:
        return ""
    return "int8" if int8 == 1 else f"({percent(int8)} of the ops int8)"
