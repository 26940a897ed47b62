"""`profile` on the emulated board: a predicted latency with its error, the same every time; and without the emulator."""

import json
from pathlib import Path

import pytest
from test_forecast import two_convolutions
from tflite_files import build, operator, tensor

from edgeprune import cli, forecast, profiling, progress, registry
from edgeprune import target as targets
from edgeprune.devices import local, qemu
from edgeprune.errors import DeviceError

RPI4, HOST = (targets.load(registry.file("targets", name)) for name in ("rpi4", "host"))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(two_convolutions())
    return path


def profile(path: Path, target=RPI4, threads=None):
    return profiling.profile(path, target, targets.connection(target), threads, progress.choose(quiet=True))


def torn(content):
    return content[: len(content) // 2]


def custom(_):
    """An ADD, then an op of somebody's own."""
    maps = [tensor(name, (1, 8, 8, 16), scale=[0.1], zero=[0]) for name in "abc"]
    ops = [operator("ADD", [0, 0], [1], "AddOptions"), operator("MyOwnOp", [1], [2])]
    return build(maps, ops, inputs=[0], outputs=[2])


def floating(_):
    maps = [tensor(name, (1, 8, 8, 16), "FLOAT32") for name in "ab"]
    return build(maps, [operator("ADD", [0, 0], [1], "AddOptions")], inputs=[0], outputs=[1])


@pytest.mark.parametrize(
    ("spoilt", "board", "words"),
    [
        (torn, "rpi4", "is a damaged .tflite file"),
        (torn, "coral-usb", "is a damaged .tflite file"),
        (custom, "rpi4", "no TFLite runtime knows: MyOwnOp (op 1). Replace the layers"),
        (custom, "coral-usb", "no TFLite runtime knows: MyOwnOp (op 1). Replace the layers"),
        (floating, "coral-usb", "is a float model"),
    ],
)
def test_what_cannot_be_profiled_is_refused_by_name_without_a_board(file, capsys, monkeypatch, spoilt, board, words):
    monkeypatch.setattr(qemu, "unavailable", lambda target, connection: "the Arm emulator is not installed")
    monkeypatch.setattr(qemu, "uncountable", lambda target, runtime=None: "the Arm emulator is not installed")
    file.write_bytes(spoilt(file.read_bytes()))
    assert cli.run(["profile", str(file), "--target", board]) == 1
    assert words in " ".join(capsys.readouterr().err.split())


def test_the_runtime_itself_refuses_what_it_does_not_know(file, capsys):
    reason = local.unavailable(HOST, targets.connection(HOST))
    if reason:
        pytest.skip(reason)
    file.write_bytes(custom(file.read_bytes()))
    assert cli.run(["profile", str(file), "--target", "host"]) == 1
    assert "the runtime refuses the model: Encountered unresolved custom op: MyOwnOp" in capsys.readouterr().err


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
