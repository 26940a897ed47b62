"""Sensitivity: what a cut alone costs and saves, that a killed run ends the same, and what becomes of it in a recipe."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from keras_models import CLASSES, SHAPE, USELESS, cnn, keras, layers, planted, planted_files, samples, shaken
from test_report_browser import CHROMIUM, chromium, in_frame, requests_of

from edgeprune import (
    cli,
    data,
    metrics,
    progress,
    recipe,
    scoring,
    sensitivity,
    sensitivity_ratios,
    sensitivity_run,
    shrink_options,
    tables,
)
from edgeprune import sensitivity_view as view
from edgeprune.channel_rules import Graph, Node, Use
from edgeprune.channels import couple
from edgeprune.cli_options import console
from edgeprune.errors import CutError, DataError, ModelError, NameUnknown, RecipeError, RunFolderError
from edgeprune.keras import graph, intake, signals, surgery, training, trials
from edgeprune.sensitivity import Question, Removal, Store


def residual(width=8):
    """A stem and a block that can go whole."""
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE, name="image")
    x = layers.Conv2D(width, 3, padding="same", activation="relu", name="stem")(image)
    y = layers.Conv2D(width, 3, padding="same", activation="relu", name="block_a")(x)
    y = layers.Conv2D(width, 3, padding="same", name="block_b")(y)
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Add(name="add")([x, y]))
    return keras.Model(image, layers.Dense(CLASSES, activation="softmax", name="classes")(x), name="residual")


def subject(model, count=400, clocks=None, heard=None, **options):
    given = data.load(samples(count), data.DataOptions(calibration=32, **options))
    return trials.Trials(model, given, metrics.choose("classification"), samples=1000, clocks=clocks, heard=heard)


def analysed(subject, folder, question=None, shown=None):
    return sensitivity.analyse(
        subject, question or Question("magnitude"), Store(folder, subject.key), shown or progress.Silent()
    )


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A planted model and its data as files, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return planted_files(tmp_path)


def measured(out, **words):
    words = {"target": "host", "criterion": "magnitude", "progress": progress.Silent(), **words}
    return sensitivity_run.run("planted.keras", "data.npz", out=out, **words)


# What a point says


def test_channels_that_nothing_depends_on_cost_nothing(tmp_path):
    found = analysed(subject(planted()), tmp_path, Question("magnitude", max_drop=0.01))
    (group,) = [group for group in found["groups"] if group["points"]]
    drops = {point["ratio"]: point["drop"] for point in group["points"]}
    assert found["metric"]["value"] > 0.9
    assert drops[0.25] == drops[0.5] == 0
    assert drops[0.75] > 0.1
    assert drops[0.75] < drops[0.9]  # 7 of 8 go, then one class is told
    assert found["chosen"] == {"conv": 0.5}
    assert found["together"]["drop"] == 0


def test_a_cut_is_ranked_as_the_shrink_stage_of_the_recipe_ranks():
    model, words = residual(), recipe.load("rpi4", {"stages.shrink.consumers": True, "stages.shrink.normalise": None})
    heard = shrink_options.heard(words)
    assert heard["consumers"]
    assert shrink_options.heard(recipe.load("ptq")) == {}
    plain, other = subject(model), subject(model, heard=heard)
    held = signals.collect(other.model, {"weights"})
    expected = scoring.units(other.coupling, "magnitude", held, normalise=None, consumers=True)
    found, _ = other.scores("magnitude")
    np.testing.assert_allclose(found["block_a"], expected["block_a"])
    assert not np.allclose(found["block_a"], plain.scores("magnitude")[0]["block_a"])
    assert other.key != plain.key


def test_what_a_cut_saves_is_what_the_smaller_model_lacks(tmp_path):
    found = analysed(subject(planted()), tmp_path)
    half = next(point for point in found["groups"][0]["points"] if point["ratio"] == 0.5)
    places = SHAPE[0] * SHAPE[1]
    assert half["macs_saved"] == places * SHAPE[-1] * USELESS + USELESS * CLASSES
    assert half["params_saved"] == SHAPE[-1] * USELESS + USELESS + USELESS * CLASSES
    assert found["costs"]["macs"] == 2 * half["macs_saved"]


def settled(tried, small):
    """The metric of a smaller model with the statistics that it has."""
    tried.runner.of(small).settle(once=True)
    return tried.metric(tried.split.y, training.outputs(small, tried.split))


@pytest.mark.parametrize("make", [cnn, residual])
def test_a_masked_point_is_that_of_the_smaller_model(make):
    model = shaken(make())
    tried = subject(model)
    before = [weight.copy() for weight in tried.model.get_weights()]
    for group in tried.coupling.groups:
        if not group.cuttable:
            continue
        cut = {group.name: tuple(range(0, group.units, 2))}
        small = surgery.shrink(model, cut)
        assert tried.value(Removal(cut)) == settled(tried, small)
        assert tried.costs(Removal(cut))["params"] == small.count_params()
    for weight, kept in zip(tried.model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, kept)


def test_a_whole_branch_is_a_point_too(tmp_path):
    model = shaken(residual())
    tried = subject(model)
    (found,) = analysed(tried, tmp_path)["blocks"]
    small = surgery.without(graph.flatten(model), tried.blocks)
    assert found["layers"] == ["block_a", "block_b"]
    assert found["metric"] == settled(tried, small)
    assert found["params_saved"] == model.count_params() - small.count_params()


def test_a_clock_is_told_beside_the_other_costs(tmp_path):
    """A model of a target's latency: from a Keras model to milliseconds of a cut of it, of what is left of a block too."""
    clocks = lambda model: {"latency_ms": lambda cut: float(len(model.layers) - len(cut))}  # noqa: E731
    tried = subject(shaken(residual()), clocks=clocks)
    found = analysed(tried, tmp_path)
    before = found["costs"]["latency_ms"]
    assert {point["latency_ms_saved"] for point in found["groups"][0]["points"]} == {1.0}
    left = surgery.without(tried.model, tried.blocks)
    assert found["blocks"][0]["latency_ms_saved"] == before - len(left.layers)


def test_a_group_whose_zeros_are_not_its_removal_is_removed():
    image = keras.Input(SHAPE, name="image")
    x = layers.LayerNormalization(name="norm")(layers.Conv2D(8, 1, name="conv")(image))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.ReLU(name="relu")(x))
    model = shaken(keras.Model(image, layers.Dense(CLASSES, activation="softmax", name="classes")(x)))
    tried = subject(model)
    cut = {"conv": (0, 3, 5)}
    assert tried.coupling.group("conv").inexact
    assert tried.value(Removal(cut)) == settled(tried, surgery.shrink(model, cut))


def test_the_test_split_is_never_judged_by():
    given = subject(planted())
    assert given.about() == {"split": "validation", "samples": len(given.split)}
    assert not np.isin(given.split.index, given.data.test.index).any()
    without = subject(planted(), validation=0.0)
    assert without.about()["split"] == "calibration"
    assert not np.isin(without.split.index, without.data.test.index).any()


# A subject of numbers: no TensorFlow


class Numbers:
    """A chain of three kernels whose metric is how much of the scores stays; counts how often it is asked."""

    def __init__(self, units=(16, 8), fail_at=None):
        sizes = (3, *units, 2)
        names = [f"conv{number}" for number in range(1, len(sizes))]
        uses = (Use("kernel", 2, "in", "consumer"), Use("kernel", 3, "out", "producer"))
        nodes = [
            Node(name, "Conv2D", "mix", (f"t{place}",), (f"t{place + 1}",), uses) for place, name in enumerate(names)
        ]
        tensors = {f"t{place}": (4, 4, size) for place, size in enumerate(sizes)}
        self.coupling = couple(Graph(tensors, tuple(nodes), ("t0",), (f"t{len(names)}",)))
        self.blocks = ()
        self.metric = metrics.METRICS["accuracy"]
        self.key = {"numbers": list(units)}
        self.asked, self.fail_at = 0, fail_at

    def scores(self, criterion):
        return {group.name: np.arange(1.0, group.units + 1) for group in self.coupling.groups if group.cuttable}, {}

    def value(self, removal):
        self.asked += 1
        if self.asked == self.fail_at:
            raise KeyboardInterrupt
        lost = [1 - len(units) / self.coupling.group(name).units for name, units in removal.cut.items()]
        return 1.0 - sum(lost) / 10

    def costs(self, removal):
        kept = {name: len(units) for name, units in removal.cut.items()}
        total = sum(kept.get(group.name, group.units) for group in self.coupling.groups)
        return {"macs": 100 * total, "params": total, "latency_ms": total / 10}


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    unbroken = analysed(Numbers(), tmp_path / "one", Question(max_drop=0.05))
    first = Numbers(fail_at=5)
    with pytest.raises(KeyboardInterrupt):
        analysed(first, tmp_path / "two", Question(max_drop=0.05))
    second = Numbers()
    assert json.dumps(analysed(second, tmp_path / "two", Question(max_drop=0.05))) == json.dumps(unbroken)
    points = 1 + sum(len(group["points"]) for group in unbroken["groups"]) + 1  # uncut, and all chosen at once
    assert second.asked == points - 4
    third = Numbers()
    analysed(third, tmp_path / "two", Question(max_drop=0.05))
    assert third.asked == 0


def test_other_ratios_share_the_points_that_are_equal(tmp_path):
    analysed(Numbers(), tmp_path, Question(ratios=(0.25, 0.5)))
    again = Numbers()
    analysed(again, tmp_path, Question(ratios=(0.25, 0.5, 0.75)))
    assert again.asked == 2


def test_another_model_shares_nothing(tmp_path):
    analysed(Numbers(), tmp_path)
    other = Numbers((16, 4))
    analysed(other, tmp_path)
    assert other.asked > 0
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_cache_says_what_to_do(tmp_path):
    analysed(Numbers(), tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text("{")
    with pytest.raises(RunFolderError, match=r"is damaged: .*Delete it"):
        analysed(Numbers(), tmp_path)


def test_cuts_are_rounded_as_the_target_wants_them(tmp_path):
    found = analysed(Numbers(), tmp_path, Question(multiple=8))
    wide, narrow, _ = found["groups"]
    assert [(point["ratio"], point["kept"]) for point in wide["points"]] == [(0.5, 8)]
    assert narrow["points"] == []
    assert narrow["reason"] == "it has 8 channels, and they pay in steps of 8"


def test_every_cost_of_the_subject_is_told(tmp_path):
    """A model of latency needs no change elsewhere."""
    point = analysed(Numbers(), tmp_path)["groups"][0]["points"][0]
    assert {"macs_saved", "params_saved", "latency_ms_saved"} <= set(point)
    assert point["latency_ms_saved"] == pytest.approx(0.1)


def test_the_gentle_side_of_a_curve_that_comes_back():
    points = [{"ratio": 0.1, "drop": -0.01}, {"ratio": 0.5, "drop": 0.2}, {"ratio": 0.9, "drop": 0.0}]
    assert sensitivity_ratios.gentle(points, 0.05) == 0.1
    assert sensitivity_ratios.gentle(points[1:], 0.05) == 0.0


# Bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ratios": (0.5, 1.0)}, RecipeError, r"ratios: got 1; .*from 0 to below 1"),
        ({"ratios": (-0.1,)}, RecipeError, r"ratios: got -0\.1"),
        ({"ratios": ()}, RecipeError, "ratios: got none"),
        ({"max_drop": -1.0}, RecipeError, "max_drop: got -1"),
        ({"max_drop": float("nan")}, RecipeError, "max_drop: got nan"),
        ({"include": "("}, RecipeError, r"include: '\(' is not a regular expression"),
        ({"exclude": "["}, RecipeError, r"exclude: '\[' is not a regular expression"),
        ({"criterion": "taylr"}, NameUnknown, "Did you mean 'taylor'"),
    ],
)
def test_a_question_that_cannot_be(options, error, message):
    with pytest.raises(error, match=message):
        Question(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"include": "cnv1"}, RecipeError, r"include: 'cnv1' matches no group .*Did you mean 'conv1'"),
        ({"exclude": "conv9"}, RecipeError, "exclude: 'conv9' matches no group"),
        ({"exclude": ".*"}, CutError, r"No group .* can be cut: 'conv1': named by exclude"),
        ({"multiple": 16}, CutError, r"'conv1': it has 16 channels.*multiple 1"),
        ({"ratios": (0.01,)}, CutError, r"No group loses a unit at the ratios 0\.01: give larger ones"),
    ],
)
def test_nothing_to_cut(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        analysed(Numbers(), tmp_path, Question(**options))


def test_ratios_as_words():
    assert sensitivity.parsed_ratios("0.5, 0.1,0.5") == (0.1, 0.5)
    with pytest.raises(RecipeError, match="ratios: got 'a,b'"):
        sensitivity.parsed_ratios("a,b")


def test_a_criterion_whose_signal_the_model_cannot_give(tmp_path):
    with pytest.raises(CutError, match=r"slimming|scale"):
        analysed(subject(planted()), tmp_path, Question("slimming"))


def test_data_without_labels(files):
    np.savez(files / "data.npz", x=samples(400)[0])
    with pytest.raises(DataError, match="y"):
        measured("out")
    with pytest.raises(DataError, match=r"samples with labels.*--data"):
        sensitivity_run.run("planted.keras", progress=progress.Silent())


def test_a_model_that_was_never_trained():
    with pytest.raises(ModelError, match=r"without trained weights.*edgeprune build digits-resnet.*run folder"):
        sensitivity_run.run("digits-resnet", progress=progress.Silent())


def test_a_run_without_a_trained_model(tmp_path):
    (tmp_path / "run" / "stages").mkdir(parents=True)
    with pytest.raises(RunFolderError, match=r"no trained model yet.*--resume"):
        sensitivity_run.run(str(tmp_path / "run"), progress=progress.Silent())


# Everything together


class Killer(progress.Silent):
    """Interrupts after some points."""

    def __init__(self, after):
        self.after = after

    def step(self, done, total, unit, **values):
        if unit == "points" and done > self.after:
            raise KeyboardInterrupt


def test_what_is_written_after_a_kill_is_what_an_unbroken_run_writes(files):
    measured("one", max_drop=0.01)
    with pytest.raises(KeyboardInterrupt):
        measured("two", max_drop=0.01, progress=Killer(2))
    assert not (files / "two" / "sensitivity.json").exists()
    measured("two", max_drop=0.01)
    for name in ("sensitivity.json", "sensitivity.html", "ratios.yaml"):
        assert (files / "one" / name).read_bytes() == (files / "two" / name).read_bytes()


def test_a_run_folder_brings_its_own_model_data_and_recipe(files):
    run = files / "run"
    (run / "stages" / "1-train").mkdir(parents=True)
    intake.save(planted(), run / "stages" / "1-train" / "model.keras")
    state = {"files": {"float": "stages/1-train/model.keras"}}
    (run / "stages" / "1-train" / "state.json").write_text(json.dumps(state))
    (run / "run.json").write_text(json.dumps({"model": "planted.keras", "data": "data.npz"}))
    (run / "recipe.yaml").write_text("stages: {train: {}}\ndata: {validation: 0.25}\n")
    folder, result = sensitivity_run.run(str(run), target="host", progress=progress.Silent())
    assert folder.as_posix() == "runs/run-sensitivity"
    assert (result["origin"], result["data"]) == ("planted.keras", "data.npz")
    assert result["samples"] == 80  # a quarter of the 320 that are not the test's


def test_the_latency_that_a_cut_saves_is_told_where_one_is_predicted(files):
    _, without = measured(files / "host", ratios=[0.5])
    _, result = measured(files / "pi", target="rpi4", ratios=[0.5], multiple=1)
    assert set(without["costs"]) == {"macs", "params"}
    (point,) = [point for group in result["groups"] for point in group["points"]]
    assert 0 < point["latency_ms_saved"] < result["costs"]["latency_ms"]


def test_the_command(files, capsys):
    words = ["sensitivity", "planted.keras", "--data", "data.npz", "--target", "host", "--criterion", "magnitude"]
    assert cli.run([*words, "--json", "--max-drop", "0.01"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((files / "runs" / "planted-sensitivity" / "sensitivity.json").read_text(encoding="utf-8"))
    assert cli.run([*words, "--max-drop", "0.01"]) == 0
    out = capsys.readouterr().out
    assert "conv: 0.5" in out
    assert "--set stages.shrink.ratios=runs/planted-sensitivity/ratios.yaml" in out
    assert cli.run([*words, "--ratios", "1.5"]) == 1
    assert "from 0 to below 1" in capsys.readouterr().err


# In a recipe


@pytest.mark.parametrize("name", ["ratios.yaml", "sensitivity.json"])
def test_the_ratios_are_what_a_recipe_takes(files, name):
    folder, _ = measured("out", max_drop=0.01)
    loaded = recipe.load({"stages": {"shrink": {"ratios": str(folder / name)}}})
    resolved = loaded.resolved()
    assert resolved["stages"]["shrink"]["ratios"] == {"conv": 0.5, ".*": 0.0}
    assert recipe.load(resolved).resolved() == resolved
    fragment = recipe.load(folder / "ratios.yaml")
    assert fragment.stages[0].options.criterion == "magnitude"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"stages\.shrink\.ratios.*no file"),
        ("[1, 2]", "no mapping of names to ratios"),
        ("conv: 1.5", r"stages\.shrink\.ratios\.conv: got 1\.5"),
        ('{"schema": 1, "groups": [], "chosen": null}', "--max-drop"),
        ("conv: [", "not valid YAML"),
    ],
)
def test_files_that_hold_no_ratios(tmp_path, content, message):
    path = tmp_path / "ratios.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RecipeError, match=message):
        recipe.load({"stages": {"shrink": {"ratios": str(path)}}})


def test_a_name_that_is_no_expression_is_escaped():
    result = {
        "chosen": {"conv(1": 0.5},
        "criterion": "taylor",
        "max_drop": 0.1,
        "metric": {"name": "mae"},
        "model": "m",
    }
    assert "conv\\(1: 0.5" in sensitivity_ratios.fragment(result)


# What is told


def result_of(folder, units=(16, 8), **options):
    found = analysed(Numbers(units), folder, Question(**options))
    words = {
        "model": "runs/<b>demo</b>" + "x" * 60,
        "origin": "m.keras",
        "data": "d.npz",
        "schema": 1,
        "edgeprune": "0",
    }
    about = {"split": "validation", "samples": 144, "target_title": "Board", "target": "rpi4", "multiple": None}
    for group in found["groups"]:
        group["name"] = group["name"] * 9
    return {**words, **about, **found}


@pytest.mark.parametrize("most", [None, 0.03])
def test_the_page_is_self_contained_and_escapes_names(tmp_path, most):
    page = view.html(result_of(tmp_path, max_drop=most))
    assert "<b>demo" not in page
    assert "&lt;b&gt;demo" in page
    assert not re.search(r"https?://|@import|url\(|<script", page)
    assert page.count('<svg class="chart"') == 2
    assert ("Ratios for a recipe" in page) is (most is not None)


def test_the_table_has_a_row_for_every_group_that_can_be_cut(tmp_path):
    result = result_of(tmp_path, max_drop=0.03)
    screen = console()
    with screen.capture() as capture:
        screen.print(tables.sensitivity(result))
    text = capture.get()
    assert all(group["name"] in text for group in result["groups"][:2])
    assert "validation (never trained on, never those of the test)" in text
    assert "left whole" in text


def test_changes_in_words():
    shares = {"metric": {"name": "accuracy", "value": 0.9, "higher_is_better": True}, "groups": [], "blocks": []}
    errors = {"metric": {"name": "mae", "value": 3.0, "higher_is_better": False}, "groups": [], "blocks": []}
    assert view.change(shares, 0.0139, True) == "−1.39 points"
    assert view.change(shares, -0.5) == "+50.0"
    assert view.change(errors, 0.25, True) == "+0.2500 mae"
    assert view.change(errors, -0.25) == "−0.2500"
    assert view.change(errors, 0.0) == "±0"


@pytest.mark.browser
@pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on PATH: install it, for example with apt-get install chromium"
)
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_never_scrolls_sideways_nor_asks_the_network(tmp_path, width):
    page = view.html(result_of(tmp_path / "cache", units=(16, 8, 24), max_drop=0.03))
    (tmp_path / "frame.html").write_text(in_frame(page, width), encoding="utf-8")
    dom = chromium(tmp_path, "--window-size=1400,900", "--dump-dom", f"file://{tmp_path}/frame.html")
    shown = json.loads(re.search(r"<output>(.*?)</output>", dom).group(1).replace("&quot;", '"'))
    assert shown["client"] == width
    assert shown["wide"] == []
    assert shown["scroll"] <= width
    assert shown["font"] >= 9
    assert requests_of(page, tmp_path) == ["http://report.test/"]
