"""Which branches of an addition can go whole: tiny networks written down as data."""

import pytest

from edgeprune import channel_blocks
from edgeprune.channels import Graph, Node, Use

KERNEL = (Use("kernel", 0, "in", "consumer"), Use("kernel", 1, "out", "producer"))


def dense(name, given, made):
    return Node(name, "Dense", "mix", (given,), (made,), KERNEL)


def relu(name, given, made):
    return Node(name, "ReLU", "elementwise", (given,), (made,))


def add(name, *given):
    return Node(name, "Add", "elementwise", given, (name,), additive=True)


def blocks(*nodes, shapes=(), inputs=("x",), outputs=("z",)):
    tensors = {tensor: (3,) for node in nodes for tensor in (*node.inputs, *node.outputs)} | dict(shapes)
    found = channel_blocks.removable(Graph(tensors, nodes, inputs, outputs))
    return {block.name: block.layers for block in found}


def test_the_branch_between_a_shortcut_and_its_addition():
    found = blocks(
        dense("stem", "x", "s"), dense("a", "s", "t"), relu("r", "t", "u"), dense("b", "u", "v"), add("z", "s", "v")
    )
    assert found == {"b": ("a", "r", "b")}


def test_both_branches_behind_a_fork_can_go():
    """A projection shortcut, and the path beside it."""
    found = blocks(dense("stem", "x", "s"), dense("main", "s", "m"), dense("side", "s", "p"), add("z", "m", "p"))
    assert found == {"main": ("main",), "side": ("side",)}


def test_what_others_need_stays():
    """The branch's first layer is also an output: only what lies behind it vanishes."""
    nodes = (dense("stem", "x", "s"), dense("a", "s", "t"), dense("b", "t", "u"), add("z", "s", "u"))
    assert blocks(*nodes, outputs=("z", "t")) == {"b": ("b",)}


def test_a_shared_layer_that_is_called_elsewhere_stays():
    nodes = (dense("twice", "x", "s"), dense("twice", "s", "t"), dense("b", "t", "u"), add("z", "s", "u"))
    assert blocks(*nodes) == {"b": ("b",)}


def test_a_shortcut_that_is_broadcast_cannot_take_the_branchs_place():
    nodes = (dense("stem", "x", "s"), dense("a", "x", "t"), add("z", "s", "t"))
    assert blocks(*nodes, shapes={"s": (1,)}) == {"stem": ("stem",)}


def test_an_input_that_nothing_would_read_keeps_its_branch():
    nodes = (dense("a", "x", "s"), dense("b", "y", "t"), add("z", "s", "t"))
    assert blocks(*nodes, inputs=("x", "y")) == {}


@pytest.mark.parametrize("middle", [relu("r", "s", "t"), Node("c", "Concatenate", "concatenate", ("s",), ("t",))])
def test_a_branch_without_weights_saves_nothing(middle):
    assert blocks(dense("stem", "x", "s"), middle, add("z", "s", "t")) == {}
