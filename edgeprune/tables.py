"""Inventories as tables for the terminal. What is drawn here is the same plain data that ``--json`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgeprune import report_time
from edgeprune import report_view as view
from edgeprune.progress import printable

Plain = Mapping[str, Any]
ABSENT = view.ABSENT
OBVIOUS = ("no kernel", "no output channels of its own")  # reasons that need no line
NAMES = 6  # of layers in one line of reasons
VIOLATIONS = 20  # of the int8 guarantee, one line each
BAR, FULL_DB = 15, 60.0  # of the bars of signal-to-noise ratios: characters, and what they stand for


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
        *_violations([violation["message"] for violation in inventory["int8_violations"]]),
        *inventory["notes"],
    ]
    return Group(ops, Text(), weights, *_lines(totals))


def _violations(messages: Sequence[str]) -> list[str]:
    """Whether the file is int8 throughout, and what is not, in words."""
    if not messages:
        return ["int8 throughout."]
    more = [f"... and {len(messages) - VIOLATIONS} more"] if len(messages) > VIOLATIONS else []
    lines = [f"not int8 throughout, {len(messages)} violations:", *messages[:VIOLATIONS], *more]
    return [printable(line) for line in lines]


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


def groups(inventory: Plain) -> RenderableType:
    """The coupled channels of a Keras model, which of them can be cut and why not, and the blocks that can go whole."""
    table = _table("group", "units", "step", "producers", "consumers", "cuttable", right=("units", "step"))
    for group in inventory["groups"]:
        names = (_some(group["producers"]), _some(group["consumers"]) or ABSENT)
        cuttable = "yes" if group["cuttable"] else "no"
        _row(table, printable(group["name"]), _count(group["units"]), _count(group["step"]), *names, cuttable)
    cuttable = sum(group["cuttable"] for group in inventory["groups"])
    lines = [f"{cuttable} of {len(inventory['groups'])} groups can be cut."]
    for group in inventory["groups"]:
        if group["reasons"]:
            lines.append(f"left whole: {group['name']}: its channels {'; '.join(group['reasons'])}")
        if group["inexact"]:
            lines.append(f"cutting is not the same as zeroing: {group['name']}: {'; '.join(group['inexact'])}")
    lines += [f"removable whole, at '{block['addition']}': {_some(block['layers'])}" for block in inventory["blocks"]]
    lines = [printable(line) for line in lines]
    return Group(table, *_lines(lines))


def profile(figures: Plain) -> RenderableType:
    """A profile: the latency with what it is, the ops where their times are known, and what to make of them."""
    latency = view.latency(figures)
    summary = facts(
        {
            "latency": f"{latency.text} ({latency.reason})" if latency.reason else latency.text,
            **_without(figures, *_UNTOLD),
            **_on_board(figures),
        }
    )
    remarks = [*_remarks(figures), *_predicted(figures)]
    summary = Group(summary, *_lines(map(printable, remarks))) if remarks else summary
    advice = _lines(printable(str(one["words"])) for one in figures.get("advice") or [])
    timed = [op for op in figures.get("ops") or [] if op.get("ms") is not None]
    if not timed:
        return Group(summary, *advice)
    longest = max(op["ms"] for op in timed) or 1.0
    ops = _table("op", "kind", "layer", "ms", "", right=("op", "ms"))
    for op in timed:
        bar = "█" * round(op["ms"] / longest * BAR)
        _row(ops, str(op["index"]), op["op"], printable(op.get("layer") or ""), f"{op['ms']:.3f}", bar)
    return Group(summary, Text(""), ops, *advice)


# Of a profile: what is told elsewhere, or in the JSON alone.
_UNTOLD = ("latency", "ops", "runtimes", "how", "uncounted", "fixed_ms", "measurement", "inputs", "outputs", "advice")


def _predicted(figures: Plain) -> list[str]:
    """Where a predicted latency comes from, what is in it beside the ops, and whether another runtime would be faster."""
    if not figures.get("how"):
        return []
    why = f" (nothing was counted: {figures['uncounted']})" if figures.get("uncounted") else ""
    told = [f"predicted from {figures['how']}{why}"]
    if figures.get("fixed_ms"):
        told.append(f"{figures['fixed_ms']:.3f} ms of it are once per inference, whatever the ops")
    faster = report_time.faster_runtime(figures)
    return [*told, *([faster] if faster else [])]


def profiles(found: Plain) -> RenderableType:
    """One model on several boards: a line each, and below what puts a figure in doubt, or why there is none."""
    table = _table("board", "target", "latency", "p90", "runtime", "conditions", right=("latency", "p90"))
    lines = []
    for figures in found["boards"]:
        if "error" in figures:
            _row(table, figures["board"], figures["target"], ABSENT, "", "", "")
            lines.append(f"{figures['board']}: {figures['error']}")
            continue
        latency, p90 = view.latency(figures), figures["latency"].get("p90_ms")
        cells = (latency.text, f"{p90:.2f} ms" if p90 else "", figures["runtime"], _conditions(figures) or "")
        _row(table, figures["board"], figures["target"], *cells)
        lines += [f"{figures['board']}: {remark}" for remark in _remarks(figures)]
    return Group(table, *_lines(map(printable, lines)))


def _on_board(figures: Plain) -> dict[str, Any]:
    """The device of a board's figures in fewer words; {} where nothing but the emulator or this machine has run."""
    words = _conditions(figures)
    return {"device": _without(figures["device"], "conditions", "remarks"), "conditions": words} if words else {}


def _conditions(figures: Plain) -> str | None:
    """Governor, clock and temperature before and after, where a board told them."""
    words: str | None = ((figures.get("device") or {}).get("conditions") or {}).get("words")
    return words


def _remarks(figures: Plain) -> list[str]:
    """What puts a figure in doubt, and what the board is that the target is not."""
    warning = figures["latency"].get("warning")
    return [*([f"doubtful: {warning}"] if warning else []), *((figures.get("device") or {}).get("remarks") or [])]


def check_model(found: Plain) -> RenderableType:
    """What becomes of every layer of a model, and below, reason by reason, why something does not."""
    columns = ("layer", "class", "parameters", "prunable", "shrinks", "QAT", "int8")
    table = _table(*columns, right=("parameters",))
    for layer in found["layers"]:
        int8 = {True: "yes", False: "no", None: ABSENT}[layer["int8"]]
        shrinks = "yes" if layer["shrinkable"] is None else ABSENT
        cells = (layer["name"], layer["kind"], _count(layer["params"]), _carries(layer["prunable"]) or ABSENT)
        _row(table, *map(printable, cells), shrinks, layer["qat"]["how"], int8)
    lines = [f"{found['model']}: {found['summary']['words']}."]
    lines += map(printable, found["notes"])
    if found["summary"]["error"]:
        lines.append(f"Not converted: {found['summary']['error']}")
    lines += [f"rewritten, {done['name']}: {_some(done['layers'])}" for done in found["rewrites"]]
    lines += _why("not prunable 2:4", ((layer["prunable"]["2:4"], layer["name"]) for layer in found["layers"]))
    lines += _why("not shrinkable", ((layer["shrinkable"], layer["name"]) for layer in found["layers"]))
    lines += _why("QAT", ((layer["qat"]["reason"], layer["name"]) for layer in found["layers"]))
    lines += _why("not int8", ((layer["reason"], layer["name"]) for layer in found["layers"] if layer["int8"] is False))
    return Group(table, *_lines(lines))


def check_file(found: Plain) -> RenderableType:
    """Every op of a .tflite file with whether it is int8, and what breaks the guarantee."""
    table = _table("op", "kind", "layer", "int8", "why not", right=("op",))
    for op in found["ops"]:
        int8 = "yes" if op["int8"] else "no"
        _row(table, str(op["index"]), op["op"], printable(op["layer"] or ""), int8, op["reason"] or "")
    return Group(table, *_lines([f"{found['summary']['words']}.", *found["violations"], *found["notes"]]))


def _why(what: str, entries: Iterable[tuple[str | None, str]]) -> list[str]:
    """One line per reason with the layers it holds for, at most `NAMES` of them by name."""
    by_reason: dict[str, list[str]] = {}
    for reason, name in entries:
        if reason is not None and reason not in OBVIOUS:
            by_reason.setdefault(reason, []).append(name)
    return [printable(f"{what}: {reason}: {_some(names)}") for reason, names in by_reason.items()]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return printable(", ".join(names[:NAMES])) + more


def verify(found: Plain) -> RenderableType:
    """A comparison layer by layer: the signal that each keeps, as figures and as bars, and what to do."""
    columns = ("op", "kind", "layer", "SNR dB", "", "cosine", "steps", "at ends")
    table = _table(*columns, right=("op", "SNR dB", "cosine", "steps", "at ends"))
    first = found["first_bad"]
    for row in [*found["inputs"], *found["layers"]]:
        layer = row["layer"] if row["layer"] == row["output_of"] else f"{row['layer']} … {row['output_of']}"
        steps = ABSENT if row["largest_steps"] is None else f"{row['largest_steps']:.0f}"
        cells = (
            *("" if row["op"] is None else str(row["op"]), row["kind"], printable(layer)),
            *(
                f"{row['snr_db']:.1f}",
                _decibels(row["snr_db"]),
                f"{row['cosine']:.4f}",
                steps,
                _share(row["saturated"]),
            ),
        )
        table.add_row(*map(Text, cells), style="red" if row["snr_db"] < found["min_snr_db"] else None)
    lines = [verify_summary(found)]
    if first is not None:
        lines.append(f"First bad: {bad_words(first)}")
    if found["fused"]:
        lines.append(f"Computed inside other layers' ops: {_some(found['fused'])}.")
    return Group(table, *_lines(lines))


def verify_summary(found: Plain) -> str:
    """One line: against what, how many samples, the worst layer."""
    rows = found["layers"]
    compared = f"{len(rows)} layers against {found['compared_with']} on {found['samples']} samples"
    if not rows:
        return f"{compared}: none of the file's tensors stands for a layer."
    worst = min(rows, key=lambda row: row["snr_db"])
    return f"{compared}; the lowest signal-to-noise ratio is {worst['snr_db']:.1f} dB, of '{worst['layer']}'."


def bad_words(first: Plain) -> str:
    """The first bad op, why, and what to do."""
    what = (
        f"input '{first['layer']}'"
        if first["op"] is None
        else f"op {first['op']}, {first['kind']} of '{first['layer']}'"
    )
    return f"{what}, {first['snr_db']:.1f} dB: {first['advice']}."


def _decibels(snr_db: float) -> str:
    """A bar; 60 dB, which no 8-bit tensor has, fill it."""
    return "█" * round(max(0.0, min(snr_db, FULL_DB)) / FULL_DB * BAR)


def sensitivity(result: Plain) -> RenderableType:
    """Groups against ratios: the metric, and below it the share of the MACs that the cut saves."""
    from edgeprune import sensitivity_view as words

    ratios = [f"{ratio:g}" for ratio in result["ratios"]]
    table = _table("group", "channels", *ratios, right=("channels", *ratios))
    for row in words.rows(result):
        cells = [Text.assemble(f"{cell.metric}\n", (cell.saved, "dim")) if cell else Text("") for cell in row.cells]
        table.add_row(Text(printable(row.name)), Text(row.channels), *cells)
    lines = [words.summary(result), words.resolution(result)]
    lines += [
        "In each cell: the metric, and below it the share of all MACs that this cut saves; empty: as the cell before."
    ]
    lines += [
        f"without the branch that ends with {block['name']}: {view.decimals(block['metric'])} "
        f"({words.change(result, block['drop'], True)}); saves {words.savings(result, block)}"
        for block in result["blocks"]
    ]
    lines += [f"left whole: {names}: {why}" for why, names in words.whole(result)]
    return Group(table, *_lines(printable(line) for line in [*lines, words.together(result)] if line))


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


def methods(entries: Mapping[str, Plain]) -> RenderableType:
    """Every method's recipe: what it is, when it acts, what it removes and costs, and the paper."""
    table = bare()
    for column in ("name", "acts", "removes", "cost beyond plain training", "paper"):
        table.add_column(
            column, no_wrap=column in ("name", "acts", "removes"), style="bold" if column == "name" else ""
        )
    for name, method in entries.items():
        table.add_row(name, method["acts"], method["removes"], Text(method["cost"]), Text("; ".join(method["papers"])))
    return table


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


def bare(header_style: str = "bold") -> Table:
    """A table without lines, its columns two blanks apart."""
    return Table(box=None, header_style=header_style, pad_edge=False, padding=(0, 2, 0, 0))


def columned(names: Iterable[str], header_style: str = "bold") -> Table:
    """A table of figures, the first column what they are of; no line is folded."""
    table = bare(header_style)
    for number, name in enumerate(names):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _table(*columns: str, right: Iterable[str] = ()) -> Table:
    table = bare()
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
