"""Which tests need what: a skip prints the backend's own reason, and fails where that thing is required.

``EDGEPRUNE_REQUIRE=qemu,browser`` (what CI sets) turns a skip of tests with these markers into a failure. ``EDGEPRUNE_LONG=1`` (what CI
sets too) runs the tests with the marker ``long``.
"""

from __future__ import annotations

import functools
import os
import shutil

import pytest

from edgeprune import registry, target

# The tests of one process after another have the processors for themselves: threads of one TensorFlow would wait for the other's.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

REQUIRED = frozenset(filter(None, os.environ.get("EDGEPRUNE_REQUIRE", "").split(",")))


@functools.cache
def _no_emulator() -> str | None:
    facts = target.load(registry.file("targets", "rpi4"))
    return registry.module("backends", "qemu").unavailable(facts, target.connection(facts))


@functools.cache
def _no_browser() -> str | None:
    found = any(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return None if found else "no Chromium on PATH; on Debian and Ubuntu: apt-get install chromium"


@functools.cache
def _no_ssh_server() -> str | None:
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin") and shutil.which("ssh")
    return None if found else "no OpenSSH; on Debian and Ubuntu: apt-get install openssh-client openssh-server"


def _no_time() -> str | None:
    return None if os.environ.get("EDGEPRUNE_LONG") else "EDGEPRUNE_LONG=1 runs it, as CI does"


REASONS = {"qemu": _no_emulator, "browser": _no_browser, "ssh": _no_ssh_server, "long": _no_time}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, reason in REASONS.items():
        if item.get_closest_marker(marker) and (why := reason()):
            pytest.skip(f"{marker}: {why}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    outcome = yield
    report = outcome.get_result()
    required = sorted(marker for marker in REQUIRED if item.get_closest_marker(marker))
    if report.skipped and required and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"skipped, but EDGEPRUNE_REQUIRE asks for {', '.join(required)}: {reason}"
