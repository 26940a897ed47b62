"""The Arm board without a board: qemu-user, a small arm64 root and the Arm runtimes, in the user's cache.

Layout below ``emulator`` in the cache (`edgeprune.cache.folder`)::

    manifest.json                what was installed: packages, wheels, versions, and the SHA-256 of every file
    root/                        arm64: Python, the C and C++ libraries
    host/                        qemu-aarch64 with its own libraries and loader; absent when PATH had a fitting one
    packages/<name>-<version>/   numpy and the TFLite runtimes, aarch64
    llvm/                        llvm-mc and llvm-mca likewise, which tell a core's cycles; absent when PATH had them, or
                                 where they cannot be had: then models run, and no latency is predicted

An installation is built in a sibling folder, gets its manifest last, and is renamed into place: it is there whole or
not at all. A lock file lets one installer work at a time. Nothing needs root, and nothing outside the cache changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgeprune import cache, files
from edgeprune.devices import _debian, _llvm, _probe, _qemu, _wheels
from edgeprune.devices._session import PROBE, Launcher, open_session
from edgeprune.errors import DeviceError, MissingDependency
from edgeprune.progress import Progress

SCHEMA = 1
PHASES = 5
HOW = "edgeprune emulator install"
UNNEEDED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/lib/aarch64-linux-gnu/gconv")


@dataclass(frozen=True)
class Installation:
    """An emulator that is ready to run."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def qemu_version(self) -> tuple[int, ...]:
        return tuple(self.manifest["qemu"]["version"])

    @property
    def runtimes(self) -> dict[str, str]:
        """Package -> version of the TFLite runtimes."""
        return dict(self.manifest["runtimes"])

    @property
    def python(self) -> str:
        """The guest's Python, below the root."""
        return f"usr/bin/python{_debian.PYTHON}"

    def launcher(self, cpu: str, runtime: str) -> Launcher:
        """How to run the probe on an emulated core.

        Args:
            cpu: QEMU's name of the core.
            runtime: package name of the runtime.
        """
        root, packages = self.folder / "root", self.folder / "packages"
        folders = [packages / f"{runtime}-{self.runtimes[runtime]}", packages / _wheels.NUMPY.folder]
        python = [
            str(root / self.python),
            "-S",
            "-s",
        ]  # without site: nothing there, and slow to start
        environment = {
            "PYTHONPATH": os.pathsep.join(str(folder) for folder in folders),
            "PYTHONDONTWRITEBYTECODE": "1",  # the installation stays as its manifest says
            "PYTHONHASHSEED": "0",
            "LC_ALL": "C.UTF-8",
            "PATH": "/usr/bin:/bin",
            "HOME": "/nonexistent",
            "OPENBLAS_NUM_THREADS": "1",
        }
        return Launcher(
            command=(*_qemu.command(self.folder), "-cpu", cpu, "-L", str(root), *python),
            environment=environment,
            kind="emulated",
            cpu=cpu,
            runtime=runtime,
            workers=len(os.sched_getaffinity(0)),
        )


def _home() -> Path:
    return cache.folder("emulator").absolute()


def find() -> Installation | None:
    """The installation, when there is one that this version of edgeprune made; None otherwise."""
    folder = _home()
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("plan") != _plan():
        return None
    if not (folder / "host").is_dir() and _qemu.on_path() is None:
        return None
    return Installation(folder, manifest)


def unsupported() -> str | None:
    """None, or why this machine cannot have the emulator at all."""
    if platform.system() != "Linux":
        return f"the emulator needs Linux, not {platform.system()}; use a Linux container, or give --board USER@HOST"
    return _debian.missing_tools()


def status(verify: bool = False) -> dict[str, Any]:
    """What is installed, as plain data.

    Args:
        verify: compare the SHA-256 of every file, not only its size (a second or two).
    """
    installation = find()
    if installation is None:
        reason = unsupported()
        return {
            "installed": False,
            "path": str(_home()),
            "reason": reason or "it is not installed",
            "how": HOW,
        }
    damaged = _damaged(installation, verify)
    qemu = installation.manifest["qemu"]
    return {
        "installed": True,
        "path": str(installation.folder),
        "qemu": ".".join(str(part) for part in qemu["version"]),
        "qemu_from": qemu["from"],
        "python": installation.manifest["python"],
        "runtimes": installation.runtimes,
        **_llvm_status(installation),
        "size_bytes": sum(size for size, _ in installation.manifest["files"].values()),
        "packages": len(installation.manifest["packages"]),
        "verified": "sha256" if verify else "sizes",
        "damaged": damaged,
        **({"how": f"{HOW} --force"} if damaged else {}),
    }


def _llvm_status(installation: Installation) -> dict[str, Any]:
    """Whether cycles can be told, and by what; else why not."""
    llvm = _llvm.find(installation.folder)
    if llvm:
        return {"llvm": llvm.version, "llvm_from": llvm.source}
    reason = installation.manifest.get("llvm_missing") or "it was on PATH when the emulator was installed"
    return {"llvm": None, "llvm_missing": f"no latency is predicted without llvm-mca {_llvm.VERSION}: {reason}"}


def install(progress: Progress, force: bool = False) -> Installation:
    """Install the emulator; a second call finds it and does nothing.

    Args:
        force: build it anew even if it is there.

    Raises:
        MissingDependency: this machine lacks what it takes; the message says what and how to get it.
        DeviceError: a download failed or was not what was pinned, or what was built does not run.
    """
    reason = unsupported()
    if reason:
        raise MissingDependency(f"The Arm emulator cannot be installed: {reason}.")
    folder = _home().parent
    with cache.writing("emulator", folder), _locked(folder / "emulator.lock", progress):
        found = find()
        if found and not force and not _damaged(found, verify=False):
            progress.note(
                f"The Arm emulator is installed already, in {found.folder}; nothing to do (--force builds it anew)."
            )
            return found
        files.sweep(folder)  # what a killed installer left
        scratch = Path(tempfile.mkdtemp(prefix=files.TEMPORARY, dir=folder))
        try:
            scratch.chmod(0o755)
            _build(scratch / "emulator", scratch / "downloads", progress)
            _replace(folder / "emulator", scratch / "emulator", scratch / "old")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    installation = find()
    if installation is None:
        raise DeviceError(
            f"What was installed in {folder} does not hold what it must. Report this, with 'edgeprune doctor'."
        )
    return installation


def remove() -> bool:
    """Delete the installation; False when there was none."""
    folder = _home()
    if not folder.exists():
        return False
    with cache.writing("emulator", folder.parent), _locked(folder.parent / "emulator.lock", None):
        files.sweep(folder.parent)
        aside = folder.with_name(files.TEMPORARY + "removed")
        folder.rename(aside)  # gone in one step, even if the rest is interrupted
        shutil.rmtree(aside)
    return True


def _build(target: Path, downloads: Path, progress: Progress) -> None:
    target.mkdir()
    downloads.mkdir()
    host, sources = _debian.read_host(), _debian.configured_sources()
    with _phase(progress, "Arm packages", 1):
        packages = _install_root(target / "root", downloads / "arm64", host, sources, progress)
    with _phase(progress, "emulator", 2):
        if _qemu.on_path() is None:
            packages |= _install_qemu(target / "host", downloads / "host", host, sources, progress)
    with _phase(progress, "llvm-mca", 3):
        llvm_packages, llvm_missing = _install_llvm(target / "llvm", downloads / "llvm", host, sources, progress)
    with _phase(progress, "Arm runtimes", 4):
        wheels = _wheels.download(_wheels.WHEELS, downloads / "wheels", partial(progress.step, unit="wheels"))
        for wheel, archive in zip(_wheels.WHEELS, wheels, strict=True):
            _wheels.unpack(archive, target / "packages" / wheel.folder, wheel.skip)
    version = _qemu.version(_qemu.command(target))
    manifest = {
        "schema": SCHEMA,
        "plan": _plan(),
        "python": _debian.PYTHON,
        "qemu": {"version": version, "from": "packages" if (target / "host").is_dir() else str(_qemu.on_path())},
        "runtimes": {wheel.package: wheel.version for wheel in _wheels.RUNTIMES},
        "packages": packages | llvm_packages,
        "llvm_missing": llvm_missing,
        "wheels": {archive.name: wheel.sha256 for wheel, archive in zip(_wheels.WHEELS, wheels, strict=True)},
        "files": {},
    }
    with _phase(progress, "first start", 5):
        _first_start(Installation(target, manifest))
    manifest["files"] = _inventory(target)
    (target / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


@contextlib.contextmanager
def _phase(progress: Progress, label: str, index: int) -> Iterator[None]:
    start = time.monotonic()
    progress.stage(label, index, PHASES)
    yield
    progress.done(label, time.monotonic() - start)


def _install_root(
    root: Path, downloads: Path, host: _debian.Host, sources: list[_debian.Source], progress: Progress
) -> dict[str, str]:
    choices = [[source.line("arm64")] for source in _debian.arm64_mirrors(sources, host)]
    archives = _fetch_from_first(choices, "arm64", _debian.ARM_PACKAGES, downloads, host, progress)
    _debian.unpack(archives, root)
    _drop_unneeded(root)
    return _digests(archives)


def _install_qemu(
    folder: Path, downloads: Path, host: _debian.Host, sources: list[_debian.Source], progress: Progress
) -> dict[str, str]:
    choices = [[source.line(host.architecture)] for source in _debian.qemu_sources(sources, host)]
    archives = _fetch_from_first(choices, host.architecture, _debian.QEMU_PACKAGES, downloads, host, progress)
    _debian.unpack(archives, folder)
    for other in (folder / "usr/bin").glob("qemu-*"):
        if other.name != _qemu.NAME:
            other.unlink()
    _drop_unneeded(folder)
    return _digests(archives)


def _install_llvm(
    folder: Path, downloads: Path, host: _debian.Host, sources: list[_debian.Source], progress: Progress
) -> tuple[dict[str, str], str | None]:
    """The packages' digests, and why there are none: models run without llvm, so its absence stops nothing."""
    if _llvm.on_path():
        return {}, None
    choices = [[source.line(host.architecture)] for source in _debian.qemu_sources(sources, host)]
    try:
        archives = _fetch_from_first(
            choices, host.architecture, _llvm.LIBRARIES, downloads, host, progress, alone=_llvm.PROGRAMS
        )
    except DeviceError as error:
        progress.note(f"No latency will be predicted. {error}")
        return {}, str(error)
    _debian.unpack(archives, folder)
    _llvm.keep_only_needed(folder)
    _drop_unneeded(folder)
    return _digests(archives), None


def _fetch_from_first(
    choices: list[list[str]],
    architecture: str,
    names: tuple[str, ...],
    downloads: Path,
    host: _debian.Host,
    progress: Progress,
    alone: tuple[str, ...] = (),
) -> list[Path]:
    """The packages, from the first mirror that has them; one that the user names comes first."""
    override = _debian.overriding_sources()
    reasons = []
    for index, lines in enumerate([override, *choices] if override else choices):
        apt = _debian.Apt(downloads / str(index), architecture, lines)
        try:
            apt.update()
            return apt.download(names, partial(progress.step, unit="bytes"), alone)
        except DeviceError as error:
            reasons.append(f"{'; '.join(lines)}: {error}")
    tried = (
        f"Tried: {' | '.join(reasons)}" if reasons else f"apt's sources name no mirror of {host.codename} with main."
    )
    raise DeviceError(
        f"The packages {', '.join((*names, *alone))} for {architecture} cannot be had. {tried} Name a mirror: put its "
        f"sources.list lines for {architecture} into a file and set {_debian.SOURCES_VARIABLE} to its path"
        f"{_arm_hint(architecture, host)}."
    )


def _arm_hint(architecture: str, host: _debian.Host) -> str:
    if architecture == host.architecture:
        return ""
    suite = _debian.ARM_SUITES[host.family]
    return f", such as: deb [arch={architecture}] MIRROR {suite} main{' universe' if host.family == 'ubuntu' else ''}"


def _drop_unneeded(root: Path) -> None:
    for name in UNNEEDED:
        shutil.rmtree(root / name, ignore_errors=True)


def _digests(archives: list[Path]) -> dict[str, str]:
    return {path.name: _sha256(path) for path in archives}


# The probe as it is started by its path, after all that it puts off importing.
ALL = f"""
import runpy, sys
import {", ".join(sorted(_probe.UNASKED))}
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _first_start(installation: Installation) -> None:
    """Import every runtime once under the emulator: proves that it runs, and leaves the bytecode for fast starts."""
    for runtime, version in installation.runtimes.items():
        launcher = installation.launcher("max", runtime)
        environment = {key: value for key, value in launcher.environment.items() if key != "PYTHONDONTWRITEBYTECODE"}
        program = ("-c", ALL, str(PROBE))
        with open_session(
            Launcher(launcher.command, environment, "emulated", runtime=runtime, program=program)
        ) as session:
            found = session.identify()["runtime"]
        if found["version"] != version:
            raise DeviceError(
                f"The emulator runs {runtime} {found['version']} where {version} was installed. Try --force."
            )


def _plan() -> str:
    """Digest of everything that decides what gets installed: a new version of edgeprune with other pins builds anew."""
    parts = [
        SCHEMA,
        _debian.PYTHON,
        _debian.ARM_PACKAGES,
        _debian.ARM_SUITES,
        _debian.QEMU_PACKAGES,
        _llvm.LIBRARIES,
        _llvm.PROGRAMS,
        UNNEEDED,
        _wheels.WHEELS,
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _inventory(folder: Path) -> dict[str, tuple[int, str]]:
    """Relative path -> (bytes, SHA-256) of every file, and (0, "-> target") of every link."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = (0, f"-> {path.readlink()}")
        elif path.is_file():
            found[name] = (path.stat().st_size, _sha256(path))
    return found


def _damaged(installation: Installation, verify: bool) -> list[str]:
    """Files of the manifest that are missing or changed."""
    return [
        name
        for name, (size, digest) in installation.manifest["files"].items()
        if _differs(installation.folder / name, size, digest, verify)
    ]


def _differs(path: Path, size: int, digest: str, verify: bool) -> bool:
    try:
        if digest.startswith("-> "):
            return str(path.readlink()) != digest.removeprefix("-> ")
        return path.lstat().st_size != size or (verify and _sha256(path) != digest)
    except OSError:
        return True


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return (
            hashlib.file_digest(stream, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else _sha256_by_hand(stream)
        )


def _sha256_by_hand(stream: Any) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _replace(folder: Path, new: Path, aside: Path) -> None:
    if folder.exists():
        folder.rename(aside)
    new.rename(folder)


@contextlib.contextmanager
def _locked(path: Path, progress: Progress | None) -> Iterator[None]:
    """Hold the lock, after waiting for another installer to end; a killed one holds nothing."""
    import fcntl  # not on Windows, where `unsupported` is all that is asked

    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                progress.note("Another edgeprune is installing the emulator; waiting for it.")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
