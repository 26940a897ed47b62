"""A report and a comparison in the terminal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgeprune import report_budget, report_clusters, report_compare, report_shrink, report_time, report_words
from edgeprune.progress import printable
from edgeprune.report_view import ROLES, Block, Figure, absences, candidate, headline, table, target_title

_STYLES: dict[bool | None, tuple[str, str]] = {True: ("✓", "green"), False: ("✗", "bold red"), None: ("-", "dim")}


def terminal(report: Block, console: Console, folder: str | os.PathLike[str] | None = None) -> None:
    """Print the closing table of a run, and in sentences what was proven, where, and what it buys.

    Args:
        report: The record.
        console: Where to; its width and colours are respected.
        folder: The run folder, to say where the files are.
    """
    shown = table(report)
    console.print()
    console.print(_text(headline(report), style="bold"))
    console.print(_candidates(report, shown))
    for words in absences(shown):
        _indented(console, words, "dim")
    _sentences(console, "Budgets", report_words.budgets(report))
    _paragraph(console, "Attempts to meet them", report_budget.paragraphs(report))
    _sentences(console, "Proven on the file", [*report_words.verify_sentences(report), *report_clusters.proven(report)])
    _paragraph(console, "On Arm kernels", [report_words.arm_sentence(report)])
    _paragraph(console, "Where the time goes", report_time.sentences(report))
    _paragraph(console, "Advice", report_words.advice(report))
    _paragraph(console, "Channels removed for good", report_shrink.paragraphs(report))
    _paragraph(console, "Shared values", report_clusters.paragraphs(report))
    alone = [f"{why}: {', '.join(names)}" for why, names in report_words.left_alone(report)]
    _paragraph(console, "Layers left alone", alone)
    sentence = report_words.quantization_sentence(report)
    untrained = [f"{why}: {', '.join(names)}" for why, names in report_words.post_training(report)]
    _paragraph(console, "How the layers became int8", [sentence, *untrained] if sentence else [])
    _paragraph(console, f"What the zeros buy on {target_title(report)}", report_words.zeros_words(report))
    if folder is not None:
        _paragraph(console, "Files", _files(report, Path(folder)))


def _candidates(report: Block, shown: list[Any]) -> Table:
    """Figures down, candidates across: eight narrow lines that fit eighty columns."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("")
    for name in ROLES.values():
        grid.add_column(_text(name), justify="right", style="bold" if name == ROLES["final"] else "")
    for row in shown:
        grid.add_row(_text(row.label), *(_cell(f) for f in row.figures))
    return grid


def _text(words: str, style: str = "") -> Text:
    return Text(printable(words), style=style)


def _cell(figure: Figure, best: bool = False) -> Text:
    return Text.assemble(
        (printable(figure.short), "bold green" if best else ""), (f"\n{figure.origin}" if figure.origin else "", "dim")
    )


def _files(report: Block, folder: Path) -> list[str]:
    model = candidate(report, "final").get("file")
    names = [str(model)] if model else []
    return [
        str(folder / name)
        for name in [*names, "report.html", "report.json", "recipe.yaml", "found.yaml"]
        if (folder / name).exists()
    ]


def _sentences(console: Console, title: str, sentences: list[tuple[bool | None, str]]) -> None:
    if not sentences:
        return
    console.print(_text(title, style="bold"))
    for held, words in sentences:
        mark, style = _STYLES[held]
        if not console.encoding.lower().startswith("utf"):
            mark = {"✓": "+", "✗": "x"}.get(mark, mark)
        line = Table.grid(padding=(0, 1, 0, 0))
        line.add_row(_text(mark, style=style), _text(words, style="" if held is not False else "red"))
        console.print(Padding(line, (0, 0, 0, 2)))


def _paragraph(console: Console, title: str, paragraphs: list[str]) -> None:
    if not paragraphs:
        return
    console.print(_text(title, style="bold"))
    for words in paragraphs:
        _indented(console, words)


def _indented(console: Console, words: str, style: str = "") -> None:
    console.print(Padding(_text(words, style=style), (0, 0, 0, 2)))


def compare_terminal(comparison: Block, console: Console) -> None:
    """Print runs side by side, the best of each line in green, and what may not be compared."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("", overflow="fold")
    for run in comparison["runs"]:
        grid.add_column(_text(run["name"]), justify="right")
    for line in report_compare.lines(comparison):
        grid.add_row(_text(line.label), *(_cell(f, index in line.best) for index, f in enumerate(line.figures)))
    grid.add_section()
    for line in report_compare.recipe_lines(comparison):
        grid.add_row(_text(line.label), *(_cell(f) for f in line.figures))
    console.print()
    console.print(grid)
    _sentences(console, "Not alike", [(False, flag) for flag in comparison["flags"]])
    _paragraph(console, "Absent", report_compare.missing(comparison))
