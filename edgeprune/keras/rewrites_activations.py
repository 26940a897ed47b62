"""Activations and other element-wise layers in the form that fake quantizers can stand between."""

from __future__ import annotations

import functools
from typing import Any

from edgeprune.keras import graph, keras
from edgeprune.keras import layers as own
from edgeprune.keras.workshop import Rewritten, Workshop

_layers = keras.layers
# TFMOT fake-quantizes what comes out of these as one with the layer; before any other it puts no quantizer.
FUSED = ("linear", "relu", "softmax", "sigmoid", "tanh")
HOMES = ("keras", "tensorflow", "tf_keras")  # a user's function of the same name may compute something else
LINEAR = (_layers.Conv2D, _layers.DepthwiseConv2D, _layers.Conv2DTranspose, _layers.Dense)
# These change nothing at inference, and TFMOT knows no configuration for them.
TRAINING_ONLY = (
    "ActivityRegularization",
    "AlphaDropout",
    "GaussianDropout",
    "GaussianNoise",
    "RandomBrightness",
    "RandomContrast",
    "RandomFlip",
    "RandomHeight",
    "RandomRotation",
    "RandomTranslation",
    "RandomWidth",
    "RandomZoom",
    "StochasticDepth",
)


def identities(model: Any) -> Rewritten:
    """Noise, stochastic depth, augmentation and linear activations dropped; Dropout stays, which TFMOT takes."""
    readers = graph.consumers(model)
    found = [
        node
        for node in graph.nodes(model)
        if _changes_nothing(node)
        and tuple(node.input_shapes) == tuple(node.output_shapes)
        and None not in readers[str(node.flat_output_ids[0])]  # the model's output is known by its layer's name
    ]
    ids = {id(node) for node in found}
    if not found:
        return model, []
    rebuilt = graph.rebuild(model, lambda call: call.args[0] if id(call.node) in ids else None)
    return rebuilt, graph.names_of(found)


def _changes_nothing(node: Any) -> bool:
    """Whether a call gives at inference what it is given."""
    if type(node.layer) is _layers.Activation:
        return graph.activation_of(node.layer) == "linear"
    # With training=True somebody wants the noise at inference too.
    return type(node.layer).__name__ in TRAINING_ONLY and node.call_kwargs.get("training") is not True


def split(model: Any) -> Rewritten:
    """Conv2D(activation="swish") -> Conv2D + Activation("swish"), for every activation that TFMOT does not quantize with the layer."""
    found = [node for node in graph.nodes(model) if type(node.layer) in LINEAR and _apart(node.layer) is not None]
    if not found:
        return model, []
    names = set(graph.names_of(found))
    shop = Workshop(model)

    def rewrite(call: graph.Call) -> Any:
        if call.layer.name not in names:
            return None
        kind, word, config = _apart(call.layer) or (None, "", {})
        behind = shop.make(kind, shop.derived(call.layer.name, word), **config)
        return behind(shop.copy(call.layer, activation="linear")(*call.args, **call.kwargs))

    return shop.rebuild(rewrite), graph.names_of(found)


def _apart(layer: Any) -> tuple[Any, str, dict[str, Any]] | None:
    """The layer to put behind, a word for its name, and its configuration; None: the activation stays inside."""
    activation = layer.activation
    if isinstance(activation, keras.layers.Layer):
        config = {key: value for key, value in activation.get_config().items() if key != "name"}
        return None if activation.weights else (type(activation), type(activation).__name__.lower(), config)
    word = graph.activation_of(layer)
    # The converter fuses a ReLU into CONV_2D, not into TRANSPOSE_CONV.
    fused = word in FUSED and not (word == "relu" and type(layer) is _layers.Conv2DTranspose)
    if not word or fused or activation.__module__.split(".")[0] not in HOMES:
        return None
    if word == "relu6":
        return _layers.ReLU, word, {"max_value": 6.0}
    if word == "leaky_relu":
        return _layers.LeakyReLU, word, {"alpha": 0.2}  # the function's slope; the layer's own default is 0.3
    return _layers.Activation, "swish" if word == "silu" else word, {"activation": word}


def hard_sigmoid(model: Any) -> Rewritten:
    """Hard sigmoids -> a scale and shift, ReLU6, a scale.

    ::

        Keras 2:  clip(0.2 x + 0.5, 0, 1) = relu6(1.2 x + 3) / 6
        Keras 3:  relu6(x + 3) / 6
    """
    found = [node for node in graph.nodes(model) if _slope(node.layer) is not None]
    if not found:
        return model, []
    shop = Workshop(model)
    relu6 = functools.partial(shop.make, _layers.ReLU, max_value=6.0)

    def rewrite(call: graph.Call) -> Any:
        slope, name = _slope(call.layer), call.layer.name
        if slope is None:
            return None
        shifted = shop.make(_layers.Rescaling, shop.derived(name, "shifted"), scale=slope, offset=3.0)(call.args[0])
        clipped = relu6(shop.derived(name, "clipped"))(shifted)
        return shop.make(_layers.Rescaling, name, scale=1.0 / 6.0)(clipped)

    return shop.rebuild(rewrite), graph.names_of(found)


def _slope(layer: Any) -> float | None:
    """What a hard sigmoid multiplies x by before it adds 3 and clips at 6; None: the layer is none."""
    if isinstance(layer, own.HardSigmoid):
        return 1.0
    if type(layer) is _layers.Activation and graph.activation_of(layer) == "hard_sigmoid":
        return 1.2
    return None


SELU = (1.0507009873554805, 1.6732632423543772)  # scale and alpha of Klambauer et al. 2017


def exponential_units(model: Any) -> Rewritten:
    """ELU and SELU -> sums of what has int8 ops; the runtime has no int8 ELU.

    ::

        elu(x) = relu(x) + alpha (exp(x - relu(x)) - 1),   selu(x) = scale elu(x)
    """
    found = [node for node in graph.nodes(model) if _units(node.layer) is not None]
    if not found:
        return model, []
    shop = Workshop(model)

    def rewrite(call: graph.Call) -> Any:
        units, name, x = _units(call.layer), call.layer.name, call.args[0] if call.args else None
        if units is None:
            return None
        scale, alpha = units
        above = shop.make(_layers.ReLU, shop.derived(name, "above"))(x)
        below = shop.make(_layers.Subtract, shop.derived(name, "below"))([x, above])
        power = shop.make(_layers.Activation, shop.derived(name, "power"), activation="exponential")(below)
        curve = shop.make(_layers.Rescaling, shop.derived(name, "curve"), scale=alpha, offset=-alpha)(power)
        if scale == 1.0:
            return shop.make(_layers.Add, name)([above, curve])
        total = shop.make(_layers.Add, shop.derived(name, "sum"))([above, curve])
        return shop.make(_layers.Rescaling, name, scale=scale)(total)

    return shop.rebuild(rewrite), graph.names_of(found)


def _units(layer: Any) -> tuple[float, float] | None:
    """The scale and alpha of an exponential linear unit; None: the layer is none."""
    if type(layer) is _layers.ELU:
        return 1.0, float(layer.alpha)
    if type(layer) is not _layers.Activation:
        return None
    return {"elu": (1.0, 1.0), "selu": SELU}.get(graph.activation_of(layer))


def clipped(model: Any) -> Rewritten:
    """ReLU with another maximum m than 6 -> a scale, ReLU6, a scale: m / 6 · relu6(6 / m · x). Only 6 has an int8 op."""
    found = [node for node in graph.nodes(model) if _maximum(node.layer) is not None]
    if not found:
        return model, []
    shop = Workshop(model)

    def rewrite(call: graph.Call) -> Any:
        maximum, name = _maximum(call.layer), call.layer.name
        if maximum is None:
            return None
        scaled = shop.make(_layers.Rescaling, shop.derived(name, "scaled"), scale=6.0 / maximum)(call.args[0])
        relu6 = shop.make(_layers.ReLU, shop.derived(name, "clipped"), max_value=6.0)(scaled)
        return shop.make(_layers.Rescaling, name, scale=maximum / 6.0)(relu6)

    return shop.rebuild(rewrite), graph.names_of(found)


def _maximum(layer: Any) -> float | None:
    plain = type(layer) is _layers.ReLU and not layer.threshold and not layer.negative_slope
    return float(layer.max_value) if plain and layer.max_value not in (None, 0.0, 6.0) else None


MERGES = (_layers.Add, _layers.Multiply, _layers.Maximum, _layers.Minimum)


def pairwise(model: Any) -> Rewritten:
    """Add, Multiply, Maximum and Minimum of three and more -> of two and two; Average -> Add and a scale of 1 / n."""
    found = [node for node in graph.nodes(model) if _needs_pairs(node)]
    if not found:
        return model, []
    ids = {id(node) for node in found}
    shop = Workshop(model)

    def rewrite(call: graph.Call) -> Any:
        if id(call.node) not in ids:
            return None
        name, tensors = call.layer.name, list(call.args[0])
        average = type(call.layer) is _layers.Average
        kind = _layers.Add if average else type(call.layer)
        total = tensors[0]
        for place, tensor in enumerate(tensors[1:], 1):
            last = place == len(tensors) - 1 and not average
            total = shop.make(kind, name if last else shop.derived(name, str(place)))([total, tensor])
        return shop.make(_layers.Rescaling, name, scale=1.0 / len(tensors))(total) if average else total

    return shop.rebuild(rewrite), graph.names_of(found)


def _needs_pairs(node: Any) -> bool:
    kind, count = type(node.layer), len(node.flat_input_ids)
    return kind is _layers.Average or (kind in MERGES and count > 2)
