"""Searches in the docs: what the benchmarks of samplers and of workers measured, as tables and a picture."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from scripts import loaded

ROOT = Path(__file__).parents[1]
NETWORK = "LeNet-5, MNIST"


searches, scaling = loaded("docs", "searches"), loaded("benchmarks", "search_scaling")


def _volume(sampler, seed, last, network=NETWORK):
    volume = {"25": round(last - 0.1, 4), "50": last}
    return {
        "phase": "volume",
        "network": network,
        "sampler": sampler,
        "seed": seed,
        "volume": volume,
        "samples": 512,
    }


def _trained(sampler, seed, test, trials):
    row = {"phase": "trained", "network": NETWORK, "sampler": sampler, "seed": seed, "test": test, "trials": trials}
    return row | {"latency_ms": 1.5, "limit_ms": 1.6, "whole_ms": 3.2, "size_bytes": 2048, "float_test": 0.99}


@pytest.fixture
def record():
    volumes = {"tpe": (0.70, 0.74), "random": (0.60, 0.62), "uniform": (0.50, 0.50)}
    cells = [_volume(name, seed, value) for name, values in volumes.items() for seed, value in enumerate(values)]
    cells.append(_volume("amc", 0, 0.9))  # its second seed is not there yet
    cells += [_volume("random", 0, 0.4, "a <wide> one"), _volume("tpe", 0, 0.3, "a <wide> one")]
    cells += [_trained("tpe", seed, test, 50) for seed, test in enumerate((0.97, 0.95))]
    cells += [_trained("uniform", seed, test, 1) for seed, test in enumerate((0.93, 0.93))]
    return {"cells": cells}


def _lines(words, heading):
    part = words.partition(heading)[2].partition("\n###")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("| `")
    ]


def test_samplers_rank_by_volume_and_are_compared_seed_by_seed(record):
    """By hand: 0.70 - 0.60 and 0.74 - 0.62 are 0.11 on average, their deviation 0.02 / sqrt 2."""
    words = searches.tables(record)
    volumes = [line for line in _lines(words, f"### {NETWORK}") if len(line) == 5]
    assert [line[0] for line in volumes] == ["`tpe`", "`random`", "`uniform`"]  # amc has a seed less
    assert volumes[0][2:] == ["0.7200 ± 0.0283", "+0.1100 ± 0.0141", "+0.2200 ± 0.0283"]
    assert volumes[1][3] == "" and "512 samples" in words


def test_what_was_found_stands_beside_the_uniform_width(record):
    found = [line for line in _lines(searches.tables(record), f"### {NETWORK}") if len(line) == 6]
    assert [line[0] for line in found] == ["`tpe`", "`uniform`"]
    assert found[0][4:] == ["0.9600 ± 0.0141", "+0.0300 ± 0.0141"] and found[1][5] == ""
    assert "least drop of 50 trials at 1.600 ms" in searches.tables(record)


def test_the_least_drop_under_a_limit_comes_before_training(record):
    terms = {"phase": "limit", "network": NETWORK, "limit_ms": 1.6, "whole_ms": 3.2}
    for sampler, drops in {"netadapt": (None, 0.1), "legr": (0.3, 0.2), "amc": (0.2, 0.5)}.items():
        for seed in range(2):
            record["cells"].append(
                {**terms, "sampler": sampler, "seed": seed, "least": {"25": drops[0], "50": drops[1]}}
            )
    found = [line for line in _lines(searches.tables(record), "At most 1.600 ms") if len(line) == 3]
    assert found == [
        ["`netadapt`", "none keeps it", "0.1000 ± 0.0000"],
        ["`legr`", "0.3000 ± 0.0000", "0.2000 ± 0.0000"],
        ["`amc`", "0.2000 ± 0.0000", "0.5000 ± 0.0000"],
    ]


def test_places_count_every_search(record):
    """tpe is first twice and second once; a search of the other network with one seed counts as one."""
    places = {line[0]: line[1:] for line in _lines(searches.tables(record), "### All searches together")}
    assert places["`tpe`"] == ["1.3", "1", "2", "3"] and places["`random`"] == ["1.7", "1", "2", "3"]


def test_the_picture_stands_alone_and_escapes_names(record):
    root = ElementTree.fromstring(searches.picture(record))  # noqa: S314 - our own
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert f"{NETWORK}: 50 trials" in texts and "a <wide> one: 50 trials" in texts
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 8


def test_nothing_measured_is_no_table():
    assert searches.tables({"cells": []}).strip() == ""
    ElementTree.fromstring(searches.picture({"cells": []}))  # noqa: S314


def test_fleets_are_as_fast_as_their_storage():
    """A storage of 10 trials a second and evaluations of a second: eleven workers would ask for all of it."""
    rows = {row["workers"]: row for row in scaling.simulated([1.0], 0.1, (1, 4, 11, 44))}
    assert rows[1]["efficiency"] == pytest.approx(1.0, abs=0.01)
    assert rows[4]["efficiency"] > 0.95
    assert rows[44]["per_hour"] == pytest.approx(36_000, rel=0.02)
    assert rows[44]["storage_busy"] == pytest.approx(1.0, abs=0.02) and rows[44]["efficiency"] == pytest.approx(
        0.25, abs=0.02
    )


def test_scaling_shows_all_three_figures():
    fleets = scaling.simulated([1.0], 0.01, (1, 64))
    words = searches.scaling(
        {
            "kind": "postgresql+psycopg",
            "cores": 2,
            "workers": {"1": {"per_hour": 3600.0, "trials": 90}, "2": {"per_hour": 5400.0, "trials": 88}},
            "storage": {"4": {"trials_per_s": 51.24, "client_cpu_ms": 30.2, "server_cpu_ms": 7.8}},
            "limits_trials_per_s": {"together": 51.24, "alone": 256.4},
            "simulated": {"together": fleets, "alone": fleets},
        }
    )
    assert words.startswith("postgresql, 2 cores.")
    assert "| 2 | 5,400 | 88 |" in words and "| 4 | 51.2 | 30 | 7.8 |" in words
    assert "256.4 trials/s with a machine of its own" in words and "| 1 | 3,564 | 100 % | 3,564 | 100 % |" in words
