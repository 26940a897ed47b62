"""Backend: a board of the user's, over ssh. Times are measured; nothing stays there, and nothing needs to be installed but a runtime.

The agent goes over the connection and runs from memory; probe, model and inputs lie in one temporary folder, each under the
digest of its content, so that nothing is sent twice. Before a board is used it is checked: an Arm machine, the kind of board
that the target is, room in its temporary folder, a Python with a TFLite runtime.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from edgeprune import accelerator, boards, cache, files
from edgeprune.boards import Board
from edgeprune.devices import _conditions, _probe, _ssh
from edgeprune.devices._session import PROBE, body, milliseconds, pack, read_model, reply_of, unpack
from edgeprune.errors import ArtefactError, CutShort, DeviceError, EdgepruneError, MissingDependency
from edgeprune.measurement import Measurement, Reply, Request
from edgeprune.progress import printable
from edgeprune.target import Connection, Target

ARM = ("aarch64", "arm64", "armv7l", "armv8l")
VENV = "~/edgeprune-venv"
PYTHONS = (f"{VENV}/bin/python3", *(f"python3.{minor}" for minor in (11, 10, 9, 12, 13)))
NEWEST_TFLITE_RUNTIME = (3, 11)  # CPython that tflite-runtime has wheels for
SILENT_S = (
    300.0  # a probe that has begun and says nothing for so long hangs; it speaks twice a second, or after every run
)
OUTPUTS, REQUEST, WORDS = "outputs.npz", "request.json", "words.txt"


def unavailable(target: Target, connection: Connection) -> str | None:
    """None, or why no connection can be tried; whether the board answers is seen when the session is opened."""
    if _ssh.program() is None:
        return "there is no program 'ssh' here; install OpenSSH's client: apt-get install openssh-client"
    if not connection.address:
        return "no board was given; give --board USER@HOST"
    try:
        boards.find(connection.address)
    except DeviceError as error:
        return str(error).rstrip(".")
    return None


@contextmanager
def session(target: Target, connection: Connection) -> Iterator[BoardSession]:
    """Connect, check the board, and leave it as it was.

    Raises:
        DeviceError: the board cannot be reached, is not the target, or has no room.
        MissingDependency: it has no TFLite runtime; the message has the command that installs one.
    """
    reason = unavailable(target, connection)
    if reason or not connection.address:
        raise DeviceError(f"'{target.name}' cannot be run on a board: {reason}.")
    board = boards.find(connection.address)
    with _ssh.connected(connection.address, board) as link, link.agent() as agent:
        check(target, connection.address, agent.hello)
        opened = BoardSession(target, connection.address, board, link, agent)
        opened.prepare()
        yield opened


def check(target: Target, word: str, hello: dict[str, Any]) -> None:
    """Refuse a machine that is not what the target is.

    Raises:
        DeviceError: no Arm machine, or another board; the message names both.
    """
    machine, model = printable(str(hello["machine"])), hello["board"]
    if machine not in ARM:
        raise DeviceError(
            f"'{word}' is no Arm board: its processor is {machine}. '{target.name}' is measured on one; give the board's own address."
        )
    if target.board_models and model and not model.startswith(target.board_models):
        raise DeviceError(
            f"'{word}' is not a {target.title}: it calls itself '{printable(model)}'. Give another --board, or the --target that "
            "it is (edgeprune list targets)."
        )


class BoardSession:
    """Runs models on one board; satisfies `edgeprune.target.Session`."""

    def __init__(self, target: Target, word: str, board: Board, link: _ssh.Link, agent: _ssh.Agent) -> None:
        self._target = target
        self._word = word
        self._board = board
        self._link = link
        self._agent = agent
        self._stored: set[str] = set()
        self._probe = ""
        self._python = ""
        self._runtime = ""

    def prepare(self) -> None:
        """Put the probe there and find a Python for it."""
        self._probe = self._store(PROBE.read_bytes(), ".py")
        self._python, self._runtime = self._find()

    def run(self, model: Path | bytes, request: Request) -> Reply:
        """Run a .tflite as the request says; see `edgeprune.target.Session`.

        Raises:
            CutShort: the connection was lost, the board restarted, or time was up; what was measured until then is kept.
        """
        unit = accelerator.of(self._target)
        given = model if isinstance(model, bytes) else read_model(model)
        content = given if unit is None else unit.compiled(given)
        threads = request.threads or self._target.runtime.threads
        asked = body(request, threads, self._runtime) | {"pin": True, "conditions": True, "stream": True}
        asked["delegate"] = None if unit is None else unit.library()
        heard = Heard(request)
        try:
            asked["model"] = self._store(content, ".tflite", request)
            asked["inputs"] = self._store(pack(request.inputs), ".npz", request) if request.inputs is not None else None
            self._agent.put(REQUEST, json.dumps(asked | {"outputs": OUTPUTS}).encode())
            end = self._follow(heard, request.timeout_s)
            outputs = unpack(self._agent.get(OUTPUTS)) if heard.done else []
        except _ssh.ConnectionLost as error:
            self._agent.clean = True  # what is left there is seen to now
            fate = self._link.sweep(self._agent.hello)
            raise self._cut_short(f"{error} {fate}", heard, content, threads) from error
        if end["exit"] is None:
            raise self._cut_short(self._late(heard, request.timeout_s), heard, content, threads)
        return self._reply(heard.answer(self._word, end), tuple(outputs), heard)

    def _late(self, heard: Heard, timeout_s: float) -> str:
        limit = (
            f"any more (limits: {timeout_s:g} s, and {SILENT_S:g} s of silence)"
            if heard.began
            else f"in {timeout_s:g} s"
        )
        return f"The probe on the board '{self._word}' gave no answer {limit} and was stopped. Give it fewer runs."

    def _follow(self, heard: Heard, timeout_s: float) -> dict[str, Any]:
        command = [self._python, "-u", self._probe, REQUEST]
        end: dict[str, Any] = {}
        limits = {"timeout_s": timeout_s, "silent_s": SILENT_S}
        for message in self._agent.run({"do": "run", "command": command, "words": WORDS, **limits}):
            heard.take(message)
            end = message
        return end

    def _store(self, data: bytes, suffix: str, request: Request | None = None) -> str:
        """The name under which the board has some bytes: their digest."""
        name = sha256(data).hexdigest() + suffix
        if name not in self._stored:
            self._agent.put(name, data, request.report if request else None)
            self._stored.add(name)
        return name

    def _find(self) -> tuple[str, str]:
        """A Python on the board, and the package of the runtime that it has: the target's own before the other.

        Raises:
            MissingDependency: there is none.
        """
        wanted, found = self._target.runtime.package, []
        for python, have in self._pythons():
            runtimes = [package for package, module in _probe.RUNTIMES.items() if {module, "numpy"} <= set(have)]
            if wanted in runtimes:
                return python, wanted
            found += [(python, package) for package in runtimes]
        if not found:
            raise MissingDependency(self._advice())
        return found[0]

    def _pythons(self) -> Iterator[tuple[str, list[str]]]:
        """The board's Pythons with what they could import; first the one that the agent runs on."""
        own = self._agent.hello
        yield self._board.python or "python3", own["have"]
        for word in () if self._board.python else PYTHONS:
            answer = self._agent.ask({"do": "find", "python": word})
            if answer["python"]:
                yield answer["python"], answer["have"]

    def _advice(self) -> str:
        hello = self._agent.hello
        version = tuple(int(part) for part in hello["python"].split(".")[:2])
        old = version <= NEWEST_TFLITE_RUNTIME
        if not old and hello["bits"] == 32:
            return (
                f"The board '{self._word}' has no TFLite runtime, and there is none for its 32-bit Python {hello['python']}. "
                "Install the 64-bit Raspberry Pi OS there."
            )
        pinned = f"=={self._target.runtime.version}" if self._target.runtime.version else ""
        packages = f"'tflite-runtime{pinned or '==2.14.0'}' 'numpy<2'" if old else "ai-edge-litert numpy"
        if old and self._target.runtime.package != "tflite-runtime":
            packages = f"'ai-edge-litert{pinned}' numpy"
        where = self._board.python or "python3"
        return (
            f"The board '{self._word}' has no Python with NumPy and a TFLite runtime (asked: {where}). Run this there, once: "
            f"python3 -m venv {VENV} && {VENV}/bin/pip install {packages}"
        )

    def _reply(self, answer: dict[str, Any], outputs: tuple[Any, ...], heard: Heard) -> Reply:
        before, after = answer["conditions"]["before"], answer["conditions"]["after"]
        words = _conditions.in_words(before, after) if answer["samples_ns"] else None
        times = milliseconds(answer["samples_ns"])
        doubts = _conditions.doubts(before, heard.during, after, times) if times else ()
        device = answer["device"] | {
            "address": self._word,
            "board": self._agent.hello["board"],
            "pinned_to": answer["pinned_to"],
            "conditions": {"before": before, "after": after, "words": words},
            "remarks": list(self._remarks(answer)),
        }
        return reply_of(answer, outputs, "measured", device, doubts)

    def _remarks(self, answer: dict[str, Any]) -> Iterator[str]:
        """What the target's file says and this board does not."""
        target, hello, runtime = self._target, self._agent.hello, answer["runtime"]
        if target.board_models and not hello["board"]:
            yield f"the board does not say what it is, and was taken for a {target.title}"
        if hello["bits"] == 32:
            yield "its system is a 32-bit one, whose kernels are not those of a 64-bit system"
        named = f"{target.runtime.package} {target.runtime.version or ''}".strip()
        here = f"{runtime['package']} {runtime['version']}"
        if not here.startswith(named):
            yield f"measured with {here}; the target names {named}, whose kernels may take another time"
        clock, named_clock = answer["conditions"]["before"]["max_clock_mhz"], target.cpu.clock_mhz
        if clock and named_clock and abs(clock / named_clock - 1) > 1 - _conditions.SLOW:
            yield f"its highest clock is {clock:.0f} MHz; the target's figures are for {named_clock:.0f} MHz"

    def _cut_short(self, message: str, heard: Heard, content: bytes, threads: int) -> CutShort:
        """The error for a run that ended early, with what was measured until then, which a file keeps."""
        if not heard.began:
            return CutShort(f"{message} Nothing had been measured yet.")
        metadata = {
            "board": self._word,
            "target": self._target.name,
            "runtime": self._runtime,
            "threads": threads,
            "model_sha256": sha256(content).hexdigest(),
            "cut_short": True,
        }
        kept = Measurement(
            "measured", milliseconds(heard.samples_ns), milliseconds(heard.warmups_ns), metadata, doubts=(message,)
        )
        path = (
            cache.folder("partial")
            / f"{self._target.name}-{time.strftime('%Y%m%dT%H%M%S')}-{time.monotonic_ns() % 10**6:06}.json"
        )
        try:
            files.write_text_atomic(path, kept.to_json())
        except EdgepruneError as error:
            return CutShort(f"{message} What was measured until then cannot be kept: {error}", kept)
        so_far = f"median {kept.p50_ms:.3f} ms" if kept.p50_ms else "warm-ups only"
        through = f"{len(kept.samples_ms)} of {heard.request.runs} timed runs ({so_far})"
        return CutShort(f"{message} Until then: {through}, kept in {path}.", kept, path)


class Heard:
    """What the probe has said so far."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.warmups_ns: list[int] = []
        self.samples_ns: list[int] = []
        self.during: list[dict[str, Any]] = []
        self._final: dict[str, Any] | None = None
        self._place: tuple[float, float, str] = (0, request.warmups + request.runs, "runs")

    @property
    def began(self) -> bool:
        """Something has been measured."""
        return bool(self.warmups_ns or self.samples_ns)

    @property
    def done(self) -> bool:
        """The probe's last line is there, and is no error."""
        return self._final is not None and "error" not in self._final

    def take(self, message: dict[str, Any]) -> None:
        """One message of the agent's: a line of the probe's, or a sign of life."""
        line = message.get("line", "")
        if line.startswith(_probe.MARK):
            self._event(json.loads(line[len(_probe.MARK) :]))
        if self.request.report:
            self.request.report(*self._place)

    def _event(self, said: dict[str, Any]) -> None:
        kind = said.get("event")
        if kind == "times":
            self.warmups_ns += said.get("warmups_ns", [])
            self.samples_ns += said.get("samples_ns", [])
            self.during += [said["conditions"]] if "samples_ns" in said else []
            self._place = (len(self.warmups_ns) + len(self.samples_ns), self._place[1], "runs")
        elif kind == "evaluated":
            self._place = (said["done"], said["total"], "samples")
        else:
            self._final = said

    def answer(self, word: str, end: dict[str, Any]) -> dict[str, Any]:
        """The probe's last line.

        Raises:
            ArtefactError: the runtime refuses the model.
            DeviceError: the probe crashed, or could not do it.
        """
        words = f" Its last words: {printable(end['words'])}" if end["words"] else ""
        if self._final is None:
            code = end["exit"]
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            advice = "the board may have run out of memory, or" if code in (-9, 137) else "the"
            raise DeviceError(
                f"The TFLite runtime on '{word}' {how} before it answered; {advice} model may use an operator it cannot run.{words}"
            )
        if "error" in self._final:
            error = self._final["error"]
            raise (ArtefactError if error["kind"] == "model" else DeviceError)(
                f"The probe on '{word}' could not do it: {printable(error['message'])}.{words}"
            )
        return self._final
