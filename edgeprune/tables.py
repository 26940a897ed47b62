"""Inventories as tables for the terminal. What is drawn here is the same plain data that ``--json`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgeprune import report_view as view

Plain = Mapping[str, Any]
ABSENT = view.ABSENT


def tflite(inventory: Plain) -> RenderableType:
    """The ops and weights of a ``.tflite`` file, and its totals."""
    ops = _table("op", "kind", "data type", "MACs", "layer", right=("op", "MACs"))
    for op in inventory["ops"]:
        _row(ops, str(op["index"]), op["op"], op["dtype"], _count(op["macs"]), op["layer"] or "")
    weights = _table("weights of", "shape", "data type", "sparsity", "n:m", right=("sparsity",))
    for tensor in inventory["tensors"]:
        sparsity, pattern = _share(tensor["sparsity"]), _pattern(tensor["n_of_m"])
        _row(weights, tensor["layer"] or tensor["name"], _shape(tensor["shape"]), tensor["dtype"], sparsity, pattern)
    totals = [
        f"{_count(inventory['params'])} parameters, {_count(inventory['macs'])} MACs, sparsity {_share(inventory['sparsity'])}",
        f"{view.kib(inventory['size_bytes'])}, {view.kib(inventory['size_gzip_bytes'])} compressed",
        f"int8 ops: {_share(inventory['int8_share'])}; left in float: {_listed(inventory['float_ops'])}",
        *inventory["notes"],
    ]
    return Group(ops, Text(), weights, *_lines(totals))


def keras(inventory: Plain) -> RenderableType:
    """The layers of a Keras model with the granularities that each can carry, and its totals."""
    layers = _table(
        "layer",
        "class",
        "output",
        "parameters",
        "MACs",
        "sparsity",
        "can carry",
        right=("parameters", "MACs", "sparsity"),
    )
    for layer in inventory["layers"]:
        _row(
            layers,
            *(
                layer["name"],
                layer["class"],
                _shape(layer["output_shape"]),
                _count(layer["params"]),
                _count(layer["macs"]),
            ),
            *(_share(layer["sparsity"]), _carries(layer["pruning"] or {})),
        )
    totals = f"{_count(inventory['params'])} parameters, {_count(inventory['macs'])} MACs, sparsity {_share(inventory['sparsity'])}"
    return Group(layers, *_lines([f"{inventory['name']}: {totals}"]))


def profile(figures: Plain) -> RenderableType:
    """A profile: the latency with what it is, and the ops where their times are known."""
    latency = view.latency(figures)
    summary = facts(
        {
            "latency": f"{latency.text} ({latency.reason})" if latency.reason else latency.text,
            **_without(figures, "latency", "ops"),
        }
    )
    timed = [op for op in figures.get("ops") or [] if op.get("ms") is not None]
    if not timed:
        return summary
    ops = _table("op", "kind", "ms", right=("op", "ms"))
    for op in timed:
        _row(ops, str(op["index"]), op["op"], f"{op['ms']:.3f}")
    return Group(summary, ops)


def facts(entries: Plain) -> RenderableType:
    """Plain figures and words by name; lists and mappings, where they hold only such, in one line."""
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    for name, value in entries.items():
        if (text := _plain(value)) is not None:
            table.add_row(Text(name.replace("_", " ")), Text(text))
    return table


def words(entries: Mapping[str, str]) -> RenderableType:
    """Names with what each is for."""
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    for name, sentence in entries.items():
        table.add_row(Text(name), Text(sentence))
    return table


def families(entries: Mapping[str, Mapping[str, str]]) -> RenderableType:
    """``words`` for every family, with its name above."""
    return Group(
        *(part for family, members in entries.items() for part in (Text(f"{family}:"), words(members), Text("")))
    )


def _without(entries: Plain, *names: str) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if name not in names}


def _plain(value: Any) -> str | None:
    """One line for a value, or None where it is too much for one."""
    if isinstance(value, Mapping):
        inner = {name: _plain(item) for name, item in value.items()}
        return None if None in inner.values() else ", ".join(f"{name} {text}" for name, text in inner.items())
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value]
        return None if len(items) > 8 else ", ".join(item for item in items if item) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ABSENT if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _table(*columns: str, right: Iterable[str] = ()) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def _row(table: Table, *cells: str) -> None:
    """Add plain words: a bracket in a layer's name is no markup."""
    table.add_row(*(Text(cell) for cell in cells))


def _lines(texts: Iterable[str]) -> list[Text]:
    return [Text(""), *(Text(text) for text in texts)]


def _count(value: int | None) -> str:
    return ABSENT if value is None else view.count(value)


def _share(value: float | None) -> str:
    return ABSENT if value is None else view.share(value)


def _shape(shape: Any) -> str:
    if shape and isinstance(shape[0], list):
        return ", ".join(_shape(inner) for inner in shape)
    return "×".join("?" if size is None else str(size) for size in shape) or "scalar"


def _pattern(pattern: Plain | None) -> str:
    return ABSENT if pattern is None else f"{pattern['n']}:{pattern['m']} in {view.percent(pattern['share'])}"


def _carries(pruning: Plain) -> str:
    """The granularities that a layer can be pruned with."""
    return ", ".join(granularity for granularity, reason in pruning.items() if reason is None)


def _listed(indices: Iterable[int]) -> str:
    return ", ".join(map(str, indices)) or "none"
