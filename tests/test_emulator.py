"""Installing the emulator: its program, what is kept whole, what is said when it cannot be had."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import program

from edgeprune import registry, target
from edgeprune.devices import _emulator, _qemu, _scripts, qemu
from edgeprune.devices._session import Launcher
from edgeprune.errors import DeviceError
from edgeprune.progress import Silent


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self):
        self.notes = []
        self.steps = []

    def note(self, message):
        self.notes.append(message)

    def step(self, done, total, unit, **values):
        self.steps.append((done, total, unit))


@pytest.fixture(autouse=True)
def _own_cache(request, tmp_path, monkeypatch):
    if not request.node.get_closest_marker("qemu"):
        monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))


# --- the program


def test_the_version_of_qemu(tmp_path):
    found = program(tmp_path, "q", 'echo "qemu-aarch64 version 7.2.22 (Debian 1:7.2+dfsg-7)"')
    assert _qemu.version((str(found),)) == (7, 2, 22)
    with pytest.raises(DeviceError, match="does not run"):
        _qemu.version(("/nonexistent/qemu",))
    with pytest.raises(DeviceError, match="does not say its version"):
        _qemu.version((str(program(tmp_path, "r", "echo hello")),))


@pytest.mark.parametrize(("version", "taken"), [("6.2.0", False), ("7.1.0", True), ("10.0.2", True)])
def test_the_hosts_own_qemu_is_taken_when_it_is_new_enough(tmp_path, monkeypatch, version, taken):
    found = program(tmp_path, "qemu-aarch64", f'echo "qemu-aarch64 version {version}"')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert _qemu.on_path() == (str(found) if taken else None)


def test_our_qemu_starts_through_its_own_loader(tmp_path):
    for name in (
        "host/lib64/ld-linux-x86-64.so.2",
        "host/usr/bin/qemu-aarch64",
        "host/usr/lib/x86_64-linux-gnu/libz.so",
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    host = tmp_path / "host"
    assert _qemu.command(tmp_path) == (
        f"{host}/lib64/ld-linux-x86-64.so.2",
        "--library-path",
        f"{host}/usr/lib/x86_64-linux-gnu",
        f"{host}/usr/bin/qemu-aarch64",
    )


# --- whole or not at all


def build(folder, downloads, progress, plan=None):
    """In the place of the real build: two files and a link."""
    (folder / "host").mkdir(parents=True)
    (folder / "host/program").write_text("run me")
    (folder / "link").symlink_to("host/program")
    manifest = {
        "plan": plan or _emulator._plan(),
        "python": "3.11",
        "qemu": {"version": [7, 2, 22], "from": "packages"},
        "runtimes": {"tflite-runtime": "2.14.0"},
        "packages": {"a.deb": "00"},
        "files": _emulator._inventory(folder),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def built(monkeypatch):
    monkeypatch.setattr(_emulator, "unsupported", lambda: None)
    monkeypatch.setattr(_emulator, "_build", build)
    return _emulator.install(Silent()).folder


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_empty_cache_has_no_installation_and_says_how_to_get_one():
    found = qemu.status()
    assert (found["installed"], found["how"]) == (False, "edgeprune emulator install")
    assert qemu.find() is None
    assert qemu.remove() is False


def test_an_installation_is_found_and_whole(built, tmp_path):
    assert built == tmp_path / "cache/emulator"
    assert left(built.parent) == ["emulator", "emulator.lock"]
    found = qemu.status(verify=True)
    assert (found["installed"], found["damaged"], found["qemu"], found["size_bytes"]) == (True, [], "7.2.22", 6)
    json.dumps(found)


def test_a_second_installation_does_nothing_and_says_so(built, monkeypatch):
    monkeypatch.setattr(_emulator, "_build", None)
    progress = Notes()
    assert _emulator.install(progress).folder == built
    assert "nothing to do" in progress.notes[0]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("changed!")])
def test_damage_is_seen_and_mended(built, damage):
    damage(built / "host/program")
    found = qemu.status()
    assert (found["damaged"], found["how"]) == (["host/program"], "edgeprune emulator install --force")
    _emulator.install(Silent())
    assert qemu.status(verify=True)["damaged"] == []


def test_a_change_of_the_same_size_is_seen_by_verify(built):
    (built / "host/program").write_text("run mE")
    assert qemu.status()["damaged"] == []
    assert qemu.status(verify=True)["damaged"] == ["host/program"]


def test_a_link_that_points_elsewhere_is_damage(built):
    (built / "link").unlink()
    (built / "link").symlink_to("/etc/passwd")
    assert qemu.status()["damaged"] == ["link"]


def test_an_installation_of_other_pins_is_built_anew(monkeypatch):
    monkeypatch.setattr(_emulator, "unsupported", lambda: None)
    monkeypatch.setattr(_emulator, "_build", lambda *arguments: build(*arguments, plan="older"))
    with pytest.raises(DeviceError, match="does not hold what it must"):
        _emulator.install(Silent())
    assert qemu.find() is None
    monkeypatch.setattr(_emulator, "_build", build)
    assert _emulator.install(Silent()) is not None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DeviceError("no network")])
def test_an_interrupted_build_leaves_the_old_one_and_nothing_else(built, monkeypatch, error):
    def broken(folder, downloads, progress):
        folder.mkdir()
        (folder / "half").touch()
        raise error

    monkeypatch.setattr(_emulator, "_build", broken)
    with pytest.raises(type(error)):
        _emulator.install(Silent(), force=True)
    assert left(built.parent) == ["emulator", "emulator.lock"]
    assert qemu.status(verify=True)["damaged"] == []


def test_what_a_killed_installer_left_is_swept(built):
    (built.parent / ".edgeprune-killed").mkdir()
    _emulator.install(Silent(), force=True)
    assert left(built.parent) == ["emulator", "emulator.lock"]


def test_remove_takes_all_of_it(built):
    assert qemu.remove() is True
    assert left(built.parent) == ["emulator.lock"]
    assert qemu.find() is None


def compiled(folder, *python):
    """Where our scripts lie when this is the emulated Python."""
    launcher = Launcher(python, {"PATH": os.environ["PATH"]}, "emulated")
    return _scripts.folder(_emulator.Installation(folder, {}), launcher)


def test_our_scripts_are_compiled_once(tmp_path):
    place = compiled(tmp_path, sys.executable, "-S")
    assert {path.name for path in place.glob("*.py")} == {"_probe.py", "_count_probe.py"}
    assert len(list(place.glob("__pycache__/*.pyc"))) == 2
    assert compiled(tmp_path, "false") == place


@pytest.mark.parametrize(
    ("script", "seconds", "words"),
    [("exec sleep 60", 0.2, r"did not compile two scripts in 0\.2 s"), ("echo no >&2; exit 1", 60, "does not run: no")],
)
def test_a_python_that_does_not_compile_our_scripts_is_named(tmp_path, monkeypatch, script, seconds, words):
    monkeypatch.setattr(_scripts, "TIMEOUT_S", seconds)
    with pytest.raises(DeviceError, match=words):
        compiled(tmp_path, str(program(tmp_path / "bin", "python", script)))
    assert not list((tmp_path / "cache" / "probe").iterdir())


def hold(path, ready, release):
    with _emulator._locked(path, None):
        ready.set()
        release.wait(30)


def test_one_installer_at_a_time(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, release, progress = context.Event(), context.Event(), Notes()
    other = context.Process(target=hold, args=(tmp_path / "lock", ready, release))
    other.start()
    assert ready.wait(30)

    def note(message):
        progress.notes.append(message)
        release.set()

    progress.note = note
    with _emulator._locked(tmp_path / "lock", progress):
        other.join(30)
    assert "Another edgeprune" in progress.notes[0]


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(_emulator, "unsupported", lambda: None)
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(DeviceError, match="EDGEPRUNE_CACHE"):
        _emulator.install(Silent())


# --- the backend's reasons


def load(name):
    return target.load(registry.file("targets", name))


def test_the_backend_says_how_to_get_the_emulator(monkeypatch):
    monkeypatch.setattr(qemu, "unsupported", lambda: None)
    pi = load("rpi4")
    assert "edgeprune emulator install" in qemu.unavailable(pi, target.connection(pi))
    with (
        pytest.raises(DeviceError, match=r"'rpi4' cannot be emulated.*emulator install"),
        qemu.session(pi, target.connection(pi)),
    ):
        pass


@pytest.mark.parametrize(("name", "reason"), [("rpi4", None), ("rpi5", "names ai-edge-litert 2.1.6")])
def test_a_target_whose_runtime_is_not_installed(built, name, reason):
    facts = load(name)
    found = qemu.unavailable(facts, target.connection(facts))
    assert found is None if reason is None else reason in found


def test_a_target_whose_core_the_qemu_does_not_know(built):
    manifest = json.loads((built / "manifest.json").read_text())
    manifest["qemu"]["version"] = [6, 2, 0]
    manifest["runtimes"]["ai-edge-litert"] = "2.1.6"
    (built / "manifest.json").write_text(json.dumps(manifest))
    facts = load("rpi5")
    assert "cortex-a76 needs QEMU 7.1 or newer, and this is 6.2.0" in qemu.unavailable(facts, target.connection(facts))


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_manifest_that_is_none(built, text):
    (built / "manifest.json").write_text(text)
    assert qemu.find() is None


@pytest.mark.qemu
def test_the_real_installation_is_whole():
    found = qemu.status(verify=True)
    assert found["damaged"] == []
    assert sorted(found["runtimes"]) == ["ai-edge-litert", "tflite-runtime"]


@pytest.mark.qemu
@pytest.mark.parametrize(("cpu", "dot_product"), [("cortex-a72", False), ("cortex-a53", False), ("cortex-a76", True)])
def test_the_emulated_cores_have_the_instructions_of_the_real_ones(cpu, dot_product):
    """AT_HWCAP bit 20 (asimddp) decides which kernels the runtimes pick."""
    launcher = qemu.find().launcher(cpu, "tflite-runtime")
    code = "import ctypes; f = ctypes.CDLL(None).getauxval; f.restype = ctypes.c_ulong; print(f(16) >> 20 & 1)"
    done = subprocess.run(
        [*launcher.command, "-c", code], env=dict(launcher.environment), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(int(dot_product))
