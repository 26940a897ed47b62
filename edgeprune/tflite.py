"""Read a ``.tflite``: ops, dtypes, tensors, zeros, n:m, MACs, float fall-backs. No TensorFlow, no interpreter.

::

    file = read("model.tflite")
    inventory(file)["macs"]                                  # what `edgeprune inspect --json` prints
    n_of_m(~zeros(kernel_for(file, "conv2d_3")), 2, 4)       # share of blocks that keep at most 2 of 4

Which ops are *float*: those with a floating-point activation, that is any output, or any input that is not a constant
in the file, of dtype float16, bfloat16, float32 or float64. Constants do not count: they decide how an op stores, not
how it computes. A QUANTIZE that reads a float input of the model, and a DEQUANTIZE that writes a float output of it,
only dress the model's border; they are reported apart (:func:`border_ops`), neither as float nor as integer ops. The
same ops elsewhere are float ops: they are the price of a fall-back in the middle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from edgeprune.errors import ArtefactError
from edgeprune.tflite_dtypes import border_ops, float_ops, int8_share
from edgeprune.tflite_integer import Violation, allowed_bytes
from edgeprune.tflite_integer import violations as int8_violations
from edgeprune.tflite_layers import without_prefix
from edgeprune.tflite_macs import ROLES, Roles
from edgeprune.tflite_objects import Array, Op, Tensor, TFLiteFile, constants_at, stored_constants
from edgeprune.tflite_reader import read

__all__ = [
    "Kernel",
    "Op",
    "TFLiteFile",
    "Tensor",
    "Violation",
    "allowed_bytes",
    "border_ops",
    "float_ops",
    "int8_share",
    "int8_violations",
    "inventory",
    "kernel_for",
    "kernels",
    "macs",
    "n_of_m",
    "params",
    "read",
    "sparsity",
    "tensor_sparsity",
    "weights_by_layer",
    "zeros",
]


class Kernel(NamedTuple):
    """A constant kernel and an op that multiplies by it.

    Attributes:
        op: The op; a tensor shared by two ops makes two kernels.
        tensor: The stored constant, also where a DEQUANTIZE or DENSIFY unpacks it on the way.
        last_axis_is_input: Whether the last axis runs over the op's input channels, as n:m asks for.
    """

    op: Op
    tensor: Tensor
    last_axis_is_input: bool


def kernels(file: TFLiteFile) -> tuple[Kernel, ...]:
    """Return the constant kernels in the order of the ops; an LSTM has up to nine."""
    stored = stored_constants(file.ops, file.tensors)
    return tuple(
        Kernel(op, tensor, ROLES[op.op].last_axis_is_input)
        for op in file.ops
        if op.op in ROLES
        for tensor in constants_at(op, ROLES[op.op].kernels, stored)
    )


def macs(file: TFLiteFile) -> int:
    """Count the multiply-accumulates of one invocation (formulas: :mod:`edgeprune.tflite_macs`)."""
    return sum(op.macs for op in file.ops)


def params(file: TFLiteFile) -> int:
    """Count the elements of all constant kernels and biases of ops that multiply, once however often they are used.

    A bias belongs to its kernel: the converter merges equal biases of different layers, and splits the bias of a layer
    that is called on differently scaled inputs, but the layers have the parameters that they have.
    """
    stored = stored_constants(file.ops, file.tensors)
    kernels: dict[int, int] = {}
    biases: dict[tuple[tuple[int, ...], int], int] = {}
    for op in file.ops:
        roles = ROLES.get(op.op, Roles(()))
        own = {tensor.index: tensor.elements for tensor in constants_at(op, roles.kernels, stored)}
        kernels |= own
        for position in roles.biases:
            for tensor in constants_at(op, (position,), stored):
                biases[tuple(own) or (-1, op.index), position] = tensor.elements
    return sum(kernels.values()) + sum(biases.values())


def zeros(tensor: Tensor) -> Array:
    """Return where a constant's real value is zero: its entry equals its zero point. Boolean, the tensor's shape.

    Raises:
        ArtefactError: The tensor has no dense numeric data in the file.
    """
    if tensor.data is None:
        kind = "is stored sparse" if tensor.sparse_encoded else "is not a numeric constant"
        raise ArtefactError(f"The zeros of tensor {tensor.name!r} cannot be read: it {kind}. Give a dense constant.")
    if tensor.zero_points.size <= 1:
        return np.asarray(tensor.data == (tensor.zero_points[0] if tensor.zero_points.size else 0))
    along = [1] * len(tensor.shape)
    along[tensor.axis] = -1
    return np.asarray(tensor.data == tensor.zero_points.reshape(along))


def tensor_sparsity(tensor: Tensor) -> float | None:
    """Return the share of zeros in a constant, 0..1; None if it is empty, stored sparse, or not numeric."""
    return None if tensor.data is None or not tensor.elements else float(zeros(tensor).mean())


def sparsity(file: TFLiteFile) -> float | None:
    """Return the share of zeros over the elements of all dense kernels, 0..1; None if there are none."""
    found = {kernel.tensor.index: kernel.tensor for kernel in kernels(file) if kernel.tensor.data is not None}
    total = sum(tensor.elements for tensor in found.values())
    return sum(int(zeros(tensor).sum()) for tensor in found.values()) / total if total else None


def n_of_m(array: Array, n: int, m: int) -> float | None:
    """Return the share of blocks that keep at most n of m.

    A block is m consecutive entries along the last axis, aligned to its start: the input channels of a TFLite kernel,
    which is laid out (out, height, width, in) or (out, in). Blocks never span rows.

    Args:
        array: Kernel, or its mask; what is not 0 is kept. (..., channels).
        n: Entries that a block may keep, 0..m.
        m: Entries of a block, >= 1.

    Returns:
        Share of blocks, 0..1; None if the array is empty or its last axis is no multiple of m.

    Raises:
        ValueError: n or m is out of range.
    """
    if m < 1 or not 0 <= n <= m:
        raise ValueError(f"n:m = {n}:{m} is no pattern; expected 0 <= n <= m and m >= 1")
    if array.ndim == 0 or array.size == 0 or array.shape[-1] % m:
        return None
    kept = np.count_nonzero(array.reshape(-1, m), axis=1)
    return float((kept <= n).mean())


def weights_by_layer(file: TFLiteFile) -> dict[str, tuple[Tensor, ...]]:
    """Return the constant kernels of every layer that the file names, keyed by the layer's path (``Op.layer``).

    Most layers have one; a SeparableConv2D has two and an LSTM up to nine. A layer called twice lists its kernel once.
    """
    found: dict[str, dict[int, Tensor]] = {}
    for kernel in kernels(file):
        if kernel.op.layer is not None:
            found.setdefault(kernel.op.layer, {})[kernel.tensor.index] = kernel.tensor
    return {layer: tuple(tensors.values()) for layer, tensors in found.items()}


def kernel_for(file: TFLiteFile, layer: str, shape: tuple[int, ...] | None = None) -> Tensor | None:
    """Find a Keras layer's kernel.

    The exact path wins, then the path without TFMOT's ``quant_``, then a path that ends in the layer's name
    (``block/conv`` for ``conv``); each only with the given shape. If the file does not name the layer at all, it is the
    kernel of that shape whose op names no layer, provided there is one only.

    Args:
        file: The file to search.
        layer: Name of the layer, with the names of nested models before it where they are known.
        shape: The kernel's shape in the file: (out, height, width, in) or (out, in); None for any.

    Returns:
        The tensor, or None if no kernel fits.

    Raises:
        ArtefactError: Several kernels fit equally well.
    """
    named = weights_by_layer(file)
    bare = without_prefix(layer)
    fitting = (
        [path for path in named if path == layer],
        [path for path in named if without_prefix(path) == bare],
        [path for path in named if without_prefix(path).endswith("/" + bare)],
    )
    for paths in fitting:
        found = [tensor for path in paths for tensor in named[path] if shape in (None, tensor.shape)]
        if found:
            return _only(found, layer, shape)
    if any(fitting):
        return None
    nameless = {k.tensor.index: k.tensor for k in kernels(file) if k.op.layer is None and k.tensor.shape == shape}
    return next(iter(nameless.values())) if len(nameless) == 1 else None


def inventory(file: TFLiteFile, n: int = 2, m: int = 4) -> dict[str, Any]:
    """Return everything that ``edgeprune inspect --json`` prints.

    Args:
        file: The file.
        n, m: The n:m pattern to look for, :func:`n_of_m`.

    Returns:
        JSON-ready. ``tensors`` lists the weights, every constant that is float or quantized, kernels first and in the
        order of the ops. Their ``n_of_m`` is None where the pattern does not apply: no kernel, a last axis that is not
        input channels (depthwise), or is no multiple of m. ``border_ops`` and ``float_ops`` hold op indices.
    """
    users = _users(file)
    return {
        "ops": [
            {"index": op.index, "op": op.op, "macs": op.macs, "dtype": op.dtype, "layer": op.layer} for op in file.ops
        ],
        "float_ops": list(float_ops(file)),
        "border_ops": list(border_ops(file)),
        "int8_share": int8_share(file),
        "int8_violations": [violation._asdict() for violation in int8_violations(file)],
        "tensors": [_weight(tensor, users.get(tensor.index, []), n, m) for tensor in _weights(file, users)],
        "inputs": [_port(file.tensors[index]) for index in file.inputs],
        "outputs": [_port(file.tensors[index]) for index in file.outputs],
        "params": params(file),
        "macs": macs(file),
        "sparsity": sparsity(file),
        "size_bytes": file.size_bytes,
        "size_gzip_bytes": file.size_gzip_bytes,
        "notes": list(file.notes),
    }


def _only(found: list[Tensor], layer: str, shape: tuple[int, ...] | None) -> Tensor:
    if len(found) > 1:
        names = ", ".join(repr(tensor.name) for tensor in found)
        wanted = "" if shape is None else f" of shape {shape}"
        raise ArtefactError(
            f"Layer {layer!r} fits {len(found)} kernels{wanted} in the file: {names}. Give the layer a name of its "
            "own, or its full path inside nested models."
        )
    return found[0]


def _users(file: TFLiteFile) -> dict[int, list[Kernel]]:
    """Map tensor indices to the ops that use the tensor as a kernel, in the order of the ops."""
    users: dict[int, list[Kernel]] = {}
    for kernel in kernels(file):
        users.setdefault(kernel.tensor.index, []).append(kernel)
    return users


def _weights(file: TFLiteFile, users: Mapping[int, list[Kernel]]) -> list[Tensor]:
    others = [
        tensor
        for tensor in file.tensors
        if tensor.index not in users and tensor.is_constant and (tensor.is_float or tensor.scales.size > 0)
    ]
    return [file.tensors[index] for index in users] + others


def _weight(tensor: Tensor, users: list[Kernel], n: int, m: int) -> dict[str, Any]:
    applies = tensor.data is not None and bool(users) and all(kernel.last_axis_is_input for kernel in users)
    share = n_of_m(~zeros(tensor), n, m) if applies else None
    return {
        "index": tensor.index,
        "name": tensor.name,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "layer": next((kernel.op.layer for kernel in users), None),
        "kernel_of": [kernel.op.index for kernel in users],
        "sparsity": tensor_sparsity(tensor),
        "n_of_m": None if share is None else {"n": n, "m": m, "share": share},
        "sparse_encoded": tensor.sparse_encoded,
    }


def _port(tensor: Tensor) -> dict[str, Any]:
    """Return an input or output as JSON; scale and zero point are None where it is not quantized."""
    quantized = tensor.scales.size > 0
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "scale": float(tensor.scales[0]) if quantized else None,
        "zero_point": (int(tensor.zero_points[0]) if tensor.zero_points.size else 0) if quantized else None,
    }
