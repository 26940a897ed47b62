"""The Edge TPU in plain words: in what memory a model runs there, in what time, by whose word, and how it is told."""

from __future__ import annotations

import csv
import json
import os
import stat
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgeprune import checking, cli, target, tflite
from edgeprune.devices import _edgetpu_compiler as compiler
from edgeprune.devices import _edgetpu_latency as latency
from edgeprune.devices import _edgetpu_mapping as mapping
from edgeprune.devices import _edgetpu_memory as memory
from edgeprune.devices import edgetpu
from edgeprune.errors import DeviceError, MissingDependency
from edgeprune.measurement import Request
from edgeprune.tflite_objects import Tensor

pytest.importorskip("ai_edge_litert.schema_py_generated", reason="ai-edge-litert holds the schema of .tflite")

from edgetpu_files import FACTS, act, chain, convolution, kernel, load, one, path_without_compiler, read
from tflite_files import build, operator

# --- memory


def stored(shape, scales=1):
    return Tensor(0, "w", shape, "int8", np.ones(scales), np.zeros(scales), 0, None, False, True, False)


# Parameter bytes that edgetpu_compiler cached on the chip: files in google-coral/edgetpu, test_data.
COMPILED = [
    ("mobilenet_v1", 0.25, 1001, 518_656),
    ("mobilenet_v1", 0.5, 1001, 1_425_024),
    ("mobilenet_v1", 0.75, 1001, 2_729_344),
    ("mobilenet_v1", 1.0, None, 3_363_072),
    ("mobilenet_v2", 1.0, 1001, 3_900_864),
]
V1 = [(32, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), *[(512, 512)] * 5, (512, 1024), (1024, 1024)]
V2 = [(1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)]


def dense(*shape):
    return memory._dense_bytes(stored(shape), True, FACTS)


def depthwise(channels):
    return memory._depthwise_bytes(stored((1, 3, 3, channels)), FACTS)


def mobilenet_v1(alpha):
    total = dense(int(32 * alpha), 3, 3, 3)
    for given, made in V1:
        total += depthwise(int(given * alpha)) + dense(int(made * alpha), 1, 1, int(given * alpha))
    return total, int(1024 * alpha)


def mobilenet_v2(alpha):
    total, given = dense(32, 3, 3, 3), 32
    for expansion, made, blocks in V2:
        for _ in range(blocks):
            wide = expansion * given
            total += dense(wide, 1, 1, given) if expansion > 1 else 0
            total += depthwise(wide) + dense(made, 1, 1, wide)
            given = made
    return total + dense(1280, 1, 1, given), 1280


@pytest.mark.parametrize(("network", "alpha", "classes", "wanted"), COMPILED)
def test_parameter_bytes_are_those_of_the_compiler(network, alpha, classes, wanted):
    total, features = {"mobilenet_v1": mobilenet_v1, "mobilenet_v2": mobilenet_v2}[network](alpha)
    assert total + (dense(classes, 1, 1, features) if classes else 0) == wanted


def test_overhead_with_a_scale_per_channel():
    assert memory._dense_bytes(stored((16, 3, 3, 4), 16), True, FACTS) == 16 * (12 + 36)
    assert memory._dense_bytes(stored((256, 256), 256), False, FACTS) == 67_584  # libredgetpu, dense_256
    assert memory._depthwise_bytes(stored((1, 3, 3, 16), 16), FACTS) == 16 * (12 + 36)


def test_only_mapped_ops_have_parameters_and_a_small_softmax_next_to_none():
    file = one("SOFTMAX", (1, 1001), (1, 1001))
    assert memory.parameter_bytes(file, file.ops[0], FACTS) == 0  # the file does not say that a new converter wrote it
    new = tflite.TFLiteFile(
        **{name: getattr(file, name) for name in file.__dataclass_fields__} | {"description": memory.MLIR}
    )
    assert memory.parameter_bytes(new, file.ops[0], FACTS) == 48_256
    assert memory.parameter_bytes(one("RELU", (1, 4), (1, 4)), file.ops[0], FACTS) == 0


def test_what_does_not_fit_is_streamed():
    room = FACTS.memory.parameter_kib_usual * 1024
    assert memory.on_and_off_chip(room, FACTS) == (room, 0)
    assert memory.on_and_off_chip(room + 5, FACTS) == (room, 5)


def stem(side):
    """The first layers of MobileNetV1 1.0, all weights one."""
    half = side // 2
    tensors = [
        act("image", (1, side, side, 3)),
        kernel((32, 3, 3, 3)),
        act("conv", (1, half, half, 32)),
        kernel((1, 3, 3, 32)),
        act("depthwise", (1, half, half, 32)),
        kernel((64, 1, 1, 32)),
        act("pointwise", (1, half, half, 64)),
    ]
    conv = {"strideH": 2, "strideW": 2, "dilationHFactor": 1, "dilationWFactor": 1}
    operators = [
        operator("CONV_2D", [0, 1, -1], [2], "Conv2DOptions", **conv),
        operator("DEPTHWISE_CONV_2D", [2, 3, -1], [4], "DepthwiseConv2DOptions", **conv | {"strideH": 1, "strideW": 1}),
        operator("CONV_2D", [4, 5, -1], [6], "Conv2DOptions", **conv | {"strideH": 1, "strideW": 1}),
    ]
    return read(operators, tensors, [0], [6])


def test_activations_lie_in_a_grid_of_tiles_with_halos():
    file = stem(224)
    live = memory.live_bytes(file, frozenset({0, 1, 2}), FACTS)
    assert live[0] == 57 * 57 * 4 + 30 * 30 * 32
    assert live[1] == 30 * 30 * 32 + 28 * 28 * 32
    assert memory.activation_bytes(file, frozenset({0, 1, 2}), FACTS) == live[2] == 28 * 28 * (32 + 64)
    assert memory.strips(file, frozenset({0, 1, 2}), FACTS) == 3
    assert memory.strips(stem(1024), frozenset({0, 1, 2}), FACTS) > 3


# --- latency


def test_the_constants_say_how_far_they_are_from_what_they_have_not_seen():
    found = latency.constants()
    judged = [row for rows in found.networks.values() for row in rows if row["left_out_ms"] is not None]
    errors = [100 * abs(row["left_out_ms"] / row["published_ms"] - 1) for row in judged]
    assert found.error.rows == len(judged)
    assert found.error.mean_pct == pytest.approx(np.mean(errors), abs=0.1)
    assert found.error.worst_pct == pytest.approx(max(errors), abs=0.1)
    assert sum(host.error.rows for host in found.hosts.values()) == len(judged)
    fitted = [row["fitted_ms"] / row["published_ms"] for rows in found.networks.values() for row in rows]
    assert max(abs(share - 1) for share in fitted) < 0.2


@pytest.mark.parametrize("name", ["coral-usb", "coral-devboard"])
def test_a_latency_is_the_sum_of_its_parts(name):
    found = edgetpu.predict(stem(224), load(name))
    assert found["kind"] == "predicted" and 0 < found["error_pct"] < 20
    assert found["ms"] == pytest.approx(sum(found["parts"].values()))
    assert found["parts"]["streaming_ms"] == found["parts"]["cpu_ms"] == 0
    assert edgetpu.predict(stem(448), load(name))["ms"] > found["ms"]


def test_on_usb_every_known_computer_is_told():
    found = edgetpu.predict(stem(224), load("coral-usb"))
    assert [host["host"] for host in found["hosts"]] == [
        "desktop PC, USB 3",
        "Raspberry Pi 4, USB 3",
        "Raspberry Pi 3, USB 2",
    ]
    assert found["hosts"][0]["ms"] == found["ms"] < found["hosts"][1]["ms"] < found["hosts"][2]["ms"]


def test_what_the_cpu_does_takes_its_time_where_its_speed_is_known():
    found = edgetpu.predict(chain(), load("coral-usb"))
    assert found["parts"]["cpu_ms"] > 0
    assert {host["host"]: host["ms"] is None for host in found["hosts"]}["Raspberry Pi 4, USB 3"]


def test_parameters_that_do_not_fit_are_streamed_while_their_layers_are_computed():
    work = latency.Work(10**6, 0, 0, 10, 0, 10**7, 0.5, 1000, 0, 0)
    fitted = latency.constants()
    host = fitted.hosts["desktop-usb3"]
    found = latency.parts(work, fitted, host, 500.0)
    compute_ms = 10**6 * fitted.cycles.conv / 500e3
    assert found["streaming_ms"] == pytest.approx(10**7 / host.streaming_bytes_per_ms)
    assert found["compute_ms"] == pytest.approx(compute_ms / 2)


# --- the compiler

LOG = """Edge TPU Compiler version 16.0.384591198
Started a compilation timeout timer of 180 seconds.

Model compiled successfully in 1379 ms.

Input model: model.tflite
Input size: 4.41MiB
Output model: model_edgetpu.tflite
Output size: 5.49MiB
On-chip memory used for caching model parameters: 1.92MiB
On-chip memory remaining for caching model parameters: 1.75KiB
Off-chip memory used for streaming uncached model parameters: 0.00B
Number of Edge TPU subgraphs: 1
Total number of operations: 4
Operation log: model_edgetpu.log

Operator                       Count      Status

CONV_2D                        1          Mapped to Edge TPU
CONV_2D                        1          More than one subgraph is not supported
CUSTOM                         1          Operation is working on an unsupported data type
RESIZE_BILINEAR                1          Operation is otherwise supported, but not mapped due to some unspecified limitation
Compilation child process completed within timeout period.
Compilation succeeded!
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A compiler on PATH that prints a log (or what it is given), and makes a file where it succeeds."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def install(log=LOG, code=0, makes=True, body=""):
        (folder / "log.txt").write_text(log)
        script = folder / "edgetpu_compiler"
        script.write_text(
            f"#!{sys.executable}\nimport pathlib, shutil, sys, time\n{body}\n"
            f"sys.stdout.write(pathlib.Path({str(folder / 'log.txt')!r}).read_text())\n"
            "out = pathlib.Path(sys.argv[sys.argv.index('-o') + 1])\n"
            f"if {makes!r}: shutil.copy(sys.argv[-1], out / 'model_edgetpu.tflite')\n"
            f"sys.exit({code})\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return install


@pytest.fixture(autouse=True)
def no_real_compiler(monkeypatch):
    """Tests ask for their own: one that is installed is not run unawares."""
    monkeypatch.setenv("PATH", path_without_compiler())


def test_a_log_is_read():
    log = compiler.parse(LOG)
    assert (log.version, log.compile_ms) == ("16.0.384591198", 1379)
    assert (log.on_chip_bytes, log.remaining_bytes, log.off_chip_bytes) == (round(1.92 * 2**20), 1792, 0)
    assert (log.subgraphs, log.total, log.mapped, log.cpu) == (1, 4, 1, 3)
    assert log.operators[1] == compiler.Operators("CONV_2D", 1, mapping.LATER)
    assert {row.status for row in log.operators} <= set(mapping.STATUSES)


def test_a_log_without_a_table():
    with pytest.raises(DeviceError, match=r"no table of operators.*It said: Edge TPU Compiler"):
        compiler.parse(LOG[:400])


def test_the_verdict_of_the_compiler_is_kept_beside_ours(fake, tmp_path):
    fake()
    (tmp_path / "m.tflite").write_bytes(convolution().content)
    found = checking.check(tmp_path / "m.tflite", load("coral-usb"))
    assert found["summary"]["mapped"] == 1
    asked = found["compiler"]
    assert (asked["mapped"], asked["cpu"], asked["agrees"], asked["differences"]) == (1, 3, True, [])
    assert json.loads(json.dumps(found))["compiler"]["operators"][0]["op"] == "CONV_2D"


def test_where_the_compiler_differs_it_is_said(fake, tmp_path):
    fake(LOG.replace("Mapped to Edge TPU", "Operation not supported"))
    (tmp_path / "m.tflite").write_bytes(convolution().content)
    found = checking.check(tmp_path / "m.tflite", load("coral-usb"))
    assert found["compiler"]["agrees"] is False
    assert "the compiler maps 0, 1 were expected" in found["notes"][-1]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"code": 1, "log": "Internal compiler error. Aborting!"}, "exit code 1).*Internal compiler error"),
        ({"log": "Compilation failed due to large activation tensors in model."}, "large activation tensors"),
        ({"makes": False}, "made no file"),
        ({"body": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"}, "killed by SIGSEGV"),
    ],
)
def test_what_the_compiler_does_wrong_is_named(fake, how, words):
    fake(**how)
    with pytest.raises(DeviceError, match=words.replace("1)", r"1\)")):
        compiler.compiled(b"TFL3", FACTS)


def test_a_compiler_that_hangs_is_stopped(fake):
    fake(body="time.sleep(60)")
    with pytest.raises(DeviceError, match=r"not done in 0\.5 s"):
        compiler.compiled(b"TFL3", FACTS, timeout_s=0.5)


def test_a_compiler_that_fails_does_not_keep_our_verdict_back(fake, tmp_path):
    fake(code=1, log="Invalid model")
    (tmp_path / "m.tflite").write_bytes(convolution().content)
    found = checking.check(tmp_path / "m.tflite", load("coral-usb"))
    assert "Invalid model" in found["compiler"]["error"]
    assert found["summary"]["mapped"] == 1 and "Invalid model" in found["notes"][-1]


def test_without_the_compiler():
    with pytest.raises(MissingDependency, match=r"edgetpu_compiler on PATH.*https://"):
        edgetpu.compiled(convolution().content)
    made = one(mapping.COMPILED, (1, 4), (1, 4)).content
    assert edgetpu.compiled(made) == made


# --- the backend


def test_no_chip_no_session(monkeypatch, tmp_path):
    monkeypatch.setattr(edgetpu, "USB_DEVICES", tmp_path)
    monkeypatch.setattr(edgetpu, "DEVICES", tmp_path)
    facts = load("coral-usb")
    reason = edgetpu.unavailable(facts, target.connection(facts))
    assert "no Edge TPU is attached" in reason
    with pytest.raises(DeviceError, match="no Edge TPU is attached"), edgetpu.session(facts, target.connection(facts)):
        pass
    assert "has no Edge TPU" in edgetpu.unavailable(load("rpi4"), target.Connection("edgetpu"))


def test_a_chip_on_usb_is_found_before_and_after_its_first_use(monkeypatch, tmp_path):
    monkeypatch.setattr(edgetpu, "USB_DEVICES", tmp_path)
    monkeypatch.setattr(edgetpu, "DEVICES", tmp_path)
    monkeypatch.setattr(edgetpu, "_loads", lambda library: False)
    device = tmp_path / "1-1"
    device.mkdir()
    for vendor, product in edgetpu.USB_NAMES:
        (device / "idVendor").write_text(f"{vendor}\n")
        (device / "idProduct").write_text(f"{product}\n")
        facts = load("coral-usb")
        assert "libedgetpu.so.1 cannot be loaded" in edgetpu.unavailable(facts, target.connection(facts))


def test_a_model_is_compiled_and_run_through_the_delegate(fake, monkeypatch):
    """No chip here: the runtime is asked for the delegate, and that it is not there is a named error."""
    fake()
    monkeypatch.setattr(edgetpu, "unavailable", lambda facts, connection: None)
    facts = load("coral-usb")
    with (
        edgetpu.session(facts, target.connection(facts)) as session,
        pytest.raises(DeviceError, match=r"delegate libedgetpu\.so\.1 cannot be loaded.*libedgetpu1-std"),
    ):
        session.run(convolution().content, Request(runs=1))


# --- the command


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("good.tflite").write_bytes(convolution().content)
    Path("part.tflite").write_bytes(chain().content)
    tensors = [act("x", (1, 4), "FLOAT32"), act("y", (1, 4), "FLOAT32")]
    Path("float.tflite").write_bytes(build(tensors, [operator("RELU", [0], [1])], inputs=[0], outputs=[1]))
    Path("torn.tflite").write_bytes(convolution().content[:200])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("good.tflite --target coral-usb --require-mapped", 0, "all of them run on the Edge TPU"),
        ("part.tflite --target coral-devboard", 0, "sends 2 ops after it to the CPU"),
        ("part.tflite --target coral-devboard --require-mapped", 4, "5 of 7 ops stay on the CPU"),
        ("float.tflite --target coral-usb", 1, "is a float model"),
        ("torn.tflite --target coral-usb", 1, "damaged"),
        ("good.tflite --target rpi4 --require-mapped", 2, "has none"),
        ("model.keras --target coral-usb --require-mapped", 2, "goes with a .tflite"),
    ],
)
def test_exit_codes(files, capsys, words, code, said):
    assert cli.run(["check", *words.split()]) == code
    shown = capsys.readouterr()
    assert said in " ".join((shown.out + shown.err).split())


def test_json(files, capsys):
    assert cli.run(["check", "part.tflite", "--target", "coral-usb", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"index", "op", "mapped", "reason"} <= found["ops"][0].keys()
    assert [op["index"] for op in found["ops"] if op["mapped"]] == [1, 4]
    assert (found["on_chip_bytes"], found["off_chip_bytes"]) == (0, 0)
    assert found["first_cpu_op"]["index"] == 2
    assert found["latency"]["kind"] == "predicted"
    assert found["summary"].keys() >= {"ops", "mapped", "cpu", "int8", "words"}


def test_the_table_says_what_the_compiler_said(files, fake, capsys):
    fake()
    assert cli.run(["check", "good.tflite", "--target", "coral-usb"]) == 0
    assert "the compiler (version 16.0.384591198) maps 1 ops" in " ".join(capsys.readouterr().out.split())


# --- what the real compiler did, where its models are at hand

SHARED = Path(os.environ.get("EDGEPRUNE_SHARED", "/nonexistent")) / "reference"


def compiled_models():
    table = SHARED / "edgetpu_compiled.csv"
    if not table.exists():
        return []
    with table.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    known = [(SHARED / "edgetpu_models" / Path(row["source"]).name, row) for row in rows]
    return [pytest.param(path, row, id=path.stem) for path, row in known if path.exists()]


@pytest.mark.skipif(not compiled_models(), reason="EDGEPRUNE_SHARED names no folder with compiled models")
@pytest.mark.parametrize(("path", "row"), compiled_models())
def test_agreement_with_the_real_compiler(path, row):
    found = checking.check(path, load("coral-usb"))
    for mapped, column in ((True, "mapped_ops"), (False, "cpu_ops_left")):
        counts = Counter(op["op"] for op in found["ops"] if op["mapped"] is mapped)
        assert counts == {word.removeprefix("CUSTOM:"): int(count) for word, count in _pairs(row[column])}
    assert found["on_chip_bytes"] == pytest.approx(int(row["onchip_cached_param_bytes"]), rel=0.01)
    assert found["off_chip_bytes"] == int(row["offchip_streamed_param_bytes"])


def _pairs(text):
    return [word.rsplit(":", 1) for word in text.split(";") if word]
