"""The command line: parse, call one function, print. Whatever a command needs is imported inside it, so that ``--help``
answers at once and nothing but ``build``, ``verify``, ``sensitivity``, and ``inspect`` and ``check`` of a model ever waits for TensorFlow.

Exit codes: 0 done, 1 a named error, 2 usage, 3 unexpected (with a log file), 4 a budget was missed, 130 interrupted.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import edgeprune
from edgeprune import cli_bench, cli_emulator, cli_search, cli_sensitivity, registry
from edgeprune.cli_options import (
    BUDGET_MISSED,
    DONE,
    INTERRUPTED,
    NAMED_ERROR,
    UNEXPECTED,
    WithRecipe,
    as_json,
    board,
    budgets,
    console,
    data_help,
    overrides,
    print_json,
    quiet,
    recipe,
    samples,
    say,
    show,
    target,
    target_or_rpi4,
    trust,
)
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from edgeprune.target import Target


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
        return say("Interrupted.", INTERRUPTED)
    except EdgepruneError as error:
        return say(f"Error: {error}", NAMED_ERROR)
    except Exception as error:
        from edgeprune import crash

        log = crash.write(error, arguments)
        return say(
            f"Unexpected {type(error).__name__}: {error}\nThis is a bug of edgeprune; please report it with {log}",
            UNEXPECTED,
        )
    return code or DONE


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(edgeprune.__version__, message="edgeprune %(version)s")
def cli() -> None:
    """Prune and quantize a Keras model for a board: an int8 .tflite that keeps the accuracy, and the proof that it does.

    \b
      edgeprune build --target rpi4                                     the built-in demo
      edgeprune build model.h5 --data data.npz --target rpi4            your own
      edgeprune report runs/model-rpi4-rpi4                              what came out

    Exit codes: 0 done, 1 a named error, 2 usage, 3 unexpected (with a log file), 4 a budget was missed, 130 interrupted
    (go on with --resume).
    """


@cli.command(cls=WithRecipe)
@click.argument("model", required=False)
@click.option("--data", metavar="DATA", help=data_help)
@target
@recipe()
@click.option("--out", metavar="DIR", help="The run folder.  [default: runs/MODEL-TARGET-RECIPE]")
@overrides()
@budgets
@board
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the interrupted build in the run folder; without --out: the only one in runs/.",
)
@click.option("--force", is_flag=True, help="Replace another run in the run folder.")
@trust
@quiet
@as_json
@click.pass_obj
def build(command: str, as_json: bool, quiet: bool, **words: Any) -> int:
    """Make an int8 .tflite of a model.

    Takes or trains MODEL, prunes it, quantizes it, converts it, proves it and profiles it for a target. MODEL is a .keras
    or .h5 file of Keras 2 or 3, a SavedModel folder, module:function, or a name of `edgeprune list models`. Without it:
    the model that the folder's edgeprune.yaml names (see `edgeprune init`), else the built-in demo.

    \b
    Examples:
      edgeprune build --target rpi4
      edgeprune build resnet8.h5 --data cifar10.npz --target rpi4 --max-latency-ms 4 --max-drop 0.01
      edgeprune build model.keras --data data.npz --set stages.prune.final=0.6 --out runs/sixty
    """
    from edgeprune import api, progress, project, report_terminal

    settled = project.settle(Path(), words)
    shown = progress.choose(quiet, as_json)
    try:
        result = api.build(**settled, progress=shown, command=command)
    except KeyboardInterrupt:
        out = f" --out {shlex.quote(settled['out'])}" if settled.get("out") else ""
        return say(f"Interrupted; resume with: edgeprune build --resume{out}", INTERRUPTED)
    finally:
        shown.close()
    if as_json:
        print_json(result.report)
    else:
        report_terminal.terminal(result.report, console(), result.folder)
    if result.missed:
        return say(
            f"Budget missed: {', '.join(result.missed)}. The model was written all the same: {result.tflite}",
            BUDGET_MISSED,
        )
    return DONE


@cli.command()
@click.argument("file", metavar="FILE.tflite")
@target_or_rpi4
@board
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads to run it with.  [default: the target's]")
@click.option(
    "--built-in",
    is_flag=True,
    help="With the runtime's built-in kernels, where it would take a delegate's (XNNPACK, for float models).",
)
@as_json
@click.pass_context
def profile(
    context: click.Context,
    file: str,
    target: str,
    board: Sequence[str] | None,
    threads: int | None,
    built_in: bool,
    as_json: bool,
) -> int:
    """Say how long a .tflite takes on a target, and where the time goes, op by op.

    On a board it is measured. Without one it runs on the target's emulator, and the latency is predicted from the cycles that
    it takes there, with the error that was validated on published latencies; without the emulator, from its shapes. Several
    boards are measured at once; one that fails is named (exit 1), and the others are shown all the same.

    \b
    Examples:
      edgeprune profile model.tflite --target rpi4
      edgeprune profile model.tflite --target rpi4 --board pi@raspberrypi.local --threads 4 --json
      edgeprune profile model.tflite --board kitchen --board garden
    """
    from edgeprune import boards, profiling, progress, registry, tables
    from edgeprune import target as targets

    given = target if context.get_parameter_source("target") == click.core.ParameterSource.COMMANDLINE else None
    named = [boards.target(word, given, target) for word in board or ()]
    shown = progress.choose(json=as_json)
    resolver: Any = "without_delegates" if built_in else "default"
    if len(named) > 1:
        from edgeprune import fleet

        found = fleet.profile(Path(file), fleet.places(board or (), named), threads, shown, resolver=resolver)
        show({"boards": found}, as_json, tables.profiles)
        return NAMED_ERROR if any("error" in figures for figures in found) else DONE
    facts = targets.load(registry.file("targets", named[0] if named else target))
    try:
        place = targets.connection(facts, board[0] if board else None)
        figures = profiling.profile(Path(file), facts, place, threads, shown, resolver=resolver)
    finally:
        shown.close()
    show(figures, as_json, tables.profile)
    return DONE


@cli.command()
@click.argument("file", metavar="FILE.tflite|MODEL")
@click.option("--groups", is_flag=True, help="Of a Keras model: which channels can only be removed together.")
@trust
@as_json
def inspect(file: str, groups: bool, trust: bool, as_json: bool) -> None:
    """Show what a .tflite or a Keras model holds.

    Of a .tflite file: ops, data types, MACs, zeros, n:m, and what breaks the int8 guarantee. Of a Keras model: its layers
    with shapes, parameters, MACs and zeros; with --groups its coupled channels, which of them can be cut, and which blocks
    can be removed whole.

    \b
    Examples:
      edgeprune inspect runs/demo/model.tflite
      edgeprune inspect resnet8.h5 --json
      edgeprune inspect resnet8.h5 --groups
    """
    from edgeprune import tables

    if file.endswith(".tflite"):
        from edgeprune import tflite

        if groups:
            raise click.UsageError("--groups goes with a Keras model: a .tflite file's channels cannot be removed.")
        show(tflite.inventory(tflite.read(Path(file))), as_json, tables.tflite)
    elif groups:
        from edgeprune.keras import channel_graph, intake

        show(channel_graph.inventory(intake.named(file, trust)[0]), as_json, tables.groups)
    else:
        from edgeprune.keras import inspect as keras_inspect

        show(keras_inspect.inventory(file, trust), as_json, tables.keras)


@cli.command()
@click.argument("file", metavar="MODEL|FILE.tflite")
@target_or_rpi4
@click.option("--data", metavar="DATA", help=f"Samples for the ranges; without it seeded noise. {data_help}")
@click.option(
    "--require-mapped",
    is_flag=True,
    help="Of a .tflite, on a target with an accelerator: exit with 4 when an op stays on the CPU.",
)
@trust
@as_json
def check(file: str, target: str, data: str | None, require_mapped: bool, trust: bool, as_json: bool) -> int:
    """Say what becomes of every layer on the way to int8, and why not.

    Of a Keras model: whether each layer can be pruned, can lose channels, is trained with fake quantizers, and is int8 in
    the file; for that the model is converted once, untrained. Of a .tflite file: which ops are int8, which are not,
    and what breaks the int8 guarantee; on a target with an accelerator also which ops it takes, why not the others and what to
    change, the memory that takes, and the predicted latency.

    \b
    Examples:
      edgeprune check model.keras --target rpi4
      edgeprune check runs/demo/model.tflite --json
      edgeprune check runs/demo/model.tflite --target coral-usb --require-mapped
    """
    from edgeprune import registry, tables
    from edgeprune import target as targets

    facts = targets.load(registry.file("targets", target))
    if file.endswith(".tflite"):
        return _check_file(Path(file), facts, require_mapped, as_json)
    if require_mapped:
        raise click.UsageError("--require-mapped goes with a .tflite file.")
    from edgeprune.keras import check as checks

    show(checks.check(file, facts, trust, data), as_json, tables.check_model)
    return DONE


def _check_file(path: Path, target: Target, require_mapped: bool, as_json: bool) -> int:
    """Of a .tflite: on an accelerator where the target has one."""
    from edgeprune import checking, tables, tables_accelerator

    if require_mapped and target.delegate is None:
        raise click.UsageError(
            f"--require-mapped goes with a target that has an accelerator, and '{target.name}' has none."
        )
    found = checking.check(path, target)
    show(found, as_json, tables.check_file if target.delegate is None else tables_accelerator.check)
    left = found["summary"].get("cpu", 0)
    if require_mapped and left:
        return say(f"{left} of {found['summary']['ops']} ops stay on the CPU (--require-mapped).", BUDGET_MISSED)
    return DONE


@cli.command()
@click.argument("model", metavar="MODEL")
@click.argument("file", metavar="FILE.tflite")
@click.option("--data", metavar="DATA", required=True, help=data_help)
@samples(32, "Samples to compare on.")
@click.option(
    "--min-snr",
    type=float,
    metavar="DB",
    default=10.0,
    show_default=True,
    help="Signal-to-noise ratio below which a layer is bad, dB.",
)
@recipe("Whose `data` block says how DATA is read (preprocess, split).  [default: the run folder's]")
@trust
@as_json
def verify(
    model: str, file: str, data: str, samples: int, min_snr: float, recipe: str | None, trust: bool, as_json: bool
) -> int:
    """Compare a .tflite with its Keras model, layer by layer.

    Prints the signal-to-noise ratio of every layer, names the first op that loses the signal, and says what to do about
    it. MODEL is as for `build`, or a run folder: that one knows the pruned and trained model which its file was made of.

    Exits with 1 when an output of the file loses the signal, or an op computes something else than its layer; a bad layer
    whose loss does not reach an output is only named.

    \b
    Examples:
      edgeprune verify runs/demo runs/demo/model.tflite --data keras:cifar10
      edgeprune verify model.keras model.tflite --data data.npz --samples 64 --json
    """
    from edgeprune import tables, verification

    found = verification.verify(
        model, Path(file), data, samples=samples, min_snr_db=min_snr, settings=recipe, trust=trust
    )
    show(found, as_json, tables.verify)
    if found["holds"]:
        return DONE
    first = found["first_bad"]
    return say(f"Error: {file} does not compute what {model} does. First bad: {tables.bad_words(first)}", NAMED_ERROR)


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
        print_json(loaded)
    else:
        folder = Path(run) if Path(run).is_dir() else Path(run).parent
        report_terminal.terminal(loaded, console(), folder)


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
        print_json(comparison)
    else:
        report_terminal.compare_terminal(comparison, console())


@cli.command("list")
@click.argument("family", metavar="FAMILY", type=click.Choice(registry.families()), required=False)
@click.option("--schema", is_flag=True, help="With `recipes`: print the JSON Schema of a recipe file, for editors.")
@as_json
def list_(family: str | None, schema: bool, as_json: bool) -> None:
    """List what can be named.

    Prints the members of a family with what each is for; without FAMILY, of all. FAMILY is one of backends, criteria,
    distributions, gates, methods, models, penalties, recipes, samplers, schedules, stages, targets.

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
        print_json(recipe.json_schema())
    elif family == "methods":
        show(catalogue.methods(), as_json, tables.methods)
    elif family:
        show(catalogue.describe(family), as_json, tables.words)
    else:
        show(catalogue.everything(), as_json, tables.families)


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
    "--model",
    metavar="MODEL",
    help=".keras, .h5, SavedModel folder, or module:function.  [default: the folder's only model file]",
)
@click.option("--data", metavar="DATA", help=f"{data_help}  [default: the folder's only .npz]")
@target
@recipe()
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


cli.add_command(cli_bench.bench)
cli.add_command(cli_emulator.emulator)
cli.add_command(cli_search.search)
cli.add_command(cli_sensitivity.sensitivity)
