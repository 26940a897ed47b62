"""The league of criteria: LeNet-5 on MNIST and a VGG-style net on CIFAR-10, cut by every criterion alike.

    python benchmarks/criteria_league.py mnist.npz cifar10.npz

Two leagues. In that of channels every criterion of `edgeprune list criteria` removes the same share of every group of channels
for good: the same pieces as the shrink stage, with its defaults, at once (`one-shot`) or in three rounds of score, cut and
fine-tune (`iterative`). In that of weights every criterion that scores single weights zeroes a share of them, ranked over the
network, at once. All are fine-tuned for the same number of epochs on the same samples; `random` is what they have to beat. A
float network is trained once per seed, on the first run.

Writes a row per cell to benchmarks/results/criteria_league.json as it comes; what is there already is not done again, so a run
that was killed goes on. ``--phases``, ``--networks`` and ``--seeds`` choose a part, ``--minutes`` ends after a while.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from edgeprune import data, files, granularity, masks, registry, scoring, shrinking
from edgeprune.errors import CutError
from edgeprune.recipe import FitOptions

RESULTS = Path(__file__).parent / "results" / "criteria_league.json"
WORK = Path(__file__).parents[1] / "build" / "criteria_league"
RATIOS = (0.75, 0.5)  # share of every group's units that goes
ZEROS = (0.9, 0.98)  # of the weights
ROUNDS = {"one-shot": 1, "iterative": 3}
PHASES = ("one-shot", "weights", "iterative")  # the cheap cells first
EPOCHS = 3  # of fine-tuning in all, whatever the rounds
SIGNAL_SAMPLES, SAMPLES_PER_BATCH = 256, 32
TEST_BATCH = 500
SHARED = 0  # seed of what is the same for all seeds: which samples are taken
TUNE = FitOptions(epochs=EPOCHS, batch_size=64, optimizer="adam", learning_rate=1e-3, decay="cosine")


class Network(NamedTuple):
    """A network, and how many samples it is trained, fine-tuned and judged on."""

    model: str
    options: Mapping[str, Any]
    float_samples: int
    float_epochs: int
    samples: int
    test: int


NETWORKS = {
    "LeNet-5, MNIST": Network("lenet5", {}, 12_000, 4, 2_000, 4_000),
    "VGG-style, CIFAR-10": Network("vgg-small", {"width": 8}, 12_000, 6, 2_000, 2_000),
}


class Cell(NamedTuple):
    """One figure: what is done to which network.

    Attributes:
        league: ``channels`` or ``weights``.
        schedule: a name in ``ROUNDS``.
        aim: the share of every group's units that goes, or of all weights, 0..1.
    """

    network: str
    league: str
    schedule: str
    aim: float
    criterion: str
    seed: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mnist", type=Path, help="npz with x_train, y_train, x_test, y_test")
    parser.add_argument("cifar10", type=Path, help="npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--phases", default=",".join(PHASES))
    parser.add_argument("--networks", default=";".join(NETWORKS), help="separated by ;")
    parser.add_argument("--minutes", type=float, help="begin no cell after this time")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=WORK, help="folder that keeps the float networks")
    arguments = parser.parse_args()
    work = arguments.work
    sources = dict(zip(NETWORKS, (arguments.mnist, arguments.cifar10), strict=True))
    _one_thread()
    record, started = _opened(arguments.results), time.monotonic()
    done = {Cell(*(row[key] for key in Cell._fields)) for row in record["cells"]}
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    todo = [
        cell for cell in cells(arguments.phases.split(","), arguments.networks.split(";"), seeds) if cell not in done
    ]
    for number, cell in enumerate(todo, 1):
        if arguments.minutes and time.monotonic() - started > 60 * arguments.minutes:
            print(f"{len(todo) - number + 1} cells are left for another run")
            break
        row = _row(cell, sources[cell.network], work, record)
        record["cells"].append({**cell._asdict(), **row})
        _write(arguments.results, record)
        print(f"{number}/{len(todo)} {' '.join(map(str, cell))}: {json.dumps(row)}", flush=True)
    return 0


def cells(phases: list[str], networks: list[str], seeds: list[int]) -> Iterator[Cell]:
    """All cells in the order in which they are done: the harder aims first, and one seed after the other."""
    for phase, seed, network in product(phases, seeds, networks):
        league, schedule = ("weights", "one-shot") if phase == "weights" else ("channels", phase)
        for aim, criterion in product(ZEROS if league == "weights" else RATIOS, competitors(league)):
            yield Cell(network, league, schedule, aim, criterion, seed)


def competitors(league: str) -> list[str]:
    """The criteria of a league: of channels all, of weights those whose scores have the shape of the weights.

    Of the norms, which differ only in how weights are pooled, ``magnitude`` stands for all.
    """
    known = registry.names("criteria")
    return known if league == "channels" else [name for name in known if _per_weight(name)]


def _per_weight(criterion: str) -> bool:
    if criterion in ("l0", "l2", "linf"):
        return False
    shapes = {"seed": 0, "input_scale": np.ones(2), "input_covariance": np.eye(2)}
    given = {name: shapes.get(name, np.ones((2, 3))) for name in scoring.needed(criterion)}
    return "weights" in given and registry.function("criteria", criterion)(**given).shape == (2, 3)


# One cell


def _row(cell: Cell, source: Path, work: Path, record: dict[str, Any]) -> dict[str, Any]:
    """What comes of a cell: its figures, or why the criterion does not take part."""
    started = time.monotonic()
    base = _base(cell.network, cell.seed, source, work)
    sizes = record["sizes"]
    record["float"][f"{cell.network}, seed {cell.seed}"] = {
        **base.facts,
        "int8_bytes": _int8_bytes(base.model, base.data, sizes),
    }
    try:
        found = _pruned(cell, base) if cell.league == "weights" else _shrunk(cell, base, sizes)
    except CutError as error:
        return {"reason": re.split(r"\. (?:With|Criteria) ", str(error))[0]}
    return {**found, "seconds": round(time.monotonic() - started, 2)}


class _Base(NamedTuple):
    """A trained network and what is shared by all cells that begin with it."""

    model: Any
    data: data.Data
    batches: list[Any]
    facts: dict[str, Any]
    signals: dict[str, Any]


@cache
def _base(name: str, seed: int, source: Path, work: Path) -> _Base:
    """The float network of a seed, trained if it never was, and its signals for all criteria."""
    from edgeprune.keras import intake, keras

    _base.cache_clear()  # one at a time is held
    keras.backend.clear_session()
    network, path = NETWORKS[name], work / f"{NETWORKS[name].model}-{seed}.keras"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        intake.save(_trained(network, seed, source), path)
    model, samples = intake.load_own(path), _samples(source, network.samples, network.test)
    batches = list(_batched(samples.train.evenly(SIGNAL_SAMPLES)))
    vessel = _vessel(model, samples)
    vessel.pour(model, samples)
    facts = {"metric": vessel.accuracy(samples), **_cost(model)._asdict()}
    return _Base(model, samples, batches, facts, {})


def _trained(network: Network, seed: int, source: Path) -> Any:
    from edgeprune.keras import training

    training.start(seed)
    model = registry.module("models", network.model).build(**network.options)
    samples = _samples(source, network.float_samples, network.test)
    vessel = _Vessel(model, samples, network.float_epochs)
    vessel.pour(model, samples)
    vessel.tune(samples, seed)
    model.set_weights(vessel.model.get_weights())
    return model


def _shrunk(cell: Cell, base: _Base, sizes: dict[str, int]) -> dict[str, Any]:
    """The channels league: score, cut and fine-tune, as often as there are rounds, as the shrink stage does."""
    from edgeprune.keras import costs, surgery, training

    training.start(cell.seed)
    model, units, before = base.model, {}, {}
    rounds, whole = ROUNDS[cell.schedule], []
    for number in range(1, rounds + 1):
        meter = costs.Meter(model)
        groups = {group.name: group for group in meter.coupling.groups}
        scores = scoring.units(meter.coupling, cell.criterion, _signals(cell, base, model))
        units = units or {name: len(values) for name, values in scores.items()}
        whole = [name for name, group in groups.items() if group.cuttable and name not in units]
        scores = {name: scores.get(name, np.zeros(groups[name].units)) for name in units}
        rules = shrinking.Rules(units, steps={name: groups[name].step for name in units})
        cut = rules.cut(scores, cell.aim, number / rounds)
        model = surgery.shrink(model, cut)
        vessel = _vessel(model, base.data, EPOCHS // rounds)
        vessel.pour(model, base.data)
        if rounds == 1:
            before = {"metric_untuned": vessel.accuracy(base.data)}
        vessel.tune(base.data, 10 * cell.seed + number)
        model.set_weights(vessel.model.get_weights())
    found = {"metric": vessel.accuracy(base.data), **before, **_cost(model)._asdict()}
    left = {"left_whole": whole} if whole else {}  # groups that the criterion cannot score
    return {**found, "int8_bytes": _int8_bytes(model, base.data, sizes), **left}


def _signals(cell: Cell, base: _Base, model: Any) -> dict[str, Any]:
    """What the criterion is told; of the uncut network collected once for all criteria."""
    from edgeprune.keras import signals, training

    held = base.signals if model is base.model else {}
    wanted = [name for name in scoring.needed(cell.criterion) if name not in held]
    goal = training.objective(model, base.data.tasks)
    if wanted:
        found = signals.collect(model, wanted, base.batches, goal.loss, seed=cell.seed)
        for name in wanted:
            held[name] = {layer: given[name] for layer, given in found.items() if name in given}
    layers = dict.fromkeys(layer for given in held.values() for layer in given)
    return {layer: {name: given[layer] for name, given in held.items() if layer in given} for layer in layers}


def _pruned(cell: Cell, base: _Base) -> dict[str, Any]:
    """The weights league: zeros ranked over the network, then fine-tuned with the zeros held."""
    from edgeprune.keras import training

    training.start(cell.seed)
    signals, function = _signals(cell, base, base.model), registry.function("criteria", cell.criterion)
    wanted = scoring.needed(cell.criterion)
    lacking = [layer for layer, given in signals.items() if not set(wanted) <= set(given)]
    if lacking:
        raise CutError(f"'{cell.criterion}' cannot score every kernel: not {', '.join(lacking)}")
    scores = {layer: function(**{name: given[name] for name in wanted}) for layer, given in signals.items()}
    keep = masks.masks(scores, cell.aim, granularity.weight(), "network")
    vessel = _vessel(base.model, base.data)
    vessel.pour(base.model, base.data, keep)
    untuned = vessel.accuracy(base.data)
    vessel.tune(base.data, 10 * cell.seed + 1)
    kept = {layer: int(np.count_nonzero(vessel.model.get_layer(layer).kernel)) for layer in keep}
    share = 1 - sum(kept.values()) / sum(mask.size for mask in keep.values())
    return {"metric": vessel.accuracy(base.data), "metric_untuned": untuned, "zeros": round(share, 5), "kept": kept}


# What all cells share


@cache
def _samples(source: Path, train: int, test: int) -> data.Data:
    """Samples of the file, the same for every seed; all splits uint8 with a channel axis."""
    random, arrays = np.random.default_rng(SHARED), {}
    with np.load(source) as stored:
        for part, count in (("train", train), ("test", test)):
            chosen = random.permutation(len(stored[f"y_{part}"]))[:count]
            x = stored[f"x_{part}"][chosen]
            arrays[f"x_{part}"] = x if x.ndim == 4 else x[..., None]
            arrays[f"y_{part}"] = stored[f"y_{part}"][chosen].reshape(-1)
    return data.load(arrays, data.DataOptions(validation=0.0), SHARED)


def _batched(split: Any) -> Any:
    from edgeprune.keras import feeding

    return feeding.ordered(split, SAMPLES_PER_BATCH)


class _Vessel:
    """A network of given shapes, compiled once: cells that cut to the same shapes pour their weights in to be tuned and judged.

    To trace a training function anew takes longer than to fine-tune these small networks.
    """

    def __init__(self, model: Any, samples: data.Data, epochs: int) -> None:
        """Args:
        model: of these shapes; not changed.
        epochs: of one tuning.
        """
        from edgeprune.keras import keras, statistics, tf, training

        self.steps = training.steps_per_epoch(samples.train, TUNE)
        self.epochs, self.masks = epochs, {}
        self.model = keras.models.clone_model(model, clone_function=self._copied)
        rate = keras.optimizers.schedules.CosineDecay(TUNE.learning_rate, max(epochs * self.steps, 1))
        self.optimizer = keras.optimizers.Adam(rate)
        loss = training.objective(model, samples.tasks).loss
        self.model.compile(self.optimizer, loss, steps_per_execution=min(training.STEPS_PER_CALL, self.steps))
        self.optimizer.build(self.model.trainable_variables)
        self.fresh = [variable.numpy() for variable in self.optimizer.variables]
        self.statistics = statistics.Statistics(self.model)
        self.outputs = tf.function(lambda x: self.model(x, training=False), reduce_retracing=True)

    def _copied(self, layer: Any) -> Any:
        """The layer, with a place for a mask that its kernel is multiplied with after every step."""
        from edgeprune.keras import tf

        fresh = type(layer).from_config(layer.get_config())
        if hasattr(layer, "kernel"):
            self.masks[layer.name] = mask = tf.Variable(tf.ones(layer.kernel.shape), trainable=False)
            fresh.kernel_constraint = _multiplied(mask)
        return fresh

    def pour(self, model: Any, samples: data.Data, keep: Mapping[str, Any] | None = None) -> None:
        """Take the weights of a model of these shapes, of kernels that a mask is given for only what it keeps, and settle."""
        self.model.set_weights(model.get_weights())
        for name, mask in self.masks.items():
            mask.assign((keep or {}).get(name, np.ones(mask.shape)).astype("float32"))
            kernel = self.model.get_layer(name).kernel
            kernel.assign(kernel * mask)
        self._settle(samples)

    def tune(self, samples: data.Data, seed: int) -> None:
        """Train for the epochs of one tuning, with an optimizer that knows of no earlier one, and settle."""
        from edgeprune.keras import feeding

        for variable, value in zip(self.optimizer.variables, self.fresh, strict=True):
            variable.assign(value)
        batches = feeding.training(samples.train, TUNE.batch_size, seed, 0, self.epochs)
        self.model.fit(batches, epochs=self.epochs, steps_per_epoch=self.steps, verbose=0)
        self._settle(samples)

    def _settle(self, samples: data.Data) -> None:
        """Average BatchNormalization's statistics anew, as the shrink stage does after a cut and after a training."""
        from edgeprune.keras import feeding, statistics

        self.statistics([x for x, _ in feeding.ordered(samples.train, statistics.BATCH)])

    def accuracy(self, samples: data.Data) -> float:
        found = np.concatenate([self.outputs(x).numpy().argmax(axis=-1) for x, _ in _test_batches(samples)])
        return round(float(np.mean(found == samples.test.labels().reshape(-1))), 5)


def _multiplied(mask: Any) -> Any:
    """A constraint that multiplies a kernel with a mask."""
    from edgeprune.keras import keras

    class Multiplied(keras.constraints.Constraint):
        def __call__(self, kernel: Any) -> Any:
            return kernel * mask

    return Multiplied()


_vessels: dict[tuple[str, int], _Vessel] = {}


def _vessel(model: Any, samples: data.Data, epochs: int = EPOCHS) -> _Vessel:
    key = (_shapes(model), epochs)
    if key not in _vessels:
        _vessels[key] = _Vessel(model, samples, epochs)
    return _vessels[key]


def _shapes(model: Any) -> str:
    return " ".join("x".join(map(str, weight.shape)) for weight in model.weights)


_test: dict[str, list[Any]] = {}


def _test_batches(samples: data.Data) -> list[Any]:
    from edgeprune.keras import feeding

    if samples.fingerprint not in _test:
        _test[samples.fingerprint] = list(feeding.ordered(samples.test, TEST_BATCH))
    return _test[samples.fingerprint]


def _cost(model: Any) -> Any:
    from edgeprune.keras import costs

    return costs.Meter(model)({})


def _int8_bytes(model: Any, samples: data.Data, sizes: dict[str, int]) -> int:
    """The size of the file quantized after training: converted once for all networks whose weights have the same shapes."""
    from edgeprune.keras import conversion, export, preparation

    key = _shapes(model)
    if key not in sizes:
        with TemporaryDirectory() as folder, conversion.Converter(Path(folder) / "log") as converter:
            exported = export.save(preparation.prepare(model).model, Path(folder) / "exported")
            x = samples.calibration.inputs(np.arange(32))
            made = converter.convert(exported, Path(folder) / "model.tflite", representative=x)
            sizes[key] = made.stat().st_size
    return sizes[key]


# The file


def _one_thread() -> None:
    from edgeprune.keras import tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def _opened(path: Path) -> dict[str, Any]:
    """What earlier runs found, if they were of the same settings.

    Raises:
        SystemExit: they were not.
    """
    settings = {
        "what": __doc__.splitlines()[0],
        "command": "python benchmarks/criteria_league.py mnist.npz cifar10.npz",
        "metric": "accuracy on the test samples; metric_untuned: before any fine-tuning",
        "networks": {name: network._asdict() for name, network in NETWORKS.items()},
        "aims": {"channels": list(RATIOS), "weights": list(ZEROS)},
        "rounds": ROUNDS,
        "fine_tuning": {**TUNE.model_dump(exclude_unset=True), "epochs": EPOCHS},
        "signal_samples": SIGNAL_SAMPLES,
        "int8_bytes": "quantized after training, converted once for all cells with the same shapes of weights",
        "versions": {name: metadata.version(name) for name in ("edgeprune", "tensorflow", "tf_keras", "numpy")},
        "planned": len(list(cells(list(PHASES), list(NETWORKS), [0, 1, 2]))),
    }
    if not path.exists():
        return {**settings, "float": {}, "sizes": {}, "cells": []}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    same = json.loads(json.dumps(settings))
    if other := [key for key, value in same.items() if found.get(key) != value]:
        raise SystemExit(f"{path} is of other settings ({', '.join(other)}): give another --results, or delete it")
    return found


def _write(path: Path, record: Mapping[str, Any]) -> None:
    """A row per line, so that a difference between two runs can be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {key: value for key, value in record.items() if key != "cells"}
    rows = ",\n".join(f"    {json.dumps(row)}" for row in record["cells"])
    text = json.dumps(head, indent=2).removesuffix("\n}")
    files.write_text_atomic(path, f'{text},\n  "cells": [\n{rows}\n  ]\n}}\n')


if __name__ == "__main__":
    sys.exit(main())
