"""BatchNormalization's statistics after the weights have changed at once: averaged over samples anew.

A moving average forgets by its momentum: at Keras' 0.99, a third of it is still that of the uncut network after a hundred
steps. A network that lost half of its channels, and trained for a few epochs, is then judged with the mean and variance of
activations that it no longer has. Here they are those of the network as it is:

    mean = E_b[mean_b]        variance = E_b[variance_b + mean_b^2] - mean^2

over batches b, every layer seeing what the layers before it give with the batch's own statistics, as in training; dropout and
its like are off.

Wu & Johnson, "Rethinking 'Batch' in BatchNorm" (2021), section 3; after a cut, Li et al., "EagleEye: Fast sub-net evaluation
for efficient neural network pruning" (2020).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgeprune.data import Split
from edgeprune.keras import feeding, graph, keras, tf

SAMPLES, BATCH = 2048, 128  # of the training split: about sixteen batches
Tensor = Any


class Statistics:
    """Re-estimates one model's statistics, as often as its weights change; what it runs is compiled once."""

    def __init__(self, model: Any) -> None:
        """Args:
        model: functional tf_keras model, flat.
        """
        self.model = graph.functional(model)
        self._observers: dict[str, _Observer] = {}
        self._copy = graph.rebuild(self.model, self._observing, _unconstrained)
        self._run = tf.function(self._forward, reduce_retracing=True)

    def _forward(self, x: Tensor) -> Tensor:
        return self._copy(x, training=False)

    def _observing(self, call: graph.Call) -> Tensor | None:
        if not isinstance(call.layer, keras.layers.BatchNormalization):
            return None
        if call.layer.name not in self._observers:
            self._observers[call.layer.name] = _Observer(call.layer)
        return self._observers[call.layer.name](call.args[0])

    def __call__(self, batches: Iterable[Tensor], once: bool = False) -> None:
        """Set the moving mean and variance of every BatchNormalization in the model, from its weights as they are now.

        Args:
            batches: of inputs as the model takes them, tens of samples or more each; none: nothing changes.
            once: run op by op, since to compile takes longer than a few batches do.
        """
        if not self._observers:
            return
        for layer in self._copy.layers:
            if not isinstance(layer, _Observer) and layer.weights:
                layer.set_weights(self.model.get_layer(layer.name).get_weights())
        for observer in self._observers.values():
            observer.forget()
        for x in batches:
            (self._forward if once else self._run)(x)
        for observer in self._observers.values():
            observer.settle()


def reestimate(model: Any, batches: Iterable[Tensor]) -> None:
    """As a ``Statistics`` of the model does, once."""
    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers):
        Statistics(model)(batches, once=True)


def settle(model: Any, train: Split) -> None:
    """Re-estimate a model's statistics on samples of the training split, evenly taken: the same ones every time."""
    reestimate(model, (x for x, _ in feeding.ordered(train.evenly(SAMPLES), BATCH)))


def _unconstrained(layer: Any) -> Any:
    """A layer's copy for inference: what holds its weights while it trains may not be copied."""
    config = {key: None if key.endswith("_constraint") else value for key, value in layer.get_config().items()}
    return layer.__class__.from_config(config)


class _Observer(keras.layers.Layer):
    """Normalizes with the batch's own statistics, and adds them up."""

    def __init__(self, layer: Any) -> None:
        """Args:
        layer: BatchNormalization; its gamma and beta are read, its statistics are set by ``settle``.
        """
        super().__init__(name=layer.name, dtype="float32", trainable=False)
        self._layer = _Held(layer)
        axes = list(layer.axis) if isinstance(layer.axis, (list, tuple)) else [layer.axis]
        self._kept = axes
        size = tuple(layer.moving_mean.shape)
        self._sums = [tf.Variable(tf.zeros(size), trainable=False) for _ in range(2)]
        self._count = tf.Variable(0.0, trainable=False)

    def call(self, inputs: Tensor) -> Tensor:
        layer, x = self._layer.layer, tf.cast(inputs, tf.float32)
        kept = {axis % len(x.shape) for axis in self._kept}
        mean, variance = tf.nn.moments(x, [axis for axis in range(len(x.shape)) if axis not in kept], keepdims=True)
        size = self._sums[0].shape
        self._sums[0].assign_add(tf.reshape(mean, size))
        self._sums[1].assign_add(tf.reshape(variance + tf.square(mean), size))
        self._count.assign_add(1.0)
        gamma, beta = (
            None if weight is None else tf.reshape(tf.cast(weight, tf.float32), tf.shape(mean))
            for weight in (layer.gamma, layer.beta)
        )
        found = tf.nn.batch_normalization(x, mean, variance, beta, gamma, layer.epsilon)
        return tf.cast(found, layer.compute_dtype)

    def forget(self) -> None:
        for variable in (*self._sums, self._count):
            variable.assign(tf.zeros_like(variable))

    def settle(self) -> None:
        count = float(self._count)
        if not count:
            return
        mean = self._sums[0] / count
        layer = self._layer.layer
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(tf.maximum(self._sums[1] / count - tf.square(mean), 0.0))


class _Held:
    """Keeps another model's layer out of this one's weights."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
