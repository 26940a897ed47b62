"""Our own samplers: what each must do by being one, on a space whose best candidates are known, and each formula by hand."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from edgeprune import catalogue, registry, search, search_study
from edgeprune.errors import CutError
from edgeprune.samplers import _aims, _ddpg, amc, annealing, legr, netadapt, supernet, uniform
from edgeprune.search_space import Knob, Proposal, Space, Told, allowed

OWN = [name for name in registry.names("samplers") if hasattr(registry.module("samplers", name), "propose")]
OURS = ["amc", "annealing", "legr", "netadapt", "supernet", "uniform"]
HALF = {"macs": 0.5}
UNITS = (16, 24, 32, 48, 16, 32)
SIZES = (1.5, 0.3, 1.0, 0.5, 2.0, 0.7, 1.0)
WORTH = (
    0.05,
    3.0,
    0.3,
    0.02,
    2.0,
    0.1,
)  # of a group's units: cutting the second hurts sixty times as much as the first
SCORES = {
    f"g{number}": np.sort(np.random.default_rng(number).exponential(1, units)) * worth / units
    for number, (units, worth) in enumerate(zip(UNITS, WORTH, strict=True))
}


def costs(candidate):
    """A chain of layers: the multiply-accumulates of each are the product of the channels before and behind it."""
    counts = [8, *(int(candidate[name]) for name in SCORES), 10]
    macs = sum(size * into * out for size, (into, out) in zip(SIZES, itertools.pairwise(counts), strict=True))
    size = sum(into * out for into, out in itertools.pairwise(counts))
    return {"macs": macs, "size_bytes": size * (0.5 if candidate.get("quantize") == "int4" else 1.0)}


def drop(candidate):
    """A convex loss for each group, and a little for the second criterion and the coarser words."""
    lost = [
        worth * (1 - int(candidate[name]) / units) ** 2 for name, units, worth in zip(SCORES, UNITS, WORTH, strict=True)
    ]
    words = 0.1 * (candidate.get("criterion") == "l2") + 0.05 * (candidate.get("quantize") == "int4")
    return float(1 - np.exp(-0.3 * (sum(lost) + words)))


@cache
def planted(limits=None, words=False):
    """The space; limits as shares of the whole network's costs."""
    knobs = tuple(
        Knob(
            name, units, allowed(units, 1, 4), {"place": number / 5, "units": float(units), "macs_share": SIZES[number]}
        )
        for number, (name, units) in enumerate(zip(SCORES, UNITS, strict=True))
    )
    choices = {"criterion": ("taylor", "l2"), "quantize": ("int8", "int4")} if words else {}
    whole = costs({knob.name: knob.units for knob in knobs})
    most = {name: share * whole[name] for name, share in limits or ()}
    return Space(knobs, choices, costs, most, lambda criterion: SCORES)


def searched(propose, space, count, seed=0, history=()):
    """The history after so many more evaluations, one after the other."""
    history = list(history)
    for _ in range(count):
        number = len(history)
        proposal = propose(space, tuple(history), 1000 * seed + number)
        history.append(
            Told(proposal.candidate, drop(proposal.candidate), space.costs(proposal.candidate), proposal.notes)
        )
    return history


def by_chance(space, history, seed):
    """Random search, which draws until the limits are met."""
    generator = np.random.default_rng(seed)
    return Proposal(next(one for one in iter(lambda: space.random(generator), None) if space.feasible(one)))


def module(name):
    return registry.module("samplers", name)


def plain(history):
    return [(dict(told.candidate), json.loads(json.dumps(dict(told.notes)))) for told in history]


# the family


def test_the_family_is_found_without_importing_anything_heavy():
    assert set(OURS) <= set(OWN)
    code = (
        "import sys; from edgeprune.samplers import amc, annealing, legr, netadapt, supernet, uniform; "
        "assert not {'tensorflow', 'tf_keras', 'optuna'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("name", registry.names("samplers"))
def test_every_sampler_says_what_it_does_where_it_is_from_and_what_it_costs(name):
    found = catalogue.sampler(name)
    assert found.purpose and found.papers and found.cost
    assert found.judge in ("cut", "supernet")


@pytest.mark.parametrize("limits", [None, (("macs", 0.5),), (("macs", 0.6), ("size_bytes", 0.4))])
@pytest.mark.parametrize("name", OWN)
def test_proposals_are_of_the_space_and_keep_its_limits(name, limits):
    space = planted(limits, words=True)
    history = searched(module(name).propose, space, 30)
    for told in history:
        assert dict(told.candidate) == dict(space.clamp(told.candidate))
        json.dumps(dict(told.notes))
    if name in OURS and not getattr(module(name), "OVER_LIMITS", False):
        assert all(space.feasible(told.candidate) for told in history)


@pytest.mark.parametrize("name", OWN)
def test_the_same_history_and_seed_give_the_same_proposal(name):
    space = planted((("macs", 0.5),), words=True)
    history = searched(module(name).propose, space, 26)
    assert plain(searched(module(name).propose, space, 26)) == plain(history)
    fresh = planted.__wrapped__((("macs", 0.5),), words=True)  # as after a restart: nothing is remembered of it
    again = searched(module(name).propose, fresh, 2, history=history[:24])
    assert plain(again) == plain(history)
    before = searched(module(name).propose, space, 1, history=history[:7])  # back to what is long past
    assert plain(before) == plain(history[:8])


@pytest.mark.parametrize("name", OURS)
def test_notes_may_come_back_from_a_storage_as_json(name):
    space = planted()
    history = searched(module(name).propose, space, 24)
    stored = [told._replace(notes=json.loads(json.dumps(dict(told.notes)))) for told in history]
    assert module(name).propose(space, stored, 9) == module(name).propose(space, history, 9)


@pytest.mark.parametrize("name", sorted(set(OURS) - {"uniform", "netadapt"}))
def test_another_seed_gives_another_search(name):
    space = planted()
    one, other = (plain(searched(module(name).propose, space, 5, seed)) for seed in (1, 2))
    assert one != other


@pytest.mark.parametrize("name", OURS)
def test_a_history_of_another_sampler_can_be_gone_on_with(name):
    space = planted((("macs", 0.5),))
    before = searched(by_chance, space, 22)
    after = searched(module(name).propose, space, 3, history=before)
    assert len(after) == 25


@pytest.mark.parametrize("name", OURS)
def test_limits_that_nothing_meets_are_named(name):
    space = planted((("macs", 0.001),))
    with pytest.raises(CutError, match=r"macs: at most .* the smallest network of this search has"):
        module(name).propose(space, (), 0)


@pytest.mark.parametrize("name", OURS)
def test_without_limits_the_whole_front_is_looked_at(name):
    space = planted()
    whole = space.costs(space.whole())["macs"]
    shares = np.array([told.costs["macs"] / whole for told in searched(module(name).propose, space, 60)])
    assert (shares < 0.4).sum() >= 5
    assert (shares > 0.7).sum() >= 5
    assert (shares > 0.4).sum() + (shares < 0.7).sum() - len(shares) >= 5


@pytest.mark.parametrize("name", OURS)
def test_a_space_with_nothing_to_choose_is_no_trap(name):
    space = Space((Knob("only", 4, (4,)),), {}, lambda c: {"macs": 4.0}, {}, lambda criterion: {"only": np.ones(4)})
    for history in ((), (Told({"only": 4}, 0.0, {"macs": 4.0}),)):
        assert dict(module(name).propose(space, history, 0).candidate) == {"only": 4}


# better than chance


def reached(name, limits, count, seeds):
    """Of every seed the best drop within the limits, or without any the hypervolume."""
    space = planted(limits)
    propose = by_chance if name == "chance" else module(name).propose
    histories = [searched(propose, space, count, seed) for seed in range(seeds)]
    if limits:
        return [min(told.drop for told in one if space.feasible(told.candidate)) for one in histories]
    box = search.Box(("drop", "macs"), (0.0, costs(space.smallest())["macs"]), (1.0, costs(space.whole())["macs"]))
    return [box.volume([(told.drop, told.costs["macs"]) for told in one]) for one in histories]


@pytest.mark.parametrize(
    ("name", "most"), [("annealing", 0.7), ("legr", 0.7), ("netadapt", 0.7), ("supernet", 0.9), ("amc", 0.95)]
)
def test_within_limits_it_loses_less_than_chance(name, most):
    """At 80 evaluations, in the mean over three seeds: at most that share of what random search loses."""
    limits = (("macs", 0.4),)
    seeds = 2 if name == "amc" else 3
    assert np.mean(reached(name, limits, 80, seeds)) < most * np.mean(reached("chance", limits, 80, 3))


@pytest.mark.parametrize("name", ["annealing", "legr", "netadapt", "supernet", "amc"])
def test_the_front_is_better_than_that_of_one_width(name):
    assert np.mean(reached(name, None, 60, 2)) > np.mean(reached("uniform", None, 60, 2))


# aims


def test_what_is_fitted_is_the_widest_that_may_be():
    space = planted()
    whole, even = space.costs(space.whole()), {knob.name: 1.0 for knob in space.knobs}
    for share in (0.1, 0.3, 0.5, 0.9, 1.0):
        most = _aims.drawn(space, share)
        found = _aims.fitted(space, even, {}, most)
        assert _aims.within(space.costs(found), most)
        wider = space.uniform(max(_aims.shares(space, found).values()) + 0.26)
        assert share == 1.0 or not _aims.within(space.costs(wider), most)
    assert dict(_aims.fitted(space, even, {}, {"macs": whole["macs"]})) == dict(space.whole())
    assert dict(_aims.fitted(space, even, {}, space.costs(space.smallest()))) == dict(space.smallest())


def test_aims_are_drawn_from_what_can_be_cut():
    """Of a latency of 1000 + 0 .. 12, shares of the whole would all but ever ask for less than there can be."""
    knobs = tuple(Knob(f"g{number}", 4, (1, 2, 3, 4)) for number in range(4))
    space = Space(knobs, {}, lambda c: {"latency_ms": 996.0 + sum(c[knob.name] for knob in knobs)})
    assert _aims.drawn(space, 0.0) == {"latency_ms": 1000.0} and _aims.drawn(space, 0.25) == {"latency_ms": 1003.0}
    asked = [_aims.aims(space, _aims.generator(seed))["latency_ms"] for seed in range(200)]
    assert min(asked) >= 1000.0 and 0.4 < np.mean(np.array(asked) < 1006.0) < 0.6
    both = Space(knobs, {}, lambda c: {**space.costs(c), "size_bytes": 10.0 + c["g0"], "macs": 1.0})
    names = [next(iter(_aims.aims(both, _aims.generator(seed)))) for seed in range(200)]
    assert set(names) == {"latency_ms", "size_bytes"} and 60 < names.count("size_bytes") < 140
    widths = {json.dumps(dict(uniform.propose(space, (), seed).candidate)) for seed in range(40)}
    assert len(widths) == 3  # all but the whole network


def test_words_that_cost_too_much_are_given_up():
    space = Space(
        (Knob("only", 4, (2, 4)),),
        {"word": ("cheap", "dear")},
        lambda c: {"macs": c["only"] * (9.0 if c["word"] == "dear" else 1.0)},
    )
    assert dict(_aims.fitted(space, {"only": 1.0}, {"word": "dear"}, {"macs": 4.0})) == {"only": 4, "word": "cheap"}


def test_latency_leads_where_it_is_known():
    assert _aims.lead({"macs": 1.0, "latency_ms": 1.0}) == "latency_ms"
    assert _aims.lead({"macs": 1.0}) == "macs"


# each


def test_uniform_starts_with_the_widest_within_the_limits():
    space = planted((("macs", 0.5),))
    first = uniform.propose(space, (), 3).candidate
    assert 0.42 < space.costs(first)["macs"] / costs(space.whole())["macs"] <= 0.5
    shares = _aims.shares(space, first)
    assert max(shares.values()) - min(shares.values()) <= 0.25  # but for the rounding to fours


def test_annealing_takes_what_is_better_and_in_the_end_nothing_else():
    most = {"macs": 10.0}
    told = [
        Told({"g": number}, value, {"macs": cost})
        for number, (value, cost) in enumerate([(0.5, 9), (0.2, 9), (0.0, 11)])
    ]
    assert annealing._state(told, most).candidate == {"g": 1}  # the last one costs too much
    assert annealing._state([], most) is None
    late = [*told[:2]] * 200 + [Told({"g": 7}, 0.3, {"macs": 1.0})]
    assert annealing._state(late, most).candidate == {"g": 1}


def test_annealing_takes_what_is_worse_as_often_as_it_says():
    hits, expected = 0, 0.0
    for number in range(10, 60):
        known = [
            Told({"g": -1}, float(place % 2), {"macs": 1.0}) for place in range(number)
        ]  # none of them within the aim
        drops = [told.drop for told in known]
        history = [*known, Told({"g": 0}, 0.5, {"macs": 0.0}), Told({"g": 1}, 0.6, {"macs": 0.0})]
        hits += annealing._state(history, {"macs": 0.5}).candidate == {"g": 1}
        expected += np.exp(-0.1 / (0.5 * np.std([*drops, 0.5, 0.6]) * 0.97 ** (number + 1)))
    assert hits == pytest.approx(expected, abs=9)  # of 50, within three standard deviations


def test_netadapt_walks_down_by_the_group_that_loses_least():
    """By hand: two groups, each unit of the first costs 1 and loses nothing, each of the second costs 1 and loses much."""
    knobs = (Knob("free", 8, tuple(range(1, 9))), Knob("dear", 8, tuple(range(1, 9))))
    space = Space(knobs, {}, lambda c: {"macs": float(c["free"] + c["dear"])}, {"macs": 8.0})
    history = []
    for number in range(40):
        proposal = netadapt.propose(space, history, number)
        lost = 0.1 * (8 - proposal.candidate["dear"])
        history.append(Told(proposal.candidate, lost, space.costs(proposal.candidate), proposal.notes))
    first = [told for told in history if told.notes["pass"] == 0]
    for number in range(1 + max(told.notes["iteration"] for told in first)):
        offers = {told.notes["knob"]: told.candidate for told in first if told.notes["iteration"] == number}
        if "free" in offers:
            assert offers["free"]["dear"] == 8  # the better one was taken each time
    ends = [told for told in first if told.costs["macs"] <= 8.0]
    assert {(told.candidate["free"], told.candidate["dear"]) for told in ends} >= {(1, 7)}
    assert max(told.notes["pass"] for told in history) >= 1


def test_netadapt_reduces_by_what_it_says():
    space = planted((("macs", 0.5),))
    whole = costs(space.whole())["macs"]
    turn = next(netadapt._turns(space, {}))
    step = 0.5 * whole / netadapt.STEPS
    for name, candidate in turn.offers.items():
        assert costs(candidate)["macs"] <= whole - step
        wider = {**candidate, name: candidate[name] + 4}
        assert wider[name] > space.knob(name).units or costs(wider)["macs"] > whole - step


def test_netadapt_meets_the_limits_at_the_end_of_every_pass():
    space = planted((("macs", 0.5),))
    history = searched(netadapt.propose, space, 120)
    for passes in range(max(told.notes["pass"] for told in history)):
        own = [told for told in history if told.notes["pass"] == passes]
        last = max(told.notes["iteration"] for told in own)
        assert all(space.feasible(told.candidate) for told in own if told.notes["iteration"] == last)


def test_legr_ranks_by_scores_moved_and_stretched():
    space = planted()
    scores = legr._scores(space, {})
    assert all(values.mean() == pytest.approx(1.0) for values in scores.values())
    ranked = legr._ranked(scores, {name: (2.0, -0.5) for name in scores})
    assert np.allclose(ranked["g0"], 2.0 * scores["g0"] - 0.5)
    high = {name: (1.0, 100.0 * (name == "g3")) for name in scores}
    most = _aims.drawn(space, 0.3)
    cut = legr._cut(space, legr._ranked(scores, high), {}, most)
    assert cut["g3"] == 48 and sum(cut[name] < space.knob(name).units for name in scores) == 5
    assert _aims.within(space.costs(cut), most)


def test_legr_begins_with_the_ranking_as_it_is_and_changes_a_tenth():
    space = planted((("macs", 0.5),))
    history = searched(legr.propose, space, legr.FIRST + 1)
    assert history[0].notes["genes"] == {name: [1.0, 0.0] for name in SCORES}
    child = history[-1].notes["genes"]
    parents = [told.notes["genes"] for told in history[:-1]]
    assert min(sum(child[name] != parent[name] for name in child) for parent in parents) == 1


def test_legr_forgets_the_oldest():
    space = planted((("macs", 0.5),))
    genes = {name: [1.0, 0.0] for name in SCORES}
    best = Told(space.smallest(), -1.0, costs(space.smallest()), {"genes": {name: [7.0, 0.0] for name in SCORES}})
    others = [Told(space.smallest(), 0.5, costs(space.smallest()), {"genes": genes})] * legr.POPULATION
    found = [legr.propose(space, [best, *others], seed).notes["genes"] for seed in range(10)]
    assert all(sum(pair == [1.0, 0.0] for pair in genes.values()) >= 5 for genes in found)


def test_a_supernets_candidates_rank_as_it_does():
    space = planted(words=True)
    assert {told.candidate["criterion"] for told in searched(supernet.propose, space, 40)} == {"taylor"}
    assert supernet.JUDGE == "supernet"


def test_a_child_has_each_group_from_a_parent_or_from_chance():
    space = planted()
    one, other = dict(space.whole()), dict(space.smallest())
    for seed in range(20):
        child = supernet._child(space, [one, other], np.random.default_rng(seed))
        from_parents = sum(child[name] in (one[name], other[name]) for name in child)
        assert from_parents >= 3


# the agent


def test_an_episode_never_misses_its_aim_and_an_evaluation_can_be_replayed():
    space = planted(words=True)
    generator = np.random.default_rng(0)
    for share in (0.15, 0.4, 0.8):
        most = _aims.drawn(space, share)
        for _ in range(10):
            candidate, steps = amc._episode(space, most, lambda state: float(generator.random()))
            assert _aims.within(space.costs(candidate), most)
            assert len(steps) == 8
            assert all(0 <= step.action <= 1 and (step.state >= 0).all() and (step.state <= 1).all() for step in steps)
            told = Told(candidate, 0.1, space.costs(candidate), {"aim": most})
            again = amc._replayed(space, told, -0.1)
            assert [one.action for one in again] == [step.action for step in steps]
            assert all(np.array_equal(one.state, step.state) for one, step in zip(again, steps, strict=True))
            assert [one.last for one in again] == [False] * 7 + [True]


def test_the_greediest_agent_is_bounded_by_what_must_stay_reachable():
    """By hand: all is kept until the rest, cut as far as it may be, just meets the aim."""
    space = planted((("macs", 0.5),))
    most = _aims.limits(space)
    candidate, _ = amc._episode(space, most, lambda state: 1.0)
    thin = dict(space.smallest())
    for knob in space.knobs:  # the first bound alone: nothing larger than all can be asked for
        fits = [count for count in knob.kept if _aims.within(costs({**thin, knob.name: count}), most)]
        thin[knob.name] = max(fits)
    assert dict(candidate) == thin


def numeric(function, weights, place, index, size=1e-6):
    held = weights[place][index]
    values = []
    for sign in (1, -1):
        weights[place][index] = held + sign * size
        values.append(function())
    weights[place][index] = held
    return (values[0] - values[1]) / (2 * size)


def test_gradients_are_those_of_finite_differences():
    generator = np.random.Generator(np.random.PCG64(0))
    actor, critic = _ddpg.initial((5, 7, 6, 1), generator), _ddpg.initial((6, 7, 6, 1), generator)
    for weights in (actor, critic):
        weights[-2] *= 100  # or the last layer's slopes are all that matters
    states, actions = generator.random((9, 5)), generator.random((9, 1))
    wanted = generator.standard_normal((9, 1))

    def judged(at):
        return _ddpg.forward(critic, np.concatenate([states, at], axis=1))[-1]

    def loss():
        return float(np.mean((wanted - judged(actions)) ** 2))

    def value():
        raw = _ddpg.forward(actor, states)[-1]
        return float(np.mean(_ddpg.TAUT * raw**2 / 2 - judged(_ddpg.sigmoid(raw))))

    for function, weights, found in (
        (loss, critic, _ddpg.critic_gradients(critic, states, actions, wanted)),
        (value, actor, _ddpg.actor_gradients(actor, critic, states)),
    ):
        for place, gradient in enumerate(found):
            assert gradient.shape == weights[place].shape
            for index in itertools.islice(np.ndindex(gradient.shape), 0, None, 3):
                assert gradient[index] == pytest.approx(numeric(function, weights, place, index), abs=1e-7)


def test_adam_moves_by_the_rate_at_first():
    weights = [np.array([1.0, -1.0, 0.5])]
    _ddpg.Adam(weights, 0.1).step([np.array([2.0, -30.0, 0.0])])
    assert np.allclose(weights[0], [0.9, -0.9, 0.5])


def test_the_agent_learns_which_action_pays():
    """A bandit with two states: 0.2 is right in one, 0.8 in the other."""
    agent, generator = _ddpg.Agent(2, seed=0), np.random.default_rng(0)
    states = [np.array([1.0, 0.0]), np.array([0.0, 1.0])]
    for number in range(100):
        state, right = states[number % 2], (0.2, 0.8)[number % 2]
        action = _ddpg.truncated_normal(agent.action(state), 0.4, generator)
        agent.learn([_ddpg.Transition(state, action, -((action - right) ** 2), state, True)], 10)
    assert agent.action(states[0]) == pytest.approx(0.2, abs=0.15)
    assert agent.action(states[1]) == pytest.approx(0.8, abs=0.15)


def test_noise_is_cut_off():
    generator = np.random.default_rng(0)
    drawn = [_ddpg.truncated_normal(0.05, 0.5, generator) for _ in range(500)]
    assert min(drawn) >= 0 and max(drawn) <= 1 and np.mean(drawn) > 0.2
    assert _ddpg.truncated_normal(0.3, 0.0, generator) == 0.3


def test_without_limits_the_reward_is_of_metric_and_cost():
    space = planted()
    history = searched(by_chance, space, 5)
    least = costs(space.smallest())["macs"]
    error = history[-1].drop + 0.1 * np.std([told.drop for told in history])
    assert amc._reward(space, history) == pytest.approx(-error * np.log(1 + history[-1].costs["macs"] / least))
    assert amc._reward(planted((("macs", 0.5),)), history) == -history[-1].drop


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_what_is_remembered_of_one_history_is_not_taken_for_another(name):
    """Longer, shorter, other drops: as if nothing had been proposed for this space before."""
    module = search_study.sampler(name)

    def history(sign):
        space, told = planted(), []
        for seed in range(36):
            one = search_study.propose(module, space, told, seed)
            drop = 1.0 + sign * sum(float(one.candidate[knob.name]) / knob.units for knob in space.knobs) / 10
            told.append(Told(one.candidate, drop, space.costs(one.candidate), one.notes))
        return told

    good, bad = history(-1), history(1)
    turns = (good[:20], good, bad, bad[:20], good)
    alone, together = [search_study.propose(module, planted(), turn, 7) for turn in turns], planted()
    assert [search_study.propose(module, together, turn, 7) for turn in turns] == alone
    assert alone[1] != alone[2]
