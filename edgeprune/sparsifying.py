"""Which weights of a network are zero: at once, ever more while it trains, or ever others at a constant count.

Pure functions of scores, kernel by kernel: `edgeprune.keras.sparse_training` gets the scores and puts the masks to work. Every
array of a kernel has the layout (..., input channels, output channels); True in a mask = kept. Sparsity counts against all
weights of the kernels that are pruned, also in the later rounds and stages: what is gone already counts as gone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeprune import criteria, granularity, masks, registry, schedules
from edgeprune.errors import CutError, RecipeError
from edgeprune.granularity import Array, Granularity, Mask

MOST_UPDATES = 100  # of a training
LEAST_STRIDE = 16  # steps between updates, so that they cost little beside the training
GONE = -1.0  # the score of what an earlier stage removed: below all others, which are >= 0
Masks = Mapping[str, Mask]


class Rule(NamedTuple):
    """How masks are cut from scores.

    Attributes:
        criterion: a name in `edgeprune.criteria`; says how the scores of a block are pooled.
        granularity: ``weight``, ``block`` or ``n:m``.
        block: for ``block``: consecutive (input channels, output channels).
        n, m: for ``n:m``: kept n of every m consecutive input channels.
        scope: ``layer`` or ``network``.
        distribution: a name in `edgeprune.distributions`, for the scope ``layer``.
    """

    criterion: str = "magnitude"
    granularity: str = "weight"
    block: tuple[int, int] = (1, 1)
    n: int = 2
    m: int = 4
    scope: str = "layer"
    distribution: str = "uniform"

    def groups(self) -> Granularity:
        """What lives or dies together."""
        if self.granularity == "n:m":
            return granularity.n_of_m(self.n, self.m)
        if self.granularity == "block":
            return granularity.block(*self.block, criteria.POOLING.get(self.criterion, "sum"))
        return granularity.weight()


class Ramp(NamedTuple):
    """How sparsity goes from what is there to what is asked for within one training.

    Attributes:
        schedule: ``polynomial`` or ``constant``; a pattern n:m rises by whole zeros instead of the polynomial.
        initial, final: sparsity, 0..1.
        begin, end: share of the training, 0..1: when it rises, and after which masks stay as they are.
        power: of the polynomial.
        zeros, of: for a pattern n:m: m - n and m; 0: no pattern.
    """

    schedule: str
    initial: float
    final: float
    begin: float = 0.0
    end: float = 1.0
    power: float = 3.0
    zeros: int = 0
    of: int = 0

    def function(self) -> schedules.Schedule:
        """Progress 0..1 -> sparsity 0..1."""
        if self.schedule == "constant":
            return schedules.constant(self.final, self.begin)
        if self.zeros:
            return schedules.steps(self.zeros, self.of, self.begin, self.end)
        return schedules.polynomial(self.initial, self.final, self.begin, self.end, self.power)


def updates(begin: float, end: float, steps: int, frequency: int | None) -> list[int]:
    """The counts of done steps after which masks are decided anew: evenly from the first to the last, both included.

    Args:
        begin, end: share of all steps, 0..1.
        steps: of the training; the last update leaves at least one of them.
        frequency: steps between updates; None: a hundredth of the span, at least 16 steps.

    >>> updates(0.0, 0.5, 40, 8)
    [0, 8, 16, 20]
    """
    last = min(max(round(end * steps), 0), max(steps - 1, 0))
    first = min(round(begin * steps), last)
    stride = frequency or max(LEAST_STRIDE, math.ceil((last - first) / MOST_UPDATES))
    return [*range(first, last, stride), last]


def reached(sparsity: float, share: float, initial: float = 0.0) -> float:
    """The sparsity after a share of the rounds, each of which keeps the same share of what it is given.

    1 - (1 - initial) ((1 - sparsity) / (1 - initial))^share

    >>> round(reached(0.75, 0.5), 12)
    0.5
    """
    if share == 1:
        return sparsity
    return 1.0 - (1.0 - initial) * ((1.0 - sparsity) / (1.0 - initial)) ** share


def sparsity_of(found: Masks) -> float:
    """The share of zeros of all masks together, 0..1."""
    return 1.0 - sum(int(mask.sum()) for mask in found.values()) / sum(mask.size for mask in found.values())


def scored(criterion: str, signals: Mapping[str, Mapping[str, Array]]) -> dict[str, Array]:
    """The scores of every weight.

    Args:
        criterion: a name in `edgeprune.criteria`.
        signals: kernel -> signal -> array, all that the criterion names.

    Raises:
        RecipeError: the criterion ranks channels, not weights.
    """
    function = registry.function("criteria", criterion)
    scores = {name: function(**given) for name, given in signals.items()}
    for name, values in scores.items():
        if values.shape != np.shape(signals[name].get("weights", values)) or values.ndim < 2:
            raise RecipeError(
                f"The criterion '{criterion}' ranks channels, and here single weights are ranked. Choose one that ranks weights: "
                "`edgeprune list criteria`, docs/criteria.md."
            )
    return scores


def decided(
    scores: Mapping[str, Array],
    sparsity: float | Mapping[str, float],
    rule: Rule,
    given: Masks | None = None,
) -> dict[str, Mask]:
    """The masks that keep the highest scores.

    Args:
        scores: kernel -> score per weight, >= 0.
        sparsity: of all kernels together, 0..1; or of every kernel.
        rule: how.
        given: earlier masks, whose zeros stay zeros and count.

    Raises:
        RecipeError, CutError: as `masks.masks`.
    """
    shares = sparsity if isinstance(sparsity, Mapping) else budgets(scores, sparsity, rule)
    groups = rule.groups()
    worth = scores if given is None else {name: _after(values, given[name], rule) for name, values in scores.items()}
    found = masks.masks(worth, shares, groups, rule.scope)
    return found if given is None else {name: mask & given[name] for name, mask in found.items()}


def budgets(scores: Mapping[str, Array], sparsity: float, rule: Rule) -> float | dict[str, float]:
    """The sparsity of every kernel, or of all together where they are ranked against each other."""
    if rule.scope == "network":
        return sparsity
    shapes = {name: values.shape for name, values in scores.items()}
    shares: dict[str, float] = registry.function("distributions", rule.distribution)(shapes, sparsity)
    return shares


def _after(scores: Array, given: Mask, rule: Rule) -> Array:
    """The scores with those weights last that are gone; a root of a block's sum takes no negative ones."""
    return np.where(given, scores, 0.0 if rule.granularity == "block" else GONE)


def moved(worth: Array, growth: Array, mask: Mask, share: float, given: Mask | None = None) -> Mask:
    """As many weights as before, some of them others: the least of those that are there go, the best of the others come.

    A weight that goes may come back at once, if it is the best; one that an earlier stage removed may not.

    Args:
        worth: scores of which the lowest go.
        growth: scores of which the highest come.
        mask: as it is.
        share: of the weights that are there which goes, 0..1; rounded down.
        given: where weights may be at all; None: everywhere.
    """
    count = int(share * int(mask.sum()) + masks.ALMOST)
    there = np.flatnonzero(mask)
    keep = np.zeros(mask.size, bool)
    keep[there[masks.highest(worth.ravel()[there], len(there) - count)]] = True
    allowed = ~keep if given is None else ~keep & given.ravel()
    free = np.flatnonzero(allowed)
    keep[free[masks.highest(growth.ravel()[free], count)]] = True
    return keep.reshape(mask.shape)


def cosine(share: float, progress: float) -> float:
    """How much is moved: share / 2 (1 + cos(pi progress)), from the share to 0 (Evci et al. 2020).

    >>> cosine(0.3, 0.0), round(cosine(0.3, 0.5), 12), cosine(0.3, 1.0)
    (0.3, 0.15, 0.0)
    """
    return share / 2 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def shuffled(found: Masks, seed: int) -> dict[str, Mask]:
    """Random masks with as many weights in every kernel: what a ticket has to be better than."""
    random = np.random.Generator(np.random.PCG64(seed))
    return {name: random.permutation(mask.ravel()).reshape(mask.shape) for name, mask in found.items()}


def allotted(
    costs: Mapping[str, Sequence[float]],
    shares: Mapping[str, Sequence[float]],
    sizes: Mapping[str, int],
    sparsity: float,
) -> dict[str, float]:
    """The sparsity of every kernel with which the costliest of them costs least.

    Every kernel has a ladder of sparsities, and what each step costs when only that kernel is on it. Steps are taken in the
    order of their costs, until all kernels together are as sparse as asked; of the last step only as much as is needed.

    Args:
        costs: kernel -> cost of every step; one that is lower than that of the step before counts as equal.
        shares: kernel -> ascending sparsities, 0..1, one per step, from what is gone already.
        sizes: kernel -> weights.
        sparsity: of all together, 0..1.

    Returns:
        Kernel -> sparsity.

    Raises:
        CutError: all steps together are less than asked.
    """
    found = {name: ladder[0] for name, ladder in shares.items()}
    wanted = sparsity * sum(sizes.values()) - sum(found[name] * sizes[name] for name in found)
    rising = {name: np.maximum.accumulate(np.asarray(values, np.float64)) for name, values in costs.items()}
    steps = sorted((float(rising[name][i]), i, name) for name in shares for i in range(1, len(shares[name])))
    for _, i, name in steps:
        if wanted <= masks.ALMOST:
            return found
        gain = min((shares[name][i] - found[name]) * sizes[name], wanted)
        found[name] += gain / sizes[name]
        wanted -= gain
    if wanted > masks.ALMOST * sum(sizes.values()):
        most = sum(found[name] * sizes[name] for name in found) / sum(sizes.values())
        raise CutError(
            f"A sparsity of {sparsity:g} is asked for, but the layers that are pruned can have {most:.4g} at most. Ask for less."
        )
    return found


def ladder(sparsity: float, lowest: float, steps: int) -> list[float]:
    """Ascending sparsities from the given one to one that leaves the share ``lowest``, by equal factors of what is left.

    >>> [round(one, 3) for one in ladder(0.0, 0.125, 3)]
    [0.0, 0.5, 0.75, 0.875]
    """
    left = max(1.0 - sparsity, lowest)
    values: NDArray[np.floating] = 1.0 - left * (lowest / left) ** (np.arange(steps + 1) / steps)
    return [sparsity, *(float(value) for value in values[1:])]
