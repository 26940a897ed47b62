"""devices/_probe.py: the protocol, with a stub runtime and with the real one; and the sessions that speak it."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import doubler as doubler_model
import numpy as np
import pytest

from edgeprune import registry, target
from edgeprune.devices import _agent, _probe, local
from edgeprune.devices._session import FEWEST_SAMPLES_PER_WORKER, Launcher, _shares, open_session, parse_reply
from edgeprune.errors import ArtefactError, DeviceError
from edgeprune.measurement import Request

PROBE = Path(_probe.__file__)

STUB = '''
"""A runtime whose model doubles an int8 vector of 3 and remembers in a variable how often it ran."""
import os, sys
import numpy as np

class OpResolverType:
    pass

class Interpreter:
    def __init__(self, model_content, num_threads):
        print("chatter on standard output")
        os.write(1, b"chatter from C\\n")
        if model_content == b"broken":
            raise ValueError("not a model")
        if model_content == b"crash":
            os.kill(os.getpid(), 11)
        if model_content == b"hang":
            import time; time.sleep(60)
        self.batch = 2 if model_content == b"batch" else 1
        self.memory = np.zeros(8, np.int8)
        self.runs = 0
    def allocate_tensors(self):
        pass
    def _detail(self, index, name):
        shape = np.array([self.batch, 3])
        return {"index": index, "name": name, "shape": shape, "dtype": np.int8, "quantization": (0.5, -1)}
    def get_input_details(self):
        return [self._detail(0, "x")]
    def get_output_details(self):
        return [self._detail(1, "y")]
    def get_tensor_details(self):
        return [self._detail(0, "x"), self._detail(1, "y"), self._detail(2, "one number")]
    def tensor(self, index):
        if index == 2:  # without axes: runtimes give a copy of it, no view
            return lambda: np.int8(1)
        return lambda: self.memory[3 * index : 3 * index + 3]
    def reset_all_variables(self):
        self.runs = 0
    def set_tensor(self, index, value):
        self.memory[:3] = value
    def invoke(self):
        self.runs += 1
        self.memory[3:6] = self.memory[:3] * 2 + (self.runs - 1)
    def get_tensor(self, index):
        return self.memory[3:6].reshape(1, 3).copy()
'''


@pytest.fixture
def stub(tmp_path):
    """Environment in which ``tflite_runtime`` is the stub."""
    package = tmp_path / "stub" / "tflite_runtime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "9.9"\n')
    (package / "interpreter.py").write_text(STUB)
    return os.environ | {"PYTHONPATH": str(package.parent)}


def ask(request, stub, folder):
    """What the probe answers, as (exit status, reply, standard error)."""
    (folder / "model.tflite").write_bytes(request.pop("content", b"model"))
    body = {"model": "model.tflite", "runtime": "tflite-runtime"} | request
    done = subprocess.run(
        [sys.executable, str(PROBE)],
        input=json.dumps(body),
        env=stub,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, parse_reply(done.stdout), done.stderr


# --- the protocol


@pytest.mark.parametrize("module", [_agent, _probe])
def test_it_runs_on_python_3_7_and_imports_nothing_of_ours(module):
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"), feature_version=(3, 7))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= {*sys.stdlib_module_names, "numpy"}


def test_one_marked_line_survives_whatever_the_runtime_prints(stub, tmp_path):
    status, reply, words = ask({"samples": 2}, stub, tmp_path)
    assert (status, reply["runtime"]["version"]) == (0, "9.9")
    assert "chatter on standard output" in words
    assert "chatter from C" in words


def test_outputs_are_those_of_every_sample_from_a_fresh_state(stub, tmp_path):
    np.savez(tmp_path / "in.npz", **{"0": np.array([[1, 2, 3], [4, 5, 6]], np.int8)})
    _, reply, _ = ask({"inputs": "in.npz", "evaluate": True, "outputs": "out.npz"}, stub, tmp_path)
    expected = np.array([[2, 4, 6], [8, 10, 12]], np.int8)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["0"], expected)
    assert reply["digests"] == [hashlib.sha256(expected.tobytes()).hexdigest()]
    assert reply["evaluated"] == 2


def test_a_plain_npy_is_the_only_input(stub, tmp_path):
    np.save(tmp_path / "in.npy", np.array([[7, 0, 0]], np.int8))
    ask({"inputs": "in.npy", "outputs": "out.npz"}, stub, tmp_path)
    assert np.load(tmp_path / "out.npz")["0"].tolist() == [[14, 0, 0]]


def test_random_inputs_repeat_with_their_seed(stub, tmp_path):
    digests = [ask({"samples": 5, "seed": seed, "evaluate": True}, stub, tmp_path)[1]["digests"] for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


def test_warm_ups_and_samples_are_kept_apart(stub, tmp_path):
    _, reply, _ = ask({"warmups": 2, "runs": 3}, stub, tmp_path)
    assert (len(reply["warmups_ns"]), len(reply["samples_ns"])) == (2, 3)
    assert all(isinstance(time, int) and time >= 0 for time in reply["samples_ns"])


def test_what_is_reported_beside_the_times(stub, tmp_path):
    _, reply, _ = ask({"threads": 3}, stub, tmp_path)
    assert reply["inputs"] == [{"name": "x", "shape": [1, 3], "dtype": "int8", "scale": 0.5, "zero_point": -1}]
    assert reply["arena"] == {"bytes": 6, "how": "tensor addresses"}
    assert reply["peak_rss_bytes"] > 1 << 20
    assert reply["threads"] == 3


def test_without_a_model_it_says_what_it_is(stub, tmp_path):
    _, reply, _ = ask({"model": None}, stub, tmp_path)
    assert sorted(reply) == ["device", "runtime", "schema"]


@pytest.mark.parametrize(
    ("request_", "kind", "words"),
    [
        ({"content": b"broken"}, "model", "not a model"),
        ({"content": b"batch"}, "model", "batch size 2"),
        ({"model": "gone.tflite"}, "model", "gone.tflite"),
        ({"inputs": "gone.npz"}, "inputs", "gone.npz"),
        ({"runtime": "tensorrt"}, "request", "tflite-runtime"),
        ({"resolver": "fast"}, "request", "without_delegates"),
        ({"trheads": 1}, "request", "trheads"),
        ({"schema": 7}, "request", "schema 1"),
        ({"resolver": "reference"}, "unexpected", "TypeError"),
    ],
)
def test_a_failure_is_a_reply(request_, kind, words, stub, tmp_path):
    status, reply, _ = ask(request_, stub, tmp_path)
    assert (status, reply["error"]["kind"]) == (1, kind)
    assert words in reply["error"]["message"]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ([np.zeros((2, 4), np.int8)], "given int8 (4,)"),
        ([np.zeros((2, 3), np.uint8)], "given uint8 (3,)"),
        ([np.zeros((0, 3), np.int8)], "must agree and not be 0"),
        ([np.zeros((2, 3), np.int8)] * 2, "2 arrays for a model with 1 inputs"),
    ],
)
def test_inputs_that_do_not_fit(arrays, words, stub, tmp_path):
    np.savez(tmp_path / "in.npz", **{str(index): array for index, array in enumerate(arrays)})
    _, reply, _ = ask({"inputs": "in.npz"}, stub, tmp_path)
    assert reply["error"]["kind"] == "inputs"
    assert words in reply["error"]["message"]


def test_a_request_that_is_no_json(stub):
    done = subprocess.run(
        [sys.executable, str(PROBE)], input="{", env=stub, capture_output=True, text=True, check=False
    )
    assert "not JSON" in parse_reply(done.stdout)["error"]["message"]


@pytest.mark.parametrize(
    ("intervals", "covered"), [([], 0), ([(0, 4)], 4), ([(0, 4), (2, 6), (10, 11)], 7), ([(0, 9), (2, 3)], 9)]
)
def test_bytes_covered_once(intervals, covered):
    assert _probe.union_bytes(intervals) == covered


class Chain:
    """x (4 B) -> a (8 B) -> y (2 B), then a delegate's own node."""

    def _get_ops_details(self):
        names = [("CONV_2D", [0], [1]), ("CONV_2D", [1], [2]), ("TfLiteXNNPackDelegate", [0], [2])]
        return [{"op_name": name, "inputs": inputs, "outputs": outputs} for name, inputs, outputs in names]

    def get_tensor_details(self):
        return [{"index": index, "shape": [size], "dtype": np.int8} for index, size in enumerate((4, 8, 2))]

    def get_input_details(self):
        return [{"index": 0}]

    def get_output_details(self):
        return [{"index": 2}]


def test_live_bytes_is_the_largest_sum_of_neighbours():
    assert _probe.live_bytes(Chain()) == 12  # x and a; then a and y are 10
    assert _probe.live_bytes(object()) is None


# --- on a board: pinned, watched, told as it goes


def test_times_and_conditions_are_told_before_the_reply(stub, tmp_path):
    (tmp_path / "model.tflite").write_bytes(b"model")
    body = {"model": "model.tflite", "warmups": 2, "runs": 3, "stream": True, "conditions": True, "pin": True}
    done = subprocess.run(
        [sys.executable, str(PROBE)],
        input=json.dumps(body),
        env=stub,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    *events, reply = [
        json.loads(line[len(_probe.MARK) :]) for line in done.stdout.splitlines() if line.startswith(_probe.MARK)
    ]
    assert [event["event"] for event in events] == ["times", "times"]
    assert (events[0]["warmups_ns"], events[1]["samples_ns"]) == (reply["warmups_ns"], reply["samples_ns"])
    assert reply["conditions"].keys() == {"before", "after"}
    assert reply["conditions"]["before"].keys() == events[0]["conditions"].keys()
    assert reply["pinned_to"] == [max(os.sched_getaffinity(0))]


def board_files(folder, **texts):
    """A folder in the place of /sys."""
    for name, text in texts.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_conditions_are_those_of_the_slowest_core_and_the_hottest_zone(tmp_path, monkeypatch):
    board_files(
        tmp_path,
        **{"0__scaling_cur_freq": "1500000", "0__cpuinfo_max_freq": "1500000", "0__scaling_governor": "ondemand\n"},
        **{"1__scaling_cur_freq": "600000", "1__cpuinfo_max_freq": "1800000", "1__scaling_governor": "powersave\n"},
        throttled="50005\n",
    )
    monkeypatch.setattr(_probe, "_core", lambda core: tmp_path / str(core))
    monkeypatch.setattr(_probe, "THROTTLED_FILE", str(tmp_path / "throttled"))
    found = _probe.read_conditions([0, 1])
    assert (found["clock_mhz"], found["max_clock_mhz"], found["governor"]) == (600, 1800, "powersave")
    assert found["throttled"] == 0x50005
    assert (
        _probe.throttling_in_words(found | {"cooling": 1}) == "under-voltage, throttled, the kernel cools the processor"
    )
    assert _probe.read_conditions([7])["clock_mhz"] is None


def test_a_process_is_pinned_to_the_fastest_and_last_cores(tmp_path, monkeypatch):
    speeds = {0: "1800000", 1: "1800000", 2: "2400000", 3: "1800000"}
    board_files(tmp_path, **{f"{core}__cpuinfo_max_freq": speed for core, speed in speeds.items()})
    chosen = []
    monkeypatch.setattr(_probe, "_core", lambda core: tmp_path / str(core))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(speeds))
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: chosen.append(cores))
    assert [_probe.pin(threads) for threads in (1, 2, 9)] == [[2], [2, 3], [0, 1, 2, 3]]
    assert len(chosen) == 3


def by_hand(stub, folder, *words, content=b"model"):
    """What a person sees: exit status, standard output, standard error."""
    (folder / "model.tflite").write_bytes(content)
    command = [sys.executable, str(PROBE), "model.tflite", *words]
    done = subprocess.run(command, env=stub, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_by_hand(stub, tmp_path):
    status, out, _ = by_hand(stub, tmp_path, "--threads", "2", "--runs", "7")
    assert status == 0
    assert "tflite-runtime 9.9, 2 threads" in out
    assert "(median of 7;" in out
    assert [line.split()[0] for line in out.splitlines()[1:6]] == ["latency", "load", "arena", "before", "after"]


def test_by_hand_as_json_with_inputs_and_outputs(stub, tmp_path):
    np.save(tmp_path / "in.npy", np.array([[1, 2, 3], [4, 5, 6]], np.int8))
    _, out, _ = by_hand(stub, tmp_path, "--json", "--inputs", "in.npy", "--outputs", "out.npz")
    assert json.loads(out)["evaluated"] == 2
    assert np.load(tmp_path / "out.npz")["0"].tolist() == [[2, 4, 6], [8, 10, 12]]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--threads", "0"], 2, "numbers must be above 0"),
        (["--log", "x.jsonl"], 2, "--log goes with --soak"),
        (["--soak", "1", "--log", "gone/x.jsonl"], 1, "gone/x.jsonl"),
        (["--inputs", "gone.npy"], 1, "gone.npy cannot be read"),
    ],
)
def test_by_hand_wrongly(stub, tmp_path, words, status, said):
    code, out, err = by_hand(stub, tmp_path, *words)
    assert code == status
    assert said in out + err


def test_a_soak_run_logs_every_second_and_says_what_it_showed(stub, tmp_path):
    for _ in range(2):  # the second run goes on in the same file
        status, out, _ = by_hand(stub, tmp_path, "--soak", "0.01", "--every", "0.2", "--log", "soak.jsonl")
        assert status == 0
    rows = [json.loads(line) for line in (tmp_path / "soak.jsonl").read_text().splitlines()]
    assert [place for place, row in enumerate(rows) if row.get("event") == "soak"] == [0, len(rows) // 2]
    assert rows[0]["model"]["sha256"] == hashlib.sha256(b"model").hexdigest()
    assert {"t_s", "runs", "p50_ms", "min_ms", "max_ms", "clock_mhz", "temperature_c", "throttled"} <= rows[1].keys()
    assert rows[1]["min_ms"] <= rows[1]["p50_ms"] <= rows[1]["max_ms"]
    assert "first minute" in out


def test_a_soak_run_that_got_slower():
    rows = [
        {
            "t_s": float(second),
            "runs": 10,
            "p50_ms": 10.0 + 5 * (second > 100),
            "temperature_c": 40 + second / 4,
            "cooling": 0,
        }
        | {"throttled": 0x4 if second > 100 else 0}
        for second in range(1, 181)
    ]
    words = _probe.soak_in_words(rows)
    assert words[0] == "1800 runs in 3.0 min"
    assert words[1] == "first minute 10.000 ms, last minute 15.000 ms (+50.0%)"
    assert words[2:] == ["hottest 85.0 °C", "slowed down from minute 1.7, 15.000 ms: throttled"]
    assert _probe.soak_in_words([]) == ["Nothing was measured."]


# --- sessions


@pytest.fixture
def session(stub):
    launcher = Launcher((sys.executable,), stub, "emulated", cpu="cortex-a72", runtime="tflite-runtime", workers=2)
    with open_session(launcher) as opened:
        yield opened


def test_a_session_shares_out_samples_and_keeps_their_order(session):
    samples = np.arange(2 * FEWEST_SAMPLES_PER_WORKER * 3).reshape(-1, 3).astype(np.int8) // 4
    reply = session.run(b"model", Request(inputs=(samples,), evaluate=True, runs=2, warmups=1))
    np.testing.assert_array_equal(reply.outputs[0], samples * 2)
    assert reply.digests == (hashlib.sha256((samples * 2).astype(np.int8).tobytes()).hexdigest(),)
    assert (len(reply.measurement.samples_ms), len(reply.measurement.warmups_ms)) == (2, 1)


def test_an_emulated_reply_has_no_time_and_no_memory_of_the_board(session):
    reply = session.run(b"model", Request(runs=3))
    assert (reply.kind, reply.load_ms, reply.peak_rss_bytes, reply.arena_bytes) == ("emulated", None, None, 6)
    assert reply.measurement.latency()["ms"] is None
    assert reply.measurement.metadata["cpu"] == reply.device["cpu"] == "cortex-a72"
    assert reply.runtime_name == "tflite-runtime 9.9"


def test_a_model_the_runtime_refuses(session):
    with pytest.raises(ArtefactError, match="not a model"):
        session.run(b"broken", Request())


def test_a_runtime_that_crashes_is_named_with_its_last_words(session):
    with pytest.raises(DeviceError, match=r"killed by SIGSEGV.*chatter from C"):
        session.run(b"crash", Request())


def test_a_runtime_that_hangs_is_stopped(session):
    with pytest.raises(DeviceError, match=r"no answer in 1 s"):
        session.run(b"hang", Request(timeout_s=1))


def test_a_model_file_that_is_not_there(session, tmp_path):
    with pytest.raises(ArtefactError, match=r"gone\.tflite"):
        session.run(tmp_path / "gone.tflite", Request())


@pytest.mark.parametrize(
    ("samples", "workers", "sizes"), [(1, 4, [1]), (64, 2, [32, 32]), (100, 4, [33, 33, 34]), (200, 1, [200])]
)
def test_shares_cover_all_samples_in_order(samples, workers, sizes):
    given = np.arange(samples)
    shares = _shares(Request(inputs=(given,), evaluate=True, runs=5), workers)
    assert [len(share.inputs[0]) for share in shares] == sizes
    np.testing.assert_array_equal(np.concatenate([share.inputs[0] for share in shares]), given)
    assert [share.runs for share in shares] == [5] + [0] * (len(sizes) - 1)


def test_output_without_a_marked_line_is_no_reply():
    assert parse_reply("hello\nworld\n") is None


# --- the real runtime on this machine


@pytest.fixture(scope="module")
def doubler():
    return doubler_model.content()


SAMPLES = np.array([[-128, -1, 0, 127], [5, 6, 7, 8]], np.int8)


def test_the_host_runs_a_real_model(doubler):
    host = target.load(registry.file("targets", "host"))
    connection = target.connection(host)
    if reason := local.unavailable(host, connection):
        pytest.skip(reason)
    with local.session(host, connection) as session:
        reply = session.run(doubler, Request(inputs=(SAMPLES,), evaluate=True, warmups=1, runs=6))
    np.testing.assert_array_equal(reply.outputs[0], SAMPLES)
    assert (reply.kind, reply.measurement.latency()["kind"], reply.runtime["package"]) == (
        "measured",
        "measured",
        "ai-edge-litert",
    )
    assert reply.peak_rss_bytes > reply.arena_bytes >= 8


def test_the_host_does_not_stand_for_an_arm_board(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    pi = target.load(registry.file("targets", "rpi4"))
    assert "Raspberry Pi 4" in local.unavailable(pi, target.Connection("local"))
    with (
        pytest.raises(DeviceError, match="'rpi4' cannot be run on this machine"),
        local.session(pi, target.Connection("local")),
    ):
        pass


@pytest.mark.qemu
@pytest.mark.parametrize("name", ["rpi4", "rpi5", "rpi3", "rpizero2w"])
def test_the_emulator_runs_a_real_model(doubler, name):
    facts = target.load(registry.file("targets", name))
    backend = registry.module("backends", "qemu")
    connection = target.connection(facts)
    if reason := backend.unavailable(facts, connection):
        pytest.skip(reason)
    with backend.session(facts, connection) as session:
        reply = session.run(doubler, Request(inputs=(SAMPLES,), evaluate=True, runs=2))
    np.testing.assert_array_equal(reply.outputs[0], SAMPLES)
    assert (reply.device["machine"], reply.device["cpu"]) == ("aarch64", facts.emulate.cpu)
    assert reply.runtime_name == f"{facts.runtime.package} {facts.runtime.version}"
    assert reply.measurement.latency()["ms"] is None
