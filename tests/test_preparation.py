"""The table of rewrites: proven one by one, done once, empty where there is nothing to do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras_models import layers, shaken
from prepared import chain, kinds, prepared

from edgeprune.errors import ConversionError, ModelError
from edgeprune.keras import graph, keras, preparation


def test_nothing_to_do():
    model = chain(
        layers.Conv2D(4, 3, activation="relu", name="conv"), layers.Flatten(name="flat"), layers.Dense(2, name="out")
    )
    result = preparation.prepare(model)
    assert result.done == ()
    assert kinds(result.model) == kinds(model)
    assert graph.largest_difference(model, result.model) == 0.0
    assert not {id(layer) for layer in model.layers} & {id(layer) for layer in result.model.layers}


def test_every_rewrite_says_why():
    names = [rewrite.name for rewrite in preparation.REWRITES]
    assert len(set(names)) == len(names)
    assert all(rewrite.reason for rewrite in preparation.REWRITES)


def test_done_names_rewrites_in_order_with_their_layers():
    result = preparation.prepare(
        chain(
            layers.Rescaling(1 / 255, name="pixels"),
            layers.Conv2D(4, 3, activation="swish", name="conv"),
            layers.BatchNormalization(name="bn"),
        )
    )
    assert result.done == (("activations", ("conv",)), ("scales", ("pixels", "bn")))


def test_nested_and_sequential_models_are_taken():
    inner = keras.Sequential([layers.Conv2D(4, 3, activation="gelu", name="conv", input_shape=(6, 6, 4))], name="inner")
    model, done = prepared(chain(inner, layers.GlobalAveragePooling2D(keepdims=True, name="pool")))
    assert kinds(model) == {"conv": "Conv2D", "conv_gelu": "Activation", "pool": "GlobalAveragePooling2D"}
    assert done == {"activations": ("conv",)}
    model, _ = prepared(shaken(keras.Sequential([layers.Dense(2, activation="mish", input_shape=(3,), name="d")])))
    assert kinds(model) == {"d": "Dense", "d_mish": "Activation"}


def test_fold_says_how_far_normalization_is_folded():
    model = chain(
        layers.Conv2D(3, 1, name="conv"), layers.BatchNormalization(name="a"), layers.Dense(2, name="dense"),
        layers.BatchNormalization(name="b"),
    )  # fmt: skip
    assert prepared(model)[1] == {"folded normalization": ("b",)}
    assert prepared(model, "all")[1] == {"folded normalization": ("a", "b")}


def test_a_rewrite_that_changes_outputs_is_refused(monkeypatch):
    def wrong(model, fold):
        return graph.rebuild(model, lambda call: call.args[0] if call.layer.name == "relu" else None), ["relu"]

    monkeypatch.setattr(preparation, "REWRITES", (preparation.Rewrite("loses ReLU", wrong, "nothing"),))
    with pytest.raises(ConversionError, match=r"'loses ReLU' of relu changed the outputs by .*report this model"):
        preparation.prepare(chain(layers.ReLU(name="relu")))


def test_channels_first_is_refused():
    with pytest.raises(ConversionError, match=r"'pool' \(GlobalAveragePooling2D\) is channels_first.*channels_last"):
        preparation.prepare(chain(layers.GlobalAveragePooling2D(data_format="channels_first", name="pool")))


def test_subclassed_models_are_refused():
    class Mine(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(ModelError, match="functional API"):
        preparation.prepare(Mine(name="mine"))


def test_a_shared_layer_stays_one_layer():
    conv = layers.Conv2D(4, 1, activation="swish", name="conv")
    x = keras.Input((4, 4, 4), name="x")
    norm = layers.BatchNormalization(name="norm")
    model, _ = prepared(shaken(keras.Model(x, norm(conv(norm(conv(x)))))))
    assert graph.calls_of(model) == {"conv": 2, "conv_swish": 2, "norm": 2}
    assert kinds(model)["norm"] == "DepthwiseConv2D"


def test_several_inputs_and_outputs_stay_in_order():
    a, b = keras.Input((4, 4, 3), name="a"), keras.Input((5,), name="b")
    left = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(5, 3, activation="gelu", name="conv")(a))
    right = layers.BatchNormalization(name="norm")(b)
    model, done = prepared(shaken(keras.Model([a, b], [right, layers.Average(name="mean")([left, right])])))
    assert list(done) == ["activations", "pairwise", "scales", "kept axes"]
    assert [tuple(tensor.shape) for tensor in model.outputs] == [(None, 5), (None, 5)]


def test_integer_inputs_are_compared_within_the_vocabulary():
    x = keras.Input((6,), dtype="int32", name="words")
    y = layers.Conv1D(4, 3, activation="swish", name="conv")(layers.Embedding(10, 4, name="table")(x))
    model, done = prepared(shaken(keras.Model(x, y)))
    assert list(done) == ["one-dimensional", "activations"]
    assert kinds(model)["conv"] == "Conv2D"


def test_operations_alone():
    x = keras.Input((4, 4, 4), name="x")
    model = keras.Model(x, x * keras.layers.ReLU(6.0)(x + 3.0) * (1 / 6))
    taken = preparation.operations(model)
    assert list(kinds(taken).values()) == ["HardSwish"]
    assert graph.largest_difference(model, taken) <= 1e-5
    again = preparation.operations(taken)
    assert again is taken


BLOCKS = {
    "conv": lambda: [layers.Conv2D(4, 3, padding="same", activation="swish")],
    "conv_bn": lambda: [layers.Conv2D(4, 1, use_bias=False), layers.BatchNormalization(), layers.ReLU(6.0)],
    "separable": lambda: [layers.SeparableConv2D(4, 3, padding="same", activation="hard_sigmoid")],
    "transposed": lambda: [layers.Conv2DTranspose(4, 2), layers.BatchNormalization()],
    "scale": lambda: [layers.Rescaling([0.5, 1.0, 2.0, -1.0], 0.25)],
    "bn": lambda: [layers.BatchNormalization()],
    "elu": lambda: [layers.ELU(), layers.ReLU(2.0)],
    "noise": lambda: [layers.GaussianNoise(0.1), layers.Dropout(0.2)],
    "gate": lambda: [layers.Activation("hard_sigmoid")],
    "dense": lambda: [layers.Dense(4, activation="gelu"), layers.BatchNormalization()],
}


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=5), st.booleans(), st.sampled_from(["dense", "all"])
)
def test_random_models_stay_what_they_compute(names, residual, fold):
    x = inputs = keras.Input((5, 5, 4), name="x")
    for name in names:
        before = x
        for layer in BLOCKS[name]():
            x = layer(x)
        if residual and x.shape == before.shape:
            x = layers.Average()([x, before, before])
    prepared(shaken(keras.Model(inputs, x)), fold)


def test_weights_that_are_zero_stay_zero():
    x = keras.Input((8, 4), name="x")
    y = layers.BatchNormalization()(layers.Conv1D(4, 3, name="steps", activation="swish")(x))
    y = layers.BatchNormalization()(layers.SeparableConv1D(8, 3, name="apart")(y))
    y = layers.BatchNormalization()(layers.Dense(4, name="dense")(layers.Flatten()(y)))
    model = shaken(keras.Model(x, y))
    masks = {"steps": np.arange(4) % 4 < 2, "apart": np.arange(4) % 4 > 1, "dense": np.arange(32) % 4 < 2}
    for name, kept in masks.items():
        place = 1 if name == "apart" else 0
        values = model.get_layer(name).get_weights()
        values[place] = values[place] * kept[:, None]
        model.get_layer(name).set_weights(values)
    result, _ = prepared(model)
    for name, kept in masks.items():
        kernel = result.get_layer(name).kernel.numpy()
        assert np.array_equal(kernel != 0, np.broadcast_to(kept[:, None], kernel.shape)), name
