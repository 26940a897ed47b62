"""Compare a Keras 3 model with a tf_keras one on seeded inputs of several scales.

The outputs alone would prove little where they saturate: behind a softmax that gives 0 and 1, a wrong layer cannot be
seen. So every layer's output is compared as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeprune.keras import rounding, tf

TOLERANCE = 1e-5  # of the output range
INSIDE = 1e-4  # the same for what a layer inside the model gives: rounding differs, and a later layer may even it out
SCALES = ("noise", "large noise", "pixels")  # unit variance, five times that, 0..255
SIZES = (32, 96, 224)  # for a dimension without size; the first that the model can be called with


def inputs(model: Any, seed: int = 0, samples: int = 2) -> list[list[np.ndarray]]:
    """For each scale, one array per input of a Keras 3 model.

    Floating-point inputs are normal noise, larger normal noise, and uniform 0..255. Inputs that an Embedding looks up,
    and those of an integer type, are whole numbers that the Embedding has.
    """
    from edgeprune.keras import keras3

    tensors = keras3.graph_of(model).inputs
    limits = _limits(model)
    for size in SIZES:
        generator = np.random.Generator(np.random.PCG64(seed))
        made = [
            [
                _values(generator, tensor, limits.get(place), scale, samples, size)
                for place, tensor in enumerate(tensors)
            ]
            for scale in SCALES
        ]
        if all(None not in tensor.shape[1:] for tensor in tensors) or _runs(model, made[0]):
            break
    return made


def run(model: Any, given: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """For each scale, a model's outputs at inference."""
    results = []
    for values in given:
        tensors = [tf.constant(value) for value in values]
        outputs = tf.nest.flatten(model(_structured(model, tensors), training=False))
        results.append([np.asarray(output) for output in outputs])
    return results


Values = list[list[np.ndarray]]


def one_sample(given: list[list[np.ndarray]], model: Any) -> list[np.ndarray]:
    """The first scale's inputs with one sample, or as many as a fixed batch wants: all layers' outputs need memory."""
    from edgeprune.keras import keras3

    tensors = keras3.graph_of(model).inputs
    return [value[: tensor.shape[0] or 1] for value, tensor in zip(given[0], tensors, strict=True)]


def first_difference(expected: Values, given: Values, limit: float, stirred: Values | None = None) -> int | None:
    """The place of the first layer whose outputs are off by more than ``limit`` of their range; None: there is none.

    What is counted in whole numbers or truths inside a model is left out: a tie or a threshold may fall either way.

    Args:
        expected, given: outputs of each layer of the two models.
        limit: of the range.
        stirred: outputs of the second model within `rounding.stirred`; None: nothing can be rounding.
    """
    for place, (one, other) in enumerate(zip(expected, given, strict=True)):
        moved = other if stirred is None else stirred[place]
        if any(_apart(*values, limit) for values in zip(one, other, moved, strict=True)):
            return place
    return None


def _apart(one: np.ndarray, other: np.ndarray, stirred: np.ndarray, limit: float) -> bool:
    if one.dtype.kind != "f":
        return False
    found = difference(one, other)
    return found > limit and found > rounding.allowed(limit, difference(other, stirred))


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference of two arrays as a share of the first one's range; infinite where shapes differ.

    Where all values are nearly the same, a hundredth of their size stands for the range: float32 resolves no more.
    """
    if one.shape != other.shape:
        return float("inf")
    one, other = one.astype("float64"), other.astype("float64")
    finite = np.isfinite(one)
    if not np.array_equal(finite, np.isfinite(other)):
        return float("inf")
    if not finite.any():
        return 0.0
    one, other = one[finite], other[finite]
    spread = max(float(np.ptp(one)), 1e-2 * float(np.abs(one).max())) or 1.0
    return float(np.abs(one - other).max()) / spread


def _values(generator: Any, tensor: Any, limit: int | None, scale: str, samples: int, size: int) -> np.ndarray:
    shape = [size if length is None else length for length in tensor.shape[1:]]
    shape = [tensor.shape[0] or samples, *shape]
    dtype = "float32" if "float" in tensor.dtype else tensor.dtype
    if dtype == "bool":
        return generator.integers(0, 2, shape).astype(bool)
    if limit is not None or dtype != "float32":
        return generator.integers(0, limit or 100, shape).astype(dtype)
    if scale == "pixels":
        return generator.uniform(0, 255, shape).astype("float32")
    return (generator.standard_normal(shape) * (1.0 if scale == "noise" else 5.0)).astype("float32")


class _Lookups:
    """Which inputs reach which Embedding: the values of a replay are sets of places of inputs."""

    def __init__(self) -> None:
        self.limits: dict[int, int] = {}

    def call(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        reached = frozenset().union(*(value for value in _leaves((args, kwargs)) if isinstance(value, frozenset)))
        if type(operation).__name__ == "Embedding":
            for place in reached:
                self.limits[place] = min(operation.input_dim, self.limits.get(place, operation.input_dim))
        outputs = len(operation._inbound_nodes[0].outputs)
        return [frozenset() if getattr(operation, "weights", None) else reached] * outputs

    def cast(self, value: Any, dtype: str) -> Any:
        return value


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def _limits(model: Any) -> dict[int, int]:
    """Place of an input -> how many values the smallest Embedding that it reaches has."""
    from edgeprune.keras import keras3

    lookups = _Lookups()
    places = range(len(keras3.graph_of(model).inputs))
    keras3.replay(model, [frozenset([place]) for place in places], lookups)
    return lookups.limits


def _structured(model: Any, tensors: list[Any]) -> Any:
    """The inputs as the model's call takes them: one alone, a list, or a dictionary by name."""
    structure = getattr(getattr(model, "_functional", None) or model, "_inputs_struct", None)
    if structure is not None and not isinstance(structure, list):
        from edgeprune.keras import keras3

        return keras3.keras3().tree.pack_sequence_as(structure, tensors)
    return tensors if len(tensors) > 1 else tensors[0]


def _runs(model: Any, values: list[np.ndarray]) -> bool:
    try:
        run(model, [values])
    except Exception:  # too small for the model, in whatever words
        return False
    return True
