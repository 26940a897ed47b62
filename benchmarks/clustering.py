"""What shared values save in the compressed file, what they cost in the metric, and what keeping them costs in training.

    python benchmarks/clustering.py sizes [--model ... --data ...] [--epochs 10]
    python benchmarks/clustering.py overhead [--steps 32] [--repeats 5]

``sizes``: one network is trained once; every row goes on from there with the same epochs in all, to an int8 file. A row that
is there already is not made again, unless --force says so. ``overhead``: steps of a ResNet-8, in turns with and without the
method, and the smallest time of each; processor time of all threads, and time on the wall.
Writes benchmarks/results/clustering.json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import training_steps

from edgeprune import files

RESULTS = Path(__file__).parent / "results" / "clustering.json"
TAIL: dict[str, Any] = {"convert": {}, "verify": {}, "report": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sizes", "overhead"))
    parser.add_argument("--model", help="as for `edgeprune build`; default: the demo")
    parser.add_argument("--data", help="as for `edgeprune build`; default: the model's own")
    parser.add_argument("--epochs", type=int, default=10, help="of every row, after the training that all share")
    parser.add_argument("--training", type=int, default=20, help="epochs of that training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=32, help="of one turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--force", action="store_true", help="make anew what is there already")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    record = json.loads(arguments.results.read_text(encoding="utf-8")) if arguments.results.exists() else {}
    record["what"] = (__doc__ or "").splitlines()[0]

    def keep(**facts: Any) -> None:
        record.update(facts)
        arguments.results.parent.mkdir(exist_ok=True)
        files.write_text_atomic(arguments.results, json.dumps(record, indent=2) + "\n")

    if arguments.what == "sizes":
        sizes(arguments, record, keep)
    else:
        keep(overhead=overhead(arguments.steps, arguments.repeats))


# sizes


def recipes(epochs: int) -> dict[str, dict[str, Any]]:
    """Row -> its stages between training and conversion; each trains for so many epochs in all."""
    quantizing = max(1, epochs * 3 // 10)
    rest = {"quantize": {"epochs": quantizing, "learning_rate": 1e-4}}
    rows: dict[str, dict[str, Any]] = {"QAT": {"quantize": {"epochs": epochs, "learning_rate": 3e-4}}}
    for scope, count in (("layer", 32), ("layer", 16), ("layer", 8), ("channel", 16)):
        stage = {"clusters": count, "scope": scope, "epochs": epochs - quantizing, "learning_rate": 3e-4}
        rows[f"{count} values per {scope}"] = {"cluster": stage, **rest}
    pruning = {"final": 0.8, "epochs": epochs - quantizing, "learning_rate": 1e-3}
    rows["80 % zeros"] = {"prune": pruning, **rest}
    half = (epochs - quantizing) // 2
    rows["80 % zeros, then 16 values per layer"] = {
        "prune": {**pruning, "epochs": epochs - quantizing - half},
        "cluster": {"clusters": 16, "epochs": half, "learning_rate": 3e-4},
        **rest,
    }
    return rows


def sizes(arguments: argparse.Namespace, record: Mapping[str, Any], keep: Callable[..., None]) -> None:
    """Build every row that is not there yet."""
    import edgeprune

    rows = {} if arguments.force else dict(record.get("sizes", {}).get("rows", {}))
    with tempfile.TemporaryDirectory() as folder:
        words = {"data": arguments.data, "target": "rpi4"}
        training = {"train": {"epochs": arguments.training, "learning_rate": 0.003}, **TAIL}
        first = {"name": "first", "seed": arguments.seed, "stages": training}
        trained = edgeprune.build(arguments.model, recipe=first, out=Path(folder) / "first", **words)
        start = trained.folder / "stages" / "1-train" / "model.keras"
        data = trained.report["data"]["source"] if arguments.data is None else arguments.data
        for name, stages in recipes(arguments.epochs).items():
            if name in rows:
                continue
            recipe = {"name": "row", "seed": arguments.seed, "stages": {"evaluate": {}, **stages, **TAIL}}
            made = edgeprune.build(
                start, recipe=recipe, out=Path(folder) / "row", **{**words, "data": data}, force=True
            )
            rows[name] = row(made.report)
            print(json.dumps({name: rows[name]}), flush=True)
            keep(
                sizes={
                    "model": trained.report["model"]["source"],
                    "data": data,
                    "metric": trained.report["metric"]["name"],
                    "test_samples": trained.report["metric"]["samples"],
                    "epochs": arguments.epochs,
                    "seed": arguments.seed,
                    "dense_int8": row(trained.report),
                    "rows": rows,
                }
            )


def row(report: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a build's final file."""
    final = report["candidates"]["final"]
    found = report["clusters"].values()
    return {
        **{key: final[key] for key in ("metric", "size_bytes", "size_gzip_bytes", "sparsity")},
        "distinct": max((entry["distinct"] for entry in found), default=None),
        "distinct_per_channel": max((entry["distinct_per_channel"] for entry in found), default=None),
    }


# overhead


def overhead(steps: int, repeats: int) -> dict[str, Any]:
    """Seconds of a training step of every kind, and what the methods take more than training without them, as a share."""
    from edgeprune import registry
    from edgeprune.keras import keras

    keras.utils.set_random_seed(0)
    model = registry.module("models", "resnet8").build()
    models = _kinds(model, steps, repeats + 1)
    best = training_steps.fastest(models, steps, repeats, dict.fromkeys(models, _begin))
    pairs = {"cluster": "float", "cqat": "qat", "prune_while_qat": "qat"}
    return {
        "model": "resnet8",
        "batch": training_steps.BATCH,
        "steps": steps,
        "repeats": repeats,
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "step": {name: each.milliseconds() for name, each in best.items()},
        "more": {name: best[name].more_than(best[plain]) for name, plain in pairs.items()},
    }


def _begin(model: Any, _: Any) -> None:
    """Where a model is pruned while it trains, its first step is the next."""
    from edgeprune.keras import quantization_pruning

    for _, variables in quantization_pruning.pruned(model).values():
        variables["step"].assign(0)


def _kinds(model: Any, steps: int, turns: int) -> dict[str, Any]:
    """The network as every kind of training sees it; masks are updated once in every turn, far more often than in a stage."""
    from edgeprune.keras import clustering, graph, preparation, pruning, quantization, quantization_pruning

    prepared = preparation.prepare(model).model
    codebook = clustering.Codebook(16)
    plans = clustering.plan(prepared, codebook)
    wrapped = clustering.wrap(prepared, plans, codebook)
    clustered = clustering.strip(wrapped, prepared)
    shared = {plan.name: plan.scope for plan in plans if plan.reason is None}
    ramp = pruning.Ramp("polynomial", 0.0, 0.8, 0.0, 1.0, frequency=steps)
    pattern = pruning.Pattern()
    how = quantization_pruning.ramped(pruning.plan(prepared, pattern), pattern, ramp, steps * turns)
    return {
        "float": graph.rebuild(prepared),
        "cluster": wrapped,
        "qat": quantization.quantize(prepared, False),
        "cqat": quantization.quantize(clustered, False, shared=shared),
        "prune_while_qat": quantization.quantize(prepared, False, pruning=how),
    }


if __name__ == "__main__":
    main()
