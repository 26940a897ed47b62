"""Straight-through binary masks of weights or channels: open where a learned score is positive.

    m = 1 if s > 0 else 0,  dL/ds = dL/dm    (straight through);  penalty: sigmoid(s)

Bengio et al., "Estimating or propagating gradients through stochastic neurons for conditional computation" (2013);
Mallya et al., "Piggyback: adapting a single network to multiple tasks by learning to mask weights" (2018). With the
penalty on sigmoid(s) it is the soft movement pruning of Sanh et al., "Movement pruning: adaptive sparsity by fine-tuning"
(2020).
"""

from __future__ import annotations

import numpy as np

from edgeprune.keras import tf
from edgeprune.keras.gates import Moment, Own, Start, Tensor, straight

GRANULARITIES = ("weight", "channel")
HELD, STRENGTH, SCOPE, SEES = "penalty", 0.1, "network", False
TRAVEL = 10.0
OPEN = 1.0  # the first score


def start(values: np.ndarray, seed: int) -> dict[str, Start]:
    return {"scores": Start(np.full(values.shape, OPEN, np.float32))}


def gated(values: Tensor, own: Own, moment: Moment) -> Tensor:
    return values * straight(_open(own), own["scores"])


def decided(values: Tensor, own: Own) -> Tensor:
    return values * _open(own)


def penalty(magnitudes: Tensor, own: Own) -> Tensor:
    return tf.sigmoid(own["scores"])


def score(magnitudes: Tensor, own: Own) -> Tensor:
    return own["scores"]


def moved(magnitudes: Tensor, own: Own, sparsity: Tensor, progress: Tensor) -> dict[str, Tensor]:
    return {}


def _open(own: Own) -> Tensor:
    return tf.cast(own["scores"] > 0.0, tf.float32)
