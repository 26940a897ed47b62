"""Blocks that can be removed whole: branches that an addition joins to something of the same shape.

The output of a residual network's block is x + f(x); without f, x goes on, and every shape stays. So one branch of an
addition can be left out if another input of the addition has the shape of the sum.
"""

from __future__ import annotations

from typing import NamedTuple

from edgeprune.channel_rules import Graph, Node


class Block(NamedTuple):
    """A branch of an addition.

    Attributes:
        name: of the layer that the branch ends with.
        addition: the layer that adds it to something else.
        layers: what vanishes with it, in the network's order: layers that nothing else needs.
        end: the branch's tensor among the inputs of the addition.
        output: the sum; what is left of the inputs takes its place.
    """

    name: str
    addition: str
    layers: tuple[str, ...]
    end: str
    output: str


def removable(graph: Graph) -> list[Block]:
    """The branches that can be removed whole, in the network's order.

    A branch is listed if another input of its addition has the shape of the sum, if layers with weights vanish with it, and
    if every input of the network is still read without it.
    """
    makers = {tensor: node for node in graph.nodes for tensor in node.outputs}
    blocks = []
    for addition in graph.nodes:
        for end in addition.inputs if addition.additive else ():
            others = [tensor for tensor in addition.inputs if tensor != end]
            keeps_shape = any(graph.tensors[tensor] == graph.tensors[addition.outputs[0]] for tensor in others)
            if keeps_shape and end in makers:
                gone = _vanishing(graph, addition, end)
                if gone is not None and any(node.uses for node in gone):
                    block = Block(makers[end].layer, addition.layer, _layers(graph, gone), end, addition.outputs[0])
                    blocks.append(block)
    return blocks


def _vanishing(graph: Graph, addition: Node, end: str) -> list[Node] | None:
    """The calls that nothing needs once the addition does without ``end``; None if an input would no longer be read."""
    needed = set(graph.outputs)
    gone = []
    for node in reversed(graph.nodes):
        if needed.isdisjoint(node.outputs):
            gone.append(node)
        else:
            needed.update(tensor for tensor in node.inputs if node is not addition or tensor != end)
    return gone[::-1] if needed.issuperset(graph.inputs) else None


def _layers(graph: Graph, gone: list[Node]) -> tuple[str, ...]:
    """The layers all of whose calls vanish."""
    called = [node.layer for node in graph.nodes]
    names = [node.layer for node in gone]
    return tuple(name for name in dict.fromkeys(names) if names.count(name) == called.count(name))
