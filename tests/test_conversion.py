"""Export and conversion: what is written, that it is the same every time, and what becomes of a converter that fails."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import converted
import numpy as np
import pytest

from edgeprune import tflite
from edgeprune.errors import ConversionError, ModelError, RunFolderError
from edgeprune.inference import Runner


@pytest.fixture(scope="module")
def made():
    return converted.artefacts()


@pytest.fixture(scope="module")
def converter(tmp_path_factory):
    from edgeprune.keras import conversion

    with conversion.Converter(tmp_path_factory.mktemp("converter") / "converter.log", timeout_s=300) as shared:
        yield shared


# What is written


def test_the_exported_model_computes_what_keras_computes(made):
    from edgeprune.keras import export, intake

    exported, model = export.Exported(made.folder / "float"), intake.load_own(made.folder / "float.keras")
    inputs = converted.samples(5)
    assert exported.outputs({"image": inputs})["scores"] == pytest.approx(model(inputs).numpy(), abs=1e-6)


def test_every_layer_is_exported_in_topological_order(made):
    from edgeprune.keras import export

    exported = export.Exported(made.folder / "quantized")
    names = [layer.name for layer in exported.layers]
    assert names.index("quant_first") < names.index("quant_sum") < names.index("quant_scores")
    assert exported.layers[names.index("quant_second")].kind == "Conv2D"
    outputs = exported.layer_outputs({"image": converted.samples(3)})
    assert len(outputs) == len(names)
    assert np.array_equal(outputs[-1], exported.outputs({"image": converted.samples(3)})["quant_scores"])


def test_exporting_leaves_the_model_as_it_was():
    from edgeprune.keras import export

    model = converted.quantized(converted.network(), converted.samples())
    before = [layer.name for layer in model.layers], [weights.copy() for weights in model.get_weights()]
    export.save(model, converted.artefacts().folder / "again")
    assert [layer.name for layer in model.layers] == before[0]
    assert all(np.array_equal(*pair) for pair in zip(model.get_weights(), before[1], strict=True))


def test_a_model_without_a_fixed_input_is_refused(tmp_path):
    from edgeprune.keras import export, keras

    inputs = keras.Input((None, None, 3), name="any_size")
    with pytest.raises(ModelError, match=r"'any_size'.*fixed input shape"):
        export.save(keras.Model(inputs, keras.layers.ReLU()(inputs)), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_export_is_refused(tmp_path):
    from edgeprune.keras import export

    with pytest.raises(RunFolderError, match="no model that edgeprune exported"):
        export.Exported(tmp_path)


def test_the_final_file_is_int8_throughout_and_keeps_the_zeros(made):
    file = tflite.read(made.final)
    assert tflite.int8_share(file) == 1.0
    assert {file.tensors[index].dtype for index in (*file.inputs, *file.outputs)} == {"int8"}
    assert all(tflite.n_of_m(~tflite.zeros(tflite.kernel_for(file, name)), 2, 4) == 1.0 for name in converted.PRUNED)


def test_dense_layers_have_one_scale_unless_asked_otherwise(made):
    """Trap 25: post-training quantization gives each output of a Dense its own scale, which old runtimes refuse."""
    for path, scales in ((made.final, 1), (made.dense_int8, 8)):
        assert tflite.kernel_for(tflite.read(path), "hidden").scales.size == scales


def test_a_float_file_holds_no_quantized_tensor(made):
    assert all(tensor.scales.size == 0 for tensor in tflite.read(made.float32).tensors)


def test_several_inputs_and_outputs_keep_their_names(converter, tmp_path):
    from edgeprune.keras import export, keras

    one, two = keras.Input((4,), name="zeta"), keras.Input((6,), name="alpha")
    outputs = [keras.layers.Dense(3, name="second")(one), keras.layers.Dense(3, name="first")(two)]
    folder = export.save(keras.Model([one, two], outputs), tmp_path / "two")
    given = {"zeta": np.ones((8, 4)), "alpha": np.ones((8, 6))}
    runner = Runner(converter.convert(folder, tmp_path / "two.tflite", representative=given))
    assert {port.name: port.shape for port in runner.inputs} == {"zeta": (4,), "alpha": (6,)}
    assert {port.name for port in runner.outputs} == {"first", "second"}


@pytest.fixture(scope="module")
def words_and_numbers(tmp_path_factory):
    """Two inputs, of which one holds float indices that an Embedding reads, and two outputs; exported."""
    from edgeprune.keras import export, indices, keras

    words, numbers = keras.Input((6,), name="words/1"), keras.Input((4,), name="numbers")
    rows = keras.layers.Flatten()(keras.layers.Embedding(20, 3, name="table")(words))
    outputs = [
        keras.layers.Dense(3, name="second")(keras.layers.Concatenate()([rows, numbers])),
        keras.layers.Dense(2, name="first")(numbers),
    ]
    keras.utils.set_random_seed(0)
    model, names = indices.integer_inputs(keras.Model([words, numbers], outputs))
    assert names == ["words/1"]
    return model, export.save(model, tmp_path_factory.mktemp("indices") / "model")


@pytest.mark.parametrize("io", ["int8", "uint8"])
def test_an_input_of_indices_stays_an_integer_and_nothing_is_float(converter, words_and_numbers, tmp_path, io):
    model, folder = words_and_numbers
    random = np.random.default_rng(0)
    given = {"words/1": random.integers(0, 20, (30, 6)).astype("float32"), "numbers": random.normal(size=(30, 4))}
    path = converter.convert(folder, tmp_path / "x.tflite", representative=given, io=io)
    assert tflite.int8_violations(tflite.read(path), io) == ()
    runner = Runner(path)
    assert {port.name: port.dtype.name for port in runner.inputs} == {"words_1": "int32", "numbers": io}
    assert {port.dtype.name for port in runner.outputs} == {io}
    found = dict(zip((port.name for port in runner.outputs), runner.run(*runner.in_order(given)), strict=True))
    expected = model([given["words/1"].astype("int32"), given["numbers"].astype("float32")])
    for name, output in zip(("second", "first"), expected, strict=True):
        assert np.abs(found[name] - output.numpy()).max() < 0.05


def test_an_exported_model_takes_indices_as_any_number(words_and_numbers):
    from edgeprune.keras import export

    model, folder = words_and_numbers
    exported = export.Exported(folder)
    given = {"words_1": np.full((2, 6), 7.0, "float32"), "numbers": np.ones((2, 4), "float32")}
    expected = model([given["words_1"].astype("int32"), given["numbers"]])[0].numpy()
    assert exported.outputs(given)["second"] == pytest.approx(expected, abs=1e-6)


def test_a_recurrent_layer_converts_because_the_batch_is_one(converter, tmp_path):
    """Trap 22: with an open batch the converter refuses an LSTM (tf.TensorListReserve)."""
    from edgeprune.keras import export, keras

    inputs = keras.Input((6, 4), name="steps")
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.LSTM(5)(inputs)))
    samples = np.random.default_rng(0).normal(size=(16, 6, 4))
    path = converter.convert(export.save(model, tmp_path / "lstm"), tmp_path / "x.tflite", representative=samples)
    assert "UNIDIRECTIONAL_SEQUENCE_LSTM" in {op.op for op in tflite.read(path).ops}


# Calibration samples


@pytest.mark.parametrize("kind", [np.uint8, np.float64])
def test_calibration_samples_of_any_number_type_are_taken(made, converter, tmp_path, kind):
    """Trap 29: the converter takes float32 in lists of batch 1 and nothing else."""
    samples = (converted.samples() * 9).astype(kind)
    np.save(tmp_path / "samples.npy", samples)
    paths = [
        converter.convert(made.folder / "float", tmp_path / f"{name}.tflite", representative=given)
        for name, given in {"array": samples, "file": tmp_path / "samples.npy"}.items()
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert Runner(paths[0]).inputs[0].scale == pytest.approx(samples.max() / 255, rel=1e-3)


def test_no_calibration_samples_are_an_error_and_not_a_float_model(made, converter, tmp_path):
    """Trap 10: the converter takes an empty generator without a word and gives float."""
    with pytest.raises(ConversionError, match="0 samples for image"):
        converter.convert(made.folder / "float", tmp_path / "x.tflite", representative=converted.samples(0))
    assert not (tmp_path / "x.tflite").exists()


def test_calibration_samples_for_other_inputs_are_an_error(made, converter, tmp_path):
    with pytest.raises(ConversionError, match=r"for sound, but the model's inputs are image"):
        converter.convert(made.folder / "float", tmp_path / "x.tflite", representative={"sound": converted.samples()})


def test_calibration_samples_that_are_not_finite_are_an_error(made, converter, tmp_path):
    samples = converted.samples()
    samples[3] = np.nan
    with pytest.raises(ConversionError, match="NaN"):
        converter.convert(made.folder / "float", tmp_path / "x.tflite", representative=samples)


def test_a_model_without_ranges_is_an_error_and_not_a_float_model(made, converter, tmp_path):
    with pytest.raises(ConversionError, match="no fake quantizers"):
        converter.convert(made.folder / "float", tmp_path / "x.tflite")


# The same every time

_AGAIN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import converted
from edgeprune.keras import conversion, export, intake, keras
[keras.layers.Dense(1) for _ in range(7)]  # counters of the process that names come from
model = intake.load_own(Path(sys.argv[2]))
converted.quantized(model, converted.samples())
converted.pruned(model)
folder = Path(sys.argv[3])
export.save(converted.quantized(model, converted.samples()), folder / "q")
conversion.convert(folder / "q", folder / "again.tflite")
"""


@pytest.mark.long
def test_equal_weights_give_equal_bytes_in_another_process_and_folder(made, tmp_path):
    folder = tmp_path / "a" / "longer way"
    folder.mkdir(parents=True)
    arguments = [str(Path(__file__).parent), str(made.folder / "float.keras"), str(folder)]
    subprocess.run([sys.executable, "-c", _AGAIN, *arguments], check=True, capture_output=True)
    assert (folder / "again.tflite").read_bytes() == made.final.read_bytes()


# A converter that fails


def test_an_op_without_a_kernel_is_named_with_its_layer(converter, tmp_path):
    from edgeprune.keras import export, keras, tf

    class Inverse(keras.layers.Layer):
        def call(self, inputs):
            return tf.linalg.inv(inputs)

    inputs = keras.Input((3, 3), name="matrix")
    folder = export.save(keras.Model(inputs, Inverse(name="turned_over")(inputs)), tmp_path / "inverse")
    with pytest.raises(ConversionError, match=r"layer 'turned_over'.*tf\.MatrixInverse") as raised:
        converter.convert(folder, tmp_path / "x.tflite", representative=np.eye(3)[None])
    assert "\n" not in str(raised.value)
    assert "MatrixInverse" in converter.log.read_text()


def test_a_converter_that_crashes_is_an_error_and_the_next_model_is_converted(made, tmp_path):
    """Trap 21: a GRU brings the converter down with SIGSEGV, and would bring down whoever calls it."""
    from edgeprune.keras import conversion, export, keras

    inputs = keras.Input((6, 4), name="steps")
    folder = export.save(keras.Model(inputs, keras.layers.GRU(5, name="gru")(inputs)), tmp_path / "gru")
    with conversion.Converter(tmp_path / "converter.log") as converter:
        with pytest.raises(ConversionError, match=r"crashed with SIGSEGV.*here 'gru' \(GRU\).*unroll=True"):
            converter.convert(folder, tmp_path / "gru.tflite", representative=np.ones((4, 6, 4)))
        assert not (tmp_path / "gru.tflite").exists()
        assert converter.convert(made.folder / "quantized", tmp_path / "next.tflite").stat().st_size > 0
    assert "Segmentation fault" in (tmp_path / "converter.log").read_text()


def test_a_converter_that_is_killed_is_an_error_that_says_so(made, tmp_path):
    from edgeprune.keras import conversion

    with conversion.Converter(tmp_path / "converter.log") as converter:
        os.kill(converter._child.process.pid, signal.SIGKILL)
        with pytest.raises(ConversionError, match=r"SIGKILL.*memory"):
            converter.convert(made.folder / "quantized", tmp_path / "x.tflite")


def test_a_converter_that_hangs_is_stopped(made, tmp_path):
    from edgeprune.keras import conversion

    with conversion.Converter(tmp_path / "converter.log", timeout_s=0.01) as converter:
        process = converter._child.process
        with pytest.raises(ConversionError, match=r"longer than 0\.01 s"):
            converter.convert(made.folder / "quantized", tmp_path / "x.tflite")
        assert process.returncode is not None
    assert [path.name for path in tmp_path.iterdir()] == ["converter.log"]


def test_ctrl_c_ends_the_converter_too(made, tmp_path, monkeypatch):
    from edgeprune.keras import conversion

    def interrupted(*_):
        raise KeyboardInterrupt

    with conversion.Converter(tmp_path / "converter.log") as converter:
        process = converter._child.process
        monkeypatch.setattr(select, "select", interrupted)
        with pytest.raises(KeyboardInterrupt):
            converter.convert(made.folder / "quantized", tmp_path / "x.tflite")
        assert process.returncode is not None


def test_a_converter_does_not_outlive_a_killed_build(tmp_path):
    script = (
        "import os, signal, sys, pathlib; from edgeprune.keras import conversion;"
        "c = conversion.Converter(pathlib.Path(sys.argv[1]) / 'log');"
        "print(c._child.process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    said = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    child = int(said.stdout)
    for _ in range(600):
        if not _runs(child):
            return
        time.sleep(0.1)
    pytest.fail(f"process {child} still runs")


def _runs(process: int) -> bool:
    """Whether a process is there and not merely waiting for its parent to look at it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_started_converter_is_the_next_one_used(tmp_path):
    from edgeprune.keras import conversion

    conversion.prewarm()
    waiting = conversion._spare.waiting[-1]
    with conversion.Converter(tmp_path / "log") as converter:
        assert converter._child is waiting


def test_an_idle_converter_waits_for_the_next_model_wherever_that_lies(made, tmp_path, monkeypatch):
    from edgeprune.keras import conversion

    with conversion.Converter(tmp_path / "first.log") as first:
        process = first._child.process
        first.convert(made.folder / "quantized", tmp_path / "first.tflite")
    monkeypatch.chdir(tmp_path)
    with conversion.Converter(tmp_path / "second.log") as second:
        assert second._child.process is process
        second.convert(Path(os.path.relpath(made.folder / "quantized")), Path("second.tflite"))
    assert Path("second.tflite").read_bytes() == Path("first.tflite").read_bytes()


def test_a_converter_that_died_waiting_is_replaced(tmp_path):
    from edgeprune.keras import conversion

    conversion.prewarm()
    dead = conversion._spare.waiting[-1]
    dead.process.kill()
    dead.process.wait()
    with conversion.Converter(tmp_path / "log") as converter:
        assert converter._child is not dead


@pytest.mark.parametrize("how", ["alive", "dead", "gone"])
def test_a_fork_of_the_process_that_started_a_converter_may_use_it(made, tmp_path, how):
    """Who did not start it cannot learn how it died: it is not asked, or asks one of its own."""
    from edgeprune.keras import conversion

    conversion.prewarm()
    waiting = conversion._spare.waiting[-1]
    waiting._starter = 0
    with conversion.Converter(tmp_path / "log") as converter:
        if how != "alive":
            os.kill(waiting.process.pid, signal.SIGKILL)
        if how == "gone":
            os.waitpid(waiting.process.pid, 0)
        converter.convert(made.folder / "quantized", tmp_path / "x.tflite")
        assert (converter._child is waiting) == (how == "alive")
        assert converter._child.own == (how != "alive")
        waiting._starter = os.getpid()
    assert (tmp_path / "x.tflite").stat().st_size > 0


def test_nothing_of_tensorflow_reaches_the_terminal(made, converter, tmp_path, capfd):
    converter.convert(made.folder / "quantized", tmp_path / "x.tflite")
    assert capfd.readouterr() == ("", "")
