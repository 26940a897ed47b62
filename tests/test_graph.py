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


def test_probes_are_noise_and_pixels():
    noise, pixels = graph.probes(dense(2, inputs=500), samples=2)
    assert noise[0].shape == pixels[0].shape == (2, 500)
    assert abs(float(tf.math.reduce_std(noise[0])) - 1.0) < 0.1
    assert 0.0 <= float(tf.reduce_min(pixels[0])) < 5.0 and 250.0 < float(tf.reduce_max(pixels[0])) <= 255.0


def test_probes_of_an_embedding_stay_below_its_size():
    floats, whole = keras.Input((40,), name="floats"), keras.Input((40,), dtype="int32", name="whole")
    once = layers.Embedding(3, 2)(layers.Reshape((40,))(floats))
    twice = layers.Add()([layers.Embedding(5, 2)(whole), layers.Embedding(4, 2)(whole)])
    found = graph.probes(keras.Model([floats, whole], layers.Add()([once, twice])))
    for batch in found:
        assert [sorted({int(v) for v in tensor.numpy().ravel()}) for tensor in batch] == [[0, 1, 2], [0, 1, 2, 3]]
        assert [tensor.dtype for tensor in batch] == [tf.float32, tf.int32]


def test_probes_fill_open_sides_and_keep_a_fixed_batch():
    x = keras.Input((None, None, 3), name="x")
    assert graph.probes(keras.Model(x, layers.Conv2D(2, 3)(x)))[0][0].shape == (4, 32, 32, 3)
    x = keras.Input((5,), batch_size=1, name="x")
    assert graph.probes(keras.Model(x, layers.Dense(2)(x)))[0][0].shape == (1, 5)


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ([0.0, 2.0], [0.0, 3.0], 0.5),
        ([4.0, 4.0], [4.0, 5.0], 0.25),  # constant outputs: a share of their size
        ([0.0, 0.0], [0.0, 0.5], 0.5),
        ([np.nan, 1.0, 2.0], [np.nan, 1.0, 2.0], 0.0),
        ([np.nan, 1.0], [1.0, 1.0], np.inf),
        ([1.0, 1.0], [1.0], np.inf),
    ],
)
def test_difference(one, other, share):
    assert graph.difference([[np.array(one)]], [[np.array(other)]]) == share


def test_free_name():
    assert graph.free_name("a", {"b"}) == "a"
    assert graph.free_name("a", {"a", "a_1"}) == "a_2"


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def around(*models, inputs=(4,)):
    """A functional model that calls these one after the other."""
    given = x = keras.Input(inputs, name="outside")
    for model in models:
        x = model(x)
    return keras.Model(given, x, name="outer")


def names(model):
    return [layer.name for layer in model.layers]


def test_a_flat_model_is_its_own_flat_model():
    model = cnn()
    assert graph.flatten(model) is model


def test_nested_models_are_inlined_at_any_depth():
    inner = dense(4, 4, inputs=4)
    model = shaken(
        around(keras.Sequential([layers.ReLU(name="relu"), inner], name="chain"), layers.Dense(2, name="end"))
    )
    for flat in (graph.flatten(model), graph.rebuild(model)):
        assert names(flat) == ["outside", "relu", "d1", "d2", "end"]
        assert (flat.name, flat.input_names) == ("outer", ["outside"])
        assert same_outputs(model, flat)
        assert not every_object(model) & every_object(flat)


def test_inner_names_that_are_taken_get_their_models_name():
    one, two = dense(4, inputs=4), dense(4, inputs=4, seed=1)
    one._name, two._name = "left", "right"
    model = shaken(around(one, two, layers.Dense(3, name="right_d1"), layers.ReLU(name="outer_relu")))
    flat = graph.flatten(model)
    assert names(flat) == ["outside", "left_d1", "right_d1_1", "right_d1", "outer_relu"]
    assert same_outputs(model, flat)


def test_an_outer_layer_keeps_its_name():
    model = around(dense(4, inputs=4), layers.Dense(3, name="d1"))
    assert names(graph.flatten(model)) == ["outside", "mlp_d1", "d1"]


def test_a_shared_nested_model_is_called_twice_and_stored_once():
    inner = dense(4, inputs=4)
    model = shaken(around(inner, layers.ReLU(name="relu"), inner))
    flat = graph.flatten(model)
    assert graph.calls_of(flat) == {"d1": 2, "relu": 1}
    assert same_outputs(model, flat)


def test_a_layer_shared_between_inside_and_outside_stays_one():
    shared = layers.Dense(4, name="shared")
    x = keras.Input((4,), name="inside")
    model = shaken(around(keras.Model(x, shared(x), name="inner"), shared))
    flat = graph.flatten(model)
    assert graph.calls_of(flat) == {"shared": 2}
    assert same_outputs(model, flat)


@pytest.mark.parametrize("mapping", [False, True])
def test_nested_models_with_several_inputs_and_outputs(mapping):
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    inner = keras.Model(
        {"b": b, "a": a} if mapping else [a, b],
        [layers.Dense(2, name="from_b")(b), layers.Dense(3, name="from_a")(a)],
        name="inner",
    )
    left, right = keras.Input((2,), name="left"), keras.Input((3,), name="right")
    second, first = inner({"a": left, "b": right} if mapping else [left, right])
    model = shaken(keras.Model([right, left], [layers.ReLU(name="relu")(first), second]))
    flat = graph.flatten(model)
    assert flat.input_names == ["right", "left"]
    assert [tuple(tensor.shape) for tensor in flat.outputs] == [(None, 3), (None, 2)]
    assert same_outputs(model, flat)


def test_the_training_phase_of_a_nested_call_stays():
    """A frozen backbone is called with training=False: its BatchNormalization must not learn when the model is trained."""
    x = keras.Input((4,), name="inside")
    inner = keras.Model(x, layers.BatchNormalization(name="bn")(x), name="inner")
    y = keras.Input((4,), name="outside")
    model = keras.Model(y, inner(y, training=False))
    flat = graph.flatten(model)
    data = tf.constant(np.arange(8.0, dtype="float32").reshape(2, 4))
    assert np.array_equal(flat(data, training=True), model(data, training=True))
    usual = graph.flatten(keras.Model(y, inner(y)))
    assert not np.array_equal(usual(data, training=True), usual(data, training=False))


def test_frozen_nested_layers_stay_frozen():
    inner = dense(4, inputs=4)
    inner.trainable = False
    flat = graph.flatten(around(inner, layers.Dense(2, name="end")))
    assert [layer.name for layer in flat.layers if layer.weights and layer.trainable] == ["end"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Subclassed(name="mine"), r"'mine' is a subclass.*functional API"),
        (lambda: keras.Sequential([layers.Dense(2)], name="chain"), r"'chain' has no input shape.*input_shape"),
        (lambda: around(Subclassed(name="mine")), r"'mine' is a subclass.*functional API"),
    ],
)
def test_what_cannot_be_rebuilt_is_said(make, message):
    with pytest.raises(ModelError, match=message):
        graph.rebuild(make())
