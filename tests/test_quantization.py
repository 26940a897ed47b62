"""Fake quantization: weights in front of a ReLU keep theirs, zeros stay zeros, and ranges are the data's."""

from __future__ import annotations

import re

import numpy as np
import pytest
from keras_models import SHAPE, assert_identical, cnn, dense, keras, layers, samples, shaken, steps, weights
from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.prune_preserve import (
    default_8bit_prune_preserve_quantize_scheme,
)

from edgeprune import inference, tflite
from edgeprune.errors import ConversionError
from edgeprune.keras import conversion, export, graph, preparation, quantization, quantization_ranges, tf, tfmot
from edgeprune.keras import layers as own

BEFORE_RELU = ("plain", "depth", "hidden")
KERNELS = ("stem", "plain", "hidden", "classes")


def off(shape):
    """The half of a kernel that is pruned in these tests, picked at random."""
    size = int(np.prod(shape))
    return (np.random.Generator(np.random.PCG64(size)).permutation(size) < size // 2).reshape(shape)


def halved(model):
    """The model with half of the weights of its kernels at zero."""
    for name in KERNELS:
        kernel = model.get_layer(name).kernel
        kernel.assign(np.where(off(kernel.shape), 0.0, kernel))
    return model


def calibrated(quantized):
    """Ready to be trained: no activation is clipped, so that every weight has a gradient."""
    quantization.calibrate(quantized, [samples()[0]])
    return quantized


def by_tfmot_alone(model):
    """The model as TFMOT's own prune-preserving scheme quantizes it."""
    annotated = tfmot.quantization.keras.quantize_annotate_model(graph.rebuild(model))
    with tfmot.quantization.keras.quantize_scope():
        scheme = default_8bit_prune_preserve_quantize_scheme.Default8BitPrunePreserveQuantizeScheme()
        return tfmot.quantization.keras.quantize_apply(annotated, scheme)


def variable(quantized, name):
    """The trained variable of a layer's kernel (at call time Keras' attribute holds the quantized tensor instead)."""
    return next(
        v for v in quantized.variables if v.name.startswith(f"{name}/") and "kernel" in v.name and "quant" not in v.name
    )


def zeros(quantized):
    """Layer -> share of the zeros of ``halved`` that are still zero."""
    kernels = {name: variable(quantized, name).numpy() for name in KERNELS}
    return {name: float((kernel[off(kernel.shape)] == 0).mean()) for name, kernel in kernels.items()}


def quantizes_weights(quantized, name):
    return bool(quantized.get_layer(f"quant_{name}")._weight_vars)


@pytest.fixture(scope="module")
def pruned():
    return halved(shaken(cnn(activation=None)))


@pytest.fixture(scope="module")
def preserving(pruned):
    """The quantized model, and the values to start each test from."""
    quantized = calibrated(quantization.quantize(pruned, preserve=True))
    return quantized, quantized.get_weights()


@pytest.fixture
def quantized(preserving):
    model, values = preserving
    model.set_weights(values)
    return model


# trap 1


@pytest.mark.parametrize("name", BEFORE_RELU)
def test_weights_before_a_relu_layer_are_quantized(quantized, name):
    assert quantizes_weights(quantized, name)
    assert quantized.get_layer(f"quant_{name}")._output_quantizers == []  # that is the ReLU's task
    assert quantized.get_layer(f"quant_{name}_relu")._output_quantizers


def test_every_weight_comes_out_on_the_int8_grid(quantized):
    for name in (*KERNELS, "depth"):
        for kernel, quantizer, ranges in quantized.get_layer(f"quant_{name}")._weight_vars:
            made = quantizer(kernel, training=True, weights=ranges).numpy()
            assert all(len(np.unique(made[..., channel])) <= 255 for channel in range(made.shape[-1]))
            assert np.all(made[kernel.numpy() == 0] == 0)


def test_zeros_survive_hard_training_and_would_not_with_tfmot_alone(pruned, quantized):
    """The control shows what is corrected: no quantizer, and so no mask, where a ReLU layer follows."""
    steps(quantized, 8, learning_rate=0.01)
    assert zeros(quantized) == dict.fromkeys(KERNELS, 1.0)
    control = calibrated(by_tfmot_alone(pruned))
    assert [quantizes_weights(control, name) for name in ("stem", *BEFORE_RELU, "classes")] == [
        True,
        False,
        False,
        False,
        True,
    ]
    steps(control, 8, learning_rate=0.01)
    found = zeros(control)
    assert (found["stem"], found["classes"]) == (1.0, 1.0)
    assert max(found["plain"], found["hidden"]) < 0.5


def test_an_addition_leaves_its_observer_to_the_relu():
    x = keras.Input((4,), name="x")
    model = keras.Model(x, layers.ReLU(name="relu")(layers.Add(name="add")([layers.Dense(4, name="dense")(x), x])))
    quantized = quantization.quantize(model, preserve=False)
    assert not quantized.get_layer("quant_add")._output_quantizers
    assert quantized.get_layer("quant_relu")._output_quantizers


# traps 13 and 4


def test_without_preserving_zeros_are_lost(pruned):
    quantized = calibrated(quantization.quantize(pruned, preserve=False))
    steps(quantized, 3, learning_rate=0.01)
    assert max(zeros(quantized).values()) < 0.5


def test_a_resumed_model_keeps_the_mask_when_rebuilt_from_the_pruned_one(pruned, quantized):
    """Trap 4: the mask is made of the weights at hand, so it must not be made of the dense ones."""
    steps(quantized, 2, learning_rate=0.01)
    checkpoint = quantized.get_weights()
    resumed, wrong = (quantization.quantize(model, preserve=True) for model in (pruned, cnn(seed=3)))
    for model in (resumed, wrong):
        model.set_weights(checkpoint)
        steps(model, 2, learning_rate=0.01, seed=1)
    assert zeros(resumed) == dict.fromkeys(KERNELS, 1.0)
    assert max(zeros(wrong).values()) < 0.5


def test_the_float_model_is_left_as_it_is(pruned, quantized):
    before = weights(pruned)
    steps(quantized, 1, learning_rate=0.1)
    assert_identical(weights(pruned), before)


# trap 5


def test_ranges_are_the_datas_from_the_first_step():
    model = dense(2, inputs=2)
    model.get_layer("d1").set_weights([np.array([[1.0, 0.0], [0.0, 100.0]]), np.array([0.0, -50.0])])
    quantized = quantization.quantize(model, preserve=False)
    seen = quantization.calibrate(
        quantized, [np.array([[1.0, 2.0], [3.0, 1.0]], "float32"), np.array([[2.0, 4.0]], "float32")]
    )
    assert seen == 3
    assert [float(v) for v in quantized.layers[1].variables[:2]] == [0.0, 4.0]  # 0 is always inside
    outputs = {v.name: float(v) for v in quantized.variables if "post_activation" in v.name}
    assert outputs == {
        "quant_d1/post_activation_min:0": 0.0,
        "quant_d1/post_activation_max:0": 350.0,
    }  # 1..3 and 50..350


def test_without_a_step_outputs_are_near_float_and_far_off_uncalibrated():
    model = shaken(cnn(activation=None))
    x = tf.constant(samples()[0][:32])
    expected = model(x).numpy()

    def distance(quantized):
        return np.abs(quantized(x, training=False).numpy() - expected).max() / np.ptp(expected)

    quantized = quantization.quantize(model, preserve=False)
    assert distance(quantized) > 0.3
    assert quantization.calibrate(quantized, [x[:16].numpy(), x[16:].numpy()]) == 32
    assert distance(quantized) < 0.03


def test_calibration_changes_ranges_and_nothing_else():
    model = quantization.quantize(shaken(cnn(dropout=0.5)), preserve=True)
    parts = list(model._flatten_layers())
    dropout = next(layer for layer in parts if isinstance(layer, layers.Dropout))

    def quantizers():
        return [
            quantizer
            for layer in model.layers
            for quantizer in (
                getattr(layer, "quantizer", None),
                *getattr(layer, "_output_quantizers", []),
                *(activation.quantizer for activation in getattr(layer, "_quantize_activations", [])),
            )
        ]

    before, kinds, trainable = weights(model), quantizers(), [layer.trainable for layer in parts]
    quantization.calibrate(model, [samples()[0][:16]])
    after = weights(model)
    assert {name.rsplit("_", 1)[1] for name in after if after[name].tobytes() != before[name].tobytes()} == {
        "min:0",
        "max:0",
    }
    assert all(one is other for one, other in zip(kinds, quantizers(), strict=True))
    assert (dropout.rate, [layer.trainable for layer in parts]) == (0.5, trainable)


def test_an_interrupted_calibration_puts_everything_back():
    model = quantization.quantize(cnn(dropout=0.5), preserve=False)
    first = next(layer for layer in model.layers if hasattr(layer, "quantizer"))
    quantizer = first.quantizer
    dropout = next(layer for layer in model._flatten_layers() if isinstance(layer, layers.Dropout))

    def batches():
        yield samples()[0][:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantization.calibrate(model, batches())
    assert first.quantizer is quantizer and dropout.rate == 0.5
    assert all(layer.trainable for layer in model._flatten_layers() if isinstance(layer, layers.BatchNormalization))


def test_average_pooling_passes_its_inputs_scale_on():
    x = keras.Input((4, 4, 2), name="x")
    model = keras.Model(x, layers.AveragePooling2D(name="pool")(layers.Conv2D(2, 1, name="conv")(x)))
    quantized = quantization.quantize(model, preserve=False)
    assert not quantized.get_layer("quant_pool")._output_quantizers


# TFMOT's own placement, where that is right


def within_tfmots_list():
    """Convolutions with BatchNormalization and ReLU, depthwise ones, a sum, a concatenation and Dense, with three outputs."""
    given = keras.Input((8, 8, 4), name="x")
    x = short = layers.ReLU(name="r1")(layers.BatchNormalization(name="b1")(layers.Conv2D(4, 1, name="c1")(given)))
    x = layers.BatchNormalization(name="b2")(layers.DepthwiseConv2D(3, padding="same", name="c2")(x))
    total = layers.ReLU(name="r2")(layers.Add(name="add")([x, short]))
    x = layers.Flatten(name="flat")(layers.GlobalAveragePooling2D(name="mean")(total))
    x = layers.Dropout(0.5, name="drop")(layers.Dense(4, activation="relu", name="d1")(x))
    classes = layers.Dense(3, activation="softmax", name="d2")(x)
    x = layers.BatchNormalization(name="b3")(layers.DepthwiseConv2D(3, strides=2, use_bias=False, name="c3")(total))
    mobile = layers.Conv2D(6, 1, name="c4")(layers.ReLU(6.0, name="r3")(x))
    parts = [layers.Conv2D(3, 3, name="c5")(total), layers.Conv2D(2, 3, activation="relu", name="c6")(total)]
    both = layers.MaxPooling2D(name="max")(layers.Concatenate(name="both")(parts))
    return shaken(keras.Model(given, [classes, mobile, both]))


def placed(quantized):
    """Layer -> how many weight quantizers, and how many of its output."""
    return {
        layer.name: (len(layer._weight_vars), len(layer._output_quantizers))
        for layer in quantized.layers
        if layer.name.startswith("quant_")
    }


def ranges(quantized):
    """Name -> variable of every range; TFMOT numbers its name for that of the input."""
    ends = ("_min:0", "_max:0")
    return {
        re.sub(r"quantize_(x|layer(_\d+)?)", "input", v.name): v for v in quantized.variables if v.name.endswith(ends)
    }


@pytest.mark.slow
def test_where_tfmot_is_right_the_quantizers_are_the_same_and_so_is_the_file(tmp_path):
    model = within_tfmots_list()
    ours, theirs = (
        quantization.quantize(model, preserve=False),
        tfmot.quantization.keras.quantize_model(graph.rebuild(model)),
    )
    # TFMOT wants to leave out what a Concatenate observes for all, but knows not how for layers with an activation.
    also = {f"quant_{name}/post_activation_{end}:0" for name in ("c5", "c6") for end in ("min", "max")}
    assert set(ranges(theirs)) - set(ranges(ours)) == also and set(ranges(ours)) < set(ranges(theirs))
    assert placed(ours) == placed(theirs)
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 4)).astype("float32")
    quantization.calibrate(ours, [x])
    known = ranges(ours)
    for name, variable in ranges(theirs).items():
        variable.assign(known[f"quant_both/output_{name[-5:]}" if name in also else name])
    runners, ops = [], []
    with conversion.Converter(tmp_path / "log") as converter:
        for name, quantized in (("ours", ours), ("theirs", theirs)):
            folder = export.save(quantized, tmp_path / name)
            file = converter.convert(folder, tmp_path / f"{name}.tflite")
            runners.append(inference.Runner(file))
            ops.append([op.op for op in tflite.read(file).ops])
    assert ops[0] == ops[1]
    for port, one, other in zip(runners[0].outputs, *(runner.run(x) for runner in runners), strict=True):
        assert np.abs(one - other).max() <= port.scale


# ranges that are nothing


@pytest.mark.slow
def test_a_tensor_that_is_always_zero_gets_a_range_that_the_runtime_takes(tmp_path):
    """The default delegate refuses a file in which a convolution's output scale is 1e-9: "failed to create XNNPACK runtime"."""
    given = keras.Input((8, 8, 4), name="x")
    x = layers.Conv2D(4, 1, name="first")(given)
    never = layers.Conv2D(4, 1, bias_initializer=keras.initializers.Constant(-1e3), name="never")(x)
    dead = layers.ReLU(name="dead")(never)
    outputs = [
        layers.Activation("selu", name="after_hard_sigmoid")(layers.Activation("hard_sigmoid", name="gate")(x)),
        layers.Activation("selu", name="after_relu")(layers.ReLU(name="relu")(x)),
        layers.Dense(2, bias_initializer="ones", name="after_dead")(dead),
        layers.Add(name="sum")([x, dead]),
        layers.Multiply(name="product")([x, dead]),
    ]
    prepared = preparation.prepare(keras.Model(given, outputs)).model
    quantized = quantization.quantize(prepared, preserve=True)
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 4)).astype("float32")
    quantization.calibrate(quantized, [x])
    folder = export.save(quantized, tmp_path / "model")
    file = conversion.convert(folder, tmp_path / "model.tflite")
    assert tflite.int8_violations(tflite.read(file)) == ()
    runner, expected = inference.Runner(file), export.Exported(folder).outputs({"x": x})
    for port, found in zip(runner.outputs, runner.run(x), strict=True):
        assert np.abs(found - expected[port.name]).max() <= 2 * port.scale


def test_only_ranges_that_are_too_narrow_are_widened():
    x = keras.Input((4,), name="x")
    model = keras.Model(x, layers.Dense(4, activation="relu", name="d1")(x))
    model.get_layer("d1").set_weights([np.full((4, 4), 0.5), np.full(4, -1e4)])
    quantized = quantization.quantize(model, preserve=False)
    quantization.calibrate(quantized, [np.array([[-2.0, 0.0, 1.0, 2.0]], "float32")])
    high = next(v for v in quantized.variables if v.name == "quant_d1/post_activation_max:0")
    assert float(high) == pytest.approx(4.0 * 0.5 * 2.0**-10)
    assert quantization.widen(quantized) == []
    high.assign(0.0)  # as training may move it
    assert quantization.widen(quantized) == ["quant_d1"]


def test_normalization_counts_in_what_is_too_narrow():
    x = keras.Input((1, 1, 2), name="x")
    model = keras.Model(
        x, layers.BatchNormalization(name="bn")(layers.Conv2D(2, 1, kernel_initializer="ones", name="conv")(x))
    )
    model.get_layer("bn").moving_variance.assign([1e10, 1e10])
    quantized = quantization.quantize(model, preserve=False)
    quantization.calibrate(quantized, [np.full((1, 1, 1, 2), 1e5, "float32")])
    assert quantization.widen(quantized) == []
    high = next(v for v in quantized.variables if v.name == "quant_bn/output_max:0")
    assert float(high) == pytest.approx(2.0, rel=1e-3)


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
