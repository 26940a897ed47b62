"""Weights that share few values: which values fit best, and what a .tflite file holds of them.

A kernel of n clusters has n distinct values. What that is worth is the size of the compressed file: the entropy of a byte
that takes 16 values is 4 bits at most. In an int8 file the values are counted in the bytes themselves, so that two
channels with scales of their own hold other bytes for one and the same weight.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeprune import proof, tflite
from edgeprune.errors import ArtefactError

Array = NDArray[np.floating]
Scope = Literal["layer", "channel"]
ROUNDS = 100  # of Lloyd's iteration; in one dimension it stands still long before
SEEDED_ON = 65_536  # values at most that starting points are drawn from


def k_means(values: Array, count: int, seed: int = 0) -> Array:
    """Cluster centroids: the values that n weights are moved to least by: min_c sum_i min_j (w_i - c_j)^2.

    Lloyd, "Least squares quantization in PCM" (1982), from three starts, of which the best result is taken: equal shares
    of the weights, equal distances, and k-means++ (Arthur and Vassilvitskii 2007).

    Args:
        values: any shape, finite, at least one.
        count: centroids, >= 1.
        seed: of k-means++.

    Returns:
        Ascending, at most ``count``: all distinct values if there are no more than that; float64.
    """
    points, weights = np.unique(np.asarray(values, np.float64), return_counts=True)
    if len(points) <= count:
        return points
    thin = points[np.linspace(0, len(points) - 1, min(len(points), SEEDED_ON)).astype(int)]
    starts = (
        np.quantile(np.repeat(points, weights), (np.arange(count) + 0.5) / count),
        np.linspace(points[0], points[-1], count),
        _plus_plus(thin, count, np.random.Generator(np.random.PCG64(seed))),
    )
    found = [_lloyd(points, weights, np.sort(start)) for start in starts]
    return min(found, key=lambda centroids: _moved(points, weights, centroids))


def _lloyd(points: Array, weights: NDArray[np.integer], centroids: Array) -> Array:
    """Every centroid to the mean of the points nearest to it, until none moves; one that has no points stays."""
    mass = np.concatenate([[0], np.cumsum(weights)])
    moment = np.concatenate([[0.0], np.cumsum(points * weights)])
    for _ in range(ROUNDS):
        edges = np.concatenate([[0], np.searchsorted(points, _borders(centroids)), [len(points)]])
        own = np.diff(mass[edges])
        means = np.where(own > 0, np.diff(moment[edges]) / np.maximum(own, 1), centroids)
        if np.array_equal(means, centroids):
            break
        centroids = np.sort(means)
    return centroids


def _plus_plus(points: Array, count: int, generator: np.random.Generator) -> Array:
    """Points far from one another: each is drawn with the square of its distance to the nearest one so far."""
    chosen = [float(generator.choice(points))]
    distance = (points - chosen[0]) ** 2
    for _ in range(count - 1):
        chosen.append(float(generator.choice(points, p=distance / distance.sum())))
        distance = np.minimum(distance, (points - chosen[-1]) ** 2)
    return np.array(chosen)


def _borders(centroids: Array) -> Array:
    return (centroids[1:] + centroids[:-1]) / 2


def nearest(values: Array, centroids: Array) -> Array:
    """Every value's nearest centroid, in the shape of the values.

    Args:
        values: any shape.
        centroids: ascending, at least one.
    """
    return np.asarray(centroids)[np.searchsorted(_borders(centroids), values)]


def _moved(points: Array, weights: NDArray[np.integer], centroids: Array) -> float:
    """How far the weights are moved: the sum of squares."""
    return float(np.sum(weights * (points - nearest(points, centroids)) ** 2))


def distinct(kernel: NDArray[Any], scope: Scope, axis: int = -1) -> int:
    """How many values a kernel has, or of its channels the one that has most.

    Args:
        kernel: any shape.
        scope: ``layer``: in all; ``channel``: in the channel that has most.
        axis: of the channels.
    """
    if scope == "layer":
        return len(np.unique(kernel))
    return max(len(np.unique(channel)) for channel in np.moveaxis(kernel, axis, 0))


class Claim(NamedTuple):
    """What a kernel of the model that is converted has.

    Attributes:
        layer: its name in masks: the layer's, or ``layer:kernel``.
        shape: in Keras' layout.
        asked: distinct values at most, zero among them.
        scope: ``layer``: in the whole kernel; ``channel``: in each of its output channels.
    """

    layer: str
    shape: tuple[int, ...]
    asked: int
    scope: Scope


@dataclass(frozen=True)
class Found:
    """What the file holds of one clustered kernel.

    Attributes:
        tensor: its name in the file.
        asked, scope: as claimed.
        distinct: int8 values in the whole kernel.
        distinct_per_channel: in the output channel that has most.
        bits_per_weight: entropy of the bytes, 0..8: what a code for single bytes can reach.
        size_bytes, size_gzip_bytes: of the kernel alone, as it is and compressed.
    """

    tensor: str
    asked: int
    scope: Scope
    distinct: int
    distinct_per_channel: int
    bits_per_weight: float
    size_bytes: int
    size_gzip_bytes: int


def prove(file: tflite.TFLiteFile, claims: Sequence[Claim]) -> dict[str, dict[str, Any]]:
    """Count the distinct values of every clustered kernel in the file.

    Returns:
        Kernel's name -> `Found` as plain data.

    Raises:
        ArtefactError: a kernel has more values there than it was given, or is not in the file.
    """
    return {claim.layer: asdict(_proven(file, claim)) for claim in claims}


def _proven(file: tflite.TFLiteFile, claim: Claim) -> Found:
    candidates = [(np.asarray(tensor.data), tensor.name) for tensor in proof.kernels(file, claim.layer, claim.shape)]
    data, name = min(candidates, key=lambda candidate: distinct(candidate[0], "layer"))
    found = Found(
        tensor=name,
        asked=claim.asked,
        scope=claim.scope,
        distinct=distinct(data, "layer"),
        distinct_per_channel=distinct(data, "channel", axis=0),
        bits_per_weight=entropy(data),
        size_bytes=data.nbytes,
        size_gzip_bytes=compressed(data),
    )
    counted = found.distinct if claim.scope == "layer" else found.distinct_per_channel
    if counted > claim.asked:
        where = "a channel of " if claim.scope == "channel" else ""
        raise ArtefactError(
            f"{where.capitalize()}the layer '{claim.layer}' has {counted} distinct int8 values in the file (tensor '{name}'), "
            f"but was clustered to {claim.asked}: the clusters were lost after clustering. Quantize with preserve_clusters: true, "
            "and report this with the recipe."
        )
    return found


def entropy(data: NDArray[Any]) -> float:
    """Bits per value, >= 0: -sum p log2 p."""
    shares = np.unique(data, return_counts=True)[1] / data.size
    return float(max(0.0, -(shares * np.log2(shares)).sum()))


def compressed(data: NDArray[Any]) -> int:
    """Bytes of an array's values as gzip packs them, at its best; without its header."""
    return len(zlib.compress(data.tobytes(), 9))


def sizes(file: tflite.TFLiteFile, claims: Sequence[Claim]) -> dict[str, int]:
    """Compressed bytes of the same kernels in another file; those that it has under other names, or in parts, are left out."""
    found = {}
    for claim in claims:
        try:
            found[claim.layer] = compressed(np.asarray(proof.kernels(file, claim.layer, claim.shape)[0].data))
        except ArtefactError:
            continue
    return found
