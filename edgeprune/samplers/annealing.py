"""Simulated annealing: a neighbour of the state, which moves to what was evaluated by chance, ever less often to what is worse.

After evaluation n, of a candidate that costs no more than this proposal may, the state becomes that candidate with probability

    min(1, exp(-(drop - drop of the state) / T_n)),  T_n = 0.5 s 0.97^n

where s is the standard deviation of the drops so far, which makes T_n independent of the metric's unit. The neighbour moves the
shares of some groups by normal steps, 0.3 wide at first and never less than 0.05, changes one word in ten of the choices, and
is scaled to cost just what it may: the limits, or without any an aim (a latency or a size) that is drawn for each proposal. Then the
chain is that of the candidates which meet the aim.

Kirkpatrick et al., "Optimization by simulated annealing" (1983).

Cost: the proposals are cheap; one chain, so it gains nothing from more workers than it has time to wait for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from edgeprune.samplers import _aims
from edgeprune.search_space import Candidate, Proposal, Space, Told

HOT, COOLING = 0.5, 0.97
WIDE, NARROW = 0.3, 0.05  # steps of a share
MOVED = 0.3  # share of the knobs that a step moves on average; one at least
REWORDED = 0.1
TINY = 1e-12  # of a spread that is divided by


def propose(space: Space, history: Sequence[Told], seed: int) -> Proposal:
    """As ``Sampler.propose``."""
    random = _aims.generator(seed)
    most = _aims.aims(space, random)
    state = _state(history, most)
    if state is None:
        even = {knob.name: 1.0 for knob in space.knobs}
        return Proposal(_aims.fitted(space, even, _aims.words(space, space.whole()), most))
    return Proposal(_neighbour(space, state.candidate, most, max(NARROW, WIDE * COOLING ** len(history)), random))


def _state(history: Sequence[Told], most: _aims.Most) -> Told | None:
    """Where the chain is: a fold over what was evaluated and costs no more than it may."""
    state = None
    for number, (told, spread) in enumerate(zip(history, _spreads([told.drop for told in history]), strict=True)):
        if not _aims.within(told.costs, most):
            continue
        heat = HOT * spread * COOLING**number + TINY
        rise = 0.0 if state is None else told.drop - state.drop
        if state is None or rise <= 0 or _aims.generator(number).random() < np.exp(-rise / heat):
            state = told
    return state


def _spreads(drops: Sequence[float]) -> list[float]:
    """The standard deviation of the first, of the first two, of the first three ..."""
    counts = np.arange(1, len(drops) + 1)
    centred = np.asarray(drops, float) - (drops[0] if drops else 0.0)  # or squares would lose their last digits
    means, squares = np.cumsum(centred) / counts, np.cumsum(centred**2) / counts
    found: list[float] = np.sqrt(np.maximum(squares - means**2, 0.0)).tolist()
    return found


def _neighbour(space: Space, candidate: Candidate, most: _aims.Most, step: float, random: Generator) -> Candidate:
    """The candidate with some shares and words moved, scaled to what it may cost."""
    moved = random.random(len(space.knobs)) < MOVED
    moved[random.integers(len(space.knobs))] = True
    steps = step * random.standard_normal(len(space.knobs)) * moved
    before = _aims.shares(space, candidate)
    widths = {
        knob.name: float(np.clip(before[knob.name] + by, 0, 1)) for knob, by in zip(space.knobs, steps, strict=True)
    }
    return _aims.fitted(space, widths, reworded(space, candidate, random), most)


def reworded(space: Space, candidate: Candidate, random: Generator) -> dict[str, str]:
    """The candidate's words, one in ten of them drawn anew."""
    chosen = _aims.words(space, candidate)
    for name, known in space.choices.items():
        if random.random() < REWORDED:
            chosen[name] = known[int(random.integers(len(known)))]
    return chosen
