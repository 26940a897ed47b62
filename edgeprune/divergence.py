"""The first op of a .tflite file that does not compute what its Keras layer computes.

Every op's output is compared with the outputs of the Keras layers on the same samples. Which layer an op stands for is
not taken from names, which the converter fuses and drops, but from the values: an op is *confirmed* when some layer's
output of its size agrees with it. Ops inside a layer (the product before a fused softmax) agree with none, yet an op
after them does. So the op that diverges is the first one that is not confirmed and leads to no confirmed op.

Two outputs agree when, over all samples, their difference has no direction (`systematic`) and is small on the whole
(`rms`): rounding errors add up with depth but cancel, defects do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from edgeprune import tflite
from edgeprune.agreement import directed
from edgeprune.inference import Runner

Inputs = Mapping[str, np.ndarray]  # by name, each (n, ...) float32
Reference = Callable[[Inputs], Sequence[np.ndarray]]  # a batch -> what all layers give, each (n, ...)

BATCH = 8  # samples whose layer outputs are in memory at once
RMS_FACTOR = 4.0  # differences of this many tolerances on the whole are no rounding, directed or not


@dataclass(frozen=True)
class Divergence:
    """An op that diverges.

    Attributes:
        index: of the op in the file.
        op: its kind.
        layer: the Keras layer that its names tell, or None.
        steps: its systematic difference from the nearest layer's output, in steps of its own scale.
    """

    index: int
    op: str
    layer: str | None
    steps: float


def agrees(systematic: float, rms: float, tolerance: float) -> bool:
    """Whether a difference, in steps, can be rounding: hardly directed, and not large on the whole."""
    return systematic <= tolerance and rms <= RMS_FACTOR * tolerance


def first(model: Path | bytes, inputs: Inputs, reference: Reference, tolerance: float) -> Divergence | None:
    """Find the first op that diverges.

    Args:
        model: the .tflite file.
        inputs: samples for each of the file's inputs.
        reference: what the Keras layers give for the same inputs, real numbers.
        tolerance: steps, > 0.

    Returns:
        The op, or None when every op is confirmed or leads to a confirmed one.
    """
    file = tflite.read(model)
    runner = Runner(model, keep_tensors=True)
    ops = [op for op in file.ops if op.outputs and file.tensors[op.outputs[0]].scales.size == 1]
    sums: dict[int, dict[int, _Sums]] = {op.index: {} for op in ops}
    for start in range(0, len(next(iter(inputs.values()))), BATCH):
        batch = {name: array[start : start + BATCH] for name, array in inputs.items()}
        expected = reference(batch)
        traced = _traced(runner, batch, [op.outputs[0] for op in ops])
        for op in ops:
            _compare(file.tensors[op.outputs[0]], traced[op.outputs[0]], expected, sums[op.index])
    nearest = {index: min(found.values(), key=lambda each: each.rms) for index, found in sums.items() if found}
    confirmed = {index for index, found in nearest.items() if agrees(found.systematic, found.rms, tolerance)}
    for op in file.ops:
        if op.index in nearest and not confirmed & _descendants(file, op):
            return Divergence(op.index, op.op, op.layer, round(nearest[op.index].systematic, 2))
    return None


class _Sums:
    """What is kept of the differences between one op and one layer, in steps."""

    def __init__(self, channels: int) -> None:
        self._total, self._squares, self._rows = np.zeros(channels), np.zeros(channels), 0

    def add(self, difference: np.ndarray) -> None:
        """Take in the differences of a batch, (rows, channels)."""
        self._total += difference.sum(axis=0)
        self._squares += np.square(difference).sum(axis=0)
        self._rows += len(difference)

    @property
    def systematic(self) -> float:
        """The mean difference of the channel where it is largest and no chance."""
        return directed(self._total, self._squares, self._rows)

    @property
    def rms(self) -> float:
        return float(np.sqrt(self._squares.sum() / (self._rows * self._total.size)))


def _traced(runner: Runner, inputs: Inputs, tensors: Sequence[int]) -> dict[int, np.ndarray]:
    """What lies between the ops, (n, ...) as stored, sample by sample."""
    kept: dict[int, list[np.ndarray]] = {index: [] for index in tensors}
    for row in range(len(next(iter(inputs.values())))):
        runner.run(*(inputs[port.name][row : row + 1] for port in runner.inputs))
        for index, values in kept.items():
            values.append(runner.tensor(index).reshape(-1))
    return {index: np.stack(values) for index, values in kept.items()}


def _compare(tensor: tflite.Tensor, stored: np.ndarray, expected: Sequence[np.ndarray], sums: dict[int, _Sums]) -> None:
    """Add the differences of one op from every layer whose output has its size."""
    limits = np.iinfo(stored.dtype)
    channels = tensor.shape[-1] if tensor.shape else 1
    for place, values in enumerate(expected):
        if prod(values.shape[1:]) != stored.shape[1]:
            continue
        steps = np.rint(values.reshape(stored.shape) / tensor.scales[0]) + tensor.zero_points[0]
        difference = np.clip(steps, limits.min, limits.max) - stored
        sums.setdefault(place, _Sums(channels)).add(difference.reshape(-1, channels))


def _descendants(file: tflite.TFLiteFile, op: tflite.Op) -> set[int]:
    """The op itself and all that compute on what it gives."""
    reached, found = set(op.outputs), {op.index}
    for other in file.ops[op.index + 1 :]:  # ops are stored in the order of execution
        if reached & set(other.inputs):
            reached |= set(other.outputs)
            found.add(other.index)
    return found
