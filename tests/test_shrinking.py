"""How much goes, by hand: ratios over rounds, steps that pay, groups that stay whole, aims reached by bisection."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune import channels, shrinking
from edgeprune.channels import Graph, Node, Use
from edgeprune.errors import CutError, RecipeError
from edgeprune.target import ChannelMultiple

SCORES = {"a": np.arange(1.0, 9.0), "b": np.arange(11.0, 19.0)}
UNITS = {"a": 8, "b": 8}


def chain(*sizes):
    """Layers that mix channels one after the other: ``l0``, ``l1`` ..."""
    nodes = [
        Node(
            layer=f"l{place}",
            kind="Dense",
            rule="mix",
            inputs=(f"t{place}",),
            outputs=(f"t{place + 1}",),
            uses=(Use("kernel", 0, "in", "consumer"), Use("kernel", 1, "out", "producer")),
        )
        for place in range(len(sizes) - 1)
    ]
    shapes = {f"t{place}": (size,) for place, size in enumerate(sizes)}
    return channels.couple(Graph(shapes, tuple(nodes), ("t0",), (f"t{len(nodes)}",)))


def plain(cut):
    return {name: units.tolist() for name, units in cut.items()}


# What may be cut


def test_outputs_stay_and_expressions_choose():
    coupling = chain(4, 8, 8, 2)
    why = shrinking.left_whole(coupling)
    assert why["l0"] is None and why["l1"] is None and "output of the model" in why["l2"]
    assert shrinking.left_whole(coupling, include="l1")["l0"] == "not named by include"
    assert shrinking.left_whole(coupling, exclude="l[01]")["l1"] == "named by exclude"


@pytest.mark.parametrize("words", [{"include": "conv"}, {"exclude": "l"}])
def test_an_expression_that_matches_nothing(words):
    (what,) = words
    with pytest.raises(RecipeError, match=rf"{what}: '.*' matches no group of channels.*whole name of: l0, l1, l2"):
        shrinking.left_whole(chain(4, 8, 8, 2), **words)


def test_a_group_has_the_names_of_all_layers_that_make_it():
    member = channels.Member("second", "kernel", 1, "producer", np.arange(4), np.arange(4))
    group = channels.Group("first", 4, 1, (member._replace(layer="first"), member))
    coupling = channels.Coupling(Graph({}, (), (), ()), (group,), {}, {}, np.zeros(0, int), np.zeros(0, int))
    assert shrinking.left_whole(coupling, exclude="second") == {"first": "named by exclude"}


# Ratios and rounds


def test_one_round():
    rules = shrinking.Rules(UNITS)
    assert plain(rules.cut(SCORES, 0.25)) == {"a": [2, 3, 4, 5, 6, 7], "b": [2, 3, 4, 5, 6, 7]}
    assert rules.cut(SCORES, 0.0) == {}


def test_rounds_end_where_one_round_does():
    rules = shrinking.Rules(UNITS, multiples=4)
    scores = dict(SCORES)
    for progress in (1 / 3, 2 / 3, 1.0):
        cut = rules.cut(scores, 0.5, progress)
        scores = {name: values[cut.get(name, slice(None))] for name, values in scores.items()}
    assert plain(scores) == {"a": [5, 6, 7, 8], "b": [15, 16, 17, 18]}


def test_every_round_keeps_the_same_share():
    rules = shrinking.Rules({"a": 64})
    first = rules.cut({"a": np.arange(64.0)}, 0.75, 0.5)["a"]
    second = rules.cut({"a": np.arange(32.0)}, 0.75, 1.0)["a"]
    assert (len(first), len(second)) == (32, 16)


def test_what_is_gone_counts_over_the_network():
    rules = shrinking.Rules(UNITS, scope="network")
    assert plain(rules.cut(SCORES, 0.25)) == {"a": [4, 5, 6, 7]}
    assert plain(rules.cut({"a": np.arange(4.0), "b": SCORES["b"]}, 0.5)) == {"a": [3], "b": list(range(1, 8))}
    assert rules.cut({"a": np.arange(4.0), "b": SCORES["b"]}, 0.25) == {}


def test_ratios_of_their_own():
    rules = shrinking.Rules(UNITS, ratios={"b": 0.75})
    assert {name: len(units) for name, units in rules.cut(SCORES, 0.25).items()} == {"a": 6, "b": 2}
    rules = shrinking.Rules(UNITS, ratios={".*": 0.5})
    assert {name: len(units) for name, units in rules.cut(SCORES, 0.0).items()} == {"a": 4, "b": 4}


@given(st.integers(1, 5), st.floats(0, 0.9), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_rounds_never_bring_back_what_is_gone(rounds, ratio, multiple, seed):
    random = np.random.default_rng(seed)
    units = {"a": 12, "b": 7, "c": 5}
    rules = shrinking.Rules(units, scope="network", floors=0.05, multiples=multiple)
    left = dict(units)
    for number in range(1, rounds + 1):
        cut = rules.cut({name: random.random(count) for name, count in left.items()}, ratio, number / rounds)
        assert all(0 < len(kept) < left[name] and max(kept) < left[name] for name, kept in cut.items())
        left |= {name: len(kept) for name, kept in cut.items()}
    assert all(left[name] == units[name] or left[name] % multiple == 0 for name in units)


# Steps that pay


def test_stairs_of_a_target():
    pi = shrinking.stair(ChannelMultiple.model_validate({"out": 8, "in": 8}))
    tpu = shrinking.stair(ChannelMultiple.model_validate({"out": 16, "in": 4, "until": 64, "beyond": 64}))
    assert (pi, shrinking.smallest(pi), shrinking.smallest(tpu)) == (8, 8, 16)
    assert [tpu(count) for count in (1, 16, 17, 64, 65)] == [16, 16, 32, 64, 128]
    assert shrinking.stair(None) == shrinking.smallest(1) == 1


# Aims


def left(cut):
    """Share of the units that remain."""
    return sum(len(cut.get(name, range(count))) for name, count in UNITS.items()) / sum(UNITS.values())


@pytest.mark.parametrize(("most", "remain"), [(1.0, 16), (0.75, 12), (0.7, 11), (0.2, 3)])
def test_an_aim_is_reached_and_not_overshot(most, remain):
    rules = shrinking.Rules(UNITS, scope="network")
    _, cut = rules.reach(SCORES, left, most, "stages.shrink.params")
    assert left(cut) == remain / 16


def test_groups_that_need_not_lose_anything_are_spared():
    rules = shrinking.Rules(UNITS, multiples=4)
    scores = {"a": SCORES["a"], "b": np.arange(8.0)}  # a loses 1 + 2 + 3 + 4, b only 0 + 1 + 2 + 3
    ratio, cut = rules.reach(scores, left, 0.8, "stages.shrink.macs")
    assert ratio == pytest.approx(0.5, abs=1e-6) and plain(cut) == {"b": [4, 5, 6, 7]}
    _, cut = rules.reach(scores, left, 0.5, "stages.shrink.macs")
    assert plain(cut) == {"a": [4, 5, 6, 7], "b": [4, 5, 6, 7]}


def test_an_aim_that_no_ratio_reaches_says_what_remains():
    rules = shrinking.Rules(UNITS, scope="network", floors=3)
    with pytest.raises(CutError, match=r"stages\.shrink\.macs: 0\.3 is asked for, but at least 0\.375 .* remain"):
        rules.reach(SCORES, left, 0.3, "stages.shrink.macs")


@pytest.mark.parametrize("scope", ["layer", "network"])
@pytest.mark.parametrize("multiple", [1, 3, 4])
@given(seed=st.integers(0, 1000))
def test_what_remains_at_least_does_not_depend_on_scores(scope, multiple, seed):
    """So a stage can refuse an aim while nothing is scored yet."""
    rules = shrinking.Rules(UNITS, scope=scope, floors=0.3, multiples=multiple)

    def said(scores):
        with pytest.raises(CutError, match="at least") as caught:
            rules.reach(scores, left, 0.01, "stages.shrink.macs")
        return str(caught.value)

    random = np.random.Generator(np.random.PCG64(seed))
    alike = {name: np.ones(count) for name, count in UNITS.items()}
    assert said({name: random.random(count) for name, count in UNITS.items()}) == said(alike)


def test_what_hinders_every_cut_is_told_as_it_is():
    rules = shrinking.Rules(UNITS, multiples={"a": 16})
    with pytest.raises(CutError, match="'a' has 8 channels, fewer than the 16"):
        rules.reach(SCORES, left, 0.5, "stages.shrink.macs")
