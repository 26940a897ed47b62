"""A rebuilt model computes the same and shares nothing; what cannot be rebuilt is said."""

from __future__ import annotations

import numpy as np
import pytest
from keras_models import assert_identical, cnn, dense, layers, shaken, steps, weights

from edgeprune.errors import ModelError
from edgeprune.keras import graph, keras, tf


def same_outputs(one, other):
    return graph.largest_difference(one, other) == 0.0


def every_object(model):
    """The layers of a model, those inside wrappers too."""
    return {id(layer) for layer in model._flatten_layers(include_self=False)}


def test_names_weights_and_outputs_stay():
    model = shaken(cnn(dropout=0.5))
    copy = graph.rebuild(model)
    assert [layer.name for layer in copy.layers] == [layer.name for layer in model.layers]
    assert (copy.name, copy.input_names, copy.output_names) == (model.name, model.input_names, model.output_names)
    assert_identical(weights(copy), weights(model))
    assert same_outputs(model, copy)


def test_no_layer_and_no_variable_is_shared():
    model = cnn()
    copy = graph.rebuild(model)
    assert not every_object(model) & every_object(copy)
    assert not {id(v) for v in model.variables} & {id(v) for v in copy.variables}


def test_training_the_copy_leaves_the_original_bit_for_bit():
    model = shaken(cnn())  # trap 11: TFMOT wraps, and so trains, the very layers that it is given
    before = weights(model)
    copy = graph.rebuild(model)
    steps(copy, 2, learning_rate=0.1)
    copy.get_layer("plain").kernel.assign(np.zeros(copy.get_layer("plain").kernel.shape))
    assert_identical(weights(model), before)
    assert not np.array_equal(copy.get_layer("hidden").kernel, model.get_layer("hidden").kernel)


def test_frozen_layers_stay_frozen():
    model = cnn()
    model.get_layer("plain").trainable = False
    copy = graph.rebuild(model)
    assert [layer.name for layer in copy.layers if layer.weights and not layer.trainable] == ["plain"]


def test_a_shared_layer_stays_one_layer():
    inputs = [keras.Input((3,), name=name) for name in ("left", "right")]
    shared = layers.Dense(2, name="shared")
    model = keras.Model(inputs, layers.Subtract(name="apart")([shared(shared_input) for shared_input in inputs]))
    copy = graph.rebuild(model)
    assert graph.calls_of(copy) == {"shared": 2, "apart": 1}
    assert len(copy.weights) == 2
    assert same_outputs(model, copy)


def test_tensors_given_by_keyword_are_kept():
    """Keras' own clone_model loses them."""
    query, value = keras.Input((4, 3), name="query"), keras.Input((5, 3), name="value")
    attention = layers.MultiHeadAttention(2, 3, name="attention")
    model = keras.Model([query, value], attention(query, value=value))
    copy = graph.rebuild(model)
    assert same_outputs(model, copy)
    swapped = keras.Model([query, value], attention(query, value=query))
    assert not same_outputs(swapped, copy)


def test_operators_are_kept_with_their_arguments():
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, tf.clip_by_value(2.0 - inputs[:, 1:3], -0.5, clip_value_max=2.5))
    x = tf.constant([[9.0, 1.0, 3.0, 9.0]])
    assert graph.rebuild(model)(x).numpy().tolist() == [[1.0, -0.5]]


def test_outputs_are_not_swapped():
    x = keras.Input((1,), name="x")
    plus, minus = layers.Rescaling(1.0, 10.0, name="plus")(x), layers.Rescaling(1.0, -10.0, name="minus")(x)
    copy = graph.rebuild(keras.Model(x, [minus, plus]))
    assert [output.numpy().item() for output in copy(tf.constant([[1.0]]))] == [-9.0, 11.0]
    assert copy.output_names == ["minus", "plus"]


def test_one_tensor_may_be_output_twice_and_inside():
    x = keras.Input((2,), name="x")
    middle = layers.Dense(2, name="middle")(x)
    model = keras.Model(x, [middle, layers.ReLU(name="relu")(middle)])
    assert same_outputs(model, graph.rebuild(model))


def test_a_built_sequential_becomes_functional():
    model = keras.Sequential([layers.Dense(3, input_shape=(2,), name="d1"), layers.ReLU(name="relu")], name="chain")
    copy = graph.rebuild(model)
    assert type(copy) is not keras.Sequential and copy.name == "chain"
    assert same_outputs(model, copy)


def test_rewrite_replaces_calls():
    def without_relu(call):
        return call.args[0] if isinstance(call.layer, layers.ReLU) else None

    copy = graph.rebuild(cnn(), without_relu)
    assert [layer.name for layer in copy.layers if "relu" in layer.name] == ["hidden_relu"]


def test_nodes_producers_and_consumers():
    model = dense(4, 2)
    names = [node.layer.name for node in graph.nodes(model)]
    assert names == ["d1", "d2"]
    d1, d2 = (layer.output for layer in model.layers[1:])
    assert graph.producers(model)[str(id(d1))].layer.name == "d1"
    assert [node.layer.name for node in graph.consumers(model)[str(id(d1))]] == ["d2"]
    assert graph.consumers(model)[str(id(d2))] == [None]


def test_largest_difference_is_a_share_of_the_output_range():
    model = dense(2, inputs=2)
    model.set_weights([np.eye(2), np.zeros(2)])
    other = graph.rebuild(model)
    other.get_layer("d1").bias.assign([0.0, 0.5])
    spread = float(np.ptp(model(np.random.Generator(np.random.PCG64(0)).standard_normal((4, 2)).astype("float32"))))
    assert graph.largest_difference(model, other) == pytest.approx(0.5 / spread, rel=1e-6)


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def nested():
    inputs = keras.Input((8,))
    return keras.Model(inputs, dense(2)(inputs))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Subclassed(name="mine"), r"'mine' is a subclass.*functional API"),
        (lambda: keras.Sequential([layers.Dense(2)], name="chain"), r"'chain' has no input shape.*input_shape"),
        (nested, r"'mlp' is itself a model.*directly"),
    ],
)
def test_what_cannot_be_rebuilt_is_said(make, message):
    with pytest.raises(ModelError, match=message):
        graph.rebuild(make())
