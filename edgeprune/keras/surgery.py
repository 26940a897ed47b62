"""Remove channels for good: a smaller model with the same names, the weights that remain, and nothing else changed.

``edgeprune.channels`` says which indices of which weights remain; here the layers are made anew with fewer filters, units
and groups, and filled. ``masked`` is the same cut without the removal, zeros in the place of whatever would have been read:
both compute the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from edgeprune import channels
from edgeprune.channel_blocks import Block
from edgeprune.channel_rules import Shape
from edgeprune.channels import Cut
from edgeprune.errors import CutError, ModelError
from edgeprune.keras import channel_graph, graph, keras, rounding

TOLERANCE = 1e-5  # of the output range
Kept = Mapping[tuple[str, int], np.ndarray]  # weight and axis of one layer -> the indices that remain
SIZES = ("filters", "units", "output_dim", "projection_dim")  # what configurations call the number of channels


def shrink(model: Any, cut: Cut) -> Any:
    """The model without the channels that the cut does not keep.

    Args:
        model: functional or built Sequential tf_keras model; not changed. Models inside it are inlined.
        cut: group (``channel_graph.inventory``) -> the units that are kept; groups that are not named stay whole.

    Returns:
        A new functional model, uncompiled, with the same layer names.

    Raises:
        NameUnknown: no such group.
        CutError: the group cannot be cut, or a layer would be left empty.
        ModelError: the result computes something else than the masked model (never seen; always checked, unless a
            group says that its cut is not exact).
    """
    model = graph.flatten(model)
    coupling = channels.couple(channel_graph.describe(model))
    small = removed(model, coupling, cut)
    if not any(coupling.group(name).inexact for name in cut):
        with _masking(model, coupling, cut):  # a copy would take as long to make as all the rest
            _prove(model, small)
    return small


def removed(model: Any, coupling: channels.Coupling, cut: Cut) -> Any:
    """``shrink`` without its proof, for whoever tries many cuts of one model and compares the outputs himself.

    Args:
        model: flat functional; not changed.
        coupling: of the model.
        cut: as for ``shrink``.
    """
    return _rebuilt(model, coupling, _by_layer(channels.apply(coupling, cut)), channels.shapes(coupling, cut))


def carried_optimizer(optimizer: Any, model: Any, small: Any, cut: Cut) -> Any:
    """The optimizer for the shrunk model: its slots cut as the weights were, its step counter and learning rate kept.

    Args:
        optimizer: of ``model``, built; not changed.
        model: flat functional, as it was before ``shrink``.
        small: from ``shrink(model, cut)``, maybe with other layers frozen: slots are carried for what is trainable in both.

    Raises:
        ModelError: the optimizer was not built for this model.
    """
    if getattr(optimizer, "_built", False) is not True or any(
        optimizer._var_key(variable) not in optimizer._index_dict for variable in model.trainable_variables
    ):
        raise ModelError(
            f"The optimizer {optimizer.name} has no slots for '{model.name}': give the one that trained this model."
        )
    coupling = channels.couple(channel_graph.describe(model))
    kept = _by_layer(channels.apply(coupling, cut))
    fresh = optimizer.__class__.from_config(optimizer.get_config())
    fresh.build(small.trainable_variables)
    old_slots, new_slots = _slots(optimizer, model), _slots(fresh, small)
    for place, slots in new_slots.items():
        layer = model.get_layer(place[0])
        for name, slot in slots.items():
            if place in old_slots:
                values = _remaining(
                    layer, layer.weights[place[1]], old_slots[place][name].numpy(), kept.get(layer.name, {})
                )
                slot.assign(values)
    fresh.iterations.assign(optimizer.iterations)
    return fresh


def _slots(optimizer: Any, model: Any) -> dict[tuple[str, int], dict[str, Any]]:
    """Layer name and place among its weights -> the optimizer's variables of that weight's shape, by attribute."""
    places = {weight.ref(): (layer.name, place) for layer in model.layers for place, weight in enumerate(layer.weights)}
    lists = {
        name: value
        for name, value in vars(optimizer).items()
        if isinstance(value, list) and name.strip("_") != "variables"
    }
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for variable in model.trainable_variables:
        number = optimizer._index_dict[optimizer._var_key(variable)]
        slots = {name: value[number] for name, value in lists.items() if len(value) == len(optimizer._index_dict)}
        own = {name: slot for name, slot in slots.items() if slot is not variable and slot.shape == variable.shape}
        found[places[variable.ref()]] = own
    return found


def without(model: Any, blocks: Iterable[Block]) -> Any:
    """The model without whole blocks: what went around a block takes its place.

    Args:
        model: functional or built Sequential; not changed. Models inside it are inlined.
        blocks: some of ``channel_blocks.removable(channel_graph.describe(model))``.

    Returns:
        A new functional model, uncompiled, with the names and weights of the layers that remain.

    Raises:
        CutError: all branches of an addition are among the blocks.
    """
    model = graph.flatten(model)
    names = channel_graph.tensor_names(model)
    dropped: dict[str, dict[str, str]] = {}
    for block in blocks:
        dropped.setdefault(block.output, {})[block.end] = block.name

    def rewrite(call: graph.Call) -> Any:
        gone = dropped.get(names[str(call.node.flat_output_ids[0])])
        if not gone:
            return None
        left = [call.made[str(old)] for old in call.node.flat_input_ids if names[str(old)] not in gone]
        if all(tensor.shape != call.node.outputs.shape for tensor in left):
            raise CutError(
                f"Nothing would be left for '{call.layer.name}' to add: keep one of {', '.join(gone.values())}."
            )
        return left[0] if len(left) == 1 else keras.layers.Add(name=call.layer.name)(left)

    return graph.rebuild(model, rewrite)


def masked(model: Any, cut: Cut) -> Any:
    """A copy of the model in which nothing reads the channels that the cut does not keep: its consumers' weights are 0.

    Whatever the producers and the layers in between hold for these channels has no influence any more.
    """
    copy = graph.rebuild(model)
    mask(copy, channels.couple(channel_graph.describe(copy)), cut)
    return copy


def mask(model: Any, coupling: channels.Coupling, cut: Cut) -> list[tuple[Any, np.ndarray]]:
    """``masked`` in place, for whoever tries many cuts on one copy.

    Args:
        model: flat functional; its consumers' weights are set to 0.
        coupling: of the model.
        cut: as for ``shrink``.

    Returns:
        The variables that were written, each with the values that it held before: assign them to undo the cut.
    """
    remaining = channels.apply(coupling, cut)
    roles = {(m.layer, m.weight, m.axis): m.role for group in coupling.groups for m in group.members}
    before: dict[Any, tuple[Any, np.ndarray]] = {}
    for (name, weight, axis), indices in remaining.items():
        if roles[name, weight, axis] == "consumer":
            variable = channel_graph.variable(model.get_layer(name), weight)
            held = variable.numpy()
            before.setdefault(variable.ref(), (variable, held))
            values = np.zeros_like(held)
            place = (slice(None),) * axis + (indices,)
            values[place] = held[place]
            variable.assign(values)
    return list(before.values())


@contextmanager
def _masking(model: Any, coupling: channels.Coupling, cut: Cut) -> Iterator[None]:
    """Within it the model is masked; afterwards it is what it was."""
    layers = {name for name, _, _ in channels.apply(coupling, cut)}
    held = [(variable, variable.numpy()) for name in layers for variable in model.get_layer(name).weights]
    try:
        mask(model, coupling, cut)
        yield
    finally:
        for variable, values in held:
            variable.assign(values)


def _by_layer(remaining: Mapping[tuple[str, str, int], np.ndarray]) -> dict[str, dict[tuple[str, int], np.ndarray]]:
    found: dict[str, dict[tuple[str, int], np.ndarray]] = {}
    for (layer, weight, axis), indices in remaining.items():
        found.setdefault(layer, {})[weight, axis] = indices
    return found


def _rebuilt(model: Any, coupling: channels.Coupling, kept: Mapping[str, Kept], shapes: Mapping[str, Shape]) -> Any:
    """The model with fresh layers of the new sizes and the weights that remain."""
    nodes = {node.layer: node for node in coupling.graph.nodes}
    changed = {
        name
        for name, node in nodes.items()
        if name in kept
        or (node.rule == "reshape" and shapes[node.outputs[0]] != coupling.graph.tensors[node.outputs[0]])
    }
    fresh: dict[str, tuple[Any, Any]] = {}

    def rewrite(call: graph.Call) -> Any:
        name = call.layer.name
        if name not in changed:
            return None
        if name not in fresh:
            config = _config(call.layer, nodes[name], coupling, shapes)
            fresh[name] = (call.layer, call.layer.__class__.from_config(config))
        return fresh[name][1](*call.args, **call.kwargs)

    small = graph.rebuild(model, rewrite)
    for old, new in fresh.values():
        new.set_weights(remaining_weights(old, kept.get(old.name, {})))
    return small


def remaining_weights(layer: Any, kept: Kept) -> list[np.ndarray]:
    """The layer's weights, in Keras' order, with the indices that remain."""
    return [_remaining(layer, variable, variable.numpy(), kept) for variable in layer.weights]


def _remaining(layer: Any, variable: Any, values: np.ndarray, kept: Kept) -> np.ndarray:
    """What remains of values that belong to a variable, of its shape."""
    for (weight, axis), indices in kept.items():
        if channel_graph.variable(layer, weight) is variable:
            values = np.take(values, indices, axis=axis)
    return values


def _config(
    layer: Any, node: channels.Node, coupling: channels.Coupling, shapes: Mapping[str, Shape]
) -> dict[str, Any]:
    """The layer's configuration with its new sizes."""
    config: dict[str, Any] = layer.get_config()
    config.pop("batch_input_shape", None)  # of the old size
    after = shapes[node.outputs[0]]
    if node.rule == "reshape" and "target_shape" in config:  # Flatten has none
        pairs = zip(config["target_shape"], after, strict=True)
        config["target_shape"] = [-1 if given == -1 else size for given, size in pairs]
    for key in SIZES:
        if config.get(key) is not None:
            config[key] = after[node.axis]
    if node.groups > 1 and not _reads_each_group(node, coupling):
        before = coupling.graph.tensors[node.outputs[0]]
        config["groups"] = node.groups * (after[node.axis] or 0) // (before[node.axis] or 1)
    return config


def _reads_each_group(node: channels.Node, coupling: channels.Coupling) -> bool:
    """Whether the same channels of every group go, so that the number of groups stays: then the kernel's input axis is cut."""
    return any(use.role == "consumer" and (node.layer, use.weight, use.axis) in coupling.axes for use in node.uses)


def _prove(expected: Any, small: Any) -> None:
    excess = rounding.excess(expected, small, TOLERANCE)
    if excess is not None:
        raise ModelError(
            f"Removing channels changed the outputs of '{small.name}' by {excess:.1e} of their range, more than {TOLERANCE:.0e}. "
            "That is a bug of edgeprune: please report this model."
        )
