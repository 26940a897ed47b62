"""The folder of the user's in which edgeprune keeps what it can make or fetch again: the emulator, decoded data, logs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeprune.errors import DeviceError

VARIABLE = "EDGEPRUNE_CACHE"


def folder(*parts: str) -> Path:
    """A place in the cache: ``$EDGEPRUNE_CACHE``, else ``$XDG_CACHE_HOME/edgeprune``, else ``~/.cache/edgeprune``.

    Args:
        parts: names of folders below it, such as ``"log"``.

    Returns:
        The path; nothing is made.
    """
    own = os.environ.get(VARIABLE)
    root = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeprune"
    return root.joinpath(*parts)


@contextmanager
def writing(what: str, place: Path) -> Iterator[None]:
    """Make a folder of the cache and write in it.

    Args:
        what: the folder is for, in one word.
        place: the folder.

    Raises:
        DeviceError: it cannot be made or written.
    """
    try:
        place.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DeviceError(
            f"The {what}'s folder {place} cannot be written ({error.strerror or error}). "
            f"Free some space or mend its permissions, or set {VARIABLE} to another folder."
        ) from error


def free_bytes() -> int:
    """Free bytes on the disk that holds the cache, or that would hold it."""
    place = folder().absolute()
    existing = next(path for path in (place, *place.parents) if path.exists())
    return shutil.disk_usage(existing).free
