"""One build of a league in a process of its own: ``python -m edgeprune.bench_cell``.

A process each, so that no method can break another one, and every build starts from the same state, which is what makes its
bytes the same whichever were run before. The request comes as one line of JSON on standard input; what happens is told as
lines of JSON on standard output; all else that anybody prints goes to standard error. The process ends when its input does:
a league that was killed leaves no build behind, and the next one goes on with what is in the run folder.

The request: ``{"recipe": a whole recipe, "model", "data", "target", "trust", "folder": run folder, "shared": folder of common
stages, "stages": how many}``. The lines: ``{"stage": [label, index, total]}``, ``{"step": [done, total, unit], "values": {...}}``,
``{"note": text}``, ``{"done": summary}``, and at last ``{"figures": {...}}``, ``{"cannot": why the model cannot be cut so}`` or
``{"error": text}``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

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
    """Do what standard input asks for."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    told = Told(lines)
    sys.path.append(str(Path.cwd()))  # for module:function, as the command line has it
    try:
        told.say(figures=build(request, told))
    except (CutError, RecipeError) as error:  # the recipe is valid, so this is a fact of the model, and would be again
        told.say(cannot=str(error))
    except EdgepruneError as error:
        told.say(error=str(error))
    except Exception as error:
        log = crash.write(error, sys.argv)
        told.say(error=f"Unexpected {type(error).__name__}: {error} (a bug of edgeprune; please report it with {log})")


def _leave_with_parent() -> None:
    """Standard input ends with the process that asked; nothing finished is lost then."""
    while os.read(0, 1024):  # not sys.stdin, whose lock would hold up the end of the interpreter
        pass
    os._exit(KILLED)


if __name__ == "__main__":
    main()
