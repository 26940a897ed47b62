"""Backend: an Edge TPU at this machine. Also what `check` says of one: which ops it takes, what memory, how long.

Without a chip nothing is run: the mapping rules, the memory layout and the latency are predicted from the file
(``_edgetpu_mapping.py``, ``_edgetpu_memory.py``, ``_edgetpu_latency.py``). Where Google's compiler is installed, it is run too.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeprune import tflite
from edgeprune.accelerator import Placed, Verdict
from edgeprune.devices import _edgetpu_compiler as compiler
from edgeprune.devices import _edgetpu_latency as latency
from edgeprune.devices import _edgetpu_mapping as mapping
from edgeprune.devices import _edgetpu_memory as memory
from edgeprune.devices import _probe
from edgeprune.devices._edgetpu_facts import Facts, facts
from edgeprune.devices._session import Launcher, ProbeSession, open_session, read_model
from edgeprune.errors import DeviceError, EdgepruneError
from edgeprune.measurement import Reply, Request
from edgeprune.target import Connection, Target
from edgeprune.tflite_objects import TFLiteFile

LIBRARY_HOW = "sudo apt-get install libedgetpu1-std, from Coral's package repository (https://coral.ai/software)"
USB_NAMES = {("1a6e", "089a"), ("18d1", "9302")}  # before its first use, and after
USB_DEVICES, DEVICES = Path("/sys/bus/usb/devices"), Path("/dev")


def check(file: TFLiteFile, target: Target) -> Verdict:
    """What the Edge TPU does with a file; see `edgeprune.accelerator.Accelerator`."""
    known = facts()
    found = mapping.verdicts(file, known)
    mapped = frozenset(one.index for one in found if one.mapped)
    work = latency.work(file, mapped, known)
    total = sum(memory.parameter_bytes(file, op, known) for op in file.ops if op.index in mapped)
    on_chip, off_chip = memory.on_and_off_chip(total, known)
    asked = _compiler(file, found, known)
    return Verdict(
        title=known.title,
        ops=tuple(Placed(one.index, one.mapped, one.reason, one.advice, one.after) for one in found),
        on_chip_bytes=on_chip,
        off_chip_bytes=off_chip,
        activation_bytes=memory.activation_bytes(file, mapped, known),
        activation_limit_bytes=known.memory.activation_bytes_per_tile,
        instruction_bytes=latency.instruction_bytes(work, latency.constants().instructions),
        latency=latency.predict(work, target),
        culprits=mapping.culprits(file, found, known),
        compiler=asked,
        notes=(*_memory_notes(file, mapped, total, known), *_compiler_notes(asked, known)),
    )


def predict(file: TFLiteFile, target: Target) -> dict[str, Any]:
    """The ``latency`` block of a file, predicted; see `edgeprune.accelerator.Accelerator`."""
    known = facts()
    mapped = frozenset(one.index for one in mapping.verdicts(file, known) if one.mapped)
    return latency.predict(latency.work(file, mapped, known), target)


def compiled(model: Path | bytes) -> bytes:
    """A model as the Edge TPU runs it: compiled here, unless it is compiled already.

    Raises:
        MissingDependency: it is not, and the compiler is not installed.
        DeviceError: the compiler refuses it.
    """
    content = model if isinstance(model, bytes) else read_model(model)
    if any(op.op == mapping.COMPILED for op in tflite.read(content).ops):
        return content
    return compiler.compiled(content, facts())[0]


def library() -> str:
    """The delegate's shared library."""
    return facts().library


def unavailable(target: Target, connection: Connection) -> str | None:
    """None, or why no Edge TPU can be used here, and what to do about it."""
    if target.delegate is None or target.delegate.name != facts().name:
        return f"{target.title} has no {facts().title}; leave out 'backend: edgetpu' in its file"
    if not _attached():
        why = target.emulate.reason or f"{facts().title}s cannot be emulated"
        return f"no {facts().title} is attached to this machine, and {why}"
    if not _loads(facts().library):
        return f"{facts().library} cannot be loaded; install it: {LIBRARY_HOW}"
    if _runtime(target) is None:
        return f"no TFLite runtime is installed here; install one: pip install {target.runtime.package}"
    return None


@contextmanager
def session(target: Target, connection: Connection) -> Iterator[EdgeTpuSession]:
    """Run models on this machine's Edge TPU; they are compiled first where that is not done.

    Raises:
        DeviceError: ``unavailable``.
    """
    reason = unavailable(target, connection)
    if reason:
        raise DeviceError(f"'{target.name}' cannot be run on this machine: {reason}.")
    launcher = Launcher(
        command=(sys.executable,),
        environment=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        kind="measured",
        threads=target.runtime.threads,
        runtime=_runtime(target),
        delegate=facts().library,
    )
    with open_session(launcher) as opened:
        yield EdgeTpuSession(opened)


class EdgeTpuSession:
    """A session whose models are compiled on the way; satisfies `edgeprune.target.Session`."""

    def __init__(self, inner: ProbeSession) -> None:
        self._inner = inner

    def run(self, model: Path | bytes, request: Request) -> Reply:
        """Run a .tflite as the request says; see `edgeprune.target.Session`."""
        return self._inner.run(compiled(model), request)


def _attached() -> bool:
    """Whether Linux shows an Edge TPU, on USB or PCIe."""
    found = {(_word(path / "idVendor"), _word(path / "idProduct")) for path in USB_DEVICES.glob("*")}
    return bool(found & USB_NAMES) or any(DEVICES.glob("apex_*"))


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _runtime(target: Target) -> str | None:
    """The package that the target names when it is here, else the other one, else None."""
    wanted = [target.runtime.package, *_probe.RUNTIMES]
    return next((package for package in wanted if find_spec(_probe.RUNTIMES[package])), None)


def _compiler(file: TFLiteFile, found: Sequence[mapping.Verdict], known: Facts) -> dict[str, Any] | None:
    """What the compiler says, and where it differs from what is said here; None: it is not installed."""
    if compiler.program(known) is None:
        return None
    try:
        _, log = compiler.compiled(file.content, known)
    except EdgepruneError as error:
        return {"error": str(error)}
    differences = _differences(log, found)
    data = asdict(log) | {"mapped": log.mapped, "cpu": log.cpu}
    return data | {
        "operators": [asdict(row) for row in log.operators],
        "agrees": not differences,
        "differences": differences,
    }


def _differences(log: compiler.Log, found: Sequence[mapping.Verdict]) -> list[str]:
    """Kinds of ops of which the compiler maps another number. Its log calls every custom op CUSTOM."""
    ours = Counter(one.op for one in found if one.mapped)
    theirs: Counter[str] = Counter()
    for row in log.operators:
        theirs[row.op] += row.count * row.mapped
    return [
        f"{kind}: the compiler maps {theirs[kind]}, {ours[kind]} were expected"
        for kind in sorted(ours.keys() | theirs.keys())
        if theirs[kind] != ours[kind]
    ]


def _memory_notes(file: TFLiteFile, mapped: frozenset[int], total: int, known: Facts) -> Iterator[str]:
    least, usual, most = (getattr(known.memory, f"parameter_kib_{word}") / 1024 for word in ("least", "usual", "most"))
    if total > least * 2**20:
        yield (
            f"How much of the chip's memory is left for parameters the compiler decides: {usual:.1f} MiB is usual, and taken "
            f"here; its logs show {least:.1f} to {most:.1f} MiB."
        )
    need, room = memory.activation_bytes(file, mapped, known), known.memory.activation_bytes_per_tile
    if need > room:
        yield (
            f"Activations need {need:,} bytes in each tile, and {room:,} are there: the compiler cuts the image into strips, with "
            "more instructions to send. A smaller input, or fewer channels in the first layers, avoids that."
        )


def _compiler_notes(asked: Mapping[str, Any] | None, known: Facts) -> Iterator[str]:
    if asked is None:
        yield (
            f"This is predicted by edgeprune's own rules. {known.compiler} is not on PATH; where it is, its verdict is shown "
            f"beside ({compiler.HOW})."
        )
    elif "error" in asked:
        yield f"The compiler gave no verdict: {asked['error']}"
    else:
        yield from (f"The compiler's verdict differs: {difference}." for difference in asked["differences"])
