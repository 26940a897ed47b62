"""Average pooling over the whole image -> GlobalAveragePooling2D, which int8 computes better.

TFLite's AVERAGE_POOL_2D must have the same scale at its output as at its input. An average over 64 positions is several
times smaller than the largest activation, so most of the 256 steps stay unused, and quantization-aware training does not
see the loss: fake quantizers have no such rule. A ResNet-8 on CIFAR-10 lost 0.4 points there. MEAN, which
GlobalAveragePooling2D becomes, has a scale of its own.
"""

from __future__ import annotations

from typing import Any

from edgeprune.keras import graph, keras
from edgeprune.keras.workshop import Rewritten


def globalize(model: Any) -> tuple[Any, list[str]]:
    """A model whose average poolings over the whole height and width are global ones; outputs are the same.

    Args:
        model: functional tf_keras model; not changed.

    Returns:
        The new model and the names of the layers that were replaced; they keep their names.
    """
    model = graph.flatten(model)
    rewritten, names = whole_images(model)
    return rewritten if names else graph.rebuild(model), sorted(names)


def whole_images(model: Any) -> Rewritten:
    """Average pooling whose window covers the whole image -> GlobalAveragePooling2D, which keeps the axes."""
    names = [layer.name for layer in model.layers if _covers_everything(layer)]
    if not names:
        return model, []

    def copy(layer: Any) -> Any:
        if layer.name in names:
            return keras.layers.GlobalAveragePooling2D(keepdims=True, data_format=layer.data_format, name=layer.name)
        return graph.copy_layer(layer)

    return graph.rebuild(model, copy=copy), names


def _covers_everything(layer: Any) -> bool:
    """Whether each of the layer's windows is the whole image."""
    if type(layer) is not keras.layers.AveragePooling2D or layer.data_format != "channels_last":
        return False
    inputs = [node.input_shapes for node in layer.inbound_nodes]
    return layer.padding == "valid" and all(tuple(shape[1:3]) == tuple(layer.pool_size) for shape in inputs)
