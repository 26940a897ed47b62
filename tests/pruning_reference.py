"""Masks written down again in NumPy, from their definition alone: the trusted side of the comparisons in test_pruning."""

from __future__ import annotations

import numpy as np


def nm_mask(kernel, n, m):
    """Keep the n largest magnitudes of every m consecutive input channels (the last axis but one).

    >>> nm_mask(np.array([[3.0], [-4.0], [1.0], [2.0]]), 2, 4).ravel().tolist()
    [True, True, False, False]
    """
    mask = np.zeros(kernel.shape, bool)
    inputs, outputs = kernel.shape[-2:]
    for place in np.ndindex(*kernel.shape[:-2]):
        for output in range(outputs):
            for first in range(0, inputs, m):
                block = np.abs(kernel[place][first : first + m, output])
                for channel in np.argsort(block)[m - n :]:
                    mask[(*place, first + channel, output)] = True
    return mask


def block_mask(kernel, block, sparsity, pooling):
    """Drop the share ``sparsity`` of blocks (input channels x output channels) with the smallest pooled magnitudes."""
    high, wide = block
    pool = {"AVG": np.mean, "MAX": np.max}[pooling]
    blocks = []
    for place in np.ndindex(*kernel.shape[:-2]):
        for top in range(0, kernel.shape[-2], high):
            for left in range(0, kernel.shape[-1], wide):
                where = (*place, slice(top, top + high), slice(left, left + wide))
                blocks.append((pool(np.abs(kernel[where])), where))
    mask = np.ones(kernel.shape, bool)
    for _, where in sorted(blocks, key=lambda block: block[0])[: round(sparsity * len(blocks))]:
        mask[where] = False
    return mask
