"""Criteria: the signals that a function names as parameters -> scores, higher = keep.

Each is a pure function of the signals of one kernel, (..., in, out): output channels last, whatever the layer's own
layout. Its scores are float64, finite and >= 0, and have either the shape of ``weights`` (a score per weight) or ``(out,)``
(a score per output channel). How the scores of weights become the score of a channel, a block or a layer is ``POOLING``,
one of the poolings of `edgeprune.granularity`.

The cost that a docstring names is that of the signals; the formulas themselves cost next to nothing, unless they say so.
Every docstring has the form that `docs/criteria.md` is made of (`edgeprune.catalogue.criterion`): a first line that ends
in ``score = equation``, at least one ``Author et al., "Title" (year)``, and ``Cost: ...`` up to the end of its paragraph.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

POOLING = {"l2": "root", "linf": "max", "grasp": "mean", "synaptic_strength": "mean"}  # all others: "sum"
BINS = 32  # of the histogram of a kernel's weights
ALMOST = 1e-12  # sums of numbers from 0 to 1 differ by that much according to their order
DAMPING = 0.01  # share of the Hessian's mean diagonal that is added to its diagonal, as in Frantar et al., GPTQ (2022)


def magnitude(weights: Array) -> Array:
    """The absolute value of each weight, over a channel its L1 norm: score = |w|.

    Han et al., "Learning both weights and connections for efficient neural networks" (2015); Li et al., "Pruning filters
    for efficient ConvNets" (2017). It is the criterion of TFMOT's ``prune_low_magnitude``. Cost: none.

    Args:
        weights: (..., in, out).

    Returns:
        Same shape.
    """
    return np.abs(_double(weights))


def l2(weights: Array) -> Array:
    """The square of each weight, over a channel its L2 norm: score = w^2, pooled as the root of the sum.

    He et al., "Soft filter pruning for accelerating deep convolutional neural networks" (2018). Cost: none.

    Args:
        weights: (..., in, out).

    Returns:
        Same shape.
    """
    return np.square(_double(weights))


def linf(weights: Array) -> Array:
    """The absolute value of each weight, over a channel the largest: score = |w|, pooled as the maximum.

    Narang et al., "Block-sparse recurrent neural networks" (2017), who rank blocks by their largest weight. Cost: none.

    Args:
        weights: (..., in, out).

    Returns:
        Same shape.
    """
    return np.abs(_double(weights))


def l0(weights: Array) -> Array:
    """Whether a weight is not zero, over a channel how many are not: score = 1 if w != 0, else 0.

    Made for models whose weights have been pruned before: channels that are nearly empty go first. The L0 "norm" of
    Louizos et al., "Learning sparse neural networks through L0 regularization" (2018), counted, not trained. Cost: none.

    Args:
        weights: (..., in, out).

    Returns:
        Same shape, 0 or 1.
    """
    return (np.asarray(weights) != 0).astype(np.float64)


def random(weights: Array, seed: int) -> Array:
    """Chance, the baseline that every criterion has to beat: score ~ U[0, 1).

    Mittal et al., "Recovering from random pruning" (2018). Cost: none.

    Args:
        weights: (..., in, out); only the shape counts.
        seed: another for every kernel, or kernels of one shape lose the same places.

    Returns:
        Same shape, 0..1.
    """
    return np.random.default_rng(seed).random(np.shape(weights))


def taylor(weights: Array, gradients: Array) -> Array:
    """The squared first-order change of the loss without the weight: score = (g w)^2.

    Molchanov et al., "Importance estimation for neural network pruning" (2019), eq. 8, with all samples as one batch.
    Cost: a forward and a backward pass per batch, memory of one kernel.

    Args:
        weights: (..., in, out).
        gradients: same shape, mean of dL/dw, signed.

    Returns:
        Same shape.
    """
    return np.square(_double(weights) * gradients)


def taylor_channel(weights: Array, gradients: Array) -> Array:
    """The squared first-order change of the loss without the channel: score = (sum of g w)^2.

    Molchanov et al., "Importance estimation for neural network pruning" (2019): the joint importance of weights
    that go together, in which changes of opposite sign cancel. Cost: a forward and a backward pass per batch.

    Args:
        weights: (..., in, out).
        gradients: same shape, mean of dL/dw, signed.

    Returns:
        (out,).
    """
    return np.square(_columns(_double(weights) * gradients).sum(axis=0))


def taylor_activation(activation_gradients: Array) -> Array:
    """The first-order change of the loss without the activation: score = mean |sum over positions of a dL/da|.

    Molchanov et al., "Pruning convolutional neural networks for resource efficient inference" (2017), up to the
    number of positions. Cost: a forward and a backward pass per batch, memory of one layer's activations.

    Args:
        activation_gradients: (out,), the mean over samples as in the equation, >= 0.

    Returns:
        (out,).
    """
    return _double(activation_gradients)


def taylor_second(weights: Array, gradients: Array, hessian_diagonal: Array) -> Array:
    """The squared second-order change of the loss without the weight: score = (g w - h w^2 / 2)^2.

    Molchanov et al., "Importance estimation for neural network pruning" (2019), with the Hessian taken as diagonal.
    Cost: a forward and a backward pass per batch, and for h a second backward pass per batch and Hutchinson probe.

    Args:
        weights: (..., in, out).
        gradients: same shape, mean of dL/dw, signed.
        hessian_diagonal: same shape, estimate of d2L/dw2, signed.

    Returns:
        Same shape.
    """
    exact = _double(weights)
    return np.square(exact * gradients - hessian_diagonal * np.square(exact) / 2)


def obd(weights: Array, hessian_diagonal: Array) -> Array:
    """Optimal Brain Damage, the rise of the loss without the weight: score = max(h, 0) w^2 / 2.

    LeCun et al., "Optimal brain damage" (1990). At a minimum h >= 0; an estimate below counts as 0. Cost: two
    backward passes per batch and Hutchinson probe.

    Args:
        weights: (..., in, out).
        hessian_diagonal: same shape, estimate of d2L/dw2, signed.

    Returns:
        Same shape.
    """
    return np.maximum(_double(hessian_diagonal), 0.0) * np.square(_double(weights)) / 2


def obs(weights: Array, input_covariance: Array) -> Array:
    """Optimal Brain Surgeon, the rise of a layer's error with the others refitted: score = w^2 / (2 [H^-1]_qq).

    Hassibi & Stork, "Second order derivatives for network pruning: optimal brain surgeon" (1993), eq. 5, with the Hessian
    of the layer's own squared error, H = E[x x^T] + 0.01 mean(diag) I, as Dong et al., "Learning to prune deep neural
    networks via layer-wise optimal brain surgeon" (2017). `edgeprune.surgeon` is the update that goes with it.
    Cost: a forward pass per batch; memory rows^2, time rows^3.

    Args:
        weights: (..., out), rows = the product of all axes but the last.
        input_covariance: (rows, rows), E[x x^T] of the layer's inputs in the order of the kernel's rows, semi-definite.

    Returns:
        Same shape as the weights.
    """
    covariance = _double(input_covariance)
    added = DAMPING * float(np.mean(np.diag(covariance)))
    if added <= 0:  # no input was ever other than 0: no weight does anything
        return np.zeros(np.shape(weights))
    inverse = np.linalg.inv(covariance + added * np.eye(len(covariance)))
    return (np.square(_columns(weights)) / (2 * np.diag(inverse)[:, None])).reshape(np.shape(weights))


def fisher(weights: Array, gradient_squares: Array) -> Array:
    """The rise of the loss without the weight, by the empirical Fisher information: score = E[g^2] w^2 / 2.

    Theis et al., "Faster gaze prediction with dense networks and Fisher pruning" (2018). Cost: a forward and a
    backward pass per sample (or small batch).

    Args:
        weights: (..., in, out).
        gradient_squares: same shape, mean over samples of (dL/dw)^2, >= 0.

    Returns:
        Same shape.
    """
    return _double(gradient_squares) * np.square(_double(weights)) / 2


def snip(weights: Array, gradients: Array) -> Array:
    """Connection sensitivity, meant for a model before training: score = |g w|.

    Lee et al., "SNIP: single-shot network pruning based on connection sensitivity" (2019) without its constant
    divisor. Cost: a forward and a backward pass per batch.

    Args:
        weights: (..., in, out).
        gradients: same shape, mean of dL/dw, signed.

    Returns:
        Same shape.
    """
    return np.abs(_double(weights) * gradients)


def grasp(weights: Array, hessian_gradient: Array) -> Array:
    """What the weight does for the gradient flow, before training: score = x + sqrt(1 + x^2), x = w (H g).

    Wang et al., "Picking winning tickets before training by preserving gradient flow" (2020), removes the weights
    with the highest -w (H g). The rising map makes x positive and keeps its order over the whole network; as it is
    1 + x near 0, means over channels keep their order too. Cost: two backward passes per batch.

    Args:
        weights: (..., in, out).
        hessian_gradient: same shape, the Hessian times the gradient, signed.

    Returns:
        Same shape, > 0; 1 for a weight that does nothing.
    """
    flow = _double(weights) * hessian_gradient
    root = np.hypot(1.0, flow) + np.abs(flow)
    return np.where(flow < 0, 1 / root, root)  # the two are equal; neither subtracts what is nearly the same


def synflow(weights: Array, synflow_gradients: Array) -> Array:
    """Synaptic flow, which needs no data and no training: score = |w dR/dw|, R = 1^T |W_L| ... |W_1| 1.

    Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow" (2020). It is
    meant for many small rounds. Cost: one forward and one backward pass of one input.

    Args:
        weights: (..., in, out).
        synflow_gradients: same shape, dR/dw of the network with the absolute values of its weights, for an input of ones.

    Returns:
        Same shape.
    """
    return np.abs(_double(weights) * synflow_gradients)


def lamp(weights: Array) -> Array:
    """Magnitude made comparable over layers: score = w^2 / sum of all v^2 with |v| >= |w|.

    Lee et al., "Layer-adaptive sparsity for the magnitude-based pruning" (2021). The largest weight of every layer
    scores 1. Of equal weights the first counts as the largest. Cost: none.

    Args:
        weights: (..., in, out).

    Returns:
        Same shape, 0..1.
    """
    squares = np.square(_double(weights)).ravel()
    order = np.argsort(-squares, kind="stable")
    sums = np.cumsum(squares[order])
    scores = np.empty_like(squares)
    scores[order] = squares[order] / np.where(sums > 0, sums, 1.0)
    return scores.reshape(np.shape(weights))


def slimming(scale: Array) -> Array:
    """The scale of the BatchNormalization behind the kernel: score = |gamma|.

    Liu et al., "Learning efficient convolutional networks through network slimming" (2017). It says most after training
    with an L1 penalty on gamma. Cost: none.

    Args:
        scale: (out,), gamma.

    Returns:
        (out,).
    """
    return np.abs(_double(scale))


def synaptic_strength(weights: Array, input_scale: Array) -> Array:
    """The strength of each connection from an input to an output channel: score = |gamma_in| ||w_in,out||_2.

    Lin et al., "Synaptic strength for convolutional neural network" (2018): what a synapse passes on grows with the
    scale of its input and the norm of its kernel. Cost: none.

    Args:
        weights: (..., in, out).
        input_scale: (in,), gamma of the BatchNormalization in front of the kernel.

    Returns:
        Same shape; all weights of one synapse carry its strength.
    """
    exact = _double(weights)
    places = tuple(range(exact.ndim - 2))
    norms = np.sqrt(np.square(exact).sum(axis=places, keepdims=True))
    return np.broadcast_to(norms * np.abs(_double(input_scale))[:, None], exact.shape).copy()


def fpgm(weights: Array) -> Array:
    """How far a filter is from the geometric median: score = sum over the others of ||w_i - w_j||_2.

    He et al., "Filter pruning via geometric median for deep convolutional neural networks acceleration" (2019): what
    lies in the middle can be replaced by the others. Cost: none; time out^2 rows.

    Args:
        weights: (..., in, out).

    Returns:
        (out,).
    """
    filters = _columns(weights).T
    return np.array([np.linalg.norm(filters - one, axis=1).sum() for one in filters])


def weight_entropy(weights: Array) -> Array:
    """How varied a filter's weights are: score = -sum p ln p, p = shares of its weights per bin.

    The 32 bins lie between the smallest and the largest weight of the layer. After Tang et al., "Filter pruning
    based on information capacity and independence" (2023). Cost: none.

    Args:
        weights: (..., in, out).

    Returns:
        (out,), 0..ln 32.
    """
    columns = _columns(weights)
    low, span = columns.min(), np.ptp(columns)
    places = np.clip(((columns - low) / (span or 1.0) * BINS).astype(int), 0, BINS - 1)
    return _entropy(np.stack([np.bincount(place, minlength=BINS) for place in places.T]))


def activation_entropy(activation_histogram: Array) -> Array:
    """How varied a channel's activations are: score = -sum p ln p, p = shares of its activations per bin.

    Luo & Wu, "An entropy-based pruning method for CNN compression" (2017). Cost: a forward pass per batch, twice if
    the range is not known.

    Args:
        activation_histogram: (out, bins), counts, >= 0.

    Returns:
        (out,), 0..ln bins; 0 for a channel without counts.
    """
    return _entropy(activation_histogram)


def activation_mean(activation_means: Array) -> Array:
    """How strongly a channel fires: score = mean |a|.

    The activation criterion of Molchanov et al., "Pruning convolutional neural networks for resource efficient inference"
    (2017). Cost: a forward pass per batch.

    Args:
        activation_means: (out,), mean over samples and positions of |a|, >= 0.

    Returns:
        (out,).
    """
    return _double(activation_means)


def apoz(zero_shares: Array) -> Array:
    """How often a channel fires: score = 1 - share of zeros among its activations.

    Hu et al., "Network trimming: a data-driven neuron pruning approach towards efficient deep architectures" (2016), whose
    APoZ is the share of zeros. It says nothing unless the activation gives zeros (ReLU). Cost: a forward pass per batch.

    Args:
        zero_shares: (out,), 0..1.

    Returns:
        (out,), 0..1.
    """
    return 1.0 - _double(zero_shares)


def cosine(activation_gram: Array) -> Array:
    """How unlike its nearest neighbour the channel is: score = 1 - max |cos| over those that remain when it goes.

    Channels go one by one, of the closest pair the one that is nearer to all the others, else the weaker; so of twins one
    stays. The measure is that of Ayinde et al., "Redundant feature pruning for accelerated inference in deep neural
    networks" (2019), who take it of filters, here of activations. Cost: a forward pass per batch; memory out^2, time out^2 to out^3.

    Args:
        activation_gram: (out, out), E[a_i a_j], positive semi-definite.

    Returns:
        (out,), 0..1; 0 for a channel that never fires.
    """
    likeness, alive = _cosines(activation_gram)
    weakness = _weakness(activation_gram)
    distances = np.where(alive[:, None] & alive, 1.0 - likeness, np.inf)
    np.fill_diagonal(distances, np.inf)
    totals = np.where(np.isfinite(distances), distances, 0.0).sum(axis=1)
    scores = alive.astype(np.float64)  # the one that stays to the end: 1
    for _ in range(int(alive.sum()) - 1):
        nearest = distances.min(axis=1)
        goes = _last_highest(-nearest, -totals, weakness)
        scores[goes] = nearest[goes]
        totals -= np.where(np.isfinite(distances[goes]), distances[goes], 0.0)
        distances[goes, :] = distances[:, goes] = np.inf
    return scores


def correlation(activation_covariance: Array) -> Array:
    """How little others say about the channel: score = 1 - mean |r| over those that remain when it goes.

    Channels go one by one, the one with the largest sum of correlations first, of equals the one with the largest single
    correlation, else the weaker; those that are gone count as 0 in the mean. The order is that of Suau et al., "Filter
    distillation for network compression" (2020). Cost: a forward pass per batch; memory out^2, time out^2 to out^3.

    Args:
        activation_covariance: (out, out), positive semi-definite.

    Returns:
        (out,), 0..1; 0 for a channel that is constant, as the next layer's bias can take its place.
    """
    likeness, alive = _cosines(activation_covariance)
    weakness = _weakness(activation_covariance)
    np.fill_diagonal(likeness, 0.0)
    sums = likeness.sum(axis=1)
    remaining, others = alive.copy(), max(int(alive.sum()) - 1, 1)
    scores = np.zeros(len(sums))
    for _ in range(int(alive.sum())):
        goes = _last_highest(np.where(remaining, sums, -np.inf), likeness.max(axis=1), weakness)
        scores[goes] = 1.0 - sums[goes] / others
        remaining[goes] = False
        sums -= likeness[goes]
        likeness[goes, :] = likeness[:, goes] = 0.0
    return np.clip(scores, 0.0, 1.0)


def lda(class_means: Array, class_variances: Array, class_counts: Array) -> Array:
    """How well a channel tells the classes apart: score = B / (B + W), scatter between and within.

    B = sum_c n_c (m_c - m)^2, W = sum_c n_c v_c. The order is that of Fisher's ratio B / W, and of the F statistic, but it
    is finite. Tian et al., "LDA-Net: deep LDA-pruned nets for efficient facial gender classification" (2017). Cost: a
    forward pass per batch, and labels.

    Args:
        class_means: (classes, out), mean activation per class.
        class_variances: (classes, out), population variance per class, >= 0.
        class_counts: (classes,), samples per class, >= 0.

    Returns:
        (out,), 0..1.
    """
    counts = _double(class_counts)[:, None]
    mean = (counts * class_means).sum(axis=0) / max(float(counts.sum()), 1.0)
    between = (counts * np.square(_double(class_means) - mean)).sum(axis=0)
    whole = between + (counts * class_variances).sum(axis=0)
    return between / np.where(whole > 0, whole, 1.0)


def hrank(activation_ranks: Array) -> Array:
    """How much a channel's feature maps hold, by their rank: score = mean rank of its H x W map.

    Lin et al., "HRank: filter pruning using high-rank feature map" (2020). Cost: a forward pass and a singular value
    decomposition of every map per batch.

    Args:
        activation_ranks: (out,), mean over samples, 0..min(H, W).

    Returns:
        (out,).
    """
    return _double(activation_ranks)


def nuclear_norm(activation_nuclear_norms: Array) -> Array:
    """How much energy a channel's feature maps hold: score = mean sum of the singular values of its H x W map.

    Yeom et al., "Toward compact deep neural networks via energy-aware pruning" (2021). Cost: a forward pass and a
    singular value decomposition of every map per batch.

    Args:
        activation_nuclear_norms: (out,), mean over samples, >= 0.

    Returns:
        (out,).
    """
    return _double(activation_nuclear_norms)


def _double(values: Array) -> Array:
    """A float64 copy, so that no result is a view of what was given."""
    return np.array(values, dtype=np.float64)


def _columns(weights: Array) -> Array:
    """(rows, out) in float64: a column per output channel."""
    return _double(weights).reshape(-1, np.shape(weights)[-1])


def _cosines(products: Array) -> tuple[Array, NDArray[np.bool_]]:
    """|E[a_i a_j]| / sqrt(E[a_i^2] E[a_j^2]), 0..1, and which channels are not always 0."""
    exact = _double(products)
    norms = np.sqrt(np.maximum(np.diag(exact), 0.0))
    alive = norms > 0
    scales = np.where(alive, norms, 1.0)
    likeness = np.abs(exact / scales / scales[:, None])
    return np.where(alive[:, None] & alive, np.minimum(likeness, 1.0), 0.0), alive


def _weakness(products: Array) -> Array:
    """(channels,), -1..0: the less a channel's activations amount to, the higher."""
    energies = np.diag(_double(products))
    return -energies / (energies.max(initial=0.0) or 1.0)


def _last_highest(*keys: Array) -> int:
    """The index that is highest in the first key, of equals in the second, and so on; of equals in all the last.

    What rounding alone makes different counts as equal, or the order of the channels would decide.
    """
    left = np.arange(len(keys[0]))
    for key in keys:
        left = left[key[left] >= key[left].max() - ALMOST]
    return int(left[-1])


def _entropy(counts: Array) -> Array:
    """-sum p ln p of every row, p = its shares."""
    exact = _double(counts)
    totals = exact.sum(axis=1, keepdims=True)
    shares = exact / np.where(totals > 0, totals, 1.0)
    return -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=1) + 0.0  # + 0.0: no -0.0
