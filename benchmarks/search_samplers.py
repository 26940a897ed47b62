"""Every sampler of `edgeprune list samplers` on equal terms: hypervolume at equal numbers of trials; what is found against a uniform width.

    python benchmarks/search_samplers.py mnist.npz cifar10.npz

Three phases. ``volume``: LeNet-5 on MNIST, ResNet-8 and the wide ResNet-8 on CIFAR-10 are searched by every sampler with several seeds, by
the proxy alone and without giving anybody up early, so that a trial is the same whoever asks for it (and is evaluated once: its
drop is kept in WORK). The share of the box that the front dominates is noted after 25, 50, 100 and 200 trials, as far as they go.
``limit``: the same under one limit, half the latency of the uncut network (halfway to the smallest where that leaves too little); the
least drop is noted. ``trained``: at that limit, the candidate that a sampler finds with the least drop and the uniformly slimmed
network, both trained as long. A float network is trained once per network.

Writes a row per cell to benchmarks/results/search_samplers.json as it comes; what is there is not done again, so a run that was killed
goes on. ``--phases``, ``--networks``, ``--samplers``, ``--seeds`` choose a part, ``--minutes`` begins no cell after a while. A
super-net's judge is another one than the proxy: its sampler is compared by ``trained`` alone.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune import (
    api,
    files,
    forecast,
    recipe,
    registry,
    search,
    search_recipes,
    search_space,
    search_study,
    shrinking,
)
from edgeprune import target as targets
from edgeprune.progress import Silent
from edgeprune.search_space import LATENCY, Candidate, Space, Told

RESULTS = Path(__file__).parent / "results" / "search_samplers.json"
WORK = Path(__file__).parents[1] / "build" / "search_samplers"
TARGET = "rpi4"
CRITERIA = ("fisher", "l2")  # as `edgeprune search` has them
AT = (25, 50, 100, 200)  # trials after which the hypervolume is noted
HALF = 0.5  # of the uncut network's latency
ROOM = 0.2  # of what can be cut at all that this leaves at least; else the limit is halfway between the smallest and the uncut network
PHASES = ("volume", "limit", "trained")


class Network(NamedTuple):
    """What is searched, and how it and what is found are trained.

    Attributes:
        model: a name of ``edgeprune list models``.
        data: which of the arguments.
        limit: training samples.
        epochs, tune: of the float network, of what was cut.
        multiple: of channels; None: the target's, of which a network as small as LeNet-5 hardly has a step.
    """

    model: str
    data: str
    limit: int
    epochs: int
    tune: int
    multiple: int | None = None


NETWORKS = {
    "LeNet-5, MNIST": Network("lenet5", "mnist", 4_000, 8, 4, 1),
    "ResNet-8, CIFAR-10": Network("resnet8", "cifar10", 5_000, 12, 6),
    "wide ResNet-8, CIFAR-10": Network("resnet8-wide", "cifar10", 5_000, 12, 6),
}


class Cell(NamedTuple):
    """One search, or one network that is trained."""

    phase: str
    network: str
    sampler: str
    seed: int


class Base(NamedTuple):
    """A trained network: its run folder, what judges its candidates, and their space."""

    run: Path
    subject: Any
    proxy: Any
    space: Space
    box: search.Box
    drops: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mnist", type=Path, help="npz with x_train, y_train, x_test, y_test")
    parser.add_argument("cifar10", type=Path, help="npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--phases", default=",".join(PHASES))
    parser.add_argument("--networks", default=";".join(NETWORKS), help="separated by ;")
    parser.add_argument("--samplers", default=",".join(registry.names("samplers")))
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--samples", type=int, default=1024, help="that the proxy judges by")
    parser.add_argument("--limit", type=int, help="training samples of every network, for a try")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=WORK)
    given = parser.parse_args()
    record = json.loads(given.results.read_text()) if given.results.exists() else {"cells": []}
    done = {Cell(*(row[key] for key in Cell._fields)) for row in record["cells"]}
    began, bases = time.monotonic(), {}
    for cell in cells(given):
        if cell in done:
            continue
        if given.minutes and time.monotonic() - began > 60 * given.minutes:
            print("The rest is left for another run.")
            break
        if cell.network not in bases:
            bases = {cell.network: _base(cell.network, given)}  # one at a time is held
        started = time.monotonic()
        base = bases[cell.network]
        row = {"volume": _volume, "limit": _limit, "trained": _trained}[cell.phase](cell, base, given)
        record["cells"].append({**cell._asdict(), **row, "seconds": round(time.monotonic() - started, 1)})
        given.results.parent.mkdir(parents=True, exist_ok=True)
        files.write_text_atomic(given.results, json.dumps(record, indent=1) + "\n")
        print(json.dumps(record["cells"][-1]), flush=True)


def cells(given: argparse.Namespace) -> Iterator[Cell]:
    """All cells in the order in which they are done: one network after the other, the cheapest first."""
    for phase, network, seed, sampler in product(
        given.phases.split(","),
        given.networks.split(";"),
        [int(word) for word in given.seeds.split(",")],
        given.samplers.split(","),
    ):
        if phase == "trained" or search_study.judge(search_study.sampler(sampler)) == "cut":
            yield Cell(phase, network, sampler, seed)


# Networks


def _base(name: str, given: argparse.Namespace) -> Base:
    """The trained network, trained if it never was."""
    from edgeprune.keras import candidates, trials

    network = NETWORKS[name]
    source = str(getattr(given, network.data))
    run = given.work / network.model
    limit = given.limit or network.limit
    plain = {
        "name": "float",
        "data": {"limit": limit, "validation": 0.2},
        "stages": {"train": {"epochs": network.epochs, "batch_size": 64, "learning_rate": 0.003}},
    }
    how = recipe.load(plain)
    if not (run / "stages" / "1-train").exists():
        api.build(network.model, source, target=TARGET, recipe=how.resolved(), out=run, force=True, progress=Silent())
    facts = targets.load(registry.file("targets", TARGET))
    milliseconds = forecast.milliseconds(forecast.board(facts))
    file = str(run / "stages" / "1-train" / "model.keras")
    subject = trials.load(file, source, how, 0, given.samples, False, Silent(), milliseconds)
    space = candidates.space(
        subject,
        milliseconds,
        multiple=network.multiple or shrinking.stair(facts.channel_multiple),
        choices={search_space.CRITERION: CRITERIA},
    )
    proxy = candidates.Proxy(subject, space)
    drops = given.work / f"{network.model}-{given.samples}.jsonl"
    box = search.box(space, _drop(proxy, drops, {}, space.smallest()))
    return Base(run, subject, proxy, space, box, drops)


def _known(path: Path) -> dict[str, float]:
    """Drops that were found before, by candidate."""
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(json.loads(line) for line in lines if line.endswith("]"))


def _drop(proxy: Any, path: Path, known: dict[str, float], candidate: Candidate) -> float:
    key = json.dumps(dict(candidate), sort_keys=True)
    if key not in known:
        known[key] = float(proxy(candidate).drop)
        with path.open("a") as stream:
            stream.write(json.dumps([key, known[key]]) + "\n")
    return known[key]


def _searched(sampler: str, space: Space, base: Base, trials: int, seed: int) -> tuple[list[Told], float]:
    """So many trials, and how many seconds the sampler took for them."""
    module, known, history, took = search_study.sampler(sampler), _known(base.drops), [], 0.0
    for number in range(trials):
        started = time.monotonic()
        proposal = search_study.propose(module, space, history, search_study.trial_seed(seed, number))
        took += time.monotonic() - started
        drop = _drop(base.proxy, base.drops, known, proposal.candidate)
        notes = json.loads(json.dumps(dict(proposal.notes)))
        history.append(Told(dict(proposal.candidate), drop, space.costs(proposal.candidate), notes))
    return history, took


def _volume(cell: Cell, base: Base, given: argparse.Namespace) -> dict[str, Any]:
    trials = given.trials
    history, took = _searched(cell.sampler, base.space, base, trials, cell.seed)
    points = [search.values(base.box.names, told.drop, told.costs) for told in history]
    return {
        "volume": {str(at): round(base.box.volume(points[:at]), 6) for at in _counts(trials)},
        "front": len(search.front(points)),
        "different": len({json.dumps(told.candidate, sort_keys=True) for told in history}),
        "sampler_ms": round(1000 * took / trials, 2),
        "samples": given.samples,
    }


def _counts(trials: int) -> list[int]:
    """After how many trials something is noted."""
    return sorted({*(at for at in AT if at <= trials), trials})


def _bounded(space: Space) -> Space:
    """The space with a limit of latency."""
    whole, least = (space.costs(one)[LATENCY] for one in (space.whole(), space.smallest()))
    limit = HALF * whole if HALF * whole > least + ROOM * (whole - least) else (least + whole) / 2
    return search_space.Space(space.knobs, space.choices, space.costs, {LATENCY: limit}, space.scores)


def _limit(cell: Cell, base: Base, given: argparse.Namespace) -> dict[str, Any]:
    """The least drop of what keeps the limit, after so many trials; null where nothing did yet."""
    bounded = _bounded(base.space)
    history, took = _searched(cell.sampler, bounded, base, given.trials, cell.seed)
    limit = bounded.limits[LATENCY]
    drops = [told.drop if told.costs[LATENCY] <= limit else math.inf for told in history]
    least = {at: min(drops[:at]) for at in _counts(given.trials)}
    return {
        "limit_ms": limit,
        "whole_ms": base.space.costs(base.space.whole())[LATENCY],
        "least": {str(at): round(drop, 6) if math.isfinite(drop) else None for at, drop in least.items()},
        "sampler_ms": round(1000 * took / given.trials, 2),
        "samples": given.samples,
    }


def _trained(cell: Cell, base: Base, given: argparse.Namespace) -> dict[str, Any]:
    """The best candidate of a search under a limit of latency, trained; chosen without a look at the test split."""
    space, network, bounded = base.space, NETWORKS[cell.network], _bounded(base.space)
    proxy = base.proxy
    if search_study.judge(search_study.sampler(cell.sampler)) == "supernet":
        from edgeprune.keras import supernet

        proxy = supernet.judge(
            base.subject, bounded, cell.seed, given.work / f"{network.model}-supernet-{cell.seed}", Silent()
        )
    drops = (
        base.drops
        if proxy is base.proxy
        else given.work / f"{network.model}-{given.samples}-supernet-{cell.seed}.jsonl"
    )
    judged = base._replace(proxy=proxy, drops=drops)
    count = 1 if cell.sampler == "uniform" else given.trials
    history, _ = _searched(cell.sampler, bounded, judged, count, cell.seed)
    best = min((told for told in history if told.costs[LATENCY] <= bounded.limits[LATENCY]), key=lambda told: told.drop)
    run = given.work / "trained" / f"{network.model}-{cell.sampler}-{cell.seed}"
    how = _recipe(best.candidate, bounded, network, cell.seed, given)
    file, source = str(base.run / "stages" / "1-train" / "model.keras"), str(getattr(given, network.data))
    report = api.build(file, source, target=TARGET, recipe=how, out=run, force=True, progress=Silent()).report
    final = report["candidates"]["final"]
    return {
        "limit_ms": bounded.limits[LATENCY],
        "whole_ms": space.costs(space.whole())[LATENCY],
        "proxy_drop": best.drop,
        "latency_ms": best.costs[LATENCY],
        "file_latency": final["latency"],
        "test": final["metric"],
        "float_test": report["candidates"]["float"]["metric"],
        "size_bytes": final["size_bytes"],
        "candidate": dict(best.candidate),
        "trials": count,
        "samples": given.samples,
    }


def _recipe(
    candidate: Candidate, space: Space, network: Network, seed: int, given: argparse.Namespace
) -> Mapping[str, Any]:
    """As `shrink50` trains, for fewer epochs; the same for all samplers."""
    changes = {
        "data": {"limit": given.limit or network.limit, "validation": 0.2},
        "stages.shrink.epochs": network.tune,
        "stages.shrink.learning_rate": 0.001,
        "stages.shrink.batch_size": 64,
        "stages.quantize.epochs": 1,
        "stages.profile.count": False,
    }
    made = search_recipes.of(candidate, space, recipe.load("shrink50", changes), f"seed-{seed}")
    return {**made, "seed": seed}


if __name__ == "__main__":
    main()
