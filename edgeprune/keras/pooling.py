"""Average pooling over the whole image -> GlobalAveragePooling2D that keeps its axes, which int8 computes better.

TFLite's AVERAGE_POOL_2D must have the same scale at its output as at its input. An average over 64 positions is several
times smaller than the largest activation, so most of the 256 steps stay unused, and quantization-aware training does not
see the loss: fake quantizers have no such rule. A ResNet-8 on CIFAR-10 lost 0.4 points there. MEAN, which
GlobalAveragePooling2D becomes, has a scale of its own.

TFLite's own int8 MEAN has a fast kernel for a mean over height and width that keeps both axes, and for all others one that
takes element by element: 0.9 and 69 cycles for each on a Cortex-A72 (``devices/latency``), so that 7x7x1280 at the end of a
MobileNetV2 are 4.3 million cycles. What drops the axes afterwards costs nothing.
"""

from __future__ import annotations

from typing import Any

from edgeprune.keras import graph, keras
from edgeprune.keras.workshop import Rewritten, Workshop


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


def keep_axes(model: Any) -> Rewritten:
    """GlobalAveragePooling2D that drops height and width -> one that keeps them, and a Flatten."""
    names = [layer.name for layer in model.layers if _drops_axes(layer)]
    if not names:
        return model, []
    shop = Workshop(model)

    def rewrite(call: graph.Call) -> Any:
        name = call.layer.name
        if name not in names:
            return None
        mean = shop.make(keras.layers.GlobalAveragePooling2D, name, keepdims=True)(*call.args, **call.kwargs)
        return shop.make(keras.layers.Flatten, shop.derived(name, "flat"))(mean)

    return shop.rebuild(rewrite), names


def _drops_axes(layer: Any) -> bool:
    kind = type(layer) is keras.layers.GlobalAveragePooling2D
    return kind and not layer.keepdims and layer.data_format == "channels_last"


def _covers_everything(layer: Any) -> bool:
    """Whether each of the layer's windows is the whole image."""
    if type(layer) is not keras.layers.AveragePooling2D or layer.data_format != "channels_last":
        return False
    inputs = [node.input_shapes for node in layer.inbound_nodes]
    return layer.padding == "valid" and all(tuple(shape[1:3]) == tuple(layer.pool_size) for shape in inputs)
