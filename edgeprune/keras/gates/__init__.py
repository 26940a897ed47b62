"""Gates: factors of weights or of channels that training closes. One module per kind; its name is the word in recipes.

A module says what a layer computes with while it trains (`Gate.gated`) and afterwards (`Gate.decided`), and holds no state
of its own: the variables are `edgeprune.keras.gated`'s, which also swaps a layer's kernel for what a gate makes of it. For
channels the values are ones, a gate for each unit of a coupled group, so most formulas serve both granularities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from edgeprune.keras import tf

Tensor = Any
Own = Mapping[str, Tensor]  # the gate's variables, float32
Draw = Callable[[Tensor], Tensor]  # something -> random numbers of its shape


class Start(NamedTuple):
    """A variable's first value.

    Attributes:
        values: float32, of any shape.
        trained: whether the optimizer moves it; else only ``Gate.moved`` and what a layer sees do.
        travels: whether it moves faster than weights do, as the option ``rate`` says.
    """

    values: np.ndarray
    trained: bool = True
    travels: bool = True


class Moment(NamedTuple):
    """What a gate may know of the training step.

    Attributes:
        uniform, normal: noise of this step: uniform in (0, 1), standard normal. The same step draws the same again.
        seen: (batch, units) means over all positions of the channels that go into the layer; None for gates on weights.
    """

    uniform: Draw
    normal: Draw
    seen: Tensor | None = None


class Gate(Protocol):
    """A module of this package.

    Attributes:
        GRANULARITIES: ``weight``, ``channel``.
        HELD: how an asked share is met. ``penalty``: by the penalty's strength; ``prior``: theory says the strength, and what is
            kept is cut from the scores in the end; ``schedule``: the scheduled share is closed, without a penalty.
        STRENGTH: of the penalty, unless the recipe says: of one open weight, over the number of training samples.
        TRAVEL: how far the traveling variables could move in the whole stage: several times what opens or closes a gate.
        SCOPE: how scores are ranked in the end, unless the recipe says: ``layer`` or ``network``.
        SEES: whether it asks for ``Moment.seen``.
    """

    GRANULARITIES: tuple[str, ...]
    HELD: Literal["penalty", "prior", "schedule"]
    STRENGTH: float
    TRAVEL: float
    SCOPE: Literal["layer", "network"]
    SEES: bool

    def start(self, values: np.ndarray, seed: int) -> dict[str, Start]:
        """The variables of a kernel, or of a group's units (ones)."""

    def gated(self, values: Tensor, own: Own, moment: Moment) -> Tensor:
        """What takes the values' place while training; for gates that see their inputs (batch, units)."""

    def decided(self, values: Tensor, own: Own) -> Tensor:
        """What takes the values' place at inference: exact zeros where a gate is closed."""

    def penalty(self, magnitudes: Tensor, own: Own) -> Tensor:
        """What an open gate costs, differentiable: its chance to be open where it has one; (shape of the values)."""

    def score(self, magnitudes: Tensor, own: Own) -> Tensor:
        """What is kept first: (shape of the values), finite, higher = keep."""

    def moved(self, magnitudes: Tensor, own: Own, sparsity: Tensor, progress: Tensor) -> dict[str, Tensor]:
        """Every few steps: new values of variables that the optimizer does not move.

        Args:
            magnitudes: of the weights; of channels the mean size of the kernel slices that make them, >= 0.
            own: the variables.
            sparsity: what the schedule asks for now, 0..1.
            progress: share of the steps that are done, 0..1.
        """


def straight(value: Tensor, through: Tensor) -> Tensor:
    """The value, with the gradient of something else: a straight-through estimator.

    Bengio et al., "Estimating or propagating gradients through stochastic neurons for conditional computation" (2013).
    """
    return tf.stop_gradient(value) + through - tf.stop_gradient(through)


def lowest(scores: Tensor, share: Tensor) -> Tensor:
    """The score that a share of all lies at or below, (): the threshold with which ``scores > threshold`` keeps the rest.

    Args:
        scores: any shape.
        share: 0..1, rounded down to a whole count; with a count of 0 a value below all.
    """
    ordered = tf.sort(tf.reshape(scores, [-1]))
    count = tf.cast(tf.floor(share * tf.cast(tf.size(ordered), tf.float32) + 1e-4), tf.int32)
    return tf.where(count > 0, ordered[tf.maximum(count, 1) - 1], ordered[0] - 1.0)
