"""From sensitivity curves to the counts of every group: limits held, least damage, and the nearest point where none holds."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from edgeprune import allocation, metrics
from edgeprune.errors import BudgetError
from edgeprune.metrics import METRICS
from edgeprune.search_space import Knob, Space

INPUTS = 3


def chain(*units, kept=None, peak=False):
    """A chain of layers: what a layer costs grows with the channels on both of its sides."""
    knobs = tuple(Knob(f"layer{place}", count, kept or tuple(range(1, count + 1))) for place, count in enumerate(units))

    def costs(candidate):
        widths = [INPUTS, *(int(candidate[knob.name]) for knob in knobs)]
        pairs = list(itertools.pairwise(widths))
        found = {"macs": float(sum(one * other for one, other in pairs)), "size_bytes": float(sum(widths))}
        return found | ({"arena_bytes": float(max(one + other for one, other in pairs))} if peak else {})

    return Space(knobs, {}, costs)


def bowl(knob, weight):
    """Damage that grows with the square of the share that went."""
    return {count: weight * (1 - count / knob.units) ** 2 for count in knob.kept}


def curves(space, *weights):
    return {knob.name: bowl(knob, weight) for knob, weight in zip(space.knobs, weights, strict=True)}


def total(space, given, candidate, even=allocation.EVEN):
    return sum(
        given[knob.name].get(candidate[knob.name], 0.0) + even * math.log(knob.units / candidate[knob.name])
        for knob in space.knobs
    )


@pytest.mark.parametrize(
    ("metric", "whole", "left", "expected"),
    [
        ("accuracy", 0.8, 0.4, math.log(2)),
        ("accuracy", 0.8, 0.9, 0.0),
        ("accuracy", 0.8, 0.0, math.log(100)),
        ("mse", 0.1, 0.2, math.log(2)),
        ("mse", 0.1, 0.05, 0.0),
        ("mse", 0.0, 0.2, 0.2 / allocation.ALMOST),
        ("snr", -2.0, -3.0, 0.5),
    ],
)
def test_damage(metric, whole, left, expected):
    assert allocation.damage(METRICS[metric], whole, left) == pytest.approx(expected)


def test_nothing_goes_where_the_whole_keeps_the_limits():
    space = chain(8, 8)
    assert allocation.allocate(space, curves(space, 1, 1), {"macs": 1e9}) == space.whole()


@pytest.mark.parametrize("share", [0.9, 0.6, 0.3, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_it_keeps_the_limits_and_is_near_the_optimum(seed, share):
    random = np.random.default_rng(seed)
    space = chain(8, 8, 8)
    given = curves(space, *random.uniform(0.1, 3, 3))
    most = share * space.costs(space.whole())["macs"]
    found = allocation.allocate(space, given, {"macs": most})
    assert space.costs(found)["macs"] <= most
    every = (dict(zip(found, counts, strict=True)) for counts in itertools.product(range(1, 9), repeat=3))
    best = min(total(space, given, one) for one in every if space.costs(one)["macs"] <= most)
    assert total(space, given, found) <= 1.02 * best + 0.002


def test_what_is_insensitive_goes_first():
    space = chain(8, 8)
    found = allocation.allocate(space, curves(space, 5, 0.01), {"size_bytes": 14})
    assert found["layer0"] == 8 and found["layer1"] == 3


def test_every_limit_holds_at_once():
    space = chain(16, 16, 16, kept=(4, 8, 12, 16), peak=True)
    limits = {"macs": 250.0, "size_bytes": 36.0, "arena_bytes": 24.0}
    found = allocation.allocate(space, curves(space, 1, 2, 3), limits)
    assert all(space.costs(found)[name] <= most for name, most in limits.items())
    assert all(found[knob.name] in knob.kept for knob in space.knobs)


def test_a_peak_that_stands_in_two_places_goes_down_too():
    space = chain(8, 8, 8, peak=True)
    found = allocation.allocate(space, curves(space, 1, 1, 1), {"arena_bytes": 11})
    assert space.costs(found)["arena_bytes"] == 11


def test_units_come_back_until_the_next_would_break_a_limit():
    space = chain(64, 64)
    limit = {"macs": 0.37 * space.costs(space.whole())["macs"]}
    found = allocation.allocate(space, curves(space, 1, 1), limit)
    for name in found:
        assert space.costs({**found, name: found[name] + 1})["macs"] > limit["macs"]


def test_a_heavy_pull_shares_evenly():
    space = chain(16, 16, 16)
    found = allocation.allocate(space, curves(space, 9, 0.1, 3), {"size_bytes": 27}, even=1000.0)
    assert set(found.values()) == {8}


def test_without_curves_shares_are_even():
    space = chain(16, 16)
    assert set(allocation.allocate(space, {}, {"size_bytes": 19}).values()) == {8}


def test_noise_in_a_curve_never_makes_a_harder_cut_cheaper():
    space = chain(8)
    noisy = {"layer0": {6: 0.3, 4: 0.1, 2: 0.2}}
    harm = allocation._harm(space.knobs[0], noisy["layer0"], 0.0)
    values = [harm(count) for count in (8, 7, 6, 5, 4, 3, 2, 1)]
    assert values == sorted(values) and values[0] == 0


def test_it_is_deterministic():
    space = chain(16, 16, 16)
    given = curves(space, 1, 1, 1)
    assert allocation.allocate(space, given, {"macs": 200.0}) == allocation.allocate(space, given, {"macs": 200.0})


def test_limits_that_no_cut_meets_are_refused_with_the_nearest():
    space = chain(8, 8, kept=(4, 8))
    with pytest.raises(BudgetError, match="it still has macs 28 where at most 20 is asked for") as caught:
        allocation.allocate(space, curves(space, 1, 1), {"macs": 20.0, "size_bytes": 1e6})
    assert caught.value.nearest.candidate == {"layer0": 4, "layer1": 4}
    assert caught.value.nearest.costs["macs"] == 28


def test_counts_to_measure_hold_the_least_and_never_the_whole():
    knob = Knob("layer", 64, tuple(range(8, 65, 8)))
    assert allocation.some_counts(knob, 3) == (8, 32, 56)
    assert allocation.some_counts(knob, 99) == knob.kept[:-1]
    assert allocation.some_counts(Knob("layer", 8, (8,)), 3) == ()


def test_every_metric_has_a_damage():
    for metric in metrics.METRICS.values():
        assert allocation.damage(metric, 0.5, 0.5) == 0
