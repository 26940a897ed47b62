"""Removing channels changes nothing but the cost: fourteen networks of keras.applications and 300 random graphs.

    python benchmarks/surgery_proof.py
    python benchmarks/surgery_proof.py --apps MobileNet VGG16 --graphs 0 --pairs
    python benchmarks/surgery_proof.py --apps --graphs 1000 --pairs

Each network is made as in zoo.py (Keras 3, random weights, 96x96x3, 10 classes), taken in from its `.keras` file, and given
biases, scales and offsets that are not all 0 or 1, so that a wrong index shows. Then it is cut at random: half of every
group that can go; any number of every other group; and as the shrink stage cuts for a Pi 4, in the steps that pay there. Of
each cut the masked and the shrunk model are compared on seeded inputs, and the multiply-accumulates are counted in both.
Random graphs are those of tests/random_graphs.py; there, noise in the channels that go must not move the masked model
either. Where the emulator can count, the instructions of one inference of six networks are counted before and after a cut
in the Pi 4's steps, as int8 files. Writes benchmarks/results/surgery_proof.json after every network and every ten graphs;
what is in it already is not done again (--force: it is).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import zoo

from edgeprune import channels, files, progress, registry, target
from edgeprune.devices import _counting
from edgeprune.keras import channel_graph, conversion, export, graph, inspect, intake, keras, surgery

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import random_graphs

RESULTS = Path(__file__).parent / "results" / "surgery_proof.json"
BOARD = "rpi4"
HALVES, PIECES, STEPS = "half of every group", "any part of every other group", f"steps of {BOARD}"
CUTS = {HALVES: random_graphs.halves, PIECES: random_graphs.pieces, STEPS: random_graphs.steps_of(BOARD)}
PLAN = ((HALVES, 0), (HALVES, 1), (PIECES, 2), (PIECES, 3), (STEPS, 4))  # cut and seed, for every network
PAIRS = ("MobileNet", "MobileNetV2", "ResNet50V2", "DenseNet121", "VGG16", "Xception")
STORED_EVERY = 10  # graphs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--apps", nargs="*", default=zoo.MODELS, choices=zoo.MODELS)
    parser.add_argument("--graphs", type=int, default=300)
    parser.add_argument("--pairs", nargs="*", default=PAIRS, choices=zoo.MODELS, help="whose instructions are counted")
    parser.add_argument("--force", action="store_true", help="do again what the results hold already")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    stored = json.loads(arguments.results.read_text(encoding="utf-8")) if arguments.results.exists() else {}
    record = {"what": __doc__.splitlines()[0], "input": [zoo.SIDE, zoo.SIDE, 3], "cpus": os.cpu_count(), **stored}
    if arguments.force:
        record = {key: value for key, value in record.items() if key not in ("apps", "graphs", "pairs")}
    record = {**record, "limit": random_graphs.EXACT}
    shown = progress.choose()
    _apps(record, arguments, shown)
    _graphs(record, arguments, shown)
    _pairs(record, arguments, shown)
    shown.close()
    return 0 if _holds(record) else 1


def _holds(record: dict[str, Any]) -> bool:
    parts = [*record.get("apps", {}).values(), *([record["graphs"]] if "graphs" in record else [])]
    slower = [row for row in record.get("pairs", {}).values() if row["instructions_after"] > row["instructions_before"]]
    return not slower and all(not (part["worst_excess"] or part["slower"] or part.get("failed")) for part in parts)


def _write(record: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    files.write_text_atomic(path, json.dumps(record, indent=2) + "\n")


# Networks of keras.applications


def _apps(record: dict[str, Any], arguments: argparse.Namespace, shown: progress.Progress) -> None:
    rows = record.setdefault("apps", {})
    for number, name in enumerate(arguments.apps, 1):
        shown.stage(name, number, len(arguments.apps))
        if name in rows:
            shown.done(_told(rows[name]), rows[name]["seconds"], resumed=True)
            continue
        rows[name] = _app(name, shown)
        _write(record, arguments.results)
        shown.done(_told(rows[name]), rows[name]["seconds"])


def _app(name: str, shown: progress.Progress) -> dict[str, Any]:
    """What was found of one network."""
    model = random_graphs.uneven(application(name))
    started = time.monotonic()
    coupling = channels.couple(channel_graph.describe(model))
    analysed = time.monotonic() - started
    proofs = []
    for number, (word, seed) in enumerate(PLAN):
        shown.step(number, len(PLAN), "cuts")
        cut = random_graphs.exact(coupling, CUTS[word](coupling, seed))
        began = time.monotonic()
        found = random_graphs.proof(model, coupling, cut)._asdict()
        proofs.append({"cut": word, "seed": seed, **found, "seconds": round(time.monotonic() - began, 1)})
    keras.backend.clear_session()
    gc.collect()
    free = [group for group in coupling.groups if group.cuttable]
    return {
        "layers": len(model.layers),
        "groups": len(coupling.groups),
        "cuttable": len(free),
        "exact": sum(not group.inexact for group in free),
        **_worst(proofs),
        "cuts": proofs,
        "analysis_seconds": round(analysed, 2),
        "seconds": round(time.monotonic() - started, 1),
    }


def _worst(proofs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "worst_difference": max(one["difference"] for one in proofs),
        "worst_excess": max(one["excess"] for one in proofs),
        "slower": sum(one["macs_after"] > one["macs_before"] for one in proofs),
    }


def _told(row: dict[str, Any]) -> str:
    words = "proven" if not row["worst_excess"] and not row["slower"] else "NOT PROVEN"
    return f"{row['cuttable']} of {row['groups']} groups can be cut, {words}, worst difference {row['worst_difference']:.1e}"


def application(name: str) -> Any:
    """A network of keras.applications as edgeprune takes it in, flat, with random weights and a signal that gets through."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        samples, _ = zoo._samples(work / "data.npz", argparse.Namespace(data=None))
        pixels = "pixels" if name.startswith(zoo.TAKES_PIXELS) else "unit"
        words = [name, str(zoo.SIDE), str(zoo.CLASSES), pixels, str(samples), "0", str(work / "model.keras")]
        subprocess.run([sys.executable, "-c", zoo.MAKE, *words], capture_output=True, check=True)
        return graph.flatten(intake.load(work / "model.keras"))


# Instructions of one inference, where the emulator can count them


def _pairs(record: dict[str, Any], arguments: argparse.Namespace, shown: progress.Progress) -> None:
    board = target.load(registry.file("targets", BOARD))
    reason = _counting.unavailable(board)
    if arguments.pairs and reason:
        shown.note(f"No instructions are counted: {reason}.")
        return
    rows = record.setdefault("pairs", {}) if arguments.pairs else {}
    for number, name in enumerate(arguments.pairs, 1):
        shown.stage(f"instructions of {name}", number, len(arguments.pairs))
        began = time.monotonic()
        done = name in rows
        if not done:
            rows[name] = _pair(random_graphs.uneven(application(name)), board)
            _write(record, arguments.results)
        told = f"{rows[name]['instructions_before']:,} -> {rows[name]['instructions_after']:,}"
        shown.done(told, time.monotonic() - began, resumed=done)


def _pair(model: Any, board: target.Target) -> dict[str, Any]:
    """The model uncut and cut in the board's steps, both quantized after training: what one inference executes there."""
    coupling = channels.couple(channel_graph.describe(model))
    small = surgery.shrink(model, CUTS[STEPS](coupling, 0))
    with tempfile.TemporaryDirectory() as folder:
        before, after = (_counted(one, Path(folder), board) for one in (model, small))
    return {
        "runtime": before.runtime,
        "core": before.core,
        "macs_before": sum(inspect.macs_by_layer(model).values()),
        "macs_after": sum(inspect.macs_by_layer(small).values()),
        "instructions_before": before.instructions,
        "instructions_after": after.instructions,
        "cycles_before": before.cycles,
        "cycles_after": after.cycles,
    }


def _counted(model: Any, folder: Path, board: target.Target) -> Any:
    samples = np.concatenate([batch[0].numpy() for batch in graph.probes(model)])
    saved, made = export.save(model, folder / "saved"), folder / "model.tflite"
    conversion.convert(saved, made, representative=samples, per_channel_dense=True)
    return _counting.count(made, board)


# Random graphs


def _graphs(record: dict[str, Any], arguments: argparse.Namespace, shown: progress.Progress) -> None:
    empty = {"number": 0, "cuts": 0, "groups": 0, "cuttable": 0, "worst_difference": 0.0, "worst_excess": 0.0}
    empty |= {"worst_influence": 0.0, "slower": 0, "macs_left": 0.0, "left_whole": {}, "failed": {}, "seconds": 0.0}
    total = record.setdefault("graphs", empty) if arguments.graphs else empty
    shown.stage("random graphs", 1, 1)
    for seed in range(total["number"], arguments.graphs):
        began = time.monotonic()
        total = _added(total, seed)
        record["graphs"] = {**total, "seconds": round(total["seconds"] + time.monotonic() - began, 2)}
        total = record["graphs"]
        shown.step(seed + 1, arguments.graphs, "graphs")
        if (seed + 1) % STORED_EVERY == 0 or seed + 1 == arguments.graphs:
            _write(record, arguments.results)
    if total["number"]:
        shown.done(f"{total['number']} graphs, worst difference {total['worst_difference']:.1e}", total["seconds"])


def _added(total: dict[str, Any], seed: int) -> dict[str, Any]:
    """The figures so far with those of one more graph."""
    model = graph.flatten(random_graphs.grown(random_graphs.drawn(seed)))
    coupling = channels.couple(channel_graph.describe(model))
    proofs, moved, failed = [], 0.0, dict(total["failed"])
    for make in (random_graphs.halves, random_graphs.pieces):
        cut = make(coupling, seed)
        try:
            proofs.append(random_graphs.proof(model, coupling, cut))
            moved = max(moved, random_graphs.influence(model, coupling, cut))
        except Exception as error:  # what went wrong is what this is to find out
            failed[str(seed)] = f"{type(error).__name__}: {error}"
    if seed % 20 == 19:
        keras.backend.clear_session()
        gc.collect()
    whole = Counter(total["left_whole"])
    whole.update(_kind(reason) for group in coupling.groups for reason in group.reasons)
    shares = [one.macs_after / one.macs_before for one in proofs]
    return {
        **total,
        "number": seed + 1,
        "cuts": total["cuts"] + len(proofs),
        "groups": total["groups"] + len(coupling.groups),
        "cuttable": total["cuttable"] + sum(group.cuttable for group in coupling.groups),
        "worst_difference": max([total["worst_difference"], *(one.difference for one in proofs)]),
        "worst_excess": max([total["worst_excess"], *(one.excess for one in proofs)]),
        "worst_influence": max(total["worst_influence"], moved),
        "slower": total["slower"] + sum(share > 1 for share in shares),
        "macs_left": (total["macs_left"] * total["cuts"] + sum(shares)) / max(total["cuts"] + len(proofs), 1),
        "left_whole": dict(whole),
        "failed": failed,
    }


def _kind(reason: str) -> str:
    """A reason without the names of its layers."""
    return re.sub(r"'[^']*'", "…", reason)


if __name__ == "__main__":
    sys.exit(main())
