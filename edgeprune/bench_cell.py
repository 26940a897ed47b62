"""Builds of a league, one after the other, each in a process of its own: ``python -m edgeprune.bench_cell``.

A process each, so that no method can break another one, and every build starts from the same state, which is what makes its
bytes the same whichever were run before. They are forked from one process, which has loaded TensorFlow and done nothing with it,
and has a converter waiting: on a small network, to load these takes longer than all else but training.

Requests come as lines of JSON on standard input; what happens is told as lines of JSON on standard output; all else that
anybody prints goes to a build's log. Everything ends when the input does: a league that was killed leaves no build behind, and
the next one goes on with what is in the run folder.

A request: ``{"recipe": a whole recipe, "model", "data", "target", "trust", "folder": run folder, "shared": folder of common
stages, "stages": how many, "log": file}``.

The lines: ``{"stage": [label, index, total]}``, ``{"step": [done, total, unit], "values": {...}}``,
``{"note": text}``, ``{"done": summary}``, and at last ``{"figures": {...}}``, ``{"cannot": why the model cannot be cut so}`` or
``{"error": text}``, and then ``{"ended": exit code, negative: signal}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TextIO

from edgeprune import api, bench, crash, pipeline, recipe, yaml_files
from edgeprune.errors import CutError, EdgepruneError, RecipeError, RunFolderError

KILLED = 130  # exit code when whoever asked is gone


class Told:
    """Progress as lines of JSON; figures of a step only now and then."""

    EVERY_S = 0.2

    def __init__(self, lines: TextIO) -> None:
        self._lines, self._last = lines, 0.0

    def say(self, **message: Any) -> None:
        """One line; flushed, since somebody waits for it."""
        self._lines.write(json.dumps(message) + "\n")
        self._lines.flush()

    def stage(self, label: str, index: int, total: int) -> None:
        self._last = 0.0
        self.say(stage=[label, index, total])

    def step(self, done: float, total: float, unit: str, **values: float) -> None:
        now = time.monotonic()
        if now - self._last >= self.EVERY_S or done >= total:
            self._last = now
            self.say(
                step=[float(done), float(total), unit], values={name: float(value) for name, value in values.items()}
            )

    def note(self, message: str) -> None:
        self.say(note=message)

    def done(self, summary: str, seconds: float, resumed: bool = False) -> None:
        self.say(done=summary)

    def close(self) -> None:
        pass


def build(request: Mapping[str, Any], told: Told) -> dict[str, Any]:
    """Build, or go on with what the run folder holds of the same build; what the league keeps of it."""
    folder, chosen = Path(request["folder"]), recipe.load(request["recipe"])
    shared = pipeline.Shared(Path(request["shared"]), request["stages"])
    how = {"out": folder, "trust": request["trust"], "progress": told, "shared": shared}
    if _holds(folder, chosen):
        try:
            return bench.figures(api.build(data=request["data"], resume=True, **how).report)
        except RunFolderError as error:
            told.note(f"begun anew: {error}")
    what = {"recipe": chosen.resolved(), "target": request["target"], "force": True}
    return bench.figures(api.build(request["model"], request["data"], **what, **how).report)


def _holds(folder: Path, chosen: recipe.Recipe) -> bool:
    """Whether a run folder is of this very recipe."""
    if not (folder / api.RUN_FILE).exists():
        return False
    try:
        return bool(yaml_files.read(folder / api.RECIPE_FILE) == chosen.resolved())
    except EdgepruneError:
        return False


def main() -> None:
    """Do what standard input asks for, until it ends."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    told = Told(lines)
    sys.path.append(str(Path.cwd()))  # for module:function, as the command line has it
    while line := sys.stdin.readline():
        _load()
        code = _in_a_process(json.loads(line), told)
        if code != 0:
            _drop()
        told.say(ended=code)


def _load() -> None:
    """Load what every build loads, and have a converter waiting. On Linux alone: elsewhere a fork of it may crash."""
    if sys.platform == "linux":
        with contextlib.suppress(EdgepruneError):  # what cannot be had, the build will say
            from edgeprune.keras import conversion, keras3, tfmot  # noqa: F401

            conversion.prewarm()
            keras3.keras3()


def _drop() -> None:
    """End the converters, which may be in the middle of what a build that is no more had asked for."""
    if sys.platform == "linux":
        with contextlib.suppress(EdgepruneError):
            from edgeprune.keras import conversion

            conversion.drop()


def _in_a_process(request: Mapping[str, Any], told: Told) -> int:
    """Build in a fork; its exit code, or -N where signal N ended it."""
    child = os.fork()
    if child == 0:
        _cell(request, told)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _cell(request: Mapping[str, Any], told: Told) -> NoReturn:
    """Build, tell what came of it, and end this process: with 0 if nothing went wrong."""
    with Path(request["log"]).open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    code = 1
    try:
        told.say(figures=build(request, told))
        code = 0
    except (CutError, RecipeError) as error:  # the recipe is valid, so this is a fact of the model, and would be again
        told.say(cannot=str(error))
        code = 0
    except EdgepruneError as error:
        told.say(error=str(error))
    except Exception as error:
        log_file = crash.write(error, sys.argv)
        told.say(
            error=f"Unexpected {type(error).__name__}: {error} (a bug of edgeprune; please report it with {log_file})"
        )
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _leave_with_parent() -> None:
    """Standard input ends with the process that asked; nothing finished is lost then."""
    while os.read(0, 1024):  # not sys.stdin, whose lock would hold up the end of the interpreter
        pass
    os._exit(KILLED)


if __name__ == "__main__":
    main()
