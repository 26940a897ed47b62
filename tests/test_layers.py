"""The layers that a taken-in model may hold beside Keras' own."""

from __future__ import annotations

import numpy as np
import pytest

from edgeprune.errors import UntrustedModel
from edgeprune.keras import keras, layers, tf

X = np.array([[-4.0, -3.0, -1.0, 0.0, 1.0, 3.0, 4.0]], "float32")
HARD = np.array([[0, 0, 1 / 3, 0.5, 2 / 3, 1, 1]], "float32")


def reloaded(layer, tmp_path):
    inputs = keras.Input((7,))
    keras.Model(inputs, layer(inputs)).save(tmp_path / "model.keras", save_format="keras")
    return keras.models.load_model(tmp_path / "model.keras")


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (layers.HardSigmoid(), HARD),
        (layers.HardSwish(), X * HARD),
        (layers.LayerScale(7, 0.5), X * 0.5),
        (layers.Operation("math.multiply", [{"tensor": 0}, 0.5]), X * 0.5),
        (layers.Operation("__operators__.getitem", [{"tensor": 0}, [{"ellipsis": True}, {"slice": [1, None, 2]}]]), X[:, 1::2]),
        (layers.Operation("cast", [{"tensor": 0}, {"dtype": "int32"}]), X.astype("int32")),
        (layers.Operation("math.add", [{"tensor": 0}, {"array": [1.0] * 7, "dtype": "float32"}]), X + 1),
    ],
)  # fmt: skip
def test_values_before_and_after_a_file(layer, expected, tmp_path):
    np.testing.assert_allclose(layer(tf.constant(X)), expected, atol=1e-6)
    np.testing.assert_allclose(reloaded(layer, tmp_path)(X), expected, atol=1e-6)


def test_the_functions_are_the_layers():
    np.testing.assert_array_equal(layers.hard_sigmoid(X), layers.HardSigmoid()(X))
    np.testing.assert_allclose(layers.hard_swish(X), layers.HardSwish()(X), atol=1e-6)


@pytest.mark.parametrize("function", ["io.gfile.rmtree", "load_op_library", "raw_ops.ReadFile", "math", "math.add.x"])
def test_what_may_do_more_than_compute_is_refused(function):
    with pytest.raises(UntrustedModel, match=f"'bad'.*{function}"):
        layers.Operation(function, [{"tensor": 0}], name="bad")


def test_arguments_survive_being_written():
    tensors = []
    given = [slice(1, None, 2), Ellipsis, None, 2, 0.5, "SAME", True, tf.float32, [1, 2]]
    assert layers.decoded(layers.encoded(given, tensors), tensors) == given and tensors == []


def test_an_argument_that_json_lacks():
    with pytest.raises(TypeError, match="object"):
        layers.encoded(object(), [])
