"""The way back: a tf_keras model written as a Keras 3 ``.keras`` file, with the same layer names and outputs."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import random
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import files
from edgeprune.errors import EdgepruneError, ModelError
from edgeprune.keras import graph, keras, keras3, keras3_layers, keras3_proof, layers, tf

Layer = Any
Model = Any
Tensor = Any

# Activation of tf_keras -> of Keras 3, where the names differ.
ACTIVATIONS = {
    "swish": "silu",
    "hard_swish": "hard_silu",
    "edgeprune>hard_sigmoid": "hard_sigmoid",
    "edgeprune>hard_swish": "hard_silu",
}

# TensorFlow's functions, without what they are a part of, that keras.ops has with the same arguments ...
SAME = """
    add subtract multiply maximum minimum matmul einsum equal not_equal greater greater_equal less less_equal logical_and
    logical_or logical_xor logical_not where negative abs sign square sqrt rsqrt reciprocal exp expm1 log log1p sin cos tan
    sinh cosh erf floor ceil stop_gradient zeros_like ones_like relu relu6 sigmoid tanh silu selu elu softplus softsign gelu
    leaky_relu softmax log_softmax log_sigmoid cumsum stack unstack reshape transpose expand_dims squeeze broadcast_to repeat
    tile roll depth_to_space space_to_depth cast one_hot
"""
# ... and those that it has under another name.
RENAMED = {
    **{"sub": "subtract", "mul": "multiply", "neg": "negative", "pow": "power", "atan": "arctan", "swish": "silu"},
    **{"truediv": "true_divide", "div": "true_divide", "divide": "true_divide"},
    **{"floordiv": "floor_divide", "floormod": "mod"},
    **{f"reduce_{name}": name for name in ("mean", "sum", "prod", "std", "max", "min", "all", "any", "logsumexp")},
    **{
        "reduce_variance": "var",
        "identity": "copy",
        "clip_by_value": "clip",
        "concat": "concatenate",
        "gather": "take",
    },
    **{"reverse": "flip"},
}
FUNCTIONS = {**{name: name for name in SAME.split()}, **RENAMED}
KEYWORDS = {"perm": "axes", "multiples": "repeats", "depth": "num_classes"}


def save(model: Model, path: Path) -> Path:
    """Write a float tf_keras model as a Keras 3 ``.keras`` file.

    Args:
        model: functional or built Sequential; it is not changed.
        path: the file, ending in ``.keras``.

    Returns:
        ``path``. What Keras 3 loads from it has the same layer names, and outputs equal to within 1e-5 of their range. The
        same model gives the same bytes.

    Raises:
        ModelError: a layer that Keras 3 lacks, or other outputs than those of ``model``; the message names the layer.
    """
    try:
        with _same_seeds():
            written = convert(model)
    except EdgepruneError:
        raise
    except Exception as error:  # Keras 3 as a whole, where its layers one by one did not mind
        raise ModelError(
            f"The model '{model.name}' cannot be written for Keras 3: {keras3.first_line(error)} Save it in the format of tf_keras instead."
        ) from error
    with keras3.silent(), files.writing(path), tempfile.TemporaryDirectory(prefix="edgeprune-") as place:
        saved = Path(place) / path.name
        written.save(saved)
        files.write_bytes_atomic(path, _steady(saved))
    return path


@contextlib.contextmanager
def _same_seeds() -> Iterator[None]:
    """Dropout layers draw seeds, which are saved with the weights, from Python's generator."""
    before = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(before)


def _steady(path: Path) -> bytes:
    """A ``.keras`` file without what differs from process to process: dates, and numbers that are places in memory."""
    made = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(made, "w") as copy:
        for name in sorted(archive.namelist()):
            content = archive.read(name)
            if name.endswith(".json"):
                content = json.dumps(_renumbered(json.loads(content), {})).encode()
            copy.writestr(zipfile.ZipInfo(name), content)  # of 1980, as zip has it where nothing is said
    return made.getvalue()


def _renumbered(value: Any, numbers: dict[int, int]) -> Any:
    """JSON without its date, its shared objects numbered in the order in which they are met."""
    if isinstance(value, list):
        return [_renumbered(item, numbers) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _renumbered(item, numbers) for key, item in value.items() if key != "date_saved"}
    if "shared_object_id" in kept:
        kept["shared_object_id"] = numbers.setdefault(kept["shared_object_id"], len(numbers) + 1)
    return kept


def convert(model: Model) -> Any:
    """A Keras 3 model with the layer names, weights and outputs of a tf_keras model.

    Raises:
        ModelError: as for ``save``.
    """
    package = keras3.keras3()
    model = graph.rebuild(model)
    with keras3.silent():
        made: dict[str, Tensor] = {}
        fresh: dict[int, tuple[Layer, Layer]] = {}
        inputs = []
        for tensor, layer in zip(model.inputs, model._input_layers, strict=True):
            inputs.append(package.Input(batch_shape=tuple(tensor.shape), dtype=tensor.dtype.name, name=layer.name))
            made[str(id(tensor))] = inputs[-1]
        names: list[tuple[str, str, list[Tensor], list[Tensor]]] = []
        for node in graph.nodes(model):
            outputs = package.tree.flatten(_written(node, made, fresh))
            made.update(zip((str(key) for key in node.flat_output_ids), outputs, strict=True))
            given = tf.nest.flatten(node.outputs)
            names.append((node.layer.name, type(node.layer).__name__, given, outputs))
        outputs = [made[str(id(tensor))] for tensor in model.outputs]
        result = package.Model(inputs, outputs if len(outputs) > 1 else outputs[0], name=model.name)
        _carry_weights(fresh)
        _prove(model, result, names)
    return result


def _written(node: Any, made: dict[str, Tensor], fresh: dict[int, tuple[Layer, Layer]]) -> Any:
    """The outputs in Keras 3 of one call in the tf_keras graph."""
    layer = node.layer
    mapped = tf.nest.map_structure(lambda value: made.get(str(id(value)), value), (node.call_args, node.call_kwargs))
    args, kwargs = mapped
    try:
        if isinstance(layer, layers.Operation):
            return _operation(layer, args[0])
        if type(layer).__name__ == "Activation" and _activation(layer.activation) == "hard_sigmoid of Keras 2":
            ops = keras3.keras3().ops
            return _named(ops.clip(args[0] * 0.2 + 0.5, 0.0, 1.0), layer.name)
        if id(layer) not in fresh:  # once, so that shared layers stay shared
            fresh[id(layer)] = (layer, _layer(layer))
        return _called(layer, fresh[id(layer)][1], args, kwargs)
    except EdgepruneError:
        raise
    except Exception as error:  # whatever Keras 3 thinks of what it was given
        raise ModelError(
            f"The layer '{layer.name}' ({type(layer).__name__}) cannot be written for Keras 3: {keras3.first_line(error)} Save the model "
            "in the format of tf_keras instead."
        ) from error


def _called(layer: Layer, written: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    parameters = list(inspect.signature(layer.call).parameters)
    named = dict(zip(parameters[1:], args[1:], strict=False)) | kwargs
    named = {name: value for name, value in named.items() if value is not None and name != "training"}
    value = args[0]
    if isinstance(layer, (keras.layers.RNN, keras.layers.Bidirectional)) and isinstance(value, (list, tuple)):
        value, *state = value  # tf_keras puts the initial state beside the input
        named["initial_state"] = state
    return written(value, **named)


def _layer(layer: Layer) -> Layer:
    """The Keras 3 layer for a tf_keras layer.

    Raises:
        ModelError: there is none.
    """
    package = keras3.keras3()
    kind, name = type(layer).__name__, layer.name
    if isinstance(layer, layers.HardSigmoid):
        return package.layers.Activation("hard_sigmoid", name=name)
    if isinstance(layer, layers.HardSwish):
        return package.layers.Activation("hard_silu", name=name)
    if kind in ("LayerScale", "StochasticDepth"):
        from keras.src.applications import convnext

        made = getattr(convnext, kind)
    else:
        made = getattr(package.layers, kind, None)
    if made is None or kind not in keras3_layers.LAYERS:
        raise ModelError(
            f"The layer '{name}' is a {kind}, which Keras 3 lacks. Save the model in the format of tf_keras instead."
        )
    special = SPECIAL.get(kind)
    row = keras3_layers.LAYERS[kind]
    config = {key: value for key, value in layer.get_config().items() if key not in ("dtype", "batch_input_shape")}
    back = {value: key for key, value in row.renamed.items()}
    config = {back.get(key, key): value for key, value in config.items()} if kind != "Dropout" else config
    config = {key: _plain(key, value, layer) for key, value in config.items()} | (special(layer) if special else {})
    accepted = _accepted(made)
    return made(**{key: value for key, value in config.items() if key in accepted and value is not _DEFAULT})


_DEFAULT = object()


def _plain(key: str, value: Any, layer: Layer) -> Any:
    if key.endswith("activation"):
        return _activation(getattr(layer, key), layer)
    if key.endswith(("_regularizer", "_constraint")) and value is not None:
        home = getattr(keras3.keras3(), key.rpartition("_")[2] + "s")
        kind = value["class_name"] if isinstance(value, dict) else value
        return (
            getattr(home, kind)(**value["config"])
            if hasattr(home, kind) and isinstance(value, dict)
            else home.get(value)
        )
    return _DEFAULT if key.endswith("initializer") else value


def _activation(given: Any, layer: Layer | None = None) -> Any:
    """An activation of tf_keras in the words of Keras 3.

    Raises:
        ModelError: Keras 3 lacks it.
    """
    if given is None:
        return None
    written = keras.activations.serialize(given)
    name = written if isinstance(written, str) else str(written.get("config"))
    if name == "hard_sigmoid":
        if layer is None:
            return "hard_sigmoid of Keras 2"
        raise ModelError(
            f"The layer '{layer.name}' ({type(layer).__name__}) has the hard_sigmoid of Keras 2 inside, which Keras 3 computes otherwise. "
            "Make it an Activation layer of its own."
        )
    return ACTIVATIONS.get(name, name)


def _normalization(layer: Layer) -> dict[str, Any]:
    """Mean and variance as numbers, of the shape of the normalized axes."""
    given = layer.input_mean is not None
    arrays = (layer.input_mean, layer.input_variance) if given else (layer.adapt_mean, layer.adapt_variance)
    return dict(zip(("mean", "variance"), (np.asarray(array).tolist() for array in arrays), strict=True))


def _bidirectional(layer: Layer) -> dict[str, Any]:
    return {"layer": _layer(layer.forward_layer), "backward_layer": _layer(layer.backward_layer)}


SPECIAL: dict[str, Callable[[Layer], dict[str, Any]]] = {
    "Normalization": _normalization,
    "BatchNormalization": lambda layer: {"axis": int(layer.axis[0])},
    "TimeDistributed": lambda layer: {"layer": _layer(layer.layer)},
    "Bidirectional": _bidirectional,
}


def _accepted(made: type) -> frozenset[str]:
    found = {"name", "trainable", "activity_regularizer"}
    for base in made.__mro__:
        if "__init__" in vars(base) and base.__name__ not in ("Layer", "Operation", "object"):
            found |= set(inspect.signature(vars(base)["__init__"]).parameters)
    if made.__name__.startswith("SpatialDropout"):  # takes fewer than the Dropout that it is
        return frozenset({"rate", "seed", "name"})
    return frozenset(found - {"self", "args", "kwargs"})


def _operation(layer: Any, given: Any) -> Any:
    """The output of the function of keras.ops that does what a ``layers.Operation`` does.

    Raises:
        ModelError: there is none.
    """
    tensors = list(given) if isinstance(given, (list, tuple)) else [given]
    config = layer.get_config()
    args = [_value(layers.decoded(argument, tensors)) for argument in config["arguments"]]
    kwargs = {name: _value(layers.decoded(value, tensors)) for name, value in config["keywords"].items()}
    ops, word = keras3.keras3().ops, layer.function.rpartition(".")[2]
    if word in DIFFERENT:
        return _named(DIFFERENT[word](ops, args, kwargs), layer.name)
    if word not in FUNCTIONS:
        raise ModelError(
            f"The layer '{layer.name}' calls TensorFlow's {layer.function}, for which keras.ops has nothing. Save the model in the "
            "format of tf_keras instead."
        )
    kwargs = {KEYWORDS.get(name, name): value for name, value in kwargs.items()}
    return _named(getattr(ops, FUNCTIONS[word])(*args, **kwargs), layer.name)


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return [_value(item) for item in value]
    if isinstance(value, tf.DType):
        return value.name
    return value.numpy() if isinstance(value, tf.Tensor) else value


def _named(outputs: Any, name: str) -> Any:
    """The outputs of an operation of keras.ops, which gives itself a name otherwise."""
    keras3.keras3().tree.flatten(outputs)[0]._keras_history.operation.name = name
    return outputs


def _split(ops: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    value, parts, axis = [*args, *kwargs.values()]
    return ops.split(value, parts if isinstance(parts, int) else np.cumsum(parts)[:-1].tolist(), axis)


def _pad(ops: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    value, widths, mode = [*args, "CONSTANT"][:3]
    constant = {"constant_values": kwargs.get("constant_values", 0)} if mode == "CONSTANT" else {}
    return ops.pad(value, np.asarray(widths).tolist(), mode.lower(), **constant)


def _getitem(ops: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return args[0][tuple(args[1]) if isinstance(args[1], list) else args[1]]


def _place(function: str) -> Callable[..., Any]:
    return lambda ops, args, kwargs: getattr(ops, function)(args[0], axis=kwargs.get("axis", 0))


DIFFERENT: dict[str, Callable[[Any, list[Any], dict[str, Any]], Any]] = {
    "split": _split,
    "pad": _pad,
    "getitem": _getitem,
    "argmax": _place("argmax"),
    "argmin": _place("argmin"),
}


def _carry_weights(fresh: dict[int, tuple[Layer, Layer]]) -> None:
    for layer, written in fresh.values():
        if type(layer).__name__ == "Normalization":
            continue
        weights, wanted = layer.get_weights(), [tuple(weight.shape) for weight in written.weights]
        if [weight.shape for weight in weights] != wanted:
            raise ModelError(
                f"The weights of the layer '{layer.name}' ({type(layer).__name__}) have the shapes {[weight.shape for weight in weights]}, "
                f"where Keras 3 has {wanted}. Save the model in the format of tf_keras instead."
            )
        if weights:
            written.set_weights(weights)


def _prove(model: Model, result: Any, names: list[tuple[str, str, list[Tensor], list[Tensor]]]) -> None:
    """Compare the outputs of both.

    Raises:
        ModelError: they differ; the message names the first layer that does.
    """
    inputs = keras3_proof.inputs(result)
    same = keras3.agree(keras3_proof.run(result, inputs), lambda: keras3_proof.run(model, inputs), model)
    sample = keras3_proof.one_sample(inputs, result)
    tensors = [tensors for _, _, tensors, _ in names]
    flat = [tensor for *_, tensors in names for tensor in tensors]
    inner = keras3.keras3().Model(result.inputs, flat) if flat else None
    values = iter(keras3_proof.run(inner, [sample])[0] if inner else [])
    given = [[next(values) for _ in tensors] for *_, tensors in names]
    limit = keras3_proof.INSIDE if same else keras3_proof.TOLERANCE
    place = keras3.first_apart(given, lambda: keras3.layer_outputs(model, tensors, sample), model, limit)
    if place is not None or not same:
        name, kind = names[place][:2] if place is not None else (model.output_names[0], "output")
        raise ModelError(
            f"The layer '{name}' ({kind}) gives other outputs in Keras 3 (by more than 1e-5 of their range). Save the model in the "
            "format of tf_keras instead."
        )
