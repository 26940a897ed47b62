"""Tiny networks as data: nodes by hand, their coupled channels, and what a cut keeps."""

from edgeprune import channels
from edgeprune.channels import Graph, Node, Use

KERNEL = (
    Use("kernel", 0, "in", "consumer"),
    Use("kernel", 1, "out", "producer"),
    Use("bias", 0, "out", "channel"),
)


def dense(name, given, made, **fields):
    """A kernel (in, out) and a bias."""
    return Node(name, "Dense", "mix", (given,), (made,), KERNEL, **fields)


def node(name, rule, given, made, **fields):
    given = (given,) if isinstance(given, str) else tuple(given)
    return Node(name, rule.capitalize(), rule, given, (made,), **fields)


def coupled(tensors, *nodes, inputs=("x",), outputs=("z",)):
    return channels.couple(Graph(tensors, nodes, inputs, outputs))


def kept(coupling, cut):
    """What ``apply`` leaves, in plain numbers."""
    return {key: indices.tolist() for key, indices in channels.apply(coupling, cut).items()}


def chain(middle, shape, after=None, before=(4, 4, 3)):
    """conv ``a`` -> ``middle`` -> conv ``b``: the smallest network around a layer between two kernels."""
    tensors = {"x": (4, 4, 2), "a": before, "m": shape, "z": (*shape[:-1], 2)}
    return coupled(tensors, dense("a", "x", "a"), middle, after or dense("b", "m", "z"))
