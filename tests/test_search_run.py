"""A whole search of a tiny network: the proxy, what it puts back, the command, and what is trained in the end."""

from __future__ import annotations

import json
import sqlite3
from concurrent import futures

import numpy as np
import pytest
from keras_models import CLASSES, SHAPE, USELESS, cnn, keras, layers, planted, planted_files, samples

from edgeprune import (
    api,
    cli,
    data,
    forecast,
    metrics,
    recipe,
    registry,
    search_live,
    search_run,
    search_setup,
    search_space,
)
from edgeprune import target as targets
from edgeprune.errors import CutError, DataError
from edgeprune.keras import candidates, intake, surgery, training, trials

pytest.importorskip("optuna", reason='pip install "edgeprune[search]"')


def subject(model, count=600):
    given = data.load(samples(count), data.DataOptions(calibration=32, validation=0.5))
    return trials.Trials(model, given, metrics.choose("classification"), samples=1000)


def milliseconds():
    return forecast.milliseconds(forecast.board(targets.load(registry.file("targets", "rpi4"))))


# The proxy


def test_a_candidate_is_judged_and_everything_put_back():
    training.start(0)
    one = subject(planted())
    space = candidates.space(one, choices={"criterion": ("magnitude",), "zeros": ("none", "weight 0.95", "2:4")})
    before = [weight.numpy() for weight in one.model.weights]
    proxy = candidates.Proxy(one, space)
    useless = {**space.whole(), "conv": CLASSES}
    assert [knob.units for knob in space.knobs] == [CLASSES + USELESS]
    assert proxy(useless).drop == 0.0
    assert proxy(space.smallest()).drop > 0.3
    assert proxy({**space.whole(), "zeros": "weight 0.95"}).drop != 0.0
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(before, one.model.weights, strict=True))
    costs = space.costs(useless)
    assert costs["macs"] < space.costs(space.whole())["macs"]
    assert "latency_ms" not in costs


def test_a_drop_is_that_of_the_smaller_network_with_statistics_of_its_own():
    """What is masked and judged is what the surgery makes, re-estimated."""
    training.start(0)
    one = subject(cnn())
    space = candidates.space(one, milliseconds(), choices={"criterion": ("magnitude",)})
    proxy = candidates.Proxy(one, space)
    candidate = {**space.whole(), "stem": 5, "plain": 6}
    small = surgery.shrink(one.model, space.cut(candidate))
    one.runner.of(small).settle(once=True)
    wanted = metrics.drop(one.metric, proxy.reference, one.metric(one.split.y, training.outputs(small, one.split)))
    assert proxy(candidate).drop == pytest.approx(wanted, abs=1e-9)
    assert space.costs(candidate)["latency_ms"] > 0


def test_the_hopeless_are_given_up_after_a_quarter():
    training.start(0)
    one = subject(planted(), count=1200)
    space = candidates.space(one, choices={"criterion": ("magnitude",)})
    proxy = candidates.Proxy(one, space)
    names, least = ("drop", "macs", "size_bytes"), space.costs(space.smallest())
    found = proxy(space.smallest(), [(0.0, least["macs"], least["size_bytes"])], names)
    assert found.stopped
    assert found.samples <= len(one.split) / 4
    assert found.drop == pytest.approx(proxy(space.smallest()).drop, abs=0.15)
    assert not proxy(space.smallest(), [(0.0, least["macs"] + 1, least["size_bytes"])], names).stopped


def test_groups_that_cannot_be_cut_are_no_knobs():
    inputs = keras.Input(SHAPE)
    outputs = layers.Dense(CLASSES, activation="softmax", name="classes")(layers.Flatten()(inputs))
    with pytest.raises(CutError, match="nothing to search"):
        candidates.space(subject(keras.Model(inputs, outputs)))


# The command


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return planted_files(tmp_path)


def searched(*words, code=0):
    assert cli.run(["search", "planted.keras", "--data", "data.npz", "--target", "host", "--quiet", *words]) == code


SHORT = ("--trials", "6", "--top", "0", "--criteria", "magnitude")


def test_the_same_command_again_adds_nothing_and_another_model_is_refused(files, capsys):
    searched(*SHORT, "--json")
    first = json.loads(capsys.readouterr().out)
    searched(*SHORT, "--json")
    again = json.loads(capsys.readouterr().out)
    assert again == first
    assert first["counts"]["complete"] == 6
    assert first["front"]
    folder = files / "runs" / "planted-search"
    assert json.loads((folder / "search.json").read_text())["trials"] == first["trials"]
    assert "trial-" in (folder / "search.html").read_text()
    searched("--trials", "8", *SHORT[2:], "--json")
    more = json.loads(capsys.readouterr().out)
    assert more["trials"][:6] == first["trials"]
    searched(*SHORT, "--seed", "5", code=1)
    assert "--name" in capsys.readouterr().err
    searched(*SHORT, "--seed", "5", "--name", "other", "--clone", "nobody", code=1)
    assert "There is no study 'nobody'" in capsys.readouterr().err
    searched(*SHORT, "--max-macs", "3000", "--name", "cheap", "--clone", "planted-host", "--json", code=0)
    assert all(trial["costs"]["macs"] <= 3000 for trial in json.loads(capsys.readouterr().out)["trials"])
    other = intake.load_own(files / "planted.keras")
    other.set_weights([2 * weight for weight in other.get_weights()])
    intake.save(other, files / "planted.keras")
    searched(*SHORT, code=1)
    assert "is of another model" in capsys.readouterr().err
    assert not [path for path in folder.rglob(".edgeprune-*")]


def test_what_cannot_be_is_said_before_anything_is_searched(files, capsys):
    searched(*SHORT, "--max-macs", "1", code=1)
    assert "at least" in capsys.readouterr().err
    searched(*SHORT, "--max-latency-ms", "5", code=1)
    assert "cannot be predicted" in capsys.readouterr().err
    with pytest.raises(DataError, match="needs data"):
        search_setup.prepared(search_setup.Asked("planted.keras"), display=search_live.Silent())


@pytest.mark.slow
def test_the_best_is_trained_and_exported(files, capsys):
    """From the trained network to the int8 file of the candidate that is wanted."""
    fast = [
        "--set",
        "stages.shrink.epochs=1",
        "--set",
        "stages.shrink.distill=null",
        "--set",
        "stages.profile.count=false",
    ]
    words = [*SHORT[:2], "--top", "1", "--criteria", "magnitude", "--quantize", "ptq", *fast, "--max-drop", "0.9"]
    searched(*words, "--json")
    found = json.loads(capsys.readouterr().out)
    one = found["trained"][found["best"]]
    folder = files / "runs" / "planted-search"
    made = recipe.load(str(folder / "trained" / f"{one['trial']}-ptq" / "recipe.yaml"))
    assert {spec.stage for spec in made.stages}.isdisjoint({"quantize"})
    assert one["costs"]["size_bytes"] == (folder / "trained" / f"{one['trial']}-ptq" / "model.tflite").stat().st_size
    searched(
        *words, "--sampler", "nsga2", "--export", str(one["trial"])
    )  # who reads need not say again by what was searched
    exported = folder / "export" / str(one["trial"])
    assert {path.name for path in exported.iterdir()} >= {"recipe.yaml", "model.tflite"}
    searched(*words, "--export", "999", code=1)
    assert "no finished trial 999" in capsys.readouterr().err
    table = sqlite3.connect(folder / "study.db").execute("select study_name from studies").fetchall()
    assert sorted(table) == [("planted-host",), ("planted-host-trained",)]
    assert search_space.DROP in found["limits"]
    assert api.RECIPE_FILE in {path.name for path in exported.iterdir()}


def test_a_board_measures_one_network_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(search_run, "POLL_S", 0.01)
    pool = ("pi@one", "pi@two")
    with search_run._board(tmp_path, ()) as none:
        assert none is None
    with search_run._board(tmp_path, pool) as one, futures.ThreadPoolExecutor(1) as others:
        with search_run._board(tmp_path, pool) as two:
            assert (one, two) == pool
            third = others.submit(lambda: list(_named(search_run._board(tmp_path, pool))))
            with pytest.raises(futures.TimeoutError):
                third.result(timeout=0.1)
        assert third.result(timeout=10) == ["pi@two"]  # as soon as it is free


def _named(board):
    with board as name:
        yield name
