"""The user's boards, and what the ssh backend makes of words, messages and readings: all that needs no connection."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from loopback import until

import edgeprune
from edgeprune import boards, fleet, profiling, registry, target
from edgeprune.devices import _agent, _conditions, _probe, _ssh, ssh
from edgeprune.errors import ArtefactError, DeviceError
from edgeprune.measurement import Measurement, Request
from edgeprune.progress import Silent

KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIJ0Zc2V1c2Vyc2VjcmV0a2V5bWF0ZXJpYWxpc2hlcmU"


@pytest.fixture
def file(tmp_path, monkeypatch):
    """The user's file of boards."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "edgeprune" / "boards.yaml"
    path.parent.mkdir()
    return path


def load(name):
    return target.load(registry.file("targets", name))


# --- words


@pytest.mark.parametrize(
    "word",
    [
        "pi@raspberrypi.local",
        "kitchen",
        "ssh://pi@10.0.0.7:2222",
        "ssh://pi@[fe80::1]:22",
        "pi@fe80::1%eth0",
        "user.name@192.168.1.4",
        "fe80::1",
    ],
)
def test_an_address(word, file):
    assert boards.find(word) == boards.Board.model_validate({"address": word})


@pytest.mark.parametrize(
    "word", ["-oProxyCommand=touch /tmp/x", "", "pi@-oX", "a b", "pi@host;id", "$(id)", "pi@host\n", "`id`@host", "é@x"]
)
def test_what_is_no_address(word, file):
    with pytest.raises(DeviceError, match=r"is no address and no name.*boards\.yaml"):
        boards.find(word)


def test_a_name_in_the_users_file(file):
    file.write_text("kitchen:\n  address: pi@kitchen\n  port: 2222\n  python: ~/venv/bin/python3\n  target: rpi4\n")
    board = boards.find("kitchen")
    assert (board.address, board.port, board.python, board.identity, board.jump) == (
        *("pi@kitchen", 2222, "~/venv/bin/python3"),
        *(None, None),
    )
    assert boards.target("kitchen", None, "rpi5") == boards.target("kitchen", "rpi4", "rpi5") == "rpi4"
    assert boards.target("pi@other", None, "rpi5") == "rpi5"
    with pytest.raises(DeviceError, match=r"is a rpi4 in .*--target says rpi3"):
        boards.target("kitchen", "rpi3", "rpi4")
    with pytest.raises(DeviceError, match="Did you mean 'kitchen'"):
        boards.find("kitchen!")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- pi@kitchen", "expected names of boards"),
        ("kitchen:\n  address: pi@x\n  prot: 22", "Did you mean 'port'"),
        ("kitchen:\n  address: -x", "kitchen.address"),
        ("kitchen:\n  address: pi@x\n  port: 70000", "kitchen.port"),
        ("kitchen:\n  address: pi@x\n  python: -c", "kitchen.python"),
        ("kitchen:\n  address: pi@x\n  jump: a b", "kitchen.jump"),
        ("kitchen:\n", "expected a mapping"),
        ("-k:\n  address: pi@x", "no name for a board"),
        ("kitchen: !!python/object/apply:os.system [id]", "not valid YAML"),
    ],
)
def test_a_file_that_is_wrong(file, text, words):
    file.write_text(text)
    with pytest.raises(DeviceError, match=words):
        boards.find("pi@raspberrypi.local")


def test_the_reason_why_no_connection_can_be_tried(file, monkeypatch):
    pi = load("rpi4")
    assert ssh.unavailable(pi, target.connection(pi, "-x")).startswith("--board: '-x' is no address")
    assert "give --board" in ssh.unavailable(pi, target.Connection("ssh"))
    monkeypatch.setattr(_ssh, "program", lambda: None)
    assert "apt-get install openssh-client" in ssh.unavailable(pi, target.connection(pi, "pi@x"))


# --- ssh's command line


def test_the_address_is_a_plain_argument_and_nobody_is_asked(tmp_path):
    board = {"address": "pi@x", "port": 2222, "identity": "~/.ssh/pi", "jump": "me@gate"}
    words = _ssh.Link("pi@x", boards.Board.model_validate(board), tmp_path)._command("-N", ControlMaster="yes")
    assert words[-3:] == ["-N", "--", "pi@x"]
    assert {"-oBatchMode=yes", "-oRemoteCommand=none", "-oClearAllForwardings=yes", "-oControlMaster=yes"} <= set(words)
    assert [words[words.index(flag) + 1] for flag in ("-p", "-J")] == ["2222", "me@gate"]
    assert words[words.index("-i") + 1] == str(Path("~/.ssh/pi").expanduser())


@pytest.mark.parametrize(
    ("python", "quoted"), [("/opt/my venv/python", "'/opt/my venv/python'"), ("~/a;b/python", "\"$HOME\"/'a;b/python'")]
)
def test_a_path_for_the_boards_shell(python, quoted):
    assert _ssh._quoted(python) == quoted


def test_the_start_of_the_agent_is_no_riddle_for_any_shell():
    assert not set(_ssh.START) & set("'\\!$`\n")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("pi@x: Permission denied (publickey).", "refuses the key.*ssh-copy-id pi@x"),
        ("@  WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!  @\nHost key verification failed.", "ssh-keygen -R"),
        ("Host key verification failed.", "not known here yet.*ssh pi@x"),
        ("ssh: Could not resolve hostname x: Name or service not known", "no such host"),
        ("ssh: connect to host x port 22: Connection refused", "nothing listens"),
        ("ssh: connect to host x port 22: Connection timed out", "does not answer"),
        ("ssh: connect to host x port 22: No route to host", "no way leads there"),
        ("kex_exchange_identification: read: Connection reset by peer", "hung up before the login"),
        (f"load key ssh-ed25519 {KEY}: strange\x1b[2J", r"ssh says: load key ssh-ed25519 \[\.\.\.\]: strange"),
    ],
)
def test_ssh_s_words_become_ours(said, words, tmp_path):
    message = _ssh.Link("kitchen", boards.Board.model_validate({"address": "pi@x"}), tmp_path)._refusal(said)
    assert re.search(words, message)
    assert message.startswith("The board 'kitchen' cannot be reached")
    assert KEY not in message
    assert "\x1b" not in message


def test_a_key_file_that_is_not_there(tmp_path):
    board = boards.Board.model_validate({"address": "pi@x", "identity": str(tmp_path / "gone")})
    with pytest.raises(DeviceError, match="gone of the board 'kitchen' is not there"):
        _ssh.Link("kitchen", board, tmp_path).open()


# --- which board it is

HELLO = {
    "folder": "/board/edgeprune-x",
    "machine": "aarch64",
    "bits": 64,
    "boot": "1",
    "python": "3.11.2",
    "have": [],
    "board": None,
}


@pytest.mark.parametrize("name", registry.names("targets"))
def test_every_board_knows_itself_and_no_other(name):
    facts = load(name)
    for model in facts.board_models:
        ssh.check(facts, "pi@x", HELLO | {"board": f"{model} Rev 1.0"})
        claimed = [
            other for other in map(load, registry.names("targets")) if model.startswith(other.board_models or "?")
        ]
        assert [other.name for other in claimed] == [name]


@pytest.mark.parametrize(
    ("hello", "words"),
    [
        ({"board": "Raspberry Pi 3 Model B Plus Rev 1.3"}, "'pi@x' is not a Raspberry Pi 4 Model B: it calls itself"),
        ({"machine": "x86_64"}, "is no Arm board: its processor is x86_64"),
        ({"machine": "armv6l"}, "is no Arm board"),
    ],
)
def test_a_machine_that_is_not_the_target(hello, words):
    with pytest.raises(DeviceError, match=words):
        ssh.check(load("rpi4"), "pi@x", HELLO | hello)


def test_a_board_that_does_not_say_what_it_is_is_taken_at_the_users_word():
    ssh.check(load("rpi4"), "pi@x", HELLO)
    ssh.check(load("coral-usb"), "pi@x", HELLO | {"board": "Raspberry Pi 3 Model B Rev 1.2"})


class FakeAgent:
    """An agent with Pythons."""

    def __init__(self, pythons, **hello):
        self.pythons = pythons
        self.hello = HELLO | hello

    def ask(self, command):
        have = self.pythons.get(command["python"])
        return {"python": command["python"] if have is not None else None, "have": have or []}


def session(name, agent, **board):
    return ssh.BoardSession(load(name), "pi@x", boards.Board.model_validate({"address": "pi@x"} | board), None, agent)


@pytest.mark.parametrize(
    ("own", "pythons", "found"),
    [
        (["numpy", "tflite_runtime"], {}, ("python3", "tflite-runtime")),
        (
            ["tflite_runtime"],
            {f"{ssh.VENV}/bin/python3": ["numpy", "tflite_runtime"]},
            (f"{ssh.VENV}/bin/python3", "tflite-runtime"),
        ),
        (["numpy", "ai_edge_litert"], {}, ("python3", "ai-edge-litert")),
        (["numpy", "ai_edge_litert"], {"python3.9": ["numpy", "tflite_runtime"]}, ("python3.9", "tflite-runtime")),
    ],
)
def test_the_python_that_has_the_targets_runtime_comes_first(own, pythons, found):
    assert session("rpi4", FakeAgent(pythons, have=own))._find() == found


@pytest.mark.parametrize(
    ("name", "hello", "words"),
    [
        ("rpi4", {}, "pip install 'tflite-runtime==2.14.0' 'numpy<2'"),
        ("rpi5", {}, "pip install 'ai-edge-litert==2.1.6' numpy"),
        ("rpi4", {"python": "3.13.5"}, "pip install ai-edge-litert numpy"),
        ("rpi4", {"python": "3.13.5", "bits": 32}, "64-bit Raspberry Pi OS"),
    ],
)
def test_the_one_command_that_installs_a_runtime(name, hello, words):
    assert words in session(name, FakeAgent({}, **hello))._advice()


# --- what the board did meanwhile

QUIET = {
    "governor": "performance",
    "clock_mhz": 1500.0,
    "max_clock_mhz": 1500.0,
    "temperature_c": 50.0,
    "throttled": 0,
    "cooling": 0,
}
STEADY = [10.0] * 40


def test_a_quiet_run_leaves_no_doubt():
    assert _conditions.doubts(QUIET, [QUIET] * 4, QUIET, STEADY) == ()
    nothing = dict.fromkeys(QUIET)
    assert _conditions.doubts(nothing, [nothing], nothing, STEADY) == ()


@pytest.mark.parametrize(
    ("before", "during", "after", "times", "words"),
    [
        ({}, {"throttled": 0x4}, {}, STEADY, "throttled"),
        ({}, {"cooling": 2}, {}, STEADY, "the kernel cools"),
        ({}, {}, {"throttled": 0x10000}, STEADY, "under-voltage"),
        (
            {},
            {"clock_mhz": 600.0, "governor": "powersave"},
            {},
            STEADY,
            r"600 of 1500 MHz in 4 of 5 readings \(governor powersave",
        ),
        ({}, {}, {}, [10.0] * 30 + [12.0] * 10, r"last quarter of the runs took \+20%"),
    ],
)
def test_what_puts_a_run_in_doubt(before, during, after, times, words):
    (found,) = _conditions.doubts(QUIET | before, [QUIET | during] * 4, QUIET | after, times)
    assert re.search(words, found)


def test_what_happened_before_the_run_is_no_doubt():
    earlier = QUIET | {"throttled": 0x50000}
    assert _conditions.doubts(earlier, [earlier], earlier, STEADY) == ()


def test_doubts_stand_in_the_latency_and_in_the_json():
    doubtful = Measurement("measured", (1.0,) * 9, doubts=("it was hot",))
    assert doubtful.latency()["warning"] == "it was hot"
    assert Measurement.from_json(doubtful.to_json()) == doubtful
    older = json.loads(doubtful.to_json()) | {"schema": 1}
    del older["doubts"]
    assert Measurement.from_json(json.dumps(older)).doubts == ()


# --- what the probe says


def line(**said):
    return {"line": _probe.MARK + json.dumps(said)}


def test_times_are_heard_as_they_come():
    seen = []
    heard = ssh.Heard(Request(warmups=1, runs=3, report=lambda *words: seen.append(words)))
    heard.take({"line": "chatter"})
    heard.take(line(event="times", warmups_ns=[9], conditions=QUIET))
    heard.take(line(event="times", samples_ns=[1, 2], conditions=QUIET))
    heard.take({"alive": True})
    assert (heard.warmups_ns, heard.samples_ns, len(heard.during), heard.done) == ([9], [1, 2], 1, False)
    assert seen == [(0, 4, "runs"), (1, 4, "runs"), (3, 4, "runs"), (3, 4, "runs")]


@pytest.mark.parametrize(
    ("said", "end", "error", "words"),
    [
        ([line(error={"kind": "model", "message": "no model"})], 1, ArtefactError, "no model"),
        ([line(error={"kind": "runtime", "message": "numpy 2"})], 1, DeviceError, "numpy 2.*Its last words: oops"),
        ([], -9, DeviceError, "signal 9.*run out of memory"),
        ([], 3, DeviceError, "exit code 3 before it answered"),
    ],
)
def test_a_probe_that_fails(said, end, error, words):
    heard = ssh.Heard(Request())
    for message in said:
        heard.take(message)
    with pytest.raises(error, match=words):
        heard.answer("pi@x", {"exit": end, "words": "oops"})


# --- the agent, here


def working_in(folder):
    """Processes whose current folder it is."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == folder:
                found.append(process.name)
    return found


class Talk:
    """The agent in a child process of this Python."""

    def __init__(self, folder):
        self.process = subprocess.Popen(
            [sys.executable, _agent.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"TMPDIR": str(folder)},
        )
        self.hello = json.loads(self.process.stdout.readline()[len(_agent.MARK) :])["hello"]
        self.folder = Path(self.hello["folder"])

    def ask(self, data=b"", **command):
        self.process.stdin.write(json.dumps(command).encode() + b"\n" + data)
        self.process.stdin.flush()
        return self.answer()

    def answer(self):
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


@pytest.fixture
def talk(tmp_path):
    found = Talk(tmp_path)
    yield found
    found.close()
    assert list(tmp_path.iterdir()) == []


def test_the_agent_stores_and_gives_back(talk):
    assert talk.ask(b"xyz", do="put", name="a.bin", bytes=3) == {"done": True}
    assert talk.ask(do="get", name="a.bin") == {"bytes": 3}
    assert talk.process.stdout.read(3) == b"xyz"


def test_a_full_disk_is_named_and_the_conversation_goes_on(talk):
    (talk.folder / "full").symlink_to("/dev/full")
    error = talk.ask(b"xyz" * 99, do="put", name="full", bytes=297)["error"]
    assert (error["kind"], error["message"]) == ("disk", "No space left on device")
    assert talk.ask(b"xyz", do="put", name="a.bin", bytes=3) == {"done": True}


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "", ".hidden", "a/b"])
def test_the_agent_writes_and_reads_nowhere_else(talk, name):
    assert "plain file name" in talk.ask(b"x", do="put", name=name, bytes=1)["error"]["message"]
    assert "plain file name" in talk.ask(do="get", name=name)["error"]["message"]


def test_the_agent_sweeps_nothing_but_its_like(talk, tmp_path):
    other, own = tmp_path / "edgeprune-other", tmp_path / "mine"
    other.mkdir()
    own.mkdir()
    for wrong in (own, talk.folder, Path("/var/edgeprune-x"), Path("/")):
        assert "not the folder of another agent" in talk.ask(do="sweep", folder=str(wrong))["error"]["message"]
    sleeper = subprocess.Popen(["sleep", "100"], cwd=other)
    assert talk.ask(do="sweep", folder=str(other)) == {"done": True}
    assert sleeper.wait(10) < 0
    assert not other.exists()
    own.rmdir()


def test_a_child_that_is_silent_or_late_is_killed_with_its_children(talk):
    code = "import subprocess, time; print('begun', flush=True); subprocess.run(['sleep', '100'])"
    run = {"do": "run", "command": [sys.executable, "-c", code], "words": "w"}
    for limits in ({"timeout_s": 60, "silent_s": 0.5}, {"timeout_s": 2, "silent_s": 60}):
        answers = [talk.ask(**run, **limits)]
        while "exit" not in answers[-1]:
            answers.append(talk.answer())
        assert answers[-1] == {"exit": None, "words": ""}
    until(lambda: not working_in(talk.folder))
    assert working_in(talk.folder) == []


def test_an_unknown_command_is_an_answer(talk):
    assert "unknown command" in talk.ask(do="format")["error"]["message"]
    assert talk.ask(do="find", python="no-such-python") == {"python": None, "have": []}
    assert "numpy" in talk.ask(do="find", python=sys.executable)["have"]


# --- a build


def test_a_board_that_is_not_there_is_said_before_the_training(monkeypatch, tmp_path):
    def gone(target, connection):
        raise DeviceError(f"{connection.address} cannot be reached")

    monkeypatch.setattr(ssh, "session", gone)
    with pytest.raises(DeviceError, match="pi@x cannot be reached"):
        edgeprune.build(target="rpi4", board=["pi@x", "pi@y"], out=tmp_path / "run", progress=Silent())
    assert not (tmp_path / "run").exists()


def test_the_other_boards_are_told_beside_the_judge(monkeypatch):
    stage = registry.module("stages", "profile")
    facts = load("rpi4")
    others = (target.Connection("ssh", "pi@y"), target.Connection("ssh", "pi@z"))
    run = SimpleNamespace(others=others, target=facts, progress=Silent())
    state = SimpleNamespace(run=run, path=lambda role: Path(role))

    def profile(path, facts, connection, threads, progress, **how):
        assert (str(path), how) == ("final", {"warmups": 10, "runs": 50})
        if connection.address == "pi@z":
            raise DeviceError("it is gone")
        return {"latency": {"ms": 2.0, "kind": "measured"}}

    monkeypatch.setattr(profiling, "profile", profile)
    assert stage._others(state, stage.Options()) == [
        {"board": "pi@y", "latency": {"ms": 2.0, "kind": "measured"}},
        {"board": "pi@z", "latency": {"ms": None, "reason": "it is gone"}},
    ]


# --- several at once


def test_a_board_named_twice_is_refused():
    with pytest.raises(DeviceError, match="names 'a' twice"):
        fleet.places(["a", "b", "a"], ["rpi4"] * 3)


def test_boards_are_profiled_together_and_an_interrupt_stops_all(monkeypatch, tmp_path):
    class Shown(Silent):
        said: list[float] = []  # noqa: RUF012

        def step(self, done, total, unit, **values):
            self.said.append(done)

    def profile(path, facts, connection, threads, progress, **how):
        progress.step(25, 50, "runs")
        if connection.address == "b":
            raise DeviceError("gone")
        return {"latency": {"ms": 1.0}}

    monkeypatch.setattr(profiling, "profile", profile)
    places = fleet.places(["a", "b"], ["rpi4", "rpi5"])
    first, second = fleet.profile(tmp_path, places, None, Shown())
    assert first == {"board": "a", "target": "rpi4", "latency": {"ms": 1.0}}
    assert second == {"board": "b", "target": "rpi5", "error": "gone"}
    assert max(Shown.said) == 50
    together = fleet.Together(Silent(), 1)
    together.stopped.set()
    for unit in ("runs", "bytes"):
        with pytest.raises(KeyboardInterrupt):
            together.part(0).step(1, 2, unit)
