"""TFMOT quantization-aware training that keeps the zeros and starts from the data's ranges.

The fake-quantized model is TFMOT's: ``quantize_annotate_model``, ``quantize_apply``, its 8-bit scheme, and the
prune-preserving quantizers of its collaborative optimization (PQAT). Three corrections are made where that scheme goes
silently wrong:

- A Conv2D, DepthwiseConv2D or Dense followed by a separate ReLU layer loses its *weight* quantizer, and with it the
  sparsity mask, because TFMOT turns the whole layer's configuration off where only its output quantizer must go.
- Activation observers start at ±6 and move by a thousandth of each batch; a short run never reaches the data's ranges.
  They are set from calibration data before the first step.
- Average pooling gets an output observer of its own, but the runtime's kernel needs equal scales in and out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from tensorflow_model_optimization.python.core.quantization.keras import (
    quantize_aware_activation,
    quantize_layer,
    quantize_wrapper,
)
from tensorflow_model_optimization.python.core.quantization.keras import utils as tfmot_utils
from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.prune_preserve import (
    prune_preserve_quantize_registry,
)
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
    default_8bit_quantize_configs,
    default_8bit_quantize_layout_transform,
    default_8bit_quantize_registry,
    default_8bit_quantize_scheme,
    default_8bit_transforms,
)
from tensorflow_model_optimization.python.core.quantization.keras.graph_transformations import model_transformer

from edgeprune.keras import graph, keras, tf, tfmot

# These pass their input's scale on; an observer of their own would break the kernel's equal-scale rule.
SAME_SCALE = (keras.layers.AveragePooling1D, keras.layers.AveragePooling2D)
# Kernels whose zeros the prune-preserving quantizers keep.
PRESERVED = (keras.layers.Conv2D, keras.layers.Dense)


def unsupported(model: Any) -> dict[str, str]:
    """Layers that TFMOT's 8-bit quantization-aware training cannot take: name -> what they are. Empty: all can be trained."""
    registry = Registry(preserve=False)
    return {
        layer.name: type(layer).__name__
        for layer in graph.functional(model).layers
        if not isinstance(layer, keras.layers.InputLayer) and not _fused(layer, model) and not registry.supports(layer)
    }


def _fused(layer: Any, model: Any) -> bool:
    """BatchNormalization right behind a convolution is folded by TFMOT's own transforms."""
    if not isinstance(layer, keras.layers.BatchNormalization):
        return False
    makers = graph.producers(model)
    maker = makers.get(str(layer.inbound_nodes[0].flat_input_ids[0]))
    return maker is not None and isinstance(
        maker.layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Conv2DTranspose)
    )


def quantize(model: Any, preserve: bool) -> Any:
    """The fake-quantized model, its weights those of ``model``.

    Args:
        model: functional float model without pruning wrappers; not changed.
        preserve: keep every weight that is zero now at zero while training (PQAT). The mask is taken from the weights
            themselves, so a resumed run must call this on the *pruned* model and load its weights afterwards.
    """
    annotated = tfmot.quantization.keras.quantize_annotate_model(graph.rebuild(model))
    with tfmot.quantization.keras.quantize_scope():
        return tfmot.quantization.keras.quantize_apply(annotated, Scheme(preserve))


def calibrate(model: Any, batches: Iterable[np.ndarray]) -> int:
    """Set every activation observer to the smallest and largest value it sees in the data, and every weight range.

    Dropout and BatchNormalization stay in inference mode while the batches pass.

    Args:
        model: from ``quantize``; changed in place.
        batches: model inputs, float32, from the calibration split.

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
                model(batch, training=True)
                seen += len(batch)
        finally:
            for layer, value in zip(frozen, trainable, strict=True):
                layer.trainable = value
            for layer, rate in rates.items():
                layer.rate = rate
    return seen


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


class Registry(default_8bit_quantize_registry.Default8BitQuantizeRegistry):
    """TFMOT's 8-bit registry, with its prune-preserving configuration for the kernels that have one."""

    def __init__(self, preserve: bool) -> None:
        super().__init__()
        self._preserving = (
            prune_preserve_quantize_registry.Default8bitPrunePreserveQuantizeRegistry() if preserve else None
        )

    def get_quantize_config(self, layer: Any) -> Any:
        if isinstance(layer, SAME_SCALE):
            return default_8bit_quantize_configs.NoOpQuantizeConfig()
        if self._preserving and type(layer) in PRESERVED:
            return self._preserving.get_quantize_config(layer)
        return super().get_quantize_config(layer)


class _KeepsWeights:
    """The correction itself: of the layer before a ReLU only the output loses its quantizer.

    An Add has no weights, so there TFMOT's own replacement is right.
    """

    def replacement(self, match_layer: Any) -> Any:
        before = match_layer.input_layers[0]
        if before.layer["class_name"] == "Add":
            return super().replacement(match_layer)  # type: ignore[misc]
        none = quantize_aware_activation.NoOpActivation()
        before.layer["config"]["activation"] = tfmot_utils.serialize_activation(none, use_legacy_format=True)
        return match_layer

    def custom_objects(self) -> dict[str, Any]:
        return {
            "NoOpQuantizeConfig": default_8bit_quantize_configs.NoOpQuantizeConfig,
            "NoOpActivation": quantize_aware_activation.NoOpActivation,
        }


class LayerReLU(_KeepsWeights, default_8bit_transforms.LayerReLUQuantize):
    """``LayerReLUQuantize`` for a ReLU layer."""


class LayerReluActivation(_KeepsWeights, default_8bit_transforms.LayerReluActivationQuantize):
    """``LayerReluActivationQuantize`` for Activation("relu")."""


REPLACED: dict[Any, Any] = {
    default_8bit_transforms.LayerReLUQuantize: LayerReLU,
    default_8bit_transforms.LayerReluActivationQuantize: LayerReluActivation,
}


class _Transformer(model_transformer.ModelTransformer):
    """TFMOT's transformer, given its own list of transforms with the two ReLU ones replaced."""

    def __init__(self, model: Any, transforms: list[Any], *rest: Any) -> None:
        super().__init__(model, [REPLACED.get(type(transform), type(transform))() for transform in transforms], *rest)


class _Layout(default_8bit_quantize_layout_transform.Default8BitQuantizeLayoutTransform):
    """TFMOT's own layout step with the two ReLU transforms replaced."""

    def apply(self, model: Any, layer_quantize_map: dict[str, Any]) -> Any:
        """TFMOT makes its list inside ``apply``, so the replacement happens where it hands the list over."""
        with mock.patch.object(model_transformer, "ModelTransformer", _Transformer):
            return super().apply(model, layer_quantize_map)


class Scheme(default_8bit_quantize_scheme.Default8BitQuantizeScheme):
    """TFMOT's 8-bit scheme with the corrected registry and layout."""

    def __init__(self, preserve: bool) -> None:
        super().__init__()
        self._preserve = preserve

    def get_layout_transformer(self) -> Any:
        return _Layout()

    def get_quantize_registry(self) -> Any:
        return Registry(self._preserve)
