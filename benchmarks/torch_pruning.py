"""edgeprune beside torch-pruning: the numbers of the criteria, and the accuracy after the same fine-tuning.

    python3.11 -m venv TORCH && TORCH/bin/pip install torch==2.13.0 torch-pruning==1.6.1 numpy
    python benchmarks/torch_pruning.py resnet8.h5 cifar10.npz --torch-python TORCH/bin/python
    python benchmarks/torch_pruning.py --picture           docs/pictures/torch_pruning.svg (needs matplotlib)

MODEL is a trained ResNet-8 (models/resnet8.py; MLPerf Tiny's file is one). torch is no dependency of edgeprune: its side,
torch_pruning_side.py, runs in that venv and exchanges .npz files with this one.

* criteria: both sides score the same weights with the same gradients, once one kernel of every group of coupled
  channels for itself, once all kernels that make or read them. After the transformation that is named, both are divided by
  their mean; written are the rank correlation and the largest difference of any channel.
* accuracy: both sides cut the same network to half of its multiply-accumulates, ranking over the whole network. As in
  torch-pruning, which knows nothing else, the kernels that read a channel and the scales of BatchNormalization are heard with
  the kernels that make it, large kernels more than small ones (``AS_THEIRS``: options of the stage shrink). Both fine-tune with
  the same images, order, batches, optimizer, learning rate, penalty and epochs, one thread each. BatchNormalization's averages
  are what each gives its users: torch moves them by a tenth per step, edgeprune takes them anew after cut and training.

What is in benchmarks/results/torch_pruning.json already is not done again; with other settings, give another --results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pictures import panels
from records import opened

from edgeprune import files

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "torch_pruning.json"
PICTURE = HERE.parent / "docs" / "pictures" / "torch_pruning.svg"
SIDE = HERE / "torch_pruning_side.py"
SIDES = ("edgeprune", "torch-pruning")
EXACT = 1e-4  # difference of two scores, of their mean, that float32 explains
SAMPLES = 256  # training images that the numbers are compared on
AS_THEIRS = {
    "normalise": None,
    "normalise_groups": "mean",
    "consumers": True,
    "scales": True,
}  # who has a say, and how much
Arrays = dict[str, np.ndarray]
Change = Callable[[np.ndarray], np.ndarray]
CHANGES: dict[str, Change] = {"": lambda scores: scores, "square": np.square, "root": np.sqrt}


class Pair(NamedTuple):
    """A criterion of each side.

    Attributes:
        ours: a name of ``edgeprune list criteria``.
        theirs: a name in torch_pruning_side.py.
        change: of ours, before they are compared: a name in ``CHANGES``.
        equal: where they must agree: ``kernels`` (one kernel of each group alone) or ``groups`` (those and what couples them).
        why: what the difference is where there is one.
    """

    ours: str
    theirs: str
    change: str
    equal: tuple[str, ...]
    why: str


PAIRS = (
    Pair("magnitude", "magnitude_p1", "", ("kernels", "groups"), ""),
    Pair(
        "l2", "magnitude_p2", "square", ("kernels",), "theirs is the square of the norm, so means over kernels differ"
    ),
    Pair("snip", "taylor_l1", "", ("kernels", "groups"), "what torch-pruning calls Taylor is |g w|, here `snip`"),
    Pair("taylor", "taylor_l1", "", (), "Molchanov et al. (2019) square every weight's g w; theirs takes |g w|"),
    Pair("taylor_channel", "taylor_whole", "root", ("kernels",), "theirs is the root, so means over kernels differ"),
    Pair("fisher", "hessian", "", ("kernels", "groups"), "theirs takes mean g^2 for the Hessian: here `fisher`"),
    Pair("obd", "hessian", "", (), "here the Hessian's own diagonal (Hutchinson), theirs the mean of g^2"),
    Pair("fpgm", "fpgm_p1", "", (), "theirs measures distances of |w|, He et al. (2019) those of w; ours no readers"),
    Pair("fpgm", "fpgm_p2", "", (), "theirs by default measures distances of w^2; ours no readers"),
    Pair("slimming", "bn_scale", "", ("kernels", "groups"), ""),
    Pair("lamp", "lamp", "", (), "Lee et al. (2021) rank single weights; theirs applies the formula to channels"),
)


class Settings(NamedTuple):
    """Of the accuracy part.

    Attributes:
        images: training images, chosen by the seed.
        epochs, batch_size, learning_rate: of the fine-tuning: Adam, half cosine to 0.
        macs: share of the multiply-accumulates that may stay, 0..1.
        scored: of the training images, those that gradients are of.
    """

    images: int
    epochs: int
    batch_size: int
    learning_rate: float
    macs: float
    scored: int


def main() -> int:
    arguments = _arguments()
    if arguments.picture:
        print(f"wrote {drawn(json.loads(arguments.results.read_text(encoding='utf-8')), PICTURE)}")
        return 0
    settings = Settings(*(getattr(arguments, name) for name in Settings._fields))
    about = {"model": Path(arguments.model).name, "data": Path(arguments.data).name, "settings": settings._asdict()}
    record = opened(arguments.results, __doc__, about)
    with np.load(arguments.data) as stored:
        data = {name: stored[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    data |= {name: data[name].reshape(-1).astype(np.int64) for name in ("y_train", "y_test")}
    _one_thread()
    if "criteria" not in record:
        record["criteria"] = _criteria(arguments, data, record)
        _write(arguments.results, record)
    runs = record.setdefault("accuracy", {})
    for criterion in arguments.criteria:
        for seed in arguments.seeds:
            for side, tuned in zip(SIDES, (_ours, _theirs), strict=True):
                rows = runs.setdefault(criterion, {}).setdefault(side, {})
                if str(seed) not in rows:
                    rows[str(seed)] = tuned(arguments, sampled(data, settings, seed), settings, criterion, seed)
                    print(json.dumps({f"{criterion} {side} {seed}": rows[str(seed)]}), flush=True)
                    _write(arguments.results, record)
    verdicts = {criterion: verdict(sides) for criterion, sides in runs.items()}
    print(json.dumps(verdicts, indent=2))
    exact = all(row["as_expected"] for row in record["criteria"])
    return 0 if exact and all(one["holds"] for one in verdicts.values()) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help=".h5 or .keras of a trained ResNet-8")
    parser.add_argument("data", nargs="?", help=".npz: x_train, y_train, x_test, y_test")
    parser.add_argument("--torch-python", help="the python of the venv that has torch-pruning")
    parser.add_argument("--criteria", nargs="+", default=["taylor", "magnitude"], choices=["taylor", "magnitude", "l2"])
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--scored", type=int, default=512)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--picture", action="store_true", help="only draw the results")
    arguments = parser.parse_args()
    if not (arguments.picture or (arguments.model and arguments.data and arguments.torch_python)):
        parser.error("give MODEL, DATA and --torch-python")
    return arguments


def _write(path: Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    files.write_text_atomic(path, json.dumps(record, indent=2) + "\n")


def _one_thread() -> None:
    from edgeprune.keras import tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def sampled(data: Mapping[str, np.ndarray], settings: Settings, seed: int) -> Arrays:
    """The seed's training images, the order of every epoch, which images are scored, and the whole test split."""
    random = np.random.default_rng(seed)
    rows = random.permutation(len(data["x_train"]))[: settings.images]
    return {
        "x_train": data["x_train"][rows],
        "y_train": data["y_train"][rows],
        "x_test": data["x_test"],
        "y_test": data["y_test"],
        "orders": np.stack([random.permutation(len(rows)) for _ in range(settings.epochs)]),
        "scored": np.arange(min(settings.scored, len(rows))),
    }


def _loaded(path: str) -> Any:
    from edgeprune.keras import intake

    return intake.named(path, False, lambda _: None)[0]


def _named_layers(model: Any) -> dict[str, Any]:
    """``conv0`` .. ``conv8``, ``bn0`` .. ``bn6`` and ``dense`` -> the layer, in the order in which they were made."""
    from edgeprune.keras import keras

    kinds = {"conv": keras.layers.Conv2D, "bn": keras.layers.BatchNormalization}
    found: dict[str, Any] = {}
    for word, kind in kinds.items():
        layers = sorted((layer for layer in model.layers if type(layer) is kind), key=lambda layer: _number(layer.name))
        found |= {f"{word}{number}": layer for number, layer in enumerate(layers)}
    found["dense"] = next(layer for layer in model.layers if type(layer) is keras.layers.Dense)
    return found


def _number(name: str) -> int:
    """``conv2d_12`` -> 12, ``conv2d`` -> 0."""
    last = name.rpartition("_")[2]
    return int(last) if last.isdigit() else 0


def _weights(model: Any) -> Arrays:
    """The network's weights, as torch_pruning_side.py takes them."""
    found = {}
    for name, layer in _named_layers(model).items():
        if name.startswith("bn"):
            parts = {"gamma": layer.gamma, "beta": layer.beta, "mean": layer.moving_mean}
            parts["variance"] = layer.moving_variance
        else:
            parts = {"kernel": layer.kernel, "bias": layer.bias}
        found |= {f"{name}/{part}": variable.numpy() for part, variable in parts.items()}
    return found


def _asked(python: str, job: str, given: Mapping[str, np.ndarray]) -> Arrays:
    """What torch's side answers, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "given.npz", **given)
        # -I: this folder has a torch_pruning.py, too, which is not the one that is meant.
        done = subprocess.run([python, "-I", str(SIDE), job, folder], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{SIDE.name} {job} failed:\n{done.stderr[-2000:]}")
        with np.load(Path(folder) / "answer.npz") as stored:
            return {name: stored[name] for name in stored.files}


# The numbers of the criteria.


def _criteria(
    arguments: argparse.Namespace, data: Mapping[str, np.ndarray], record: dict[str, Any]
) -> list[dict[str, Any]]:
    """Every pair on the same weights and gradients."""
    from edgeprune import channels, scoring
    from edgeprune.keras import channel_graph, signals

    model = _loaded(arguments.model)
    wanted = {name for pair in PAIRS for name in scoring.needed(pair.ours)} | {"gradients", "gradient_squares"}
    x, y = data["x_train"][:SAMPLES].astype(np.float32), data["y_train"][:SAMPLES]
    batches = [(x[start : start + 32], y[start : start + 32]) for start in range(0, len(x), 32)]
    found = signals.collect(model, wanted, batches, _loss())
    layers = _named_layers(model)
    given = {**_weights(model), "x": np.ascontiguousarray(x[:8].transpose(0, 3, 1, 2))}
    for name in (name for name in layers if not name.startswith("bn")):
        held = found[layers[name].name]
        for word, signal in (("gradient", "gradients"), ("square", "gradient_squares")):
            given[f"{name}/{word}"] = held[signal].reshape(given[f"{name}/kernel"].shape).astype(np.float32)
    answer = _asked(arguments.torch_python, "scores", given)
    record["versions"] = json.loads(str(answer["versions"]))
    record["hessian_keeps_last_sample_only"] = bool(answer["overwritten"])
    record["outputs_difference"] = _outputs_difference(model, x[:8], answer["outputs"])
    coupling = channels.couple(channel_graph.describe(model))
    roots = {name.removeprefix("conv"): layer.name for name, layer in layers.items() if name.startswith("conv")}
    return [_pair(pair, found, coupling, roots, answer) for pair in PAIRS]


def _loss() -> Any:
    from edgeprune.keras import keras

    return keras.losses.SparseCategoricalCrossentropy()


def _outputs_difference(model: Any, x: np.ndarray, logits: np.ndarray) -> float:
    """The largest difference of the class probabilities on both sides: the weights were carried over rightly."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return float(np.abs(powers / powers.sum(axis=1, keepdims=True) - model(x, training=False).numpy()).max())


def _pair(pair: Pair, found: Any, coupling: Any, roots: Mapping[str, str], answer: Arrays) -> dict[str, Any]:
    from edgeprune import scoring

    scores = scoring.units(coupling, pair.ours, found, normalise=None, aggregate="mean", consumers=True)
    owners = {member.layer: group.name for group in coupling.groups for member in group.producers}
    ours: dict[str, dict[str, np.ndarray]] = {"kernels": {}, "groups": {}}
    for number, layer in roots.items():
        if f"{pair.theirs}/{number}" in answer:  # torch-pruning's root of a group
            ours["groups"][number] = scores[owners[layer]]
            if set(scoring.needed(pair.ours)) <= set(found[layer]):
                ours["kernels"][number] = first(pair.ours, found[layer])
    change = CHANGES[pair.change]
    row: dict[str, Any] = {"ours": pair.ours, "theirs": pair.theirs, "change": pair.change, "why": pair.why}
    for part, prefix in (("kernels", "first/"), ("groups", "")):
        row[part] = compared(
            {
                number: (change(values), answer[f"{prefix}{pair.theirs}/{number}"])
                for number, values in ours[part].items()
            }
        )
    row["as_expected"] = all(row[part]["largest_difference"] <= EXACT for part in pair.equal)
    return row


def first(criterion: str, given: Mapping[str, Any]) -> np.ndarray:
    """A score per output channel of one kernel, by itself."""
    from edgeprune import criteria, registry, scoring
    from edgeprune.granularity import POOLINGS

    function = registry.function("criteria", criterion)
    scores = function(**{name: given[name] for name in scoring.needed(criterion)})
    if scores.ndim == 1:
        return np.asarray(scores)
    pool = POOLINGS[criteria.POOLING.get(criterion, "sum")]
    return np.asarray(pool(scores.reshape(-1, scores.shape[-1]), axis=0))


def compared(both: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """The least and the mean rank correlation of the groups, and the largest difference of scores of mean 1."""
    ranks = [rank_correlation(one, other) for one, other in both.values()]
    differences = [float(np.abs(one / one.mean() - other / other.mean()).max()) for one, other in both.values()]
    return {
        "rank_correlation": round(statistics.mean(ranks), 4),
        "least_rank_correlation": round(min(ranks), 4),
        "largest_difference": float(f"{max(differences):.2g}"),
    }


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's, -1..1; equal scores share their mean rank."""
    ranks = []
    for scores in (one, other):
        _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[place])
    return float(np.corrcoef(*ranks)[0, 1])


# The accuracy after the same fine-tuning.


def _theirs(
    arguments: argparse.Namespace, given: Arrays, settings: Settings, criterion: str, seed: int
) -> dict[str, Any]:
    words = json.dumps({**settings._asdict(), "criterion": criterion, "seed": seed})
    answer = _asked(
        arguments.torch_python, "tune", {**_weights(_loaded(arguments.model)), **given, "settings": np.array(words)}
    )
    figures = ("before", "after_cut", "metric", "macs_share")
    return {
        **{name: round(float(answer[name]), 5) for name in figures},
        "params": int(answer["params"]),
        "channels": answer["channels"].tolist(),
    }


def _ours(
    arguments: argparse.Namespace, given: Arrays, settings: Settings, criterion: str, seed: int
) -> dict[str, Any]:
    from edgeprune.keras import costs, keras, surgery
    from edgeprune.keras import statistics as statistics_of

    keras.utils.set_random_seed(seed)
    model = _loaded(arguments.model)
    before = _accuracy(model, given)
    meter = costs.Meter(model)
    cut = _cut(model, meter, given, settings, criterion)
    small = surgery.shrink(model, cut)
    settle, batch = statistics_of.Statistics(small), statistics_of.BATCH
    few = given["x_train"][: statistics_of.SAMPLES].astype(np.float32)
    inputs = [few[start : start + batch] for start in range(0, len(few), batch)]
    settle(inputs)
    after_cut = _accuracy(small, given)
    steps = settings.epochs * -(-len(given["x_train"]) // settings.batch_size)
    rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps)
    small.compile(keras.optimizers.Adam(rate), _loss())
    for order in given["orders"]:
        x, y = given["x_train"][order].astype(np.float32), given["y_train"][order]
        small.fit(x, y, batch_size=settings.batch_size, epochs=1, shuffle=False, verbose=0)
    settle(inputs)
    return {
        "before": round(before, 5),
        "after_cut": round(after_cut, 5),
        "metric": round(_accuracy(small, given), 5),
        "macs_share": round(meter(cut).macs / meter({}).macs, 5),
        "params": sum(int(np.prod(weight.shape)) for weight in small.trainable_weights),
        "channels": [layer.filters for name, layer in _named_layers(small).items() if name.startswith("conv")],
    }


def _cut(model: Any, meter: Any, given: Arrays, settings: Settings, criterion: str) -> Any:
    """The shrink stage's cut: ranked over the whole network as theirs is; any count of channels."""
    from edgeprune import scoring, shrinking
    from edgeprune.keras import signals

    x, y = (given[name][given["scored"]] for name in ("x_train", "y_train"))
    x = x.astype(np.float32)
    batches = [(x[start : start + 32], y[start : start + 32]) for start in range(0, len(x), 32)]
    found = signals.collect(model, {*scoring.needed(criterion), "scale"}, batches, _loss())
    scores = scoring.units(meter.coupling, criterion, found, **AS_THEIRS)
    rules = shrinking.Rules({name: len(values) for name, values in scores.items()}, scope="network")
    uncut = meter({}).macs
    return rules.reach(scores, lambda cut: meter(cut).macs / uncut, settings.macs, "macs")[1]


def _accuracy(model: Any, given: Arrays) -> float:
    answers = model.predict(given["x_test"].astype(np.float32), batch_size=500, verbose=0).argmax(axis=1)
    return float((answers == given["y_test"]).mean())


def verdict(sides: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Both means over the seeds that both have, their spreads (largest - smallest), and whether ours is not lower by more."""
    seeds = sorted(set(sides.get("edgeprune", {})) & set(sides.get("torch-pruning", {})), key=int)
    metrics = {side: [sides[side][seed]["metric"] for seed in seeds] for side in SIDES}
    if not seeds:
        return {"seeds": 0, "holds": False}
    means = {side: statistics.mean(values) for side, values in metrics.items()}
    spreads = {side: _range(values) for side, values in metrics.items()}
    ahead = means["edgeprune"] - means["torch-pruning"]
    return {
        "seeds": len(seeds),
        "mean": {side: round(value, 5) for side, value in means.items()},
        "spread": {side: round(value, 5) for side, value in spreads.items()},
        "ahead": round(ahead, 5),
        "holds": ahead >= -max(spreads.values()),
    }


def drawn(record: Mapping[str, Any], path: Path) -> Path:
    """The accuracies as a picture: of every criterion and side a dot per seed and the mean, right after the cut and fine-tuned."""
    with panels(path, 3.2) as both:
        parts = (("after_cut", "right after the cut"), ("metric", "fine-tuned"))
        for panel, (figure_of, title) in zip(both, parts, strict=True):
            for number, side in enumerate(SIDES):
                for place, sides in enumerate(record["accuracy"].values()):
                    values = [row[figure_of] for row in sides.get(side, {}).values()]
                    x = place + 0.3 * number
                    panel.scatter([x] * len(values), values, color=f"C{number}", s=18, label=None if place else side)
                    if values:
                        panel.hlines(statistics.mean(values), x - 0.1, x + 0.1, color=f"C{number}")
            panel.set_xticks([place + 0.15 for place in range(len(record["accuracy"]))], record["accuracy"])
            panel.set_title(title)
            panel.margins(x=0.2)
            panel.grid(axis="y", alpha=0.25)
        both[0].set_ylabel("accuracy")
        both[0].legend(frameon=False)
    return path


def _range(values: Sequence[float]) -> float:
    return max(values) - min(values)


if __name__ == "__main__":
    sys.exit(main())
