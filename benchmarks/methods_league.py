"""The league of methods on two networks: LeNet-5 on MNIST, ResNet-8 on CIFAR-10.

    python benchmarks/methods_league.py mnist.npz cifar10.npz

Every method of `edgeprune list methods`, by `edgeprune bench methods`: equal epochs in all, equal shares to go, on the same
samples, drawn once from the files. Writes benchmarks/results/methods.json; what is there already is not done again, so a run that
was killed goes on, and further methods are added.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from subset import subset

from edgeprune import bench_live, bench_run, files

RESULTS = Path(__file__).parent / "results" / "methods.json"
WORK = Path(__file__).parents[1] / "build" / "methods_league"


class League(NamedTuple):
    """One network's terms.

    Attributes:
        model: a name of ``edgeprune list models``.
        epochs: of every method in all.
        shares: that are asked to go.
        seeds: how often each is built.
        train, test: samples that are drawn of each split.
        overrides: of every recipe.
    """

    model: str
    epochs: int
    shares: tuple[float, ...]
    seeds: tuple[int, ...]
    train: int
    test: int
    overrides: Mapping[str, Any]


QUICK = {"stages.profile.samples": 16, "stages.profile.count": False}  # latencies from shapes
LEAGUES = {
    "LeNet-5, MNIST": League("lenet5", 10, (0.9, 0.98), (0, 1, 2), 2_000, 4_000, QUICK),
    "ResNet-8, CIFAR-10": League(
        "resnet8", 10, (0.5, 0.8), (0,), 1_500, 1_500, {**QUICK, "stages.convert.calibration_samples": 64}
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs=len(LEAGUES), help="npz with x_train, y_train, x_test, y_test, one per network")
    parser.add_argument("--networks", default=";".join(LEAGUES), help="separated by ;")
    parser.add_argument("--methods", help="names with commas between them; default: all")
    parser.add_argument("--epochs", type=int, help="in the place of the network's own")
    parser.add_argument("--jobs", type=int, default=1, help="builds side by side")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=WORK, help="folder that keeps the builds")
    arguments = parser.parse_args()
    sources = dict(zip(LEAGUES, arguments.data, strict=True))
    for name in arguments.networks.split(";"):
        terms = LEAGUES[name]
        _, result = bench_run.run(
            terms.model,
            str(subset(Path(sources[name]), terms.train, terms.test, arguments.work)),
            epochs=arguments.epochs or terms.epochs,
            seeds=terms.seeds,
            shares=terms.shares,
            methods=arguments.methods.split(",") if arguments.methods else None,
            jobs=arguments.jobs,
            out=arguments.work / terms.model,
            overrides=terms.overrides,
            display=bench_live.Board(Console(highlight=False)),
        )
        record = (
            json.loads(arguments.results.read_text(encoding="utf-8")) if arguments.results.exists() else {"leagues": {}}
        )
        record["leagues"][name] = {**result, "data": Path(sources[name]).name, "train": terms.train, "test": terms.test}
        files.write_text_atomic(arguments.results, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
