"""The board's end of the ssh backend: sent over the connection and run from memory, it starts the probe and cleans up.

Runs on Python 3.7 or newer with the standard library alone. Commands are lines of JSON on standard input, ``put`` followed
by its bytes; answers are lines of JSON on standard output, ``get`` followed by its bytes. All that is written lies in one
folder below the board's temporary folder. It goes when standard input ends, which is also what a lost connection looks
like from here, when a signal asks for it, or when nothing was asked for `IDLE_S`; a probe at work is killed first, with
all it has started.

::

    -> (nothing)                                     <- {"hello": {"folder": ..., "machine": ..., "board": ..., "have": [...]}}
    -> {"do": "put", "name": ..., "bytes": 3}  xyz   <- {"done": true}
    -> {"do": "find", "python": ...}                 <- {"python": ..., "have": [...]}
    -> {"do": "run", "command": [...], "words": ..., "timeout_s": 9, "silent_s": 3}
                                                     <- {"line": ...} ..., {"alive": true} ..., {"exit": 0, "words": ...}
    -> {"do": "get", "name": ...}                    <- {"bytes": 3}  xyz
    -> {"do": "sweep", "folder": ...}                <- {"done": true}    what another agent left
    -> {"do": "bye"}                                 <- {"done": true}

A failure is an answer too: ``{"error": {"kind": "disk|command|unexpected", "message": ...}}``.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PREFIX = "edgeprune-"
MARK = "@edgeprune-agent "
IDLE_S = 900.0
ALIVE_S = 1.0  # between two signs of life while the probe works
LAST_WORDS = 600  # characters of the probe's standard error that are told
BLOCK = 1 << 16
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MODULES = ("tflite_runtime", "ai_edge_litert", "numpy")
FINDER = """
import importlib.util, json, sys
print(json.dumps([module for module in sys.argv[1:] if importlib.util.find_spec(module)]))
"""


class Ended(Exception):
    """The other side is gone, or silent for too long."""


class Pipe:
    """Standard input and output as lines and blocks of bytes."""

    def __init__(self, source: int, sink: int) -> None:
        self.source, self.sink, self.buffer = source, sink, b""

    def read_more(self, timeout_s: float) -> None:
        """Wait for bytes; `Ended` when none come in time or ever."""
        ready, _, _ = select.select([self.source], [], [], timeout_s)
        block = os.read(self.source, BLOCK) if ready else b""
        if not block:
            raise Ended
        self.buffer += block

    def line(self) -> bytes:
        """The next command."""
        while b"\n" not in self.buffer:
            self.read_more(IDLE_S)
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line

    def pour(self, count: int, sink: Any) -> OSError | None:
        """Pass ``count`` bytes on, or nowhere; all are taken from the pipe even when the disk takes no more."""
        failure = None
        while count:
            if not self.buffer:
                self.read_more(IDLE_S)
            block, self.buffer = self.buffer[:count], self.buffer[count:]
            count -= len(block)
            try:
                while sink is not None and failure is None and block:
                    block = block[sink.write(block) :]
            except OSError as error:
                failure = error
        return failure

    def send(self, answer: Any, mark: str = "") -> None:
        """One answer."""
        self.send_bytes((mark + json.dumps(answer) + "\n").encode())

    def send_bytes(self, data: bytes) -> None:
        """Bytes, whole."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.sink, view) :]


def hello(folder: Path) -> dict[str, Any]:
    """What this board is, for the decision whether it is the right one."""
    return {
        "folder": str(folder),
        "machine": platform.machine(),
        "bits": 64 if sys.maxsize > 1 << 32 else 32,
        "board": read_text("/sys/firmware/devicetree/base/model"),
        "boot": read_text("/proc/sys/kernel/random/boot_id"),
        "python": platform.python_version(),
        "have": [module for module in MODULES if importlib.util.find_spec(module)],
        "free_bytes": shutil.disk_usage(str(folder)).free,
    }


def read_text(path: str) -> str | None:
    """A small file of the kernel's, or None."""
    try:
        return Path(path).read_text().strip("\0\n ")
    except (OSError, ValueError):
        return None


def inside(folder: Path, name: str) -> Path:
    """A path in the folder; names are plain words."""
    if not name or name.startswith(".") or Path(name).name != name:
        raise ValueError(f"{name!r} is no plain file name")
    return folder / name


def put(pipe: Pipe, folder: Path, command: dict[str, Any]) -> dict[str, Any]:
    """Store what follows the command; when that fails, the bytes are taken from the pipe all the same."""
    left = command["bytes"]
    try:
        with inside(folder, command["name"]).open("wb", buffering=0) as sink:
            failure, left = pipe.pour(left, sink), 0
    except (OSError, ValueError):
        pipe.pour(left, None)
        raise
    if failure is not None:
        raise failure
    return {"done": True}


def find(folder: Path, command: dict[str, Any]) -> dict[str, Any]:
    """Where a Python is, and which of `MODULES` it could import: its import path is asked, nothing is imported."""
    path = shutil.which(str(Path(command["python"]).expanduser()))
    if path is None:
        return {"python": None, "have": []}
    try:
        asked = subprocess.run(
            [path, "-c", FINDER, *MODULES],
            cwd=str(folder),
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=True,
        )
        return {"python": path, "have": json.loads(asked.stdout.decode())}
    except (OSError, ValueError, subprocess.SubprocessError):  # one that does not run has nothing
        return {"python": path, "have": []}


def environment(folder: Path) -> dict[str, str]:
    """What a child sees: temporary files go into the folder, and no bytecode is written beside anybody's modules."""
    return dict(os.environ, TMPDIR=str(folder), PYTHONDONTWRITEBYTECODE="1")


def run(pipe: Pipe, folder: Path, command: dict[str, Any]) -> dict[str, Any]:
    """Start a command in the folder, pass its lines on, and kill it when time is up, another command comes, or the other side is gone."""
    words = inside(folder, command["words"])
    with words.open("wb") as errors:
        child = subprocess.Popen(
            [str(Path(command["command"][0]).expanduser()), *command["command"][1:]],
            cwd=str(folder),
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    try:
        in_time = follow(pipe, child, time.monotonic() + command["timeout_s"], command["silent_s"])
    finally:
        stop(child)
    return {"exit": child.returncode if in_time else None, "words": last_words(words)}


def follow(pipe: Pipe, child: Any, deadline: float, silent_s: float) -> bool:
    """Pass on the child's lines until it closes its output; False when it is late, silent, or another command comes.

    Silence counts from the first line on: how long it takes to load a model is nobody's guess.
    """
    source, rest, limit = child.stdout.fileno(), b"", deadline
    while not pipe.buffer and time.monotonic() < min(limit, deadline):
        ready, _, _ = select.select([source, pipe.source], [], [], ALIVE_S)
        if pipe.source in ready:
            pipe.read_more(0)  # whoever says something now does not want to wait
        if source in ready:
            block = os.read(source, BLOCK)
            if not block:
                child.wait(max(1.0, deadline - time.monotonic()))
                return True
            limit = time.monotonic() + silent_s
            *lines, rest = (rest + block).split(b"\n")
            for line in filter(None, lines):
                pipe.send({"line": line.decode("utf-8", "replace")})
        elif not ready:
            pipe.send({"alive": True})
    return False


def stop(child: Any) -> None:
    """End a child that is still there, with everything it has started."""
    with contextlib.suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()


def last_words(path: Path) -> str:
    """The end of a file of messages, in one line."""
    text = path.read_bytes().decode("utf-8", "replace")
    return " ".join(text.split())[-LAST_WORDS:]


def get(pipe: Pipe, folder: Path, command: dict[str, Any]) -> None:
    """Send a file."""
    data = inside(folder, command["name"]).read_bytes()
    pipe.send({"bytes": len(data)})
    pipe.send_bytes(data)


def sweep(folder: Path, own: Path) -> dict[str, Any]:
    """Remove the folder of an agent that was killed, and what still works in it."""
    if not folder.name.startswith(PREFIX) or folder.parent != own.parent or folder == own:
        raise ValueError(f"{folder} is not the folder of another agent")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if (process / "cwd").resolve() == folder:
                os.kill(int(process.name), signal.SIGKILL)
    shutil.rmtree(str(folder), ignore_errors=True)
    return {"done": not folder.exists()}


def answer(pipe: Pipe, folder: Path, command: dict[str, Any]) -> dict[str, Any] | None:
    """The last line of a command's answer; None: it has been sent."""
    do = command["do"]
    if do == "put":
        return put(pipe, folder, command)
    if do == "find":
        return find(folder, command)
    if do == "run":
        return run(pipe, folder, command)
    if do == "sweep":
        return sweep(Path(command["folder"]), folder)
    if do == "get":
        get(pipe, folder, command)
        return None
    raise ValueError(f"unknown command {do!r}")


def serve(pipe: Pipe, folder: Path) -> None:
    """Answer commands until the other side says goodbye or is gone."""
    pipe.send({"hello": hello(folder)}, MARK)
    while True:
        command = json.loads(pipe.line().decode())
        if command["do"] == "bye":
            return
        try:
            reply = answer(pipe, folder, command)
        except Ended:
            raise
        except OSError as error:
            kind = "disk" if error.errno in FULL else "command"
            reply = {"error": {"kind": kind, "message": str(error.strerror or error)}}
        except Exception as error:
            reply = {"error": {"kind": "unexpected", "message": f"{type(error).__name__}: {error}"}}
        if reply is not None:
            pipe.send(reply)


def leave(number: int, _frame: Any) -> None:
    """A signal that asks to end: by way of the clean-up, which a second one does not disturb."""
    for again in SIGNALS:
        signal.signal(again, signal.SIG_IGN)
    raise Ended


def main() -> None:
    """Serve, and leave nothing behind, however it ends."""
    for number in SIGNALS:
        signal.signal(number, leave)
    pipe = Pipe(0, os.dup(1))
    os.dup2(2, 1)  # whatever else is printed is no answer
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
    except OSError as error:
        kind = "disk" if error.errno in FULL else "command"
        message = f"no temporary folder can be made: {error.strerror or error}"
        pipe.send({"error": {"kind": kind, "message": message}}, MARK)
        return
    try:
        with contextlib.suppress(Ended, BrokenPipeError):
            serve(pipe, folder)
    finally:
        shutil.rmtree(str(folder), ignore_errors=True)
    with contextlib.suppress(OSError):
        pipe.send({"done": True})


if __name__ == "__main__":
    main()
