"""The record of a build, written and read: ``report.json`` holds everything, all other forms are drawn from it alone.

::

    build ──> report (dict) ──> report.json ──> terminal | html | notebook_html | compare ──> its terminal and html
                                                   │
    report_view      numbers and the closing table ┤
    report_words     sentences                     ┤
    report_sections  the page, block by block      ┤
    report_shrink    channels that were removed    ┤
    report_budget    what budgets tried            ┤
    report_time      milliseconds, op by op        ┤
    report_figures   its curves and bars           ┘
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprune.errors import RunFolderError
from edgeprune.files import write_text_atomic
from edgeprune.report_compare import compare
from edgeprune.report_html import compare_html, html, notebook_html
from edgeprune.report_terminal import compare_terminal, terminal

__all__ = [
    "compare",
    "compare_html",
    "compare_terminal",
    "finite",
    "html",
    "load",
    "notebook_html",
    "terminal",
    "write",
]

SCHEMA = 1
JSON_NAME, PAGE_NAME = "report.json", "report.html"
Report = dict[str, Any]

# The blocks that are read below; any may be absent, and keys that are not here are free.
_BLOCKS: dict[str, type] = {
    **dict.fromkeys(
        ("run", "model", "data", "history", "verify", "arm", "zeros", "environment", "quantization", "shrink", "time"),
        dict,
    ),
    **dict.fromkeys(("recipe", "metric", "candidates", "budget", "budgeting"), dict),
    **dict.fromkeys(("layers", "ops", "notes", "stages", "attempts"), list),
}


def write(folder: str | os.PathLike[str], report: Mapping[str, Any]) -> Path:
    """Write ``report.json`` and then ``report.html``, each in one step.

    Args:
        folder: The run folder.
        report: The record; plain data. A figure that is NaN or infinite is written as ``{"reason": ...}``.

    Returns:
        The path of ``report.json``.

    Raises:
        RunFolderError: The folder cannot be written.
    """
    clean = finite(dict(report))
    text = json.dumps(clean, indent=2, ensure_ascii=False, allow_nan=False)
    path = write_text_atomic(Path(folder) / JSON_NAME, text + "\n")
    write_text_atomic(Path(folder) / PAGE_NAME, html(clean))
    return path


def load(path: str | os.PathLike[str]) -> Report:
    """Read the record of a run.

    Args:
        path: A run folder, or its ``report.json``.

    Raises:
        RunFolderError: It is missing, damaged, or of another schema.
    """
    file = Path(path)
    file = file / JSON_NAME if file.is_dir() else file
    try:
        report: Report = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunFolderError(
            f"{file} does not exist; a finished run folder holds it. If the build was interrupted, finish it with "
            "`edgeprune build ... --resume`."
        ) from error
    except OSError as error:
        raise RunFolderError(f"cannot read {file} ({error.strerror or error}); check its permissions.") from error
    except (ValueError, RecursionError) as error:
        raise RunFolderError(
            f"{file} is damaged: it is not JSON ({error}). Write it anew with `edgeprune build ... --resume`."
        ) from error
    _check(report, file)
    return report


def _check(report: Any, file: Path) -> None:
    """Whether this is a report that the code below can read."""
    if not isinstance(report, dict) or "schema" not in report:
        raise RunFolderError(f"{file} is not a report of edgeprune: it has no 'schema'. Give a run folder.")
    if report["schema"] != SCHEMA:
        raise RunFolderError(
            f"{file} has schema {report['schema']!r} and this edgeprune reads schema {SCHEMA}; "
            f"read it with the version that wrote it ({report.get('edgeprune', 'unknown')})."
        )
    for key, kind in _BLOCKS.items():
        if report.get(key) is not None and not isinstance(report[key], kind):
            expected = "an object" if kind is dict else "a list"
            given = type(report[key]).__name__
            raise RunFolderError(
                f"{file} is damaged: '{key}' is {given}, expected {expected}. Write it anew with `edgeprune build "
                "... --resume`."
            )


def finite(value: Any) -> Any:
    """The same data with every figure that JSON cannot hold replaced by the reason it is absent.

    >>> finite({"loss": float("nan"), "epochs": [1, 2.0]})
    {'loss': {'reason': 'the figure is nan'}, 'epochs': [1, 2.0]}
    """
    if isinstance(value, Mapping):
        return {finite(str(key)): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, str | os.PathLike):
        # A file's name may hold bytes that are no text; they are spelled out, for neither form could hold them.
        return os.fspath(value).encode("utf-8", "backslashreplace").decode("utf-8")
    if hasattr(value, "tolist"):  # a NumPy scalar or array
        return finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return {"reason": f"the figure is {value}"}
    return value
