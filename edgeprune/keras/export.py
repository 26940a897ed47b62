"""A Keras model -> a SavedModel folder that needs no Keras any more: what is converted, evaluated and compared.

::

    FOLDER/saved_model.pb, variables/    signature ``one``     batch 1, static shapes: what the converter reads
                                         signature ``many``    any batch: evaluation and parity
                                         signature ``layers``  any batch: what every layer gives, ``layer_0`` ...
    FOLDER/layers.json                   the inputs' and outputs' order and types, and what ``layer_0`` ... are

The converter copies names of the graph into the .tflite file, so equal weights must be traced under equal names. The
layers that TFMOT makes are named by a counter of the process; while the model is traced they count within the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeprune import files
from edgeprune.errors import ModelError, RunFolderError
from edgeprune.inference import words
from edgeprune.keras import graph, keras, tf

LAYERS_FILE = "layers.json"
_COUNTED_CLASSES = ("QuantizeLayer",)  # named by TFMOT, not by the user


class Layer(NamedTuple):
    """What one call of one layer gives.

    Attributes:
        name: the layer's name, with TFMOT's ``quant_`` where it is wrapped.
        kind: its class; of a wrapped layer the class inside.
    """

    name: str
    kind: str


def save(model: Any, folder: Path) -> Path:
    """Write a functional or built Sequential model, float or with TFMOT's fake quantizers, for inference.

    Args:
        model: a tf_keras model with any number of inputs and outputs; it is not changed.
        folder: appears when everything is written; an older one is replaced.

    Returns:
        The folder.

    Raises:
        ModelError: the model is not functional or not built, or an input has an axis of unknown length.
        RunFolderError: the folder cannot be written.
    """
    model = graph.functional(model)
    _check_static(model)
    inputs, outputs = words(model.input_names), words(model.output_names)
    calls = _calls(model)
    given = [tensor for _, tensor in calls]
    with _counted_within(model):
        signatures = {
            "one": _traced(model, inputs, outputs, batch=1),
            "many": _traced(model, inputs, outputs, batch=None),
            "layers": _traced(keras.Model(model.inputs, given), inputs, _numbered(len(given)), batch=None),
        }
    holder = tf.Module()  # not the model itself: that would trace every layer once more, for Keras to load it again
    holder.used = _variables(signatures.values())
    facts = {
        "inputs": inputs,
        "dtypes": [tensor.dtype.name for tensor in model.inputs],
        "outputs": outputs,
        "layers": [layer._asdict() for layer, _ in calls],
    }
    with files.temporary_folder(folder) as unfinished:
        tf.saved_model.save(holder, str(unfinished), signatures=signatures)
        files.write_text_atomic(unfinished / LAYERS_FILE, json.dumps(facts, indent=1))
    return folder


class Exported:
    """A model that `save` wrote, to be evaluated on batches of any size.

    Attributes:
        input_names, output_names: Keras' names as words, in the model's order; a .tflite file has its own order.
        layers: what `layer_outputs` gives, in topological order.
    """

    def __init__(self, folder: Path) -> None:
        """Load it.

        Raises:
            RunFolderError: the folder is not one of `save`'s, or it is damaged.
        """
        try:
            facts = json.loads((folder / LAYERS_FILE).read_text(encoding="utf-8"))
            self.layers = tuple(Layer(**layer) for layer in facts["layers"])
            self.input_names, self.output_names = facts["inputs"], facts["outputs"]
            self._loaded = tf.saved_model.load(str(folder))  # signatures die with what they were loaded with
            self._many, self._layers = (self._loaded.signatures[name] for name in ("many", "layers"))
        except (OSError, ValueError, KeyError, TypeError, tf.errors.OpError) as error:
            raise RunFolderError(
                f"{folder} is no model that edgeprune exported, or it is damaged: {error}. Build again with --force."
            ) from error

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The model's outputs by name, each (n, ...) float32, for one batch of its inputs by name, each (n, ...)."""
        given = self._many(**_tensors(self._many, inputs))
        return {name: given[name].numpy() for name in self.output_names}

    def layer_outputs(self, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """What every layer gives, in the order of ``layers``, for one batch of the model's inputs by name."""
        given = self._layers(**_tensors(self._layers, inputs))
        return tuple(given[name].numpy() for name in _numbered(len(self.layers)))


def _tensors(signature: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The inputs as the signature takes them; whole numbers may come as float32 from data that is preprocessed."""
    specs = signature.structured_input_signature[1]
    return {name: tf.constant(np.asarray(array, specs[name].dtype.as_numpy_dtype)) for name, array in inputs.items()}


def _check_static(model: Any) -> None:
    for tensor, name in zip(model.inputs, model.input_names, strict=True):
        if any(side is None for side in tensor.shape[1:]):
            raise ModelError(
                f"The input '{name}' of '{model.name}' has the shape {tuple(tensor.shape)}. A .tflite file needs "
                "every side but the batch: build the model with a fixed input shape, for example keras.Input((96, "
                "96, 3))."
            )


def _calls(model: Any) -> list[tuple[Layer, Any]]:
    """Every layer with the tensors it gives, in topological order; integers and strings are left out."""
    return [
        (Layer(node.layer.name, type(getattr(node.layer, "layer", node.layer)).__name__), tensor)
        for node in graph.nodes(model)
        for tensor in tf.nest.flatten(node.outputs)
        if tensor.dtype.is_floating
    ]


def _traced(model: Any, inputs: Sequence[str], outputs: Sequence[str], batch: int | None) -> Any:
    """The model's inference as one concrete function from named inputs to named outputs."""

    def infer(*arguments: Any) -> dict[str, Any]:
        given = model(arguments[0] if len(arguments) == 1 else list(arguments), training=False)
        return dict(zip(outputs, tf.nest.flatten(given), strict=True))

    specs = [
        tf.TensorSpec([batch, *tensor.shape[1:]], tensor.dtype, name=name)
        for tensor, name in zip(model.inputs, inputs, strict=True)
    ]
    return tf.function(infer).get_concrete_function(*specs)


def _variables(functions: Iterable[Any]) -> list[Any]:
    """What the functions read, each variable once, in the order of first use."""
    return list({id(variable): variable for function in functions for variable in function.graph.variables}.values())


@contextmanager
def _counted_within(model: Any) -> Iterator[None]:
    """Name the layers that TFMOT made by their place in the model; their own names come back afterwards."""
    counted = [layer for layer in model.layers if type(layer).__name__ in _COUNTED_CLASSES]
    names = [layer._name for layer in counted]
    for place, layer in enumerate(counted):
        layer._name = f"quantize_layer_{place}"
    try:
        yield
    finally:
        for layer, name in zip(counted, names, strict=True):
            layer._name = name


def _numbered(count: int) -> list[str]:
    return [f"layer_{index}" for index in range(count)]
