"""Fold BatchNormalization into the layer before it.

    BN(x · W + b) = x · (W · s) + (b − μ) · s + β,   s = γ / sqrt(σ² + ε)

TFMOT folds BatchNormalization into convolutions while it trains, but gives a Dense kernel one scale for all its
columns; when the converter then multiplies the per-column s into it, the weights are no longer on the int8 grid and the
op is left in float (a 270 k-parameter autoencoder comes out at 831 KB instead of 278 KB). Folded before
quantization-aware training, there is nothing left to multiply.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeprune.errors import ConversionError
from edgeprune.keras import graph, keras

KINDS = {
    "dense": (keras.layers.Dense,),
    "all": (keras.layers.Dense, keras.layers.Conv2D, keras.layers.DepthwiseConv2D),
}
TOLERANCE = 1e-5  # of the output range


def fold(model: Any, kinds: str = "all") -> tuple[Any, list[str]]:
    """A model without those BatchNormalization layers that directly follow a linear layer.

    Args:
        model: functional tf_keras model; not changed.
        kinds: ``dense``: fold into Dense only; ``all``: also into Conv2D and DepthwiseConv2D.

    Returns:
        The new model and the names of the folded BatchNormalization layers.

    Raises:
        ConversionError: the outputs differ by more than 1e-5 of their range (never seen; always checked).
    """
    pairs = _pairs(graph.functional(model), KINDS[kinds])
    if not pairs:
        return graph.rebuild(model), []
    normalizations = {normalization.name for normalization in pairs.values()}
    weights: list[tuple[Any, list[np.ndarray]]] = []

    def rewrite(call: graph.Call) -> Any:
        if call.layer.name in normalizations:
            return call.args[0]
        if call.layer.name not in pairs:
            return None
        layer = call.layer.__class__.from_config({**call.layer.get_config(), "use_bias": True})
        weights.append((layer, folded_weights(call.layer, pairs[call.layer.name])))
        return layer(*call.args, **call.kwargs)

    folded = graph.rebuild(model, rewrite)
    for layer, values in weights:
        layer.set_weights(values)
    difference = graph.largest_difference(model, folded)
    if not difference <= TOLERANCE:
        raise ConversionError(
            f"Folding BatchNormalization changed the outputs of '{model.name}' by {difference:.1e} of their range, more than "
            f"{TOLERANCE:.0e}. That is a bug of edgeprune: please report this model."
        )
    return folded, sorted(normalizations)


def folded_weights(layer: Any, normalization: Any) -> list[np.ndarray]:
    """Kernel and bias that do what ``layer`` and ``normalization`` do together at inference."""
    scale, shift = scale_and_shift(normalization)
    kernel, *rest = layer.get_weights()
    bias = rest[0] if layer.use_bias else np.zeros_like(shift)
    depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)  # kernel (h, w, channels, multiplier)
    kernel = kernel * (scale.reshape(kernel.shape[2:]) if depthwise else scale)
    return [kernel.astype("float32"), (bias * scale + shift).astype("float32")]


def scale_and_shift(normalization: Any) -> tuple[np.ndarray, np.ndarray]:
    """The s and β − μ · s of a BatchNormalization layer, float64, shape (channels,)."""
    mean = normalization.moving_mean.numpy().astype("float64")
    variance = normalization.moving_variance.numpy().astype("float64")
    gamma = normalization.gamma.numpy() if normalization.scale else 1.0
    beta = normalization.beta.numpy() if normalization.center else 0.0
    scale = gamma / np.sqrt(variance + normalization.epsilon)
    return scale, beta - mean * scale


def _pairs(model: Any, kinds: tuple[type, ...]) -> dict[str, Any]:
    """Name of a linear layer -> the BatchNormalization that is its only reader."""
    readers, makers, calls = graph.consumers(model), graph.producers(model), graph.calls_of(model)
    pairs = {}
    for node in graph.nodes(model):
        normalization = node.layer
        if type(normalization) is not keras.layers.BatchNormalization or calls[normalization.name] != 1:
            continue
        tensor = str(node.flat_input_ids[0])
        maker = makers.get(tensor)
        if maker is None or type(maker.layer) not in kinds or calls[maker.layer.name] != 1 or len(readers[tensor]) != 1:
            continue
        last_axis = len(node.input_shapes) - 1
        if keras.activations.serialize(maker.layer.activation) == "linear" and _axis(normalization) in (-1, last_axis):
            pairs[maker.layer.name] = normalization
    return pairs


def _axis(normalization: Any) -> int:
    axis = normalization.axis
    return int(axis[0] if isinstance(axis, (list, tuple)) else axis)
