"""Prune while quantization-aware training runs: masks that follow a schedule, from scores of the fake-quantized weights.

A weight that int8 rounds to zero has the score 0, so it goes first and costs nothing; and what is left trains with the
rounding and the zeros it will have. Pruned weights live on behind their masks, without a gradient, and come back where
another one falls below them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from edgeprune import granularity, masks
from edgeprune.keras import keras, kernels, tf
from edgeprune.keras.pruning import LayerPlan, Pattern, Ramp
from edgeprune.keras.pruning_wrappers import tfmot_schedule
from edgeprune.keras.tfmot import quantizers

TIES = 2.0**-12  # of a weight's own magnitude, added to its score: int8 has 127 magnitudes, and many weights share one
# Of a variable that is written while the model runs, also under `tf.distribute`, where every replica writes the same.
STATE: dict[str, Any] = {
    "trainable": False,
    "synchronization": tf.VariableSynchronization.ON_READ,
    "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
}
NEVER = -(2**40)  # a step at which no schedule prunes: while ranges are calibrated


class Ramped(NamedTuple):
    """How one kernel is pruned.

    Attributes:
        granularity: what lives or dies together.
        schedule: TFMOT's: training step -> whether masks are updated there, and the sparsity.
        outputs_first: the kernel is laid out (..., out, in).
    """

    granularity: granularity.Granularity
    schedule: Callable[[Any], tuple[Any, Any]]
    outputs_first: bool


def ramped(plans: list[LayerPlan], pattern: Pattern, ramp: Ramp, steps: int) -> dict[str, Ramped]:
    """Layer name -> how its kernel is pruned over so many steps, for the layers of a plan that are."""
    groups = _granularity(pattern)
    schedule = tfmot_schedule(ramp, steps, pattern)
    return {entry.name: Ramped(groups, schedule, entry.kernels[0].outputs_first) for entry in plans if entry.prunable}


def _granularity(pattern: Pattern) -> granularity.Granularity:
    if pattern.granularity == "n:m":
        return granularity.n_of_m(pattern.n, pattern.m)
    if pattern.granularity == "block":
        return granularity.block(*pattern.block, {"AVG": "mean", "MAX": "max"}[pattern.pooling])
    return granularity.weight()


class Pruning(quantizers.Quantizer):
    """A weight quantizer behind a mask that follows a schedule while training.

    What is zero when it is built stays zero.
    """

    def __init__(self, quantizer: Any, weight: Any, how: Ramped) -> None:
        """Args:
        quantizer: fake-quantizes what the mask leaves.
        weight: the kernel.
        how: what goes when.
        """
        self.quantizer, self.how = quantizer, how
        self.earlier = weight.numpy() != 0

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        variables: dict[str, Any] = self.quantizer.build(tensor_shape, name, layer)
        started = keras.initializers.Constant(self.earlier.astype("float32"))
        return {
            **variables,
            "mask": layer.add_weight(f"{name}_mask", tensor_shape, initializer=started, **STATE),
            "step": layer.add_weight(
                f"{name}_step", (), dtype=tf.int64, initializer=keras.initializers.Constant(NEVER), **STATE
            ),
        }

    def __call__(self, inputs: Any, training: Any, weights: Mapping[str, Any], **keywords: Any) -> Any:
        if training:
            due, sparsity = self.how.schedule(weights["step"].assign_add(1))
            tf.cond(due, lambda: self._update(inputs, sparsity, weights, **keywords), lambda: False)
        return self.quantizer(inputs * weights["mask"], training, weights, **keywords)

    def _update(self, inputs: Any, sparsity: Any, weights: Mapping[str, Any], **keywords: Any) -> Any:
        rounded = self.quantizer(inputs, True, weights, **keywords)
        found = tf.numpy_function(self._mask, [inputs, rounded, sparsity], tf.float32)
        weights["mask"].assign(tf.ensure_shape(found, inputs.shape))
        return True

    def _mask(self, weight: np.ndarray, rounded: np.ndarray, sparsity: np.ndarray) -> np.ndarray:
        return mask(weight, rounded, float(sparsity), self.earlier, self.how).astype(np.float32)

    def settle(self, weight: Any, variables: Mapping[str, Any]) -> None:
        """Give the kernel its zeros: until now the pruned weights lived on behind the mask."""
        weight.assign(weight * variables["mask"])

    def get_config(self) -> dict[str, Any]:
        return {"quantizer": self.quantizer}


def mask(weight: np.ndarray, rounded: np.ndarray, sparsity: float, earlier: np.ndarray, how: Ramped) -> np.ndarray:
    """Which weights stay: score = |rounded|, and of equal ones the larger |weight|.

    Args:
        weight: float kernel in Keras' layout.
        rounded: the same on the int8 grid.
        sparsity: share of zeros, 0..1.
        earlier: False where an earlier stage has pruned; that stays.
        how: what goes together.

    Returns:
        Boolean, the kernel's shape, True = stays.
    """
    scores = np.abs(rounded).astype(np.float64) + TIES * np.abs(weight)
    scores = np.where(earlier, scores, -1.0)
    turn = (lambda array: array.swapaxes(-1, -2)) if how.outputs_first else (lambda array: array)
    share = min(how.granularity.sparsities, key=lambda each: abs(each - sparsity), default=round(sparsity, 6))
    kept = masks.masks({"kernel": turn(scores)}, share, how.granularity)["kernel"]
    found: np.ndarray = turn(kept) & earlier
    return found


class Clock(keras.callbacks.Callback):
    """Tells the masks at the beginning of every epoch at which step training stands, as the optimizer counts."""

    def __init__(self, quantized: Any) -> None:
        """Args:
        quantized: the fake-quantized model; what is trained may be a model around it.
        """
        super().__init__()
        self.steps = [variables["step"] for _, variables in pruned(quantized).values()]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        for step in self.steps:
            step.assign(int(self.model.optimizer.iterations))


def pruned(quantized: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Layer name -> its kernel's variable and those of its quantizer, for the layers that are pruned while training."""
    return {
        layer.layer.name: (weight, variables)
        for layer in quantized.layers
        for weight, quantizer, variables in getattr(layer, "_weight_vars", [])
        if isinstance(quantizer, Pruning)
    }


def final_masks(quantized: Any) -> dict[str, np.ndarray]:
    """Layer name (as ``kernels.key`` has it) -> what is kept, boolean, in Keras' layout."""
    main = kernels.Kernel()
    return {
        kernels.key(name, main): variables["mask"].numpy().astype(bool)
        for name, (_, variables) in pruned(quantized).items()
    }
