"""Layers with kernels in the form that pruning, quantization and the converter take."""

from __future__ import annotations

from typing import Any

from edgeprune.keras import graph, keras
from edgeprune.keras.workshop import Rewritten, Workshop

_layers = keras.layers


def separable(model: Any) -> Rewritten:
    """SeparableConv2D -> DepthwiseConv2D ``name_depthwise`` + Conv2D ``name``."""
    found = [node for node in graph.nodes(model) if type(node.layer) is _layers.SeparableConv2D]
    if not found:
        return model, []
    shop = Workshop(model)

    def rewrite(call: graph.Call) -> Any:
        layer = call.layer
        if type(layer) is not _layers.SeparableConv2D:
            return None
        depthwise, *pointwise = layer.get_weights()
        first = shop.make(
            _layers.DepthwiseConv2D,
            shop.derived(layer.name, "depthwise"),
            [depthwise],
            **{key: getattr(layer, key) for key in ("kernel_size", "strides", "padding", "depth_multiplier")},
            **{key: getattr(layer, key) for key in ("dilation_rate", "depthwise_regularizer", "depthwise_constraint")},
            use_bias=False,
            trainable=layer.trainable,
        )
        second = shop.make(
            _layers.Conv2D,
            layer.name,
            pointwise,
            filters=layer.filters,
            kernel_size=1,
            activation=layer.activation,
            use_bias=layer.use_bias,
            kernel_regularizer=layer.pointwise_regularizer,
            kernel_constraint=layer.pointwise_constraint,
            **{key: getattr(layer, key) for key in ("bias_regularizer", "bias_constraint", "activity_regularizer")},
            trainable=layer.trainable,
        )
        return second(first(*call.args, **call.kwargs))

    return shop.rebuild(rewrite), graph.names_of(found)


def time_distributed(model: Any) -> Rewritten:
    """TimeDistributed(Dense) -> Dense, which is applied to every step of its input anyway."""
    found = [
        node
        for node in graph.nodes(model)
        if type(node.layer) is _layers.TimeDistributed and type(node.layer.layer) is _layers.Dense
    ]
    if not found:
        return model, []
    names = set(graph.names_of(found))
    shop = Workshop(model)

    def rewrite(call: graph.Call) -> Any:
        if call.layer.name not in names:
            return None
        return shop.copy(call.layer.layer, name=call.layer.name)(call.args[0])

    return shop.rebuild(rewrite), graph.names_of(found)
