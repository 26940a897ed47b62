"""What is told of a layer's activations, as running sums: batch by batch, in the memory of the sums.

``summed`` gives what one batch adds, ``added`` adds two of them, ``finished`` turns the total into the signals that
`edgeprune.criteria` names. Sums are float64, so that it does not matter how the samples were cut into batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Sums = dict[str, Array]
Range = tuple[float, float]

CLASSES = ("class_means", "class_variances", "class_counts")
MAPS = ("activation_ranks", "activation_nuclear_norms")
NAMES = (
    *("activation_means", "zero_shares", "activation_gram", "activation_covariance", "activation_histogram"),
    *(*MAPS, *CLASSES),
)
BINS = 32
RANK = 1e-5  # singular values below this share of the largest count as 0: float32 maps hold no more


def summed(
    activations: Array, wanted: Iterable[str], labels: NDArray[np.integer] | None = None, span: Range = (0.0, 1.0)
) -> Sums:
    """What a batch adds to the sums.

    Args:
        activations: (samples, ..., channels).
        wanted: names in ``NAMES``.
        labels: (samples,), classes from 0; for the statistics of classes.
        span: the smallest and the largest activation of the layer, for the histogram.

    Returns:
        Sums by name: ``samples``, ``positions`` (all but the channels), and those that the wanted signals are made of.
    """
    wanted = set(wanted)
    exact = np.asarray(activations, np.float64)
    flat = exact.reshape(-1, exact.shape[-1])
    sums: Sums = {"samples": np.array(float(len(exact))), "positions": np.array(float(len(flat)))}
    if "activation_means" in wanted:
        sums["absolute"] = np.abs(flat).sum(axis=0)
    if "zero_shares" in wanted:
        sums["zeros"] = (flat == 0).sum(axis=0).astype(np.float64)
    if wanted & {"activation_gram", "activation_covariance"}:
        sums |= {"products": flat.T @ flat, "values": flat.sum(axis=0)}
    if "activation_histogram" in wanted:
        sums["histogram"] = _histogram(flat, span)
    if wanted & set(MAPS):
        sums |= _maps(exact)
    if wanted & set(CLASSES) and labels is not None:
        sums |= _classes(exact.reshape(len(exact), -1, exact.shape[-1]).mean(axis=1), labels)
    return sums


def added(one: Mapping[str, Array], other: Mapping[str, Array]) -> Sums:
    """The sums of two batches; classes that only one of them holds have sums of 0 in the other."""
    return {name: _plus(one[name], other[name]) for name in one}


def finished(sums: Mapping[str, Array], wanted: Iterable[str]) -> Sums:
    """The wanted signals, by name, with the shapes that `edgeprune.criteria` asks for."""
    positions, samples = max(float(sums["positions"]), 1.0), max(float(sums["samples"]), 1.0)
    makers = {
        "activation_means": lambda: sums["absolute"] / positions,
        "zero_shares": lambda: sums["zeros"] / positions,
        "activation_gram": lambda: sums["products"] / positions,
        "activation_covariance": lambda: _covariance(sums["products"] / positions, sums["values"] / positions),
        "activation_histogram": lambda: sums["histogram"],
        "activation_ranks": lambda: sums["ranks"] / samples,
        "activation_nuclear_norms": lambda: sums["norms"] / samples,
        "class_means": lambda: _class_means(sums),
        "class_variances": lambda: np.maximum(
            sums["class_squares"] / _at_least_one(sums) - np.square(_class_means(sums)), 0.0
        ),
        "class_counts": lambda: sums["class_counts"],
    }
    return {name: makers[name]() for name in wanted}


def _plus(one: Array, other: Array) -> Array:
    if one.shape == other.shape:
        return one + other
    longer, shorter = (one, other) if len(one) > len(other) else (other, one)
    total = longer.copy()
    total[: len(shorter)] += shorter
    return total


def _histogram(flat: Array, span: Range) -> Array:
    """(channels, BINS) counts; the bins are the same for all channels of the layer."""
    low, width = span[0], (span[1] - span[0]) or 1.0
    places = np.clip((flat - low) / width * BINS, 0, BINS - 1).astype(int)
    channels = flat.shape[1]
    counts = np.bincount((places + BINS * np.arange(channels)).ravel(), minlength=BINS * channels)
    return counts.reshape(channels, BINS).astype(np.float64)


def _maps(exact: Array) -> Sums:
    """Ranks and nuclear norms of the maps, summed over samples. What has no height or width has one of 1."""
    height = exact.shape[1] if exact.ndim > 2 else 1
    maps = np.moveaxis(exact.reshape(len(exact), height, -1, exact.shape[-1]), -1, 1)
    values = np.linalg.svd(maps, compute_uv=False)
    full = (values > RANK * values[..., :1]).sum(axis=-1)
    return {"ranks": full.sum(axis=0).astype(np.float64), "norms": values.sum(axis=-1).sum(axis=0)}


def _classes(means: Array, labels: NDArray[np.integer]) -> Sums:
    """Of each sample's mean over positions, (samples, channels): count, sum and sum of squares per class."""
    member = np.asarray(labels)[:, None] == np.arange(int(np.max(labels, initial=0)) + 1)
    shares = member.astype(np.float64).T
    return {
        "class_counts": shares.sum(axis=1),
        "class_values": shares @ means,
        "class_squares": shares @ np.square(means),
    }


def _covariance(products: Array, means: Array) -> Array:
    """E[a b] - E[a] E[b]; a variance that rounding alone makes is 0."""
    covariance = products - np.outer(means, means)
    constant = np.diag(covariance) <= 1e-12 * np.diag(products)
    return np.where(constant[:, None] | constant, 0.0, covariance)


def _class_means(sums: Mapping[str, Array]) -> Array:
    return sums["class_values"] / _at_least_one(sums)


def _at_least_one(sums: Mapping[str, Array]) -> Array:
    return np.maximum(sums["class_counts"], 1.0)[:, None]
