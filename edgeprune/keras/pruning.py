"""What every stage that prunes says: which layers, in which pattern, along which ramp; what it gave up for what, and its masks.

Which weights of a layer are kernels is the table in `edgeprune.keras.kernels`; TFMOT's own steps are in
`edgeprune.keras.pruning_wrappers`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeprune import files, schedules
from edgeprune.errors import RecipeError
from edgeprune.keras import graph, keras, kernels
from edgeprune.option_types import n_of_m
from edgeprune.pipeline import State


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


def pattern_of(options: Any) -> Pattern:
    """The pattern that a stage's options ask for: their ``granularity``, ``block``, ``pattern`` and, where there is one, ``pooling``."""
    n, m = n_of_m(options.pattern)
    return Pattern(options.granularity, tuple(options.block), getattr(options, "pooling", Pattern().pooling), n, m)


def ramp_of(options: Any, gradual: bool = True) -> Ramp:
    """The ramp that a stage's options ask for.

    Args:
        options: with the fields of `Ramp`, a ``granularity`` and a ``pattern``.
        gradual: for n:m: one more zero per block at a time, not all at once.
    """
    rest = (options.begin, options.end, options.power, options.frequency)
    if options.granularity != "n:m":
        return Ramp(options.schedule, options.initial, options.final, *rest)
    n, m = n_of_m(options.pattern)
    return Ramp("steps" if gradual else "constant", options.initial, (m - n) / m, *rest)


class LayerPlan(NamedTuple):
    """What happens to one layer.

    Attributes:
        reason: why it is not pruned, or None when it is.
        kernel: whether it has a kernel at all; BatchNormalization, for one, has none.
        kernels: those that are pruned; an LSTM has two.
        left: its other kernels, each with the reason.
    """

    name: str
    kind: str
    params: int
    reason: str | None
    kernel: bool
    kernels: tuple[kernels.Kernel, ...] = ()
    left: tuple[str, ...] = ()

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
    return [_layer_plan(layer, pattern, include, exclude) for layer in graph.functional(model).layers if layer.weights]


def _layer_plan(layer: Any, pattern: Pattern, include: str, exclude: str | None) -> LayerPlan:
    reasons = [(kernel, _kernel_reason(kernel, layer, pattern)) for kernel in kernels.of(layer)]
    able = tuple(kernel for kernel, why in reasons if why is None)
    unable = [(kernel, why) for kernel, why in reasons if why is not None]
    reason = _kind_reason(layer) or (unable[0][1] if unable and not able else None)
    reason = reason or _name_reason(layer.name, include, exclude)
    return LayerPlan(
        name=layer.name,
        kind=type(layer).__name__,
        params=int(layer.count_params()),
        reason=reason,
        kernel=any(len(weight.shape) > 1 for weight in layer.weights),
        kernels=() if reason else able,
        left=() if reason else tuple(f"{kernel.name or 'kernel'}: {why}" for kernel, why in unable),
    )


def _kind_reason(layer: Any) -> str | None:
    """Why no kernel of such a layer can be pruned, or None."""
    if isinstance(layer, (keras.layers.DepthwiseConv2D, keras.layers.DepthwiseConv1D)):
        return "depthwise: each filter sees one channel, so there are too few weights to choose from"
    if isinstance(layer, (keras.layers.EinsumDense, keras.layers.MultiHeadAttention)):
        return f"{type(layer).__name__}: which axis of its kernels is the inputs depends on an equation"
    if not kernels.of(layer):
        return f"{type(layer).__name__} has no kernel that is pruned"
    return "grouped convolution" if getattr(layer, "groups", 1) != 1 else None


def _kernel_reason(kernel: kernels.Kernel, layer: Any, pattern: Pattern) -> str | None:
    """Why a kernel cannot carry the pattern, or None."""
    if kernel.table and pattern.granularity != "weight":
        return (
            f"a table of {type(layer).__name__} has rows, not input channels, that the pattern {pattern} could follow"
        )
    inputs, outputs = kernel.sides(layer)
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


def schedule_function(ramp: Ramp, pattern: Pattern) -> schedules.Schedule:
    """The same ramp as a function of progress 0..1, for the report."""
    if pattern.granularity == "n:m" and ramp.schedule != "steps":
        return schedules.constant(ramp.final)  # TFMOT lays n:m at step 1, whatever the schedule says
    if ramp.schedule == "steps":
        return schedules.steps(pattern.m - pattern.n, pattern.m, ramp.begin, ramp.end)
    if ramp.schedule == "constant":
        return schedules.constant(ramp.final, ramp.begin)
    return schedules.polynomial(ramp.initial, ramp.final, ramp.begin, ramp.end, ramp.power)


def curve(schedule: schedules.Schedule, epochs: int, points: int = 200) -> list[dict[str, float]]:
    """A schedule over a stage's epochs, for the picture."""
    return [{"epoch": epochs * i / points, "sparsity": schedule(i / points)} for i in range(points + 1)]


def entries(
    plans: list[LayerPlan], pattern: Pattern, masks: dict[str, np.ndarray], target: float | Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """What a stage did to every layer, for report.json's ``pruning`` block and for the proof of the file.

    Args:
        plans: from ``plan``.
        pattern: that the masks have.
        masks: as ``masks`` gives them, True = kept.
        target: the sparsity that was asked for, 0..1; or of every kernel by its name in the masks.

    Returns:
        Layer's name, or that of each of its kernels -> entry.
    """
    found = [entry for plan in plans if plan.kernel for entry in _entries(plan, pattern, masks, target)]
    return {entry["name"]: entry for entry in found}


def _entries(
    plan: LayerPlan, pattern: Pattern, masks: dict[str, np.ndarray], target: float | Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    layer = {
        "name": plan.name,
        "type": plan.kind,
        "params": plan.params,
        "prunable": plan.prunable,
        "reason": plan.reason,
    }
    if not plan.prunable:
        yield {**layer, "granularity": None, "pattern": None, "sparsity_target": None, "sparsity_keras": None}
        return
    how = {"granularity": str(pattern), "pattern": str(pattern) if pattern.granularity == "n:m" else None}
    names = [kernels.key(plan.name, kernel) for kernel in plan.kernels]
    for name in names:
        yield {
            **layer,
            "name": name,
            "params": plan.params if len(names) == 1 else int(masks[name].size),
            **how,
            "sparsity_target": target if isinstance(target, float) else target[name],
            "sparsity_keras": 1.0 - float(masks[name].mean()),
        }


def earlier(state: State, plans: list[LayerPlan]) -> dict[str, np.ndarray]:
    """The masks that an earlier stage left, by the names of ``kernels.key``; none if there was no such stage.

    Raises:
        RecipeError: it has pruned a kernel that the plans leave whole, which training would fill again unnoticed.
    """
    if "masks" not in state.files:
        return {}
    found = load_masks(state.path("masks"))
    lost = sorted(set(found) - {kernels.key(plan.name, kernel) for plan in plans for kernel in plan.kernels})
    if lost:
        raise RecipeError(
            f"stages.{state.label} does not prune {', '.join(lost)}, which an earlier stage has pruned: training would fill their "
            f"zeros again. Widen stages.{state.label}.include, or prune all layers in one stage."
        )
    return found


def save_masks(final: dict[str, np.ndarray], path: Path) -> Path:
    """Masks as one ``.npz``: names as in ``masks`` -> boolean array in Keras' kernel layout, True = kept."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **final)
    files.write_bytes_atomic(path, buffer.getvalue())
    return path


def load_masks(path: Path) -> dict[str, np.ndarray]:
    """What ``save_masks`` wrote."""
    with np.load(path, allow_pickle=False) as saved:
        return {name: saved[name] for name in saved.files}
