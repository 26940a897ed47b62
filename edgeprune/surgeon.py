"""The update that goes with Optimal Brain Surgeon: what remains of a layer makes up for the weights that are removed.

Of a layer y = W^T x with inputs of second moment C = E[x x^T], the weights that remain (K) are moved so that the layer's
outputs change least when the others (P) become 0:

    minimise E ||(W' - W)^T x||^2 = tr((W' - W)^T C (W' - W)),  W'_P = 0   ->   W'_K = W_K + C_KK^-1 C_KP W_P

This is what Optimal Brain Surgeon arrives at when it removes the weights of P one by one, in any order, with its inverse
Hessian updated each time (Hassibi & Stork 1993, "Second order derivatives for network pruning"; layer by layer: Dong et al.
2017, "Learning to prune deep neural networks via layer-wise optimal brain surgeon"), in one solve per mask.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]


def update(weights: Array, input_covariance: Array, keep: Mask, damping: float = 0.01) -> Array:
    """The best weights of a layer of which some are removed.

    Output channels that keep the same weights are solved for together: one solve for a mask of input channels, up to one per
    output channel for a mask of single weights. Time: masks x rows^3.

    Args:
        weights: (..., out), rows = the product of all axes but the last.
        input_covariance: (rows, rows), E[x x^T] of the layer's inputs, positive semi-definite.
        keep: the shape of the weights, or that without the last axis for a mask that all outputs share; True = stays.
        damping: share of the mean diagonal that is added to the diagonal, >= 0: the larger, the less the weights are moved.
            At 0 directions that no input has are left as they are.

    Returns:
        New weights of the same shape and dtype, 0 wherever ``keep`` is False.

    Raises:
        ValueError: shapes that do not belong together, or a negative damping.
    """
    columns = np.asarray(weights, np.float64).reshape(-1, np.shape(weights)[-1])
    hessian = _damped(np.asarray(input_covariance, np.float64), len(columns), damping)
    stays = _columns_kept(np.asarray(keep, bool), np.shape(weights))
    moved = np.where(stays, columns, 0.0)
    patterns, pattern_of = np.unique(stays, axis=1, return_inverse=True)
    for number, pattern in enumerate(patterns.T):
        outputs = np.flatnonzero(pattern_of.ravel() == number)
        if pattern.any() and not pattern.all():
            lost = hessian[np.ix_(pattern, ~pattern)] @ columns[np.ix_(~pattern, outputs)]
            moved[np.ix_(pattern, outputs)] += _solved(hessian[np.ix_(pattern, pattern)], lost, exact=damping > 0)
    return moved.reshape(np.shape(weights)).astype(np.asarray(weights).dtype)


def _damped(covariance: Array, rows: int, damping: float) -> Array:
    if covariance.shape != (rows, rows):
        raise ValueError(f"input_covariance is {covariance.shape}; for these weights it must be {(rows, rows)}")
    if damping < 0:
        raise ValueError(f"damping must be >= 0, got {damping}")
    return covariance + damping * np.mean(np.diag(covariance)) * np.eye(rows)


def _columns_kept(keep: Mask, shape: tuple[int, ...]) -> Mask:
    """(rows, out), whichever of its two shapes the mask has."""
    if keep.shape == shape:
        return keep.reshape(-1, shape[-1])
    if keep.shape == shape[:-1]:
        return np.broadcast_to(keep.reshape(-1, 1), (keep.size, shape[-1]))
    raise ValueError(f"keep is {keep.shape}; it must be {shape}, or {shape[:-1]} for a mask that all outputs share")


def _solved(matrix: Array, right: Array, exact: bool) -> Array:
    """matrix^-1 right; the smallest solution where the matrix is not invertible."""
    if exact and matrix.any():
        return np.linalg.solve(matrix, right)
    return np.linalg.lstsq(matrix, right, rcond=None)[0]
