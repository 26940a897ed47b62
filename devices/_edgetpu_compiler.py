"""Runs ``edgetpu_compiler``, where it is installed, and reads its log.

The compiler is Google's, for x86-64 Linux, and no part of any package: https://coral.ai/docs/edgetpu/compiler. It is run on
a copy in a temporary folder, without a shell, for a limited time.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.devices._edgetpu_facts import Facts
from edgeprune.devices._edgetpu_mapping import MAPPED, STATUSES
from edgeprune.errors import DeviceError, MissingDependency

TIMEOUT_S = 300.0
LAST_WORDS = 400  # characters of what the compiler said that are worth showing
HOW = "https://coral.ai/docs/edgetpu/compiler"

_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE = re.compile(r"^([\d.]+)\s*(B|KiB|MiB|GiB)$")
_ROW = re.compile(rf"^(\S+)\s+(\d+)\s+({'|'.join(map(re.escape, STATUSES))}|\S.*)$")
_LINES = {
    "on_chip_bytes": "On-chip memory used for caching model parameters",
    "remaining_bytes": "On-chip memory remaining for caching model parameters",
    "off_chip_bytes": "Off-chip memory used for streaming uncached model parameters",
    "subgraphs": "Number of Edge TPU subgraphs",
    "total": "Total number of operations",
}


@dataclass(frozen=True)
class Operators:
    """One row of the log's table: so many ops of one kind have one status."""

    op: str
    count: int
    status: str

    @property
    def mapped(self) -> bool:
        """Whether they run on the Edge TPU."""
        return self.status == MAPPED


@dataclass(frozen=True)
class Log:
    """What the compiler said; None for what its log lacks. Sizes are rounded by the compiler to 0.01 of their unit.

    Args:
        version: of the compiler.
        compile_ms: time it took, ms.
        on_chip_bytes, remaining_bytes, off_chip_bytes: parameters cached, room left for more, parameters streamed.
        subgraphs, total: parts that run on the Edge TPU; ops of the model.
        operators: the table.
    """

    version: str | None
    compile_ms: int | None
    on_chip_bytes: int | None
    remaining_bytes: int | None
    off_chip_bytes: int | None
    subgraphs: int | None
    total: int | None
    operators: tuple[Operators, ...]

    @property
    def mapped(self) -> int:
        """Number of ops that run on the Edge TPU."""
        return sum(row.count for row in self.operators if row.mapped)

    @property
    def cpu(self) -> int:
        """Number of ops that run on the CPU."""
        return sum(row.count for row in self.operators if not row.mapped)


def program(facts: Facts) -> str | None:
    """The compiler's path; None where it is not installed."""
    return shutil.which(facts.compiler)


def compiled(content: bytes, facts: Facts, timeout_s: float = TIMEOUT_S) -> tuple[bytes, Log]:
    """A model compiled for the Edge TPU, and the log.

    Raises:
        MissingDependency: the compiler is not installed.
        DeviceError: it refused the model, crashed, or took too long; with its last words.
    """
    path = program(facts)
    if path is None:
        raise MissingDependency(f"Compiling for the {facts.title} needs {facts.compiler} on PATH (x86-64 Linux): {HOW}")
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as name:
        folder = Path(name)
        (folder / "model.tflite").write_bytes(content)
        said = _run([path, "-s", "-o", str(folder), str(folder / "model.tflite")], folder, timeout_s, facts)
        made = folder / "model_edgetpu.tflite"
        if not made.exists():
            raise DeviceError(f"{facts.compiler} made no file from the model.{_last_words(said)}")
        return made.read_bytes(), parse(said)


def parse(text: str) -> Log:
    """The log that the compiler prints with ``-s``.

    Raises:
        DeviceError: there is no table of operators in it.
    """
    lines = [line.strip() for line in text.splitlines()]
    operators = tuple(row for line in _table(lines) if (row := _operators(line)))
    if not operators:
        raise DeviceError(f"The Edge TPU compiler's log has no table of operators.{_last_words(text)}")
    values = {name: _value(lines, words) for name, words in _LINES.items()}
    version = re.search(r"Edge TPU Compiler version (\S+)", text)
    taken = re.search(r"Models? compiled successfully in (\d+) ms", text)
    return Log(
        version=version.group(1) if version else None,
        compile_ms=int(taken.group(1)) if taken else None,
        operators=operators,
        **values,
    )


def _table(lines: Sequence[str]) -> Sequence[str]:
    """What stands below the head of the table."""
    heads = [place for place, line in enumerate(lines) if line.split() == ["Operator", "Count", "Status"]]
    return lines[heads[-1] + 1 :] if heads else []


def _operators(line: str) -> Operators | None:
    match = _ROW.match(line)
    return Operators(match.group(1), int(match.group(2)), match.group(3).strip()) if match else None


def _value(lines: Sequence[str], words: str) -> int | None:
    """The number behind ``words:``; a size in bytes."""
    text = next((line.partition(":")[2].strip() for line in lines if line.startswith(f"{words}:")), None)
    size = _SIZE.match(text) if text else None
    if size:
        return round(float(size.group(1)) * _UNITS[size.group(2)])
    return int(text) if text and text.isdigit() else None


def _run(command: Sequence[str], folder: Path, timeout_s: float, facts: Facts) -> str:
    """What a command prints; it is gone afterwards, with all that it has started."""
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise DeviceError(f"{command[0]} cannot be started: {error.strerror}. Install it anew: {HOW}") from error
    try:
        output = process.communicate(timeout=timeout_s)[0].decode("utf-8", "replace")
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{facts.compiler} was not done in {timeout_s:g} s. Give it a smaller model.") from error
    finally:
        _stop(process)
    if process.returncode or "Compilation failed" in output:
        how = (
            f"killed by {signal.Signals(-process.returncode).name}"
            if process.returncode < 0
            else f"exit code {process.returncode}"
        )
        raise DeviceError(f"{facts.compiler} did not compile the model ({how}).{_last_words(output)}")
    return output


def _stop(process: subprocess.Popen[Any]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout:
        process.stdout.close()


def _last_words(text: str) -> str:
    said = " ".join(text.split())
    return f" It said: {said[-LAST_WORDS:]}" if said else " It said nothing."
