"""Users' own ``compile`` and ``fit`` of pruned, penalised, gated, taught and quantized models, on one device and on several.

Every way to train is a process of its own (`distributed`), since devices, policies and clusters are global. What several
replicas compute with their summed gradients is what one device computes with the whole batch, so both must end in the same weights.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long]

SCRIPT = Path(__file__).with_name("distributed.py")
EXACT = ("masked", "taught", "hard_concrete", "wrapped")  # what does not depend on how a batch is shared out
INGREDIENTS = (*EXACT, "quantized")


def _start(*words):
    environment = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    return subprocess.Popen(
        [sys.executable, SCRIPT, *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _said(process):
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err[-4000:]
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def mirrored():
    return _said(_start("mirrored"))


def _free_ports(count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def workers():
    """Two processes on the loopback that train one model together."""
    ports = _free_ports(2)
    processes = [_start("worker", index, *ports, "masked") for index in range(2)]
    try:
        return [_said(process) for process in processes]
    finally:
        for process in processes:
            process.kill()


def _sound(found):
    """It was trained as the user asked, with their callbacks and metrics, and its zeros are there."""
    assert "error" not in found, found["error"]
    assert (found["batches"], found["epochs"]) == (12, 3)
    assert set(found["counted"]) == {64.0}
    assert set(found["broken"].values()) <= {0}


@pytest.mark.parametrize("name", INGREDIENTS)
def test_two_devices_end_in_the_weights_of_one(mirrored, name):
    alone, found = mirrored["alone"][name], mirrored["found"][name]
    assert mirrored["replicas"] == 2
    for one in (alone, found):
        _sound(one)
    assert found["apart"] == 0.0
    assert found["zeros"] == alone["zeros"]
    tolerance = 1e-5 if name in EXACT else 0.02  # activations' ranges are a mean over replicas
    assert found["weights"] == pytest.approx(alone["weights"], rel=tolerance)
    assert found["loss"] == pytest.approx(alone["loss"], rel=tolerance)
    assert found["none"] == alone["none"]


def test_two_workers_end_in_the_weights_of_one_device(mirrored, workers):
    alone = mirrored["alone"]["masked"]
    for worker in workers:
        found = worker["found"]["masked"]
        assert worker["replicas"] == 2
        _sound(found)
        assert found["zeros"] == alone["zeros"]
        assert found["weights"] == pytest.approx(alone["weights"], rel=1e-5)


def test_a_build_on_two_devices_is_that_on_one_but_for_rounding(tmp_path):
    """Of 176 samples in batches of 16 the validation split leaves a last batch that has to be filled up."""
    both = _said(_start("build", tmp_path))
    alone, found = both["alone"], both["found"]
    assert found["units"] == alone["units"] and found["units"]["conv"] < 8
    assert found["zeros"] == alone["zeros"] and found["zeros"]["conv"] == 0.5
    assert found["notes"] == alone["notes"]
    assert list(found["losses"]) == ["train", "shrink", "prune", "quantize"]
    for name, losses in found["losses"].items():
        tolerance = 0.02  # activations' ranges, and samples that fill a batch count twice
        assert losses == pytest.approx(alone["losses"][name], rel=tolerance), name
    assert found["losses"] != alone["losses"]


@pytest.fixture(scope="module")
def half():
    return _said(_start("half", "masked", "hard_concrete"))["found"]


@pytest.mark.parametrize("name", ["masked", "hard_concrete"])
def test_in_half_precision_it_is_the_same_but_for_rounding(mirrored, half, name):
    _sound(half[name])
    assert half[name]["zeros"] == mirrored["alone"][name]["zeros"]
    assert half[name]["weights"] == pytest.approx(mirrored["alone"][name]["weights"], rel=0.05)
