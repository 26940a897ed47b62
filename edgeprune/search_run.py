"""``edgeprune search``: one worker of a study, from the model to the front of trained networks.

::

    OUT/study.db                the study, unless --storage names another place
    OUT/dense/                  the run that trained the network, where it came without weights
    OUT/trained/NUMBER-WAY/     the runs of the best candidates, trained in full by this machine
    OUT/search.json, .html      everything that is known so far
    OUT/export/NUMBER/          what --export wrote

Every process that is given the same command is one more worker; which of them did what does not matter. First trials are
evaluated by the proxy, then those of the front that together dominate the most are trained; both are claimed one by one.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeprune import (
    api,
    files,
    report,
    search,
    search_recipes,
    search_study,
    search_view,
    yaml_files,
)
from edgeprune import search_space as spaces
from edgeprune.errors import EdgepruneError, StudyError
from edgeprune.search_setup import Asked, Display, Ready, prepared
from edgeprune.search_space import Candidate
from edgeprune.search_study import Result

JSON_NAME, HTML_NAME, TRAINED, EXPORT, BOARDS = "search.json", "search.html", "trained", "export", "boards"
POLL_S = 1.0  # between two looks at what the other workers do
WRITE_S = 10.0  # between two writings of search.json, at least


def run(
    asked: Asked,
    *,
    out: str | Path | None = None,
    storage: str | None = None,
    name: str | None = None,
    clone: str | None = None,
    boards: Sequence[str] = (),
    trust: bool = False,
    display: Display,
) -> tuple[Path, dict[str, Any]]:
    """What ``edgeprune search`` does.

    Args:
        asked: what for.
        out: this machine's folder; None: ``runs/MODEL-search``.
        storage: as for ``search_storage.storage_url``.
        name: of the study; None: the model's and the target's.
        clone: another study of the same storage whose finished trials this one begins with.
        boards: a pool, of which each measures one trained network at a time; (): emulated or predicted.
        trust: whether the user vouches for code inside the model file.
        display: who is told.

    Returns:
        The folder, and what ``search.json`` holds (`search_view.result`).

    Raises:
        EdgepruneError: something cannot be taken, or no candidate keeps the limits.
    """
    ready = prepared(asked, out=out, storage=storage, name=name, clone=clone, trust=trust, display=display)
    told = _Told(ready, display)
    display.begin(told.now())
    while _evaluated(ready, told, display):
        pass
    _chosen_for_training(ready)
    while _trained(ready, told, display, boards, trust):
        pass
    return ready.folder, told.now(write=True)


# Trials


def _evaluated(ready: Ready, told: _Told, display: Display) -> bool:
    """Evaluate one candidate, or wait for the other workers; False when all trials are finished."""
    claimed = ready.study.ask(ready.asked.trials)
    if claimed is None:
        counts = ready.study.counts()
        if counts["running"] + counts["waiting"] == 0 and counts["complete"] >= ready.asked.trials:
            return False
        time.sleep(POLL_S)
        told.now()
        return True
    candidate, names = claimed.candidate, ready.box.names
    patient = search_study.patient(search_study.sampler(ready.asked.sampler))
    best = [] if patient else [search.values(names, one.drop, one.costs) for one in _best(ready)]
    try:
        with ready.study.alive(claimed):
            found = ready.judge(candidate, best, names, display.evaluating)
    except BaseException:
        ready.study.fail(claimed)
        raise
    costs = ready.space.costs(candidate)
    more = {"stopped": found.stopped, "seconds": found.seconds, "samples": found.samples}
    ready.study.tell(claimed, found.drop, costs, **more)
    told.now()
    return True


def _best(ready: Ready) -> list[Result]:
    """The front of those that keep the limits of cost, and were judged on all samples."""
    able = [one for one in ready.study.finished() if not one.stopped and not ready.space.over(one.costs)]
    points = [search.values(ready.box.names, one.drop, one.costs) for one in able]
    return [able[place] for place in search.front(points)]


# Training


def _chosen_for_training(ready: Ready) -> None:
    """Enqueue the best once: whichever worker comes first, all of them come to the same."""
    if ready.trained.attribute(search_study.READY) or not ready.asked.top:
        return
    ready.study.refresh()
    for one in best(ready):
        for way in ready.asked.quantize or ("recipe",):
            ready.trained.enqueue({**one.candidate, spaces.QUANTIZE: way}, {"trial": one.number})
    ready.trained.note(search_study.READY, True)


def best(ready: Ready) -> list[Result]:
    """The candidates to train: of the front, those that together dominate the most."""
    front = _best(ready)
    points = [search.values(ready.box.names, one.drop, one.costs) for one in front]
    return [front[place] for place in search.spread(points, ready.asked.top, ready.box)]


def _trained(ready: Ready, told: _Told, display: Display, boards: Sequence[str], trust: bool) -> bool:
    """Train one of the best, or wait for the other workers; False when all are trained."""
    if not ready.asked.top:
        return False
    claimed = ready.trained.ask(_wanted(ready))
    if claimed is None:
        counts = ready.trained.counts()
        if counts["running"] + counts["waiting"] == 0:
            return False
        time.sleep(POLL_S)
        return True
    number = int(claimed.notes["trial"])
    if _twin(ready, claimed):
        ready.trained.fail(claimed)
        return True
    try:
        with ready.trained.alive(claimed), _board(ready.folder, boards) as board:
            figures = built(ready, number, claimed.candidate, board, trust, display)
    except EdgepruneError as error:
        ready.trained.fail(claimed, f"trial {number} could not be trained: {error}")
        display.note(f"Trial {number} could not be trained: {error}")
        return True
    except BaseException:
        ready.trained.fail(claimed)
        raise
    ready.trained.tell(claimed, figures.pop("drop"), figures.pop("costs"), **figures)
    told.now(write=True)
    return True


def _wanted(ready: Ready) -> int:
    """How many trials of the second study were enqueued."""
    counts = ready.trained.counts()
    return counts["complete"] + counts["running"] + counts["waiting"]


def _twin(ready: Ready, claim: search_study.Claim) -> bool:
    """Whether two workers enqueued it, and this is the later one."""
    return any(one.candidate == claim.candidate and one.number < claim.number for one in ready.trained.finished())


@contextmanager
def _board(folder: Path, boards: Sequence[str]) -> Iterator[str | None]:
    """A board of the pool that nobody on this machine measures on; None where there is no pool."""
    if not boards:
        yield None
        return
    with files.writing(folder / BOARDS):
        (folder / BOARDS).mkdir(exist_ok=True)
    while True:
        for number, board in enumerate(boards):
            with (folder / BOARDS / f"{number}.lock").open("a") as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield board
                return
        time.sleep(POLL_S)


def built(
    ready: Ready, number: int, candidate: Candidate, board: str | None, trust: bool, display: Display
) -> dict[str, Any]:
    """A candidate made in full: trained, quantized, converted, proven.

    Returns:
        ``drop`` (of the int8 file, on the validation split), ``costs`` (of the file), ``seconds``, ``trial``, ``folder`` and what its
        report says of it: ``final``, ``dense_int8``, ``float``, ``budget``.
    """
    from edgeprune.keras import candidates

    started = time.monotonic()
    way = str(candidate.get(spaces.QUANTIZE, "recipe"))
    folder = ready.folder / TRAINED / (f"{number}" if way == "recipe" else f"{number}-{way}")
    how = recipe_of(ready, number, candidate)
    words: dict[str, Any] = {"trust": trust, "progress": display.building(), "out": folder, "board": board}
    if (folder / api.RUN_FILE).exists() and yaml_files.read(folder / api.RECIPE_FILE) == how:
        made = api.build(data=None, resume=True, **words).report
    else:
        made = api.build(ready.file, ready.source, target=ready.asked.target, recipe=how, force=True, **words).report
    value, drop = candidates.judged(folder, ready.subject)
    final = made["candidates"]["final"]
    predicted = ready.space.costs({name: candidate[name] for name in ready.space.whole()})
    latency = final["latency"]["ms"]
    costs = {
        **predicted,
        spaces.MACS: float(final["macs"]),
        spaces.SIZE: float(final["size_bytes"]),
        "size_gzip_bytes": float(final["size_gzip_bytes"]),
        **({} if latency is None else {spaces.LATENCY: float(latency)}),
    }
    return {
        "drop": drop,
        "costs": costs,
        "value": value,
        "trial": number,
        "way": way,
        "folder": str(folder.resolve()),
        "seconds": round(time.monotonic() - started, 3),
        "candidates": {role: made["candidates"].get(role) for role in ("float", "dense_int8", "final")},
        "budget": made.get("budget", {}),
    }


def recipe_of(ready: Ready, number: int, candidate: Candidate) -> dict[str, Any]:
    """The recipe of a trial."""
    way = str(candidate.get(spaces.QUANTIZE, "recipe"))
    name = f"{ready.study.name}-{number}" + ("" if way == "recipe" else f"-{way}")
    return search_recipes.of(candidate, ready.space, ready.base, name, None if way == "recipe" else way)


# Results


class _Told:
    """What is known so far, written down and shown."""

    def __init__(self, ready: Ready, display: Display) -> None:
        self._ready, self._display, self._written = ready, display, 0.0

    def now(self, write: bool = False) -> dict[str, Any]:
        """The result as it is; written when it was not for a while, or when that is asked for."""
        if write:
            self._ready.study.refresh()
            self._ready.trained.refresh()
        found = result(self._ready)
        if write or time.monotonic() - self._written > WRITE_S:
            folder = self._ready.folder
            files.write_text_atomic(folder / JSON_NAME, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
            files.write_text_atomic(folder / HTML_NAME, search_view.html(found))
            self._written = time.monotonic()
        self._display.trial(found)
        return found


def result(ready: Ready) -> dict[str, Any]:
    """What ``search.json`` holds: plain data, without a password in it."""
    return search_view.result(
        asked=ready.asked,
        name=ready.study.name,
        storage=ready.study.url,
        space=ready.space,
        box=ready.box,
        about=ready.about,
        finished=ready.study.finished(),
        counts=ready.study.counts(),
        workers=ready.study.workers(),
        trained=ready.trained.finished(),
        training=ready.trained.counts(),
        failures=ready.trained.failures(),
    )


def export(ready: Ready, number: int, boards: Sequence[str], trust: bool, display: Display) -> Path:
    """Write a trial's recipe and model; a trial that was not trained on this machine is trained now.

    Returns:
        The folder: ``recipe.yaml``, ``model.tflite`` and what else a build makes.

    Raises:
        StudyError: there is no such trial.
        RunFolderError: the folder cannot be written.
    """
    found = {one.number: one for one in ready.study.finished()}
    if number not in found:
        raise StudyError(
            f"The study '{ready.study.name}' has no finished trial {number}. It has {len(found)}, those of the front: "
            f"{', '.join(str(one.number) for one in _best(ready)) or 'none'}."
        )
    done = [one for one in ready.trained.finished() if one.more.get("trial") == number]
    way = done[0].candidate[spaces.QUANTIZE] if done else (ready.asked.quantize or ("recipe",))[0]
    candidate = {**found[number].candidate, spaces.QUANTIZE: way}
    with _board(ready.folder, boards) as board:
        run = Path(built(ready, number, candidate, board, trust, display)["folder"])
    folder = ready.folder / EXPORT / str(number)
    with files.writing(folder), files.temporary_folder(folder) as made:
        for name in (api.RECIPE_FILE, "model.tflite", "model.keras", report.JSON_NAME, "report.html"):
            if (run / name).exists():
                shutil.copy2(run / name, made / name)
    return folder
