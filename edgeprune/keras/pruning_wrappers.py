"""TFMOT magnitude pruning: its wrapping, its schedules, its masks, and visible subclasses of its classes for what they cannot do.

- `KernelsPruned`: kernels of any rank and layout. TFMOT refuses rank 3 with an n:m pattern, and lays the pattern along the
  output channels of a transposed convolution.
- `RampedNM`: an n:m pattern that is reached step by step. TFMOT lays it once, at step 1, and ignores the schedule.
- `BlockPruned`: blocks in convolutions. TFMOT takes two-dimensional kernels only.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from edgeprune.errors import RecipeError
from edgeprune.keras import graph, kernels, tf, tfmot
from edgeprune.keras.pruning import LayerPlan, Pattern, Ramp
from edgeprune.keras.tfmot import pruning_impl, pruning_wrapper

# Mask updates over the ramp, at most; TFMOT's default frequency of 100 steps is longer than a small stage.
UPDATES = 100


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
    chosen = {entry.name: entry.kernels for entry in plans if entry.prunable}
    if not chosen:
        why = "; ".join(f"{entry.name}: {entry.reason}" for entry in plans) or "it has no layer with weights"
        raise RecipeError(
            f"The prune stage found no layer that can carry the pattern {pattern} ({why}). Change granularity or include."
        )
    schedule = tfmot_schedule(ramp, steps, pattern)

    def copy(layer: Any) -> Any:
        fresh = graph.copy_layer(layer)
        return _wrapper(fresh, chosen[layer.name], pattern, ramp, schedule) if layer.name in chosen else fresh

    return graph.rebuild(model, copy=copy)


def _wrapper(layer: Any, chosen: tuple[kernels.Kernel, ...], pattern: Pattern, ramp: Ramp, schedule: Any) -> Any:
    if pattern.granularity == "n:m":
        zeros = (pattern.m - pattern.n, pattern.m)  # TFMOT counts zeros: its (2, 4) is 2 zeros of 4
        kind = RampedNM if ramp.schedule == "steps" else KernelsPruned
        return kind(layer, chosen, pruning_schedule=schedule, sparsity_m_by_n=zeros)
    if pattern.granularity == "block":
        return BlockPruned(layer, chosen, pattern.block, pruning_schedule=schedule, block_pooling_type=pattern.pooling)
    return KernelsPruned(layer, chosen, pruning_schedule=schedule)


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


def masks(model: Any) -> dict[str, np.ndarray]:
    """Boolean masks (True = kept) of a wrapped model's kernels, in Keras' layouts, by the names of ``kernels.key``.

    A layer's main kernel goes by the layer's name, another by ``layer:kernel``.
    """
    return {
        kernels.key(layer.layer.name, kernel): mask.numpy().astype(bool)
        for layer in model.layers
        if isinstance(layer, KernelsPruned)
        for kernel, (_, mask, _) in zip(layer.kernels, layer.pruning_vars, strict=True)
    }


def strip(model: Any) -> Any:
    """The plain model inside a wrapped one, masks applied a last time.

    The optimizer's last step came after the last masking, so weights off the mask are small but not zero.
    """
    final = masks(model)
    plain = graph.rebuild(tfmot.sparsity.keras.strip_pruning(model))
    for name, mask in final.items():
        kernel = kernels.find(plain, name)
        kernel.assign(np.where(mask, kernel.numpy(), 0.0))
    return plain


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


class _Pruning(pruning_impl.Pruning):
    """TFMOT's mask arithmetic over kernels of any rank, seen as (everything else, input channels, output channels)."""

    def __init__(self, outputs_first: set[Any], **keywords: Any) -> None:
        """Args:
        outputs_first: references of the kernels that are laid out (..., out, in).
        """
        self._outputs_first = outputs_first
        super().__init__(**keywords)

    def _is_outputs_first(self, weights: Any) -> bool:
        return hasattr(weights, "ref") and weights.ref() in self._outputs_first

    def _seen(self, weights: Any) -> Any:
        """(places, in, out)."""
        turned = tf.linalg.matrix_transpose(weights) if self._is_outputs_first(weights) else weights
        return tf.reshape(turned, [-1, *turned.shape[-2:]])

    def _as_stored(self, mask: Any, weights: Any) -> Any:
        """A mask (places, in, out) in the kernel's own layout."""
        if not self._is_outputs_first(weights):
            return tf.reshape(mask, weights.shape)
        *places, outputs, inputs = weights.shape
        return tf.linalg.matrix_transpose(tf.reshape(mask, [*places, inputs, outputs]))

    def _update_mask_sparsity_m_by_n(self, weights: Any, m_by_n: tuple[int, int] = (2, 4)) -> Any:
        image_like = self._seen(weights)[tf.newaxis]  # as a convolution's kernel, which TFMOT takes
        return self._as_stored(super()._update_mask_sparsity_m_by_n(image_like, m_by_n), weights)


class _RampedNMPruning(_Pruning):
    """As many zeros per block as the schedule says at this step."""

    def __init__(self, zeros: tuple[int, int], **keywords: Any) -> None:
        # Without sparsity_m_by_n TFMOT asks the schedule when to update, as it does for unstructured pruning.
        super().__init__(**{**keywords, "sparsity_m_by_n": None})
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


class _BlockPruning(_Pruning):
    """Blocks over kernels seen as (everything but output channels, output channels)."""

    def _validate_block(self) -> None:
        """Any rank is seen as two-dimensional; ``plan`` has checked that the blocks fit."""

    def _maybe_update_block_mask(self, weights: Any) -> tuple[Any, Any]:
        seen = self._seen(weights)
        threshold, mask = super()._maybe_update_block_mask(tf.reshape(seen, [-1, seen.shape[-1]]))
        return threshold, self._as_stored(mask, weights)


class KernelsPruned(pruning_wrapper.PruneLowMagnitude):
    """``prune_low_magnitude`` of chosen kernels of a layer, whatever their rank and layout."""

    def __init__(self, layer: Any, chosen: tuple[kernels.Kernel, ...] | None = None, **keywords: Any) -> None:
        """Args:
        layer: any layer that has kernels.
        chosen: those to prune; None: all.
        keywords: TFMOT's own.
        """
        self.kernels = kernels.of(layer) if chosen is None else chosen
        layer.get_prunable_weights = lambda: [kernel.of(layer) for kernel in self.kernels]
        super().__init__(layer, **keywords)
        self.supports_masking = layer.supports_masking

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.pruning_obj = self._pruning(
            outputs_first={kernel.of(self.layer).ref() for kernel in self.kernels if kernel.outputs_first},
            training_step_fn=lambda: self.pruning_step,
            pruning_vars=self.pruning_vars,
            pruning_schedule=self.pruning_schedule,
            block_size=self.block_size,
            block_pooling_type=self.block_pooling_type,
            sparsity_m_by_n=self.sparsity_m_by_n,
        )

    def _pruning(self, **keywords: Any) -> _Pruning:
        return _Pruning(**keywords)

    def call(self, inputs: Any, training: Any = None, **keywords: Any) -> Any:
        """TFMOT hands on all that Keras passes; but most layers take no mask of steps."""
        if "mask" in keywords and "mask" not in inspect.signature(self.layer.call).parameters:
            del keywords["mask"]
        return super().call(inputs, training=training, **keywords)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Which steps count, as the layer itself says."""
        return self.layer.compute_mask(inputs, mask)


class RampedNM(KernelsPruned):
    """``prune_low_magnitude`` with an n:m pattern that follows its schedule: 4:4 -> 3:4 -> 2:4."""

    def _pruning(self, **keywords: Any) -> _Pruning:
        return _RampedNMPruning(self.sparsity_m_by_n, **keywords)


class BlockPruned(KernelsPruned):
    """``prune_low_magnitude`` with blocks of (input channels, output channels), in convolutions too."""

    def __init__(self, layer: Any, chosen: Any = None, block_size: tuple[int, int] = (1, 1), **keywords: Any) -> None:
        super().__init__(layer, chosen, block_size=(1, 1), **keywords)  # or TFMOT refuses the kernel's rank
        self._blocks = block_size

    def _pruning(self, **keywords: Any) -> _Pruning:
        return _BlockPruning(**{**keywords, "block_size": self._blocks})
