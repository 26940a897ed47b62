"""Whole-build wall time against the script written by hand, side by side: same model, data, epochs and batch size.

    python benchmarks/speed.py resnet8.h5 cifar10.npz --repeats 3

The two run in turn (A B A B ...), each as a process of its own, from its start to its end. Note what the build does in
that time and the script does not: checkpoints, the uncompressed int8 model, the proofs, the run on Arm kernels, the report.
Writes benchmarks/results/speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prune-epochs", type=int, default=3)
    parser.add_argument("--quantize-epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--recipes", nargs="+", default=["poly50", "nm24"], choices=["poly50", "nm24"])
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for pattern in arguments.recipes:
        pairs = [_pair(arguments, pattern) for _ in range(arguments.repeats)]
        ratios = sorted(pair["edgeprune_s"] / pair["by_hand_s"] for pair in pairs)
        results[pattern] = {
            "runs": pairs,
            "ratio_median": round(ratios[len(ratios) // 2], 3),
            "ratio_worst": round(ratios[-1], 3),
        }
        print(pattern, json.dumps(results[pattern]), flush=True)
        _write(arguments, results)


def _write(arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    """What is known so far."""
    record = {
        "what": "wall time of a whole build, seconds; ratio = edgeprune / by_hand",
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform()},
        "settings": {name: getattr(arguments, name) for name in ("prune_epochs", "quantize_epochs", "batch_size")},
        "model": Path(arguments.model).name,
        "data": Path(arguments.data).name,
        "results": results,
    }
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "speed.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _pair(arguments: argparse.Namespace, pattern: str) -> dict[str, Any]:
    epochs = ["--prune-epochs", str(arguments.prune_epochs), "--quantize-epochs", str(arguments.quantize_epochs)]
    batch = ["--batch-size", str(arguments.batch_size), *(["--nm"] if pattern == "nm24" else [])]
    seconds, text = _timed([sys.executable, str(HERE / "by_hand.py"), arguments.model, arguments.data, *epochs, *batch])
    by_hand = float(re.findall(r"accuracy ([\d.]+)\s*$", text)[0])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        settings = {
            "data.validation": 0,  # or the build would train on fewer samples than the script
            "stages.train.epochs": 0,
            "stages.prune.epochs": arguments.prune_epochs,
            "stages.prune.batch_size": arguments.batch_size,
            "stages.quantize.epochs": arguments.quantize_epochs,
            "stages.quantize.batch_size": arguments.batch_size,
        }
        sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        command = [
            sys.executable,
            "-m",
            "edgeprune",
            "build",
            arguments.model,
            "--data",
            arguments.data,
            "--target",
            "rpi4",
        ]
        ours, _ = _timed([*command, "--recipe", pattern, "--out", str(out), "--quiet", *sets])
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {
        "by_hand_s": round(seconds, 1),
        "edgeprune_s": round(ours, 1),
        "by_hand_accuracy": by_hand,
        "edgeprune_accuracy": report["candidates"]["final"]["metric"],
        "stages": {stage["name"]: stage["seconds"] for stage in report["stages"]},
    }


def _timed(command: list[str]) -> tuple[float, str]:
    started = time.monotonic()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.monotonic() - started, done.stdout


if __name__ == "__main__":
    main()
