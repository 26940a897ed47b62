"""Our TCG plugin for QEMU: built once into the user's cache, and its output read."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeprune import cache, files
from edgeprune.errors import DeviceError, MissingDependency

SOURCE = Path(__file__).with_name("_plugin.c")
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-std=c99", "-O2", "-fPIC", "-shared")
HEADER = "edgeprune-blocks 1"
HOW = "install a C compiler (on Debian and Ubuntu: apt-get install gcc), or without root: python -m pip install ziglang"
OLDEST_GLIBC = "2.31"  # of the emulators that load what zig builds


@dataclass(frozen=True)
class Block:
    """A run of instructions with one entry.

    Args:
        address: of the first one, in the guest.
        code: the instructions, 4 bytes each, as they lie in memory.
    """

    address: int
    code: bytes

    @property
    def instructions(self) -> int:
        """Number of instructions."""
        return len(self.code) // 4


@dataclass(frozen=True)
class Region:
    """What ran between two marks.

    Args:
        label: what the guest called it.
        executions: block -> how often it ran, > 0.
        traffic: loads, stores, and misses as `_plugin.c` lists them; zeros without caches.
    """

    label: int
    traffic: tuple[int, ...]
    executions: dict[Block, int] = field(default_factory=dict)

    @property
    def instructions(self) -> int:
        """Instructions that ran."""
        return sum(count * block.instructions for block, count in self.executions.items())


def compiler() -> tuple[str, ...] | None:
    """How a C compiler is started, or None where there is none."""
    for name in (os.environ.get("CC", ""), *COMPILERS):
        program = shutil.which(name) if name else None
        if program:
            return (program,)
    if importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang", "cc", "-target", f"{platform.machine()}-linux-gnu.{OLDEST_GLIBC}")
    return None


def unavailable() -> str | None:
    """None, or why the plugin cannot be had, and what to do about it."""
    if _place().is_file() or compiler():
        return None
    return f"counting needs a small plugin for QEMU, and there is no C compiler to build it: {HOW}"


def build() -> Path:
    """The plugin, built when it is not there yet.

    Raises:
        MissingDependency: there is no C compiler.
        DeviceError: the compiler refuses.
    """
    place = _place()
    if place.is_file():
        return place
    start = compiler()
    if start is None:
        raise MissingDependency(
            f"Counting needs a small plugin for QEMU, and there is no C compiler to build it: {HOW}."
        )
    with (
        cache.writing("plugin", place.parent),
        tempfile.TemporaryDirectory(prefix=files.TEMPORARY, dir=place.parent) as scratch,
    ):
        built = Path(scratch) / place.name
        command = [*start, *FLAGS, "-o", str(built), str(SOURCE)]
        finished = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if finished.returncode:
            words = " ".join(finished.stderr.split())[-600:]
            raise DeviceError(
                f"The compiler {' '.join(start)} could not build QEMU's plugin: {words}. Name another in CC."
            )
        built.replace(place)
    return place


def _place() -> Path:
    digest = hashlib.sha256(SOURCE.read_bytes() + repr(FLAGS).encode() + platform.machine().encode()).hexdigest()
    return cache.folder("plugin").absolute() / f"{digest[:32]}.so"


def option(plugin: Path, output: str, caches: Mapping[str, str]) -> str:
    """The value of QEMU's ``-plugin``.

    Args:
        output: where the results go.
        caches: ``l1d`` and ``l2`` -> ``BYTES:WAYS:LINE``; empty: memory is not looked at.

    Raises:
        DeviceError: the path has a comma, at which QEMU would cut it.
    """
    if "," in str(plugin):
        raise DeviceError(
            f"QEMU takes no plugin from a path with a comma: {plugin}. Set {cache.VARIABLE} to another folder."
        )
    return ",".join([str(plugin), f"out={output}", *(f"{name}={size}" for name, size in caches.items())])


def read(lines: Iterable[str]) -> list[Region]:
    """The regions in the plugin's output, in the order in which they ended.

    Raises:
        DeviceError: the output is not the plugin's, or ends too early.
    """
    stream = iter(lines)
    blocks: dict[int, Block] = {}
    regions: list[Region] = []
    try:
        if next(stream).strip() != HEADER:
            raise ValueError("another header")
        for line in stream:
            kind, *rest = line.split()
            if kind == "c":
                regions[-1].executions[blocks[int(rest[0])]] = int(rest[1])
            elif kind == "b":
                blocks[int(rest[0])] = Block(int(rest[1], 16), _code(rest[2]))
            elif kind == "r":
                regions.append(Region(int(rest[0]), tuple(int(figure) for figure in rest[1:])))
            elif kind == "end":
                return regions
    except (ValueError, IndexError, KeyError, StopIteration) as error:
        raise DeviceError(
            f"What the plugin wrote cannot be read ({error!r}). Free some disk space, and try again."
        ) from error
    raise DeviceError("The plugin's output ends too early: the emulator was stopped. Try again.")


def _code(words: str) -> bytes:
    """Instructions written as numbers -> bytes as they lie in memory, the lowest first."""
    return b"".join(bytes.fromhex(words[start : start + 8])[::-1] for start in range(0, len(words), 8))
