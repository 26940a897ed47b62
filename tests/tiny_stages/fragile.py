"""Count its own attempts in a checkpoint, and fail until there were as many as asked."""

from __future__ import annotations

from edgeprune.errors import DataError
from edgeprune.validation import Strict


class Options(Strict):
    attempts: int = 2


def run(state, options):
    checkpoint = state.workspace / "checkpoint"
    attempts = int(checkpoint.read_text()) + 1 if checkpoint.exists() else 1
    checkpoint.write_text(str(attempts))
    if attempts < options.attempts:
        raise DataError("not yet")
    return state.add(attempts=attempts)
