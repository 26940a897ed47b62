"""``edgeprune bench methods``: every cell of a league in a process of its own, some at a time, and what came out so far.

A worker (`bench_cell`) loads TensorFlow once and forks a process for each of its cells, one after the other.

::

    OUT/league.json             the terms, which may not change; seeds, shares and methods may be added
    OUT/cells/NAME.json         a finished cell, with the key of everything that it depends on: never done again
    OUT/cells/NAME/             its run folder: model.tflite, report.json, recipe.yaml; while it is at work, its stages too
    OUT/cells/NAME.log          what its process printed
    OUT/cells/workers.log       what the workers printed besides
    OUT/common/                 finished stages that several cells begin with
    OUT/methods.json, .html     all finished cells as tables and pictures, written anew after every cell
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO, cast

import edgeprune
from edgeprune import api, bench, bench_view, catalogue, files, pipeline, registry
from edgeprune.bench import Cell, Terms
from edgeprune.errors import DataError, RunFolderError
from edgeprune.recipe import Recipe

JSON_NAME, HTML_NAME, TERMS_NAME, CELLS, COMMON = "methods.json", "methods.html", "league.json", "cells", "common"
MODEL_SUFFIXES = (".keras", ".h5")
COMMAND = (sys.executable, "-m", "edgeprune.bench_cell")
WORKERS_LOG = "workers.log"  # what workers say while no cell is at work
LEAVE_S = 10.0  # that a process has to end in when it was told to
SCRATCH = ("stages", "input")  # in a run folder: what a finished cell needs no more


class Display(Protocol):
    """Who is told while a league runs."""

    def begin(self, cells: int, finished: Sequence[Mapping[str, Any]]) -> None:
        """So many cells are wanted; these are there already."""

    def told(self, cell: Cell, message: Mapping[str, Any]) -> None:
        """A line that the cell's process said, see `bench_cell`."""

    def finished(self, cell: Cell, figures: Mapping[str, Any]) -> None:
        """A cell came to these figures."""

    def failed(self, cell: Cell, reason: str) -> None:
        """A cell came to nothing."""

    def close(self) -> None:
        """The league ended, well or not: give the screen back. Harmless when called twice."""


class Silent:
    """Says nothing."""

    def begin(self, cells: int, finished: Sequence[Mapping[str, Any]]) -> None:
        pass

    def told(self, cell: Cell, message: Mapping[str, Any]) -> None:
        pass

    def finished(self, cell: Cell, figures: Mapping[str, Any]) -> None:
        pass

    def failed(self, cell: Cell, reason: str) -> None:
        pass

    def close(self) -> None:
        pass


class _Job(NamedTuple):
    """A cell to do: its recipe, and the digest of all that its result depends on."""

    cell: Cell
    recipe: Recipe
    key: str


def run(
    model: str | None,
    data: str | None,
    *,
    target: str = "rpi4",
    epochs: int,
    seeds: Sequence[int] = (0,),
    shares: Sequence[float],
    methods: Sequence[str] | None = None,
    jobs: int = 1,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    trust: bool = False,
    display: Display | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Run a league, or go on with one.

    Args:
        model: as for ``edgeprune.build``; None: the demo.
        data: a word as for ``--data``; None: what comes with a built-in model.
        target: what the latency is of.
        epochs: that every method trains in all.
        seeds: each gives every method another split, other first weights, another order of samples.
        shares: of the weights, or multiply-accumulates, that every method is asked to remove, 0..1.
        methods: names of ``edgeprune list methods``; None: all.
        jobs: processes side by side.
        out: where everything goes; None: ``runs/MODEL-methods``.
        overrides: dotted path in every recipe that has the stage -> value.
        trust: whether the user vouches for code inside the model file.
        display: who is told.

    Returns:
        The folder, and what its ``methods.json`` holds (`bench_view.league`).

    Raises:
        EdgepruneError: something cannot be taken; a method that fails is only told in the result, unless it is a baseline.
    """
    word = api.DEMO_MODEL if model is None else model
    source = _data_of(word, data)
    terms = Terms(word, source, target, epochs, _comes_trained(word), dict(overrides or {}))
    registry.file("targets", target)
    chosen = bench.chosen(methods)
    wanted = bench.cells(chosen, bench.checked_shares(shares), list(dict.fromkeys(seeds)))
    bench.check_overrides(chosen, terms.overrides)
    bench.check_epochs(wanted, terms)
    inputs = {"edgeprune": edgeprune.__version__, **{name: _digest_of(path) for name, path in _inputs(terms).items()}}
    asked = [_job(cell, terms, inputs) for cell in wanted]
    folder = Path(out) if out else Path("runs") / f"{Path(word).stem}-methods"
    with files.writing(folder):
        (folder / CELLS).mkdir(parents=True, exist_ok=True)
    with pipeline.lock(folder):
        files.sweep(folder)
        files.sweep(folder / CELLS)
        _check_terms(folder, {**terms._asdict(), **inputs})
        league = _League(folder, terms, trust, jobs, display or Silent(), bench.left_out(chosen, shares))
        league.others = _others(folder, asked, terms, inputs)
        return folder, league.run(asked)


def _job(cell: Cell, terms: Terms, inputs: Mapping[str, Any]) -> _Job:
    chosen = bench.settled(cell, terms)
    plain = json.dumps({"recipe": chosen.resolved(), **inputs}, sort_keys=True)
    return _Job(cell, chosen, hashlib.sha256(plain.encode()).hexdigest())


def _others(folder: Path, asked: Sequence[_Job], terms: Terms, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Finished cells of earlier runs that this one does not ask for: they stay in the tables while their recipes do."""
    names = {job.cell.name for job in asked}
    records = [_read(path) for path in sorted((folder / CELLS).glob("*.json")) if path.stem not in names]
    known = {*registry.names("methods"), *bench.BASELINES}
    found = []
    for record in records:
        cell = Cell(record["method"], record["share"], record["seed"])
        if cell.method in known and _job(cell, terms, inputs).key == record["key"]:
            found.append(record)
    return found


def _data_of(model: str, data: str | None) -> str:
    """The data's word: what the user says, or what a built-in model comes with."""
    if data is not None:
        return data
    if model in registry.names("models"):
        return str(registry.module("models", model).DATA)
    raise DataError(f"'{model}' needs data to be trained and judged on. Give it: --data FILE.npz (see docs/data.md).")


def _comes_trained(model: str) -> bool:
    """Whether a model's word names something with trained weights: a file or a folder, as for ``build``."""
    known = model in registry.names("models")
    return not known and (Path(model).exists() or Path(model).suffix in MODEL_SUFFIXES)


def _inputs(terms: Terms) -> dict[str, str]:
    words = {"model": terms.model, "data": str(terms.data), "target": terms.target}
    return {f"{name}_digest": word for name, word in words.items()}


def _digest_of(word: str) -> str | None:
    """sha256 of the file that a word names; None for what is no file."""
    path = Path(word)
    if not path.is_file():
        return None
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_terms(folder: Path, terms: Mapping[str, Any]) -> None:
    """A league's folder keeps to its terms; the first run writes them down.

    Raises:
        RunFolderError: it holds a league on other terms; which differ.
    """
    path = folder / TERMS_NAME
    if not path.exists():
        files.write_text_atomic(path, json.dumps(terms, indent=1) + "\n")
        return
    stored = _read(path)
    for name, value in json.loads(json.dumps(terms)).items():
        if stored.get(name) != value:
            raise RunFolderError(
                f"{folder} holds a league with {name} {_shown(stored.get(name))}, and this one has {_shown(value)}: their figures cannot "
                "be compared. Choose another folder with --out, or remove that one."
            )


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} is damaged: {error}. Remove it and run the same command again.") from error
    return found


class _League:
    """The cells of a folder: which are there, which are at work, and what all came to."""

    def __init__(
        self, folder: Path, terms: Terms, trust: bool, jobs: int, display: Display, left_out: Sequence[str]
    ) -> None:
        self.folder, self.terms, self.trust, self.jobs, self.display = folder, terms, trust, jobs, display
        self.left_out = list(left_out)
        self.done: dict[str, dict[str, Any]] = {}  # name of the cell -> its record
        self.failures: dict[str, dict[str, Any]] = {}
        self.others: list[dict[str, Any]] = []  # finished cells that this run does not ask for
        self.about = catalogue.methods()

    def run(self, wanted: Sequence[_Job]) -> dict[str, Any]:
        """Do what is not there yet; the result after the last cell."""
        for job in wanted:
            record = self._stored(job)
            if record:
                self.done[job.cell.name] = record
                self._tidy(job.cell)
        self.display.begin(len(wanted), [self.done[job.cell.name] for job in wanted if job.cell.name in self.done])
        try:
            self._work([job for job in wanted if job.cell.name not in self.done], wanted)
        finally:
            self.display.close()
        shutil.rmtree(self.folder / COMMON, ignore_errors=True)
        return self._write(wanted)

    def _stored(self, job: _Job) -> dict[str, Any] | None:
        """A finished cell's record, if it is of the same recipe and inputs."""
        path = self._record(job.cell)
        if not path.exists():
            return None
        record = _read(path)
        return record if record.get("key") == job.key else None

    def _record(self, cell: Cell) -> Path:
        return self.folder / CELLS / f"{cell.name}.json"

    def _tidy(self, cell: Cell) -> None:
        for name in SCRATCH:
            shutil.rmtree(self.folder / CELLS / cell.name / name, ignore_errors=True)

    def _work(self, left: Sequence[_Job], wanted: Sequence[_Job]) -> None:
        """Keep as many processes at work as there are jobs, in the cells' order."""
        waiting = list(left)
        workers: list[_Worker] = []
        said: queue.Queue[tuple[_Worker, dict[str, Any]]] = queue.Queue()
        try:
            while waiting or any(worker.job for worker in workers):
                while waiting and sum(worker.job is not None for worker in workers) < self.jobs:
                    worker = next((one for one in workers if one.idle), None)
                    if worker is None:
                        worker = _Worker(self, said)
                        workers.append(worker)
                    worker.begin(waiting.pop(0))
                worker, message = said.get()
                job = worker.job
                if job is None:  # an idle one ended
                    continue
                if "ended" in message:
                    worker.job = None
                    self._ended(job, message["ended"], wanted)
                else:
                    self.display.told(job.cell, message)
        finally:
            for worker in workers:
                worker.stop()

    def _ended(self, job: _Job, end: _End, wanted: Sequence[_Job]) -> None:
        cell = job.cell
        if end.figures is None or ("cannot" in end.figures and cell.method in bench.BASELINES):
            self.failures[cell.name] = {**cell._asdict(), "reason": end.reason}
            self.display.failed(cell, end.reason)
            if cell.method in bench.BASELINES:
                raise RunFolderError(
                    f"The baseline {cell.name} could not be built, so nothing can be compared: {end.reason}"
                )
        else:
            record = {**cell._asdict(), **end.figures, "jobs": self.jobs, "key": job.key}
            files.write_text_atomic(self._record(cell), json.dumps(record, indent=1) + "\n")
            self.done[cell.name] = record
            self._tidy(cell)
            if "cannot" in record:
                self.display.failed(cell, record["cannot"])
            else:
                self.display.finished(cell, record)
        self._write(wanted)

    def _write(self, wanted: Sequence[_Job]) -> dict[str, Any]:
        """Tables and pictures of what is there."""
        order = [self.done[job.cell.name] for job in wanted if job.cell.name in self.done]
        report = self._any_report()
        result = bench_view.league(
            terms=self.terms,
            cells=[*order, *self.others],
            failures=list(self.failures.values()),
            left_out=self.left_out,
            planned=len(wanted) + len(self.others),
            metric=report.get("metric", {}),
            target_title=str(report.get("target_title", self.terms.target)),
            about=self.about,
        )
        files.write_text_atomic(self.folder / JSON_NAME, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        files.write_text_atomic(self.folder / HTML_NAME, bench_view.html(result))
        return result

    def _any_report(self) -> dict[str, Any]:
        """A finished build's report, for what all have in common."""
        for name in self.done:
            path = self.folder / CELLS / name / "report.json"
            if path.exists():
                return _read(path)
        return {}


class _End(NamedTuple):
    """How a cell ended: with figures, or for this reason with none."""

    figures: dict[str, Any] | None
    reason: str


class _Worker:
    """A process that does one cell after the other, read by a thread; what it says goes to a queue.

    Attributes:
        job: at work; set to None by whoever takes its ``{"ended": _End}`` from the queue.
        idle: whether it can begin another one.
    """

    def __init__(self, league: _League, said: queue.Queue[Any]) -> None:
        self.job: _Job | None = None
        self._league, self._said, self._gone = league, said, False
        self._log = league.folder / CELLS / WORKERS_LOG
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(league.jobs),
                start_new_session=True,  # Ctrl-C is for the league, which tells its processes
                text=True,
                encoding="utf-8",
            )
        self._input, self._output = cast(TextIO, self._child.stdin), cast(TextIO, self._child.stdout)
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def idle(self) -> bool:
        return self.job is None and not self._gone

    def begin(self, job: _Job) -> None:
        """Have a cell built."""
        league, folder = self._league, self._league.folder / CELLS
        self.job, self._log = job, folder / f"{job.cell.name}.log"
        request = {
            "recipe": job.recipe.resolved(),
            "model": league.terms.model,
            "data": league.terms.data,
            "target": league.terms.target,
            "trust": league.trust,
            "folder": str((folder / job.cell.name).absolute()),
            "shared": str((league.folder / COMMON).absolute()),
            "stages": bench.common_stages(job.recipe),
            "log": str(self._log.absolute()),
        }
        with contextlib.suppress(BrokenPipeError):  # it died idle, and says so itself
            self._input.write(json.dumps(request) + "\n")
            self._input.flush()

    def _listen(self) -> None:
        figures, reason = None, ""
        for line in self._output:
            message = json.loads(line)
            if "figures" in message:
                figures = message["figures"]
            elif "cannot" in message:
                figures = {"cannot": message["cannot"]}
            elif "error" in message:
                reason = message["error"]
            elif "ended" in message:
                self._said.put((self, {"ended": self._end(figures, reason, message["ended"])}))
                figures, reason = None, ""
            else:
                self._said.put((self, message))
        self._gone = True
        self._said.put((self, {"ended": self._end(figures, reason, self._child.wait())}))

    def _end(self, figures: dict[str, Any] | None, reason: str, code: int) -> _End:
        if figures is None and not reason:
            reason = f"its process ended with {_why(code)}; what it said is in {self._log}"
        return _End(figures, reason)

    def stop(self) -> None:
        """End the process, and the cell that it is at; what that has finished stays."""
        with contextlib.suppress(OSError):  # it has ended already
            self._input.close()
        try:
            self._child.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()


def _why(code: int) -> str:
    if code == -9:
        return "signal 9, as it does when memory runs out"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _environment(jobs: int) -> dict[str, str]:
    """Processes side by side share the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = str(max(1, cores // jobs))
    given = {"TF_NUM_INTRAOP_THREADS": threads, "TF_NUM_INTEROP_THREADS": threads, "OMP_NUM_THREADS": threads}
    return {**given, **os.environ}
