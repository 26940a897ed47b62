"""What a gated model costs, as a share of the whole one, differentiable by how open its gates are.

Where every gate is open or closed, the shares are those of `costs.Meter` and, at the counts in its tables, of
`latency.Stopwatch`; in between, what is counted is the expected number of channels: the MACs of a kernel between two gated
groups are the product of both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgeprune import channels
from edgeprune.analytic import Layer
from edgeprune.keras import inspect, tf
from edgeprune.keras.costs import Meter
from edgeprune.keras.latency import Stopwatch

Tensor = Any
Cost = Callable[[Mapping[str, Tensor]], Tensor]
POINTS = 9  # counts of channels that an op's latency is tabled for, on each side


def weights(sizes: Mapping[str, float]) -> Cost:
    """Of kernels in which every weight has a gate.

    Args:
        sizes: kernel -> what one of its weights costs, > 0: 1, or how often it is multiplied.

    Returns:
        Open weights, each times its cost, over the same for all weights.
    """

    def share(opened: Mapping[str, Tensor]) -> Tensor:
        left = tf.add_n([size * tf.reduce_sum(opened[name]) for name, size in sizes.items()])
        whole = sum(size * opened[name].shape.num_elements() for name, size in sizes.items())
        return left / whole

    return share


def multiplied(model: Any, names: Sequence[str]) -> dict[str, float]:
    """Kernel, by the names of ``kernels.key``, -> how often each weight is multiplied for one sample; 1 where nobody counts."""
    macs = inspect.macs_by_layer(model)
    found = {}
    for name in names:
        layer = name.partition(":")[0]
        size = sum(int(np.prod(variable.shape)) for variable in _counted(model.get_layer(layer)))
        found[name] = float(macs.get(layer, 0) / size) if size and macs.get(layer) else 1.0
    return found


def macs(meter: Meter, names: Sequence[str]) -> Cost:
    """MACs of a model whose named groups have gates, over the whole model's."""
    return _products(meter, names, [float(variable.uses) for variable in meter.variables])


def params(meter: Meter, names: Sequence[str]) -> Cost:
    """Parameters of a model whose named groups have gates, over the whole model's."""
    return _products(meter, names, [1.0] * len(meter.variables))


def latency(watch: Stopwatch, names: Sequence[str], milliseconds: Callable[[Sequence[Layer]], float]) -> Cost:
    """Predicted latency of a model whose named groups have gates, over the whole model's; between tabled counts bilinear.

    Args:
        watch: of the model.
        names: of the gated groups.
        milliseconds: what a list of ops takes, a sum over the ops and a constant: as ``watch`` has it.
    """
    fixed = milliseconds([])
    graph = watch.coupling.graph
    spans, tables = [], []
    for number, node in enumerate(graph.nodes):
        sides = [node.inputs, node.outputs[:1]]
        counts = [
            _sum(watch.coupling, [name for name in side if name in watch.coupling.tensors], names) for side in sides
        ]
        grids = [np.unique(np.linspace(1, max(weights.sum() + rest, 1), POINTS).round()) for weights, rest in counts]
        table = np.array(
            [[milliseconds(watch.resized(number, *at)) - fixed for at in _row(one, grids)] for one in grids[0]]
        )
        if np.ptp(table):
            spans.append(counts)
            tables.append((grids, table))
        else:
            fixed += float(table.flat[0])
    whole = milliseconds(watch.layers({}))
    if not tables:
        return lambda opened: tf.constant(1.0)
    interpolated = _Tables(spans, tables)
    return lambda opened: (interpolated(_joined(opened, names)) + fixed) / whole


def _row(one: float, grids: Sequence[np.ndarray]) -> list[tuple[float, float]]:
    shares = [(one / grids[0][-1], other / grids[1][-1]) for other in grids[1]]
    return shares


class _Tables:
    """Latencies of many ops at once, each interpolated between its own counts of channels."""

    def __init__(self, spans: Sequence[Any], tables: Sequence[Any]) -> None:
        self._sides = [
            (
                tf.constant(np.stack([span[side][0] for span in spans]), tf.float32),
                np.array([s[side][1] for s in spans], np.float32),
            )
            for side in (0, 1)
        ]
        self._grids = [np.stack([_padded(grids[side]) for grids, _ in tables]).astype(np.float32) for side in (0, 1)]
        self._tables = np.stack([np.pad(t, [(0, POINTS - size) for size in t.shape], "edge") for _, t in tables])
        self._tables = self._tables.astype(np.float32)

    def __call__(self, opened: Tensor) -> Tensor:
        found = [self._weights(side, opened) for side in (0, 1)]
        return tf.einsum("nab,na,nb->", self._tables, *found)

    def _weights(self, side: int, opened: Tensor) -> Tensor:
        """(ops, POINTS): how much of each tabled count is in an op's count; two neighbours share it."""
        slopes, rest = self._sides[side]
        count = (slopes @ opened[:, tf.newaxis])[:, 0] + rest
        grid = self._grids[side]
        count = tf.clip_by_value(count, grid[:, 0], grid.max(axis=1))[:, tf.newaxis]
        steps = np.maximum(np.diff(grid, axis=1), 1e-6)
        share = tf.clip_by_value((count - grid[:, :-1]) / steps, 0.0, 1.0)
        whole = np.diff(grid, axis=1) > 0
        share = tf.where(whole, share, tf.zeros_like(share))
        first = tf.ones_like(count)
        return tf.concat([first, share], 1) - tf.concat([share, tf.zeros_like(first)], 1)


def _padded(grid: np.ndarray) -> np.ndarray:
    return np.pad(grid, (0, POINTS - len(grid)), "edge")


def _products(meter: Meter, names: Sequence[str], prices: Sequence[float]) -> Cost:
    """A sum over the weights of price times length of every axis, where gated axes have expected lengths."""
    keys = list(meter.coupling.axes)
    number = {key: place for place, key in enumerate(keys)}
    spans = [_lengths(meter.coupling, meter.coupling.axes[key], names) for key in keys]
    slopes = tf.constant(np.stack([slope for slope, _ in spans]), tf.float32)
    rest = np.array([left for _, left in spans], np.float32)
    rank = max(len(variable.axes) for variable in meter.variables) or 1
    places, factors = [], []
    for variable, price in zip(meter.variables, prices, strict=True):
        followed = [number[key] for key in variable.axes.values()]
        places.append([*followed, *[len(keys)] * (rank - len(followed))])  # behind the lengths stands a 1
        other = [size for axis, size in enumerate(variable.shape) if axis not in variable.axes]
        factors.append(price * float(np.prod(other)))
    whole = sum(price * float(np.prod(v.shape)) for v, price in zip(meter.variables, prices, strict=True))

    def share(opened: Mapping[str, Tensor]) -> Tensor:
        lengths = (slopes @ _joined(opened, names)[:, tf.newaxis])[:, 0] + rest
        each = tf.reduce_prod(tf.gather(tf.concat([lengths, [1.0]], 0), places), axis=1)
        return tf.reduce_sum(each * (np.array(factors, np.float32) / np.float32(whole)))

    return share


def _joined(opened: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """The groups' units one after the other."""
    return tf.concat([opened[name] for name in names], 0)


def _sum(coupling: channels.Coupling, tensors: Sequence[str], names: Sequence[str]) -> tuple[np.ndarray, float]:
    """`_lengths` of several tensors' channels together."""
    found = [_lengths(coupling, coupling.tensors[name][1], names) for name in tensors]
    width = sum(coupling.group(name).units for name in names)
    return sum((slope for slope, _ in found), np.zeros(width)), sum((rest for _, rest in found), 0.0)


def _lengths(coupling: channels.Coupling, classes: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, float]:
    """How many of some channels each gated unit has, and how many are of no gate: their count is linear in the gates."""
    numbers = {group.name: number for number, group in enumerate(coupling.groups)}
    owners, units = coupling.group_of[classes], coupling.unit_of[classes]
    slopes = [
        np.bincount(units[owners == numbers[name]], minlength=coupling.group(name).units).astype(float)
        for name in names
    ]
    joined = np.concatenate(slopes)
    return joined, float(len(classes) - joined.sum())


def _counted(layer: Any) -> list[Any]:
    """The kernels that `inspect` counts MACs of."""
    found = (getattr(layer, name, None) for name in inspect.KERNELS)
    return [kernel for kernel in found if kernel is not None]
