"""devices/ssh.py against a real sshd: the whole path to an emulated board and back, and everything that can go wrong on it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import doubler
import numpy as np
import pytest
from loopback import PI3, PI4, Loopback, until

from edgeprune import cli, measurement, registry, target, yaml_files
from edgeprune.devices import ssh
from edgeprune.errors import CutShort, DeviceError, MissingDependency
from edgeprune.measurement import Request

pytestmark = [pytest.mark.ssh, pytest.mark.qemu]

SAMPLES = np.array([[-128, -1, 0, 127], [5, 6, 7, 8]], np.int8)
HOSTS = ("board", "board2", "refused", "changed", "unknown")

# A runtime that takes 20 ms per invocation, and on a model "hang" stops after 40 of them.
SLOW = """
import time

class Interpreter:
    def __init__(self, model_content, num_threads):
        self.hangs, self.runs = model_content == b"hang", 0
    def allocate_tensors(self):
        pass
    def get_input_details(self):
        return [{"index": 0, "name": "x", "shape": [1, 3], "dtype": "int8", "quantization": (0.5, -1)}]
    get_output_details = get_tensor_details = get_input_details
    def reset_all_variables(self):
        pass
    def set_tensor(self, index, value):
        pass
    def invoke(self):
        self.runs += 1
        time.sleep(1000 if self.hangs and self.runs > 40 else 0.02)
"""
# What it takes of NumPy to get that far: the real one needs seconds to start under an emulator.
NUMPY = """
class dtype:
    def __init__(self, word):
        self.kind = "i"

class iinfo:
    min, max = -128, 127
    def __init__(self, word):
        pass

class random:
    class RandomState:
        def __init__(self, seed):
            pass
        def randint(self, low, high, size, dtype):
            return [[0, 0, 0]]

__version__ = "1.26.4"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = Loopback(tmp_path_factory.mktemp("ssh"))
    package = found.folder / "slow" / "tflite_runtime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "2.14.0"\n')
    (package / "interpreter.py").write_text(SLOW)
    (package.parent / "numpy.py").write_text(NUMPY)
    found.board("python3", PI4)
    found.put("python3", "/sys/class/thermal/thermal_zone0/temp", "51100\n")
    for core in range(64):
        for name, text in {"governor": "ondemand", "cur_freq": "600000", "max_freq": "1800000"}.items():
            kind = "cpuinfo" if name == "max_freq" else "scaling"
            found.put("python3", f"/sys/devices/system/cpu/cpu{core}/cpufreq/{kind}_{name}", f"{text}\n")
    found.put("python3", "/sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n")
    found.board("slow", PI4, packages=[package.parent])
    found.board("pi3", PI3)
    found.board("bare", PI4, packages=[])
    found.board("full", PI4, "ulimit -f 1", packages=[])
    found.script("bin/intel", f'exec {shlex.quote(sys.executable)} "$@"')
    yield found
    found.stop()


@pytest.fixture(autouse=True)
def _own_files(server, tmp_path, monkeypatch):
    """The user's boards, and ssh with the user's configuration; after each test nothing is left anywhere."""
    names = {
        name: {"address": "board", "python": str(server.folder / "bin" / name)} for name in ("slow", "pi3", "bare")
    }
    names |= {name: {"address": "board", "python": str(server.folder / "bin" / name)} for name in ("full", "intel")}
    names["nothing"] = {"address": "board", "python": str(server.folder / "bin" / "absent")}
    names["kitchen"] = {"address": "board", "target": "rpi4"}
    (tmp_path / "config/edgeprune").mkdir(parents=True)
    (tmp_path / "config/edgeprune/boards.yaml").write_text(yaml_files.dump(names))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{server.folder / 'client'}:{os.environ['PATH']}")
    yield
    server.assert_clean()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "double.tflite"
    path.write_bytes(doubler.content())
    return path


def connect(word, name="rpi4"):
    facts = target.load(registry.file("targets", name))
    return ssh.session(facts, target.connection(facts, word))


# --- the whole path


@pytest.mark.slow
def test_a_build_that_ends_on_a_board(tmp_path, capsys):
    """From a Keras file over the converter and sshd to the board's kernels, and back into the report."""
    from keras_models import samples, small

    from edgeprune.keras import intake

    x, y = samples()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    intake.save(small(), tmp_path / "small.keras")
    stages = "stages: {convert: {}, profile: {samples: 4, warmups: 0, runs: 3}, report: {}}"
    (tmp_path / "recipe.yaml").write_text(f"name: tiny\n{stages}\n")
    given = [
        "--data",
        str(tmp_path / "data.npz"),
        "--recipe",
        str(tmp_path / "recipe.yaml"),
        "--out",
        str(tmp_path / "run"),
    ]
    words = ["build", str(tmp_path / "small.keras"), *given, "--target", "rpi4", "--board", "board", "--quiet"]
    assert cli.run(words) == 0, capsys.readouterr().err
    measured = json.loads((tmp_path / "run/stages/2-profile/state.json").read_text())["facts"]["latency"]
    for role in ("dense_int8", "final"):
        assert (measured[role]["kind"], measured[role]["threads"]) == ("measured", 4) and measured[role]["ms"] > 0
    made = json.loads((tmp_path / "run/report.json").read_text())
    assert made["arm"]["runtime"] == "tflite-runtime 2.14.0" and not made["arm"]["emulated"]
    assert made["arm"]["metric"] == made["arm"]["host_metric"]
    assert made["advice"][-1]["kind"] == "next"


def test_a_model_on_a_board(model):
    heard = []
    with connect("board") as session:
        reply = session.run(
            model, Request(inputs=(SAMPLES,), evaluate=True, warmups=2, runs=30, report=lambda *a: heard.append(a))
        )
    np.testing.assert_array_equal(reply.outputs[0], SAMPLES)
    assert (len(reply.measurement.samples_ms), len(reply.measurement.warmups_ms)) == (30, 2)
    assert (reply.kind, reply.runtime_name, reply.device["machine"]) == ("measured", "tflite-runtime 2.14.0", "aarch64")
    assert (reply.device["address"], reply.device["board"]) == ("board", PI4)
    assert len(reply.device["pinned_to"]) == min(4, len(os.sched_getaffinity(0)))
    assert reply.device["conditions"]["words"].startswith("governor ondemand, 600 of 1800 MHz, 51.1 °C -> governor")
    assert "1800 MHz" in reply.device["remarks"][0]
    doubt = reply.measurement.latency()["warning"]
    assert all(word in doubt for word in ("under-voltage", "throttled", "600 of 1800 MHz", "echo performance"))
    assert heard[-1][0] == heard[-1][1]


def test_several_boards_at_once_and_one_that_fails(model, capsys):
    assert cli.run(["profile", str(model), "--board", "kitchen", "--board", "pi3", "--json"]) == 1
    kitchen, third = json.loads(capsys.readouterr().out)["boards"]
    assert kitchen["latency"]["ms"] > 0
    assert (kitchen["latency"]["kind"], kitchen["latency"]["runs"]) == ("measured", 50)
    assert (third["board"], third["target"]) == ("pi3", "rpi4")
    assert "is not a Raspberry Pi 4 Model B: it calls itself 'Raspberry Pi 3" in third["error"]


# --- no connection


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("refused", "refuses the key"),
        ("changed", "host key is not the one"),
        ("unknown", "not known here yet"),
    ],
)
def test_a_board_that_cannot_be_logged_in_to(host, words, server):
    with pytest.raises(DeviceError, match=words) as caught, connect(host):
        pass
    assert "cannot be reached" in str(caught.value)
    keys = [word for path in server.folder.glob("*.pub") for word in path.read_text().split() if len(word) > 20]
    assert len(keys) == 3
    assert not [key for key in keys if key in str(caught.value)]
    assert "PRIVATE KEY" not in str(caught.value)


def test_a_port_that_nobody_listens_on(monkeypatch, tmp_path):
    boards = {"silent": {"address": "board", "port": 1}}
    (tmp_path / "config/edgeprune/boards.yaml").write_text(yaml_files.dump(boards))
    with pytest.raises(DeviceError, match="nothing listens there"), connect("silent"):
        pass


# --- the wrong board


@pytest.mark.parametrize(
    ("word", "error", "words"),
    [
        ("pi3", DeviceError, "'pi3' is not a Raspberry Pi 4 Model B: it calls itself 'Raspberry Pi 3 Model B Plus"),
        ("full", DeviceError, "has no room in its temporary folder"),
        ("bare", MissingDependency, r"pip install 'tflite-runtime==2\.14\.0' 'numpy<2'"),
        ("nothing", DeviceError, "no Python that could be started"),
    ],
)
def test_a_board_that_cannot_do_it(word, error, words):
    with pytest.raises(error, match=words), connect(word):
        pass


@pytest.mark.skipif(platform.machine() in ssh.ARM, reason="this machine is an Arm machine itself")
def test_a_machine_that_is_no_board():
    with pytest.raises(DeviceError, match=r"'intel' is no Arm board: its processor is x86_64"), connect("intel"):
        pass


# --- in the middle of a run


def test_a_probe_that_hangs_is_stopped_and_an_interrupt_stops_the_next(tmp_path, monkeypatch):
    def interrupt(through, total, unit):
        if unit == "runs" and through:
            raise KeyboardInterrupt

    monkeypatch.setattr(ssh, "SILENT_S", 2.0)
    with pytest.raises(KeyboardInterrupt), connect("slow") as session:
        with pytest.raises(CutShort, match=r"no answer any more.*of 500 timed runs") as caught:
            session.run(b"hang", Request(runs=500))
        session.run(b"good", Request(runs=10_000, report=interrupt))
    kept = caught.value.measurement
    assert 0 < len(kept.samples_ms) <= 40
    assert measurement.Measurement.from_json(caught.value.path.read_text()) == kept
    assert caught.value.path.is_relative_to(tmp_path / "cache" / "partial")
    assert str(caught.value.path) in str(caught.value)


def begun(act):
    """Calls ``act`` once, from another thread, when the first times have come."""
    done = threading.Event()

    def report(through, total, unit):
        if unit == "runs" and through and not done.is_set():
            done.set()
            threading.Thread(target=act).start()

    return report


def test_a_connection_that_is_cut_by_a_restart(server):
    with pytest.raises(CutShort, match=r"was lost.*was restarted meanwhile.*Until then") as caught:  # noqa: SIM117
        with connect("slow") as session:
            session._agent.hello["boot"] = "another life"
            session.run(b"good", Request(runs=10_000, report=begun(server.cut)))
    assert caught.value.measurement.samples_ms


def test_an_agent_that_is_killed_leaves_nothing(server):
    def kill():
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if b"edgeprune-agent" in (process / "cmdline").read_bytes() and process.joinpath("cwd").is_dir():
                    words = (process / "cmdline").read_bytes()
                    if str(server.folder).encode() in words and b"qemu" in words:
                        os.kill(int(process.name), signal.SIGKILL)

    with pytest.raises(CutShort, match="answers again, and nothing was left running"), connect("slow") as session:
        session.run(b"good", Request(runs=10_000, report=begun(kill)))


def test_a_client_that_is_killed_leaves_nothing(server, model):
    """The connection lingers for some seconds, by design; what runs on the board ends at once."""
    command = [sys.executable, "-m", "edgeprune", "profile", str(model), "--board", "slow", "--json"]
    with tempfile.TemporaryDirectory() as folder:  # where its socket is left; a short path, as sockets need
        environment = os.environ | {"TMPDIR": folder}
        client = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(server.left, 120)
        assert server.left()
        client.kill()
        client.wait()
    until(lambda: not (server.running() or server.left()))
    assert (server.running(), server.left()) == ([], [])
    server.cut()
