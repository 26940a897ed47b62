"""Variational dropout of every weight: noise of a learned size; weights that are all noise are removed.

Each weight w is drawn from a normal distribution with mean w and variance σ² = α w². The prior is log-uniform, and

    KL ≈ -k1 sigmoid(k2 + k3 log α) + 0.5 log(1 + 1/α) + k1     (k1, k2, k3 = 0.63576, 1.87320, 1.48695)

is the penalty, over the number of training samples; log α >= 3 (a dropout rate of 95 %) closes a weight. Variables are w
and log σ², the additive noise of the paper; a kernel is drawn once per step, not once per sample.

Molchanov et al., "Variational dropout sparsifies deep neural networks" (2017), eq. 14.
"""

from __future__ import annotations

import numpy as np

from edgeprune.keras import tf
from edgeprune.keras.gates import Moment, Own, Start, Tensor

GRANULARITIES = ("weight",)
HELD, STRENGTH, SCOPE, SEES = "prior", 1.0, "network", False
TRAVEL = 50.0
LOG_VARIANCE = -10.0  # at first: next to no noise
THRESHOLD = 3.0  # of log α
LEAST = 1e-8  # added to w², so that its logarithm is finite
K1, K2, K3 = 0.63576, 1.87320, 1.48695


def start(values: np.ndarray, seed: int) -> dict[str, Start]:
    return {"log_variance": Start(np.full(values.shape, LOG_VARIANCE, np.float32))}


def gated(values: Tensor, own: Own, moment: Moment) -> Tensor:
    return values + tf.exp(0.5 * own["log_variance"]) * moment.normal(values)


def decided(values: Tensor, own: Own) -> Tensor:
    return tf.where(_log_alpha(values, own) < THRESHOLD, values, tf.zeros_like(values))


def penalty(magnitudes: Tensor, own: Own) -> Tensor:
    return divergence(_log_alpha(magnitudes, own))


def score(magnitudes: Tensor, own: Own) -> Tensor:
    return -_log_alpha(magnitudes, own)


def moved(magnitudes: Tensor, own: Own, sparsity: Tensor, progress: Tensor) -> dict[str, Tensor]:
    return {}


def divergence(log_alpha: Tensor) -> Tensor:
    """The approximation of KL(q || p) above, nats; 0 for infinite α."""
    return K1 - K1 * tf.sigmoid(K2 + K3 * log_alpha) + 0.5 * tf.math.softplus(-log_alpha)


def _log_alpha(values: Tensor, own: Own) -> Tensor:
    return own["log_variance"] - tf.math.log(tf.square(values) + LEAST)
