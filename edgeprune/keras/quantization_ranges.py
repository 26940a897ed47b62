"""Set the ranges of fake quantizers from data.

TFMOT's activation observers start at ±6 and move by a thousandth of each batch, so a short training never reaches the
data's ranges; here they are set before the first step. A range that is (almost) nothing, as that of a tensor which is
always 0, is widened to what the runtime can compute with. So is that of an output channel whose weights are all zero, of
which there are many in sparse networks: its bias would not fit into int32 at so fine a scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from edgeprune.keras import folding, graph, keras, tf
from edgeprune.keras.tfmot import quantize_layer, quantize_wrapper

# The runtime's kernels refuse an output scale that is 256 times finer than the product of the scales of input and weights,
# or 1024 times finer than an addend's: XNNPACK's limits. What is below this share of input times weight is far below the
# rounding of the input.
NARROWEST = 2.0**-10


def calibrate(model: Any, batches: Iterable[Any]) -> int:
    """Set every activation observer to the smallest and largest value it sees in the data, and every weight range.

    Dropout and BatchNormalization stay in inference mode while the batches pass.

    Args:
        model: from ``quantize``; changed in place.
        batches: from the calibration split: an array (n, ...), or for several inputs a list, a tuple, or a mapping by input name.

    Returns:
        How many samples were seen.
    """
    frozen = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, (keras.layers.BatchNormalization, keras.layers.Dropout))
    ]
    trainable, rates = [layer.trainable for layer in frozen], {}
    seen = 0
    with _observing(model):
        try:
            for layer in frozen:
                layer.trainable = False
                if isinstance(layer, keras.layers.Dropout):
                    rates[layer], layer.rate = layer.rate, 0.0
            for batch in batches:
                model(_arranged(model, batch), training=True)
                seen += len(tf.nest.flatten(batch)[0])
        finally:
            for layer, value in zip(frozen, trainable, strict=True):
                layer.trainable = value
            for layer, rate in rates.items():
                layer.rate = rate
    widen(model)
    return seen


def widen(model: Any) -> list[str]:
    """Widen the ranges that are too narrow for the runtime beside those of the layer's inputs and weights.

    Ranges move while training, so this is done again before a model is exported.

    Args:
        model: from ``quantize``, calibrated; changed in place.

    Returns:
        The names of the layers whose range was widened.
    """
    seen: dict[str, _Seen] = {}
    widened = []
    for node in graph.nodes(model):
        widened += _dead_channels(node.layer)
        before = [seen.get(str(tensor), _NOTHING) for tensor in node.flat_input_ids]
        after = _after(node.layer, before)
        own = ranges(node.layer)
        wanted = float(np.max(after.least))
        for low, high in own:
            width = _width(low, high)
            if width < wanted or not width:
                high.assign_add((wanted or after.width * NARROWEST or 1.0) - width)
                widened.append(node.layer.name)
        if own:
            low, high = own[-1]
            after = _Seen(_FIXED if is_fixed(node.layer) else _width(low, high), np.zeros(1))
        seen.update((str(tensor), after) for tensor in node.flat_output_ids)
    return list(dict.fromkeys(widened))


def _width(low: Any, high: Any) -> float:
    """Of a range, whose variables may be those of a ``tf.distribute`` strategy."""
    return float(high.numpy()) - float(low.numpy())


def _dead_channels(layer: Any) -> list[str]:
    """Give the channels of a kernel that are zero throughout the range of the widest; the layer's name if there are such."""
    if not isinstance(layer, quantize_wrapper.QuantizeWrapper):
        return []
    widened = False
    for _, _, variables in layer._weight_vars:
        low, high = variables["min_var"], variables["max_var"]
        dead = (low.numpy() == 0) & (high.numpy() == 0)
        if dead.any():
            most = float(np.max(np.maximum(np.abs(low.numpy()), np.abs(high.numpy())))) or 1.0
            low.assign(np.where(dead, -most, low.numpy()))
            high.assign(np.where(dead, most, high.numpy()))
            widened = True
    return [layer.name] if widened else []


class _Seen(NamedTuple):
    """What is known of a tensor.

    Attributes:
        width: of its range; 0: not known.
        least: how wide the range that is observed next must be, for each channel or for all, shape (channels,) or (1,).
    """

    width: float
    least: np.ndarray


_NOTHING = _Seen(0.0, np.zeros(1))
_FIXED = 2.0  # tanh's; sigmoid's and softmax's are half as wide


def _after(layer: Any, before: list[_Seen]) -> _Seen:
    """What is known of a layer's output before its own observer is asked."""
    if not isinstance(layer, quantize_wrapper.QuantizeWrapper):
        return _NOTHING
    inner, width = layer.layer, max((seen.width for seen in before), default=0.0)
    least = before[0].least if len(before) == 1 else np.max([seen.least.max() for seen in before], keepdims=True)
    for weight, _, _ in layer._weight_vars:
        least = width * _gains(inner, np.abs(weight.numpy())) * NARROWEST
    if isinstance(inner, (keras.layers.Add, keras.layers.Subtract)):
        least = np.array([width * NARROWEST])
    if isinstance(inner, keras.layers.BatchNormalization):  # multiplied into the convolution before it
        least = least * np.abs(folding.scale_and_shift(inner)[0])
    return _Seen(_FIXED if is_fixed(layer) and not layer._weight_vars else width, least)


def _gains(layer: Any, kernel: np.ndarray) -> np.ndarray:
    """The largest weight of each output channel, shape (channels,), of a kernel's absolute values."""
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return np.asarray(kernel.max(axis=(0, 1)).reshape(-1))
    if isinstance(layer, keras.layers.Conv2DTranspose):  # (height, width, outputs, inputs)
        return np.asarray(kernel.max(axis=(0, 1, 3)))
    return np.asarray(kernel.reshape(-1, kernel.shape[-1]).max(axis=0))


def is_fixed(layer: Any) -> bool:
    """Whether the runtime fixes the scale of a layer's output."""
    return bool(getattr(getattr(getattr(layer, "quantize_config", None), "row", None), "fixed", False))


def ranges(layer: Any) -> list[tuple[Any, Any]]:
    """The variables of the ranges that are observed in a layer, that of its output last."""
    if isinstance(layer, quantize_layer.QuantizeLayer):
        found = [layer.quantizer_vars]
    elif isinstance(layer, quantize_wrapper.QuantizeWrapper):
        places = ("_pre_activation_vars", "_post_activation_vars")
        found = [getattr(each, place, None) for each in layer._quantize_activations for place in places]
        found.append(layer._output_quantizer_vars if layer._output_quantizers else None)
    else:
        found = []
    return [(each["min_var"], each["max_var"]) for each in found if each]


def _arranged(model: Any, batch: Any) -> Any:
    """A batch as the model is called: inputs by name come into the model's order."""
    if isinstance(batch, Mapping):
        batch = [batch[name] for name in model.input_names]
    if isinstance(batch, (list, tuple)):
        return batch[0] if len(batch) == 1 else list(batch)
    return batch


class _RangeObserver:
    """Stands in for a moving-average quantizer: widens its range variables to the values seen and passes them through."""

    def __init__(self) -> None:
        self._started: set[int] = set()

    def __call__(self, inputs: Any, training: bool, weights: dict[str, Any], **_: Any) -> Any:
        low, high = weights["min_var"], weights["max_var"]
        smallest = tf.minimum(tf.reduce_min(inputs), 0.0)  # the range must hold 0, which padding needs exactly
        largest = tf.maximum(tf.reduce_max(inputs), 0.0)
        if id(low) in self._started:
            smallest, largest = tf.minimum(smallest, low), tf.maximum(largest, high)
        self._started.add(id(low))
        low.assign(smallest)
        high.assign(largest)
        return inputs


@contextmanager
def _observing(model: Any) -> Iterator[None]:
    """Put observers in the place of all activation quantizers, and the quantizers back afterwards."""
    observer = _RangeObserver()
    activations: list[tuple[Any, Any]] = []
    outputs: list[tuple[Any, Any]] = []
    inputs: list[tuple[Any, Any]] = []
    for layer in model.layers:
        if isinstance(layer, quantize_layer.QuantizeLayer):
            inputs.append((layer, layer.quantizer))
            layer.quantizer = observer
        if isinstance(layer, quantize_wrapper.QuantizeWrapper):
            for activation in layer._quantize_activations:
                activations.append((activation, activation.quantizer))
                activation.quantizer = observer
            if layer._output_quantizers:
                outputs.append((layer, layer._output_quantizers))
                layer._output_quantizers = [observer]
    try:
        yield
    finally:
        for owner, quantizer in [*activations, *inputs]:
            owner.quantizer = quantizer
        for owner, quantizers in outputs:
            owner._output_quantizers = quantizers
