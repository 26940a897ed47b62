"""Fold BatchNormalization, or any scale and shift by channel, into the layer before it.

    BN(x · W + b) = x · (W · s) + (b − μ) · s + β,   s = γ / sqrt(σ² + ε)

TFMOT folds BatchNormalization into convolutions while it trains, but gives a Dense kernel one scale for all its
columns; when the converter then multiplies the per-column s into it, the weights are no longer on the int8 grid and the
op is left in float (a 270 k-parameter autoencoder comes out at 831 KB instead of 278 KB). Folded before
quantization-aware training, there is nothing left to multiply. The same holds for transposed convolutions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgeprune.errors import ConversionError
from edgeprune.keras import graph, keras
from edgeprune.keras.workshop import Rewritten, Workshop

_layers = keras.layers
CONVOLUTIONS = (_layers.Conv2D, _layers.DepthwiseConv2D)  # behind these TFMOT's own transforms fold
_LEFT_FLOAT = (
    _layers.Dense,
    _layers.Conv2DTranspose,
    _layers.Conv1D,
    _layers.DepthwiseConv1D,
    _layers.Conv1DTranspose,
)
_SEPARABLE = (_layers.SeparableConv1D, _layers.SeparableConv2D)
_TRANSPOSED = (_layers.Conv1DTranspose, _layers.Conv2DTranspose)
_DEPTHWISE = (_layers.DepthwiseConv1D, _layers.DepthwiseConv2D)
KINDS: dict[str, tuple[type, ...]] = {
    "dense": _LEFT_FLOAT,
    "all": (*_LEFT_FLOAT, *CONVOLUTIONS, *_SEPARABLE),
}
TOLERANCE = 1e-5  # of the output range

# The scale and shift by channel that a node computes, or None.
Scales = Callable[[Any], tuple[np.ndarray, np.ndarray] | None]


def fold(model: Any, kinds: str = "all") -> tuple[Any, list[str]]:
    """A model without those BatchNormalization layers that directly follow a linear layer.

    Args:
        model: functional tf_keras model; not changed.
        kinds: ``dense``: fold only where TFMOT would leave it float (Dense, Conv2DTranspose, 1-D convolutions); ``all``:
            also into Conv2D, DepthwiseConv2D and the separable ones.

    Returns:
        The new model and the names of the folded BatchNormalization layers.

    Raises:
        ConversionError: the outputs differ by more than 1e-5 of their range (never seen; always checked).
    """
    model = graph.flatten(model)
    folded, names = normalization(model, kinds)
    if not names:
        return graph.rebuild(model), []
    difference = graph.largest_difference(model, folded)
    if not difference <= TOLERANCE:
        raise ConversionError(
            f"Folding BatchNormalization changed the outputs of '{model.name}' by {difference:.1e} of their range, more than "
            f"{TOLERANCE:.0e}. That is a bug of edgeprune: please report this model."
        )
    return folded, sorted(names)


def normalization(model: Any, kinds: str) -> Rewritten:
    """BatchNormalization behind a linear layer of these kinds, multiplied into its weights."""
    return into_layers_before(model, KINDS[kinds], _of_normalization)


def into_layers_before(
    model: Any, kinds: tuple[type, ...], scales: Scales, fits: Callable[[Any, np.ndarray], bool] | None = None
) -> Rewritten:
    """The model without the scales and shifts that directly follow a linear layer of these kinds.

    Args:
        model: flat and functional; not changed.
        kinds: classes of linear layers that take them in.
        scales: gives a node's scale and shift.
        fits: whether a linear layer may take in a scale; None: any.
    """
    pairs = _pairs(model, kinds, scales)
    if fits is not None:
        pairs = {name: pair for name, pair in pairs.items() if fits(pair[0], pair[2][0])}
    if not pairs:
        return model, []
    gone = {after.name for _, after, _ in pairs.values()}
    shop = Workshop(model)

    def rewrite(call: graph.Call) -> Any:
        if call.layer.name in gone:
            return call.args[0]
        if call.layer.name not in pairs:
            return None
        weights = scaled_weights(call.layer, *pairs[call.layer.name][2])
        return shop.copy(call.layer, weights, use_bias=True)(*call.args, **call.kwargs)

    return shop.rebuild(rewrite), graph.names_of(node for node in graph.nodes(model) if node.layer.name in gone)


def folded_weights(layer: Any, normalization: Any) -> list[np.ndarray]:
    """The weights, bias included, with which ``layer`` does what it and ``normalization`` do together at inference."""
    return scaled_weights(layer, *scale_and_shift(normalization))


def scaled_weights(layer: Any, scale: np.ndarray, shift: np.ndarray) -> list[np.ndarray]:
    """A linear layer's weights, bias included, with its output times ``scale`` plus ``shift``, shape (channels,) each."""
    *kernels, bias = layer.get_weights() if layer.use_bias else [*layer.get_weights(), np.zeros_like(shift)]
    kernel = kernels[-1]  # of a separable layer the pointwise one
    if isinstance(layer, _DEPTHWISE):  # kernel (..., channels, multiplier)
        kernel = kernel * scale.reshape(kernel.shape[-2:])
    else:
        kernel = kernel * (scale[:, None] if isinstance(layer, _TRANSPOSED) else scale)  # (..., outputs, inputs)
    return [np.asarray(values, "float32") for values in (*kernels[:-1], kernel, bias * scale + shift)]


def scale_and_shift(normalization: Any) -> tuple[np.ndarray, np.ndarray]:
    """The s and β − μ · s of a BatchNormalization layer, float64, shape (channels,)."""
    mean = normalization.moving_mean.numpy().astype("float64")
    variance = normalization.moving_variance.numpy().astype("float64")
    gamma = normalization.gamma.numpy() if normalization.scale else 1.0
    beta = normalization.beta.numpy() if normalization.center else 0.0
    scale = gamma / np.sqrt(variance + normalization.epsilon)
    return scale, beta - mean * scale


def normalizations(model: Any, kinds: tuple[type, ...]) -> dict[str, Any]:
    """Name of a linear layer -> the BatchNormalization that is its only reader."""
    return {name: after for name, (_, after, _) in _pairs(model, kinds, _of_normalization).items()}


def _of_normalization(node: Any) -> tuple[np.ndarray, np.ndarray] | None:
    if type(node.layer) is not _layers.BatchNormalization:
        return None
    last_axis = len(node.input_shapes) - 1
    return scale_and_shift(node.layer) if axis_of(node.layer) in (-1, last_axis) else None


def _pairs(model: Any, kinds: tuple[type, ...], scales: Scales) -> dict[str, tuple[Any, Any, Any]]:
    """Name of a linear layer -> itself, the layer that is its only reader and computes a scale and shift, and these."""
    readers, makers, calls = graph.consumers(model), graph.producers(model), graph.calls_of(model)
    pairs = {}
    for node in graph.nodes(model):
        if len(node.flat_input_ids) != 1 or calls[node.layer.name] != 1:
            continue
        tensor = str(node.flat_input_ids[0])
        maker = makers.get(tensor)
        if maker is None or type(maker.layer) not in kinds or calls[maker.layer.name] != 1 or len(readers[tensor]) != 1:
            continue
        found = scales(node) if graph.activation_of(maker.layer) == "linear" else None
        if found is not None:
            pairs[maker.layer.name] = (maker.layer, node.layer, found)
    return pairs


def axis_of(normalization: Any) -> int:
    """The one axis of a BatchNormalization layer."""
    axis = normalization.axis
    return int(axis[0] if isinstance(axis, (list, tuple)) else axis)
