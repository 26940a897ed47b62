"""Installing the emulator: what is trusted, what is kept whole, what is said when it cannot be had."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgeprune import registry, target
from edgeprune.devices import _debian, _emulator, _qemu, _wheels, qemu
from edgeprune.errors import DeviceError, MissingDependency
from edgeprune.progress import Silent

BOOKWORM = _debian.Host("debian", "bookworm", "amd64")
NOBLE = _debian.Host("ubuntu", "noble", "amd64")


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self):
        self.notes = []
        self.steps = []

    def note(self, message):
        self.notes.append(message)

    def step(self, done, total, unit, **values):
        self.steps.append((done, total, unit))


def program(folder: Path, name: str, script: str) -> Path:
    """An executable shell script."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def _own_cache(request, tmp_path, monkeypatch):
    if not request.node.get_closest_marker("qemu"):
        monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))


# --- where packages come from

DEB822 = """\
Types: deb deb-src
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/k.gpg

Types: deb
URIs: https://third.example/repo
Suites: bookworm
Components: stable
Enabled: no

Types: deb-src
URIs: http://sources.example/debian
Suites: bookworm
Components: main
"""

ONE_LINE = """\
# deb http://old.example/ubuntu noble main
deb [arch=amd64 signed-by=/k.gpg] http://de.archive.ubuntu.example/ubuntu/ noble main universe # mine
deb http://security.ubuntu.example/ubuntu noble-security main
deb-src http://archive.ubuntu.example/ubuntu noble main
deb https://third.example/apt stable main
"""


@pytest.fixture
def etc(tmp_path):
    folder = tmp_path / "etc"
    (folder / "sources.list.d").mkdir(parents=True)
    return folder


def test_deb822_sources(etc):
    (etc / "sources.list.d/debian.sources").write_text(DEB822)
    main, updates = _debian.configured_sources(etc)
    assert main == _debian.Source(
        "http://mirror.example/debian", "bookworm", ("main", "contrib"), "/usr/share/keyrings/k.gpg"
    )
    assert updates.suite == "bookworm-updates"


def test_one_line_sources(etc):
    (etc / "sources.list").write_text(ONE_LINE)
    first, *others = _debian.configured_sources(etc)
    assert first.components == ("main", "universe")
    assert (first.signed_by, first.architectures) == ("/k.gpg", ("amd64",))
    assert [source.uri for source in others] == ["http://security.ubuntu.example/ubuntu", "https://third.example/apt"]


def test_a_debian_host_takes_arm_and_qemu_from_its_own_mirror_and_nobody_elses(etc):
    (etc / "sources.list.d/debian.sources").write_text(DEB822)
    (etc / "sources.list.d/other.list").write_text("deb https://third.example/apt cloud-bookworm main\n")
    sources = _debian.configured_sources(etc)
    (arm,), (own,) = _debian.arm64_mirrors(sources, BOOKWORM), _debian.qemu_sources(sources, BOOKWORM)
    line = "deb [arch={} signed-by=/usr/share/keyrings/k.gpg] http://mirror.example/debian bookworm main"
    assert arm.line("arm64") == line.format("arm64")
    assert own.line("amd64") == line.format("amd64")


def test_a_newer_debian_still_gets_the_release_with_python_3_11():
    sources = [_debian.Source("http://mirror.example/debian", "trixie", ("main",))]
    (arm,) = _debian.arm64_mirrors(sources, _debian.Host("debian", "trixie", "amd64"))
    assert arm.suite == "bookworm"


def test_an_ubuntu_host_implies_its_ports_mirrors():
    sources = [_debian.Source("http://de.archive.ubuntu.example/ubuntu/", "noble", ("main",))]
    lines = [mirror.line("arm64") for mirror in _debian.arm64_mirrors(sources, NOBLE)]
    assert lines == [
        "deb [arch=arm64] http://ports.ubuntu.example/ubuntu-ports jammy main universe",
        "deb [arch=arm64] http://de.archive.ubuntu.example/ubuntu-ports jammy main universe",
    ]
    (own,) = _debian.qemu_sources(sources, NOBLE)
    assert own.line("amd64") == "deb [arch=amd64] http://de.archive.ubuntu.example/ubuntu/ noble main universe"


def test_an_ubuntu_mirror_of_another_name_keeps_its_host():
    sources = [_debian.Source("https://mirror.example/ubuntu", "noble", ("main",))]
    assert [mirror.uri for mirror in _debian.arm64_mirrors(sources, NOBLE)] == ["https://mirror.example/ubuntu-ports"]


def test_what_the_user_has_configured_for_arm64_comes_before_anything_derived():
    mine = _debian.Source("http://my.example/ports", "noble", ("main",), None, ("arm64",))
    other = _debian.Source("http://archive.ubuntu.example/ubuntu", "noble", ("main",))
    assert [mirror.uri for mirror in _debian.arm64_mirrors([other, mine], NOBLE)] == ["http://my.example/ports"]


@pytest.mark.parametrize(
    ("text", "family", "codename"),
    [
        ("ID=debian\nVERSION_CODENAME=bookworm\n", "debian", "bookworm"),
        ("ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\nUBUNTU_CODENAME=noble\n", "ubuntu", "noble"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\nVERSION_CODENAME=wilma\nUBUNTU_CODENAME=noble\n', "ubuntu", "noble"),
    ],
)
def test_distributions_and_their_relatives(tmp_path, monkeypatch, text, family, codename):
    monkeypatch.setattr(_debian, "_output", lambda command: "amd64\n")
    (tmp_path / "os-release").write_text(text)
    assert _debian.read_host(tmp_path / "os-release") == _debian.Host(family, codename, "amd64")


def test_another_distribution_is_told_what_to_do(tmp_path):
    (tmp_path / "os-release").write_text('ID="fedora"\n')
    with pytest.raises(MissingDependency, match=r"calls itself 'fedora'.*--board"):
        _debian.read_host(tmp_path / "os-release")


def test_without_apt_get_the_reason_names_it(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "apt-get" in _emulator.unsupported()
    with pytest.raises(MissingDependency, match="apt-get"):
        _emulator.install(Silent())


# --- apt-get, confined

FAKE_APT = """
shift; config=$1; shift; verb=$1
folder=$(dirname "$config")
if [ "$verb" = update ]; then exit 0; fi
case "$*" in *--print-uris*) echo "'http://m/a.deb' a_1_arm64.deb 300 SHA256:00"; exit 0;; esac
fd=$(echo "$*" | sed 's/.*Status-Fd=\\([0-9]*\\).*/\\1/')
echo dlstatus:1:50.0:half > "/proc/self/fd/$fd"
echo data > "$folder/archives/a_1_arm64.deb"
"""


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """An ``apt-get`` that does what the test says."""

    def make(script):
        program(tmp_path / "bin", "apt-get", script)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
        return _debian.Apt(tmp_path / "apt", "arm64", ["deb [arch=arm64] http://m/debian bookworm main"])

    return make


def test_packages_are_downloaded_with_progress(apt):
    confined, steps = apt(FAKE_APT), []
    confined.update()
    assert confined.packages(["a"]) == {"a_1_arm64.deb": 300}
    (package,) = confined.download(["a"], lambda done, total: steps.append((done, total)))
    assert (package.name, steps) == ("a_1_arm64.deb", [(150.0, 300), (300, 300)])


def test_apt_touches_nothing_outside_its_folder(apt, tmp_path):
    apt("exit 0")
    settings = (tmp_path / "apt/apt.conf").read_text()
    places = [
        "Dir::State",
        "Dir::State::lists",
        "Dir::State::status",
        "Dir::Cache",
        "Dir::Cache::archives",
        "Dir::Etc::sourcelist",
    ]
    for place in places:
        assert f'{place} "{tmp_path / "apt"}' in settings


def test_a_failing_apt_is_quoted(apt):
    confined = apt('echo "Reading lists"; echo "E: Could not resolve mirror"; exit 100')
    with pytest.raises(DeviceError, match="E: Could not resolve mirror"):
        confined.update()


def test_the_next_mirror_is_tried_and_all_failures_are_told(apt, tmp_path):
    apt('echo "E: no such mirror"; exit 100')
    choices = [["deb http://one jammy main"], ["deb http://two jammy main"]]
    with pytest.raises(DeviceError) as caught:
        _emulator._fetch_from_first(choices, "arm64", ("python",), tmp_path / "downloads", NOBLE, Silent())
    message = str(caught.value)
    for words in ("http://one", "http://two", "EDGEPRUNE_APT_SOURCES", "deb [arch=arm64] MIRROR jammy main universe"):
        assert words in message


def test_the_users_own_sources_come_first(apt, tmp_path, monkeypatch):
    apt(FAKE_APT)
    (tmp_path / "mine.list").write_text("deb [arch=arm64] http://mine bookworm main\n")
    monkeypatch.setenv("EDGEPRUNE_APT_SOURCES", str(tmp_path / "mine.list"))
    _emulator._fetch_from_first([["deb http://derived"]], "arm64", ("a",), tmp_path / "downloads", BOOKWORM, Silent())
    assert (tmp_path / "downloads/0/sources.list").read_text() == "deb [arch=arm64] http://mine bookworm main\n"


def test_own_sources_that_are_not_there(monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_APT_SOURCES", "/nonexistent/file")
    with pytest.raises(DeviceError, match="EDGEPRUNE_APT_SOURCES names /nonexistent/file"):
        _debian.overriding_sources()


def test_links_inside_a_root_stay_inside(tmp_path):
    root = tmp_path / "root"
    (root / "usr/lib").mkdir(parents=True)
    (root / "usr/lib/real").write_text("x")
    (root / "lib64").mkdir()
    (root / "lib64/absolute").symlink_to("/usr/lib/real")
    (root / "usr/lib/relative").symlink_to("real")
    (root / "usr/escape").symlink_to("../../outside")
    _debian.localize_links(root)
    assert str((root / "lib64/absolute").readlink()) == "../usr/lib/real"
    assert (root / "lib64/absolute").read_text() == "x"
    assert str((root / "usr/lib/relative").readlink()) == "real"
    assert not (root / "usr/escape").is_symlink()


# --- wheels


def wheel(path: Path, members: dict[str, bytes], mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return path


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "a\\..\\evil", "C:/evil"])
def test_a_wheel_cannot_write_outside_its_folder(tmp_path, name):
    archive = wheel(tmp_path / "a.whl", {"good.py": b"", name: b""})
    with pytest.raises(DeviceError, match="outside its folder"):
        _wheels.unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wheel_with_a_link_is_refused(tmp_path):
    archive = wheel(tmp_path / "a.whl", {"link": b"/etc"}, stat.S_IFLNK | 0o777)
    with pytest.raises(DeviceError, match="link"):
        _wheels.unpack(archive, tmp_path / "out")


def test_what_a_model_does_not_need_is_left_in_the_wheel(tmp_path):
    archive = wheel(tmp_path / "a.whl", {"p/core.py": b"1", "p/tests/t.py": b"2", "p/big/x": b"3", "p/bigger": b"4"})
    _wheels.unpack(archive, tmp_path / "out", skip=("p/big",))
    files = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()
    )
    assert files == ["p/bigger", "p/core.py"]


def test_a_damaged_wheel(tmp_path):
    (tmp_path / "a.whl").write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(DeviceError, match=r"a\.whl cannot be unpacked"):
        _wheels.unpack(tmp_path / "a.whl", tmp_path / "out")


def test_every_wheel_is_pinned_and_hashes_are_required(tmp_path, monkeypatch):
    fake = program(
        tmp_path,
        "python",
        'while [ "$1" != --dest ]; do echo "$1" >> "$0.words"; shift; done; cat "$4" > "$0.pins"; touch "$2/x.whl"',
    )
    monkeypatch.setattr(sys, "executable", str(fake))
    steps = []
    (found,) = _wheels.download([_wheels.NUMPY], tmp_path / "out", lambda done, total: steps.append((done, total)))
    assert found.name == "x.whl"
    assert steps == [(0, 1), (1, 1)]
    assert (tmp_path / "python.pins").read_text() == f"numpy==1.26.4 --hash=sha256:{_wheels.NUMPY.sha256}\n"
    words = (tmp_path / "python.words").read_text().split()
    assert {"--require-hashes", "--no-deps", "--only-binary=:all:", "manylinux2014_aarch64"} <= set(words)
    assert not [word for word in words if "index" in word]


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        ("echo 'ERROR: THESE PACKAGES DO NOT MATCH THE HASHES' >&2; exit 1", DeviceError, "DO NOT MATCH THE HASHES"),
        ("echo 'No module named pip' >&2; exit 1", MissingDependency, "ensurepip"),
        ("exit 0", DeviceError, "could not fetch numpy 1.26.4"),
    ],
)
def test_a_wheel_that_cannot_be_had(tmp_path, monkeypatch, script, error, words):
    monkeypatch.setattr(sys, "executable", str(program(tmp_path, "python", script)))
    with pytest.raises(error, match=words):
        _wheels.download([_wheels.NUMPY], tmp_path / "out", lambda done, total: None)


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
