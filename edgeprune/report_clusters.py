"""What a report says about kernels whose weights share few values: how many there are in the file, and what it saves."""

from __future__ import annotations

from typing import Any

from edgeprune.report_view import ABSENT, Block, block, count, decimals, kib, number, percent


def paragraphs(report: Block) -> list[str]:
    """What the clusters are and what they save: one sentence each; nothing where there are none."""
    found = _found(report)
    if not found:
        return []
    return [_counted(found), *_saved(found)]


def table(report: Block) -> list[dict[str, Any]]:
    """A row for each clustered kernel, in words."""
    return [_row(name, entry) for name, entry in _found(report).items()]


def proven(report: Block) -> list[tuple[bool | None, str]]:
    """What was proven of the clusters on the file."""
    verify = block(report, "verify")
    if not isinstance(verify.get("clusters_match"), bool):
        return []
    held = verify["clusters_match"]
    return [(held, f"clustered kernels have {'no more' if held else 'more'} distinct int8 values than asked")]


def _found(report: Block) -> dict[str, Block]:
    clusters = block(report, "clusters")
    return {str(name): block(clusters, name) for name in clusters}


def _counted(found: dict[str, Block]) -> str:
    """'9 kernels: at most 16 distinct int8 values in each kernel.'"""
    scopes: dict[str, list[Block]] = {}
    for entry in found.values():
        scopes.setdefault(str(entry.get("scope")), []).append(entry)
    words = {"layer": ("distinct", "kernel"), "channel": ("distinct_per_channel", "output channel")}
    parts = [
        f"{len(entries)} kernels with at most {_most(entries, key)} distinct int8 values in each {where}"
        for scope, (key, where) in words.items()
        if (entries := scopes.get(scope, []))
    ]
    return ", ".join(parts) + "."


def _most(entries: list[Block], key: str) -> str:
    known = [value for entry in entries if (value := number(entry.get(key))) is not None]
    return count(max(known)) if known else ABSENT


def _saved(found: dict[str, Block]) -> list[str]:
    """'These kernels are 75.1 KiB, 28.0 KiB with gzip: 58 % less than in the dense int8 file, where they are 66.0 KiB.'"""
    size, packed = (_total(found, key) for key in ("size_bytes", "size_gzip_bytes"))
    if size is None or packed is None:
        return []
    dense, words = _total(found, "dense_gzip_bytes"), f"These kernels are {kib(size)}, {kib(packed)} with gzip"
    if not dense:
        return [f"{words}."]
    if packed < dense:
        return [
            f"{words}: {percent(1 - packed / dense)} less than in the dense int8 file, where they are {kib(dense)}."
        ]
    return [f"{words}; in the dense int8 file they are {kib(dense)}."]


def _total(found: dict[str, Block], key: str) -> float | None:
    """The sum over all kernels; None if one of them has no such figure."""
    values = [number(entry.get(key)) for entry in found.values()]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _row(name: str, entry: Block) -> dict[str, Any]:
    """One kernel of the table."""
    return {
        "name": name,
        "asked": _shown(entry.get("asked"), count),
        "scope": str(entry.get("scope") or ""),
        "distinct": _shown(entry.get("distinct"), count),
        "per_channel": _shown(entry.get("distinct_per_channel"), count),
        "bits": _shown(entry.get("bits_per_weight"), decimals),
        "size": _shown(entry.get("size_bytes"), kib),
        "packed": _shown(entry.get("size_gzip_bytes"), kib),
        "dense": _shown(entry.get("dense_gzip_bytes"), kib),
    }


def _shown(value: Any, render: Any) -> str:
    known = number(value)
    return ABSENT if known is None else str(render(known))
