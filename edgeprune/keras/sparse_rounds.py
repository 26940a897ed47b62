"""The rounds of a sparse training: each cuts the trained weights and trains what is left, rewound or not.

::

    round-2/cut/      weights and masks that the round is trained from: after rewinding the ticket
    round-2/checkpoint.npz
    round-2/tuned/    what became of them, with the epochs and what is told

What is there already is not done again, so a build that was killed goes on in the epoch that it was in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune import files, metrics, scoring, sparsifying
from edgeprune.keras import graph, intake, pruning, signals, statistics, training
from edgeprune.keras.sparse_scores import BLIND, Scores
from edgeprune.keras.sparse_training import Mask, Sparse, Updates, batches, redrawn
from edgeprune.keras.sparse_updates import (
    Bearing,
    Following,
    Moving,
    Source,
    adapted,
    cut,
    gradient_growth,
    random_growth,
    restore,
    seed_of,
)
from edgeprune.option_types import n_of_m
from edgeprune.pipeline import State
from edgeprune.progress import Shifted
from edgeprune.sparsify_options import Adapt, Options
from edgeprune.sparsifying import Ramp, Rule

MODEL, MASKS, RECORD = "model.keras", "masks.npz", "record.json"
EVALUATED = 256  # samples per batch where only sums count
EARLIER = f"earlier-{MASKS}"

Decide = Callable[[int, Any], None]  # steps that are done, optimizer


class Round(NamedTuple):
    """One round.

    Attributes:
        number: from 1.
        folder: where it writes.
        model: the trained weights that it begins with.
        masks: those that hold already; None: there are none.
    """

    number: int
    folder: Path
    model: Path
    masks: Path | None


class Done(NamedTuple):
    """What the rounds came to.

    Attributes:
        folder: of the model and its masks.
        cut: of the masked weights that it was trained from.
        rounds: that count.
        history: of all epochs.
        records: of every round.
        undone: whether a further round lost too much.
    """

    folder: Path
    cut: Path
    rounds: int
    history: list[dict[str, Any]]
    records: list[dict[str, Any]]
    undone: bool = False


@dataclass(frozen=True)
class Rounds:
    """The work of one stage.

    Attributes:
        state: of the stage.
        options: of the stage.
        plans: which kernels are pruned, from `pruning.plan`.
        earlier: the masks of earlier stages, None: there are none.
    """

    state: State
    options: Options
    plans: list[Any]
    earlier: Path | None

    def run(self) -> Done:
        """All rounds; with ``adapt`` as many as the metric bears."""
        options, adapt = self.options, self.options.adapt
        given, masks = self._begun(), self.earlier
        reference = self.judged(given, self.state.workspace / "reference.json") if adapt else 0.0
        history: list[dict[str, Any]] = []
        records: list[dict[str, Any]] = []
        done = Done(given.parent, given.parent, 0, history, records)
        for number in range(1, options.rounds + 1):
            one = Round(number, self.state.workspace / f"round-{number}", given, masks)
            self._open(one.folder)
            made = self._cut(one)
            tuned, record = self.tuned(one, made, history)
            records.append(record)
            if adapt and metrics.drop(self.state.run.metric, reference, record["metric"]) > adapt.max_drop:
                return (done if done.rounds else done._replace(folder=self._uncut(one)))._replace(undone=True)
            given, masks = tuned / MODEL, tuned / MASKS
            done = Done(tuned, made, number, history, records)
        return done

    def tuned(self, one: Round, made: Path, history: list[dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
        """The folder of what became of a cut model in training, and what is told of it; its epochs are added to the history."""
        folder = one.folder / "tuned"
        if not folder.exists():
            sparse, epochs = self._trained(one, made, len(history))
            record = json.loads((made / RECORD).read_text(encoding="utf-8"))
            record["sparsity"] = sparsifying.sparsity_of(sparse.masks())
            with files.temporary_folder(folder) as temporary:
                self._write(sparse, temporary, {"epochs": epochs, "round": record}, settled=bool(epochs))
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        history += [{**epoch, "epoch": len(history) + place} for place, epoch in enumerate(found["epochs"], 1)]
        record = found["round"]
        if self.options.adapt or self.options.controls:
            record["metric"] = self.judged(folder / MODEL, one.folder / "metric.json")
        return folder, record

    def sparse(self, model: Path, masks: Path | None, how: str = "hold") -> Sparse:
        """The model in a file with the masks in another."""
        made = Sparse(graph.flatten(intake.load_own(model)), self.plans, how)
        if masks is not None:
            made.put(made.turned(pruning.load_masks(masks)))
        return made

    def write(self, made: Path, sparse: Sparse, record: Mapping[str, Any]) -> Path:
        """Leave a model with its masks in a folder, in one step."""
        with files.temporary_folder(made) as temporary:
            self._write(sparse, temporary, record)
        return made

    def _write(self, sparse: Sparse, folder: Path, record: Mapping[str, Any], settled: bool = False) -> None:
        model = sparse.strip()
        if settled:
            statistics.settle(model, self.state.run.data.train)
        intake.save(model, folder / MODEL)
        pruning.save_masks(sparse.stored(), folder / MASKS)
        (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")

    def judged(self, model: Path, record: Path) -> float:
        """The metric of a model in a file on what is watched, found once."""
        if not record.exists():
            split = self._watched()
            found = float(self.state.run.metric(split.y, training.outputs(intake.load_own(model), split)))
            files.write_text_atomic(record, json.dumps(found))
        return float(json.loads(record.read_text(encoding="utf-8")))

    def allowed(self, sparse: Sparse) -> dict[str, Mask]:
        """Where weights may be at all, (..., in, out): not where an earlier stage has removed them."""
        found = {name: mask | True for name, mask in sparse.masks().items()}
        return {**found, **(sparse.turned(pruning.load_masks(self.earlier)) if self.earlier else {})}

    def rule(self) -> Rule:
        options, pattern = self.options, self.pattern()
        block = (options.block[0], options.block[1])
        how = (options.granularity, block, pattern.n, pattern.m, options.scope, options.distribution)
        return Rule(options.criterion, *how)

    def pattern(self) -> pruning.Pattern:
        return pruning.pattern_of(self.options)

    def seed(self, *words: object) -> int:
        """Of whatever the words tell apart in this stage."""
        return seed_of(self.state.run.seed, self.state.label, *words)

    # The steps of a round

    def _open(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        files.sweep(folder)

    def _begun(self) -> Path:
        """The model that the first round begins with."""
        if self.options.start != "fresh":
            return self.state.path(self.options.start)
        model = redrawn(intake.load_own(self.state.path("model")), self.state.run.seed)
        return intake.save(model, self.state.workspace / "fresh.keras")

    def _uncut(self, one: Round) -> Path:
        """The model as the first round got it, with masks that keep all that was there."""
        return self.write(one.folder / "uncut", self.sparse(one.model, one.masks), {})

    def _cut(self, one: Round) -> Path:
        """The folder of the weights and masks that the round is trained from."""
        made = one.folder / "cut"
        if made.exists():
            return made
        sparse = self.sparse(one.model, one.masks)
        record = self._decide(sparse, one) if self.options.at_once else {}
        if self.options.rewind == "weights":
            masks = sparse.masks()
            sparse = self.sparse(self.state.path("early"), None)
            sparse.put(masks)
        return self.write(made, sparse, record)

    def _decide(self, sparse: Sparse, one: Round) -> dict[str, Any]:
        """Set the masks of the round at once; what is told of it."""
        options, rule, given = self.options, self.rule(), sparse.masks()
        source, share = self._source(sparse, one), self._share(one.number)
        if options.adapt:
            scores = source("adapt")
            shares = self._adapted(sparse, options.adapt, scores, share)
            sparse.put(sparsifying.decided(scores, shares, rule, given))
        else:
            cut(sparse, source, share, rule, given, options.iterations)
        if options.restore is None:
            return {}
        return {"unrestored": restore(sparse, intake.load_own(one.model), self._samples(EVALUATED))}

    def _adapted(self, sparse: Sparse, adapt: Adapt, scores: Mapping[str, Any], share: float) -> dict[str, float]:
        watched = batches(self._watched(), self.options.samples, EVALUATED)
        bearing = Bearing(sparse, self._loss(sparse), watched)
        return adapted(sparse, scores, bearing, share, adapt.steps, adapt.lowest, sparse.masks())

    def _source(self, sparse: Sparse, one: Round, updates: bool = False) -> Source:
        """What decides: before a training many samples, at an update in it one batch."""
        size = self.options.batch_size
        blind = set(scoring.needed(self.options.criterion)) <= BLIND

        def seen(seed: int) -> list[Any]:
            if blind:
                return []
            return batches(self.state.run.data.train, size, size, seed) if updates else self._samples(signals.BATCH)

        return Source(Scores(sparse, self.options.criterion, self._loss(sparse)), seen, self.seed(one.number))

    def _samples(self, size: int) -> list[Any]:
        return batches(self.state.run.data.train, self.options.samples, size)

    def _loss(self, sparse: Sparse) -> Any:
        return training.objective(sparse.model, self.state.run.data.tasks).loss

    def _watched(self) -> Any:
        """The validation split; where there is none the calibration split."""
        data = self.state.run.data
        return data.validation if len(data.validation) else data.calibration

    def _share(self, number: int) -> float:
        """The sparsity after a round."""
        return sparsifying.reached(self.options.sparsity, number / self.options.rounds)

    def _trained(self, one: Round, made: Path, done: int) -> tuple[Sparse, list[dict[str, Any]]]:
        """The model of a round after its training, and the epochs."""
        sparse = self.sparse(made / MODEL, made / MASKS, self.options.masked)
        epochs = share_of(self.options.epochs, one.number, self.options.rounds)
        if epochs == 0:
            return sparse, []
        due, decide = self._updates(sparse, one, epochs)
        updates = Updates(due, decide)
        options, behind = self._fit_options(epochs)
        shown = Shifted(self.state.run.progress, done, self.options.epochs)
        inner = replace(self.state, workspace=one.folder, run=replace(self.state.run, progress=shown))
        goal, ramp = training.objective(sparse.model, self.state.run.data.tasks), ramp_of(self.options, one.number)
        found = training.fit(sparse.model, inner, options, goal, [updates], ramp.function(), updates.room, behind)
        if self.options.masked == "soft":
            decide(due[-1], None)  # what was zeroed there has been free since
        return sparse, found

    def _updates(self, sparse: Sparse, one: Round, epochs: int) -> tuple[list[int], Decide]:
        """After how many steps masks are decided anew, and how."""
        options = self.options
        per_epoch = training.steps_per_epoch(self.state.run.data.train, options)
        frequency = options.frequency or (per_epoch if options.masked == "soft" else None)
        due = sparsifying.updates(options.begin, options.end, epochs * per_epoch, frequency)
        if options.grow is not None:
            return [step for step in due if 0 < step < due[-1]], self._moving(sparse, one, due[-1])
        if options.at_once:
            return [], lambda done, optimizer: None
        if options.masked == "hold" and options.schedule == "constant":
            due = due[:1]
        source, ramp = self._source(sparse, one, updates=True), ramp_of(options, one.number)
        holds, given = options.masked == "hold", self.allowed(sparse)
        steps = epochs * per_epoch
        return due, Following(sparse, source, self.rule(), ramp, steps, due[-1], given, holds, options.iterations)

    def _moving(self, sparse: Sparse, one: Round, last: int) -> Moving:
        options, seed, size = self.options, self.seed(one.number, "grow"), self.options.batch_size
        growth = (
            random_growth(sparse, seed)
            if options.grow == "random"
            else gradient_growth(
                sparse,
                lambda own: batches(self.state.run.data.train, size, size, own),
                self._loss(sparse),
                seed,
            )
        )
        return Moving(sparse, growth, options.drop, last if options.anneal else None, self.allowed(sparse))

    def _fit_options(self, epochs: int) -> tuple[Options, float]:
        """How a round trains, and the share of its learning rate's decay that counts as past."""
        if self.options.rewind is None:
            return self.options.model_copy(update={"epochs": epochs}), 0.0
        early = self.state.facts["early"]
        words = {name: early[name] for name in ("learning_rate", "decay", "optimizer")}
        return self.options.model_copy(update={"epochs": epochs, **words}), float(early["share"])


def ramp_of(options: Options, number: int) -> Ramp:
    """How sparsity rises within a round."""
    n, m = n_of_m(options.pattern)
    zeros, of = (m - n, m) if options.granularity == "n:m" else (0, 0)
    before, after = (sparsifying.reached(options.sparsity, k / options.rounds) for k in (number - 1, number))
    initial = max(options.initial, before) if number > 1 else options.initial
    return Ramp(options.schedule, initial, after, options.begin, options.end, options.power, zeros, of)


def share_of(epochs: int, number: int, rounds: int) -> int:
    """The epochs of a round; all rounds together have all epochs.

    >>> [share_of(10, number, 3) for number in (1, 2, 3)]
    [3, 3, 4]
    """
    return epochs * number // rounds - epochs * (number - 1) // rounds
