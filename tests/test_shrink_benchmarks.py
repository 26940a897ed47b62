"""What the benchmarks of shrinking make of their measurements: summaries, verdicts and tables; nothing is trained here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scripts import loaded

from edgeprune import recipe
from edgeprune.errors import RecipeError

ROOT = Path(__file__).parents[1]


cost, curves, torch_pruning, records = (
    loaded("benchmarks", name) for name in ("surgery_cost", "shrink_curves", "torch_pruning", "records")
)
generate = loaded("docs", "generate")
figures = sys.modules["page_figures"]
SETTINGS = curves.Settings(0, 0, 6, 128, 0.003, 5, 1, 32, 0.001, 0.05, "taylor", "rpi4")


def _file(metric, macs=100, size=1000):
    return {
        "metric": metric,
        "base_metric": 0.75,
        "macs": macs,
        "size_bytes": size,
        "size_gzip_bytes": size // 2,
        "arena_bytes": macs,
    }


ROWS = {
    "float": {"0": _file(0.80), "1": _file(0.82)},
    "cells": {
        "0.5": {"0": _file(0.79, 50, 500), "1": _file(0.83, 40, 400)},
        "0.25": {"0": _file(0.70, 25, 250), "2": _file(0.9, 25, 250)},  # no reference for seed 2
        "0.1": {"2": _file(0.9, 10, 100)},
    },
}


def test_a_network_and_its_shares():
    assert curves.network("resnet8@0.75,0.5") == ("resnet8", (0.75, 0.5))
    assert curves.network("resnet8") == ("resnet8", curves.SHARES)


@pytest.mark.parametrize(("word", "message"), [("resnet8@half", "Give shares"), ("resnet8@1.5", "between 0 and 1")])
def test_shares_that_are_none(word, message):
    with pytest.raises(RecipeError, match=message):
        curves.network(word)


def test_every_build_of_a_seed_sees_as_many_epochs_and_the_same_samples():
    base, reference = (recipe.load(make(SETTINGS, 1)) for make in (curves.base_recipe, curves.float_recipe))
    cell = recipe.load(curves.cell_recipe(SETTINGS, 1, 0.4))
    epochs = {
        found.name: sum(getattr(stage.options, "epochs", 0) for stage in found.stages)
        for found in (base, reference, cell)
    }
    assert epochs == {"base": 6, "float": 6, "share-0.4": 6}
    assert base.file.data == reference.file.data == cell.file.data
    assert {found.seed for found in (base, reference, cell)} == {1}
    assert cell.resolved()["stages"]["shrink"]["macs"] == 0.4


def test_the_summary_is_over_the_seeds_that_have_a_reference():
    half, quarter = curves.summary(ROWS)
    assert (half["share"], half["seeds"]) == (0.5, 2)
    assert half["drop"] == {"mean": 0.0, "spread": 0.02}
    assert half["float_metric"] == {"mean": 0.81, "spread": 0.02}
    assert half["times_less"]["macs"] == 2.25  # of 2 and 2.5
    assert (quarter["share"], quarter["seeds"], quarter["drop"]["mean"]) == (0.25, 1, 0.1)


def test_the_best_point_is_the_smallest_that_keeps_the_drop():
    points = curves.summary(ROWS)
    assert curves.best(points)["share"] == 0.5
    assert curves.best(points, 0.2)["share"] == 0.25
    assert curves.best(points, -1) is None


def test_results_of_other_settings_are_not_mixed(tmp_path):
    path = tmp_path / "results.json"
    about = {"data": "cifar10.npz", "settings": SETTINGS._asdict()}
    record = records.opened(path, "What it is.\n\nMore.", about)
    assert record["what"] == "What it is."
    path.write_text(json.dumps(record))
    assert records.opened(path, None, about) == record
    with pytest.raises(RecipeError, match="--results"):
        records.opened(path, None, {**about, "settings": SETTINGS._replace(train_epochs=7)._asdict()})


def test_the_pictures_are_the_same_for_the_same_results(tmp_path):
    pytest.importorskip("matplotlib")
    sides = {side: {"0": {"after_cut": 0.1, "metric": 0.6}} for side in torch_pruning.SIDES}
    records = ((curves, {"networks": {"resnet8": ROWS}}), (torch_pruning, {"accuracy": {"l2": sides}}))
    for script, record in records:
        first, second = (script.drawn(record, tmp_path / name).read_text() for name in ("a.svg", "b.svg"))
        assert first == second
        assert first.lstrip().startswith("<?xml")


def test_the_middle_of_repeats_and_whether_all_hold():
    def row(total, gib=0.5):
        return {"seconds": {"total": total}, "peak_above_gib": gib}

    found = cost.middle([row(9.0), row(3.0), row(5.0)])
    assert (found["seconds"]["total"], found["totals_s"], found["holds"]) == (5.0, [3.0, 5.0, 9.0], True)
    assert not cost.middle([row(9.0), row(15.0)])["holds"]
    assert not cost.middle([row(9.0, 2.0)])["holds"]


def test_the_cut_of_the_cost_benchmark_keeps_the_stronger_half():
    from edgeprune import channels
    from edgeprune.keras import channel_graph, keras

    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(4, name="hidden", use_bias=False)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="out")(hidden))
    model.get_layer("hidden").set_weights([np.tile(np.float32([1, 4, 3, 2]), (4, 1))])
    assert {
        name: units.tolist() for name, units in cost._half(model, _coupling(channels, channel_graph, model)).items()
    } == {"hidden": [1, 2]}


def _coupling(channels, channel_graph, model):
    return channels.couple(channel_graph.describe(model))


def test_rank_correlation_by_hand():
    assert torch_pruning.rank_correlation(np.array([1.0, 2, 3]), np.array([10.0, 20, 90])) == pytest.approx(1)
    assert torch_pruning.rank_correlation(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == pytest.approx(-1)
    # Ranks 1.5 1.5 3 against 1 2 3: covariance 1.5, variances 1.5 and 2 (all times 3).
    assert torch_pruning.rank_correlation(np.array([1.0, 1, 3]), np.array([1.0, 2, 3])) == pytest.approx(
        1.5 / np.sqrt(1.5 * 2)
    )


def test_scores_are_compared_after_both_have_mean_1():
    found = torch_pruning.compared({"a": (np.array([1.0, 3]), np.array([10.0, 30]))})
    assert found == {"rank_correlation": 1.0, "least_rank_correlation": 1.0, "largest_difference": 0.0}
    assert torch_pruning.compared({"a": (np.array([1.0, 3]), np.array([1.0, 7]))})["largest_difference"] == 0.25


def test_a_criterion_of_one_kernel_is_pooled_over_its_outputs():
    kernel = np.array([[[[3.0, 1], [4, 0]]]])  # (1, 1, 2 in, 2 out)
    assert torch_pruning.first("l2", {"weights": kernel}).tolist() == [5, 1]
    assert torch_pruning.first("slimming", {"scale": np.array([-2.0, 1])}).tolist() == [2, 1]


@pytest.mark.parametrize(("ours", "holds"), [([0.80, 0.82], True), ([0.79, 0.80], True), ([0.70, 0.71], False)])
def test_ours_may_be_lower_by_the_spread_but_not_by_more(ours, holds):
    sides = {
        side: {str(seed): {"metric": metric} for seed, metric in enumerate(metrics)}
        for side, metrics in {"edgeprune": ours, "torch-pruning": [0.80, 0.82]}.items()
    }
    assert torch_pruning.verdict(sides)["holds"] is holds


def test_no_seed_on_both_sides_is_no_verdict():
    found = torch_pruning.verdict({"edgeprune": {"0": {"metric": 0.8}}, "torch-pruning": {"1": {"metric": 0.8}}})
    assert found == {"seeds": 0, "holds": False}


def test_every_criterion_of_the_comparison_is_one_of_ours():
    from edgeprune import registry

    assert {pair.ours for pair in torch_pruning.PAIRS} <= set(registry.names("criteria"))
    assert all(pair.why or "groups" in pair.equal for pair in torch_pruning.PAIRS)


def test_the_same_seed_samples_the_same_images_in_the_same_order():
    data = {f"{part}_{split}": np.arange(50) for part in "xy" for split in ("train", "test")}
    settings = torch_pruning.Settings(20, 2, 8, 1e-3, 0.5, 8)
    one, other = (torch_pruning.sampled(data, settings, 3) for _ in range(2))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert sorted(one["orders"][1].tolist()) == list(range(20))
    assert not np.array_equal(one["x_train"], torch_pruning.sampled(data, settings, 4)["x_train"])


def test_tables_say_what_is_not_there_yet(monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules["page_parts"], "RESULTS", tmp_path)
    for name, script in (("shrink-curves", "shrink_curves"), ("surgery-cost", "surgery_cost")):
        assert f"Not measured yet: `python benchmarks/{script}.py`" in generate.BLOCKS[name]()
    record = {"networks": {}, "settings": SETTINGS._asdict(), "data": "cifar10.npz"}
    assert "No cell has a reference yet" in figures._shrink_curves(record)
    assert "No network has been cut" in figures._torch_pruning({"criteria": []})


def test_the_table_of_curves_has_the_cells_with_a_reference():
    record = {"networks": {"resnet8": ROWS}, "settings": SETTINGS._asdict(), "data": "cifar10.npz"}
    table = figures._shrink_curves(record)
    assert "| resnet8 | 0.5 | 2 | 0.7500 | 0.8100 | 0.8100 | +0.0100, -0.0100 | 2.25x | 2.25x |" in table
    assert "| resnet8 | 0.25 | 1 |" in table
    assert "| resnet8 | 0.1 |" not in table
