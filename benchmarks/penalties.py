"""What a penalty and a teacher cost in training: steps of a network, in turns with and without.

    python benchmarks/penalties.py [--models resnet8,lenet5] [--steps 32] [--repeats 5]

The smallest time of all turns counts: processor time of all threads, and time on the wall.
Writes benchmarks/results/penalties.json.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import training_steps

from edgeprune import files, registry
from edgeprune.training_options import Penalty

RESULTS = Path(__file__).parent / "results" / "penalties.json"
KINDS: dict[str, dict[str, Any]] = {
    "l1": {"kind": "l1"},
    "l1, strength learned": {"kind": "l1", "sparsity": 0.8},
    "elastic_net": {"kind": "elastic_net"},
    "adaptive": {"kind": "adaptive"},
    "growing": {"kind": "growing"},
    "slimming": {"kind": "slimming"},
    "group_lasso": {"kind": "group_lasso"},
    "sparse_group_lasso": {"kind": "sparse_group_lasso"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet8,lenet5", help="names of `edgeprune list models`")
    parser.add_argument("--steps", type=int, default=32, help="of one turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    options = parser.parse_args()
    found = {name: _measured(name, options.steps, options.repeats) for name in options.models.split(",")}
    record = {"batch": training_steps.BATCH, "steps": options.steps, "repeats": options.repeats, "cpus": os.cpu_count()}
    files.write_text_atomic(RESULTS, json.dumps({**record, "networks": found}, indent=1) + "\n")


def _measured(name: str, steps: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of a step of plain training, and what each penalty takes more, as a share."""
    from edgeprune.keras import graph, keras

    keras.utils.set_random_seed(0)
    model = registry.module("models", name).build()
    scales = any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers)
    kinds = {word: words for word, words in KINDS.items() if scales or word != "slimming"}
    prepare = {word: _penalty(words) for word, words in kinds.items()}
    models = {word: graph.rebuild(model) for word in ("plain", *kinds)}
    best = training_steps.fastest(models, steps, repeats, prepare)
    plain = best.pop("plain")
    return {
        "params": int(model.count_params()),
        "load": round(os.getloadavg()[0], 2),
        "plain": plain.milliseconds(),
        "more": {word: each.more_than(plain) for word, each in best.items()},
    }


def _penalty(words: dict[str, Any]) -> training_steps.Prepare:
    from edgeprune.keras import penalised

    def attach(model: Any, optimizer: Any) -> None:
        penalised.attach(model, optimizer, Penalty(**words), 1000)

    return attach


if __name__ == "__main__":
    main()
