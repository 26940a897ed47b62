"""What pruning and int8 cost against plain fine-tuning for as many epochs: one model, one data set, two recipes.

    python benchmarks/accuracy.py resnet8.h5 cifar10.npz

Runs three builds: plain fine-tuning for E = train + prune + quantize epochs, then `poly50` and `nm24` for the same E. All
are judged on the same test split, which none of them trains, selects or calibrates on. Writes benchmarks/results/accuracy.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PLAIN = """\
name: plain
description: plain fine-tuning, nothing compressed
data: {validation: 0.0}
stages:
  train: {when: always, epochs: %d, learning_rate: 0.001}
  convert: {}
  verify: {}
  report: {}
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--train-epochs", type=int, default=2)
    parser.add_argument("--prune-epochs", type=int, default=6)
    parser.add_argument("--quantize-epochs", type=int, default=4)
    parser.add_argument("--target", default="rpi4")
    arguments = parser.parse_args()
    epochs = {stage: getattr(arguments, f"{stage}_epochs") for stage in ("train", "prune", "quantize")}
    total = sum(epochs.values())
    sets = {f"stages.{stage}.epochs": count for stage, count in epochs.items()}
    sets |= {"stages.train.when": "always", "stages.train.learning_rate": 0.001, "data.validation": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.yaml"
        plain.write_text(PLAIN % total, encoding="utf-8")
        reference = _build(arguments, str(plain), Path(folder) / "plain", {})
        builds = {recipe: _build(arguments, recipe, Path(folder) / recipe, sets) for recipe in ("poly50", "nm24")}
    fine_tuned = reference["candidates"]["float"]["metric"]
    record = {
        "what": f"test metric after {total} epochs of everything; drop = plain fine-tuned float - int8",
        "model": Path(arguments.model).name,
        "data": Path(arguments.data).name,
        "epochs": {**epochs, "plain": total},
        "plain_float": fine_tuned,
        "plain_int8": reference["candidates"]["final"]["metric"],
        "builds": {recipe: _summary(report, fine_tuned) for recipe, report in builds.items()},
    }
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "accuracy.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


def _build(arguments: argparse.Namespace, recipe: str, out: Path, sets: dict[str, Any]) -> dict[str, Any]:
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "edgeprune", "build", arguments.model, "--data", arguments.data]
    subprocess.run([*command, "--target", arguments.target, "--recipe", recipe, "--out", str(out), *words], check=True)
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


def _summary(report: dict[str, Any], fine_tuned: float) -> dict[str, Any]:
    final, layers = report["candidates"]["final"], report["layers"]
    pruned = [layer for layer in layers if layer.get("prunable")]
    return {
        "float_after_train": report["candidates"]["float"]["metric"],
        "dense_int8": report["candidates"]["dense_int8"]["metric"],
        "final_int8": final["metric"],
        "drop": round(fine_tuned - final["metric"], 4),
        "size_bytes": final["size_bytes"],
        "size_gzip_bytes": final["size_gzip_bytes"],
        "sparsity_in_file": {layer["name"]: round(layer["sparsity"], 4) for layer in pruned},
        "n_of_m_share": {layer["name"]: layer["n_of_m"]["share"] for layer in pruned if layer.get("n_of_m")},
        "left_alone": {layer["name"]: layer["reason"] for layer in layers if layer.get("reason")},
        "verify": {key: report["verify"][key] for key in ("int8_share", "zeros_match", "n_of_m_match")},
        "arm": report["arm"],
        "stages": {stage["name"]: stage["seconds"] for stage in report["stages"]},
    }


if __name__ == "__main__":
    main()
