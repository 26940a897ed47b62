"""What all generated pages are made with: tables, measured results, functions of the modules beside this one."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def text(x: float, y: float, words: str, anchor: str, style: str = "") -> str:
    """Words in a drawing (SVG); ``anchor`` is start, middle or end."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {style}>{escape(words)}</text>'


def results(name: str) -> dict[str, Any]:
    """What ``benchmarks/`` measured; a command there writes it anew."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def measured(name: str, draw: Callable[[Mapping[str, Any]], str], command: str) -> Callable[[], str]:
    """A table of results, or what makes them where there are none yet."""

    def block() -> str:
        if not (RESULTS / f"{name}.json").exists():
            return f"Not measured yet: `python benchmarks/{command}` does.\n"
        return draw(results(name))

    return block


def beside(module: str, function: str) -> Callable[[Mapping[str, Any]], Any]:
    """A function of a module beside this one; this page generator may be run or imported from anywhere."""
    found: Callable[[Mapping[str, Any]], Any] = runpy.run_path(str(Path(__file__).with_name(f"{module}.py")))[function]
    return found
