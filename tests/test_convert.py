"""The convert stage: what it prepares, how it calibrates, and what the report says of the file's inputs and outputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from keras_models import layers, run

from edgeprune import data, pipeline, registry, tflite
from edgeprune.errors import ConversionError
from edgeprune.keras import intake, keras
from edgeprune.keras import layers as own_layers

convert = registry.module("stages", "convert")


def state(folder, model, samples, facts=None):
    """A state in which a model is given and no stage has done anything."""
    path = intake.save(model, folder / "given.keras")
    loaded = data.load(samples, data.DataOptions(calibration=40, task="regression"))
    roles = {"float": path.name, "model": path.name}
    return pipeline.State(
        run(folder, samples=loaded), files=roles, facts=facts or {}, label="convert", workspace=folder
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A GRU over a sequence and a Dense over numbers, with two outputs, converted with uint8 ends."""
    folder = tmp_path_factory.mktemp("two")
    keras.utils.set_random_seed(0)
    steps, numbers = keras.Input((3, 4), name="steps"), keras.Input((5,), name="numbers")
    x = layers.Concatenate(name="both")([layers.GRU(4, name="gru")(steps), numbers])
    outputs = [layers.Dense(2, name="left")(x), layers.Dense(3, name="right")(numbers)]
    random = np.random.default_rng(0)
    x = {"steps": random.normal(size=(80, 3, 4)), "numbers": random.normal(size=(80, 5))}
    y = {"left": random.normal(size=(80, 2)), "right": random.normal(size=(80, 3))}
    given = tuple({name: array.astype("float32") for name, array in columns.items()} for columns in (x, y))
    options = convert.Options(io="uint8", require_int8=True)
    return convert.run(state(folder, keras.Model([steps, numbers], outputs), given), options)


def test_a_model_that_no_stage_has_prepared_is_prepared(two):
    assert "gru" in [layer for rewrite in two.facts["rewrites"] for layer in rewrite["layers"]]
    assert tflite.int8_violations(tflite.read(two.path("final")), "uint8") == ()
    assert {"final", "dense_int8", "float_tflite", "reference", "exported"} <= set(two.files)


@pytest.mark.parametrize(("load_s", "processes"), [(convert.LOAD_S, 1), (0.0, 2)])
def test_a_second_process_helps_where_calibrating_takes_longer_than_to_start_it(two, monkeypatch, load_s, processes):
    from edgeprune.keras import conversion

    started, given = [], conversion.Converter
    monkeypatch.setattr(conversion, "Converter", lambda *words: started.append(words) or given(*words))
    monkeypatch.setattr(convert, "LOAD_S", load_s)
    options = convert.Options(io="uint8", require_int8=True)
    workspace = two.run.folder / f"with-{processes}"
    workspace.mkdir()
    again = convert.run(replace(two, workspace=workspace), options)
    assert len(started) == processes
    for role in ("final", "dense_int8", "float_tflite"):
        assert again.path(role).read_bytes() == two.path(role).read_bytes()


def test_the_compressed_model_is_there_for_keras_3(two):
    from edgeprune.keras import keras3

    written = keras3.load(two.path("compressed"))
    assert [tuple(output.shape) for output in written.outputs] == [(None, 2), (None, 3)]
    kernel = intake.load_own(two.path("model")).get_layer("left").kernel.numpy()
    np.testing.assert_array_equal(np.asarray(written.get_layer("left").kernel), kernel)
    assert not [note for note in two.facts["notes"] if "model.keras" in note]


def test_a_model_that_keras_3_lacks_words_for_is_a_note(tmp_path):
    given = keras.Input((4,), name="x")
    odd = own_layers.Operation("math.bessel_i0", [{"tensor": 0}], name="odd")
    intake.save(keras.Model(given, odd(given)), tmp_path / "odd.keras")
    before = pipeline.State(run(tmp_path), files={"model": "odd.keras"}, label="convert", workspace=tmp_path)
    found, notes = convert._compressed(before)
    assert found == {} and len(notes) == 1
    assert notes[0].startswith("model.keras is in the format of tf_keras") and "'odd'" in notes[0]


def test_the_report_names_every_input_and_output(two):
    model = two.facts["model"]
    assert {port["name"]: (port["shape"], port["dtype"]) for port in model["inputs"]} == {
        "steps": ([3, 4], "uint8"),
        "numbers": ([5], "uint8"),
    }
    assert {port["name"]: port["shape"] for port in model["outputs"]} == {"left": [2], "right": [3]}
    assert model["input"] == model["inputs"][0]
    assert model["input"]["preprocess"] == {"scale": 1.0, "offset": 0.0}
    assert model["output"] == model["outputs"][0]


def test_what_is_not_int8_throughout_is_an_error_where_that_is_required(two):
    with pytest.raises(ConversionError, match=r"not int8 throughout.*Op 0.*require_int8=false"):
        convert._require_int8(two.path("float_tflite"), "int8")
    convert._require_int8(two.path("final"), "uint8")


@pytest.mark.parametrize(
    ("options", "macs", "count"), [({}, 10**6, 40), ({}, 10**12, 32), ({"calibration_samples": 5}, 10**12, 5)]
)
def test_large_models_are_calibrated_on_fewer_samples(tmp_path, options, macs, count):
    x = np.arange(80, dtype="float32").reshape(80, 1)
    loaded = data.load((x, x), data.DataOptions(calibration=40, task="regression"))
    given = pipeline.State(run(tmp_path, samples=loaded), label="convert", workspace=tmp_path)
    taken = convert._representative(given, convert.Options(**options), macs)
    every = loaded.calibration.inputs()
    assert len(taken) == count
    assert (taken[0], taken[-1]) == (every[0], every[-1])
    assert len(np.unique(taken)) == count


@pytest.mark.slow
def test_a_dense_autoencoder_with_normalization_fits_into_300_kb(tmp_path):
    """Trap 6: from plain quantization-aware training it comes out at 831 kB, with nine float products."""
    from edgeprune.keras import conversion, export, preparation, quantization

    keras.utils.set_random_seed(0)
    given = x = keras.Input((640,), name="frames")
    for number, units in enumerate((128, 128, 128, 128, 8, 128, 128, 128, 128), 1):
        x = layers.Dense(units, name=f"dense_{number}")(x)
        x = layers.BatchNormalization(name=f"bn_{number}")(x)
        x = layers.ReLU(name=f"relu_{number}")(x)
    model = keras.Model(given, layers.Dense(640, name="out")(x))
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 1.5, weights.shape) for weights in layer.get_weights()])
    samples = random.normal(size=(64, 640)).astype("float32")
    quantized = quantization.quantize(preparation.prepare(model).model, preserve=True)
    quantization.calibrate(quantized, [samples])
    path = conversion.convert(export.save(quantized, tmp_path / "quantized"), tmp_path / "model.tflite")
    file = tflite.read(path)
    assert [op.op for op in file.ops] == ["FULLY_CONNECTED"] * 10
    assert tflite.int8_violations(file) == ()
    assert file.size_bytes <= 300_000
