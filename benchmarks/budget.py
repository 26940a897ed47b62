"""Builds that budgets drive: half the dense int8 latency of a wide ResNet for at most 0.01 of its accuracy, and the demo.

    python benchmarks/budget.py cifar10.npz            the ResNet that is 32-64-128 wide, on CIFAR-10
    python benchmarks/budget.py --demo                 five budgets on the built-in demo (20 minutes)

The latency of the dense int8 model is predicted from an untrained one first: it does not depend on what weights are. Writes
benchmarks/results/budget.json; a build that is finished in the work folder is only read, one that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeprune import api, files, forecast, profiling, registry, report
from edgeprune import recipe as recipes
from edgeprune import target as targets
from edgeprune.keras import budget_model

RESULTS = Path(__file__).parent / "results" / "budget.json"
WORK = Path(__file__).parents[1] / "build" / "budget"
TARGET, WIDE = "rpi4", "resnet8-wide"
SHARE, DROP = 0.5, 0.01
BRIEF = {f"stages.{stage}.epochs": 1 for stage in ("shrink", "prune", "quantize")} | {"stages.train.epochs": 12}
LIMIT = 10_000  # of CIFAR-10's samples, validation included: all of them take two cores most of a day
RECIPE = "shrink50"  # without zeros, which the target's own recipe lays: they make nothing faster, and cost 0.01 to 0.02 here
CIFAR = {
    "stages.train.epochs": 12,
    "stages.shrink.epochs": 8,
    "stages.quantize.epochs": 2,
    "stages.quantize.distill": {"teacher": "float"},  # with so few images, training on without one loses what is left
}


class Case(NamedTuple):
    """A budget, and what else is changed in a recipe; None: the target's own."""

    limits: Mapping[str, float]
    overrides: Mapping[str, Any] = {}
    recipe: str | None = None


DEMO = {
    "half-macs": Case({"max_macs": 267_000, "max_drop": 0.01}),
    "latency": Case({"max_latency_ms": 0.775, "max_drop": 0.01}),
    "size-and-memory": Case({"max_size_kib": 14, "max_arena_kib": 8, "max_drop": 0.02}),
    "drop-alone": Case({"max_drop": 0.01}),
    "too-much": Case({"max_macs": 98_000, "max_drop": 0}, BRIEF),  # with too little training, so that it is missed
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", help="CIFAR-10 as npz: x_train, y_train, x_test, y_test")
    parser.add_argument("--demo", action="store_true", help="the demo in its place, which brings its own data")
    parser.add_argument("--model", default=WIDE, help="a name of `edgeprune list models`")
    parser.add_argument("--share", type=float, default=SHARE, help="of the dense int8 latency, 0..1")
    parser.add_argument("--max-drop", type=float, default=DROP)
    parser.add_argument("--attempts", type=int, help="default: the recipe's")
    parser.add_argument("--limit", type=int, default=LIMIT, help="samples to train on, validation included")
    parser.add_argument("--epochs", type=int, help="of every stage that trains, in the place of the benchmark's")
    parser.add_argument("--only", help="one of the demo's cases")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=WORK, help="folder that keeps the builds")
    arguments = parser.parse_args()
    if not arguments.demo and not arguments.data:
        parser.error("give the data, or --demo")
    if arguments.demo:
        for name, case in DEMO.items():
            if arguments.only in (None, name):
                _keep(arguments, "demo", name, _built(arguments, name, case, None, None))
        return 0
    dense = dense_latency(arguments.model)
    overrides = {"data.limit": arguments.limit, **CIFAR}
    case = Case(
        {"max_latency_ms": round(arguments.share * dense, 4), "max_drop": arguments.max_drop}, overrides, RECIPE
    )
    print(f"{arguments.model}: dense int8 {dense:.3f} ms on {TARGET}, at most {case.limits['max_latency_ms']:g} ms")
    found = _built(arguments, arguments.model, case, arguments.model, arguments.data)
    _keep(arguments, "cifar10", arguments.model, {"share": arguments.share, "dense_ms": dense, **found})
    return 0


def dense_latency(name: str) -> float:
    """What the model takes in int8, uncut: of the target's prediction, ms."""
    facts = targets.load(registry.file("targets", TARGET))
    model = registry.module("models", name).build()
    samples = np.random.default_rng(0).uniform(0, 255, (8, *model.input_shape[1:])).astype("float32")
    with tempfile.TemporaryDirectory() as folder:
        path = budget_model.converted(model, {}, samples, Path(folder), 600)
        device = profiling.backend(targets.connection(facts))
        latency = forecast.forecast(path, forecast.board(facts), device)["latency"]
    return float(latency["ms"])


def _built(arguments: argparse.Namespace, name: str, case: Case, model: str | None, data: str | None) -> dict[str, Any]:
    """The figures of a build; one that is there is read, or goes on."""
    folder, began = arguments.work / name, time.monotonic()
    there = (folder / api.RUN_FILE).exists()
    if not (folder / report.JSON_NAME).exists():
        overrides = {**case.overrides, **({} if arguments.epochs is None else _epochs(case, arguments.epochs))}
        given: dict[str, Any] = {"resume": True} if there else {"overrides": overrides, **case.limits}
        more = {} if there else {"attempts": arguments.attempts, "recipe": case.recipe}
        api.build(None if there else model, None if there else data, out=folder, **given, **more)
    found = _figures(report.load(folder))
    return {**found, "seconds": None if there else round(time.monotonic() - began, 1)}


def _epochs(case: Case, count: int) -> dict[str, int]:
    """All stages of the recipe that train."""
    stages = recipes.load(case.recipe or TARGET).stages
    return {f"stages.{spec.label}.epochs": count for spec in stages if hasattr(spec.options, "epochs")}


def _figures(made: Mapping[str, Any]) -> dict[str, Any]:
    """Of a report, what the table shows."""
    told = ("metric", "size_bytes", "macs")
    candidates = {
        role: {**{key: given.get(key) for key in told}, "ms": given["latency"]["ms"]}
        for role, given in made["candidates"].items()
    }
    keys = ("number", "same_as", "why", "costs", "metric", "drop", "drop_error", "met", "chosen", "kept", "note")
    return {
        "target": made["target"],
        "metric": made["metric"]["name"],
        "epochs": {name: given["epochs"] for name, given in made["recipe"]["stages"].items() if "epochs" in given},
        "candidates": candidates,
        "budget": made["budget"],
        "verdict": made["budgeting"]["verdict"],
        "validation_samples": made["budgeting"]["samples"],
        "attempts": [{key: one[key] for key in keys} for one in made["attempts"]],
    }


def _keep(arguments: argparse.Namespace, group: str, name: str, found: Mapping[str, Any]) -> None:
    path: Path = arguments.results
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    earlier = record.get(group, {}).get(name, {}).get("seconds")
    record.setdefault(group, {})[name] = {**found, "seconds": found["seconds"] or earlier}
    files.write_text_atomic(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(f"{name}: {found['verdict']}")


if __name__ == "__main__":
    raise SystemExit(main())
