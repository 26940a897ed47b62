"""One model on several boards at once: each with its own connection, all in the time of the slowest."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune import profiling, registry, target
from edgeprune.errors import DeviceError, EdgepruneError
from edgeprune.progress import Progress, Silent
from edgeprune.target import Connection, Target

POLL_S = 0.2  # how soon Ctrl-C is seen


class Place(NamedTuple):
    """A board, and what it is."""

    target: Target
    connection: Connection


def places(words: Sequence[str], targets: Sequence[str]) -> list[Place]:
    """The boards that the words of ``--board`` mean, each with its target's name.

    Raises:
        DeviceError: one is given twice.
    """
    twice = sorted({word for word in words if words.count(word) > 1})
    if twice:
        raise DeviceError(
            f"--board names '{twice[0]}' twice; two runs at once would slow each other down. Give it once."
        )
    loaded = [target.load(registry.file("targets", name)) for name in targets]
    return [Place(facts, target.connection(facts, word)) for facts, word in zip(loaded, words, strict=True)]


def profile(
    path: Path, places: Sequence[Place], threads: int | None, progress: Progress, **how: Any
) -> list[dict[str, Any]]:
    """``profiling.profile`` on every board.

    Args:
        path: the ``.tflite`` file.
        places: the boards; none twice, since two runs at once on one board slow each other down.
        threads, how: as `profiling.profile` takes them.

    Returns:
        In the order of the boards: its figures, or ``{"error": ...}``; ``board`` and ``target`` say which it was.
    """
    shared = Together(progress, len(places))
    started = time.monotonic()
    progress.stage(f"profile on {len(places)} boards", 1, 1)
    try:
        with ThreadPoolExecutor(len(places)) as pool:
            tasks = [
                pool.submit(_one, path, place, threads, shared.part(index), how) for index, place in enumerate(places)
            ]
            _await(tasks, shared)
        progress.done(f"{len(places)} boards", time.monotonic() - started)
    finally:
        progress.close()
    return [task.result() for task in tasks]


def _await(tasks: Sequence[Future[Any]], shared: Together) -> None:
    """Wait for all; an interrupt ends the runs on the boards, so that nothing is left there."""
    try:
        while wait(tasks, POLL_S).not_done:
            pass
    except BaseException:
        shared.stopped.set()
        raise


def _one(path: Path, place: Place, threads: int | None, progress: Progress, how: Mapping[str, Any]) -> dict[str, Any]:
    which = {"board": place.connection.address, "target": place.target.name}
    try:
        return which | profiling.profile(path, place.target, place.connection, threads, progress, **how)
    except EdgepruneError as error:
        return which | {"error": str(error)}


class Together:
    """One line of progress for all: how much of everything is through."""

    def __init__(self, progress: Progress, count: int) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._shares = [0.0] * count
        self.stopped = threading.Event()

    def part(self, index: int) -> Progress:
        """What one board's run reports to."""
        return _Part(self, index)

    def step(self, index: int, share: float) -> None:
        """One board is so far, 0..1."""
        if self.stopped.is_set():
            raise KeyboardInterrupt
        with self._lock:
            self._shares[index] = max(share, self._shares[index])
            self._progress.step(100 * sum(self._shares) / len(self._shares), 100, "%")


class _Part(Silent):
    """Passes on the timed runs of one board."""

    def __init__(self, together: Together, index: int) -> None:
        self._together = together
        self._index = index

    def step(self, done: float, total: float, unit: str, **values: float) -> None:
        if unit != "bytes" and total > 0:
            self._together.step(self._index, done / total)
        elif self._together.stopped.is_set():
            raise KeyboardInterrupt
