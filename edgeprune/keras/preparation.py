"""Rewrite a trained model into an equal one whose every layer can be int8.

TFMOT's quantization-aware training and the converter each leave something float: an activation that TFMOT puts no
quantizer before, a layer that it does not know, a scale that the converter folds into weights which were already on the
int8 grid. Each rewrite of `REWRITES` removes one such reason and is proven on seeded inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from edgeprune.errors import ConversionError
from edgeprune.keras import folding, graph, indices, pooling, recurrent, rounding
from edgeprune.keras import rewrites_activations as activations
from edgeprune.keras import rewrites_affine as affine
from edgeprune.keras import rewrites_hard_swish as hard_swish
from edgeprune.keras import rewrites_layers as kernels
from edgeprune.keras import rewrites_one_dimensional as one_dimensional
from edgeprune.keras import rewrites_operations as operators
from edgeprune.keras.workshop import Rewritten as Outcome

TOLERANCE = 1e-5  # of the output range


class Rewrite(NamedTuple):
    """One rewrite.

    Attributes:
        name: as `Prepared.done` names it.
        function: flat functional model, ``dense`` or ``all`` -> an equal model and the layers touched (none: the same model).
        reason: what would be float without it, in words.
    """

    name: str
    function: Callable[[Any, str], Outcome]
    reason: str


class Rewritten(NamedTuple):
    """A rewrite that was done, and the names of the layers (in the model before it) that it touched."""

    name: str
    layers: tuple[str, ...]


class Prepared(NamedTuple):
    """A model ready for int8, and what was done to it."""

    model: Any
    done: tuple[Rewritten, ...]


def _always(function: Callable[[Any], Outcome]) -> Callable[[Any, str], Outcome]:
    """A rewrite that does not depend on where BatchNormalization is folded."""
    return lambda model, fold: function(model)


REWRITES: tuple[Rewrite, ...] = (
    Rewrite("operations", _always(operators.functions), "TFMOT loses the arguments of TensorFlow functions in the graph"),
    Rewrite("hard-swish", _always(hard_swish.hard_swish), "one int8 op instead of a chain with float sums between"),
    Rewrite("indices", _always(indices.integer_inputs), "an index that is quantized finds another row of an Embedding"),
    Rewrite("identities", _always(activations.identities), "TFMOT has no configuration for noise layers"),
    Rewrite("recurrent", _always(recurrent.unroll), "the converter crashes on loops, and splits gates in float"),
    Rewrite("time distributed", _always(kernels.time_distributed), "a Dense layer takes every step by itself"),
    Rewrite("one-dimensional", _always(one_dimensional.lift), "TFMOT quantizes and prunes 2-D convolutions only"),
    Rewrite("separable", _always(kernels.separable), "the pointwise kernel can then be pruned and proven by its name"),
    Rewrite("activations", _always(activations.split), "TFMOT puts no quantizer between a layer and most activations"),
    Rewrite("hard sigmoid", _always(activations.hard_sigmoid), "its sum and product would stay float"),
    Rewrite("exponential units", _always(activations.exponential_units), "the runtime has no int8 ELU"),
    Rewrite("clipped", _always(activations.clipped), "a ReLU with another maximum than 6 is several ops"),
    Rewrite("pairwise", _always(activations.pairwise), "sums of three tensors have no quantizer between them"),
    Rewrite("absorbed scales", _always(affine.absorb), "a scale behind a linear layer costs an op and a rounding"),
    Rewrite("folded normalization", folding.normalization, "the converter would fold it and leave the int8 grid"),
    Rewrite("normalization into Dense", _always(affine.into_dense), "TFMOT takes no BatchNormalization before Dense"),
    Rewrite("scales", _always(affine.to_depthwise), "Rescaling and standalone BatchNormalization would stay float"),
    Rewrite("global pools", _always(pooling.whole_images), "int8 average pooling must keep its input's scale"),
    Rewrite("kept axes", _always(pooling.keep_axes), "TFLite's int8 mean over an image is fast only where it keeps the axes"),
)  # fmt: skip


def prepare(model: Any, fold: str = "dense") -> Prepared:
    """The model after all rewrites that apply to it, each proven.

    Args:
        model: functional or built Sequential tf_keras model; not changed, shares nothing with the result.
        fold: ``dense``: BatchNormalization is folded only where quantization-aware training would leave it float;
            ``all``: wherever it follows a linear layer.

    Raises:
        ModelError: the model is not functional.
        ConversionError: a layer has its channels first, or a rewrite changed the outputs (never seen; always checked).
    """
    flat = graph.flatten(model)
    _refuse_channels_first(flat)
    batches = graph.probes(flat)
    expected = None
    current, done = flat, []
    for rewrite in REWRITES:
        rewritten, layers = rewrite.function(current, fold)
        if not layers:
            continue
        expected = graph.outputs(current, batches) if expected is None else expected
        found = graph.outputs(rewritten, batches)
        _prove(rewrite, layers, rounding.excess_of(current, batches, expected, found, TOLERANCE))
        current, expected = rewritten, found
        done.append(Rewritten(rewrite.name, tuple(layers)))
    return Prepared(graph.rebuild(current) if current is flat else current, tuple(done))


def operations(model: Any) -> Any:
    """The flat model with TensorFlow functions in its graph replaced by layers, proven; done when a model is taken in.

    Raises:
        ModelError: the model is not functional.
        ConversionError: the replacement changed the outputs (never seen; always checked).
    """
    model = graph.flatten(model)
    for rewrite in REWRITES[:2]:
        rewritten, layers = rewrite.function(model, "dense")
        if layers:
            _prove(rewrite, layers, rounding.excess(model, rewritten, TOLERANCE))
        model = rewritten
    return model


def _prove(rewrite: Rewrite, layers: list[str], excess: float | None) -> None:
    if excess is not None:
        shown = ", ".join(layers[:5]) + (" ..." if len(layers) > 5 else "")
        raise ConversionError(
            f"The rewrite '{rewrite.name}' of {shown} changed the outputs by {excess:.1e} of their range; at most {TOLERANCE:.0e} "
            "was expected. That is a bug of edgeprune: please report this model."
        )


def _refuse_channels_first(model: Any) -> None:
    for layer in model.layers:
        if getattr(layer, "data_format", None) == "channels_first":
            raise ConversionError(
                f"The layer '{layer.name}' ({type(layer).__name__}) is channels_first, which TensorFlow Lite has no int8 kernels for. "
                "Rebuild the model with data_format='channels_last' and the same weights."
            )
