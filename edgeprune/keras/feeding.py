"""From a split of arrays to batches on the training device: cached, prefetched, and the same after a resume.

The order of the samples in an epoch is a pure function of (seed, epoch), so that a run resumed at epoch 7 sees what an
unbroken run sees there. The samples stay as they are stored (uint8 images stay uint8) and are cast and scaled per
batch, inside the input pipeline.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeprune import columns
from edgeprune.data import Preprocess, Split
from edgeprune.keras import tf

IN_MEMORY_BYTES = 2 << 30  # larger arrays (memory-mapped image folders) are read row by row


def training(split: Split, batch_size: int, seed: int, first_epoch: int, epochs: int, replicas: int = 1) -> Any:
    """A ``tf.data.Dataset`` of (x, y) batches: the epochs ``first_epoch`` .. ``epochs`` - 1, one after the other.

    Args:
        split: shuffled anew in every epoch.
        batch_size: samples per batch; the last batch of an epoch may be smaller.
        seed: of the stage.
        first_epoch: 0, or the epoch to resume at.
        epochs: total epochs of the stage.
        replicas: that every batch is shared out over: a smaller last one is filled up with samples of its own, so that all get
            as many.
    """
    positions = tf.range(len(split), dtype=tf.int64)

    def epoch_batches(epoch: Any) -> Any:
        order = tf.random.experimental.stateless_shuffle(positions, seed=tf.stack([tf.constant(seed, tf.int64), epoch]))
        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size)

    batches = tf.data.Dataset.range(first_epoch, epochs).flat_map(epoch_batches)
    if replicas > 1:
        batches = batches.map(lambda rows: _filled(rows, replicas))
    return _fixed(batches.map(_fetcher(split), num_parallel_calls=2, deterministic=True).prefetch(4))


def _filled(rows: Any, multiple: int) -> Any:
    """Rows, begun again from the first one until there are a multiple of so many."""
    count = tf.size(rows)
    return tf.gather(rows, tf.range(-(-count // multiple) * multiple) % count)


def ordered(split: Split, batch_size: int = 256) -> Any:
    """A ``tf.data.Dataset`` of (x, y) batches of a split, once, in order."""
    batches = tf.data.Dataset.range(len(split)).batch(batch_size)
    return _fixed(batches.map(_fetcher(split), num_parallel_calls=2, deterministic=True).prefetch(2))


def _fixed(dataset: Any) -> Any:
    """The dataset without tf.data's autotuning, which has nothing to tune here and makes the end of training wait.

    Its thread sleeps for 10 ms, 20 ms, 40 ms ... up to a minute, and an iterator is not gone before that thread has woken
    up: a ``fit`` of 26 s returned after 41.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def _fetcher(split: Split) -> Any:
    """Positions in the split -> (x as the model sees it, y); several inputs or outputs are tuples in the model's order."""
    index = tf.constant(split.index)
    inputs = [
        _input(base, preprocess)
        for base, preprocess in zip(columns.values(split.base), columns.values(split.preprocess), strict=True)
    ]
    targets = [tf.constant(y) for y in columns.values(split.y)]

    def fetch(positions: Any) -> tuple[Any, Any]:
        rows = tf.gather(index, positions)
        return _one_or_all([take(rows) for take in inputs]), _one_or_all([tf.gather(y, positions) for y in targets])

    return fetch


def _one_or_all(tensors: list[Any]) -> Any:
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def _input(base: np.ndarray, preprocess: Preprocess) -> Any:
    """Rows of a stored array -> those samples as the model sees them."""
    gather = _gatherer(base)

    def take(rows: Any) -> Any:
        if preprocess.whole:
            return tf.cast(gather(rows), tf.int32)
        x = tf.cast(gather(rows), tf.float32)
        if preprocess.scale != 1.0:
            x = x * tf.constant(preprocess.scale, tf.float32)
        if preprocess.offset != 0.0:
            x = x + tf.constant(preprocess.offset, tf.float32)
        return x

    return take


def _gatherer(base: np.ndarray) -> Any:
    """Rows of a stored array -> its samples as they are; a large array stays where it is and is read row by row."""
    if base.nbytes <= IN_MEMORY_BYTES:
        samples = tf.constant(np.ascontiguousarray(base))
        return lambda rows: tf.gather(samples, rows)

    def gather(rows: Any) -> Any:
        taken = tf.numpy_function(lambda chosen: base[chosen], [rows], base.dtype, stateful=False)
        return tf.ensure_shape(taken, (None, *base.shape[1:]))

    return gather
