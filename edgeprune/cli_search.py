"""``edgeprune search``: the Pareto front of metric, latency and size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from edgeprune.cli_options import (
    BUDGET_MISSED,
    DONE,
    as_json,
    board,
    data_help,
    groups,
    interrupted,
    members,
    multiple,
    overrides,
    progress_console,
    quiet,
    recipe,
    samples,
    say,
    separated,
    show,
    target_or_rpi4,
    trust,
)


def _limit(name: str, metavar: str, about: str) -> Callable[..., Any]:
    return click.option(name, type=click.FloatRange(min=0.0), metavar=metavar, help=about)


@click.command()
@click.argument("model", metavar="[MODEL|RUN]", required=False)
@click.option(
    "--data", metavar="DATA", help=f"{data_help}  [default: the run folder's, or what comes with a built-in model]"
)
@target_or_rpi4
@recipe("What the best are trained with; it has a shrink stage.  [default: shrink50]")
@click.option(
    "--sampler",
    metavar="NAME",
    default="tpe",
    show_default=True,
    shell_complete=members("samplers"),
    help="What is tried next: a name of `edgeprune list samplers`.",
)
@click.option(
    "--trials",
    type=click.IntRange(1),
    metavar="N",
    default=200,
    show_default=True,
    help="Candidates to judge, by all workers.",
)
@click.option(
    "--top",
    type=click.IntRange(0),
    metavar="K",
    default=4,
    show_default=True,
    help="Of the front, so many are trained in full.",
)
@_limit("--max-drop", "X", "Largest loss of the metric of what is trained, in its own unit.")
@_limit("--max-latency-ms", "MS", "Largest latency on the target; every candidate keeps it.")
@_limit("--max-size-kib", "KIB", "Largest .tflite file; every candidate keeps it.")
@_limit("--max-macs", "N", "Most multiply-accumulates; every candidate keeps it.")
@click.option(
    "--criteria",
    metavar="NAME,NAME...",
    default="fisher,l2",
    show_default=True,
    callback=separated,
    help="What may rank the channels: names of `edgeprune list criteria`.",
)
@click.option(
    "--zeros",
    metavar="WORD,WORD...",
    default="none",
    show_default=True,
    callback=separated,
    help="Zeros among the weights that stay: none, a share such as 'weight 0.5', or a pattern such as 2:4.",
)
@click.option(
    "--quantize",
    metavar="ptq,qat",
    callback=separated,
    help="Train each of the best in these ways.  [default: as the recipe does]",
)
@samples(1024, "Samples of the validation split to judge a candidate by, at most.")
@multiple
@click.option(
    "--floor",
    type=click.FloatRange(0, 1),
    metavar="X",
    default=0.0,
    show_default=True,
    help="Share of every group's channels that stays at least.",
)
@groups
@click.option(
    "--seed", type=click.IntRange(0), metavar="N", help="Of the study and its trainings.  [default: the recipe's]"
)
@click.option(
    "--storage",
    metavar="URL",
    envvar="EDGEPRUNE_STORAGE",
    help="Where the study is: the path of an SQLite file, or postgresql+psycopg://... or mysql+pymysql://...; better in the variable "
    "EDGEPRUNE_STORAGE, which others on this machine cannot read.  [default: OUT/study.db]",
)
@click.option("--name", metavar="NAME", help="Of the study in the storage.  [default: MODEL-TARGET]")
@click.option("--clone", metavar="NAME", help="Begin with the finished trials of another study in the storage.")
@click.option(
    "--export", type=click.IntRange(0), metavar="TRIAL", help="Write this trial's recipe and model, and search nothing."
)
@board
@click.option("--out", metavar="DIR", help="This machine's folder.  [default: runs/MODEL-search]")
@overrides()
@trust
@quiet
@as_json
def search(as_json: bool, quiet: bool, export: int | None, **words: Any) -> int:
    """Search for networks with the best metric at every latency and size.

    Candidates keep a count of channels for every group; each is judged without training, on the trained network with channels masked,
    and the best are then trained, quantized and converted in full. MODEL is as for `build`; of a run folder its float model is
    taken, and a model without weights is trained first. The same command once more, here or on another machine with the same
    --storage, is one more worker; one that is killed loses nothing that was finished. Of several boards each measures one network
    at a time.

    Writes search.json and a page with the front. Exits with 4 when no trained network keeps the limits.

    \b
    Examples:
      edgeprune search --max-latency-ms 2 --trials 100
      edgeprune search runs/demo --max-drop 0.01 --sampler nsga2
      edgeprune search model.keras --data data.npz --storage postgresql+psycopg://anna@db/studies
      edgeprune search runs/demo --export 17
    """
    from edgeprune import search_live, search_run, search_setup, search_view
    from edgeprune.api import DEMO_MODEL

    how = {name: words.pop(name) for name in ("out", "storage", "name", "clone", "trust")}
    boards: Sequence[str] = words.pop("board") or ()
    asked = search_setup.Asked(
        model=words.pop("model") or DEMO_MODEL,
        limits={name: most for name in search_setup.LIMITS if (most := words.pop(name)) is not None},
        **{name: value for name, value in words.items() if value is not None},
    )
    shown: search_setup.Display = search_live.Silent() if quiet else search_live.Board(progress_console(as_json))
    try:
        if export is not None:
            folder = search_run.export(
                search_setup.prepared(asked, display=shown, reading=True, **how), export, boards, how["trust"], shown
            )
            return say(f"Wrote {folder}", DONE)
        folder, result = search_run.run(asked, boards=boards, display=shown, **how)
    except KeyboardInterrupt:
        return interrupted()
    finally:
        shown.close()
    show(result, as_json, search_view.terminal, folder / search_run.HTML_NAME)
    if search_view.missed(result):
        return say(
            "No trained network keeps the limits; see the table, or search longer (--trials, --top).", BUDGET_MISSED
        )
    return DONE
