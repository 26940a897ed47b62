"""TFMOT weight clustering: which layers, how many values, and the plain model that comes out.

The wrapper and the gradients are TFMOT's (``ClusterWeights``: the weights learn on behind their cluster's value, straight
through, and a centroid learns from all weights of its cluster). Where it falls short there are visible subclasses:

- the nearest centroid is found by bisection. TFMOT compares every weight with every centroid in every step, which for 256
  clusters takes 256 times the memory of the kernel;
- per channel too all is one operation, not one for every channel;
- centroids start where k-means ends. TFMOT's ``KMEANS_PLUS_PLUS`` draws points and stops there;
- zeros stay zero and no other weight becomes zero: a mask holds them, not a centroid that draws small weights in, and a
  channel that holds nothing else breaks no start.

Clustering comes after the rewrites of `preparation`: a scale that is multiplied into a kernel afterwards would give every
channel values of its own. For the same reason the BatchNormalization behind a convolution is kept from turning a
channel's sign: it becomes the channel's scale in the file, and a negative one would mirror the values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np

from edgeprune import clusters
from edgeprune.errors import RecipeError
from edgeprune.keras import constraints, graph, keras, kernels, tf
from edgeprune.keras.tfmot import cluster_config, cluster_wrapper, clustering_algorithm, clustering_centroids

Start = Literal["k-means", "linear", "density"]
STARTS = {
    "linear": clustering_centroids.LinearCentroidsInitialisation,
    "density": clustering_centroids.DensityBasedCentroidsInitialisation,
}
AGGREGATIONS = {"sum": cluster_config.GradientAggregation.SUM, "average": cluster_config.GradientAggregation.AVG}
# Layers whose kernel the file holds in one piece, with one scale or one for each channel.
CLUSTERED = (
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.Dense,
    keras.layers.Embedding,
)


class Codebook(NamedTuple):
    """What a kernel's weights share.

    Attributes:
        size: distinct values at most, zero among them.
        scope: ``layer``: of the whole kernel; ``channel``: of every output channel of a convolution.
        start: where the centroids start.
        aggregation: of the gradients of a cluster's weights: ``sum`` or ``average``.
        zeros: whether what is zero now stays zero.
    """

    size: int
    scope: clusters.Scope = "layer"
    start: Start = "k-means"
    aggregation: str = "sum"
    zeros: bool = False

    def per_channel(self, layer: Any) -> bool:
        """Whether every output channel of this layer has values of its own; as in TFMOT, only a Conv2D's."""
        return self.scope == "channel" and type(layer) is keras.layers.Conv2D


class LayerPlan(NamedTuple):
    """What happens to one layer with a kernel.

    Attributes:
        reason: why it is left alone; None: it is clustered.
        scope: ``layer`` or ``channel``.
        shape: of its kernel.
    """

    name: str
    kind: str
    reason: str | None
    scope: clusters.Scope
    shape: tuple[int, ...]


def plan(model: Any, codebook: Codebook, include: str = ".*", exclude: str | None = None) -> list[LayerPlan]:
    """For every layer with a kernel: clustered, or why not.

    Args:
        model: prepared, functional.
        codebook: how many values.
        include, exclude: regular expressions that layer names must, or must not, match in full.
    """
    layers = [
        layer for layer in graph.functional(model).layers if any(len(weight.shape) > 1 for weight in layer.weights)
    ]
    return [_layer_plan(layer, codebook, include, exclude) for layer in layers]


def _layer_plan(layer: Any, codebook: Codebook, include: str, exclude: str | None) -> LayerPlan:
    scope: clusters.Scope = "channel" if codebook.per_channel(layer) else "layer"
    shape = max((tuple(weight.shape) for weight in layer.weights), key=np.prod)
    reason = _reason(layer, codebook, scope)
    if not re.fullmatch(include, layer.name):
        reason = f"not named by include: {include}"
    if exclude and re.fullmatch(exclude, layer.name):
        reason = f"named by exclude: {exclude}"
    return LayerPlan(layer.name, type(layer).__name__, reason, scope, shape)


def _reason(layer: Any, codebook: Codebook, scope: clusters.Scope) -> str | None:
    """Why a layer is not clustered, or None."""
    if isinstance(layer, (keras.layers.DepthwiseConv2D, keras.layers.DepthwiseConv1D)):
        return "depthwise: it has few weights, and sharing values costs accuracy that training does not bring back"
    if type(layer) not in CLUSTERED:
        return f"the file does not hold the kernel of a {type(layer).__name__} in one piece with scales of its own"
    values = clusters.distinct(kernel_of(layer).numpy(), scope)
    return None if values > codebook.size else f"it has {values} distinct values already, no more than {codebook.size}"


def kernel_of(layer: Any) -> Any:
    """The variable that is clustered."""
    (kernel,) = kernels.of(layer)
    return kernel.of(layer)


def upright(model: Any, names: Iterable[str]) -> Any:
    """An equal model in which no BatchNormalization turns the sign of a channel of these convolutions.

    Where gamma is negative, it is turned together with the moving mean, the channel's kernel and its bias.

    Args:
        model: functional; not changed.
        names: of layers that will be clustered.
    """
    result = graph.rebuild(model)
    for convolution, normalization in normalized(result, names):
        if normalization.gamma is None:
            continue
        sign = np.where(normalization.gamma.numpy() < 0, -1.0, 1.0).astype("float32")
        for variable in (normalization.gamma, normalization.moving_mean, convolution.kernel, convolution.bias):
            if variable is not None:
                variable.assign(variable.numpy() * sign)
    return result


def normalized(model: Any, names: Iterable[str]) -> list[tuple[Any, Any]]:
    """The convolutions among these layers that nothing but a BatchNormalization reads, each with that one.

    The layers may be wrapped; their names are those of the wrapped ones.
    """
    wanted = set(names)
    readers, makers = graph.consumers(model), graph.producers(model)
    found = []
    for node in graph.nodes(model):
        layer = _inner(node.layer)
        if not isinstance(layer, keras.layers.BatchNormalization):
            continue
        maker = makers.get(str(node.flat_input_ids[0]))
        before = _inner(maker.layer) if maker is not None else None
        alone = len(readers[str(node.flat_input_ids[0])]) == 1
        if alone and before is not None and before.name in wanted and type(before) is keras.layers.Conv2D:
            found.append((before, layer))
    return found


def _inner(layer: Any) -> Any:
    return layer.layer if isinstance(layer, keras.layers.Wrapper) else layer


def keep_upright(model: Any, names: Iterable[str]) -> None:
    """Keep every gamma behind these convolutions from becoming negative while training, as ``upright`` has made it.

    Args:
        model: whose layers may be wrapped; changed in place.
        names: of the clustered layers.
    """
    for _, normalization in normalized(model, names):
        if normalization.gamma is not None:
            constraints.step(normalization.gamma, tf.nn.relu)


def wrap(model: Any, plans: Iterable[LayerPlan], codebook: Codebook) -> Any:
    """A copy of the model whose planned layers are TFMOT clustering wrappers.

    Args:
        model: functional; not changed, shares no layer with the result.
        plans: from ``plan``.
        codebook: how many values, and how they start and learn.

    Raises:
        RecipeError: no layer is left to cluster.
    """
    plans = list(plans)
    chosen = [entry.name for entry in plans if entry.reason is None]
    if not chosen:
        why = "; ".join(f"{entry.name}: {entry.reason}" for entry in plans) or "it has no layer with a kernel"
        raise RecipeError(f"The cluster stage found no layer to cluster ({why}). Change clusters or include.")
    made: dict[str, Any] = {}

    def rewrite(call: graph.Call) -> Any:
        if call.layer.name not in chosen:
            return None
        if call.layer.name not in made:  # once, so that shared layers stay shared
            made[call.layer.name] = _wrapper(call, codebook)
        return made[call.layer.name](*call.args, **call.kwargs)

    wrapped = graph.rebuild(model, rewrite)
    keep_upright(wrapped, chosen)
    return wrapped


def _wrapper(call: graph.Call, codebook: Codebook) -> Clustered:
    copy = graph.copy_layer(call.layer)
    copy(*call.args, **call.kwargs)  # builds it under its own name
    copy.set_weights(call.layer.get_weights())
    return Clustered(copy, codebook)


def strip(wrapped: Any, plain: Any) -> Any:
    """The plain model with what was learned in the wrapped one; every clustered kernel has its cluster's values.

    Args:
        wrapped: from ``wrap``, trained.
        plain: the model that it was made of; not changed.
    """
    values = {variable.name: variable.numpy() for variable in wrapped.variables}
    for layer in wrapped.layers:
        if isinstance(layer, Clustered):
            values.update(layer.clustered())
    result = graph.rebuild(plain)
    for layer in result.layers:
        layer.set_weights([values[variable.name] for variable in layer.weights])
    return result


def entries(plans: Iterable[LayerPlan], model: Any, codebook: Codebook) -> dict[str, dict[str, Any]]:
    """What the stage did to every layer with a kernel, for report.json's ``clustering`` block and the proof of the file.

    Args:
        plans: from ``plan``.
        model: the clustered one, of plain layers.
        codebook: what was asked.
    """
    return {entry.name: _entry(entry, model, codebook) for entry in plans}


def _entry(entry: LayerPlan, model: Any, codebook: Codebook) -> dict[str, Any]:
    told = {"name": entry.name, "type": entry.kind, "reason": entry.reason}
    if entry.reason is not None:
        return {**told, "asked": None, "scope": None, "distinct_keras": None, "shape": list(entry.shape)}
    kernel = kernel_of(model.get_layer(entry.name)).numpy()
    return {
        **told,
        "asked": codebook.size,
        "scope": entry.scope,
        "distinct_keras": clusters.distinct(kernel, entry.scope),
        "shape": list(entry.shape),
    }


def centroids(kernel: np.ndarray, codebook: Codebook, per_channel: bool) -> np.ndarray:
    """Where the centroids of a kernel start.

    Args:
        kernel: Keras' layout, output channels last.
        codebook: how many and where from; where zeros are kept, zero is one of the values but no centroid.
        per_channel: one set for every output channel.

    Returns:
        float32, (count,) or (channels, count). A set that needs fewer repeats its last one.
    """
    if not per_channel:
        return _set_of(kernel, codebook)
    return np.stack([_set_of(kernel[..., channel], codebook) for channel in range(kernel.shape[-1])])


def _set_of(values: np.ndarray, codebook: Codebook) -> np.ndarray:
    count = codebook.size - codebook.zeros
    free = values[values != 0] if codebook.zeros else values.reshape(-1)
    found = _started(free, count, codebook.start) if len(free) else np.zeros(1)
    return np.pad(found, (0, count - len(found)), mode="edge").astype("float32")


def _started(values: np.ndarray, count: int, start: Start) -> np.ndarray:
    points = np.unique(values)
    if len(points) <= count:
        return points
    if start == "k-means":
        return clusters.k_means(values, count)
    made = STARTS[start](tf.constant(values, tf.float32), count).get_cluster_centroids()
    return np.asarray(made.numpy())


class Nearest(clustering_algorithm.ClusteringAlgorithm):
    """TFMOT's look-up and gradients, with bisection instead of comparing all with all, for one set or one per channel."""

    def get_pulling_indices(self, weight: Any, centroids: Any = None) -> Any:
        """The place of every weight's nearest centroid in the flat list of all; int32, the weight's shape."""
        given = self.cluster_centroids if centroids is None else centroids
        if len(given.shape) == 1:
            return _nearest(tf.reshape(weight, [1, -1]), given[tf.newaxis], weight.shape)
        by_channel = tf.transpose(tf.reshape(weight, [-1, weight.shape[-1]]))
        places = _nearest(by_channel, given, by_channel.shape)
        places += given.shape[1] * tf.range(given.shape[0])[:, tf.newaxis]
        return tf.reshape(tf.transpose(places), weight.shape)

    def get_clustered_weight(self, pulling_indices: Any, original_weight: Any) -> Any:
        """Every weight's centroid; TFMOT's gradients go to both."""
        flat = tf.reshape(self.cluster_centroids, [-1])
        if self.cluster_gradient_aggregation == AGGREGATIONS["average"]:
            sizes = tf.math.bincount(pulling_indices, minlength=flat.shape[0], dtype=flat.dtype)
            flat = self.average_centroids_gradient_by_cluster_size(flat, tf.stop_gradient(sizes))
        looked_up = tf.gather(flat, pulling_indices)
        return self.add_gradient_to_original_weight(looked_up, tf.identity(original_weight))


def _nearest(values: Any, centroids: Any, shape: Any) -> Any:
    """Place of the nearest centroid: (sets, n) values and (sets, count) centroids in any order -> int32 of the shape."""
    order = tf.argsort(centroids, axis=-1)
    ascending = tf.gather(centroids, order, batch_dims=1)
    borders = (ascending[:, 1:] + ascending[:, :-1]) / 2
    return tf.reshape(tf.gather(order, tf.searchsorted(borders, values), batch_dims=1), shape)


class Clustered(cluster_wrapper.ClusterWeights):
    """``cluster_weights`` of a layer's kernel, as `Codebook` says."""

    def __init__(self, layer: Any, codebook: Codebook) -> None:
        """Args:
        layer: built, with its weights; it becomes part of the wrapper.
        """
        super().__init__(
            layer,
            codebook.size,
            preserve_sparsity=codebook.zeros,
            cluster_per_channel=codebook.per_channel(layer),
            cluster_gradient_aggregation=AGGREGATIONS[codebook.aggregation],
        )
        self.codebook = codebook

    def build(self, input_shape: Any) -> None:
        keras.layers.Wrapper.build(self, input_shape)
        ((name, weight),) = self.layer.get_clusterable_weights()
        self.original_clusterable_weights[name] = weight
        self.original_weight = weight  # tracked as the wrapper's own, since the layer's attribute becomes a tensor
        kernel = weight.numpy()
        start = centroids(kernel, self.codebook, self.cluster_per_channel)
        self.cluster_centroids[name] = self.add_weight(
            f"cluster_centroids_{name}", start.shape, initializer=keras.initializers.Constant(start)
        )
        self.clustering_algorithms[name] = Nearest(self.cluster_centroids[name], self.cluster_gradient_aggregation)
        if self.preserve_sparsity:
            self.sparsity_masks[name] = (kernel != 0).astype("float32")

    def update_clustered_weights_associations(self) -> None:
        """Assign the weights anew, and give the layer their centroids in the kernel's place."""
        for name in self.original_clusterable_weights:
            self.set_weight_to_layer(name, self._looked_up(name))

    def _looked_up(self, name: str) -> Any:
        weight, algorithm = self.original_clusterable_weights[name], self.clustering_algorithms[name]
        found = algorithm.get_clustered_weight(algorithm.get_pulling_indices(weight), weight)
        return found * self.sparsity_masks[name] if self.preserve_sparsity else found

    def clustered(self) -> dict[str, np.ndarray]:
        """Name of the kernel's variable -> the values of the clusters that its weights are in now."""
        return {
            weight.name: self._looked_up(name).numpy() for name, weight in self.original_clusterable_weights.items()
        }
