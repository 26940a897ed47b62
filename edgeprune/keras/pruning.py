"""TFMOT magnitude pruning: which layers, with which schedule, in which pattern.

The wrapping, the masks and the training-time updates are TFMOT's ``prune_low_magnitude``. Two things it cannot do are
added as visible subclasses of its own classes: an n:m pattern that is reached step by step (TFMOT lays it once, at step
1, and ignores the schedule), and blocks in convolutions (TFMOT takes two-dimensional kernels only).
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl, pruning_wrapper

from edgeprune import files, schedules
from edgeprune.errors import RecipeError
from edgeprune.keras import graph, keras, tf, tfmot

UPDATES = (
    100  # mask updates over the ramp, at most; TFMOT's default frequency of 100 steps is longer than a small stage
)


class Pattern(NamedTuple):
    """What lives or dies together.

    Attributes:
        granularity: ``weight``, ``block`` or ``n:m``.
        block: for ``block``: consecutive (input channels, output channels).
        n, m: for ``n:m``: at most n non-zeros among every m consecutive input channels.
    """

    granularity: str = "weight"
    block: tuple[int, int] = (1, 1)
    pooling: str = "AVG"
    n: int = 2
    m: int = 4

    def __str__(self) -> str:
        names = {"weight": "weight", "block": f"block {self.block[0]}x{self.block[1]}", "n:m": f"{self.n}:{self.m}"}
        return names[self.granularity]


class Ramp(NamedTuple):
    """How sparsity rises over the stage.

    Attributes:
        schedule: ``polynomial`` or ``constant``, or ``steps`` for an n:m pattern that is reached gradually.
        initial, final: sparsity, 0..1.
        begin, end: share of the stage's training steps, 0..1.
        power: of the polynomial.
        frequency: steps between mask updates; None: a hundredth of the ramp.
    """

    schedule: str
    initial: float
    final: float
    begin: float
    end: float
    power: float = 3.0
    frequency: int | None = None


class LayerPlan(NamedTuple):
    """What happens to one layer.

    Attributes:
        reason: why it is not pruned, or None when it is.
        kernel: whether it has a kernel at all; BatchNormalization, for one, has none.
    """

    name: str
    kind: str
    params: int
    reason: str | None
    kernel: bool

    @property
    def prunable(self) -> bool:
        return self.reason is None

    @property
    def left_alone(self) -> bool:
        """Whether it has weights that could have been pruned, and the user should hear why they are not."""
        return self.kernel and not self.prunable


def plan(model: Any, pattern: Pattern, include: str = ".*", exclude: str | None = None) -> list[LayerPlan]:
    """For every layer with weights: pruned, or why not.

    Args:
        model: functional tf_keras model.
        pattern: decides which shapes can carry it.
        include, exclude: regular expressions that layer names must, or must not, match in full.
    """
    plans = []
    for layer in graph.functional(model).layers:
        if layer.weights:
            reason = _reason(layer, pattern) or _name_reason(layer.name, include, exclude)
            kernel = any(len(weight.shape) > 1 for weight in layer.weights)
            plans.append(LayerPlan(layer.name, type(layer).__name__, int(layer.count_params()), reason, kernel))
    return plans


def _reason(layer: Any, pattern: Pattern) -> str | None:
    """Why a layer cannot carry the pattern, or None."""
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return "depthwise: each filter sees one channel, so there are too few weights to choose from"
    if type(layer) not in (keras.layers.Conv2D, keras.layers.Dense):
        return f"{type(layer).__name__} has no kernel that is pruned"
    if getattr(layer, "groups", 1) != 1:
        return "grouped convolution"
    inputs, outputs = layer.kernel.shape[-2:]
    if pattern.granularity == "n:m" and inputs % pattern.m:
        return f"{inputs} input channels, not divisible by {pattern.m}"
    if pattern.granularity == "block" and (inputs % pattern.block[0] or outputs % pattern.block[1]):
        return f"kernel {inputs}x{outputs} (input x output channels), not divisible into {pattern.block[0]}x{pattern.block[1]} blocks"
    return None


def _name_reason(name: str, include: str, exclude: str | None) -> str | None:
    if not re.fullmatch(include, name):
        return f"not named by include: {include}"
    if exclude and re.fullmatch(exclude, name):
        return f"named by exclude: {exclude}"
    return None


def wrap(model: Any, plans: list[LayerPlan], pattern: Pattern, ramp: Ramp, steps: int) -> Any:
    """A copy of the model whose planned layers are TFMOT pruning wrappers.

    Args:
        model: functional; not changed, shares no layer with the result.
        plans: from ``plan``.
        pattern, ramp: what and when.
        steps: training steps of the whole stage.

    Raises:
        RecipeError: no layer is left to prune.
    """
    chosen = {entry.name for entry in plans if entry.prunable}
    if not chosen:
        why = "; ".join(f"{entry.name}: {entry.reason}" for entry in plans) or "it has no layer with weights"
        raise RecipeError(
            f"The prune stage found no layer that can carry the pattern {pattern} ({why}). Change granularity or include."
        )
    schedule = tfmot_schedule(ramp, steps, pattern)

    def copy(layer: Any) -> Any:
        fresh = graph.copy_layer(layer)
        return _wrapper(fresh, pattern, ramp, schedule) if layer.name in chosen else fresh

    return graph.rebuild(model, copy=copy)


def _wrapper(layer: Any, pattern: Pattern, ramp: Ramp, schedule: Any) -> Any:
    if pattern.granularity == "n:m":
        zeros = (pattern.m - pattern.n, pattern.m)  # TFMOT counts zeros: its (2, 4) is 2 zeros of 4
        if ramp.schedule == "steps":
            return RampedNM(layer, pruning_schedule=schedule, sparsity_m_by_n=zeros)
        return tfmot.sparsity.keras.prune_low_magnitude(layer, pruning_schedule=schedule, sparsity_m_by_n=zeros)
    if pattern.granularity == "block":
        return BlockPruned(
            layer, pruning_schedule=schedule, block_size=pattern.block, block_pooling_type=pattern.pooling
        )
    return tfmot.sparsity.keras.prune_low_magnitude(layer, pruning_schedule=schedule)


def tfmot_schedule(ramp: Ramp, steps: int, pattern: Pattern) -> Any:
    """The TFMOT schedule in steps for a ramp in shares of the stage.

    TFMOT updates masks only every ``frequency`` steps and only up to ``end_step``; unless the two meet, the last update
    comes early and the final sparsity is never reached. The end is therefore moved to a multiple of the frequency.
    """
    end = max(1, round(ramp.end * steps))
    begin = min(round(ramp.begin * steps), end - 1)  # a short stage may round both to one step
    frequency = min(ramp.frequency or max(1, (end - begin) // UPDATES), end - begin)
    last = begin + (end - begin) // frequency * frequency
    if ramp.schedule == "constant":
        return tfmot.sparsity.keras.ConstantSparsity(ramp.final, begin, end_step=last, frequency=frequency)
    if ramp.schedule == "steps":
        return StepSchedule(pattern.m - pattern.n, pattern.m, begin, last, frequency)
    return tfmot.sparsity.keras.PolynomialDecay(
        initial_sparsity=ramp.initial,
        final_sparsity=ramp.final,
        begin_step=begin,
        end_step=last,
        power=ramp.power,
        frequency=frequency,
    )


def schedule_function(ramp: Ramp, pattern: Pattern) -> schedules.Schedule:
    """The same ramp as a function of progress 0..1, for the report."""
    if pattern.granularity == "n:m" and ramp.schedule != "steps":
        return schedules.constant(ramp.final)  # TFMOT lays n:m at step 1, whatever the schedule says
    if ramp.schedule == "steps":
        return schedules.steps(pattern.m - pattern.n, pattern.m, ramp.begin, ramp.end)
    if ramp.schedule == "constant":
        return schedules.constant(ramp.final, ramp.begin)
    return schedules.polynomial(ramp.initial, ramp.final, ramp.begin, ramp.end, ramp.power)


def masks(model: Any) -> dict[str, np.ndarray]:
    """Layer name -> boolean kernel mask (True = kept), in Keras' kernel layout, of a wrapped model."""
    return {
        layer.layer.name: layer.pruning_vars[0][1].numpy().astype(bool)
        for layer in model.layers
        if isinstance(layer, pruning_wrapper.PruneLowMagnitude)
    }


def strip(model: Any) -> Any:
    """The plain model inside a wrapped one, masks applied a last time.

    The optimizer's last step came after the last masking, so weights off the mask are small but not zero.
    """
    final = masks(model)
    plain = graph.rebuild(tfmot.sparsity.keras.strip_pruning(model))
    for name, mask in final.items():
        kernel = plain.get_layer(name).kernel
        kernel.assign(np.where(mask, kernel.numpy(), 0.0))
    return plain


def save_masks(final: dict[str, np.ndarray], path: Path) -> Path:
    """Masks as one ``.npz``: layer name -> boolean array in Keras' kernel layout, True = kept."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **final)
    files.write_bytes_atomic(path, buffer.getvalue())
    return path


def load_masks(path: Path) -> dict[str, np.ndarray]:
    """What ``save_masks`` wrote."""
    with np.load(path, allow_pickle=False) as saved:
        return {name: saved[name] for name in saved.files}


class StepSchedule(tfmot.sparsity.keras.PruningSchedule):
    """``schedules.steps`` for TFMOT: one more zero per block in even steps between two training steps."""

    def __init__(self, final_zeros: int, of: int, begin_step: int, end_step: int, frequency: int) -> None:
        self.final_zeros, self.of, self.begin_step, self.end_step, self.frequency = (
            final_zeros,
            of,
            begin_step,
            end_step,
            frequency,
        )

    def __call__(self, step: Any) -> tuple[Any, Any]:
        share = tf.cast(step - self.begin_step, tf.float32) / float(max(self.end_step - self.begin_step, 1))
        part = tf.floor(self.final_zeros * tf.clip_by_value(share, 0.0, 1.0)) + 1.0
        sparsity = tf.minimum(part, float(self.final_zeros)) / float(self.of)
        return self._should_prune_in_step(step, self.begin_step, self.end_step, self.frequency), sparsity

    def get_config(self) -> dict[str, Any]:
        keys = ("final_zeros", "of", "begin_step", "end_step", "frequency")
        return {"class_name": type(self).__name__, "config": {key: getattr(self, key) for key in keys}}


class _RampedNMImpl(pruning_impl.Pruning):
    """TFMOT's mask arithmetic with as many zeros per block as the schedule says at this step."""

    def __init__(self, zeros: tuple[int, int], **keywords: Any) -> None:
        # Without sparsity_m_by_n TFMOT asks the schedule when to update, as it does for unstructured pruning.
        super().__init__(sparsity_m_by_n=None, **keywords)
        self._zeros = zeros

    def _maybe_update_block_mask(self, weights: Any) -> tuple[Any, Any]:
        final, of = self._zeros
        sparsity = self._pruning_schedule(self._step_fn())[1]
        zeros = tf.cast(tf.round(sparsity * of), tf.int32)
        branches = [
            lambda count=count: self._update_mask_sparsity_m_by_n(weights, (count, of)) for count in range(1, final + 1)
        ]
        mask = tf.switch_case(tf.clip_by_value(zeros, 1, final) - 1, branches)
        return tf.constant(0.0, weights.dtype), mask


class RampedNM(pruning_wrapper.PruneLowMagnitude):
    """``prune_low_magnitude`` with an n:m pattern that follows its schedule: 4:4 -> 3:4 -> 2:4."""

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.pruning_obj = _RampedNMImpl(
            self.sparsity_m_by_n,
            training_step_fn=lambda: self.pruning_step,
            pruning_vars=self.pruning_vars,
            pruning_schedule=self.pruning_schedule,
            block_size=self.block_size,
            block_pooling_type=self.block_pooling_type,
        )


class _BlockImpl(pruning_impl.Pruning):
    """TFMOT's block masks over kernels of any rank, seen as (everything but output channels, output channels)."""

    def _validate_block(self) -> None:
        """Any rank is seen as two-dimensional; ``plan`` has checked that the blocks fit."""

    def _maybe_update_block_mask(self, weights: Any) -> tuple[Any, Any]:
        rows = tf.reshape(weights, [-1, weights.shape[-1]])
        threshold, mask = super()._maybe_update_block_mask(rows)
        return threshold, tf.reshape(mask, weights.shape)


class BlockPruned(pruning_wrapper.PruneLowMagnitude):
    """``prune_low_magnitude`` with blocks of (input channels, output channels), in convolutions too."""

    def __init__(self, layer: Any, block_size: tuple[int, int] = (1, 1), **keywords: Any) -> None:
        super().__init__(layer, block_size=(1, 1), **keywords)  # or TFMOT refuses the kernel's rank
        self._blocks = block_size

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.pruning_obj = _BlockImpl(
            training_step_fn=lambda: self.pruning_step,
            pruning_vars=self.pruning_vars,
            pruning_schedule=self.pruning_schedule,
            block_size=self._blocks,
            block_pooling_type=self.block_pooling_type,
        )
