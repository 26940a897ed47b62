"""Which board a word of ``--board`` means: an address for ssh, or a name in the user's own file of boards.

::

    # ~/.config/edgeprune/boards.yaml
    kitchen:
      address: pi@raspberrypi.local    # or a Host of ~/.ssh/config, where keys, ports and jump hosts are best kept
      target: rpi4                     # what it is; then --target can be left out
      python: ~/venv/bin/python3       # where its TFLite runtime is installed
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from edgeprune import yaml_files
from edgeprune.errors import DeviceError
from edgeprune.registry import suggestion
from edgeprune.validation import Strict, validate

FILE = "boards.yaml"
# What ssh takes as a destination, and nothing that it or a ProxyCommand of the user's could read as more than that.
ADDRESS = re.compile(
    r"(?:[A-Za-z0-9_][A-Za-z0-9_.+\-]*@)?[A-Za-z0-9_][A-Za-z0-9_.:%\-]*"
    r"|ssh://(?:[A-Za-z0-9_][A-Za-z0-9_.+\-]*@)?(?:[A-Za-z0-9_][A-Za-z0-9_.\-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?"
)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")


def address(word: str) -> str:
    """The word itself, when it is an address.

    >>> address("pi@raspberrypi.local"), address("ssh://pi@10.0.0.7:2222"), address("kitchen")
    ('pi@raspberrypi.local', 'ssh://pi@10.0.0.7:2222', 'kitchen')

    Raises:
        ValueError: it is none, such as an option of ssh's.
    """
    if not ADDRESS.fullmatch(word):
        raise ValueError(
            f"'{word}' is no address; give USER@HOST, ssh://USER@HOST:PORT, or a Host of your ~/.ssh/config"
        )
    return word


def _path(word: str) -> str:
    if not word or any(ord(sign) < 32 for sign in word) or word.startswith("-"):
        raise ValueError("give the path of a program, such as ~/venv/bin/python3")
    return word


Address = Annotated[str, AfterValidator(address)]
Program = Annotated[str, AfterValidator(_path)]


class Board(Strict):
    """One board of the user's."""

    address: Address = Field(description="USER@HOST, ssh://USER@HOST:PORT, or a Host of ~/.ssh/config")
    port: int | None = Field(None, ge=1, le=65535, description="port; null: ssh's own configuration says")
    identity: str | None = Field(None, description="file of the private key; null: ssh's own configuration and agent")
    jump: Address | None = Field(None, description="host to go through; null: ssh's own configuration says")
    python: Program | None = Field(None, description="Python on the board that has a TFLite runtime; null: looked for")
    target: str | None = Field(None, description="what it is: a name of `edgeprune list targets`, or a .yaml file")


def path() -> Path:
    """The file of boards: ``edgeprune/boards.yaml`` in ``$XDG_CONFIG_HOME``, else in ``~/.config``."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "edgeprune" / FILE


def load() -> Mapping[str, Board]:
    """The user's boards by name; none without the file.

    Raises:
        DeviceError: the file is no YAML or does not validate.
    """
    file = path()
    if not file.exists():
        return {}
    data: Any = yaml_files.read(file, DeviceError) or {}
    if not isinstance(data, Mapping):
        raise DeviceError(f"{file}: expected names of boards, each with an address below it, got {data!r}.")
    for name in data:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise DeviceError(f"{file}: {name!r} is no name for a board. Use letters, digits, '.', '_' and '-'.")
    return {name: validate(Board, facts, str(file), DeviceError, name) for name, facts in data.items()}


def find(word: str) -> Board:
    """The board that a word of ``--board`` means: a name in the user's file, else an address.

    Raises:
        DeviceError: neither; or the file does not validate.
    """
    known = load()
    if word in known:
        return known[word]
    try:
        return Board.model_validate({"address": address(word)})
    except ValueError as error:
        near = suggestion(word, known)
        raise DeviceError(f"--board: '{word}' is no address and no name in {path()}.{near} Give USER@HOST.") from error


def target(word: str, given: str | None, default: str) -> str:
    """The target of a board: what was given, else what the user's file says, else the default.

    Raises:
        DeviceError: the user's file says another target than the one that is given.
    """
    own = find(word).target
    if given and own and given != own:
        raise DeviceError(
            f"The board '{word}' is a {own} in {path()}, and --target says {given}. Leave out --target, or mend the file."
        )
    return given or own or default
