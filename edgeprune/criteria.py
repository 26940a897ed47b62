"""Criteria: a weight tensor (and the signals a criterion names as parameters) -> a score per weight, higher = keep.

Each is a pure function: the score has the shape of the weights, is finite and >= 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def magnitude(weights: Array) -> Array:
    """The absolute value of each weight: score = |w|.

    Han et al., "Learning both weights and connections for efficient neural networks" (2015). It is the criterion of
    TFMOT's ``prune_low_magnitude``.

    Args:
        weights: any shape.

    Returns:
        Scores of the same shape, >= 0.
    """
    return np.abs(weights)
