"""What a penalty and a teacher cost in training: steps of a network, in turns with and without.

    python benchmarks/penalties.py [--models resnet8,lenet5] [--steps 32] [--repeats 5]

The smallest time of all turns counts: processor time of all threads, and time on the wall.
Writes benchmarks/results/penalties.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from edgeprune import files, registry
from edgeprune.training_options import Penalty

RESULTS = Path(__file__).parent / "results" / "penalties.json"
BATCH = 32
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
    record = {"batch": BATCH, "steps": options.steps, "repeats": options.repeats, "cpus": os.cpu_count()}
    files.write_text_atomic(RESULTS, json.dumps({**record, "networks": found}, indent=1) + "\n")


def _measured(name: str, steps: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of a step of plain training, and what each penalty takes more, as a share."""
    from edgeprune.keras import keras

    keras.utils.set_random_seed(0)
    model = registry.module("models", name).build()
    scales = any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers)
    kinds = {word: words for word, words in KINDS.items() if scales or word != "slimming"}
    trained = {"plain": _Trained(model, None), **{word: _Trained(model, words) for word, words in kinds.items()}}
    taken: dict[str, list[tuple[float, float]]] = {word: [] for word in trained}
    for turn in range(repeats + 1):
        for word, each in trained.items():
            seconds = each.steps(steps)
            if turn:  # the first one compiles
                taken[word].append(seconds)
    best = {word: tuple(min(side) / steps for side in zip(*each, strict=True)) for word, each in taken.items()}
    plain = best.pop("plain")
    return {
        "params": int(model.count_params()),
        "load": round(os.getloadavg()[0], 2),
        "plain": {"cpu_ms": round(1e3 * plain[0], 3), "wall_ms": round(1e3 * plain[1], 3)},
        "more": {
            word: {"cpu": round(each[0] / plain[0] - 1, 3), "wall": round(each[1] / plain[1] - 1, 3)}
            for word, each in best.items()
        },
    }


class _Trained:
    """A copy of a model and a batch of noise, trained under a penalty or under none."""

    def __init__(self, model: Any, words: dict[str, Any] | None) -> None:
        import numpy as np

        from edgeprune.keras import graph, keras, penalised, tf

        model = graph.rebuild(model)
        generator = np.random.Generator(np.random.PCG64(0))
        x = tf.constant(generator.uniform(0, 1, (BATCH, *model.input_shape[1:])), tf.float32)
        y = tf.constant(generator.integers(0, model.output_shape[-1], BATCH))
        optimizer, loss = keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy()
        optimizer.build(model.trainable_variables)
        if words:
            penalised.attach(model, optimizer, Penalty(**words), 1000)

        @tf.function
        def run(count: Any) -> None:
            for _ in tf.range(count):
                with tf.GradientTape() as tape:
                    lost = loss(y, model(x, training=True))
                gradients = tape.gradient(lost, model.trainable_variables)
                optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

        self._run, self._count = run, tf.constant

    def steps(self, count: int) -> tuple[float, float]:
        """Seconds of so many steps: of the processor, and on the wall."""
        wall, processor = time.monotonic(), time.process_time()
        self._run(self._count(count))
        return time.process_time() - processor, time.monotonic() - wall


if __name__ == "__main__":
    main()
