"""What rounding explains is no difference; what it does not explain is one, however chaotic the model."""

import keras_models
import numpy as np
import pytest

from edgeprune.keras import graph, keras, rounding

layers = keras.layers


def amplifier(factor, seed=0):
    """Subtracts what is nearly all of its activations, and enlarges the rest by ``factor``, as BatchNormalization does."""
    keras.utils.set_random_seed(seed)
    given = x = keras.Input((8,), name="x")
    x = layers.Dense(64, name="wide", bias_initializer="ones")(x)
    x = layers.BatchNormalization(name="normal", epsilon=1e-12)(x)
    model = keras.Model(given, layers.Dense(4, name="out")(x))
    wide = model.get_layer("wide")
    wide.set_weights([wide.get_weights()[0] / factor, wide.get_weights()[1]])
    model.get_layer("normal").set_weights([np.ones(64), np.zeros(64), np.ones(64), np.full(64, factor**-2.0)])
    return model


def test_weights_come_back_exactly():
    model = keras_models.cnn()
    before = model.get_weights()
    with rounding.stirred(model):
        inside = model.get_weights()
    after = model.get_weights()
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    kernel, moved = before[0], inside[0]
    assert 0 < np.abs(moved / kernel - 1).max() <= rounding.LAST_BIT * 1.5


def test_weights_come_back_after_an_error():
    model = keras_models.small()
    before = model.get_weights()
    with pytest.raises(RuntimeError), rounding.stirred(model):
        raise RuntimeError
    assert all(np.array_equal(one, other) for one, other in zip(before, model.get_weights(), strict=True))


def test_a_model_equals_its_copy():
    model = keras_models.cnn()
    assert rounding.excess(model, graph.rebuild(model), 1e-5) is None


def test_a_wrong_weight_is_found():
    model = keras_models.shaken(keras_models.cnn(activation=None))
    wrong = graph.rebuild(model)
    wrong.get_layer("classes").kernel.assign(wrong.get_layer("classes").kernel * 1.001)
    assert rounding.excess(model, wrong, 1e-5) > 1e-5


def test_where_rounding_is_amplified_so_much_is_allowed():
    """A difference of one last bit in a weight, enlarged a thousand times, is over the limit and yet nothing."""
    model = amplifier(1000.0)
    other = graph.rebuild(model)
    kernel, bias = other.get_layer("wide").get_weights()
    other.get_layer("wide").set_weights([kernel, np.nextafter(bias, np.float32(2))])
    batches = graph.probes(model)
    assert graph.difference(graph.outputs(model, batches), graph.outputs(other, batches)) > 1e-5
    assert rounding.excess(model, other, 1e-5) is None


def test_and_no_more():
    model = amplifier(1000.0)
    other = graph.rebuild(model)
    other.get_layer("out").kernel.assign(other.get_layer("out").kernel * 1.05)
    assert rounding.excess(model, other, 1e-5) > 1e-2


@pytest.mark.parametrize(("moved", "expected"), [(0.0, 1e-5), (1e-6, 1e-5), (1e-5, 1e-4), (0.5, rounding.CAP)])
def test_what_is_allowed(moved, expected):
    assert rounding.allowed(1e-5, moved) == pytest.approx(expected)
