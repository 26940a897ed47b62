"""What stays, by hand and by property: exact counts, ties, scopes, floors, multiples, and what cannot be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune import channels, granularity, masks
from edgeprune.channels import Graph, Node, Use
from edgeprune.errors import CutError, RecipeError

WEIGHT, CHANNEL = granularity.weight(), granularity.channel()
A, B = np.array([4.0, 3.0, 2.0, 1.0]), np.array([8.0, 7.0, 6.0, 5.0])


def kept(*arguments, **options):
    """What stays, in plain numbers."""
    return {name: units.tolist() for name, units in masks.cuts(*arguments, **options).items()}


# Counts and ties


def test_the_lowest_go():
    found = masks.masks({"a": np.array([[0.1, 0.9], [0.8, 0.2]])}, 0.5, WEIGHT)
    np.testing.assert_array_equal(found["a"], [[False, True], [True, False]])


@pytest.mark.parametrize(("ratio", "gone"), [(0.0, 0), (0.29, 29), (0.3, 30), (0.305, 30), (0.57, 57), (0.999, 99)])
def test_the_count_is_exact_and_never_more_than_asked(ratio, gone):
    found = masks.masks({"a": np.arange(100.0)}, ratio, WEIGHT)["a"]
    assert (~found).sum() == gone
    assert not found[:gone].any()


def test_of_equal_scores_the_first_stay():
    assert kept({"a": np.ones(5)}, 0.4) == {"a": [0, 1, 2]}
    assert kept({"a": np.array([1.0, 2.0, 1.0, 1.0])}, 0.5) == {"a": [0, 1]}
    assert kept({"a": np.ones(3), "b": np.ones(3)}, 0.5, scope="network") == {"a": [0, 1], "b": [0]}


def test_a_layer_is_never_emptied():
    assert kept({"a": np.ones(1), "b": np.arange(2.0)}, 0.99) == {"a": [0], "b": [1]}
    found = kept({"a": A, "b": 10 * B}, 0.625, scope="network")
    assert found == {"a": [0], "b": [0, 1]}  # by score alone nothing of a would stay


def test_granularities_are_ranked_by_their_groups():
    scores = np.array([[1.0, 9.0], [7.0, 0.0]])
    np.testing.assert_array_equal(masks.masks({"a": scores}, 0.5, CHANNEL)["a"], [[False, True], [False, True]])
    rows = masks.masks({"a": scores}, 0.5, granularity.block(1, 2))["a"]
    np.testing.assert_array_equal(rows, [[True, True], [False, False]])


def test_whole_layers():
    scores = {"a": np.ones((2, 2)), "b": np.full((3, 3), 0.5), "c": np.full(2, 0.7)}
    found = masks.masks(scores, 0.34, granularity.layer(), scope="network")
    assert [mask.all() for mask in found.values()] == [True, False, True]
    assert not found["b"].any()
    found = masks.masks(scores, 0.34, granularity.layer(), scope="network", floors={"b": 1})
    assert [mask.all() for mask in found.values()] == [True, True, False]
    with pytest.raises(RecipeError, match="ranked against each other: choose scope network"):
        masks.masks(scores, 0.5, granularity.layer())


# Patterns


@pytest.mark.parametrize("scope", ["layer", "network"])
@pytest.mark.parametrize(("sparsity", "zeros"), [(0.0, 0), (0.25, 1), (0.5, 2)])
def test_n_of_m_leaves_as_many_in_every_run(scope, sparsity, zeros):
    scores = {"a": np.random.default_rng(0).random((3, 8, 5)), "b": np.zeros((4, 2))}
    found = masks.masks(scores, sparsity, granularity.n_of_m(2, 4), scope=scope)
    np.testing.assert_array_equal((~found["a"].reshape(3, 2, 4, 5)).sum(axis=2), zeros)
    np.testing.assert_array_equal((~found["b"]).sum(axis=0), zeros)


def test_n_of_m_keeps_the_best_of_each_run():
    found = masks.masks({"a": np.array([[1.0], [5.0], [2.0], [4.0]])}, 0.5, granularity.n_of_m(2, 4))
    np.testing.assert_array_equal(found["a"].ravel(), [False, True, False, True])


def test_what_a_pattern_cannot_hold():
    scores, pattern = {"a": np.ones((4, 1))}, granularity.n_of_m(2, 4)
    with pytest.raises(RecipeError, match=r"0.6 does not fit the pattern 2:4. It can be 0, 0.25, 0.5"):
        masks.masks(scores, 0.6, pattern)
    with pytest.raises(RecipeError, match="leave floors and multiples out"):
        masks.masks(scores, 0.5, pattern, multiples=8)


# Scopes


def test_within_a_layer_or_over_the_network():
    scores = {"a": A, "b": B}
    assert kept(scores, 0.5) == {"a": [0, 1], "b": [0, 1]}
    assert kept(scores, 0.375, scope="network") == {"a": [0], "b": [0, 1, 2, 3]}


def test_isomorphic_layers_are_ranked_together():
    scores = {"a": A, "wide": np.arange(2.0, 8.0), "b": B}
    assert kept(scores, 0.5, scope="isomorphic") == {"a": [0], "wide": [3, 4, 5], "b": [0, 1, 2]}
    kinds = {"a": "conv", "wide": "conv", "b": "dense"}
    assert kept(scores, 0.5, scope="isomorphic", kinds=kinds) == {"a": [0], "wide": [2, 3, 4, 5], "b": [0, 1]}
    shapes = {"a": np.ones((1, 4)), "b": np.full((1, 4), 2.0), "c": np.ones((4, 1))}
    found = masks.masks(shapes, 0.5, WEIGHT, scope="isomorphic")
    assert [int(mask.sum()) for mask in found.values()] == [1, 3, 2]


def test_groups_by_expression():
    scores = {"stem": A, "block1": A, "block2": B}
    assert kept(scores, 0.5, scope=["block.*"]) == {"stem": [0, 1], "block1": [0], "block2": [0, 1, 2]}


def test_ratios_by_name_and_expression():
    scores = {"stem": A, "block1": A, "block2": A}
    assert kept(scores, {"block.*": 0.5, "block2": 0.75}) == {"stem": [0, 1, 2, 3], "block1": [0, 1], "block2": [0]}
    assert kept(scores, {"block.*": 0.5}, scope=["block.*"]) == {
        "stem": [0, 1, 2, 3],
        "block1": [0, 1],
        "block2": [0, 1],
    }


# Floors


@pytest.mark.parametrize(("floor", "count"), [(0.0, 1), (0.5, 2), (0.51, 3), (0, 1), (3, 3), (9, 4)])
def test_floors(floor, count):
    assert len(kept({"a": A}, 0.9, floors=floor)["a"]) == count
    assert len(kept({"a": A}, 0.9, floors=np.array(floor)[()])["a"]) == count


def test_under_a_floor_of_one_layer_the_others_give_more():
    found = kept({"a": A, "b": B}, 0.5, scope="network", floors={"a": 0.75})
    assert found == {"a": [0, 1, 2], "b": [0]}


# Multiples


@pytest.mark.parametrize(
    ("size", "ratio", "count"), [(32, 0.5, 16), (32, 0.4, 24), (20, 0.5, 16), (20, 0.1, 20), (6, 0.5, 6), (8, 0.5, 8)]
)
def test_what_is_kept_is_rounded_up_to_the_multiple(size, ratio, count):
    found = kept({"a": np.arange(float(size)), "large": np.arange(64.0)}, ratio, multiples=8)
    assert found["a"] == list(range(size - count, size))


def test_a_unit_may_be_several_channels():
    # 10 units of 2 channels; 0.5 keeps 5 units, 10 channels; the next multiple of 8 is 16 channels, 8 units
    assert len(kept({"a": np.arange(10.0)}, 0.5, multiples=8, steps={"a": 2})["a"]) == 8
    # of 3 channels: 15 of 30; 24 is the next multiple of 8 that 3 divides
    assert len(kept({"a": np.arange(10.0)}, 0.5, multiples=8, steps={"a": 3})["a"]) == 8


def test_steps_that_grow():
    stair = masks.stairs(16, 64, 64)
    assert [stair(count) for count in (1, 16, 17, 64, 65, 129)] == [16, 16, 32, 64, 128, 192]
    assert len(kept({"a": np.arange(256.0)}, 0.6, multiples=stair)["a"]) == 128  # 103 of 256
    assert len(kept({"a": np.arange(256.0)}, 0.9, multiples=stair)["a"]) == 32  # 26 of 256


def test_multiples_by_name():
    scores = {"a": np.arange(20.0), "b": np.arange(20.0)}
    assert [len(units) for units in kept(scores, 0.5, multiples={"b": 8}).values()] == [10, 16]


def test_a_cut_is_what_the_coupling_takes():
    uses = (Use("kernel", 0, "in", "consumer"), Use("kernel", 1, "out", "producer"))
    nodes = [Node(name, "Dense", "mix", (given,), (made,), uses) for name, given, made in ("axy", "byz")]
    coupling = channels.couple(Graph({"x": (2,), "y": (4,), "z": (1,)}, tuple(nodes), ("x",), ("z",)))
    cut = masks.cuts({group.name: A for group in coupling.groups if group.cuttable}, 0.5)
    found = channels.apply(coupling, cut)
    assert {key: left.tolist() for key, left in found.items()} == {
        ("a", "kernel", 1): [0, 1],
        ("b", "kernel", 0): [0, 1],
    }


# What cannot be


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (CutError, {"ratio": 1.0}, "ratio of 1 would leave nothing of 'a'"),
        (CutError, {"ratio": {"b": 1}}, "nothing of 'b'"),
        (RecipeError, {"ratio": -0.1}, "ratio of 'a' is -0.1; it is the share that goes"),
        (RecipeError, {"ratio": 1.5}, "ratio of 'a' is 1.5"),
        (RecipeError, {"ratio": float("nan")}, "ratio of 'a' is nan"),
        (RecipeError, {"ratio": {"aa": 0.5}}, "ratios: 'aa' matches no layer. Did you mean 'a'"),
        (RecipeError, {"scope": ["conv.*"]}, "scope: 'conv.*' matches no layer.* 'a', 'b'"),
        (RecipeError, {"scope": ["(a"]}, r"scope: '\(a' is not a regular expression"),
        (RecipeError, {"scope": "netwrok"}, "no scope 'netwrok'. Did you mean 'network'"),
        (
            RecipeError,
            {"ratio": {"a": 0.5, "b": 0.25}, "scope": "network"},
            "different ratios .0.5, 0.25.* scope layer",
        ),
        (CutError, {"ratio": 0.8, "scope": "network"}, "0.8 of 'a', 'b' is 6 of 8, but at least 4 .* at most 0.5"),
        (RecipeError, {"floors": 1.5}, "floor of 'a' is 1.5. Give a share"),
        (RecipeError, {"floors": -1}, "floor of 'a' is -1"),
        (RecipeError, {"floors": {"c": 0.5}}, "floors: 'c' matches no layer"),
        (
            CutError,
            {"multiples": 8, "floors": None},
            "'a' has 4 channels, fewer than the 8 .* no layer has more.* at most 4",
        ),
        (
            CutError,
            {"multiples": {"b": 8}, "floors": None},
            "'b' has 4 channels, fewer than the 8 .* at most 4, or leave it",
        ),
        (RecipeError, {"multiples": 0}, "multiple of channels must be >= 1, got 0"),
    ],
)
def test_refusals(error, options, message):
    with pytest.raises(error, match=message):
        masks.cuts({"a": A, "b": B}, **{"ratio": 0.5, "floors": 2, **options})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite(bad):
    with pytest.raises(CutError, match="1 of the 3 scores of 'a' are not finite"):
        masks.masks({"a": np.array([1.0, bad, 0.0])}, 0.5, WEIGHT)


def test_nothing_to_rank():
    assert masks.cuts({}, 0.5) == {}
    assert masks.masks({}, 0.5, WEIGHT, scope="network") == {}


# Normalising


@pytest.mark.parametrize(("by", "expected"), [("sum", 0.6), ("mean", 1.2), ("max", 1.0), ("l2", 3 / 13**0.5)])
def test_normalised(by, expected):
    found = masks.normalised({"a": np.array([3.0, 2.0]), "dead": np.zeros(2)}, by)
    np.testing.assert_allclose(found["a"][0], expected)
    np.testing.assert_array_equal(found["dead"], [0.0, 0.0])
    with pytest.raises(RecipeError, match="Did you mean 'mean'"):
        masks.normalised({}, "meen")


# Properties

LAYERS = st.lists(
    st.lists(st.integers(0, 5), min_size=1, max_size=40), min_size=1, max_size=5
)  # few values, so that there are many ties
SCOPE = st.sampled_from(["layer", "network", "isomorphic", ["l0"], ["l.*"]])


def drawn(layers):
    return {f"l{number}": np.array(values, float) for number, values in enumerate(layers)}


@given(LAYERS, st.floats(0, 0.99), SCOPE)
def test_what_goes_is_never_more_than_asked_and_never_better_than_what_stays(layers, ratio, scope):
    scores = drawn(layers)
    total = sum(map(len, layers))
    try:
        found = masks.masks(scores, ratio, WEIGHT, scope=scope)
    except CutError as error:
        assert scope != "layer"
        assert "lower the ratio" in str(error)
        return
    assert sum(int((~mask).sum()) for mask in found.values()) <= ratio * total + 1e-6
    for name, mask in found.items():
        assert mask.shape == scores[name].shape
        assert mask.any()
        if not mask.all():
            assert scores[name][mask].min() >= scores[name][~mask].max()
            ties = scores[name] == scores[name][~mask].max()
            assert not (np.diff(mask[ties].astype(int)) > 0).any()  # of equals the first stay
    if scope == "network" or scope == ["l.*"]:
        assert sum(int((~mask).sum()) for mask in found.values()) == int(ratio * total + 1e-9)


@given(LAYERS, st.floats(0, 0.99), st.integers(1, 9), st.one_of(st.integers(0, 12), st.floats(0, 1)))
def test_floors_and_multiples_hold(layers, ratio, multiple, floor):
    scores = {**drawn(layers), "large": np.arange(50.0)}
    for name, units in masks.cuts(scores, ratio, multiples=multiple, floors=floor).items():
        size = len(scores[name])
        assert len(units) == size or len(units) % multiple == 0
        assert len(units) >= min(size, floor if isinstance(floor, int) else floor * size - 1e-6)
        assert len(units) >= 1
        assert len(units) >= size - ratio * size - 1e-6
        assert (np.diff(units) > 0).all()


@given(LAYERS, st.floats(0, 0.9), st.integers(0, 99))
def test_more_sparsity_only_takes_more(layers, ratio, seed):
    scores = drawn(layers)
    less = np.random.default_rng(seed).random() * ratio
    some, more = masks.masks(scores, less, WEIGHT), masks.masks(scores, ratio, WEIGHT)
    assert all((some[name] | ~more[name]).all() for name in scores)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(0, 60))
def test_highest_is_a_stable_sort(values, count):
    count = min(count, len(values))
    scores = np.array(values, float)
    expected = np.zeros(len(values), bool)
    expected[np.argsort(-scores, kind="stable")[:count]] = True
    np.testing.assert_array_equal(masks.highest(scores, count), expected)
