"""What a training step costs: networks trained in turns on one batch of noise, of which the smallest time of all turns counts.

No script of its own; `clustering.py`, `overhead.py` and `penalties.py` use it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

BATCH = 32
Prepare = Callable[[Any, Any], None]  # (model, optimizer) -> made ready, before anything is traced


class Seconds(NamedTuple):
    """Of one step: of the processor, over all threads, and on the wall."""

    cpu: float
    wall: float

    def milliseconds(self) -> dict[str, float]:
        return {"cpu_ms": round(1e3 * self.cpu, 3), "wall_ms": round(1e3 * self.wall, 3)}

    def more_than(self, other: Seconds) -> dict[str, float]:
        """What it takes more, as a share of the other."""
        return {"cpu": round(self.cpu / other.cpu - 1, 3), "wall": round(self.wall / other.wall - 1, 3)}


def fastest(
    models: Mapping[str, Any], steps: int, repeats: int, prepare: Mapping[str, Prepare] | None = None
) -> dict[str, Seconds]:
    """The fastest turn of every model.

    Args:
        models: name -> functional model; is trained.
        steps: of a turn.
        repeats: turns; one more comes before them, in which the step is compiled.
        prepare: name -> what is done to that model and its optimizer first.
    """
    runs = {name: _compiled(model, (prepare or {}).get(name)) for name, model in models.items()}
    taken: dict[str, list[Seconds]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            seconds = _timed(run, steps)
            if turn:
                taken[name].append(seconds)
    return {name: Seconds(*(min(side) for side in zip(*each, strict=True))) for name, each in taken.items()}


def _timed(run: Callable[[Any], None], steps: int) -> Seconds:
    from edgeprune.keras import tf

    wall, processor = time.monotonic(), time.process_time()
    run(tf.constant(steps))
    return Seconds((time.process_time() - processor) / steps, (time.monotonic() - wall) / steps)


def _compiled(model: Any, prepare: Prepare | None) -> Callable[[Any], None]:
    """So many steps in one call."""
    import numpy as np

    from edgeprune.keras import keras, tf

    generator = np.random.Generator(np.random.PCG64(0))
    x = tf.constant(generator.uniform(0, 1, (BATCH, *model.input_shape[1:])), tf.float32)
    y = tf.constant(generator.integers(0, model.output_shape[-1], BATCH))
    optimizer, loss = keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy()
    optimizer.build(model.trainable_variables)
    if prepare:
        prepare(model, optimizer)

    @tf.function
    def run(count: Any) -> None:
        for _ in tf.range(count):
            with tf.GradientTape() as tape:
                lost = loss(y, model(x, training=True)) + sum(model.losses)
            gradients = tape.gradient(lost, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    return run
