"""The league of methods: its terms, its arithmetic, and what is shown of it."""

from __future__ import annotations

import doctest
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from edgeprune import bench, bench_figures, bench_live, bench_view, recipe, registry
from edgeprune.bench import Cell
from edgeprune.errors import NameUnknown, RecipeError

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


def test_overrides_pass_by_where_they_would_say_nothing():
    terms = TERMS._replace(overrides={"stages.gate.multiples": 1, "stages.gate.scope": "network"})
    channels, weights = (bench.settled(Cell(name, 0.5, 0), terms).stages[1].options for name in ("l0-channels", "l0"))
    assert (channels.multiples, channels.scope) == (1, None)
    assert (weights.multiples, weights.scope) == (None, "network")


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
    found = {"ticket": 0.9, "random": 0.8}
    assert bench.figures({**report, "sparsify": {"sparsify": {"tickets": found}}})["tickets"] == found
    assert "tickets" not in bench.figures({**report, "sparsify": {"sparsify": {"rounds": 1}}})


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
    more = [{**absent, "seed": 1}, {**absent, "method": "l0", "share": 0.98}]
    result = _league([*CELLS, absent, *more])
    assert result["left_out"] == ["shrink-layers-0.9 (seeds 0, 1), l0-0.98-seed0 cannot: no branch can go"]
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
