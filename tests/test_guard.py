"""A few bytes that declare terabytes, climb out of their folder or never end are refused before they do."""

from __future__ import annotations

import json
import time
import zipfile

import h5py
import numpy as np
import pytest
from keras_models import cnn, dense, layers

from edgeprune.errors import ModelError
from edgeprune.keras import guard, intake, keras, tf


@pytest.fixture
def archive(tmp_path):
    """``archive(**members)`` writes a .keras file of a small model with members added or replaced."""

    def write(**members):
        path = tmp_path / "net.keras"
        dense(3, 2).save(path, save_format="keras")
        with zipfile.ZipFile(path) as old:
            content = {name: old.read(name) for name in old.namelist()} | members
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for name, data in content.items():
                new.writestr(name, data)
        return path

    return write


@pytest.mark.parametrize("name", ["../out", "/out", "assets/../../out", "C:/out", "assets\\..\\..\\out"])
def test_a_member_outside_the_archive(archive, tmp_path, name):
    path = archive(**{name: b"out"})
    with pytest.raises(ModelError, match="points out of its folder"):
        intake.load(path)
    assert not (tmp_path.parent / "out").exists()


def test_a_link_in_the_archive(archive):
    path = archive()
    link = zipfile.ZipInfo("assets/passwd")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(ModelError, match=r"'assets/passwd', which points out of its folder"):
        intake.load(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice(archive):
    path = archive()
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("config.json", "{}")
    with pytest.raises(ModelError, match=r"'config\.json' twice"):
        intake.load(path)


def test_a_member_that_keras_does_not_write(archive):
    with pytest.raises(ModelError, match=r"holds 'model\.weights\.npz'; a \.keras file of Keras holds"):
        intake.load(archive(**{"model.weights.npz": b""}))


def test_a_member_that_unfolds_beyond_reason(archive):
    with pytest.raises(ModelError, match=r"declares 50000000 bytes for 'config\.json' and stores \d{5}:"):
        intake.load(archive(**{"config.json": b" " * 50_000_000}))


@pytest.fixture
def weights(tmp_path):
    """``weights(change)`` writes a .h5 model after a change to it, with its name."""

    def write(change):
        path = tmp_path / "net.h5"
        with pytest.warns(UserWarning):  # Keras advises against .h5
            dense(2).save(path, save_format="h5")
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    return write


def huge(file):
    file.create_dataset("huge", (10**6, 10**6), "float32", chunks=(1000, 1000))


def elsewhere(file):
    file.create_dataset("far", (8,), "uint8", external=[("/etc/passwd", 0, 8)])


def virtual(file):
    layout = h5py.VirtualLayout((8,), "uint8")
    layout[:] = h5py.VirtualSource("/etc/passwd", "data", (8,))
    file.create_virtual_dataset("virtual", layout)


def soft(file):
    file["soft"] = h5py.SoftLink("/model_weights")


def external(file):
    file["external"] = h5py.ExternalLink("/etc/passwd", "/")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (huge, r"declares the shape \(1000000, 1000000\) for '/huge', 4000000000000 bytes, and stores 0"),
        (elsewhere, r"keeps '/far' in another file"),
        (virtual, r"keeps '/virtual' in another file"),
        (soft, r"has a link at '/soft'"),
        (external, r"has a link at '/external'"),
    ],
)
def test_weights_that_are_not_in_the_file(weights, change, message):
    with pytest.raises(ModelError, match=message):
        intake.load(weights(change))


def test_a_group_inside_itself_is_walked_once(weights):
    def knot(file):
        file["model_weights"]["again"] = file["model_weights"]

    assert intake.load(weights(knot)).output_shape == (None, 2)


def configured(archive, change):
    """The .keras file of ``archive`` with its configuration changed."""
    with zipfile.ZipFile(archive()) as file:
        config = json.loads(file.read("config.json"))
    change(config["config"]["layers"])
    return archive(**{"config.json": json.dumps(config).encode()})


def test_a_weight_larger_than_the_file(archive):
    path = configured(archive, lambda layers: layers[1]["config"].update(units=10**12))
    with pytest.raises(
        ModelError, match=r"declares 8000000000000 weights of the shape \(8, 1000000000000\) in the layer 'd1'"
    ):
        intake.load(path)


@pytest.mark.parametrize("units", ["many", float("nan"), None, [2], -2, 10**400])
def test_a_size_that_is_none(archive, units):
    with pytest.raises(ModelError, match=r"net\.keras"):
        intake.load(configured(archive, lambda layers: layers[1]["config"].update(units=units)))


def test_add_weight_is_as_it_was(archive):
    before = keras.layers.Layer.add_weight
    intake.load(archive())
    with pytest.raises(ModelError):
        intake.load(configured(archive, lambda layers: layers[1]["config"].update(units=10**12)))
    assert keras.layers.Layer.add_weight is before


def test_an_output_that_would_fill_the_memory():
    inputs = keras.Input((4, 4, 3))
    inner = keras.Sequential([layers.UpSampling2D(10_000, name="up", input_shape=(4, 4, 3))], name="inner")
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(inner(inputs)))
    with pytest.raises(ModelError, match=r"'(up|inner)' gives 4800000000 numbers for one sample .*smaller inputs"):
        intake.take(model)


def test_a_constant_that_would_fill_the_memory():
    call = {
        "class_name": "TFOpLambda",
        "config": {"function": "zeros"},
        "inbound_nodes": [["_CONSTANT_VALUE", -1, [10**5, 10**5]]],
    }
    with pytest.raises(ModelError, match=r"constant of up to 10000000000 elements with 'zeros'"):
        guard.check_config_sizes({"layers": [call]}, "net.h5")


def test_a_layer_unrolled_without_end():
    steps = {"class_name": "InputLayer", "config": {"batch_shape": [None, 10**7, 1]}}
    lstm = {"class_name": "LSTM", "config": {"units": 1, "unroll": True}}
    with pytest.raises(ModelError, match=r"over up to 10000000 steps.*unroll=False"):
        guard.check_config_sizes({"layers": [steps, lstm]}, "net.h5")
    guard.check_config_sizes({"layers": [steps, {**lstm, "config": {"unroll": False}}]}, "net.h5")


def test_a_configuration_that_never_ends(archive, monkeypatch):
    """Keras waits forever for a layer that is not there."""
    monkeypatch.setattr(guard, "SECONDS", 1.0)

    def dangle(layers):
        text = json.dumps(layers[-1]["inbound_nodes"]).replace('"d1", 0', '"d1", 7')
        layers[-1]["inbound_nodes"] = json.loads(text)

    with pytest.raises(ModelError, match="could not be loaded within 1 s"):
        intake.load(configured(archive, dangle))


def test_a_deadline_in_time_changes_nothing():
    with guard.deadline(0, "net.h5"):
        made = sum(range(1000))
    assert made == 499_500


def test_a_deadline_ends_what_catches_everything(monkeypatch):
    monkeypatch.setattr(guard, "SECONDS", 0.1)

    def stubborn():
        caught = 0
        while caught < 2:
            try:
                while True:
                    time.sleep(0.01)
            except Exception:
                caught += 1
        while True:
            time.sleep(0.01)

    with pytest.raises(ModelError, match="within 0 s"), guard.deadline(0, "net.h5"):
        stubborn()
    time.sleep(0.3)  # nothing arrives afterwards


def test_an_error_within_the_deadline_passes_as_it_is():
    with pytest.raises(KeyError), guard.deadline(0, "net.h5"):
        raise KeyError("own")


def test_what_is_usual_is_taken(archive):
    guard.check_activations(cnn(), "net")
    assert np.isfinite(intake.load(archive())(tf.ones((1, 8))).numpy()).all()
