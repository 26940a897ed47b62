"""Write the generated parts of the documentation, or say which are out of date.

    python docs/generate.py            write (``make docs``)
    python docs/generate.py --check    exit 1 when something is out of date (``make check`` and a test)

``cli.md`` and ``recipe.schema.json`` are generated whole. In the other pages everything between ``<!-- begin NAME -->`` and
``<!-- end NAME -->`` is; the rest is written by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from edgeprune import cli, files, recipe

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))  # this file may be run or imported from anywhere

import page_figures  # noqa: E402
import page_reference  # noqa: E402
import page_samplers  # noqa: E402
from page_parts import RESULTS, beside, results  # noqa: E402

WIDTH = 100  # of help texts, characters
BLOCK = re.compile(r"(<!-- begin (?P<name>\S+) -->\n).*?(<!-- end (?P=name) -->)", re.DOTALL)
BLOCKS = {**page_reference.BLOCKS, **page_figures.BLOCKS, **page_samplers.BLOCKS}


def pages() -> dict[Path, str]:
    """Every page that has a generated part -> its whole text as it must be."""
    found = {
        DOCS / "cli.md": cli_page(),
        DOCS / "recipe.schema.json": json.dumps(recipe.json_schema(), indent=2) + "\n",
    }
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if BLOCK.search(text):
            found[path] = BLOCK.sub(lambda match: f"{match[1]}\n{BLOCKS[match['name']]().strip()}\n\n{match[3]}", text)
    if DOCS / "league.md" in found and (RESULTS / "criteria_league.json").exists():
        found[DOCS / "pictures" / "criteria_league.svg"] = beside("league", "picture")(results("criteria_league"))
    if DOCS / "samplers.md" in found and (RESULTS / "search_samplers.json").exists():
        found[DOCS / "pictures" / "samplers.svg"] = beside("searches", "picture")(results("search_samplers"))
    if DOCS / "methods.md" in found and (RESULTS / "methods.json").exists():
        drawn = beside("methods_league", "pictures")(results("methods"))
        found |= {DOCS / "pictures" / name: text for name, text in drawn.items()}
    return found


def outdated() -> list[Path]:
    """The pages that are not as they must be; how lines are folded does not count, since that is click's to decide."""
    return [
        path
        for path, text in pages().items()
        if not path.exists() or path.read_text(encoding="utf-8").split() != text.split()
    ]


def cli_page() -> str:
    """Every command's ``--help``."""
    parts = ["# Command line\n\nGenerated from `--help` by `make docs`.\n"]
    for words, text in _helps(
        cli.cli, click.Context(cli.cli, info_name="edgeprune", terminal_width=WIDTH, **cli.cli.context_settings)
    ):
        parts.append(f"## {words}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def _helps(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    yield context.command_path, "\n".join(line.rstrip() for line in context.get_help().splitlines())
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from _helps(inner, click.Context(inner, info_name=name, parent=context, terminal_width=WIDTH))


def main() -> int:
    """Write, or with ``--check`` compare."""
    if "--check" in sys.argv[1:]:
        stale = outdated()
        for path in stale:
            click.echo(f"docs/{path.name} is out of date; write it anew with: make docs", err=True)
        return 1 if stale else 0
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        files.write_text_atomic(path, text)
        click.echo(f"wrote docs/{path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
