"""Which ops of a .tflite the Edge TPU compiler takes, and why it leaves the others to the CPU.

The compiler makes one subgraph for the accelerator: an op is in it if it is of a kind that the chip has, its activations
are 8-bit, nothing beyond the innermost three axes is longer than 1, the limits of its kind hold, **and** every op it depends
on is in it too. So one op in the middle sends all that comes after it to the CPU. A CAST or QUANTIZE at a model's input is
exempt: it stays on the CPU and the rest is mapped all the same.

Dependency order counts, not the file's: branches that do not pass the op stay on the chip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from edgeprune.devices import _edgetpu_limits
from edgeprune.devices._edgetpu_facts import Facts
from edgeprune.devices._edgetpu_limits import Limit, Rule
from edgeprune.errors import ArtefactError
from edgeprune.tflite_objects import Op, TFLiteFile

LEADING = frozenset({"CAST", "QUANTIZE"})  # may stay on the CPU at a model's input without consequences
SHAPES = frozenset({"int32", "int64"})  # what shapes that the model computes are made of
COMPILED = "edgetpu-custom-op"  # what the compiler puts in the place of all it has mapped

# The compiler's own words.
MAPPED = "Mapped to Edge TPU"
LATER = "More than one subgraph is not supported"
UNSUPPORTED = "Operation not supported"
TYPE = "Operation is working on an unsupported data type"
UNSPECIFIED = "Operation is otherwise supported, but not mapped due to some unspecified limitation"
STATUSES = (MAPPED, LATER, UNSUPPORTED, "Operation version not supported", TYPE, UNSPECIFIED)


@dataclass(frozen=True)
class Verdict:
    """What becomes of one op.

    Args:
        index, op: of the file.
        status: in the words of the compiler's log.
        reason: why it runs on the CPU; None: it is mapped.
        advice: what to change; None: nothing of its own.
        after: the first op, by index, that keeps it off the chip; None: itself.
    """

    index: int
    op: str
    status: str
    reason: str | None = None
    advice: str | None = None
    after: int | None = None

    @property
    def mapped(self) -> bool:
        """Whether it runs on the Edge TPU."""
        return self.status == MAPPED


def verdicts(file: TFLiteFile, facts: Facts, pardoned: frozenset[int] = frozenset()) -> tuple[Verdict, ...]:
    """What becomes of every op, in the file's order.

    Args:
        pardoned: ops whose own reasons are passed over, as if they had been mended.

    Raises:
        ArtefactError: a float model, one that is compiled already, or one whose ops are out of order.
    """
    _refuse(file, facts)
    makers = {index: op.index for op in file.ops for index in op.outputs if index >= 0}
    found: dict[int, Verdict] = {}
    leading: set[int] = set()
    for op in _in_order(file, makers):
        sources = [makers[index] for index in op.inputs if index in makers]
        blocking = sorted({_root(found[one]) for one in sources if not found[one].mapped and one not in leading})
        if op.op in LEADING and all(one in leading for one in sources):
            leading.add(op.index)
        own = None if op.index in pardoned else _own(file, op, facts)
        found[op.index] = _verdict(file, op, own, blocking[0] if blocking else None)
    return tuple(found[op.index] for op in file.ops)


def culprits(file: TFLiteFile, found: tuple[Verdict, ...], facts: Facts) -> tuple[dict[str, Any], ...]:
    """The ops that keep others off the chip, in the file's order; the first sends the rest to the CPU.

    Returns:
        ``index``, ``op``, ``reason``, ``advice``; ``keeps_off``: how many others are kept off; ``frees``: how many ops more are
        mapped when this one alone is mended, itself included.
    """
    keeps_off = Counter(one.after for one in found if one.after is not None)
    mapped = sum(one.mapped for one in found)
    return tuple(
        {
            "index": one.index,
            "op": one.op,
            "reason": one.reason,
            "advice": one.advice,
            "keeps_off": keeps_off[one.index],
            "frees": sum(other.mapped for other in verdicts(file, facts, frozenset({one.index}))) - mapped,
        }
        for one in found
        if keeps_off[one.index]
    )


def _refuse(file: TFLiteFile, facts: Facts) -> None:
    name = str(file.path or "The model given as bytes")
    if any(op.op == COMPILED for op in file.ops):
        raise ArtefactError(
            f"{name} is already compiled for the {facts.title}. Give the .tflite that it was compiled from."
        )
    made = [file.tensors[index] for op in file.ops for index in op.outputs if index >= 0]
    if file.ops and not any(tensor.dtype in facts.data_types for tensor in made):
        raise ArtefactError(
            f"{name} is a float model: none of its {len(file.ops)} ops gives 8-bit integers, and the {facts.title} computes in "
            "nothing else. Quantize it first, weights and activations: edgeprune build MODEL --recipe ptq."
        )


def _in_order(file: TFLiteFile, makers: dict[int, int]) -> Iterator[Op]:
    """The ops, each after all that it depends on; files keep that order, and what does not is refused.

    Raises:
        ArtefactError: an op reads what a later one writes.
    """
    for op in file.ops:
        late = [makers[index] for index in op.inputs if makers.get(index, -1) >= op.index]
        if late:
            raise ArtefactError(
                f"{file.path or 'The model'}: op {op.index}, {op.op}, reads what op {late[0]} writes, which comes no earlier. "
                "Convert the model again."
            )
        yield op


def _root(verdict: Verdict) -> int:
    """The op that keeps an unmapped one off the chip."""
    return verdict.index if verdict.after is None else verdict.after


def _verdict(file: TFLiteFile, op: Op, own: tuple[str, Limit] | None, blocking: int | None) -> Verdict:
    """An op's own reason counts before that of the ops it depends on, as in the compiler's log."""
    if own is not None:
        status, limit = own
        return Verdict(op.index, op.op, status, limit.reason, limit.advice)
    if blocking is not None:
        kind = file.ops[blocking].op
        reason = f"it depends on op {blocking}, {kind}, which runs on the CPU"
        return Verdict(op.index, op.op, LATER, reason, f"see op {blocking}", blocking)
    return Verdict(op.index, op.op, MAPPED)


def _own(file: TFLiteFile, op: Op, facts: Facts) -> tuple[str, Limit] | None:
    """What keeps an op off the chip wherever it stands; None: nothing."""
    if op.op not in facts.ops:
        kind = "a custom op" if op.custom else "an op that the Edge TPU does not have"
        advice = facts.instead.get(
            op.op, "leave it out, replace it, or compute it on the host; what comes before it stays mapped"
        )
        return (TYPE if _wrong_type(file, op, facts) else UNSUPPORTED), Limit(f"it is {kind}", advice)
    for status, find in ((TYPE, _wrong_type), (UNSPECIFIED, _too_many_axes)):
        limit = find(file, op, facts)
        if limit is not None:
            return status, limit
    for name in facts.ops[op.op].limits:
        rule: Rule = getattr(_edgetpu_limits, name)
        limit = rule(file, op, facts)
        if limit is not None:
            return UNSPECIFIED, limit
    return None


def _wrong_type(file: TFLiteFile, op: Op, facts: Facts) -> Limit | None:
    for index in (*op.inputs, *op.outputs):
        tensor = file.tensors[index] if index >= 0 else None
        if tensor is None or tensor.is_constant or tensor.is_variable or tensor.dtype in facts.data_types:
            continue
        how = "reads" if index in op.inputs else "gives"
        advice = facts.instead.get(op.op, "quantize it: all activations int8 or uint8")
        if index in op.inputs and tensor.dtype in SHAPES:
            advice = facts.instead["SHAPE"]
        if op.op in LEADING and index in file.inputs:
            advice = "nothing is lost, it stays on the CPU alone; give the model int8 input to save even that"
        return Limit(f"it {how} {tensor.dtype}", advice)
    return None


def _too_many_axes(file: TFLiteFile, op: Op, facts: Facts) -> Limit | None:
    for index in (*op.inputs, *op.outputs):
        tensor = file.tensors[index] if index >= 0 else None
        if tensor is None or tensor.is_constant or tensor.is_variable:
            continue
        if prod(tensor.shape[: -facts.inner_axes]) != 1:
            shape = "x".join(map(str, tensor.shape))
            advice = "use batch size 1, and at most height, width and channels"
            return Limit(
                f"its activation {shape} is longer than 1 beyond the innermost {facts.inner_axes} axes", advice
            )
    return None
