"""Runs one model on samples again and again while its weights change: compiled once, with statistics of its own every time.

Cutting channels gives what zeros in the weights that read them give (`edgeprune.keras.surgery`), so one model serves for all
cuts of it: weights are set to 0, the statistics of every BatchNormalization are averaged anew (`edgeprune.keras.statistics`), and
afterwards everything is put back. Without the second step a cut network is judged by the mean and variance of activations that it
no longer has, and seems worse than it is (Li et al., "EagleEye: Fast sub-net evaluation for efficient neural network pruning"
(2020)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from edgeprune import columns
from edgeprune.channels import Coupling, Cut
from edgeprune.data import Data, Split
from edgeprune.keras import feeding, keras, surgery, tf
from edgeprune.keras.statistics import Statistics

BATCH = 256
STATISTICS_SAMPLES, STATISTICS_BATCH = (
    512,
    64,
)  # of the training split: fewer than after a training, since it is done for every cut
IN_MEMORY_BYTES = 512 << 20  # of a split's samples; more are read anew every time
Held = list[tuple[Any, np.ndarray]]  # variables, with the values to give back


class Runner:
    """One model and the samples that it sees.

    Attributes:
        model: whose weights may be changed between two calls.
    """

    def __init__(self, model: Any, data: Data) -> None:
        """Args:
        model: flat functional.
        data: as the model takes it; statistics are taken on its training split.
        """
        self.model, self._data = model, data
        self._statistics: Statistics | None = None
        self._predict = tf.function(lambda x: tf.nest.flatten(model(x, training=False)), reduce_retracing=True)
        self._kept: dict[str, list[Any]] = {}

    def of(self, model: Any) -> Runner:
        """Another model with the same samples, what is in memory of them included."""
        found = Runner(model, self._data)
        found._kept = self._kept
        return found

    def settle(self, once: bool = False) -> None:
        """Give every BatchNormalization the statistics of the model as it is now; ``once``: as ``Statistics`` takes it."""
        if self._normalizations():
            self._statistics = self._statistics or Statistics(self.model)
            self._statistics(self._inputs(self._data.train.evenly(STATISTICS_SAMPLES), STATISTICS_BATCH), once)

    def outputs(self, split: Split) -> Any:
        """As ``training.outputs``."""
        parts = [[part.numpy() for part in self._predict(x)] for x in self._inputs(split, BATCH)]
        whole = [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
        return columns.unnamed(dict(zip(columns.named(split.y), whole, strict=True)))

    @contextmanager
    def masked(self, coupling: Coupling, cut: Cut, alter: Callable[[], Held] = list) -> Iterator[None]:
        """The model as the cut leaves it, settled, for as long as the block lasts.

        Args:
            coupling: of the model.
            cut: of groups whose cut is exact.
            alter: what else is changed before the statistics are taken; returns what was there before.
        """
        held = [(one, one.numpy()) for layer in self._normalizations() for one in layer.non_trainable_weights]
        held += surgery.mask(self.model, coupling, cut) if cut else []
        try:
            held = [*alter(), *held]  # what was changed last is put back first
            self.settle()
            yield
        finally:
            for variable, values in held:
                variable.assign(values)

    def _normalizations(self) -> list[Any]:
        return [layer for layer in self.model.layers if isinstance(layer, keras.layers.BatchNormalization)]

    def _inputs(self, split: Split, size: int) -> Iterable[Any]:
        """A split's samples in batches, kept as the model takes them where they are few."""
        if len(split) * sample_bytes(self._data) > IN_MEMORY_BYTES:
            return (x for x, _ in feeding.ordered(split, size))
        key = f"{split.digest()} {size}"
        if key not in self._kept:
            self._kept[key] = [x for x, _ in feeding.ordered(split, size)]
        return self._kept[key]


def sample_bytes(data: Data) -> int:
    """Of one sample, as the model takes it: four for every number."""
    return 4 * sum(math.prod(shape) for shape in columns.values(data.sample_shape))
