"""``build``: what it refuses before it writes anything, whose folder it writes to, and how it goes on."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from keras_models import assert_identical, dense, samples, small, weights

import edgeprune
from edgeprune import api, files, pipeline, yaml_files
from edgeprune.errors import DataError, ModelError, NameUnknown, RecipeError, RunFolderError, UntrustedModel
from edgeprune.keras import intake, keras, training
from edgeprune.progress import Silent

RECIPE = {"name": "tiny", "stages": {"evaluate": {}}}
PRUNE = {"name": "prune", "stages": {"prune": {"epochs": 2, "batch_size": 16}}}


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model_file(somewhere):
    intake.save(small(), somewhere / "net.keras")
    return "net.keras"


@pytest.fixture
def data_file(somewhere):
    x, y = samples()
    np.savez(somewhere / "data.npz", x=x, y=y)
    return "data.npz"


def build(model=None, data=None, **words):
    return api.build(
        model or small(), data if data is not None else samples(), **{"recipe": RECIPE, "progress": Silent(), **words}
    )


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# what is made


def test_the_public_name_is_build():
    assert edgeprune.build is api.build and edgeprune.Result is api.Result


def test_a_run_folder_holds_what_decides_the_run(somewhere, model_file, data_file):
    result = build(
        model_file, data_file, out="run", target="rpi5", overrides={"seed": 4}, command="edgeprune build net.keras"
    )
    assert (result.folder, result.missed) == (somewhere / "run", ())
    words = json.loads((somewhere / "run" / "run.json").read_text())
    assert {key: words[key] for key in ("model", "data", "target", "trained", "command")} == {
        **{"model": "net.keras", "data": "data.npz", "target": "rpi5", "trained": True},
        "command": "edgeprune build net.keras",
    }
    kept = yaml_files.read(somewhere / "run" / "recipe.yaml")
    assert (kept["seed"], kept["stages"], kept["data"]["validation"]) == (4, {"evaluate": {}}, 0.1)
    assert sorted(path.name for path in (somewhere / "run").iterdir()) == [
        ".lock",
        "input",
        "recipe.yaml",
        "run.json",
        "stages",
    ]


def test_the_folder_is_named_by_model_target_and_recipe(somewhere, model_file):
    assert build(model_file).folder == somewhere / "runs" / "net-rpi4-tiny"
    assert build(small()).folder == somewhere / "runs" / "small-rpi4-tiny"


def test_the_users_model_and_data_are_never_changed(model_file, somewhere):
    model = small()
    before, file = weights(model), (somewhere / "net.keras").read_bytes()
    x, y = (array.copy() for array in samples())
    build(model, (x, y), recipe=PRUNE)
    build(model_file, out="from-file")
    assert_identical(weights(model), before)
    assert (somewhere / "net.keras").read_bytes() == file
    assert np.array_equal(x, samples()[0]) and np.array_equal(y, samples()[1])


def test_a_module_function_and_a_built_in_name(somewhere, monkeypatch):
    (somewhere / "own_net.py").write_text("from keras_models import small as build\n")
    monkeypatch.syspath_prepend(somewhere)
    assert build("own_net:build").folder.name == "own_net:build-rpi4-tiny"
    result = build("digits-resnet", (np.zeros((40, 8, 8)), np.arange(40) % 10))
    assert result.folder.name == "digits-resnet-rpi4-tiny"
    del sys.modules["own_net"]


def test_budgets_are_part_of_the_recipe(somewhere):
    build(out="run", max_drop=0.01, max_size_kib=90.0)
    assert yaml_files.read(somewhere / "run" / "recipe.yaml")["budget"] == {
        **{"max_drop": 0.01, "max_size_kib": 90.0, "max_latency_ms": None},
        **{"max_macs": None, "max_arena_kib": None, "attempts": 5},
    }


# what is refused, and leaves nothing behind


def broken_model(somewhere):
    (somewhere / "net.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    return {"model": "net.h5"}


def lambda_model(somewhere):
    inputs = keras.Input((8, 8, 4))
    outputs = keras.layers.Lambda(lambda x: x[:, 0, 0] * 2.0, name="twice")(inputs)
    keras.Model(inputs, outputs).save(somewhere / "net.keras")
    return {"model": "net.keras"}


def several_outputs(_):
    x = keras.Input((8, 8, 4))
    return {"model": keras.Model(x, [keras.layers.Flatten()(x), keras.layers.ReLU()(x)], name="two")}


X, Y = samples()
REFUSED = {
    "missing model": (lambda _: {"model": "absent.h5"}, ModelError, r"no model file 'absent\.h5'"),
    "truncated model": (broken_model, ModelError, r"net\.h5 is damaged or not a Keras model"),
    "Lambda": (lambda_model, UntrustedModel, r"net\.keras has a Lambda layer \('twice'\).*--trust"),
    "unknown name": (
        lambda _: {"model": "digit-resnet"},
        ModelError,
        r"no model.*'digit-resnet'.*Did you mean 'digits-resnet'\?",
    ),
    "unknown module": (lambda _: {"model": "own_absent:build"}, NameUnknown, "no module 'own_absent'"),
    "several outputs": (
        several_outputs,
        DataError,
        r"has 2 outputs \('\w+', '\w+'\); y of .* one array without a name",
    ),
    "subclass": (lambda _: {"model": type("Own", (keras.Model,), {})()}, ModelError, r"'own\w*' is a subclass"),
    "no model at all": (lambda _: {"model": 7}, ModelError, r"got builtins\.int"),
    "missing data": (lambda _: {"data": "absent.npz"}, DataError, r"absent\.npz"),
    "no data": (lambda _: {"data": None}, DataError, r"needs data.*--data"),
    "shape": (lambda _: {"data": (X[:, :4], Y)}, DataError, r"\(4, 8, 4\).*\(8, 8, 4\)"),
    "labels": (lambda _: {"data": (X, Y + 2)}, DataError, r"2\.\.5.*0\.\.3"),
    "NaN": (lambda _: {"data": (np.where(X > 2, np.nan, X), Y)}, DataError, r"(?i)nan"),
    "empty split": (lambda _: {"data": (X[:0], Y[:0])}, DataError, r"(?i)empty|no samples"),
    "unknown target": (lambda _: {"target": "rpi44"}, NameUnknown, r"no target 'rpi44'.*Did you mean 'rpi4'\?"),
    "unknown recipe": (lambda _: {"recipe": "poly5"}, NameUnknown, r"no recipe 'poly5'.*Did you mean 'poly50'\?"),
    "unknown key": (
        lambda _: {"overrides": {"stages.evaluate.epoch": 1}},
        RecipeError,
        r"unknown key 'stages\.evaluate\.epoch'",
    ),
    "unknown stage": (
        lambda _: {"recipe": {"stages": {"prun": {}}}},
        RecipeError,
        r"no stage 'prun'.*Did you mean 'prune'\?",
    ),
    "unknown metric": (lambda _: {"overrides": {"metric": "acuracy"}}, Exception, r"acuracy.*accuracy"),
    "nothing to resume": (lambda _: {"resume": True, "model": None, "data": None}, RunFolderError, r"no run to resume"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_a_named_error_and_nothing_is_written(what, somewhere):
    make, error, message = REFUSED[what]
    words = {
        "model": small(),
        "data": samples(),
        "recipe": RECIPE,
        "out": "run",
        "progress": Silent(),
        **make(somewhere),
    }
    before = contents(somewhere)
    with pytest.raises(error, match=message) as caught:
        api.build(**words)
    assert isinstance(caught.value, edgeprune.errors.EdgepruneError) and "\n" not in str(caught.value)
    assert contents(somewhere) == before and not (somewhere / "run").exists()


def test_a_lambda_is_taken_when_trusted_or_the_users_own(somewhere):
    trusted = build(lambda_model(somewhere)["model"], trust=True, out="trusted")
    live = build(keras.models.load_model("net.keras", safe_mode=False), out="live")
    for result in (trusted, live):
        assert (result.folder / "stages" / "1-evaluate" / "model.keras").exists()


def test_a_bad_request_leaves_the_run_that_is_there(somewhere):
    build(out="run")
    before = contents(somewhere)
    with pytest.raises(DataError):
        build(data=(X, Y + 2), out="run", force=True)
    assert contents(somewhere) == before


# whose folder it is


def test_another_run_is_replaced_only_by_force(somewhere):
    build(out="run")
    (somewhere / "run" / "report.json").write_text("{}")
    before = contents(somewhere)
    with pytest.raises(RunFolderError, match=r"run holds another run.*--resume.*--force.*--out"):
        build(dense(4, inputs=4), (X[:, 0, 0], Y), out="run")
    assert contents(somewhere) == before
    build(dense(4, inputs=4), (X[:, 0, 0], Y), out="run", force=True)
    assert json.loads((somewhere / "run" / "run.json").read_text())["model"] == "mlp"
    assert not (somewhere / "run" / "report.json").exists()


def test_a_folder_of_someone_elses_is_not_used(somewhere):
    (somewhere / "run").mkdir()
    (somewhere / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"run is not empty and holds no run.*--out.*--force"):
        build(out="run")
    assert contents(somewhere / "run") == {"thesis.tex": b"years of work"}
    build(out="run", force=True)
    assert (somewhere / "run" / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_is_used(somewhere):
    (somewhere / "run").mkdir()
    assert build(out="run").folder == somewhere / "run"


def test_what_a_build_left_that_was_killed_while_it_made_its_folder_is_used(somewhere, monkeypatch):
    def killed(path, text):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "write_text_atomic", killed)
        build(out="run")
    assert sorted(path.name for path in (somewhere / "run").iterdir()) == [".lock", "input"]
    with pytest.raises(RunFolderError, match="Start one without --resume"):
        api.build(out="run", resume=True, progress=Silent())
    assert build(out="run").folder == somewhere / "run"


@pytest.mark.parametrize("out", ["file", "file/run"])
def test_a_place_that_cannot_be_a_folder_is_a_named_error(somewhere, out):
    (somewhere / "file").write_text("mine")
    with pytest.raises(RunFolderError, match="--out"):
        build(out=out)
    assert (somewhere / "file").read_text() == "mine"


def test_a_folder_that_another_build_is_at_work_in_is_left_alone(somewhere):
    build(out="run")
    before = contents(somewhere)
    with pipeline.lock(somewhere / "run"):
        for words in ({"force": True}, {"resume": True}):
            with pytest.raises(RunFolderError, match="Another build is at work"):
                build(out="run", **{**words, "recipe": None if "resume" in words else RECIPE})
    assert contents(somewhere) == before


# going on


def interrupted(monkeypatch, **words):
    """A build that was interrupted in its second epoch."""

    class Interrupting(training._Epochs):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt
            super().on_epoch_begin(epoch, logs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "_Epochs", Interrupting)
        build(**{"recipe": PRUNE, **words})


def test_a_resumed_build_ends_in_the_same_model(somewhere, monkeypatch, model_file, data_file):
    whole = build(model_file, data_file, recipe=PRUNE, out="whole")
    interrupted(monkeypatch, model=model_file, data=data_file, out="runs/broken")
    resumed = api.build(resume=True, progress=Silent())  # the only unfinished run in runs/, by its own words
    for result in (whole, resumed):
        assert json.loads((result.folder / "stages" / "1-prune" / "state.json").read_text())["files"]["masks"]
    one, other = (intake.load_own(result.folder / "stages" / "1-prune" / "model.keras") for result in (whole, resumed))
    assert_identical(weights(one), weights(other))


def test_live_data_has_to_be_given_again(somewhere):
    model = small()
    build(model, out="run")
    with pytest.raises(DataError, match=r"live data.*Give the same data again"):
        api.build(out="run", resume=True, progress=Silent())
    assert api.build(model, samples(), out="run", resume=True, progress=Silent()).folder == somewhere / "run"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"recipe": PRUNE}, r"another recipe.*--recipe, --set.*recipe\.yaml.*--force"),
        ({"overrides": {"seed": 9}}, "another recipe"),
        ({"max_drop": 0.5}, "another recipe"),
        ({"target": "rpi5"}, r"for the target 'rpi4', not 'rpi5'.*--target"),
        ({"model": "other.keras"}, r"for the model 'small', not 'other\.keras'.*--out"),
        ({"out": "elsewhere"}, r"elsewhere holds no run to resume.*without --resume"),
        ({"out": None}, r"Which run to resume\?.*--out.*none"),
    ],
    ids=["recipe", "option", "budget", "target", "model", "folder", "no folder"],
)
def test_a_resumed_build_is_the_one_that_was_begun(somewhere, words, message):
    build(out="run")
    before = contents(somewhere)
    with pytest.raises(RunFolderError, match=message):
        api.build(**{"data": samples(), "out": "run", "resume": True, "progress": Silent(), **words})
    assert contents(somewhere) == before


def test_the_same_words_may_be_given_again(somewhere, model_file, data_file):
    words = {
        "model": model_file,
        "data": data_file,
        "recipe": RECIPE,
        "target": "rpi4",
        "out": "run",
        "overrides": {"seed": 3},
    }
    build(**words)
    assert build(**words, resume=True).folder == somewhere / "run"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("run.json", lambda path: path.write_text("{")),
        ("run.json", lambda path: path.write_text('{"edgeprune": "0.1.0"}')),
        ("run.json", lambda path: path.write_text(path.read_text().replace(edgeprune.__version__, "0.0.1"))),
        ("recipe.yaml", lambda path: path.unlink()),
        ("recipe.yaml", lambda path: path.write_text("stages: [")),
        ("input/model.keras", lambda path: path.unlink()),
        ("input/model.keras", lambda path: path.write_bytes(path.read_bytes()[:500])),
        ("stages/1-evaluate/state.json", lambda path: path.write_text("{")),
    ],
    ids=[
        "run.json cut",
        "run.json without words",
        "other version",
        "no recipe",
        "recipe cut",
        "no model",
        "model cut",
        "state cut",
    ],
)
def test_a_damaged_run_folder_is_a_named_error(somewhere, name, damage):
    build(out="run")
    damage(somewhere / "run" / name)
    with pytest.raises(RunFolderError, match=name.rsplit("/", 1)[-1].replace(".", r"\.") + r"|edgeprune 0\.0\.1"):
        api.build(data=samples(), out="run", resume=True, progress=Silent())


def test_an_untrained_model_is_trained_and_a_trained_one_is_not(somewhere, monkeypatch):
    monkeypatch.setattr(training, "fit", lambda *_: [{"epoch": 1, "loss": 1.0}])
    recipe = {"stages": {"train": {"epochs": 1}}}

    def epochs(model, out):
        folder = build(model, (np.zeros((40, 8, 8)), np.arange(40) % 10), recipe=recipe, out=out).folder
        return json.loads((folder / "stages" / "1-train" / "state.json").read_text())["facts"].get("history")

    assert epochs("digits-resnet", "untrained") == {"train": {"epochs": [{"epoch": 1, "loss": 1.0}]}}
    inputs = keras.Input((8, 8, 1))
    live = keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(keras.layers.Flatten()(inputs)))
    assert epochs(live, "trained") == {}
