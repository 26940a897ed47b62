"""What a cut would leave is what is left after it."""

from __future__ import annotations

import numpy as np
import pytest
from keras_models import SHAPE, cnn, keras, layers, shaken

from edgeprune.errors import CutError
from edgeprune.keras import costs, inspect, surgery
from edgeprune.keras.latency import Stopwatch


def shared():
    """A layer that is called twice, a transposed and a separable convolution, a concatenation, two outputs."""
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE, name="image")
    stem = layers.Conv2D(6, 3, 2, padding="same", name="stem")(image)
    twice = layers.Conv2D(6, 1, activation="relu", name="twice")
    x = twice(twice(stem))
    x = layers.Concatenate(name="both")([x, layers.SeparableConv2D(4, 3, padding="same", name="separable")(stem)])
    up = layers.Conv2DTranspose(5, 2, 2, name="up")(layers.BatchNormalization(name="bn")(x))
    flat = layers.Dense(7, activation="relu", name="hidden")(layers.Flatten(name="flat")(up))
    return keras.Model(image, [layers.Dense(2, name="out")(flat), layers.GlobalAveragePooling2D(name="pool")(up)])


@pytest.mark.parametrize(
    ("make", "cut"),
    [
        (cnn, {}),
        (cnn, {"stem": [0, 3, 5], "hidden": [1, 2]}),
        (shared, {"stem": [0, 1, 4], "separable": [3], "hidden": [0, 5]}),
    ],
)
def test_the_cost_is_that_of_the_model_made(make, cut):
    model = shaken(make())
    made = inspect.describe(surgery.shrink(model, cut))
    assert costs.Meter(model)(cut) == (made["macs"], made["params"], None)


def test_a_latency_is_told_where_one_is_asked_for():
    model, cut = cnn(), {"stem": [0, 3, 5]}
    counted = costs.Meter(model, len)
    assert counted(cut).latency_ms == Stopwatch(model, len)(cut)
    assert counted(cut)[:2] == costs.Meter(model)(cut)[:2]


def test_a_cut_that_cannot_be_is_refused():
    with pytest.raises(CutError, match="Nothing is kept of 'stem'"):
        costs.Meter(cnn())({"stem": np.array([], int)})
