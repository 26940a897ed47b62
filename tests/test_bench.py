"""The league of methods: its terms, its arithmetic, and that nothing is done twice, whatever happens to it."""

from __future__ import annotations

import doctest
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from samples import HEARING_INTERRUPTS

from edgeprune import bench, bench_figures, bench_live, bench_run, bench_view, cli, recipe, registry, yaml_files
from edgeprune.bench import Cell
from edgeprune.errors import DataError, NameUnknown, RecipeError, RunFolderError

TERMS = bench.Terms("digits-resnet", "sklearn:digits", "rpi4", 12, False)
METHODS = registry.names("methods")


def _epochs(loaded: recipe.Recipe) -> dict[str, int]:
    return {spec.label: spec.options.epochs for spec in loaded.stages if hasattr(spec.options, "epochs")}


# Terms


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_as_long_as_the_others(name):
    cell = bench.cells([name], [0.9], [3])[-1]
    for trained in (False, True):
        chosen = bench.settled(cell, TERMS._replace(trained=trained))
        needed = bench.needed_epochs(chosen, trained)
        assert sum(_epochs(chosen).values()) == (TERMS.epochs if needed else 0)
        assert chosen.seed == 3
        assert recipe.load(chosen.resolved()).resolved() == chosen.resolved()


@given(
    weights=st.dictionaries(st.text(max_size=3), st.integers(1, 100), min_size=1, max_size=6),
    least=st.integers(1, 4),
    more=st.integers(0, 200),
)
def test_shares_of_the_epochs_add_up_and_leave_nobody_short(weights, least, more):
    needs = dict.fromkeys(weights, least)
    total = least * len(weights) + more
    found = bench.proportional(weights, needs, total)
    assert sum(found.values()) == total
    assert min(found.values()) >= least
    if all(total * weight >= least * sum(weights.values()) for weight in weights.values()):
        assert all(abs(found[name] - total * weight / sum(weights.values())) < 1 for name, weight in weights.items())


def test_epochs_keep_the_proportions():
    chosen = bench.settled(Cell("tfmot-gradual", 0.9, 0), TERMS._replace(epochs=90))
    assert _epochs(chosen) == {"train": 60, "prune": 20, "quantize": 10}
    halved = bench.settled(Cell("tfmot-gradual", 0.9, 0), TERMS._replace(epochs=12, trained=True))
    assert _epochs(halved) == {"train": 0, "prune": 8, "quantize": 4}


def test_the_aim_is_set_to_what_goes_or_to_what_stays():
    zeros, channels, both = (
        bench.settled(Cell(name, 0.9, 0), TERMS)
        for name in ("tfmot-gradual", "shrink-taylor", "shrink-then-two-of-four")
    )
    assert zeros.stages[1].options.final == 0.9
    assert channels.stages[1].options.macs == pytest.approx(0.1)
    assert both.stages[1].options.macs == pytest.approx(0.2)  # 2:4 takes half of what is left


def test_too_few_epochs_are_refused_with_the_number_that_is_needed():
    cells = bench.cells(["shrink-iterative", "tfmot-gradual"], [0.9], [0])
    with pytest.raises(
        RecipeError,
        match=r"--epochs 6 .*shrink-iterative at least 7 \(train 1, shrink 5, quantize 1\)\. Give --epochs 7 or more",
    ):
        bench.check_epochs(cells, TERMS._replace(epochs=6))
    bench.check_epochs(cells, TERMS._replace(epochs=7))
    bench.check_epochs(cells, TERMS._replace(epochs=6, trained=True))


def test_baselines_come_first_and_methods_with_a_share_of_their_own_once():
    found = bench.cells(["two-of-four", "one-shot"], [0.5, 0.9], [0, 1])
    assert [cell.method for cell in found[:4]] == ["dense-ptq"] * 2 + ["dense"] * 2
    assert [(cell.method, cell.share, cell.seed) for cell in found[4:]] == [
        ("two-of-four", None, 0),
        ("two-of-four", None, 1),
        ("one-shot", 0.5, 0),
        ("one-shot", 0.5, 1),
        ("one-shot", 0.9, 0),
        ("one-shot", 0.9, 1),
    ]


def test_a_share_that_other_stages_alone_exceed_is_left_out_and_said():
    assert all(cell.share != 0.4 for cell in bench.cells(["shrink-then-two-of-four"], [0.4, 0.9], [0]))
    (words,) = bench.left_out(["shrink-then-two-of-four", "one-shot"], [0.4, 0.9])
    assert words.startswith("shrink-then-two-of-four takes no part at 0.4: its other stages alone take 0.5")


def test_stages_before_the_one_that_is_aimed_at_are_shared():
    assert bench.common_stages(recipe.load("tfmot-gradual")) == 1
    assert bench.common_stages(recipe.load("shrink-then-gradual")) == 2
    assert bench.common_stages(recipe.load("two-of-four")) == 1


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda: bench.chosen(["one-shoot"]), NameUnknown, r"no method 'one-shoot'\. Did you mean 'one-shot'\?"),
        (lambda: bench.chosen(["poly50"]), NameUnknown, "no method 'poly50'"),
        (lambda: bench.checked_shares([0.5, 1.0]), RecipeError, r"--sparsity 1: .* above 0 and below 1"),
        (lambda: bench.checked_shares([0.0]), RecipeError, r"--sparsity 0: "),
        (lambda: bench.checked_shares([90]), RecipeError, r"--sparsity 90: "),
        (lambda: bench.checked_shares([]), RecipeError, "--sparsity is empty"),
    ],
)
def test_words_that_cannot_be_taken(ask, error, message):
    with pytest.raises(error, match=message):
        ask()


def test_overrides_go_to_the_recipes_that_have_the_stage():
    terms = TERMS._replace(overrides={"stages.prune.frequency": 7, "data.validation": 0.2, "stages.profile.samples": 8})
    gradual, plain = (bench.settled(Cell(name, None, 0), terms) for name in ("two-of-four", "dense"))
    assert gradual.stages[1].options.frequency == 7
    assert {loaded.file.data.validation for loaded in (gradual, plain)} == {0.2}


# Arithmetic


def _cell(method, share, seed, metric, size=1000, **more):
    latency = {"ms": 2.0, "kind": "predicted"}
    known = {
        "metric": metric,
        "size_bytes": 2 * size,
        "size_gzip_bytes": size,
        "params": 10,
        "macs": 50,
        "sparsity": 0.5,
    }
    epochs = {"train": 8, "quantize": 4}
    return {
        "method": method,
        "share": share,
        "seed": seed,
        **known,
        "latency": latency,
        "training_s": 3.0,
        "epochs": epochs,
        **more,
    }


def _float(metric):
    return {"metric": metric, "size_bytes": 9000, "size_gzip_bytes": 8000, "params": 10, "macs": 50, "sparsity": 0.0}


CELLS = [
    _cell("dense-ptq", None, 0, 0.97, float=_float(0.98)),
    _cell("dense-ptq", None, 1, 0.99, float=_float(1.0)),
    _cell("one-shot", 0.9, 0, 0.90, 300),
    _cell("one-shot", 0.9, 1, 0.94, 300),
    _cell("shrink-taylor", 0.9, 0, 0.80, 200, macs=5, latency={"ms": None, "reason": "none"}),
]


def _league(cells=CELLS, metric=None, **more):
    given = {"name": "accuracy", "higher_is_better": True, "split": "test", "samples": 360, **(metric or {})}
    about = {name: recipe.load(name).file.method.model_dump() for name in ("one-shot", "shrink-taylor")}
    words = {"failures": [], "left_out": [], "planned": len(cells), "target_title": "Raspberry Pi 4", **more}
    return bench_view.league(terms=TERMS, cells=cells, metric=given, about=about, **words)


def test_rows_are_means_over_seeds_and_drops_are_paired():
    rows = {(row["method"], row["share"]): row for row in bench.rows(CELLS)}
    assert next(iter(rows)) == ("float", None)
    shot = rows["one-shot", 0.9]
    assert shot["metric"] == {"mean": 0.92, "spread": pytest.approx(0.028284, abs=1e-6)}
    assert shot["drop"] == {"mean": pytest.approx(0.07), "spread": pytest.approx(0.014142, abs=1e-6)}
    assert rows["float", None]["drop"] == {"mean": 0.0, "spread": 0.0}
    assert rows["shrink-taylor", 0.9]["latency_ms"] is None
    assert rows["shrink-taylor", 0.9]["seeds"] == [0]


def test_for_an_error_a_rise_is_the_drop():
    rows = {row["method"]: row for row in bench.rows(CELLS, higher_is_better=False)}
    assert rows["one-shot"]["drop"]["mean"] == pytest.approx(-0.07)


POINTS = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=30)


@given(points=POINTS, higher=st.booleans())
def test_the_front_is_what_nothing_dominates(points, higher):
    sign = 1 if higher else -1
    found = bench.front(points, higher)

    def dominates(one, other):
        better = one[0] <= other[0] and sign * one[1] >= sign * other[1]
        return better and one != other

    on_front = {points[place] for place in found}
    assert on_front == {point for point in points if not any(dominates(other, point) for other in points)}
    assert [points[place][0] for place in found] == sorted(points[place][0] for place in found)


def test_a_report_becomes_figures():
    report = {
        "candidates": {"final": {"metric": 0.9, "macs": 5, "file": "model.tflite"}, "float": {"metric": 0.95}},
        "history": {"train": {"epochs": [{"seconds": 1.5}, {"seconds": 0.5}]}, "prune": {}},
        "stages": [{"name": "train", "seconds": 4.0}],
        "verify": {"int8": {"holds": True}, "zeros_match": None},
    }
    assert bench.figures(report) == {
        "metric": 0.9,
        "macs": 5,
        "float": {"metric": 0.95},
        "dense_int8": None,
        "training_s": 2.0,
        "seconds": 4.0,
        "epochs": {"train": 2, "prune": 0},
        "int8": True,
        "zeros_match": None,
    }


# What is shown


def test_the_result_names_fronts_and_what_is_absent():
    absent = {"method": "shrink-layers", "share": 0.9, "seed": 0, "cannot": "no branch can go"}
    result = _league([*CELLS, absent], left_out=["b takes no part"], planned=6)
    names = [row["method"] for row in result["rows"]]
    assert [[names[place] for place in front] for front in result["fronts"].values()] == [
        ["shrink-taylor", "one-shot", "dense-ptq"],
        ["shrink-taylor", "dense-ptq"],
    ]
    assert result["left_out"] == ["b takes no part", "shrink-layers-0.9-seed0 cannot: no branch can go"]
    assert (result["planned"], result["seeds"], result["shares"]) == (5, [0, 1], [0.9])
    assert json.loads(json.dumps(result)) == result


def test_the_page_is_whole_escaped_and_asks_for_nothing():
    failure = {"method": "one-shot", "share": 0.98, "seed": 0, "reason": "<script>alert(1)</script>"}
    result = _league(failures=[failure])
    page = bench_view.html(result)
    assert page == bench_view.html(json.loads(json.dumps(result)))
    assert page.count("<svg") == 2
    assert "<script" not in page
    assert not re.search(r"(?:src|href|url\()=?[\"'(]?\s*https?:", page)
    assert "One-shot magnitude pruning" in page and "0.9200 ± 0.0283" in page and "−7.00 points" in page
    assert "default-src 'none'" in page


def _recording(width, height):
    return Console(width=width, height=height, force_terminal=True, record=True, file=io.StringIO())


def test_the_terminal_shows_every_row_best_first_below_what_removes_nothing():
    console = _recording(200, 50)
    console.print(bench_view.terminal(_league()))
    shown = console.export_text()
    order = [shown.index(f"\n{name}") for name in ("float", "dense-ptq", "one-shot", "shrink-taylor")]
    assert order == sorted(order)
    assert "90 % gone: One-shot magnitude pruning, 0.9200 ± 0.0283" in shown
    assert "300 B" not in shown and "0.3 KiB" in shown


def test_a_metric_that_is_an_error_is_no_share():
    result = _league(metric={"name": "mae", "higher_is_better": False})
    assert "+0.0700" not in bench_view.html(result)
    assert [line.name for line in bench_view.sections(result)[0].lines][-2:] == ["shrink-taylor", "one-shot"]


def test_nothing_yet():
    result = _league([], planned=9)
    assert "The league has only begun" in bench_view.html(result)
    assert "0 of 9 builds" in bench_view.summary(result)


def test_a_point_far_below_lies_at_the_edge():
    points = [bench_figures.Point(f"p{n}", "weights", 10.0 + n, 0.97 + n / 1000, 0.001) for n in range(5)]
    drawn = bench_figures.scatter(
        "x", [*points, bench_figures.Point("low", "channels", 9.0, 0.1, 0.0)], [0, 4], ("c", "m")
    )
    assert drawn.count('class="channels below"') == 1
    assert drawn.count("<circle") == 5 + 2  # two in the legend
    assert "<title>low: 0.1000" in drawn


@pytest.mark.parametrize("module", [bench, bench_figures], ids=lambda module: module.__name__)
def test_docstrings(module):
    assert doctest.testmod(module).failed == 0


# Running


FAKE = """
import json, os, sys, time
from pathlib import Path

request = json.loads(sys.stdin.readline())
name = request["recipe"]["name"]
with open("begun.log", "a") as log:
    log.write(name + chr(10))
folder = Path(request["folder"])
(folder / "stages").mkdir(parents=True, exist_ok=True)
metric = {"name": "accuracy", "higher_is_better": True, "split": "test", "samples": 8}
(folder / "report.json").write_text(json.dumps({"metric": metric, "target_title": "a board"}))

def say(**message):
    print(json.dumps(message), flush=True)

say(stage=["train", 1, 2])
say(step=[1, 4, "epochs"], values={"loss": 0.5})
time.sleep(float(os.environ.get("FAKE_SLEEP", 0)))
deed = os.environ.get("FAKE_" + request["recipe"]["name"].replace("-", "_").replace(".", "_"), "")
if deed == "die":
    os.kill(os.getpid(), 9)
if deed == "exit":
    sys.exit(7)
if deed in ("error", "cannot"):
    say(**{deed: "it would not"})
    sys.exit()
size = 1000 if request["recipe"].get("method") is None else 400
one = {"metric": 0.9, "size_bytes": size, "size_gzip_bytes": size, "params": 1, "macs": 5, "sparsity": 0.5,
       "latency": {"ms": 1.0}}
say(figures={**one, "float": one, "dense_int8": one, "training_s": 1.0, "seconds": 2.0, "epochs": {"train": 1},
             "int8": True, "zeros_match": True})
"""


@pytest.fixture
def league(tmp_path, monkeypatch):
    """Run leagues whose builds are made up, in a folder of their own."""
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_run, "COMMAND", (sys.executable, "fake.py"))

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
    ("deed", "words"), [("die", "signal 9, as it does when memory"), ("exit", "exit code 7; what it")]
)
def test_a_process_that_dies_takes_nobody_with_it(league, monkeypatch, deed, words):
    monkeypatch.setenv("FAKE_one_shot_0_9_seed0", deed)
    result = league(methods=["one-shot", "fine-tune"])
    assert words in result["failures"][0]["reason"]
    assert "fine-tune" in {cell["method"] for cell in result["cells"]}


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


def test_the_live_table_fits_the_terminal():
    console = _recording(100, 12)
    clock = iter(range(1000))
    board = bench_live.Board(console, lambda: float(next(clock)))
    board.plain = False
    board.begin(40, CELLS[:2])
    board.told(Cell("one-shot", 0.9, 0), {"stage": ["train", 1, 5]})
    board.told(Cell("one-shot", 0.9, 0), {"step": [2.5, 10, "epochs"], "values": {}})
    for seed in range(20):
        cell = Cell("fine-tune", 0.5 + seed / 100, 0)
        board.finished(cell, _cell(*cell, 0.9))
    board.failed(Cell("block", 0.9, 0), "it \x1b[2J would not")
    board.close()
    told = console.export_text()
    assert "block-0.9-seed0 came to nothing: it" in told and "\x1b" not in told
    again = _recording(100, 12)
    again.print(board)
    shown = again.export_text()
    assert len(shown.rstrip().splitlines()) <= 12
    assert "one-shot-0.9-seed0" in shown and "epoch 3/10" in shown
    assert "23/40 builds" in shown and "1 without a result" in shown


@pytest.mark.slow
def test_a_whole_league_of_a_small_model(tmp_path, monkeypatch):
    """Real builds, side by side; methods that begin alike share what they have in common."""
    import numpy as np

    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 8)).astype(np.float32)
    np.savez("data.npz", x=x, y=(x[:, 0] * x[:, 1] > 0).astype(np.int64))
    (tmp_path / "tiny.py").write_text(TINY)
    overrides = {"data.calibration": 32, "stages.profile.samples": 8, "stages.profile.count": False}
    words = {"epochs": 4, "seeds": [0], "shares": [0.5, 0.8], "jobs": 2, "overrides": overrides, "out": "league"}
    _, result = bench_run.run("tiny:build", "data.npz", methods=["tfmot-gradual"], **words)
    assert result["failures"] == []
    rows = {(row["method"], row["share"]): row for row in result["rows"]}
    assert rows["tfmot-gradual", 0.8]["sparsity"]["mean"] == pytest.approx(0.8, abs=0.05)
    assert rows["tfmot-gradual", 0.8]["size_gzip_bytes"]["mean"] < rows["dense", None]["size_gzip_bytes"]["mean"]
    assert all(cell["int8"] for cell in result["cells"])
    assert [cell["zeros_match"] for cell in result["cells"] if cell["method"] == "tfmot-gradual"] == [True, True]
    reports = [
        json.loads(Path(f"league/cells/tfmot-gradual-{share}-seed0/report.json").read_text()) for share in (0.5, 0.8)
    ]
    assert len({report["stages"][0]["seconds"] for report in reports}) == 1  # trained once
    kept = yaml_files.read(Path("league/cells/tfmot-gradual-0.5-seed0/recipe.yaml"))
    assert kept["stages"]["prune"]["final"] == 0.5


TINY = """
def build():
    from edgeprune.keras import keras

    inputs = keras.Input((8,), name="x")
    hidden = keras.layers.Dense(32, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(2, activation="softmax", name="classes")(hidden))
"""
