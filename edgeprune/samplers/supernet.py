"""Architecture search for pruning: evolution of the sub-nets of a super-net that was trained once for all widths.

The super-net is the network itself, trained so that every sub-net of it works with the weights that they share: in every step the
widest, the narrowest and two random ones, the narrower learning from the widest's outputs (`edgeprune.keras.supernet`). Then a
candidate's metric is known without training it. The first 20 are random, scaled to what they may cost: the limits, or without
any an aim that is drawn for each proposal. Afterwards the ten candidates with the least drop among those that cost no
more than that are the parents; with equal chance two of them are crossed, each group from one or the other, or one of them is mutated,
each group drawn anew with a chance of 0.1. What costs too much or is known already is drawn again, and after 50 draws scaled down. All
candidates rank units as the super-net does, by the first criterion; other choices are inherited and mutated like groups.

Yu & Huang, "Universally slimmable networks and improved training techniques" (2019); Guo et al., "Single path one-shot neural
architecture search with uniform sampling" (2020); Cai et al., "Once-for-all: train one network and specialize it for efficient
deployment" (2020).

Cost: the super-net's training, each step of which takes as long as four of plain training; the proposals are cheap.
"""

from __future__ import annotations

from collections.abc import Sequence

from numpy.random import Generator

from edgeprune.samplers import _aims
from edgeprune.search_space import CRITERION, Candidate, Proposal, Space, Told

JUDGE = "supernet"

FIRST, PARENTS = 20, 10
MUTATED = 0.1
DRAWS = 50


def propose(space: Space, history: Sequence[Told], seed: int) -> Proposal:
    """As ``Sampler.propose``."""
    random = _aims.generator(seed)
    most = _aims.aims(space, random)
    parents = sorted((told for told in history if _aims.within(told.costs, most)), key=lambda told: told.drop)[:PARENTS]
    if len(history) < FIRST or not parents:
        return Proposal(_scaled(space, _alike(space, space.random(random)), most))
    known = {tuple(sorted(told.candidate.items())) for told in history}
    child = dict(parents[0].candidate)
    for _ in range(DRAWS):
        child = _child(space, [told.candidate for told in parents], random)
        if tuple(sorted(child.items())) not in known and _aims.within(space.costs(child), most):
            return Proposal(child)
    return Proposal(_scaled(space, child, most))


def _child(space: Space, parents: Sequence[Candidate], random: Generator) -> dict[str, int | str]:
    """Of two parents, or of one and chance."""
    one, other = (parents[int(random.integers(len(parents)))] for _ in range(2))
    chance = 0.5
    if random.random() < 0.5:
        other, chance = space.random(random), MUTATED
    child = {name: other[name] if random.random() < chance else one[name] for name in space.whole()}
    return _alike(space, child)


def _alike(space: Space, candidate: Candidate) -> dict[str, int | str]:
    """The candidate with the ranking that the super-net has."""
    ranking = {CRITERION: space.choices[CRITERION][0]} if CRITERION in space.choices else {}
    return {**candidate, **ranking}


def _scaled(space: Space, candidate: Candidate, most: _aims.Most) -> Candidate:
    return _aims.fitted(space, _aims.shares(space, candidate), _aims.words(space, candidate), most)
