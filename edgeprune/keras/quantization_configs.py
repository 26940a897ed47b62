"""TFMOT's quantize wrappers, configured by a row of `quantization_plan.TABLE`."""

from __future__ import annotations

from typing import Any

from tensorflow_model_optimization.python.core.quantization.keras import quantize_layer, quantize_wrapper, quantizers
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import default_8bit_quantizers

from edgeprune.keras import keras, tf, tfmot
from edgeprune.keras.quantization_plan import Row

# One scale per output channel where the runtime's kernel takes one.
WEIGHT_QUANTIZERS: dict[type, type] = {
    keras.layers.Conv2D: default_8bit_quantizers.Default8BitConvWeightsQuantizer,
    keras.layers.DepthwiseConv2D: default_8bit_quantizers.Default8BitConvWeightsQuantizer,
    keras.layers.Conv2DTranspose: default_8bit_quantizers.Default8BitConvTransposeWeightsQuantizer,
}


def wrap(layer: Any, row: Row, preserve: bool) -> Any:
    """A built layer with fake quantizers around it, named ``quant_NAME``.

    Args:
        layer: built, its weights set; it becomes part of the wrapper.
        row: where the quantizers stand.
        preserve: keep every weight that is zero now at zero.
    """
    return Wrapper(layer, Config(row, preserve), name_prefix="quant_")


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

    def __init__(self, row: Row, preserve: bool) -> None:
        self.row = row
        self.preserve = preserve

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        return [(weight, self._quantizer(layer, weight)) for weight in (getattr(layer, n) for n in self.row.weights)]

    def _quantizer(self, layer: Any, weight: Any) -> Any:
        made = WEIGHT_QUANTIZERS.get(type(layer))
        quantizer = (
            made()
            if made
            else quantizers.LastValueQuantizer(num_bits=8, per_axis=False, symmetric=True, narrow_range=True)
        )
        return ZeroPreserving(quantizer, weight) if self.preserve else quantizer

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
        return {"row": self.row, "preserve": self.preserve}


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

    def get_config(self) -> dict[str, Any]:
        return {"quantizer": self.quantizer}
