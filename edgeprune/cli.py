"""The command line: parse, call one function, print. Whatever a command needs is imported inside it, so that ``--help``
answers at once and nothing but ``build`` and ``inspect MODEL`` ever waits for TensorFlow.

Exit codes: 0 done, 1 a named error, 2 usage, 3 unexpected (with a log file), 4 a budget was missed, 130 interrupted.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import edgeprune
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

DONE, NAMED_ERROR, UNEXPECTED, BUDGET_MISSED, INTERRUPTED = 0, 1, 3, 4, 130
FAMILIES = ("backends", "criteria", "models", "recipes", "schedules", "stages", "targets")


def main() -> None:
    """The console script."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped container may resume too
    sys.path.append(str(Path.cwd()))  # for module:function; last, so that it hides nothing that is installed
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Do what the arguments say and return the exit code; errors are printed to stderr."""
    try:
        code: int | None = cli.main(
            list(arguments), "edgeprune", standalone_mode=False, obj=shlex.join(["edgeprune", *arguments])
        )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _say("Interrupted.", INTERRUPTED)
    except EdgepruneError as error:
        return _say(f"Error: {error}", NAMED_ERROR)
    except Exception as error:
        from edgeprune import crash

        log = crash.write(error, arguments)
        return _say(
            f"Unexpected {type(error).__name__}: {error}\nThis is a bug of edgeprune; please report it with {log}",
            UNEXPECTED,
        )
    return code or DONE


def _say(message: str, code: int) -> int:
    click.echo(message, err=True)
    return code


def _console() -> Console:
    """Standard output; where it is no terminal, wide enough that tables are not folded."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def _print_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def _show(data: Any, as_json: bool, draw: Callable[[Any], RenderableType]) -> None:
    """Print plain data as JSON, or as ``draw`` draws it."""
    _print_json(data) if as_json else _console().print(draw(data))


def _members(family: str) -> Callable[..., list[str]]:
    """Shell completion with a family's names."""

    def complete(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
        from edgeprune import registry

        return [name for name in registry.names(family) if name.startswith(begun)]

    return complete


def _overrides(_context: click.Context, _parameter: click.Parameter, words: Sequence[str]) -> dict[str, Any]:
    """``("stages.prune.final=0.6",)`` -> ``{"stages.prune.final": 0.6}``."""
    from edgeprune import yaml_files

    pairs = [word.partition("=") for word in words]
    for (key, equals, _), word in zip(pairs, words, strict=True):
        if not equals or not key:
            raise click.BadParameter(f"'{word}' is not KEY=VALUE, such as stages.prune.final=0.6.")
    return {key: yaml_files.scalar(value) for key, _, value in pairs}


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON to standard output.")
board = click.option("--board", metavar="USER@HOST", help="Run on this board (ssh), not on the emulator.")
target_help = "Where it will run: a name of `edgeprune list targets`, or a .yaml file."
recipe_help = "How: a name of `edgeprune list recipes`, or a .yaml file."
data_help = ".npz, image folder, keras:name, tfds:name, or module:function."


class _WithRecipe(click.Command):
    """A command whose help ends with the example recipe."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from edgeprune.recipe import EXAMPLE

        super().format_epilog(ctx, formatter)
        with formatter.section("A recipe"):
            formatter.write("".join(f"  {line}\n" for line in EXAMPLE.splitlines()))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(edgeprune.__version__, message="edgeprune %(version)s")
def cli() -> None:
    """Prune and quantize a Keras model for a board: an int8 .tflite that keeps the accuracy, and the proof that it does.

    \b
      edgeprune build --target rpi4                                     the built-in demo
      edgeprune build model.h5 --data data.npz --target rpi4            your own
      edgeprune report runs/model-rpi4-poly50                             what came out

    Exit codes: 0 done, 1 a named error, 2 usage, 3 unexpected (with a log file), 4 a budget was missed, 130 interrupted
    (go on with --resume).
    """


@cli.command(cls=_WithRecipe)
@click.argument("model", required=False)
@click.option("--data", metavar="DATA", help=data_help)
@click.option("--target", metavar="TARGET", shell_complete=_members("targets"), help=f"{target_help}  [default: rpi4]")
@click.option(
    "--recipe", metavar="RECIPE", shell_complete=_members("recipes"), help=f"{recipe_help}  [default: poly50]"
)
@click.option("--out", metavar="DIR", help="The run folder.  [default: runs/MODEL-TARGET-RECIPE]")
@click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    callback=_overrides,
    help="Change a value of the recipe; repeatable.",
)
@click.option(
    "--max-drop", type=float, metavar="X", help="Largest loss of the metric against the float model, in its own unit."
)
@click.option("--max-size-kib", type=float, metavar="KIB", help="Largest .tflite file.")
@click.option("--max-latency-ms", type=float, metavar="MS", help="Largest latency on the target.")
@board
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the interrupted build in the run folder; without --out: the only one in runs/.",
)
@click.option("--force", is_flag=True, help="Replace another run in the run folder.")
@click.option("--trust", is_flag=True, help="Load a model that holds code of its author's (Lambda layers).")
@click.option("--quiet", is_flag=True, help="No progress.")
@as_json
@click.pass_obj
def build(command: str, as_json: bool, quiet: bool, **words: Any) -> int:
    """Make an int8 .tflite of a model.

    Takes or trains MODEL, prunes it, quantizes it, converts it, proves it and profiles it for a target. MODEL is a .keras
    or .h5 file, module:function, or a name of `edgeprune list models`. Without it: the model that the folder's
    edgeprune.yaml names (see `edgeprune init`), else the built-in demo.

    \b
    Examples:
      edgeprune build --target rpi4
      edgeprune build resnet8.h5 --data cifar10.npz --target rpi4 --recipe poly50 --max-drop 0.01
      edgeprune build model.keras --data data.npz --set stages.prune.final=0.6 --out runs/sixty
    """
    from edgeprune import api, progress, project, report_terminal

    settled = project.settle(Path(), words)
    shown = progress.choose(quiet, as_json)
    try:
        result = api.build(**settled, progress=shown, command=command)
    except KeyboardInterrupt:
        out = f" --out {shlex.quote(settled['out'])}" if settled.get("out") else ""
        return _say(f"Interrupted; resume with: edgeprune build --resume{out}", INTERRUPTED)
    finally:
        shown.close()
    if as_json:
        _print_json(result.report)
    else:
        report_terminal.terminal(result.report, _console(), result.folder)
    if result.missed:
        return _say(
            f"Budget missed: {', '.join(result.missed)}. The model was written all the same: {result.tflite}",
            BUDGET_MISSED,
        )
    return DONE


@cli.command()
@click.argument("file", metavar="FILE.tflite")
@click.option(
    "--target",
    metavar="TARGET",
    default="rpi4",
    show_default=True,
    shell_complete=_members("targets"),
    help=target_help,
)
@board
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads to run it with.  [default: the target's]")
@as_json
def profile(file: str, target: str, board: str | None, threads: int | None, as_json: bool) -> None:
    """Run a .tflite on a target's kernels.

    On a board it is measured; on its emulator everything but the latency, which emulation does not tell.

    \b
    Examples:
      edgeprune profile model.tflite --target rpi4
      edgeprune profile model.tflite --target rpi4 --board pi@raspberrypi.local --threads 4 --json
    """
    from edgeprune import profiling, progress, registry, tables
    from edgeprune import target as targets

    facts = targets.load(registry.file("targets", target))
    shown = progress.choose(json=as_json)
    try:
        figures = profiling.profile(Path(file), facts, targets.connection(facts, board), threads, shown)
    finally:
        shown.close()
    _show(figures, as_json, tables.profile)


@cli.command()
@click.argument("file", metavar="FILE.tflite|MODEL")
@click.option("--trust", is_flag=True, help="Load a model that holds code of its author's (Lambda layers).")
@as_json
def inspect(file: str, trust: bool, as_json: bool) -> None:
    """Show what a .tflite or a Keras model holds.

    Of a .tflite file: ops, data types, MACs, zeros, n:m, and what is left in float. Of a Keras model: its layers with shapes,
    parameters, MACs and zeros.

    \b
    Examples:
      edgeprune inspect runs/demo/model.tflite
      edgeprune inspect resnet8.h5 --json
    """
    from edgeprune import tables

    if file.endswith(".tflite"):
        from edgeprune import tflite

        _show(tflite.inventory(tflite.read(Path(file))), as_json, tables.tflite)
    else:
        from edgeprune.keras import inspect as keras_inspect

        _show(keras_inspect.inventory(file, trust), as_json, tables.keras)


@cli.command()
@click.argument("run", metavar="RUN")
@click.option("--page", metavar="FILE.html", help="Draw the page anew, into this file.")
@as_json
def report(run: str, page: str | None, as_json: bool) -> None:
    """Show the report of a run.

    RUN is a run folder or its report.json.

    \b
    Example:
      edgeprune report runs/demo
    """
    from edgeprune import files, report_terminal
    from edgeprune import report as reports

    loaded = reports.load(run)
    if page:
        files.write_text_atomic(page, reports.html(loaded))
    if as_json:
        _print_json(loaded)
    else:
        folder = Path(run) if Path(run).is_dir() else Path(run).parent
        report_terminal.terminal(loaded, _console(), folder)


@cli.command()
@click.argument("runs", metavar="RUN RUN...", nargs=-1, required=True)
@click.option("--page", metavar="FILE.html", help="Write the comparison as a page too.")
@as_json
def compare(runs: Sequence[str], page: str | None, as_json: bool) -> None:
    """Set two or more runs side by side.

    \b
    Example:
      edgeprune compare runs/dense runs/fifty runs/two-of-four --page compare.html
    """
    from edgeprune import files, report_compare, report_html, report_terminal
    from edgeprune import report as reports

    if len(runs) < 2:
        raise click.UsageError("Give two or more runs.")
    comparison = report_compare.compare([reports.load(run) for run in runs])
    if page:
        files.write_text_atomic(page, report_html.compare_html(comparison))
    if as_json:
        _print_json(comparison)
    else:
        report_terminal.compare_terminal(comparison, _console())


@cli.command("list")
@click.argument("family", metavar="FAMILY", type=click.Choice(FAMILIES), required=False)
@click.option("--schema", is_flag=True, help="With `recipes`: print the JSON Schema of a recipe file, for editors.")
@as_json
def list_(family: str | None, schema: bool, as_json: bool) -> None:
    """List what can be named.

    Prints the members of a family with what each is for; without FAMILY, of all. FAMILY is one of backends, criteria,
    models, recipes, schedules, stages, targets.

    \b
    Examples:
      edgeprune list targets
      edgeprune list recipes --schema > recipe.schema.json
    """
    from edgeprune import catalogue, tables

    if schema:
        from edgeprune import recipe

        if family != "recipes":
            raise click.UsageError("--schema goes with `edgeprune list recipes`.")
        _print_json(recipe.json_schema())
    elif family:
        _show(catalogue.describe(family), as_json, tables.words)
    else:
        _show(catalogue.everything(), as_json, tables.families)


@cli.command()
@as_json
def doctor(as_json: bool) -> int:
    """Say what is missing, and how to get it.

    Asks for the Python version, every dependency, the emulator and disk space. Exits with 1 when `build` lacks something.
    """
    from edgeprune import doctor as checks

    found = checks.run()
    click.echo(json.dumps(checks.as_json(found), indent=2) if as_json else checks.as_text(found))
    return DONE if checks.ready(found) else NAMED_ERROR


@cli.command()
@click.option(
    "--model", metavar="MODEL", help=".keras, .h5, or module:function.  [default: the folder's only model file]"
)
@click.option("--data", metavar="DATA", help=f"{data_help}  [default: the folder's only .npz]")
@click.option("--target", metavar="TARGET", shell_complete=_members("targets"), help=f"{target_help}  [default: rpi4]")
@click.option(
    "--recipe", metavar="RECIPE", shell_complete=_members("recipes"), help=f"{recipe_help}  [default: poly50]"
)
@click.option("--force", is_flag=True, help="Replace the edgeprune.yaml that is there.")
def init(force: bool, **words: str | None) -> None:
    """Write a commented edgeprune.yaml.

    Plain `edgeprune build` in this folder then builds what the file names; words on the command line win over it.

    \b
    Example:
      edgeprune init --model resnet8.h5 --data cifar10.npz && edgeprune build
    """
    from edgeprune import project

    click.echo(f"Wrote {project.init(Path(), words, force)}; now: edgeprune build")


@cli.group()
def emulator() -> None:
    """The Arm board without a board.

    QEMU, an arm64 Python and the TFLite runtimes, in the user's cache.
    """


@emulator.command()
@click.option("--force", is_flag=True, help="Build it anew even if it is there.")
def install(force: bool) -> None:
    """Fetch and check the emulator; needs no root.

    What is installed already and whole is kept.
    """
    from edgeprune import progress, registry

    shown = progress.choose()
    try:
        click.echo(
            f"The Arm emulator is installed in {registry.module('backends', 'qemu').install(shown, force).folder}"
        )
    finally:
        shown.close()


@emulator.command()
@click.option("--verify", is_flag=True, help="Compare the checksum of every file.")
@as_json
def status(verify: bool, as_json: bool) -> int:
    """Say what of the emulator is installed, and where.

    Exits with 1 when it is missing or damaged.
    """
    from edgeprune import registry, tables

    found = registry.module("backends", "qemu").status(verify)
    _show(found, as_json, tables.facts)
    return DONE if found["installed"] and not found.get("damaged") else NAMED_ERROR


@emulator.command()
def remove() -> None:
    """Delete the emulator from the cache."""
    from edgeprune import registry

    removed = registry.module("backends", "qemu").remove()
    click.echo("The Arm emulator was removed." if removed else "The Arm emulator was not installed.")
