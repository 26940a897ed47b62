"""What a candidate of a search loses, without training it: the proxy that ranks.

One copy of the trained model serves all candidates. What a candidate cuts is masked, zeros are laid by magnitude into what is left,
statistics are taken anew (`edgeprune.keras.runner`), and the metric is that of held-out samples, never of the test split; then
all weights are put back.

A candidate is seen on a quarter of the samples first. Where a point of the front that costs no more is better by more than three
standard errors, it is given up.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeprune import channels, columns, granularity, masks, metrics, pipeline, search, shrinking
from edgeprune import search_space as spaces
from edgeprune.channels import Cut
from edgeprune.data import Split
from edgeprune.errors import CutError, RecipeError, RunFolderError
from edgeprune.inference import Runner
from edgeprune.keras import export, judging, kernels, surgery
from edgeprune.keras.prices import Milliseconds, Prices
from edgeprune.keras.runner import Held
from edgeprune.keras.trials import Trials
from edgeprune.search_recipes import NONE, Zeros, zeros_of
from edgeprune.search_space import Candidate, Costs, Knob, Space
from edgeprune.shrink_options import CRITERION

STAGES = "stages"  # in a run folder


class Result(NamedTuple):
    """What came of one candidate.

    Attributes:
        drop: how much worse the metric is than the uncut model's, in the metric's unit.
        stopped: whether it was given up, and the drop is that of a part of the samples.
        samples: that it was judged on.
        seconds: that it took.
    """

    drop: float
    stopped: bool
    samples: int
    seconds: float


def space(
    subject: Trials,
    milliseconds: Milliseconds | None = None,
    *,
    multiple: masks.Multiple = 1,
    floor: float = 0.0,
    include: str = ".*",
    exclude: str | None = None,
    choices: Mapping[str, tuple[str, ...]] | None = None,
    limits: Mapping[str, float] | None = None,
) -> Space:
    """What can be chosen of a model.

    Args:
        subject: the model with its samples, which its criteria score on.
        milliseconds: what a list of ops takes on a board (`edgeprune.forecast.milliseconds`); None: latency is no cost.
        multiple: of the channels that stay, or a stair (`edgeprune.shrinking.stair`).
        floor: share of a group's units that stays at least, 0..1.
        include, exclude: regular expressions over names of groups and layers, as for the shrink stage.
        choices, limits: as in `Space`.

    Raises:
        CutError: nothing can be cut.
        RecipeError: an expression matches nothing.
    """
    model = subject.model
    words = {spaces.CRITERION: (CRITERION,), **(choices or {})}
    scores = cache(lambda criterion: subject.scores(criterion)[0])
    whole = shrinking.left_whole(subject.coupling, include, exclude)
    scorable = set.intersection(*(set(scores(criterion)) for criterion in words[spaces.CRITERION]))
    groups = [group for group in subject.coupling.groups if whole[group.name] is None and group.name in scorable]
    prices = Prices(model, milliseconds)
    knobs = []
    for group in groups:
        kept = spaces.allowed(group.units, group.step, multiple, floor)
        if len(kept) > 1:
            knobs.append(Knob(group.name, group.units, kept, _features(model, group, subject, prices)))
    if not knobs:
        why = (
            "; ".join(f"{name}: {reason}" for name, reason in whole.items() if reason) or "no group has a step to lose"
        )
        raise CutError(f"No group of channels can be cut, so there is nothing to search ({why}).")

    def costs(candidate: Candidate) -> Costs:
        counts = {knob.name: int(candidate[knob.name]) for knob in knobs}
        return prices({knob.name: range(counts[knob.name]) for knob in knobs if counts[knob.name] < knob.units})

    return Space(tuple(knobs), words, costs, dict(limits or {}), scores)


def _features(model: Any, group: channels.Group, subject: Trials, prices: Prices) -> dict[str, float]:
    """What an agent may see of a group."""
    whole = prices({})
    half = prices({group.name: range(max(1, group.units // 2))})
    producers = list(dict.fromkeys(member.layer for member in group.producers))
    layer = model.get_layer(producers[0])
    kernel, stride = getattr(layer, "kernel_size", 1), getattr(layer, "strides", 1)
    places = [place for place, one in enumerate(model.layers) if one.name in producers]
    return {
        "place": float(np.mean(places) / max(len(model.layers) - 1, 1)),
        "macs_share": 2 * (whole[spaces.MACS] - half[spaces.MACS]) / max(whole[spaces.MACS], 1),
        "params_share": 2 * (whole[spaces.PARAMS] - half[spaces.PARAMS]) / max(whole[spaces.PARAMS], 1),
        "units": float(group.units),
        "step": float(group.step),
        "kernel": float(np.max(kernel)),
        "stride": float(np.max(stride)),
        "depthwise": float(any(hasattr(model.get_layer(m.layer), "depthwise_kernel") for m in group.members)),
    }


class Proxy:
    """Judges the candidates of a space on one model.

    Attributes:
        subject: the model with its samples.
        space: what candidates are of.
        reference: the uncut model's metric on the samples.
    """

    def __init__(self, subject: Trials, over: Space, seed: int = 0) -> None:
        """Args:
        subject: as for ``space``.
        over: the space.
        seed: of which samples come first.
        """
        self.subject, self.space = subject, over
        self._parts = _parts(subject.split, seed)
        self._uncut = [subject.runner.outputs(part) for part in self._parts]
        self.reference = self._value(self._uncut)

    def __call__(
        self,
        candidate: Candidate,
        best: Sequence[Sequence[float]] = (),
        names: Sequence[str] = (),
        progress: Callable[[int, int], None] | None = None,
    ) -> Result:
        """What a candidate loses.

        Args:
            candidate: of the space.
            best: the front so far; a candidate that is far behind it is given up.
            names: of its objectives.
            progress: is told how many of the samples are through, and how many there are.
        """
        started, total = time.monotonic(), len(self.subject.split)
        cut, zeros = self.space.cut(candidate), zeros_of(str(candidate.get(spaces.ZEROS, NONE)))
        if any(self.subject.coupling.group(name).inexact for name in cut):
            drop = self._made(cut, zeros)
            return Result(drop, False, total, time.monotonic() - started)
        runner, coupling = self.subject.runner, self.subject.coupling
        with runner.masked(coupling, cut, lambda: _lay(runner.model, coupling, cut, zeros)):
            outputs: list[Any] = []
            done = 0
            for number, part in enumerate(self._parts):
                outputs.append(runner.outputs(part))
                done += len(part)
                if progress:
                    progress(done, total)
                if number == search.BLOCKS - 1 and len(best):
                    seen = self._glimpse(outputs)
                    if seen and search.hopeless(seen, self.space.costs(candidate), best, names):
                        return Result(seen.drop, True, done, time.monotonic() - started)
            drop = metrics.drop(self.subject.metric, self.reference, self._value(outputs))
            return Result(drop, False, total, time.monotonic() - started)

    def _made(self, cut: Cut, zeros: Zeros | None) -> float:
        """The drop of a cut that a mask does not tell of (LayerNormalization): of the smaller model itself."""
        small = self.subject.runner.of(surgery.shrink(self.subject.model, cut))
        _lay(small.model, self.subject.coupling, {}, zeros)
        small.settle(once=True)
        found = self._value([small.outputs(part) for part in self._parts])
        return metrics.drop(self.subject.metric, self.reference, found)

    def _value(self, outputs: Sequence[Any]) -> float:
        answers = columns.each(lambda *pieces: np.concatenate(pieces), *outputs)
        labels = columns.each(lambda *pieces: np.concatenate(pieces), *(part.y for part in self._parts[: len(outputs)]))
        return self.subject.metric(labels, answers)

    def _glimpse(self, outputs: Sequence[Any]) -> search.Glimpse | None:
        """The drop over the first blocks; None where the metric says nothing of so few samples."""
        try:
            pairs = [
                (self.subject.metric(part.y, uncut), self.subject.metric(part.y, given))
                for part, uncut, given in zip(self._parts, self._uncut, outputs, strict=False)
            ]
        except Exception:  # a class that is not among these few, or what else a metric of the user's wants
            return None
        drops = [metrics.drop(self.subject.metric, uncut, given) for uncut, given in pairs]
        return search.glimpse(drops) if all(map(math.isfinite, drops)) else None


def _parts(split: Split, seed: int) -> list[Split]:
    """Blocks of the first quarter, then the rest; drawn, for a source may be sorted by class."""
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(split))
    first = search.blocks(len(split))
    if not first:
        return [split]
    return [*(split.select(order[block]) for block in first), split.select(order[first[-1].stop :])]


def _lay(model: Any, coupling: channels.Coupling, cut: Cut, zeros: Zeros | None) -> Held:
    """Zeros by magnitude in every kernel that can be pruned, among what a cut leaves of it; what was there before."""
    before: Held = []
    if zeros is None:
        return before
    remaining = channels.apply(coupling, cut) if cut else {}
    for layer in model.layers:
        for kernel in kernels.of(layer):
            variable = kernel.of(layer)
            held, name = variable.numpy(), kernel.path.rpartition(".")[-1]
            left = [remaining.get((layer.name, name, axis), np.arange(size)) for axis, size in enumerate(held.shape)]
            part, values = np.ix_(*left), held.copy()
            values[part] = np.where(_staying(held[part], zeros, kernel.outputs_first), held[part], 0)
            variable.assign(values)
            before.append((variable, held))
    return before


def _staying(weights: np.ndarray, zeros: Zeros, outputs_first: bool) -> np.ndarray:
    """Where the largest weights are; everywhere where the kernel cannot carry the pattern."""
    given = np.abs(np.swapaxes(weights, -1, -2) if outputs_first else weights)
    pattern = granularity.n_of_m(*zeros.pattern) if zeros.pattern else granularity.weight()
    try:
        mask = masks.masks({"kernel": given}, zeros.share, pattern)["kernel"]
    except (CutError, RecipeError):
        return np.ones(weights.shape, bool)
    return np.swapaxes(mask, -1, -2) if outputs_first else mask


def judged(run: Path, subject: Trials) -> tuple[float, float]:
    """What a finished build's file is worth on the validation split: its metric, and how much worse that is than the uncut model's.

    Args:
        run: the run folder of a build of the same model and data.
        subject: the uncut model; all of its split's samples are taken, not those alone that candidates are ranked by.

    Raises:
        RunFolderError: the build is not finished.
    """
    names = tuple(subject.data.targets)
    split = subject.data.splits[subject.split_name]
    source, final = _made_by(run)
    found = judging.outputs(judging.File(Runner(final)), export.Exported(source), split, names)
    whole = subject.metric(split.y, subject.runner.outputs(split))
    value = subject.metric(split.y, found)
    return value, metrics.drop(subject.metric, whole, value)


def _made_by(run: Path) -> tuple[Path, Path]:
    """The model that a build converted, and the file."""
    stages = (run / STAGES).glob(f"[0-9]*-*/{pipeline.STATE_FILE}")
    states = sorted(stages, key=lambda path: int(path.parent.name.partition("-")[0]))
    try:
        roles = json.loads(states[-1].read_text(encoding="utf-8"))["files"]
        return run / roles["exported" if "exported" in roles else "quantized"], run / roles["final"]
    except (IndexError, KeyError, OSError, ValueError) as error:
        raise RunFolderError(
            f"The build in {run} made no file. Finish it: edgeprune build --resume --out {run}"
        ) from error
