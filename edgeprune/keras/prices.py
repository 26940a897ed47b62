"""What cuts of one model cost, from its shapes: for thousands of candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edgeprune import file_size
from edgeprune.analytic import Layer
from edgeprune.channels import Cut
from edgeprune.keras.arena import Arena
from edgeprune.keras.costs import Meter
from edgeprune.keras.latency import Stopwatch
from edgeprune.search_space import LATENCY, MACS, PARAMS, SIZE

Milliseconds = Callable[[Sequence[Layer]], float]


class Prices:
    """The costs of cuts of one model.

    Attributes:
        coupling: of its channels.
    """

    def __init__(self, model: Any, milliseconds: Milliseconds | None) -> None:
        """Args:
        model: functional or built Sequential tf_keras model.
        milliseconds: what a list of ops takes on a board (`edgeprune.forecast.predictor`); None: nothing predicts it.
        """
        self._meter = Meter(model)
        self._stopwatch = Stopwatch(model, milliseconds or (lambda layers: 0.0))
        self._arena = Arena(self._stopwatch)
        self._milliseconds = milliseconds
        self.coupling = self._meter.coupling

    def __call__(self, cut: Cut) -> dict[str, float]:
        """``macs``, ``params``, ``size_bytes``, and ``latency_ms`` where it can be predicted."""
        counted, layers = self._meter(cut), self._stopwatch.layers(cut)
        found = {MACS: float(counted.macs), PARAMS: float(counted.params), SIZE: float(file_size.predicted(layers))}
        return found if self._milliseconds is None else {**found, LATENCY: self._milliseconds(layers)}

    def arena(self, cut: Cut) -> float:
        """Bytes of activations, as ``Arena`` counts them."""
        return float(self._arena(cut))
