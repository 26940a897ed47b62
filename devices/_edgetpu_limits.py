"""What the Edge TPU asks of an op beyond its kind: one function per limit of Coral's list of supported operations.

Each takes the file, the op and the facts, and returns None, or `Limit`: why the op stays on the CPU, and what to change.
``accelerators/edgetpu.yaml`` says by name which op has which limits.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import numpy as np

from edgeprune.devices._edgetpu_facts import Facts
from edgeprune.tflite_objects import Array, Op, Tensor, TFLiteFile, stored_constants

MAIN_BATCH_RANK = 4  # an axis 0 is the batch's in tensors of (batch, height, width, channels)
DEPTH_STEP = 4  # of the channels that an op may reduce over


class Limit(NamedTuple):
    """Why an op stays on the CPU, and what to change: two halves of a sentence."""

    reason: str
    advice: str


Rule = Callable[[TFLiteFile, Op, Facts], Limit | None]


def no_fused_activation(file: TFLiteFile, op: Op, facts: Facts) -> Limit | None:
    """Pooling and concatenation may not carry an activation."""
    fused = op.options.get("fused_activation", "NONE")
    if fused == "NONE":
        return None
    return Limit(
        f"it carries the fused activation {fused}", "put the activation before it, into the layer that it reads from"
    )


def constant_parts_are_zero_padding(file: TFLiteFile, op: Op, facts: Facts) -> Limit | None:
    """A concatenation takes a constant only as padding: two inputs, one of them all zeros."""
    given = [_tensor(file, op, place) for place in range(len(op.inputs))]
    constant = [tensor for tensor in given if tensor is not None and tensor.is_constant]
    if not constant or (len(given) == 2 and all(_is_zero(tensor) for tensor in constant)):
        return None
    return Limit(
        "it joins a constant that is not padding by zeros",
        "add the constant by another layer, or join computed parts only",
    )


def constant_parameters(file: TFLiteFile, op: Op, facts: Facts) -> Limit | None:
    """Weights and biases must be known when the model is compiled, and the weights be of 8 bits."""
    stored = stored_constants(file.ops, file.tensors)
    kernel = _at(op, 1)
    others = op.inputs[2:] if op.op != "TRANSPOSE_CONV" else op.inputs[3:]
    if any(index >= 0 and index not in stored for index in (kernel, *others)):
        return Limit(
            "its weights are computed by the model",
            "use constant weights; a product of two activations stays on the CPU",
        )
    if stored[kernel].dtype not in facts.data_types:
        kind = stored[kernel].dtype
        return Limit(f"its weights are {kind}", "quantize the whole model to int8, weights and activations")
    return None


def same_dilation(file: TFLiteFile, op: Op, facts: Facts) -> Limit | None:
    """One dilation for height and width."""
    dilation = op.options.get("dilation", (1, 1))
    if len(set(dilation)) == 1:
        return None
    words = " and ".join(map(str, dilation))
    return Limit(f"its dilations differ ({words})", "give the convolution the same dilation along height and width")


def one_dimensional_output(file: TFLiteFile, op: Op, facts: Facts) -> Limit | None:
    """A fully connected layer makes one vector."""
    shape = file.tensors[op.outputs[0]].shape
    if prod(shape[:-1]) == 1:
        return None
    return Limit(
        f"it computes {prod(shape[:-1])} vectors at once", "use a 1x1 convolution, which works on many positions"
    )


def not_over_batch(file: TFLiteFile, op: Op, facts: Facts) -> Limit | None:
    """Reductions leave the batch alone."""
    axes, rank = _axes(file, op, 1)
    if axes is None:
        return Limit("its axes are computed by the model", "give the axes as constants")
    return (
        _batch("reduces over the batch", "reduce over height, width or channels")
        if rank >= MAIN_BATCH_RANK and 0 in axes
        else None
    )


def depth_reduced_in_fours(file: TFLiteFile, op: Op, facts: Facts) -> Limit | None:
    """A mean over channels wants a multiple of four of them."""
    axes, rank = _axes(file, op, 1)
    channels = file.tensors[op.inputs[0]].shape[-1] if rank else 1
    if axes is None or rank < MAIN_BATCH_RANK or rank - 1 not in axes or channels % DEPTH_STEP == 0:
        return None
    return Limit(f"it averages over {channels} channels", f"use a multiple of {DEPTH_STEP} channels")


def not_along_batch(file: TFLiteFile, op: Op, facts: Facts) -> Limit | None:
    """Parts are stacked along another axis than the batch's."""
    rank = len(file.tensors[op.outputs[0]].shape)
    axis = int(op.options.get("axis", 0)) % max(rank, 1)
    return (
        _batch("stacks along the batch", "stack along another axis") if rank >= MAIN_BATCH_RANK and axis == 0 else None
    )


def no_padding_of_batch(file: TFLiteFile, op: Op, facts: Facts) -> Limit | None:
    """The batch is not padded."""
    paddings = _constant(file, op, 1)
    if paddings is None:
        return Limit("its paddings are computed by the model", "give the paddings as constants")
    padded = paddings.ndim == 2 and len(paddings) >= MAIN_BATCH_RANK and bool(np.any(paddings[0]))
    return _batch("pads the batch", "pad height, width or channels") if padded else None


def no_split_of_batch(file: TFLiteFile, op: Op, facts: Facts) -> Limit | None:
    """The batch is not split."""
    axis, rank = _constant(file, op, 0), len(file.tensors[op.inputs[1]].shape)
    if axis is None:
        return Limit("its axis is computed by the model", "give the axis as a constant")
    return (
        _batch("splits the batch", "split another axis")
        if rank >= MAIN_BATCH_RANK and int(axis.reshape(-1)[0]) % rank == 0
        else None
    )


def one_slope_per_channel(file: TFLiteFile, op: Op, facts: Facts) -> Limit | None:
    """A PReLU has one slope per channel, the same everywhere."""
    slope = _tensor(file, op, 1)
    if slope is not None and prod(slope.shape[:-1]) == 1:
        return None
    return Limit("its slopes differ from place to place", "give PReLU shared_axes=[1, 2]")


def not_from_one_pixel(file: TFLiteFile, op: Op, facts: Facts) -> Limit | None:
    """Enlarging a single pixel is left to the CPU."""
    given, made = file.tensors[op.inputs[0]].shape, file.tensors[op.outputs[0]].shape
    if len(given) != 4 or given[1:3] != (1, 1) or made[1:3] == (1, 1):
        return None
    return Limit(
        f"it enlarges 1 pixel to {made[1]}x{made[2]}",
        "repeat the pixel by another op (UpSampling2D with interpolation='nearest', or Conv2DTranspose), or leave the image-wide "
        "branch out",
    )


def resized_fits(file: TFLiteFile, op: Op, facts: Facts) -> Limit | None:
    """What is resized must fit into the chip's activation memory."""
    made = file.tensors[op.outputs[0]]
    if made.elements <= facts.resized_bytes:
        return None
    size = f"{made.elements / 2**20:.1f} MiB"
    return Limit(
        f"its output takes {size}, more than the {facts.resized_bytes / 2**20:g} MiB that the tiles hold",
        "give a smaller output and enlarge it on the host, or resize fewer channels",
    )


def one_dimensional_softmax(file: TFLiteFile, op: Op, facts: Facts) -> Limit | None:
    """A softmax works on one vector of limited length."""
    shape = file.tensors[op.inputs[0]].shape
    if prod(shape[:-1]) != 1:
        return Limit(f"it works on {prod(shape[:-1])} vectors at once", "give the logits as the model's output")
    if shape[-1:] > (facts.softmax_elements,):
        return Limit(
            f"it has {shape[-1]:,} elements, and {facts.softmax_elements:,} are the most",
            "give the logits as the model's output",
        )
    return None


def leading_axes_squeezed(file: TFLiteFile, op: Op, facts: Facts) -> Limit | None:
    """Only axes before all longer ones may go: nothing moves in memory then."""
    given, made = file.tensors[op.inputs[0]].shape, file.tensors[op.outputs[0]].shape
    if _without_leading_ones(given) == _without_leading_ones(made):
        return None
    return Limit("it removes an axis behind a longer one", "use Reshape in its place")


def whole_steps(file: TFLiteFile, op: Op, facts: Facts) -> Limit | None:
    """A strided slice takes every element, and makes no axis."""
    strides = _constant(file, op, 3)
    if strides is None or np.any(strides != 1):
        words = "computed by the model" if strides is None else f"{strides.tolist()}"
        return Limit(
            f"its strides are {words}",
            "take every element (strides of 1), and thin out by pooling or a strided convolution",
        )
    if op.options.get("ellipsis_mask") or op.options.get("new_axis_mask"):
        return Limit("it is written with '...' or makes a new axis", "write every axis out, and make axes by Reshape")
    return None


def _batch(what: str, advice: str) -> Limit:
    return Limit(f"it {what}", advice)


def _at(op: Op, place: int) -> int:
    return op.inputs[place] if place < len(op.inputs) else -1


def _tensor(file: TFLiteFile, op: Op, place: int) -> Tensor | None:
    index = _at(op, place)
    return file.tensors[index] if index >= 0 else None


def _constant(file: TFLiteFile, op: Op, place: int) -> Array | None:
    tensor = _tensor(file, op, place)
    return None if tensor is None else tensor.data


def _axes(file: TFLiteFile, op: Op, place: int) -> tuple[set[int] | None, int]:
    """The axes that a constant input names, counted from 0 (None: computed), and the rank that they count in."""
    rank, stored = len(file.tensors[op.inputs[0]].shape), _constant(file, op, place)
    return (None if stored is None else {int(axis) % max(rank, 1) for axis in stored.reshape(-1)}), rank


def _is_zero(tensor: Tensor) -> bool:
    zero = int(tensor.zero_points[0]) if tensor.zero_points.size else 0
    return tensor.data is not None and bool(np.all(tensor.data == zero))


def _without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    first = next((place for place, length in enumerate(shape) if length != 1), len(shape))
    return shape[first:]
