"""The log of an unexpected error: what a bug report needs, out of the user's way."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import edgeprune
from edgeprune import cache
from edgeprune.errors import EdgepruneError
from edgeprune.files import write_text_atomic
from edgeprune.hiding import hidden

PACKAGES = (
    "tensorflow",
    "tf_keras",
    "tensorflow-model-optimization",
    "ai-edge-litert",
    "numpy",
    "pydantic",
    "click",
    "rich",
)


def write(error: BaseException, arguments: Sequence[str]) -> Path:
    """Write versions, command line and traceback to a new file in the cache, or where temporary files go.

    Returns:
        The file's path.
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    name = f"edgeprune-{now:%Y%m%dT%H%M%S}-{os.getpid()}.log"
    lines = [
        f"{now:%Y-%m-%d %H:%M:%S} UTC",
        f"command: {shlex.join(['edgeprune', *arguments])}",
        f"edgeprune {edgeprune.__version__}, Python {sys.version.split()[0]}, {platform.platform()}",
        ", ".join(f"{package} {_version(package)}" for package in PACKAGES),
        "",
        "".join(traceback.format_exception(type(error), error, error.__traceback__)),
    ]
    text = hidden("\n".join(lines))
    try:
        return write_text_atomic(cache.folder("log") / name, text)
    except EdgepruneError:
        return write_text_atomic(Path(tempfile.gettempdir()) / name, text)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
