"""NetAdapt: step by step cheaper, each time by cutting the one group of channels that loses least.

An iteration starts from a network and asks for a reduction of what it costs. For every group by itself it takes the most units with
which the whole network costs no more than

    max(aim, cost of the network - R_i),  R_i = R_0 0.96^i,  R_0 = (cost of the uncut network - aim) / 8

and has each of these proposals evaluated; the one whose metric drops least is the network of the next iteration, until the aim is
met: the limits, each of them reduced in this way, or without any (or where the uncut network meets them) the latency (MACs where no
latency is known) at which a tenth is left of what can be cut at all, and after that the size. Where no single group can save so
much, R_i is halved. Then it starts again from the uncut network with half the steps. What it takes from the history is which
proposals of an iteration were evaluated, so any number of workers share an iteration. Choices keep their first words. The paper
trains each proposal for a short while; here BatchNormalization's statistics are re-estimated, as for every sampler.

Yang et al., "NetAdapt: platform-aware neural network adaptation for mobile applications" (2018).

Cost: an evaluation per group and iteration, about ten iterations the first time, so it pays with many trials and few groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from edgeprune.samplers import _aims
from edgeprune.search_space import Candidate, Knob, Proposal, Space, Told

PATIENT = True
OVER_LIMITS = True

STEPS = 8  # iterations of the first pass, if the reduction did not decay
DECAY = 0.96
LAST = 0.1  # of what can be cut: what the aim leaves where there are no limits
HALVINGS = 10  # of a reduction that no group can reach; then every group loses as little as it can

_memo = _aims.Memo()
Offers = Mapping[str, Candidate]  # knob -> the network with that knob cut
Place = tuple[int, int, str]  # pass, iteration, knob


class Turn(NamedTuple):
    """One iteration: its pass, its number, the network that it starts from, and what it proposes."""

    passes: int
    number: int
    base: Candidate
    offers: Offers


def propose(space: Space, history: Sequence[Told], seed: int) -> Proposal:
    """As ``Sampler.propose``; of an iteration's open proposals the seed takes one, so that workers rarely meet."""
    told = _told(history)
    for turn in _turns(space, told):
        if not turn.offers:  # nothing can be cut
            return Proposal(turn.base)
        missing = [name for name in turn.offers if (turn.passes, turn.number, name) not in told]
        if missing:
            name = missing[seed % len(missing)]
            return Proposal(turn.offers[name], {"pass": turn.passes, "iteration": turn.number, "knob": name})
    raise AssertionError("passes never end")


def _told(history: Sequence[Told]) -> dict[Place, Told]:
    """What was evaluated of each place; the first where two workers met."""
    found: dict[Place, Told] = {}
    for told in history:
        if {"pass", "iteration", "knob"} <= told.notes.keys():
            place = (int(told.notes["pass"]), int(told.notes["iteration"]), str(told.notes["knob"]))
            found.setdefault(place, told)
    return found


def _turns(space: Space, told: Mapping[Place, Told]) -> Iterator[Turn]:
    """All iterations of all passes; each is asked for only when the one before it is known."""
    whole = space.whole()
    costs = space.costs(whole)
    limits = _aims.limits(space)
    free = _aims.leads(costs) if _aims.within(costs, limits) else ()  # what else it comes down to, in turn
    passes = 0
    while True:
        base, number, aim = whole, 0, limits
        if free:
            aim = {**limits, **_aims.drawn(space, LAST, free[passes % len(free)])}
        step = {name: (costs[name] - most) / (STEPS * 2 ** (passes // max(len(free), 1))) for name, most in aim.items()}
        while True:
            offers = _remembered(space, base, aim, {name: size * DECAY**number for name, size in step.items()})
            if not offers and number:
                break
            yield Turn(passes, number, base, offers)
            best = min(offers, key=lambda name: told[passes, number, name].drop)
            base, number = offers[best], number + 1
        passes += 1


def _remembered(space: Space, base: Candidate, aim: _aims.Most, step: Mapping[str, float]) -> Offers:
    held = _memo.of(space)
    key: Any = (tuple(sorted(base.items())), tuple(sorted(step.items())))
    if key not in held:
        held[key] = _offers(space, base, aim, step)
    found: Offers = held[key]
    return found


def _offers(space: Space, base: Candidate, aim: _aims.Most, step: Mapping[str, float]) -> Offers:
    """What an iteration proposes; nothing when the aim is met or nothing can be cut any more."""
    costs = space.costs(base)
    if _aims.within(costs, aim):
        return {}
    for halving in range(HALVINGS):
        most = {name: max(value, costs[name] - step[name] / 2**halving) for name, value in aim.items()}
        found = {knob.name: _widest(space, base, knob, most) for knob in space.knobs}
        offers = {name: candidate for name, candidate in found.items() if candidate is not None}
        if offers:
            return offers
    return {
        knob.name: {**base, knob.name: smaller[-1]}
        for knob in space.knobs
        if (smaller := [count for count in knob.kept if count < int(base[knob.name])])
    }


def _widest(space: Space, base: Candidate, knob: Knob, most: _aims.Most) -> Candidate | None:
    """The network with the most units of one knob that costs no more than it may; None where even the least cost more."""
    counts = [count for count in knob.kept if count < int(base[knob.name])]
    low, high, best = 0, len(counts) - 1, None
    while low <= high:
        middle = (low + high) // 2
        tried = {**base, knob.name: counts[middle]}
        if _aims.within(space.costs(tried), most):
            best, low = tried, middle + 1
        else:
            high = middle - 1
    return best
