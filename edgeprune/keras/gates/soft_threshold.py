"""Soft threshold reparameterization (STR): a learned threshold for each kernel, and so a learned sparsity.

    W' = sign(W) max(0, |W| - sigmoid(s)),  penalty: s² / 2

The penalty is the weight decay of s: it draws s, which starts far below 0, upwards, and so more weights to zero; the loss
draws it down where that costs. Kusupati et al., "Soft threshold weight reparameterization for learnable sparsity" (2020).
"""

from __future__ import annotations

import numpy as np

from edgeprune.keras import tf
from edgeprune.keras.gates import Moment, Own, Start, Tensor

GRANULARITIES = ("weight",)
HELD, STRENGTH, SCOPE, SEES = "penalty", 0.01, "network", False
TRAVEL = 30.0
FIRST = 0.01  # threshold at first, in root mean squares of the kernel
LEAST = 1e-6


def start(values: np.ndarray, seed: int) -> dict[str, Start]:
    threshold = np.clip(FIRST * np.sqrt(np.mean(np.square(values, dtype=np.float64))), LEAST, 0.5)
    return {"logit": Start(np.asarray(np.log(threshold) - np.log1p(-threshold), np.float32))}


def gated(values: Tensor, own: Own, moment: Moment) -> Tensor:
    return decided(values, own)


def decided(values: Tensor, own: Own) -> Tensor:
    return tf.sign(values) * tf.nn.relu(tf.abs(values) - tf.sigmoid(own["logit"]))


def penalty(magnitudes: Tensor, own: Own) -> Tensor:
    return tf.fill(tf.shape(magnitudes), 0.5 * tf.square(own["logit"]))


def score(magnitudes: Tensor, own: Own) -> Tensor:
    return magnitudes - tf.sigmoid(own["logit"])


def moved(magnitudes: Tensor, own: Own, sparsity: Tensor, progress: Tensor) -> dict[str, Tensor]:
    return {}
