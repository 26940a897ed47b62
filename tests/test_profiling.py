"""`profile` on the emulated board: a predicted latency with its error, the same every time; and without the emulator."""

import json
from pathlib import Path

import pytest
from test_forecast import two_convolutions

from edgeprune import forecast, profiling, progress, registry
from edgeprune import target as targets
from edgeprune.devices import qemu
from edgeprune.errors import DeviceError

RPI4 = targets.load(registry.file("targets", "rpi4"))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(two_convolutions())
    return path


def profile(path: Path, target=RPI4, threads=None):
    return profiling.profile(path, target, targets.connection(target), threads, progress.choose(quiet=True))


@pytest.mark.qemu
def test_a_profile_on_the_emulated_board(file):
    reason = qemu.unavailable(RPI4, targets.connection(RPI4)) or qemu.uncountable(RPI4)
    if reason:
        pytest.skip(reason)
    first, second = profile(file), profile(file)
    assert json.loads(json.dumps(first))["latency"] == first["latency"]
    latency = first["latency"]
    assert latency["kind"] == "predicted" and latency["error_pct"] > 0 and latency["threads"] == 4
    assert latency["ms"] == pytest.approx(first["fixed_ms"] + sum(op["ms"] for op in first["ops"]))
    assert [(op["index"], op["op"]) for op in first["ops"]] == [(0, "CONV_2D"), (1, "CONV_2D"), (2, "ADD")]
    assert first["ops"][0]["ms"] == pytest.approx(first["ops"][1]["ms"], rel=0.1)
    assert first["instructions"] > 3 * 64 * 16 * 16 / 16
    assert [one["runtime"].split()[0] for one in first["runtimes"]] == ["tflite-runtime", "ai-edge-litert"]
    assert second["cycles"] == pytest.approx(first["cycles"], rel=0.005)
    assert second["latency"]["ms"] == pytest.approx(latency["ms"], rel=0.005)


def test_without_an_emulator_the_shapes_tell_it(file, monkeypatch):
    monkeypatch.setattr(qemu, "unavailable", lambda target, connection: "the Arm emulator is not installed")
    monkeypatch.setattr(qemu, "uncountable", lambda target, runtime=None: "the Arm emulator is not installed")
    figures = profile(file)
    assert figures["kind"] == "predicted" and figures["how"] == forecast.FROM_SHAPES
    assert figures["uncounted"] == "the Arm emulator is not installed"
    assert figures["latency"]["ms"] > 0 and figures["latency"]["error_pct"] > 0
    assert figures["runtimes"][0]["latency"] == figures["latency"]


def test_where_nothing_is_known_the_reason_is_an_error(file, monkeypatch):
    monkeypatch.setattr(qemu, "unavailable", lambda target, connection: "the Arm emulator is not installed")
    monkeypatch.setattr(qemu, "uncountable", lambda target, runtime=None: "the Arm emulator is not installed")
    with pytest.raises(DeviceError, match="the Arm emulator is not installed"):
        profile(file, targets.load(registry.file("targets", "rpi5")))
