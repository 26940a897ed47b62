"""Small models for the tests of preparation, and what every rewrite of them must hold to."""

from __future__ import annotations

import numpy as np
from keras_models import layers, shaken, weights

from edgeprune.keras import graph, keras, preparation


def chain(*given, shape=(6, 6, 4), dtype=None):
    """A model of these layers one after the other, weights off their initial values."""
    inputs = x = keras.Input(shape, dtype=dtype, name="x")
    for layer in given:
        x = layer(x)
    return shaken(keras.Model(inputs, x))


def prepared(model, fold="dense"):
    """The prepared model and name of each rewrite -> layers, after checks that hold for any model."""
    before = weights(model)
    result = preparation.prepare(model, fold)
    assert graph.largest_difference(model, result.model, seed=7) <= 1e-5
    assert [name for name, value in weights(model).items() if value.tobytes() != before[name].tobytes()] == []
    assert not {id(layer) for layer in model.layers} & {id(layer) for layer in result.model.layers}
    assert result.model.input_names == model.input_names
    assert preparation.prepare(result.model, fold).done == ()
    return result.model, dict(result.done)


def kinds(model):
    """Name -> class name of the model's layers, inputs left out."""
    return {layer.name: type(layer).__name__ for layer in model.layers if not isinstance(layer, layers.InputLayer)}


def two_of_four(kernel):
    """The kernel with the last two of every four input channels (last axis but one) at zero."""
    return kernel * (np.arange(kernel.shape[-2]) % 4 < 2)[:, None]
