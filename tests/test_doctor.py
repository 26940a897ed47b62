import runpy
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement

from edgeprune import doctor, registry

REQUIRES = [
    "click<9,>=8.1",
    "numpy<3,>=1.26",
    'tensorflow<3,>=2; extra == "host"',
    'rare<2; python_version < "3"',
    'tensorflow-datasets>=4; extra == "tfds"',
]


@pytest.fixture
def installed(monkeypatch):
    """What package metadata answers, by package."""
    versions = {"click": "8.5.1", "numpy": "2.4.6", "tensorflow": "2.21.0"}

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: REQUIRES)
    return versions


def test_what_is_there_in_a_tested_version_is_ok(installed):
    assert [(check.name, check.ok, check.needed, check.found) for check in doctor.packages()] == [
        ("click", True, True, "8.5.1"),
        ("numpy", True, True, "2.4.6"),
        ("tensorflow", True, True, "2.21.0"),
    ]


def test_a_missing_package_comes_with_its_command(installed):
    del installed["tensorflow"]
    check = doctor.packages()[-1]
    assert not doctor.ready([check])
    assert (check.found, check.advice) == ("not installed", "pip install 'tensorflow<3,>=2'")


def test_a_version_that_was_not_tested_is_not_ok(installed):
    installed["numpy"] = "3.0"
    check = doctor.packages()[1]
    assert (check.ok, check.found) == (False, "3.0; tested: <3,>=1.26")


def test_an_extra_is_not_needed(installed):
    (check,) = doctor.extras()
    assert doctor.ready([check])
    assert check.advice == "pip install 'edgeprune[tfds]'"


def test_what_is_optional_is_an_extra_and_nothing_that_is_needed_anyway(monkeypatch):
    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(Path(__file__).parents[1] / "setup.py"))
    needed = {Requirement(line).name for line in given["install_requires"]}
    for extra in doctor.OPTIONAL:
        assert not {Requirement(line).name for line in given["extras_require"][extra]} & needed


@pytest.mark.parametrize(("own", "ok"), [("3.9.18", False), ("3.10.0", True), ("3.13.1", True), ("3.14.0", False)])
def test_python_has_a_range(monkeypatch, own, ok):
    monkeypatch.setattr(doctor.platform, "python_version", lambda: own)
    check = doctor.python()
    assert check.ok is ok
    assert bool(check.advice) is not ok


@pytest.mark.parametrize("reason", [None, "the Arm emulator is not installed; install it"])
def test_the_emulator_speaks_for_itself(monkeypatch, reason):
    monkeypatch.setattr(registry.module("backends", "qemu"), "unavailable", lambda target, connection: reason)
    check = doctor.emulator()
    assert (check.ok, check.needed, check.advice) == (reason is None, False, reason or "")


def test_it_speaks_where_its_own_dependencies_are_missing():
    code = "import sys; sys.modules |= {'pydantic': None, 'numpy': None, 'yaml': None, 'rich': None}; "
    code += "from edgeprune import cli; sys.exit(cli.run(['doctor']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "to be asked again when" in done.stdout
    assert not done.stderr


def test_a_full_disk_is_told(monkeypatch):
    monkeypatch.setattr(doctor.cache, "free_bytes", lambda: 10 * 2**20)
    check = doctor.disk()
    assert not check.ok
    assert "EDGEPRUNE_CACHE" in check.advice


def test_a_tool_that_is_not_on_path_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [check.ok for check in doctor.tools()] == [False, False]


def test_text_says_everything_and_a_closing_word():
    there = doctor.Check("a", True, True, "1.0")
    absent = doctor.Check("b", False, False, "not installed", "get b")
    missing = doctor.Check("c", False, True, "not installed", "get c")
    assert doctor.as_text([there, absent]).endswith("\n\nReady to build.")
    text = doctor.as_text([there, absent, missing])
    assert "MISSING" in text and "get b" in text and "get c" in text
    assert "will not work" in text.splitlines()[-1]
    assert doctor.as_json([missing])["ready"] is False
