"""What is installed, what is missing, and how to get it.

Asks package metadata only, and needs little itself, so that it can speak where pydantic or NumPy is what is missing.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import Any, NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from edgeprune import cache

DISTRIBUTION = "edgeprune"
OPTIONAL = {
    "tfds": "data from TensorFlow Datasets (tfds:name)",
    "postgresql": "a search's storage in PostgreSQL",
    "mysql": "a search's storage in MySQL",
}
TOOLS = {"apt-get": "fetches the emulator", "dpkg-deb": "unpacks the emulator"}
ROOM_MIB = 1024  # the emulator with its downloads takes some 300 MiB, decoded images the rest


class Check(NamedTuple):
    """One thing that was looked for.

    Attributes:
        name: what.
        ok: whether it is there, in a version that was tested.
        needed: whether ``edgeprune build`` fails without it.
        found: its version, or what there is instead.
        advice: how to get it; empty where it is there.
    """

    name: str
    ok: bool
    needed: bool
    found: str
    advice: str = ""


def run() -> list[Check]:
    """All checks, in the order to be read."""
    return [python(), *packages(), *extras(), emulator(), *tools(), disk()]


def ready(checks: Iterable[Check]) -> bool:
    """Whether everything is there that ``edgeprune build`` needs."""
    return all(check.ok for check in checks if check.needed)


def as_json(checks: Iterable[Check]) -> dict[str, Any]:
    """The checks as plain data."""
    listed = list(checks)
    return {"ready": ready(listed), "checks": [check._asdict() for check in listed]}


def as_text(checks: Iterable[Check]) -> str:
    """A line per check, its advice below it, and a closing word."""
    listed = list(checks)
    width = max(len(check.name) for check in listed)
    lines = []
    for check in listed:
        mark = "ok" if check.ok else "MISSING" if check.needed else "absent"
        lines.append(f"{mark:<8} {check.name:<{width}}  {check.found}")
        if check.advice:
            lines.append(f"{'':<8} {'':<{width}}  -> {check.advice}")
    closing = "Ready to build." if ready(listed) else "`edgeprune build` will not work until what is MISSING is there."
    return "\n".join([*lines, "", closing])


def python() -> Check:
    """Whether this Python is in the range that edgeprune declares."""
    declared = SpecifierSet(metadata.metadata(DISTRIBUTION)["Requires-Python"])
    own = platform.python_version()
    ok = declared.contains(own, prereleases=True)
    return Check(
        "python",
        ok,
        True,
        own,
        "" if ok else f"install a Python in the range {declared} and make a new environment with it",
    )


def packages() -> list[Check]:
    """Every dependency of ``build``, also on a board, where the plain install leaves TensorFlow out."""
    return [_package(requirement, needed=True) for requirement in _requirements("", "host")]


def extras() -> list[Check]:
    """The packages of the optional extras."""
    return [
        _package(requirement, needed=False, use=use, install=f"pip install '{DISTRIBUTION}[{extra}]'")
        for extra, use in OPTIONAL.items()
        for requirement in _requirements(extra)
        if requirement.name not in {base.name for base in _requirements("")}
    ]


def emulator() -> Check:
    """Whether the default target's CPU can be emulated, in the backend's own words."""
    try:
        from edgeprune import project, registry, target

        facts = target.load(registry.file("targets", project.TARGET))
        reason = registry.module("backends", facts.backend).unavailable(facts, target.connection(facts))
    except ImportError as error:
        reason = f"to be asked again when '{error.name}' is installed"
    return Check("Arm emulator", reason is None, False, "absent" if reason else "installed", reason or "")


def tools() -> list[Check]:
    """The system's programs that the emulator's installation calls."""
    return [_tool(name, use) for name, use in TOOLS.items()]


def disk() -> Check:
    """Room for the emulator and decoded data."""
    free_mib = cache.free_bytes() // 2**20
    ok = free_mib >= ROOM_MIB
    advice = f"free some, or set {cache.VARIABLE} to a folder on a disk with {ROOM_MIB} MiB free"
    return Check("disk", ok, False, f"{free_mib:,} MiB free for {cache.folder()}", "" if ok else advice)


def _requirements(*extras: str) -> Iterator[Requirement]:
    """What edgeprune declares for this machine and any of the extras (``""``: the plain install), each package once."""
    seen: set[str] = set()
    for line in metadata.requires(DISTRIBUTION) or []:
        requirement = Requirement(line)
        wanted = requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)
        if wanted and requirement.name not in seen:
            seen.add(requirement.name)
            yield requirement


def _package(requirement: Requirement, needed: bool, use: str = "", install: str = "") -> Check:
    how = install or f"pip install '{requirement.name}{requirement.specifier}'"
    purpose = f", for {use}" if use else ""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Check(requirement.name, False, needed, f"not installed{purpose}", how)
    if requirement.specifier.contains(version, prereleases=True):
        return Check(requirement.name, True, needed, version)
    return Check(requirement.name, False, needed, f"{version}; tested: {requirement.specifier}", how)


def _tool(name: str, use: str) -> Check:
    path = shutil.which(name)
    advice = "" if path else "comes with Debian and Ubuntu; elsewhere the build goes on without Arm kernels"
    return Check(name, path is not None, False, path or f"not on PATH; {use}", advice)
