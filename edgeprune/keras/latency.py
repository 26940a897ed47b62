"""How long a Keras model will take on a board after a cut, without making it, converting it or running it.

>>> stopwatch = Stopwatch(model, forecast.milliseconds(forecast.board(target)))     # doctest: +SKIP
>>> stopwatch({"conv_3": range(24)})                             # doctest: +SKIP
7.31
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from edgeprune import channels
from edgeprune.analytic import Layer, Precision
from edgeprune.channel_rules import Node, Shape
from edgeprune.keras import channel_graph, graph

FUSED = {"linear", "relu", "relu6"}  # activations that the op before them computes on the way
# Keras' class -> the op that the converter makes of it; what is not here costs nothing (it is folded, fused or only renames).
OPS = {
    **dict.fromkeys(("Conv1D", "Conv2D"), "CONV_2D"),
    "Conv2DTranspose": "TRANSPOSE_CONV",
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), "DEPTHWISE_CONV_2D"),
    **dict.fromkeys(("Rescaling", "HardSigmoid"), "DEPTHWISE_CONV_2D"),  # a scale for every channel, 1x1
    "HardSwish": "HARD_SWISH",
    "Dense": "FULLY_CONNECTED",
    "Add": "ADD",
    "Subtract": "SUB",
    "Multiply": "MUL",
    "Concatenate": "CONCATENATION",
    **dict.fromkeys(("AveragePooling1D", "AveragePooling2D"), "AVERAGE_POOL_2D"),
    **dict.fromkeys(("MaxPooling1D", "MaxPooling2D"), "MAX_POOL_2D"),
    **dict.fromkeys(("GlobalAveragePooling1D", "GlobalAveragePooling2D"), "MEAN"),
    **dict.fromkeys(("GlobalMaxPooling1D", "GlobalMaxPooling2D"), "REDUCE_MAX"),
    **dict.fromkeys(("ZeroPadding1D", "ZeroPadding2D"), "PAD"),
    "Softmax": "SOFTMAX",
    "UpSampling2D": "RESIZE_NEAREST_NEIGHBOR",
    "PReLU": "PRELU",
    "LeakyReLU": "LEAKY_RELU",
}
ACTIVATIONS = {
    "softmax": "SOFTMAX",
    "sigmoid": "LOGISTIC",
    "tanh": "TANH",
    "elu": "ELU",
    "hard_swish": "HARD_SWISH",
    "gelu": "GELU",
}


class Stopwatch:
    """Predicts the latency of cuts of one model.

    Attributes:
        coupling: the channel analysis of the model.
    """

    def __init__(
        self, model: Any, milliseconds: Callable[[Sequence[Layer]], float], precision: Precision = "int8"
    ) -> None:
        """Args:
        model: functional or built Sequential tf_keras model.
        milliseconds: what a list of ops takes, such as `edgeprune.forecast.milliseconds` gives for a board.
        precision: what the model will be converted to.
        """
        model = graph.flatten(model)
        self.coupling = channels.couple(channel_graph.describe(model))
        self._keras = {layer.name: layer for layer in model.layers}
        self._milliseconds = milliseconds
        self._precision = precision
        tensors = self.coupling.tensors
        self._names = list(tensors)
        self._classes = np.concatenate([classes for _, classes in tensors.values()])
        self._starts = np.cumsum([0, *(len(classes) for _, classes in tensors.values())])[:-1]
        self._whole = [self._ops(node, self.coupling.graph.tensors) for node in self.coupling.graph.nodes]

    def __call__(self, cut: channels.Cut) -> float:
        """Milliseconds of what ``surgery.shrink(model, cut)`` would make; raises as `channels.apply` does."""
        return self._milliseconds(self.layers(cut))

    def layers(self, cut: channels.Cut) -> list[Layer]:
        """The ops that the converter would make of the cut model, with their shapes."""
        smaller = self.smaller(cut)
        shapes = {**self.coupling.graph.tensors, **smaller}
        found: list[Layer] = []
        for node, whole in zip(self.coupling.graph.nodes, self._whole, strict=True):
            touched = any(name in smaller for name in (*node.inputs, *node.outputs))
            found += self._ops(node, shapes) if touched else whole
        return found

    def resized(self, number: int, given: float, made: float) -> list[Layer]:
        """The ops of one call of a layer that has other numbers of channels.

        Args:
            number: of the node in ``coupling.graph.nodes``.
            given, made: share of the channels that its inputs and its outputs have, 0..1; at least one channel is left.
        """
        node, shapes = self.coupling.graph.nodes[number], dict(self.coupling.graph.tensors)
        for names, share in ((node.inputs, given), (node.outputs, made)):
            for name in names:
                shape, axis = shapes[name], self.coupling.tensors[name][0] if name in self.coupling.tensors else None
                if axis is not None and shape[axis] is not None:
                    size = max(1, round(share * (shape[axis] or 1)))
                    shapes[name] = tuple(size if at == axis % len(shape) else side for at, side in enumerate(shape))
        return self._ops(node, shapes)

    def smaller(self, cut: channels.Cut) -> dict[str, Shape]:
        """The shapes of the tensors that lose channels; all of them counted at once, for cuts come by the thousand."""
        left = np.add.reduceat(channels.kept(self.coupling, cut)[self._classes].astype(int), self._starts)
        if not left.all():
            channels.apply(self.coupling, cut)  # raises: it knows which layer would be left empty
        found = {}
        for name, count in zip(self._names, left.tolist(), strict=True):
            shape, axis = self.coupling.graph.tensors[name], self.coupling.tensors[name][0]
            if shape[axis] is not None and shape[axis] != count:
                found[name] = tuple(count if place == axis % len(shape) else size for place, size in enumerate(shape))
        return found

    def _ops(self, node: Node, shapes: Mapping[str, Shape]) -> list[Layer]:
        return _ops(node, self._keras[node.layer], shapes, self.coupling.graph.tensors, self._precision)


def _ops(
    node: Node, layer: Any, shapes: Mapping[str, Shape], uncut: Mapping[str, Shape], precision: Precision
) -> list[Layer]:
    """A layer's op, and its activation's where that is not fused."""
    inputs, outputs = (sum(_size(shapes[name]) for name in names) for names in (node.inputs, node.outputs))
    found = []
    if node.kind in OPS:
        kernel, positions = _kernel(node, layer, shapes, uncut)
        stride = _largest(getattr(layer, "strides", 1))
        kept = node.kind == "GlobalAveragePooling2D"  # `pooling.keep_axes` sees to it
        found.append(Layer(OPS[node.kind], precision, inputs, outputs, positions, kernel, stride, kept))
    activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
    if activation not in FUSED:
        found.append(Layer(ACTIVATIONS.get(activation, activation.upper()), precision, outputs, outputs))
    return found


def _kernel(
    node: Node, layer: Any, shapes: Mapping[str, Shape], uncut: Mapping[str, Shape]
) -> tuple[tuple[int, ...], int]:
    """The kernel's shape and the positions it is applied at, as `Layer` has them."""
    op = OPS[node.kind]
    if not op.endswith("_POOL_2D") and op not in ("CONV_2D", "TRANSPOSE_CONV", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        return (), 1
    given, made = (int(shapes[names[0]][-1] or 1) for names in (node.inputs, node.outputs))
    places = _size(shapes[node.inputs[0] if op == "TRANSPOSE_CONV" else node.outputs[0]])
    if op == "DEPTHWISE_CONV_2D" or op.endswith("_POOL_2D"):
        window = getattr(layer, "kernel_size", 1) if op == "DEPTHWISE_CONV_2D" else layer.pool_size
        return (made, *_two(window), 1), 1
    if op == "FULLY_CONNECTED":
        return (made, 1, 1, given), places // max(made, 1)
    shared = int(layer.kernel.shape[-2]) / int(uncut[node.inputs[0]][-1] or 1) if op == "CONV_2D" else 1.0
    positions = places // max(given if op == "TRANSPOSE_CONV" else made, 1)
    return (made, *_two(layer.kernel_size), max(1, round(given * shared))), positions


def _two(value: Any) -> tuple[int, int]:
    """Height and width; one-dimensional layers run as an image of height 1."""
    sizes = (value,) if isinstance(value, int) else tuple(value)
    return (1, int(sizes[0])) if len(sizes) == 1 else (int(sizes[0]), int(sizes[1]))


def _largest(value: Any) -> int:
    return int(value) if isinstance(value, int) else max(int(one) for one in value)


def _size(shape: Shape) -> int:
    return prod(size or 1 for size in shape)
