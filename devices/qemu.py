"""Backend: the emulator. Models run on real Arm kernels, on the core that the target names; no time is a latency.

Results (outputs, metric, agreement) are those of the board's runtime on Arm code. Wall time and peak memory are the
emulator's own and are not reported. Needs ``edgeprune emulator install``, which needs no root.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgeprune.devices._emulator import HOW, Installation, find, install, remove, status, unsupported
from edgeprune.devices._session import ProbeSession, open_session
from edgeprune.errors import DeviceError
from edgeprune.target import Connection, Target

__all__ = ["Installation", "find", "install", "remove", "session", "status", "unavailable"]


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
    with open_session(installation.launcher(target.emulate.cpu, target.runtime.package)) as opened:
        yield opened
