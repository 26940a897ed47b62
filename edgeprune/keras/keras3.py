"""Keras 3 models: load one, and write it anew as one flat functional tf_keras model that gives the same outputs.

The graph is replayed node by node: every layer and operation is looked up in the table (``keras3_layers``,
``keras3_operations``), nested models are written into the outer one, the weights are carried over, and the outputs of
both models are compared before anything is returned.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgeprune.errors import EdgepruneError, MissingDependency, ModelError
from edgeprune.keras import keras, keras3_layers, keras3_operations, keras3_proof, rounding, tf

Model = Any
Operation = Any
Tensor = Any


@functools.cache
def keras3() -> Any:
    """The package Keras 3, on TensorFlow.

    Raises:
        ModelError: this process runs Keras 3 with another backend.
        MissingDependency: it is not installed.
    """
    loaded = "keras" in sys.modules
    before = os.environ.get("KERAS_BACKEND")
    if not loaded:
        os.environ["KERAS_BACKEND"] = "tensorflow"
        # TensorFlow tries to import Keras 3 too; where that failed for want of another backend, pieces of it stay behind.
        for name in [name for name in sys.modules if name.startswith("keras.")]:
            del sys.modules[name]
    try:
        with silent():
            import keras as package
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"Taking a Keras 3 model needs the Python package '{error.name}', which is not installed. Install Keras 3: "
            'pip install "keras>=3"'
        ) from error
    finally:
        if not loaded and before is not None:
            os.environ["KERAS_BACKEND"] = before
    if not package.__version__.startswith("3."):
        raise MissingDependency(
            f'Taking a Keras 3 model needs Keras 3; Keras {package.__version__} is installed: pip install "keras>=3"'
        )
    if package.backend.backend() != "tensorflow":
        raise ModelError(
            f"This process runs Keras 3 on {package.backend.backend()}; the conversion needs it on TensorFlow. Save the model "
            "(model.save('model.keras')) and give that file to edgeprune in a process of its own: edgeprune build model.keras ..."
        )
    return package


def is_model(obj: Any) -> bool:
    """Whether an object is a model of Keras 3 (of any backend). Keras 3 is not imported for it."""
    package = sys.modules.get("keras")
    model = getattr(package, "Model", None)
    return isinstance(model, type) and not issubclass(keras.Model, model) and isinstance(obj, model)


def load(path: Path, trust: bool = False) -> Model:
    """The Keras 3 model in a ``.keras`` or ``.h5`` file, uncompiled.

    Args:
        path: the file; its configuration has been checked.
        trust: let Keras run what the file asks for.

    Raises:
        ModelError: it cannot be loaded.
    """
    package = keras3()
    try:
        with silent():
            return package.saving.load_model(path, compile=False, safe_mode=not trust)
    except EdgepruneError:
        raise
    except Exception as error:  # Keras raises whatever it met inside: KeyError, OSError, TypeError, ValueError ...
        raise ModelError(
            f"{path} was saved by Keras 3 but cannot be loaded by Keras {package.__version__}: {first_line(error)} If it uses layers of "
            "your own, rebuild it from the layers of keras.layers; if it was saved by a newer Keras, update Keras."
        ) from error


def convert(model: Model) -> Any:
    """A Keras 3 model as one flat functional tf_keras model: same layer names, weights and outputs.

    A layer inside a nested model keeps its name where no other layer has it, else it is called ``outer_inner``. All
    floating-point numbers become float32. Random augmentation layers are left out (``left_out`` names them).

    Args:
        model: functional or built Sequential, nested or not; it is not changed.

    Returns:
        An uncompiled model whose outputs are equal to within 1e-5 of the output range on seeded inputs; a model whose
        outputs are a dictionary gives them as a list, in the order of ``model.outputs``.

    Raises:
        ModelError: it cannot be taken over; the message names the layer.
    """
    keras3()
    with silent():
        source = _in_float32(model)
        writer = _Writer(source)
        inputs = [_input(tensor) for tensor in graph_of(source).inputs]
        outputs = replay(source, inputs, writer)
        result = keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0], name=model.name)
        writer.carry_weights()
        _prove(source, result, writer)
    return result


def left_out(model: Model) -> tuple[str, ...]:
    """The names of the layers that ``convert`` leaves out: random augmentation, which does nothing at inference."""
    return tuple(
        operation.name for _, operation in operations(model) if type(operation).__name__ in keras3_layers.LEFT_OUT
    )


def graph_of(model: Model) -> Any:
    """The functional graph of a model.

    Raises:
        ModelError: the model is subclassed, or a Sequential that was never built.
    """
    if hasattr(model, "_nodes_by_depth"):
        return model
    if type(model).__name__ != "Sequential" and not hasattr(model, "_functional"):
        raise ModelError(
            f"The model '{model.name}' is a subclass of keras.Model: its layers cannot be seen from outside. Rebuild it with the "
            "functional API: inputs = keras.Input(shape); outputs = your_model.call(inputs); keras.Model(inputs, outputs)."
        )
    if model._functional is None:
        raise ModelError(
            f"The Sequential model '{model.name}' has no input shape. Make keras.Input(shape) its first layer, or call "
            "model.build((None, ...)), and save it again."
        )
    return model._functional


def operations(model: Model, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Operation]]:
    """Every layer and operation of a model and of those nested in it, with the names of the models around it."""
    for operation in graph_of(model)._operations:
        if _is_nested(operation):
            yield from operations(operation, (*path, operation.name))
        elif type(operation).__name__ != "InputLayer":
            yield path, operation


class Visitor(Protocol):
    """What a replay does at each node."""

    def call(self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The outputs of a layer or operation."""

    def cast(self, value: Any, dtype: str) -> Any:
        """A value in the element type that a nested model's input has."""


def replay(model: Model, inputs: list[Any], visitor: Visitor) -> list[Any]:
    """Walk a Keras 3 model's graph, and those nested in it, in topological order.

    Args:
        model: the model.
        inputs: a value of any kind for each of its inputs.
        visitor: turns values into values.

    Returns:
        The values of its outputs.
    """
    graph = graph_of(model)
    made = {id(tensor): visitor.cast(value, tensor.dtype) for tensor, value in zip(graph.inputs, inputs, strict=True)}
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            if node.is_input:
                continue
            args, kwargs = node.arguments.fill_in(made)
            kwargs.pop("training", None)  # Keras 3 notes its default here; the call of the model decides
            if _is_nested(node.operation):
                outputs = replay(node.operation, _flat(node.operation, args[0]), visitor)
            else:
                outputs = visitor.call(node.operation, args, kwargs)
                outputs = keras3().tree.flatten(outputs)
            made.update({id(tensor): value for tensor, value in zip(node.outputs, outputs, strict=False)})
    return [made[id(tensor)] for tensor in graph.outputs]


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep what Keras prints and warns of off the user's terminal."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


class _Writer:
    """Writes each visited layer and operation as tf_keras layers."""

    def __init__(self, model: Model) -> None:
        self.names = _names(model)
        self.used = {*self.names.values(), *(_input_name(tensor) for tensor in graph_of(model).inputs)}
        self.taken: set[int] = set()
        self.layers: dict[int, tuple[Operation, list[Any]]] = {}
        self.written: list[tuple[Operation, str, list[Tensor]]] = []

    def call(self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = self.names[id(operation)]
        try:
            is_layer = isinstance(operation, keras3().layers.Layer)
            outputs = (self._layer if is_layer else self._operation)(operation, name, args, kwargs)
        except EdgepruneError:
            raise
        except Exception as error:  # whatever tf_keras or TensorFlow think of what they were given
            raise ModelError(
                f"'{name}' ({type(operation).__name__}) cannot be written in tf_keras: {first_line(error)} Replace it by a simpler "
                "layer of keras.layers, and save the model again."
            ) from error
        self.written.append((operation, name, tf.nest.flatten(outputs)))
        return outputs

    def cast(self, value: Any, dtype: str) -> Any:
        wanted = plain_dtype(dtype)
        if value.dtype.name == wanted:
            return value
        layer = keras3_operations.layers.Operation("cast", [{"tensor": 0}, {"dtype": wanted}], name=self.unique("cast"))
        return layer(value)

    def unique(self, name: str) -> str:
        """A layer name that is still free: this one, or with a number behind."""
        free, number = name, 0
        while free in self.used:
            number += 1
            free = f"{name}_{number}"
        self.used.add(free)
        return free

    def _layer(self, layer: Operation, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        keywords = _keywords(layer, args, kwargs)
        value = args[0] if args else keywords.pop(next(iter(keywords)))
        if id(layer) not in self.layers:  # once, so that shared layers stay shared
            made = keras3_layers.translated(layer, name)
            for second in made[1:]:
                second._name = self.unique(second.name)
            self.layers[id(layer)] = (layer, made)
        for made in self.layers[id(layer)][1]:
            value, keywords = made(value, **keywords), {}
        return value

    def _operation(self, operation: Operation, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        if id(operation) in self.taken:  # inside a model that is called twice
            name = self.unique(name)
        self.taken.add(id(operation))
        result = (
            plain_dtype(keras3().tree.flatten(operation.output)[0].dtype)
            if len(operation._inbound_nodes) == 1
            else "float32"
        )
        return keras3_operations.translated(
            keras3_operations.Applied(operation, args, kwargs, result, name, self.unique)
        )

    def carry_weights(self) -> None:
        """Give every layer the weights of the one it stands for.

        Raises:
            ModelError: their shapes differ.
        """
        for layer, made in self.layers.values():
            row = keras3_layers.row_of(layer)
            if not made or row is None or not row.weights:
                continue
            weights, wanted = layer.get_weights(), [tuple(weight.shape) for weight in made[0].weights]
            if [weight.shape for weight in weights] != wanted:
                raise ModelError(
                    f"The weights of the layer '{layer.name}' ({type(layer).__name__}) have the shapes "
                    f"{[weight.shape for weight in weights]}, where tf_keras has {wanted}. Replace it by another layer."
                )
            if weights:
                made[0].set_weights(weights)


class _Recorder:
    """Runs each visited layer and operation, and keeps its outputs."""

    def __init__(self) -> None:
        self.values: list[list[np.ndarray]] = []

    def call(self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if "training" in inspect.signature(operation.call).parameters:
            kwargs = {**kwargs, "training": False}
        outputs = operation(*args, **kwargs)
        self.values.append([np.asarray(value) for value in keras3().tree.flatten(outputs)])
        return outputs

    def cast(self, value: Any, dtype: str) -> Any:
        return tf.cast(value, dtype)


def _prove(source: Model, result: Any, writer: _Writer) -> None:
    """Compare the outputs of both models, and those of every layer.

    Raises:
        ModelError: they differ; the message names the first layer that does.
    """
    inputs = keras3_proof.inputs(source)
    same = agree(keras3_proof.run(source, inputs), lambda: keras3_proof.run(result, inputs), result)
    sample = keras3_proof.one_sample(inputs, source)
    recorder = _Recorder()
    replay(source, [tf.constant(value) for value in sample], recorder)
    tensors = [tensors for _, _, tensors in writer.written]
    limit = keras3_proof.INSIDE if same else keras3_proof.TOLERANCE
    place = first_apart(recorder.values, lambda: layer_outputs(result, tensors, sample), result, limit)
    if place is not None:
        operation, name, _ = writer.written[place]
        raise _different(name, type(operation).__name__)
    if not same:
        raise _different(result.output_names[0], "output")


def agree(expected: keras3_proof.Values, run: Callable[[], keras3_proof.Values], model: Any) -> bool:
    """Whether a tf_keras model's outputs are those expected, but for rounding; ``run`` computes them."""
    return first_apart(expected, run, model, keras3_proof.TOLERANCE) is None


def first_apart(
    expected: keras3_proof.Values, run: Callable[[], keras3_proof.Values], model: Any, limit: float
) -> int | None:
    """The place of the first group of outputs that is off by more than ``limit`` and by more than rounding explains."""
    found = run()
    place = keras3_proof.first_difference(expected, found, limit)
    if place is None:
        return None
    with rounding.stirred(model):
        moved = run()
    return keras3_proof.first_difference(expected, found, limit, moved)


def layer_outputs(model: Any, tensors: list[list[Tensor]], given: list[np.ndarray]) -> list[list[np.ndarray]]:
    """The values of tensors inside a tf_keras model at inference, grouped as they are given."""
    flat = [tensor for group in tensors for tensor in group]
    if not flat:
        return []
    inner = keras.Model(model.inputs, flat)
    values = iter(np.asarray(value) for value in tf.nest.flatten(inner(given, training=False)))
    return [[next(values) for _ in group] for group in tensors]


def _different(name: str, kind: str) -> ModelError:
    return ModelError(
        f"'{name}' ({kind}) gives other outputs in tf_keras than in Keras 3 (by more than 1e-5 of their range), so the model cannot be "
        "taken over. Replace it by another layer, and save the model again."
    )


def _in_float32(model: Model) -> Model:
    """The model itself; a copy in float32 where it computes in anything else."""
    graph_of(model)
    layers = [operation for _, operation in operations(model) if hasattr(operation, "dtype_policy")]
    inputs = [tensor.dtype for tensor in graph_of(model).inputs]
    if all(layer.compute_dtype in ("float32", None) for layer in layers) and all(plain_dtype(d) == d for d in inputs):
        return model

    def renewed(config: Any) -> Any:
        """The configuration with float32 for every other floating-point type."""
        if isinstance(config, dict):
            if config.get("class_name") == "DTypePolicy":
                return {**config, "config": {"name": plain_dtype(config["config"]["name"])}}
            return {key: renewed(value) for key, value in config.items()}
        if isinstance(config, (list, tuple)):
            return type(config)(renewed(value) for value in config)
        return plain_dtype(config) if isinstance(config, str) else config

    copy = type(model).from_config(renewed(model.get_config()))
    copy.set_weights(model.get_weights())
    return copy


def plain_dtype(name: str) -> str:
    """The element type in the tf_keras model: float32 for every floating-point type and policy."""
    floating = ("float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16")
    return "float32" if name in floating else name


def _is_nested(operation: Operation) -> bool:
    return hasattr(operation, "_nodes_by_depth") or isinstance(operation, keras3().Model)


def _flat(model: Model, given: Any) -> list[Any]:
    """The arguments of a nested model in the order of its inputs."""
    graph = graph_of(model)
    if isinstance(given, dict) and not isinstance(graph._inputs_struct, dict):
        return [given[tensor.name] for tensor in graph.inputs]
    return list(keras3().tree.flatten(given))


def _names(model: Model) -> dict[int, str]:
    """id of a layer or operation -> its name in the flat model."""
    found: dict[int, tuple[tuple[str, ...], str]] = {}
    for path, operation in operations(model):
        found.setdefault(id(operation), (path, operation.name))
    wanted = [_input_name(tensor) for tensor in graph_of(model).inputs] + [name for _, name in found.values()]
    names, used = {}, {name for path, name in found.values() if not path or wanted.count(name) == 1}
    used.update(_input_name(tensor) for tensor in graph_of(model).inputs)
    for key, (path, name) in found.items():
        if not path or wanted.count(name) == 1:
            names[key] = name
            continue
        full, number = "_".join((*path, name)), 0
        while full in used:
            number += 1
            full = f"{'_'.join((*path, name))}_{number}"
        used.add(full)
        names[key] = full
    return names


def _input_name(tensor: Tensor) -> str:
    return str(tensor._keras_history.operation.name)


def _input(tensor: Tensor) -> Any:
    if getattr(tensor, "sparse", False):
        raise ModelError(f"The input '{tensor.name}' is sparse. Build the model with a dense input.")
    return keras.Input(batch_shape=tensor.shape, dtype=plain_dtype(tensor.dtype), name=_input_name(tensor))


def _keywords(layer: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a layer's call beyond the first, by name: their order differs between the two."""
    if len(args) < 2 and not kwargs:
        return {}
    parameters = list(inspect.signature(layer.call).parameters)
    named = dict(zip(parameters[1:], args[1:], strict=False)) | kwargs
    return {name: value for name, value in named.items() if value is not None}


def first_line(error: BaseException) -> str:
    text = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = [line for line in text if not line.startswith("Exception encountered when calling layer")]
    line = text[0] if text else type(error).__name__
    return line if line.endswith((".", "!", "?")) else line + "."
