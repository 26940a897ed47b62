"""The quantize stage: which role it leaves, with which weights, and what it says about it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from keras_models import SHAPE, assert_identical, cnn, dense, keras, layers, shaken, state, weights
from pydantic import ValidationError

from edgeprune.keras import graph, intake, preparation, pruning
from edgeprune.pipelines import quantize


def given(folder, model, pruned=()):
    """A state in which a model waits for the stage, with the masks of what a prune stage would have pruned."""
    files = {"model": intake.save(model, folder / "given.keras")}
    if pruned:
        masks = {name: model.get_layer(name).get_weights()[0] != 0 for name in pruned}
        files["masks"] = pruning.save_masks(masks, folder / "masks.npz")
    before = state(folder, "quantize")
    return dataclasses.replace(before, files={role: str(path.relative_to(folder)) for role, path in files.items()})


def run(folder, model, pruned=(), **options):
    return quantize.run(given(folder, model, pruned), quantize.Options(batch_size=16, **options))


def recurrent():
    keras.utils.set_random_seed(0)
    x = image = keras.Input(SHAPE, name="image")
    x = layers.ReLU(name="relu")(layers.Conv2D(8, 1, name="conv")(x))
    x = layers.LSTM(4, name="memory")(layers.Reshape((64, 8), name="rows")(x))
    return keras.Model(image, layers.Dense(4, activation="softmax", name="classes")(x))


def test_a_model_whose_every_layer_is_carried(tmp_path):
    after = run(tmp_path, cnn(), epochs=1)
    assert set(after.files) == {"model", "quantized"} and after.files["model"] == "given.keras"
    facts = after.facts["quantization"]
    assert (facts["trained"], facts["mixed"], facts["calibrated_on"]) == (True, False, 32)
    assert facts["layers"][0] == {"name": "stem", "kind": "Conv2D", "how": "trained", "reason": None}
    assert len(after.facts["history"]["quantize"]["epochs"]) == 1
    assert "notes" not in after.facts


@pytest.mark.slow
def test_some_layers_left_to_post_training_ranges(tmp_path):
    model = shaken(recurrent())
    kernel, bias = model.get_layer("conv").get_weights()
    model.get_layer("conv").set_weights([np.where(np.arange(4).reshape(4, 1) % 2, kernel, 0.0), bias])
    after = run(tmp_path, model, pruned=["conv"], epochs=1, learning_rate=0.01)
    assert set(after.files) == {"model", "masks"} and after.files["model"] == "model.keras"
    trained = intake.load_own(after.path("model"))
    found = trained.get_layer("conv").get_weights()[0]
    assert np.all(found[:, :, ::2] == 0) and np.all(found[:, :, 1::2] != 0)
    assert np.any(found != model.get_layer("conv").get_weights()[0])
    facts = after.facts["quantization"]
    assert (facts["trained"], facts["mixed"]) == (True, True)
    assert {layer["name"]: layer["how"] for layer in facts["layers"]} == {
        **{"conv": "trained", "relu": "fused", "rows": "passed on", "memory": "post-training", "classes": "trained"}
    }
    (note,) = after.facts["notes"]
    assert note.startswith("Trained with fake quantizers except memory (LSTM: the states inside")


def test_a_model_without_a_layer_to_train_is_left_prepared(tmp_path):
    x = image = keras.Input(SHAPE, name="image")
    x = layers.LSTM(4, name="memory")(layers.Rescaling(0.5, 1.0, name="scale")(layers.Reshape((64, 4))(x)))
    model = keras.Model(image, layers.Softmax(name="classes")(x))
    after = run(tmp_path, model, epochs=1)
    facts = after.facts["quantization"]
    assert (facts["trained"], facts["mixed"], facts["calibrated_on"]) == (False, False, 0)
    assert not after.facts["history"]
    (note,) = after.facts["notes"]
    assert note.startswith("Quantized after training instead of trained: memory (LSTM:")
    assert graph.largest_difference(model, intake.load_own(after.path("model"))) <= 1e-5


def test_layers_that_are_skipped_by_name(tmp_path):
    model = dense(8, 8, 4, inputs=int(np.prod(SHAPE)))
    x = image = keras.Input(SHAPE, name="image")
    x = model(layers.Flatten(name="flat")(x))
    after = run(tmp_path, graph.rebuild(keras.Model(image, x)), epochs=0, skip="d[23]")
    left = [layer["name"] for layer in after.facts["quantization"]["layers"] if layer["how"] == "post-training"]
    assert left == ["d2", "d3"]
    assert after.facts["notes"][0].startswith(
        "Quantized after training instead of trained: d2, d3 (Dense: named by skip)"
    )
    prepared = preparation.prepare(intake.load_own(tmp_path / "given.keras")).model
    assert_identical(weights(intake.load_own(after.path("model"))), weights(prepared))  # no epoch, no change


def test_rewrites_are_named(tmp_path):
    x = image = keras.Input(SHAPE, name="image")
    x = layers.BatchNormalization(name="bn")(layers.Dense(4, name="dense")(layers.Flatten(name="flat")(x)))
    after = run(tmp_path, keras.Model(image, x), epochs=0)
    assert {"name": "folded normalization", "layers": ["bn"]} in after.facts["quantization"]["rewrites"]


def test_a_broken_expression_is_an_error_of_the_recipe():
    with pytest.raises(ValidationError, match="not a regular expression"):
        quantize.Options(skip="(")
