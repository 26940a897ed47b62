"""The folder of the user's in which edgeprune keeps what it can make or fetch again: the emulator, decoded data, logs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

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


def free_bytes() -> int:
    """Free bytes on the disk that holds the cache, or that would hold it."""
    place = folder().absolute()
    existing = next(path for path in (place, *place.parents) if path.exists())
    return shutil.disk_usage(existing).free
