"""Files run on this machine."""

from __future__ import annotations

from types import SimpleNamespace

import converted
import numpy as np
import pytest

from edgeprune import inference
from edgeprune.errors import ArtefactError, DataError
from edgeprune.inference import Port, Runner


@pytest.fixture(scope="module")
def final():
    return converted.artefacts().final


def port(scale=0.5, zero_point=3, dtype="int8"):
    return Port("x", 0, (), np.dtype(dtype), scale, zero_point)


def test_quantizing_rounds_half_away_from_zero_as_the_kernel_does():
    values = np.array([0.0, 0.25, 0.75, -0.25, -0.75, 0.2], np.float32)
    assert port().quantize(values).tolist() == [3, 4, 5, 2, 1, 3]


def test_quantizing_clips_at_the_ends_of_the_type():
    assert port().quantize(np.array([1e9, -1e9])).tolist() == [127, -128]


def test_dequantizing_undoes_quantizing_on_the_grid():
    grid = np.arange(-20, 20) * 0.5
    assert port().dequantize(port().quantize(grid)).tolist() == grid.tolist()


def test_a_float_port_passes_numbers_through():
    values = np.array([1.25, -3.0], np.float32)
    assert port(0.0, 0, "float32").dequantize(port(0.0, 0, "float32").quantize(values)).tolist() == values.tolist()


def test_ports_bear_keras_names(final):
    runner = Runner(final)
    assert [each.name for each in runner.inputs] == ["image"]
    assert [each.name for each in runner.outputs] == ["quant_scores"]
    assert runner.inputs[0].shape == converted.SHAPE


def test_a_batch_gives_what_single_samples_give(final):
    inputs = Runner(final).quantize_input(converted.samples(37))
    many, single = Runner(final, batch=16), Runner(final, batch=1)
    assert np.array_equal(many.raw(inputs)[0], single.raw(inputs)[0])
    assert (many.batch, single.batch) == (16, 1)


def test_real_numbers_in_and_out_are_those_of_the_raw_run(final):
    runner, inputs = Runner(final), converted.samples(5)
    raw = runner.raw(runner.quantize_input(inputs))[0]
    assert np.array_equal(runner.run(inputs)[0], (raw.astype(np.float32) + 128) / 256)


def test_no_samples_give_no_outputs(final):
    assert Runner(final).run(converted.samples(0))[0].shape == (0, converted.CLASSES)


def test_a_float_file_runs_too():
    outputs = Runner(converted.artefacts().float32).run(converted.samples(3))[0]
    assert outputs.sum(axis=1) == pytest.approx(np.ones(3), abs=1e-5)


def test_samples_of_another_shape_are_refused_with_both_shapes(final):
    with pytest.raises(DataError, match=r"\(8, 8, 4\), got \(4, 4, 4\)"):
        Runner(final).run(np.zeros((2, 4, 4, 4), np.float32))


def test_a_file_with_its_batch_built_in_is_run_sample_by_sample(tmp_path):
    from edgeprune.keras import conversion, export, keras, tf

    class Fixed(keras.layers.Layer):
        def call(self, inputs):
            return tf.reshape(inputs, [1, 2, 8])  # as exporters write it

    inputs = keras.Input((4, 4), name="grid")
    model = keras.Model(inputs, keras.layers.Dense(3)(Fixed()(inputs)))
    one = tf.function(lambda grid: {"y": model(grid)}).get_concrete_function(tf.TensorSpec([1, 4, 4], name="grid"))
    holder = tf.Module()
    holder.used = list(one.graph.variables)
    tf.saved_model.save(holder, str(tmp_path / "saved"), signatures={"one": one})
    (tmp_path / "saved" / export.LAYERS_FILE).write_text('{"inputs": ["grid"], "dtypes": ["float32"], "layers": []}')
    path = conversion.convert(tmp_path / "saved", tmp_path / "fixed.tflite", io="float32")
    given = np.random.default_rng(0).random((6, 4, 4), dtype=np.float32)
    runner = Runner(path)
    assert runner.run(given)[0].shape == (6, 2, 3)
    assert runner.batch == 1
    assert runner.run(given)[0][4] == pytest.approx(runner.run(given[4:5])[0][0])


def test_a_recurrent_file_forgets_the_sample_before(tmp_path):
    """Trap 9: the fused LSTM keeps its state between invocations."""
    from edgeprune.keras import conversion, export, keras

    inputs = keras.Input((6, 4), name="steps")
    model = keras.Model(inputs, keras.layers.LSTM(5, name="lstm")(inputs))
    path = conversion.convert(export.save(model, tmp_path / "lstm"), tmp_path / "lstm.tflite", io="float32")
    given = np.random.default_rng(0).normal(size=(5, 6, 4)).astype(np.float32)
    assert Runner(path).run(given)[0] == pytest.approx(model(given).numpy(), abs=1e-5)


def test_an_int8_lstm_gives_each_sample_what_it_gives_alone(tmp_path):
    from edgeprune.keras import conversion, export, keras

    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 4), name="steps")
    model = keras.Model(inputs, keras.layers.LSTM(5, name="lstm")(inputs))
    samples = np.random.default_rng(0).normal(size=(8, 6, 4)).astype(np.float32)
    path = conversion.convert(export.save(model, tmp_path / "lstm"), tmp_path / "x.tflite", representative=samples)
    runner = Runner(path)
    together = runner.run(samples)[0]
    assert np.array_equal(together, np.concatenate([Runner(path).run(samples[i : i + 1])[0] for i in range(8)]))
    assert np.array_equal(together[::-1], runner.run(samples[::-1])[0])
    assert np.abs(together - model(samples).numpy()).max() < 0.05


def test_indices_stay_what_they_are():
    assert port(0.0, 0, "int32").quantize(np.array([3.0, 6.999999], np.float32)).tolist() == [3, 7]


def test_an_unsigned_port_clips_at_its_own_ends():
    assert port(1.0, 128, "uint8").quantize(np.array([-500.0, -128.0, 0.0, 500.0])).tolist() == [0, 0, 128, 255]


def test_inputs_by_name_come_into_the_order_of_the_file(final):
    runner = Runner(final)
    only = converted.samples(3)
    assert runner.in_order(only)[0] is only
    assert runner.in_order({"image": only})[0] is only
    with pytest.raises(DataError, match="has the inputs image, got sound"):
        runner.in_order({"sound": only})


def test_names_of_keras_become_distinct_words():
    assert inference.words(["a/b", "a b", "1st", "c"]) == ["a_b_0", "a_b_1", "_1st", "c"]


def test_the_runtime_says_nothing_on_the_terminal(final, capfd):
    Runner(final).run(converted.samples(3))
    assert capfd.readouterr() == ("", "")


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "x.tflite").write_bytes(b"not a model")
    with pytest.raises(ArtefactError, match=r"x\.tflite"):
        Runner(tmp_path / "x.tflite")


def test_a_split_is_run_in_batches_that_are_counted(final):
    inputs = converted.samples(10)
    split = SimpleNamespace(batches=lambda size: ((inputs[i : i + size], None) for i in range(0, 10, size)))
    counted = []
    outputs = inference.outputs(Runner(final), split, counted.append, batch=4)
    assert counted == [4, 4, 2]
    assert np.array_equal(outputs, Runner(final).run(inputs)[0])
