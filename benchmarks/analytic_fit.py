"""Fit the analytic latency model on what the emulator counts, and judge it on whole networks.

    python benchmarks/analytic_fit.py --table rpi4_latency.csv

Chains of layers (``analytic_layers.py``) are counted op by op with the kernels of both runtimes, int8 and float. For every
kind of op that gives examples enough, prices and the tile of its kernel are chosen: of all tiles on a grid the one whose
non-negative prices fit best. A kind's error is that of each chain as priced by all the others. Networks are not among the
examples: those of the table are what it is judged on, cycles against counted cycles. Writes
``devices/latency/CORE.analytic.yaml`` and ``benchmarks/results/analytic.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import analytic_layers
import latency_counts
import latency_rows
import numpy as np

from edgeprune import analytic, cache, calibration, files, registry, tflite, yaml_files
from edgeprune import target as targets

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "analytic.json"
CONSTANTS = HERE.parent / "devices" / "latency"
HEADER = "# Written by benchmarks/analytic_fit.py; run it again to change anything here.\n"
FEWEST = 4  # layers of a kind, to be priced apart
TILES = {"positions": (1, 2, 4, 6, 8), "out": (1, 4, 8, 16), "in": (1, 2, 4, 8, 16), "each_tap": (False, True)}


class Example(NamedTuple):
    """A counted layer, and the chain that it stands in."""

    layer: analytic.Layer
    cycles: float
    chain: str


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", type=Path, required=True, help="published latencies, for their networks")
    parser.add_argument("--target", default="rpi4")
    parser.add_argument("--folder", type=Path, default=cache.folder("latency"), help="for models and counts")
    parser.add_argument("--jobs", type=int, default=2, help="files that are counted at once")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    target = targets.load(registry.file("targets", arguments.target))
    examples = _examples(arguments, target)
    rows = latency_rows.read(arguments.table)
    fitted = analytic.Analytic(
        core=str(target.cpu.core),
        written_by="benchmarks/analytic_fit.py",
        prices={kernels: {kind: prices(own) for kind, own in found.items()} for kernels, found in examples.items()},
    )
    where = CONSTANTS / f"{target.cpu.core}.analytic.yaml"
    files.write_text_atomic(where, HEADER + yaml_files.dump(fitted.model_dump(mode="json", by_alias=True)))
    record = {"what": (__doc__ or "").splitlines()[0], **_judged(rows, fitted, arguments, target)}
    files.write_text_atomic(arguments.results, json.dumps(record, indent=1) + "\n")
    for name, error in record["errors"].items():
        print(name, error)
    return 0


def _examples(arguments: argparse.Namespace, target: targets.Target) -> dict[str, dict[str, list[Example]]]:
    """Kernels -> precision -> counted layers."""
    paths = analytic_layers.files(arguments.folder / "models")
    found: dict[str, dict[str, list[Example]]] = {}
    for kernels, (package, resolver) in latency_rows.RUNTIMES.items():
        jobs = [latency_counts.Job(path, package, resolver, per_op=True) for path in paths.values()]
        counted = latency_counts.taken(jobs, arguments.folder / "counts", target, arguments.jobs)
        for job, counts in counted:
            precision = job.file.stem.rpartition("-")[2]
            layers = analytic.layers(tflite.read(job.file))
            pairs = zip(layers, counts["ops"], strict=True)
            own = [Example(layer, op["cycles"], job.file.stem) for layer, op in pairs if op["alone"]]
            found.setdefault(kernels, {}).setdefault(precision, []).extend(own)
    return found


def prices(examples: Sequence[Example]) -> dict[str, analytic.Prices]:
    """Prices for every kind of op with examples enough, and for all other ops by what is known of those without weights."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        if example.cycles > 0:
            groups.setdefault(example.layer.kind, []).append(example)
            if not example.layer.weights:
                groups.setdefault(analytic.OTHER, []).append(example)
    return {kind: _prices(own) for kind, own in sorted(groups.items()) if len(own) >= FEWEST or kind == analytic.OTHER}


def _prices(examples: Sequence[Example]) -> analytic.Prices:
    """The tile and the prices that fit a kind best, and how far they are off for chains that they were not fitted on."""
    cycles = np.array([example.cycles for example in examples])
    best: tuple[float, analytic.Lanes, np.ndarray, np.ndarray] | None = None
    for lanes in _tiles([example.layer for example in examples]):
        features = np.array([analytic.units(example.layer, lanes) for example in examples])
        constants = calibration.fit(features, cycles)
        loss = float(np.sum((features @ constants / cycles - 1) ** 2))
        if best is None or loss < best[0] * (1 - 1e-6):  # of equal ones the smallest tile
            best = loss, lanes, constants, features
    assert best is not None  # noqa: S101 - there is always the tile of ones
    _, lanes, constants, features = best
    chains = [example.chain for example in examples]
    judged = calibration.leave_one_out(features, cycles, chains) if len(set(chains)) > 1 else features @ constants
    error = float(100 * np.abs(judged / cycles - 1).mean())
    found = {name: float(f"{value:.4g}") for name, value in zip(analytic.PARTS, constants, strict=True) if value > 0}
    return analytic.Prices(lanes=lanes, cycles=found, layers=len(examples), error_pct=round(error, 2))  # type: ignore[arg-type]


def _tiles(layers: Sequence[analytic.Layer]) -> Iterator[analytic.Lanes]:
    """The tiles that make a difference to these layers, small ones first."""
    grid = dict(TILES)
    if not any(layer.weights for layer in layers):
        grid = dict.fromkeys(TILES, (1,)) | {"each_tap": (False,)}
    elif all(layer.op == "DEPTHWISE_CONV_2D" for layer in layers):
        grid |= {"positions": (1,), "in": (1,), "each_tap": (False,)}
    elif all(layer.kernel[1:3] == (1, 1) for layer in layers):
        grid |= {"each_tap": (False,)}
    for values in product(*grid.values()):
        yield analytic.Lanes(**dict(zip(grid, values, strict=True)))  # type: ignore[arg-type]


def _judged(
    rows: Sequence[latency_rows.Row], fitted: analytic.Analytic, arguments: argparse.Namespace, target: targets.Target
) -> dict[str, Any]:
    """Cycles of whole networks, from shapes against counted."""
    found: list[dict[str, Any]] = []
    jobs = [latency_counts.Job(arguments.folder / "models" / row.file, *row.runtime, caches=True) for row in rows]
    counted = latency_counts.counts(jobs, arguments.folder / "counts", target, arguments.jobs)
    for row, job, counts in zip(rows, jobs, counted, strict=True):
        layers = analytic.layers(tflite.read(job.file))
        own = analytic.cycles(layers, fitted.prices[row.kernels][row.precision])  # type: ignore[index]
        found.append({"name": row.name, "counted": round(counts["cycles"]), "from_shapes": round(sum(own))})
    errors = {}
    for kind in sorted({f"{row.precision} {row.kernels}" for row in rows}):
        own = [entry for entry, row in zip(found, rows, strict=True) if f"{row.precision} {row.kernels}" == kind]
        pairs = np.array([[entry["from_shapes"], entry["counted"]] for entry in own], float)
        errors[kind] = calibration.judge(pairs[:, 0], pairs[:, 1])._asdict()
    return {"errors": errors, "networks": found}


if __name__ == "__main__":
    sys.exit(main())
