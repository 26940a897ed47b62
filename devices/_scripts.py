"""Our scripts where the emulated Python finds them as modules, compiled by it.

A script that is started by its path is compiled every time, which takes the emulator as long as a small model's inference; and so
does Python's tidying up, which is left out.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from edgeprune import cache, files
from edgeprune.devices import _count_probe, _probe
from edgeprune.devices._emulator import HOW, Installation
from edgeprune.devices._session import Launcher
from edgeprune.errors import DeviceError

MODULES = (_probe, _count_probe)
TIMEOUT_S = 300.0  # for what takes a second or two
COMPILE = """
import py_compile, sys
for path in sys.argv[1:]:
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(path, dfile=path.rpartition("/")[2], doraise=True, invalidation_mode=mode)
"""


def folder(installation: Installation, launcher: Launcher) -> Path:
    """Where both lie, in the cache; made when it is not there, in one step.

    Args:
        installation: whose Python they are compiled by, and for: its name tells its version.
        launcher: how that is started.

    Raises:
        DeviceError: the cache cannot be written, or the Python does not run, or does not end.
    """
    sources = [Path(str(module.__file__)) for module in MODULES]
    contents = {source.name: source.read_bytes() for source in sources}
    digest = hashlib.sha256(b"".join([*contents.values(), installation.python.encode()])).hexdigest()
    place = cache.folder("probe", digest[:16])
    if place.exists():
        return place
    with cache.writing("probe", place.parent), files.temporary_folder(place) as made:
        for name, content in contents.items():
            (made / name).write_bytes(content)
        _compile(launcher, [str(made / name) for name in contents])
    return place


def _compile(launcher: Launcher, paths: list[str]) -> None:
    try:
        done = subprocess.run(
            [*launcher.command, "-c", COMPILE, *paths],
            env=dict(launcher.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(
            f"The emulated Python did not compile two scripts in {TIMEOUT_S:g} s. Try again when this machine has less to do, or: "
            f"{HOW} --force"
        ) from error
    if done.returncode:
        raise DeviceError(f"The emulated Python does not run: {done.stderr[-300:]}. Try: {HOW} --force")


def start(name: str) -> tuple[str, str]:
    """What stands behind ``python`` to run one of them, in the place of its path; the folder is on the guest's path."""
    return "-c", f"import os, sys, {name}; os._exit({name}.main(sys.argv[1:]))"
