"""llvm-mc and llvm-mca: the host's own of the version that counts are made with, else those in the installation.

The version is pinned, because tables of latencies change from one to the next, and the same model must have the same
cycles on every host. Version 14 is in the Debian and Ubuntu releases that the emulator is put together from.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

VERSION = 14
TOOLS = ("llvm-mc", "llvm-mca")
LIBRARIES = (f"libllvm{VERSION}", "libc6", "libstdc++6")  # with all that they need
PROGRAMS = (f"llvm-{VERSION}",)  # alone: most of what it depends on is for other programs
BINARIES = f"usr/lib/llvm-{VERSION}/bin"
SILENT = {"LC_ALL": "C", "PATH": os.defpath}


@dataclass(frozen=True)
class Llvm:
    """The two programs.

    Args:
        mc, mca: how each is started.
        version: such as ``14.0.6``.
        source: ``packages``, or the path of the host's own.
    """

    mc: tuple[str, ...]
    mca: tuple[str, ...]
    version: str
    source: str


def find(installation: Path | None) -> Llvm | None:
    """The programs on PATH, else those of the emulator's installation; None where there are none of that version."""
    return on_path() or (installed(installation / "llvm") if installation else None)


def on_path() -> Llvm | None:
    """The host's own, when they are of the pinned version."""
    for suffix in (f"-{VERSION}", ""):
        programs = [shutil.which(tool + suffix) for tool in TOOLS]
        if all(programs):
            found = _checked([(str(program),) for program in programs], str(programs[1]))
            if found:
                return found
    return None


def installed(folder: Path) -> Llvm | None:
    """The programs below ``folder``, started through their own loader."""
    binaries = folder / BINARIES
    loaders = sorted([*folder.glob("lib*/ld-linux*.so.*"), *folder.glob("usr/lib*/ld-linux*.so.*")])
    if not loaders or not all((binaries / tool).is_file() for tool in TOOLS):
        return None
    libraries = sorted({*folder.glob("lib/*-linux-*"), *folder.glob("usr/lib/*-linux-*")})
    start = (str(loaders[0]), "--library-path", os.pathsep.join(map(str, libraries)))
    return _checked([(*start, str(binaries / tool)) for tool in TOOLS], "packages")


def keep_only_needed(folder: Path) -> None:
    """Drop what the packages hold besides the programs and their libraries."""
    binaries = folder / BINARIES
    for path in [*binaries.iterdir(), *(folder / "usr/bin").glob("*")]:
        if path.name not in TOOLS:
            path.unlink()
    for name in ("usr/include", f"usr/lib/llvm-{VERSION}/include", f"usr/lib/llvm-{VERSION}/build", "usr/share"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _checked(starts: list[tuple[str, ...]], source: str) -> Llvm | None:
    versions = {_version(start, _changed(start[-1])) for start in starts}
    version = versions.pop()
    if versions or version is None or not version.startswith(f"{VERSION}."):
        return None
    return Llvm(starts[0], starts[1], version, source)


def _changed(program: str) -> int:
    """When the program was written; 0 where it is not there."""
    try:
        return Path(program).stat().st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=16)
def _version(start: tuple[str, ...], changed: int) -> str | None:
    """What ``--version`` says; the program is asked again when it has ``changed``."""
    try:
        finished = subprocess.run(
            [*start, "--version"], capture_output=True, text=True, check=True, timeout=60, env=SILENT
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"LLVM version (\d+\.\d+\.\d+)", finished.stdout)
    return match[1] if match else None
