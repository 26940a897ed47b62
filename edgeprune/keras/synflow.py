"""The gradients of synaptic flow: of the network with the absolute values of its weights, for an input of ones.

Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow" (2020). Their objective
R = 1^T |W_L| ... |W_1| 1 is the sum over all paths of the product of their weights. So that R is that sum here too,
whatever the network is made of: activations are left out (ReLU would pass every value; ReLU6 and Softmax would stop
the flow), biases and shifts are 0, and a normalization is its scale over the standard deviation that it has learned, as in
inference. All is float64, as in the authors' code: the sum of many layers' paths exceeds the range of float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeprune.keras import graph, keras, tf
from edgeprune.keras import layers as own
from edgeprune.keras.signal_places import Array, Places

layers = keras.layers
ACTIVATIONS = (layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU, layers.PReLU, layers.ThresholdedReLU)
LEFT_OUT = (*ACTIVATIONS, layers.Softmax, own.HardSigmoid, own.HardSwish)
NORMALIZATIONS = (layers.BatchNormalization, layers.LayerNormalization, layers.GroupNormalization)
RECURRENT = (layers.LSTM, layers.GRU, layers.SimpleRNN)
SHIFTS = ("bias", "beta")


class Flow:
    """The network that synaptic flow goes through, made once; its weights are those that the model has when it is called."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._linear, scales = _linear(places.model)
        self._kernels = [place.kernel.of(self._linear.get_layer(name)) for name, place in places.kernels.items()]
        self._scales = [(variable, places.model.get_layer(name)) for name, variable in scales.items()]
        self._others = [
            (copied, original, copied.name.split(":")[0].split("/")[-1] in SHIFTS)
            for layer in self._linear.layers
            if layer.name not in scales
            for copied, original in zip(layer.weights, places.model.get_layer(layer.name).weights, strict=True)
        ]
        self._gradients = tf.function(self._flow, autograph=False)

    def __call__(self) -> dict[str, Array]:
        """Layer -> dR/dw of its kernel, (..., in, out) float64, >= 0, for every kernel of the places."""
        for variable, layer in self._scales:
            variable.assign(_scale(layer))
        for copied, original, shift in self._others:
            copied.assign(np.zeros(original.shape) if shift else np.abs(original.numpy()))
        kernels = self._places.kernels.items()
        return {
            name: place.laid_out(tf.convert_to_tensor(gradient).numpy())
            for (name, place), gradient in zip(kernels, self._gradients(), strict=True)
        }

    def _flow(self) -> list[Any]:
        linear = self._linear
        ones = [tf.ones([1, *(side or graph.UNKNOWN for side in one.shape[1:])], one.dtype) for one in linear.inputs]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self._kernels)
            outputs = linear(ones if len(ones) > 1 else ones[0], training=False)
            total = tf.add_n([tf.reduce_sum(output) for output in tf.nest.flatten(outputs)])
        found = tape.gradient(total, self._kernels, unconnected_gradients="zero")
        return [tf.convert_to_tensor(gradient) for gradient in found]


def _linear(model: Any) -> tuple[Any, dict[str, Any]]:
    """The float64 network without activations; by the normalization's name the variable of each scale that stands for one."""
    scales: dict[str, Any] = {}

    def rewrite(call: graph.Call) -> Any:
        if type(call.layer) in LEFT_OUT:
            return tf.nest.flatten(call.args)[0]
        if type(call.layer) in NORMALIZATIONS:
            values = _scale(call.layer)
            if len(values) != call.node.outputs.shape[-1]:
                return tf.nest.flatten(call.args)[0]
            if call.layer.name not in scales:
                scales[call.layer.name] = own.LayerScale(len(values), name=call.layer.name, dtype="float64")
            return scales[call.layer.name](*call.args)
        return None

    dtypes = {
        layer.name: "float64"
        for tensor, layer in zip(model.inputs, model._input_layers, strict=True)
        if tensor.dtype.is_floating
    }
    linear = graph.rebuild(model, rewrite, _copy, dtypes)
    return linear, {name: layer.weights[0] for name, layer in scales.items()}


def _copy(layer: Any) -> Any:
    """In float64 and without its activation; a recurrent layer keeps its own, without which its steps would grow."""
    config = {**layer.get_config(), "dtype": "float64"}
    if "activation" in config and type(layer) not in RECURRENT:
        config["activation"] = "linear"
    if isinstance(layer, layers.InputLayer) or not tf.as_dtype(layer.dtype or "float32").is_floating:
        config["dtype"] = layer.dtype
    return layer.__class__.from_config(config)


def _scale(layer: Any) -> Array:
    """|gamma| / sqrt(variance + epsilon) of a BatchNormalization, |gamma| of what has no learned variance; () if none."""
    gamma = np.abs(layer.gamma.numpy().astype(np.float64)) if layer.gamma is not None else None
    if not isinstance(layer, layers.BatchNormalization):
        return gamma.ravel() if gamma is not None else np.empty(0)
    deviations = np.sqrt(layer.moving_variance.numpy().astype(np.float64) + layer.epsilon)
    return (1.0 if gamma is None else gamma) / deviations
