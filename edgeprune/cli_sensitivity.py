"""``edgeprune sensitivity``: what each group of channels costs to lose."""

from __future__ import annotations

from typing import Any

import click

from edgeprune.cli_options import (
    DONE,
    as_json,
    console,
    data_help,
    groups,
    interrupted,
    members,
    multiple,
    print_json,
    quiet,
    recipe,
    samples,
    target_or_rpi4,
    trust,
)


@click.command()
@click.argument("model", metavar="MODEL|RUN")
@click.option("--data", metavar="DATA", help=f"{data_help}  [default: the run folder's]")
@target_or_rpi4
@click.option(
    "--criterion",
    metavar="NAME",
    default="fisher",
    show_default=True,
    shell_complete=members("criteria"),
    help="What ranks the channels of a group: a name of `edgeprune list criteria`.",
)
@click.option(
    "--ratios",
    metavar="R,R...",
    default="0.1,0.25,0.5,0.75,0.9",
    show_default=True,
    help="Shares of a group's channels to remove, 0..1.",
)
@samples(1024, "Samples of the validation split to judge by, at most; the test split is never touched.")
@groups
@multiple
@click.option(
    "--max-drop",
    type=float,
    metavar="X",
    help="Write ratios.yaml: for each group the largest ratio that alone costs at most this, in the metric's own unit.",
)
@click.option("--seed", type=click.IntRange(0), metavar="N", help="Of the splits.  [default: the recipe's]")
@recipe("Whose `data` and `metric` hold.  [default: the run folder's]")
@click.option("--out", metavar="DIR", help="Where everything goes.  [default: runs/MODEL-sensitivity]")
@trust
@quiet
@as_json
def sensitivity(as_json: bool, quiet: bool, ratios: str, recipe: str | None, **words: Any) -> int:
    """Show what each group of channels costs to lose.

    Cuts one group after another at several ratios, takes the metric without any training, and sets beside it the
    multiply-accumulates and parameters that the cut saves. MODEL is trained, and as for `build`; of a run folder its float
    model is taken. Writes sensitivity.json and a page with pictures. A run that was interrupted goes on where it was when the
    same command is given again.

    \b
    Examples:
      edgeprune sensitivity model.keras --data data.npz --target rpi4
      edgeprune sensitivity runs/demo --max-drop 0.01
      edgeprune build model.keras --data data.npz --recipe mine.yaml --set stages.shrink.ratios=runs/demo-sensitivity/ratios.yaml
    """
    from edgeprune import progress, sensitivity_run, sensitivity_view, tables
    from edgeprune import sensitivity as analysis

    shown = progress.choose(quiet, as_json)
    try:
        folder, result = sensitivity_run.run(
            ratios=analysis.parsed_ratios(ratios), settings=recipe, progress=shown, **words
        )
    except KeyboardInterrupt:
        return interrupted()
    finally:
        shown.close()
    if as_json:
        print_json(result)
        return DONE
    console().print(tables.sensitivity(result))
    if result["chosen"] is not None:
        click.echo(f"\n{(folder / sensitivity_run.RATIOS_NAME).read_text(encoding='utf-8')}")
        click.echo(f"To use them: {sensitivity_view.usage(result, str(folder))}")
    click.echo(f"\nPictures: {folder / sensitivity_run.HTML_NAME}")
    return DONE
