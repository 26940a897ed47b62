"""What a proposal may cost, and the widest candidate of given proportions that costs no more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.random import PCG64, Generator

from edgeprune.errors import CutError
from edgeprune.search_space import LATENCY, MACS, SIZE, Candidate, Costs, Space

HALVINGS = 16  # of the interval that a scale is searched in: finer than a unit of the widest layers
THINNEST = 1e-3  # share of a knob's units, so that shares can be scaled

Most = Mapping[str, float]  # cost -> the most that a candidate may cost


class Memo:
    """What was computed for one space, kept as long as the same space is asked for."""

    def __init__(self) -> None:
        self._space: Space | None = None
        self._held: dict[Any, Any] = {}

    def of(self, space: Space) -> dict[Any, Any]:
        """To be read and filled; empty when the space is another one than the last time."""
        if self._space is not space:
            self._space, self._held = space, {}
        return self._held


def generator(seed: int) -> Generator:
    """The random numbers of one trial."""
    return Generator(PCG64(seed))


def lead(costs: Costs) -> str:
    """The cost that is aimed at first where there are no limits: the latency where it is known, else the MACs."""
    return LATENCY if LATENCY in costs else MACS


def leads(costs: Costs) -> tuple[str, ...]:
    """All costs that are aimed at where there are no limits: those that a search has as objectives."""
    return tuple(name for name in (lead(costs), SIZE) if name in costs)


def limits(space: Space) -> dict[str, float]:
    """The limits of cost.

    Raises:
        CutError: the smallest candidate breaks one.
    """
    least = space.costs(space.smallest())
    given = {name: most for name, most in space.limits.items() if name in least}
    broken = [name for name, most in given.items() if least[name] > most]
    if broken:
        name = broken[0]
        raise CutError(
            f"{name}: at most {given[name]:g} is asked for, but the smallest network of this search has {least[name]:g}. Ask for that or "
            "more, or let groups lose more of their channels."
        )
    return given


def drawn(space: Space, share: float, name: str | None = None) -> dict[str, float]:
    """A cost of the network that keeps so much of what can be cut at all: 0 the smallest candidate, 1 the whole network.

    What no cut takes away (of a latency what is once per inference) would leave the rest of the range to one candidate.

    Args:
        space: what can be chosen.
        share: 0..1.
        name: of the cost; the leading one unless told otherwise.
    """
    whole, least = space.costs(space.whole()), space.costs(space.smallest())
    name = name or lead(whole)
    return {name: least[name] + share * (whole[name] - least[name])}


def aims(space: Space, random: Generator) -> dict[str, float]:
    """What a proposal may cost: the space's limits; where there are none, of one of the leading costs a uniform share of what can be cut.

    Raises:
        CutError: as ``limits``.
    """
    given = limits(space)
    if given:
        return given
    names = leads(space.costs(space.whole()))
    return drawn(space, random.uniform(), names[int(random.integers(len(names)))])


def within(costs: Costs, most: Most) -> bool:
    """Whether nothing costs more than it may."""
    return all(costs[name] <= value for name, value in most.items())


def shares(space: Space, candidate: Candidate) -> dict[str, float]:
    """Knob -> the share of its units that stays, 0..1."""
    return {knob.name: int(candidate[knob.name]) / knob.units for knob in space.knobs}


def words(space: Space, candidate: Candidate) -> dict[str, str]:
    """Choice -> the candidate's word."""
    return {name: str(candidate[name]) for name in space.choices}


def fitted(space: Space, widths: Mapping[str, float], chosen: Mapping[str, str], most: Most) -> Candidate:
    """The widest candidate whose knobs keep shares of their units in the given proportions and which costs no more than it may.

    Where the words of its choices make it cost too much however thin it is, it has the first words.

    Args:
        space: with a cost that does not fall when a knob grows.
        widths: knob -> relative share, >= 0.
        chosen: choice -> word.
        most: what the smallest candidate meets.
    """
    relative = {knob.name: max(widths[knob.name], THINNEST) for knob in space.knobs}

    def at(scale: float) -> Candidate:
        counts = {knob.name: min(scale * relative[knob.name], 1.0) * knob.units for knob in space.knobs}
        return space.clamp({**counts, **chosen})

    best, low, high = at(0.0), 0.0, 1.0 / min(relative.values())
    if not within(space.costs(best), most):
        return (
            fitted(space, widths, words(space, space.whole()), most) if chosen != words(space, space.whole()) else best
        )
    if within(space.costs(at(high)), most):
        return at(high)
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5 if low else high / 4
        tried = at(middle)
        if within(space.costs(tried), most):
            low, best = middle, tried
        else:
            high = middle
    return best
