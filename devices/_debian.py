"""Debian packages without root and without touching the system: which mirror, which packages, unpacked where.

``apt-get`` runs with its own state and cache folders, an empty package status, and a sources.list derived from the
host's own configuration (same mirror, same keyring, same proxy settings), so nothing is trusted or contacted that the
user has not configured. ``apt-get`` verifies the signed Release file and the SHA-256 of every package it downloads;
``dpkg-deb`` unpacks them. mmdebstrap would do the same in one step, but is seldom installed; one path is enough.

What the Arm side needs is Python 3.11, the newest that tflite-runtime has wheels for: on Debian that is the release
*bookworm*, which every Debian mirror carries beside the host's own; on Ubuntu it is *jammy* (universe). Ubuntu keeps
its arm64 packages on separate mirrors; see ``arm64_mirrors``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from edgeprune.errors import DeviceError, MissingDependency

PYTHON = "3.11"
ARM_PACKAGES = (f"python{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", "libstdc++6")
ARM_SUITES = {"debian": "bookworm", "ubuntu": "jammy"}
QEMU_PACKAGES = ("qemu-user",)
TOOLS = ("apt-get", "dpkg-deb")
SOURCES_VARIABLE = "EDGEPRUNE_APT_SOURCES"  # a file with the sources.list lines to use instead of the derived ones

Report = Callable[[float, float], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class Source:
    """One ``deb`` entry of the host's configuration."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str | None = None
    architectures: tuple[str, ...] = ()

    def line(self, architecture: str) -> str:
        """The entry in one-line style, for one architecture."""
        options = [f"arch={architecture}", *([f"signed-by={self.signed_by}"] if self.signed_by else [])]
        return f"deb [{' '.join(options)}] {self.uri} {self.suite} {' '.join(self.components)}"


@dataclass(frozen=True)
class Host:
    """Which distribution this machine runs."""

    family: str  # "debian" or "ubuntu"
    codename: str
    architecture: str


def missing_tools() -> str | None:
    """None, or which programs of a Debian-like system are not here."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not missing:
        return None
    return f"this needs the programs {' and '.join(missing)}, which Debian, Ubuntu and their relatives have"


def read_host(os_release: Path = Path("/etc/os-release")) -> Host:
    """This machine's distribution.

    Raises:
        MissingDependency: neither Debian nor Ubuntu nor a relative that keeps their names.
    """
    try:
        pairs = [line.partition("=") for line in os_release.read_text(encoding="utf-8").splitlines() if "=" in line]
    except OSError as error:
        raise MissingDependency(
            f"{os_release} cannot be read, so it is not known which packages fit here: {error}."
        ) from error
    facts = {key: value.strip("\"'") for key, _, value in pairs}
    words = [facts.get("ID", ""), *facts.get("ID_LIKE", "").split()]
    family = next((word for word in words if word in ARM_SUITES), None)
    if family is None:
        raise MissingDependency(
            f"The emulator is put together from Debian or Ubuntu packages, and this system calls itself '{words[0]}'. "
            "Run edgeprune in a Debian or Ubuntu container, or connect a board with --board."
        )
    codename = facts.get("UBUNTU_CODENAME" if family == "ubuntu" else "DEBIAN_CODENAME") or facts.get(
        "VERSION_CODENAME", ""
    )
    return Host(family, codename, _output([_program("dpkg"), "--print-architecture"]).strip())


def configured_sources(etc: Path = Path("/etc/apt")) -> list[Source]:
    """Every ``deb`` entry of the host, from one-line (.list) and deb822 (.sources) files."""
    found: list[Source] = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if path.suffix not in (".list", ".sources") or not path.is_file() or not os.access(path, os.R_OK):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found += _deb822(text) if path.suffix == ".sources" else _one_line(text)
    return found


def _one_line(text: str) -> Iterator[Source]:
    entry = re.compile(
        r"^\s*deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>[^#\n]+)", re.M
    )
    for match in entry.finditer(text):
        options = dict(option.partition("=")[::2] for option in (match["options"] or "").split())
        architectures = tuple(filter(None, options.get("arch", "").split(",")))
        components = tuple(match["components"].split())
        yield Source(match["uri"], match["suite"], components, options.get("signed-by"), architectures)


def _deb822(text: str) -> Iterator[Source]:
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line for line in paragraph.splitlines() if not line.startswith("#")]
        fields = {
            key.strip().lower(): value.strip() for key, colon, value in (line.partition(":") for line in lines) if colon
        }
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        signed_by = fields.get("signed-by") or None  # an inline key has no value on its first line
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                components = tuple(fields.get("components", "").split())
                yield Source(uri, suite, components, signed_by, tuple(fields.get("architectures", "").split()))


def main_sources(sources: Iterable[Source], host: Host) -> list[Source]:
    """The host's entries for its own release: the distribution's mirror, not some third party's."""
    names = {host.codename, *(("stable", "testing", "unstable", "sid") if host.family == "debian" else ())}
    return [source for source in sources if source.suite in names and "main" in source.components]


def qemu_sources(sources: Iterable[Source], host: Host) -> list[Source]:
    """Where the emulator itself comes from: Debian's bookworm; on Ubuntu the host's own release."""
    suite = ARM_SUITES["debian"] if host.family == "debian" else host.codename
    components = ("main",) if host.family == "debian" else ("main", "universe")
    return [
        replace(source, suite=suite, components=components)
        for source in _fitting(main_sources(sources, host), host.architecture)
    ]


def arm64_mirrors(sources: Iterable[Source], host: Host) -> list[Source]:
    """Where arm64 packages may come from, the likeliest first.

    A Debian mirror carries all architectures. On Ubuntu: entries that the user has made for arm64; else the mirrors
    that the configured ones imply: ``ports.`` in the place of ``archive.`` or ``<country>.archive.``, which is how
    Ubuntu names its own, and ``/ubuntu-ports`` beside ``/ubuntu`` on the same host.
    """
    mains, suite = main_sources(sources, host), ARM_SUITES[host.family]
    if host.family == "debian" or host.architecture == "arm64":
        components = ("main",) if host.family == "debian" else ("main", "universe")
        return [replace(source, suite=suite, components=components) for source in _fitting(mains, "arm64") or mains]
    own = [source for source in mains if "arm64" in source.architectures]
    derived = [replace(source, uri=uri) for source in mains for uri in _ports(source.uri)]
    return [replace(source, suite=suite, components=("main", "universe")) for source in own or derived]


def _ports(uri: str) -> list[str]:
    parts = urlsplit(uri)
    path = re.sub(r"/ubuntu/?$", "/ubuntu-ports", parts.path)
    if not parts.hostname or path == parts.path:
        return []
    official = re.sub(r"^(?:.*\.)?(?:archive|security)\.", "ports.", parts.hostname)
    hosts = [official, parts.hostname] if official != parts.hostname else [parts.hostname]
    return [f"{parts.scheme}://{name}{path}" for name in hosts]


def _fitting(sources: Sequence[Source], architecture: str) -> list[Source]:
    return [source for source in sources if not source.architectures or architecture in source.architectures]


def overriding_sources() -> list[str] | None:
    """The lines of the file that the user names in `SOURCES_VARIABLE`, or None.

    Raises:
        DeviceError: the file cannot be read.
    """
    name = os.environ.get(SOURCES_VARIABLE)
    if not name:
        return None
    try:
        return Path(name).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DeviceError(f"{SOURCES_VARIABLE} names {name}, which cannot be read: {error.strerror}.") from error


class Apt:
    """``apt-get`` for one architecture, confined to one folder."""

    def __init__(self, folder: Path, architecture: str, lines: Sequence[str]) -> None:
        self._folder = folder
        for name in ("state", "dpkg", "lists/partial", "archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "dpkg/status").touch()  # nothing is installed; apt puts dpkg's lock beside it
        (folder / "sources.list").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self._config = folder / "apt.conf"
        self._config.write_text(self._settings(architecture), encoding="utf-8")

    def _settings(self, architecture: str) -> str:
        folder = self._folder
        settings = {
            "APT::Architecture": architecture,
            "APT::Install-Recommends": "false",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Dir::State": folder / "state",
            "Dir::State::lists": folder / "lists",
            "Dir::State::status": folder / "dpkg/status",
            "Dir::Cache": folder,
            "Dir::Cache::archives": folder / "archives",
            "Dir::Etc::sourcelist": folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
        }
        if os.geteuid() == 0:
            settings["APT::Sandbox::User"] = "root"  # the user _apt may not read a cache below root's home
        # The host's hooks are for the host's packages.
        cleared = (
            "APT::Architectures",
            "APT::Update::Post-Invoke",
            "APT::Update::Post-Invoke-Success",
            "DPkg::Post-Invoke",
        )
        lines = [f"#clear {name};" for name in cleared] + [f'APT::Architectures {{ "{architecture}"; }};']
        return "\n".join(lines + [f'{name} "{value}";' for name, value in settings.items()]) + "\n"

    def update(self) -> None:
        """Fetch the package lists.

        Raises:
            DeviceError: the mirror cannot be reached or verified.
        """
        self._run("update", "-q", "-o", "APT::Update::Error-Mode=any")

    def packages(self, names: Sequence[str]) -> dict[str, int]:
        """File name -> bytes of everything that an empty system would need for ``names``."""
        listing = self._run("install", "-qq", "--print-uris", *names)
        return {name: int(size) for name, size in re.findall(r"^'[^']+' (\S+) (\d+)", listing, re.M)}

    def download(self, names: Sequence[str], report: Report, alone: Sequence[str] = ()) -> list[Path]:
        """Download and verify packages with all that they need; ``report`` is called as the bytes arrive.

        Args:
            alone: packages to get besides, without what they need.
        """
        if alone:
            self._run("download", "-qq", *alone, folder=self._folder / "archives")
        expected = self.packages(names)
        total = sum(expected.values())
        reading, writing = os.pipe()
        command = [*self._command("install"), "-y", "-qq", "--download-only", "-o", f"APT::Status-Fd={writing}", *names]
        with subprocess.Popen(
            command,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(writing,),
            text=True,
        ) as process:
            os.close(writing)
            try:
                with os.fdopen(reading) as status:
                    for line in status:
                        if line.startswith("dlstatus:"):
                            report(total * float(line.split(":")[2]) / 100, total)
                output, _ = process.communicate()
            finally:
                if process.poll() is None:
                    process.kill()
        if process.returncode:
            raise DeviceError(_failure("download packages", output))
        report(total, total)
        return sorted((self._folder / "archives").glob("*.deb"))

    def _command(self, verb: str) -> list[str]:
        return [_program("apt-get"), "-c", str(self._config), verb]

    def _run(self, verb: str, *arguments: str, folder: Path | None = None) -> str:
        finished = subprocess.run(
            [*self._command(verb), *arguments],
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if finished.returncode:
            raise DeviceError(_failure(f"do 'apt-get {verb}'", finished.stdout))
        return finished.stdout


def unpack(packages: Iterable[Path], root: Path) -> None:
    """Unpack packages below ``root`` and make it stand on its own: no link in it leads out of it.

    Raises:
        DeviceError: a package cannot be unpacked.
    """
    root.mkdir(parents=True, exist_ok=True)
    for package in packages:
        finished = subprocess.run(
            [_program("dpkg-deb"), "-x", str(package), str(root)], capture_output=True, text=True, check=False
        )
        if finished.returncode:
            raise DeviceError(f"{package.name} cannot be unpacked: {finished.stderr.strip()}. Try again with --force.")
    for name in ("lib", "lib64"):  # newer releases keep these only as links, which a package of its own makes
        if not (root / name).exists() and (root / "usr" / name).is_dir():
            (root / name).symlink_to(f"usr/{name}")
    localize_links(root)


def localize_links(root: Path) -> None:
    """Make absolute links below ``root`` relative; drop a link that would lead out of it."""
    for folder, names, files in os.walk(root):
        for path in (Path(folder) / name for name in (*names, *files)):
            if not path.is_symlink():
                continue
            target = str(path.readlink())
            inside = root / target.lstrip("/") if target.startswith("/") else path.parent / target
            if not Path(os.path.normpath(inside)).is_relative_to(root):
                path.unlink()
            elif target.startswith("/"):
                path.unlink()
                path.symlink_to(os.path.relpath(inside, path.parent))


def _program(name: str) -> str:
    return shutil.which(name) or name


def _environment() -> Mapping[str, str]:
    return os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise MissingDependency(f"'{' '.join(command)}' does not run here: {error}.") from error


def _failure(what: str, output: str) -> str:
    lines = [line for line in output.splitlines() if line.startswith(("E:", "Err:"))] or output.splitlines()[-3:]
    return f"apt-get could not {what}: {' '.join(line.strip() for line in lines[:4]) or 'no reason given'}."
