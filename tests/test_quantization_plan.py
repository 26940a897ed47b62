"""Which layers fake quantizers carry, and where their observers stand."""

from __future__ import annotations

import pytest
from keras_models import cnn, dense, keras, layers

from edgeprune.keras import layers as own
from edgeprune.keras import program, quantization, quantization_plan, tf


def how(model, skip=()):
    return {layer.name: layer.how for layer in quantization.plan(model, skip)}


def reason(model, name):
    return next(layer.reason for layer in quantization.plan(model) if layer.name == name)


def behind(*chain, shape=(8, 8, 4), dtype="float32"):
    """A model of layers one after the other; each of them may be called ``x``, ``x_1`` ... by its place."""
    given = x = keras.Input(shape, name="given", dtype=dtype)
    for place, layer in enumerate(chain):
        layer._name = f"x_{place}"
        x = layer(x)
    return keras.Model(given, x)


def observers(model):
    """Layers whose output's range is observed."""
    return [
        name for name, decision in quantization_plan.decide(model).items() if decision.row and decision.row.observes
    ]


def test_every_layer_has_an_entry():
    assert how(cnn(dropout=0.5)) == {
        "stem": "trained",
        "stem_bn": "fused",
        "stem_relu": "fused",
        "plain": "trained",
        "plain_relu": "fused",
        "depth": "trained",
        "depth_relu": "fused",
        "pool": "trained",
        "dropout": "passed on",
        "hidden": "trained",
        "hidden_relu": "fused",
        "classes": "trained",
    }


def test_the_last_of_what_becomes_one_op_observes_for_all():
    assert observers(cnn()) == ["stem_relu", "plain_relu", "depth_relu", "pool", "hidden_relu", "classes"]


@pytest.mark.parametrize(
    "relu",
    [layers.ReLU(), layers.ReLU(6.0), layers.Activation("relu"), layers.Activation("relu6")],
    ids=["ReLU", "ReLU6", "relu", "relu6"],
)
def test_relus_that_are_fused(relu):
    assert how(behind(layers.Conv2D(4, 1), relu)) == {"x_0": "trained", "x_1": "fused"}


@pytest.mark.parametrize(
    "before",
    [
        layers.Conv2D(4, 1, activation="tanh"),
        layers.Conv2DTranspose(4, 1),
        layers.MaxPooling2D(),
        layers.LeakyReLU(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_relu_behind_anything_else_has_a_range_of_its_own_and_so_has_that(before):
    model = behind(layers.Conv2D(4, 1), before, layers.ReLU())
    assert how(model)["x_2"] == "trained"
    assert "x_2" in observers(model)
    assert ("x_1" in observers(model)) == (type(before) is not layers.MaxPooling2D)


def test_what_two_layers_read_is_not_fused_away():
    x = keras.Input((8, 8, 4))
    y = layers.Conv2D(4, 1, name="conv")(x)
    model = keras.Model(x, layers.Add(name="add")([layers.ReLU(name="relu")(y), y]))
    assert observers(model) == ["conv", "relu", "add"]
    assert observers(keras.Model(x, [layers.ReLU(name="relu")(y), y])) == ["conv", "relu"]  # an output reads, too


def test_a_shared_layer_keeps_its_observer():
    x = keras.Input((8, 8, 4))
    conv = layers.Conv2D(4, 1, name="conv")
    model = keras.Model(x, layers.ReLU(name="relu")(conv(conv(x))))
    assert observers(model) == ["conv", "relu"]


def test_what_only_a_concatenation_reads_is_observed_there_however_many_there_are():
    x = keras.Input((8, 8, 4))
    parts = [layers.Conv2D(2, 1, activation="relu", name=f"c{place}")(x) for place in range(8)]
    parts.append(layers.Conv2D(2, 1, activation="sigmoid", name="fixed")(x))
    shared = layers.Conv2D(2, 1, name="shared")(x)
    joined = layers.Concatenate(name="joined")([*parts, shared])
    model = keras.Model(x, [joined, layers.ReLU(name="relu")(shared)])
    assert set(observers(model)) == {"shared", "fixed", "joined", "relu"}


def test_concatenations_of_concatenations_have_one_scale():
    x = keras.Input((8, 8, 4))
    inner = layers.Concatenate(name="inner")([layers.Conv2D(2, 1, name=f"c{place}")(x) for place in range(2)])
    model = keras.Model(x, layers.Concatenate(name="outer")([inner, layers.Conv2D(2, 1, name="c2")(x)]))
    assert observers(model) == ["outer"]


# what they do not carry


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (layers.BatchNormalization(), "no convolution right before it"),
        (layers.LayerNormalization(), "several ops"),
        (layers.ELU(), "no int8 ELU"),
        (layers.Activation("elu"), "no int8 ELU"),
        (layers.Activation("softplus"), "softplus is several ops"),
        (layers.Conv2D(2, 1, activation="swish"), "computes the activation swish itself"),
        (layers.Conv2DTranspose(2, 1, activation="relu"), "does not fuse its relu"),
        (layers.ReLU(max_value=2.0), "this threshold, slope or maximum"),
        (layers.UpSampling2D(interpolation="bicubic"), "bicubic"),
        (layers.Rescaling(2.0, offset=1.0), "with an offset"),
        (layers.SeparableConv2D(2, 1), "prepare the model"),
        (own.HardSigmoid(), "several ops"),
        (own.Operation("math.square", [{"tensor": 0}]), "math.square"),
        (layers.Conv3D(2, 1), "nothing is known"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, layers.Layer) else "",
)
def test_what_is_left_to_post_training_ranges_has_a_reason(layer, words):
    shape = (4, 8, 8, 4) if isinstance(layer, layers.Conv3D) else (8, 8, 4)
    before = layers.ZeroPadding3D(0) if isinstance(layer, layers.Conv3D) else layers.MaxPooling2D()
    model = behind(before, layer, shape=shape)
    assert words in reason(model, "x_1")
    assert how(model)["x_1"] == "post-training"


def test_recurrent_layers_and_skipped_ones():
    model = behind(layers.Dense(4), layers.LSTM(3), layers.Dense(2), shape=(5, 4))
    assert how(model) == {"x_0": "trained", "x_1": "post-training", "x_2": "trained"}
    assert how(model, skip=["x_0"])["x_0"] == "post-training"
    assert [layer.name for layer in quantization.post_training(quantization.plan(model, ["x_0"]))] == ["x_0", "x_1"]


def test_a_relu_behind_a_skipped_layer_is_not_fused_with_it():
    model = behind(layers.Conv2D(4, 1), layers.ReLU())
    assert how(model, skip=["x_0"]) == {"x_0": "post-training", "x_1": "trained"}
    assert how(model, skip=["x_1"]) == {"x_0": "trained", "x_1": "post-training"}


def test_indices_that_come_as_floats_cannot_be_looked_up_in_int8():
    assert how(behind(layers.Embedding(9, 2), shape=(3,), dtype="int32")) == {"x_0": "trained"}
    assert how(behind(layers.Embedding(9, 2), shape=(3,))) == {"x_0": "post-training"}


def test_the_share_of_weights_that_are_worth_training():
    def share(model, skip=()):
        return quantization.trainable(model, quantization.plan(model, skip))

    assert share(dense(4, 2)) == 1.0
    assert share(dense(4, 1), skip=["d2"]) == 36 / 41  # 8 x 4 + 4 of them, and 4 + 1
    assert share(behind(layers.LSTM(2), layers.ReLU(), shape=(5, 4))) == 0.0
    assert share(behind(layers.Flatten())) == 0.0


def test_a_program_says_why_it_is_no_layers():
    double = tf.function(lambda x: x * 2.0).get_concrete_function(tf.TensorSpec([None, 4], name="x"))
    model = program.model_of(double.graph.as_graph_def(), double.inputs, double.outputs, "own", "written by hand.")
    (found,) = quantization.plan(model)
    assert (found.how, found.reason) == ("post-training", "it is one program, not layers: written by hand.")
