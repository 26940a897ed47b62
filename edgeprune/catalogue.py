"""The members of every family with what each is for, in one line, read from its docstring or its YAML file.

A module's docstring is read from its source, so nothing is imported to be listed.
"""

from __future__ import annotations

import ast
import inspect
import re
from importlib import resources

from edgeprune import registry, yaml_files


def describe(family: str) -> dict[str, str]:
    """Name -> first sentence, for every member of a family, sorted by name.

    Args:
        family: one of ``registry.families()``.

    Raises:
        NameUnknown: no such family.
    """
    return {name: _sentence(family, name) for name in registry.names(family)}


def everything() -> dict[str, dict[str, str]]:
    """``describe`` for all families."""
    return {family: describe(family) for family in registry.families()}


def summary(text: str | None) -> str:
    """The first line of a docstring as plain words: no markup, no full stop.

    >>> summary("Scores of each weight: score = |w|.  ``x`` is `y`.\\n\\nMore.")
    'Scores of each weight: score = |w|.  x is y'
    """
    first = (text or "").strip().split("\n\n")[0]
    return re.sub(r"`+", "", " ".join(first.splitlines())).rstrip(".")


def _sentence(family: str, name: str) -> str:
    if family in registry.FORMULAS:
        return summary(inspect.getdoc(registry.function(family, name)))
    if family in registry.FACTS:
        data = yaml_files.read(registry.file(family, name))
        return summary(next((str(data[key]) for key in ("description", "title") if data.get(key)), ""))
    source = resources.files(registry.DEEDS[family]) / f"{name.replace('-', '_')}.py"
    return summary(ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))))
