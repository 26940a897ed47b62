"""Where in a model the signals of a kernel are: its variable, its inputs, its activation, the normalizations around it.

A kernel here is the weight of a layer that makes its output channels. Whatever is told of it has one layout, (..., in,
out): the last axis is the layer's output channels, the one before it the input channels that each of them reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeprune import channels
from edgeprune.channels import Node
from edgeprune.keras import channel_graph, graph, keras, kernels, tf

Array = NDArray[np.floating]
layers = keras.layers

DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.SeparableConv1D, layers.SeparableConv2D)
OTHERS: dict[type, kernels.Kernel] = {
    **dict.fromkeys(DEPTHWISE, kernels.Kernel(path="depthwise_kernel")),
    layers.Conv3D: kernels.Kernel(),
    layers.Conv3DTranspose: kernels.Kernel(outputs_first=True),
}
ACTIVATIONS = {
    *("Activation", "ReLU", "LeakyReLU", "ELU", "PReLU", "ThresholdedReLU", "Softmax"),
    *("HardSigmoid", "HardSwish", "Operation"),
}
SUMS = ("Add", "Subtract", "Average")
ROWS = 4608  # of an input covariance, at most (a 3x3 kernel on 512 channels): 170 MB, and a minute to invert
CHUNK = 1 << 23  # elements of the patches that are held at once


class Place(NamedTuple):
    """One kernel and where it stands.

    Attributes:
        layer: its layer.
        kernel: which of the layer's weights, and how it is laid out.
        nodes: the layer's calls in the description.
        taps: the tensors, one per call, that hold its channels after the activation that follows.
        inputs: the tensors, one per call, that the layer reads.
    """

    layer: Any
    kernel: kernels.Kernel
    nodes: tuple[Node, ...]
    taps: tuple[Any, ...]
    inputs: tuple[Any, ...]

    @property
    def name(self) -> str:
        return str(self.layer.name)

    @property
    def variable(self) -> Any:
        return self.kernel.of(self.layer)

    def laid_out(self, values: Any) -> Array:
        """Values of the variable's shape as (..., in, out); a depthwise kernel as (..., 1, out)."""
        array = np.asarray(values)
        if type(self.layer) in DEPTHWISE:
            return array.reshape(*array.shape[:-2], 1, -1)
        return np.swapaxes(array, -1, -2) if self.kernel.outputs_first else array

    def channels_last(self, values: Array) -> Array:
        """An activation of the layer as (samples, ..., channels)."""
        return np.moveaxis(values, 1, -1) if _channels_first(self.layer) else values


class Places:
    """The kernels of a flat functional model and their surroundings.

    Attributes:
        model: the flat model.
        kernels: layer name -> its place, in the network's order.
    """

    def __init__(self, model: Any) -> None:
        """Args:
        model: functional or built Sequential; models inside it are inlined.
        """
        self.model = graph.flatten(model)
        self._graph: channels.Graph = channel_graph.describe(self.model)
        self._maker = {tensor: node for node in self._graph.nodes for tensor in node.outputs}
        self._readers: dict[str, list[Node]] = {}
        for node in self._graph.nodes:
            for tensor in node.inputs:
                self._readers.setdefault(tensor, []).append(node)
        self._tensors = self._named_tensors()
        self.kernels: Mapping[str, Place] = {
            layer.name: self._place(layer, kernel)
            for layer in self.model.layers
            for kernel in (OTHERS.get(type(layer)), *kernels.KERNELS.get(type(layer), ())[:1])
            if kernel is not None
        }

    def scale(self, place: Place) -> Array | str:
        """(out,) the scale of the BatchNormalization behind the kernel, or the reason why there is none."""
        tensor = place.nodes[0].outputs[0]
        while (node := self._only_reader(tensor)) is not None:
            if node.kind == "BatchNormalization":
                return self._gamma(node)
            if node.rule not in ("elementwise", "spatial", "across"):
                break
            tensor = node.outputs[0]
        return "no BatchNormalization is behind it"

    def input_scale(self, place: Place) -> Array | str:
        """(in,) the scales of the BatchNormalizations in front of the kernel, or the reason why there are none.

        An input of the model has a scale of 1; a sum of channels has the root of the sum of the squares of theirs.
        """
        if type(place.layer) in DEPTHWISE or getattr(place.layer, "groups", 1) > 1:
            return "its output channels do not read the same inputs"
        if place.kernel.table:
            return "it looks rows up"
        found = self._scale_of(place.nodes[0].inputs[0])
        if isinstance(found, str):
            return found
        if type(place.layer) in SEPARABLE:
            found = np.repeat(found, place.layer.depth_multiplier)
        rows = place.kernel.sides(place.layer)[0]
        return found if len(found) == rows else f"the channels in front of it cannot be followed to its {rows} inputs"

    def _scale_of(self, tensor: str) -> Array | str:
        """Of every channel of a tensor."""
        node = self._maker.get(tensor)
        if node is None:
            return np.ones(self._graph.tensors[tensor][-1] or 1)
        if node.kind == "BatchNormalization":
            return self._gamma(node)
        if node.kind not in SUMS and node.kind not in ("Concatenate", "Multiply"):
            return self._scale_through(node)
        found = [self._scale_of(one) for one in node.inputs]
        scales = [one for one in found if not isinstance(one, str)]
        if node.kind == "Multiply":  # of a map and its gates the map
            return found[int(np.argmax([np.prod([s or 1 for s in self._graph.tensors[one]]) for one in node.inputs]))]
        if len(scales) < len(found):
            return next(one for one in found if isinstance(one, str))
        if node.kind == "Concatenate":
            return np.concatenate(scales)
        return np.sqrt(np.sum(np.square(np.stack(np.broadcast_arrays(*scales))), axis=0))

    def _scale_through(self, node: Node) -> Array | str:
        """Of a tensor that a layer with one input made."""
        if len(node.inputs) != 1 or node.rule not in ("elementwise", "spatial", "reshape"):
            return f"no BatchNormalization is in front of it, but {node}"
        before = self._scale_of(node.inputs[0])
        after = self._graph.tensors[node.outputs[0]][-1]
        if isinstance(before, str) or node.rule != "reshape":
            return before
        return np.tile(before, (after or 0) // len(before)) if after and not after % len(before) else before

    def _gamma(self, node: Node) -> Array | str:
        layer = self.model.get_layer(node.layer)
        if layer.gamma is None:
            return f"the BatchNormalization '{node.layer}' has no scale (scale=False)"
        return np.asarray(layer.gamma.numpy(), np.float64)

    def _place(self, layer: Any, kernel: kernels.Kernel) -> Place:
        nodes = tuple(node for node in self._graph.nodes if node.layer == layer.name)
        taps = tuple(self._tensors[self._activated(node)] for node in nodes)
        return Place(layer, kernel, nodes, taps, tuple(self._tensors[node.inputs[0]] for node in nodes))

    def _activated(self, node: Node) -> str:
        """The tensor that holds the node's channels after its activation: the last one before something else reads it."""
        tensor = node.outputs[0]
        if getattr(self.model.get_layer(node.layer), "activation", None) not in (None, keras.activations.linear):
            return tensor
        reader = self._only_reader(tensor)
        while reader is not None and reader.rule in ("elementwise", "across"):
            tensor = reader.outputs[0]
            if reader.kind in ACTIVATIONS:
                break
            reader = self._only_reader(tensor)
        return tensor

    def _only_reader(self, tensor: str) -> Node | None:
        """The node that alone reads a tensor, and reads nothing else."""
        readers = self._readers.get(tensor, [])
        alone = len(readers) == 1 and tensor not in self._graph.outputs and len(readers[0].inputs) == 1
        return readers[0] if alone else None

    def _named_tensors(self) -> dict[str, Any]:
        names = channel_graph.tensor_names(self.model)
        made = [tensor for node in graph.nodes(self.model) for tensor in tf.nest.flatten(node.outputs)]
        return {names[str(id(tensor))]: tensor for tensor in (*self.model.inputs, *made)}


def no_covariance(place: Place) -> str | None:
    """Why the covariance of a kernel's inputs is not taken, or None."""
    layer = place.layer
    if type(layer) in DEPTHWISE or getattr(layer, "groups", 1) > 1:
        return "its output channels do not read the same inputs"
    if type(layer) not in (*CONVOLUTIONS, layers.Dense):
        return f"the inputs of a {type(layer).__name__} are not laid out as the rows of its kernel"
    if _channels_first(layer):
        return "its inputs have their channels first"
    rows = int(np.prod(place.variable.shape[:-1]))
    return f"it has {rows} rows, more than {ROWS}: the covariance would not fit" if rows > ROWS else None


def products(place: Place, inputs: Any) -> tuple[Array, int]:
    """What a batch of inputs adds to the covariance: the sum of x x^T, (rows, rows) float64, and how many x there are."""
    rows = int(np.prod(place.variable.shape[:-1]))
    total, count = np.zeros((rows, rows)), 0
    positions = max(int(np.prod([side or 1 for side in inputs.shape[1:-1]])), 1)
    step = max(1, CHUNK // (positions * rows))
    for first in range(0, inputs.shape[0], step):
        patches = tf.reshape(_patches(place.layer, inputs[first : first + step]), (-1, rows))
        total += tf.matmul(patches, patches, transpose_a=True).numpy()
        count += patches.shape[0]
    return total, count


def _patches(layer: Any, inputs: Any) -> Any:
    """(samples, ..., rows): what every output position reads, in the order of the kernel's rows."""
    if isinstance(layer, layers.Dense):
        return inputs
    if type(layer) in SEPARABLE:
        return _depthwise(layer, inputs)
    sizes, strides, rates = (list(layer.kernel_size), list(layer.strides), list(layer.dilation_rate))
    padding = layer.padding.upper()
    if padding == "CAUSAL":
        inputs, padding = tf.pad(inputs, [[0, 0], [(sizes[0] - 1) * rates[0], 0], [0, 0]]), "VALID"
    if inputs.shape.rank == 3:
        inputs = inputs[:, None]
        sizes, strides, rates = [1, *sizes], [1, *strides], [1, *rates]
    if sizes == [1, 1]:  # as it is; TensorFlow's function is slow at copying
        return inputs[:, :: strides[0], :: strides[1]]
    return tf.image.extract_patches(inputs, [1, *sizes, 1], [1, *strides, 1], [1, *rates, 1], padding)


def _depthwise(layer: Any, inputs: Any) -> Any:
    """What the depthwise half of a separable convolution gives to the pointwise half."""
    kernel, strides, rates = layer.depthwise_kernel, list(layer.strides), list(layer.dilation_rate)
    padding = layer.padding.upper()
    if padding == "CAUSAL":
        inputs = tf.pad(inputs, [[0, 0], [(layer.kernel_size[0] - 1) * rates[0], 0], [0, 0]])
        padding = "VALID"
    if inputs.shape.rank == 3:
        inputs, kernel, strides, rates = inputs[:, None], kernel[None], strides * 2, [1, *rates]
    return tf.nn.depthwise_conv2d(inputs, kernel, [1, *strides, 1], padding, dilations=rates)


def _channels_first(layer: Any) -> bool:
    return getattr(layer, "data_format", None) == "channels_first"
