"""Cycles from shapes alone: what is counted of an op, what it is priced by, and that both sides describe it alike."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune import analytic
from edgeprune.analytic import Lanes, Layer, Prices

POINTWISE = Layer("CONV_2D", "int8", 28 * 28 * 24, 28 * 28 * 40, 28 * 28, (40, 1, 1, 24))
DEPTHWISE = Layer("DEPTHWISE_CONV_2D", "int8", 28 * 28 * 20, 14 * 14 * 20, 1, (20, 3, 3, 1), 2)


def prices(lanes=None, **cycles):
    return Prices(lanes=Lanes(**(lanes or {})), cycles=cycles, layers=1, error_pct=0.0)


@pytest.mark.parametrize(
    "layer, macs",
    [
        (POINTWISE, 28 * 28 * 24 * 40),
        (DEPTHWISE, 14 * 14 * 20 * 9),
        (Layer("FULLY_CONNECTED", "int8", 64, 10, 1, (10, 1, 1, 64)), 640),
        (Layer("ADD", "int8", 200, 100), 0),
        (Layer("AVERAGE_POOL_2D", "int8", 490, 10, 1, (10, 7, 7, 1)), 0),
    ],
)
def test_macs_are_those_of_the_file(layer, macs):
    assert analytic.macs(layer) == macs


def test_a_channel_that_fills_no_tile_costs_as_much_as_a_full_one():
    price = prices({"out": 8, "in": 16, "positions": 4}, macs=1.0)
    assert price(POINTWISE) == 28 * 28 * 32 * 40
    assert price(POINTWISE._replace(kernel=(33, 1, 1, 24))) == price(POINTWISE)
    assert price(POINTWISE._replace(kernel=(41, 1, 1, 24))) == 28 * 28 * 32 * 48


def test_input_channels_are_rounded_over_all_taps_or_for_each():
    layer = Layer("CONV_2D", "int8", 300, 800, 100, (8, 3, 3, 3))
    assert prices({"in": 16}, macs=1.0)(layer) == 100 * 8 * 32
    assert prices({"in": 16, "each_tap": True}, macs=1.0)(layer) == 100 * 8 * 9 * 16


def test_every_part_has_its_price():
    price = prices(call=100.0, patches=2.0, weights=3.0, inputs=5.0, outputs=7.0)
    layer = Layer("CONV_2D", "int8", 300, 800, 100, (8, 3, 3, 3))
    assert price(layer) == 100 + 2 * 100 * 27 + 3 * 216 + 5 * 300 + 7 * 800
    assert price(Layer("ADD", "int8", 20, 10)) == 100 + 5 * 20 + 7 * 10


def test_kinds_are_what_kernels_are_written_for():
    assert POINTWISE.kind == "CONV_2D 1x1"
    assert POINTWISE._replace(stride=2).kind == "CONV_2D"
    assert DEPTHWISE.kind == "DEPTHWISE_CONV_2D other"  # 20 channels fill no vector
    assert DEPTHWISE._replace(kernel=(24, 3, 3, 1)).kind == "DEPTHWISE_CONV_2D 3x3 stride 2"
    assert DEPTHWISE._replace(kernel=(24, 5, 5, 1)).kind == "DEPTHWISE_CONV_2D other"
    assert Layer("FULLY_CONNECTED", "int8", 64, 10, 1, (10, 1, 1, 64)).kind == "FULLY_CONNECTED"
    assert POINTWISE._replace(positions=1).kind == "FULLY_CONNECTED"  # a matrix times a vector, whatever it is called
    assert Layer("FULLY_CONNECTED", "int8", 640, 100, 10, (10, 1, 1, 64)).kind == "CONV_2D 1x1"
    assert [DEPTHWISE._replace(precision="fp32", kernel=(count, 3, 3, 1)).kind for count in (8, 24)] == [
        "DEPTHWISE_CONV_2D 8 channels",
        "DEPTHWISE_CONV_2D other",
    ]
    assert [Layer("MUL", "int8", inputs, 100).kind for inputs in (200, 110)] == ["MUL", "MUL broadcast"]
    assert [Layer("MEAN", "int8", 490, 10, kept=kept).kind for kept in (True, False)] == ["MEAN kept", "MEAN"]
    assert Layer("TRANSPOSE_CONV", "int8", 1, 1, 1, (8, 2, 2, 8), 2).kind == "CONV_2D"
    assert Layer("AVERAGE_POOL_2D", "int8", 1, 1, 1, (4, 2, 2, 1)).kind == "AVERAGE_POOL_2D"


def test_a_kind_without_a_price_takes_the_next_wider_one():
    table = {
        "other": prices(call=1.0),
        "DEPTHWISE_CONV_2D other": prices(call=2.0),
        "CONV_2D 1x1": prices(call=3.0),
        "MUL": prices(call=4.0),
    }
    layers = [Layer("GATHER", "int8", 1, 1), DEPTHWISE._replace(kernel=(24, 3, 3, 1)), POINTWISE]
    assert analytic.cycles([*layers, Layer("MUL", "int8", 110, 100)], table) == [1.0, 2.0, 3.0, 4.0]


sizes = st.integers(1, 96)


@given(
    out=sizes, depth=sizes, side=st.integers(1, 28), kernel=st.sampled_from([1, 3, 5]), step=st.sampled_from([1, 4, 8])
)
def test_fewer_channels_never_cost_more(out, depth, side, kernel, step):
    price = prices(
        {"out": step, "in": step, "positions": step}, call=9.0, macs=0.5, patches=1.0, weights=0.2, outputs=2.0
    )

    def cycles(out, depth):
        return price(Layer("CONV_2D", "int8", side**2 * depth, side**2 * out, side**2, (out, kernel, kernel, depth)))

    assert cycles(max(1, out - 1), depth) <= cycles(out, depth) <= cycles(out, depth + 1)


def test_bytes_are_of_weights_and_of_all_that_is_read_and_written():
    assert POINTWISE.bytes == 24 * 40 + 28 * 28 * 64
    assert POINTWISE._replace(precision="fp32").bytes == 4 * POINTWISE.bytes
    assert Layer("AVERAGE_POOL_2D", "int8", 490, 10, 1, (10, 7, 7, 1)).bytes == 500


def test_a_file_and_the_model_it_is_made_of_have_the_same_layers(tmp_path):
    from edgeprune import tflite
    from edgeprune.keras import conversion, export, keras, preparation
    from edgeprune.keras.latency import Stopwatch

    inputs = keras.Input((12, 12, 3))
    x = keras.layers.ReLU(6.0)(keras.layers.Conv2D(8, 3, strides=2, padding="same")(inputs))
    x = keras.layers.Conv2D(8, 1, activation="relu")(keras.layers.DepthwiseConv2D(3, padding="same")(x))
    y = keras.layers.Conv2D(8, 3, padding="same")(x)
    x = keras.layers.MaxPooling2D(2)(keras.layers.Add()([x, y]))
    gate = keras.layers.Conv2D(8, 1, activation="sigmoid")(keras.layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = keras.layers.Multiply()([x, gate])
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Concatenate()([x, keras.layers.Conv2D(6, 1)(x)]))
    model = keras.Model(inputs, keras.layers.Dense(5, activation="softmax")(keras.layers.Dropout(0.1)(x)))
    saved = export.save(preparation.prepare(model).model, tmp_path / "saved")
    samples = np.random.default_rng(0).uniform(-1, 1, (4, 12, 12, 3)).astype("float32")
    file = tflite.read(conversion.convert(saved, tmp_path / "model.tflite", representative=samples))
    assert sorted(analytic.layers(file)) == sorted(Stopwatch(model, len).layers({}))


def test_a_cut_costs_what_the_cut_model_costs():
    from edgeprune.keras import keras, surgery
    from edgeprune.keras.latency import Stopwatch

    inputs = keras.Input((12, 12, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", name="first")(inputs)
    x = keras.layers.BatchNormalization()(keras.layers.DepthwiseConv2D(3)(x))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(12, 1, name="second")(x))
    model = keras.Model(inputs, keras.layers.Dense(5)(x))
    cut = {"first": range(5), "second": range(7)}
    watch = Stopwatch(model, lambda layers: sum(analytic.macs(layer) for layer in layers))
    assert watch.layers(cut) == Stopwatch(surgery.shrink(model, cut), len).layers({})
    assert watch(cut) < watch({})
