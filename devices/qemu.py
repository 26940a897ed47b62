"""Backend: the emulator. Models run on real Arm kernels, on the core that the target names; no time is a latency.

Results (outputs, metric, agreement) are those of the board's runtime on Arm code. Wall time and peak memory are the
emulator's own and are not reported. What it can count is what an inference costs on the target's core, which
`edgeprune.forecast` makes a latency of. Needs ``edgeprune emulator install``, which needs no root.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from edgeprune.devices import _scripts
from edgeprune.devices._emulator import HOW, Installation, find, install, remove, status, unsupported
from edgeprune.devices._session import ProbeSession, open_session
from edgeprune.errors import DeviceError
from edgeprune.target import Connection, Target

__all__ = ["Installation", "count", "find", "install", "remove", "session", "status", "unavailable", "uncountable"]


def unavailable(target: Target, connection: Connection) -> str | None:
    """None, or why the target cannot be emulated here, and what to do about it."""
    if target.emulate.cpu is None:
        return target.emulate.reason
    installation = find()
    if installation is None:
        return unsupported() or f"the Arm emulator is not installed; install it (no root needed): {HOW}"
    return _lacking(target, installation)


def _lacking(target: Target, installation: Installation) -> str | None:
    """What of the target this installation cannot do."""
    package, version = target.runtime.package, target.runtime.version
    installed = installation.runtimes.get(package)
    if installed is None or version not in (None, installed):
        known = ", ".join(f"{name} {number}" for name, number in installation.runtimes.items())
        return f"the emulator has {known}, and the target names {package} {version}; use another target file"
    wanted = tuple(int(part) for part in (target.emulate.qemu_at_least or "0").split("."))
    if installation.qemu_version < wanted:
        found = ".".join(map(str, installation.qemu_version))
        needed = f"{target.emulate.cpu} needs QEMU {target.emulate.qemu_at_least} or newer"
        return f"{needed}, and this is {found}; put a newer qemu-aarch64 on PATH and run {HOW} --force"
    return None


@contextmanager
def session(target: Target, connection: Connection) -> Iterator[ProbeSession]:
    """Run models under the emulator, an evaluation on all cores of this machine.

    Raises:
        DeviceError: ``unavailable``.
    """
    reason = unavailable(target, connection)
    installation = find()
    if reason or installation is None or target.emulate.cpu is None:
        raise DeviceError(f"'{target.name}' cannot be emulated: {reason}.")
    launcher = installation.launcher(target.emulate.cpu, target.runtime.package)
    scripts = _scripts.folder(installation, launcher)
    environment = {**launcher.environment, "PYTHONPATH": f"{launcher.environment['PYTHONPATH']}{os.pathsep}{scripts}"}
    with open_session(replace(launcher, environment=environment, program=_scripts.start("_probe"))) as opened:
        yield opened


# What a backend that can count offers (`edgeprune.forecast.Counter`); the counting stands on what is above.


def uncountable(target: Target, runtime: str | None = None) -> str | None:
    """None, or why the cycles of a runtime cannot be counted here, and what to do about it."""
    from edgeprune.devices import _counting

    return _counting.unavailable(target, runtime)


def count(
    model: Path,
    target: Target,
    runtime: str | None = None,
    resolver: Literal["default", "without_delegates", "reference"] = "default",
    by_op: bool = True,
) -> Any:
    """One inference on one thread of the target's core: instructions and cycles, of the whole and of each op.

    Raises:
        ArtefactError: the file cannot be read, or the runtime refuses it.
        DeviceError: ``uncountable``, or the emulator failed.
    """
    from edgeprune.devices import _counting

    return _counting.count(model, target, runtime, resolver, per_op=by_op)
