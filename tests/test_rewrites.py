"""Each rewrite on the smallest model that shows it."""

from __future__ import annotations

import numpy as np
import pytest
from keras_models import layers, shaken
from prepared import chain, kinds, prepared, two_of_four

from edgeprune.keras import graph, keras, rewrites_activations, rewrites_affine, rewrites_layers
from edgeprune.keras import layers as own


@keras.utils.register_keras_serializable(package="test")
class LayerScale(keras.layers.Layer):
    def build(self, shape):
        self.gamma = self.add_weight("gamma", shape=(shape[-1],))

    def call(self, x):
        return x * self.gamma


@pytest.mark.parametrize("activation", ["swish", "gelu", "softplus", "mish", "exponential"])
def test_an_activation_leaves_its_layer(activation):
    model, done = prepared(chain(layers.Conv2D(3, 1, activation=activation, name="conv")))
    assert kinds(model) == {"conv": "Conv2D", f"conv_{activation}": "Activation"}
    assert done == {"activations": ("conv",)}


@pytest.mark.parametrize(
    ("activation", "kind"),
    [("relu6", "ReLU"), ("leaky_relu", "LeakyReLU"), (layers.LeakyReLU(0.1), "LeakyReLU"), (layers.ReLU(6.0), "ReLU")],
)
def test_activations_that_have_a_layer_of_their_own(activation, kind):
    function = keras.activations.get("relu6") if activation == "relu6" else activation
    model, _ = prepared(chain(layers.DepthwiseConv2D(2, activation=function, name="conv")))
    assert list(kinds(model).values()) == ["DepthwiseConv2D", kind]


def test_a_transposed_convolution_computes_no_activation():
    model, _ = prepared(chain(layers.Conv2DTranspose(3, 2, activation="relu", name="up")))
    assert kinds(model) == {"up": "Conv2DTranspose", "up_relu": "Activation"}


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid", "tanh", "softmax"])
def test_activations_that_tfmot_quantizes_with_the_layer_stay(activation):
    model = chain(layers.Dense(3, activation=activation, name="dense"))
    assert rewrites_activations.split(model) == (model, [])


def test_a_function_of_the_users_own_stays():
    def swish(x):
        return x * x

    model = chain(layers.Dense(3, activation=swish, name="dense"))
    assert rewrites_activations.split(model) == (model, [])


def test_zeros_and_frozen_layers_stay():
    model = chain(layers.Conv2D(3, 1, activation="swish", trainable=False, name="conv"))
    layer = model.get_layer("conv")
    layer.kernel.assign(two_of_four(layer.kernel.numpy()))
    rewritten = prepared(model)[0].get_layer("conv")
    assert np.array_equal(rewritten.kernel, layer.kernel) and not rewritten.trainable


@pytest.mark.parametrize("layer", [layers.Activation("hard_sigmoid", name="h"), own.HardSigmoid(name="h")])
def test_hard_sigmoid_between_relu6_and_scales(layer):
    model, _ = prepared(chain(layers.ReLU(name="r"), layer))
    assert kinds(model) == {
        "r": "ReLU", "h_shifted": "DepthwiseConv2D", "h_clipped": "ReLU", "h": "DepthwiseConv2D",
    }  # fmt: skip
    assert model.get_layer("h_clipped").max_value == 6.0


def test_hard_sigmoid_behind_a_convolution_shifts_its_bias():
    model, done = prepared(chain(layers.Conv2D(3, 1, activation="hard_sigmoid", name="conv")))
    assert list(kinds(model).values()) == ["Conv2D", "ReLU", "DepthwiseConv2D"]
    assert list(done) == ["activations", "hard sigmoid", "absorbed scales", "scales"]


@pytest.mark.parametrize("layer", [layers.ELU(0.5, name="e"), layers.Activation("elu", name="e")])
def test_elu_is_a_sum(layer):
    model, _ = prepared(chain(layer))
    assert kinds(model) == {
        "e_above": "ReLU", "e_below": "Subtract", "e_power": "Activation", "e_curve": "DepthwiseConv2D", "e": "Add",
    }  # fmt: skip


def test_selu_is_scaled_elu():
    model, done = prepared(chain(layers.Dense(3, activation="selu", name="d")))
    assert kinds(model)["d_selu_sum"] == "Add" and kinds(model)["d_selu"] == "DepthwiseConv2D"
    assert list(done) == ["activations", "exponential units", "scales"]


def test_a_relu_is_clipped_at_6():
    model, _ = prepared(chain(layers.ReLU(2.0, name="r")))
    assert kinds(model) == {"r_scaled": "DepthwiseConv2D", "r_clipped": "ReLU", "r": "DepthwiseConv2D"}
    for layer in (
        layers.ReLU(6.0),
        layers.ReLU(),
        layers.ReLU(2.0, negative_slope=0.1),
        layers.ReLU(2.0, threshold=1.0),
    ):
        assert prepared(chain(layer))[1] == {}


@pytest.mark.parametrize("kind", [layers.Add, layers.Multiply, layers.Maximum, layers.Minimum])
def test_merges_of_three_become_merges_of_two(kind):
    x = keras.Input((3,), name="x")
    model = keras.Model(x, kind(name="all")([x, layers.ReLU(name="r")(x), layers.Activation("tanh", name="t")(x)]))
    result, done = prepared(model)
    assert done == {"pairwise": ("all",)} and result.output_names == ["all"]
    assert [type(layer) for layer in result.layers].count(kind) == 2
    assert kinds(prepared(keras.Model(x, kind(name="two")([x, x])))[0]) == {"two": kind.__name__}


def test_an_average_is_a_sum_and_a_scale():
    x = keras.Input((4, 4, 3), name="x")
    model, _ = prepared(keras.Model(x, layers.Average(name="mean")([x, layers.ReLU(name="r")(x)])))
    assert kinds(model) == {"r": "ReLU", "mean_1": "Add", "mean": "DepthwiseConv2D"}
    assert np.allclose(model.get_layer("mean").depthwise_kernel, 0.5)


@pytest.mark.parametrize("shape", [(5,), (None, 5), (4, 5), (3, 4, 5)])
@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Rescaling(1 / 255, -0.5, name="l"),
        lambda: layers.Rescaling([1.0, 2.0, 3.0, 4.0, 5.0], name="l"),
        lambda: layers.BatchNormalization(scale=False, name="l"),
        lambda: layers.Normalization(mean=[1.0, 2.0, 3.0, 4.0, 5.0], variance=[0.5, 1.0, 1.5, 2.0, 0.0], name="l"),
        lambda: layers.Normalization(axis=None, mean=3.0, variance=2.0, name="l"),
        lambda: layers.Normalization(mean=1.0, variance=4.0, invert=True, name="l"),
        lambda: LayerScale(name="l"),
        lambda: own.Operation("math.subtract", [2.0, {"tensor": 0}], name="l"),
        lambda: own.Operation("math.divide", [{"tensor": 0}, {"array": [1, 2, 3, 4, 5], "dtype": "float32"}], name="l"),
    ],
)
def test_scales_become_depthwise(layer, shape):
    x = keras.Input(shape, name="x")
    model = shaken(keras.Model(x, layer()(x)))
    result, names = rewrites_affine.to_depthwise(model)
    assert names == ["l"] and type(result.get_layer("l")) is layers.DepthwiseConv2D
    assert result.output_shape == model.output_shape
    assert graph.largest_difference(model, result) <= 1e-6
    assert rewrites_affine.to_depthwise(result) == (result, [])


def test_scales_in_a_row_become_one():
    model, done = prepared(
        chain(
            layers.Rescaling(1 / 255, name="a"),
            layers.BatchNormalization(name="b"),
            layers.Rescaling(2.0, 1.0, name="c"),
        )
    )
    assert kinds(model) == {"c": "DepthwiseConv2D"}
    assert done == {"scales": ("a", "b", "c")}
    assert not model.get_layer("c").trainable


def test_a_scale_that_others_read_too_stays():
    x = keras.Input((4, 4, 3), name="x")
    first = layers.Rescaling(0.5, 1.0, name="first")(x)
    second = layers.Rescaling(3.0, -1.0, name="second")(first)
    model, _ = prepared(keras.Model(x, layers.Subtract(name="apart")([first, second])))
    assert kinds(model) == {"first": "DepthwiseConv2D", "second": "DepthwiseConv2D", "apart": "Subtract"}


@pytest.mark.parametrize(
    "layer",
    [
        layers.Normalization(axis=(1, 3), mean=np.ones((4, 3)), variance=np.ones((4, 3)), name="l"),
        layers.BatchNormalization(axis=1, name="l"),
        layers.LayerNormalization(name="l"),
        own.Operation(
            "math.add", [{"tensor": 0}, {"array": [[1.0], [2.0], [3.0], [4.0]], "dtype": "float32"}], name="l"
        ),
    ],
)
def test_what_is_no_scale_by_channel_stays(layer):
    model = chain(layer, shape=(4, 4, 3))
    assert rewrites_affine.to_depthwise(model) == (model, [])


def test_normalization_that_tfmot_folds_stays():
    model = chain(
        layers.Conv2D(3, 1), layers.BatchNormalization(), layers.DepthwiseConv2D(2), layers.BatchNormalization()
    )
    assert prepared(model)[1] == {}


def test_normalization_before_dense_goes_into_it():
    x = keras.Input((4,), name="x")
    normal = layers.BatchNormalization(name="norm")(layers.ReLU(name="r")(x))
    outputs = [layers.Dense(3, name="a")(normal), layers.Dense(2, use_bias=False, name="b")(normal)]
    model = shaken(keras.Model(x, outputs))
    kernel = model.get_layer("a").kernel
    kernel.assign(two_of_four(kernel.numpy()))
    result, done = prepared(model)
    assert done == {"normalization into Dense": ("norm",)}
    assert np.array_equal(result.get_layer("a").kernel.numpy() != 0, kernel.numpy() != 0)
    also_out = shaken(keras.Model(x, [normal, layers.Dense(3, name="a")(normal)]))
    assert list(prepared(also_out)[1]) == ["scales"]


def test_a_constant_behind_a_layer_goes_into_its_weights():
    model, done = prepared(chain(layers.Dense(3, name="dense"), layers.Rescaling(2.0, 1.0, name="scale")))
    assert kinds(model) == {"dense": "Dense"} and done == {"absorbed scales": ("scale",)}
    far, _ = prepared(chain(layers.Conv2D(3, 1, name="conv"), layers.Rescaling(1 / 255, name="scale")))
    assert kinds(far) == {
        "conv": "Conv2D",
        "scale": "DepthwiseConv2D",
    }  # its weights would be trained in far too large steps


def test_layer_scale_stays_trainable():
    model, _ = prepared(chain(layers.Dense(4, name="dense"), LayerScale(name="scale"), shape=(6, 6, 4)))
    assert kinds(model)["scale"] == "DepthwiseConv2D" and model.get_layer("scale").trainable


@pytest.mark.parametrize(
    "options", [{}, {"depth_multiplier": 2, "strides": 2, "use_bias": False, "activation": "relu"}]
)
def test_separable_convolutions_are_two(options):
    model = chain(layers.SeparableConv2D(4, 3, padding="same", depthwise_regularizer="l2", name="s", **options))
    layer = model.get_layer("s")
    layer.pointwise_kernel.assign(two_of_four(layer.pointwise_kernel.numpy()))
    result, _ = prepared(model)
    assert kinds(result) == {"s_depthwise": "DepthwiseConv2D", "s": "Conv2D"}
    assert np.array_equal(result.get_layer("s").kernel, layer.pointwise_kernel)
    assert len(result.losses) == 1


def test_normalization_behind_a_separable_convolution_is_left_to_tfmot():
    model, _ = prepared(
        chain(layers.SeparableConv2D(4, 3, name="s"), layers.BatchNormalization(name="bn"), layers.ReLU())
    )
    assert kinds(model)["bn"] == "BatchNormalization"


@pytest.mark.parametrize(
    "layer",
    [
        layers.GaussianNoise(0.1),
        layers.GaussianDropout(0.1),
        layers.AlphaDropout(0.1),
        layers.ActivityRegularization(0.1),
        layers.RandomFlip(),
        layers.Activation("linear"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_do_nothing_at_inference_go(layer):
    layer = layer.from_config(layer.get_config())
    model, done = prepared(chain(layer, layers.ReLU(name="r")))
    assert kinds(model) == {"r": "ReLU"} and list(done) == ["identities"]


def test_dropout_and_named_outputs_stay():
    model, done = prepared(chain(layers.Dropout(0.1, name="drop"), layers.Activation("linear", name="out")))
    assert list(kinds(model)) == ["drop", "out"] and done == {}


def test_a_dense_layer_needs_no_time_distribution():
    model, _ = prepared(chain(layers.TimeDistributed(layers.Dense(3, activation="relu"), name="steps"), shape=(5, 4)))
    assert kinds(model) == {"steps": "Dense"}
    kept = chain(layers.TimeDistributed(layers.Conv1D(3, 1), name="steps"), shape=(5, 4, 2))
    assert rewrites_layers.time_distributed(kept) == (kept, [])
