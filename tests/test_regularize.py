"""The stage regularize, and what shrink makes of the units that it leaves at zero."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from keras_models import assert_identical, cnn, dense, keras, loaded, small, state, weights

from edgeprune import recipe
from edgeprune.errors import RecipeError
from edgeprune.keras import intake, kernels, pruning, training
from edgeprune.pipelines import regularize, shrink

FIT = {"epochs": 4, "batch_size": 16, "learning_rate": 0.01, "tune": 0.5}


def options(**words):
    spec = recipe.load({"name": "x", "stages": {"regularize": {**FIT, **words}}}).stages[0]
    return spec.options


def given(folder, model, label="regularize", **roles):
    """A state that was handed a model."""
    made = state(folder, label=label)
    return made.add(files={"model": intake.save(model, Path(folder) / "given.keras"), **roles})


def run(folder, model, **words):
    Path(folder).mkdir(exist_ok=True)
    before = given(folder, model)
    after = regularize.run(before, options(**words))
    return after, intake.load_own(after.path("model"))


def mlp(seed=0):
    """Two hidden layers on the flattened samples, BatchNormalization behind the first."""
    keras.utils.set_random_seed(seed)
    x = keras.Input((8, 8, 4), name="image")
    y = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    y = keras.layers.Dense(16, use_bias=False, name="one")(y)
    y = keras.layers.BatchNormalization(gamma_initializer=keras.initializers.Constant(0.2), name="norm")(y)
    y = keras.layers.ReLU(name="relu")(y)
    y = keras.layers.Dense(12, activation="relu", name="two")(y)
    return keras.Model(x, keras.layers.Dense(4, name="classes")(y), name="mlp")


def test_it_trims_exactly_and_the_zeros_hold_while_it_fine_tunes(tmp_path):
    after, model = run(tmp_path, mlp(), penalty={"kind": "l1", "strength": 0.1}, final=0.6)
    masks = pruning.load_masks(after.path("masks"))
    kept = {name: kernels.find(model, name).numpy() for name in masks}
    size = sum(mask.size for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == size - int(0.6 * size)
    assert all((kept[name][~mask] == 0).all() and (kept[name][mask] != 0).mean() > 0.9 for name, mask in masks.items())
    epochs = after.facts["history"]["regularize"]["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3, 4]
    assert ["zeros" in epoch for epoch in epochs] == [True, True, False, False]
    assert epochs[1]["zeros"] > 0.2
    entries = after.facts["pruning"]["layers"]
    assert entries["two"]["sparsity_keras"] == pytest.approx(1 - masks["two"].mean())


def test_without_an_aim_it_keeps_what_the_penalty_left(tmp_path):
    penalty = {"kind": "l1", "strength": 0.05, "exclude": "classes"}
    after, model = run(tmp_path, mlp(), penalty=penalty, epochs=2, tune=0.0)
    masks = pruning.load_masks(after.path("masks"))
    assert set(masks) == {"one", "two"}
    zeros = 1 - sum(mask.sum() for mask in masks.values()) / sum(mask.size for mask in masks.values())
    assert 0.05 < zeros == pytest.approx(after.facts["history"]["regularize"]["epochs"][1]["zeros"], abs=1e-5)
    assert (model.get_layer("two").kernel.numpy()[~masks["two"]] == 0).all()
    assert after.facts["pruning"]["layers"]["classes"]["reason"]


def test_growing_makes_room_before_it_trims(tmp_path):
    """What goes is what was chosen at the start, and it is all but zero by then."""
    model = mlp()
    before = np.abs(model.get_layer("two").kernel.numpy())
    penalty = {"kind": "growing", "strength": 1000.0}
    after, _ = run(tmp_path, model, penalty=penalty, final=0.5, scope="layer", tune=0.0)
    mask = pruning.load_masks(after.path("masks"))["two"]
    assert (~mask == (before < np.median(before))).mean() > 0.95
    pressed = intake.load_own(tmp_path / "penalised" / "done" / "model.keras").get_layer("two").kernel.numpy()
    assert np.abs(pressed[~mask]).max() < 0.05 * np.abs(pressed[mask]).max()


def test_earlier_zeros_stay(tmp_path):
    model, random = mlp(), np.random.Generator(np.random.PCG64(0))
    earlier = {"two": random.uniform(size=(16, 12)) > 0.3}
    model.get_layer("two").kernel.assign(model.get_layer("two").kernel * earlier["two"])
    before = given(tmp_path, model)
    before = before.add(files={"masks": pruning.save_masks(earlier, tmp_path / "earlier.npz")})
    after = regularize.run(before, options(penalty={"strength": 0.001}, final=0.5, epochs=2, tune=0.0))
    masks = pruning.load_masks(after.path("masks"))
    assert not (masks["two"] & ~earlier["two"]).any()
    assert (intake.load_own(after.path("model")).get_layer("two").kernel.numpy()[~masks["two"]] == 0).all()


@pytest.mark.parametrize("kind", ["group_lasso", "slimming"])
def test_units_that_a_penalty_zeroed_are_removed_without_a_change(tmp_path, kind):
    penalty = {"kind": kind, "strength": 0.05, "sparsity": 0.5}
    after, model = run(tmp_path, mlp(), penalty=penalty, epochs=6, learning_rate=0.03)
    assert "masks" not in after.files
    words = {"zeros": True, "multiples": 1, "epochs": 0}
    spec = recipe.load({"name": "x", "stages": {"shrink": words}}).stages[0]
    (tmp_path / "s").mkdir()
    shrunk = shrink.run(given(tmp_path / "s", model, "shrink"), spec.options)
    smaller = intake.load_own(shrunk.path("model"))
    groups = {group["name"]: group for group in shrunk.facts["shrink"]["shrink"]["groups"]}
    gone = sum(group["units_before"] - group["units_after"] for group in groups.values())
    told = after.facts["history"]["regularize"]["epochs"][-1]["zeros"]
    assert gone and gone == pytest.approx(
        told * (28 if kind == "group_lasso" else 16), abs=1.01
    )  # one of a group stays
    assert shrunk.facts["shrink"]["shrink"]["ratio"] == pytest.approx(gone / 28)
    if kind == "group_lasso":
        x = loaded().test.base[:8]
        np.testing.assert_allclose(smaller(x), model(x), atol=1e-5)
    else:
        assert groups["one"]["inexact"], "the offsets of the BatchNormalization go too"


def test_a_model_without_zeros_is_left_whole(tmp_path):
    spec = recipe.load({"name": "x", "stages": {"shrink": {"zeros": True, "multiples": 1, "epochs": 0}}}).stages[0]
    after = shrink.run(given(tmp_path, mlp(), "shrink"), spec.options)
    assert intake.load_own(after.path("model")).count_params() == mlp().count_params()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"penalty": {"kind": "group_lasso"}, "final": 0.5}, "whole channels"),
        ({"penalty": {"kind": "growing", "choose": "channels"}, "final": 0.5}, "whole channels"),
        ({"epochs": 1, "tune": 0.9}, "none of 1 epochs"),
    ],
)
def test_what_contradicts_itself_is_refused(words, said):
    with pytest.raises(RecipeError, match=said):
        options(**words)


def test_channels_may_not_go_after_weights_were_masked():
    stages = {"regularize": {"final": 0.5}, "shrink": {}}
    with pytest.raises(RecipeError, match="no shrink stage may come after"):
        recipe.load({"name": "x", "stages": stages})
    recipe.load({"name": "x", "stages": {"regularize": {"penalty": {"kind": "group_lasso"}}, "shrink": {}}})


class Killed(Exception):
    """What stands for a kill: nothing is written after it."""


@pytest.mark.long
def test_broken_off_after_any_epoch_it_ends_in_the_same_bytes(tmp_path, monkeypatch):
    """The learned strength, what momentum has summed, and the masks are all there again."""
    words = {"optimizer": "sgd", "penalty": {"kind": "sparse_group_lasso", "sparsity": 0.5}, "epochs": 3, "tune": 0.34}
    saved = training._save
    for name, kills in (("whole", [0]), ("killed", [1, 2, 0])):
        (tmp_path / name).mkdir()
        for left in kills:
            count = [left]

            def save(*arguments, count=count):
                saved(*arguments)
                count[0] -= 1
                if count[0] == 0:
                    raise Killed

            monkeypatch.setattr(training, "_save", save)
            with suppress(Killed):
                regularize.run(given(tmp_path / name, mlp()), options(**words))
    one, other = (intake.load_own(tmp_path / name / "tuned" / "done" / "model.keras") for name in ("whole", "killed"))
    assert_identical(weights(one), weights(other))
    for name in ("penalised", "tuned"):
        assert_identical(*(_checkpoint(tmp_path / folder / name) for folder in ("whole", "killed")))


def _checkpoint(folder):
    with np.load(folder / "checkpoint.npz") as saved:
        return {name: saved[name] for name in saved.files if name != "history"}


def test_a_penalty_acts_in_any_stage_that_trains(tmp_path):
    """Inside TFMOT's wrappers too: prune under elastic net."""
    from edgeprune.pipelines import prune

    words = {"epochs": 2, "batch_size": 16, "penalty": {"kind": "elastic_net", "strength": 0.01}}
    spec = recipe.load({"name": "x", "stages": {"prune": words}}).stages[0]
    after = prune.run(given(tmp_path, small(dropout=0.0), "prune"), spec.options)
    assert [epoch["strength"] for epoch in after.facts["history"]["prune"]["epochs"]] == [0.01, 0.01]


def test_a_penalty_of_groups_says_why_it_cannot_act_in_wrappers(tmp_path):
    from edgeprune.pipelines import prune

    words = {"epochs": 1, "batch_size": 16, "penalty": {"kind": "group_lasso"}}
    spec = recipe.load({"name": "x", "stages": {"prune": words}}).stages[0]
    with pytest.raises(RecipeError, match="through wrapped layers"):
        prune.run(given(tmp_path, cnn(), "prune"), spec.options)


def test_a_model_without_layers_to_prune_is_an_error(tmp_path):
    with pytest.raises(RecipeError, match=r"found no layer|leaves none"):
        run(tmp_path, dense(4, inputs=256), penalty={"include": "nothing"}, final=0.5)
