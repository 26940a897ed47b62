"""What a model costs after a cut, without making it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from edgeprune import channels
from edgeprune.analytic import Layer
from edgeprune.channel_rules import AxisKey
from edgeprune.keras import channel_graph, graph, inspect
from edgeprune.keras.latency import Stopwatch


class Cost(NamedTuple):
    """Of one model.

    Attributes:
        macs: multiply-accumulates for one sample, counted as in `edgeprune.keras.inspect`.
        params: weights, trainable or not.
        latency_ms: predicted for a board; None where none was asked for.
    """

    macs: int
    params: int
    latency_ms: float | None = None


class Variable(NamedTuple):
    """A weight: its shape, the axes that channels follow, and how often each of its values is multiplied (0: never)."""

    shape: tuple[int, ...]
    axes: dict[int, AxisKey]
    uses: int


class Meter:
    """Counts a model's cost for cuts of it.

    Attributes:
        coupling: the channel analysis of the model.
        variables: every weight of the model, once.
    """

    def __init__(self, model: Any, milliseconds: Callable[[Sequence[Layer]], float] | None = None) -> None:
        """Args:
        model: functional or built Sequential tf_keras model.
        milliseconds: what a list of ops takes on a board (`edgeprune.forecast.milliseconds`); None: no latency is told.
        """
        model = graph.flatten(model)
        self._stopwatch = Stopwatch(model, milliseconds) if milliseconds else None
        self.coupling = channels.couple(channel_graph.describe(model))
        self.variables = _variables(model, self.coupling)

    def __call__(self, cut: channels.Cut) -> Cost:
        """The cost of what ``surgery.shrink(model, cut)`` would make; raises as `channels.apply` does."""
        remaining = channels.apply(self.coupling, cut)
        macs = params = 0
        for variable in self.variables:
            size = prod(_length(variable, axis, remaining) for axis in range(len(variable.shape)))
            params += size
            macs += size * variable.uses
        return Cost(macs, params, self._stopwatch(cut) if self._stopwatch else None)


def _length(variable: Variable, axis: int, remaining: dict[AxisKey, np.ndarray]) -> int:
    key = variable.axes.get(axis)
    return len(remaining[key]) if key in remaining else variable.shape[axis]


def _variables(model: Any, coupling: channels.Coupling) -> list[Variable]:
    """Every weight of the model, once."""
    macs = inspect.macs_by_layer(model)
    axes: dict[int, dict[int, AxisKey]] = {}
    for key in coupling.axes:
        variable = channel_graph.variable(model.get_layer(key[0]), key[1])
        axes.setdefault(id(variable), {})[key[2]] = key
    found: dict[int, Variable] = {}
    for layer in model.layers:
        kernels = [getattr(layer, name) for name in inspect.KERNELS if getattr(layer, name, None) is not None]
        size = sum(prod(kernel.shape) for kernel in kernels)
        for variable in layer.weights:
            uses = macs.get(layer.name, 0) // size if any(variable is kernel for kernel in kernels) else 0
            found[id(variable)] = Variable(tuple(variable.shape), axes.get(id(variable), {}), uses)
    return list(found.values())
