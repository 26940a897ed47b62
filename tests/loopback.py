"""A real sshd on the loopback, and boards behind it: the arm64 root under QEMU, with a device tree of its own.

Everything lies in one folder: keys, configuration, the boards' home and temporary folder. The client is the system's ssh,
called through a wrapper that gives it a configuration in the place of ``~/.ssh/config``. Every process of a board carries
`MARKER` in its environment, so that nothing left running can hide.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from edgeprune.devices import qemu

MARKER = "EDGEPRUNE_TEST_BOARD"
PI4, PI3 = "Raspberry Pi 4 Model B Rev 1.4", "Raspberry Pi 3 Model B Plus Rev 1.3"


class Loopback:
    """The server, its folder, and what it takes to make boards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("bin", "home", "tmp", "client"):
            (folder / name).mkdir()
        for key in ("host", "user", "stranger"):
            generate = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", str(folder / key)]
            subprocess.run(generate, check=True, stdin=subprocess.DEVNULL)
        shutil.copy(folder / "user.pub", folder / "authorized_keys")
        self.port = free_port()
        self._write_client()
        self.server = self._start()

    def _write_client(self) -> None:
        """Hosts that differ in one thing: the key they know the server by, or the key they show it."""
        ours, other = ((self.folder / f"{name}.pub").read_text() for name in ("host", "stranger"))
        place = f"[127.0.0.1]:{self.port}"
        (self.folder / "known").write_text(f"{place} {ours}")
        (self.folder / "changed").write_text(f"{place} {other}")
        (self.folder / "nobody").touch()
        hosts = {"board": ("user", "known"), "refused": ("stranger", "known"), "changed": ("user", "changed")}
        hosts |= {"board2": ("user", "known"), "unknown": ("user", "nobody")}
        blocks = [
            f"Host {name}\n  IdentityFile {self.folder / key}\n  UserKnownHostsFile {self.folder / known}\n"
            for name, (key, known) in hosts.items()
        ]
        common = f"Host *\n  HostName 127.0.0.1\n  Port {self.port}\n  User {getpass.getuser()}\n  IdentitiesOnly yes\n"
        common += "  IdentityAgent none\n  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n  LocalForward 1 localhost:1\n"
        (self.folder / "ssh_config").write_text("".join(blocks) + common)
        self.script("client/ssh", f'exec {shutil.which("ssh")} -F {self.folder / "ssh_config"} "$@"')

    def _start(self) -> subprocess.Popen[bytes]:
        program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        assert program is not None
        if os.geteuid() == 0:  # a root's sshd separates privileges in this folder, which its service makes
            Path("/run/sshd").mkdir(mode=0o755, parents=True, exist_ok=True)
        environment = {"PATH": self.folder / "bin", "HOME": self.folder / "home", "TMPDIR": self.folder / "tmp"}
        seen = " ".join(f"{name}={value}" for name, value in {**environment, MARKER: self.folder}.items())
        lines = [f"Port {self.port}", "ListenAddress 127.0.0.1", f"HostKey {self.folder / 'host'}", "PidFile none"]
        lines += [f"AuthorizedKeysFile {self.folder / 'authorized_keys'}", "StrictModes no", "UsePAM no"]
        lines += ["PasswordAuthentication no", "KbdInteractiveAuthentication no", "PermitRootLogin prohibit-password"]
        lines += [f"SetEnv {seen}", "UseDNS no"]
        config = self.folder / "sshd_config"
        config.write_text("\n".join([*lines, ""]))
        with (self.folder / "sshd.log").open("wb") as log:
            server = subprocess.Popen([program, "-D", "-e", "-f", config], stdin=subprocess.DEVNULL, stderr=log)
        until(lambda: answers(self.port) or server.poll() is not None)
        assert server.poll() is None, (self.folder / "sshd.log").read_text()
        return server

    def stop(self) -> None:
        self.server.terminate()
        self.server.wait()

    def script(self, name: str, *lines: str) -> Path:
        """An executable shell script in the folder."""
        path = self.folder / name
        path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        path.chmod(0o755)
        return path

    def board(self, name: str, model: str | None, *before: str, packages: list[Path] | None = None) -> Path:
        """A Python of a board: the arm64 root under QEMU.

        Args:
            name: of the script in the board's PATH; ``python3`` is what is found there by itself.
            model: what its device tree says; None: it has none.
            before: lines of the script before Python starts.
            packages: what it can import; None: the real runtime and NumPy.
        """
        installation = qemu.find()
        assert installation is not None
        launcher = installation.launcher("cortex-a72", "tflite-runtime")
        root = self.folder / f"root-{name}"
        for entry in (installation.folder / "root").iterdir():
            root.mkdir(exist_ok=True)
            (root / entry.name).symlink_to(entry)
        if model:
            tree = root / "sys/firmware/devicetree/base"
            tree.mkdir(parents=True)
            (tree / "model").write_text(f"{model}\0")
        command = [str(root) if word.endswith("/emulator/root") else word for word in launcher.command]
        paths = launcher.environment["PYTHONPATH"] if packages is None else os.pathsep.join(map(str, packages))
        settings = [f"export PYTHONPATH={shlex.quote(paths)} OPENBLAS_NUM_THREADS=1 LC_ALL=C.UTF-8"]
        return self.script(f"bin/{name}", *settings, *before, f'exec {shlex.join(command)} "$@"')

    def put(self, name: str, path: str, text: str) -> None:
        """A file that only this board sees, such as one below /sys."""
        file = self.folder / f"root-{name}" / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    # --- what is there now

    def running(self) -> list[str]:
        """The processes of the boards."""
        mark = f"{MARKER}={self.folder}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    def clients(self) -> list[str]:
        """Our ssh processes."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().decode().replace("\0", " ")
                if str(self.folder / "ssh_config") in words or str(self.folder / "client") in words:
                    found.append(words)
        return found

    def left(self) -> list[str]:
        """Files of the boards."""
        return [str(path) for name in ("tmp", "home") for path in (self.folder / name).iterdir()]

    def assert_clean(self) -> None:
        """Nothing runs on any board and nothing lies there, nor is a connection open."""
        until(lambda: not (self.running() or self.left() or self.clients()))
        assert [*self.running(), *self.left(), *self.clients()] == []

    def cut(self) -> None:
        """Kill the server's end of every connection, at once and without a word."""
        for child in descendants(self.server.pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().startswith("sshd"):
                    os.kill(child, signal.SIGKILL)


def descendants(parent: int) -> list[int]:
    """Process ids of children, and of theirs."""
    pairs = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pairs.append((int((process / "stat").read_text().rpartition(")")[2].split()[1]), int(process.name)))
    found = [child for above, child in pairs if above == parent]
    return found + [inner for child in found for inner in descendants(child)]


def until(holds, timeout_s: float = 20.0) -> None:
    """Wait for something, not for ever."""
    end = time.monotonic() + timeout_s
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
