"""Layers over sequences -> their kin over images of width 1, which pruning and quantization take.

A tensor (batch, steps, channels) is carried on as its twin (batch, steps, 1, channels) for as long as layers follow that
have a two-dimensional kin; a Reshape stands only where such a stretch begins and ends. A kernel (k, in, out) becomes
(k, 1, in, out) with the same zeros, and every layer keeps its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgeprune.keras import folding, graph, keras
from edgeprune.keras.workshop import Rewritten, Workshop

_layers = keras.layers
Tensor = Any
Lift = Callable[
    [Workshop, Any, Any], Tensor
]  # workshop, layer, the twins of its input or inputs -> the twin of its output


def lift(model: Any) -> Rewritten:
    """Every convolution, pooling, padding and resizing over steps made two-dimensional, with what stands between them."""
    found = [node for node in graph.nodes(model) if type(node.layer) in LIFTED and _liftable(node)]
    if not found:
        return model, []
    lifted = {id(node) for node in found}
    shop = Workshop(model)
    twins: dict[int, tuple[Tensor, Tensor]] = {}  # id of a tensor -> the tensor, which must live on, and its twin

    def rewrite(call: graph.Call) -> Any:
        given = call.args[0] if call.args else None
        if id(call.node) in lifted:
            made = LIFTED[type(call.layer)](shop, call.layer, _twin(shop, twins, given))
        elif _carried(call.node, given, twins):
            inside = [twins[id(tensor)][1] for tensor in (given if isinstance(given, (list, tuple)) else [given])]
            made = _carry(shop, call.layer, inside if isinstance(given, (list, tuple)) else inside[0])
        else:
            return None
        shape = tuple(-1 if side is None else side for side in call.node.output_shapes[1:])
        if len(made.shape) != 4 or type(call.layer) in LEAVING:
            return made
        flat = _layers.Reshape(shape, name=shop.another(f"{call.layer.name}_steps"))(made)
        twins[id(flat)] = (flat, made)
        return flat

    return shop.rebuild(rewrite), graph.names_of(found)


def _twin(shop: Workshop, twins: dict[int, tuple[Tensor, Tensor]], tensor: Tensor) -> Tensor:
    """The tensor with a width of 1: the known twin, or a Reshape of it (or of what a Reshape made it from)."""
    if len(tensor.shape) == 2:
        shape: tuple[int, ...] = (1, 1, tensor.shape[1])
    else:
        shape = (-1 if tensor.shape[1] is None else tensor.shape[1], 1, tensor.shape[2])
    if id(tensor) not in twins:
        source, maker = tensor, tensor._keras_history
        if type(maker.layer) is _layers.Reshape:
            source = maker.layer.inbound_nodes[maker.node_index].keras_inputs[0]
        same = tuple(source.shape[1:]) == shape
        name = shop.another(f"{maker.layer.name}_image")
        twins[id(tensor)] = (tensor, source if same else _layers.Reshape(shape, name=name)(source))
    return twins[id(tensor)][1]


def _liftable(node: Any) -> bool:
    layer = node.layer
    rank = 2 if type(layer) is _layers.RepeatVector else 3
    if len(node.flat_input_ids) != 1 or len(node.input_shapes) != rank or node.input_shapes[-1] is None:
        return False
    return not (
        node.call_kwargs.get("mask") is not None or getattr(node.keras_inputs[0], "_keras_mask", None) is not None
    )


def _carried(node: Any, given: Any, twins: dict[int, Any]) -> bool:
    """Whether the call stays within the stretch: all its inputs have twins, and its layer does the same on these."""
    tensors = given if isinstance(given, (list, tuple)) else [given]
    if type(node.layer) not in CARRIED or not tensors or not all(id(tensor) in twins for tensor in tensors):
        return False
    if any(len(tensor.shape) != 3 for tensor in tensors):
        return False
    layer = node.layer
    if type(layer) is _layers.BatchNormalization:
        return folding.axis_of(layer) in (-1, 2)
    if type(layer) is _layers.Concatenate:
        return layer.axis in (-1, 1, 2)
    return not (type(layer) is _layers.Dropout and layer.noise_shape is not None)


def _carry(shop: Workshop, layer: Any, inside: Any) -> Tensor:
    if type(layer) is _layers.BatchNormalization:
        return shop.copy(layer, axis=-1)(inside)
    if type(layer) is _layers.Concatenate:
        return shop.copy(layer, axis=1 if layer.axis == 1 else -1)(inside)
    return shop.copy(layer)(inside)


def _wide(kernel: np.ndarray) -> np.ndarray:
    """A kernel over steps as one over an image of width 1."""
    return kernel[:, None]


def _config(layer: Any, *, equal_strides: bool = False) -> dict[str, Any]:
    """A convolution's configuration with a second, trivial side.

    Depthwise kernels take equal strides only; over a width of 1 a second stride changes nothing.
    """
    config = layer.get_config()
    (size,), (stride,), (dilation,) = (config[key] for key in ("kernel_size", "strides", "dilation_rate"))
    config |= {"kernel_size": (size, 1), "strides": (stride, stride if equal_strides else 1)}
    config |= {"dilation_rate": (dilation, dilation if equal_strides else 1)}
    if config["padding"] == "causal":
        config["padding"] = "valid"
    return config


def _padded(shop: Workshop, layer: Any, x: Tensor) -> Tensor:
    """The input with the zeros before it that causal padding stands for."""
    if layer.padding != "causal":
        return x
    before = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
    padding = ((before, 0), (0, 0))
    return shop.make(_layers.ZeroPadding2D, shop.derived(layer.name, "causal"), padding=padding)(x)


def _convolution(kind: type, wide_kernels: int, equal_strides: bool) -> Lift:
    def lifted(shop: Workshop, layer: Any, x: Tensor) -> Tensor:
        weights = layer.get_weights()
        weights = [_wide(kernel) for kernel in weights[:wide_kernels]] + weights[wide_kernels:]
        config = _config(layer, equal_strides=equal_strides)
        return shop.copy(layer, weights, kind, **config)(_padded(shop, layer, x))

    return lifted


def _transposed(shop: Workshop, layer: Any, x: Tensor) -> Tensor:
    kernel, *bias = layer.get_weights()
    config = _config(layer)
    if config.get("output_padding") is not None:
        config["output_padding"] = (config["output_padding"][0], 0)
    return shop.copy(layer, [_wide(kernel), *bias], _layers.Conv2DTranspose, **config)(x)


def _pool(kind: type) -> Lift:
    def lifted(shop: Workshop, layer: Any, x: Tensor) -> Tensor:
        (size,), (stride,) = np.atleast_1d(layer.pool_size), np.atleast_1d(layer.strides)
        sizes = {"pool_size": (int(size), 1), "strides": (int(stride), 1)}
        return shop.make(kind, layer.name, padding=layer.padding, **sizes)(x)

    return lifted


def _global_pool(kind: type) -> Lift:
    def lifted(shop: Workshop, layer: Any, x: Tensor) -> Tensor:
        return shop.make(kind, layer.name, keepdims=layer.keepdims)(x)

    return lifted


def _repeat(shop: Workshop, layer: Any, x: Tensor) -> Tensor:
    return shop.make(_layers.UpSampling2D, layer.name, size=(layer.n, 1))(x)


def _up(shop: Workshop, layer: Any, x: Tensor) -> Tensor:
    return shop.make(_layers.UpSampling2D, layer.name, size=(int(layer.size), 1))(x)


def _pad(shop: Workshop, layer: Any, x: Tensor) -> Tensor:
    return shop.make(_layers.ZeroPadding2D, layer.name, padding=(tuple(layer.padding), (0, 0)))(x)


def _crop(shop: Workshop, layer: Any, x: Tensor) -> Tensor:
    return shop.make(_layers.Cropping2D, layer.name, cropping=(tuple(layer.cropping), (0, 0)))(x)


def _drop(shop: Workshop, layer: Any, x: Tensor) -> Tensor:
    return shop.make(_layers.SpatialDropout2D, layer.name, rate=layer.rate)(x)


# These begin a stretch.
LIFTED: dict[type, Lift] = {
    _layers.Conv1D: _convolution(_layers.Conv2D, 1, False),
    _layers.DepthwiseConv1D: _convolution(_layers.DepthwiseConv2D, 1, True),
    _layers.SeparableConv1D: _convolution(_layers.SeparableConv2D, 2, True),
    _layers.Conv1DTranspose: _transposed,
    _layers.MaxPooling1D: _pool(_layers.MaxPooling2D),
    _layers.AveragePooling1D: _pool(_layers.AveragePooling2D),
    _layers.GlobalMaxPooling1D: _global_pool(_layers.GlobalMaxPooling2D),
    _layers.GlobalAveragePooling1D: _global_pool(_layers.GlobalAveragePooling2D),
    _layers.UpSampling1D: _up,
    _layers.ZeroPadding1D: _pad,
    _layers.Cropping1D: _crop,
    _layers.SpatialDropout1D: _drop,
    _layers.RepeatVector: _repeat,
}
# These do to a twin what they do to the tensor itself.
CARRIED = (
    _layers.Activation,
    _layers.Add,
    _layers.Average,
    _layers.BatchNormalization,
    _layers.Concatenate,
    _layers.Dropout,
    _layers.ELU,
    _layers.Flatten,
    _layers.LeakyReLU,
    _layers.Maximum,
    _layers.Minimum,
    _layers.Multiply,
    _layers.ReLU,
    _layers.Rescaling,
    _layers.Reshape,
    _layers.Subtract,
)
LEAVING = (_layers.Flatten, _layers.Reshape)  # what they give has the shape it had: there the stretch ends
