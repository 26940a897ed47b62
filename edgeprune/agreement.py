"""How far two runs of the same quantized model lie apart: on two kinds of kernels, or in Keras and in TFLite.

All in *steps*: one step is one unit of the stored int8 numbers, that is one ``scale`` of the real ones. Kernels round
differently, so a step or two at an output is nothing; through many layers, and most of all through a softmax, steps can
add up to tens for single samples. But rounding has no direction: over many samples it cancels, while a defect such as a
wrong bias does not. So there is the largest difference, which is easily said, and the systematic one, which tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgeprune.errors import DataError


class Comparison(NamedTuple):
    """Two runs over the same samples.

    Attributes:
        agreement: share of samples (or pixels, where each has a class) that both runs put into the same class, 0..1;
            without classes, of equal outputs.
        equal_share: share of output numbers that are equal, 0..1.
        largest_difference_steps: of any output of any sample, >= 0.
        rms_difference_steps: root of the mean squared difference, >= 0.
        systematic_difference_steps: of the mean over all samples, for the output where it is largest and no chance (see
            `directed`), >= 0.
        samples: how many.
    """

    agreement: float
    equal_share: float
    largest_difference_steps: int
    rms_difference_steps: float
    systematic_difference_steps: float
    samples: int


def compare(one: np.ndarray, other: np.ndarray, classes: bool = True, boundary: float | None = None) -> Comparison:
    """Compare two runs.

    Args:
        one, other: (n, ...) stored integers, n >= 1.
        classes: whether the outputs are scores of classes, along the last axis; then the largest counts, of equals the
            first.
        boundary: of a single score: the stored number from which on it means class 1 (see `boundary_of`).

    Raises:
        DataError: unequal shapes, or no samples.
    """
    if one.shape != other.shape or one.size == 0:
        raise DataError(
            f"Outputs of the shapes {one.shape} and {other.shape} cannot be compared: expected equal shapes of at "
            "least one sample."
        )
    first, second = (array.reshape(len(array), -1).astype(np.int64) for array in (one, other))
    difference = first - second
    equal = difference == 0
    same = _same_class(_scores(one), _scores(other), boundary) if classes else None
    return Comparison(
        agreement=float(np.mean(equal if same is None else same)),
        equal_share=float(equal.mean()),
        largest_difference_steps=int(np.abs(difference).max()),
        rms_difference_steps=float(np.sqrt(np.mean(np.square(difference, dtype=np.float64)))),
        systematic_difference_steps=directed(
            difference.sum(axis=0), np.square(difference, dtype=np.float64).sum(axis=0), len(difference)
        ),
        samples=len(first),
    )


def directed(total: np.ndarray, squares: np.ndarray, count: int) -> float:
    """The mean difference of the output where it is largest, of those outputs where chance explains less than half of it.

        chance = sqrt(2 ln 2k) s / sqrt(n)

    Roundings have no direction, but the mean of few of them does: that of 16 differences of 7 steps is off 0 by 2, and the
    largest of k such means by sqrt(2 ln 2k) times as much. A defect pushes all samples alike, so that s is small.

    Args:
        total, squares: sum of the differences and of their squares over the samples, for each of the k outputs.
        count: n, how many samples, >= 1.
    """
    mean = np.abs(np.asarray(total, np.float64) / count)
    deviation = np.sqrt(np.maximum(np.asarray(squares, np.float64) / count - mean**2, 0.0))
    chance = np.sqrt(2 * np.log(2 * mean.size) / count) * deviation
    return float(np.where(chance <= mean / 2, mean, 0.0).max())


def worst(comparisons: Sequence[Comparison]) -> Comparison:
    """One comparison for a model with several outputs: of each figure the worst."""
    return Comparison(
        agreement=min(each.agreement for each in comparisons),
        equal_share=min(each.equal_share for each in comparisons),
        largest_difference_steps=max(each.largest_difference_steps for each in comparisons),
        rms_difference_steps=max(each.rms_difference_steps for each in comparisons),
        systematic_difference_steps=max(each.systematic_difference_steps for each in comparisons),
        samples=comparisons[0].samples,
    )


def boundary_of(scale: float, zero_point: int) -> float:
    """The stored number from which on a single score means class 1.

    A sigmoid's output is stored with scale 1/256 and zero point -128 (TFLite fixes both): 0.5 and up. Any other is
    taken for a logit: above 0.
    """
    if zero_point == -128 and abs(scale - 1 / 256) < 1e-6:
        return zero_point + 0.5 / scale
    return zero_point + 1


def _scores(stored: np.ndarray) -> np.ndarray:
    """(samples or pixels, classes)."""
    return stored.reshape(-1, stored.shape[-1] if stored.ndim > 1 else 1)


def _same_class(one: np.ndarray, other: np.ndarray, boundary: float | None) -> np.ndarray | None:
    """For each sample (or pixel) whether the class is the same; None where a single score comes without its boundary."""
    if one.shape[1] > 1:
        return np.asarray(one.argmax(axis=1) == other.argmax(axis=1))
    return None if boundary is None else np.asarray((one[:, 0] >= boundary) == (other[:, 0] >= boundary))
