r"""Cycles that a core takes for a block of instructions, by llvm-mca, remembered by the block's content.

A block is disassembled by llvm-mc and simulated by llvm-mca: `ITERATIONS` executions one after the other, so that what
overlaps between them does overlap, as in the loops in which kernels spend their time:

.. math:: \text{cycles} = \frac{\text{cycles of } n \text{ executions}}{n}, \qquad n = 100.

What llvm-mca assumes: every load hits the first cache, every branch is predicted, loads and stores do not meet, and the
front end is never the limit. What we add to that: a call is simulated as a branch (llvm-mca would charge 100 cycles for it,
but what is called is counted in blocks of its own), and an instruction for which the core's tables have nothing (an atomic,
of which a kernel has none) as a NOP.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import sqlite3
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from edgeprune import cache
from edgeprune.devices._cores import Core
from edgeprune.devices._llvm import SILENT, Llvm
from edgeprune.errors import DeviceError

ITERATIONS = 100
SCHEMA = 1  # of what is remembered: another way to simulate is another number
NOP = "nop"
ALL_EXTENSIONS = (
    "+v8.2a,+dotprod,+fullfp16,+rcpc,+crc,+lse"  # for reading code: what a block holds is for the core to run
)
MOST_UNKNOWN = 200  # instructions without tables, after which something else is wrong

_ENCODED = re.compile(r"^\t(?P<text>.*?)\s*// encoding: \[(?P<bytes>[^\]]*)\]$", re.M)
_REGION = re.compile(r"Code Region - (\d+)\n\nIterations:\s+(\d+)\nInstructions:\s+\d+\nTotal Cycles:\s+(\d+)")
_UNKNOWN = re.compile(r"note: instruction:\s+(\S+)")
_CALLS = {"bl": "b", "blr": "br"}


def cycles(codes: Collection[bytes], core: Core, llvm: Llvm) -> dict[bytes, float]:
    """Cycles of one execution of each block on a core, > 0.

    Args:
        codes: blocks, 4 bytes per instruction.

    Raises:
        DeviceError: llvm does not do it.
    """
    wanted = list(dict.fromkeys(codes))
    with _Memory(core, llvm) as memory:
        known = memory.get(wanted)
        missing = [code for code in wanted if code not in known]
        if missing:
            found = dict(zip(missing, simulate(missing, core, llvm), strict=True))
            memory.put(found)
            known |= found
    return known


def simulate(codes: Sequence[bytes], core: Core, llvm: Llvm) -> list[float]:
    """`cycles` without memory, in the order of ``codes``."""
    texts = disassemble({code[at : at + 4] for code in codes for at in range(0, len(code), 4)}, llvm)
    unknown: set[str] = set()
    while len(unknown) <= MOST_UNKNOWN:
        finished = _run([*llvm.mca, *_options(core)], assembler(codes, texts, unknown))
        if not finished.returncode:
            return regions(finished.stdout, len(codes))
        match = _UNKNOWN.search(finished.stderr)
        if match is None or match[1] in unknown:
            break
        unknown.add(match[1])
    raise DeviceError(f"llvm-mca could not simulate {core.name}: {' '.join(finished.stderr.split())[-400:]}")


def _options(core: Core) -> list[str]:
    dispatch = [f"-dispatch={core.dispatch}"] if core.dispatch else []
    views = ["-resource-pressure=false", "-instruction-info=false"]
    attributes = f"-mattr={core.extensions}"
    return ["-mtriple=aarch64", f"-mcpu={core.name}", attributes, f"-iterations={ITERATIONS}", *dispatch, *views, "-"]


def disassemble(words: Collection[bytes], llvm: Llvm) -> dict[bytes, str]:
    """Assembler for instructions; what is no instruction that llvm knows is left out."""
    lines = "".join(" ".join(f"{byte:#04x}" for byte in word) + "\n" for word in sorted(words))
    command = [*llvm.mc, "--disassemble", "-triple=aarch64", f"-mattr={ALL_EXTENSIONS}", "--show-encoding"]
    return encoded(_run(command, lines).stdout)


def encoded(listing: str) -> dict[bytes, str]:
    """Instruction -> assembler, from llvm-mc's listing."""
    return {
        bytes(int(byte, 16) for byte in match["bytes"].split(",")): match["text"]
        for match in _ENCODED.finditer(listing)
    }


def assembler(codes: Sequence[bytes], texts: Mapping[bytes, str], unknown: Collection[str] = ()) -> str:
    """One region for llvm-mca per block, named by its position.

    Args:
        texts: instruction -> assembler.
        unknown: words (``swpal``) of instructions that the core's tables lack.
    """
    return "".join(_region(index, code, texts, unknown) for index, code in enumerate(codes))


def _region(index: int, code: bytes, texts: Mapping[bytes, str], unknown: Collection[str]) -> str:
    lines = [_simulated(texts.get(code[at : at + 4], NOP), unknown) for at in range(0, len(code), 4)]
    return "\n".join([f"# LLVM-MCA-BEGIN {index}", *lines, "# LLVM-MCA-END", ""])


def _simulated(text: str, unknown: Collection[str]) -> str:
    word, tab, operands = text.partition("\t")
    return NOP if word in unknown else _CALLS.get(word, word) + tab + operands


def regions(report: str, count: int) -> list[float]:
    """Cycles per execution of every region in llvm-mca's report.

    Raises:
        DeviceError: there are not as many as were given.
    """
    found = {int(name): int(total) / int(iterations) for name, iterations, total in _REGION.findall(report)}
    if sorted(found) != list(range(count)):
        raise DeviceError(
            f"llvm-mca answered for {len(found)} of {count} blocks. Report this, with 'edgeprune doctor'."
        )
    return [found[index] for index in range(count)]


def _run(command: Sequence[str], text: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=SILENT)
    except OSError as error:
        raise DeviceError(
            f"{command[0]} does not run: {error.strerror}. Try: edgeprune emulator install --force"
        ) from error


class _Memory:
    """Cycles of blocks met before, in the user's cache; a cache that cannot be used only costs time."""

    def __init__(self, core: Core, llvm: Llvm) -> None:
        way = f"{SCHEMA} {llvm.version} {_options(core)}"
        self._salt = hashlib.sha256(way.encode()).digest()
        self._base: sqlite3.Connection | None = None

    def __enter__(self) -> _Memory:
        path = cache.folder("cycles.sqlite").absolute()
        with contextlib.suppress(OSError, sqlite3.Error):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = _opened(path)
        return self

    def __exit__(self, *error: object) -> None:
        if self._base:
            self._base.close()

    def get(self, codes: Sequence[bytes]) -> dict[bytes, float]:
        """Those of ``codes`` that are known."""
        found: dict[bytes, float] = {}
        if self._base is None:
            return found
        with contextlib.suppress(sqlite3.Error):
            for code in codes:
                row = self._base.execute("SELECT cycles FROM blocks WHERE block = ?", (self._key(code),)).fetchone()
                found |= {code: row[0]} if row else {}
        return found

    def put(self, found: Mapping[bytes, float]) -> None:
        """Remember cycles, all or none."""
        if self._base is None:
            return
        rows = [(self._key(code), value) for code, value in found.items()]
        with contextlib.suppress(sqlite3.Error), self._base:
            self._base.executemany("INSERT OR REPLACE INTO blocks VALUES (?, ?)", rows)

    def _key(self, code: bytes) -> bytes:
        return hashlib.sha256(self._salt + code).digest()[:16]


def _opened(path: Path) -> sqlite3.Connection:
    """The data base, made anew when it is damaged: all that it holds can be found out again."""
    try:
        return _with_table(path)
    except sqlite3.OperationalError:  # busy, or not to be written
        raise
    except sqlite3.DatabaseError:
        path.unlink()
        return _with_table(path)


def _with_table(path: Path) -> sqlite3.Connection:
    base = sqlite3.connect(path, timeout=30)
    try:
        base.execute("CREATE TABLE IF NOT EXISTS blocks (block BLOB PRIMARY KEY, cycles REAL NOT NULL) WITHOUT ROWID")
    except sqlite3.Error:
        base.close()
        raise
    return base
