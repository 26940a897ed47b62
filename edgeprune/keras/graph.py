"""Walk a functional tf_keras model and build it anew, node by node, with fresh layers.

``rebuild`` is the one mechanism behind every copy and rewrite: the user's layers are never part of the new model (TFMOT
wraps the very layer objects it is given, so a pruned "copy" made any other way writes zeros into the original), and
Keras' own ``clone_model`` drops what a call passed as keyword arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    """

    layer: Layer
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    node: Node


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


def copy_layer(layer: Layer) -> Layer:
    """A new layer of the same configuration and name; its weights come later, when it is built.

    Raises:
        ModelError: the layer is itself a model.
    """
    if isinstance(layer, keras.Model):
        raise ModelError(
            f"The layer '{layer.name}' is itself a model. Call its layers directly in the outer model, or save the inner model's "
            "layers flattened."
        )
    return layer.__class__.from_config(layer.get_config())


def rebuild(model: Any, rewrite: Rewrite | None = None, copy: Callable[[Layer], Layer] = copy_layer) -> Any:
    """A new functional model with fresh layers, the same names and the same weights.

    Args:
        model: functional or built Sequential; it is not changed and shares nothing with the result.
        rewrite: called for every call; returns the output to use instead, or None for the layer's copy.
        copy: makes a layer's copy, once per layer; the copy must take the original's ``get_weights()``.

    Returns:
        An uncompiled functional model.

    Raises:
        ModelError: the model is not functional, or holds a model as a layer.
    """
    model = functional(model)
    made: dict[str, Tensor] = {}
    fresh: dict[str, tuple[Layer, Layer]] = {}
    inputs = []
    for tensor, layer in zip(model.inputs, model._input_layers, strict=True):
        made[str(id(tensor))] = keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=layer.name)
        inputs.append(made[str(id(tensor))])
    for node in nodes(model):
        arguments, keywords = _mapped((node.call_args, node.call_kwargs), made)
        call = Call(node.layer, arguments, keywords, node)
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
        new.set_weights(old.get_weights())
    return result


def _mapped(arguments: Any, made: dict[str, Tensor]) -> Any:
    """Arguments with the new graph's tensors in place of the old ones; numbers, slices and flags stay as they are."""
    return tf.nest.map_structure(lambda value: made.get(str(id(value)), value), arguments)


def largest_difference(one: Any, other: Any, seed: int = 0, samples: int = 4) -> float:
    """The largest difference of two models' outputs on seeded inputs, as a share of the output range of ``one``.

    The inputs are normal noise of unit scale. Used to prove that a rewrite changed nothing: at most 1e-5.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    inputs = [
        tf.constant(generator.standard_normal((samples, *tensor.shape[1:])).astype("float32"))
        for tensor in functional(one).inputs
    ]
    argument = inputs[0] if len(inputs) == 1 else inputs
    pairs = zip(tf.nest.flatten(one(argument)), tf.nest.flatten(other(argument)), strict=True)
    differences = []
    for first, second in pairs:
        spread = float(np.ptp(first.numpy())) or 1.0
        differences.append(float(np.abs(first.numpy() - second.numpy()).max()) / spread)
    return max(differences)
