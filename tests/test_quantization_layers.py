"""Fake quantization beyond TFMOT's list: layers that carry none, other kernels, and weights there and back."""

from __future__ import annotations

import numpy as np
import pytest
from keras_models import SHAPE, assert_identical, cnn, dense, keras, layers, off, samples, shaken, steps, weights

from edgeprune.errors import ConversionError
from edgeprune.keras import layers as own
from edgeprune.keras import quantization, quantization_ranges, tf

# layers that fake quantizers do not carry


def mixed():
    """A Conv2D and a Dense that are carried, a LayerNormalization and a GRU that are not."""
    keras.utils.set_random_seed(0)
    x = given = keras.Input(SHAPE, name="image")
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(layers.Conv2D(8, 1, name="conv")(x)))
    x = layers.LayerNormalization(name="norm")(layers.Reshape((16, 32), name="rows")(x))
    x = layers.GRU(4, unroll=True, name="memory")(x)
    return shaken(keras.Model(given, layers.Dense(2, name="dense")(x), name="mixed"))


def test_one_layer_that_is_not_carried_stops_nothing():
    model = mixed()
    quantized = quantization.quantize(model, preserve=False)
    quantization.calibrate(quantized, [samples()[0][:8]])
    names = [layer.name for layer in quantized.layers]
    assert {"quant_conv", "norm", "memory", "quant_dense"} <= set(names)
    assert quantized.output_shape == model.output_shape


def test_weights_go_through_training_and_back():
    model = mixed()
    quantized = quantization.quantize(model, preserve=False)
    assert_identical(weights(quantization.unquantized(quantized, model)), weights(model))
    quantization.calibrate(quantized, [samples()[0][:8]])
    steps(quantized, 2, learning_rate=0.01)
    back = quantization.unquantized(quantized, model)
    assert all(
        np.any(back.get_layer(name).get_weights()[0] != model.get_layer(name).get_weights()[0])
        for name in ("conv", "bn", "norm", "memory", "dense")
    )
    assert np.any(back.get_layer("bn").moving_mean.numpy() != model.get_layer("bn").moving_mean.numpy())
    assert [weight.name for weight in back.weights] == [weight.name for weight in model.weights]
    x = tf.constant(samples()[0][:16])
    quantization.calibrate(quantized, [x])
    spread = np.ptp(back(x).numpy())
    assert np.abs(quantized(x, training=False).numpy() - back(x).numpy()).max() / spread < 0.1


def test_zeros_stay_in_layers_that_are_carried_and_in_those_that_are_not():
    model = mixed()
    pruned = ("conv", "memory", "dense")
    for name in pruned:
        kernel = model.get_layer(name).weights[0]
        kernel.assign(np.where(off(kernel.shape), 0.0, kernel))
    quantized = quantization.quantize(model, preserve=True)
    quantization.calibrate(quantized, [samples()[0][:8]])
    steps(quantized, 3, learning_rate=0.01)
    back = quantization.unquantized(quantized, model)
    for name in pruned:
        kernel = back.get_layer(name).get_weights()[0]
        assert np.all(kernel[off(kernel.shape)] == 0)
    assert np.any(back.get_layer("conv").kernel.numpy() != model.get_layer("conv").kernel.numpy())


def test_weights_of_another_model_are_refused():
    with pytest.raises(ConversionError, match="no stem/kernel:0"):
        quantization.unquantized(quantization.quantize(dense(2), preserve=False), cnn())


def test_a_skipped_layer_has_no_quantizers():
    quantized = quantization.quantize(cnn(), preserve=False, skip=["plain"])
    names = [layer.name for layer in quantized.layers]
    assert "plain" in names and "quant_plain" not in names
    assert quantized.get_layer("quant_plain_relu")._output_quantizers


# kernels and layers beyond TFMOT's list


@pytest.mark.parametrize(
    "layer",
    [layers.Conv2DTranspose(4, 3, name="kernel"), layers.Conv2D(4, 3, groups=2, name="kernel")],
    ids=["transposed", "grouped"],
)
def test_zeros_of_kernels_that_tfmot_has_no_mask_for(layer):
    given = keras.Input((4, 4, 4))
    model = keras.Model(given, layers.ReLU()(layer(given)))
    kernel = model.get_layer("kernel").kernel
    kernel.assign(np.where(off(kernel.shape), 0.0, kernel))
    quantized = quantization.quantize(model, preserve=True)
    quantization.calibrate(quantized, [np.ones((1, 4, 4, 4), "float32")])
    steps(quantized, 3, learning_rate=0.01)
    trained = quantization.unquantized(quantized, model).get_layer("kernel").kernel.numpy()
    assert np.all(trained[off(trained.shape)] == 0) and np.any(trained != kernel.numpy())


def test_an_embedding_is_trained_with_its_zeros():
    given = keras.Input((3,), dtype="int32", name="words")
    model = keras.Model(given, layers.Flatten()(layers.Embedding(5, 4, name="words_in")(given)))
    table = model.get_layer("words_in").embeddings
    table.assign(np.where(off(table.shape), 0.0, 1.0))
    quantized = quantization.quantize(model, preserve=True)
    assert quantization.calibrate(quantized, [np.array([[0, 1, 4]])]) == 1
    assert not any("quantize_words" in layer.name for layer in quantized.layers)  # integers have no range
    assert np.array_equal(quantized(np.array([[0, 1, 4]])).numpy()[0] == 0, off(table.shape)[[0, 1, 4]].ravel())


def test_a_frozen_kernel_is_not_trained():
    model = dense(4, 2)
    model.get_layer("d1").trainable = False
    quantized = quantization.quantize(model, preserve=False)
    assert [weight.name for weight in quantized.trainable_weights] == ["d2/kernel:0", "d2/bias:0"]
    assert {"d1/kernel:0", "d1/bias:0"} <= {weight.name for weight in quantized.non_trainable_weights}
    assert_identical(weights(quantization.unquantized(quantized, model)), weights(model))


def test_two_inputs_two_outputs_and_a_shared_layer():
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    shared = layers.Dense(3, activation="relu", name="shared")
    both = layers.Concatenate(name="both")([shared(left), shared(right)])
    model = keras.Model([left, right], [layers.Dense(2, name="a")(both), layers.Dense(1, name="b")(both)])
    quantized = quantization.quantize(model, preserve=False)
    assert len([layer for layer in quantized.layers if layer.name == "quant_shared"]) == 1
    small, large = np.full((2, 4), 0.5, "float32"), np.full((2, 4), 8.0, "float32")
    for batch in ([small, large], (small, large), {"right": large, "left": small}):
        assert quantization.calibrate(quantized, [batch]) == 2
        found = {v.name: float(v) for v in quantized.variables if v.name.endswith("_max:0") and "quantize_" in v.name}
        assert list(found.values()) == [0.5, 8.0]
    expected, found = model([small, large]), quantized([small, large], training=False)
    for one, other in zip(expected, found, strict=True):
        assert np.abs(one.numpy() - other.numpy()).max() < 0.1 * max(np.abs(one.numpy()).max(), 1e-6)


def test_layers_of_our_own_need_no_scope():
    given = keras.Input((8, 8, 4))
    x = own.HardSwish(name="swish")(layers.Conv2D(4, 1, name="conv")(given))
    x = own.Operation("math.multiply", [{"tensor": 0}, 0.5], name="half")(x)
    quantized = quantization.quantize(keras.Model(given, x), preserve=True)
    assert [layer.name for layer in quantized.layers][2:] == ["quant_conv", "quant_swish", "quant_half"]


def test_average_pooling_rounds_to_the_scale_of_what_it_reads():
    """Its kernel must keep that scale, so training sees the rounding, by the same two variables and no others."""
    given = x = keras.Input((4, 4, 2), name="image")
    x = layers.ReLU(name="relu")(layers.Conv2D(4, 1, name="conv")(x))
    x = layers.AveragePooling2D(2, name="pool")(x)
    model = keras.Model(given, layers.Conv2D(2, 1, name="out")(x))
    quantized = quantization.quantize(model, preserve=False)
    quantization.calibrate(quantized, [samples()[0][:32, :4, :4, :2]])
    rounded = quantized.get_layer("rounded_pool")
    low, high = quantization_ranges.ranges(quantized.get_layer("quant_relu"))[-1]
    assert rounded.low is low and rounded.high is high
    pooled = keras.Model(quantized.input, rounded.output)(samples()[0][:8, :4, :4, :2]).numpy()
    steps = pooled / ((float(high) - float(low)) / 255)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    assert np.unique(np.rint(steps)).size > 20


def test_where_the_scale_is_not_observed_right_before_it_average_pooling_stays_as_it_is():
    """Behind a sigmoid, whose scale is fixed, and behind what passes a scale on."""
    given = keras.Input((4, 4, 2), name="image")
    x = layers.Conv2D(4, 1, activation="sigmoid", name="conv")(given)
    y = layers.MaxPooling2D(2, name="most")(layers.Conv2D(4, 1, activation="relu", name="other")(given))
    ends = [layers.AveragePooling2D(2, name="pool")(x), layers.AveragePooling2D(2, name="second")(y)]
    names = [layer.name for layer in quantization.quantize(keras.Model(given, ends), preserve=False).layers]
    assert not any(name.startswith("rounded") for name in names)
