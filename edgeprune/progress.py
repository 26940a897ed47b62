"""What a person sees while a build runs: a Protocol that stages call, and its forms for terminals and notebooks.

Stages say what they did (`step`: 3 of 10 epochs, loss 0.12); how that looks, how often, and how long the rest will take
is decided here alone.
"""

from __future__ import annotations

import html
import math
import os
import sys
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

Clock = Callable[[], float]  # seconds, monotonic


class Progress(Protocol):
    """What a stage tells the person who waits."""

    def stage(self, label: str, index: int, total: int) -> None:
        """A stage begins: the ``index``-th of ``total``, counted from 1."""

    def step(self, done: float, total: float, unit: str, **values: float) -> None:
        """``done`` of ``total`` epochs, samples or bytes are through; ``values`` are the figures so far (loss=…)."""

    def note(self, message: str) -> None:
        """One line worth keeping: a layer left alone, a fallback."""

    def done(self, summary: str, seconds: float, resumed: bool = False) -> None:
        """The stage ended after ``seconds``; ``resumed``: nothing was repeated, an earlier run had finished it."""

    def close(self) -> None:
        """The run ended, well or not: give the screen back. Harmless when called twice."""


def choose(quiet: bool = False, json: bool = False) -> Progress:
    """The form that fits where the process runs.

    Args:
        quiet: Say nothing at all.
        json: Standard output belongs to JSON, so progress goes to standard error.
    """
    if quiet:
        return Silent()
    if not json and _in_notebook():
        return Notebook()
    return Terminal(Console(stderr=json, highlight=False))


class Silent:
    """Says nothing."""

    def stage(self, label: str, index: int, total: int) -> None:
        pass

    def step(self, done: float, total: float, unit: str, **values: float) -> None:
        pass

    def note(self, message: str) -> None:
        pass

    def done(self, summary: str, seconds: float, resumed: bool = False) -> None:
        pass

    def close(self) -> None:
        pass


class Shifted(Silent):
    """Tells a part of a stage as what it is of the whole: the epochs of one round, of all."""

    def __init__(self, inner: Progress, before: float, total: float) -> None:
        self.inner, self.before, self.total = inner, before, total

    def step(self, done: float, total: float, unit: str, **values: float) -> None:
        self.inner.step(self.before + done, self.total, unit, **values)

    def note(self, message: str) -> None:
        self.inner.note(message)


@dataclass
class _Current:
    """The stage that runs: what was said last, and since when."""

    label: str
    index: int
    total_stages: int
    clock: Clock
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    values: dict[str, float] = field(default_factory=dict)
    anchor: tuple[float, float] | None = None  # (time, done) of the first step of this unit and total

    @property
    def place(self) -> str:
        return f"{self.index}/{self.total_stages}"

    @property
    def share(self) -> float | None:
        """0..1, or None where the total is unknown."""
        return min(max(self.done / self.total, 0.0), 1.0) if self.total > 0 else None

    def step(self, done: float, total: float, unit: str, values: dict[str, float]) -> None:
        # Another unit or total, or a step back, is a new leg (calibration, then epochs) with a speed of its own.
        if (unit, total) != (self.unit, self.total) or done < self.done or self.anchor is None:
            self.anchor, self.values = (self.clock(), done), {}
        self.done, self.total, self.unit = done, total, unit
        self.values.update(values)

    def left_s(self) -> float | None:
        """Seconds to go at the speed since the leg began (not since epoch 0: a resumed leg begins in its middle)."""
        if self.anchor is None or self.total <= 0:
            return None
        since, begun_at = self.anchor
        advanced = self.done - begun_at
        if advanced <= 0 or self.done >= self.total:
            return None
        return (self.clock() - since) / advanced * (self.total - self.done)

    def parts(self) -> list[str]:
        """``["epoch 3/10", "loss 0.120", "accuracy 0.981"]``."""
        return [position(self.done, self.total, self.unit), *(f"{name} {figure(v)}" for name, v in self.values.items())]


def position(done: float, total: float, unit: str) -> str:
    """Where a leg stands: the epoch at work, a share of the bytes, a count of anything else.

    >>> position(2.4, 10, "epochs"), position(1 << 20, 1 << 22, "bytes"), position(64, 360, "samples")
    ('epoch 3/10', '1.0/4.0 MiB', '64/360 samples')
    """
    if not unit:
        return ""
    if unit == "bytes":
        return f"{done / 2**20:.1f}/{total / 2**20:.1f} MiB" if total > 0 else f"{done / 2**20:.1f} MiB"
    if unit == "epochs":
        at_work = min(math.floor(done) + (0 if done == math.floor(done) and done > 0 else 1), max(math.ceil(total), 1))
        return f"epoch {at_work}/{total:.0f}"
    return f"{done:.0f}/{total:.0f} {unit}" if total > 0 else f"{done:.0f} {unit}"


def figure(value: float) -> str:
    """Three decimals, or an exponent where those would hide the value.

    >>> figure(0.98123), figure(0.0004), figure(12.0), figure(0)
    ('0.981', '4.0e-04', '12.000', '0')
    """
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    return f"{value:.3f}" if 0.001 <= abs(value) < 10_000 else f"{value:.1e}"


def duration(seconds: float) -> str:
    """A time to read, not to measure with.

    >>> duration(0.042), duration(8.25), duration(75), duration(7260)
    ('42 ms', '8.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def left(seconds: float | None) -> str:
    """Time left, coarse enough not to flicker."""
    return "" if seconds is None else f"{duration(max(round(seconds), 1)).replace('.0 s', ' s')} left"


def printable(words: str) -> str:
    """Words that cannot steer a terminal: names of layers and files come from strangers.

    >>> printable("conv\\x1b[2J1")
    'conv�[2J1'
    """
    return "".join(sign if sign in "\n\t" or unicodedata.category(sign) != "Cc" else "\ufffd" for sign in words)


class Terminal:
    """One live line for the stage that runs; finished stages stay above it, one line each.

    Where standard output is no terminal, or ``NO_COLOR`` or ``CI`` is set, plain lines take its place: at most one per
    epoch, or per quarter of anything else, flushed at once so that a log can be followed.
    """

    QUIET_S = 5.0  # plain lines about samples and bytes keep at least this distance

    def __init__(self, console: Console | None = None, clock: Clock = time.monotonic) -> None:
        self.console = console or Console(highlight=False)
        self.clock = clock
        self.plain = not self.console.is_terminal or self.console.is_dumb_terminal or _wants_plain()
        self._current: _Current | None = None
        self._live: Live | None = None
        self._spinner = Spinner("dots" if self._unicode else "line", style="cyan")
        self._said: tuple[float, float] = (0.0, 0.0)  # plain lines: (time, done) of the last

    @property
    def _unicode(self) -> bool:
        return self.console.encoding.lower().startswith("utf")

    def stage(self, label: str, index: int, total: int) -> None:
        self.close()
        self._current = _Current(printable(label), index, total, self.clock)
        self._said = (self.clock(), 0.0)
        if self.plain:
            self._say(f"[{index}/{total}] {self._current.label} ...")
        else:
            self._live = Live(self, console=self.console, refresh_per_second=10, transient=True)
            self._live.start()

    def step(self, done: float, total: float, unit: str, **values: float) -> None:
        current = self._current
        if current is None:
            return
        new_leg = (unit, total) != (current.unit, current.total) or done < current.done
        current.step(done, total, unit, values)
        if not self.plain:
            return  # the live line refreshes itself
        if new_leg:
            self._said = (self._said[0], self._begun(done, unit, bool(values)))
        if self._worth_a_line(done, total, unit):
            self._said = (self.clock(), done)
            said = [*current.parts(), left(current.left_s())]
            self._say(f"[{current.place}] {current.label}: {', '.join(part for part in said if part)}")

    @staticmethod
    def _begun(done: float, unit: str, has_values: bool) -> float:
        """Where a leg counts from: a resumed one not from 0, yet a first word "epoch 1: loss …" is worth its line."""
        if unit != "epochs":
            return 0.0
        return math.floor(done) - (1 if has_values and done == math.floor(done) and done > 0 else 0)

    def _worth_a_line(self, done: float, total: float, unit: str) -> bool:
        since, last = self._said
        if unit == "epochs":
            return math.floor(done) > math.floor(last)
        quarters = (4 * done // total) - (4 * last // total) if total > 0 else 0
        return quarters >= 1 and self.clock() - since >= self.QUIET_S

    def note(self, message: str) -> None:
        if self.plain:
            self._say(f"      {printable(message)}")
        else:
            self.console.print(Padding(Text(printable(message), style="dim"), (0, 0, 0, 6)))

    def done(self, summary: str, seconds: float, resumed: bool = False) -> None:
        current = self._current
        self.close()
        if current is None:
            return
        self._current = None
        took = "kept from the earlier run" if resumed else duration(seconds)
        if self.plain:
            self._say(f"[{current.place}] {current.label}: {printable(summary) or 'done'} ({took})")
            return
        mark = ("↻" if resumed else "✓") if self._unicode else "+"
        line = Text.assemble(
            (f"{mark} ", "green"), (f"{current.place} ", "dim"), (f"{current.label:<9} ", "bold"), printable(summary)
        )
        line.append(f"  {took}", style="dim")
        self.console.print(line)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _say(self, line: str) -> None:
        # Not console.print: a log line must not be folded at a width that nobody looks at.
        encoding = getattr(self.console.file, "encoding", None) or "utf-8"
        self.console.file.write(line.encode(encoding, "replace").decode(encoding) + "\n")
        self.console.file.flush()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The live line; what does not fit beside the bar is cut at the right, never wrapped."""
        current = self._current
        if current is None:
            return
        self._spinner.text = Text.assemble((f"{current.place} ", "dim"), (current.label, "bold"))
        row = Table.grid(padding=(0, 2, 0, 0), expand=True)
        row.add_column(no_wrap=True, min_width=len(current.place) + len(current.label) + 3)
        cells: list[RenderableType] = [self._spinner]
        if current.share is not None and options.max_width >= 100:  # a narrow terminal needs its room for the figures
            row.add_column(min_width=20)
            cells.append(ProgressBar(total=1.0, completed=current.share, width=20))
        row.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        where, *values = current.parts()
        words = "  ".join(part for part in (where, left(current.left_s()), *values) if part)
        row.add_row(*cells, Text(words, no_wrap=True, overflow="ellipsis"))
        yield row


class Notebook:
    """The same in a notebook cell: one output that is drawn anew, a few times a second at most.

    Raises:
        ImportError: IPython is not installed (no kernel runs without it).
    """

    REDRAW_S = 0.25

    def __init__(self, clock: Clock = time.monotonic) -> None:
        from IPython.display import display

        self.clock = clock
        self._display = display
        self._handle: Any = None
        self._finished: list[tuple[str, str]] = []  # (kind, html)
        self._current: _Current | None = None
        self._drawn = -math.inf

    def stage(self, label: str, index: int, total: int) -> None:
        if index <= 1:  # another run in the same notebook: its own output
            self._handle, self._finished = None, []
        self._current = _Current(label, index, total, self.clock)
        self._draw()

    def step(self, done: float, total: float, unit: str, **values: float) -> None:
        if self._current is None:
            return
        self._current.step(done, total, unit, values)
        if self.clock() - self._drawn >= self.REDRAW_S:
            self._draw()

    def note(self, message: str) -> None:
        self._finished.append(("note", html.escape(message)))
        self._draw()

    def done(self, summary: str, seconds: float, resumed: bool = False) -> None:
        if self._current is None:
            return
        took = "kept from the earlier run" if resumed else duration(seconds)
        mark, label = "↻" if resumed else "✓", html.escape(self._current.label)
        words = f"{html.escape(summary)} <small>{html.escape(took)}</small>"
        self._finished.append(("done", f"{mark} {self._current.place} <b>{label}</b> {words}"))
        self._current = None
        self._draw()

    def close(self) -> None:
        """The cell keeps what it shows last."""

    def _draw(self) -> None:
        self._drawn = self.clock()
        if self._handle is None:
            self._handle = self._display(self, display_id=True)
        else:
            self._handle.update(self)

    def __repr__(self) -> str:
        return f"<edgeprune progress: {len(self._finished)} lines>"

    def _repr_html_(self) -> str:
        style = {"done": "", "note": "opacity:.6;padding-left:1.4em"}
        lines = [f'<div style="{style[kind]}">{line}</div>' for kind, line in self._finished]
        if self._current is not None:
            lines.append(_live_html(self._current))
        return f'<div style="font-size:.95em;line-height:1.6">{"".join(lines)}</div>'


def _live_html(current: _Current) -> str:
    """The line of the stage that runs, with the browser's own progress bar."""
    bar = "" if current.share is None else f'<progress max="1" value="{current.share:.4f}"></progress> '
    parts = [part for part in [*current.parts(), left(current.left_s())] if part]
    words = html.escape(" · ".join(parts))
    return f"<div>… {current.place} <b>{html.escape(current.label)}</b> {bar}{words}</div>"


def _wants_plain() -> bool:
    """The person or the CI asked for neither colours nor redrawing (https://no-color.org: any value but the empty)."""
    return bool(os.environ.get("NO_COLOR") or os.environ.get("CI"))


def _in_notebook() -> bool:
    """Whether a Jupyter kernel runs this process; asks only an IPython that is already there."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and getattr(shell, "kernel", None) is not None
