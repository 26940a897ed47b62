"""Kernels that corrupt memory are left aside, and a network that they cannot be trusted with is not trained."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytest.importorskip("tensorflow")

from keras_models import SHAPE, loaded, state

from edgeprune.errors import ModelError
from edgeprune.keras import keras, onednn, training
from edgeprune.recipe import FitOptions

SAID = "from edgeprune.keras import onednn; print(onednn.enabled())"


def network(channels, kernel=1, stride=2):
    return keras.Sequential(
        [keras.Input((8, 8, channels)), keras.layers.Conv2D(8, kernel, stride, name="shortcut"), keras.layers.Flatten()]
    )


@pytest.mark.skipif(platform.machine() != "x86_64", reason="TensorFlow has these kernels on x86-64")
@pytest.mark.parametrize(("given", "enabled"), [(None, False), ("1", True)])
def test_they_are_on_where_the_user_says_so_alone(given, enabled):
    known = {key: value for key, value in os.environ.items() if key != "TF_ENABLE_ONEDNN_OPTS"}
    environment = known | ({"TF_ENABLE_ONEDNN_OPTS": given} if given else {})
    done = subprocess.run([sys.executable, "-c", SAID], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(enabled)


def test_what_they_corrupt_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(onednn, "enabled", lambda: True)
    with pytest.raises(
        ModelError, match=r"'shortcut' \(1x1, stride 2, 5 input channels\)\. Set TF_ENABLE_ONEDNN_OPTS=0"
    ):
        onednn.check(network(5))
    onednn.check(network(16))
    onednn.check(network(5, stride=1))
    onednn.check(network(5, kernel=3))


def test_without_them_anything_is_trained(monkeypatch):
    monkeypatch.setattr(onednn, "enabled", lambda: False)
    onednn.check(network(5))


def test_it_is_refused_before_a_step_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(onednn, "enabled", lambda: True)
    inputs = keras.Input(SHAPE)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 1, 2, name="shortcut")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(x))
    before = [one.copy() for one in model.get_weights()]
    goal = training.objective(model, "classification")
    with pytest.raises(ModelError, match="shortcut"):
        training.fit(model, state(tmp_path, samples=loaded()), FitOptions(epochs=1), goal)
    assert all((one == other).all() for one, other in zip(before, model.get_weights(), strict=True))
