"""The table: how each Keras 3 layer and activation is written in tf_keras. One line per type; the special ones have a function.

A layer that is in neither ``LAYERS`` nor ``LEFT_OUT`` is refused by name. Operations of ``keras.ops`` have their own table
in ``keras3_operations``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from edgeprune.errors import ModelError
from edgeprune.keras import keras, layers

Layer = Any
X = {"tensor": 0}  # the input, in the words of layers.Operation


class Row(NamedTuple):
    """How one Keras 3 layer is written in tf_keras.

    Attributes:
        to: the class; None: the class of the same name in ``tf_keras.layers``.
        renamed: argument of Keras 3 -> argument of tf_keras.
        arguments: given the Keras 3 layer, arguments to set beside (or instead of) those of its configuration.
        weights: the layer's weights are carried; False: they are in the arguments.
    """

    to: str | type | None = None
    renamed: Mapping[str, str] = MappingProxyType({})
    arguments: Callable[[Layer], dict[str, Any]] | None = None
    weights: bool = True


def _normalization(layer: Layer) -> dict[str, Any]:
    """Mean and variance as numbers, whether they were given or adapted to data."""
    shape = layer._mean_and_var_shape
    finished = layer.mean is not None
    values = (layer.mean, layer.variance) if finished else (layer.adapt_mean, layer.adapt_variance)
    arrays = [np.asarray(value, "float32") for value in values]
    mean, variance = (
        np.broadcast_to(array.reshape(shape) if array.size == np.prod(shape) else array, shape).tolist()
        for array in arrays
    )
    return {"mean": mean, "variance": variance}


def _wrapped(layer: Layer) -> dict[str, Any]:
    return {"layer": single(layer.layer)}


def _bidirectional(layer: Layer) -> dict[str, Any]:
    forward, backward = single(layer.forward_layer), single(layer.backward_layer)
    return {"layer": forward, "backward_layer": backward}


def _gates(layer: Layer) -> dict[str, Any]:
    """The activations of a recurrent layer, as functions: they cannot become layers after it."""
    names = [name for name in ("activation", "recurrent_activation") if hasattr(layer, name)]
    return {name: _function(getattr(layer, name), layer) for name in names}


def _depth(layer: Layer) -> dict[str, Any]:
    """Dropping a residual branch is Dropout with one draw per sample; both divide by what is kept."""
    rank = len(layer.input.shape)
    return {"rate": layer.drop_path_rate, "noise_shape": (None,) + (1,) * (rank - 1)}


SAME = Row()

LAYERS: dict[str, Row] = {
    # arithmetic with weights
    **dict.fromkeys(["Dense", "EinsumDense", "Embedding"], SAME),
    **dict.fromkeys(["Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D", "DepthwiseConv2D"], SAME),
    **dict.fromkeys(["Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"], SAME),
    **dict.fromkeys(["SeparableConv1D", "SeparableConv2D"], SAME),
    "LayerScale": Row(layers.LayerScale),  # of keras.applications.convnext
    # normalization
    "BatchNormalization": SAME,
    "LayerNormalization": SAME,
    "GroupNormalization": SAME,
    "UnitNormalization": SAME,
    "Normalization": Row(arguments=_normalization, weights=False),
    "Rescaling": SAME,
    # activations
    "Activation": SAME,
    "ReLU": SAME,
    "LeakyReLU": Row(renamed={"negative_slope": "alpha"}),
    "ELU": SAME,
    "PReLU": SAME,
    "Softmax": SAME,
    # shapes
    **dict.fromkeys(["Flatten", "Reshape", "Permute", "RepeatVector", "Identity", "Masking"], SAME),
    **dict.fromkeys(["ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D"], SAME),
    **dict.fromkeys(["Cropping1D", "Cropping2D", "Cropping3D"], SAME),
    **dict.fromkeys(["UpSampling1D", "UpSampling2D", "UpSampling3D"], SAME),
    **dict.fromkeys(["Resizing", "CenterCrop"], SAME),
    # pooling
    **dict.fromkeys(["MaxPooling1D", "MaxPooling2D", "MaxPooling3D"], SAME),
    **dict.fromkeys(["AveragePooling1D", "AveragePooling2D", "AveragePooling3D"], SAME),
    **dict.fromkeys(["GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D"], SAME),
    **dict.fromkeys(["GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D"], SAME),
    # several inputs
    **dict.fromkeys(["Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate", "Dot"], SAME),
    **dict.fromkeys(["Attention", "AdditiveAttention", "MultiHeadAttention"], SAME),
    # training only
    **dict.fromkeys(["Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise", "ActivityRegularization"], SAME),
    **dict.fromkeys(["SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"], SAME),
    "StochasticDepth": Row("Dropout", {"drop_path_rate": "rate"}, _depth),  # of keras.applications.convnext
    # recurrent; hard_sigmoid differs between the two, inside the gates too
    **dict.fromkeys(["LSTM", "GRU", "SimpleRNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"], Row(arguments=_gates)),
    # layers around a layer
    "TimeDistributed": Row(arguments=_wrapped),
    "Bidirectional": Row(arguments=_bidirectional),
}

# Random while training, nothing at inference: the converted model goes without.
AUGMENTATION = """
    RandomFlip RandomRotation RandomZoom RandomTranslation RandomShear RandomPerspective RandomElasticTransform RandomErasing
    RandomBrightness RandomContrast RandomColorDegeneration RandomColorJitter RandomGaussianBlur RandomGrayscale RandomHue
    RandomInvert RandomPosterization RandomSaturation RandomSharpness AugMix CutMix MixUp RandAugment
"""
LEFT_OUT = frozenset(AUGMENTATION.split())

WAYS_OUT = {
    "Lambda": "It holds Python code, which cannot be translated: replace it by layers or keras.ops.",
    "SpectralNormalization": "After training it changes nothing: put the wrapped layer in its place, with its weights.",
    "RMSNormalization": "Keras 2 has no such layer: use LayerNormalization, or keras.ops (square, mean, rsqrt).",
    "RandomCrop": "Crop the samples before they reach the model.",
    "GroupQueryAttention": "Use MultiHeadAttention.",
}

# Arguments that only Keras 3 has. In IGNORED they change no output; the others may only have the value given here.
IGNORED = frozenset(
    {"seed", "use_cudnn", "flash_attention", "autocast", "weights", "lora_alpha", "fill_mode", "fill_value"}
)
ONLY: dict[str, Any] = {
    "lora_rank": None,
    "quantization_config": None,
    "gptq_unpacked_column_size": None,
    "pad_to_aspect_ratio": False,
    "antialias": False,
    "sliding_window": None,
    "use_gate": False,
    "data_format": "channels_last",
    "rms_scaling": False,
    "renorm": False,
}

# Activation of Keras 3 -> name in tf_keras, or what makes the layer that computes it, given a layer name.
PLAIN = "linear relu relu6 leaky_relu elu selu gelu sigmoid tanh softmax log_softmax softplus softsign exponential mish"
ACTIVATIONS: dict[str, str | Callable[[str], Layer]] = {
    **{name: name for name in PLAIN.split()},
    "silu": "swish",
    "celu": "elu",  # the same for alpha = 1, which an activation given by name has
    "hard_sigmoid": lambda name: layers.HardSigmoid(name=name),
    "hard_silu": lambda name: layers.HardSwish(name=name),
    "hard_tanh": lambda name: layers.Operation("clip_by_value", [X, -1.0, 1.0], name=name),
    "log_sigmoid": lambda name: layers.Operation("math.log_sigmoid", [X], name=name),
    "gelu_approximate": lambda name: layers.Operation("nn.gelu", [X, True], name=name),
}
# The same where no layer can follow: inside recurrent and wrapped layers.
FUNCTIONS: dict[str, Callable[[Any], Any]] = {"hard_sigmoid": layers.hard_sigmoid, "hard_silu": layers.hard_swish}


def translated(layer: Layer, name: str) -> list[Layer]:
    """The tf_keras layers to call one after the other for a Keras 3 layer; the first takes its weights.

    Args:
        layer: a built Keras 3 layer.
        name: the name for the first; one that follows is called ``name_activation``.

    Returns:
        One layer; two where an activation needs a layer of its own; none for what does nothing at inference.

    Raises:
        ModelError: tf_keras cannot express it.
    """
    row = row_of(layer)
    if row is None:
        return []
    if not row.arguments and getattr(layer, "activation", None) is not None:
        given = layer.activation
        if isinstance(given, _layer_class(layer)):  # Dense(activation=LeakyReLU())
            return [*_made(layer, name, row, activation="linear"), *translated(given, f"{name}_activation")]
        to = ACTIVATIONS[activation_named(given, layer)]
        if callable(to):
            alone = type(layer).__name__ == "Activation"
            return [to(name)] if alone else [*_made(layer, name, row, activation="linear"), to(f"{name}_activation")]
        return _made(layer, name, row, activation=to)
    return _made(layer, name, row)


def single(layer: Layer) -> Layer:
    """The one tf_keras layer for a Keras 3 layer that another wraps."""
    row = row_of(layer)
    if row is None:
        return keras.layers.Identity(name=layer.name)
    if not row.arguments and getattr(layer, "activation", None) is not None:
        return _made(layer, layer.name, row, activation=_function(layer.activation, layer))[0]
    return _made(layer, layer.name, row)[0]


def row_of(layer: Layer) -> Row | None:
    """The layer's line of the table; None where it does nothing at inference.

    Raises:
        ModelError: it has none, or is quantized.
    """
    kind = type(layer).__name__
    own = not type(layer).__module__.startswith("keras.src.")
    if own or (kind not in LAYERS and kind not in LEFT_OUT):
        hint = "" if own else WAYS_OUT.get(kind, "")
        hint = hint or "Build that part from the layers of keras.layers that Keras 2 has too, and save the model again."
        what = f"a class of your own ({type(layer).__module__})" if own else "a layer that tf_keras lacks"
        raise ModelError(f"The layer '{layer.name}' is a {kind}, {what}: the model cannot be taken over. {hint}")
    if getattr(layer, "quantization_mode", None) is not None:
        raise ModelError(
            f"The layer '{layer.name}' ({kind}) was quantized by Keras ({layer.quantization_mode}). Give the float model: "
            "it is quantized here."
        )
    return None if kind in LEFT_OUT else LAYERS[kind]


def activation_named(given: Any, layer: Layer) -> str:
    """The key in ``ACTIVATIONS`` of an activation function of Keras 3.

    Raises:
        ModelError: it is a function of the user's own, or one that tf_keras lacks.
    """
    name, module = getattr(given, "__name__", repr(given)), str(getattr(given, "__module__", ""))
    if name == "gelu" and module.startswith("keras.src.ops"):
        name = "gelu_approximate"  # the default of keras.ops.gelu, not of keras.activations.gelu
    if not module.startswith("keras.src.") or name not in ACTIVATIONS:
        raise ModelError(
            f"The layer '{layer.name}' ({type(layer).__name__}) has the activation '{name}' ({module}), which tf_keras lacks. "
            f"Use one of: {', '.join(sorted(set(ACTIVATIONS) - {'gelu_approximate'}))}."
        )
    return name


def _function(given: Any, layer: Layer) -> Any:
    """The activation as tf_keras takes it inside a layer: a name or a registered function."""
    name = activation_named(given, layer)
    to = FUNCTIONS.get(name, ACTIVATIONS[name])
    if isinstance(to, str) or name in FUNCTIONS:
        return to
    raise ModelError(
        f"The layer '{layer.name}' ({type(layer).__name__}) has the activation '{name}' inside. Use another."
    )


def _layer_class(layer: Layer) -> type:
    """Keras 3's Layer, without importing it here."""
    return next(base for base in type(layer).__mro__ if base.__name__ == "Layer")


def _made(layer: Layer, name: str, row: Row, **arguments: Any) -> list[Layer]:
    to = row.to or type(layer).__name__
    made = getattr(keras.layers, to) if isinstance(to, str) else to
    config = {row.renamed.get(key, key): value for key, value in layer.get_config().items()}
    given = {**arguments, **(row.arguments(layer) if row.arguments else {})}
    config = {key: value for key, value in config.items() if key not in ("dtype", *given)}
    config = {key: _plain(value, key, layer) for key, value in config.items()}
    config = _without(config, _accepted(made), layer) | given | {"name": name}
    return [made(**config)]


def _without(config: dict[str, Any], accepted: frozenset[str], layer: Layer) -> dict[str, Any]:
    """The configuration without what tf_keras does not know, as long as that changes no output.

    Raises:
        ModelError: an argument has a value that tf_keras cannot express.
    """
    if config.get("data_format") == "channels_first":
        raise _argument(layer, "data_format", "channels_first", "Build the model with channels_last.")
    for key in set(config) - accepted - IGNORED:
        if key not in ONLY or config[key] != ONLY[key]:
            raise _argument(layer, key, config[key], "Leave it at its default.")
    return {key: value for key, value in config.items() if key in accepted}


def _argument(layer: Layer, name: str, value: Any, hint: str) -> ModelError:
    return ModelError(
        f"The layer '{layer.name}' ({type(layer).__name__}) has {name}={value!r}, which tf_keras cannot do. {hint}"
    )


@functools.cache
def _accepted(made: type) -> frozenset[str]:
    """The arguments that a tf_keras layer takes."""
    found = {"name", "trainable", "activity_regularizer"}
    for base in made.__mro__:
        if "__init__" in vars(base) and base.__module__ != "tf_keras.src.engine.base_layer":
            found |= set(inspect.signature(base.__init__).parameters)  # type: ignore[misc]
    if issubclass(made, keras.layers.RNN):
        found.add("zero_output_for_mask")
    return frozenset(found - {"self", "args", "kwargs"})


def _plain(value: Any, key: str, layer: Layer) -> Any:
    """A value of a Keras 3 configuration as tf_keras writes it: initializers, regularizers and constraints by class name."""
    if not isinstance(value, dict) or "class_name" not in value:
        return value
    kind, home = value["class_name"], key.rpartition("_")[2] + "s"
    if key.endswith("_initializer") or home == "initializers":
        # The weights are carried, so an initializer that tf_keras lacks is none to miss.
        known = getattr(keras.initializers, kind, None)
        return {"class_name": kind, "config": _seeded(value["config"], known)} if known else "zeros"
    if home in ("regularizers", "constraints") and hasattr(getattr(keras, home), kind):
        return {"class_name": kind, "config": value["config"]}
    raise _argument(layer, key, kind, "Leave it out, or use one of Keras' own.")


def _seeded(config: dict[str, Any], known: type) -> dict[str, Any]:
    """An initializer's configuration; a seed generator of Keras 3 becomes no seed."""
    accepted = inspect.signature(known.__init__).parameters  # type: ignore[misc]
    plain = {key: None if key == "seed" and isinstance(value, dict) else value for key, value in config.items()}
    return {key: value for key, value in plain.items() if key in accepted}
