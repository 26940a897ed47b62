"""The outputs of an exported model, or of the file that was made of it, for every sample of a split, by the data's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from edgeprune import columns
from edgeprune.data import Split
from edgeprune.inference import Runner
from edgeprune.keras.export import Exported

BATCH = 256


class Runs(Protocol):
    """Something that takes inputs by name and gives outputs by name."""

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]: ...


class File:
    """A .tflite file, whose inputs and outputs have an order of their own."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        given = self._runner.run(*(inputs[port.name] for port in self._runner.inputs))
        return {port.name: array for port, array in zip(self._runner.outputs, given, strict=True)}


def outputs(
    run: Runs, model: Exported, split: Split, names: Sequence[str], meter: Callable[[int], None] = lambda count: None
) -> np.ndarray | dict[str, np.ndarray]:
    """The outputs for every sample, (n, ...); for several by the names that the data has for them.

    Args:
        run: ``model.outputs``, or a `File` that was made of it.
        model: knows the order of inputs and outputs.
        split: the samples.
        names: what the data calls the outputs, in the model's order.
        meter: told after each batch how many samples it held.
    """
    parts: list[list[np.ndarray]] = [[] for _ in names]
    for inputs, _ in split.batches(BATCH):
        given = run(by_name(model, inputs))
        for part, name in zip(parts, model.output_names, strict=False):  # outputs that no y is given for are not judged
            part.append(given[name])
        meter(columns.rows(inputs))
    found = dict(zip(names, map(np.concatenate, parts), strict=True))
    return found[names[0]] if len(names) == 1 else found


def by_name(model: Exported, inputs: Any) -> dict[str, np.ndarray]:
    """Model inputs, one array or several in the model's order, under the names of an exported model."""
    return dict(zip(model.input_names, columns.values(inputs), strict=True))
