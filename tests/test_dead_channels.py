"""Output channels whose weights are all zero, of which sparse networks have many: their biases must fit into int32."""

from __future__ import annotations

import numpy as np
import pytest

from edgeprune.keras import conversion, export, keras, preparation, quantization

DEAD, BIAS = 1, 0.4


@pytest.fixture(scope="module")
def quantized():
    """A convolution and a BatchNormalization, trained a little with fake quantizers, one filter zero."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((6, 6, 2), name="image")
    x = keras.layers.Conv2D(4, 3, name="conv")(x)
    x = keras.layers.BatchNormalization(name="normal")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(keras.layers.ReLU(name="relu")(x))
    model = keras.Model(inputs, keras.layers.Dense(3, name="scores")(x))
    kernel, bias = model.get_layer("conv").get_weights()
    kernel[..., DEAD], bias[DEAD] = 0, BIAS
    model.get_layer("conv").set_weights([kernel, bias])
    model.get_layer("normal").beta.assign([0.1, BIAS, 0.2, 0.3])
    samples = np.random.default_rng(0).normal(size=(64, 6, 6, 2)).astype(np.float32)
    made = quantization.quantize(preparation.prepare(model, "dense").model, True)
    quantization.calibrate(made, [samples])
    made.compile("sgd", "mse")
    made.fit(samples, np.ones((64, 3), np.float32), verbose=0)
    return made, samples


def _ranges(model):
    ((_, _, variables),) = model.get_layer("quant_conv")._weight_vars
    return variables["min_var"].numpy(), variables["max_var"].numpy()


def test_a_channel_of_zeros_has_the_range_of_the_widest(quantized):
    model, _ = quantized
    low, high = _ranges(model)
    alive = np.arange(len(high)) != DEAD
    before = high[alive]
    quantization.widen(model)
    low, high = _ranges(model)
    assert high[DEAD] == -low[DEAD] == high.max() > 0
    np.testing.assert_array_equal(high[alive], before)


def test_its_bias_is_not_cut_off_in_the_file(quantized, tmp_path):
    from edgeprune.inference import Runner

    model, samples = quantized
    quantization.widen(model)
    saved = export.save(model, tmp_path / "quantized")
    with conversion.Converter(tmp_path / "log") as converter:
        path = converter.convert(saved, tmp_path / "model.tflite")
    runner = Runner(path)
    (answers,) = runner.run(samples[:16])
    wanted = model(samples[:16], training=False).numpy()
    assert np.abs(answers - wanted).max() <= 2.5 * runner.outputs[0].scale
