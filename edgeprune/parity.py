"""Whether a .tflite file computes what its Keras model computes, and if not, from which op on.

Their kernels round differently, and roundings add up to many steps for single samples, most of all behind a softmax.
What rounding cannot do is push an output one way over all samples, or far on the whole: see `divergence.agrees`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from edgeprune.agreement import Comparison, boundary_of, compare, worst
from edgeprune.divergence import Divergence, Inputs, agrees, first
from edgeprune.errors import ArtefactError
from edgeprune.inference import Port, Runner

BATCH = 64


class Reference(Protocol):
    """The Keras side: what `edgeprune.keras.export.Exported` is."""

    def outputs(self, inputs: Inputs) -> Mapping[str, np.ndarray]:
        """The model's outputs by name, real numbers, each (n, ...), for one batch of inputs by name."""

    def layer_outputs(self, inputs: Inputs) -> Sequence[np.ndarray]:
        """What every layer gives, real numbers, each (n, ...)."""


@dataclass(frozen=True)
class Parity:
    """A file against its model.

    Attributes:
        comparison: of the stored outputs; of several outputs the worst of each figure.
        agrees: whether the difference can be rounding; None when that was not judged.
        first: the first op that diverges; None when the outputs agree, or when no op can be blamed: then roundings have
            added up further than the tolerance.
    """

    comparison: Comparison
    agrees: bool | None
    first: Divergence | None


def check(model: Path | bytes, reference: Reference, inputs: Inputs, classes: bool, tolerance: float | None) -> Parity:
    """Compare outputs, and where they do not agree, op by op.

    Args:
        model: the .tflite file.
        reference: the Keras model that it was made of.
        inputs: float32 samples for each input by name, (n, ...).
        classes: whether outputs are scores of classes.
        tolerance: steps, > 0; None when the model has no fake quantizers: then the difference is the quantization
            itself, and nobody can say how large it may be.

    Raises:
        ArtefactError: the file has other inputs or outputs than the model, or cannot be run.
        DataError: the inputs do not fit.
    """
    runner = Runner(model)
    _check_names("inputs", runner.inputs, inputs)
    expected = _expected(reference, inputs)
    _check_names("outputs", runner.outputs, expected)
    stored = runner.raw(*(port.quantize(inputs[port.name]) for port in runner.inputs))
    comparison = worst(
        [
            compare(port.quantize(expected[port.name]), got, classes, boundary_of(port.scale, port.zero_point))
            for port, got in zip(runner.outputs, stored, strict=True)
        ]
    )
    if tolerance is None:
        return Parity(comparison, None, None)
    agreed = agrees(comparison.systematic_difference_steps, comparison.rms_difference_steps, tolerance)
    return Parity(comparison, agreed, None if agreed else first(model, inputs, reference.layer_outputs, tolerance))


def _expected(reference: Reference, inputs: Inputs) -> dict[str, np.ndarray]:
    """The model's outputs for all samples, a batch at a time."""
    count = len(next(iter(inputs.values())))
    batches = [
        reference.outputs({name: array[start : start + BATCH] for name, array in inputs.items()})
        for start in range(0, count, BATCH)
    ]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _check_names(what: str, ports: Sequence[Port], known: Mapping[str, np.ndarray]) -> None:
    """Ports are paired by name: by place, two of one shape could be swapped and nobody would see it."""
    if sorted(port.name for port in ports) != sorted(known):
        raise ArtefactError(
            f"The file has the {what} {', '.join(port.name for port in ports)}, the Keras model {', '.join(known)}. Give "
            "the model that this file was converted from."
        )
