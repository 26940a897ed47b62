"""Every coupling rule by hand: tiny networks written down as data, and the indices that must come out."""

import pytest
from coupled_graphs import chain, coupled, dense, kept, node

from edgeprune import channels
from edgeprune.channels import Node, Use
from edgeprune.errors import CutError, NameUnknown

SCALE = (Use("gamma", 0, "in", "channel"),)


def test_a_channel_takes_its_bias_and_the_row_that_reads_it_along():
    found = coupled({"x": (2,), "y": (3,), "z": (4,)}, dense("a", "x", "y"), dense("b", "y", "z"))
    assert [(group.name, group.units, group.step, group.cuttable) for group in found.groups] == [
        ("a", 3, 1, True),
        ("b", 4, 1, False),
    ]
    assert [(member.layer, member.weight, member.axis, member.role) for member in found.groups[0].members] == [
        ("a", "kernel", 1, "producer"),
        ("a", "bias", 0, "channel"),
        ("b", "kernel", 0, "consumer"),
    ]
    assert found.groups[1].reasons == ("are an output of the model",)
    assert kept(found, {"a": [2, 0]}) == {
        ("a", "kernel", 1): [0, 2],
        ("a", "bias", 0): [0, 2],
        ("b", "kernel", 0): [0, 2],
    }
    assert channels.shapes(found, {"a": [2, 0]}) == {"x": (2,), "y": (2,), "z": (4,)}


def test_a_residual_addition_couples_channel_by_channel():
    tensors = {"x": (2,), "p": (3,), "q": (3,), "sum": (3,), "z": (1,)}
    add = node("add", "elementwise", ["p", "q"], "sum")
    found = coupled(tensors, dense("p", "x", "p"), dense("q", "p", "q"), add, dense("head", "sum", "z"))
    assert [group.name for group in found.groups] == ["p", "head"]
    assert kept(found, {"p": [1]}) == {
        ("p", "kernel", 1): [1],
        ("p", "bias", 0): [1],
        ("q", "kernel", 0): [1],
        ("q", "kernel", 1): [1],
        ("q", "bias", 0): [1],
        ("head", "kernel", 0): [1],
    }


def test_an_addition_to_an_input_leaves_the_branch_whole():
    tensors = {"x": (3,), "p": (3,), "sum": (3,), "z": (1,)}
    add = node("add", "elementwise", ["x", "p"], "sum")
    found = coupled(tensors, dense("p", "x", "p"), add, dense("head", "sum", "z"))
    assert found.group("p").reasons == ("are an input of the model",)


def test_a_broadcast_channel_stays_and_does_not_bind_the_others():
    tensors = {"x": (2,), "wide": (4, 4, 3), "one": (4, 4, 1), "sum": (4, 4, 3), "z": (1,)}
    found = coupled(
        tensors,
        dense("wide", "x", "wide"),
        dense("one", "x", "one"),
        node("add", "elementwise", ["wide", "one"], "sum"),
        dense("head", "sum", "z"),
    )
    assert found.group("one").reasons == ("are broadcast over the channels of the other inputs of 'add' (Elementwise)",)
    assert kept(found, {"wide": [0]})["head", "kernel", 0] == [0]


def test_shapes_are_aligned_at_their_last_axes():
    """(3,) + (4, 4, 3): as TensorFlow broadcasts."""
    tensors = {"x": (2,), "map": (4, 4, 3), "vector": (3,), "sum": (4, 4, 3), "z": (1,)}
    found = coupled(
        tensors,
        dense("map", "x", "map"),
        dense("vector", "x", "vector"),
        node("add", "elementwise", ["map", "vector"], "sum"),
        dense("head", "sum", "z"),
    )
    assert kept(found, {"map": [0, 2]})["vector", "kernel", 1] == [0, 2]


def test_squeeze_and_excite_couples_the_gate_with_what_it_scales():
    tensors = {"x": (4, 4, 2), "f": (4, 4, 3), "pool": (3,), "wide": (1, 1, 3), "s": (1, 1, 2), "e": (1, 1, 3)}
    tensors |= {"gated": (4, 4, 3), "z": (4, 4, 1)}
    found = coupled(
        tensors,
        dense("f", "x", "f"),
        node("pool", "spatial", "f", "pool"),
        node("wide", "reshape", "pool", "wide"),
        dense("squeeze", "wide", "s"),
        dense("excite", "s", "e"),
        node("gate", "elementwise", ["f", "e"], "gated"),
        dense("head", "gated", "z"),
    )
    assert {group.name: group.units for group in found.groups} == {"f": 3, "squeeze": 2, "head": 1}
    assert kept(found, {"f": [0, 1], "squeeze": [1]}) == {
        ("f", "kernel", 1): [0, 1],
        ("f", "bias", 0): [0, 1],
        ("squeeze", "kernel", 0): [0, 1],
        ("squeeze", "kernel", 1): [1],
        ("squeeze", "bias", 0): [1],
        ("excite", "kernel", 0): [1],
        ("excite", "kernel", 1): [0, 1],
        ("excite", "bias", 0): [0, 1],
        ("head", "kernel", 0): [0, 1],
    }
    assert channels.shapes(found, {"f": [0, 1]})["wide"] == (1, 1, 2)


def test_concatenation_puts_each_group_at_its_offset():
    tensors = {"x": (2,), "p": (2,), "q": (3,), "pq": (5,), "n": (5,), "z": (1,)}
    found = coupled(
        tensors,
        dense("p", "x", "p"),
        dense("q", "x", "q"),
        node("join", "concatenate", ["p", "q"], "pq"),
        node("norm", "elementwise", "pq", "n", uses=SCALE),
        dense("head", "n", "z"),
    )
    member = next(member for member in found.group("q").members if member.layer == "head")
    assert (member.positions.tolist(), member.units.tolist()) == ([2, 3, 4], [0, 1, 2])
    assert kept(found, {"p": [1], "q": [0, 2]})["head", "kernel", 0] == [1, 2, 4]
    assert kept(found, {"q": [1]})["norm", "gamma", 0] == [0, 1, 3]


def test_nested_concatenations_like_those_of_densenet():
    tensors = {"x": (2,), "a": (2,), "b": (2,), "ab": (4,), "c": (2,), "abc": (6,), "z": (1,)}
    found = coupled(
        tensors,
        dense("a", "x", "a"),
        dense("b", "a", "b"),
        node("ab", "concatenate", ["a", "b"], "ab"),
        dense("c", "ab", "c"),
        node("abc", "concatenate", ["ab", "c"], "abc"),
        dense("head", "abc", "z"),
    )
    assert kept(found, {"a": [0], "c": [1]})["head", "kernel", 0] == [0, 2, 3, 5]
    assert kept(found, {"b": [1]}) == {
        ("b", "kernel", 1): [1],
        ("b", "bias", 0): [1],
        ("c", "kernel", 0): [0, 1, 3],
        ("head", "kernel", 0): [0, 1, 3, 4, 5],
    }


def test_an_addition_to_a_concatenation_makes_one_group_of_all_three():
    tensors = {"x": (2,), "p": (2,), "q": (3,), "pq": (5,), "r": (5,), "sum": (5,), "z": (1,)}
    found = coupled(
        tensors,
        dense("p", "x", "p"),
        dense("q", "x", "q"),
        node("join", "concatenate", ["p", "q"], "pq"),
        dense("r", "x", "r"),
        node("add", "elementwise", ["pq", "r"], "sum"),
        dense("head", "sum", "z"),
    )
    assert (found.groups[0].name, found.groups[0].units) == ("p", 5)
    assert kept(found, {"p": [1, 4]}) == {
        ("p", "kernel", 1): [1],
        ("p", "bias", 0): [1],
        ("q", "kernel", 1): [2],
        ("q", "bias", 0): [2],
        ("r", "kernel", 1): [1, 4],
        ("r", "bias", 0): [1, 4],
        ("head", "kernel", 0): [1, 4],
    }
    with pytest.raises(CutError, match=r"Nothing would be left of 'p' \(kernel, axis 1\): keep at least one unit"):
        channels.apply(found, {"p": [2, 3, 4]})


def test_concatenation_along_another_axis_couples_like_an_addition():
    tensors = {"x": (2,), "p": (4, 3), "q": (2, 3), "pq": (6, 3), "z": (6, 1)}
    found = coupled(
        tensors,
        dense("p", "x", "p"),
        dense("q", "x", "q"),
        node("join", "concatenate", ["p", "q"], "pq", axis=0),
        dense("head", "pq", "z"),
    )
    assert kept(found, {"p": [2]})["q", "kernel", 1] == [2]


def test_a_depth_multiplier_makes_neighbours_that_go_together():
    uses = (Use("depthwise_kernel", 2, "in", "channel"), Use("bias", 0, "out", "channel"))
    found = chain(node("depth", "depthwise", "a", "m", uses=uses, multiplier=2), (4, 4, 6))
    assert (found.groups[0].units, found.groups[0].step) == (3, 1)
    assert kept(found, {"a": [0, 2]}) == {
        ("a", "kernel", 1): [0, 2],
        ("a", "bias", 0): [0, 2],
        ("depth", "depthwise_kernel", 2): [0, 2],
        ("depth", "bias", 0): [0, 1, 4, 5],
        ("b", "kernel", 0): [0, 1, 4, 5],
    }


def test_a_separable_convolution_reads_each_channel_multiplier_times():
    uses = (
        Use("depthwise_kernel", 2, "in", "channel"),
        Use("pointwise_kernel", 2, "in", "consumer", repeat=2),
        Use("pointwise_kernel", 3, "out", "producer"),
    )
    found = chain(node("sep", "mix", "a", "m", uses=uses), (4, 4, 5))
    assert kept(found, {"a": [1], "sep": [0, 4]}) == {
        ("a", "kernel", 1): [1],
        ("a", "bias", 0): [1],
        ("sep", "depthwise_kernel", 2): [1],
        ("sep", "pointwise_kernel", 2): [2, 3],
        ("sep", "pointwise_kernel", 3): [0, 4],
        ("b", "kernel", 0): [0, 4],
    }


def test_a_convolution_with_many_groups_loses_whole_groups():
    """4 groups, each of 2 input and 2 output channels; the kernel's input axis is one group long and stays."""
    found = chain(dense("grouped", "a", "m", groups=4), (4, 4, 8), before=(4, 4, 8))
    assert (found.groups[0].name, found.groups[0].units, found.groups[0].step) == ("a", 4, 2)
    assert kept(found, {"a": [0, 3]}) == {
        ("a", "kernel", 1): [0, 1, 6, 7],
        ("a", "bias", 0): [0, 1, 6, 7],
        ("grouped", "kernel", 1): [0, 1, 6, 7],
        ("grouped", "bias", 0): [0, 1, 6, 7],
        ("b", "kernel", 0): [0, 1, 6, 7],
    }


def test_a_convolution_with_few_groups_loses_the_same_channel_of_every_group():
    """2 groups, each of 4 input and 3 output channels."""
    found = chain(dense("grouped", "a", "m", groups=2), (4, 4, 6), before=(4, 4, 8))
    assert [(group.name, group.units, group.step) for group in found.groups[:2]] == [("a", 4, 2), ("grouped", 3, 2)]
    assert kept(found, {"a": [0, 1, 3], "grouped": [2]}) == {
        ("a", "kernel", 1): [0, 1, 3, 4, 5, 7],
        ("a", "bias", 0): [0, 1, 3, 4, 5, 7],
        ("grouped", "kernel", 0): [0, 1, 3],
        ("grouped", "kernel", 1): [2, 5],
        ("grouped", "bias", 0): [2, 5],
        ("b", "kernel", 0): [2, 5],
    }


def test_group_normalization_binds_its_bundles():
    found = chain(node("norm", "bundle", "a", "m", uses=SCALE, groups=2), (4, 4, 6), before=(4, 4, 6))
    assert (found.groups[0].units, found.groups[0].step) == (2, 3)
    assert kept(found, {"a": [1]})["norm", "gamma", 0] == [3, 4, 5]


def test_one_bundle_of_all_cannot_be_cut():
    found = chain(node("norm", "bundle", "a", "m", uses=SCALE, groups=1), (4, 4, 3))
    assert found.group("a").reasons == ("go only together, as one",)


def test_layer_normalization_is_cut_but_not_exactly():
    found = chain(node("norm", "normalize", "a", "m", uses=SCALE, axes=(-1,)), (4, 4, 3))
    assert found.group("a").inexact == ("'norm' (Normalize) takes mean and variance over the channels that are left",)
    assert kept(found, {"a": [1]})["norm", "gamma", 0] == [1]


def test_softmax_over_channels_leaves_them_whole_but_not_along_another_axis():
    assert chain(node("soft", "across", "a", "m", axes=(-1,)), (4, 4, 3)).group("a").reasons == (
        "are weighed against each other by 'soft' (Across)",
    )
    assert chain(node("soft", "across", "a", "m", axes=(0,)), (4, 4, 3)).group("a").cuttable


def test_slopes_along_the_channels_follow_them_and_others_do_not():
    """PReLU slopes (4, 1, 3): shared along the second axis."""
    uses = (Use("alpha", 0, "in", "channel", along=0), Use("alpha", 2, "in", "channel", along=2))
    found = chain(node("prelu", "elementwise", "a", "m", uses=uses), (4, 4, 3))
    remaining = kept(found, {"a": [0]})
    assert remaining["prelu", "alpha", 2] == [0]
    assert ("prelu", "alpha", 0) not in remaining


def test_the_calls_of_a_shared_layer_couple():
    """One kernel reads p and q: its rows are the same, so p's channels go with q's."""
    tensors = {"x": (2,), "p": (3,), "q": (3,), "ps": (2,), "qs": (2,), "join": (4,), "z": (1,)}
    found = coupled(
        tensors,
        dense("p", "x", "p"),
        dense("q", "x", "q"),
        dense("shared", "p", "ps"),
        dense("shared", "q", "qs"),
        node("join", "concatenate", ["ps", "qs"], "join"),
        dense("head", "join", "z"),
    )
    assert kept(found, {"p": [0, 2], "shared": [1]}) == {
        ("p", "kernel", 1): [0, 2],
        ("p", "bias", 0): [0, 2],
        ("q", "kernel", 1): [0, 2],
        ("q", "bias", 0): [0, 2],
        ("shared", "kernel", 0): [0, 2],
        ("shared", "kernel", 1): [1],
        ("shared", "bias", 0): [1],
        ("head", "kernel", 0): [1, 3],
    }


def test_the_gates_of_a_recurrent_layer_stand_side_by_side():
    """4 gates of 3 units: unit 1 is columns 1, 4, 7, 10, and row 1 of the recurrent kernel."""
    uses = (
        Use("kernel", 0, "in", "consumer"),
        Use("kernel", 1, "out", "producer", tile=4),
        Use("recurrent_kernel", 0, "out", "consumer"),
        Use("recurrent_kernel", 1, "out", "producer", tile=4),
    )
    tensors = {"x": (5, 2), "a": (5, 2), "units": (3,), "state": (3,), "z": (1,)}
    lstm = Node("lstm", "LSTM", "recurrent", ("a",), ("units", "state"), uses)
    found = coupled(tensors, dense("a", "x", "a"), lstm, dense("head", "units", "z"))
    group = found.group("lstm")
    assert (group.units, group.step) == (3, 1)
    assert [member.indices(1).tolist() for member in group.members] == [[1, 4, 7, 10], [1], [1, 4, 7, 10], [1]]
    assert [member.layer for member in found.group("a").consumers] == ["lstm"]


def test_looked_up_numbers_are_no_channels():
    tensors = {"x": (5,), "rows": (5, 3), "z": (5, 1)}
    table = node("table", "source", "x", "rows", uses=(Use("embeddings", 1, "out", "producer"),))
    found = coupled(tensors, table, dense("head", "rows", "z"))
    assert kept(found, {"table": [0]}) == {("table", "embeddings", 1): [0], ("head", "kernel", 0): [0]}


def test_what_cannot_be_followed_is_left_whole_group_by_group():
    tensors = {"x": (2,), "p": (3,), "q": (3,), "odd": (3,), "r": (3,), "z": (1,)}
    found = coupled(
        tensors,
        dense("p", "x", "p"),
        dense("q", "p", "q"),
        node("odd", "opaque", "q", "odd"),
        dense("r", "odd", "r"),
        dense("head", "r", "z"),
    )
    assert {group.name: group.reasons for group in found.groups} == {
        "p": (),
        "q": ("go into 'odd' (Opaque), which cannot be followed",),
        "r": (),
        "head": ("are an output of the model",),
    }


def test_a_reason_given_for_a_node_leaves_its_outputs_whole():
    found = chain(node("pool", "spatial", "a", "m", reason="are watched"), (2, 2, 3))
    assert found.group("a").reasons == ("are watched",)


def test_several_inputs_and_outputs():
    tensors = {"x": (2,), "y": (2,), "p": (3,), "q": (3,), "sum": (3,), "z": (1,)}
    found = coupled(
        tensors,
        dense("p", "x", "p"),
        dense("q", "y", "q"),
        node("add", "elementwise", ["p", "q"], "sum"),
        dense("head", "sum", "z"),
        inputs=("x", "y"),
        outputs=("z", "q"),
    )
    assert found.group("p").reasons == ("are an output of the model",)


def test_channels_first():
    tensors = {"x": (2, 4, 4), "a": (3, 4, 4), "pool": (3,), "z": (1,)}
    found = coupled(
        tensors,
        dense("a", "x", "a", axis=0),
        node("pool", "spatial", "a", "pool", axis=0),
        dense("head", "pool", "z"),
    )
    assert channels.shapes(found, {"a": [1]}) == {"x": (2, 4, 4), "a": (1, 4, 4), "pool": (1,), "z": (1,)}


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ({"a": []}, "Nothing is kept of 'a': keep at least 1 of its 3 units"),
        ({"a": [0, 3]}, r"are \[0, 3\]; each must be one of 0 to 2, named once"),
        ({"a": [0, -1]}, r"are \[-1, 0\]; each must be one of 0 to 2"),
        ({"a": [1, 1]}, r"are \[1, 1\]; each must be one of 0 to 2, named once"),
        ({"a": [0.5]}, "are float64, not whole numbers from 0 to 2"),
        ({"b": [0]}, "'b' cannot be cut: its channels are an output of the model. Keep all 2 units, or leave it out"),
    ],
)
def test_cuts_that_cannot_be(cut, message):
    with pytest.raises(CutError, match=message):
        channels.apply(chain(node("m", "spatial", "a", "m"), (2, 2, 3)), cut)


def test_an_unknown_group_is_named_with_the_nearest():
    with pytest.raises(NameUnknown, match=r"There is no channel group 'convv'\. Did you mean 'conv'\?"):
        coupled({"x": (2,), "y": (3,), "z": (1,)}, dense("conv", "x", "y"), dense("head", "y", "z")).group("convv")


def test_keeping_everything_changes_nothing():
    found = chain(node("m", "spatial", "a", "m"), (2, 2, 3))
    assert kept(found, {"a": [0, 1, 2], "b": [0, 1]}) == {}


def test_a_long_chain_of_additions_is_one_group():
    """Every layer is added to the next: coupled through hundreds of pairs, whichever order they come in."""
    tensors = {"x": (2,), "p0": (2,)} | {f"{kind}{i}": (2,) for i in range(1, 300) for kind in "ps"}
    nodes = [dense("p0", "x", "p0")]
    for i in range(1, 300):
        nodes += [dense(f"p{i}", "x", f"p{i}"), node(f"s{i}", "elementwise", [f"p{i - 1}", f"p{i}"], f"s{i}")]
    found = coupled(tensors, *nodes, outputs=())
    assert [(group.name, group.units, len(group.producers)) for group in found.groups] == [("p0", 2, 300)]
