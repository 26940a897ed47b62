"""LeGR: a learned ranking of all units of the network against each other, cut at one threshold.

The score s of a unit of group g, over its group's mean, becomes

    s' = alpha_g s + kappa_g

and the units with the lowest s' of all go, until the network costs no more than it may: the limits, or without any an aim that is
drawn for each proposal. The pairs (alpha, kappa) are learned by regularized evolution: the first is (1, 0), 15 more are drawn as
alpha = exp(N(0, 1)), kappa = std_g N(0, 1); then the best of 8 of the last 32 evaluations is the parent, and a tenth of its groups
(one at least) are changed, alpha times exp(step N(0, 1)), kappa plus step std_g N(0, 1), while the step falls from 1 to 0.2.
The oldest leave, however good. Without limits the 8 are those of 16 whose cost is nearest to the aim. (The paper has 64, 16 and 400
evaluations, and trains each candidate for 200 steps; here BatchNormalization's statistics are re-estimated instead.) Words of
choices are drawn with the first pairs and changed as in annealing.

Chin et al., "Towards efficient model compression via learned global ranking" (2020); the evolution is that of Real et al.,
"Regularized evolution for image classifier architecture search" (2019).

Cost: two numbers per group are learned, however many units it has; the proposals are cheap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from edgeprune.samplers import _aims
from edgeprune.samplers.annealing import reworded
from edgeprune.search_space import CRITERION, Candidate, Proposal, Space, Told

FIRST, POPULATION, TOURNAMENT = 16, 32, 8
MUTATED = 0.1  # share of the groups
COOLING, LAST = 0.98, 0.2  # of the step
TINY = 1e-12  # of a mean that is divided by

Genes = Mapping[str, tuple[float, float]]  # knob -> alpha, kappa
Values = Mapping[str, NDArray[np.float64]]  # knob -> a score per unit


def propose(space: Space, history: Sequence[Told], seed: int) -> Proposal:
    """As ``Sampler.propose``."""
    random = _aims.generator(seed)
    most = _aims.aims(space, random)
    population = [told for told in history if "genes" in told.notes]
    if not population:
        chosen, genes = _aims.words(space, space.whole()), _identity(space)
        scores = _scores(space, chosen)
    elif len(population) < FIRST:
        chosen = _aims.words(space, space.random(random))
        scores = _scores(space, chosen)
        genes = _changed(_identity(space), scores, set(scores), 1.0, random)
    else:
        parent = _parent(population[-POPULATION:], most, random)
        chosen = reworded(space, parent.candidate, random)
        scores = _scores(space, chosen)
        count = max(1, round(MUTATED * len(scores)))
        some = {space.knobs[place].name for place in random.permutation(len(scores))[:count]}
        step = max(LAST, COOLING ** (len(population) - FIRST))
        genes = _changed(
            {name: (pair[0], pair[1]) for name, pair in parent.notes["genes"].items()}, scores, some, step, random
        )
    candidate = _cut(space, _ranked(scores, genes), chosen, most)
    return Proposal(candidate, {"genes": {name: list(pair) for name, pair in genes.items()}})


def _identity(space: Space) -> Genes:
    return {knob.name: (1.0, 0.0) for knob in space.knobs}


def _scores(space: Space, chosen: Mapping[str, str]) -> Values:
    """Every knob's scores by the chosen criterion, over their mean."""
    given = space.scores(chosen.get(CRITERION, ""))
    values = {knob.name: np.asarray(given[knob.name], float) for knob in space.knobs}
    return {name: scores / (scores.mean() + TINY) for name, scores in values.items()}


def _changed(genes: Genes, scores: Values, some: set[str], step: float, random: Generator) -> Genes:
    """The genes with some knobs' changed."""
    changed = dict(genes)
    for name in sorted(some):
        alpha, kappa = genes[name]
        times, plus = np.exp(step * random.standard_normal()), step * scores[name].std() * random.standard_normal()
        changed[name] = (float(alpha * times), float(kappa + plus))
    return changed


def _parent(population: Sequence[Told], most: _aims.Most, random: Generator) -> Told:
    """The winner of a tournament among those that are nearest to what may be spent."""
    drawn = [population[place] for place in random.permutation(len(population))[: 2 * TOURNAMENT]]

    def apart(told: Told) -> float:
        return max(abs(told.costs[name] - value) / max(value, TINY) for name, value in most.items())

    return min(sorted(drawn, key=apart)[:TOURNAMENT], key=lambda told: told.drop)


def _ranked(scores: Values, genes: Genes) -> Values:
    return {name: genes[name][0] * values + genes[name][1] for name, values in scores.items()}


def _cut(space: Space, ranked: Values, chosen: Mapping[str, str], most: _aims.Most) -> Candidate:
    """What is left above the lowest threshold with which the network costs no more than it may."""
    thresholds = np.unique(np.concatenate([[-np.inf], *ranked.values(), [np.inf]]))

    def at(place: int) -> Candidate:
        counts = {knob.name: knob.at_most(int((ranked[knob.name] > thresholds[place]).sum())) for knob in space.knobs}
        return space.clamp({**counts, **chosen})

    low, high = 0, len(thresholds) - 1
    if not _aims.within(space.costs(at(high)), most):  # whatever is cut: for the words' sake
        return _cut(space, ranked, _aims.words(space, space.whole()), most)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _aims.within(space.costs(at(middle)), most) else (middle + 1, high)
    return at(high)
