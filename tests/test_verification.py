"""``edgeprune verify``: which model and which samples, and what the exit code says."""

from __future__ import annotations

import json

import converted
import numpy as np
import pytest
from test_verify import one_sided

from edgeprune import cli, pipeline, verification
from edgeprune.errors import ArtefactError, DataError, RunFolderError


@pytest.fixture(scope="module")
def made():
    return converted.artefacts()


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x=converted.samples(200, seed=3), y=np.arange(200) % converted.CLASSES)
    return str(path)


def test_a_float_model_against_its_file(made, data):
    found = verification.verify(str(made.folder / "float.keras"), made.dense_int8, data, samples=8)
    assert found["compared_with"] == "float Keras"
    assert found["samples"] == 8
    assert found["first_bad"] is None
    assert found["holds"] is True
    assert [row["layer"] for row in found["layers"]] == ["first", "second", "sum", "pool", "hidden", "scores"]
    assert json.loads(json.dumps(found)) == found


def test_a_model_with_fake_quantizers_is_held_to_steps(made, data, tmp_path):
    """The softmax's output keeps 30 dB: a ratio would not have seen it."""
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(converted.tampered(made.final, converted.constant_of(made.final, "scores", 2), one_sided))
    whole = verification.verify(str(made.folder / "quantized"), made.final, data, samples=8)
    assert whole["compared_with"] == "fake-quantized Keras"
    assert whole["holds"] is True
    found = verification.verify(str(made.folder / "quantized"), broken, data, samples=8)
    assert (found["first_bad"]["kind"], found["first_bad"]["layer"]) == ("FULLY_CONNECTED", "scores")
    assert found["first_bad"]["snr_db"] > found["min_snr_db"]
    assert found["holds"] is False


def run_folder(made, tmp_path, **roles):
    """A run of which two stages are finished; the later one's record counts."""
    for number, files in ((2, {"quantized": "stages/2-old"}), (10, roles)):
        stage = tmp_path / "run" / "stages" / f"{number}-stage"
        stage.mkdir(parents=True)
        (stage / pipeline.STATE_FILE).write_text(json.dumps({"key": "", "files": files, "facts": {}}))
    for name in set(roles.values()):
        (tmp_path / "run" / name).symlink_to(made.folder / name)
    return str(tmp_path / "run")


def test_a_run_folder_knows_what_its_file_was_made_of(made, data, tmp_path):
    run = run_folder(made, tmp_path, quantized="quantized")
    assert verification.verify(run, made.final, data, samples=4)["compared_with"] == "fake-quantized Keras"


def test_a_file_of_ranges_after_training_is_compared_with_the_float_model(made, data, tmp_path):
    run = run_folder(made, tmp_path, quantized="quantized", exported="float")
    assert verification.verify(run, made.dense_int8, data, samples=4)["compared_with"] == "float Keras"


def test_a_run_that_is_not_there_yet_says_how_to_finish_it(made, data, tmp_path):
    with pytest.raises(RunFolderError, match="--resume"):
        verification.verify(run_folder(made, tmp_path), made.final, data)


def test_the_recipe_says_how_values_are_read(made, tmp_path):
    np.savez(tmp_path / "raw.npz", x=converted.samples(200, seed=3) * 255, y=np.arange(200) % converted.CLASSES)
    settings = tmp_path / "own.yaml"
    settings.write_text(f"name: own\ndata:\n  preprocess:\n    scale: {1 / 255}\nstages:\n  convert:\n")
    words = (str(made.folder / "float.keras"), made.dense_int8, str(tmp_path / "raw.npz"))
    assert verification.verify(*words, samples=4)["first_bad"]["cause"] == "input"
    assert verification.verify(*words, samples=4)["holds"] is False
    assert verification.verify(*words, samples=4, settings=str(settings))["holds"] is True


def test_samples_of_another_shape_are_a_named_error(made, tmp_path):
    np.savez(tmp_path / "small.npz", x=np.zeros((40, 4, 4, 4), np.float32), y=np.arange(40) % 4)
    with pytest.raises(DataError, match=r"\(8, 8, 4\)"):
        verification.verify(str(made.folder / "float.keras"), made.dense_int8, str(tmp_path / "small.npz"))


def test_another_models_file_is_a_named_error(made, data, tmp_path):
    from edgeprune.keras import keras

    given = keras.Input(converted.SHAPE, name="image")
    other = keras.Model(given, keras.layers.UpSampling2D(3, name="bigger")(given))
    other.save(tmp_path / "other.keras", save_format="keras")
    with pytest.raises(ArtefactError, match="stands for a layer"):
        verification.verify(str(tmp_path / "other.keras"), made.final, data, samples=2)


# The command


def test_the_command_names_the_first_bad_op_and_exits_with_1(made, data, tmp_path, capsys):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(
        converted.tampered(made.dense_int8, converted.constant_of(made.dense_int8, "second", 2), one_sided)
    )
    words = ["verify", str(made.folder / "float"), str(broken), "--data", data, "--samples", "4"]
    assert cli.run(words) == 1
    out, err = capsys.readouterr()
    assert "First bad: op 1, CONV_2D of 'second'" in out
    assert err.startswith("Error: ") and "'second'" in err
    assert cli.run([*words, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["first_bad"]["layer"] == "second"


def test_the_command_draws_every_layer(made, data, capsys):
    assert cli.run(["verify", str(made.folder / "float"), str(made.dense_int8), "--data", data, "--samples", "4"]) == 0
    out, err = capsys.readouterr()
    assert not err
    assert "SNR dB" in out and "█" in out
    assert "6 layers against float Keras on 4 samples" in out
