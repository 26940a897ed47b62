"""The league of criteria: which cells there are, and tables and picture from a small record."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from scripts import loaded

from edgeprune import registry

ROOT = Path(__file__).parents[1]
NETWORK = "LeNet-5, MNIST"


league, bench = loaded("docs", "league"), loaded("benchmarks", "criteria_league")


def _cell(criterion, seed, metric, schedule="one-shot", aim=0.75):
    figures = {"metric": metric, "metric_untuned": 0.25, "macs": 200, "params": 2_000, "int8_bytes": 3_072}
    return {**_word(criterion, seed, schedule, aim), **figures}


def _word(criterion, seed, schedule="one-shot", aim=0.75, what="channels"):
    keys = {"network": NETWORK, "league": what, "schedule": schedule, "aim": aim}
    return {**keys, "criterion": criterion, "seed": seed}


@pytest.fixture
def record():
    cells = [_cell("random", seed, metric) for seed, metric in enumerate((0.5, 0.6, 0.7))]
    cells += [_cell("taylor", seed, metric) for seed, metric in enumerate((0.89, 0.9, 0.91))]
    cells += [_cell("l0", seed, metric) for seed, metric in enumerate((0.1, 0.2, 0.3))]
    cells += [_cell(name, 0, 0.95, "iterative", 0.5) for name in ("random", "taylor")]
    cells += [{**_word("slimming", seed), "reason": "no BatchNormalization is behind it"} for seed in range(3)]
    cells += [{**_cell("synaptic_strength", 0, 0.97), "macs": 600, "left_whole": ["dense1"]}]
    zeros = {"metric": 0.75, "metric_untuned": 0.125, "zeros": 0.98}
    cells += [{**_word("lamp", 0, aim=0.98, what="weights"), **zeros}]
    return {
        "networks": {NETWORK: {"float_samples": 12_000, "float_epochs": 4, "samples": 2_000, "test": 4_000}},
        "aims": {"channels": [0.75, 0.5], "weights": [0.9, 0.98]},
        "fine_tuning": {"epochs": 3},
        "float": {f"{NETWORK}, seed {n}": {"metric": 0.98, "macs": 1_000, "params": 9_000} for n in range(3)},
        "planned": 20,
        "cells": cells,
    }


def test_a_table_ranks_by_accuracy_and_says_what_is_missing(record):
    words = league.tables(record)
    assert f"{len(record['cells'])} of 20 cells are there" in words
    part = words.split("#### 0.75 of the channels gone")[1].split("####")[0]
    assert re.findall(r"^\| \**`(\w+)`", part, re.MULTILINE) == ["taylor", "random", "l0", "synaptic_strength"]
    assert "| `taylor` | 0.250 ± 0.000 | 0.900 ± 0.010 |  | 200 | 2,000 | 3.0 |" in part
    assert "1 of 2 criteria are above `random` by more than the spreads of both, 1 below" in part
    assert "`synaptic_strength` cannot score `dense1` and leaves them whole" in part
    assert "`slimming` does not take part: no BatchNormalization is behind it." in part
    assert "0.950 (1 seed)" in words.split("#### 0.5 of the channels gone")[1].split("####")[0]
    assert "| `lamp` |  |  | 0.125 (1 seed) | 0.750 (1 seed) |" in words.split("#### Single weights")[1]


def test_a_whole_league_says_so(record):
    assert "All 16 cells are there." in league.tables({**record, "planned": 16})


def test_the_spread_is_that_of_a_sample():
    assert str(league.figure([{"metric": 0.5}, {"metric": 0.6}, {"metric": 0.7}])) == "0.600 ± 0.100"
    assert league.figure([{"reason": "none"}]) is None


def test_the_picture_is_whole_and_marks_best_worst_and_chance(record):
    image = ElementTree.fromstring(league.picture(record))  # noqa: S314 - drawn here
    labels = [text.text for text in image.iter("{http://www.w3.org/2000/svg}text")]
    assert [label for label in labels if label.endswith(("0.900", "0.600", "0.200"))] == [
        *("taylor 0.900", "random 0.600", "l0 0.200")
    ]
    assert any("cells" in label for label in labels)
    for line in image.iter("{http://www.w3.org/2000/svg}polyline"):
        points = [float(value) for pair in line.get("points").split() for value in pair.split(",")]
        assert all(0 <= value <= league.WIDTH for value in points)


def test_nothing_measured_yet_can_be_drawn(record):
    empty = {**record, "float": {}, "cells": []}
    assert "Not measured yet." in league.tables(empty)
    assert "not measured yet" in league.picture(empty)


def test_every_criterion_competes_once_per_seed_and_aim():
    cells = list(bench.cells(["one-shot", "weights", "iterative"], list(bench.NETWORKS), [0, 1, 2]))
    assert len(cells) == len(set(cells))
    assert {cell.criterion for cell in cells if cell.schedule == "iterative"} == set(registry.names("criteria"))
    assert {"magnitude", "lamp", "snip", "random"} <= set(bench.competitors("weights"))
    assert not {"l0", "l2", "linf", "fpgm", "slimming", "taylor_channel"} & set(bench.competitors("weights"))


def test_results_are_taken_up_again_unless_their_settings_differ(tmp_path):
    path = tmp_path / "league.json"
    record = bench._opened(path)
    record["cells"] += [_cell("random", 0, 0.5), _cell("random", 1, 0.5)]
    bench._write(path, record)
    assert bench._opened(path) == json.loads(json.dumps(record))
    assert sum('"criterion"' in line for line in path.read_text().splitlines()) == 2
    path.write_text(path.read_text().replace('"signal_samples": 256', '"signal_samples": 255'))
    with pytest.raises(SystemExit, match="signal_samples"):
        bench._opened(path)


@pytest.mark.parametrize(("name", "params", "macs"), [("lenet5", 61_706, 416_520), ("vgg_small", 83_002, 9_889_792)])
def test_the_networks_are_of_the_size_that_they_say(name, params, macs):
    from edgeprune.keras import inspect

    found = inspect.inventory(name.replace("_", "-"))
    assert (found["params"], found["macs"]) == (params, macs)
