"""Scales and shifts by channel -> 1x1 depthwise convolutions, or into the layer before.

    y = x * scale + shift

Rescaling, Normalization, LayerScale, BatchNormalization that follows no convolution, and arithmetic with constants all
compute this. TFMOT has no quantizers for them, so they stay float between int8 ops; a 1x1 depthwise convolution with the
scale as its kernel and the shift as its bias is exact, and int8 everywhere. One after the other they become one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from edgeprune.keras import folding, graph, keras
from edgeprune.keras.rewrites_operations import by_name, function_of, is_tensor
from edgeprune.keras.workshop import Rewritten, Workshop

LAYER_SCALE = "LayerScale"  # each application that has one brings a class of that name


class Linear(NamedTuple):
    """A call that computes scale * x + shift, with the id of x."""

    source: str
    scale: Any
    shift: Any


def linear(node: Any) -> Linear | None:
    """The scale and shift of a Rescaling layer, or of arithmetic between a tensor and a constant; None: neither."""
    if type(node.layer) is keras.layers.Rescaling:
        return Linear(str(node.flat_input_ids[0]), np.asarray(node.layer.scale), np.asarray(node.layer.offset))
    called = function_of(node.layer, node.call_args, node.call_kwargs)
    if called is None or called[0] not in ARITHMETIC or len(node.flat_input_ids) != 1:
        return None
    arguments = list(by_name(*called).values())[:2]
    if len(arguments) != 2 or is_tensor(arguments[0]) == is_tensor(arguments[1]):
        return None
    first = is_tensor(arguments[0])
    constant = np.asarray(arguments[1] if first else arguments[0])
    if constant.dtype.kind not in "fiu":
        return None
    pair = ARITHMETIC[called[0]](constant.astype("float64"), first)
    return Linear(str(node.flat_input_ids[0]), *pair) if pair else None


# Of a function of x and a constant c: (scale, shift), given c and whether x comes first.
ARITHMETIC: dict[str, Callable[[np.ndarray, bool], tuple[Any, Any] | None]] = {
    "math.add": lambda c, first: (1.0, c),
    "math.multiply": lambda c, first: (c, 0.0),
    "math.subtract": lambda c, first: (1.0, -c) if first else (-1.0, c),
    "math.divide": lambda c, first: (1.0 / c, 0.0) if first and np.all(c) else None,
    "math.truediv": lambda c, first: (1.0 / c, 0.0) if first and np.all(c) else None,
    "math.divide_no_nan": lambda c, first: (1.0 / c, 0.0) if first and np.all(c) else None,
}


class Affine(NamedTuple):
    """A call that computes x * scale + shift for each channel.

    Attributes:
        source: id of x.
        scale, shift: float64, shape (channels,).
    """

    source: str
    scale: np.ndarray
    shift: np.ndarray

    def after(self, before: Affine) -> Affine:
        """Both in one, this one after the other."""
        return Affine(before.source, before.scale * self.scale, before.shift * self.scale + self.shift)


def affine(node: Any) -> Affine | None:
    """The scale and shift of a call by channel; None: it computes something else, or not by channel."""
    if len(node.flat_input_ids) != 1 or tuple(node.input_shapes) != tuple(node.output_shapes):
        return None
    found = _of_layer(node.layer, len(node.input_shapes)) or linear(node)
    if found is None:
        return None
    channels = node.input_shapes[-1]
    scale, shift = (_by_channel(values, channels) for values in found[-2:])
    return Affine(str(node.flat_input_ids[0]), scale, shift) if scale is not None and shift is not None else None


def _of_layer(layer: Any, rank: int) -> tuple[Any, Any] | None:
    if type(layer) is keras.layers.BatchNormalization and folding.axis_of(layer) in (-1, rank - 1):
        return folding.scale_and_shift(layer)
    if type(layer) is keras.layers.Normalization:
        mean, variance = (np.asarray(value, "float64") for value in (layer.mean, layer.variance))
        deviation = np.maximum(np.sqrt(variance), keras.backend.epsilon())
        return (deviation, mean) if getattr(layer, "invert", False) else (1 / deviation, -mean / deviation)
    if type(layer).__name__ == LAYER_SCALE and len(layer.weights) == 1:
        return np.asarray(layer.weights[0], "float64"), 0.0
    return None


def _by_channel(values: Any, channels: int | None) -> np.ndarray | None:
    """One value for each channel; None: they differ along another axis."""
    values = np.asarray(values, "float64")
    if channels is None or (values.size not in (1, channels)) or values.size != (values.shape or (1,))[-1]:
        return None
    return np.broadcast_to(values.reshape(-1), (channels,)).copy()


GENTLE = (1 / 16, 16.0)  # a kernel scaled by more would be trained in steps far too large or too small for it


def absorb(model: Any) -> Rewritten:
    """A constant scale and shift right behind a linear layer, taken into its weights.

    Neither BatchNormalization, which `folding` decides on, nor the trained scales of LayerScale. A kernel that shares one
    int8 scale among its columns (Dense) takes only what is the same for all of them.
    """

    def scales(node: Any) -> tuple[np.ndarray, np.ndarray] | None:
        trained = type(node.layer) is keras.layers.BatchNormalization or type(node.layer).__name__ == LAYER_SCALE
        found = None if trained else affine(node)
        return (found.scale, found.shift) if found is not None else None

    def fits(layer: Any, scale: np.ndarray) -> bool:
        gentle = bool(np.all((np.abs(scale) >= GENTLE[0]) & (np.abs(scale) <= GENTLE[1])))
        by_column = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
        return gentle and (type(layer) in by_column or bool(np.all(scale == scale[0])))

    return folding.into_layers_before(model, folding.KINDS["all"], scales, fits)


def into_dense(model: Any) -> Rewritten:
    """BatchNormalization that only Dense layers read, taken into their weights: (x s + t) W = x (s W) + t W."""
    calls, readers = graph.calls_of(model), graph.consumers(model)
    before: dict[str, Affine] = {}
    gone = set()
    for node in graph.nodes(model):
        found = affine(node) if type(node.layer) is keras.layers.BatchNormalization else None
        behind = readers[str(node.flat_output_ids[0])] if found is not None else []
        dense = [reader.layer for reader in behind if reader is not None and type(reader.layer) is keras.layers.Dense]
        alone = len(dense) == len(behind) and all(calls[layer.name] == 1 for layer in [node.layer, *dense])
        if found is not None and alone and node.layer.name not in _behind_convolutions(model):
            before |= {layer.name: found for layer in dense}
            gone.add(node.layer.name)
    if not gone:
        return model, []
    shop = Workshop(model)

    def rewrite(call: graph.Call) -> Any:
        if call.layer.name in gone:
            return call.args[0]
        if call.layer.name not in before:
            return None
        _, scale, shift = before[call.layer.name]
        kernel, *bias = call.layer.get_weights()
        weights = [kernel * scale[:, None], shift @ kernel.astype("float64") + (bias[0] if bias else 0.0)]
        return shop.copy(call.layer, [w.astype("float32") for w in weights], use_bias=True)(*call.args, **call.kwargs)

    return shop.rebuild(rewrite), graph.names_of(node for node in graph.nodes(model) if node.layer.name in gone)


def to_depthwise(model: Any) -> Rewritten:
    """Every other scale and shift by channel -> a 1x1 DepthwiseConv2D of the same name; chains of them -> one.

    BatchNormalization right behind a convolution stays: TFMOT folds that itself while it trains. What had no trained weights
    is not trainable now either: a step that is right for a kernel is far too large for 1 / 255.
    """
    plans, passed = _plans(model)
    if not plans:
        return model, []
    shop = Workshop(model)

    def rewrite(call: graph.Call) -> Any:
        if id(call.node) in passed:
            return call.made[plans[id(call.node)].source]  # its only reader starts from there
        if id(call.node) not in plans:
            return None
        source, scale, shift = plans[id(call.node)]
        trained = type(call.layer).__name__ == LAYER_SCALE and call.layer.trainable
        return depthwise(shop, call.made[source], scale, shift, call.layer.name, trained)

    return shop.rebuild(rewrite), graph.names_of(node for node in graph.nodes(model) if id(node) in plans)


def _plans(model: Any) -> tuple[dict[int, Affine], set[int]]:
    """Id of a node -> what it computes, from the start of its chain on; and the nodes that a later one has taken in."""
    makers, readers, calls = graph.producers(model), graph.consumers(model), graph.calls_of(model)
    folded_later = _behind_convolutions(model)
    plans: dict[int, Affine] = {}
    passed = set()
    for node in graph.nodes(model):
        found = affine(node)
        if found is None or node.layer.name in folded_later or not _shaped(node.keras_inputs[0]):
            continue
        before = makers.get(found.source)
        alone = len(readers[found.source]) == 1 and calls[node.layer.name] == 1
        if before is not None and id(before) in plans and alone and calls[before.layer.name] == 1:
            found = found.after(plans[id(before)])
            passed.add(id(before))
        plans[id(node)] = found
    return plans, passed


def _shaped(tensor: Any) -> bool:
    """Whether a depthwise convolution can take the tensor, perhaps between two Reshapes."""
    return (
        bool(tensor.dtype.is_floating)
        and len(tensor.shape) in (2, 3, 4)
        and list(tensor.shape[1:]).count(None) <= (2 if len(tensor.shape) == 4 else 1)
    )


def _behind_convolutions(model: Any) -> set[str]:
    """The BatchNormalization layers that TFMOT's own transforms fold."""
    return {layer.name for layer in folding.normalizations(model, folding.CONVOLUTIONS).values()}


def depthwise(shop: Workshop, x: Any, scale: np.ndarray, shift: np.ndarray, name: str, trainable: bool = False) -> Any:
    """x * scale + shift as a 1x1 depthwise convolution of a tensor of shape (b, c), (b, t, c) or (b, h, w, c)."""
    channels = len(scale)
    layer = shop.make(
        keras.layers.DepthwiseConv2D,
        name,
        [scale.reshape(1, 1, channels, 1).astype("float32"), shift.astype("float32")],
        kernel_size=1,
        trainable=trainable,
    )
    if len(x.shape) == 4:
        return layer(x)
    shape = tuple(-1 if side is None else side for side in x.shape[1:])
    wide = (*shape[:-1], 1, channels) if len(shape) == 2 else (1, 1, channels)
    image = keras.layers.Reshape(wide, name=shop.another(f"{name}_image"))(x)
    return keras.layers.Reshape(shape, name=shop.another(f"{name}_back"))(layer(image))
