"""Fit a few non-negative constants to published figures, and judge them on figures that they were not fitted on.

With features ``x`` (one column per constant, in the unit of the figures), what no constant multiplies ``k`` (known, in the same
unit), figures ``y > 0`` and constants ``c >= 0``::

    c = argmin  Σ ((x·c + k − y) / y)²,   c >= 0

so that a figure of 2 ms counts as much as one of 60 ms. What is judged is the relative error ``(x·c + k − y) / y``: its mean
absolute value (MAPE) and its largest one, in percent, and the rank correlation of predicted and published figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
MOST_CONSTANTS = 10  # every subset of them is tried


class Errors(NamedTuple):
    """How far predictions are from figures that they were not fitted on.

    Attributes:
        figures: how many were judged.
        mape_pct: mean of the absolute relative errors, percent.
        worst_pct: the largest absolute relative error, percent.
        rank_correlation: Spearman's, −1..1; None with fewer than three figures.
    """

    figures: int
    mape_pct: float
    worst_pct: float
    rank_correlation: float | None


def fit(features: Array, figures: Array, known: Array | None = None) -> Array:
    """The non-negative constants with the least squares of relative errors.

    Solved exactly: at the optimum some constants are 0 and the others are an unconstrained least-squares solution, so
    every choice of zeros is tried and the best one without a negative constant is kept.

    Args:
        features: (figures, constants), at most `MOST_CONSTANTS` constants.
        figures: (figures,), > 0.
        known: (figures,), the part of each figure that no constant multiplies; None: nothing.

    Returns:
        (constants,), >= 0; a column that is 0 everywhere gets 0.

    Raises:
        ValueError: a figure is not above 0, or there are too many constants.
    """
    if not (np.all(np.isfinite(figures)) and np.all(figures > 0)):
        raise ValueError("a figure to fit to is not a finite number above 0; a relative error needs that")
    count = features.shape[1]
    if count > MOST_CONSTANTS:
        raise ValueError(f"{count} constants are to be fitted; at most {MOST_CONSTANTS}")
    relative = features / figures[:, None]
    left = np.ones(len(figures)) if known is None else 1 - known / figures
    scale = np.abs(relative).max(axis=0, initial=0.0)
    used = [column for column in range(count) if scale[column] > 0]
    best, least = np.zeros(count), float(left @ left)
    for size in range(1, len(used) + 1):
        for chosen in combinations(used, size):
            columns = list(chosen)
            matrix = relative[:, columns] / scale[columns]
            found = np.linalg.lstsq(matrix, left, rcond=None)[0]
            residual = float(np.sum((matrix @ found - left) ** 2))
            if np.all(found >= 0) and residual < least * (1 - 1e-12):
                least, best = residual, np.zeros(count)
                best[columns] = found / scale[columns]
    return best


def judge(predicted: Array, figures: Array) -> Errors:
    """How far predictions are from figures; both (figures,), in the same unit, figures > 0."""
    relative = 100 * np.abs(predicted / figures - 1)
    rank = rank_correlation(predicted, figures) if len(figures) > 2 else None
    return Errors(len(figures), float(relative.mean()), float(relative.max()), rank)


def leave_one_out(features: Array, figures: Array, families: Sequence[str], known: Array | None = None) -> Array:
    """Each family's figures as predicted by constants that were fitted on all the other families.

    Args:
        features: (figures, constants).
        figures: (figures,), > 0.
        families: of each figure; at least two different ones.
        known: (figures,), as in `fit`.

    Returns:
        (figures,) predictions.

    Raises:
        ValueError: there is only one family, so nothing is left to fit on.
    """
    kinds = np.asarray(families)
    given = np.zeros(len(figures)) if known is None else known
    if len(set(families)) < 2:
        raise ValueError(f"all figures are of the family {families[0] if len(families) else '?'!r}; two are needed")
    predicted = np.empty(len(figures))
    for family in sorted(set(families)):
        left = kinds == family
        predicted[left] = features[left] @ fit(features[~left], figures[~left], given[~left]) + given[left]
    return predicted


def rank_correlation(first: Array, second: Array) -> float:
    """Spearman's rank correlation, equal values sharing their mean rank; 1 where one of them is constant in both."""
    ranks = [_ranks(np.asarray(values)) for values in (first, second)]
    centred = [rank - rank.mean() for rank in ranks]
    norm = float(np.sqrt(np.sum(centred[0] ** 2) * np.sum(centred[1] ** 2)))
    return float(np.sum(centred[0] * centred[1]) / norm) if norm else float(np.array_equal(ranks[0], ranks[1]))


def _ranks(values: Array) -> Array:
    """Rank of each value, 0 the smallest; the mean rank where values are equal."""
    below = (values[:, None] > values[None, :]).sum(axis=1)
    equal = (values[:, None] == values[None, :]).sum(axis=1)
    return np.asarray(below + (equal - 1) / 2, dtype=float)
