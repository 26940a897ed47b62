"""Every line of the table: what it says in Keras 3 and what it says in tf_keras are equal."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("keras", minversion="3", reason="Keras 3 is not installed")

from keras3_models import IMAGE, OF_LAYERS, OF_OPERATIONS, SERIES, chain, k3, layers, ops, shaken

from edgeprune.errors import ModelError
from edgeprune.keras import graph, keras, keras3, keras3_layers, keras3_operations, keras3_save
from edgeprune.keras.layers import HardSigmoid, LayerScale

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy's, over Keras 3 itself


def names(model):
    return {layer.name for layer in model.layers}


def of_operations(name):
    return chain(IMAGE, OF_OPERATIONS[name])


@pytest.mark.parametrize("name", OF_LAYERS)
def test_a_layer(name):
    """`convert` compares the outputs itself, so what it returns is right; and rebuild and the way back take it too."""
    model = shaken(OF_LAYERS[name]())
    converted = graph.rebuild(keras3.convert(model))
    assert {layer.name for layer in model.layers} <= names(converted)
    assert {operation.name for operation in keras3_save.convert(converted)._operations} == names(converted)


@pytest.mark.parametrize("name", OF_OPERATIONS)
def test_an_operation(name):
    model = of_operations(name)
    converted = graph.rebuild(keras3.convert(model))
    assert {operation.name for operation in model._operations} <= names(converted)
    assert {operation.name for operation in keras3_save.convert(converted)._operations} == names(converted)


def test_every_line_of_the_table_is_tried():
    models = [make() for make in OF_LAYERS.values()] + [of_operations(name) for name in OF_OPERATIONS]
    tried = {type(operation).__name__ for model in models for _, operation in keras3.operations(model)}
    # Abs, Divide, Power and so on have a second name in keras.ops; only one of them is made by the other's function.
    assert set(keras3_layers.LAYERS) - tried == set()
    assert set(keras3_operations.OPERATIONS) - tried <= {"Abs", "Absolute", "ReLU", "Divide", "TrueDivide"}


def test_operators_become_layers_where_there_is_one():
    x = k3.Input((4, 4))
    total = ops.reshape(ops.relu(x + x * 0.5) * x, (-1, 16))
    converted = keras3.convert(k3.Model(x, ops.concatenate([total, total - total], -1)))
    kinds = [type(layer).__name__ for layer in converted.layers[1:]]
    assert kinds == ["Operation", "Add", "Activation", "Multiply", "Reshape", "Subtract", "Concatenate"]


def test_a_hard_sigmoid_inside_a_layer_becomes_a_layer_behind_it():
    converted = keras3.convert(chain(IMAGE, layers.Conv2D(3, 1, activation="hard_sigmoid", name="conv")))
    assert [layer.name for layer in converted.layers[1:]] == ["conv", "conv_activation"]
    assert isinstance(converted.layers[-1], HardSigmoid)


def test_layer_scale_is_saved_and_loaded(tmp_path):
    converted = keras3.convert(shaken(OF_LAYERS["layer scale"]()))
    converted.save(tmp_path / "model.keras", save_format="keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.layers[1], LayerScale)
    np.testing.assert_array_equal(loaded.layers[1].gamma, converted.layers[1].gamma)


def test_a_gate_with_hard_sigmoid_is_saved_and_loaded(tmp_path):
    converted = keras3.convert(OF_LAYERS["lstm"]())
    converted.save(tmp_path / "model.keras", save_format="keras")
    assert graph.largest_difference(converted, keras.models.load_model(tmp_path / "model.keras")) == 0


def test_regularizers_are_carried():
    converted = keras3.convert(OF_LAYERS["conv2d"]())
    assert converted.layers[1].kernel_regularizer.l2 == pytest.approx(0.01)


def test_augmentation_is_left_out():
    kinds = [
        layers.RandomFlip(name="flip"),
        layers.RandomRotation(0.2, name="turn"),
        layers.RandomContrast(0.2, name="light"),
    ]
    model = chain(IMAGE, *kinds, layers.Conv2D(2, 1, name="conv"))
    assert [layer.name for layer in keras3.convert(model).layers[1:]] == ["conv"]
    assert keras3.left_out(model) == ("flip", "turn", "light")


class Own(layers.Dense):
    """A layer of the user's own."""


REFUSED = {
    "Lambda": lambda: chain(SERIES, layers.Lambda(lambda x: x * 2, name="bad")),
    "SpectralNormalization": lambda: chain(IMAGE, layers.SpectralNormalization(layers.Conv2D(2, 1), name="bad")),
    "RMSNormalization": lambda: chain(SERIES, layers.RMSNormalization(name="bad")),
    "RandomCrop": lambda: chain(IMAGE, layers.RandomCrop(4, 4, name="bad")),
    "RNN": lambda: chain(SERIES, layers.RNN(layers.LSTMCell(2), name="bad")),
    "a class of your own": lambda: chain(SERIES, Own(2, name="bad")),
    "squareplus": lambda: chain(SERIES, layers.Dense(2, activation="squareplus", name="bad")),
    "a_function": lambda: chain(SERIES, layers.Dense(2, activation=a_function, name="bad")),
    "channels_first": lambda: chain(IMAGE, layers.MaxPooling2D(data_format="channels_first", name="bad")),
    "pad_to_aspect_ratio": lambda: chain(IMAGE, layers.Resizing(4, 8, pad_to_aspect_ratio=True, name="bad")),
    "Sort": lambda: chain(IMAGE, lambda x: named(ops.sort(x))),
    "Argmax": lambda: chain(IMAGE, lambda x: named(ops.argmax(x))),
    "int8": lambda: quantized(),
}  # fmt: skip


def a_function(x):
    return x


def named(tensor):
    tensor._keras_history.operation.name = "bad"
    return tensor


def quantized():
    model = chain(SERIES, layers.Dense(4, name="bad"))
    model.quantize("int8")
    return model


@pytest.mark.parametrize("word", REFUSED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_translated_is_refused_by_name(word):
    with pytest.raises(ModelError, match=rf"'bad'.*{word}"):
        keras3.convert(REFUSED[word]())
