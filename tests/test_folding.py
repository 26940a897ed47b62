"""BatchNormalization folded by hand-worked numbers, and left alone where it must be."""

from __future__ import annotations

import numpy as np
import pytest
from keras_models import assert_identical, cnn, layers, shaken, weights

from edgeprune.errors import ConversionError
from edgeprune.keras import folding, graph, keras

# gamma, beta, mean, variance of two channels; epsilon 1 makes sigma 2 and 4, so s = gamma / sigma = 3 and 0.5
GAMMA, BETA, MEAN, VARIANCE = [6.0, 2.0], [1.0, -1.0], [10.0, 20.0], [3.0, 15.0]


def normalization(scale=True, center=True):
    """A built BatchNormalization of two channels with the numbers above."""
    layer = layers.BatchNormalization(epsilon=1.0, scale=scale, center=center, name="bn")
    layer.build((None, 2))
    given = ([GAMMA] if scale else []) + ([BETA] if center else []) + [MEAN, VARIANCE]
    layer.set_weights([np.array(values) for values in given])
    return layer


def linear(layer, shape, kernel, bias=None):
    """A built layer with these weights."""
    layer.build((None, *shape))
    layer.set_weights([np.array(kernel)] + ([np.array(bias)] if bias is not None else []))
    return layer


@pytest.mark.parametrize(
    ("scale", "center", "s", "shift"),
    [
        (True, True, [3.0, 0.5], [1 - 30.0, -1 - 10.0]),
        (False, True, [0.5, 0.25], [1 - 5.0, -1 - 5.0]),
        (True, False, [3.0, 0.5], [-30.0, -10.0]),
        (False, False, [0.5, 0.25], [-5.0, -5.0]),
    ],
)
def test_scale_and_shift(scale, center, s, shift):
    found = folding.scale_and_shift(normalization(scale, center))
    assert [values.tolist() for values in found] == [s, shift]


@pytest.mark.parametrize(("bias", "folded_bias"), [(None, [-29.0, -11.0]), ([1.0, 2.0], [3.0 - 29.0, 1.0 - 11.0])])
def test_dense(bias, folded_bias):
    layer = linear(layers.Dense(2, use_bias=bias is not None), (2,), [[1.0, 2.0], [3.0, 4.0]], bias)
    kernel, found = folding.folded_weights(layer, normalization())
    assert kernel.tolist() == [[3.0, 1.0], [9.0, 2.0]]  # column j times s[j]
    assert found.tolist() == folded_bias
    assert (kernel.dtype, found.dtype) == (np.float32, np.float32)


@pytest.mark.parametrize(("bias", "folded_bias"), [(None, [-29.0, -11.0]), ([1.0, 2.0], [3.0 - 29.0, 1.0 - 11.0])])
def test_convolution(bias, folded_bias):
    layer = linear(layers.Conv2D(2, 1, use_bias=bias is not None), (1, 1, 2), [[[[1.0, 2.0], [3.0, 4.0]]]], bias)
    kernel, found = folding.folded_weights(layer, normalization())
    assert kernel.tolist() == [[[[3.0, 1.0], [9.0, 2.0]]]]
    assert found.tolist() == folded_bias


def test_depthwise_kernels_have_their_outputs_in_two_axes():
    per_channel = linear(layers.DepthwiseConv2D(1, use_bias=False), (1, 1, 2), [[[[1.0], [2.0]]]])
    assert folding.folded_weights(per_channel, normalization())[0].tolist() == [[[[3.0], [1.0]]]]
    multiplied = linear(layers.DepthwiseConv2D(1, depth_multiplier=2), (1, 1, 1), [[[[1.0, 2.0]]]], [1.0, 2.0])
    kernel, bias = folding.folded_weights(multiplied, normalization())
    assert (kernel.tolist(), bias.tolist()) == ([[[[3.0, 1.0]]]], [3.0 - 29.0, 1.0 - 11.0])


def chain(*given, shape=(6, 6, 4)):
    """A model of these layers, weights off their initial values."""
    inputs = x = keras.Input(shape, name="x")
    for layer in given:
        x = layer(x)
    return shaken(keras.Model(inputs, x))


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(3, 3, strides=2, padding="same", name="lin"),
        layers.Conv2D(4, 3, groups=2, use_bias=False, name="lin"),
        layers.Conv2D(4, 2, dilation_rate=2, name="lin"),
        layers.DepthwiseConv2D(3, depth_multiplier=2, name="lin"),
        layers.Dense(5, use_bias=False, name="lin"),
        layers.Conv2DTranspose(3, 2, strides=2, name="lin"),
        layers.SeparableConv2D(3, 2, use_bias=False, name="lin"),
    ],
    ids=["strided", "grouped", "dilated", "depthwise", "dense", "transposed", "separable"],
)
def test_outputs_stay(layer):
    model = chain(layer, layers.BatchNormalization(name="bn"), layers.ReLU())
    before = weights(model)
    folded, names = folding.fold(model)
    assert names == ["bn"] and "bn" not in [layer.name for layer in folded.layers]
    assert graph.largest_difference(model, folded, seed=5) <= 1e-5
    assert_identical(weights(model), before)


def test_zeros_stay_zeros():
    model = shaken(cnn())
    kernel = model.get_layer("stem").kernel
    kernel.assign(np.where(np.arange(kernel.shape.num_elements()).reshape(kernel.shape) % 2, kernel, 0.0))
    folded, _ = folding.fold(model)
    assert np.array_equal(folded.get_layer("stem").kernel.numpy() == 0, kernel.numpy() == 0)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv1D(3, 2, strides=2, name="lin"),
        layers.Conv1DTranspose(3, 2, name="lin"),
        layers.DepthwiseConv1D(2, depth_multiplier=2, use_bias=False, name="lin"),
        layers.SeparableConv1D(3, 2, name="lin"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_one_dimensional_layers(layer):
    model = chain(layer, layers.BatchNormalization(name="bn"), layers.ReLU(), shape=(6, 4))
    folded, names = folding.fold(model)
    assert names == ["bn"]
    assert graph.largest_difference(model, folded, seed=5) <= 1e-5


def test_transposed_kernels_have_their_outputs_last_but_one():
    layer = linear(layers.Conv2DTranspose(2, 1, use_bias=False), (1, 1, 1), [[[[1.0], [2.0]]]])
    kernel, bias = folding.folded_weights(layer, normalization())
    assert (kernel.tolist(), bias.tolist()) == ([[[[3.0], [1.0]]]], [-29.0, -11.0])


def test_a_nested_model_is_folded_into_too():
    inner = chain(layers.Dense(3, name="d"), layers.BatchNormalization(name="bn"), shape=(4,))
    x = keras.Input((4,), name="outside")
    model = keras.Model(x, inner(x))
    folded, names = folding.fold(model)
    assert names == ["bn"] and [layer.name for layer in folded.layers] == ["outside", "d"]
    assert graph.largest_difference(model, folded) <= 1e-5


def test_dense_only():
    model = chain(
        layers.Conv2D(3, 1), layers.BatchNormalization(name="a"), layers.Dense(2), layers.BatchNormalization(name="b")
    )
    assert folding.fold(model, "dense")[1] == ["b"]
    assert folding.fold(model, "all")[1] == ["a", "b"]


def after_activation():
    return chain(layers.Conv2D(3, 1, activation="relu"), layers.BatchNormalization())


def read_twice():
    x = keras.Input((4, 4, 2), name="x")
    y = layers.Conv2D(2, 1)(x)
    return shaken(keras.Model(x, layers.Add()([y, layers.BatchNormalization()(y)])))


def also_an_output():
    x = keras.Input((4, 4, 2), name="x")
    y = layers.Conv2D(2, 1)(x)
    return shaken(keras.Model(x, [y, layers.BatchNormalization()(y)]))


def shared_convolution():
    x = keras.Input((4, 4, 2), name="x")
    conv = layers.Conv2D(2, 1)
    return shaken(keras.Model(x, layers.BatchNormalization()(conv(conv(x)))))


def shared_normalization():
    x = keras.Input((4, 4, 2), name="x")
    norm = layers.BatchNormalization()
    return shaken(keras.Model(x, norm(layers.Conv2D(2, 1)(norm(layers.Conv2D(2, 1)(x))))))


def other_axis():
    return chain(layers.Conv2D(3, 1), layers.BatchNormalization(axis=1))


def first():
    return chain(layers.BatchNormalization(), layers.Conv2D(3, 1))


@pytest.mark.parametrize(
    "make",
    [
        after_activation,
        read_twice,
        also_an_output,
        shared_convolution,
        shared_normalization,
        other_axis,
        first,
    ],
)
def test_left_alone(make):
    model = make()
    folded, names = folding.fold(model)
    assert names == []
    assert graph.largest_difference(model, folded) == 0.0


def test_a_fold_that_changes_outputs_is_refused(monkeypatch):
    right = folding.scale_and_shift
    monkeypatch.setattr(folding, "scale_and_shift", lambda layer: (right(layer)[0], 1.0 + right(layer)[1]))
    with pytest.raises(ConversionError, match="changed the outputs of"):
        folding.fold(chain(layers.Dense(2), layers.BatchNormalization()))
