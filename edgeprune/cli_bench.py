"""``edgeprune bench``: leagues."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from edgeprune.cli_options import (
    DONE,
    NAMED_ERROR,
    as_json,
    data_help,
    interrupted,
    overrides,
    progress_console,
    quiet,
    say,
    separated,
    show,
    target_or_rpi4,
    trust,
)

Number = TypeVar("Number", int, float)


def _numbers(kind: Callable[[str], Number]) -> Callable[..., list[Number]]:
    """``"0,1,2"`` -> numbers."""

    def parsed(_context: click.Context, parameter: click.Parameter, given: str) -> list[Number]:
        try:
            return [kind(word.strip()) for word in given.split(",") if word.strip()]
        except ValueError as error:
            raise click.BadParameter(
                f"'{given}' are not numbers with commas between them, such as {parameter.metavar}."
            ) from error

    return parsed


def _seeds(context: click.Context, parameter: click.Parameter, given: str) -> list[int]:
    found = _numbers(int)(context, parameter, given)
    if not found or min(found) < 0:
        raise click.BadParameter(f"'{given}': give one seed or more, each 0 or above, such as 0,1,2.")
    return found


@click.group()
def bench() -> None:
    """Compare on equal terms."""


@bench.command()
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("--data", metavar="DATA", help=f"{data_help}  [default: what comes with a built-in model]")
@target_or_rpi4
@click.option("--epochs", type=click.IntRange(1), metavar="N", required=True, help="That every method trains in all.")
@click.option("--seeds", metavar="0,1,2", default="0", show_default=True, callback=_seeds, help="One build per seed.")
@click.option(
    "--sparsity",
    metavar="0.9,0.98",
    default="0.9",
    show_default=True,
    callback=_numbers(float),
    help="Shares that every method is asked to remove, of the weights or of the multiply-accumulates, 0..1.",
)
@click.option(
    "--methods", metavar="NAME,NAME...", callback=separated, help="Names of `edgeprune list methods`.  [default: all]"
)
@click.option("--jobs", type=click.IntRange(1), metavar="N", default=1, show_default=True, help="Builds side by side.")
@click.option("--out", metavar="DIR", help="Where everything goes.  [default: runs/MODEL-methods]")
@overrides("every recipe that has its stage")
@trust
@quiet
@as_json
def methods(as_json: bool, quiet: bool, sparsity: list[float], **words: Any) -> int:
    """Run every method's recipe on equal terms, and set them side by side.

    Everybody trains for the same number of epochs in all (those of a recipe's stages are scaled in proportion) and is asked for
    the same share to go, with every seed. MODEL is as for `build`; beside the methods stand the network untouched, in float
    and as int8, trained as long.

    Writes methods.json and a page with the Pareto front. A league that was interrupted or killed goes on where it was when the
    same command is given again, in the middle of a build too; further methods, seeds and shares are added in the same way.
    Exits with 1 when a method failed; the others are compared all the same.

    \b
    Examples:
      edgeprune bench methods --epochs 30
      edgeprune bench methods lenet5 --data mnist.npz --epochs 30 --seeds 0,1,2 --sparsity 0.9,0.98 --jobs 2
      edgeprune bench methods model.keras --data data.npz --epochs 10 --methods one-shot,gradual --out runs/league
    """
    from edgeprune import bench_live, bench_run, bench_view

    shown = bench_run.Silent() if quiet else bench_live.Board(progress_console(as_json))
    try:
        folder, result = bench_run.run(shares=sparsity, display=shown, **words)
    except KeyboardInterrupt:
        return interrupted()
    finally:
        shown.close()
    show(result, as_json, bench_view.terminal, folder / bench_run.HTML_NAME)
    return _code(result)


def _code(result: Mapping[str, Any]) -> int:
    count = len(result["failures"])
    return say(f"{count} of {result['planned']} builds failed; see above.", NAMED_ERROR) if count else DONE
