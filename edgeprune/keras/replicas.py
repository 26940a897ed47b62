"""Training shared out over the devices of this machine, where the recipe says ``distribute: mirrored``.

``tf.distribute.MirroredStrategy`` takes variables that were made in its scope alone, and most of what the stages do with a model
(gradients of single variables, masks, saving) wants plain ones. So only ``fit`` is in the scope: a twin of the stage's model is made
there, trained, and its weights are handed back. Every replica gets as many samples of a batch as every other, so that the mean of
their gradients is the gradient of the whole batch, and the result that of one device but for rounding; only BatchNormalization,
which normalizes by its replica's share of a batch, and ranges of activations make a difference.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from edgeprune.keras import graph, tf
from edgeprune.pipeline import State


@functools.cache
def devices() -> tuple[str, ...]:
    """Names of what a batch is shared out over: the GPUs, or where there are none the logical CPU devices."""
    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tuple(device.name for device in found)


@functools.cache
def _strategy() -> Any:
    return tf.distribute.MirroredStrategy(devices())


@contextmanager
def spread(state: State, model: Any, again: Callable[[], Any] | None = None) -> Iterator[Any]:
    """The model to ``fit``: the given one, or its twin on all devices, whose weights the given one gets in the end.

    Args:
        state: whose recipe says whether.
        model: of plain variables.
        again: makes the same model once more, in the scope; None: it is rebuilt layer by layer.
    """
    if state.run.recipe.file.distribute is None:
        yield model
        return
    if len(devices()) < 2:
        state.run.progress.note("distribute: there is one device here, so training runs as it does without")
        yield model
        return
    with _strategy().scope():
        twin = again() if again else graph.rebuild(model)
        _hand_over(model, twin)
        yield twin
    _hand_over(twin, model)


def count() -> int:
    """How many replicas train in the scope that this is called in; 1 outside of any."""
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def _hand_over(source: Any, destination: Any) -> None:
    for old, new in zip(source.variables, destination.variables, strict=True):
        new.assign(old.numpy())
