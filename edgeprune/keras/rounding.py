"""How far rounding alone moves a model's outputs: what two equal models may differ by.

float32 keeps 24 bits. Where a layer subtracts large numbers that are nearly equal, as BatchNormalization does behind
activations that hardly vary, the last of them become leading ones, and fifty such layers turn a difference of 1e-7 into
1e-4 of the output range. Another order of the same sums does that as well, so no two correct versions of such a model
agree to 1e-5. Moving every weight in its last bit shows how much of a difference can be that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from edgeprune.keras import graph

LAST_BIT = 2.0**-23  # of a float32, relative
FACTOR = 10.0  # the order of a sum moves it by some last bits, not by one
CAP = 1e-2  # of the output range; a model that rounding moves further proves nothing


@contextmanager
def stirred(model: Any, seed: int = 0) -> Iterator[None]:
    """Within it every floating-point weight is off by up to its last bit; afterwards it is what it was."""
    generator = np.random.Generator(np.random.PCG64(seed))
    variables = [variable for variable in model.weights if variable.dtype.is_floating]
    before = [variable.numpy() for variable in variables]
    try:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value * (1 + LAST_BIT * generator.uniform(-1, 1, value.shape)).astype(value.dtype))
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)


def allowed(limit: float, moved: float) -> float:
    """The difference that may be rounding where outputs ``moved`` so far, both as shares of the output range."""
    return max(limit, min(CAP, FACTOR * moved))


def excess(one: Any, other: Any, limit: float) -> float | None:
    """By how much two models differ on seeded inputs, as a share of the output range; None: by less than ``limit``, or rounding.

    Args:
        one: functional tf_keras model; its weights are moved for a moment where the outputs differ by more.
        other: takes the same inputs.
        limit: of the output range, > 0.
    """
    batches = graph.probes(one)
    return excess_of(one, batches, graph.outputs(one, batches), graph.outputs(other, batches), limit)


def excess_of(
    one: Any, batches: Sequence[Any], expected: Sequence[Any], found: Sequence[Any], limit: float
) -> float | None:
    """``excess`` where the outputs of both models for the batches are known already."""
    difference = graph.difference(expected, found)
    if difference <= limit:
        return None
    with stirred(one):
        moved = graph.difference(expected, graph.outputs(one, batches))
    return None if difference <= allowed(limit, moved) else difference
