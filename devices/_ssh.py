"""One connection through the system's OpenSSH: the user's own configuration, keys, agent and jump hosts.

A master connection is opened once and goes into the background; everything else is multiplexed over its socket, which lies
in a private folder. It is closed at the end, and by itself `LINGER_S` after the last use should this process be killed.
No word of the user's ever becomes a word of a shell: here no shell is involved, and on the board the only words are
fixed ones and a quoted path.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgeprune.boards import Board
from edgeprune.devices import _agent
from edgeprune.errors import DeviceError
from edgeprune.progress import printable

CONNECT_S, LINGER_S = 15, 30
RETURN_S = 5  # for a board to take the connection again after it was lost
ALIVE_S, ALIVE_COUNT = 5, 3  # a board that is silent for their product is lost
ANSWER_S = 60.0  # for small commands, on slow boards
SOCKET_PATH = 100  # characters; a Unix socket's path may have 104 (macOS) or 108 (Linux) bytes
BLOCK = 1 << 16

OPTIONS = {
    "BatchMode": "yes",  # never ask: there may be nobody
    "ConnectTimeout": str(CONNECT_S),
    "ServerAliveInterval": str(ALIVE_S),
    "ServerAliveCountMax": str(ALIVE_COUNT),
    "ClearAllForwardings": "yes",  # what the user forwards in interactive sessions has no place here
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "LogLevel": "ERROR",
}
# Reads the agent from standard input and runs it; the home folder, where ssh starts, is no place to import from.
START = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; n = int(sys.stdin.buffer.readline()); "
    'exec(compile(sys.stdin.buffer.read(n), "edgeprune-agent", "exec"))'
)
KEY_MATERIAL = re.compile(r"-----BEGIN.*?(?:-----END[^-]*-----|$)|[A-Za-z0-9+/]{40,}={0,2}", re.DOTALL)


class ConnectionLost(DeviceError):
    """The board could be reached, and now it cannot."""


def program() -> str | None:
    """The system's ssh, or None."""
    return shutil.which("ssh")


def redacted(text: str) -> str:
    """ssh's words in one line, without anything that looks like a key.

    >>> redacted("no mutual signature for ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQC7x1v2mB4pDq0t")
    'no mutual signature for ssh-rsa [...]'
    """
    return " ".join(printable(KEY_MATERIAL.sub("[...]", text)).split())


class Link:
    """A connection to one board."""

    def __init__(self, word: str, board: Board, folder: Path) -> None:
        self.word = word
        self._board = board
        self._folder = folder
        self._ssh = program() or "ssh"

    def _command(self, *arguments: str, **options: str) -> list[str]:
        """ssh with our options, which win over the user's, and the board's address as a plain argument."""
        given = {**OPTIONS, "ControlPath": str(self._folder / "s").replace("%", "%%"), **options}
        words = [self._ssh, *(f"-o{name}={value}" for name, value in given.items())]
        if self._board.port:
            words += ["-p", str(self._board.port)]
        if self._board.identity:
            words += ["-i", str(Path(self._board.identity).expanduser()), "-oIdentitiesOnly=yes"]
        if self._board.jump:
            words += ["-J", self._board.jump]
        return [*words, *arguments, "--", self._board.address]

    def open(self, timeout_s: float = CONNECT_S) -> None:
        """Log in, once.

        Raises:
            DeviceError: the board does not answer, is not the one that is known by this name, or refuses the key.
        """
        identity = self._board.identity
        if identity and not Path(identity).expanduser().is_file():
            raise DeviceError(f"The key file {identity} of the board '{self.word}' is not there. Mend boards.yaml.")
        command = self._command(
            "-N", "-f", ControlMaster="yes", ControlPersist=str(LINGER_S), ConnectTimeout=str(int(timeout_s))
        )
        with tempfile.TemporaryFile() as words:  # a file: the master keeps a pipe open
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=words,
                    timeout=3 * timeout_s,
                    env=_environment(),
                    start_new_session=True,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise DeviceError(self._refusal("Connection timed out")) from error
            except OSError as error:
                raise DeviceError(f"{self._ssh} cannot be started: {error.strerror}.") from error
            words.seek(0)
            said = words.read().decode("utf-8", "replace")
        if done.returncode:
            raise DeviceError(self._refusal(said))

    def close(self) -> None:
        """Hang up; harmless when the connection is lost."""
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            subprocess.run(
                self._command("-O", "exit"),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=10,
                check=False,
                env=_environment(),
            )

    def alive(self) -> bool:
        """Whether the master connection still stands."""
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            asked = subprocess.run(
                self._command("-O", "check"),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=10,
                check=False,
                env=_environment(),
            )
            return asked.returncode == 0
        return False

    @contextlib.contextmanager
    def agent(self, sweeps: bool = True) -> Iterator[Agent]:
        """The agent on the board, until the end of the block.

        Args:
            sweeps: look after what it has left, if it does not say goodbye.

        Raises:
            DeviceError: the board has no Python 3.7 or newer, or no room.
        """
        python = self._board.python
        remote = f"exec {_quoted(python) if python else 'python3'} -B -u -c {shlex.quote(START)}"
        with tempfile.TemporaryFile() as words:
            process = subprocess.Popen(
                [*self._command(ControlMaster="no"), remote],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                env=_environment(),
                start_new_session=True,  # Ctrl-C reaches us, not it: we end it
            )
            agent = Agent(self.word, process, words)
            try:
                agent.start()
                yield agent
            finally:
                agent.end()
                if sweeps and agent.hello and not agent.clean:
                    self.sweep(agent.hello)

    def sweep(self, hello: dict[str, Any]) -> str:
        """Remove what a lost agent has left, when the board can be reached; what has become of the board, as a sentence."""
        try:
            with contextlib.ExitStack() as stack:
                link = self if self.alive() else stack.enter_context(connected(self.word, self._board, RETURN_S))
                agent = stack.enter_context(link.agent(sweeps=False))
                agent.ask({"do": "sweep", "folder": hello["folder"]})
                restarted = None not in (boots := {hello["boot"], agent.hello["boot"]}) and len(boots) == 2
        except DeviceError:
            return "The board cannot be reached again yet: it may be starting up, or its network or power is gone."
        if restarted:
            return "The board was restarted meanwhile; check its power supply."
        return "The board answers again, and nothing was left running there."

    def _refusal(self, said: str) -> str:
        """Why there is no connection, and what to do about it."""
        for pattern, reason in REFUSALS.items():
            if re.search(pattern, said, re.IGNORECASE):
                return f"The board '{self.word}' cannot be reached: " + reason.format(address=self._board.address)
        last = redacted(said)[-_agent.LAST_WORDS :]
        return (
            f"The board '{self.word}' cannot be reached; ssh says: {last or 'nothing'}. Try: ssh {self._board.address}"
        )


REFUSALS = {
    "REMOTE HOST IDENTIFICATION HAS CHANGED|Host key for .* has changed": (
        "its host key is not the one that was known by this name. It may be another machine, or newly installed: when you "
        "know that it is, forget the old key (ssh-keygen -R HOST) and accept the new one (ssh {address})."
    ),
    "Host key verification failed|No .* host key is known": (
        "its host key is not known here yet. Look at it and accept it, once: ssh {address}"
    ),
    "Permission denied|Too many authentication failures|no mutual signature": (
        "it refuses the key. Put your public key there (ssh-copy-id {address}), or load it into your agent (ssh-add); "
        "edgeprune never asks for a password."
    ),
    "Could not resolve hostname": "there is no such host. Check the name, or give the board's IP address.",
    "Connection refused": "nothing listens there. Switch on the board's ssh server (raspi-config: Interface Options), or mend the port.",
    "timed out|Operation timed out": "it does not answer. Check its power and its network.",
    "No route to host|Network is unreachable": "no way leads there. Check its power, its network and yours.",
    "Connection (closed|reset)|kex_exchange_identification": "it hung up before the login. It may be starting up, or busy; try again.",
    "Bad configuration option|terminating, .* bad configuration": "ssh refuses its own configuration. Try: ssh {address}",
}


def _environment() -> dict[str, str]:
    """Ours, with messages in English, and nobody asked for a password in a window either."""
    return {**os.environ, "LC_ALL": "C", "SSH_ASKPASS_REQUIRE": "never"}


def _quoted(python: str) -> str:
    """A path for the board's shell; a leading ``~/`` stays the home folder."""
    return f'"$HOME"/{shlex.quote(python[2:])}' if python.startswith("~/") else shlex.quote(python)


@contextlib.contextmanager
def connected(word: str, board: Board, timeout_s: float = CONNECT_S) -> Iterator[Link]:
    """A link that is open, with its socket in a private folder that goes away with it."""
    parent = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(
        prefix="edgeprune-",
        dir=parent if len(parent) + 40 < SOCKET_PATH else "/tmp",  # noqa: S108 - the folder is private
    ) as folder:
        link = Link(word, board, Path(folder))
        link.open(timeout_s)
        try:
            yield link
        finally:
            link.close()


class Agent:
    """Our end of the agent: commands out, answers in, each with a time limit."""

    def __init__(self, word: str, process: subprocess.Popen[bytes], words: Any) -> None:
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 - both are pipes
        self._word = word
        self._process = process
        self._words = words
        self._source, self._sink = process.stdout.fileno(), process.stdin.fileno()
        os.set_blocking(self._sink, False)
        self._buffer = b""
        self.hello: dict[str, Any] = {}
        self.clean = False  # the board has said that its folder is gone

    def start(self) -> None:
        """Send the agent itself and wait for its first word."""
        source = Path(_agent.__file__).read_bytes()
        self._send(f"{len(source)}\n".encode() + source, ANSWER_S)
        while True:  # what the board's shell prints at every login comes first
            line = self._line(time.monotonic() + ANSWER_S)
            if line.startswith(_agent.MARK.encode()):
                break
        first = json.loads(line[len(_agent.MARK) :])
        if "error" in first:
            raise DeviceError(
                f"The board '{self._word}' cannot work: {first['error']['message']}. Make some room there."
            )
        self.hello = first["hello"]

    def ask(self, command: dict[str, Any], data: bytes = b"", timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """One command and the last line of its answer.

        Raises:
            ConnectionLost: the board is gone, or silent for too long.
            DeviceError: the board could not do it.
        """
        self._send(json.dumps(command).encode() + b"\n" + data, timeout_s)
        return self._answer(time.monotonic() + timeout_s)

    def put(self, name: str, data: bytes, report: Callable[[float, float, str], None] | None = None) -> None:
        """Store bytes on the board."""
        self._send(json.dumps({"do": "put", "name": name, "bytes": len(data)}).encode() + b"\n", ANSWER_S)
        for start in range(0, len(data), BLOCK):
            self._send(data[start : start + BLOCK], ANSWER_S)
            if report:
                report(min(start + BLOCK, len(data)), len(data), "bytes")
        self._answer(time.monotonic() + ANSWER_S)

    def get(self, name: str) -> bytes:
        """Fetch a file from the board."""
        count = self.ask({"do": "get", "name": name})["bytes"]
        while len(self._buffer) < count:
            self._more(time.monotonic() + ANSWER_S)
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    def run(self, command: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Start a command; its lines, signs of life, and at last its exit."""
        self._send(json.dumps(command).encode() + b"\n", ANSWER_S)
        while True:
            answer = self._answer(time.monotonic() + ANSWER_S)  # a sign of life comes every second
            yield answer
            if "exit" in answer:
                return

    def end(self) -> None:
        """Say goodbye, and wait until the board has cleaned up; a lost connection is no reason to fail here."""
        with contextlib.suppress(DeviceError, OSError):
            self._send(b'{"do": "bye"}\n', 5)
            while "done" not in self._answer(time.monotonic() + 10):
                pass
            self.clean = True
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self, deadline: float) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = json.loads(self._line(deadline))
        except ValueError as error:
            raise ConnectionLost(f"The board '{self._word}' answers in a way that cannot be understood.") from error
        if "error" in answer:
            raise self._failure(answer["error"])
        return answer

    def _failure(self, error: dict[str, str]) -> DeviceError:
        if error["kind"] == "disk":
            return DeviceError(
                f"The board '{self._word}' has no room in its temporary folder {printable(self.hello.get('folder', ''))} "
                f"({printable(error['message'])}). Free some; sometimes it lies in memory: see 'df -h' there."
            )
        return DeviceError(f"The board '{self._word}' could not do it: {printable(error['message'])}.")

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._buffer:
            self._more(deadline)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _more(self, deadline: float) -> None:
        ready, _, _ = select.select([self._source], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise ConnectionLost(f"The board '{self._word}' gives no answer any more.")
        block = os.read(self._source, BLOCK)
        if not block:
            raise self._gone()
        self._buffer += block

    def _send(self, data: bytes, timeout_s: float) -> None:
        deadline, view = time.monotonic() + timeout_s, memoryview(data)
        while view:
            _, ready, _ = select.select([], [self._sink], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise ConnectionLost(f"The board '{self._word}' takes no data any more.")
            try:
                view = view[os.write(self._sink, view[:BLOCK]) :]
            except BrokenPipeError as error:
                raise self._gone() from error

    def _gone(self) -> DeviceError:
        """Why the agent's channel has ended: no Python there, or no connection any more."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._words.seek(0)
        said = redacted(self._words.read().decode("utf-8", "replace"))[-_agent.LAST_WORDS :]
        code = self._process.returncode
        if not self.hello and code in (126, 127):
            return DeviceError(
                f"The board '{self._word}' has no Python that could be started ({said or 'nothing said'}). Install one there: "
                "sudo apt-get install python3; or name it as 'python' in boards.yaml."
            )
        if not self.hello and code not in (None, 255):
            return DeviceError(
                f"Python 3.7 or newer does not start on the board '{self._word}': {said or f'exit code {code}'}."
            )
        return ConnectionLost(f"The connection to the board '{self._word}' was lost{f' ({said})' if said else ''}.")
