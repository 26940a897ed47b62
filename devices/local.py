"""Backend: this machine. Times are measured; results are those of this machine's kernels.

The probe runs in a child process with this Python, so that a runtime that crashes takes nothing with it, and so that
peak memory is that of the model. Needs ``ai-edge-litert`` or ``tflite-runtime`` (installed with edgeprune).
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from edgeprune.devices import _probe
from edgeprune.devices._session import Launcher, ProbeSession, open_session
from edgeprune.errors import DeviceError
from edgeprune.target import Connection, Target

ARM64 = ("aarch64", "arm64")


def unavailable(target: Target, connection: Connection) -> str | None:
    """None, or why this machine cannot stand for the target: another processor, an accelerator, or no runtime."""
    if target.delegate:
        return f"the {target.title} needs its accelerator, which this backend does not drive; give --board USER@HOST"
    if (target.cpu.isa or "").startswith("armv8") and platform.machine() not in ARM64:
        return f"the {target.title} is an Arm board and this machine is {platform.machine()}; give --board USER@HOST"
    if _runtime(target) is None:
        return f"no TFLite runtime is installed here; install one: pip install {target.runtime.package}"
    return None


@contextmanager
def session(target: Target, connection: Connection) -> Iterator[ProbeSession]:
    """Run models in child processes of this Python.

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
    )
    with open_session(launcher) as opened:
        yield opened


def _runtime(target: Target) -> str | None:
    """The package that the target names when it is here, else the other one, else None."""
    wanted = [target.runtime.package, *_probe.RUNTIMES]
    return next((package for package in wanted if find_spec(_probe.RUNTIMES[package])), None)
