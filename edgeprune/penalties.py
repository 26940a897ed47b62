"""Penalties on weights while they are trained: what pulls them to zero, as proximal steps.

A penalty P is added to the loss with a strength, ``loss + strength * P(w)``. Where P has a kink at zero (and those that
make zeros have), a gradient never ends exactly there; so P has no gradient here. After every step of the optimizer the
weights go to

    prox(z) = argmin over w of sum (w - z)^2 / (2 step) + strength * P(w)

where ``step`` is how far one unit of gradient moves a weight: of plain descent the learning rate, of Adam that over
the root of its second moment, weight by weight (Yun et al., "Adaptive proximal gradient methods for structured neural
networks" (2021)). The minimum of loss + strength * P is where neither step moves anything.

A penalty is one function here, pure arithmetic that NumPy and TensorFlow do alike: ``xp`` is the library, ``numpy`` or
anything with its ``abs, clip, maximum, max, sqrt, sum, where``. Its first parameter says what it is of: ``weights``,
kernels weight by weight; ``groups``, a matrix whose columns are the units that can only go together, coupled over layers;
``scales``, those of the BatchNormalizations behind such units. The others say what it needs to know.
"""

from __future__ import annotations

from typing import Any

import numpy as np

NEWTON = (
    3  # steps to the norm of a group in a metric of its own: known then to half a percent of the threshold at worst
)
LEAST = 1e-30  # of a divisor; below it a float32 is no longer exact


def l1(weights: Any, step: Any, strength: Any, *, xp: Any = np) -> Any:
    """The sum of magnitudes, which makes single weights exactly zero: P = sum |w|.

    Tibshirani et al., "Regression shrinkage and selection via the lasso" (1996). prox: w - clip(w, -t, t), t = step * strength.

    Args:
        weights: any shape.
        step: a number, or of their shape; > 0.
        strength: >= 0.
        xp: the array library.

    Returns:
        Same shape.
    """
    threshold = step * strength
    return weights - xp.clip(weights, -threshold, threshold)


def l2(weights: Any, step: Any, strength: Any, *, xp: Any = np) -> Any:
    """Half the sum of squares, which makes weights small but none zero: P = sum w^2 / 2.

    Hoerl et al., "Ridge regression: biased estimation for nonorthogonal problems" (1970). prox: w / (1 + step * strength).

    Args:
        weights, step, strength, xp: as for ``l1``.

    Returns:
        Same shape.
    """
    return weights / (1.0 + step * strength)


def elastic_net(weights: Any, step: Any, strength: Any, mix: Any, *, xp: Any = np) -> Any:
    """L1, and L2 so that of weights that say the same none is left alone: P = mix sum |w| + (1 - mix) sum w^2 / 2.

    Zou et al., "Regularization and variable selection via the elastic net" (2005). prox: that of L1, then that of L2.

    Args:
        weights, step, strength, xp: as for ``l1``.
        mix: share of L1, 0..1.

    Returns:
        Same shape.
    """
    return l2(l1(weights, step, strength * mix, xp=xp), step, strength * (1.0 - mix), xp=xp)


def adaptive(weights: Any, step: Any, strength: Any, epsilon: Any, *, xp: Any = np) -> Any:
    """L1 with a strength for every weight that its size teaches, large ones are hardly pulled: P = sum epsilon ln(1 + |w| / epsilon).

    Candès et al., "Enhancing sparsity by reweighted L1 minimization" (2008), reweighted at every step; after Zou et al., "The
    adaptive lasso and its oracle properties" (2006). prox: that of L1 with strength * epsilon / (|w| + epsilon).

    Args:
        weights, step, strength, xp: as for ``l1``.
        epsilon: > 0, the size of a weight that is pulled half as strongly as one at zero.

    Returns:
        Same shape.
    """
    return l1(weights, step, strength * epsilon / (xp.abs(weights) + epsilon), xp=xp)


def growing(weights: Any, step: Any, strength: Any, chosen: Any, *, xp: Any = np) -> Any:
    """L2 of the weights chosen to go, its strength rising until they are gone and the others have taken over: P = sum chosen w^2 / 2.

    Wang et al., "Neural pruning via growing regularization" (2021), GReg-1. prox: w / (1 + step * strength * chosen).

    Args:
        weights, step, xp: as for ``l1``.
        strength: >= 0, of this moment.
        chosen: of the weights' shape, 1 = is to go, 0 = stays.

    Returns:
        Same shape.
    """
    return weights / (1.0 + step * strength * chosen)


def slimming(scales: Any, step: Any, strength: Any, *, xp: Any = np) -> Any:
    """L1 of the scales of BatchNormalization, which makes whole channels zero: P = sum |gamma|.

    Liu et al., "Learning efficient convolutional networks through network slimming" (2017). prox: that of L1.

    Args:
        scales: (channels,), gamma.
        step, strength, xp: as for ``l1``.

    Returns:
        Same shape.
    """
    return l1(scales, step, strength, xp=xp)


def group_lasso(groups: Any, step: Any, strength: Any, sizes: Any, *, xp: Any = np) -> Any:
    """The norms of whole groups, which makes all of a unit zero or nothing of it: P = sum over groups of sqrt(size) ||w||_2.

    Yuan et al., "Model selection and estimation in regression with grouped variables" (2006). prox: a column times
    max(0, 1 - t / ||w||), t = step * strength * sqrt(size); where every weight has a step of its own, w r / (r + t) with the norm
    r of the result found by Newton's method, as Deleu et al., "Structured sparsity inducing adaptive optimizers for deep
    learning" (2021).

    Args:
        groups: (weights of a group, groups); where groups differ in size, columns are filled up with zeros.
        step: a number, or of their shape; > 0.
        strength: >= 0.
        sizes: (groups,), weights of each, without what it is filled up with.
        xp: the array library.

    Returns:
        Same shape.
    """
    threshold = step * (strength * xp.sqrt(sizes))
    norm = xp.sqrt(xp.sum(groups * groups, axis=0))
    if len(getattr(step, "shape", ())) == 0:
        return groups * xp.maximum(1.0 - threshold / xp.maximum(norm, LEAST), 0.0)
    left = xp.maximum(norm - xp.max(threshold, axis=0), 0.0)  # of the norm, at least
    for _ in range(NEWTON):
        divisor = xp.maximum(left + threshold, LEAST)
        shares = (groups / divisor) * (groups / divisor)
        total, slope = xp.sum(shares, axis=0), xp.sum(shares / divisor, axis=0)
        left = xp.maximum(left + total * (xp.sqrt(total) - 1.0) / xp.maximum(slope, LEAST), 0.0)
    return groups * (left / xp.maximum(left + threshold, LEAST))


def sparse_group_lasso(groups: Any, step: Any, strength: Any, sizes: Any, mix: Any, *, xp: Any = np) -> Any:
    """L1 inside group lasso, which makes whole units zero and weights of the others: P = mix sum |w| + (1 - mix) group lasso.

    Simon et al., "A sparse-group lasso" (2013). prox: that of L1, then that of the group lasso.

    Args:
        groups, step, strength, sizes, xp: as for ``group_lasso``.
        mix: share of L1, 0..1.

    Returns:
        Same shape.
    """
    return group_lasso(l1(groups, step, strength * mix, xp=xp), step, strength * (1.0 - mix), sizes, xp=xp)
