"""Whole builds of models that are no image classifier: int8 in and out, zeros proven in the file, outputs sensible.

A GRU, which costs as much as an LSTM and takes the same way: EDGEPRUNE_FUZZ=full python -m pytest tests/test_end_to_end.py
"""

from __future__ import annotations

import json

import fuzzing
import numpy as np
import pytest

import edgeprune
from edgeprune import progress, tflite
from edgeprune.inference import Runner
from edgeprune.keras import keras

layers = keras.layers
RECIPE = {
    "name": "tiny",
    "data": {"calibration": 64, "validation": 0.1},
    "stages": {
        "train": {"epochs": 0},  # pruning trains it, from the first step
        "prune": {"granularity": "n:m", "pattern": "2:4", "epochs": 32, "learning_rate": 0.01},
        "quantize": {"epochs": 1, "learning_rate": 0.0005},
        "convert": {},
        "verify": {"samples": 16},
        "report": {},
    },
}
RANDOM = np.random.default_rng(0)
STEPS = 2  # of the recurrent networks, which are written out step by step


def series(count=320, steps=6):
    """(x, y): steps of 4 channels; the class of a series is the channel that rises."""
    y = np.arange(count) % 4
    x = RANDOM.normal(0, 0.3, (count, steps, 4)).astype("float32")
    x[np.arange(count), :, y] += np.linspace(-1, 1, steps, dtype="float32")
    return x, y


def recurrent(kind):
    keras.utils.set_random_seed(0)
    given = keras.Input((STEPS, 4), name="series")
    return keras.Model(given, layers.Dense(4, activation="softmax", name="classes")(kind(8, name="recurrent")(given)))


def lstm():
    return recurrent(layers.LSTM), series(steps=STEPS), {"recurrent", "recurrent:recurrent_kernel", "classes"}


def gru():
    return recurrent(layers.GRU), series(steps=STEPS), {"recurrent", "recurrent:recurrent_kernel", "classes"}


def one_dimensional():
    keras.utils.set_random_seed(0)
    given = keras.Input((6, 4), name="series")
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(layers.Conv1D(8, 3, name="conv")(given)))
    x = layers.SeparableConv1D(8, 3, padding="same", activation="relu", name="separable")(x)
    x = layers.GlobalAveragePooling1D(name="pool")(layers.MaxPooling1D(2, name="max")(x))
    return (
        keras.Model(given, layers.Dense(4, activation="softmax", name="classes")(x)),
        series(),
        {"conv", "separable", "classes"},
    )


def embedding():
    """The class of a sentence is the fourth of the vocabulary that most of its words are from."""
    keras.utils.set_random_seed(0)
    y = np.arange(320) % 4
    x = (RANDOM.integers(0, 5, (320, 6)) + 5 * y[:, None]).astype("int32")
    x[:, 0] = RANDOM.integers(0, 20, 320)
    given = keras.Input((6,), dtype="int32", name="words")
    h = layers.GlobalAveragePooling1D(name="pool")(layers.Embedding(20, 8, name="table")(given))
    h = layers.Dense(8, activation="relu", name="hidden")(h)
    return keras.Model(given, layers.Dense(4, activation="softmax", name="classes")(h)), (x, y), {"hidden", "classes"}


def segmentation():
    """The class of a pixel is whether it is bright; the decoder has a Conv2DTranspose and an UpSampling2D."""
    keras.utils.set_random_seed(0)
    coarse = RANDOM.random((200, 4, 4, 1)) > 0.5
    y = coarse.repeat(2, axis=1).repeat(2, axis=2).astype("uint8")
    x = (y + RANDOM.normal(0, 0.2, (200, 8, 8, 4))).astype("float32")
    given = keras.Input((8, 8, 4), name="image")
    down = layers.Conv2D(8, 3, 2, padding="same", activation="relu", name="down")(given)
    deep = layers.Conv2D(8, 3, 2, padding="same", activation="relu", name="deep")(down)
    up = layers.Conv2DTranspose(8, 2, 2, activation="relu", name="transposed")(deep)
    both = layers.Concatenate(name="both")([up, down])
    up = layers.UpSampling2D(2, name="up")(layers.Conv2D(8, 1, activation="relu", name="mix")(both))
    outputs = layers.Conv2D(2, 1, activation="softmax", name="pixels")(up)
    return keras.Model(given, outputs), (x, y), {"down", "deep", "transposed", "mix", "pixels"}


def two_inputs():
    """The class says whether the left image is brighter than the right one."""
    keras.utils.set_random_seed(0)
    y = np.arange(320) % 2
    left = RANDOM.normal(0, 0.3, (320, 8, 8, 4)).astype("float32") + y[:, None, None, None].astype("float32")
    right = RANDOM.normal(0.5, 0.3, (320, 4)).astype("float32")
    a, b = keras.Input((8, 8, 4), name="left"), keras.Input((4,), name="right")
    h = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(8, 3, activation="relu", name="conv")(a))
    h = layers.Concatenate(name="both")([h, layers.Dense(8, activation="relu", name="beside")(b)])
    model = keras.Model([a, b], layers.Dense(1, activation="sigmoid", name="brighter")(h))
    return model, ({"right": right, "left": left}, y), {"conv", "beside", "brighter"}


def two_outputs():
    """Which channel is brightest, and how bright the whole image is."""
    keras.utils.set_random_seed(0)
    y = np.arange(320) % 4
    value = RANDOM.random(320).astype("float32")
    x = RANDOM.normal(0, 0.1, (320, 8, 8, 4)).astype("float32") + value[:, None, None, None]
    x[np.arange(320), :, :, y] += 0.5
    given = keras.Input((8, 8, 4), name="image")
    h = layers.Conv2D(8, 3, activation="relu", name="conv")(given)
    h = layers.GlobalAveragePooling2D(name="pool")(h)
    outputs = [layers.Dense(4, activation="softmax", name="which")(h), layers.Dense(1, name="value")(h)]
    return keras.Model(given, outputs), (x, {"value": value, "which": y}), {"conv", "which", "value"}


def build(made, out, **stages):
    model, data, _ = made
    recipe = json.loads(json.dumps(RECIPE))
    recipe["stages"] |= stages
    recipe["stages"]["report"] = recipe["stages"].pop("report")  # the last one
    return edgeprune.build(model, data, recipe=recipe, out=out, progress=progress.Silent())


def assert_sound(result, kernels, at_least):
    """int8, proven, and still better than a guess."""
    file, report = tflite.read(result.tflite), result.report
    assert tflite.float_ops(file) == ()
    assert {file.tensors[index].dtype for index in (*file.inputs, *file.outputs)} <= {"int8", "int32"}
    assert report["verify"]["zeros_match"] and report["verify"]["n_of_m_match"]
    assert report["candidates"]["final"]["metric"] >= at_least
    with np.load(next(result.folder.glob("stages/*prune/masks.npz"))) as masks:
        assert set(masks.files) == kernels
        assert all((~masks[name]).mean() == 0.5 for name in masks.files)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "at_least"),
    [
        pytest.param(lstm, 0.6, marks=pytest.mark.long),
        pytest.param(one_dimensional, 0.6, marks=pytest.mark.long),
        (embedding, 0.6),
        pytest.param(segmentation, 0.7, marks=pytest.mark.long),
        *([(gru, 0.6)] if fuzzing.FULL else []),
    ],
)
def test_a_build_of(make, at_least, tmp_path):
    made = make()
    assert_sound(build(made, tmp_path / "run"), made[2], at_least)


@pytest.mark.slow
@pytest.mark.long
def test_a_build_of_a_model_with_two_outputs(tmp_path):
    made = two_outputs()
    result = build(made, tmp_path / "run")
    assert_sound(result, made[2], 0.7)
    figures = result.report["verify"]["outputs"]["final"]
    assert list(figures) == ["which", "value"] and figures["value"] < 0.2
    image = made[1][0]
    runner = Runner(result.tflite)
    given = {port.shape: array for port, array in zip(runner.outputs, runner.run(image), strict=True)}
    assert np.mean(given[(4,)].argmax(-1) == made[1][1]["which"]) > 0.7
    assert np.mean(np.abs(given[(1,)][:, 0] - made[1][1]["value"])) < 0.2


@pytest.fixture(scope="module")
def several_inputs(tmp_path_factory):
    made = two_inputs()
    return made, build(made, tmp_path_factory.mktemp("two") / "run", profile={"samples": 16, "count": False})


@pytest.mark.slow
def test_a_build_of_a_model_with_two_inputs(several_inputs):
    made, result = several_inputs
    assert_sound(result, made[2], 0.7)


@pytest.mark.slow
@pytest.mark.qemu
def test_several_inputs_on_the_emulated_board(several_inputs):
    arm = several_inputs[1].report["arm"]
    assert arm["samples"] == 16 and arm["agreement"] >= 0.9
