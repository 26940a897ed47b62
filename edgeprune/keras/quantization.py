"""Quantization-aware training that keeps the zeros, starts from the data's ranges, and stops at no layer.

Wrappers and quantizers are TFMOT's. What they wrap is decided by `quantization_plan` on the graph itself, because TFMOT's
own way from model to fake-quantized model (``quantize_apply``)

- refuses the whole model for one layer that is not on its list;
- takes the *weight* quantizer, and with it the sparsity mask, from a Conv2D, DepthwiseConv2D or Dense that a separate
  ReLU layer follows, where only the output's must go;
- gives average pooling an observer of its own, although the runtime's kernel needs equal scales in and out;
- leaves a pruned Conv2DTranspose without a mask;
- searches the whole model again after each replaced layer: minutes for a network of 800 layers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from edgeprune import clusters
from edgeprune.errors import ConversionError
from edgeprune.keras import clustering, graph, keras, tf
from edgeprune.keras.quantization_configs import ClusterPreserving, Kept, SameScale, ZeroPreserving, input_layer, wrap
from edgeprune.keras.quantization_plan import Decision, LayerQuantization, Row, decide, plan, post_training, trainable
from edgeprune.keras.quantization_pruning import Pruning, Ramped
from edgeprune.keras.quantization_ranges import calibrate, is_fixed, ranges, widen

__all__ = [
    "LayerQuantization",
    "calibrate",
    "plan",
    "post_training",
    "quantize",
    "settle",
    "trainable",
    "unquantized",
    "widen",
]

# Their kernels compute new values, and round them to the scale of their input.
ROUNDING = (keras.layers.AveragePooling1D, keras.layers.AveragePooling2D)


def quantize(
    model: Any,
    preserve: bool,
    skip: Collection[str] = (),
    shared: Mapping[str, clusters.Scope] | None = None,
    pruning: Mapping[str, Ramped] | None = None,
) -> Any:
    """The fake-quantized model, its weights those of ``model``; layers that `plan` leaves to post-training stay float in it.

    Args:
        model: functional float model without pruning wrappers; not changed.
        preserve: keep every weight that is zero now at zero while training (PQAT). The mask is taken from the weights
            themselves, so a resumed run must call this on the *pruned* model and load its weights afterwards. A layer
            that stays float has no mask: if it holds zeros, or shared values, it is not trained.
        skip: names of layers to leave to post-training ranges.
        shared: names of clustered layers -> where their equal weights stay equal (CQAT); their centroids are taken from the
            weights too.
        pruning: names of layers -> how they are pruned while training.
    """
    model = graph.functional(model)
    shared, pruning = shared or {}, pruning or {}
    decisions = decide(model, skip)
    made: dict[str, Any] = {}
    inputs = _Inputs(model, decisions)

    def rewrite(call: graph.Call) -> Any:
        if call.layer.name not in made:  # once, so that shared layers stay shared
            name = call.layer.name
            kept = Kept(preserve, shared.get(name), pruning.get(name))
            made[name] = _layer(call, decisions[name].row, kept)
        arguments, keywords = tf.nest.map_structure(inputs.quantized, (call.args, call.kwargs))
        outputs = made[call.layer.name](*arguments, **keywords)
        if decisions[call.layer.name].row is not None and isinstance(call.layer, ROUNDING):
            return _rounded(outputs, call, arguments[0])
        return outputs

    result = graph.rebuild(model, rewrite)
    clustering.keep_upright(result, shared)
    return result


def settle(quantized: Any) -> None:
    """Give every kernel what training has kept of it: the zeros of its mask, the values of its clusters.

    The optimizer's last step came after they were last applied.

    Args:
        quantized: from ``quantize``, trained; changed in place.
    """
    for layer in quantized.layers:
        for weight, quantizer, variables in getattr(layer, "_weight_vars", []):
            if isinstance(quantizer, (ZeroPreserving, ClusterPreserving, Pruning)):
                quantizer.settle(weight, variables)


def _rounded(outputs: Any, call: graph.Call, given: Any) -> Any:
    """What a kernel makes of its results that has to keep its input's scale; as it is where that scale is not known."""
    found = _range_of(given)
    if found is None:
        return outputs
    place = call.layer._inbound_nodes.index(call.node)
    name = f"rounded_{call.layer.name}" + (f"_{place}" if place else "")
    return SameScale(*found, name=name)(outputs)


def _range_of(tensor: Any) -> tuple[Any, Any] | None:
    """The variables of the range that a tensor's own layer observes.

    What a layer only passes on is left: the converter keeps what else reads such a tensor in float, if one of its readers
    says the range once more.
    """
    layer = tensor._keras_history.layer
    observed = ranges(layer)
    return observed[-1] if observed and not is_fixed(layer) else None  # a fixed one is observed before its activation


def unquantized(quantized: Any, prepared: Any) -> Any:
    """The float model with what was trained in the fake-quantized one: to be quantized after training.

    Args:
        quantized: from ``quantize``, trained; it is settled.
        prepared: the model it was made of; not changed.

    Returns:
        A copy of ``prepared`` with the trained weights and BatchNormalization statistics. What `quantize` was told to keep
        at zero is exactly zero, and what it was told to keep equal is equal.

    Raises:
        ConversionError: the two are not of the same origin.
    """
    settle(quantized)
    values = {variable.name: variable.numpy() for variable in quantized.variables}
    result = graph.rebuild(prepared)
    for layer in result.layers:
        names = [variable.name for variable in layer.weights]
        missing = [name for name in names if name not in values]
        if missing:
            raise ConversionError(
                f"The fake-quantized model has no {', '.join(missing)}. Expected the model that quantize() made of "
                f"'{prepared.name}'."
            )
        layer.set_weights([values[name] for name in names])
    return result


def _layer(call: graph.Call, row: Row | None, kept: Kept) -> Any:
    """A copy of a layer with its weights, fake-quantized as the row says."""
    layer, copy = call.layer, graph.copy_layer(call.layer)
    copy(*call.args, **call.kwargs)  # builds it under its own name
    copy.set_weights(layer.get_weights())
    if row is not None:
        return wrap(copy, row, kept)
    zeros = kept.zeros and any(weight.ndim > 1 and not weight.all() for weight in layer.get_weights())
    if zeros or kept.shared:
        copy.trainable = False
    return copy


class _Inputs:
    """The model's inputs behind fake quantizers of their own, where a carried layer reads them."""

    def __init__(self, model: Any, decisions: dict[str, Decision]) -> None:
        carried = {
            str(tensor)
            for node in graph.nodes(model)
            if decisions[node.layer.name].row is not None
            for tensor in node.flat_input_ids
        }
        self._wanted = {
            name
            for tensor, name in zip(model.inputs, model.input_names, strict=True)
            if str(id(tensor)) in carried and tensor.dtype.is_floating
        }
        self._made: dict[str, Any] = {}

    def quantized(self, value: Any) -> Any:
        """An argument of a call, with the quantized input in the place of a plain one."""
        layer = getattr(getattr(value, "_keras_history", None), "layer", None)
        if not isinstance(layer, keras.layers.InputLayer) or layer.name not in self._wanted:
            return value
        if layer.name not in self._made:
            self._made[layer.name] = input_layer(f"quantize_{layer.name}")(value)
        return self._made[layer.name]
