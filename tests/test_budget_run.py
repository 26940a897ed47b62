"""Builds that budgets drive: limits met as files, refused before anything is trained, and the same after a kill."""

from __future__ import annotations

import json

import numpy as np
import pytest
from keras_models import CLASSES, SHAPE, keras, layers, run, samples

import edgeprune
from edgeprune import api, budget_run, cli, recipe, report, search_space, tflite, yaml_files
from edgeprune.errors import BudgetError, RecipeError
from edgeprune.keras import budget_model, channel_graph, surgery
from edgeprune.keras.arena import Arena
from edgeprune.keras.latency import Stopwatch
from edgeprune.pipeline import Shared
from edgeprune.progress import Silent
from edgeprune.shrink_options import Options

RECIPE = {
    "name": "tiny",
    "data": {"calibration": 32, "validation": 0.25},
    "stages": {
        "train": {"epochs": 2, "batch_size": 16, "learning_rate": 0.01},
        "shrink": {"macs": 0.9, "epochs": 1, "batch_size": 16},
        "convert": {},
        "verify": {"samples": 8},
        "profile": {"samples": 8, "warmups": 0, "runs": 1},
        "report": {},
    },
}
MACS_SHARE = 0.5


def residual():
    """Two groups of eight channels that are added, one alone between them."""
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE, name="image")
    x = layers.Conv2D(12, 3, padding="same", use_bias=False, name="stem")(image)
    x = layers.ReLU(name="stem_relu")(layers.BatchNormalization(name="stem_bn")(x))
    y = layers.Conv2D(16, 3, padding="same", activation="relu", name="inner")(x)
    y = layers.Conv2D(12, 3, padding="same", name="outer")(y)
    x = layers.ReLU(name="sum_relu")(layers.Add(name="sum")([x, y]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(CLASSES, activation="softmax", name="classes")(x), name="residual")


def build(folder, shown=None, model=None, **words):
    given = {"recipe": RECIPE, "target": "host", "out": folder, "progress": shown or Silent(), **words}
    return edgeprune.build(model or residual(), samples(160), **given)


class Killed(Silent):
    """Interrupts when a stage of that label begins, which a kill at that moment would leave the same."""

    def __init__(self, label):
        self.label = label

    def stage(self, label, index, total):
        if label == self.label:
            raise KeyboardInterrupt


class Listening(Silent):
    def __init__(self):
        self.stages, self.notes = [], []

    def stage(self, label, index, total):
        self.stages.append(label)

    def note(self, message):
        self.notes.append(message)


def whole_macs():
    return budget_model.space(residual(), Options(), 1, None).costs({"stem": 12, "inner": 16})["macs"]


@pytest.fixture(scope="module")
def met(tmp_path_factory):
    """A build with limits of MACs and memory."""
    folder = tmp_path_factory.mktemp("met") / "run"
    shown = Listening()
    limits = {"max_macs": MACS_SHARE * whole_macs(), "max_arena_kib": 100, "max_drop": 1.0}
    return build(folder, shown, **limits), shown


# limits that are met


def test_the_limits_hold_within_five_percent_or_a_step(met):
    result, _ = met
    assert result.missed == ()
    for name in ("max_macs", "max_arena_kib", "max_drop"):
        assert result.report["budget"][name]["met"] is True
    macs = result.report["budget"]["max_macs"]
    assert macs["actual"] <= macs["limit"]
    assert macs["actual"] >= 0.95 * macs["limit"] or "channels go in steps" in result.report["attempts"][0]["note"]
    assert tflite.macs(tflite.read(result.tflite)) == macs["actual"]


def test_the_report_tells_the_attempts(met):
    result, shown = met
    (attempt,) = result.report["attempts"]
    assert attempt["chosen"] and attempt["met"] and attempt["number"] == 1
    assert attempt["confirmed"]["macs"] == attempt["costs"]["macs"] == result.report["budget"]["max_macs"]["actual"]
    assert result.report["budgeting"]["split"] == "validation" and result.report["budgeting"]["samples"] == 32
    assert any(note.startswith("Attempt 1 (training 1 of at most 5)") for note in shown.notes)
    assert report.load(result.folder) == result.report


def test_groups_keep_exactly_what_was_allocated(met):
    result, _ = met
    (attempt,) = result.report["attempts"]
    (stage,) = result.report["shrink"].values()
    after = {group["name"]: group["units_after"] for group in stage["groups"] if group["name"] in attempt["kept"]}
    assert after == {name: kept for name, (kept, _) in attempt["kept"].items()}


def test_nothing_is_computed_twice_and_the_test_split_is_seen_once(met):
    _, shown = met
    assert shown.stages.count("verify") == 1 and shown.stages.count("attempt 1: shrink") == 1


def test_memory_predicted_from_shapes_is_near_the_runtimes(met):
    (attempt,) = met[0].report["attempts"]
    assert attempt["predicted"]["arena_bytes"] == pytest.approx(attempt["confirmed"]["arena_bytes"], rel=0.25)


def test_the_found_recipe_is_whole_and_drives_nothing(met):
    found = recipe.load(str(met[0].folder / budget_run.FOUND))
    assert found.file.budget.attempts == 1
    assert yaml_files.read(met[0].folder / "recipe.yaml")["budget"]["attempts"] == 5
    assert met[0].report["recipe"] == found.resolved()


@pytest.mark.long
def test_a_killed_build_that_goes_on_gives_the_same_file(met, tmp_path):
    words = {"max_macs": MACS_SHARE * whole_macs(), "max_arena_kib": 100, "max_drop": 1.0}
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "run", Killed("attempt 1: convert"), **words)
    assert not (tmp_path / "run" / "report.json").exists()
    shown = Listening()
    again = edgeprune.build(data=samples(160), out=tmp_path / "run", resume=True, progress=shown)
    assert again.tflite.read_bytes() == met[0].tflite.read_bytes()
    assert again.report["attempts"] == met[0].report["attempts"]


# what is refused before anything is trained


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"max_macs": 10}, "max_macs: MACs 10 is asked for, but with every group of channels cut as far as it may be"),
        ({"max_size_kib": 0.5, "max_drop": 0.1}, r"max_size_kib: size 0\.5 KiB is asked for"),
        ({"max_arena_kib": 0.01}, r"max_arena_kib: tensor arena 0\.0 KiB is asked for"),
        ({"max_latency_ms": 0.5, "target": "rpi4"}, "are once per inference, whatever the model"),
        (
            {"max_latency_ms": 9, "target": "rpi5", "overrides": {"stages.shrink.multiples": 1}},
            "nothing here tells the latency on Raspberry Pi 5",
        ),
    ],
)
def test_impossible_limits_are_named_before_anything_is_trained(tmp_path, words, message):
    shown = Listening()
    with pytest.raises(BudgetError, match=message):
        build(tmp_path / "run", shown, **words)
    assert shown.stages == [] and not (tmp_path / "run" / "stages").exists()


@pytest.mark.parametrize("words", [{"max_drop": -0.1}, {"max_macs": 0}, {"max_arena_kib": -1}, {"attempts": 0}])
def test_limits_that_mean_nothing_are_refused(tmp_path, words):
    with pytest.raises(RecipeError, match=f"budget.{next(iter(words))}"):
        build(tmp_path / "run", **words)
    assert not (tmp_path / "run").exists()


def test_floors_count(tmp_path):
    words = {"max_macs": 0.3 * whole_macs(), "overrides": {"stages.shrink.floors": 0.8}}
    with pytest.raises(BudgetError, match="lower the floors"):
        build(tmp_path / "run", **words)


# when budgets only judge


@pytest.mark.parametrize(
    ("stages", "budget", "why"),
    [
        ({"train": None, "convert": None}, {"max_drop": 0.1}, "does not have one stage that removes channels"),
        ({"shrink": None, "two": {"stage": "shrink"}, "convert": None}, {"max_macs": 9}, "does not have one stage"),
        ({"train": None, "shrink": None}, {"max_macs": 9}, "makes no file"),
        ({"shrink": {"zeros": True}, "convert": None}, {"max_macs": 9}, "removes what is zero"),
        ({"shrink": None, "convert": None}, {"max_macs": 9, "attempts": 1}, "one attempt"),
        ({"shrink": None, "convert": None}, {}, ""),
        ({"shrink": None, "convert": None}, {"max_macs": 9}, None),
    ],
)
def test_when_budgets_drive(tmp_path, stages, budget, why):
    given = run(tmp_path)
    words = {"name": "tiny", "stages": {name: options or {} for name, options in stages.items()}, "budget": budget}
    found = budget_run.only_judged(given.__class__(**{**vars(given), "recipe": recipe.load(words)}))
    assert found == why or (why and why in found)


def test_a_league_is_judged_alone(tmp_path):
    words = {"name": "tiny", "stages": {"shrink": {}, "convert": {}}, "budget": {"max_macs": 9}}
    given = run(tmp_path)
    shared = {**vars(given), "recipe": recipe.load(words), "shared": Shared(tmp_path, 1)}
    assert "league" in budget_run.only_judged(given.__class__(**shared))


@pytest.mark.parametrize(
    ("changes", "attempts"), [({}, 5), ({"stages.shrink.macs": 0.7}, 1), ({"stages.shrink.epochs": 0}, 5)]
)
def test_a_share_given_by_hand_is_judged(changes, attempts):
    assert api._recipe(RECIPE, {**changes, "budget.max_macs": 1}).file.budget.attempts == attempts
    assert api._recipe(RECIPE, {**changes, "budget.attempts": 3}).file.budget.attempts == 3


# what may be cut


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("floors", [None, 0.5, 3, {"stem": 0.9, ".*": 2}])
def test_counts_are_those_that_the_shrink_stage_makes(multiple, floors):
    space = budget_model.space(residual(), Options(floors=floors), multiple, None)
    for knob in space.knobs:
        for count in knob.kept:
            assert count == knob.units or count % multiple == 0
        least = floors.get(knob.name, floors[".*"]) if isinstance(floors, dict) else floors
        if least is not None:
            assert knob.kept[0] >= (least if isinstance(least, int) else least * knob.units)


@pytest.mark.parametrize("kept", [1, 5, 8])
def test_costs_are_those_of_the_cut_model(kept):
    model = residual()
    space = budget_model.space(model, Options(), 1, None)
    small_model = surgery.shrink(model, {"inner": range(kept)})
    counted = budget_model.space(small_model, Options(), 1, None)
    found, expected = space.costs({**space.whole(), "inner": kept}), counted.costs(counted.whole())
    assert found == expected


def test_ratios_leave_exactly_the_counts():
    space = budget_model.space(residual(), Options(), 1, None)
    names = {group["name"] for group in channel_graph.inventory(residual())["groups"]}
    for knob in space.knobs:
        for count in knob.kept:
            shares = search_space.ratios({**space.whole(), knob.name: count}, space.knobs)
            gone = np.floor(shares.get(knob.name, 0.0) * knob.units + 1e-9)
            assert knob.name in names and knob.units - gone == count


def test_the_arena_of_a_residual_block_is_both_branches():
    model = residual()
    arena = Arena(Stopwatch(model, lambda layers: 0.0))
    size = SHAPE[0] * SHAPE[1]
    assert arena({}) == (12 + 16 + 12) * size  # what is added waits while the inner one is read
    assert arena({"inner": range(4)}) == (12 + 12 + 12) * size  # the addition itself
    assert json.dumps(arena({}))


# the command line


def test_options_reach_the_build_as_they_are_given(monkeypatch, capsys):
    seen = {}

    def build(**words):
        seen.update(words)
        raise BudgetError("max_macs: no cut does")

    monkeypatch.setattr(api, "build", build)
    options = ("--max-drop", "0.01", "--max-latency-ms", "8", "--max-size-kib", "90", "--max-macs", "5e6")
    assert cli.run(["build", *options, "--max-arena-kib", "64", "--attempts", "3", "--quiet"]) == 1
    found = {name: seen[name] for name in ("max_drop", "max_latency_ms", "max_size_kib", "max_macs", "max_arena_kib")}
    assert list(found.values()) == [0.01, 8, 90, 5e6, 64] and seen["attempts"] == 3
    assert "Error: max_macs: no cut does" in capsys.readouterr().err
