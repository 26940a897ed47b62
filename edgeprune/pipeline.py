"""Fold a ``State`` through the stages of a recipe, one run folder, resumable.

A state holds no live object that a stage made, only files in the run folder and plain data. What a stage leaves is
always read back from disk by the next one, so a build that was killed and resumed computes exactly what an unbroken
one does.

::

    RUN/recipe.yaml                 fully resolved
    RUN/stages/2-prune.partial/     a stage at work: its checkpoints
    RUN/stages/2-prune/             a finished one, renamed in one step: its files and state.json
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import edgeprune
from edgeprune import files, registry
from edgeprune.data import Data
from edgeprune.errors import RunFolderError
from edgeprune.metrics import Metric
from edgeprune.progress import Progress
from edgeprune.recipe import Recipe, StageSpec
from edgeprune.target import Connection, Target

STATE_FILE = "state.json"
KEY_FILE = "key"
LOCK_FILE = ".lock"


class Shared(NamedTuple):
    """Finished stages that several runs have in common, so that they are computed once: those of a league.

    Attributes:
        folder: holds a finished stage by its key.
        stages: how many of a recipe's first stages are taken from there, and left there.
    """

    folder: Path
    stages: int


@dataclass(frozen=True)
class Run:
    """What stays the same while a build runs.

    Attributes:
        folder: the run folder, absolute.
        inputs: digests of model and data and whatever else the stages' results depend on; part of every stage's key.
        about: how it was asked for (model, data, command), for the report; no result depends on it.
        connection: how the target is reached: a board, its emulator, this machine.
        others: more boards of the same kind, whose latency is told beside it.
        trust: whether the user vouches for code inside the model file.
        shared: first stages that other runs have too.
    """

    folder: Path
    recipe: Recipe
    target: Target
    data: Data
    metric: Metric
    progress: Progress
    inputs: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)
    connection: Connection = field(default_factory=lambda: Connection("local"))
    others: tuple[Connection, ...] = ()
    trust: bool = False
    shared: Shared | None = None

    @property
    def seed(self) -> int:
        return self.recipe.seed


@dataclass(frozen=True)
class State:
    """What the stages hand on. Never mutated: ``add`` returns a new one.

    Attributes:
        files: role (``float``, ``model``, ``quantized``, ``dense_int8``, ``final`` ...) -> path inside the run folder.
        facts: block of report.json -> plain data.
        label: the stage at work; names its entries.
        workspace: the folder a stage may write to; what is there stays when the stage is finished.
    """

    run: Run
    files: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    workspace: Path = Path()

    def path(self, role: str) -> Path:
        """Where the file with a role lies.

        Raises:
            RunFolderError: no stage before this one made it, or it is gone.
        """
        if role not in self.files:
            raise RunFolderError(
                f"The stage '{self.label}' needs the {role} model, which no stage before it makes. "
                "Put the missing stage before it in the recipe (see `edgeprune list recipes` for complete ones)."
            )
        path = self.run.folder / self.files[role]
        if not path.exists():
            raise RunFolderError(f"{path} is gone from the run folder. Build again with --force.")
        return path

    def add(self, files: Mapping[str, Path] | None = None, **facts: Any) -> State:
        """A state with more files (in the workspace) and facts; facts that are mappings are merged, lists appended."""
        made = {role: str(self._final(path)) for role, path in (files or {}).items()}
        merged = dict(self.facts)
        for key, value in facts.items():
            before = merged.get(key)
            if isinstance(before, Mapping) and isinstance(value, Mapping):
                value = {**before, **value}
            elif isinstance(before, list) and isinstance(value, list):
                value = before + value
            merged[key] = value
        return replace(self, files={**self.files, **made}, facts=merged)

    def _final(self, path: Path) -> Path:
        """Where a file of the workspace will lie when the stage is finished, relative to the run folder."""
        inside = path.relative_to(self.workspace)
        return (self.workspace.parent / self.workspace.name.removesuffix(".partial") / inside).relative_to(
            self.run.folder
        )


class Stage(Protocol):
    """A module in ``pipelines/``: ``Options`` (a pydantic class; its fields are the recipe's keys) and ``run``.

    It may have more: ``check(label, options, target)`` raises what a target cannot do before anything is done;
    ``foresee(state, options)`` what the first model's shapes do not allow, before anything is trained; ``LAST_OF``, or
    ``barred(options)``, are the stages that may not come after it; ``idle(options)`` are options that say nothing beside the
    others; ``SPREADS`` says that its training can be spread over devices.
    """

    Options: type[Any]

    def run(self, state: State, options: Any) -> State: ...


def check(recipe: Recipe, target: Target) -> None:
    """Refuse what no stage could do for the target, however far it came.

    Raises:
        EdgepruneError: what a stage's own ``check`` raises.
    """
    for spec in recipe.stages:
        stage = registry.module("stages", spec.stage)
        if hasattr(stage, "check"):
            stage.check(spec.label, spec.options, target)


def run(run: Run, given: Mapping[str, str]) -> State:
    """Run every stage that is not finished yet, in order, and return the last state.

    Args:
        run: the folder must exist.
        given: role -> path inside the run folder of what is there before the first stage: ``{"model": ...}``.

    A finished stage is taken as it is when its key (code version, inputs, its own options and those of every stage
    before it) is the same; otherwise it and all after it are done anew.

    Raises:
        EdgepruneError: what a stage raises; finished stages and checkpoints stay, so the run can be resumed.
    """
    with lock(run.folder):
        for folder in (run.folder, run.folder / "stages"):
            files.sweep(folder)
        state = State(run, files=dict(given))
        _foresee(state)
        key = _digest(_first_key(run))
        total = len(run.recipe.stages)
        for index, spec in enumerate(run.recipe.stages, 1):
            key = _digest(
                {
                    "before": key,
                    "stage": spec.stage,
                    "label": spec.label,
                    "options": spec.options.model_dump(mode="json"),
                }
            )
            folder = run.folder / "stages" / f"{index}-{spec.label}"
            run.progress.stage(spec.label, index, total)
            finished = _finished(folder, key)
            if finished is None:
                begun = replace(state, label=spec.label)
                if run.shared and index <= run.shared.stages:
                    finished = _execute_once(begun, spec, folder, key, run.shared.folder / key)
                else:
                    finished = _execute(begun, spec, folder, key)
            else:
                run.progress.done("finished earlier", finished["facts"]["stages"][-1]["seconds"], resumed=True)
            state = replace(state, files=finished["files"], facts=finished["facts"])
        return state


def _foresee(state: State) -> None:
    """Let the first stage that cuts look at the shapes while nothing is trained; after it they are others."""
    for index, spec in enumerate(state.run.recipe.stages, 1):
        stage = registry.module("stages", spec.stage)
        if hasattr(stage, "foresee"):
            begun = any((state.run.folder / "stages").glob(f"{index}-{spec.label}*"))
            if index > 1 and not begun:
                stage.foresee(replace(state, label=spec.label), spec.options)
            return


def _first_key(run: Run) -> dict[str, Any]:
    """What all stages depend on."""
    key = {"edgeprune": edgeprune.__version__, "inputs": dict(run.inputs), "seed": run.seed}
    distribute = run.recipe.file.distribute
    return {**key, "distribute": distribute} if distribute else key


def _execute(state: State, spec: StageSpec, folder: Path, key: str) -> dict[str, Any]:
    """Run one stage in its partial folder, then make the folder final in one rename."""
    workspace = folder.with_name(folder.name + ".partial")
    _open_workspace(workspace, key)
    started = time.monotonic()
    before = len(state.facts.get("notes", []))
    made = registry.module("stages", spec.stage).run(replace(state, workspace=workspace), spec.options)
    seconds = round(time.monotonic() - started, 3)
    made = made.add(stages=[{"name": spec.label, "stage": spec.stage, "seconds": seconds}])
    record = {"key": key, "files": dict(made.files), "facts": dict(made.facts)}
    files.write_text_atomic(workspace / STATE_FILE, json.dumps(record, indent=1))
    files.replace_folder_atomic(folder, workspace)
    for note in made.facts.get("notes", [])[before:]:
        state.run.progress.note(note)
    state.run.progress.done(made.facts.get("summaries", {}).get(spec.label, ""), seconds)
    finished: dict[str, Any] = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    return finished


def _execute_once(state: State, spec: StageSpec, folder: Path, key: str, common: Path) -> dict[str, Any]:
    """Run a stage that other runs have too, or take what one of them made; who comes while another is at it waits.

    Args:
        common: where the finished stage lies for all.
    """
    with files.writing(common):
        common.parent.mkdir(parents=True, exist_ok=True)
    with common.with_suffix(".lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if not common.exists():
            finished = _execute(state, spec, folder, key)
            _copy(folder, common)
            return finished
    _copy(common, folder)
    shutil.rmtree(folder.with_name(folder.name + ".partial"), ignore_errors=True)
    taken = _finished(folder, key)
    if taken is None:
        raise RunFolderError(f"{common} is damaged: it does not hold the stage that it is named after. Remove it.")
    state.run.progress.done("taken from another run", taken["facts"]["stages"][-1]["seconds"], resumed=True)
    return taken


def _copy(source: Path, destination: Path) -> None:
    """A finished stage's folder once more; its files are never written to again, so they are linked where that works."""
    with files.temporary_folder(destination) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True, copy_function=_link)


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, destination)


def _open_workspace(workspace: Path, key: str) -> None:
    """Keep a partial folder (its checkpoints) only if it belongs to this very stage."""
    key_file = workspace / KEY_FILE
    try:
        if workspace.exists() and (not key_file.exists() or key_file.read_text(encoding="utf-8") != key):
            shutil.rmtree(workspace)
        workspace.mkdir(parents=True, exist_ok=True)
        files.sweep(workspace)
    except OSError as error:
        raise RunFolderError(f"The run folder cannot be written: {error}. Choose another with --out.") from error
    if not key_file.exists():
        files.write_text_atomic(key_file, key)


def _finished(folder: Path, key: str) -> dict[str, Any] | None:
    """The record of a finished stage, or None when there is none or it is of another recipe or input."""
    partial = folder.with_name(folder.name + ".partial")
    if _key_of(partial / STATE_FILE) == key:  # killed between the stage's last write and the renaming
        files.replace_folder_atomic(folder, partial)
    path = folder / STATE_FILE
    return json.loads(path.read_text(encoding="utf-8")) if _key_of(path) == key else None


def _key_of(path: Path) -> str | None:
    """The key in a stage's record; None when there is no record."""
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["key"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path} is damaged: {error}. Build again with --force.") from error


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Two builds never write to one folder; the kernel drops the lock when a process is killed.

    Raises:
        RunFolderError: another build is at work there, or the folder cannot be written.
    """
    try:
        handle = (folder / LOCK_FILE).open("a")
    except OSError as error:
        raise RunFolderError(
            f"The run folder {folder} cannot be written: {error}. Choose another with --out."
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunFolderError(
                f"Another build is at work in {folder}. Wait for it, or choose another folder with --out."
            ) from error
        yield


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()
