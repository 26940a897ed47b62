"""Which group of channels gives how much, so that costs stay within limits and the metric loses least.

A sensitivity curve (`edgeprune.sensitivity`) says what the metric loses when one group alone is cut, nothing retrained. Losses
of several cuts hardly add up, but what they leave nearly multiplies; so what is summed is the *damage* of a cut,

    d = ln(metric of the whole / metric with the cut)

(for an error the inverse), which is 0 for no loss. Without fine-tuning a curve is flat where nothing is lost yet and flat again
where nothing is left to lose. A weak pull to even shares decides there:

    minimise  sum over groups of  d(kept) + even * ln(units / kept)    subject to  cost <= limit for every limit

It is greedy: again and again the cut with the least damage for what it takes off the costs above their limits; then units are
given back where the limits allow it, and exchanged between groups while that does less damage; of what is nearly as good, what
takes 95 % of a limit. Costs may be any function of the counts; nothing is taken to be linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, NoReturn

import numpy as np

from edgeprune.errors import BudgetError
from edgeprune.metrics import Metric
from edgeprune.search_space import Candidate, Costs, Knob, Space

EVEN = 0.1  # weight of the pull to even shares: halving a group counts as much as 7 % of the metric
LOOKS = 3000  # at costs, that exchanging units between groups may take; milliseconds each
RUNGS = 8  # counts of a group that the first pass looks at; the second sees all
FULL = 0.95  # of a limit: what is closer to it takes it
SPARE = 0.5  # share of damage that a cut which takes a limit may seem to do more than one that does not: it has more channels
LEAST_LEFT = 0.01  # of the metric; below this share a cut has lost all there is
ALMOST = 1e-9

Curve = Mapping[int, float]  # units that stay -> damage
Curves = Mapping[str, Curve]


class Impossible(NamedTuple):
    """What comes nearest to limits that cannot be met, and what it costs."""

    candidate: Candidate
    costs: Costs


def damage(metric: Metric, whole: float, left: float) -> float:
    """What a cut does to a metric, 0 for nothing or less.

    Args:
        metric: says what is better.
        whole, left: its value without and with the cut.

    Returns:
        The logarithm of the ratio, so that halving an accuracy and doubling an error are both ln 2; where a value is not above 0
        (a signal-to-noise ratio, a correlation) the loss as a share of the whole value.

    >>> from edgeprune.metrics import METRICS
    >>> round(damage(METRICS["accuracy"], 0.8, 0.4), 3), damage(METRICS["accuracy"], 0.8, 0.9)
    (0.693, 0.0)
    """
    better, worse = (whole, left) if metric.higher_is_better else (left, whole)
    if whole > 0 and (left > 0 or metric.higher_is_better):
        found = math.log(better / max(worse, LEAST_LEFT * better))
    else:
        found = (better - worse) / max(abs(whole), ALMOST)
    return max(found, 0.0)


def allocate(space: Space, curves: Curves, limits: Mapping[str, float], even: float = EVEN) -> Candidate:
    """The counts that meet all limits of cost with the least damage.

    Args:
        space: knobs and costs; its own limits are not looked at.
        curves: knob -> units that stay -> damage, at some of the knob's counts; without a curve the pull to even shares
            alone decides. Between counts, and beyond the least one, a line goes on; damage never falls when more goes.
        limits: cost -> the most.
        even: weight of that pull, >= 0; a large one gives every group the same share.

    Returns:
        A candidate with the first word of every choice.

    Raises:
        BudgetError: everything cut as far as it may be does not meet them; ``nearest`` is an `Impossible`.
    """
    whole = space.whole()
    harm = {knob.name: _harm(knob, curves.get(knob.name, {}), even) for knob in space.knobs}
    state = _State(space, dict(whole), limits)
    while state.excess() > 0:
        move = _cheapest(state, harm)
        if move is None:
            _refuse(space, limits)
        state.move(move)
    _give_back(state, harm)
    state.looks = 0
    while state.looks < LOOKS and _exchanged(state, harm):
        pass
    return _fuller(state, harm)


def _refuse(space: Space, limits: Mapping[str, float]) -> NoReturn:
    """
    Raises:
        BudgetError: always.
    """
    nearest = space.smallest()
    costs = space.costs(nearest)
    missed = ", ".join(
        f"{name} {costs[name]:.6g} where at most {most:.6g} is asked for"
        for name, most in limits.items()
        if costs[name] > most
    )
    raise BudgetError(
        f"No cut of this model meets the limits: with every group of channels at its least count it still has {missed or 'too much'}. "
        "Ask for more, lower the floors and multiples of the shrink stage, or take a smaller model.",
        Impossible(nearest, costs),
    )


class _State:
    """A candidate on its way, with costs that are computed once for each."""

    def __init__(self, space: Space, candidate: dict[str, int | str], limits: Mapping[str, float]) -> None:
        self.space, self.candidate, self.limits = space, candidate, limits
        self._known: dict[tuple[int | str, ...], float] = {}
        self.looks = 0

    def count(self, knob: Knob) -> int:
        return int(self.candidate[knob.name])

    def excess(self, change: Mapping[str, int] | None = None) -> float:
        """What is above the limits, each as a share of it, after a change."""
        tried = {**self.candidate, **(change or {})}
        key = tuple(tried.values())
        if key not in self._known:
            self.looks += 1
            costs = self.space.costs(tried)
            over = (costs[name] / max(most, ALMOST) - 1 for name, most in self.limits.items())
            self._known[key] = sum(share for share in over if share > ALMOST)
        return self._known[key]

    def filled(self) -> float:
        """How much of the fullest limit is taken."""
        costs = self.space.costs(self.candidate)
        return max(costs[name] / max(most, ALMOST) for name, most in self.limits.items())

    def move(self, change: Mapping[str, int]) -> None:
        self.candidate.update(change)


def _harm(knob: Knob, curve: Curve, even: float) -> Callable[[int], float]:
    """Count -> damage and the pull to even shares, never less for fewer units."""
    counts = sorted({knob.units, *curve})
    values = [float(curve.get(count, 0.0)) for count in counts]
    values[-1] = 0.0  # nothing is cut
    rising = np.maximum.accumulate(np.maximum(values, 0.0)[::-1])[::-1]
    slope = (rising[0] - rising[1]) / (counts[1] - counts[0]) if len(counts) > 1 else 0.0

    def harm(count: int) -> float:
        beyond = slope * min(count - counts[0], 0)
        return float(np.interp(count, counts, rising)) + beyond + even * math.log(knob.units / count)

    def downwards(count: int) -> float:
        return harm(count) if count < knob.units else 0.0

    return downwards


def _rungs(knob: Knob) -> tuple[int, ...]:
    """Some of a knob's counts, its ends among them, ascending."""
    places = np.unique(np.linspace(0, len(knob.kept) - 1, min(RUNGS, len(knob.kept))).round().astype(int))
    return tuple(knob.kept[place] for place in places)


def _cheapest(state: _State, harm: Mapping[str, Callable[[int], float]]) -> dict[str, int] | None:
    """The cut that costs least damage for what it takes off the excess; None where nothing is left to cut.

    Where no group alone takes anything off (a peak of memory that stands in two places), all go down one rung.
    """
    before, best, chosen = state.excess(), math.inf, None
    steps: dict[str, int] = {}
    for knob in state.space.knobs:
        now = state.count(knob)
        lower = [count for count in _rungs(knob) if count < now]
        steps |= {knob.name: lower[-1]} if lower else {}
        for count in lower:
            saved = before - state.excess({knob.name: count})
            added = harm[knob.name](count) - harm[knob.name](now)
            price = (added + ALMOST) / saved if saved > ALMOST else math.inf
            if price < best:
                best, chosen = price, {knob.name: count}
    return chosen or steps or None


def _give_back(state: _State, harm: Mapping[str, Callable[[int], float]]) -> None:
    """Give units back, in ever smaller steps, where the limits allow it: first what saves most damage."""
    stride = max(len(knob.kept) for knob in state.space.knobs)
    while stride:
        found = _best_return(state, harm, stride)
        if found is None:
            stride //= 2
        else:
            state.move(found)


def _exchanged(state: _State, harm: Mapping[str, Callable[[int], float]]) -> bool:
    """Let one group go down a step so that others can go up, where that does less damage; whether anything was better."""
    before = dict(state.candidate)
    best, chosen = _harm_of(state, harm), None
    for neighbour in _neighbours(state, harm):
        reached = _harm_of(state, harm)
        if reached < best - ALMOST:
            best, chosen = reached, neighbour
    state.candidate = chosen or before
    return chosen is not None


def _neighbours(state: _State, harm: Mapping[str, Callable[[int], float]]) -> Iterator[dict[str, int | str]]:
    """What comes of letting one group go down a step and others up; while it is yielded, it is the state's candidate."""
    before = dict(state.candidate)
    for knob in state.space.knobs:
        place = _place(knob, state.count(knob))
        if place == 0 or state.looks >= LOOKS:
            continue
        state.move({knob.name: knob.kept[place - 1]})
        while found := _best_return(state, harm, 1, knob.name):
            state.move(found)
        yield dict(state.candidate)
        state.candidate = dict(before)


def _fuller(state: _State, harm: Mapping[str, Callable[[int], float]]) -> Candidate:
    """Of the neighbours that take a limit and do hardly more damage the least harmful; the candidate itself where it does."""
    found, most = dict(state.candidate), _harm_of(state, harm) * (1 + SPARE) + ALMOST
    if found == state.space.whole() or state.filled() >= FULL:
        return found
    state.looks = 0
    for neighbour in _neighbours(state, harm):
        reached = _harm_of(state, harm)
        if reached <= most and state.filled() >= FULL:
            found, most = neighbour, reached
    return found


def _harm_of(state: _State, harm: Mapping[str, Callable[[int], float]]) -> float:
    return sum(harm[knob.name](state.count(knob)) for knob in state.space.knobs)


def _best_return(
    state: _State, harm: Mapping[str, Callable[[int], float]], stride: int, barred: str | None = None
) -> dict[str, int] | None:
    """Of the groups that may have so many steps more, the one that saves most damage; ``barred`` is passed over."""
    best, chosen = -math.inf, None
    for knob in state.space.knobs:
        place = _place(knob, state.count(knob)) + stride
        if place >= len(knob.kept) or knob.name == barred:
            continue
        saved = harm[knob.name](state.count(knob)) - harm[knob.name](knob.kept[place])
        if saved > best and state.excess({knob.name: knob.kept[place]}) == 0:
            best, chosen = saved, {knob.name: knob.kept[place]}
    return chosen


def _place(knob: Knob, count: int) -> int:
    return knob.kept.index(count)


def some_counts(knob: Knob, most: int) -> Sequence[int]:
    """Counts below the whole, evenly spread, the least among them: where a curve is worth measuring.

    >>> some_counts(Knob("conv", 8, (1, 2, 3, 4, 5, 6, 7, 8)), 3)
    (1, 4, 7)
    """
    lower = knob.kept[:-1]
    places = np.linspace(0, len(lower) - 1, min(most, len(lower))).round().astype(int)
    return tuple(lower[place] for place in np.unique(places))
