"""The Arm runtimes as wheels: pinned by version and SHA-256, fetched by pip, unpacked without being able to escape.

pip runs with the user's own configuration (index, mirrors, certificates); with ``--require-hashes`` it refuses a file
that is not the pinned one. Nothing is installed into this Python: wheels are archives, and they are only unpacked.
"""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgeprune.errors import DeviceError, MissingDependency

PYTHON = "3.11"
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_27_aarch64", "manylinux_2_34_aarch64")


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel for CPython 3.11 on aarch64.

    Args:
        package, version: what pip knows it by.
        sha256: of the file.
        skip: what is in it and not needed to run a model: path prefixes.
    """

    package: str
    version: str
    sha256: str
    skip: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Name of the folder that it is unpacked to."""
        return f"{self.package}-{self.version}"


NUMPY = Wheel(
    "numpy",
    "1.26.4",
    "7ab55401287bfec946ced39700c053796e7cc0e3acbef09993a9ad2adba6ca6e",
    skip=("numpy/f2py", "numpy/distutils", "numpy/core/include"),
)
RUNTIMES = (
    Wheel("tflite-runtime", "2.14.0", "ce9fa5d770a9725c746dcbf6f59f3178233b3759f09982e8b2db8d2234c333b0"),
    Wheel(
        "ai-edge-litert",
        "2.1.6",
        "8475d18c73698d9244380ad72f67caf540e5c72d9a80c66d17c4b81ca81a21c8",
        skip=("ai_edge_litert/aot", "ai_edge_litert/tools", "ai_edge_litert/libLiteRtWebGpuAccelerator.so"),
    ),
)
WHEELS = (NUMPY, *RUNTIMES)

Report = Callable[[float, float], None]  # wheels done, wheels in all


def download(wheels: Sequence[Wheel], folder: Path, report: Report) -> list[Path]:
    """Fetch wheels into ``folder``, in their order.

    Raises:
        MissingDependency: this Python has no pip.
        DeviceError: a wheel cannot be had, or is not the pinned file.
    """
    found = []
    for index, wheel in enumerate(wheels):
        report(index, len(wheels))
        found.append(_download(wheel, folder / wheel.folder))
    report(len(wheels), len(wheels))
    return found


def _download(wheel: Wheel, folder: Path) -> Path:
    folder.mkdir(parents=True)
    pins = folder / "requirements.txt"
    pins.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    platforms = [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--only-binary=:all:", "--no-deps", "--require-hashes", "--implementation", "cp", "--abi", "cp311"]
    command += ["--python-version", PYTHON, *platforms, "--dest", str(folder), "--requirement", str(pins)]
    finished = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if finished.returncode or len(wheels) != 1:
        raise _refusal(wheel, finished.stderr)
    return wheels[0]


def _refusal(wheel: Wheel, words: str) -> DeviceError | MissingDependency:
    if "No module named pip" in words:
        return MissingDependency("This Python has no pip, which fetches the Arm runtimes. Add it: python -m ensurepip")
    errors = [line.strip() for line in words.splitlines() if line.startswith("ERROR")] or words.splitlines()[-2:]
    return DeviceError(
        f"pip could not fetch {wheel.package} {wheel.version} for aarch64 and CPython {PYTHON}: {' '.join(errors[:3])} "
        "Check the network and pip's index (pip config list); the index must carry that wheel."
    )


def unpack(archive: Path, folder: Path, skip: Iterable[str] = ()) -> None:
    """Unpack a wheel below ``folder``.

    Raises:
        DeviceError: a member would land outside the folder, is a link, or the archive is damaged. Nothing of such an
            archive is unpacked.
    """
    prefixes = tuple(skip)
    try:
        with zipfile.ZipFile(archive) as wheel:
            members = [member for member in wheel.infolist() if not member.is_dir()]
            for member in members:
                _check(member, archive.name)
            for member in members:
                if not _is_skipped(member.filename, prefixes):
                    _extract(wheel, member, folder / member.filename)
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise DeviceError(f"{archive.name} cannot be unpacked: {error}. Try again with --force.") from error


def _check(member: zipfile.ZipInfo, archive: str) -> None:
    name = member.filename
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
        raise DeviceError(f"{archive} holds '{name}', which would be written outside its folder; nothing was unpacked.")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise DeviceError(f"{archive} holds the link '{name}'; wheels hold none. Nothing was unpacked.")


def _is_skipped(name: str, prefixes: tuple[str, ...]) -> bool:
    path = PurePosixPath(name)
    return "tests" in path.parts or any(path.is_relative_to(prefix) for prefix in prefixes)


def _extract(wheel: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wheel.open(member) as source, path.open("wb") as sink:
        shutil.copyfileobj(source, sink)
