"""How channels travel through one layer: the kinds of coupling rule, and the graph description that they read.

Every channel that comes into being (an input's, a kernel's output's) is a *slot*, numbered 0, 1, 2 ... A tensor carries
the slots along one of its axes; a rule says which slots its outputs carry, which slots must live or die together (pairs),
which must stay (with the reason), and which slot every index of every weight's axis belongs to. A slot may stand at many
indices: Flatten repeats the slots of (H, W, C) H * W times, a depth multiplier m repeats each m times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import numpy as np

Shape = tuple[int | None, ...]
AxisKey = tuple[str, str, int]  # layer, weight, axis


class Use(NamedTuple):
    """One axis of one weight, and the channels that its indices stand for.

    Index ``j`` of the axis is channel ``tile(repeat(channels, repeat), tile)[j]``: a pointwise kernel behind a depth
    multiplier 2 has ``repeat`` 2, an LSTM's kernel with its four gates side by side has ``tile`` 4.

    Attributes:
        weight: the layer's name for it.
        axis: of the weight, from 0.
        side: ``in`` or ``out``: whether the channels are the layer's input's or its output's.
        role: ``producer`` (the axis makes channels), ``consumer`` (it reads them) or ``channel`` (one value per channel).
        along: the tensor axis without the batch that the weight's axis runs along; None: the layer's channel axis.
    """

    weight: str
    axis: int
    side: str
    role: str
    repeat: int = 1
    tile: int = 1
    along: int | None = None


@dataclass(frozen=True)
class Node:
    """One call of a layer.

    Attributes:
        layer, kind: the layer's name and its class; calls of one layer share its name, and so its weights.
        rule: a name in ``RULES``.
        inputs, outputs: names of tensors.
        uses: the axes of its weights that follow channels.
        axis: the channel axis without the batch; may be negative.
        groups: of a grouped convolution or a group normalization.
        multiplier: of a depthwise convolution.
        axes: of ``permute``: the input axis of every output axis; of ``normalize`` and ``across``: the axes taken together.
        additive: whether the output is the sum of the inputs.
        reason: why the channels of its outputs must stay, whatever the rule says.
    """

    layer: str
    kind: str
    rule: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    uses: tuple[Use, ...] = ()
    axis: int = -1
    groups: int = 1
    multiplier: int = 1
    axes: tuple[int, ...] = ()
    additive: bool = False
    reason: str | None = None

    def __str__(self) -> str:
        return f"'{self.layer}' ({self.kind})"


@dataclass(frozen=True)
class Graph:
    """A network as the analysis sees it.

    Attributes:
        tensors: name -> shape without the batch; None where a size is not known.
        nodes: in topological order.
        inputs, outputs: names of the network's own tensors.
    """

    tensors: Mapping[str, Shape]
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Carried(NamedTuple):
    """The slots along one axis (from 0, without the batch) of a tensor."""

    axis: int
    slots: np.ndarray


@dataclass
class Trace:
    """What is known so far, while the nodes are walked in order.

    Attributes:
        carried: tensor -> its slots; None for a tensor without axes.
        made: layer -> the slots of its outputs: the same in every call of a shared layer.
        targets: layer -> the slots behind a Reshape: a shared one has one target shape.
        axes, roles: of every weight axis: the slot of every index, and the role.
        pairs: slots that live or die together.
        whole: slots that must stay, and why.
        inexact: slots whose removal changes more than their consumers' zeros would, and why.
    """

    graph: Graph
    count: int = 0
    carried: dict[str, Carried | None] = field(default_factory=dict)
    made: dict[str, np.ndarray] = field(default_factory=dict)
    targets: dict[str, np.ndarray] = field(default_factory=dict)
    axes: dict[AxisKey, np.ndarray] = field(default_factory=dict)
    roles: dict[AxisKey, str] = field(default_factory=dict)
    pairs: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    whole: list[tuple[np.ndarray, str]] = field(default_factory=list)
    inexact: list[tuple[np.ndarray, str]] = field(default_factory=list)

    def fresh(self, size: int | None) -> np.ndarray:
        """New slots; one for an axis whose size is not known (it is never cut)."""
        first, self.count = self.count, self.count + (size or 1)
        return np.arange(first, self.count)

    def couple(self, one: np.ndarray, other: np.ndarray) -> None:
        self.pairs.append((one, other))

    def stay(self, slots: np.ndarray, reason: str) -> None:
        self.whole.append((slots, reason))

    def unfollowed(self, tensor: str, reason: str, axis: int = -1) -> Carried | None:
        """Slots of its own for a tensor whose channels come from nowhere that could be cut."""
        shape = self.graph.tensors[tensor]
        if not shape:
            return None
        slots = self.fresh(shape[axis])
        self.stay(slots, reason)
        return Carried(axis % len(shape), slots)

    def give(self, tensor: str, axis: int, slots: np.ndarray) -> None:
        self.carried[tensor] = Carried(axis % len(self.graph.tensors[tensor]), slots)

    def take(self, node: Node, tensor: str) -> np.ndarray:
        """The slots along the node's channel axis of one of its inputs.

        Where the input carries its channels along another axis (after a Permute), both stay: those, and this axis.
        """
        carried = self.carried[tensor]
        shape = self.graph.tensors[tensor]
        if carried is not None and carried.axis == node.axis % len(shape):
            return carried.slots
        if carried is not None:
            self.stay(carried.slots, f"reach {node} along an axis that it does not treat as channels")
        return self.fixed(shape[node.axis] if shape else 1, node)

    def fixed(self, size: int | None, node: Node) -> np.ndarray:
        """Slots for an axis of a node that is no channel axis, so that the weights along it stay as they are."""
        slots = self.fresh(size)
        self.stay(slots, f"stand along an axis of {node} that carries no channels")
        return slots

    def record(self, use: Use, layer: str, slots: np.ndarray) -> None:
        """Note which slots a weight's axis follows; a layer that is called twice couples what its calls see."""
        slots = np.tile(np.repeat(slots, use.repeat), use.tile)
        key = (layer, use.weight, use.axis)
        if key in self.axes:
            self.couple(self.axes[key], slots)
        else:
            self.axes[key], self.roles[key] = slots, use.role

    def outputs_of(self, node: Node, size: int | None) -> np.ndarray:
        if node.layer not in self.made:
            self.made[node.layer] = self.fresh(size)
        return self.made[node.layer]


def trace(graph: Graph) -> Trace:
    """Walk the nodes; afterwards the trace holds every slot, pair and reason."""
    found = Trace(graph)
    for tensor in graph.inputs:
        found.carried[tensor] = found.unfollowed(tensor, "are an input of the model")
    for node in graph.nodes:
        RULES[node.rule](found, node)
        for tensor in node.outputs:
            carried = found.carried[tensor]
            if node.reason and carried is not None:
                found.stay(carried.slots, node.reason)
    for tensor in graph.outputs:
        carried = found.carried[tensor]
        if carried is not None:
            found.stay(carried.slots, "are an output of the model")
    return found


def mix(found: Trace, node: Node) -> None:
    """Every output channel reads every input channel: Dense, convolutions, their transposes; grouped ones too.

    A grouped convolution loses whole groups if that is the finer step. Otherwise it loses the same channel of every
    group, so that the groups stay and stay alike.
    """
    inputs = found.take(node, node.inputs[0])
    outputs = found.outputs_of(node, found.graph.tensors[node.outputs[0]][node.axis])
    sides = {"in": inputs, "out": outputs}
    if node.groups > 1:
        read, made = inputs.reshape(node.groups, -1), outputs.reshape(node.groups, -1)
        if node.groups >= min(read.shape[1], made.shape[1]):
            found.couple(read, read[:, :1])
            found.couple(made, read[:, :1])
            del sides["in"]  # the kernel's input axis is as long as one group: it keeps its length
        else:
            found.couple(read, read[:1])
            found.couple(made, made[:1])
            sides["in"] = read[0]
    _record(found, node, sides)
    found.give(node.outputs[0], node.axis, outputs)


def depthwise(found: Trace, node: Node) -> None:
    """Each input channel makes ``multiplier`` output channels, which stand side by side and go with it."""
    inputs = found.take(node, node.inputs[0])
    outputs = np.repeat(inputs, node.multiplier)
    _record(found, node, {"in": inputs, "out": outputs})
    found.give(node.outputs[0], node.axis, outputs)


def source(found: Trace, node: Node) -> None:
    """Outputs from a table whose rows the input names (Embedding)."""
    for tensor in node.inputs:
        carried = found.carried[tensor]
        if carried is not None:
            found.stay(carried.slots, f"are numbers that {node} looks up")
    outputs = found.outputs_of(node, found.graph.tensors[node.outputs[0]][-1])
    _record(found, node, {"out": outputs})
    found.give(node.outputs[0], -1, outputs)


def recurrent(found: Trace, node: Node) -> None:
    """Units that read the input's channels and each other; given and returned states carry the same units."""
    inputs = found.take(node, node.inputs[0])
    outputs = found.outputs_of(node, found.graph.tensors[node.outputs[0]][-1])
    for state in node.inputs[1:]:
        found.couple(found.take(node, state), outputs)
    _record(found, node, {"in": inputs, "out": outputs})
    for tensor in node.outputs:
        found.give(tensor, -1, outputs)


def elementwise(found: Trace, node: Node) -> None:
    """Channel i of the output depends on channel i of every input: activations, BatchNormalization, Add, Multiply.

    Shapes are aligned at their last axes. An input of size 1 along the channels is broadcast over all of them.
    """
    carried = _aligned(found, node)
    for other in carried[1:]:
        found.couple(carried[0].slots, other.slots)
    if not carried:
        found.carried[node.outputs[0]] = found.unfollowed(node.outputs[0], f"come from {node}, which broadcasts")
        return
    axis, slots = carried[0]
    shape = found.graph.tensors[node.outputs[0]]
    for use in node.uses:
        along = (node.axis if use.along is None else use.along) % len(shape)
        found.record(use, node.layer, slots if along == axis else found.fixed(shape[along], node))
    found.give(node.outputs[0], axis, slots)


def normalize(found: Trace, node: Node) -> None:
    """Elementwise, but divided by what is common to all channels (LayerNormalization): not exact when one goes."""
    elementwise(found, node)
    shape, carried = found.graph.tensors[node.outputs[0]], found.carried[node.outputs[0]]
    if carried is not None and carried.axis in [axis % len(shape) for axis in node.axes]:
        found.inexact.append((carried.slots, f"{node} takes mean and variance over the channels that are left"))


def across(found: Trace, node: Node) -> None:
    """Elementwise, but every output depends on all channels (Softmax): they must stay, unless it runs along another axis."""
    elementwise(found, node)
    shape, carried = found.graph.tensors[node.outputs[0]], found.carried[node.outputs[0]]
    if carried is not None and carried.axis in [axis % len(shape) for axis in node.axes]:
        found.stay(carried.slots, f"are weighed against each other by {node}")


def bundle(found: Trace, node: Node) -> None:
    """Elementwise over bundles of consecutive channels that share mean and variance (GroupNormalization): whole bundles go."""
    inputs = found.take(node, node.inputs[0])
    bundles = inputs.reshape(node.groups, -1)
    found.couple(bundles, bundles[:, :1])
    _record(found, node, {"in": inputs, "out": inputs})
    found.give(node.outputs[0], node.axis, inputs)


def spatial(found: Trace, node: Node) -> None:
    """Whatever it does along other axes, channels stay where they are: pooling, padding, cropping, upsampling."""
    found.give(node.outputs[0], node.axis, found.take(node, node.inputs[0]))


def concatenate(found: Trace, node: Node) -> None:
    """Channels one after the other; along another axis, channel i of every input is channel i of the output."""
    shape = found.graph.tensors[node.outputs[0]]
    carried = [found.carried[tensor] for tensor in node.inputs]
    if all(one is not None and one.axis == node.axis % len(shape) for one in carried):
        found.give(node.outputs[0], node.axis, np.concatenate([one.slots for one in carried if one is not None]))
        return
    if len({one.axis for one in carried if one is not None}) == 1 and None not in carried:
        elementwise(found, node)
        return
    found.give(node.outputs[0], node.axis, np.concatenate([found.take(node, tensor) for tensor in node.inputs]))


def reshape(found: Trace, node: Node) -> None:
    """Flatten and Reshape: followed where every index of one output axis belongs to a single channel.

    In row-major order the channel at flat position f is (f // right) % channels, ``right`` being the size of what stands
    behind the channel axis. An output axis with ``behind`` behind it decides the channel alone if ``behind`` divides
    ``right`` and the axis spans whole runs of all channels.
    """
    carried, name = found.carried[node.inputs[0]], node.outputs[0]
    before, after = found.graph.tensors[node.inputs[0]], found.graph.tensors[name]
    if carried is None or not after:
        opaque(found, node)
        return
    right, channels = _size(before[carried.axis + 1 :]), len(carried.slots)
    for axis in reversed(range(len(after))):
        behind, size = _size(after[axis + 1 :]), after[axis]
        if right and behind and size and not right % behind and not size * behind % (right * channels):
            slots = carried.slots[np.arange(size) * behind // right % channels]
            found.couple(found.targets.setdefault(node.layer, slots), slots)
            found.give(name, axis, slots)
            return
    opaque(found, node)


def permute(found: Trace, node: Node) -> None:
    """The channel axis moves."""
    carried = found.carried[node.inputs[0]]
    found.carried[node.outputs[0]] = carried and Carried(node.axes.index(carried.axis), carried.slots)


def opaque(found: Trace, node: Node) -> None:
    """What cannot be followed: the channels that go in and those that come out must stay."""
    for tensor in node.inputs:
        carried = found.carried[tensor]
        if carried is not None:
            found.stay(carried.slots, f"go into {node}, which cannot be followed")
    for tensor in node.outputs:
        found.carried[tensor] = found.unfollowed(tensor, f"come from {node}, which cannot be followed")


RULES: dict[str, Callable[[Trace, Node], None]] = {
    rule.__name__: rule
    for rule in (
        mix,
        depthwise,
        source,
        recurrent,
        elementwise,
        normalize,
        across,
        bundle,
        spatial,
        concatenate,
        reshape,
        permute,
        opaque,
    )
}


def _record(found: Trace, node: Node, sides: dict[str, np.ndarray]) -> None:
    for use in node.uses:
        if use.side in sides:
            found.record(use, node.layer, sides[use.side])


def _aligned(found: Trace, node: Node) -> list[Carried]:
    """The inputs' slots along the output's channel axis; those that do not lie along it, or are broadcast, stay."""
    shape = found.graph.tensors[node.outputs[0]]
    carried = []
    for tensor in node.inputs:
        one = found.carried[tensor]
        if one is None:
            continue
        axis = one.axis + len(shape) - len(found.graph.tensors[tensor])
        if len(one.slots) == 1 and shape[axis] != 1:
            found.stay(one.slots, f"are broadcast over the channels of the other inputs of {node}")
        else:
            carried.append(Carried(axis, one.slots))
    if len({one.axis for one in carried}) > 1:
        for one in carried:
            found.stay(one.slots, f"meet others along another axis in {node}")
        return []
    return carried


def _size(shape: Shape) -> int | None:
    """Number of elements; None if a size is not known."""
    return prod(size or 0 for size in shape) or None
