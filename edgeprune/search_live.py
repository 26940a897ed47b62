"""What a person sees while a search runs: the front, how far it has come, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live

from edgeprune import progress, search_view
from edgeprune.progress import Progress, Terminal, duration, left, printable


class Silent:
    """Says nothing."""

    def begin(self, result: Mapping[str, Any]) -> None:
        pass

    def trial(self, result: Mapping[str, Any]) -> None:
        pass

    def evaluating(self, done: int, total: int) -> None:
        pass

    def building(self) -> Progress:
        return progress.Silent()

    def note(self, message: str) -> None:
        pass

    def close(self) -> None:
        pass


class Board:
    """One live table where there is a terminal; a line now and then where there is none."""

    EVERY_S = 10.0  # between two lines

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.clock = console, clock
        self.plain = Terminal(console).plain
        self._live: Live | None = None
        self._result: Mapping[str, Any] | None = None
        self._step = ""
        self._began, self._earlier, self._said = clock(), 0, float("-inf")
        self._terminal = Terminal(console)

    def begin(self, result: Mapping[str, Any]) -> None:
        self._terminal.close()
        self._began, self._earlier, self._result = self.clock(), result["counts"]["complete"], result
        if self.plain:
            self._say(f"{result['planned']} trials with {result['sampler']}, {self._earlier} are there already")
            return
        self._live = Live(self, console=self.console, refresh_per_second=4, transient=True)
        self._live.start()

    def trial(self, result: Mapping[str, Any]) -> None:
        self._result = result
        if self.plain and (
            self.clock() - self._said > self.EVERY_S or result["counts"]["complete"] >= result["planned"]
        ):
            done = result["counts"]["complete"]
            self._say(
                f"[{done}/{result['planned']}] {len(result['front'])} on the front, hypervolume {result['hypervolume']:.3f}, "
                f"{duration(self.clock() - self._began)} so far"
            )

    def evaluating(self, done: int, total: int) -> None:
        self._step = f"sample {done}/{total}"

    def building(self) -> Progress:
        """The terminal's own progress; the table makes room for it."""
        self._stop()
        return self._terminal

    def note(self, message: str) -> None:
        self._stop()
        self._say(printable(message))

    def close(self) -> None:
        self._stop()
        self._terminal.close()

    def left_s(self) -> float | None:
        """Seconds to go, at the speed of all workers since this one began."""
        if self._result is None:
            return None
        done = self._result["counts"]["complete"]
        new = done - self._earlier
        return (self.clock() - self._began) / new * max(self._result["planned"] - done, 0) if new > 0 else None

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _say(self, line: str) -> None:
        self.console.file.write(line + "\n")  # not console.print: a log line must not be folded
        self.console.file.flush()
        self._said = self.clock()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._result is not None:
            yield search_view.live(self._result, left(self.left_s()), self._step)
