"""Granularities: what lives or dies together, as two functions: weights' scores -> groups' scores, groups -> mask.

A granularity is a closure pair that reads like its definition; every public function here is a constructor of one. Scores
have the Keras layout (..., input channels, output channels). `edgeprune.masks` ranks the groups and cuts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import RecipeError

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]
Shape = tuple[int, ...]


class Granularity(NamedTuple):
    """What lives or dies together.

    Attributes:
        reduce: scores of a kernel -> one score per group.
        expand: keep per group, shape of the kernel's scores -> mask of that shape.
        name: for messages.
        sparsities: the only shares of zeros that the pattern can hold; empty: any.
        whole: whether a group is a whole layer, so that a layer may lose all that it has.
    """

    reduce: Callable[[Array], Array]
    expand: Callable[[Mask, Shape], Mask]
    name: str
    sparsities: tuple[float, ...] = ()
    whole: bool = False


POOLINGS: dict[str, Callable[..., Array]] = {
    "sum": np.sum,
    "mean": np.mean,
    "max": np.max,
    "root": lambda scores, axis: np.sqrt(np.sum(scores, axis=axis)),
}


def weight() -> Granularity:
    """Every weight for itself."""
    return Granularity(lambda scores: scores, _as_it_is, "weight")


def block(rows: int, columns: int, pooling: str = "sum") -> Granularity:
    """Blocks of consecutive (input channels, output channels), at every place of the kernel.

    Args:
        rows, columns: of a block, >= 1; they must divide the input and the output channels.
        pooling: a name in ``POOLINGS``; which one a criterion wants is in ``criteria.POOLING``.

    Raises:
        RecipeError: a block without weights, no such pooling; from ``reduce``: a kernel that is not made of such blocks.
    """
    _check_positive("block", rows=rows, columns=columns)
    pool = _pool(pooling)

    def reduce(scores: Array) -> Array:
        inputs, outputs = _sides(scores, f"block {rows}x{columns}")
        if inputs % rows or outputs % columns:
            raise RecipeError(
                f"A kernel of {inputs}x{outputs} (input x output channels) is not made of {rows}x{columns} blocks. Choose a "
                "block whose sides divide them, or exclude the layer."
            )
        split = (*scores.shape[:-2], inputs // rows, rows, outputs // columns, columns)
        return pool(scores.reshape(split), axis=(-3, -1))

    def expand(keep: Mask, shape: Shape) -> Mask:
        return keep.repeat(rows, axis=-2).repeat(columns, axis=-1).reshape(shape)

    return Granularity(reduce, expand, f"block {rows}x{columns}")


def n_of_m(n: int, m: int) -> Granularity:
    """At most n non-zeros in every m consecutive input channels, at every place and output channel.

    A weight's score becomes its place in its run of m: the best scores m, the worst 1. So a sparsity of k/m leaves m - k
    in every run: 2:4 may come by way of 3:4.

    Args:
        n: kept of every run, 1..m-1.
        m: the length of a run; it must divide the input channels.

    Raises:
        RecipeError: n not below m; from ``reduce``: input channels that m does not divide.
    """
    if not 1 <= n < m:
        raise RecipeError(f"The pattern {n}:{m} keeps {n} of {m}. Give n:m with 1 <= n < m, as 2:4.")

    def reduce(scores: Array) -> Array:
        inputs, outputs = _sides(scores, f"{n}:{m}")
        if inputs % m:
            raise RecipeError(
                f"{inputs} input channels cannot carry {n}:{m}: {m} does not divide them. Exclude the layer, or choose an m "
                "that does."
            )
        runs = scores.reshape(*scores.shape[:-2], inputs // m, m, outputs)
        best_first = np.argsort(-runs, axis=-2, kind="stable")
        places = np.argsort(best_first, axis=-2, kind="stable")
        return (m - places).astype(np.float64).reshape(scores.shape)

    return Granularity(reduce, _as_it_is, f"{n}:{m}", sparsities=tuple(zeros / m for zeros in range(m - n + 1)))


def channel(pooling: str = "sum", axis: int = -1) -> Granularity:
    """All weights of one output channel; of a Dense layer, a neuron. Scores that are per channel already stay as they are.

    Args:
        pooling: a name in ``POOLINGS``; which one a criterion wants is in ``criteria.POOLING``.
        axis: -1, the output channels, or another one: -2 for the input channels that a kernel reads.

    Raises:
        RecipeError: no such pooling.
    """
    pool = _pool(pooling)

    def reduce(scores: Array) -> Array:
        if scores.ndim == 1:
            return scores
        return pool(np.moveaxis(scores, axis, -1).reshape(-1, scores.shape[axis]), axis=0)

    def expand(keep: Mask, shape: Shape) -> Mask:
        if len(shape) == 1:
            return keep.copy()
        along = [1] * len(shape)
        along[axis] = -1
        return np.broadcast_to(keep.reshape(along), shape).copy()

    return Granularity(reduce, expand, "channel")


def neuron(pooling: str = "sum") -> Granularity:
    """All weights into one unit of a Dense layer: its output channel."""
    return channel(pooling)._replace(name="neuron")


def kernel(pooling: str = "sum") -> Granularity:
    """All weights that connect one input channel with one output channel: a synapse of a convolution.

    Args:
        pooling: a name in ``POOLINGS``; which one a criterion wants is in ``criteria.POOLING``.

    Raises:
        RecipeError: no such pooling.
    """
    pool = _pool(pooling)

    def reduce(scores: Array) -> Array:
        inputs, outputs = _sides(scores, "kernel")
        return pool(scores.reshape(-1, inputs, outputs), axis=0)

    def expand(keep: Mask, shape: Shape) -> Mask:
        return np.broadcast_to(keep, shape).copy()

    return Granularity(reduce, expand, "kernel")


def layer(pooling: str = "mean") -> Granularity:
    """All weights of a layer: whole layers are ranked against each other.

    Args:
        pooling: a name in ``POOLINGS``; the mean makes layers of different size comparable.

    Raises:
        RecipeError: no such pooling.
    """
    pool = _pool(pooling)

    def reduce(scores: Array) -> Array:
        return np.atleast_1d(pool(scores.ravel(), axis=0))

    def expand(keep: Mask, shape: Shape) -> Mask:
        return np.full(shape, bool(keep[0]))

    return Granularity(reduce, expand, "layer", whole=True)


def _as_it_is(keep: Mask, shape: Shape) -> Mask:
    return keep.reshape(shape)


def _sides(scores: Array, pattern: str) -> tuple[int, int]:
    """Input and output channels of a kernel's scores."""
    if scores.ndim < 2:
        raise RecipeError(
            f"The pattern {pattern} needs a score per weight, and these are {scores.shape}: one per channel. Choose the "
            "granularity channel, or a criterion that scores weights."
        )
    return scores.shape[-2], scores.shape[-1]


def _pool(pooling: str) -> Callable[..., Array]:
    if pooling not in POOLINGS:
        raise RecipeError(f"There is no pooling '{pooling}'. Known: {', '.join(POOLINGS)}.")
    return POOLINGS[pooling]


def _check_positive(what: str, **values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise RecipeError(f"{name} of a {what} must be >= 1, got {value}.")
