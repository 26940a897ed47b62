"""Movement pruning of weights or channels: those stay that training moves away from zero, at a scheduled sparsity.

    m = 1 if s is among the highest scores else 0,  dL/ds = dL/dm = (dL/dW') W

so that a score sums up -(dL/dW') W over the steps: it rises while the weight moves away from zero. Weights that are
masked get no gradient, their scores do. Sanh et al., "Movement pruning: adaptive sparsity by fine-tuning" (2020). The
threshold follows the schedule every few steps, for each kernel or group by itself.
"""

from __future__ import annotations

import numpy as np

from edgeprune.keras import tf
from edgeprune.keras.gates import Moment, Own, Start, Tensor, lowest, straight

GRANULARITIES = ("weight", "channel")
HELD, STRENGTH, SCOPE, SEES = "schedule", 0.0, "layer", False
TRAVEL = 10.0


def start(values: np.ndarray, seed: int) -> dict[str, Start]:
    nothing = np.zeros(values.shape, np.float32)
    return {"scores": Start(nothing), "threshold": Start(np.array(-1.0, np.float32), trained=False)}


def gated(values: Tensor, own: Own, moment: Moment) -> Tensor:
    return values * straight(_open(own), own["scores"])


def decided(values: Tensor, own: Own) -> Tensor:
    return values * _open(own)


def penalty(magnitudes: Tensor, own: Own) -> Tensor:
    return tf.zeros_like(magnitudes)


def score(magnitudes: Tensor, own: Own) -> Tensor:
    return own["scores"]


def moved(magnitudes: Tensor, own: Own, sparsity: Tensor, progress: Tensor) -> dict[str, Tensor]:
    return {"threshold": lowest(own["scores"], sparsity)}


def _open(own: Own) -> Tensor:
    return tf.cast(own["scores"] > own["threshold"], tf.float32)
