"""Several training steps in one call of a compiled function, as Keras' ``steps_per_execution`` has them, but traced once.

Keras returns what the last step of its loop returned. That has no value before the loop, so AutoGraph traces the whole step once for
its shape and once for the graph, and the tracing of a network with fake quantizers takes seconds. Here the loop hands nothing on:
the results of the metrics are read behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeprune.keras import tf


def trace_once(model: Any) -> None:
    """Give a model the functions that its ``fit`` calls, in the place of those that Keras would make; compile it before.

    What a step returns is of no account: it has to be ``get_metrics_result()``, as that of Keras' own ``train_step`` is.

    Args:
        model: compiled with ``steps_per_execution``, not eager.
    """
    model.train_function = _looped(model, model.train_step, model._train_counter)
    model.test_function = _looped(model, model.test_step, model._test_counter)


def _looped(model: Any, step: Callable[[Any], Any], counter: Any) -> Callable[[Any], Any]:
    """Iterator of batches -> what the metrics are after as many steps as the model's variable says."""

    def one(data: Any) -> None:
        step(data)
        counter.assign_add(1)

    def several(iterator: Any) -> Any:
        for _ in tf.range(model._steps_per_execution):
            model.distribute_strategy.run(one, args=(next(iterator),))
        return model.get_metrics_result()

    return tf.function(several, reduce_retracing=True)
