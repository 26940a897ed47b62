"""Masks from scores: at once, in rounds, along a ramp, and ever others at a constant count."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from edgeprune import sparsifying
from edgeprune.errors import CutError, RecipeError
from edgeprune.sparsifying import Ramp, Rule


def scores(*shapes, seed=0):
    random = np.random.default_rng(seed)
    return {f"k{number}": random.random(shape) for number, shape in enumerate(shapes)}


def test_examples_in_docstrings():
    assert doctest.testmod(sparsifying).failed == 0


def test_the_highest_stay():
    found = sparsifying.decided({"k": np.array([[1.0, 4.0], [3.0, 2.0]])}, 0.5, Rule())
    assert np.array_equal(found["k"], [[False, True], [True, False]])


def test_erk_and_the_network_share_the_budget_in_their_own_ways():
    given = scores((5, 5, 4, 8), (200, 50))
    for rule in (Rule(), Rule(distribution="erk"), Rule(scope="network")):
        found = sparsifying.decided(given, 0.9, rule)
        assert sparsifying.sparsity_of(found) == pytest.approx(0.9, abs=2e-4)
    erk = sparsifying.decided(given, 0.9, Rule(distribution="erk"))
    assert erk["k0"].mean() > 0.1 > erk["k1"].mean()


@pytest.mark.parametrize(
    "rule",
    [
        Rule(),
        Rule(distribution="erk"),
        Rule(scope="network"),
        Rule(criterion="l2", granularity="block", block=(2, 1)),
        Rule(granularity="n:m"),
    ],
    ids=["weight", "erk", "network", "block", "n:m"],
)
def test_zeros_of_earlier_stages_stay_and_count(rule):
    given = scores((8, 8), (3, 3, 4, 8))
    first = sparsifying.decided(given, 0.25, rule)
    second = sparsifying.decided(scores((8, 8), (3, 3, 4, 8), seed=1), 0.5, rule, first)
    assert all(not (second[name] & ~first[name]).any() for name in first)
    assert sparsifying.sparsity_of(second) == pytest.approx(0.5, abs=0.01 if rule.granularity != "block" else 0.13)


def test_scores_of_channels_are_refused():
    with pytest.raises(RecipeError, match="'fpgm' ranks channels, and here single weights are ranked"):
        sparsifying.scored("fpgm", {"k": {"weights": np.ones((3, 4))}})


def test_rounds_keep_the_same_share_each():
    left = [1 - sparsifying.reached(0.875, k / 3) for k in (1, 2, 3)]
    assert left == pytest.approx([0.5, 0.25, 0.125])
    assert sparsifying.reached(0.9, 1.0, 0.3) == 0.9
    assert 1 - sparsifying.reached(0.9, 0.5, 0.6) == pytest.approx((0.4 * 0.1) ** 0.5)


@pytest.mark.parametrize("steps", [1, 2, 7, 100, 5000])
@pytest.mark.parametrize("span", [(0.0, 1.0), (0.2, 0.6), (0.99, 1.0), (0.3, 0.3001)], ids=str)
@pytest.mark.parametrize("frequency", [None, 1, 16, 10_000])
def test_updates_lie_within_the_training_and_end_with_the_last(steps, span, frequency):
    due = sparsifying.updates(*span, steps, frequency)
    assert due == sorted(set(due)) and due[0] >= 0 and due[-1] <= steps - 1
    assert due[-1] == min(round(span[1] * steps), steps - 1)
    assert frequency is not None or len(due) <= 101


@pytest.mark.parametrize(
    ("ramp", "expected"),
    [
        (Ramp("constant", 0.0, 0.8, begin=0.5), [0.0, 0.8, 0.8]),
        (Ramp("polynomial", 0.2, 0.6, power=1.0), [0.2, 0.4, 0.6]),
        (Ramp("polynomial", 0.0, 0.5, zeros=2, of=4), [0.25, 0.5, 0.5]),
    ],
    ids=["constant", "polynomial", "n:m"],
)
def test_ramps(ramp, expected):
    assert [ramp.function()(progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx(expected)


def test_the_smallest_go_and_the_best_others_come():
    worth = np.array([[5.0, 1.0, 4.0], [3.0, 0.0, 0.0]])
    growth = np.array([[9.0, 2.0, 9.0], [9.0, 1.0, 3.0]])
    mask = np.array([[True, True, True], [True, False, False]])
    found = sparsifying.moved(worth, growth, mask, 0.25)
    assert np.array_equal(found, [[True, False, True], [True, False, True]])
    back = sparsifying.moved(worth, np.where(mask, 5.0, growth), mask, 0.25)
    assert np.array_equal(back, mask)  # what went is the best that could come


def test_the_count_is_constant_and_what_is_gone_for_good_stays_gone():
    random = np.random.default_rng(0)
    given = random.random((20, 30)) < 0.5
    mask = given & (random.random((20, 30)) < 0.4)
    for seed in range(20):
        values = scores((20, 30), (20, 30), seed=seed)
        after = sparsifying.moved(values["k0"], values["k1"], mask, 0.3, given)
        assert after.sum() == mask.sum() and not (after & ~given).any()
        mask = after


def test_a_full_kernel_has_nothing_to_move():
    values = scores((4, 4), (4, 4))
    mask = np.ones((4, 4), bool)
    assert sparsifying.moved(values["k0"], values["k1"], mask, 0.5).all()


def test_steps_are_taken_in_the_order_of_their_costs():
    """a's first step is free, b's cost more than a's second: so a goes to its end, and b gives what is left to give."""
    costs = {"a": [0.0, 0.0, 1.0], "b": [0.0, 2.0, 3.0]}
    shares = {"a": [0.0, 0.5, 0.75], "b": [0.0, 0.5, 0.75]}
    assert sparsifying.allotted(costs, shares, {"a": 8, "b": 8}, 0.5) == {"a": 0.75, "b": 0.25}


def test_a_step_that_costs_less_than_the_one_before_waits_for_it():
    costs = {"a": [0.0, 5.0, 1.0], "b": [0.0, 2.0, 3.0]}
    shares = {"a": [0.0, 0.5, 0.75], "b": [0.0, 0.5, 0.75]}
    assert sparsifying.allotted(costs, shares, {"a": 8, "b": 8}, 0.375) == {"a": 0.0, "b": 0.75}


def test_more_than_the_ladders_hold_is_refused():
    with pytest.raises(CutError, match=r"sparsity of 0\.9 is asked for, but .* can have 0\.5 at most"):
        sparsifying.allotted({"a": [0.0, 1.0]}, {"a": [0.0, 0.5]}, {"a": 8}, 0.9)
