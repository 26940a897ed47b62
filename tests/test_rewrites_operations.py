"""TensorFlow functions in the graph become layers that compute the same."""

from __future__ import annotations

import numpy as np
import pytest
from keras_models import layers, shaken
from prepared import kinds, prepared

from edgeprune.keras import graph, keras, rewrites_operations, tf
from edgeprune.keras import layers as own

IMAGE = (4, 4, 6)


def model_of(function, shape=IMAGE):
    x = keras.Input(shape, name="x")
    return keras.Model(x, function(x))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x + x, ["Add"]),
        (lambda x: x - layers.ReLU()(x), ["ReLU", "Subtract"]),
        (lambda x: tf.multiply(x, y=layers.ReLU()(x)), ["ReLU", "Multiply"]),
        (lambda x: tf.maximum(x, layers.ReLU()(x)), ["ReLU", "Maximum"]),
        (tf.nn.relu, ["ReLU"]),
        (tf.nn.relu6, ["ReLU"]),
        (lambda x: tf.clip_by_value(x, 0.0, 2.0), ["ReLU"]),
        (tf.nn.silu, ["Activation"]),
        (tf.nn.gelu, ["Activation"]),
        (tf.sigmoid, ["Activation"]),
        (tf.tanh, ["Activation"]),
        (lambda x: tf.nn.leaky_relu(x, alpha=0.1), ["LeakyReLU"]),
        (tf.nn.softmax, ["Softmax"]),
        (lambda x: tf.concat([x, x], axis=-1), ["Concatenate"]),
        (lambda x: tf.reshape(x, (-1, 96)), ["Reshape"]),
        (lambda x: tf.transpose(x, (0, 3, 1, 2)), ["Permute"]),
        (lambda x: tf.expand_dims(x, 1), ["Reshape"]),
        (lambda x: tf.reduce_mean(x, axis=[1, 2]), ["GlobalAveragePooling2D"]),
        (lambda x: tf.reduce_mean(x, axis=(-2, -3), keepdims=True), ["GlobalAveragePooling2D"]),
        (lambda x: tf.reduce_max(x, [1, 2]), ["GlobalMaxPooling2D"]),
        (lambda x: tf.reduce_mean(x, axis=3), ["Operation"]),
        (lambda x: x[:, 1:3, ..., 0], ["Operation"]),
        (lambda x: x[:, ::2] ** 2.0, ["Operation", "Operation"]),
        (tf.math.rsqrt, ["Operation"]),
        (lambda x: tf.nn.gelu(x, approximate=True), ["Operation"]),
        (lambda x: tf.concat([x, x], axis=0), ["Operation"]),
        (lambda x: tf.reshape(x, (-1, 6)), ["Operation"]),
        (lambda x: tf.nn.bias_add(x, tf.range(6.0)), ["Operation"]),
    ],
)  # fmt: skip
def test_functions(function, expected):
    model = model_of(function)
    rewritten, names = rewrites_operations.functions(model)
    assert sorted(kinds(rewritten).values()) == sorted(expected)
    assert names == [name for name in kinds(model) if name.startswith("tf.")]
    assert graph.largest_difference(model, rewritten) <= 1e-6
    assert rewrites_operations.functions(rewritten) == (rewritten, [])


def test_a_reshape_by_the_batch_size_needs_no_operation():
    model = model_of(lambda x: tf.reshape(x, (tf.shape(x)[0], 4, -1)))
    rewritten, _ = rewrites_operations.functions(model)
    assert list(kinds(rewritten).values()) == ["Reshape"]
    assert graph.largest_difference(model, rewritten) == 0.0


def test_casts_to_the_same_type_are_dropped():
    assert kinds(
        rewrites_operations.functions(model_of(lambda x: layers.ReLU(name="r")(tf.cast(x, tf.float32))))[0]
    ) == {"r": "ReLU"}


def test_a_function_that_no_file_may_ask_for_stays():
    model = model_of(lambda x: tf.debugging.check_numerics(x, "x"))
    rewritten, names = rewrites_operations.functions(model)
    assert (rewritten, names) == (model, [])


def test_operations_that_a_layer_can_stand_for_are_replaced():
    def twice(x):
        mean = own.Operation("math.reduce_mean", [{"tensor": 0}], {"axis": [1, 2], "keepdims": True}, name="mean")(x)
        return own.Operation("math.multiply", [{"tensor": 0}, {"tensor": 1}], name="times")([x, mean])

    rewritten, names = rewrites_operations.functions(model_of(twice))
    assert kinds(rewritten) == {"mean": "GlobalAveragePooling2D", "times": "Multiply"}
    assert names == ["mean", "times"]


def relu6(x):
    return layers.ReLU(6.0)(x)


def operation(name, constant):
    return lambda x: own.Operation(name, [{"tensor": 0}, constant])(x)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x * (relu6(x + 3.0) / 6.0), "HardSwish"),
        (lambda x: (x * tf.nn.relu6(x + 3.0)) / 6.0, "HardSwish"),
        (lambda x: layers.Multiply()([relu6(3.0 + x) * (1 / 6), x]), "HardSwish"),
        (lambda x: layers.Multiply()([x, own.HardSigmoid()(x)]), "HardSwish"),
        (
            lambda x: layers.Multiply()([x, layers.Rescaling(1 / 6)(relu6(layers.Rescaling(1.0, 3.0)(x)))]),
            "HardSwish",
        ),
        (
            lambda x: layers.Multiply()([x, operation("math.divide", 6.0)(relu6(operation("math.add", 3.0)(x)))]),
            "HardSwish",
        ),
        (
            lambda x: operation("math.multiply", 1 / 6)(
                layers.Multiply()([x, layers.Activation(tf.nn.relu6)(operation("math.add", 3.0)(x))])
            ),
            "HardSwish",
        ),
    ],
    ids=["operators", "divided last", "keras", "own", "rescaling", "operations", "operations, divided last"],
)
def test_hard_swish_however_written(function, expected):
    model, done = prepared(shaken(model_of(lambda x: function(layers.Conv2D(4, 1, name="conv")(x)))))
    assert list(kinds(model).values()) == ["Conv2D", expected]
    assert len(done["hard-swish"]) == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * relu6(x + 2.0) / 6.0,
        lambda x: x * relu6(x + 3.0) / 5.0,
        lambda x: x * layers.ReLU(5.0)(x + 3.0) / 6.0,
        lambda x: layers.ReLU()(x) * (relu6(x + 3.0) / 6.0) * 2.0,
    ],
    ids=["shift", "divisor", "clip", "other factor"],
)
def test_what_only_looks_like_hard_swish_is_not_taken_for_it(function):
    model, _ = prepared(model_of(function))
    assert "HardSwish" not in kinds(model).values()


def test_operators_are_applied_again_where_a_nested_model_is_shared():
    x = keras.Input((3,), name="x")
    inner = keras.Model(x, 2.0 * tf.nn.elu(x) - 1.0, name="inner")
    y = keras.Input((3,), name="y")
    model = keras.Model(y, inner(inner(y)))
    rewritten, _ = rewrites_operations.functions(graph.flatten(model))
    assert set(graph.calls_of(rewritten).values()) == {2}
    assert np.allclose(rewritten(tf.constant([[1.0, -1.0, 0.5]])), model(tf.constant([[1.0, -1.0, 0.5]])))
