"""TFMOT's quantize wrappers, configured by a row of `quantization_plan.TABLE`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from edgeprune import clusters
from edgeprune.keras import keras, tf, tfmot
from edgeprune.keras.clustering import Nearest
from edgeprune.keras.quantization_plan import Row
from edgeprune.keras.quantization_pruning import STATE, Pruning, Ramped
from edgeprune.keras.tfmot import default_8bit_quantizers, quantize_layer, quantize_wrapper, quantizers

# One scale per output channel where the runtime's kernel takes one.
WEIGHT_QUANTIZERS: dict[type, type] = {
    keras.layers.Conv2D: default_8bit_quantizers.Default8BitConvWeightsQuantizer,
    keras.layers.DepthwiseConv2D: default_8bit_quantizers.Default8BitConvWeightsQuantizer,
    keras.layers.Conv2DTranspose: default_8bit_quantizers.Default8BitConvTransposeWeightsQuantizer,
}


class Kept(NamedTuple):
    """What training keeps of a layer's kernel.

    Attributes:
        zeros: every weight that is zero now stays zero.
        shared: weights of equal value stay equal: in the whole kernel (``layer``), or in each output channel
            (``channel``); None: they need not.
        pruned: it is pruned while training; not together with ``shared``.
    """

    zeros: bool = False
    shared: clusters.Scope | None = None
    pruned: Ramped | None = None


def wrap(layer: Any, row: Row, kept: Kept) -> Any:
    """A built layer with fake quantizers around it, named ``quant_NAME``.

    Args:
        layer: built, its weights set; it becomes part of the wrapper.
        row: where the quantizers stand.
        kept: what of its kernel.
    """
    return Wrapper(layer, Config(row, kept), name_prefix="quant_")


def input_layer(name: str) -> Any:
    """A layer that observes and fake-quantizes an input of the model."""
    quantizer = quantizers.AllValuesQuantizer(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)
    return quantize_layer.QuantizeLayer(quantizer, name=name)


class SameScale(keras.layers.Layer):
    """Rounds to a range that another layer observes: average pooling in int8 must keep its input's scale.

    An observer of its own would break that rule, and without any the rounding would be seen in the file only. Where
    neighbours hardly differ it is no noise that evens out, but an offset.
    """

    def __init__(self, low: Any, high: Any, **options: Any) -> None:
        super().__init__(**options)
        self.low, self.high = low, high

    def call(self, inputs: Any) -> Any:
        return tf.quantization.fake_quant_with_min_max_vars(inputs, self.low, self.high)


class Wrapper(quantize_wrapper.QuantizeWrapperV2):
    """TFMOT's wrapper, which trains the kernel of a frozen layer; this one does not."""

    @property
    def trainable_weights(self) -> list[Any]:
        weights: list[Any] = super().trainable_weights
        return weights if self.layer.trainable else []

    @property
    def non_trainable_weights(self) -> list[Any]:
        weights: list[Any] = super().non_trainable_weights
        return weights if self.layer.trainable else self._dedup_weights([*super().trainable_weights, *weights])


class Config(tfmot.quantization.keras.QuantizeConfig):
    """A TFMOT configuration that does what a row says."""

    def __init__(self, row: Row, kept: Kept) -> None:
        self.row = row
        self.kept = kept

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        return [(weight, self._quantizer(layer, weight)) for weight in (getattr(layer, n) for n in self.row.weights)]

    def _quantizer(self, layer: Any, weight: Any) -> Any:
        made = WEIGHT_QUANTIZERS.get(type(layer))
        if self.kept.shared == "layer" and type(layer) is keras.layers.Conv2D:
            made = OneScale
        quantizer = (
            made()
            if made
            else quantizers.LastValueQuantizer(num_bits=8, per_axis=False, symmetric=True, narrow_range=True)
        )
        if self.kept.shared:
            return ClusterPreserving(quantizer, weight, self.kept.shared == "channel", self.kept.zeros)
        if self.kept.pruned:
            return Pruning(quantizer, weight, self.kept.pruned)
        return ZeroPreserving(quantizer, weight) if self.kept.zeros else quantizer

    def get_activations_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        return [(layer.activation, _moving_average())] if self.row.activation and self.row.observes else []

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        for name, weight in zip(self.row.weights, quantize_weights, strict=True):
            setattr(layer, name, weight)

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        for activation in quantize_activations:
            layer.activation = activation

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        return [_moving_average()] if self.row.observes and not self.row.activation else []

    def get_config(self) -> dict[str, Any]:
        return {"row": self.row, "kept": self.kept}


def _moving_average() -> Any:
    return quantizers.MovingAverageQuantizer(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)


class ZeroPreserving(quantizers.Quantizer):
    """A weight quantizer behind the mask of what is not zero (PQAT), for the kernels of any layer.

    TFMOT's collaborative optimization has the same for Conv2D and Dense.
    """

    def __init__(self, quantizer: Any, weight: Any) -> None:
        """Args:
        quantizer: fake-quantizes what the mask leaves.
        weight: the mask is made of its values now.
        """
        self.quantizer = quantizer
        self.mask = tf.cast(tf.not_equal(weight, 0.0), weight.dtype)

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        variables: dict[str, Any] = self.quantizer.build(tensor_shape, name, layer)
        return variables

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **keywords: Any) -> Any:
        return self.quantizer(inputs * self.mask, training, weights, **keywords)

    def settle(self, weight: Any, variables: dict[str, Any]) -> None:
        """Give the kernel its zeros: the optimizer's last step came after they were last laid."""
        weight.assign(weight * self.mask)

    def get_config(self) -> dict[str, Any]:
        return {"quantizer": self.quantizer}


class OneScale(default_8bit_quantizers.Default8BitConvWeightsQuantizer):
    """One scale for all output channels, written once for each of them.

    Equal weights then are equal bytes in the file, in whatever channel they are. The range still is one per channel to the
    converter, which multiplies the scale of a BatchNormalization into each and leaves the bytes alone; a scale for the
    whole tensor it would have to split, and leave the int8 grid.
    """

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **keywords: Any) -> Any:
        if training:
            largest = tf.reduce_max(tf.abs(inputs)) * tf.ones_like(weights["max_var"])
            weights["min_var"].assign(-largest)
            weights["max_var"].assign(largest)
        return super().__call__(inputs, False, weights, **keywords)


class ClusterPreserving(quantizers.Quantizer):
    """A weight quantizer behind the clusters of a kernel (CQAT), and behind its zeros too (PCQAT).

    Weights and centroids learn as in TFMOT's clustering; a weight may change its cluster, but there are never more. TFMOT's
    own cluster-preserving quantizers guess from the weights whether they were clustered per channel, pad channels that
    have fewer values with a centroid of 1.0, leave a kernel of 1x1 with nothing but zeros, and fake-quantize every channel
    to a scale of its own, so that equal weights are other bytes in every channel.
    """

    def __init__(self, quantizer: Any, weight: Any, per_channel: bool, zeros: bool) -> None:
        """Args:
        quantizer: fake-quantizes the clustered weights.
        weight: clustered; its distinct values now are the centroids.
        per_channel: every output channel has values of its own.
        zeros: what is zero now stays zero.
        """
        self.quantizer = quantizer
        self._values = weight.numpy()
        self._centroids = _distinct(self._values, per_channel, zeros)
        self._mask = (self._values != 0).astype("float32") if zeros else None

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        variables: dict[str, Any] = self.quantizer.build(tensor_shape, name, layer)
        constant = keras.initializers.Constant
        centroids = layer.add_weight(
            f"{name}_centroids", self._centroids.shape, initializer=constant(self._centroids), trainable=True
        )
        clustered = layer.add_weight(f"{name}_clustered", tensor_shape, initializer=constant(self._values), **STATE)
        self._algorithm = Nearest(centroids)
        return {**variables, "centroids": centroids, "clustered": clustered}

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **keywords: Any) -> Any:
        if not training:
            return self.quantizer(weights["clustered"], training, weights, **keywords)
        looked_up = self._looked_up(inputs)
        weights["clustered"].assign(looked_up)
        return self.quantizer(looked_up, training, weights, **keywords)

    def _looked_up(self, inputs: Any) -> Any:
        found = self._algorithm.get_clustered_weight(self._algorithm.get_pulling_indices(inputs), inputs)
        return found if self._mask is None else found * self._mask

    def settle(self, weight: Any, variables: dict[str, Any]) -> None:
        """Give the kernel the values of its clusters as the optimizer's last step has left them."""
        final = self._looked_up(weight).numpy()
        weight.assign(final)
        variables["clustered"].assign(final)

    def get_config(self) -> dict[str, Any]:
        return {"quantizer": self.quantizer}


def _distinct(kernel: np.ndarray, per_channel: bool, zeros: bool) -> np.ndarray:
    """The values of a clustered kernel, zero left out where a mask holds it: (count,) or (channels, count), float32.

    A channel that has fewer repeats its last one.
    """
    channels = np.moveaxis(kernel, -1, 0) if per_channel else [kernel]
    found = [np.unique(channel[channel != 0] if zeros else channel) for channel in channels]
    found = [values if len(values) else np.zeros(1) for values in found]
    size = max(map(len, found))
    stacked = np.stack([np.pad(values, (0, size - len(values)), mode="edge") for values in found]).astype("float32")
    return stacked if per_channel else np.asarray(stacked[0])
