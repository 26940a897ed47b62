"""Fake quantization: weights in front of a ReLU keep theirs, zeros stay zeros, and ranges are the data's."""

from __future__ import annotations

import numpy as np
import pytest
from keras_models import assert_identical, cnn, dense, keras, layers, samples, shaken, steps, weights
from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.prune_preserve import (
    default_8bit_prune_preserve_quantize_scheme,
)

from edgeprune.keras import graph, quantization, tf, tfmot

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


# what cannot be trained


def test_unsupported_layers_are_named():
    x = given = keras.Input((8, 8, 4), name="x")
    x = layers.BatchNormalization(name="folded")(layers.Conv2D(4, 1, name="conv")(x))
    x = layers.Add(name="add")([x, layers.Conv2D(4, 1, activation="relu", name="relu_conv")(x)])
    x = layers.BatchNormalization(name="alone")(x)
    x = layers.LayerNormalization(name="norm")(layers.Reshape((64, 4), name="rows")(x))
    model = keras.Model(given, layers.GRU(2, name="memory")(x))
    assert quantization.unsupported(model) == {
        "alone": "BatchNormalization",
        "norm": "LayerNormalization",
        "memory": "GRU",
    }
    assert quantization.unsupported(cnn(dropout=0.5)) == {}


def test_what_is_supported_can_be_quantized():
    for model in (cnn(dropout=0.5), dense(4, 2)):
        assert quantization.unsupported(model) == {}
        assert quantization.quantize(model, preserve=True).output_shape == model.output_shape
