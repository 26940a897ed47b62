"""Layers over sequences become layers over images of width 1, and compute the same."""

from __future__ import annotations

import numpy as np
import pytest
from keras_models import layers, shaken
from prepared import chain, kinds, prepared, two_of_four

from edgeprune.keras import graph, keras
from edgeprune.keras.rewrites_one_dimensional import lift

STEPS = (12, 8)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (layers.Conv1D(4, 3, name="l"), "Conv2D"),
        (layers.Conv1D(4, 3, strides=2, padding="same", groups=2, activation="relu", name="l"), "Conv2D"),
        (layers.Conv1D(4, 3, dilation_rate=2, padding="causal", use_bias=False, name="l"), "Conv2D"),
        (layers.DepthwiseConv1D(3, strides=2, padding="same", name="l"), "DepthwiseConv2D"),
        (layers.DepthwiseConv1D(3, dilation_rate=2, depth_multiplier=2, name="l"), "DepthwiseConv2D"),
        (layers.SeparableConv1D(4, 3, strides=2, name="l"), "SeparableConv2D"),
        (layers.SeparableConv1D(4, 3, dilation_rate=2, padding="causal", name="l"), "SeparableConv2D"),
        (layers.Conv1DTranspose(4, 3, strides=2, name="l"), "Conv2DTranspose"),
        (layers.Conv1DTranspose(4, 3, strides=2, padding="same", output_padding=1, name="l"), "Conv2DTranspose"),
        (layers.MaxPooling1D(3, strides=2, padding="same", name="l"), "MaxPooling2D"),
        (layers.AveragePooling1D(3, name="l"), "AveragePooling2D"),
        (layers.UpSampling1D(2, name="l"), "UpSampling2D"),
        (layers.ZeroPadding1D((1, 2), name="l"), "ZeroPadding2D"),
        (layers.Cropping1D((2, 1), name="l"), "Cropping2D"),
        (layers.SpatialDropout1D(0.5, name="l"), "SpatialDropout2D"),
        (layers.GlobalAveragePooling1D(name="l"), "GlobalAveragePooling2D"),
        (layers.GlobalMaxPooling1D(keepdims=True, name="l"), "GlobalMaxPooling2D"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, keras.layers.Layer) else "",
)
def test_each_layer(layer, kind):
    model = chain(layer, shape=STEPS)
    lifted, names = lift(model)
    assert names == ["l"] and kinds(lifted)["l"] == kind
    assert lifted.output_shape == model.output_shape
    assert graph.largest_difference(model, lifted) <= 1e-6
    assert lift(lifted) == (lifted, [])


def test_a_repeated_vector_is_an_image_made_taller():
    model = chain(layers.RepeatVector(3, name="l"), shape=(4,))
    lifted, _ = lift(model)
    assert list(kinds(lifted).values()) == ["Reshape", "UpSampling2D", "Reshape"]
    assert lifted.output_shape == (None, 3, 4)
    assert graph.largest_difference(model, lifted) == 0.0


def test_kernels_carry_their_zeros_over():
    model = chain(layers.Conv1D(4, 3, name="conv"), shape=STEPS)
    layer = model.get_layer("conv")
    layer.kernel.assign(two_of_four(layer.kernel.numpy()))
    lifted, _ = lift(model)
    assert np.array_equal(lifted.get_layer("conv").kernel, layer.kernel.numpy()[:, None])
    assert lifted.get_layer("conv").kernel.shape == (3, 1, 8, 4)


def test_a_stretch_has_one_reshape_at_its_beginning_and_none_where_a_flatten_ends_it():
    model = chain(
        layers.Conv1D(4, 3, name="a"), layers.BatchNormalization(name="bn"), layers.ReLU(name="relu"),
        layers.MaxPooling1D(2, name="pool"), layers.Dropout(0.5, name="drop"), layers.Conv1D(4, 3, name="b"),
        layers.Flatten(name="flat"), layers.Dense(2, name="dense"), shape=STEPS,
    )  # fmt: skip
    result, done = prepared(model)
    assert list(kinds(result).values()) == [
        "Reshape", "Conv2D", "BatchNormalization", "ReLU", "MaxPooling2D", "Dropout", "Conv2D", "Flatten", "Dense",
    ]  # fmt: skip
    assert done == {"one-dimensional": ("a", "pool", "b")}


def test_reshapes_next_to_each_other_are_one():
    model = chain(layers.Reshape((16, 2), name="in"), layers.Conv1D(4, 3, name="a"), layers.Reshape((56,)), shape=(32,))
    lifted, _ = lift(model)
    assert list(kinds(lifted).values()) == ["Reshape", "Conv2D", "Reshape"]
    from_image = chain(layers.Reshape((6, 4)), layers.Conv1D(4, 3, name="a"), shape=(6, 1, 4))
    assert list(kinds(lift(from_image)[0]).values()) == ["Conv2D", "Reshape"]


def test_branches_stay_two_dimensional_until_they_meet():
    x = keras.Input(STEPS, name="x")
    one = layers.Conv1D(8, 3, padding="same", activation="relu", name="one")(x)
    two = layers.Conv1D(8, 5, padding="causal", name="two")(one)
    joined = layers.Concatenate(axis=2, name="join")([layers.Add(name="sum")([one, two]), two])
    over_steps = layers.Concatenate(axis=1, name="longer")([joined, joined])
    model = shaken(
        keras.Model(x, [layers.GlobalMaxPooling1D(name="max")(over_steps), layers.LSTM(2, name="lstm")(joined)])
    )
    result, _ = prepared(model)
    assert list(kinds(result).values()).count("Reshape") == 2  # before `one`, and before the LSTM


def test_a_shared_layer_over_different_lengths_stays_shared():
    x = keras.Input(STEPS, name="x")
    conv = layers.Conv1D(8, 3, name="conv")
    model = shaken(keras.Model(x, conv(layers.Dense(8, name="dense")(conv(x)))))
    lifted, _ = lift(model)
    assert graph.calls_of(lifted)["conv"] == 2
    assert graph.largest_difference(model, lifted) <= 1e-6


def test_an_open_number_of_steps_stays_open():
    model = chain(layers.Conv1D(4, 3, name="a"), layers.GlobalAveragePooling1D(name="pool"), shape=(None, 8))
    lifted, _ = lift(model)
    assert graph.largest_difference(model, lifted) <= 1e-6


def test_masked_steps_are_left_alone():
    x = keras.Input((6,), name="x")
    words = layers.Embedding(5, 4, mask_zero=True, name="table")(x)
    model = keras.Model(x, layers.GlobalAveragePooling1D(name="mean")(words))
    assert lift(model) == (model, [])
