"""Pruning while quantization-aware training runs: what goes by its magnitude on the int8 grid, how much, and when."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from keras_models import CLASSES, SHAPE, assert_identical, keras, layers, loaded, samples, state, weights
from pydantic import ValidationError

from edgeprune import granularity, recipe
from edgeprune.errors import RecipeError
from edgeprune.keras import intake, pruning, quantization, quantization_pruning, tf, training
from edgeprune.pipelines import quantize

NM = quantization_pruning.Ramped(granularity.n_of_m(2, 4), None, False)
WEIGHT = quantization_pruning.Ramped(granularity.weight(), None, False)


def tiny():
    """Two kernels of 32 weights, ``first`` and ``classes``: what is traced quickly."""
    keras.utils.set_random_seed(0)
    x = image = keras.Input(SHAPE, name="image")
    x = layers.Dense(8, name="first")(layers.GlobalAveragePooling2D(name="pool")(x))
    x = layers.Dense(CLASSES, activation="softmax", name="classes")(layers.ReLU(name="relu")(x))
    return keras.Model(image, x, name="tiny")


def grid(values, scale):
    return (np.round(np.asarray(values) / scale) * scale).astype("float32")


def kept(values, scale, sparsity, how=WEIGHT, earlier=True):
    weight = np.asarray(values, "float32")
    mask = np.broadcast_to(np.asarray(earlier), weight.shape)
    return quantization_pruning.mask(weight, grid(weight, scale), sparsity, mask, how)


# scores


def test_what_int8_rounds_to_zero_goes_before_what_it_rounds_up():
    """Two channels with scales of their own: 0.04 is a step in the first, and 0.3 nothing in the second."""
    weight = np.array([[0.04, 0.3], [1.0, 90.0]], "float32")
    rounded = np.array([[0.04, 0.0], [1.0, 90.0]], "float32")
    found = quantization_pruning.mask(weight, rounded, 0.25, np.ones((2, 2), bool), WEIGHT)
    assert found.tolist() == [[True, False], [True, True]]


def test_of_equal_steps_the_larger_weight_stays_and_the_count_is_exact():
    assert kept([0.51, 0.52, 0.53, 0.54], 1.0, 0.5).tolist() == [False, False, True, True]
    crowd = np.random.Generator(np.random.PCG64(0)).normal(size=(50, 40))
    assert (~kept(crowd, 0.5, 0.3)).sum() == 600  # though the grid has a handful of magnitudes


def test_what_an_earlier_stage_pruned_stays_and_counts():
    found = kept([5.0, 4.0, 3.0, 2.0], 0.1, 0.5, earlier=[False, True, True, True])
    assert found.tolist() == [False, True, True, False]


def test_a_pattern_holds_in_every_block_and_on_the_way_there():
    kernel = np.random.Generator(np.random.PCG64(1)).normal(size=(3, 3, 8, 6))
    for sparsity, zeros in ((0.25, 1), (0.5, 2)):
        blocks = np.moveaxis(kept(kernel, 0.02, sparsity, NM), -2, -1).reshape(-1, 4)
        assert np.all((~blocks).sum(axis=1) == zeros)


def test_a_transposed_kernel_is_seen_by_its_input_channels():
    kernel = np.random.Generator(np.random.PCG64(1)).normal(size=(3, 3, 6, 8))  # (..., out, in)
    found = kept(kernel, 0.02, 0.5, NM._replace(outputs_first=True))
    assert np.all(found.reshape(-1, 4).sum(axis=1) == 2)


# in training


def made(model=None, final=0.5, steps=10, pattern=None, **ramp):
    """A fake-quantized model that is pruned while it trains."""
    model, pattern = model or tiny(), pattern or pruning.Pattern()
    words = {"schedule": "polynomial", "initial": 0.0, "begin": 0.0, "end": 0.6, **ramp}
    plans = pruning.plan(model, pattern)
    how = quantization_pruning.ramped(plans, pattern, pruning.Ramp(final=final, **words), steps)
    found = quantization.quantize(model, True, pruning=how)
    quantization.calibrate(found, [samples()[0][:32]])
    return found


class Kept(keras.callbacks.Callback):
    """Copies the checkpoint of the first epoch, as a kill in the second would leave it."""

    def __init__(self, checkpoint, to):
        super().__init__()
        self.checkpoint, self.to = checkpoint, to

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1 and self.to:
            self.to.mkdir()
            shutil.copy(self.checkpoint, self.to)


def fit(folder, killed=None):
    """Two epochs; what a kill in the second would leave goes to another folder."""
    options = recipe.FitOptions(epochs=2, batch_size=16, learning_rate=0.01)
    training.start(7)
    quantized, goal = made(), training.objective(tiny(), "classification")
    callbacks = [Kept(folder / training.CHECKPOINT, killed), quantization_pruning.Clock(quantized)]
    training.fit(quantized, state(folder, seed=7, samples=loaded(validation=0.0)), options, goal, callbacks)
    return quantized


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    return tmp_path_factory.mktemp("fit") / "killed"


@pytest.fixture(scope="module")
def unbroken(killed, tmp_path_factory):
    return fit(tmp_path_factory.mktemp("unbroken"), killed)


def test_calibration_prunes_nothing():
    assert all(mask.all() for mask in quantization_pruning.final_masks(made()).values())


def test_the_final_sparsity_is_exact_and_only_settling_writes_the_zeros(unbroken):
    masks = quantization_pruning.final_masks(unbroken)
    assert {name: int((~mask).sum()) / mask.size for name, mask in masks.items()} == {"first": 0.5, "classes": 0.5}
    kernel, _ = quantization_pruning.pruned(unbroken)["first"]
    behind = kernel.numpy()[~masks["first"]]
    assert np.all(behind != 0)  # what is pruned lives on
    quantization.settle(unbroken)
    assert np.all(kernel.numpy()[~masks["first"]] == 0) and np.all(kernel.numpy()[masks["first"]] != 0)


def test_killed_and_resumed_nothing_differs(unbroken, killed):
    resumed = fit(killed)
    quantization.settle(unbroken)
    quantization.settle(resumed)
    assert_identical(weights(resumed), weights(unbroken))
    assert any("mask" in name for name in weights(resumed))


def test_a_pruned_weight_comes_back_when_another_falls_below_it():
    quantized = made(final=0.5, steps=4, frequency=1, end=1.0, schedule="constant")
    kernel, variables = quantization_pruning.pruned(quantized)["classes"]
    values = np.linspace(1.0, 32.0, 32).reshape(kernel.shape)
    image = tf.constant(samples()[0][:2])
    for turned in (values, -values[::-1]):
        kernel.assign(turned)
        variables["step"].assign(1)
        quantized(image, training=True)
        expected = np.abs(turned) > 16
        assert np.array_equal(variables["mask"].numpy().astype(bool), expected)


# the stage


def given(folder, model, masks=None, **facts):
    files = {"model": intake.save(model, folder / "given.keras")}
    if masks:
        files["masks"] = pruning.save_masks(masks, folder / "masks-before.npz")
    before = state(folder, "quantize")
    roles = {role: str(path.relative_to(folder)) for role, path in files.items()}
    return dataclasses.replace(before, files=roles, facts=facts)


def test_the_stage_prunes_compares_with_its_control_and_tells(tmp_path):
    options = quantize.Options(
        epochs=2, batch_size=16, learning_rate=0.01, prune=quantize.Prune(final=0.5, end=0.9, control=True)
    )
    model = tiny()
    earlier = np.ones((4, 8), bool)
    earlier[0] = False
    first = model.get_layer("first").kernel
    first.assign(first * earlier)
    after = quantize.run(given(tmp_path, model, {"first": earlier}), options)
    assert {"quantized", "masks"} <= set(after.files)
    masks = pruning.load_masks(after.path("masks"))
    assert set(masks) == {"first", "classes"}
    assert all((~mask).sum() == mask.size // 2 for mask in masks.values())
    assert not masks["first"][~earlier].any()
    entry = after.facts["pruning"]["layers"]["classes"]
    assert (entry["granularity"], entry["sparsity_target"], entry["sparsity_keras"]) == ("weight", 0.5, 0.5)
    told = after.facts["quantization"]["pruned_while_training"]
    control = told["control"]
    assert told["layers"] == 2 and control["sparsity"] == control["control_sparsity"] == 0.5
    assert 0 <= control["metric"] <= 1 and 0 <= control["control_metric"] <= 1
    assert any("The control, pruned for 1 epochs and then trained" in note for note in after.facts["notes"])
    assert after.facts["history"]["quantize"]["schedule"][-1] == {"epoch": 2.0, "sparsity": 0.5}
    assert len(after.facts["history"]["quantize"]["epochs"]) == 2


def test_layers_that_stay_float_are_left_with_the_reason(tmp_path):
    options = quantize.Options(epochs=1, batch_size=16, skip="classes", prune=quantize.Prune())
    after = quantize.run(given(tmp_path, tiny()), options)
    assert after.facts["pruning"]["layers"]["classes"]["reason"] == "not trained with fake quantizers: named by skip"
    trained = intake.load_own(after.path("model"))
    masks = pruning.load_masks(after.path("masks"))
    assert set(masks) == {"first"} and np.all(trained.get_layer("first").kernel.numpy()[~masks["first"]] == 0)


def test_clusters_are_not_pruned(tmp_path):
    entry = {"name": "first", "asked": 16, "scope": "layer", "shape": [4, 8]}
    model = tiny()
    kernel = model.get_layer("first").kernel
    kernel.assign(np.random.Generator(np.random.PCG64(0)).choice([-1.0, 0.5, 1.0], kernel.shape))
    before = given(tmp_path, model, clustering={"layers": {"first": entry}, "kept": "channel"})
    with pytest.raises(RecipeError, match="would take weights out of the clusters"):
        quantize.run(before, quantize.Options(epochs=1, prune=quantize.Prune()))


def test_nothing_to_prune_is_a_named_error(tmp_path):
    with pytest.raises(RecipeError, match="found no layer that can carry the pattern weight"):
        quantize.run(given(tmp_path, tiny()), quantize.Options(epochs=1, prune=quantize.Prune(include="nothing")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0, "prune": {}}, "prune needs at least 1 epoch here, got 0"),
        ({"epochs": 1, "prune": {"control": True}}, "prune needs at least 2 epochs here, got 1"),
        ({"prune": {"pattern": "4:4"}}, "n must be smaller than m"),
        ({"prune": {"begin": 0.7}}, "must be smaller than end"),
        ({"prune": {"block": [0, 1]}}, "at least 1"),
        ({"prune": {"exclude": "("}}, "not a regular expression"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        quantize.Options(**options)
