"""Scripts of ``benchmarks/`` and ``docs/`` as modules: they belong to no package, and some have the same name."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def loaded(folder, name):
    """``loaded("docs", "league")``: that file, executed."""
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
