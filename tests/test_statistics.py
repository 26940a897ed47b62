"""BatchNormalization's statistics, re-estimated."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from edgeprune.keras import keras, statistics

layers = keras.layers


def small(dropout: float = 0.0):
    """Two normalizations, one behind the other; a constraint and dropout on the way."""
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, kernel_constraint=keras.constraints.MaxNorm(9.0), name="first")(inputs)
    x = layers.BatchNormalization(name="first_bn")(x)
    x = layers.Dropout(dropout)(layers.ReLU()(x))
    x = layers.Conv2D(5, 3, name="second")(x)
    x = layers.BatchNormalization(scale=False, momentum=0.5, trainable=False, name="second_bn")(x)
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x))


def images(count=32, seed=0):
    return np.random.Generator(np.random.PCG64(seed)).normal(2.0, 3.0, (count, 6, 6, 3)).astype(np.float32)


def test_one_batch_gives_what_that_batch_gives_in_training():
    model, x = small(), images()
    model.get_layer("second_bn").trainable = True  # or Keras would not use the batch's own statistics
    expected = model(x, training=True).numpy()
    statistics.reestimate(model, [x])
    np.testing.assert_allclose(model(x, training=False).numpy(), expected, atol=1e-5)


def test_several_batches_of_one_size_give_mean_and_variance_of_all_samples():
    model, x = small(), images(96)
    statistics.reestimate(model, [x[:32], x[32:64], x[64:]])
    first = model.get_layer("first")(x).numpy()
    layer = model.get_layer("first_bn")
    np.testing.assert_allclose(layer.moving_mean.numpy(), first.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance.numpy(), first.var((0, 1, 2)), rtol=1e-3)


def test_dropout_is_off_and_a_frozen_layer_is_re_estimated_too():
    dropped, plain, x = small(dropout=0.9), small(), images()
    plain.set_weights(dropped.get_weights())
    for model in (dropped, plain):
        statistics.reestimate(model, [x])
    for one, other in zip(dropped.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.abs(plain.get_layer("second_bn").moving_mean.numpy()).max() > 0


def test_weights_that_change_later_are_seen_and_nothing_else_is_changed():
    model, x = small(), images()
    again = statistics.Statistics(model)
    again([x])
    kernel = model.get_layer("first").kernel
    kernel.assign(3.0 * kernel)
    before = {weight.name: weight.numpy() for weight in model.weights if "moving" not in weight.name}
    variance = model.get_layer("first_bn").moving_variance.numpy()
    again([x])
    np.testing.assert_allclose(model.get_layer("first_bn").moving_variance.numpy(), 9.0 * variance, rtol=1e-3)
    for weight in model.weights:
        if weight.name in before:
            np.testing.assert_array_equal(weight.numpy(), before[weight.name])


def test_no_batches_or_no_normalization_change_nothing():
    model = small()
    before = model.get_weights()
    statistics.reestimate(model, [])
    plain = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    kernel = plain.layers[0].kernel.numpy()
    statistics.reestimate(plain, [np.ones((4, 3), np.float32)])
    np.testing.assert_array_equal(plain.layers[0].kernel.numpy(), kernel)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
