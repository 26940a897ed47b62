"""Bytes on the Edge TPU: parameters (exact where compiled models could be compared), activations and instructions (estimates).

*Parameters.* With up(n, k) = n rounded up to a multiple of k, C' = up(cout, 16) for up to 64 output channels, else up(cout, 64):

===============================  ==========================================================
convolution, fully connected     up(C' · (o + kh · kw · up(cin, 4)), 64)
depthwise convolution            up(up(c, 4) · (o + 4 · kh · kw), 64)
===============================  ==========================================================

o, beside the weights of an output channel: 4 bytes with one scale, with one per channel 12 (convolutions) or 8 (fully
connected).

*Activations.* The tiles stand in a 4 × 4 grid over height and width. Each holds its part of every live activation, and of
its neighbours' parts the rows and columns that the next convolution's window reaches into (kernel − stride).
"""

from __future__ import annotations

from math import prod

from edgeprune.devices._edgetpu_facts import Facts
from edgeprune.tflite_macs import ROLES
from edgeprune.tflite_objects import Op, Tensor, TFLiteFile, constants_at, stored_constants

DENSE = frozenset({"CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"})
MLIR = "MLIR Converted."  # how a converter of TensorFlow 2.2 or newer describes its files


def up(count: int, step: int) -> int:
    """``count`` rounded up to a multiple of ``step``."""
    return -(-count // step) * step


def padded_channels(channels: int, facts: Facts) -> int:
    """Output channels as they are laid out."""
    layout = facts.parameters
    return up(channels, layout.out_step if channels <= layout.out_until else layout.out_step_beyond)


def parameter_bytes(file: TFLiteFile, op: Op, facts: Facts) -> int:
    """Bytes of one mapped op's parameters, as laid out for the chip."""
    layout = facts.parameters
    if op.op == "SOFTMAX":
        return _softmax_bytes(file, op, facts)
    stored = stored_constants(file.ops, file.tensors)
    kernels = list(constants_at(op, ROLES[op.op].kernels, stored)) if op.op in ROLES else []
    if op.op == "DEPTHWISE_CONV_2D":
        return sum(_depthwise_bytes(kernel, facts) for kernel in kernels)
    if kernels:
        return sum(_dense_bytes(kernel, op.op in DENSE and op.op != "FULLY_CONNECTED", facts) for kernel in kernels)
    constants = [
        file.tensors[index] for index in op.inputs if index >= 0 and file.tensors[index].dtype in facts.data_types
    ]
    return sum(up(tensor.elements, layout.align_bytes) for tensor in constants if tensor.is_constant)


def on_and_off_chip(total: int, facts: Facts) -> tuple[int, int]:
    """How many bytes of parameters are cached on the chip, and how many streamed in every inference (an estimate).

    The compiler fills what is left of the chip's memory to the last few KiB; how much that is it decides by itself. The
    median of its logs is taken.
    """
    room = facts.memory.parameter_kib_usual * 1024
    return min(total, room), max(0, total - room)


def activation_bytes(file: TFLiteFile, mapped: frozenset[int], facts: Facts) -> int:
    """Bytes that a tile needs for the activations that live at once, at most; more than it has: the compiler cuts strips."""
    return max(live_bytes(file, mapped, facts).values(), default=0)


def live_bytes(file: TFLiteFile, mapped: frozenset[int], facts: Facts) -> dict[int, int]:
    """Bytes per tile of what is alive while each mapped op runs, by the op's index."""
    ops = [op for op in file.ops if op.index in mapped]
    halos = _halos(file, ops)
    born: dict[int, int] = {}
    died: dict[int, int] = dict.fromkeys(file.outputs, len(file.ops))
    for op in ops:
        for index in _activations(file, op.inputs):
            born.setdefault(index, -1)
            died[index] = max(died.get(index, -1), op.index)
        for index in op.outputs:
            born[index] = op.index
            died[index] = max(died.get(index, -1), _last_use(file, index, op.index))
    sizes = {index: _tile_bytes(file.tensors[index], halos.get(index, (0, 0)), facts) for index in born}
    return {op.index: sum(sizes[i] for i in born if born[i] <= op.index <= died[i]) for op in ops}


def strips(file: TFLiteFile, mapped: frozenset[int], facts: Facts) -> int:
    """Into how many pieces all ops are cut in sum, so that each fits the activation memory; 1 per op where all fits."""
    room = facts.memory.activation_bytes_per_tile
    return sum(max(1, -(-live // room)) for live in live_bytes(file, mapped, facts).values())


def _dense_bytes(kernel: Tensor, convolution: bool, facts: Facts) -> int:
    layout = facts.parameters
    positions = prod(kernel.shape[1:-1])
    per_channel = layout.overhead_per_channel_conv if convolution else layout.overhead_per_channel_dense
    overhead = per_channel if kernel.scales.size > 1 else layout.overhead_per_tensor
    row = overhead + positions * up(kernel.shape[-1], layout.in_step)
    return up(padded_channels(kernel.shape[0], facts) * row, layout.align_bytes)


def _depthwise_bytes(kernel: Tensor, facts: Facts) -> int:
    layout = facts.parameters
    overhead = layout.overhead_per_channel_conv if kernel.scales.size > 1 else layout.overhead_per_tensor
    row = overhead + layout.depthwise_bytes_per_weight * prod(kernel.shape[:-1])
    return up(up(kernel.shape[-1], layout.in_step) * row, layout.align_bytes)


def _softmax_bytes(file: TFLiteFile, op: Op, facts: Facts) -> int:
    """Newer compilers give a softmax a table. Files of the old converter were compiled before that."""
    layout, classes = facts.parameters, file.tensors[op.inputs[0]].shape[-1]
    if file.description != MLIR:
        return 0
    table = (
        layout.softmax_bytes_per_class * up(classes, layout.in_step) if classes >= layout.softmax_classes_from else 0
    )
    return table + layout.softmax_bytes


def _activations(file: TFLiteFile, indices: tuple[int, ...]) -> list[int]:
    return [index for index in indices if index >= 0 and not file.tensors[index].is_constant]


def _last_use(file: TFLiteFile, tensor: int, after: int) -> int:
    return max((op.index for op in file.ops if tensor in op.inputs), default=after)


def _halos(file: TFLiteFile, ops: list[Op]) -> dict[int, tuple[int, int]]:
    """Rows and columns of the neighbours' parts that the window of the next op reaches into, per activation."""
    found: dict[int, tuple[int, int]] = {}
    for op in ops:
        window, stride = _window(file, op), op.options.get("stride", (1, 1))
        reach = [max(0, size - step) for size, step in zip(window, stride, strict=True)]
        for index in _activations(file, op.inputs):
            known = found.get(index, (0, 0))
            found[index] = (max(known[0], reach[0]), max(known[1], reach[1]))
    return found


def _window(file: TFLiteFile, op: Op) -> tuple[int, int]:
    if op.op in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        _, height, width, _ = file.tensors[op.inputs[1]].shape
        down, along = op.options.get("dilation", (1, 1))
        return (height - 1) * down + 1, (width - 1) * along + 1
    height, width = op.options.get("filter", (1, 1))
    return height, width


def _tile_bytes(tensor: Tensor, halo: tuple[int, int], facts: Facts) -> int:
    """Bytes of one activation in one tile; what has a single pixel lies in every tile, what has none is shared out."""
    if len(tensor.shape) < 3:
        return -(-tensor.elements // facts.array.tiles)
    height, width, channels = tensor.shape[-3:]
    parts = [
        min(length, -(-length // facts.array.grid) + reach) for length, reach in zip((height, width), halo, strict=True)
    ]
    return prod(parts) * up(channels, facts.parameters.in_step)
