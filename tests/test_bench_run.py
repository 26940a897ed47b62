"""Running a league: nothing is done twice, whatever happens to it; the command; a whole league of a small model."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from samples import HEARING_INTERRUPTS

from edgeprune import bench, bench_run, catalogue, cli, recipe, yaml_files
from edgeprune.errors import DataError, RunFolderError

# Running


FAKE = """
import json, os, sys, time
from pathlib import Path

def say(**message):
    print(json.dumps(message), flush=True)

def cell(request):
    name = request["recipe"]["name"]
    with open("begun.log", "a") as log:
        log.write(name + chr(10))
    with open("workers.log", "a") as log:
        log.write(str(os.getpid()) + chr(10))
    folder = Path(request["folder"])
    (folder / "stages").mkdir(parents=True, exist_ok=True)
    metric = {"name": "accuracy", "higher_is_better": True, "split": "test", "samples": 8}
    (folder / "report.json").write_text(json.dumps({"metric": metric, "target_title": "a board"}))
    say(stage=["train", 1, 2])
    say(step=[1, 4, "epochs"], values={"loss": 0.5})
    time.sleep(float(os.environ.get("FAKE_SLEEP", 0)))
    deed = os.environ.get("FAKE_" + name.replace("-", "_").replace(".", "_"), "")
    if deed == "die":
        os.kill(os.getpid(), 9)
    if deed == "exit":
        sys.exit(7)
    if deed.startswith("ended"):
        return say(ended=int(deed.partition(" ")[2]))
    if deed in ("error", "cannot"):
        say(**{deed: "it would not"})
        return say(ended=1)
    size = 1000 if request["recipe"].get("method") is None else 400
    one = {"metric": 0.9, "size_bytes": size, "size_gzip_bytes": size, "params": 1, "macs": 5, "sparsity": 0.5,
           "latency": {"ms": 1.0}}
    say(figures={**one, "float": one, "dense_int8": one, "training_s": 1.0, "seconds": 2.0, "epochs": {"train": 1},
                 "int8": True, "zeros_match": True})
    say(ended=0)

for line in sys.stdin:
    cell(json.loads(line))
"""


about_methods = functools.cache(catalogue.methods)  # of some seventy files, the same for every league


@pytest.fixture
def league(tmp_path, monkeypatch):
    """Run leagues whose builds are made up, in a folder of their own."""
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_run, "COMMAND", (sys.executable, "fake.py"))
    monkeypatch.setattr(catalogue, "methods", about_methods)

    def run(**more):
        given = {"epochs": 4, "shares": [0.9], "methods": ["one-shot"], "out": "league", **more}
        return bench_run.run(None, None, **given)[1]

    return run


def _begun():
    path = Path("begun.log")
    return path.read_text().split() if path.exists() else []


def test_everything_is_done_once(league):
    result = league(seeds=[0, 1], jobs=2)
    assert sorted(_begun()) == sorted(cell.name for cell in bench.cells(["one-shot"], [0.9], [0, 1]))
    assert (len(result["cells"]), result["planned"], result["failures"]) == (6, 6, [])
    assert result == json.loads(Path("league/methods.json").read_text())
    assert Path("league/methods.html").stat().st_size > 10_000
    assert not list(Path("league/cells").glob("*/stages"))
    again = league(seeds=[0, 1])
    assert len(_begun()) == 6
    assert again == result


def test_methods_shares_and_seeds_can_be_added(league):
    league()
    result = league(methods=["fine-tune"], shares=[0.9, 0.98], seeds=[0, 1])
    assert len(_begun()) == 3 + 2 + 4
    assert {cell["method"] for cell in result["cells"]} == {"dense-ptq", "dense", "one-shot", "fine-tune"}
    assert result["planned"] == 9


@pytest.mark.parametrize("change", [{"epochs": 5}, {"overrides": {"data.validation": 0.2}}, {"target": "rpi5"}])
def test_a_folder_keeps_to_its_terms(league, change):
    league()
    with pytest.raises(
        RunFolderError, match=rf"holds a league with {next(iter(change))} .* choose another folder|Choose"
    ):
        league(**change)


def test_changed_data_is_another_league(league, tmp_path):
    (tmp_path / "data.npz").write_bytes(b"1")
    run = {"epochs": 4, "shares": [0.9], "methods": ["one-shot"], "out": "league"}
    bench_run.run("digits-resnet", "data.npz", **run)
    (tmp_path / "data.npz").write_bytes(b"2")
    with pytest.raises(RunFolderError, match="data_digest"):
        bench_run.run("digits-resnet", "data.npz", **run)


def test_a_method_that_fails_is_told_and_tried_again(league, monkeypatch):
    monkeypatch.setenv("FAKE_one_shot_0_9_seed0", "error")
    result = league()
    assert [failure["reason"] for failure in result["failures"]] == ["it would not"]
    assert {cell["method"] for cell in result["cells"]} == {"dense-ptq", "dense"}
    monkeypatch.delenv("FAKE_one_shot_0_9_seed0")
    assert league()["failures"] == []
    assert _begun().count("one-shot-0.9-seed0") == 2
    assert len(_begun()) == 4


@pytest.mark.parametrize(
    ("deed", "words", "workers"),
    [
        ("die", "signal 9, as it does when memory", 2),
        ("exit", "exit code 7; what it", 2),
        ("ended -9", "signal 9, as it does when memory", 1),
        ("ended 7", "exit code 7; what it said is in league/cells/one-shot-0.9-seed0.log", 1),
    ],
)
def test_a_process_that_dies_takes_nobody_with_it(league, monkeypatch, deed, words, workers):
    """Neither a cell's own nor the worker's, in whose place another one comes."""
    monkeypatch.setenv("FAKE_one_shot_0_9_seed0", deed)
    result = league(methods=["one-shot", "fine-tune"])
    assert words in result["failures"][0]["reason"]
    assert "fine-tune" in {cell["method"] for cell in result["cells"]}
    assert len(set(Path("workers.log").read_text().split())) == workers


def test_a_worker_does_one_cell_after_the_other(league, monkeypatch):
    monkeypatch.setenv("FAKE_SLEEP", "0.1")
    league(seeds=[0, 1, 2], jobs=2)
    done = Path("workers.log").read_text().split()
    assert len(done) == 9 and len(set(done)) == 2


def test_what_the_model_cannot_lose_is_a_finding_not_a_failure(league, monkeypatch):
    monkeypatch.setenv("FAKE_one_shot_0_9_seed0", "cannot")
    result = league()
    assert (result["failures"], result["left_out"]) == ([], ["one-shot-0.9-seed0 cannot: it would not"])
    assert league() == result
    assert len(_begun()) == 3


def test_without_a_baseline_there_is_no_league(league, monkeypatch):
    monkeypatch.setenv("FAKE_dense_ptq_seed0", "error")
    with pytest.raises(RunFolderError, match=r"baseline dense-ptq-seed0 could not be built.*it would not"):
        league()


def test_a_changed_recipe_is_done_anew(league, monkeypatch):
    league()
    load = recipe.load

    def changed(source, overrides=None):
        more = {"stages.sparsify.scope": "layer"} if source == "one-shot" else {}
        return load(source, {**more, **(overrides or {})})

    monkeypatch.setattr(recipe, "load", changed)
    league()
    assert _begun().count("one-shot-0.9-seed0") == 2
    assert len(_begun()) == 4


def test_a_damaged_record_is_named(league):
    league()
    Path("league/cells/one-shot-0.9-seed0.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"one-shot-0\.9-seed0\.json is damaged.* Remove it"):
        league()


def test_a_model_from_outside_needs_data(league):
    with pytest.raises(DataError, match=r"'net\.keras' needs data"):
        bench_run.run("net.keras", None, epochs=4, shares=[0.9], methods=["one-shot"], out="league")


RUN = """
import sys
from edgeprune import bench_run, cli
bench_run.COMMAND = (sys.executable, "fake.py")
sys.argv[0] = "edgeprune"
cli.main()
"""
WORDS = ["bench", "methods", "--epochs", "4", "--methods", "one-shot", "--out", "league"]


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_interrupted_or_killed_it_goes_on_where_it_was(league, tmp_path, how, code):
    (tmp_path / "run.py").write_text(RUN)
    command = [*HEARING_INTERRUPTS, sys.executable, "run.py", *WORDS, "--quiet"]
    process = subprocess.Popen(
        command, env={**os.environ, "FAKE_SLEEP": "0.5"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and len(_begun()) < 2:
        time.sleep(0.01)
    process.send_signal(how)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    if how == signal.SIGINT:
        assert "the same command goes on where this one was" in told
    assert len(list(Path("league/cells").glob("*.json"))) == 1
    result = league()
    assert _begun() == ["dense-ptq-seed0", "dense-seed0", "dense-seed0", "one-shot-0.9-seed0"]
    assert len(result["cells"]) == 3


def test_the_command_prints_tables_json_and_what_failed(league, monkeypatch, capsys):
    assert cli.run(WORDS) == 0
    shown = capsys.readouterr().out
    assert "[3/3] one-shot-0.9-seed0: 0.9000, 0.4 KiB compressed" in shown
    assert "90 % asked to go" in shown and "Pictures: league/methods.html" in shown
    assert cli.run([*WORDS, "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["planned"] == 3
    monkeypatch.setenv("FAKE_fine_tune_0_9_seed0", "error")
    assert cli.run([*WORDS[:4], "--methods", "one-shot,fine-tune", "--out", "league", "--quiet"]) == 1
    told = capsys.readouterr()
    assert "1 of 4 builds failed" in told.err and "fine-tune-0.9-seed0 failed: it would not" in told.out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--epochs", "1"], 1, "--epochs 1 is fewer than some methods' stages need"),
        (["--epochs", "0"], 2, "0 is not in the range"),
        ([], 2, "Missing option '--epochs'"),
        (["--epochs", "9", "--seeds", "a"], 2, "'a' are not numbers"),
        (["--epochs", "9", "--seeds", "-1"], 2, "each 0 or above"),
        (["--epochs", "9", "--sparsity", "1.5"], 1, "--sparsity 1.5: .* above 0 and below 1"),
        (["--epochs", "9", "--methods", "rigel"], 1, "no method 'rigel'"),
        (["--epochs", "9", "--target", "rpi44"], 1, "no target 'rpi44'"),
        (["--epochs", "9", "--set", "stages.prune.fnal=0.5"], 1, "unknown key 'stages.prune.fnal'"),
        (
            ["--epochs", "9", "--set", "stages.prun.final=0.5"],
            1,
            "no recipe .* has a stage 'prun'.* Did you mean 'prune'",
        ),
    ],
)
def test_bad_input_is_named_before_anything_is_trained(league, capsys, words, code, message):
    assert cli.run(["bench", "methods", *words]) == code
    assert re.search(message, capsys.readouterr().err)
    assert _begun() == []


@pytest.mark.slow
@pytest.mark.long
def test_a_whole_league_of_a_small_model(tmp_path, monkeypatch):
    """Real builds, side by side; methods that begin alike share what they have in common.

    No more of them than that takes: whatever they train, each traces and converts its networks anew.
    """
    import numpy as np

    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 8)).astype(np.float32)
    np.savez("data.npz", x=x, y=(x[:, 0] * x[:, 1] > 0).astype(np.int64))
    (tmp_path / "tiny.py").write_text(TINY)
    overrides = {"data.calibration": 32, "stages.profile.samples": 8, "stages.profile.count": False}
    words = {"epochs": 2, "seeds": [0], "shares": [0.8], "jobs": 2, "overrides": overrides, "out": "league"}
    _, result = bench_run.run("tiny:build", "data.npz", target="host", methods=["one-shot"], **words)
    assert result["failures"] == []
    rows = {(row["method"], row["share"]): row for row in result["rows"]}
    assert set(rows) == {("float", None), ("dense-ptq", None), ("dense", None), ("one-shot", 0.8)}
    assert rows["one-shot", 0.8]["sparsity"]["mean"] == pytest.approx(0.8, abs=0.05)
    assert rows["one-shot", 0.8]["size_gzip_bytes"]["mean"] < rows["dense", None]["size_gzip_bytes"]["mean"]
    assert all(cell["int8"] for cell in result["cells"])
    assert [cell["zeros_match"] for cell in result["cells"] if cell["method"] == "one-shot"] == [True]
    reports = [
        json.loads(Path(f"league/cells/{name}-seed0/report.json").read_text()) for name in ("dense", "one-shot-0.8")
    ]
    assert len({report["stages"][0]["seconds"] for report in reports}) == 1  # trained once
    kept = yaml_files.read(Path("league/cells/one-shot-0.8-seed0/recipe.yaml"))
    assert kept["stages"]["sparsify"]["final"] == 0.8


TINY = """
def build():
    from edgeprune.keras import keras

    inputs = keras.Input((8,), name="x")
    hidden = keras.layers.Dense(32, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(2, activation="softmax", name="classes")(hidden))
"""
