"""What budgets need of a model: what may be cut of it, what that costs and does to the metric, and a file to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import allocation, budget, masks, shrinking
from edgeprune.allocation import Curves
from edgeprune.budget_limits import ARENA
from edgeprune.channels import Coupling
from edgeprune.errors import CutError
from edgeprune.inference import Runner
from edgeprune.keras import (
    conversion,
    export,
    intake,
    judging,
    preparation,
    surgery,
    training,
)
from edgeprune.keras.prices import Milliseconds, Prices
from edgeprune.keras.trials import Trials
from edgeprune.metrics import drop
from edgeprune.pipeline import State
from edgeprune.progress import Progress
from edgeprune.search_space import LATENCY, MACS, Candidate, Costs, Knob, Space
from edgeprune.sensitivity import Removal, Store
from edgeprune.shrink_options import Options

COUNTS = 6  # of every group that its curve is taken at


def space(model: Any, options: Options, own: masks.Multiple, milliseconds: Milliseconds | None) -> Space:
    """What a shrink stage may cut, from the model's shapes alone.

    Args:
        model: functional or built Sequential tf_keras model.
        options: of the shrink stage: what it leaves whole, floors and multiples.
        own: the counts of channels that pay on the target (`edgeprune.shrinking.stair`).
        milliseconds: what a list of ops takes on the target; None: nothing predicts it, and multiply-accumulates stand for it,
            in a unit of their own.

    Raises:
        CutError: no group can lose a unit.
    """
    prices = Prices(model, milliseconds)
    knobs = _knobs(prices.coupling, options, own)
    units = {knob.name: knob.units for knob in knobs}

    def costs(candidate: Candidate) -> Costs:
        cut = {name: range(int(candidate[name])) for name in units if int(candidate[name]) < units[name]}
        found = prices(cut)
        return {LATENCY: found[MACS], **found, ARENA: prices.arena(cut)}

    return Space(knobs=knobs, choices={}, costs=costs)


def without(given: Space, names: Mapping[str, Any]) -> Space:
    """The space without some of its knobs; raises as ``space`` does."""
    left = tuple(knob for knob in given.knobs if knob.name not in names)
    gone = {knob.name: knob.units for knob in given.knobs if knob.name in names}
    return replace(given, knobs=left, costs=lambda candidate: given.costs({**gone, **candidate}))


def _knobs(coupling: Coupling, options: Options, own: masks.Multiple) -> tuple[Knob, ...]:
    """The groups that the shrink stage may cut, with the counts that it would round to."""
    whole = shrinking.left_whole(coupling, options.include, options.exclude)
    groups = {group.name: group for group in coupling.groups if not whole[group.name]}
    found: dict[str, set[int]] = {name: {group.units} for name, group in groups.items()}
    given = options.multiples
    rules = shrinking.Rules(
        units={name: group.units for name, group in groups.items()},
        floors=options.floors,
        multiples={**given, ".*": given.get(".*", own)} if isinstance(given, dict) else given or own,
        steps={name: group.step for name, group in groups.items()},
    )
    scores = {name: np.arange(group.units, dtype=float) for name, group in groups.items()}
    for gone in range(1, max((group.units for group in groups.values()), default=0)):
        shares = {name: min(gone, group.units - 1) / group.units for name, group in groups.items()}
        try:
            cut = replace(rules, ratios=shares).cut(scores, 0.0)
        except CutError:  # multiples that no group has to lose
            break
        for name, units in cut.items():
            found[name].add(len(units))
    return tuple(
        Knob(name, groups[name].units, tuple(sorted(counts))) for name, counts in found.items() if len(counts) > 1
    )


def curves(trials: Trials, given: Space, criterion: str, store: Store, progress: Progress) -> tuple[Curves, Space]:
    """What every group costs to lose, at some of its counts; and the space without the groups that the criterion cannot rank.

    Args:
        trials: the trained model.
        given: what may be cut.
        criterion: what ranks the units of a group.
        store: keeps every point.
        progress: is told.

    Raises:
        CutError: the criterion can rank no group.
    """

    def collected() -> list[Any]:
        scores, unscored = trials.scores(criterion)
        return [{name: np.asarray(values).tolist() for name, values in scores.items()}, dict(unscored)]

    scores, unscored = store.get(f"scores {criterion}", collected)
    able = without(given, {knob.name: 1 for knob in given.knobs if knob.name not in scores or knob.name in unscored})
    points = [(knob.name, allocation.some_counts(knob, COUNTS)) for knob in able.knobs]
    total, done = 1 + sum(len(counts) for _, counts in points), 0

    def value(removal: Removal) -> float:
        nonlocal done
        found = float(store.get(f"value {removal.digest()}", lambda: trials.value(removal)))
        done += 1
        progress.step(done, total, "points", **{trials.metric.name: found})
        return found

    whole = value(Removal({}))
    found: dict[str, dict[int, float]] = {}
    for name, counts in points:
        ranked = np.asarray(scores[name], dtype=float)
        left = {
            count: value(Removal({name: np.flatnonzero(masks.highest(ranked, count)).tolist()})) for count in counts
        }
        found[name] = {count: allocation.damage(trials.metric, whole, metric) for count, metric in left.items()}
    return found, able


def converted(model: Any, cut: Mapping[str, int], samples: Any, folder: Path, timeout_s: float) -> Path:
    """The int8 file of a cut model that nobody has trained: what it costs is what the trained one will.

    Args:
        model: flat functional; not changed.
        cut: group -> how many units stay; which ones does not matter.
        samples: set the ranges: model inputs, several by their names.
        folder: everything is written there.
        timeout_s: for the converter.

    Raises:
        ConversionError: the converter refused.
    """
    small = surgery.shrink(model, {name: range(count) for name, count in cut.items()}) if cut else model
    source = export.save(preparation.prepare(small).model, folder / "exported")
    with conversion.Converter(folder / "converter.log", timeout_s) as converter:
        return converter.convert(source, folder / "model.tflite", representative=samples)


class Judged:
    """The float model's outputs on held-out samples, to judge what is made of it by.

    Attributes:
        name: of the split: ``validation``, or where there is none ``calibration``, which is a part of the training split.
        metric: of the float model.
    """

    def __init__(self, state: State) -> None:
        """Args:
        state: has the role ``float``.
        """
        data = state.run.data
        self.name = "validation" if len(data.validation) else "calibration"
        self.split = data.splits[self.name]
        self._metric = state.run.metric
        self._reference = training.outputs(intake.load_own(state.path("float")), self.split)
        self.metric = self._metric(self.split.y, self._reference)

    def __call__(self, state: State) -> tuple[float, float, float | None]:
        """The metric of the file ``final``, how much worse it is than the float model's, and the standard error of that."""
        source = "exported" if "exported" in state.files else "quantized"
        file = judging.File(Runner(state.path("final")))
        names = tuple(state.run.data.targets)
        found = judging.outputs(file, export.Exported(state.path(source)), self.split, names)
        value = self._metric(self.split.y, found)
        error = budget.standard_error(self._metric, self.split.y, self._reference, found, state.run.seed)
        return value, drop(self._metric, self.metric, value), error
