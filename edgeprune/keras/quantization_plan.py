"""Which layers quantization-aware training carries, and where their fake quantizers stand.

The converter makes an op int8 when it finds a range at each of its inputs and at its output, and a quantizer on its
weights. `TABLE` says for every layer class where those stand; a few conditions on the neighbours say where they must
not: a ReLU is computed inside the op before it, BatchNormalization is multiplied into the convolution before it, and
what only a Concatenate reads takes over the scale of the whole. They are the rules of TFMOT's layout transforms
(``default_8bit_transforms.py``), read off the graph in one pass over it. A layer that no rule carries stays float while
training and gets its ranges after training.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Literal, NamedTuple

import numpy as np

from edgeprune.keras import graph, keras, layers, program, recurrent

kl = keras.layers
How = Literal["trained", "fused", "passed on", "post-training"]


class LayerQuantization(NamedTuple):
    """What becomes of one layer.

    Attributes:
        name, kind: of the layer, and its class.
        how: ``trained``: its weights and its range are fake-quantized while training; ``fused``: computed inside the op of
            the layer before it; ``passed on``: no op of its own, or one that keeps its input's scale; ``post-training``:
            trained in float, its ranges come from calibration samples afterwards.
        reason: why post-training, in words; None for the others.
    """

    name: str
    kind: str
    how: How
    reason: str | None = None


class Row(NamedTuple):
    """How a class of layers is fake-quantized.

    Attributes:
        weights: attributes that get a weight quantizer.
        observes: whether the range of the output is observed. Without: the op keeps its input's scale, or the runtime
            fixes the scale of its output (softmax, sigmoid, tanh).
        activation: the layer computes its activation itself, and the observer stands there.
        fixed: the runtime fixes the output's scale.
    """

    weights: tuple[str, ...] = ()
    observes: bool = True
    activation: bool = False
    fixed: bool = False


class Decision(NamedTuple):
    """What `quantize` does with one layer: a row adapted to its place in the graph, or the reason for none."""

    row: Row | None
    how: How
    reason: str | None = None


# A row, or a condition on the layer that gives one, or the reason against it.
Rule = Row | Callable[[Any], Row | str]
OBSERVED = Row()
PASSES = Row(observes=False)
FIXED = Row(observes=False, fixed=True)

# Activations as functions of their own.
ACTIVATIONS: dict[str, Row | str] = {
    "linear": PASSES,
    "relu": OBSERVED,
    "relu6": OBSERVED,
    "leaky_relu": OBSERVED,
    "swish": OBSERVED,  # LOGISTIC, whose scale is fixed, and MUL
    "silu": OBSERVED,
    "gelu": OBSERVED,
    "exponential": OBSERVED,
    "sigmoid": FIXED,
    "tanh": FIXED,
    "softmax": FIXED,
    "elu": "the runtime has no int8 ELU",
}
_SEVERAL = "is several ops to the converter, and only the last would have a range while training"
# Activations that a layer may compute itself: TFMOT's QuantizeAwareActivation knows where their observers stand.
INSIDE = ("linear", "relu", "softmax", "sigmoid", "tanh", "gelu")


def _activation(layer: Any) -> Row | str:
    name = _function(layer)
    return ACTIVATIONS.get(name, f"the activation {name} {_SEVERAL}")


def _kernel(weights: str) -> Callable[[Any], Row | str]:
    def rule(layer: Any) -> Row | str:
        name = _function(layer)
        if name not in INSIDE:
            return f"it computes the activation {name} itself, which leaves no place for a range between the two"
        return Row((weights,), activation=True, fixed=name in ("softmax", "sigmoid", "tanh"))

    return rule


def _function(layer: Any) -> str:
    """The name of a layer's activation function."""
    return str(getattr(layer.activation, "__name__", type(layer.activation).__name__))


def _two(layer: Any) -> Row | str:
    inputs = layer.inbound_nodes[0].input_shapes
    return (
        OBSERVED
        if len(inputs) == 2
        else f"of its {len(inputs)} inputs the converter makes partial results without ranges"
    )


def _relu(layer: Any) -> Row | str:
    clipped, sloped = layer.max_value not in (None, 6.0), bool(layer.negative_slope)
    if layer.threshold or clipped or (sloped and layer.max_value is not None):
        return f"a ReLU with this threshold, slope or maximum {_SEVERAL}"
    return OBSERVED


def _transposed(layer: Any) -> Row | str:
    if _function(layer) == "relu":
        return "the converter does not fuse its relu, which leaves no place for a range between the two"
    return _kernel("kernel")(layer)


def _embedding(layer: Any) -> Row | str:
    if layer.input.dtype.is_integer:
        return Row(("embeddings",))
    return "its indices come as floats, which the runtime casts"


def _rescaling(layer: Any) -> Row | str:
    return f"a Rescaling with an offset {_SEVERAL}" if np.any(layer.offset) else OBSERVED


def _upsampling(layer: Any) -> Row | str:
    if getattr(layer, "interpolation", "nearest") in ("nearest", "bilinear"):
        return PASSES
    return f"the runtime has no int8 op for {layer.interpolation} interpolation"


def _operation(layer: Any) -> Row | str:
    if layer.function == "math.divide" and len(layer.inbound_nodes[0].flat_input_ids) > 1:
        return "the runtime has no int8 quotient of two tensors"
    return OPERATIONS.get(layer.function, f"the operation {layer.function} {_SEVERAL}, or float in the runtime")


# TensorFlow functions inside `layers.Operation`.
OPERATIONS: dict[str, Row] = {
    **dict.fromkeys(("math.add", "math.subtract", "math.multiply", "math.divide"), OBSERVED),
    **dict.fromkeys(("__operators__.add",), OBSERVED),
    **dict.fromkeys(("math.maximum", "math.minimum", "math.abs", "math.exp", "math.squared_difference"), OBSERVED),
    **dict.fromkeys(("math.reduce_mean", "math.reduce_sum", "linalg.matmul", "concat", "stack"), OBSERVED),
    **dict.fromkeys(("nn.gelu", "nn.leaky_relu", "nn.relu", "nn.relu6", "nn.silu"), OBSERVED),
    **dict.fromkeys(("math.sigmoid", "math.tanh", "nn.softmax"), FIXED),
    **dict.fromkeys(("expand_dims", "identity", "reshape", "squeeze", "stop_gradient", "tile", "transpose"), PASSES),
    **dict.fromkeys(("__operators__.getitem", "pad", "slice", "strided_slice"), PASSES),
    **dict.fromkeys(("math.reduce_max", "math.reduce_min", "nn.depth_to_space", "nn.space_to_depth"), PASSES),
    **dict.fromkeys(("image.resize",), PASSES),
}

TABLE: dict[type, Rule] = {
    # kernels
    kl.Conv2D: _kernel("kernel"),
    kl.Conv2DTranspose: _transposed,
    kl.Dense: _kernel("kernel"),
    kl.DepthwiseConv2D: _kernel("depthwise_kernel"),
    kl.Embedding: _embedding,
    # activations
    kl.Activation: _activation,
    kl.ReLU: _relu,
    kl.LeakyReLU: OBSERVED,
    kl.PReLU: OBSERVED,
    kl.Softmax: FIXED,
    layers.HardSwish: OBSERVED,  # one HARD_SWISH
    # two tensors and more
    kl.Add: _two,
    kl.Subtract: OBSERVED,
    kl.Multiply: _two,
    kl.Maximum: _two,
    kl.Minimum: _two,
    kl.Dot: OBSERVED,
    kl.Concatenate: OBSERVED,
    # pooling; AVERAGE_POOL_2D wants equal scales at its ends, MEAN does not
    kl.AveragePooling1D: PASSES,
    kl.AveragePooling2D: PASSES,
    kl.MaxPooling1D: PASSES,
    kl.MaxPooling2D: PASSES,
    kl.GlobalMaxPooling1D: PASSES,
    kl.GlobalMaxPooling2D: PASSES,
    kl.GlobalAveragePooling1D: OBSERVED,
    kl.GlobalAveragePooling2D: OBSERVED,
    # the same numbers elsewhere
    kl.UpSampling1D: PASSES,
    kl.UpSampling2D: _upsampling,
    kl.ZeroPadding1D: PASSES,
    kl.ZeroPadding2D: PASSES,
    kl.Cropping1D: PASSES,
    kl.Cropping2D: PASSES,
    kl.Flatten: PASSES,
    kl.Permute: PASSES,
    kl.RepeatVector: PASSES,
    kl.Reshape: PASSES,
    kl.Rescaling: _rescaling,
    # nothing at inference
    kl.ActivityRegularization: PASSES,
    kl.AlphaDropout: PASSES,
    kl.Dropout: PASSES,
    kl.GaussianDropout: PASSES,
    kl.GaussianNoise: PASSES,
    kl.SpatialDropout1D: PASSES,
    kl.SpatialDropout2D: PASSES,
    layers.Operation: _operation,
}

# Why a class is in no row; for all others: `_UNKNOWN`.
REASONS: dict[type, str] = {
    kl.BatchNormalization: "there is no convolution right before it, read by nothing else, that it could be multiplied into",
    layers.HardSigmoid: f"it {_SEVERAL}",
    kl.SeparableConv2D: "what is between its two convolutions has no range: prepare the model first",
    kl.LayerNormalization: f"it {_SEVERAL}",
    kl.GroupNormalization: f"it {_SEVERAL}",
    kl.ELU: str(ACTIVATIONS["elu"]),
    kl.Average: f"it {_SEVERAL}",
    **dict.fromkeys(
        (kl.LSTM, kl.GRU, kl.SimpleRNN, kl.RNN, kl.Bidirectional),
        "the states inside a recurrent layer get their ranges from calibration samples only",
    ),
}
_UNKNOWN = "nothing is known of the ops inside a layer of this class"


def plan(model: Any, skip: Collection[str] = ()) -> tuple[LayerQuantization, ...]:
    """What becomes of every layer of a prepared model, inputs left out, in topological order.

    Args:
        model: functional or built Sequential, without nested models.
        skip: names of layers to leave to post-training ranges.
    """
    kinds = {layer.name: type(layer).__name__ for layer in graph.functional(model).layers}
    return tuple(
        LayerQuantization(name, kinds[name], decision.how, decision.reason)
        for name, decision in decide(model, skip).items()
    )


def post_training(layers: Collection[LayerQuantization]) -> tuple[LayerQuantization, ...]:
    """The layers of a plan that fake quantizers do not carry."""
    return tuple(layer for layer in layers if layer.how == "post-training")


def trainable(model: Any, layers: Collection[LayerQuantization]) -> float:
    """The share of a model's trainable weights, 0..1, that fake quantizers carry; 0: there is nothing to train.

    Args:
        model: the model that the plan is of.
        layers: its plan.
    """
    carried = {layer.name for layer in layers if layer.how != "post-training"}
    counts = {layer.name: sum(int(np.prod(w.shape)) for w in layer.trainable_weights) for layer in model.layers}
    return sum(count for name, count in counts.items() if name in carried) / max(sum(counts.values()), 1)


def decide(model: Any, skip: Collection[str] = ()) -> dict[str, Decision]:
    """Layer name -> where its fake quantizers stand, in topological order."""
    place = _Place(graph.functional(model))
    decisions: dict[str, Decision] = {}
    loops = recurrent.obstacles(place.model)
    for node in graph.nodes(place.model):
        name = node.layer.name
        decision = Decision(None, "post-training", loops[name]) if name in loops else _alone(node, skip)
        decisions.setdefault(name, decision)
    for node in graph.nodes(place.model):
        _fuse(node, place, decisions)
    for node in graph.nodes(place.model):
        _share_scale(node, place, decisions)
    return decisions


class _Place:
    """A model's graph, as the conditions on neighbours ask for it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.calls = graph.calls_of(model)
        self._readers, self._makers = graph.consumers(model), graph.producers(model)

    def private(self, tensor: Any) -> Any:
        """The layer that makes a tensor, if it is called once and only one call reads the tensor; else None."""
        maker = self._makers.get(str(tensor))
        readers = self._readers[str(tensor)]
        alone = len(readers) == 1 and readers[0] is not None
        return maker.layer if maker is not None and alone and self.calls[maker.layer.name] == 1 else None


def _alone(node: Any, skip: Collection[str]) -> Decision:
    """The table's row for a layer, whatever is around it."""
    layer = node.layer
    if layer.name in skip:
        return Decision(None, "post-training", "named by skip")
    rule = TABLE.get(type(layer))
    row = _why_not(layer) if rule is None else rule if isinstance(rule, Row) else rule(layer)
    if isinstance(row, Row) and _arguments(node) > 1:
        row = "it is called with several arguments"
    if isinstance(row, str):
        return Decision(None, "post-training", row)
    return Decision(row, "passed on" if row == PASSES else "trained")


def _why_not(layer: Any) -> str:
    """Why a layer is in no row of the table."""
    if isinstance(layer, program.Program):
        return f"it is one program, not layers: {layer.why}"
    return REASONS.get(type(layer), _UNKNOWN)


def _arguments(node: Any) -> int:
    """How many arguments of a call hold tensors; a list of tensors is one."""
    return len(node.call_args) + sum(hasattr(value, "_keras_history") for value in node.call_kwargs.values())


def _fuse(node: Any, place: _Place, decisions: dict[str, Decision]) -> None:
    """BatchNormalization behind a convolution, and a ReLU behind either, observe the range for the op they end up in."""
    layer = node.layer
    if place.calls[layer.name] != 1 or len(node.flat_input_ids) != 1 or decisions[layer.name].reason == "named by skip":
        return
    before = place.private(node.flat_input_ids[0])
    if before is None or not (_is_normalization(layer, before, decisions) or _is_relu(layer, before, decisions)):
        return
    _silence(before.name, decisions)
    decisions[layer.name] = Decision(OBSERVED, "fused")


def _is_normalization(layer: Any, before: Any, decisions: dict[str, Decision]) -> bool:
    linear = isinstance(before, (kl.Conv2D, kl.DepthwiseConv2D)) and _function(before) == "linear"
    linear = linear and not isinstance(before, kl.Conv2DTranspose)
    return isinstance(layer, kl.BatchNormalization) and linear and decisions[before.name].row is not None


def _is_relu(layer: Any, before: Any, decisions: dict[str, Decision]) -> bool:
    if isinstance(layer, kl.ReLU):
        relu = layer.max_value in (None, 6.0) and not layer.negative_slope and not layer.threshold
    else:
        relu = type(layer) is kl.Activation and _function(layer) in ("relu", "relu6")
    if not relu or decisions[layer.name].row is None or decisions[before.name].row is None:
        return False
    if isinstance(before, (kl.Add, kl.BatchNormalization)):
        return True
    kernel = type(before) in (kl.Conv2D, kl.DepthwiseConv2D, kl.Dense)
    return kernel and _function(before) == "linear"


def _share_scale(node: Any, place: _Place, decisions: dict[str, Decision]) -> None:
    """What only a Concatenate reads has the scale of the whole, so it is observed there."""
    if not isinstance(node.layer, kl.Concatenate) or decisions[node.layer.name].row is None:
        return
    for tensor in node.flat_input_ids:
        before = place.private(tensor)
        row = decisions[before.name].row if before is not None else None
        if row is not None and not row.fixed:
            _silence(before.name, decisions)


def _silence(name: str, decisions: dict[str, Decision]) -> None:
    """Take a layer's own observer away: the layer behind it observes for both."""
    row = decisions[name].row
    if row is not None:
        decisions[name] = decisions[name]._replace(row=row._replace(observes=False))
