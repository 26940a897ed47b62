"""Which ops of a ``.tflite`` file compute in float, by the rule that :mod:`edgeprune.tflite` states."""

from __future__ import annotations

from edgeprune.tflite_objects import Op, Tensor, TFLiteFile


def float_ops(file: TFLiteFile) -> tuple[int, ...]:
    """Return the indices of the ops that compute in floating point; the border's are left out."""
    border = set(border_ops(file))
    computing = (op for op in file.ops if op.index not in border)
    return tuple(op.index for op in computing if any(tensor.is_float for tensor in activations(file, op)))


def border_ops(file: TFLiteFile) -> tuple[int, ...]:
    """Return the indices of the ops that only turn float inputs to integers or integers to float outputs."""
    return tuple(op.index for op in file.ops if _is_border(file, op))


def int8_share(file: TFLiteFile) -> float | None:
    """Return the share of integer ops among all but the border's, 0..1; None if there are none."""
    inner = len(file.ops) - len(border_ops(file))
    return 1 - len(float_ops(file)) / inner if inner else None


def activations(file: TFLiteFile, op: Op) -> list[Tensor]:
    """Return what an op reads that is no constant, and what it writes."""
    given = [file.tensors[index] for index in op.inputs if index >= 0]
    return [tensor for tensor in given if not tensor.is_constant] + [file.tensors[i] for i in op.outputs if i >= 0]


def _is_border(file: TFLiteFile, op: Op) -> bool:
    if op.op == "QUANTIZE":
        return any(index in file.inputs and file.tensors[index].is_float for index in op.inputs)
    return op.op == "DEQUANTIZE" and any(index in file.outputs for index in op.outputs)
