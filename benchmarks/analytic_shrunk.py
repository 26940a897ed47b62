"""The analytic latency model on networks that were shrunk: cycles from shapes against cycles that were counted.

    python benchmarks/analytic_shrunk.py [--networks lenet5 vgg-small resnet8 resnet8-wide] [--ratios 0 0.5 0.75]

Each network of `edgeprune list models` loses the same share of every group of channels, as in the league of criteria (any
count of channels) and in the steps that pay on the target; which channels go does not matter to the cycles, so the weights
are random. It is quantized after training, counted with the int8 kernels of both runtimes, and priced from its shapes with
the prices that `analytic_fit.py` has fitted on other layers. Writes benchmarks/results/analytic_shrunk.json; counts are
kept in the cache, so that nothing is counted twice.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import latency_counts
import latency_rows
import numpy as np

from edgeprune import analytic, cache, calibration, files, forecast, registry, shrinking, tflite
from edgeprune import target as targets

RESULTS = Path(__file__).parent / "results" / "analytic_shrunk.json"
NETWORKS = {"lenet5": {}, "vgg-small": {"width": 8}, "resnet8": {}, "resnet8-wide": {}, "digits-resnet": {}}
RATIOS = (0.0, 0.25, 0.5, 0.75)
SAMPLES = 8  # of noise, for the ranges


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS, help="shares of every group that go, 0..1")
    parser.add_argument("--target", default="rpi4")
    parser.add_argument("--folder", type=Path, default=cache.folder("latency"), help="for models and counts")
    parser.add_argument("--jobs", type=int, default=2, help="files that are counted at once")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    target = targets.load(registry.file("targets", arguments.target))
    made = {
        name: path
        for word in arguments.networks
        for name, path in _files(word, arguments.ratios, target, arguments.folder / "shrunk").items()
    }
    rows = [row for kernels in latency_rows.RUNTIMES for row in _rows(made, kernels, target, arguments)]
    errors = {}
    for kernels in latency_rows.RUNTIMES:
        pairs = np.array([[row["from_shapes"], row["counted"]] for row in rows if row["kernels"] == kernels], float)
        errors[f"int8 {kernels}"] = calibration.judge(pairs[:, 0], pairs[:, 1])._asdict()
        print(kernels, errors[f"int8 {kernels}"])
    record = {"what": (__doc__ or "").splitlines()[0], "target": target.name, "errors": errors, "networks": rows}
    files.write_text_atomic(arguments.results, json.dumps(record, indent=1) + "\n")
    return 0


def _rows(made: dict[str, Path], kernels: str, target: targets.Target, arguments: Any) -> list[dict[str, Any]]:
    """Every file's cycles with the kernels of one runtime."""
    prices = forecast.board(target).prices
    if prices is None or not prices.known(kernels, "int8"):
        raise SystemExit(f"nothing is fitted for {kernels} on {target.cpu.core}: benchmarks/analytic_fit.py does")
    package, resolver = latency_rows.RUNTIMES[kernels]
    jobs = [latency_counts.Job(path, package, resolver) for path in made.values()]
    counted = latency_counts.counts(jobs, arguments.folder / "counts", target, arguments.jobs)
    rows = []
    for name, path, counts in zip(made, made.values(), counted, strict=True):
        own = analytic.cycles(analytic.layers(tflite.read(path)), prices.prices[kernels]["int8"])
        rows.append(
            {"name": name, "kernels": kernels, "counted": round(counts["cycles"]), "from_shapes": round(sum(own))}
        )
    return rows


def _files(word: str, ratios: list[float], target: targets.Target, folder: Path) -> dict[str, Path]:
    """What is shrunk -> its int8 file; cuts that come to the same are made once."""
    from edgeprune.keras import costs, keras, surgery

    keras.utils.set_random_seed(0)
    model = registry.module("models", word).build(**NETWORKS.get(word, {}))
    coupling = costs.Meter(model).coupling
    whole = shrinking.left_whole(coupling)
    groups = [group for group in coupling.groups if whole[group.name] is None]
    random = np.random.Generator(np.random.PCG64(0))
    scores = {group.name: random.uniform(size=group.units) for group in groups}
    found: dict[str, Path] = {}
    seen: set[str] = set()
    for steps, multiples in (("any count", 1), (f"steps of {target.name}", shrinking.stair(target.channel_multiple))):
        rules = shrinking.Rules(
            {group.name: group.units for group in groups},
            multiples=multiples,
            steps={group.name: group.step for group in groups},
        )
        for ratio in ratios:
            cut = rules.cut(scores, ratio)
            shape = json.dumps({name: len(kept) for name, kept in cut.items()})
            if shape not in seen:
                seen.add(shape)
                name = f"{word} without {ratio:.0%} of its channels, {steps}" if cut else f"{word}, whole"
                small = surgery.shrink(model, cut) if cut else model
                found[name] = path = folder / f"{word}-{ratio:g}-{steps.replace(' ', '-')}.tflite"
                if not path.exists():
                    _convert(small, path)
    return found


def _convert(model: Any, path: Path) -> None:
    """The int8 file, with the ranges that noise has."""
    from edgeprune.keras import conversion, export, preparation

    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.Generator(np.random.PCG64(0)).uniform(0, 1, (SAMPLES, *model.input_shape[1:])).astype(np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        exported = export.save(preparation.prepare(model).model, Path(scratch) / "exported")
        conversion.convert(exported, path, representative=noise)


if __name__ == "__main__":
    sys.exit(main())
