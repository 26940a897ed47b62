"""Keras 3 models become flat tf_keras models with the same names, weights and outputs, or are refused by name."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("keras", minversion="3", reason="Keras 3 is not installed")

from keras3_models import IMAGE, SERIES, chain, from_convnext, k3, layers, ops, shaken

from edgeprune.errors import ModelError
from edgeprune.keras import keras, keras3, keras3_layers, keras3_proof

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy's, over Keras 3 itself


def agrees(model, converted):
    inputs = keras3_proof.inputs(model, seed=7)
    expected, given = keras3_proof.run(model, inputs), keras3_proof.run(converted, inputs)
    return keras3_proof.first_difference(expected, given, keras3_proof.TOLERANCE) is None


def twins():
    """Two inputs through one inner model with layer names of the outer one, two outputs by name."""
    inner = k3.Sequential(
        [k3.Input((4,)), layers.Dense(4, name="dense"), layers.BatchNormalization(name="norm")], name="inner"
    )
    one, other = k3.Input((4,), name="one"), k3.Input((4,), name="other")
    x, y = layers.Dense(4, name="dense")(inner(one, training=False)), inner(other)
    return shaken(k3.Model([one, other], {"sum": x + y, "last": layers.Dropout(0.2, name="drop")(y)}, name="twins"))


def test_nested_and_shared_models_are_written_flat():
    model = twins()
    converted = keras3.convert(model)
    assert agrees(model, converted) and converted.name == "twins" and len(converted.outputs) == 2
    total = next(
        operation.name for operation in model._operations if type(operation).__name__ == "Add"
    )  # numbered by Keras
    assert {layer.name for layer in converted.layers} == {"one", "other", "inner_dense", "norm", "dense", total, "drop"}
    assert len(converted.get_layer("inner_dense")._inbound_nodes) == 2
    assert not any(isinstance(layer, keras.Model) for layer in converted.layers)


def test_a_model_within_a_model_within_a_model():
    core = k3.Sequential([k3.Input((4,)), layers.Dense(4, name="a")], name="core")
    around = chain((4,), core, lambda x: x * 2.0)
    model = chain((4,), around, layers.Dense(3, name="b"))
    assert agrees(model, keras3.convert(model))


def test_inputs_by_name():
    one, other = k3.Input((4,), name="one"), k3.Input((4,), name="other")
    inner = k3.Model({"one": one, "other": other}, [one - other, other])
    first, second = k3.Input((4,)), k3.Input((4,))
    model = k3.Model([first, second], inner({"other": first, "one": second}))
    assert agrees(model, keras3.convert(model))


def test_a_sequential_model():
    model = shaken(k3.Sequential([k3.Input(IMAGE), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(2)]))
    assert agrees(model, keras3.convert(model))


@pytest.mark.parametrize("shape", [(None, None, 3), (8, 8, 3)])
def test_sizes_may_be_open(shape):
    model = chain(shape, layers.Conv2D(4, 3, 2), layers.GlobalAveragePooling2D())
    assert keras3.convert(model).inputs[0].shape[1:] == shape


def test_integer_pixels():
    model = chain((6, 6, 3), layers.Rescaling(1 / 255), layers.Conv2D(2, 1), dtype="uint8")
    assert keras3.convert(model).inputs[0].dtype == "uint8"


def test_half_precision_becomes_float32():
    half = [layers.Conv2D(3, 3, dtype="mixed_float16"), layers.Dense(4, dtype="bfloat16"), lambda x: x * 0.5]
    model = chain(IMAGE, *half, layers.Activation("softmax", dtype="float32"))
    converted = keras3.convert(model)
    assert {weight.dtype.name for weight in converted.weights} == {"float32"}
    assert {str(weight.dtype) for weight in model.weights} == {"float32", "bfloat16"}


def test_the_original_is_not_changed():
    model = twins()
    before = [weight.copy() for weight in model.get_weights()]
    keras3.convert(model).set_weights([np.zeros_like(weight) for weight in keras3.convert(model).get_weights()])
    assert all(np.array_equal(one, other) for one, other in zip(before, model.get_weights(), strict=True))


def test_pieces_of_mobilenet_v3_and_convnext():
    def squeezed(x):
        scale = layers.Conv2D(4, 1, activation="relu")(layers.GlobalAveragePooling2D(keepdims=True)(x))
        return x * layers.Activation("hard_sigmoid")(layers.Conv2D(8, 1)(scale))

    def block(x):
        y = layers.LayerNormalization(epsilon=1e-6)(layers.DepthwiseConv2D(3, padding="same")(x))
        return x + from_convnext("LayerScale", 1e-6, 8)(layers.Dense(8, activation="gelu")(y))

    model = chain(IMAGE, layers.Conv2D(8, 1), layers.Activation("hard_swish"), squeezed, block, layers.Flatten())
    assert agrees(shaken(model), keras3.convert(model))


@pytest.mark.slow
def test_a_whole_application():
    model = k3.applications.MobileNetV3Small(
        weights=None, input_shape=(96, 96, 3), classes=10, classifier_activation=None
    )
    assert agrees(model, keras3.convert(model))


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_a_wrong_translation_is_caught_and_named(monkeypatch, activation):
    """Also behind a softmax that gives 0 and 1 whatever comes before it: the outputs alone would agree."""
    model = chain(
        SERIES,
        layers.LeakyReLU(0.2, name="leaky"),
        layers.Flatten(),
        layers.Dense(3, activation=activation, name="last"),
    )
    model.get_layer("last").kernel.assign(model.get_layer("last").kernel * 1e4)
    wrong = keras3_layers.Row(arguments=lambda layer: {"alpha": 0.2002})
    monkeypatch.setitem(keras3_layers.LAYERS, "LeakyReLU", wrong._replace(renamed={"negative_slope": "alpha"}))
    with pytest.raises(ModelError, match=r"'leaky' \(LeakyReLU\) gives other outputs"):
        keras3.convert(model)


class Subclassed(k3.Model):
    """A model whose layers are hidden."""

    def call(self, inputs):
        return inputs


@pytest.mark.parametrize(
    ("model", "way_out"),
    [
        (lambda: Subclassed(), "functional API"),
        (lambda: chain((4,), Subclassed()), "functional API"),
        (lambda: k3.Sequential([layers.Dense(2)]), "model.build"),
    ],
)
def test_what_has_no_graph_is_refused_with_the_way_out(model, way_out):
    with pytest.raises(ModelError, match=way_out):
        keras3.convert(model())


def test_is_model():
    assert keras3.is_model(chain((4,), layers.Dense(2)))
    assert not keras3.is_model(keras.Sequential([keras.layers.Dense(2)]))
    assert not keras3.is_model("model")


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_load(tmp_path, name):
    model = twins() if name.endswith("keras") else chain(IMAGE, layers.Conv2D(2, 3))
    model.save(tmp_path / name)
    loaded = keras3.load(tmp_path / name)
    assert agrees(model, keras3.convert(loaded))


def test_a_file_that_cannot_be_loaded(tmp_path):
    (tmp_path / "model.keras").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"model\.keras was saved by Keras 3 but cannot be loaded"):
        keras3.load(tmp_path / "model.keras")


def test_nothing_is_printed(capfd, tmp_path):
    twins().save(tmp_path / "model.keras")
    capfd.readouterr()
    keras3.convert(keras3.load(tmp_path / "model.keras"))
    assert capfd.readouterr().out == ""


def test_another_backend_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr(k3.backend, "backend", lambda: "jax")
    keras3.keras3.cache_clear()
    with pytest.raises(ModelError, match=r"runs Keras 3 on jax.*\.keras"):
        keras3.keras3()
    keras3.keras3.cache_clear()


def test_the_users_choice_of_backend_stays_theirs():
    """In a fresh process: Keras 3 is imported on TensorFlow, and the variable is as before."""
    code = (
        "import os; os.environ['KERAS_BACKEND'] = 'jax'\n"
        "from edgeprune.keras import keras3\n"
        "print(keras3.is_model(1), keras3.keras3().backend.backend(), os.environ['KERAS_BACKEND'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "tensorflow", "jax"]


def test_arithmetic_of_integers_is_promoted_as_keras_3_does():
    model = chain((5,), lambda x: (x * 0.5 + x / 2 - 1) + ops.mean(x, axis=-1, keepdims=True), dtype="int32")
    assert agrees(model, keras3.convert(model))
