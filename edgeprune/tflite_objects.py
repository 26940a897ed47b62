"""What a ``.tflite`` file is made of, as plain, frozen objects: tensors, ops, and the file around them."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]

_UNPACKING = frozenset({"DEQUANTIZE", "DENSIFY"})  # what may stand between a stored constant and the op that uses it


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of the main subgraph.

    Attributes:
        index: Position in the subgraph's list, which ops refer to.
        name: As in the file; fused names are joined by ``;``.
        shape: Elements per axis; an axis of unknown length is stored as 1.
        dtype: ``"int8"``, ``"float32"``, ``"string"`` and so on, the schema's word in lower case.
        scales: Quantization scales, float32, one or one per entry of ``axis``; empty if not quantized.
        zero_points: Quantization zero points, int64, as many as there are scales, or empty for 0.
        axis: The axis along which scales differ.
        data: The constant's values in ``shape``, read-only (int4 and int2 as int8, bfloat16 as float32); None for an
            activation, a string, and a constant that is stored sparse.
        sparse_encoded: Whether the constant is stored sparse (``tfl.densify`` expands it).
        is_constant: Whether its values are in the file.
        is_variable: Whether it is state that ops write, as in an LSTM.
        is_dynamic: Whether an axis is of unknown length.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    scales: Array
    zero_points: Array
    axis: int
    data: Array | None
    sparse_encoded: bool
    is_constant: bool
    is_variable: bool
    is_dynamic: bool = False

    @property
    def elements(self) -> int:
        """Number of elements, >= 0."""
        return prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether its values are floating-point numbers."""
        return self.dtype.startswith(("float", "bfloat"))


@dataclass(frozen=True)
class Op:
    """One operator of the main subgraph.

    Attributes:
        index: Position in the order of execution.
        op: The schema's name such as ``"CONV_2D"``, or a custom op's own name.
        custom: Whether it is a custom op.
        inputs: Tensor indices; -1 where an optional input is left out.
        outputs: Tensor indices.
        options: What the op has of ``stride``, ``dilation``, ``filter`` (tuples, [depth,] height, width), ``padding``
            (``"SAME"``, ``"VALID"``), ``fused_activation`` (``"NONE"``, ``"RELU"``, …), ``axis``, ….
        macs: Multiply-accumulates of one invocation (see :mod:`edgeprune.tflite_macs`).
        dtype: dtype of the first output, or of the first input if there is none.
        layer: The Keras layer it most likely comes from (see :mod:`edgeprune.tflite_layers`), or None.
    """

    index: int
    op: str
    custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, Any]
    macs: int = 0
    dtype: str = "none"
    layer: str | None = None


@dataclass(frozen=True, eq=False)
class TFLiteFile:
    """A ``.tflite`` file: its bytes, and its main subgraph in plain objects.

    Attributes:
        path: Where it was read from; None if it was given as bytes.
        content: The bytes.
        version: The schema's version, 3 for every file of today.
        description: The writer's own words.
        tensors, ops: The main subgraph, in the file's order.
        inputs, outputs: Tensor indices of the main subgraph's inputs and outputs.
        notes: What this view leaves out, one sentence each.
    """

    path: Path | None
    content: bytes = field(repr=False)
    version: int
    description: str
    tensors: tuple[Tensor, ...] = field(repr=False)
    ops: tuple[Op, ...] = field(repr=False)
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Size of the file, bytes."""
        return len(self.content)

    @cached_property
    def size_gzip_bytes(self) -> int:
        """Size after ``gzip -9``, bytes: what a download or an update carries. The same for the same file, always."""
        return len(gzip.compress(self.content, compresslevel=9, mtime=0))


def stored_constants(ops: Sequence[Op], tensors: Sequence[Tensor]) -> dict[int, Tensor]:
    """Map the index of every tensor that is constant, or unpacked from a constant by an op, to that constant."""
    stored = {tensor.index: tensor for tensor in tensors if tensor.is_constant}
    for op in ops:
        if op.op in _UNPACKING and op.inputs and op.inputs[0] in stored:
            stored.update((output, stored[op.inputs[0]]) for output in op.outputs)
    return stored


def constants_at(op: Op, positions: Sequence[int], stored: Mapping[int, Tensor]) -> Iterator[Tensor]:
    """Yield the constants at the given positions of an op's inputs, skipping what is left out or computed."""
    for position in positions:
        if position < len(op.inputs) and op.inputs[position] in stored:
            yield stored[op.inputs[position]]
