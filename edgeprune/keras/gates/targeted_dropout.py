"""Targeted dropout of weights or channels: the smallest are dropped at random, so that the network learns to do without.

Of each kernel or group, the share γ of smallest magnitude are the targets; each of them is dropped with probability α in
every step, and nothing is scaled up. In the end the targets go. γ follows the schedule, which the paper calls ramping
targeted dropout; targets are chosen anew every few steps, within the layer, where the paper chooses within every output
unit. Gomez et al., "Learning sparse networks using targeted dropout" (2019).
"""

from __future__ import annotations

import numpy as np

from edgeprune.keras import tf
from edgeprune.keras.gates import Moment, Own, Start, Tensor, lowest

GRANULARITIES = ("weight", "channel")
HELD, STRENGTH, SCOPE, SEES = "schedule", 0.0, "layer", False
TRAVEL = 1.0  # nothing travels
DROP = 0.5  # α


def start(values: np.ndarray, seed: int) -> dict[str, Start]:
    return {"targets": Start(np.zeros(values.shape, np.float32), trained=False)}


def gated(values: Tensor, own: Own, moment: Moment) -> Tensor:
    dropped = tf.cast(moment.uniform(values) < DROP, tf.float32)
    return values * (1.0 - own["targets"] * dropped)


def decided(values: Tensor, own: Own) -> Tensor:
    return values * (1.0 - own["targets"])


def penalty(magnitudes: Tensor, own: Own) -> Tensor:
    return tf.zeros_like(magnitudes)


def score(magnitudes: Tensor, own: Own) -> Tensor:
    return magnitudes


def moved(magnitudes: Tensor, own: Own, sparsity: Tensor, progress: Tensor) -> dict[str, Tensor]:
    return {"targets": tf.cast(magnitudes <= lowest(magnitudes, sparsity), tf.float32)}
