"""What removing channels costs at full size: seconds and memory of the analysis and of the surgery with its proof.

    python benchmarks/surgery_cost.py [--models MobileNetV2 ResNet50 EfficientNetB0] [--repeats 3]

Every network is made by tf_keras' own applications, 224x224x3 and 1000 classes with random weights, in a fresh process.
The analysis finds its coupled channels; the surgery removes half of the units of every group that can be cut (those with
the lowest L1 norms) and proves on seeded inputs that the smaller network computes what the masked one does. Memory is what
the process holds at its peak, and how much of that is more than after the model was made. Of several repeats the one with
the median total is written: benchmarks/results/surgery_cost.json. A network that is in there already is not measured
again, unless --force says so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeprune import files

RESULTS = Path(__file__).parent / "results" / "surgery_cost.json"
MODELS = ("MobileNetV2", "ResNet50", "EfficientNetB0")
BAR_S, BAR_GIB = 15.0, 2.0  # for the analysis and the surgery together, and for the memory above the loaded model
SHARE = 0.5  # of every group's units that goes
TIMEOUT_S = 1800


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, help="names of tf_keras.applications")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each network")
    parser.add_argument("--force", action="store_true", help="measure anew what is there already")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measured(arguments.child)))
        return 0
    stored = json.loads(arguments.results.read_text(encoding="utf-8")) if arguments.results.exists() else {}
    rows: dict[str, Any] = stored.get("networks", {})
    for name in arguments.models:
        if name not in rows or arguments.force:
            rows[name] = middle([_child(name) for _ in range(arguments.repeats)])
            _write(arguments.results, rows)
        print(json.dumps({name: rows[name]}), flush=True)
    return 0 if all(row["holds"] for row in rows.values()) else 1


def _write(path: Path, rows: Mapping[str, Any]) -> None:
    record = {
        "what": (__doc__ or "").splitlines()[0],
        "input": [224, 224, 3],
        "share_removed": SHARE,
        "bar": {"seconds": BAR_S, "gib": BAR_GIB},
        "cpus": os.cpu_count(),
        "networks": rows,
    }
    path.parent.mkdir(exist_ok=True)
    files.write_text_atomic(path, json.dumps(record, indent=2) + "\n")


def _child(name: str) -> dict[str, Any]:
    """The figures of one fresh process."""
    command = [sys.executable, __file__, "--child", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def middle(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The repeat with the median total, with the totals of all, and whether each of them keeps to the bar."""
    ordered = sorted(rows, key=lambda row: row["seconds"]["total"])
    holds = all(row["seconds"]["total"] < BAR_S and row["peak_above_gib"] < BAR_GIB for row in rows)
    totals = [row["seconds"]["total"] for row in ordered]
    chosen = next(row for row in ordered if row["seconds"]["total"] == statistics.median_low(totals))
    return {**chosen, "totals_s": totals, "holds": holds}


def measured(name: str) -> dict[str, Any]:
    """Seconds, memory and what was cut, in this process.

    Returns:
        ``seconds`` and ``cpu_seconds`` (of all threads) of ``analysis``, ``surgery`` (with its proof) and ``total``;
        ``loaded_gib``, ``peak_gib`` and ``peak_above_gib``; ``groups``, ``groups_cut``, ``params`` and ``params_after``;
        ``load``: how many processes wanted a processor just before, on average over a minute.
    """
    load = os.getloadavg()[0]
    from edgeprune import channels
    from edgeprune.keras import channel_graph, keras, surgery

    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None)
    loaded = _memory_gib("VmRSS")
    _forget_peak()
    analysed = _Clock()
    coupling = channels.couple(channel_graph.describe(model))
    analysis = analysed.stop()
    cut = _half(model, coupling)
    operated = _Clock()
    small = surgery.shrink(model, cut)
    took = operated.stop()
    peak = _memory_gib("VmHWM")
    seconds, cpu_seconds = (
        {"analysis": round(one, 2), "surgery": round(other, 2), "total": round(one + other, 2)}
        for one, other in zip(analysis, took, strict=True)
    )
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "loaded_gib": round(loaded, 3),
        "peak_gib": round(peak, 3),
        "peak_above_gib": round(max(peak - loaded, 0.0), 3),
        "groups": len(coupling.groups),
        "groups_cut": len(cut),
        "params": model.count_params(),
        "params_after": small.count_params(),
        "load": round(load, 2),
    }


class _Clock:
    """Seconds since it was made: on the wall, and of all threads of this process."""

    def __init__(self) -> None:
        self._wall, self._processor = time.monotonic(), time.process_time()

    def stop(self) -> tuple[float, float]:
        return time.monotonic() - self._wall, time.process_time() - self._processor


def _half(model: Any, coupling: Any) -> dict[str, Any]:
    """Group -> the better half of its units, by the L1 norm; ascending."""
    import numpy as np

    from edgeprune import scoring

    kernels = {
        layer.name: {"weights": layer.kernel.numpy()}
        for layer in model.layers
        if getattr(layer, "kernel", None) is not None
    }
    scores = scoring.units(coupling, "magnitude", kernels)
    return {
        name: np.sort(np.argsort(-values, kind="stable")[: max(1, round(len(values) * (1 - SHARE)))])
        for name, values in scores.items()
    }


def _memory_gib(field: str) -> float:
    """``VmRSS`` (held now) or ``VmHWM`` (the most so far) of this process, as Linux tells it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**20


def _forget_peak() -> None:
    """From here on the peak counts anew (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


if __name__ == "__main__":
    sys.exit(main())
