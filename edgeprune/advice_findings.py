"""What a profiled model's time goes to on a target, and what it wastes there: the findings of `edgeprune.advice`, each a function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, NamedTuple

from edgeprune import accelerator, tflite
from edgeprune.analytic import Layer
from edgeprune.report_view import memory, percent
from edgeprune.target import Target
from edgeprune.tflite_objects import Op, TFLiteFile

SHOWN = 5  # layers, in a sentence
WASTED = 0.1  # share of a layer's lanes that compute nothing: below it nobody would change a channel count
WORTHWHILE = 0.05  # share of the time below which nothing is worth a sentence of its own
ZEROS = 0.25  # share of zeros in a kernel above which it was pruned: int8 rounds up to a tenth or so to 0 by itself
MIXING = ("CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")  # every output channel reads every input channel
KERNELS = (*MIXING, "DEPTHWISE_CONV_2D")
Kind = Literal["bound", "depthwise", "lanes", "zeros", "silent", "mapped", "streamed", "next"]


@dataclass(frozen=True)
class Advice:
    """One sentence or two.

    Attributes:
        kind: ``bound`` (by arithmetic or memory), ``depthwise`` (its share), ``lanes`` (channel counts that waste them),
            ``zeros`` (that buy nothing here), ``silent`` (channels of zeros, computed all the same), ``mapped`` and ``streamed``
            (what an accelerator leaves to the CPU, and does not hold), ``next`` (what to try).
        words: for people.
        ops: indices in the file.
        layers: the names of their layers, where the file tells.
        share: of the ops' time that it is about, 0..1; None where no time is known.
    """

    kind: Kind
    words: str
    ops: tuple[int, ...] = ()
    layers: tuple[str, ...] = ()
    share: float | None = None


@dataclass(frozen=True)
class View:
    """A profiled model.

    Attributes:
        file, target: what ran, and where.
        layers: the ops' shapes.
        ms: of every op; empty where none is known.
        once_ms: once per inference.
        runtimes: as in a profile, this runtime first.
        verdict: of the target's accelerator; None where it has none, or it takes nothing of the file.
    """

    file: TFLiteFile
    target: Target
    layers: Sequence[Layer]
    ms: Sequence[float]
    once_ms: float = 0.0
    runtimes: Sequence[Mapping[str, Any]] = ()
    verdict: accelerator.Verdict | None = None

    def share(self, ops: Iterable[Op]) -> float:
        """Of the time of all ops, 0..1; of the multiply-accumulates where no time is known."""
        costs = self.ms or [op.macs for op in self.file.ops]
        return sum(costs[op.index] for op in ops) / (sum(costs) or 1)

    def timed(self, ops: Iterable[Op]) -> float | None:
        """The same, None where no time is known."""
        return self.share(ops) if self.ms else None

    @property
    def of(self) -> str:
        return "of the time of the ops" if self.ms else "of the multiply-accumulates"

    def costliest(self, ops: Iterable[Op]) -> list[Op]:
        return sorted(ops, key=lambda op: -self.share([op]))

    def about(self, kind: Kind, words: str, ops: Sequence[Op]) -> Advice:
        layers = tuple(dict.fromkeys(op.layer for op in ops if op.layer))
        return Advice(kind, words, tuple(op.index for op in ops), layers, self.timed(ops))


def bound(view: View) -> Advice | None:
    """Whether arithmetic or memory takes the time: by the traffic that the prediction has for every op.

    An op is memory-bound when moving its weights, inputs and outputs once takes more than half of its time.
    """
    bandwidth = view.target.memory.bandwidth_gb_s
    if not view.ms or bandwidth is None or view.target.delegate is not None:
        return None
    moving = [min(layer.bytes / (1e6 * bandwidth), ms) for layer, ms in zip(view.layers, view.ms, strict=True)]
    share = sum(moving) / sum(view.ms)
    slow = [op for op in view.file.ops if moving[op.index] > view.ms[op.index] / 2]
    if share > 0.5:
        words = f"Memory-bound: {percent(share)} of the time of the ops is moving weights and activations"
        return view.about("bound", f"{words}, most of it in {named(view, slow)}.", slow)
    words = f"Compute-bound: {percent(1 - share)} of the time of the ops is arithmetic, {percent(share)} moving weights and activations."
    if view.share(slow) < WORTHWHILE:
        return view.about("bound", words, [])
    return view.about(
        "bound",
        f"{words} Memory-bound are {named(view, slow)}, {percent(view.share(slow))} {view.of}: there fewer weights and smaller "
        "activations help, not fewer multiplications.",
        slow,
    )


def depthwise(view: View) -> Advice | None:
    """What depthwise convolutions take, beside their share of the multiply-accumulates."""
    ops = [op for op in view.file.ops if op.op == "DEPTHWISE_CONV_2D"]
    if not ops:
        return None
    macs = sum(op.macs for op in ops) / (sum(op.macs for op in view.file.ops) or 1)
    if not view.ms:
        return view.about("depthwise", f"Depthwise convolutions are {percent(macs)} of the multiply-accumulates.", ops)
    words = f"Depthwise convolutions are {percent(macs)} of the multiply-accumulates and {percent(view.share(ops))} {view.of}"
    if view.share(ops) < 1.5 * macs or view.share(ops) < WORTHWHILE:
        return view.about("depthwise", f"{words}.", ops)
    return view.about(
        "depthwise",
        f"{words}, most in {named(view, ops)}: they use every weight and input for few multiplications, so their share of the MACs "
        "says little. They lose channels with the layer that feeds them.",
        ops,
    )


def lanes(view: View) -> Advice | None:
    """Layers whose channel counts fill no whole step of the kernels, where the counts can be chosen."""
    found = _wasteful(view)
    if not found:
        return None
    ops = view.costliest(view.file.ops[index] for index in found)
    told = some([f"{_name(op)}: {found[op.index].words}" for op in ops], "; ")
    lost = lost_to_lanes(view)
    return view.about(
        "lanes",
        f"Channels that fill no whole step of the kernels are computed all the same: {told}. At most {percent(lost)} {view.of} "
        "goes into nothing. Cut to a multiple (the stage `shrink` does by itself), or widen to the next one for no more time.",
        ops,
    )


class _Waste(NamedTuple):
    """'20 output channels cost as many as 24', and the share of the lanes that compute nothing."""

    words: str
    share: float


def _wasteful(view: View) -> dict[int, _Waste]:
    """Index of an op -> what it wastes, where that is worth a word. What the model's inputs and outputs are, they are."""
    found = {}
    for op in view.file.ops:
        odd = [side for side in _sides(view, op) if side[1] % side[2]]
        filled = [(side, count, -(-count // step) * step) for side, count, step in odd]
        share = 1 - prod(count / whole for _, count, whole in filled)
        if share >= WASTED:
            words = " and ".join(f"{count} {side} channels cost as many as {whole}" for side, count, whole in filled)
            found[op.index] = _Waste(words, share)
    return found


def lost_to_lanes(view: View) -> float:
    """Share of the ops' time that goes into lanes that compute nothing, at most."""
    return sum(view.share([view.file.ops[index]]) * waste.share for index, waste in _wasteful(view).items())


def _sides(view: View, op: Op) -> list[tuple[str, int, int]]:
    """The channel counts of an op that can be chosen: which side, how many, and the step in which they fill its kernel."""
    step, layer = view.target.channel_multiple, view.layers[op.index]
    if step is None or op.op not in KERNELS or not layer.kernel:
        return []
    out, *_, given = layer.kernel
    wide = step.beyond if step.until is not None and step.beyond is not None and out > step.until else step.out
    alone, first, last = op.op not in MIXING, _begins_the_model(view.file, op), ends_the_model(view.file, op)
    sides = [] if last or (alone and first) else [("output", out, wide)]
    return sides if alone or first else [*sides, ("input", given, step.in_)]


def _begins_the_model(file: TFLiteFile, op: Op) -> bool:
    """Whether an op reads the channels that the model is given: nobody can choose their number."""
    given = set(file.inputs)
    for earlier in file.ops[: op.index]:
        if given & set(earlier.inputs) and earlier.op not in MIXING:
            given |= set(earlier.outputs)
    return bool(given & set(op.inputs))


def ends_the_model(file: TFLiteFile, op: Op) -> bool:
    """Whether an op makes the channels that the model gives: nobody can choose their number."""
    reached = set(op.outputs)
    for later in file.ops[op.index + 1 :]:
        if reached & set(later.inputs) and later.op not in MIXING:
            reached |= set(later.outputs)
    return bool(reached & set(file.outputs))


def zeros(view: View) -> Advice | None:
    """Kernels with zeros that a target multiplies by like any other number."""
    shares = {kernel.op.index: tflite.tensor_sparsity(kernel.tensor) or 0.0 for kernel in tflite.kernels(view.file)}
    ops = sorted((op for op in view.file.ops if shares.get(op.index, 0.0) >= ZEROS), key=lambda op: -shares[op.index])
    if not ops or view.target.zeros.latency != "none":
        return None
    told = some([f"{_name(op)} ({percent(shares[op.index])})" for op in ops])
    packed = f"{memory(view.file.size_bytes)} are {memory(view.file.size_gzip_bytes)} compressed"
    buys = f"They buy a smaller download ({packed})" if view.target.zeros.download else "They buy nothing"
    return view.about(
        "zeros",
        f"Zeros buy no time on {view.target.title}, in whatever pattern: {told}. {buys}; what is to be faster has to go for good, "
        "with its channel (the stage `shrink`).",
        ops,
    )


def silent(view: View) -> Advice | None:
    """Output channels whose kernel is all zeros: computed in every inference, and the same number every time."""
    found = silent_channels(view)
    ops = view.costliest(view.file.ops[index] for index in found)
    if not ops:
        return None
    told = some([f"{_name(op)} ({found[op.index]} of {view.layers[op.index].kernel[0]})" for op in ops])
    return view.about(
        "silent",
        f"Output channels with no weight but zeros are computed like all others, and give the same number every time: {told}. The "
        "stage `shrink` removes such channels for good.",
        ops,
    )


def silent_channels(view: View) -> dict[int, int]:
    """Index of an op -> how many of its output channels have no weight but zeros, where some have."""
    counts = {
        kernel.op.index: _silent(kernel)
        for kernel in tflite.kernels(view.file)
        if kernel.op.op in KERNELS and not ends_the_model(view.file, kernel.op)
    }
    return {index: count for index, count in counts.items() if count}


def _silent(kernel: tflite.Kernel) -> int:
    if kernel.tensor.data is None:
        return 0
    held = ~tflite.zeros(kernel.tensor)
    axis = held.ndim - 1 if kernel.op.op == "DEPTHWISE_CONV_2D" else 0
    return int((~held.any(axis=tuple(other for other in range(held.ndim) if other != axis))).sum())


def mapped(view: View) -> Advice | None:
    """What an accelerator leaves to the CPU, and why."""
    left = [view.file.ops[one.index] for one in view.verdict.ops if not one.mapped] if view.verdict else []
    if not left or view.verdict is None:
        return None
    own = [one for one in view.verdict.ops if not one.mapped and one.after is None and one.advice]
    first = {one.reason: one for one in reversed(own)}
    why = "".join(
        f" {view.file.ops[one.index].op} (op {one.index}): {one.reason}; {one.advice}."
        for one in sorted(first.values(), key=lambda one: one.index)[:SHOWN]
    )
    words = f"{len(left)} of {len(view.file.ops)} ops stay on the CPU: {named(view, left)}."
    return view.about("mapped", words + why, left)


def streamed(view: View) -> Advice | None:
    """What an accelerator has no room for."""
    if view.verdict is None or not view.verdict.off_chip_bytes:
        return None
    whole = view.verdict.on_chip_bytes + view.verdict.off_chip_bytes
    return Advice(
        "streamed",
        f"{memory(view.verdict.off_chip_bytes)} of the {memory(whole)} of parameters find no room on the chip, and are sent to it in "
        "every inference.",
    )


def _name(op: Op) -> str:
    return op.layer or f"op {op.index} ({op.op})"


def named(view: View, ops: Sequence[Op]) -> str:
    """The costliest few by name."""
    return some([_name(op) for op in view.costliest(ops)])


def some(words: Sequence[str], between: str = ", ") -> str:
    """The first few, and how many more."""
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return between.join(words[:SHOWN]) + more
