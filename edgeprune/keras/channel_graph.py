"""Describe a Keras model for the channel analysis: one table from layer class to coupling rule.

A class that is not in the table (a subclass of one that is, too: it may compute anything) is ``opaque``: what goes into it
and comes out of it is left whole, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgeprune import channel_blocks, channels
from edgeprune.channels import Node, Use
from edgeprune.keras import graph, keras, tf
from edgeprune.keras import layers as own
from edgeprune.keras import rewrites_operations as operators

layers = keras.layers
Rule = Callable[[Any, Any], dict[str, Any]]  # a layer and its call -> fields of the node

ELEMENTWISE = {
    *("elu", "exponential", "gelu", "hard_sigmoid", "leaky_relu", "linear", "mish", "relu", "relu6", "selu", "sigmoid"),
    *("silu", "softplus", "softsign", "swish", "tanh", "hard_swish"),
}
MAKERS = ("tf_keras.", "tensorflow.", "keras.", "edgeprune.")  # a user's own "relu" may be anything
# TensorFlow's functions that treat every element alike, if all else among their arguments is a number.
FUNCTIONS = {
    *(f"math.{name}" for name in ("abs", "add", "divide", "exp", "log", "maximum", "minimum", "multiply", "negative")),
    *(
        f"math.{name}"
        for name in ("pow", "reciprocal", "rsqrt", "sigmoid", "sqrt", "square", "subtract", "tanh", "truediv")
    ),
    *(f"__operators__.{name}" for name in ("add", "multiply", "subtract", "truediv")),
    *(
        f"nn.{name}"
        for name in ("elu", "gelu", "leaky_relu", "relu", "relu6", "selu", "sigmoid", "silu", "swish", "tanh")
    ),
    *("clip_by_value", "identity", "stop_gradient"),
}


def describe(model: Any) -> channels.Graph:
    """The graph description of a functional tf_keras model.

    Args:
        model: functional or built Sequential; models inside it are inlined, as by ``graph.flatten``.
    """
    model = graph.flatten(model)
    names, shapes = _tensors(model)
    nodes = tuple(_node(call, names) for call in graph.nodes(model))
    return channels.Graph(
        shapes,
        nodes,
        tuple(names[str(id(tensor))] for tensor in model.inputs),
        tuple(names[str(id(tensor))] for tensor in model.outputs),
    )


def inventory(model: Any) -> dict[str, Any]:
    """What ``edgeprune inspect MODEL --groups`` prints, as plain data.

    Returns:
        ``groups``, in the network's order: ``name``, ``units`` (how many parts can go one by one), ``step`` (channels of a
        layer per unit), ``cuttable``, ``reasons`` (why not), ``inexact`` (why zeroing is not the same), ``producers`` and
        ``consumers`` (layer names) and ``members``: ``layer``, ``weight``, ``axis``, ``role``, ``size`` of the axis and
        ``indices``, for unit 0 and for the last unit. ``blocks``: what can be removed whole, ``name`` and ``layers``.
    """
    description = describe(model)
    coupling = channels.couple(description)
    sizes = {key: len(classes) for key, classes in coupling.axes.items()}
    return {
        "groups": [_group(group, sizes) for group in coupling.groups],
        "blocks": [
            {"name": block.name, "addition": block.addition, "layers": list(block.layers)}
            for block in channel_blocks.removable(description)
        ],
    }


def shrinkable(model: Any) -> dict[str, str | None]:
    """For every layer whose kernel makes channels: None if some of them can be removed, else the reason why not."""
    groups = channels.couple(describe(model)).groups
    return {
        member.layer: f"its channels {'; '.join(group.reasons)}" if group.reasons else None
        for group in groups
        for member in group.producers
    }


def variable(layer: Any, name: str) -> Any:
    """The layer's variable of that name in the description, or None if it has none (no bias, no scale).

    A recurrent layer's variables lie in its cell.
    """
    return getattr(layer, name) if hasattr(layer, name) else getattr(getattr(layer, "cell", None), name, None)


def tensor_names(model: Any) -> dict[str, str]:
    """Id of a tensor of a flat functional model -> its name in the description."""
    return _tensors(graph.functional(model))[0]


def _group(group: channels.Group, sizes: dict[tuple[str, str, int], int]) -> dict[str, Any]:
    return {
        "name": group.name,
        "units": group.units,
        "step": group.step,
        "cuttable": group.cuttable,
        "reasons": list(group.reasons),
        "inexact": list(group.inexact),
        "producers": _names(group.producers),
        "consumers": _names(group.consumers),
        "members": [
            {
                "layer": member.layer,
                "weight": member.weight,
                "axis": member.axis,
                "role": member.role,
                "size": sizes[member.layer, member.weight, member.axis],
                "indices": [member.indices(unit).tolist() for unit in (0, group.units - 1)],
            }
            for member in group.members
        ],
    }


def _names(members: tuple[channels.Member, ...]) -> list[str]:
    return list(dict.fromkeys(member.layer for member in members))


def _tensors(model: Any) -> tuple[dict[str, str], dict[str, tuple[int | None, ...]]]:
    """Tensor id -> its name in the description; name -> shape without the batch."""
    names, shapes = {}, {}
    calls: dict[str, int] = {}
    found = [(layer.name, tensor) for layer, tensor in zip(model._input_layers, model.inputs, strict=True)]
    for node in graph.nodes(model):
        found += [(node.layer.name, tensor) for tensor in tf.nest.flatten(node.outputs)]
    for layer, tensor in found:
        if str(id(tensor)) not in names:
            calls[layer] = calls.get(layer, -1) + 1
            names[str(id(tensor))] = f"{layer}:{calls[layer]}"
            shapes[f"{layer}:{calls[layer]}"] = tuple(tensor.shape[1:])
    return names, shapes


def _node(call: Any, names: dict[str, str]) -> Node:
    layer = call.layer
    rule = TABLE.get(type(layer)) or FOREIGN.get(f"{type(layer).__module__}.{type(layer).__name__}", _opaque)
    several = type(layer) in SEVERAL or rule is _operation
    if len(call.flat_input_ids) != 1 and not several:  # a mask, or a flag that is a tensor
        rule = _opaque
    fields = rule(layer, call)
    present = tuple(use for use in fields.pop("uses", ()) if variable(layer, use.weight) is not None)
    return Node(
        layer=layer.name,
        kind=type(layer).__name__,
        inputs=tuple(names[str(tensor)] for tensor in call.flat_input_ids),
        outputs=tuple(names[str(tensor)] for tensor in call.flat_output_ids),
        uses=present,
        **fields,
    )


def _axis(layer: Any) -> int:
    """The channel axis without the batch."""
    return 0 if getattr(layer, "data_format", None) == "channels_first" else -1


def _without_batch(axis: int) -> int:
    return axis if axis < 0 else axis - 1


def _activation(layer: Any) -> str | None:
    """Why the layer's activation makes its outputs stay, or None if it treats every element alike."""
    function = layer.activation
    name, module = getattr(function, "__name__", type(function).__name__), getattr(function, "__module__", "") or ""
    if name in ELEMENTWISE and module.startswith(MAKERS):
        return None
    if name in ("softmax", "log_softmax"):
        return f"are weighed against each other by the {name} of '{layer.name}'"
    return f"go through '{name}' of '{layer.name}', which is not known to treat every channel alone"


def _kernel(layer: Any, _: Any) -> dict[str, Any]:
    """Dense and convolutions: kernel (..., in, out)."""
    rank = len(layer.kernel.shape)
    uses = (
        Use("kernel", rank - 2, "in", "consumer"),
        Use("kernel", rank - 1, "out", "producer"),
        Use("bias", 0, "out", "channel"),
    )
    groups = getattr(layer, "groups", 1)
    return {"rule": "mix", "uses": uses, "axis": _axis(layer), "groups": groups, "reason": _activation(layer)}


def _transposed(layer: Any, _: Any) -> dict[str, Any]:
    """Transposed convolutions: kernel (..., out, in)."""
    rank = len(layer.kernel.shape)
    uses = (
        Use("kernel", rank - 1, "in", "consumer"),
        Use("kernel", rank - 2, "out", "producer"),
        Use("bias", 0, "out", "channel"),
    )
    return {"rule": "mix", "uses": uses, "axis": _axis(layer), "reason": _activation(layer)}


def _depthwise(layer: Any, _: Any) -> dict[str, Any]:
    """Kernel (..., in, multiplier); output channel c * multiplier + m."""
    uses = (
        Use("depthwise_kernel", len(layer.depthwise_kernel.shape) - 2, "in", "channel"),
        Use("bias", 0, "out", "channel"),
    )
    fields = {"rule": "depthwise", "uses": uses, "axis": _axis(layer), "multiplier": layer.depth_multiplier}
    return {**fields, "reason": _activation(layer)}


def _separable(layer: Any, _: Any) -> dict[str, Any]:
    """A depthwise kernel (..., in, m) and a pointwise one (..., in * m, out)."""
    rank = len(layer.pointwise_kernel.shape)
    uses = (
        Use("depthwise_kernel", rank - 2, "in", "channel"),
        Use("pointwise_kernel", rank - 2, "in", "consumer", repeat=layer.depth_multiplier),
        Use("pointwise_kernel", rank - 1, "out", "producer"),
        Use("bias", 0, "out", "channel"),
    )
    return {"rule": "mix", "uses": uses, "axis": _axis(layer), "reason": _activation(layer)}


def _embedding(layer: Any, _: Any) -> dict[str, Any]:
    return {"rule": "source", "uses": (Use("embeddings", 1, "out", "producer"),)}


def _recurrent(gates: int) -> Rule:
    """Kernels (in, gates * units) and (units, gates * units); the gates stand side by side."""

    def rule(layer: Any, call: Any) -> dict[str, Any]:
        if call.call_kwargs.get("mask") is not None:
            return _opaque(layer, call)
        bias = layer.cell.bias
        uses = (
            Use("kernel", 0, "in", "consumer"),
            Use("kernel", 1, "out", "producer", tile=gates),
            Use("recurrent_kernel", 0, "out", "consumer"),
            Use("recurrent_kernel", 1, "out", "producer", tile=gates),
            Use("bias", len(bias.shape) - 1 if bias is not None else 0, "out", "channel", tile=gates),
        )
        reason = _activation(layer)
        if reason is None and hasattr(layer.cell, "recurrent_activation"):
            reason = _activation(_Gate(layer))
        return {"rule": "recurrent", "uses": uses, "reason": reason}

    return rule


class _Gate:
    """The function of a recurrent layer's gates, where ``_activation`` looks for one."""

    def __init__(self, layer: Any) -> None:
        self.name, self.activation = layer.name, layer.cell.recurrent_activation


def _batch_normalization(layer: Any, call: Any) -> dict[str, Any]:
    axis = layer.axis if isinstance(layer.axis, int) else list(layer.axis)
    if isinstance(axis, list):
        if len(axis) != 1:
            return _opaque(layer, call)
        axis = axis[0]
    names = ("gamma", "beta", "moving_mean", "moving_variance", "renorm_mean", "renorm_stddev")
    uses = tuple(Use(name, 0, "in", "channel") for name in names)
    return {"rule": "elementwise", "uses": uses, "axis": _without_batch(axis)}


def _layer_normalization(layer: Any, _: Any) -> dict[str, Any]:
    axes = [_without_batch(axis) for axis in ([layer.axis] if isinstance(layer.axis, int) else layer.axis)]
    uses = tuple(
        Use(name, place, "in", "channel", along=axis) for name in ("gamma", "beta") for place, axis in enumerate(axes)
    )
    return {"rule": "normalize", "uses": uses, "axes": tuple(axes)}


def _group_normalization(layer: Any, _: Any) -> dict[str, Any]:
    uses = tuple(Use(name, 0, "in", "channel") for name in ("gamma", "beta"))
    return {"rule": "bundle", "uses": uses, "axis": _without_batch(layer.axis), "groups": layer.groups}


def _prelu(layer: Any, _: Any) -> dict[str, Any]:
    """Slopes of the input's shape, 1 along shared axes."""
    shared = {axis - 1 for axis in layer.shared_axes or ()}
    own_axes = [axis for axis in range(len(layer.alpha.shape)) if axis not in shared]
    return {
        "rule": "elementwise",
        "uses": tuple(Use("alpha", axis, "in", "channel", along=axis) for axis in own_axes),
    }


def _activation_layer(layer: Any, _: Any) -> dict[str, Any]:
    if getattr(layer.activation, "__name__", "") in ("softmax", "log_softmax"):
        return {"rule": "across", "axes": (-1,)}
    return {"rule": "elementwise", "reason": _activation(layer)}


def _softmax(layer: Any, _: Any) -> dict[str, Any]:
    axes = [layer.axis] if isinstance(layer.axis, int) else layer.axis
    return {"rule": "across", "axes": tuple(_without_batch(axis) for axis in axes)}


def _dropout(layer: Any, call: Any) -> dict[str, Any]:
    """The shape of its noise may name the number of channels; 1 is one draw for all, and None as many as there are."""
    named = [size for size in getattr(layer, "noise_shape", None) or () if size not in (None, 1)]
    return _opaque(layer, call) if named else {"rule": "elementwise"}


def _elementwise(layer: Any, _: Any) -> dict[str, Any]:
    return {"rule": "elementwise"}


def _merge(layer: Any, call: Any) -> dict[str, Any]:
    given = call.call_args[0] if call.call_args else call.call_kwargs.get("inputs")
    if len(tf.nest.flatten(given)) != len(call.flat_input_ids):  # a constant among the tensors
        return _opaque(layer, call)
    return {"rule": "elementwise", "additive": type(layer) is layers.Add}


def _concatenate(layer: Any, call: Any) -> dict[str, Any]:
    fields = _merge(layer, call)
    if fields["rule"] == "opaque":
        return fields
    return {"rule": "concatenate", "axis": _without_batch(layer.axis)}


def _spatial(layer: Any, _: Any) -> dict[str, Any]:
    return {"rule": "spatial", "axis": _axis(layer)}


def _reshape(layer: Any, call: Any) -> dict[str, Any]:
    return _opaque(layer, call) if _axis(layer) == 0 else {"rule": "reshape"}  # Flatten moves channels_first behind


def _permute(layer: Any, _: Any) -> dict[str, Any]:
    return {"rule": "permute", "axes": tuple(axis - 1 for axis in layer.dims)}


def _opaque(layer: Any, _: Any) -> dict[str, Any]:
    return {"rule": "opaque"}


def _layer_scale(layer: Any, _: Any) -> dict[str, Any]:
    return {"rule": "elementwise", "uses": (Use("gamma", 0, "in", "channel"),)}


def _operation(layer: Any, call: Any) -> dict[str, Any]:
    """A function of TensorFlow: an `Operation`, or what Keras makes of ``x + y`` and ``tf.nn.relu(x)``."""
    name, given, keywords = operators.function_of(layer, call.call_args, call.call_kwargs) or ("", [], {})
    plain = all(
        isinstance(value, (int, float, np.number)) or operators.is_tensor(value)
        for value in (*given, *keywords.values())
    )
    return {"rule": "elementwise"} if plain and name in FUNCTIONS else _opaque(layer, call)


def _rescaling(layer: Any, call: Any) -> dict[str, Any]:
    """Scale and offset may be given per channel: those are no weights, and stay as they are."""
    return {"rule": "elementwise"} if np.ndim(layer.scale) == np.ndim(layer.offset) == 0 else _opaque(layer, call)


MERGES = (layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum)


def _table() -> dict[type, Rule]:
    rules: list[tuple[Rule, tuple[type, ...]]] = [
        (_kernel, (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D)),
        (_transposed, (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)),
        (_depthwise, (layers.DepthwiseConv1D, layers.DepthwiseConv2D)),
        (_separable, (layers.SeparableConv1D, layers.SeparableConv2D)),
        (_embedding, (layers.Embedding,)),
        (_recurrent(4), (layers.LSTM,)),
        (_recurrent(3), (layers.GRU,)),
        (_recurrent(1), (layers.SimpleRNN,)),
        (_batch_normalization, (layers.BatchNormalization,)),
        (_layer_normalization, (layers.LayerNormalization,)),
        (_group_normalization, (layers.GroupNormalization,)),
        (_prelu, (layers.PReLU,)),
        (_activation_layer, (layers.Activation,)),
        (_softmax, (layers.Softmax,)),
        (_rescaling, (layers.Rescaling,)),
        (_layer_scale, (own.LayerScale,)),
        (_operation, (own.Operation,)),
        (_elementwise, (layers.ReLU, layers.LeakyReLU, layers.ELU, layers.ThresholdedReLU)),
        (_dropout, (layers.Dropout, layers.AlphaDropout)),
        (_elementwise, (layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D)),
        (_elementwise, (layers.GaussianNoise, layers.GaussianDropout, layers.Identity)),
        (_elementwise, (layers.ActivityRegularization, own.HardSigmoid, own.HardSwish)),
        (_merge, MERGES),
        (_concatenate, (layers.Concatenate,)),
        (_spatial, (layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D)),
        (_spatial, (layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D)),
        (_spatial, (layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D)),
        (_spatial, (layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D)),
        (_spatial, (layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D)),
        (_spatial, (layers.Cropping1D, layers.Cropping2D, layers.Cropping3D, layers.RepeatVector)),
        (_spatial, (layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D, layers.Resizing)),
        (_reshape, (layers.Flatten, layers.Reshape)),
        (_permute, (layers.Permute,)),
    ]
    return {kind: rule for rule, kinds in rules for kind in kinds}


TABLE = _table()
SEVERAL = (
    *MERGES,
    layers.Concatenate,
    layers.LSTM,
    layers.GRU,
    layers.SimpleRNN,
)  # take several tensors
# Classes of Keras and of its networks that it does not export.
FOREIGN: dict[str, Rule] = {
    "tf_keras.src.layers.core.tf_op_layer.TFOpLambda": _operation,
    "tf_keras.src.applications.convnext.LayerScale": _layer_scale,
    "tf_keras.src.applications.convnext.StochasticDepth": _elementwise,
    "tf_keras.src.applications.efficientnet.FixedDropout": _elementwise,
}
