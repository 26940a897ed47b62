"""L0 regularization with hard concrete gates, of weights or channels: random gates whose chance to be open is penalized.

With u uniform in (0, 1) and a learned log α for every gate,

    s = sigmoid((log u - log(1 - u) + log α) / β),  z = min(1, max(0, s (ζ - γ) + γ))
    P(z > 0) = sigmoid(log α - β log(-γ / ζ))                                             (eq. 12: the penalty)
    z at inference = min(1, max(0, sigmoid(log α) (ζ - γ) + γ))                                          (eq. 13)

Louizos et al., "Learning sparse neural networks through L0 regularization" (2018). Gates start open, where z at inference
is 1, since the network comes trained.
"""

from __future__ import annotations

import math

import numpy as np

from edgeprune.keras import tf
from edgeprune.keras.gates import Moment, Own, Start, Tensor

GRANULARITIES = ("weight", "channel")
HELD, STRENGTH, SCOPE, SEES = "penalty", 0.1, "network", False
TRAVEL = 45.0
TEMPERATURE, BELOW, ABOVE = 2 / 3, -0.1, 1.1  # β, γ, ζ of the paper
OPEN = 2.5  # log α from which on z at inference is 1: sigmoid(OPEN) >= (1 - γ) / (ζ - γ)


def start(values: np.ndarray, seed: int) -> dict[str, Start]:
    return {"log_alpha": Start(np.full(values.shape, OPEN, np.float32))}


def gated(values: Tensor, own: Own, moment: Moment) -> Tensor:
    noise = moment.uniform(own["log_alpha"])
    logit = tf.math.log(noise) - tf.math.log1p(-noise)
    return values * stretched(tf.sigmoid((logit + own["log_alpha"]) / TEMPERATURE))


def decided(values: Tensor, own: Own) -> Tensor:
    return values * stretched(tf.sigmoid(own["log_alpha"]))


def penalty(magnitudes: Tensor, own: Own) -> Tensor:
    return tf.sigmoid(own["log_alpha"] - TEMPERATURE * math.log(-BELOW / ABOVE))


def score(magnitudes: Tensor, own: Own) -> Tensor:
    return own["log_alpha"]


def moved(magnitudes: Tensor, own: Own, sparsity: Tensor, progress: Tensor) -> dict[str, Tensor]:
    return {}


def stretched(share: Tensor) -> Tensor:
    """0..1 -> γ..ζ, cut at 0 and 1."""
    return tf.clip_by_value(share * (ABOVE - BELOW) + BELOW, 0.0, 1.0)
