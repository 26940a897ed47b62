"""Fake quantization: weights in front of a ReLU keep theirs, zeros stay zeros, and ranges are the data's."""

from __future__ import annotations

import re

import numpy as np
import pytest
from keras_models import assert_identical, cnn, dense, keras, layers, off, samples, shaken, steps, weights
from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.prune_preserve import (
    default_8bit_prune_preserve_quantize_scheme,
)

from edgeprune import inference, tflite
from edgeprune.keras import conversion, export, graph, preparation, quantization, tf, tfmot

BEFORE_RELU = ("plain", "depth", "hidden")
KERNELS = ("stem", "plain", "hidden", "classes")


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
