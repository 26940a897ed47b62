"""How large a ``.tflite`` file will be, from the ops and their shapes alone: made for thousands of candidates.

An int8 file holds every weight as a byte, for every output channel an int32 bias, and in convolutions a float32 scale of the kernel and
one of the bias; dense layers have one for all. The zero points of such scales are all 0, int64, and equal vectors are stored once
(`edgeprune.tflite_compact`): one for every count of channels that occurs. Besides there is what TensorFlow Lite writes for an op with a
kernel (its entry, its tensors with their names and ranges), for any other op, and once for the file. ::

    bytes = weights + 12·channels of convolutions + 8·their different counts + 4·outputs of dense layers + k·kernels + o·others + f

The last three are fitted by ``benchmarks/file_size_fit.py`` on files that this project wrote; the error on networks that they were not
fitted on is in ``benchmarks/results/file_size.json``.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import NamedTuple

from edgeprune.analytic import Layer

CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
DENSE = "FULLY_CONNECTED"
BIAS, SCALES, ZERO_POINT = (
    4,
    8,
    8,
)  # bytes for an output channel; the latter two where each channel has a scale of its own
KERNEL_OP, OTHER_OP, FILE = 181.6, 670.6, 430.5


class Parts(NamedTuple):
    """What a file holds.

    Attributes:
        held: bytes of weights, biases and scales.
        kernel_ops, other_ops: how many ops there are with a kernel, and without.
    """

    held: int
    kernel_ops: int
    other_ops: int


def parts(layers: Iterable[Layer]) -> Parts:
    """Of the ops that the converter would make."""
    held = kernels = others = 0
    counts = set()
    for layer in layers:
        if layer.op in CONVOLUTIONS or layer.op == DENSE:
            held += prod(layer.kernel) + layer.kernel[0] * (BIAS + (SCALES if layer.op in CONVOLUTIONS else 0))
            counts |= {layer.kernel[0]} if layer.op in CONVOLUTIONS else set()
            kernels += 1
        else:
            others += 1
    return Parts(held + ZERO_POINT * sum(counts), kernels, others)


def predicted(layers: Iterable[Layer]) -> int:
    """Bytes of the int8 file of these ops."""
    found = parts(layers)
    return round(found.held + KERNEL_OP * found.kernel_ops + OTHER_OP * found.other_ops + FILE)
