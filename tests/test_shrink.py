"""The shrink stage: what a recipe may ask for, what is left, what is told, and that a killed one ends the same."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import numpy as np
import pytest
from keras_models import SHAPE, assert_identical, dense, keras, layers, run, samples, shaken, small, weights
from pydantic import ValidationError

import edgeprune
from edgeprune import forecast, pipeline, progress, recipe, registry, target
from edgeprune.errors import CutError, RecipeError, TargetError
from edgeprune.keras import graph, inspect, intake
from edgeprune.keras.latency import Stopwatch
from edgeprune.pipelines import shrink


def given(folder, model, board="host", shown=None):
    """A state in which a model waits for the stage; on ``host`` every count of channels pays."""
    intake.save(model, folder / "given.keras")
    board = target.load(registry.file("targets", board))
    prepared = dataclasses.replace(run(folder, shown=shown), target=board)
    return pipeline.State(prepared, files={"model": "given.keras"}, label="shrink", workspace=folder)


def shrunk(folder, model, board="host", **options):
    """The state after the stage, and the model that it leaves."""
    words = {"criterion": "magnitude", "batch_size": 16, "epochs": 0, **options}
    after = shrink.run(given(folder, model, board), shrink.Options.model_validate(words))
    return after, intake.load_own(after.path("model"))


def units(after):
    return {group["name"]: group["units_after"] for group in after.facts["shrink"]["shrink"]["groups"]}


def residual(blocks=2, width=8):
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE, name="image")
    x = layers.Conv2D(width, 3, 2, padding="same", activation="relu", name="stem")(image)
    for number in range(1, blocks + 1):
        y = layers.Conv2D(width, 3, padding="same", activation="relu", name=f"block{number}_a")(x)
        y = layers.Conv2D(width, 3, padding="same", name=f"block{number}_b")(y)
        x = layers.ReLU(name=f"block{number}_relu")(layers.Add(name=f"block{number}_add")([x, y]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(4, activation="softmax", name="classes")(x), name="residual")


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "taylr"}, "there is no such criterion. Did you mean 'taylor'?"),
        ({"ratio": 1.0}, "give the share that goes, from 0 to below 1"),
        ({"ratio": -0.1}, "greater than or equal to 0"),
        ({"ratios": {"conv": 1.0}}, "that would leave nothing of a layer"),
        ({"macs": 0.0}, "greater than 0"),
        (
            {"ratio": 0.5, "macs": 0.5},
            "give one of ratio, macs, params, latency, latency_ms and zeros, not ratio and macs",
        ),
        ({"latency": 0.5, "latency_ms": 4}, "not latency and latency_ms"),
        ({"latency": 1.5}, "less than or equal to 1"),
        ({"latency_ms": 0}, "greater than 0"),
        ({"multiples": 0}, "greater than or equal to 1"),
        ({"include": "("}, "not a regular expression"),
        ({"ratios": {"[": 0.5}}, "not a regular expression"),
        ({"scope": ["("]}, "not a regular expression"),
        ({"rounds": 3, "epochs": 2}, "2 epochs cannot be shared by 3 rounds"),
        ({"distill": {"weight": 1.5}}, "less than or equal to 1"),
        ({"distill": {"temperature": 0}}, "greater than 0"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValidationError) as caught:
        shrink.Options.model_validate(options)
    assert message in str(caught.value)


def test_a_wrong_option_names_its_place_in_the_recipe():
    with pytest.raises(RecipeError, match=r"stages\.shrink\.criterion: got 'magnitud'.*Did you mean 'magnitude'"):
        recipe.load({"stages": {"shrink": {"criterion": "magnitud"}}})


@pytest.mark.parametrize("before", ["prune", "quantize"])
def test_it_comes_before_what_it_would_undo(before):
    with pytest.raises(
        RecipeError, match=rf"stages\.shrink .*comes after stages\.{before} .*move shrink before {before}"
    ):
        recipe.load({"stages": {"train": {}, before: {}, "shrink": {}}})
    recipe.load({"stages": {"train": {}, "shrink": {}, before: {}}})


@pytest.mark.parametrize(("role", "deed"), [("masks", "prunes"), ("quantized", "quantizes")])
def test_the_work_of_an_earlier_stage_by_any_name_is_not_undone(tmp_path, role, deed):
    state = given(tmp_path, small())
    state = dataclasses.replace(state, files={**state.files, role: "given.keras"})
    with pytest.raises(RecipeError, match=f"a stage before it {deed} their weights. Put shrink before that stage"):
        shrink.run(state, shrink.Options())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"include": "none"}, RecipeError, "include: 'none' matches no group of channels"),
        ({"ratios": {"conw": 0.5}}, RecipeError, "'conw' matches no layer.*Did you mean 'conv'"),
        ({"multiples": 16}, CutError, "'conv' has 8 channels, fewer than the 16 .* at most 8"),
        ({"multiples": {"conv": 16}}, CutError, "'conv' has 8 channels, fewer than the 16"),
        ({"macs": 0.01}, CutError, r"stages\.shrink\.macs: 0\.01 is asked for, but at least 0\.\d+ .* remain"),
        ({"blocks": 1}, CutError, "blocks asks for 1, but only 0 can be removed whole"),
        ({"criterion": "slimming", "exclude": "conv"}, None, "named by exclude"),
    ],
)
def test_what_the_model_cannot_give(tmp_path, options, error, message):
    """And what follows from its shapes alone is said before anything is trained."""
    if "blocks" not in options:
        early = contextlib.nullcontext() if error is None else pytest.raises(error, match=message)
        with early:
            shrink.foresee(given(tmp_path, small()), shrink.Options.model_validate(options))
    if error is None:
        after, made = shrunk(tmp_path, small(), **options)
        assert any(message in note for note in after.facts["notes"])
        assert graph.largest_difference(small(), made) == 0
        return
    with pytest.raises(error, match=message):
        shrunk(tmp_path, small(), **options)


def test_a_ratio_that_the_floors_do_not_allow(tmp_path):
    with pytest.raises(CutError, match=r"at least 12 must stay.*lower the ratio to at most 0\.25, or the floors"):
        shrunk(tmp_path, dense_images(), ratio=0.5, scope="network", floors=0.75)


def test_a_criterion_whose_signal_the_model_cannot_give(tmp_path):
    with pytest.raises(CutError, match=r"slimming|scale"):
        shrunk(tmp_path, dense_images(), criterion="slimming")


def dense_images():
    """Two hidden layers of 8 behind the pixels."""
    x = image = keras.Input(SHAPE, name="image")
    model = dense(8, 8, 4, inputs=int(np.prod(SHAPE)))
    return graph.rebuild(keras.Model(image, model(layers.Flatten(name="flat")(x))))


# What is left


def test_the_lowest_channels_go_and_the_names_stay(tmp_path):
    model = shaken(small())
    kernel = model.get_layer("conv").kernel.numpy()
    kept = np.sort(np.argsort(-np.abs(kernel).sum(axis=(0, 1, 2)))[:6])
    after, made = shrunk(tmp_path, model, ratio=0.25)
    assert [layer.name for layer in made.layers] == [layer.name for layer in model.layers]
    np.testing.assert_array_equal(made.get_layer("conv").kernel.numpy(), kernel[..., kept])
    facts, found = after.facts["shrink"]["shrink"], inspect.describe(made)
    assert (facts["macs_after"], facts["params_after"]) == (found["macs"], found["params"])
    assert facts["params_before"] == model.count_params()
    (group, _) = facts["groups"]
    assert (group["layers"], group["units_before"], group["units_after"]) == (["conv"], 8, 6)
    assert 0.75 < group["score_kept"] < 1
    assert after.facts["notes"][0].startswith("Left whole: classes: its channels ")
    assert after.facts["summaries"]["shrink"].endswith(", 1 of 2 groups cut")


def test_multiples_of_the_recipe_and_of_the_target(tmp_path):
    model = residual(width=24)
    for name, board, options, expected in (
        ("a", "rpi4", {"ratio": 0.5}, 16),
        ("b", "rpi4", {"ratio": 0.5, "multiples": 1}, 12),
        ("c", "host", {"ratio": 0.5, "multiples": 5}, 15),
        ("d", "rpi4", {"ratio": 0.5, "multiples": {"block.*": 1}}, None),
        ("e", "coral-usb", {"ratio": 0.3}, 24),
    ):
        (tmp_path / name).mkdir()
        found = units(shrunk(tmp_path / name, model, board, **options)[0])
        assert found.pop("classes") == 4
        assert found == dict.fromkeys(found, expected) if expected else (found["stem"], found["block1_a"]) == (16, 12)


def test_a_model_too_small_for_the_targets_steps_stays_whole_and_says_how_to_cut_it(tmp_path):
    after, made = shrunk(tmp_path, small(), "coral-usb", ratio=0.5)
    assert made.get_layer("conv").filters == 8
    assert "steps of 16" in after.facts["notes"][-1] and "--set stages.shrink.multiples=1" in after.facts["notes"][-1]


@pytest.mark.parametrize("aim", ["macs", "params"])
def test_an_aim_in_several_rounds(tmp_path, aim):
    after, made = shrunk(tmp_path, residual(), scope="network", rounds=3, **{aim: 0.5})
    before, found = inspect.describe(residual())[aim], inspect.describe(made)[aim]
    assert 0.4 * before < found <= 0.5 * before
    assert after.facts["shrink"]["shrink"][f"{aim}_after"] == found


@pytest.mark.parametrize(("aim", "most"), [("latency", 0.9), ("latency_ms", 0.85)])
def test_a_latency_that_is_predicted_for_the_target(tmp_path, aim, most):
    model = residual(blocks=1, width=128)
    place = forecast.board(target.load(registry.file("targets", "rpi4")))
    before = Stopwatch(model, forecast.milliseconds(place))({})
    limit = most * before if aim == "latency" else most
    after, made = shrunk(tmp_path, model, "rpi4", scope="network", rounds=2, **{aim: most})
    facts, found = after.facts["shrink"]["shrink"], Stopwatch(made, forecast.milliseconds(place))({})
    assert 0.9 * limit < found <= limit < before
    assert (facts["latency_ms_before"], facts["latency_ms_after"]) == pytest.approx((before, found))
    assert all(count % 8 == 0 for name, count in units(after).items() if name != "classes")
    assert "predicted 1" in after.facts["summaries"]["shrink"]


def test_a_latency_that_no_cut_reaches_says_what_remains_and_why(tmp_path):
    words = r"stages\.shrink\.latency_ms: 0\.5 is asked for, but at least 0\.\d+ ms \(0\.\d+ ms are once per inference, .* remain"
    with pytest.raises(CutError, match=words):
        shrunk(tmp_path, residual(), "rpi4", latency_ms=0.5, multiples=1)


@pytest.mark.parametrize("board", ["rpi5", "coral-usb", "host"])
def test_a_latency_that_nothing_predicts_is_refused_before_anything_is_done(tmp_path, board):
    plan = {"stages": {"train": {}, "smaller": {"stage": "shrink", "latency": 0.5}}}
    words = rf"stages\.smaller\.latency: .*'{board}' cannot be predicted: .* Give `macs` instead .* predicted: rpi4\."
    with pytest.raises(TargetError, match=words):
        edgeprune.build(small(), samples(), target=board, recipe=plan, out=tmp_path / "run", progress=progress.Silent())
    assert not (tmp_path / "run").exists()


def test_rounds_of_a_ratio_end_where_one_round_does(tmp_path):
    (tmp_path / "one").mkdir()
    one, _ = shrunk(tmp_path / "one", residual(), ratio=0.5)
    two, _ = shrunk(tmp_path, residual(), ratio=0.5, rounds=3)
    assert units(one) == units(two) == {"stem": 4, "block1_a": 4, "block2_a": 4, "classes": 4}


def test_groups_built_alike_are_ranked_together(tmp_path):
    model = shaken(residual())
    kernel = model.get_layer("block1_a").kernel
    kernel.assign(kernel * 0.01)
    after, _ = shrunk(tmp_path, model, ratio=0.5, scope="isomorphic", normalise=None)
    assert units(after) == {"stem": 4, "block1_a": 1, "block2_a": 7, "classes": 4}


def test_whole_blocks_go_first(tmp_path):
    model = shaken(residual())
    for name in ("block1_a", "block1_b"):
        model.get_layer(name).kernel.assign(model.get_layer(name).kernel * 0.01)
    after, made = shrunk(tmp_path, model, ratio=0.0, blocks=1)
    (removed,) = after.facts["shrink"]["shrink"]["blocks"]
    assert (removed["name"], removed["layers"]) == ("block1_b", ["block1_a", "block1_b"])
    assert "block1_a" not in {layer.name for layer in made.layers}
    assert after.facts["summaries"]["shrink"].endswith(", 1 block removed")


def test_fine_tuning_shares_the_epochs_and_numbers_them_through(tmp_path):
    after, _ = shrunk(tmp_path, small(), ratio=0.5, rounds=2, epochs=3, distill={})
    assert [epoch["epoch"] for epoch in after.facts["history"]["shrink"]["epochs"]] == [1, 2, 3]


def test_a_model_without_layers_is_left_alone(tmp_path, monkeypatch):
    from edgeprune.keras import program

    monkeypatch.setattr(program, "why_not", lambda model: "It is one piece")
    state = given(tmp_path, small())
    after = shrink.run(state, shrink.Options())
    assert after.files == state.files and after.facts["notes"] == ["Nothing is removed. It is one piece."]


# Resume


class Interrupting(progress.Silent):
    """Stops the stage the first time that it is told of this many epochs."""

    def __init__(self, at):
        self.at = at

    def step(self, done, total, unit, **values):
        assert total == 4
        if done >= self.at:
            raise KeyboardInterrupt


OPTIONS = {
    **{"criterion": "taylor", "ratio": 0.5, "rounds": 2, "epochs": 4, "batch_size": 16},
    **{"learning_rate": 0.01, "distill": {"weight": 0.5}},
}


@pytest.mark.slow
@pytest.mark.long
def test_interrupted_in_any_round_it_ends_in_the_same_model(tmp_path):
    folders = [tmp_path / name for name in ("unbroken", "broken")]
    options = shrink.Options.model_validate(OPTIONS)
    for folder in folders:
        folder.mkdir()
    unbroken = shrink.run(given(folders[0], small()), options)
    for at in (1.5, 3.5):
        with pytest.raises(KeyboardInterrupt):
            shrink.run(given(folders[1], small(), shown=Interrupting(at)), options)
    assert (folders[1] / "round-1" / "tuned").exists() and not (folders[1] / "round-2" / "tuned").exists()
    resumed = shrink.run(given(folders[1], small()), options)
    assert_identical(*(weights(intake.load_own(after.path("model"))) for after in (unbroken, resumed)))
    assert unbroken.facts["shrink"] == resumed.facts["shrink"]


# A whole build


def demo():
    """A small residual network on 8x8 images, as the demo's is."""
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE, name="image")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem")(image)
    x = layers.ReLU(name="stem_relu")(layers.BatchNormalization(name="stem_bn")(x))
    y = layers.Conv2D(32, 3, padding="same", use_bias=False, name="a")(x)
    y = layers.ReLU(name="a_relu")(layers.BatchNormalization(name="a_bn")(y))
    y = layers.BatchNormalization(name="b_bn")(layers.Conv2D(16, 3, padding="same", use_bias=False, name="b")(y))
    x = layers.ReLU(name="add_relu")(layers.Add(name="add")([x, y]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(4, activation="softmax", name="classes")(x), name="demo")


@pytest.mark.slow
def test_a_build_that_shrinks_is_smaller_than_dense_int8_in_every_respect(tmp_path):
    fit = {"epochs": 2, "learning_rate": 0.01}
    stages = {
        "train": {**fit, "when": "always"},
        "shrink": {"macs": 0.5, "scope": "network", "distill": {}, **fit},
        "prune": {"final": 0.5, **fit},
        "quantize": {"epochs": 1},
        "convert": {},
        "verify": {"samples": 16},
        "report": {},
    }
    words = {"name": "tiny", "data": {"calibration": 32}, "stages": stages}
    x, y = samples()
    result = edgeprune.build(
        demo(), (np.array(x), y), recipe=words, target="rpi4", out=tmp_path / "run", progress=progress.Silent()
    )
    dense_int8, final = (result.report["candidates"][role] for role in ("dense_int8", "final"))
    for figure in ("size_bytes", "size_gzip_bytes", "macs", "params"):
        assert final[figure] < dense_int8[figure], figure
    assert final["macs"] <= 0.5 * dense_int8["macs"]
    assert result.report["verify"]["zeros_match"] and result.report["verify"]["int8_share"] == 1
    record = json.loads((result.folder / "report.json").read_text())["shrink"]["shrink"]
    assert {group["units_after"] % 8 for group in record["groups"] if not group["reason"]} == {0}
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    assert "Channels removed for good" in page and "fewer MACs" in page


@pytest.mark.parametrize("name", ["shrink50", "rpi4", "coral"])
def test_recipes_shrink_before_they_quantize(name):
    stages = [spec.stage for spec in recipe.load(name).stages]
    assert stages.index("train") < stages.index("shrink") < stages.index("quantize")
