"""How far a network shrinks for how little: accuracy against MACs and bytes, int8 end to end.

    python benchmarks/shrink_curves.py resnet8-wide@0.45 resnet8@0.75,0.5,0.35 cifar10.npz [--train 10000 --test 4000]
    python benchmarks/shrink_curves.py --summary           what the results say
    python benchmarks/shrink_curves.py --picture           docs/pictures/shrink_curves.svg (needs matplotlib)

MODEL@SHARES names a network and the shares of its multiply-accumulates that may stay. For every network and seed a float
base is trained once. From it, on one hand, the float reference is trained on; on the other every share is cut (`shrink`,
with distillation from the base) and trained with fake quantizers (`quantize`), for as many epochs as the reference. So each
figure of a seed has seen the same epochs in all. Everything runs through ``edgeprune.api.build``: what is compared is the
reference's test metric and its file as it is quantized after training, uncompressed (``dense_int8``), with the file of the
cut model. Criterion, scope and distillation are those of the recipe shrink50; what follows the base, cut or not, is trained with
Keras' own batch size and Adam's own learning rate.

A cell (network, seed, share) that is in the results is not built again, and a build that was killed goes on in its epoch:
run the same command again. Results: benchmarks/results/shrink_curves.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pictures import panels
from records import opened
from subset import subset

from edgeprune import files
from edgeprune.errors import RecipeError
from edgeprune.shrink_options import CRITERION

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "shrink_curves.json"
PICTURE = HERE.parent / "docs" / "pictures" / "shrink_curves.svg"
SHARES = (0.75, 0.5, 0.35)  # of the multiply-accumulates, where a network is given without
DROP = 0.01  # what the issue allows a cut model to lose against the float reference, in accuracy
COSTS = ("macs", "size_bytes", "size_gzip_bytes", "arena_bytes")
Row = dict[str, Any]


class Network(NamedTuple):
    """A network to shrink: a word for ``edgeprune build``, and the shares of its MACs that may stay, 0..1."""

    word: str
    shares: tuple[float, ...]


class Settings(NamedTuple):
    """What every build has in common; results of other settings are not put into one file.

    Attributes:
        train, test: samples that are drawn of each split; 0: all.
        train_epochs, train_batch_size, train_learning_rate: of the base.
        shrink_epochs, quantize_epochs: after the cut, and with fake quantizers; the reference gets as many as both.
        batch_size: samples per step after the base.
        learning_rate: of the first step after the base, cosine to 0, as the base's is; with fake quantizers a tenth of it.
        validation: share of the training samples that is only watched, 0..0.5.
        criterion: what channels are ranked by.
        target: whose channel multiples the cuts keep to.
    """

    train: int
    test: int
    train_epochs: int
    train_batch_size: int
    train_learning_rate: float
    shrink_epochs: int
    quantize_epochs: int
    batch_size: int
    learning_rate: float
    validation: float
    criterion: str
    target: str


def main() -> int:
    arguments = _arguments()
    if arguments.summary or arguments.picture:
        record = json.loads(arguments.results.read_text(encoding="utf-8"))
        if arguments.picture:
            print(f"wrote {drawn(record, PICTURE)}")
        else:
            print(json.dumps({word: summary(rows) for word, rows in record["networks"].items()}, indent=2))
        return 0
    settings = Settings(*(getattr(arguments, name) for name in Settings._fields))
    about = {"data": Path(arguments.data).name, "settings": settings._asdict()}
    record = opened(arguments.results, __doc__, about)
    record.setdefault("networks", {})
    if settings.train:
        arguments.data = str(subset(Path(arguments.data), settings.train, settings.test, arguments.work))
    for seed in arguments.seeds:
        for given in arguments.networks:
            _curve(network(given), seed, settings, arguments, record)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="MODEL[@SHARES] ... DATA", help="networks, and the .npz at the end")
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=0, help="training samples, drawn once; 0: all")
    parser.add_argument("--test", type=int, default=0, help="test samples, with --train")
    parser.add_argument("--train-epochs", type=int, default=12)
    parser.add_argument("--train-batch-size", type=int, default=128)
    parser.add_argument("--train-learning-rate", type=float, default=0.003)
    parser.add_argument("--shrink-epochs", type=int, default=5)
    parser.add_argument("--quantize-epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--validation", type=float, default=0.05)
    parser.add_argument("--criterion", default=CRITERION)
    parser.add_argument("--target", default="rpi4")
    parser.add_argument("--work", type=Path, default=Path("runs") / "shrink_curves", help="run folders")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--summary", action="store_true", help="only print what the results say")
    parser.add_argument("--picture", action="store_true", help="only draw the results")
    arguments = parser.parse_args()
    if not (arguments.summary or arguments.picture):
        if len(arguments.words) < 2:
            parser.error("give at least one MODEL and DATA")
        *arguments.networks, arguments.data = arguments.words
    return arguments


def network(word: str) -> Network:
    """``resnet8@0.75,0.5`` -> the network and its shares.

    Raises:
        RecipeError: a share is no number between 0 and 1.
    """
    name, _, shares = word.partition("@")
    try:
        found = tuple(float(share) for share in shares.split(",")) if shares else SHARES
    except ValueError as error:
        raise RecipeError(f"'{word}': {error}. Give shares of the MACs that stay: {name}@0.75,0.5") from error
    if not all(0 < share < 1 for share in found):
        raise RecipeError(f"'{word}': a share of the MACs that stay lies between 0 and 1, both excluded.")
    return Network(name, found)


def _curve(
    chosen: Network, seed: int, settings: Settings, arguments: argparse.Namespace, record: dict[str, Any]
) -> None:
    """The reference and every share of a network for one seed; each is written as soon as it is there."""
    rows = record["networks"].setdefault(chosen.word, {"float": {}, "cells": {}})
    work = arguments.work / chosen.word / f"seed-{seed}"
    base = work / "base" / "stages" / "1-train" / "model.keras"
    todo = [share for share in chosen.shares if str(seed) not in rows["cells"].get(f"{share:g}", {})]
    if str(seed) in rows["float"] and not todo:
        return
    _built(chosen.word, arguments.data, base_recipe(settings, seed), settings.target, work / "base")
    for share in todo:  # what is asked first is there first; the reference is needed to judge it, and comes second
        folder = work / f"share-{share:g}"
        report = _built(str(base), arguments.data, cell_recipe(settings, seed, share), settings.target, folder)
        rows["cells"].setdefault(f"{share:g}", {})[str(seed)] = cell(report, folder)
        files.write_text_atomic(arguments.results, json.dumps(record, indent=2) + "\n")
        if str(seed) not in rows["float"]:
            _reference(rows, seed, settings, arguments, base, work / "float", record)


def _reference(
    rows: Row,
    seed: int,
    settings: Settings,
    arguments: argparse.Namespace,
    base: Path,
    folder: Path,
    record: Mapping[str, Any],
) -> None:
    report = _built(str(base), arguments.data, float_recipe(settings, seed), settings.target, folder)
    rows["float"][str(seed)] = reference(report, folder)
    files.write_text_atomic(arguments.results, json.dumps(record, indent=2) + "\n")


def _built(model: str, data: str, recipe: Mapping[str, Any], target: str, folder: Path) -> dict[str, Any]:
    """The report of a build, which is begun, resumed, or found finished."""
    from edgeprune import api, progress

    started = time.monotonic()
    if (folder / api.RUN_FILE).exists():
        result = api.build(out=folder, resume=True, progress=progress.Silent())
    else:
        result = api.build(model, data, target=target, recipe=recipe, out=folder, progress=progress.Silent())
    print(f"{time.strftime('%H:%M:%S')} {folder} {time.monotonic() - started:.0f} s", flush=True)
    return result.report


# The three recipes: what they have in common is what makes them comparable.


def base_recipe(settings: Settings, seed: int) -> dict[str, Any]:
    """The float base, trained from nothing."""
    fit = {
        "epochs": settings.train_epochs,
        "batch_size": settings.train_batch_size,
        "learning_rate": settings.train_learning_rate,
    }
    return _recipe("base", settings, seed, {"train": fit})


def float_recipe(settings: Settings, seed: int) -> dict[str, Any]:
    """The base trained on, for as many epochs as a cut model gets."""
    epochs = settings.shrink_epochs + settings.quantize_epochs
    stages = {"train": {"when": "always", **_fit(settings, epochs)}, "convert": {}, "verify": {}, "report": {}}
    return _recipe("float", settings, seed, stages)


def cell_recipe(settings: Settings, seed: int, share: float) -> dict[str, Any]:
    """The base cut and fine-tuned as in the recipe shrink50, for another share."""
    shrink = {
        "criterion": settings.criterion,
        "macs": share,
        "scope": "network",
        "distill": {},
        **_fit(settings, settings.shrink_epochs),
    }
    quantize = {
        **_fit(settings, settings.quantize_epochs),
        "learning_rate": settings.learning_rate / 10,
    }
    stages = {"evaluate": {}, "shrink": shrink, "quantize": quantize, "convert": {}, "verify": {}, "report": {}}
    return _recipe(f"share-{share:g}", settings, seed, stages)


def _recipe(name: str, settings: Settings, seed: int, stages: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "seed": seed, "data": {"validation": settings.validation}, "stages": dict(stages)}


def _fit(settings: Settings, epochs: int) -> dict[str, Any]:
    return {"epochs": epochs, "batch_size": settings.batch_size, "learning_rate": settings.learning_rate}


# From reports to rows.


def reference(report: Mapping[str, Any], folder: Path) -> Row:
    """The float reference's metric, and the costs of its file, quantized after training and not compressed."""
    dense = report["candidates"]["dense_int8"]
    path = next(folder.glob("stages/*-convert/dense_int8.tflite"))
    costs = {**{name: dense[name] for name in COSTS[:-1]}, "arena_bytes": arena(path)}
    return {
        "metric": report["candidates"]["float"]["metric"],
        "dense_int8_metric": dense["metric"],
        "params": dense["params"],
        **costs,
        "epochs": _epochs(report),
        "seconds": _seconds(report),
    }


def cell(report: Mapping[str, Any], folder: Path) -> Row:
    """A cut model's int8 metric, that of the base as it was cut, and the costs of the file."""
    final = report["candidates"]["final"]
    costs = {**{name: final[name] for name in COSTS[:-1]}, "arena_bytes": arena(folder / "model.tflite")}
    groups = report["shrink"]["shrink"]["groups"]
    return {
        "metric": final["metric"],
        "base_metric": report["candidates"]["float"]["metric"],
        "params": final["params"],
        **costs,
        "units": {group["name"]: [group["units_before"], group["units_after"]] for group in groups},
        "epochs": _epochs(report),
        "seconds": _seconds(report),
    }


def _epochs(report: Mapping[str, Any]) -> dict[str, int]:
    return {label: len(history["epochs"]) for label, history in report["history"].items()}


def _seconds(report: Mapping[str, Any]) -> float:
    return round(sum(stage["seconds"] for stage in report["stages"]), 1)


def arena(path: Path) -> int:
    """Bytes that TFLite's own kernels lay out for everything but weights, as the product's probe counts them."""
    from ai_edge_litert import interpreter as litert

    from edgeprune.devices import _probe

    content = path.read_bytes()
    # Without a delegate, since that keeps its tensors out of sight: a board's arena, not this machine's.
    kind = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    runner = litert.Interpreter(model_content=content, experimental_op_resolver_type=kind)
    runner.allocate_tensors()
    found: int = _probe.measure_arena(runner, content)["bytes"]
    return found


# From rows to what they say.


def summary(rows: Mapping[str, Any]) -> list[Row]:
    """A row per share that has a seed with a reference, from the largest share to the smallest.

    Returns:
        ``share``; ``seeds``; ``metric``, ``float_metric`` and ``drop``, each a mean and a ``spread`` (largest - smallest); and
        per cost how many times less it is than the uncompressed int8 file's, on average.
    """
    found = []
    for share, cells in sorted(rows["cells"].items(), key=lambda item: -float(item[0])):
        seeds = sorted(set(cells) & set(rows["float"]), key=int)
        if seeds:
            pairs = [(cells[seed], rows["float"][seed]) for seed in seeds]
            found.append(
                {
                    "share": float(share),
                    "seeds": len(seeds),
                    "metric": _spread([one["metric"] for one, _ in pairs]),
                    "float_metric": _spread([other["metric"] for _, other in pairs]),
                    "drop": _spread([other["metric"] - one["metric"] for one, other in pairs]),
                    "times_less": {
                        name: round(statistics.mean(other[name] / one[name] for one, other in pairs), 3)
                        for name in COSTS
                    },
                    **{name: round(statistics.mean(one[name] for one, _ in pairs)) for name in COSTS},
                }
            )
    return found


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": round(statistics.mean(values), 5), "spread": round(max(values) - min(values), 5)}


def best(points: Sequence[Mapping[str, Any]], drop: float = DROP) -> Mapping[str, Any] | None:
    """Of a ``summary`` the smallest share that loses at most ``drop`` on average, or None."""
    kept = [point for point in points if point["drop"]["mean"] <= drop]
    return min(kept, key=lambda point: point["share"], default=None)


def drawn(record: Mapping[str, Any], path: Path) -> Path:
    """The curves as a picture: accuracy lost against the share of MACs and of bytes that is left, a dot per seed."""
    with panels(path, 3.6, sharey=True) as both:
        for panel, (name, words) in zip(
            both, (("macs", "multiply-accumulates"), ("size_bytes", "bytes of the .tflite")), strict=True
        ):
            for number, (word, rows) in enumerate(record["networks"].items()):
                _line(panel, word, rows, name, f"C{number}")
            panel.axhline(-DROP, color="grey", linewidth=0.8, linestyle="--")
            panel.axhline(0, color="grey", linewidth=0.8)
            panel.set_xlabel(f"{words} left, share of dense int8")
            panel.grid(alpha=0.25)
        both[0].set_ylabel("accuracy against the float reference")
        both[0].legend(frameon=False)
    return path


def _line(panel: Any, word: str, rows: Mapping[str, Any], name: str, color: str) -> None:
    dots = [
        (cells[seed][name] / rows["float"][seed][name], cells[seed]["metric"] - rows["float"][seed]["metric"])
        for cells in rows["cells"].values()
        for seed in cells
        if seed in rows["float"]
    ]
    points = [(1 / point["times_less"][name], -point["drop"]["mean"]) for point in summary(rows)]
    if dots:
        panel.scatter(*zip(*dots, strict=True), color=color, s=14, alpha=0.6)
        panel.plot(*zip(*points, strict=True), color=color, marker="_", markersize=12, label=word)


if __name__ == "__main__":
    sys.exit(main())
