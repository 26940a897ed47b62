"""Attention of channels: a squeeze-and-excite scorer that learns which channels to pick, and is folded away.

    a(x) = sigmoid(T (W2 relu(W1 d + b1) + b2)),  d: the channels' means over all positions of x

scales what reads the channels. The loss gets a(d̄) as penalty, where d̄ is the running mean of d. While training goes on T
rises from 1 to 10, so that channels are picked or not; from the middle on the attention passes over from a(x) to the
constant a(d̄) where that is above 0.5, and 0 elsewhere (straight through), which is folded into the kernels.

Hu et al., "Squeeze-and-excitation networks" (2018); Yamamoto & Maeno, "PCAS: pruning channels with attention statistics for
deep network compression" (2018); Luo & Wu, "AutoPruner: an end-to-end trainable filter pruning method for efficient deep
model inference" (2020).
"""

from __future__ import annotations

import numpy as np

from edgeprune.keras import tf
from edgeprune.keras.gates import Moment, Own, Start, Tensor, straight

GRANULARITIES = ("channel",)
HELD, STRENGTH, SCOPE, SEES = "penalty", 0.1, "network", True
TRAVEL = 10.0
REDUCTION, SMALLEST = 4, 2  # units of the hidden layer: a quarter of the channels, and at least so many
OPEN = 2.0  # b2 at first: attention 0.88
SHARPEST = 10.0  # T in the end
PICKED = 0.5
MEMORY = 0.95  # of the running mean


def start(values: np.ndarray, seed: int) -> dict[str, Start]:
    units = len(values)
    hidden = max(units // REDUCTION, SMALLEST)
    random = np.random.Generator(np.random.PCG64(seed))
    scale = np.sqrt(2.0 / (units + hidden))
    return {
        "kernel1": Start(random.normal(0, scale, (units, hidden)).astype(np.float32), travels=False),
        "bias1": Start(np.zeros(hidden, np.float32), travels=False),
        "kernel2": Start(random.normal(0, 0.1 * scale, (hidden, units)).astype(np.float32), travels=False),
        "bias2": Start(np.full(units, OPEN, np.float32)),
        "seen": Start(np.zeros(units, np.float32), trained=False),
        "progress": Start(np.array(0.0, np.float32), trained=False),
    }


def gated(values: Tensor, own: Own, moment: Moment) -> Tensor:
    constant = tf.clip_by_value(2.0 * own["progress"] - 1.0, 0.0, 1.0)
    picked = straight(decided(values, own), values * _settled(own))
    return (1.0 - constant) * values * _attention(moment.seen, own) + constant * picked


def decided(values: Tensor, own: Own) -> Tensor:
    attention = _settled(own)
    return values * tf.where(attention > PICKED, attention, tf.zeros_like(attention))


def penalty(magnitudes: Tensor, own: Own) -> Tensor:
    return _settled(own)


def score(magnitudes: Tensor, own: Own) -> Tensor:
    return _settled(own)


def moved(magnitudes: Tensor, own: Own, sparsity: Tensor, progress: Tensor) -> dict[str, Tensor]:
    return {"progress": progress}


def remembered(seen: Tensor, own: Own) -> Tensor:
    """The running mean after a batch."""
    return MEMORY * own["seen"] + (1.0 - MEMORY) * tf.reduce_mean(seen, axis=0)


def _attention(seen: Tensor, own: Own) -> Tensor:
    """(batch, units) -> (batch, units), 0..1."""
    hidden = tf.nn.relu(seen @ own["kernel1"] + own["bias1"])
    sharpness = 1.0 + (SHARPEST - 1.0) * own["progress"]
    return tf.sigmoid(sharpness * (hidden @ own["kernel2"] + own["bias2"]))


def _settled(own: Own) -> Tensor:
    return _attention(own["seen"][tf.newaxis], own)[0]
