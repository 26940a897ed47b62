"""Every row of the table of fake quantizers, converted: int8 throughout, and the same answer as the model that was trained.

Rows stand side by side in one model for each group, each behind a convolution and with an output of its own: one
conversion tells about them all.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from keras_models import keras, layers

from edgeprune import inference, tflite
from edgeprune.keras import conversion, export, quantization, quantization_plan
from edgeprune.keras import layers as own

SHAPE = (8, 8, 4)
X = {"tensor": 0}
STEPS = 3.5  # of 255 over the range of an output: two roundings and the interpolation of a table


def operation(function, *arguments, **keywords):
    return own.Operation(function, list(arguments), keywords)


def activation(name):
    return layers.Activation(name)


GROUPS = {
    "activations": {
        **{
            name: activation(name)
            for name in ("relu", "relu6", "leaky_relu", "swish", "gelu", "exponential", "sigmoid", "tanh", "softmax")
        },
        "linear": activation("linear"),
        "relu_layer": layers.ReLU(),
        "relu_six": layers.ReLU(6.0),
        "relu_slope": layers.ReLU(negative_slope=0.1),
        "leaky": layers.LeakyReLU(),
        "prelu": layers.PReLU(alpha_initializer="random_normal"),
        "prelu_channels": layers.PReLU("random_normal", shared_axes=[1, 2]),
        "softmax_layer": layers.Softmax(),
        "hard_swish": own.HardSwish(),
    },
    "kernels": {
        **{f"conv_{name}": layers.Conv2D(4, 1, activation=name) for name in quantization_plan.INSIDE},
        **{f"dense_{name}": layers.Dense(4, activation=name) for name in quantization_plan.INSIDE},
        "depthwise": layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu"),
        "transposed": layers.Conv2DTranspose(4, 3, 2, bias_initializer="random_normal"),
        "transposed_softmax": layers.Conv2DTranspose(4, 2, 2, activation="softmax"),
        "transposed_relu": [layers.Conv2DTranspose(4, 2, 2), layers.ReLU()],
        "grouped": layers.Conv2D(4, 3, groups=2, dilation_rate=2),
        "normalized": [layers.Conv2D(4, 1, use_bias=False), layers.BatchNormalization()],
        "normalized_relu": [layers.Conv2D(4, 1), layers.BatchNormalization(), layers.ReLU(6.0)],
        "depthwise_relu": [layers.DepthwiseConv2D(3), layers.BatchNormalization(), activation("relu6")],
    },
    "shapes": {
        **{
            kind.__name__: kind()
            for kind in (
                *(layers.AveragePooling2D, layers.MaxPooling2D, layers.GlobalMaxPooling2D),
                *(layers.GlobalAveragePooling2D, layers.UpSampling2D, layers.ZeroPadding2D, layers.Cropping2D),
                *(layers.Flatten, layers.ActivityRegularization),
            )
        },
        **{
            kind.__name__: [layers.Reshape((64, 4)), kind()]
            for kind in (
                *(layers.AveragePooling1D, layers.MaxPooling1D, layers.GlobalMaxPooling1D),
                *(layers.GlobalAveragePooling1D, layers.UpSampling1D, layers.ZeroPadding1D, layers.Cropping1D),
            )
        },
        **{
            kind.__name__: kind(0.5)
            for kind in (layers.Dropout, layers.AlphaDropout, layers.GaussianDropout, layers.GaussianNoise)
        },
        "spatial": layers.SpatialDropout2D(0.5),
        "spatial_1d": [layers.Reshape((64, 4)), layers.SpatialDropout1D(0.5)],
        "same": layers.AveragePooling2D(3, 1, padding="same"),
        "squeeze": layers.GlobalAveragePooling2D(keepdims=True),
        "bilinear": layers.UpSampling2D(interpolation="bilinear"),
        "permute": layers.Permute((2, 1, 3)),
        "repeat": [layers.Flatten(), layers.RepeatVector(2)],
        "rescaling": layers.Rescaling(2.0),
    },
    "merges": {
        **{
            kind.__name__: kind()
            for kind in (
                *(layers.Add, layers.Subtract, layers.Multiply, layers.Maximum, layers.Minimum, layers.Concatenate),
            )
        },
        "dot": layers.Dot((3, 3)),
        "cosine": layers.Dot((3, 3), normalize=True),
        "sum": operation("math.add", X, {"tensor": 1}),
        "difference": operation("math.subtract", X, {"tensor": 1}),
        "product": operation("math.multiply", X, {"tensor": 1}),
        "matmul": operation("linalg.matmul", X, {"tensor": 1}, transpose_b=True),
        "concat": operation("concat", [X, {"tensor": 1}], -1),
        "stack": operation("stack", [X, {"tensor": 1}], 1),
    },
    "operations": {
        **{f"{name}_half": operation(f"math.{name}", X, 0.5) for name in ("add", "subtract", "multiply", "divide")},
        "plus": operation("__operators__.add", X, 0.5),
        **{name: operation(f"math.{name}", X, 0.1) for name in ("maximum", "minimum", "squared_difference")},
        **{name: operation(f"math.{name}", X) for name in ("abs", "exp", "sigmoid", "tanh")},
        **{name: operation(f"nn.{name}", X) for name in ("gelu", "leaky_relu", "relu", "relu6", "silu", "softmax")},
        **{f"reduce_{name}": operation(f"math.reduce_{name}", X, [1, 2]) for name in ("mean", "sum", "max", "min")},
        **{name: operation(f"nn.{name}", X, 2) for name in ("depth_to_space", "space_to_depth")},
        **{name: operation(name, X) for name in ("identity", "stop_gradient")},
        "expand_dims": [operation("expand_dims", X, 1), operation("squeeze", X, [1])],
        "reshape": operation("reshape", X, [-1, 64, 4]),
        "tile": operation("tile", X, [1, 2, 1, 1]),
        "transpose": operation("transpose", X, [0, 2, 1, 3]),
        "pad": operation("pad", X, [[0, 0], [1, 1], [1, 1], [0, 0]]),
        "getitem": operation("__operators__.getitem", X, [{"slice": [None] * 3}, {"slice": [0, 4, None]}]),
        "slice": operation("slice", X, [0, 1, 1, 0], [-1, 4, 4, 2]),
        "strided_slice": operation("strided_slice", X, [0, 0], [0, 4], begin_mask=1, end_mask=1),
        "resize": operation("image.resize", X, [16, 16]),
        "channels": operation("math.multiply", X, {"array": [1.0, 2.0, -1.0, 0.5], "dtype": "float32"}),
    },
}


def chain(row):
    return row if isinstance(row, list) else [row]


@functools.cache
def model(group):
    """All rows of a group as outputs of one model."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE, name="x")
    outputs = []
    for name, row in GROUPS[group].items():
        x = layers.Conv2D(4, 1, name=f"before_{name}")(inputs)
        if group == "merges":
            x = [x, layers.Conv2D(4, 1, name=f"beside_{name}")(inputs)]
        if name in ("dot", "cosine"):
            x = [layers.Reshape((64, 4), name=f"{side}_{name}")(part) for side, part in zip("ab", x, strict=True)]
            row = layers.Dot((2, 2), normalize=name == "cosine")
        *first, last = chain(row)
        for layer in first:
            x = layer(x)
        last._name = name
        outputs.append(last(x))
    return keras.Model(inputs, outputs)


@pytest.fixture(scope="module")
def converter(tmp_path_factory):
    with conversion.Converter(tmp_path_factory.mktemp("converter") / "log") as made:
        yield made


LONG = ("activations", "kernels", "operations", "shapes")


@pytest.mark.slow
@pytest.mark.parametrize(
    "group", [pytest.param(group, marks=pytest.mark.long if group in LONG else ()) for group in GROUPS]
)
def test_what_is_said_to_be_trained_is_int8_and_answers_as_the_model_that_was_trained(group, converter, tmp_path):
    float_model = model(group)
    assert quantization.post_training(quantization.plan(float_model)) == ()
    quantized = quantization.quantize(float_model, preserve=True)
    x = np.random.Generator(np.random.PCG64(0)).normal(size=(32, *SHAPE)).astype("float32")
    quantization.calibrate(quantized, [x])
    folder = export.save(quantized, tmp_path / group)
    file = converter.convert(folder, tmp_path / "model.tflite")
    read = tflite.read(file)
    assert [(read.ops[index].op, read.ops[index].layer) for index in tflite.float_ops(read)] == []
    expected = export.Exported(folder).outputs({"x": x[:8]})
    runner = inference.Runner(file)
    found = dict(zip((port.name for port in runner.outputs), runner.run(x[:8]), strict=True))
    differences = {
        name: float(np.abs(found[name].reshape(values.shape) - values).max() / np.ptp(values))
        for name, values in expected.items()
    }
    assert {name: off for name, off in differences.items() if off > STEPS / 255} == {}


def test_the_table_has_no_row_that_is_not_tested():
    given = [layer for group in GROUPS.values() for row in group.values() for layer in chain(row)]
    tested = {type(layer) for layer in given} | {layers.Reshape, layers.Embedding}
    assert set(quantization_plan.TABLE) - tested == set()
    functions = {layer.function for layer in given if isinstance(layer, own.Operation)}
    assert set(quantization_plan.OPERATIONS) - functions == set()
    words = {layer.activation.__name__ for layer in given if type(layer) is layers.Activation}
    said = {name for name, row in quantization_plan.ACTIVATIONS.items() if isinstance(row, quantization_plan.Row)}
    assert said - words <= {"silu"}  # another word for swish
