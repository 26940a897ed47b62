"""What ``check`` found of a target with an accelerator, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from edgeprune import report_view as view
from edgeprune.checking import culprit_words
from edgeprune.progress import printable
from edgeprune.tables import bare

Plain = Mapping[str, Any]
PARTS = {
    "compute_ms": "computing",
    "streaming_ms": "streaming parameters",
    "transfer_ms": "inputs, outputs and instructions",
    "round_trip_ms": "round trip",
    "cpu_ms": "CPU",
}


def check(found: Plain) -> RenderableType:
    """Every op with whether the accelerator takes it and why not, then memory, latency, and what to change."""
    table = bare()
    for name in ("op", "kind", "layer", found["accelerator"], "why not"):
        table.add_column(name, justify="right" if name == "op" else "left", overflow="fold")
    for op in found["ops"]:
        cells = (str(op["index"]), op["op"], op["layer"] or "", "yes" if op["mapped"] else "no", op["reason"] or "")
        table.add_row(*(Text(printable(cell)) for cell in cells), style=None if op["mapped"] else "yellow")
    return Group(table, Text(), *(Text(printable(line)) for line in _lines(found)))


def _lines(found: Plain) -> Iterator[str]:
    yield f"{found['summary']['words']}."
    if found["violations"]:
        count = len(found["violations"])
        yield f"{count} violations of the int8 guarantee, which other targets need: `edgeprune inspect FILE.tflite` lists them."
    yield from (culprit_words(culprit) for culprit in found["culprits"])
    yield from _own_reasons(found)
    yield (
        f"parameters: {view.kib(found['on_chip_bytes'])} on the chip, {view.kib(found['off_chip_bytes'])} streamed in every inference; "
        f"activations: {view.kib(found['activation_bytes'])} of {view.kib(found['activation_limit_bytes'])} in each tile (estimated)"
    )
    yield from _latency(found)
    yield from _compiler(found["compiler"])
    yield from found["notes"]


def _own_reasons(found: Plain) -> Iterator[str]:
    """The ops that stay on the CPU for a reason of their own and keep nothing else off."""
    known = {culprit["index"] for culprit in found["culprits"]}
    for op in found["ops"]:
        if not op["mapped"] and op["after"] is None and op["index"] not in known:
            yield f"op {op['index']}, {op['op']}, runs on the CPU: {op['reason']}. To mend it: {op['advice']}."


def _latency(found: Plain) -> Iterator[str]:
    latency = found["latency"]
    if latency["ms"] is None:
        yield f"latency: {view.ABSENT}: {latency['reason']}"
        return
    parts = ", ".join(f"{name} {latency['parts'][key]:.2f}" for key, name in PARTS.items() if latency["parts"][key])
    error = f"predicted ± {latency['error_pct']:.3g} %, {latency['error_worst_pct']:.3g} % at worst"
    yield f"latency with a {latency['host']}: {latency['ms']:.2f} ms ({error}): {parts} ms"
    for other in latency["hosts"][1:]:
        ms = (
            "not known: how fast its CPU runs the rest is not"
            if other["ms"] is None
            else f"{other['ms']:.2f} ms (± {other['error_pct']:.3g} %)"
        )
        yield f"latency with a {other['host']}: {ms}"


def _compiler(asked: Plain | None) -> Iterator[str]:
    if asked is None or "error" in asked:
        return
    sizes = [None if asked[name] is None else view.kib(asked[name]) for name in ("on_chip_bytes", "off_chip_bytes")]
    agrees = "as expected" if asked["agrees"] else "not as expected"
    yield (
        f"the compiler (version {asked['version']}) maps {asked['mapped']} ops and leaves {asked['cpu']} to the CPU, {agrees}; "
        f"parameters: {sizes[0]} on the chip, {sizes[1]} streamed"
    )
