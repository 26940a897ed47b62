"""Walk a functional tf_keras model and build it anew, node by node, with fresh layers.

``rebuild`` is the one mechanism behind every copy and rewrite: the user's layers are never part of the new model (TFMOT
wraps the very layer objects it is given, so a pruned "copy" made any other way writes zeros into the original), and
Keras' own ``clone_model`` drops what a call passed as keyword arguments. ``flatten`` puts the layers of models that are
layers themselves into one flat graph, so that nothing downstream has to look inside a layer.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgeprune.errors import ModelError
from edgeprune.keras import keras, tf

Layer = Any
Tensor = Any
Node = Any


class Call(NamedTuple):
    """One call of a layer in the graph that is being rebuilt.

    Attributes:
        layer: the original layer (never to be called).
        args, kwargs: the call's arguments, with tensors of the new graph in place of the old ones.
        node: the original node.
        made: the new graph's tensor for the id of every old one so far.
    """

    layer: Layer
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    node: Node
    made: Mapping[str, Tensor]


# Given a call, the new graph's output for it, or None to call a fresh copy of the layer.
Rewrite = Callable[[Call], Any]


def functional(model: Any) -> Any:
    """The same model as a functional one: a built Sequential is one already, in all but name.

    Raises:
        ModelError: the model is subclassed, or a Sequential that was never built.
    """
    if isinstance(model, keras.Sequential):
        if not model.built or not hasattr(model, "inputs") or model.inputs is None:
            raise ModelError(
                f"The Sequential model '{model.name}' has no input shape. Give its first layer an input_shape, or call "
                "model.build((None, ...))."
            )
        return keras.Model(model.inputs, model.outputs, name=model.name)
    if not getattr(model, "_is_graph_network", False):
        raise ModelError(
            f"The model '{model.name}' is a subclass of keras.Model: its layers cannot be seen from outside. Rebuild it with the "
            "functional API: inputs = keras.Input(shape); outputs = your_model.call(inputs); keras.Model(inputs, outputs)."
        )
    return model


def nodes(model: Any) -> Iterator[Node]:
    """The calls of a functional model in topological order, inputs left out."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if not node.is_input:
                yield node


def consumers(model: Any) -> dict[str, list[Node | None]]:
    """Tensor id -> the nodes that read it; None stands for "a model output"."""
    found: dict[str, list[Node | None]] = {}
    for node in nodes(model):
        for tensor in node.flat_input_ids:
            found.setdefault(str(tensor), []).append(node)
    for tensor in model.outputs:
        found.setdefault(str(id(tensor)), []).append(None)
    return found


def producers(model: Any) -> dict[str, Node]:
    """Tensor id -> the node that makes it."""
    return {str(tensor): node for node in nodes(model) for tensor in node.flat_output_ids}


def calls_of(model: Any) -> dict[str, int]:
    """Layer name -> how often the layer is called; more than once means shared weights."""
    counts: dict[str, int] = {}
    for node in nodes(model):
        counts[node.layer.name] = counts.get(node.layer.name, 0) + 1
    return counts


def names_of(found: Iterable[Node]) -> list[str]:
    """The names of the nodes' layers, each once, in their order."""
    return list(dict.fromkeys(node.layer.name for node in found))


def activation_of(layer: Layer) -> str:
    """The name by which Keras knows a layer's activation; empty for a function or layer of the user's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of what cannot be loaded again, which is not asked here
        word = keras.activations.serialize(layer.activation)
    return word if isinstance(word, str) else ""


def copy_layer(layer: Layer, name: str | None = None) -> Layer:
    """A new layer of the same configuration and name, or of another name; its weights come later, when it is built."""
    config = layer.get_config()
    return layer.__class__.from_config({**config, "name": name} if name else config)


def rebuild(
    model: Any,
    rewrite: Rewrite | None = None,
    copy: Callable[[Layer], Layer] = copy_layer,
    dtypes: Mapping[str, str] | None = None,
    drawn: bool = False,
) -> Any:
    """A new functional model with fresh layers, the same names and the same weights.

    Args:
        model: functional or built Sequential; it is not changed and shares nothing with the result. Models that it
            holds as layers are inlined, as by ``flatten``.
        rewrite: called for every call; returns the output to use instead, or None for the layer's copy.
        copy: makes a layer's copy, once per layer; the copy must take the original's ``get_weights()``.
        dtypes: input name -> another type for it.
        drawn: leave layers that train something as their initializers made them, instead of giving them the weights.

    Returns:
        An uncompiled functional model.

    Raises:
        ModelError: the model, or one that it holds as a layer, is not functional.
    """
    model = flatten(model)
    inputs = _fresh_inputs(model, dtypes)
    made: dict[str, Tensor] = {str(id(old)): new for old, new in zip(model.inputs, inputs, strict=True)}
    fresh: dict[str, tuple[Layer, Layer]] = {}
    for node in nodes(model):
        arguments, keywords = _mapped((node.call_args, node.call_kwargs), made)
        call = Call(node.layer, arguments, keywords, node, made)
        outputs = rewrite(call) if rewrite else None
        if outputs is None:
            if node.layer.name not in fresh:  # once, so that shared layers stay shared
                fresh[node.layer.name] = (node.layer, copy(node.layer))
            outputs = fresh[node.layer.name][1](*call.args, **call.kwargs)
        for tensor_id, tensor in zip(node.flat_output_ids, tf.nest.flatten(outputs), strict=True):
            made[str(tensor_id)] = tensor
    outputs = [made[str(id(tensor))] for tensor in model.outputs]
    result = keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0], name=model.name)
    for old, new in fresh.values():
        if not (drawn and new.trainable_weights):
            new.set_weights(old.get_weights())
    return result


def flatten(model: Any) -> Any:
    """The model without models inside it: their layers are called in the outer graph, at any depth, shared or not.

    An inner layer keeps its name where that is the only one in the whole model, else it becomes ``outer_inner``. Inner
    calls get the ``training`` that the inner model was called with, where they do not say their own.

    Args:
        model: functional or built Sequential; not changed.

    Returns:
        A functional model: a new one that shares nothing with ``model`` where there was something to inline.

    Raises:
        ModelError: the model, or one inside it, is subclassed or was never built.
    """
    model = functional(model)
    if not any(isinstance(layer, keras.Model) for layer in model.layers):
        return model
    inputs = _fresh_inputs(model)
    inlining = _Inlining(_flat_names(model))
    outputs = inlining.outputs(model, inputs, None)
    result = keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0], name=model.name)
    for old, new in inlining.fresh.values():
        new.set_weights(old.get_weights())
    return result


def _fresh_inputs(model: Any, dtypes: Mapping[str, str] | None = None) -> list[Tensor]:
    """New inputs of the same shapes and names, and of the same types but for those in ``dtypes``."""
    return [
        keras.Input(batch_shape=tensor.shape, dtype=(dtypes or {}).get(layer.name, tensor.dtype), name=layer.name)
        for tensor, layer in zip(model.inputs, model._input_layers, strict=True)
    ]


class _Inlining:
    """Replays a model and the models inside it into one graph.

    Attributes:
        fresh: id of an original layer -> the layer and its only copy.
    """

    def __init__(self, names: dict[int, str]) -> None:
        self._names = names
        self.fresh: dict[int, tuple[Layer, Layer]] = {}

    def outputs(self, model: Any, given: Sequence[Tensor], training: Any) -> list[Tensor]:
        """The model's outputs on the new graph's tensors; ``training``: what it was called with, None: nothing."""
        made = {str(id(old)): new for old, new in zip(model.inputs, given, strict=True)}
        for node in nodes(model):
            arguments, keywords = _mapped((node.call_args, node.call_kwargs), made)
            outputs = self._called(node.layer, arguments, keywords, training)
            for tensor_id, tensor in zip(node.flat_output_ids, tf.nest.flatten(outputs), strict=True):
                made[str(tensor_id)] = tensor
        return [made[str(id(tensor))] for tensor in model.outputs]

    def _called(self, layer: Layer, arguments: Any, keywords: dict[str, Any], training: Any) -> Any:
        if isinstance(layer, keras.Model):
            inner = functional(layer)
            own = keywords.get("training", arguments[1] if len(arguments) > 1 else None)
            given = layer._flatten_to_reference_inputs(arguments[0] if arguments else keywords["inputs"])
            return self.outputs(inner, given, training if own is None else own)
        if training is not None and layer._expects_training_arg and keywords.get("training") is None:
            keywords = {**keywords, "training": training}
        if id(layer) not in self.fresh:
            self.fresh[id(layer)] = (layer, copy_layer(layer, self._names[id(layer)]))
        return self.fresh[id(layer)][1](*arguments, **keywords)


def _flat_names(model: Any) -> dict[int, str]:
    """Id of every layer that is no model -> its name in the flat model."""
    paths: dict[int, tuple[str, ...]] = {}
    for layer, path in sorted(_leaves(model, ()), key=lambda leaf: len(leaf[1])):  # a layer's outermost call names it
        paths.setdefault(id(layer), path)
    counts = Counter(path[-1] for path in paths.values())
    taken = {layer.name for layer in model.layers}
    names = {}
    for layer_id, path in paths.items():
        own = len(path) == 1 or (counts[path[-1]] == 1 and path[-1] not in taken)
        names[layer_id] = path[-1] if own else free_name("_".join(path), taken)
        taken.add(names[layer_id])
    return names


def _leaves(model: Any, within: tuple[str, ...]) -> Iterator[tuple[Layer, tuple[str, ...]]]:
    """The called layers that are no models, each with the names of the models around it and its own."""
    for node in nodes(functional(model)):
        if isinstance(node.layer, keras.Model):
            yield from _leaves(node.layer, (*within, node.layer.name))
        else:
            yield node.layer, (*within, node.layer.name)


def free_name(name: str, taken: set[str]) -> str:
    """The name, or the first of ``name_1``, ``name_2`` ... that is not taken."""
    candidate, number = name, 0
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def _mapped(arguments: Any, made: dict[str, Tensor]) -> Any:
    """Arguments with the new graph's tensors in place of the old ones; numbers, slices and flags stay as they are."""
    return tf.nest.map_structure(lambda value: made.get(str(id(value)), value), arguments)


PIXELS = 255.0  # the largest value of an image's, which many models rescale themselves
UNKNOWN = 32  # taken for a side that the model leaves open, in elements


def probes(model: Any, seed: int = 0, samples: int = 4) -> list[list[Tensor]]:
    """Seeded inputs to compare models on: batches of one tensor for each input.

    The first batch is normal noise of unit scale, the second uniform in 0..255 as images are. Inputs that an Embedding
    reads, directly or through layers without weights, hold whole numbers below its size, and so do other integer ones.
    """
    model = functional(model)
    generator = np.random.Generator(np.random.PCG64(seed))
    sizes = _vocabularies(model)
    batches = []
    for pixels in (False, True):
        batch = []
        for tensor in model.inputs:
            size = sizes.get(str(id(tensor)), None if tensor.dtype.is_floating else 2)
            shape = [tensor.shape[0] or samples, *(side or UNKNOWN for side in tensor.shape[1:])]
            batch.append(tf.cast(tf.constant(_drawn(generator, shape, size, pixels)), tensor.dtype))
        batches.append(batch)
    return batches


def _drawn(generator: np.random.Generator, shape: Sequence[int], size: int | None, pixels: bool) -> np.ndarray:
    """Whole numbers below ``size`` where there is one, else pixels or noise."""
    if size is not None:
        return generator.integers(0, size, shape)
    return generator.uniform(0, PIXELS, shape) if pixels else generator.standard_normal(shape)


def _vocabularies(model: Any) -> dict[str, int]:
    """Id of an input tensor that an Embedding reads -> how many different whole numbers it may hold."""
    sizes: dict[str, int] = {}
    for node in reversed(list(nodes(model))):
        if isinstance(node.layer, keras.layers.Embedding):
            below = int(node.layer.input_dim)
        elif node.layer.weights:
            continue
        else:
            below = min((sizes[str(tensor)] for tensor in node.flat_output_ids if str(tensor) in sizes), default=0)
        for tensor in node.flat_input_ids if below else []:
            sizes[str(tensor)] = min(below, sizes.get(str(tensor), below))
    return sizes


def outputs(model: Any, batches: Sequence[Sequence[Tensor]]) -> list[list[np.ndarray]]:
    """What the model gives for each batch of ``probes``, at inference: one array for each output."""
    found = []
    for batch in batches:
        # Said aloud, since Keras' augmentation layers take a silent call for training.
        made = model(list(batch) if len(batch) > 1 else batch[0], training=False)
        found.append([output.numpy() for output in tf.nest.flatten(made)])
    return found


def difference(expected: Sequence[Sequence[np.ndarray]], found: Sequence[Sequence[np.ndarray]]) -> float:
    """The largest difference of outputs, as a share of the range of the expected one within its batch."""
    shares = [0.0]
    for one, other in zip(expected, found, strict=True):
        for first, second in zip(one, other, strict=True):
            if first.shape != second.shape or not np.array_equal(np.isfinite(first), np.isfinite(second)):
                return float("inf")
            finite = np.isfinite(first)
            if finite.any():
                wide = first[finite].astype("float64")
                spread = float(np.ptp(wide)) or float(np.abs(wide).max()) or 1.0
                shares.append(float(np.abs(wide - second[finite]).max()) / spread)
    return max(shares)


def largest_difference(one: Any, other: Any, seed: int = 0, samples: int = 4) -> float:
    """The largest difference of two models' outputs on seeded inputs, as a share of the output range of ``one``.

    The inputs are those of ``probes``. Used to prove that a rewrite changed nothing: at most 1e-5.
    """
    batches = probes(one, seed, samples)
    return difference(outputs(one, batches), outputs(other, batches))
