"""What the commands share: exit codes, options, and the ways to print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

DONE, NAMED_ERROR, UNEXPECTED, BUDGET_MISSED, INTERRUPTED = 0, 1, 3, 4, 130


def say(message: str, code: int) -> int:
    """Print to standard error; hands the exit code on."""
    click.echo(message, err=True)
    return code


def interrupted() -> int:
    """What a command says that goes on by itself; hands the exit code on."""
    return say("Interrupted; the same command goes on where this one was.", INTERRUPTED)


def console() -> Console:
    """Standard output; where it is no terminal, wide enough that tables are not folded."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def progress_console(as_json: bool) -> Console:
    """Where progress goes: beside the JSON, not into it."""
    from rich.console import Console

    return Console(stderr=as_json, highlight=False)


def print_json(data: Any) -> None:
    """Plain data to standard output."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def show(data: Any, as_json: bool, draw: Callable[[Any], RenderableType], page: Path | None = None) -> None:
    """Print plain data as JSON, or as ``draw`` draws it with where its page is."""
    if as_json:
        print_json(data)
        return
    console().print(draw(data))
    if page:
        click.echo(f"\nPictures: {page}")


def members(*families: str) -> Callable[..., list[str]]:
    """Shell completion with the names of one family, or several."""

    def complete(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
        from edgeprune import registry

        return [name for family in families for name in registry.names(family) if name.startswith(begun)]

    return complete


def separated(_context: click.Context, _parameter: click.Parameter, given: str | None) -> tuple[str, ...] | None:
    """``"b, a,b"`` -> ``("b", "a")``; None stays None."""
    return None if given is None else tuple(dict.fromkeys(word.strip() for word in given.split(",") if word.strip()))


def _pairs(_context: click.Context, _parameter: click.Parameter, words: Sequence[str]) -> dict[str, Any]:
    """``("stages.prune.final=0.6",)`` -> ``{"stages.prune.final": 0.6}``."""
    from edgeprune import yaml_files

    pairs = [word.partition("=") for word in words]
    for (key, equals, _), word in zip(pairs, words, strict=True):
        if not equals or not key:
            raise click.BadParameter(f"'{word}' is not KEY=VALUE, such as stages.prune.final=0.6.")
    return {key: yaml_files.scalar(value) for key, _, value in pairs}


Option = Callable[[Callable[..., Any]], Callable[..., Any]]

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON to standard output.")
board = click.option(
    "--board",
    metavar="USER@HOST",
    multiple=True,
    callback=lambda _context, _parameter, words: words or None,
    help="Run on this board (ssh), not on the emulator; an address, or a name in ~/.config/edgeprune/boards.yaml; repeatable.",
)
_BUDGETS = (
    click.option(
        "--max-drop",
        type=float,
        metavar="X",
        help="Largest loss of the metric against the float model, in its own unit.",
    ),
    click.option("--max-latency-ms", type=float, metavar="MS", help="Largest latency on the target."),
    click.option("--max-size-kib", type=float, metavar="KIB", help="Largest .tflite file."),
    click.option("--max-macs", type=float, metavar="N", help="Most multiply-accumulates for one sample."),
    click.option("--max-arena-kib", type=float, metavar="KIB", help="Largest memory of all that is not weights."),
    click.option(
        "--attempts",
        type=click.IntRange(1),
        metavar="N",
        help="Models that are trained at most to meet these; 1: only judge.  [default: the recipe's, 5]",
    ),
)
_GROUPS = (
    click.option("--include", metavar="REGEX", default=".*", help="Only groups or layers whose whole name matches."),
    click.option("--exclude", metavar="REGEX", help="No group or layer whose whole name matches."),
)


def _all(options: Sequence[Option]) -> Option:
    """Several options as one, in their order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


budgets = _all(_BUDGETS)  # what the final model must keep
groups = _all(_GROUPS)  # which channels may go
multiple = click.option(
    "--multiple",
    type=click.IntRange(1),
    metavar="N",
    help="Channels stay in multiples of this; 1: any count.  [default: the target's]",
)
quiet = click.option("--quiet", is_flag=True, help="No progress.")
trust = click.option("--trust", is_flag=True, help="Load a model that holds code of its author's (Lambda layers).")
target_help = "Where it will run: a name of `edgeprune list targets`, or a .yaml file."
target_or_rpi4 = click.option(
    "--target",
    metavar="TARGET",
    default="rpi4",
    show_default=True,
    shell_complete=members("targets"),
    help=target_help,
)
target = click.option(
    "--target", metavar="TARGET", shell_complete=members("targets"), help=f"{target_help}  [default: rpi4]"
)
data_help = ".npz, image folder, keras:name, tfds:name, or module:function."


def overrides(recipe: str = "the recipe") -> Option:
    """``--set``, of the recipe that it says."""
    about = f"Change a value of {recipe}; repeatable."
    return click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, callback=_pairs, help=about)


def recipe(
    about: str = "How: a name of `edgeprune list recipes` or `list methods`, or a .yaml file.  [default: the target's]",
) -> Option:
    """``--recipe``, and what it is for."""
    return click.option("--recipe", metavar="RECIPE", shell_complete=members("recipes", "methods"), help=about)


def samples(default: int, about: str) -> Option:
    """``--samples``: how many at most, and what they are for."""
    return click.option(
        "--samples", type=click.IntRange(1), metavar="N", default=default, show_default=True, help=about
    )


class WithRecipe(click.Command):
    """A command whose help ends with the example recipe."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from edgeprune.recipe import EXAMPLE

        super().format_epilog(ctx, formatter)
        with formatter.section("A recipe"):
            formatter.write("".join(f"  {line}\n" for line in EXAMPLE.splitlines()))
