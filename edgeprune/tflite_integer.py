"""Is a ``.tflite`` file a true int8 model? What is not allowed is a `Violation`, in words.

Everything is int8, except what is listed here by its role:

=====================  ======================================================================================================
inputs and outputs     uint8 instead, where that is asked for; int32 or int64 where an input is an index (of an Embedding's
                       rows) and where an output is one (ARG_MAX): an index has no scale
bias                   int32 constants that are added to products, with the scale of the input times that of the kernel
places                 int32 or int64 shapes, axes, permutations, paddings, begins, ends, sizes, strides and indices: constants,
                       and what is computed to be one
conditions             bool results of comparisons, and what SELECT and the logical ops make of them
state of an LSTM       the int16 cell state (a variable), and the int16 peephole and layer normalization constants
=====================  ======================================================================================================

What kernels compute inside (32-bit sums, 16-bit tables) is no tensor and not asked for. Nothing else may be there: no float
op, no float constant, no QUANTIZE or DEQUANTIZE at the border, no axis of unknown length, no sparse encoding, no custom
op, no control flow, no string, resource or variant.

The file is bounded, too: ``size <= 1.1 (int8 constants + int32 biases + 20 KiB + 1 KiB per op)``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from edgeprune.tflite_dtypes import border_ops, float_ops
from edgeprune.tflite_macs import ROLES
from edgeprune.tflite_objects import Array, Op, Tensor, TFLiteFile

KIB = 1024
_FACTOR, _BASE_KIB, _PER_OP_KIB = 1.1, 20, 1

# Inputs that hold places, not quantities, by position.
_PLACES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("RESHAPE", "TRANSPOSE", "EXPAND_DIMS", "TILE", "BROADCAST_TO", "GATHER", "GATHER_ND"), (1,)),
    **dict.fromkeys(("PAD", "PADV2", "MIRROR_PAD", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2"), (1,)),
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "REDUCE_ANY", "REDUCE_ALL"), (1,)),
    **dict.fromkeys(("ARG_MAX", "ARG_MIN", "TOPK_V2", "CUMSUM", "REVERSE_SEQUENCE"), (1,)),
    **dict.fromkeys(("SLICE", "SPLIT_V", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND"), (1, 2)),
    **dict.fromkeys(("TRANSPOSE_CONV", "SPLIT", "FILL", "EMBEDDING_LOOKUP"), (0,)),
    "STRIDED_SLICE": (1, 2, 3),
    "ONE_HOT": (0, 1),
    "SCATTER_ND": (0, 2),
    "DYNAMIC_UPDATE_SLICE": (2,),
    "RANGE": (0, 1, 2),
}
# Outputs that hold places, by position.
_PLACES_MADE: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("ARG_MAX", "ARG_MIN", "SHAPE", "RANK", "RANGE", "WHERE"), (0,)),
    "TOPK_V2": (1,),
}
_CONDITIONS = frozenset(
    (
        *("EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL"),
        *("LOGICAL_AND", "LOGICAL_OR", "LOGICAL_NOT", "SELECT", "SELECT_V2"),
    )
)
_LSTM = "UNIDIRECTIONAL_SEQUENCE_LSTM"
_SHORT = (*range(9, 12), 19, *range(20, 24))  # an LSTM's int16 inputs: peepholes, cell state, layer normalization
_CONTROL = frozenset(("WHILE", "IF", "CALL", "CALL_ONCE", "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"))

_ADVICE: dict[str, str] = {
    "CAST": "Declare an input of indices as integers: keras.Input(shape, dtype='int32').",
    "ELU": "Use relu, LeakyReLU or swish, which have int8 kernels.",
    "CONV_3D": "TensorFlow Lite has no int8 kernel for it: use 2-D convolutions.",
    "SPLIT": "Slice instead of splitting, or give each part a kernel of its own.",
    "SPLIT_V": "Slice instead of splitting, or give each part a kernel of its own.",
    "QUANTIZE": "It goes with the float op beside it.",
    "DEQUANTIZE": "It goes with the float op beside it.",
}
_OTHER_ADVICE = (
    "Leave its layer to post-training ranges if they give it int8 (`edgeprune check MODEL` says), or replace it."
)


class Violation(NamedTuple):
    """Something in a file that a true int8 model does not have.

    Attributes:
        kind: ``port``, ``border``, ``float_op``, ``float_constant``, ``type``, ``dynamic``, ``sparse``, ``custom``,
            ``control_flow`` or ``size``.
        message: what it is, and what to do about it.
        op: index of the op; None where it is no op's.
        tensor: index of the tensor; None where it is no tensor's.
        layer: the Keras layer it most likely comes from, or None.
    """

    kind: str
    message: str
    op: int | None = None
    tensor: int | None = None
    layer: str | None = None


def violations(file: TFLiteFile, io: str | None = None) -> tuple[Violation, ...]:
    """Find all that keeps a file from being a true int8 model.

    Args:
        file: The file.
        io: What its inputs and outputs have to be, ``"int8"`` or ``"uint8"``; None for uint8 where they all are.

    Returns:
        The worst first: types of ports, float ops, the others, the size; empty for a true int8 model.
    """
    facts = _Facts(file)
    wanted = io or ("uint8" if {tensor.dtype for tensor in facts.quantities()} == {"uint8"} else "int8")
    return tuple(
        violation for found in (_ports(facts, wanted), _ops(facts), _tensors(facts), _size(file)) for violation in found
    )


def allowed_bytes(file: TFLiteFile) -> int:
    """Return the size that a true int8 file of these weights and ops has at most, bytes."""
    held, seen = 0, set()
    for tensor, data in _weights(file):
        digest = (tensor.dtype, hashlib.sha256(data.tobytes()).digest())
        if digest not in seen:  # the writer stores equal constants once
            seen.add(digest)
            held += tensor.elements * (4 if tensor.dtype == "int32" else 1)
    return int(_FACTOR * (held + KIB * (_BASE_KIB + _PER_OP_KIB * len(file.ops))))


class _Facts:
    """A file, and who reads and writes its tensors."""

    def __init__(self, file: TFLiteFile) -> None:
        self.file = file
        self.readers: dict[int, list[tuple[Op, int]]] = {}
        self.writer: dict[int, tuple[Op, int]] = {}
        for op in file.ops:
            for position, index in enumerate(op.inputs):
                self.readers.setdefault(index, []).append((op, position))
            for position, index in enumerate(op.outputs):
                self.writer[index] = (op, position)
        self.places = self._places()

    def _places(self) -> set[int]:
        """The integer tensors that hold places: those made as such, and whatever is only computed to become one."""
        found = {i for i, (op, position) in self.writer.items() if position in _PLACES_MADE.get(op.op, ())}
        for op in reversed(self.file.ops):
            whole = bool(op.outputs) and all(index in found for index in op.outputs)
            whole = whole and op.op not in _PLACES_MADE
            found |= {
                index
                for position, index in enumerate(op.inputs)
                if index >= 0
                and _is_integer(self.file.tensors[index])
                and (whole or position in _PLACES.get(op.op, ()))
            }
        return found

    def ports(self) -> Iterator[tuple[str, Tensor]]:
        for end, indices in (("input", self.file.inputs), ("output", self.file.outputs)):
            yield from ((end, self.file.tensors[index]) for index in indices if index >= 0)

    def quantities(self) -> list[Tensor]:
        """The inputs and outputs that are no places."""
        return [tensor for _, tensor in self.ports() if tensor.index not in self.places]

    def layer(self, index: int) -> str | None:
        """The layer of the op that makes a tensor, or else of the first that reads it."""
        ops = [self.writer[index]] if index in self.writer else self.readers.get(index, [])
        return next((op.layer for op, _ in ops if op.layer), None)


def _ports(facts: _Facts, wanted: str) -> Iterator[Violation]:
    for end, tensor in facts.ports():
        if tensor.dtype != wanted and tensor.index not in facts.places:
            yield Violation(
                "port",
                f"The {end} '{tensor.name}' is {tensor.dtype}, not {wanted}. Convert with inputs and outputs of {wanted}.",
                tensor=tensor.index,
                layer=facts.layer(tensor.index),
            )
    for index in border_ops(facts.file):
        op = facts.file.ops[index]
        yield Violation(
            "border",
            f"{_named(op)} only turns numbers at the model's border. Convert with integer inputs and outputs.",
            op=index,
            layer=op.layer,
        )


def _ops(facts: _Facts) -> Iterator[Violation]:
    for index in float_ops(facts.file):
        op = facts.file.ops[index]
        yield Violation(
            "float_op", f"{_named(op)} computes in float. {_ADVICE.get(op.op, _OTHER_ADVICE)}", op=index, layer=op.layer
        )
    for op in facts.file.ops:
        if op.custom:
            message = f"{_named(op)} is no op of TensorFlow Lite's own. Replace its layer by one that converts."
            yield Violation("custom", message, op=op.index, layer=op.layer)
        elif op.op in _CONTROL:
            message = f"{_named(op)} is control flow or state that is not looked into. Unroll the loop: unroll=True."
            yield Violation("control_flow", message, op=op.index, layer=op.layer)


def _tensors(facts: _Facts) -> Iterator[Violation]:
    ports = {tensor.index for _, tensor in facts.ports()}
    dynamic = [tensor for tensor in facts.file.tensors if tensor.is_dynamic]
    if dynamic:
        yield Violation(
            "dynamic",
            f"{len(dynamic)} tensors, the first '{dynamic[0].name}', have an axis of unknown length. Build the model with a "
            "fixed input shape, and convert it for batch 1, as edgeprune does.",
            tensor=dynamic[0].index,
            layer=facts.layer(dynamic[0].index),
        )
    for tensor in facts.file.tensors:
        used = tensor.index in facts.readers or tensor.index in facts.writer or tensor.index in ports
        for kind, message in _wrong(facts, tensor, tensor.index in ports) if used or tensor.is_constant else ():
            whole = f"The tensor '{tensor.name}' {message}"
            yield Violation(kind, whole, tensor=tensor.index, layer=facts.layer(tensor.index))


def _wrong(facts: _Facts, tensor: Tensor, is_port: bool) -> Iterator[tuple[str, str]]:
    """What is wrong with a tensor by itself: kind and words."""
    if tensor.sparse_encoded:
        yield "sparse", "is stored sparse, which int8 kernels refuse. Convert without EXPERIMENTAL_SPARSITY."
    if tensor.is_float:
        if tensor.is_constant and tensor.elements:
            yield "float_constant", f"is a {tensor.dtype} constant. Quantize the layer that it belongs to."
    elif not is_port and not _fits(facts, tensor):
        role = "constant" if tensor.is_constant else "result"
        yield "type", f"is a {role} of {tensor.dtype}, which nothing in an int8 model needs. {_OTHER_ADVICE}"


def _fits(facts: _Facts, tensor: Tensor) -> bool:
    """Whether an integer tensor's type goes with what it is for; the table at the top of this module."""
    readers = facts.readers.get(tensor.index, [])
    if tensor.dtype == "int8":
        return True
    if tensor.dtype in ("int32", "int64"):
        return tensor.index in facts.places or not readers or all(_is_bias(*reader) for reader in readers)
    if tensor.dtype == "int16":
        return bool(readers) and all(op.op == _LSTM and position in _SHORT for op, position in readers)
    if tensor.dtype == "bool":
        made_by = facts.writer[tensor.index][0].op if tensor.index in facts.writer else None
        return made_by in _CONDITIONS or (tensor.is_constant and all(op.op in _CONDITIONS for op, _ in readers))
    return False


def _size(file: TFLiteFile) -> Iterator[Violation]:
    allowed = allowed_bytes(file)
    if file.size_bytes > allowed:
        yield Violation(
            "size",
            f"The file has {file.size_bytes / KIB:.1f} KiB; its int8 weights, biases and ops account for {allowed / KIB:.1f} "
            "KiB at most. Float constants, or weights that are stored twice, take the rest: look at them with `edgeprune "
            "inspect FILE.tflite`.",
        )


def _weights(file: TFLiteFile) -> Iterator[tuple[Tensor, Array]]:
    """The dense constants that hold quantities; a float one counts as the int8 one that it should be."""
    biases = {op.inputs[i] for op in file.ops if op.op in ROLES for i in ROLES[op.op].biases if i < len(op.inputs)}
    for tensor in file.tensors:
        if tensor.data is not None and (tensor.dtype == "int8" or tensor.is_float or tensor.index in biases):
            yield tensor, tensor.data


def _is_integer(tensor: Tensor) -> bool:
    return tensor.dtype in ("int32", "int64")


def _is_bias(op: Op, position: int) -> bool:
    return op.op in ROLES and position in ROLES[op.op].biases


def _named(op: Op) -> str:
    return f"Op {op.index}, {op.op}" + (f" of the layer '{op.layer}'," if op.layer else ",")
