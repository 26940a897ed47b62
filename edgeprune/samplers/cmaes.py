"""CMA-ES: one normal distribution over all counts, moved and stretched by the better half of every generation.

    value(x) = -(hypervolume(front + x) - hypervolume(front)), and for what the front dominates its distance to where that ends

Hansen & Ostermeier, "Completely derandomized self-adaptation in evolution strategies" (2001). It wants one number; with several
objectives that is what a candidate adds to the front of the generations before, as in Touré et al., "Uncrowded hypervolume
improvement: COMO-CMA-ES and the Sofomore framework" (2019). Where a cost has a limit it is the drop alone. Cost: some milliseconds a
trial, rising with the square of the number of groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgeprune import search
from edgeprune.search_space import Candidate, Proposal, Space, Told

JUDGE = "cut"
SIGMA = 0.25  # of the first generation, where every knob goes from 0 to 1
EDGE = 1e-3  # of the range, so that the ends can be drawn
Point = tuple[float, ...]


def propose(space: Space, history: Sequence[Told], seed: int) -> Proposal:
    """The next draw of the distribution that the finished generations lead to."""
    from cmaes import CMA

    size = len(space.knobs) + len(space.choices)
    bounds = np.tile([0.0, 1.0], (max(size, 2), 1))
    optimizer = CMA(mean=np.full(max(size, 2), 0.5), sigma=SIGMA, bounds=bounds, seed=0)
    own = [one for one in history if len(one.notes.get("x", ())) == len(bounds)]
    points = tuple(_point(space, one) for one in own)
    for start in range(0, len(own) - optimizer.population_size + 1, optimizer.population_size):
        generation = slice(start, start + optimizer.population_size)
        worth = _values(points[:start], points[generation])
        optimizer.tell([(np.asarray(one.notes["x"]), value) for one, value in zip(own[generation], worth, strict=True)])
    optimizer.reseed_rng(seed)
    drawn = optimizer.ask()
    return Proposal(space.fit(_candidate(space, drawn)), {"x": drawn.tolist()})


def _candidate(space: Space, drawn: NDArray[np.float64]) -> Candidate:
    """Numbers from 0 to 1 as places among the allowed counts and words."""

    def pick(share: float, count: int) -> int:
        return min(int(np.clip(share, EDGE, 1 - EDGE) * count), count - 1)

    counts = {
        knob.name: knob.kept[pick(share, len(knob.kept))] for knob, share in zip(space.knobs, drawn, strict=False)
    }
    words = zip(space.choices.items(), drawn[len(space.knobs) :], strict=False)
    return {**counts, **{name: given[pick(share, len(given))] for (name, given), share in words}}


def _point(space: Space, one: Told) -> Point:
    """What is minimised, as shares of what the uncut network costs."""
    whole = space.costs(space.whole())
    names = search.sought(space)
    return (one.drop, *(one.costs[name] / max(whole[name], 1e-12) for name in names[1:]))


@lru_cache(1024)
def _values(earlier: tuple[Point, ...], generation: tuple[Point, ...]) -> tuple[float, ...]:
    """Lower is better: what each adds to the front of the earlier ones, or how far it is behind it."""
    worst = max([point[0] for point in (*earlier, *generation)] + [1e-6])
    scale = np.asarray([worst, *[1.0] * (len(generation[0]) - 1)])
    front = [earlier[place] for place in search.front(earlier)]
    known = np.clip(np.asarray(front, float).reshape(len(front), len(scale)) / scale, 0, None)
    reference = np.full(len(scale), 1.1)
    held = search.hypervolume(known, reference)
    found = []
    for point in generation:
        here = np.clip(np.asarray(point) / scale, 0, None)
        behind = [float(np.max(here - one)) for one in known if (one <= here).all()]
        gain = search.hypervolume(np.vstack([known, here]), reference) - held
        found.append(min(behind) if behind else -gain)
    return tuple(found)
