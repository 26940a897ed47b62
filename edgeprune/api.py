"""``build``: from a model, data and a target to a run folder; the one function behind the command line and notebooks."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import edgeprune
from edgeprune import (
    boards,
    budget_run,
    data_fit,
    files,
    metrics,
    pipeline,
    profiling,
    progress,
    recipe,
    registry,
    report,
    report_html,
    yaml_files,
)
from edgeprune import data as datasets
from edgeprune import target as targets
from edgeprune.errors import DataError, RunFolderError

DEMO_MODEL = "digits-resnet"
DEFAULT_TARGET = "rpi4"
RUN_FILE = "run.json"
RECIPE_FILE = "recipe.yaml"
MODEL_FILE = "input/model.keras"
OWN = (
    "stages",
    budget_run.FOLDER,
    budget_run.FOUND,
    "input",
    "model.tflite",
    "model.keras",
    "report.json",
    "report.html",
    RECIPE_FILE,
    RUN_FILE,
)


@dataclass(frozen=True)
class Result:
    """A finished build.

    Attributes:
        folder: the run folder.
        report: what report.json holds.
        missed: names of the budgets that the model does not keep; empty when all are met.
    """

    folder: Path
    report: dict[str, Any]
    missed: tuple[str, ...]

    @property
    def tflite(self) -> Path:
        """The int8 model."""
        return self.folder / "model.tflite"

    def _repr_html_(self) -> str:
        return report_html.notebook_html(self.report)


class _Words(NamedTuple):
    """What decides a build, as plain words; written to run.json, so that a resumed build starts from the same ones."""

    model: str
    data: str | None
    target: str
    trained: bool
    digest: str
    created: str
    command: str | None
    notes: Sequence[str] = ()


def build(
    model: Any = None,
    data: Any = None,
    *,
    target: str | None = None,
    recipe: str | Path | Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    max_drop: float | None = None,
    max_size_kib: float | None = None,
    max_latency_ms: float | None = None,
    max_macs: float | None = None,
    max_arena_kib: float | None = None,
    attempts: int | None = None,
    board: str | Sequence[str] | None = None,
    resume: bool = False,
    force: bool = False,
    trust: bool = False,
    progress: progress.Progress | None = None,
    command: str | None = None,
    shared: pipeline.Shared | None = None,
) -> Result:
    """Make the smallest int8 TFLite model of a Keras model that keeps its accuracy, and prove it on the target.

    >>> import edgeprune
    >>> result = edgeprune.build(model, (x, y), target="rpi4", overrides={"stages.prune.final": 0.6})  # doctest: +SKIP

    Args:
        model: a live model of tf_keras or Keras 3, the path of a ``.keras`` or ``.h5`` file of either or of a SavedModel
            folder, ``module:function``, or a name of ``edgeprune list models``; None: the demo. It is never changed.
        data: arrays, ``tf.data``, a path, ``keras:name`` ... (see ``edgeprune.data.load``); None: the built-in model's own.
        target: a name of ``edgeprune list targets`` or the path of a target's ``.yaml``; None: ``rpi4``.
        recipe: a name of ``edgeprune list recipes``, a path, or a mapping with the same keys; None: the one that suits the target.
        out: the run folder; None: ``runs/MODEL-TARGET-RECIPE`` in the current folder.
        overrides: dotted path in the recipe -> value.
        max_drop: largest loss of the metric against the float model, in the metric's own unit.
        max_size_kib: largest size of the .tflite file, KiB.
        max_latency_ms: largest latency on the target, ms.
        max_macs: most multiply-accumulates for one sample.
        max_arena_kib: largest memory of everything that is not weights while the model runs, KiB.
        attempts: models that are trained at most to meet these; 1: the recipe as it is, which is only judged. None: the
            recipe's, which is 5; where ``overrides`` say how much a shrink stage removes, 1.
        board: ``user@host`` of a real board, or its name in the user's boards.yaml; of several the first is the one that
            is judged on, and the latency on the others is told.
        resume: go on with the interrupted build in ``out``: its own model, data source, target and recipe. Live data has
            to be given again.
        force: replace a run that is already in ``out``.
        trust: load a model even though that runs code of its author's.
        progress: who is told; None: the terminal or the notebook.
        command: how the user called, for the report.
        shared: first stages that other builds have too, which are computed once.

    Returns:
        The result; the same is in ``out``/report.json.

    Raises:
        EdgepruneError: what went wrong, what was expected, and how to mend it.
    """
    shown = progress or _progress()
    budget = {
        **{"max_drop": max_drop, "max_size_kib": max_size_kib, "max_latency_ms": max_latency_ms},
        **{"max_macs": max_macs, "max_arena_kib": max_arena_kib, "attempts": attempts},
    }
    changes = {**(overrides or {}), **{f"budget.{name}": value for name, value in budget.items() if value is not None}}
    try:
        if resume:
            run = _resumed(_folder_to_resume(out), model, data, target, recipe, changes, board, trust, shown)
        else:
            run = _fresh(
                model,
                data,
                target or DEFAULT_TARGET,
                _recipe(_given(recipe, target), changes),
                out,
                board,
                force,
                trust,
                shown,
                command,
            )
        _run_stages(replace(run, shared=shared))
    finally:
        if progress is None:
            shown.close()
    made = (
        report.load(run.folder) if (run.folder / report.JSON_NAME).exists() else {}
    )  # a recipe may stop before its report
    missed = tuple(name for name, limit in made.get("budget", {}).items() if limit["met"] is False)
    return Result(run.folder, made, missed)


def _run_stages(run: pipeline.Run) -> None:
    try:
        budget_run.run(
            run, {"model": MODEL_FILE, "float": MODEL_FILE}
        )  # the reference, until a stage trains a better one
    except KeyboardInterrupt:
        run.progress.note(
            f"Interrupted. Nothing finished is lost; go on with: edgeprune build --resume --out {run.folder}"
        )
        raise


def _progress() -> progress.Progress:
    return progress.choose()


def _given(source: str | Path | Mapping[str, Any] | None, target: str | None) -> str | Path | Mapping[str, Any]:
    """The recipe that the user names, else the target's own."""
    return source if source is not None else targets.recipe_for(target or DEFAULT_TARGET) or recipe.DEFAULT


def _recipe(source: str | Path | Mapping[str, Any], changes: Mapping[str, Any]) -> recipe.Recipe:
    loaded = recipe.load(source, changes)
    if "budget.attempts" not in changes and budget_run.set_by_hand(loaded, changes):
        return recipe.load(source, {**changes, "budget.attempts": 1})
    return loaded


def _fresh(
    model: Any,
    data: Any,
    target: str,
    chosen: recipe.Recipe,
    out: str | Path | None,
    board: str | Sequence[str] | None,
    force: bool,
    trust: bool,
    shown: progress.Progress,
    command: str | None,
) -> pipeline.Run:
    """Check everything that was given, then make the run folder; nothing is written before all of it is right."""
    facts = targets.load(registry.file("targets", target))
    pipeline.check(chosen, facts)
    profiling.rehearse(
        facts, _connections(facts, board)
    )  # a board that is not there is said now, not after the training
    word, home = _model_word(model)
    folder = Path(out) if out else Path("runs") / f"{Path(word).stem}-{facts.name}-{chosen.name}"
    _check_free(folder, force)
    if data is None and home is None:
        raise DataError(
            "A model needs data to be pruned and judged on. Give it: --data FILE.npz (or data=(x, y) in Python)."
        )
    samples = datasets.load(home if data is None else data, chosen.file.data, chosen.seed, shown)
    notes: list[str] = []
    live, trained = _load_model(model, word, trust, chosen.seed, notes)
    for note in notes:
        shown.note(note)
    samples = fitting(samples, live)
    metric = _metric(samples, chosen)
    source = home if data is None else data
    words = _Words(
        model=word,
        data=source if isinstance(source, str) else str(source) if isinstance(source, Path) else None,
        target=target,
        trained=trained,
        digest=model_digest(live),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        notes=notes,
    )
    _open_folder(folder, words, chosen, live)
    return _run(folder, words, chosen, facts, samples, metric, board, trust, shown)


def _resumed(
    folder: Path,
    model: Any,
    data: Any,
    target: str | None,
    source: Any,
    changes: Mapping[str, Any],
    board: str | Sequence[str] | None,
    trust: bool,
    shown: progress.Progress,
) -> pipeline.Run:
    """The run that a folder holds, from its own words."""
    words = _stored(folder)
    kept = recipe.parse(yaml_files.read(folder / RECIPE_FILE, RunFolderError), str(folder / RECIPE_FILE))
    if (source is not None or changes) and _recipe(source or kept.resolved(), changes).resolved() != kept.resolved():
        raise RunFolderError(
            f"{folder} was started with another recipe than the one given now. Resume it without --recipe, --set and budgets "
            f"(its own are in {folder / RECIPE_FILE}), or start anew with --force."
        )
    if model is not None and _model_word(model)[0] != words.model:
        raise RunFolderError(
            f"{folder} was started for the model '{words.model}', not '{_model_word(model)[0]}'. Resume it without a model, or choose "
            "another --out."
        )
    if target is not None and target != words.target:
        raise RunFolderError(
            f"{folder} was started for the target '{words.target}', not '{target}'. Resume it without --target, or choose another --out."
        )
    origin = words.data if data is None else data
    if origin is None:
        raise DataError(
            f"{folder} was built from live data, which is not stored. Give the same data again: build(data=..., resume=True)."
        )
    samples = datasets.load(origin, kept.file.data, kept.seed, shown)
    from edgeprune.keras import intake

    samples = fitting(samples, intake.load_own(folder / MODEL_FILE))
    facts = targets.load(registry.file("targets", words.target))
    profiling.rehearse(facts, _connections(facts, board))
    return _run(folder, words, kept, facts, samples, _metric(samples, kept), board, trust, shown)


def _run(
    folder: Path,
    words: _Words,
    chosen: recipe.Recipe,
    facts: targets.Target,
    samples: datasets.Data,
    metric: metrics.Metric,
    board: str | Sequence[str] | None,
    trust: bool,
    shown: progress.Progress,
) -> pipeline.Run:
    judge, *others = _connections(facts, board)
    inputs = {**words._asdict(), "fingerprint": samples.fingerprint, "metric": metric.title}
    keyed = ("digest", "fingerprint", "trained", "target", "metric")
    return pipeline.Run(
        folder=folder.resolve(),
        recipe=chosen,
        target=facts,
        data=samples,
        metric=metric,
        progress=shown,
        inputs={name: inputs[name] for name in keyed},
        about=inputs,
        connection=judge,
        others=tuple(others),
        trust=trust,
    )


def _connections(facts: targets.Target, board: str | Sequence[str] | None) -> list[targets.Connection]:
    """The board that is judged on, then the others; without one, what the target runs on."""
    words = [board] if isinstance(board, str) else list(board or [])
    for word in words:
        boards.target(word, facts.name, facts.name)
    return [targets.connection(facts, word) for word in words] or [targets.connection(facts)]


def _model_word(model: Any) -> tuple[str, str | None]:
    """How the model is called, and the data that comes with it when it is one of ours."""
    if model is None:
        model = DEMO_MODEL
    if not isinstance(model, (str, Path)):
        return str(getattr(model, "name", type(model).__name__)), None
    word = str(model)
    if word in registry.names("models"):
        return word, registry.module("models", word).DATA
    return word, None


def _load_model(model: Any, word: str, trust: bool, seed: int, notes: list[str]) -> tuple[Any, bool]:
    """A copy of the user's model, and whether its weights are trained: those of a live model are taken to be.

    What the user should know of how it was taken is added to the notes.
    """
    from edgeprune.keras import intake, keras

    keras.utils.set_random_seed(seed)
    if model is not None and not isinstance(model, (str, Path)):
        return intake.take(model, tell=notes.append), True
    return intake.named(word, trust, notes.append)


def fitting(samples: datasets.Data, model: Any) -> datasets.Data:
    """The data as the model takes it."""
    ports = [
        [
            data_fit.Port(name, tuple(tensor.shape[1:]), tensor.dtype.name)
            for name, tensor in zip(names, tensors, strict=True)
        ]
        for names, tensors in ((model.input_names, model.inputs), (model.output_names, model.outputs))
    ]
    return data_fit.check_fits(samples, *ports)


def _metric(samples: datasets.Data, chosen: recipe.Recipe) -> metrics.Metric:
    return metrics.judging(samples.tasks, chosen.file.metric, chosen.file.metric_output)


def model_digest(model: Any) -> str:
    """sha256 of architecture and weights."""
    digest = hashlib.sha256(model.to_json().encode())
    for weight in model.get_weights():
        digest.update(weight.tobytes())
    return digest.hexdigest()


def _check_free(folder: Path, force: bool) -> None:
    """A run folder is never shared with another run, nor with anything that is not ours."""
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file. Choose another folder with --out.")
    if force or not folder.exists() or _unopened(folder):
        return
    if (folder / RUN_FILE).exists():
        raise RunFolderError(
            f"{folder} holds another run. Go on with it: --resume. Replace it: --force. Keep it: choose another folder with --out."
        )
    raise RunFolderError(
        f"{folder} is not empty and holds no run of edgeprune. Choose another folder with --out, or use it all the same: --force."
    )


def _unopened(folder: Path) -> bool:
    """Whether a folder is empty, or all that is in it was left by a build that was killed while it made its run folder."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(files.TEMPORARY)}
    return not names or (pipeline.LOCK_FILE in names and names <= {pipeline.LOCK_FILE, "input", RECIPE_FILE})


def _open_folder(folder: Path, words: _Words, chosen: recipe.Recipe, live: Any) -> None:
    """Make the run folder: what an earlier run left is removed, run.json comes last."""
    from edgeprune.keras import intake

    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with pipeline.lock(folder):
            for name in OWN:
                path = folder / name
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            files.sweep(folder)
            (folder / MODEL_FILE).parent.mkdir()
            intake.save(live, folder / MODEL_FILE)
            files.write_text_atomic(folder / RECIPE_FILE, yaml_files.dump(chosen.resolved()))
            files.write_text_atomic(
                folder / RUN_FILE, json.dumps({"edgeprune": edgeprune.__version__, **words._asdict()}, indent=1)
            )


def _folder_to_resume(out: str | Path | None) -> Path:
    """The run folder that is meant: the one given, else the only one in ``runs/`` that is not finished."""
    if out is not None:
        return Path(out)
    unfinished = [
        path.parent
        for path in sorted(Path("runs").glob(f"*/{RUN_FILE}"))
        if not (path.parent / report.JSON_NAME).exists()
    ]
    if len(unfinished) != 1:
        found = ", ".join(map(str, unfinished)) or "none"
        raise RunFolderError(f"Which run to resume? Give its folder with --out. Unfinished in runs/: {found}.")
    return unfinished[0]


def _stored(folder: Path) -> _Words:
    """The words in run.json."""
    path = folder / RUN_FILE
    if not path.is_file():
        raise RunFolderError(f"{folder} holds no run to resume (there is no {RUN_FILE}). Start one without --resume.")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        version = stored.pop("edgeprune")
        words = _Words(**stored)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunFolderError(f"{path} is damaged: {error}. Start anew with --force.") from error
    if version != edgeprune.__version__:
        raise RunFolderError(
            f"{folder} was started by edgeprune {version}; this is {edgeprune.__version__}. Start anew with --force."
        )
    return words
