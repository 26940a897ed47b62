"""Stages are folded in order, finished ones are never repeated, and what is on the disk is always whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_stages import add, wary

from edgeprune import data, files, metrics, pipeline, recipe, registry, target
from edgeprune.errors import CutError, DataError, RunFolderError


class Recorder:
    """Progress that keeps what it was told."""

    def __init__(self):
        self.told = []

    def stage(self, label, index, total):
        self.told.append(("stage", label, index, total))

    def note(self, message):
        self.told.append(("note", message))

    def done(self, summary, seconds, resumed=False):
        self.told.append(("done", summary, resumed))


@pytest.fixture(autouse=True)
def calls():
    add.CALLS.clear()
    return add.CALLS


def _spec(what):
    if what == "fragile":
        return {"stage": "tiny_stages.fragile"}
    if isinstance(what, str):  # "wary 3"
        return {"stage": "tiny_stages.wary", "amount": int(what.split()[1])}
    return {"stage": "tiny_stages.add", "amount": what}


def made(folder, inputs=None, seed=0, **stages):
    """A run of these stages: ``label=amount`` adds, ``label="fragile"`` fails once, ``label="wary N"`` looks ahead."""
    specs = {label: _spec(what) for label, what in stages.items()}
    samples = data.load(([[0.0], [1.0]] * 10, [0, 1] * 10))
    facts = target.load(registry.file("targets", "rpi4"))
    return pipeline.Run(
        Path(folder),
        recipe.load({"seed": seed, "stages": specs}),
        facts,
        samples,
        metrics.choose(samples.task, None),
        Recorder(),
        inputs or {"digest": "abc"},
    )


def build(folder, **keywords):
    return pipeline.run(made(folder, **keywords), {})


def folders(run):
    return sorted(path.name for path in (run / "stages").iterdir())


# State


@pytest.fixture
def state(tmp_path):
    return pipeline.State(made(tmp_path, a=1), label="prune", workspace=tmp_path / "stages" / "2-prune.partial")


def test_files_are_kept_by_where_they_will_lie(state):
    more = state.add(files={"model": state.workspace / "deep" / "model.keras"})
    assert more.files == {"model": "stages/2-prune/deep/model.keras"}


def test_a_file_outside_the_workspace_is_no_result(state):
    with pytest.raises(ValueError, match="subpath"):
        state.add(files={"model": state.run.folder / "elsewhere"})


def test_facts_are_merged_appended_or_replaced(state):
    one = state.add(history={"train": 1}, notes=["a"], total=1, mixed={"x": 1})
    two = one.add(history={"prune": 2}, notes=["b"], total=2, mixed=["y"])
    assert two.facts == {"history": {"train": 1, "prune": 2}, "notes": ["a", "b"], "total": 2, "mixed": ["y"]}


def test_a_state_is_never_changed(state):
    one = state.add(files={"model": state.workspace / "m"}, notes=["a"], history={"train": 1})
    one.add(files={"model": state.workspace / "n"}, notes=["b"], history={"train": 2})
    assert (state.files, state.facts) == ({}, {})
    assert (one.files, one.facts) == ({"model": "stages/2-prune/m"}, {"notes": ["a"], "history": {"train": 1}})
    with pytest.raises(AttributeError):
        state.label = "other"


def test_a_missing_role_names_stage_and_cure(state):
    with pytest.raises(RunFolderError, match=r"'prune' needs the float model.*no stage before it.*recipe"):
        state.path("float")


def test_a_role_whose_file_is_gone_is_said(state):
    with pytest.raises(RunFolderError, match=r"2-prune/m is gone from the run folder.*--force"):
        state.add(files={"model": state.workspace / "m"}).path("model")


# run


def test_stages_run_in_order_and_each_reads_what_the_last_left(tmp_path, calls):
    state = build(tmp_path, one=1, two=20, three=300)
    assert calls == ["one", "two", "three"]
    assert state.path("number").read_text() == "321"
    assert state.files["number"] == "stages/3-three/number.txt"
    assert state.facts["amounts"] == {"one": 1, "two": 20, "three": 300}
    assert [entry["name"] for entry in state.facts["stages"]] == ["one", "two", "three"]
    assert folders(tmp_path) == ["1-one", "2-two", "3-three"]


def test_progress_hears_of_every_stage(tmp_path):
    run = made(tmp_path, one=1, two=2)
    pipeline.run(run, {})
    expected = [
        *[("stage", "one", 1, 2), ("note", "one was here"), ("done", "1", False)],
        *[("stage", "two", 2, 2), ("note", "two was here"), ("done", "3", False)],
    ]
    assert run.progress.told == expected
    run.progress.told.clear()
    pipeline.run(run, {})
    assert [word for word in run.progress.told if word[0] == "done"] == [("done", "finished earlier", True)] * 2


def test_what_was_given_can_be_read(tmp_path):
    (tmp_path / "given.txt").write_text("7")
    assert pipeline.run(made(tmp_path, one=1), {"number": "given.txt"}).path("number").read_text() == "8"


def test_finished_stages_are_not_repeated(tmp_path, calls):
    first = build(tmp_path, one=1, two=2)
    again = build(tmp_path, one=1, two=2)
    assert calls == ["one", "two"]
    assert (again.files, again.facts) == (first.files, first.facts)


@pytest.mark.parametrize(
    ("change", "repeated"),
    [
        ({"three": 4}, ["three"]),
        ({"two": 9}, ["two", "three"]),
        ({"one": 9}, ["one", "two", "three"]),
        ({"inputs": {"digest": "other"}}, ["one", "two", "three"]),
        ({"seed": 1}, ["one", "two", "three"]),
    ],
    ids=["last", "middle", "first", "inputs", "seed"],
)
def test_a_change_repeats_its_stage_and_all_after_it(tmp_path, calls, change, repeated):
    words = {"one": 1, "two": 2, "three": 3}
    build(tmp_path, **words)
    calls.clear()
    changed = {**words, **change}
    state = build(tmp_path, **changed)
    assert calls == repeated
    assert state.path("number").read_text() == str(changed["one"] + changed["two"] + changed["three"])
    assert folders(tmp_path) == ["1-one", "2-two", "3-three"]


def test_another_version_of_edgeprune_repeats_everything(tmp_path, calls, monkeypatch):
    build(tmp_path, one=1)
    monkeypatch.setattr("edgeprune.__version__", "0.0.0")
    build(tmp_path, one=1)
    assert calls == ["one", "one"]


# interrupted


def test_a_failed_stage_keeps_its_checkpoint_and_nothing_before_it_is_repeated(tmp_path, calls):
    with pytest.raises(DataError, match="not yet"):
        build(tmp_path, one=1, two="fragile", three=3)
    assert folders(tmp_path) == ["1-one", "2-two.partial"]
    state = build(tmp_path, one=1, two="fragile", three=3)
    assert state.facts["attempts"] == 2
    assert calls == ["one", "three"]
    assert folders(tmp_path) == ["1-one", "2-two", "3-three"]


def test_a_checkpoint_of_another_recipe_is_dropped(tmp_path):
    with pytest.raises(DataError):
        build(tmp_path, one=1, two="fragile")
    with pytest.raises(DataError):
        build(tmp_path, one=5, two="fragile")  # the stage before changed, so the attempt counts as the first again
    assert build(tmp_path, one=5, two="fragile").facts["attempts"] == 2


def test_a_partial_folder_without_a_key_is_dropped(tmp_path):
    (tmp_path / "stages" / "1-one.partial").mkdir(parents=True)
    (tmp_path / "stages" / "1-one.partial" / "checkpoint").write_text("1")
    with pytest.raises(DataError):
        build(tmp_path, one="fragile")


@pytest.mark.parametrize("old", [None, 5], ids=["first time", "redone"])
def test_killed_between_the_last_write_and_the_renaming(tmp_path, calls, monkeypatch, old):
    if old:
        build(tmp_path, one=old)
    calls.clear()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "replace_folder_atomic", killed)
        build(tmp_path, one=1)
    assert (tmp_path / "stages" / "1-one.partial" / pipeline.STATE_FILE).exists()
    assert build(tmp_path, one=1).path("number").read_text() == "1"
    assert calls == ["one"]
    assert folders(tmp_path) == ["1-one"]


def test_killed_while_an_old_stage_steps_aside(tmp_path, calls):
    """Between the two renames of the replacement there is no folder, only the old one under a temporary name."""
    build(tmp_path, one=5)
    aside = tmp_path / "stages" / f"{files.TEMPORARY}x"
    aside.mkdir()
    (tmp_path / "stages" / "1-one").rename(aside / "old")
    assert build(tmp_path, one=1).path("number").read_text() == "1"
    assert folders(tmp_path) == ["1-one"]  # and nothing is left over


def test_what_a_killed_writer_left_is_swept_away(tmp_path):
    with pytest.raises(DataError):
        build(tmp_path, one="fragile")
    for folder in (tmp_path, tmp_path / "stages", tmp_path / "stages" / "1-one.partial"):
        (folder / f"{files.TEMPORARY}half").write_text("half a checkpoint")
    build(tmp_path, one="fragile")
    assert list(tmp_path.rglob(f"{files.TEMPORARY}*")) == []


# damaged, shared, unwritable


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": {}}'])
def test_a_damaged_record_is_a_named_error(tmp_path, content):
    build(tmp_path, one=1)
    (tmp_path / "stages" / "1-one" / pipeline.STATE_FILE).write_text(content)
    with pytest.raises(RunFolderError, match=r"1-one/state\.json is damaged.*--force"):
        build(tmp_path, one=1)


def test_a_record_is_plain_json(tmp_path):
    build(tmp_path, one=1)
    record = json.loads((tmp_path / "stages" / "1-one" / pipeline.STATE_FILE).read_text())
    assert set(record) == {"key", "files", "facts"}


def test_two_builds_never_share_a_folder(tmp_path, calls):
    with pipeline.lock(tmp_path), pytest.raises(RunFolderError, match=r"Another build is at work in .*--out"):
        build(tmp_path, one=1)
    assert calls == []
    build(tmp_path, one=1)  # the lock is gone with its holder
    assert calls == ["one"]


@pytest.mark.parametrize("folder", ["absent", "file/run"])
def test_a_folder_that_cannot_be_written_is_a_named_error(tmp_path, folder):
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=r"cannot be written.*--out"):
        build(tmp_path / folder, one=1)


def test_a_workspace_that_cannot_be_made_is_a_named_error(tmp_path):
    (tmp_path / "stages").write_text("in the way")
    with pytest.raises(RunFolderError, match=r"cannot be written.*--out"):
        build(tmp_path, one=1)


# What several runs have in common


def shared(folder, stages, **keywords):
    common = pipeline.Shared(folder.parent / "common", stages)
    folder.mkdir(exist_ok=True)
    return pipeline.run(replace(made(folder, **keywords), shared=common), {})


def test_first_stages_that_runs_have_in_common_are_done_once(tmp_path, calls):
    first = shared(tmp_path / "first", 1, a=1, b=2)
    second = shared(tmp_path / "second", 1, a=1, b=3)
    assert calls == ["a", "b", "b"]
    assert (first.facts["total"], second.facts["total"]) == (3, 4)
    assert second.files["number"] == "stages/2-b/number.txt"
    assert (tmp_path / "second" / "stages" / "1-a" / "number.txt").read_text() == "1"
    (tmp_path / "alone").mkdir()
    alone = build(tmp_path / "alone", a=1, b=3)
    assert {**alone.facts, "stages": None} == {**second.facts, "stages": None}


def test_another_seed_or_input_shares_nothing(tmp_path, calls):
    shared(tmp_path / "first", 2, a=1, b=2)
    shared(tmp_path / "second", 2, seed=1, a=1, b=2)
    shared(tmp_path / "third", 2, inputs={"digest": "other"}, a=1, b=2)
    assert calls == ["a", "b"] * 3


def test_a_stage_that_fails_is_left_to_nobody(tmp_path, calls):
    with pytest.raises(DataError):
        shared(tmp_path / "first", 2, a=1, broken="fragile")
    assert len([path for path in (tmp_path / "common").iterdir() if path.is_dir()]) == 1
    shared(tmp_path / "first", 2, a=1, broken="fragile", b=2)
    assert calls.count("a") == 1


def test_a_killed_run_goes_on_with_what_another_has_finished_since(tmp_path, calls):
    common = tmp_path / "second" / "stages" / "1-a.partial"
    common.mkdir(parents=True)
    (common / "key").write_text("old")
    shared(tmp_path / "first", 1, a=1)
    shared(tmp_path / "second", 1, a=1)
    assert calls == ["a"]
    assert folders(tmp_path / "second") == ["1-a"]


# What is foreseen


@pytest.fixture
def looked():
    wary.LOOKED.clear()
    return wary.LOOKED


def test_what_cannot_be_is_said_before_anything_is_done(tmp_path, calls, looked):
    with pytest.raises(CutError, match=r"stages\.cut\.amount: 10 is too much"):
        pipeline.run(made(tmp_path, train=1, cut="wary 10", tune=1), {"model": "given.keras"})
    assert calls == [] and looked == [("cut", {"model": "given.keras"})]
    assert not (tmp_path / "stages").exists()


def test_only_the_first_that_cuts_can_look_at_the_first_model(tmp_path, looked):
    build(tmp_path, train=1, cut="wary 3", again="wary 10")
    assert [label for label, _ in looked] == ["cut"]


def test_a_stage_that_was_begun_or_comes_first_foresees_nothing(tmp_path, looked):
    build(tmp_path, train=1, cut="wary 3")
    build(tmp_path, train=1, cut="wary 3")
    (tmp_path / "other").mkdir()
    build(tmp_path / "other", cut="wary 10")
    assert len(looked) == 1
