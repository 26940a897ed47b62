"""What a search compares: objectives, the Pareto front, its hypervolume, and when a candidate is given up early.

All objectives are minimised: the drop of the metric first, then costs. The hypervolume (Zitzler & Thiele, "Multiobjective
optimization using evolutionary algorithms" (1998)) is that of the points between the ideal and a reference point that the space
itself gives: the costs of the uncut network, and the drop of the network that is cut as far as it may be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeprune.search_space import DROP, LATENCY, MACS, SIZE, Costs, Space

Points = NDArray[np.float64]

SCHEMA = 1
QUARTER = 4  # a candidate is first judged on one of so many parts of the samples
BLOCKS = 8  # that this part is divided into, for the standard error
ERRORS = 3.0  # standard errors that a candidate must be behind to be given up
LEAST = 8  # samples in a block, at least


class Box(NamedTuple):
    """Between which points a front is judged.

    Attributes:
        names: of the objectives.
        ideal, worst: values that nothing is better than, and that everything worth having is better than.
    """

    names: tuple[str, ...]
    ideal: tuple[float, ...]
    worst: tuple[float, ...]

    def scaled(self, values: Sequence[Sequence[float]]) -> Points:
        """Values with 0 for the ideal and 1 for the reference point, (points, objectives)."""
        low, high = np.asarray(self.ideal, float), np.asarray(self.worst, float)
        given = np.asarray(values, float).reshape(-1, len(self.names))
        return (given - low) / np.maximum(high - low, 1e-12)

    def volume(self, values: Sequence[Sequence[float]]) -> float:
        """Share of the box that the points dominate, 0..1."""
        return hypervolume(np.clip(self.scaled(values), 0.0, None), np.ones(len(self.names)))


def objectives(costs: Costs) -> tuple[str, ...]:
    """What is minimised: the drop, the latency where it can be predicted, else the multiply-accumulates, and the file's size."""
    return (DROP, LATENCY if LATENCY in costs else MACS, SIZE)


def sought(space: Space) -> tuple[str, ...]:
    """What a sampler minimises: all objectives; where a cost has a limit the drop alone, for any cost within it will do."""
    names = objectives(space.costs(space.whole()))
    return names[:1] if set(space.limits) - {DROP} else names


def box(space: Space, worst_drop: float) -> Box:
    """The box of a space.

    Args:
        space: its uncut and its smallest candidate give the costs.
        worst_drop: the drop of the smallest candidate, > 0 where cutting costs anything.
    """
    whole, least = space.costs(space.whole()), space.costs(space.smallest())
    names = objectives(whole)
    costs = names[1:]
    return Box(
        names, (0.0, *(least[name] for name in costs)), (max(worst_drop, 1e-6), *(whole[name] for name in costs))
    )


def values(names: Sequence[str], drop: float, costs: Costs) -> tuple[float, ...]:
    """One point: the objectives' values in the order of their names."""
    given = {**costs, DROP: drop}
    return tuple(float(given[name]) for name in names)


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one point is nowhere worse and somewhere better than the other."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


def front(points: Sequence[Sequence[float]]) -> list[int]:
    """Places of the points that no other dominates, in order of the second objective; of equal points the first.

    >>> front([(0.1, 5.0), (0.2, 3.0), (0.3, 4.0), (0.1, 5.0)])
    [1, 0]
    """
    if not len(points):
        return []
    given = np.asarray(points, float)
    order = np.lexsort(given.T[::-1])  # by the first objective, then by the others: whatever dominates comes before
    kept: list[int] = []
    for place in order:
        if not kept or not (given[kept] <= given[place]).all(axis=1).any():
            kept.append(int(place))
    return sorted(kept, key=lambda place: (*given[place][1:], given[place][0]))


def hypervolume(points: Points, reference: Points) -> float:
    """Volume that points dominate up to a reference point.

    By slices along the last objective (While et al., "A fast way of calculating exact hypervolumes" (2012), has faster ways for
    many objectives; there are three here).

    Args:
        points: (points, objectives), minimised.
        reference: (objectives,); what does not lie below it counts for nothing.

    >>> round(hypervolume(np.array([[0.0, 0.5], [0.5, 0.0]]), np.ones(2)), 3)
    0.75
    """
    given = points[(points < reference).all(axis=1)]
    if not len(given):
        return 0.0
    if given.shape[1] == 1:
        return float(reference[0] - given.min())
    if given.shape[1] == 2:
        return _area(given, reference)
    given = given[np.argsort(given[:, -1], kind="stable")]
    edges = np.append(given[:, -1], reference[-1])
    slabs = np.diff(edges)
    return float(
        sum(
            depth * hypervolume(given[: number + 1, :-1], reference[:-1])
            for number, depth in enumerate(slabs)
            if depth > 0
        )
    )


def _area(points: Points, reference: Points) -> float:
    ordered = points[np.lexsort((points[:, 1], points[:, 0]))]
    lowest = np.minimum.accumulate(ordered[:, 1])
    edges = np.append(ordered[:, 0], reference[0])
    return float(np.sum(np.diff(edges) * (reference[1] - lowest)))


def spread(points: Sequence[Sequence[float]], count: int, over: Box) -> list[int]:
    """So many points of a front that together dominate the most, chosen one after the other (Guerreiro et al., "Greedy hypervolume
    subset selection in low dimensions" (2016)).

    Args:
        points: of the front.
        count: at most.
        over: what the volume is taken in.

    Returns:
        Places, the best first; all of them where there are not more.
    """
    scaled = np.clip(over.scaled(points), 0.0, None)
    reference = np.full(scaled.shape[1], 1.0 + 1e-3)  # those at the edge of the box count a little, too
    chosen: list[int] = []
    while len(chosen) < min(count, len(scaled)):
        left = [place for place in range(len(scaled)) if place not in chosen]
        chosen.append(max(left, key=lambda place: (hypervolume(scaled[[*chosen, place]], reference), -place)))
    return chosen


class Glimpse(NamedTuple):
    """A drop from some of the samples: its mean over blocks of them, and the mean's standard error."""

    drop: float
    error: float


def glimpse(drops: Sequence[float]) -> Glimpse:
    """From the drops of blocks of samples, each against the uncut model on the same block."""
    given = np.asarray(drops, float)
    return Glimpse(
        float(given.mean()), float(given.std(ddof=1) / math.sqrt(len(given))) if len(given) > 1 else math.inf
    )


def hopeless(seen: Glimpse, costs: Costs, best: Sequence[Sequence[float]], names: Sequence[str]) -> bool:
    """Whether a point of the front costs no more and is better by more than the error can explain.

    Args:
        seen: of the candidate, on the first part of the samples.
        costs: of the candidate.
        best: the front.
        names: of the objectives.
    """
    if not math.isfinite(seen.error):
        return False
    least = values(names, seen.drop - ERRORS * seen.error, costs)
    return any(dominates(point, least) and point[0] < least[0] for point in best)


def blocks(samples: int) -> list[slice]:
    """The blocks of the first part of so many samples; none where they would be too small to say anything.

    >>> [part.stop for part in blocks(1024)]
    [32, 64, 96, 128, 160, 192, 224, 256]
    >>> blocks(100)
    []
    """
    size = samples // QUARTER // BLOCKS
    return [slice(number * size, (number + 1) * size) for number in range(BLOCKS)] if size >= LEAST else []


def importance(rows: Sequence[Mapping[str, Any]], outcomes: Sequence[float], names: Sequence[str]) -> dict[str, float]:
    """How closely an outcome follows each choice: the share of its variance between the choice's values, 0..1.

    A number is taken by its quarters, a word as it is (the correlation ratio, Pearson 1905). It sees each choice alone.

    Args:
        rows: candidates, by name.
        outcomes: one for each.
        names: of what is asked for.
    """
    given = np.asarray(outcomes, float)
    total = float(((given - given.mean()) ** 2).sum()) if len(given) else 0.0
    found = {}
    for name in names:
        classes = _classes([row[name] for row in rows])
        between = sum(
            int((classes == one).sum()) * (given[classes == one].mean() - given.mean()) ** 2
            for one in np.unique(classes)
        )
        found[name] = float(between / total) if total > 0 else 0.0
    return found


def _classes(column: Sequence[Any]) -> NDArray[np.intp]:
    """Equal numbers for what is taken together."""
    if all(isinstance(value, (int, float)) for value in column):
        given = np.asarray(column, float)
        if len(np.unique(given)) > QUARTER:
            return np.searchsorted(np.quantile(given, [0.25, 0.5, 0.75]), given, side="left")
    _, classes = np.unique(np.asarray([str(value) for value in column]), return_inverse=True)
    return classes


Measure = Callable[[Sequence[Sequence[float]]], float]


def progress(points: Sequence[Sequence[float]], volume: Measure) -> list[float]:
    """The hypervolume after every trial."""
    found, best = [], 0.0
    for number in range(1, len(points) + 1):
        newest = points[number - 1]
        earlier = points[: number - 1]
        if not any(dominates(one, newest) or tuple(one) == tuple(newest) for one in earlier):
            best = volume(points[:number])
        found.append(best)
    return found
