"""What the emulator is made of: where its packages come from, apt-get confined, wheels pinned and unpacked."""

from __future__ import annotations

import os
import stat
import sys
import zipfile
from pathlib import Path

import pytest
from programs import program

from edgeprune.devices import _debian, _emulator, _wheels
from edgeprune.errors import DeviceError, MissingDependency
from edgeprune.progress import Silent

BOOKWORM = _debian.Host("debian", "bookworm", "amd64")
NOBLE = _debian.Host("ubuntu", "noble", "amd64")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
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
