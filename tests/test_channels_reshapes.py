"""Coupling through flatten, permute and reshape by hand: where each channel lies behind them."""

import numpy as np
import pytest
from coupled_graphs import chain, coupled, dense, kept, node

from edgeprune import channels


def test_flatten_interleaves_the_channels():
    tensors = {"x": (2, 2, 1), "a": (2, 2, 3), "flat": (12,), "z": (1,)}
    found = coupled(tensors, dense("a", "x", "a"), node("flat", "reshape", "a", "flat"), dense("head", "flat", "z"))
    member = found.groups[0].members[-1]
    assert (member.layer, member.indices(1).tolist()) == ("head", [1, 4, 7, 10])
    assert kept(found, {"a": [0, 2]})["head", "kernel", 0] == [0, 2, 3, 5, 6, 8, 9, 11]


def test_flatten_behind_permute_keeps_the_channels_in_runs():
    tensors = {"x": (2, 2, 1), "a": (2, 2, 3), "first": (3, 2, 2), "flat": (12,), "z": (1,)}
    found = coupled(
        tensors,
        dense("a", "x", "a"),
        node("first", "permute", "a", "first", axes=(2, 0, 1)),
        node("flat", "reshape", "first", "flat"),
        dense("head", "flat", "z"),
    )
    assert kept(found, {"a": [0, 2]})["head", "kernel", 0] == [0, 1, 2, 3, 8, 9, 10, 11]
    assert channels.shapes(found, {"a": [0, 2]})["first"] == (2, 2, 2)


def test_channels_that_reach_a_kernel_along_another_axis_stay():
    tensors = {"x": (5, 1), "a": (5, 3), "turned": (3, 5), "z": (3, 1)}
    found = coupled(
        tensors,
        dense("a", "x", "a"),
        node("turned", "permute", "a", "turned", axes=(1, 0)),
        dense("head", "turned", "z"),
    )
    assert found.group("a").reasons == ("reach 'head' (Dense) along an axis that it does not treat as channels",)


@pytest.mark.parametrize(
    ("before", "after", "indices"),
    [
        ((4,), (1, 1, 4), [1]),
        ((2, 3, 4), (6, 4), [1]),
        ((2, 3, 4), (2, 12), [1, 5, 9]),
        ((2, None, 4), (None, 4), [1]),
    ],
)
def test_reshapes_that_are_followed(before, after, indices):
    found = chain(node("shape", "reshape", "a", "m"), after, before=before)
    assert found.groups[0].members[-1].indices(1).tolist() == indices


@pytest.mark.parametrize(("before", "after"), [((6,), (2, 3)), ((6,), (3, 2)), ((2, 6), (4, 3)), ((2, 6), (3, 4))])
def test_reshapes_that_split_the_channels_leave_them_whole(before, after):
    found = chain(node("shape", "reshape", "a", "m"), after, before=before)
    assert found.group("a").reasons == ("go into 'shape' (Reshape), which cannot be followed",)


def decided_by(labels, axis):
    """For each index of the axis its label, or None if the label depends on other axes too."""
    rows = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
    return rows[:, 0].tolist() if (rows == rows[:, :1]).all() else None


@pytest.mark.parametrize("before", [(2, 3, 4), (4, 3), (6, 2, 2), (12,), (3, 1, 4)])
def test_reshape_agrees_with_numpy_for_every_shape_of_three_axes(before):
    """Brute force: number the channels, reshape, and look which axis tells them apart."""
    size = int(np.prod(before))
    sizes = [n for n in range(1, size + 1) if size % n == 0]
    for after in [(a, b, size // a // b) for a in sizes for b in sizes if size // a % b == 0]:
        labels = np.broadcast_to(np.arange(before[-1]), before).reshape(after)
        expected = [decided_by(labels, axis) for axis in range(3)]
        shape = node("shape", "reshape", "a", "m")
        found = coupled({"x": (1,), "a": before, "m": after}, dense("a", "x", "a"), shape, outputs=())
        axis, classes = found.tensors["m"]
        assert found.group("a").cuttable == any(expected), after
        assert not any(expected) or found.unit_of[classes].tolist() == expected[axis], after
