"""Tries cuts on a trained model: what its metric would be, and what it would cost, without making each smaller model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgeprune import api, channel_blocks, metrics, scoring, shrink_options
from edgeprune import data as datasets
from edgeprune.analytic import Layer
from edgeprune.channel_blocks import Block
from edgeprune.channels import Cut
from edgeprune.data import Data, Split
from edgeprune.errors import CutError
from edgeprune.keras import feeding, graph, intake, program, signals, surgery, training
from edgeprune.keras.costs import Meter
from edgeprune.keras.latency import Stopwatch
from edgeprune.keras.runner import STATISTICS_SAMPLES, Runner
from edgeprune.progress import Progress
from edgeprune.recipe import Recipe
from edgeprune.sensitivity import Costs, Removal, Scores, block_word

SIGNAL_SAMPLES = 512  # training samples that a criterion sees, as many as the shrink stage takes

Clocks = Callable[[Any], Mapping[str, Callable[[Cut], float]]]


def load(
    word: str,
    data: Any,
    settings: Recipe,
    seed: int,
    samples: int,
    trust: bool,
    progress: Progress,
    milliseconds: Callable[[Sequence[Layer]], float] | None = None,
) -> Trials:
    """The model and the data that words name, ready to be tried.

    Args:
        word: as for ``intake.named``; its weights are taken to be trained.
        data: as for ``edgeprune.data.load``.
        settings: says how data is read, what the metric is, and how its shrink stage scores.
        seed: of the splits.
        samples: held-out samples to judge by, at most.
        trust: whether the user vouches for code inside the model file.
        progress: is told what the user should know.
        milliseconds: what a list of ops takes on a board (`edgeprune.forecast.milliseconds`); None: no latency is told.

    Raises:
        EdgepruneError: the model or the data cannot be taken, or they do not fit each other.
        CutError: the model has no layers to cut.
    """
    training.start(seed)
    model, trained = intake.named(word, trust, progress.note)
    if not trained:
        progress.note(f"The weights that {word} returns are taken to be trained.")
    why = program.why_not(model)
    if why:
        raise CutError(f"No channels of '{word}' can be removed. {why}.")
    given = api.fitting(datasets.load(data, settings.file.data, seed, progress), model)
    metric = metrics.judging(given.tasks, settings.file.metric, settings.file.metric_output)
    clocks: Clocks | None = milliseconds and (lambda model: {"latency_ms": Stopwatch(model, milliseconds)})
    return Trials(model, given, metric, samples, seed, clocks, shrink_options.heard(settings))


class Trials:
    """A `edgeprune.sensitivity.Subject`.

    Attributes:
        coupling, blocks: what can be removed.
        metric: what the model is judged by.
        split: the samples that it is judged on: of the validation split, or where there is none of the calibration split.
        key: digests of the model and of the samples.
        model: a copy of the model that was given, flat, with its weights.
        data: that was given.
        runner: of that copy.
    """

    def __init__(
        self,
        model: Any,
        data: Data,
        metric: metrics.Metric,
        samples: int,
        seed: int = 0,
        clocks: Clocks | None = None,
        heard: Mapping[str, Any] | None = None,
    ) -> None:
        """Args:
        model: flat functional, trained; not changed.
        data: as the model takes it.
        metric: of the outputs.
        samples: to judge by, at most, evenly over the classes.
        seed: of that choice.
        clocks: model -> further costs of cuts of it, by name: ``{"latency_ms": ...}``.
        heard: who has a say in a unit's score, as `edgeprune.scoring.units` takes it; None: as it does by itself.
        """
        self.model, self.data = graph.rebuild(model), data
        self.runner = Runner(self.model, data)
        self._meter = Meter(self.model)
        self.coupling = self._meter.coupling
        self.blocks: Sequence[Block] = channel_blocks.removable(self.coupling.graph)
        self._heard = dict(heard or {})
        self._clocks = clocks or (lambda _: {})
        self._measures: dict[str | None, Callable[[Cut], Costs]] = {None: self._measured(self.model, self._meter)}
        self.metric = metric
        self.split_name = "validation" if len(data.validation) else "calibration"
        self.split = _some(data.splits[self.split_name], samples, seed)
        self.key: Mapping[str, Any] = {
            "model": api.model_digest(self.model),
            "data": data.fingerprint,
            "samples": self.split.digest(),
            "metric": metric.title,
            "statistics": STATISTICS_SAMPLES,
            "heard": self._heard,
        }

    def about(self) -> dict[str, Any]:
        """Plain data on the samples: ``split``, ``samples``."""
        return {"split": self.split_name, "samples": len(self.split)}

    def scores(self, criterion: str) -> tuple[Scores, Mapping[str, str]]:
        """As the shrink stage scores, on training samples; raises as ``signals.collect`` and ``scoring.units``."""
        few = feeding.ordered(self.data.train.evenly(SIGNAL_SAMPLES), signals.BATCH)
        loss = training.objective(self.model, self.data.tasks).loss
        wanted = scoring.needed(criterion, bool(self._heard.get("scales")))
        found = signals.collect(self.model, wanted, few, loss)
        units = scoring.units(self.coupling, criterion, found, **self._heard)
        return units, scoring.unscored(self.coupling, criterion, found)

    def value(self, removal: Removal) -> float:
        """The metric without what is removed, with the statistics of what is left."""
        if removal.block is not None:
            return self._smaller(self._without(removal.block))
        if any(self.coupling.group(name).inexact for name in removal.cut):
            return self._smaller(surgery.shrink(self.model, removal.cut))
        if not removal.cut:
            return self._judged(self.runner)
        with self.runner.masked(self.coupling, removal.cut):
            return self._judged(self.runner)

    def _smaller(self, model: Any) -> float:
        runner = self.runner.of(model)
        runner.settle(once=True)
        return self._judged(runner)

    def _judged(self, runner: Runner) -> float:
        return self.metric(self.split.y, runner.outputs(self.split))

    def costs(self, removal: Removal) -> Costs:
        """``macs``, ``params`` and what the clocks tell of what is left."""
        if removal.block not in self._measures:
            small = self._without(str(removal.block))
            self._measures[removal.block] = self._measured(small, Meter(small))
        return self._measures[removal.block](removal.cut)

    def _measured(self, model: Any, meter: Meter) -> Callable[[Cut], Costs]:
        clocks = self._clocks(model)

        def costs(cut: Cut) -> Costs:
            counted = meter(cut)
            return {"macs": counted.macs, "params": counted.params} | {
                name: clock(cut) for name, clock in clocks.items()
            }

        return costs

    def _without(self, name: str) -> Any:
        return surgery.without(self.model, [self._block(name)])

    def _block(self, name: str) -> Block:
        return next(block for block in self.blocks if block_word(block) == name)


def _some(split: Split, count: int, seed: int) -> Split:
    if count >= len(split):
        return split
    generator = np.random.Generator(np.random.PCG64(seed))
    return split.select(datasets.stratified(datasets.strata(split), count, generator))
