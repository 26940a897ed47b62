"""Predicted latency of a .tflite with an Edge TPU: what the chip, the link and the CPU do, one after the other.

    ms = (1 - s) · compute + max(s · compute, streamed bytes / streaming rate)
       + (inputs + outputs + instructions) / transfer rate + round trip
       + MACs / rate + elements · time of what is left on the CPU

s is the share of the parameters that does not fit the chip: while they stream in, their layers are computed. Compute is
steps of a tile × cycles per step / clock: a tile takes ceil(height / 4) × ceil(width / 4) positions, and of a convolution 16
output × 4 input channels at each. The size of the instructions is estimated from the number of ops and the strips they are
cut into. Every constant is in ``accelerators/edgetpu_latency.yaml``, which ``benchmarks/coral_fit.py`` fits on published
latencies and writes with the error it reached on networks it was not fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from edgeprune import yaml_files
from edgeprune.devices import _edgetpu_memory as memory
from edgeprune.devices._edgetpu_facts import Facts
from edgeprune.errors import TargetError
from edgeprune.target import Target
from edgeprune.tflite_objects import Op, TFLiteFile
from edgeprune.validation import Strict, validate

FILE = Path(__file__).parent / "accelerators" / "edgetpu_latency.yaml"
CHANNELS_PER_STEP = 16  # output channels that a tile works on at once (fitted on the compiler's own cycle estimates)
MOVES = frozenset({"ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "CONCATENATION", "QUANTIZE", "PAD", "LOGISTIC", "TANH"})

Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0)]


class Cycles(Strict):
    """What a step costs, in cycles of the Edge TPU."""

    conv: Share = Field(description="per step of a convolution: 1 position, 4 input and 16 output channels of a tile")
    depthwise: Share = Field(description="per step of a depthwise convolution: 1 position, 16 channels of a tile")
    elementwise: Share = Field(description="per byte that a tile moves in an element-wise op")


class Instructions(Strict):
    """Size of what tells the chip what to do, sent in every inference."""

    bytes_per_op: Share
    bytes_per_strip: Share = Field(description="for every piece beyond the first that an op is cut into")


class Cpu(Strict):
    """What the reference CPU (the Coral Dev Board's) does with int8 ops."""

    macs_per_ns: Rate
    ns_per_element: Share = Field(description="per element that an op without MACs reads or gives, whichever are more")


class Error(Strict):
    """How far predictions were from latencies of networks that the constants were not fitted on."""

    mean_pct: Share
    worst_pct: Share
    rows: int


class Host(Strict):
    """A computer with an Edge TPU."""

    title: str
    links: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        description="of targets' delegates that it stands for"
    )
    transfer_bytes_per_ms: Rate = Field(description="inputs, outputs and instructions that cross the link in 1 ms")
    streaming_bytes_per_ms: Rate = Field(description="parameters that cross it in 1 ms")
    streaming_known: bool = Field(description="false: no row streams there, and the rate of transfers stands for it")
    round_trip_ms: Share = Field(description="of an empty inference; 0: the rows cannot tell it from the transfer")
    cpu_time: Rate | None = Field(description="time of an op there over that on the reference CPU; null: not known")
    error: Error = Field(description="leave-one-network-out, over its own rows")


class Constants(Strict):
    """What the fit found, and how well it holds."""

    written_by: str
    clock_mhz: Rate
    cycles: Cycles
    instructions: Instructions
    cpu: Cpu
    hosts: Mapping[str, Host]
    error: Error = Field(description="leave-one-network-out, over all rows used")
    networks: Mapping[str, Any] = Field(description="the networks used, and per row what was published and predicted")
    not_used: Mapping[str, str] = Field(description="network of the table -> why its rows are not used")


@cache
def constants() -> Constants:
    """The constants that come with edgeprune.

    Raises:
        TargetError: the file does not validate.
    """
    return validate(Constants, yaml_files.read(FILE, TargetError), str(FILE), TargetError)


@dataclass(frozen=True)
class Work:
    """What one inference asks of chip, link and CPU.

    Args:
        conv, depthwise: steps of a tile.
        elementwise: bytes that a tile moves.
        ops, strips: mapped ops, and the pieces beyond the first that they are cut into.
        streamed_bytes, streamed_share: parameters that cross the link every time; their share of all, 0..1.
        border_bytes: activations that go to the chip and come from it.
        cpu_macs, cpu_elements: of the ops that the CPU runs.
    """

    conv: int
    depthwise: int
    elementwise: int
    ops: int
    strips: int
    streamed_bytes: int
    streamed_share: float
    border_bytes: int
    cpu_macs: int
    cpu_elements: int


def work(file: TFLiteFile, mapped: frozenset[int], facts: Facts) -> Work:
    """What one inference of a file asks for, given which ops are mapped."""
    on_chip = [op for op in file.ops if op.index in mapped]
    on_cpu = [op for op in file.ops if op.index not in mapped]
    total = sum(memory.parameter_bytes(file, op, facts) for op in on_chip)
    streamed = memory.on_and_off_chip(total, facts)[1]
    return Work(
        conv=sum(_conv_steps(file, op, facts) for op in on_chip),
        depthwise=sum(_depthwise_steps(file, op, facts) for op in on_chip),
        elementwise=sum(_tile_elements(file, op, facts) for op in on_chip if op.op in MOVES),
        ops=len(on_chip),
        strips=memory.strips(file, mapped, facts) - len(on_chip),
        streamed_bytes=streamed,
        streamed_share=streamed / total if total else 0.0,
        border_bytes=sum(file.tensors[index].elements for index in _border(file, on_chip, on_cpu)),
        cpu_macs=sum(op.macs for op in on_cpu),
        cpu_elements=sum(_elements(file, op) for op in on_cpu if not op.macs),
    )


def instruction_bytes(done: Work, size: Instructions) -> int:
    """Estimated size of the instructions, bytes."""
    return round(done.ops * size.bytes_per_op + done.strips * size.bytes_per_strip)


def parts(done: Work, fitted: Constants, host: Host, clock_mhz: float) -> dict[str, float] | None:
    """Milliseconds of one inference by what they go to; None where the CPU has to do something and its speed is unknown."""
    if host.cpu_time is None and (done.cpu_macs or done.cpu_elements):
        return None
    cycles, cpu = fitted.cycles, fitted.cpu
    compute_ms = sum(getattr(done, kind) * cost for kind, cost in cycles) / (1e3 * clock_mhz)
    meanwhile_ms = done.streamed_share * compute_ms
    on_cpu_ns = done.cpu_macs / cpu.macs_per_ns + done.cpu_elements * cpu.ns_per_element
    instructions = instruction_bytes(done, fitted.instructions)
    return {
        "compute_ms": compute_ms - meanwhile_ms,
        "streaming_ms": max(meanwhile_ms, done.streamed_bytes / host.streaming_bytes_per_ms),
        "transfer_ms": (done.border_bytes + instructions) / host.transfer_bytes_per_ms if done.ops else 0.0,
        "round_trip_ms": host.round_trip_ms if done.ops else 0.0,
        "cpu_ms": on_cpu_ns / 1e6 * (host.cpu_time or 0.0),
    }


def predict(done: Work, target: Target) -> dict[str, Any]:
    """The ``latency`` block: for the first host that has the target's link, and ``hosts`` for all that have it."""
    fitted = constants()
    delegate = target.delegate
    fitting = [host for host in fitted.hosts.values() if delegate is not None and delegate.link in host.links]
    if delegate is None or not fitting:
        return {"ms": None, "reason": f"no latency with an Edge TPU on the link of {target.title} is published"}
    clock = delegate.clock_mhz or fitted.clock_mhz
    found = [(host.title, parts(done, fitted, host, clock)) for host in fitting]
    first = found[0][1]
    if first is None:
        return {"ms": None, "reason": f"how fast the CPU of '{found[0][0]}' runs what is left to it is not known"}
    return {
        "ms": sum(first.values()),
        "kind": "predicted",
        "error_pct": fitting[0].error.mean_pct,
        "error_worst_pct": fitting[0].error.worst_pct,
        "threads": target.runtime.threads,
        "host": found[0][0],
        "parts": first,
        "hosts": [
            {"host": host.title, "ms": None if each is None else sum(each.values()), "error_pct": host.error.mean_pct}
            for host, (_, each) in zip(fitting, found, strict=True)
        ],
    }


def _grid(shape: Sequence[int], facts: Facts) -> int:
    """Positions of an activation (batch, height, width, channels) that a tile takes; 0 for a single one.

    The compiler's own estimate counts no cycles for layers of one position: their weights pass once.
    """
    if len(shape) != 4 or shape[1] * shape[2] == 1:
        return 0
    return prod(-(-length // facts.array.grid) for length in shape[1:3])


def _conv_steps(file: TFLiteFile, op: Op, facts: Facts) -> int:
    if op.op not in ("CONV_2D", "TRANSPOSE_CONV"):
        return 0
    channels, height, width, depth = file.tensors[op.inputs[1]].shape
    moved = file.tensors[op.inputs[2] if op.op == "TRANSPOSE_CONV" else op.outputs[0]].shape
    steps = -(-depth // facts.parameters.in_step) * -(-channels // CHANNELS_PER_STEP)
    return _grid(moved, facts) * height * width * steps


def _depthwise_steps(file: TFLiteFile, op: Op, facts: Facts) -> int:
    if op.op != "DEPTHWISE_CONV_2D":
        return 0
    _, height, width, channels = file.tensors[op.inputs[1]].shape
    return _grid(file.tensors[op.outputs[0]].shape, facts) * height * width * -(-channels // CHANNELS_PER_STEP)


def _tile_elements(file: TFLiteFile, op: Op, facts: Facts) -> int:
    shape = file.tensors[op.outputs[0]].shape
    return _grid(shape, facts) * memory.up(shape[-1], facts.parameters.in_step) if shape else 0


def _elements(file: TFLiteFile, op: Op) -> int:
    given, made = (
        sum(file.tensors[index].elements for index in indices if index >= 0 and not file.tensors[index].is_constant)
        for indices in (op.inputs, op.outputs)
    )
    return max(given, made)


def _border(file: TFLiteFile, on_chip: Sequence[Op], on_cpu: Sequence[Op]) -> set[int]:
    """The activations that go to the chip, and those that come from it."""
    made = {index for op in on_chip for index in op.outputs}
    read = {index for op in on_chip for index in op.inputs if index >= 0 and not file.tensors[index].is_constant}
    wanted = {index for op in on_cpu for index in op.inputs} | set(file.outputs)
    return (read - made) | (made & wanted)
