"""Networks that people use, from a Keras 3 file to int8 on Arm kernels; benchmarks/zoo.py runs all fourteen.

The smallest of three; the others too: EDGEPRUNE_LONG=1 EDGEPRUNE_FUZZ=full python -m pytest tests/test_zoo.py

Weights are random and training is one step: every layer is pruned, trained, converted and run, and nothing is learnt.
"""

from __future__ import annotations

import fuzzing
import numpy as np
import pytest

import edgeprune
from edgeprune import registry, target, tflite
from edgeprune.keras import keras3

SIDE, CLASSES, IMAGES = 64, 10, 24
# Whose own layers bring 0..255 to where the network wants it.
TAKES_PIXELS = ("MobileNetV3Small",)
SLIM = {"MobileNet": {"alpha": 0.25}}  # the same layers, narrow
SETS = {
    "stages.profile.count": False,  # tests/test_counting.py counts; here it would only take long
    "data.validation": 0.0,
    "stages.prune.epochs": 1,
    "stages.prune.batch_size": 16,
    "stages.prune.learning_rate": 1e-5,
    "stages.quantize.epochs": 1,
    "stages.quantize.batch_size": 16,
    "stages.quantize.learning_rate": 1e-5,
    "stages.verify.samples": 8,
    "stages.profile.samples": 4,
}


def images():
    """Blocks of 8x8 equal pixels: plain noise has no structure that survives a pooling."""
    coarse = np.random.default_rng(0).integers(0, 256, (IMAGES, SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2), np.arange(IMAGES) % CLASSES


def network(name, path, x):
    """A `.keras` file of Keras 3; BatchNormalization statistics are the data's, or random weights fade the signal."""
    keras = keras3.keras3()
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(SIDE, SIDE, 3), classes=CLASSES, **SLIM.get(name, {})
    )
    normal = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in normal:
        layer.momentum = 0.0
    model(x, training=True)
    for layer in normal:
        layer.momentum = 0.99
    model.save(path)


def no_emulator():
    facts = target.load(registry.file("targets", "rpi4"))
    return registry.module("backends", "qemu").unavailable(facts, target.connection(facts))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", ["MobileNet", *(["MobileNetV2", "MobileNetV3Small"] if fuzzing.FULL else [])])
def test_from_a_keras_3_file_to_int8(name, tmp_path):
    x, y = images()
    scale = 1.0 if name in TAKES_PIXELS else 1 / 255
    network(name, tmp_path / "model.keras", x.astype("float32") * scale)
    result = edgeprune.build(
        tmp_path / "model.keras",
        (x, y),
        recipe="nm24",
        out=tmp_path / "run",
        overrides={**SETS, "data.preprocess.scale": scale},
    )
    verify, file = result.report["verify"], tflite.read(result.tflite)
    assert tflite.int8_violations(file) == ()
    assert verify["float_ops"] == []
    assert verify["zeros_match"]
    assert verify["n_of_m_match"]
    left_alone = [layer for layer in result.report["layers"] if "input channels" in (layer["reason"] or "")]
    assert len(left_alone) <= 1  # the stem, which sees three channels
    assert verify["rms_difference_steps"] <= 8
    if "reason" in result.report["arm"]:
        assert no_emulator()
    else:
        assert result.report["arm"]["samples"] == SETS["stages.profile.samples"]
