"""The league of methods in the docs: tables and pictures from a small record, and the benchmark's own terms."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scripts import loaded
from test_bench import CELLS, _cell, _league

from edgeprune import bench, bench_run, recipe, registry

ROOT = Path(__file__).parents[1]
NETWORK = "LeNet-5, MNIST"


league, benchmark = loaded("docs", "methods_league"), loaded("benchmarks", "methods_league")


@pytest.fixture
def record():
    return {"leagues": {NETWORK: _league([*CELLS, _cell("two-of-four", None, 0, 0.97)], left_out=["a takes no part"])}}


def test_tables_rank_below_what_removes_nothing(record):
    words = league.tables(record)
    lines = [line.split(" | ")[0] for line in words.splitlines() if line.startswith("| ") and "---" not in line]
    assert lines == [
        "| method",
        "| float",
        "| `dense-ptq`",
        "| `one-shot`",
        "| `shrink-taylor`",
        "| method",
        "| float",
        "| `dense-ptq`",
        "| `two-of-four`",
    ]
    assert "0.9200 ± 0.0283" in words and "a takes no part." in words
    assert "(pictures/methods-lenet-5-mnist.svg)" in words


def test_published_orderings_are_judged_seed_by_seed(record):
    """By hand: 0.03 and 0.01 are 0.02 on average, with a spread of 0.0141; -0.01 alone holds not."""
    tickets = [{"ticket": 0.9, "random": 0.7}, {"ticket": 0.8, "random": 0.81}]
    cells = [
        _cell("rigl", 0.9, 0, 0.93),
        _cell("rigl", 0.9, 1, 0.92),
        _cell("rigl", 0.98, 0, 0.80),
        _cell("set", 0.9, 0, 0.90),
        _cell("set", 0.9, 1, 0.91),
        _cell("set", 0.98, 0, 0.81),
        *(_cell("lottery-ticket", 0.9, seed, 0.9, tickets=found) for seed, found in enumerate(tickets)),
    ]
    words = league.tables({"leagues": {NETWORK: _league([*CELLS, *cells])}})
    assert "| `rigl` over `set`, Evci et al. (2020) | 0.9 | 2 | +0.0200 ± 0.0141 | holds |" in words
    assert "| `rigl` over `set`, Evci et al. (2020) | 0.98 | 1 | -0.0100 | does not hold |" in words
    assert (
        "| the ticket over a random one, Frankle & Carbin (2019) | 0.9 | 2 | +0.0950 ± 0.1485 | within the spread |"
        in words
    )
    few = league.tables({"leagues": {NETWORK: _league([*CELLS, *cells]) | {"test": 800}}})
    assert "| 0.98 | 1 | -0.0100 | may be chance |" in few  # the standard error of 800 samples is 0.025 at most
    assert "| 0.9 | 2 | +0.0200 ± 0.0141 | holds |" in few
    assert "fine-tune" not in words and "its mask on new weights" not in words
    assert "as published" not in league.tables(record)


def test_the_picture_stands_alone(record):
    ((name, drawn),) = league.pictures(record).items()
    assert name == "methods-lenet-5-mnist.svg"
    assert ElementTree.fromstring(drawn).tag.endswith("svg")  # noqa: S314 - our own
    assert "http" not in drawn.replace("http://www.w3.org/2000/svg", "")


def test_every_method_has_epochs_enough_in_the_benchmarks():
    needs = [sum(bench.needed_epochs(recipe.load(name), False).values()) for name in registry.names("methods")]
    assert max(needs) <= min(terms.epochs for terms in benchmark.LEAGUES.values())


def test_the_benchmark_adds_a_network_to_what_is_there(tmp_path, monkeypatch):
    results = tmp_path / "methods.json"
    results.write_text(json.dumps({"leagues": {"another": {"rows": []}}}))
    result = _league()
    asked = {}
    source = tmp_path / "mnist.npz"
    np.savez(source, **{f"{axis}_{part}": np.arange(20_000) for axis in "xy" for part in ("train", "test")})
    monkeypatch.setattr(
        bench_run, "run", lambda model, data, **words: (asked.update(words, data=data), (tmp_path, result))[1]
    )
    monkeypatch.setattr(
        "sys.argv",
        [
            "x",
            str(source),
            "cifar10.npz",
            "--networks",
            NETWORK,
            "--epochs",
            "9",
            "--results",
            str(results),
            "--work",
            str(tmp_path),
        ],
    )
    assert benchmark.main() == 0
    written = json.loads(results.read_text())["leagues"]
    assert list(written) == ["another", NETWORK]
    assert written[NETWORK]["rows"] == result["rows"]
    assert asked["epochs"] == 9 and asked["methods"] is None
    assert written[NETWORK]["data"] == "mnist.npz"
    with np.load(asked["data"]) as drawn:
        assert {name: len(drawn[name]) for name in drawn} == {
            "x_train": benchmark.LEAGUES[NETWORK].train,
            "y_train": benchmark.LEAGUES[NETWORK].train,
            "x_test": benchmark.LEAGUES[NETWORK].test,
            "y_test": benchmark.LEAGUES[NETWORK].test,
        }
        assert (drawn["x_train"] == drawn["y_train"]).all()
