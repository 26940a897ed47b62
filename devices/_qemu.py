"""The program qemu-aarch64: the host's own when it is new enough, else the one in the installation."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

from edgeprune.errors import DeviceError

NAME = "qemu-aarch64"
AT_LEAST = (7, 1)  # the first that knows every core in targets/; an older one on PATH is not used


def command(folder: Path) -> tuple[str, ...]:
    """How qemu-aarch64 is started: our own through its own loader, so that the host's C library does not matter."""
    host = folder / "host"
    if not host.is_dir():
        return (str(on_path() or NAME),)
    program = str(host / "usr/bin" / NAME)
    loaders = sorted([*host.glob("lib*/ld-linux*.so.*"), *host.glob("usr/lib*/ld-linux*.so.*")])
    if not loaders:  # newer releases link qemu-user statically and come without a C library
        return (program,)
    libraries = sorted({*host.glob("lib/*-linux-*"), *host.glob("usr/lib/*-linux-*")})
    return (str(loaders[0]), "--library-path", os.pathsep.join(map(str, libraries)), program)


def on_path() -> str | None:
    """The host's own qemu-aarch64, when it is new enough."""
    for name in (NAME, f"{NAME}-static"):
        program = shutil.which(name)
        if program:
            with contextlib.suppress(DeviceError):
                if version((program,)) >= AT_LEAST:
                    return program
    return None


def takes_plugins(folder: Path) -> bool:
    """Whether the program loads plugins; a statically linked one cannot."""
    return _takes_plugins(command(folder))


@functools.cache
def _takes_plugins(start: tuple[str, ...]) -> bool:
    try:
        finished = subprocess.run([*start, "--help"], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return False
    return "-plugin" in finished.stdout


def version(start: tuple[str, ...]) -> tuple[int, ...]:
    """What ``--version`` says, such as (7, 2, 22).

    Raises:
        DeviceError: it does not run, or says something else.
    """
    try:
        finished = subprocess.run([*start, "--version"], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise DeviceError(f"{NAME} does not run: {error}. Try --force.") from error
    match = re.search(r"version (\d+)\.(\d+)(?:\.(\d+))?", finished.stdout)
    if match is None:
        raise DeviceError(f"{NAME} does not say its version: {finished.stdout[:80]!r}. Try --force.")
    return tuple(int(part) for part in match.groups() if part is not None)
