"""Channels that are silenced again and again while a model trains, and are free to come back in between.

He et al., "Soft filter pruning for accelerating deep convolutional neural networks" (2018). What is silenced is a unit of coupled
channels (`edgeprune.channels`): all kernels that make it, so that it can go as a whole in a residual network too. Its biases and
normalizations stay: were they zero as well, no gradient would reach the unit again. A ``shrink`` stage removes it for good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgeprune import channels, masks, scoring, shrinking
from edgeprune.channels import Coupling
from edgeprune.keras import channel_graph, signals


class Silencing:
    """Zeroes the units with the lowest scores; called with the steps that are done.

    Attributes:
        coupling: of the model.
        gone: group -> how many of its units were silenced last.
    """

    def __init__(
        self,
        model: Any,
        criterion: str,
        ratio: Callable[[int], float],
        batches: Callable[[int], Sequence[Any]],
        loss: Any,
        scope: str = "layer",
        include: str = ".*",
        exclude: str | None = None,
    ) -> None:
        """Args:
        model: flat functional; is changed when this is called.
        criterion: a name in `edgeprune.criteria`.
        ratio: steps that are done -> share of the units of all groups, 0..1.
        batches: steps that are done -> (x, y) for the criterion's signals.
        loss: as for `signals.collect`.
        scope: as for `masks.cuts`.
        include, exclude: as for `shrinking.left_whole`.

        Raises:
            RecipeError: an expression matches no group.
        """
        self._model, self._criterion, self._ratio, self._batches, self._scope = model, criterion, ratio, batches, scope
        self.coupling: Coupling = channels.couple(channel_graph.describe(model))
        self._collector = signals.Collector(model, scoring.needed(criterion), loss)
        self.gone: dict[str, int] = {}
        left = shrinking.left_whole(self.coupling, include, exclude)
        self._free = {name for name, reason in left.items() if reason is None}

    def __call__(self, done: int, optimizer: Any = None) -> None:
        scores = scoring.units(
            self.coupling, self._criterion, self._collector(self._batches(done), seed=done), normalise="mean"
        )
        scores = {name: values for name, values in scores.items() if name in self._free}
        steps = {group.name: group.step for group in self.coupling.groups}
        kept = masks.cuts(scores, self._ratio(done), scope=self._scope, steps=steps)
        silent = {name: np.setdiff1d(np.arange(len(scores[name])), units) for name, units in kept.items()}
        self.gone = {name: len(units) for name, units in silent.items() if len(units)}
        for group in self.coupling.groups:
            if len(silent.get(group.name, ())):
                self._silence(group, silent[group.name])

    def _silence(self, group: channels.Group, units: Any) -> None:
        for member in group.members:
            if member.role != "producer":
                continue
            variable = channel_graph.variable(self._model.get_layer(member.layer), member.weight)
            values = variable.numpy()
            place = (slice(None),) * member.axis + (member.positions[np.isin(member.units, units)],)
            values[place] = 0.0
            variable.assign(values)
