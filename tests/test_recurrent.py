"""Recurrent layers that are written out compute the same, and become int8 where the converter would crash."""

from __future__ import annotations

import numpy as np
import pytest
from keras_models import layers, shaken

from edgeprune import tflite
from edgeprune.errors import ConversionError
from edgeprune.inference import Runner
from edgeprune.keras import conversion, export, graph, keras, preparation, quantization, recurrent

STEPS = (4, 3)


def network(layer, *states, masked=False):
    """A recurrent layer between an input of 4 steps of 3 features and a Dense; its states are inputs where given."""
    given = keras.Input(STEPS, name="steps")
    initial = [keras.Input((size,), name=f"state_{place}") for place, size in enumerate(states)]
    x = layers.Masking()(given) if masked else given
    made = layer(x, initial_state=initial) if initial else layer(x)
    made = made if isinstance(made, list) else [made]
    outputs = [layers.Dense(2, name=f"out_{place}")(each) for place, each in enumerate(made)]
    return shaken(keras.Model([given, *initial] if initial else given, outputs))


@pytest.mark.parametrize(
    ("layer", "states"),
    [
        (layers.GRU(5, name="rnn"), ()),
        (layers.GRU(5, name="rnn", reset_after=False, return_sequences=True), ()),
        (layers.GRU(5, name="rnn", use_bias=False, go_backwards=True, return_state=True), ()),
        (layers.GRU(5, name="rnn", unroll=True), (5,)),
        (layers.SimpleRNN(5, name="rnn", activation="linear", return_sequences=True), ()),
        (layers.LSTM(5, name="rnn", recurrent_activation="hard_sigmoid"), ()),
        (layers.LSTM(5, name="rnn", return_state=True, return_sequences=True), ()),
        (layers.LSTM(5, name="rnn", use_bias=False), (5, 5)),
        (layers.Bidirectional(layers.GRU(5), name="rnn"), ()),
        (layers.Bidirectional(layers.SimpleRNN(5, return_sequences=True), merge_mode="ave", name="rnn"), ()),
        (layers.Bidirectional(layers.LSTM(5, unroll=True, return_state=True), merge_mode=None, name="rnn"), ()),
        (layers.Bidirectional(layers.GRU(5), merge_mode="mul", name="rnn"), (5, 5)),
    ],
)
def test_what_is_written_out_computes_the_same(layer, states):
    model = network(layer, *states)
    written, names = recurrent.unroll(model)
    assert names == ["rnn"]
    assert not any(isinstance(each, layers.RNN | layers.Bidirectional) for each in written.layers)
    assert graph.largest_difference(model, written) < 1e-5


def test_a_shared_layer_stays_shared():
    one, other = keras.Input(STEPS, name="one"), keras.Input(STEPS, name="other")
    layer = layers.GRU(5, name="rnn")
    model = shaken(keras.Model([one, other], layers.Add()([layer(one), layer(other)])))
    written, names = recurrent.unroll(model)
    assert names == ["rnn"]
    assert written.count_params() == model.count_params() - 2 * 5  # two biases of a sum are one
    assert graph.largest_difference(model, written) < 1e-5


def test_zeros_of_a_kernel_stay_zeros():
    model = network(layers.GRU(4, name="rnn"))
    kernel, recurrent_kernel, bias = model.get_layer("rnn").get_weights()
    recurrent_kernel[[0, 2]] = 0
    model.get_layer("rnn").set_weights([kernel, recurrent_kernel, bias])
    written, _ = recurrent.unroll(model)
    for gate in ("update", "reset", "candidate"):
        found = written.get_layer(f"rnn_{gate}_recurrent").get_weights()[0]
        assert np.array_equal(np.flatnonzero(found.any(axis=1)), [1, 3])


@pytest.mark.parametrize("layer", [layers.LSTM(5), layers.Bidirectional(layers.LSTM(5, return_sequences=True))])
def test_the_usual_lstm_is_left_to_its_own_op(layer):
    model = network(layer)
    assert recurrent.unroll(model)[1] == []
    assert recurrent.obstacles(model) == {}


def test_what_cannot_be_written_out_stays_and_has_a_reason():
    masked = network(layers.GRU(5, name="rnn"), masked=True)
    steps = keras.Input((None, 3), name="open")
    endless = keras.Model(steps, layers.GRU(5, name="rnn")(steps))
    for model, reason in ((masked, "masked"), (endless, "open")):
        written, names = recurrent.unroll(model)
        assert names == []
        assert written.get_layer("rnn") is not None
        assert reason in recurrent.obstacles(model)["rnn"]
        assert reason in {layer.name: layer.reason for layer in quantization.plan(model)}["rnn"]
        with pytest.raises(ConversionError, match=rf"'rnn' \(GRU\) cannot become int8: .*{reason}.*crashes"):
            recurrent.refuse_loops(model)


def test_a_mask_of_an_embedding_is_met_with_a_name():
    words = keras.Input((4,), name="words")
    x = layers.LSTM(3, name="rnn")(layers.Embedding(6, 4, mask_zero=True, name="table")(words))
    prepared = preparation.prepare(shaken(keras.Model(words, layers.Dense(2)(x)))).model
    quantized = quantization.quantize(prepared, preserve=True)
    assert quantization.calibrate(quantized, [np.array([[1, 2, 0, 0]])]) == 1
    with pytest.raises(ConversionError, match=r"'rnn' \(LSTM\) .*drop mask_zero"):
        recurrent.refuse_loops(prepared)


def test_no_step_is_made_that_nothing_reads():
    """Of an UNPACK with an unread output the converter may leave all in float."""
    for layer in (
        layers.GRU(5, reset_after=False, name="rnn"),
        layers.LSTM(5, use_bias=False, go_backwards=True, name="rnn"),
    ):
        written, _ = recurrent.unroll(network(layer))
        readers = graph.consumers(written)
        assert all(str(tensor) in readers for node in graph.nodes(written) for tensor in node.flat_output_ids)


@pytest.mark.slow
def test_they_become_int8_without_a_float_op(tmp_path):
    """Trap 21: the converter crashes on the first two, and splits the gates of an unrolled GRU in float."""
    given = keras.Input(STEPS, name="steps")
    x = layers.GRU(5, reset_after=False, return_sequences=True, name="gru")(given)
    x = layers.Bidirectional(layers.SimpleRNN(4, return_sequences=True), name="both")(x)
    x = layers.LSTM(4, use_bias=False, name="odd_lstm")(x)
    keras.utils.set_random_seed(0)
    model = keras.Model(given, layers.Dense(2, name="out")(x))
    written, names = recurrent.unroll(model)
    assert names == ["gru", "both", "odd_lstm"]
    samples = np.random.default_rng(0).normal(size=(32, *STEPS)).astype("float32")
    path = conversion.convert(
        export.save(written, tmp_path / "written"), tmp_path / "written.tflite", representative=samples
    )
    assert tflite.int8_violations(tflite.read(path)) == ()
    expected, found = model(samples).numpy(), Runner(path).run(samples)[0]
    noise = np.square(found - expected).mean() / expected.var()
    assert -10 * np.log10(noise) > 15
