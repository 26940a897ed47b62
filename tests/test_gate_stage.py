"""The gate stage: what a recipe may ask for, what is left, what is told, and that a killed one ends the same."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from keras_models import assert_identical, loaded, run, small, weights
from pydantic import ValidationError

from edgeprune import data, pipeline, progress, recipe, registry, target
from edgeprune.errors import CutError, RecipeError, TargetError
from edgeprune.keras import gate_work, intake, pruning
from edgeprune.pipelines import gate

CHANNELS = {"granularity": "channel", "multiples": 1}


def given(folder, model, shown=None, **files):
    """A state in which a model waits for the stage."""
    folder.mkdir(exist_ok=True)
    intake.save(model, folder / "given.keras")
    return pipeline.State(
        run(folder, shown=shown, samples=loaded(validation=0.0)),
        files={"model": "given.keras", **files},
        label="gate",
        workspace=folder,
    )


def left(state, **options):
    """The state after the stage, and the model that it leaves."""
    after = gate.run(state, gate.Options.model_validate({"batch_size": 16, "epochs": 2, **options}))
    return after, intake.load_own(after.path("model"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "hard-concret"}, "there is no such gate. Did you mean 'hard-concrete'?"),
        ({"include": "("}, "not a regular expression"),
        ({"begin": 0.7}, "begin (0.7) must be smaller than end (0.6)"),
        (
            {"cost": "latency"},
            "zeros of single weights change no latency: give cost weights or macs, or granularity channel",
        ),
        ({"multiples": 4}, "multiples hold for channels"),
        ({"granularity": "channel", "scope": "layer"}, "leave scope out"),
        ({"final": 1.0}, "less than 1"),
        ({"epochs": 0}, "greater than or equal to 1"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValidationError) as caught:
        gate.Options.model_validate(options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "attention"}, r"granularity: 'attention' gates have the granularity channel, got weight"),
        ({"gate": "variational", "granularity": "channel"}, r"have the granularity weight, got channel"),
        ({"gate": "movement", "strength": 1.0}, r"stages\.gate\.strength: 'movement' follows the schedule"),
        (
            {"gate": "movement", "final": None},
            r"stages\.gate\.final: 'movement' follows the schedule, so it needs a share",
        ),
    ],
)
def test_what_a_gate_cannot_do(options, message):
    given = gate.Options.model_validate(options)
    with pytest.raises(RecipeError, match=message):
        gate_work.check(given, registry.module("gates", given.gate), "gate")


def test_a_latency_that_nobody_predicts_is_refused_before_anything_is_trained():
    options = gate.Options.model_validate({"granularity": "channel", "cost": "latency"})
    gate.check("gate", options, target.load(registry.file("targets", "rpi4")))
    with pytest.raises(TargetError, match=r"stages\.gate\.cost: .*cannot be predicted.* Give cost macs instead"):
        gate.check("gate", options, target.load(registry.file("targets", "host")))


def test_no_channel_goes_of_masked_kernels(tmp_path):
    with pytest.raises(RecipeError, match=r"stages\.shrink .*comes after stages\.gate"):
        recipe.load({"stages": {"train": {}, "gate": {}, "shrink": {}}})
    recipe.load({"stages": {"train": {}, "gate": {"granularity": "channel"}, "shrink": {}}})
    with pytest.raises(RecipeError, match=r"a stage before it prunes their weights\. Put gate before that stage"):
        left(given(tmp_path, small(), masks="given.keras"), **CHANNELS)


def test_what_is_not_there_has_no_gate(tmp_path):
    with pytest.raises(RecipeError, match=r"no layer that it can gate \(conv: not named by include"):
        left(given(tmp_path, small()), include="nothing")
    with pytest.raises(CutError, match=r"no channels that it can gate \(conv: not named by include"):
        left(given(tmp_path, small()), **CHANNELS, include="classes")


def test_more_than_can_go_is_said_before_anything_is_trained(tmp_path):
    options = gate.Options.model_validate({**CHANNELS, "cost": "macs", "final": 0.99})
    words = r"stages\.gate\.final: 0\.01 is asked for, but at least 0\.\d+ of the uncut model's remain"
    with pytest.raises(CutError, match=words):
        gate.foresee(given(tmp_path, small()), options)
    gate.foresee(given(tmp_path / "less", small()), options.model_copy(update={"final": 0.3}))
    gate.foresee(given(tmp_path / "weights", small()), gate.Options(final=0.99))


def test_the_stakes_are_the_loss_of_always_answering_the_same():
    # four classes, all alike: log 4 nats
    assert gate_work.stakes(loaded()) == pytest.approx(np.log(4), abs=1e-3)
    x, y = np.zeros((100, 3), np.float32), np.tile(np.float32([[-1], [3]]), (50, 1))
    numbers = data.load((x, y), data.DataOptions(calibration=8, validation=0.1))
    assert gate_work.stakes(numbers) == pytest.approx(4.0, rel=0.05)  # values of -1 and 3: a variance of 4


class Killed(BaseException):
    """As if the process ended there."""


class KillAt(progress.Silent):
    """Ends the build at the first step at or past a count of epochs."""

    def __init__(self, at):
        self.at = at

    def step(self, done, total, unit, **values):
        if done >= self.at:
            raise Killed


CASES = {
    "weight": {"gate": "hard-concrete", "final": 0.75, "epochs": 3, "tune": 0.34},
    "channel": {"gate": "attention", "final": 0.4, "epochs": 3, "tune": 0.34, **CHANNELS},
}


@pytest.fixture(
    scope="module", params=[pytest.param(kind, marks=pytest.mark.long if kind == "channel" else ()) for kind in CASES]
)
def unbroken(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return request.param, *left(given(folder, small()), **CASES[request.param])


def test_killed_with_and_without_gates_it_ends_in_the_same_model(unbroken, tmp_path):
    kind, after, expected = unbroken
    with pytest.raises(Killed):
        left(given(tmp_path, small(), KillAt({"weight": 2.5, "channel": 1.5}[kind])), **CASES[kind])
    again, found = left(given(tmp_path, small()), **CASES[kind])
    assert_identical(weights(found), weights(expected))
    untimed = [
        [
            {key: value for key, value in epoch.items() if key != "seconds"}
            for epoch in one.facts["history"]["gate"]["epochs"]
        ]
        for one in (after, again)
    ]
    assert untimed[0] == untimed[1] and [epoch["epoch"] for epoch in untimed[0]] == [1, 2, 3]
    json.dumps(after.facts)


def test_final_is_exact_and_told(unbroken):
    kind, after, found = unbroken
    facts = after.facts["gates"]["gate"]
    assert 0 <= facts["closed"] <= 1
    if kind == "weight":
        masks = pruning.load_masks(after.path("masks"))
        total = sum(mask.size for mask in masks.values())
        assert sum(int(mask.sum()) for mask in masks.values()) == total - int(0.75 * total)
        for name, mask in masks.items():
            assert not found.get_layer(name).kernel.numpy()[~mask].any()
        assert {name for name, entry in after.facts["pruning"]["layers"].items() if entry["prunable"]} == set(masks)
        return
    shrunk = after.facts["shrink"]["gate"]
    assert shrunk["macs_after"] <= 0.6 * shrunk["macs_before"]
    assert found.get_layer("conv").filters == shrunk["groups"][0]["units_after"] < 8
    assert found.count_params() == shrunk["params_after"]


def test_zeros_of_an_earlier_stage_stay(tmp_path):
    model = small()
    kernel = model.get_layer("classes").kernel
    kept = {name: np.ones(model.get_layer(name).kernel.shape, bool) for name in ("conv", "classes")}
    kept["classes"] = np.arange(32).reshape(8, 4) % 2 == 0
    kernel.assign(kernel * kept["classes"])
    state = given(tmp_path, model)
    pruning.save_masks(kept, tmp_path / "earlier.npz")
    state = dataclasses.replace(state, files={**state.files, "masks": "earlier.npz"})
    after, found = left(state, gate="targeted-dropout", final=0.25, epochs=1)
    masks = pruning.load_masks(after.path("masks"))
    assert not (masks["classes"] & ~kept["classes"]).any()
    assert not found.get_layer("classes").kernel.numpy()[~masks["classes"]].any()
    assert {name: int((~mask).sum()) for name, mask in masks.items()} == {"conv": 72, "classes": 16}
