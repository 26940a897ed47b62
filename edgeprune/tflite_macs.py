"""Multiply-accumulates of one op, and where its kernels and biases sit among its inputs.

A MAC is one multiplication with its addition; biases, activations and element-wise products are not counted, as in the
published figures of MobileNet and MLPerf Tiny. Counts are for one invocation at the shapes stored in the file, so for
batch 1 in every file that edgeprune writes. With ``|.|`` the number of elements:

===============================  ================================================================================
``CONV_2D``                      output positions ``N·OH·OW`` × ``|kernel|``, kernel ``(O, KH, KW, I / groups)``
``DEPTHWISE_CONV_2D``            ``|output| · KH · KW``, kernel ``(1, KH, KW, O)``
``FULLY_CONNECTED``              ``|output| · I``, kernel ``(O, I)``
``TRANSPOSE_CONV``               input positions ``N·H·W`` × ``|kernel|``, kernel ``(O, KH, KW, I)``: what is computed,
                                 also where padding crops it afterwards
``CONV_3D``                      output positions ``N·OD·OH·OW`` × ``|kernel|``, kernel ``(KD, KH, KW, I, O)``
``BATCH_MATMUL``                 ``|output| · K``, K the axis that is summed over
``UNIDIRECTIONAL_SEQUENCE_LSTM`` steps ``N·T`` × the elements of all gate and projection matrices
===============================  ================================================================================

Every other op counts 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

Shape = tuple[int, ...]


class Roles(NamedTuple):
    """Which inputs of an op are what: positions in its input list."""

    kernels: tuple[int, ...]
    biases: tuple[int, ...] = ()
    last_axis_is_input: bool = True  # whether the last axis of a kernel runs over the op's input channels


# An LSTM's inputs 1-8 are its gate matrices, 16 the projection; 9-11 peepholes, 12-15 and 17 biases, 20-23 layer norms.
ROLES: dict[str, Roles] = {
    "CONV_2D": Roles((1,), (2,)),
    "DEPTHWISE_CONV_2D": Roles((1,), (2,), last_axis_is_input=False),
    "FULLY_CONNECTED": Roles((1,), (2,)),
    "TRANSPOSE_CONV": Roles((1,), (3,)),
    "CONV_3D": Roles((1,), (2,), last_axis_is_input=False),
    "BATCH_MATMUL": Roles((0, 1), last_axis_is_input=False),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": Roles((*range(1, 9), 16), (*range(9, 16), 17, *range(20, 24))),
}


def macs(op: str, inputs: Sequence[Shape | None], output: Shape, options: Mapping[str, Any]) -> int:
    """Count the multiply-accumulates of one op by the formulas above.

    Args:
        op: Name of the op as in the schema, such as ``"CONV_2D"``.
        inputs: Shape of every input in the op's own order; None where an optional input is left out.
        output: Shape of the first output.
        options: The op's options; ``adj_x`` of a BATCH_MATMUL is read.

    Returns:
        Multiply-accumulates of one invocation, >= 0; 0 for an op that is not in the table.

    Raises:
        IndexError: The op has fewer inputs, or one of fewer axes, than its kind requires.
        TypeError: An input that its kind requires is left out.
    """
    if op in ("CONV_2D", "CONV_3D"):
        return prod(output[:-1]) * prod(_given(inputs[1]))
    if op == "DEPTHWISE_CONV_2D":
        return prod(output) * _given(inputs[1])[1] * _given(inputs[1])[2]
    if op == "FULLY_CONNECTED":
        return prod(output) * _given(inputs[1])[-1]
    if op == "TRANSPOSE_CONV":
        return prod(_given(inputs[2])[:-1]) * prod(_given(inputs[1]))
    if op == "BATCH_MATMUL":
        return prod(output) * _given(inputs[0])[-2 if options.get("adj_x") else -1]
    if op == "UNIDIRECTIONAL_SEQUENCE_LSTM":
        matrices = (inputs[i] for i in ROLES[op].kernels if i < len(inputs))
        return prod(_given(inputs[0])[:-1]) * sum(prod(shape) for shape in matrices if shape is not None)
    return 0


def _given(shape: Shape | None) -> Shape:
    if shape is None:
        raise TypeError("an input that the op requires is left out")
    return shape
