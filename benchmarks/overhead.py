"""What the methods that act while a network trains cost: the time of a step against plain training, and of an update of the masks.

    python benchmarks/overhead.py [--networks lenet5,resnet8] [--turns 10]

Every method's own stage prepares the network as in a build, up to the moment when it would train: with wrappers, masks, gates, a
penalty, callbacks. Then all of them train in turns, some steps each, on one thread, beside copies of the plain network and of one
with fake quantizers, and the fastest turn of each counts: a machine's moods last longer than a turn. What decides about masks
between steps is called by itself, and its smallest time is given in steps: a run has a hundred such updates, or fewer. Methods
whose own epochs are plain training with a mask (fine-tuning, rewinding, pruning before training) stand as `fine-tune`; those that
train a cut network cost nothing.

Wants a machine that does nothing else; the load is noted. Writes benchmarks/results/overhead.json, one network after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import records
import training_steps

from edgeprune import api, files, recipe, registry
from edgeprune.errors import CutError, RecipeError
from edgeprune.progress import Silent

RESULTS = Path(__file__).parent / "results" / "overhead.json"
METHODS = (
    *("fine-tune", "gradual-reactivation", "rigl", "set", "soft-filter", "tfmot-gradual", "block", "two-of-four"),
    *("l1", "elastic-net", "reweighted-l1", "growing", "sparse-group-lasso"),
    *("group-lasso", "growing-channels", "slimming"),
    *("l0", "learned-masks", "movement", "soft-threshold", "variational-dropout", "targeted-dropout"),
    *("l0-channels", "learned-masks-channels", "learned-masks-latency", "targeted-dropout-channels", "attention"),
    *("cluster", "prune-while-qat"),
)
BASELINES = {"train": "dense-ptq", "quantize": "dense"}  # stage -> whose recipe has it
AGAINST = {"prune-while-qat": "quantize"}  # the others: train
SHARE = {"weights": 0.8, "channels": 0.5}  # that goes
SAMPLES, UPDATES = 1280, 5
COPIES = 3  # of the plain network: how far they are apart is the noise


class Ready(NamedTuple):
    """What a stage was about to train.

    Attributes:
        model: with all that the method wraps it in.
        prepare: begins its training: attaches its penalty.
        updates: callbacks that decide between steps.
    """

    model: Any
    prepare: training_steps.Prepare
    updates: list[Any]


class _Caught(BaseException):
    """Ends a build where it would train."""

    def __init__(self, ready: Ready) -> None:
        super().__init__()
        self.ready = ready


def main() -> None:
    from edgeprune.keras import tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default="lenet5,resnet8", help="names of `edgeprune list models`")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--steps", type=int, default=16, help="of one turn")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    record = records.opened(given.results, __doc__, {"batch": training_steps.BATCH, "threads": 1})
    for name in given.networks.split(","):
        found = _measured(name, given.methods.split(","), given.steps, given.turns)
        record.setdefault("networks", {})[name] = found
        files.write_text_atomic(given.results, json.dumps(record, indent=1) + "\n")


def _measured(network: str, methods: list[str], steps: int, turns: int) -> dict[str, Any]:
    """Milliseconds of a plain step; what each method takes more, as a share of its baseline's; updates, in plain steps."""
    ready: dict[str, Ready] = {}
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = _Place(network, Path(folder))
        for stage, name in BASELINES.items():
            ready[stage] = place.ready(name, stage)
        for method in methods:
            try:
                ready[method] = place.ready(method)
            except (CutError, RecipeError) as error:  # slimming without BatchNormalization
                rows[method] = {"cannot": str(error)}
        copies = {
            f"{stage} {n}": place.ready(name, stage) for stage, name in BASELINES.items() for n in range(1, COPIES)
        }
        everything = {**ready, **copies}
        models = {name: one.model for name, one in everything.items()}
        prepare = {name: one.prepare for name, one in everything.items()}
        best = training_steps.fastest(models, steps, turns, prepare)
        base = {stage: _median([best[name] for name in best if name.split()[0] == stage]) for stage in BASELINES}
        plain = base["train"]
        for method in methods:
            if method in ready:
                rows[method] = best[method].more_than(base[AGAINST.get(method, "train")])
                update = [_update(ready[method].model, callback) for callback in ready[method].updates]
                if update:
                    rows[method]["update_steps"] = round(sum(update) / plain.wall, 2)
    return {
        "params": place.params,
        "steps": steps,
        "turns": turns,
        "load": round(os.getloadavg()[0], 2),
        "plain": plain.milliseconds(),
        "copies": [best[name].more_than(plain) for name in best if name.split()[0] == "train"],
        "quantized": base["quantize"].more_than(plain),
        "methods": {method: rows[method] for method in methods},
    }


def _median(copies: list[training_steps.Seconds]) -> training_steps.Seconds:
    return training_steps.Seconds(*(float(np.median(side)) for side in zip(*copies, strict=True)))


def _update(model: Any, callback: Any) -> float:
    """Seconds of one update, the fastest of some."""
    from edgeprune.keras import keras

    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)
    model.optimizer = optimizer
    due, taken = callback._due[-UPDATES - 1 :], []
    for count in due:
        began = time.monotonic()
        callback._decide(count, optimizer)
        taken.append(time.monotonic() - began)
    return min(taken[1:]) if len(taken) > 1 else 0.0


class _Place:
    """One network with weights, and noise to train it on."""

    def __init__(self, network: str, folder: Path) -> None:
        from edgeprune.keras import intake

        self.folder = folder
        model = registry.module("models", network).build()
        self.params = int(model.count_params())
        self.file = intake.save(model, folder / "given.keras")
        random = np.random.default_rng(0)
        x = random.integers(0, 255, (SAMPLES, *model.input_shape[1:]), dtype=np.uint8)
        y = random.integers(0, model.output_shape[-1], SAMPLES)
        self.data = (x[:-64], y[:-64]), (x[-64:], y[-64:])

    def ready(self, method: str, stage: str | None = None) -> Ready:
        """What a method's own stage, or the named one, would train."""
        from edgeprune.keras import graph, keras, penalised, sparse_training, training

        chosen = recipe.load(method)
        label = stage or _own(chosen)
        options = _asked(chosen, label)
        words = {"name": method, "data": {"calibration": 64}, "stages": {label: options}}

        def caught(
            model: Any, state: Any, options: Any, goal: Any, callbacks: Any = (), *_: Any, **__: Any
        ) -> list[Any]:
            penalty = options.penalty

            def begin(model: Any, optimizer: Any) -> None:
                for layer in model.layers:
                    if hasattr(layer, "pruning_step"):  # TFMOT's callback would count it on
                        layer.pruning_step.assign(1)
                if penalty:
                    penalised.attach(model, optimizer, penalty, 1000, label)

            if penalty:
                tried, optimizer = graph.rebuild(model), keras.optimizers.Adam()
                optimizer.build(tried.trainable_variables)
                begin(tried, optimizer)  # which refuses what it cannot be of
            updates = [one for one in callbacks if isinstance(one, sparse_training.Updates) and len(one._due) > 1]
            raise _Caught(Ready(model, begin, updates))

        given, training.fit = training.fit, caught
        try:
            api.build(str(self.file), self.data, recipe=words, out=self.folder / method, force=True, progress=Silent())
        except _Caught as found:
            return found.ready
        finally:
            training.fit = given
        raise RecipeError(f"{method}: stages.{label} trains nothing")


def _own(chosen: recipe.Recipe) -> str:
    """The first stage that is the method's own: not the training before it, nor the quantization behind it if that is plain."""
    return next(
        spec.label
        for spec in chosen.stages
        if isinstance(spec.options, recipe.FitOptions)
        and spec.stage != "train"
        and (spec.stage != "quantize" or spec.options.prune)
    )


def _asked(chosen: recipe.Recipe, label: str) -> dict[str, Any]:
    """The stage's options, with the share that all are asked for where they say it in this stage."""
    options: dict[str, Any] = chosen.resolved()["stages"][label]
    if label == "train":
        options["when"] = "always"
    about = chosen.file.method
    if about and about.aim and about.aim.split(".")[1] == label:
        *parents, last = about.aim.split(".")[2:]
        inner = options
        for part in parents:
            inner = inner[part]
        inner[last] = about.asked(SHARE[about.removes])
    return options


if __name__ == "__main__":
    main()
