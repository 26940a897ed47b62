"""Results that a benchmark goes on with: one file for one set of settings."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprune.errors import RecipeError


def opened(path: Path, about: str | None, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The results so far, or new ones.

    Args:
        path: of the file, which need not be there.
        about: the benchmark's docstring, whose first line new results begin with.
        wanted: plain data that results of one file have in common: settings, data, model.

    Raises:
        RecipeError: they were made with other settings.
    """
    if not path.exists():
        return {"what": (about or "").splitlines()[0], **wanted, "cpus": os.cpu_count()}
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found = {key: record.get(key) for key in wanted}
    if found != wanted:
        raise RecipeError(
            f"{path} holds results of {found}, not of {dict(wanted)}: give the same settings, or another file with --results."
        )
    return record
