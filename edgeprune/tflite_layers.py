"""The Keras layer behind an op, guessed from the names that the converter leaves in the file.

The converter keeps no link to Keras; it keeps TensorFlow scopes in tensor names, joined by ``;`` where it fused ops::

    model/re_lu/Relu;model/conv2d_3/Conv2D      a convolution with its activation     -> conv2d_3
    model/block/conv/Conv2D                     a layer inside a nested model         -> block/conv
    model/quant_dense/MatMul;model/quant_dense/LastValueQuant/FakeQuantWithMinMaxVars -> dense
    StatefulPartitionedCall:0, arith.constant2  says nothing                          -> None

A part reads ``model scope / layer path / TensorFlow op``. Fused names also carry parts of foreign layers, whose
constants happened to be equal, so the part whose TensorFlow op fits the op at hand decides, by majority; the kernel's
name is asked before the output's, which often bears the name of the activation or BatchNorm that was fused in.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# What follows the layer's path at the end of a part: one TensorFlow op, or one with its helper inside.
_TENSORFLOW_OP = re.compile(
    r"""/(?:
        [^/]+/ReadVariableOp[^/]*(?:/resource)?                     # dense/BiasAdd/ReadVariableOp/resource
      | [^/]+/FakeQuant[^/]*(?:/[^/]+)?                             # quant_dense/LastValueQuant/FakeQuantWithMinMaxVars
      | (?:Conv[123]D|depthwise)/(?:SpaceToBatchND|BatchToSpaceND|ExpandDims|Squeeze)[^/]*
      | separable_conv2d/depthwise[^/]*
      | (?:Tensordot|batchnorm)/[^/]+(?:/[^/]+)?
      | einsum(?:_\d+)?/Einsum[^/]*
      | [^/]+
    )$""",
    re.VERBOSE,
)
_COUNTER = re.compile(r"(?:_\d+)?\d*(?::\d+)?$")  # Conv2D_1, Conv2D11, Conv2D:0: what makes names unique
_CALL = re.compile(r"^(?:StatefulPartitionedCall|PartitionedCall)/")

_CONVOLUTIONS = frozenset({"Conv1D", "Conv2D", "convolution", "separable_conv2d"})
_DEPTHWISE = frozenset({"depthwise", "separable_conv2d/depthwise", "DepthwiseConv2dNative"})
_PRODUCTS = frozenset({"MatMul", "Tensordot", "Einsum", "BatchMatMulV"})  # V2 and V3 less their number
_TRANSPOSED = frozenset({"conv2d_transpose", "conv_transpose"})
_OWN_OPS: dict[str, frozenset[str]] = {
    "CONV_2D": _CONVOLUTIONS,
    "DEPTHWISE_CONV_2D": _DEPTHWISE,
    "FULLY_CONNECTED": _PRODUCTS,
    "TRANSPOSE_CONV": _TRANSPOSED,
    "CONV_3D": frozenset({"Conv3D", "convolution"}),
    "BATCH_MATMUL": _PRODUCTS,
}
_ANY_OWN_OP = frozenset().union(*_OWN_OPS.values())  # a Dense may become a CONV_2D, a Conv2D a DEPTHWISE_CONV_2D

_ACTIVATIONS = frozenset({"Relu", "Tanh"})  # what a converter fuses into another op; Relu6 less its number


class Part(NamedTuple):
    """One ``;``-separated part of a tensor name: the path of its scope, and the TensorFlow op in it."""

    scope: tuple[str, ...]
    op: str


def layers(ops: Sequence[tuple[str, Sequence[str]]]) -> list[str | None]:
    """Name the layer of every op.

    Args:
        ops: For each op its kind (``"CONV_2D"``) and the names of its kernels and first output, in this order.

    Returns:
        For each op the layer's path without the model's own scope (``"conv2d_3"``, ``"block/conv"``), or None where the
        names do not tell. TFMOT's prefix ``quant_`` is taken off where the file shows its quantizers.
    """
    parsed = [(kind, [_parts(name) for name in names]) for kind, names in ops]
    depth = _common_depth(part.scope for kind, names in parsed if kind in _OWN_OPS for parts in names for part in parts)
    quantized = any("FakeQuant" in name for _, names in ops for name in names)
    return [_path(_choose(kind, names), depth, quantized) for kind, names in parsed]


def without_prefix(layer: str) -> str:
    """Take TFMOT's ``quant_`` off the last step of a layer's path: ``block/quant_conv`` -> ``block/conv``."""
    head, slash, last = layer.rpartition("/")
    return head + slash + last.removeprefix("quant_")


def _parts(name: str) -> list[Part]:
    return [part for text in name.split(";") if (part := _part(text)) is not None]


def _part(text: str) -> Part | None:
    while match := _CALL.match(text):
        text = text[match.end() :]
    tail = _TENSORFLOW_OP.search(text)
    if tail is None or tail.start() == 0:
        return None
    steps = tail.group()[1:].split("/")
    if steps[0] == "separable_conv2d" and len(steps) > 1:
        op = "separable_conv2d/depthwise"
    else:
        op = _COUNTER.sub("", steps[1] if steps[0].startswith("einsum") and len(steps) > 1 else steps[0])
    return Part(tuple(text[: tail.start()].split("/")), op)


def _common_depth(scopes: Iterable[tuple[str, ...]]) -> int:
    """Return 1 if every scope starts with the same step, the model's name, and some scope goes deeper; else 0."""
    found = list(scopes)
    return int(len({scope[0] for scope in found}) == 1 and any(len(scope) > 1 for scope in found))


def _choose(kind: str, names: Sequence[Sequence[Part]]) -> tuple[str, ...] | None:
    """Return the scope of the part that fits best: one with the op's own word, one that computes, the first."""
    for wanted in (_OWN_OPS.get(kind, frozenset()), _ANY_OWN_OP if kind in _OWN_OPS else frozenset()):
        for parts in names:
            scope = _majority(parts, wanted)
            if scope is not None:
                return scope
    output = names[-1] if names else ()
    apart = [part for part in output if part.op not in _ACTIVATIONS]
    return next((part.scope for part in (*apart, *output)), None)


def _majority(parts: Sequence[Part], wanted: frozenset[str]) -> tuple[str, ...] | None:
    """Return the scope with a wanted op and the most parts; of equals the last, where the converter puts its own."""
    eligible = [part.scope for part in parts if part.op in wanted]
    votes = Counter(part.scope for part in parts if part.op in wanted or part.op == "BiasAdd")
    return max(reversed(eligible), key=votes.__getitem__, default=None)


def _path(scope: tuple[str, ...] | None, depth: int, quantized: bool) -> str | None:
    if scope is None:
        return None
    path = "/".join(scope[depth:] or scope)
    return without_prefix(path) if quantized else path
