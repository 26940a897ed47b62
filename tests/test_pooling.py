"""Average pooling over the whole image becomes a global one; any other stays."""

from __future__ import annotations

import numpy as np
import pytest

from edgeprune.keras import graph, keras, pooling

layers = keras.layers


def _model(pool):
    inputs = keras.Input((4, 4, 3))
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(pool(inputs))))


def test_a_pool_over_the_whole_image_becomes_global():
    model = _model(layers.AveragePooling2D(4, name="pool"))
    rewritten, names = pooling.globalize(model)
    assert names == ["pool"]
    assert type(rewritten.get_layer("pool")) is layers.GlobalAveragePooling2D
    assert rewritten.get_layer("pool").output_shape == (None, 1, 1, 3)
    assert graph.largest_difference(model, rewritten) <= 1e-5
    assert np.array_equal(rewritten.get_layer("head").kernel, model.get_layer("head").kernel)


def test_a_mean_over_an_image_keeps_its_axes_and_says_the_same():
    inputs = keras.Input((4, 4, 3))
    twice = layers.GlobalAveragePooling2D(name="pool")
    kept = layers.GlobalAveragePooling2D(keepdims=True, name="kept")(inputs)
    heads = [layers.Dense(2, name="head")(twice(inputs)), twice(layers.Conv2D(5, 1)(inputs)), kept]
    model = keras.Model(inputs, heads)
    rewritten, names = pooling.keep_axes(model)
    assert names == ["pool"]
    assert [node.output_shapes for node in rewritten.get_layer("pool").inbound_nodes] == [
        (None, 1, 1, 3),
        (None, 1, 1, 5),
    ]
    assert [tuple(shape) for shape in rewritten.output_shape] == [tuple(shape) for shape in model.output_shape]
    assert graph.largest_difference(model, rewritten) == 0.0
    assert pooling.keep_axes(rewritten) == (rewritten, [])


@pytest.mark.parametrize(
    "pool",
    [
        layers.AveragePooling2D(2, name="pool"),
        layers.AveragePooling2D((4, 2), name="pool"),
        layers.AveragePooling2D(8, padding="same", name="pool"),
        layers.MaxPooling2D(4, name="pool"),
    ],
    ids=["quarters", "halves", "padded", "maximum"],
)
def test_any_other_pool_stays(pool):
    model = _model(pool)
    rewritten, names = pooling.globalize(model)
    assert names == []
    assert type(rewritten.get_layer("pool")) is type(pool)
    assert graph.largest_difference(model, rewritten) == 0.0
