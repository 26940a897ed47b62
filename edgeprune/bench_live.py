"""What a person sees while a league runs: the builds at work, the rows so far, and how long the rest will take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from edgeprune import bench, tables
from edgeprune.bench import Cell
from edgeprune.progress import Terminal, duration, left, position, printable
from edgeprune.report_view import decimals, kib

Plain = Mapping[str, Any]


@dataclass
class _AtWork:
    """A build that runs: what it said last."""

    since: float
    stage: str = "starts"
    step: str = ""
    share: float | None = None


class Board:
    """One live table where there is a terminal; a line per finished build where there is none, or ``CI`` or ``NO_COLOR`` is set."""

    ROOM = 4  # lines that the terminal keeps beside the table

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.clock = console, clock
        self.plain = Terminal(console).plain
        self._live: Live | None = None
        self._work: dict[Cell, _AtWork] = {}
        self._rows: list[Plain] = []
        self._took: list[float] = []
        self._wanted = self._failed = self._earlier = 0
        self._began = clock()

    def begin(self, cells: int, finished: Sequence[Plain]) -> None:
        self._rows = [cell for cell in finished if "cannot" not in cell]
        self._wanted, self._earlier, self._began = cells, len(finished), self.clock()
        self._failed = len(finished) - len(self._rows)
        if self.plain:
            kept = f", {len(finished)} are there already" if finished else ""
            self._say(f"{cells} builds{kept}")
            return
        self._live = Live(self, console=self.console, refresh_per_second=4, transient=True)
        self._live.start()

    def told(self, cell: Cell, message: Plain) -> None:
        work = self._work.setdefault(cell, _AtWork(self.clock()))
        if "stage" in message:
            label, index, total = message["stage"]
            work.stage, work.step, work.share = f"{index}/{total} {printable(label)}", "", None
        elif "step" in message:
            done, total, unit = message["step"]
            work.step, work.share = position(done, total, unit), done / total if total > 0 else None

    def finished(self, cell: Cell, figures: Plain) -> None:
        self._took.append(self.clock() - self._work.pop(cell, _AtWork(self.clock())).since)
        self._rows.append(figures)
        self._line(f"{cell.name}: {decimals(figures['metric'])}, {kib(figures['size_gzip_bytes'])} compressed")

    def failed(self, cell: Cell, reason: str) -> None:
        self._work.pop(cell, None)
        self._failed += 1
        self._line(f"{cell.name} came to nothing: {printable(reason)}")

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    @property
    def through(self) -> int:
        """Cells that need no more work."""
        return len(self._rows) + self._failed

    def _line(self, words: str) -> None:
        if self.plain:
            self._say(f"[{self.through}/{self._wanted}] {words}, {duration(self.clock() - self._began)} so far")
        elif "came to nothing" in words:
            self.console.print(Text(words, style="red"))

    def _say(self, line: str) -> None:
        self.console.file.write(line + "\n")  # not console.print: a log line must not be folded
        self.console.file.flush()

    def left_s(self) -> float | None:
        """Seconds to go, at the speed since this run began."""
        new = self.through - self._earlier
        return (self.clock() - self._began) / new * (self._wanted - self.through) if new else None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = bench.rows(self._rows)
        room = max((options.height or console.height) - len(self._work) - self.ROOM, 0)
        if rows and room > 1:
            yield _table(rows[-room:])
        yield self._working()

    def _working(self) -> RenderableType:
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True)
        grid.add_column(min_width=20)
        grid.add_column(no_wrap=True, ratio=1)
        for cell, work in self._work.items():
            bar = ProgressBar(total=1.0, completed=work.share, width=20) if work.share is not None else Text("")
            grid.add_row(Text(cell.name, style="bold"), work.stage, bar, work.step)
        words = "  ".join(
            part
            for part in (
                f"{self.through}/{self._wanted} builds",
                f"{self._failed} without a result" if self._failed else "",
                f"{statistics.median(self._took):.0f} s each" if self._took else "",
                left(self.left_s()),
            )
            if part
        )
        grid.add_row(
            Text("all", style="dim"),
            "",
            ProgressBar(total=max(self._wanted, 1), completed=self.through, width=20),
            words,
        )
        return grid


def _table(rows: Sequence[Plain]) -> Table:
    """The rows so far, the newest last."""
    drawn = tables.columned(("method", "share", "metric", "zeros", "compressed", "training"), header_style="dim")
    for row in rows:
        metric = row["metric"]
        drawn.add_row(
            row["method"],
            "" if row["share"] is None else f"{row['share']:g}",
            decimals(metric["mean"]) + (f" ± {decimals(metric['spread'])}" if metric["spread"] else ""),
            f"{row['sparsity']['mean']:.3f}" if row["sparsity"] else "",
            kib(row["size_gzip_bytes"]["mean"]) if row["size_gzip_bytes"] else "",
            duration(row["training_s"]["mean"]) if row["training_s"] else "",
        )
    return drawn
