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
