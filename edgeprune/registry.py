"""From a word to a module, a function or a file.

A family of deeds is a folder of modules, a family of facts a folder of YAML files, a family of formulas the public
functions of one module. A member's name is its module's, file's or function's name (``-`` for ``_``); nothing is
registered. Something from outside the project is named by its dotted module path or by a path to a file.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeprune.errors import MissingDependency, NameUnknown

DEEDS = {
    "stages": "edgeprune.pipelines",
    "backends": "edgeprune.devices",
    "models": "edgeprune.models",
    "gates": "edgeprune.keras.gates",
    "samplers": "edgeprune.samplers",
}
FACTS = {
    "targets": ("edgeprune.devices", "targets"),
    "recipes": ("edgeprune.pipelines", "recipes"),
    "methods": ("edgeprune.pipelines", "recipes/methods"),
}
FORMULAS = {
    "criteria": "edgeprune.criteria",
    "distributions": "edgeprune.distributions",
    "schedules": "edgeprune.schedules",
    "penalties": "edgeprune.penalties",
}


def families() -> tuple[str, ...]:
    """All family names, for ``edgeprune list``."""
    return tuple(sorted([*DEEDS, *FACTS, *FORMULAS]))


def names(family: str) -> list[str]:
    """The members of a family, sorted. No member module is imported for a family of deeds or facts."""
    if family in DEEDS:
        return sorted(path.stem.replace("_", "-") for path in folder(DEEDS[family]).glob("[!_]*.py"))
    if family in FACTS:
        return sorted(path.stem for path in _facts_folder(family).glob("*.yaml"))
    if family in FORMULAS:
        return sorted(functions(family))
    raise unknown("family", family, families())


def functions(family: str) -> dict[str, Callable[..., Any]]:
    """The public functions that a family's module defines, by name."""
    module = importlib.import_module(FORMULAS[family])
    return {
        name: member
        for name, member in vars(module).items()
        if inspect.isfunction(member) and member.__module__ == module.__name__ and not name.startswith("_")
    }


def module(family: str, name: str) -> ModuleType:
    """The module that a word names: one of ours, or a dotted path outside the project.

    Raises:
        NameUnknown: there is no such module.
        MissingDependency: the module is there, but something it imports is not.
    """
    known = names(family)
    path = f"{DEEDS[family]}.{name.replace('-', '_')}" if name in known else name
    if name not in known and ("." not in name or not _module_exists(path)):
        raise unknown(singular(family), name, known)
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"'{name}' needs the Python package '{error.name}', which is not installed. Install it: pip install {error.name}"
        ) from error


def function(family: str, name: str) -> Callable[..., Any]:
    """The formula that a word names."""
    known = functions(family)
    if name not in known:
        raise unknown(singular(family), name, known)
    return known[name]


def file(family: str, name: str) -> Path:
    """The YAML file that a word names: one of ours, or a path that ends in ``.yaml`` or ``.yml``."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise NameUnknown(f"There is no file '{name}'. Give the path of an existing {singular(family)} file.")
        return path
    if name not in names(family):
        raise unknown(singular(family), name, names(family))
    return _facts_folder(family) / f"{name}.yaml"


def beside(family: str, *parts: str) -> Path:
    """Where a file that belongs to a family of facts lies, beside its folder; it need not exist.

    >>> beside("targets", "latency", "cortex-a72.yaml").name
    'cortex-a72.yaml'
    """
    return folder(FACTS[family][0]).joinpath(*parts)


def attribute(path: str) -> Any:
    """What ``module:name`` points to; the module is imported, so the user must have written the word themselves.

    Raises:
        NameUnknown: no such module, or no such name in it (with the nearest that is there).
    """
    module_name, colon, name = path.partition(":")
    if not colon or not name:
        raise NameUnknown(f"'{path}' does not say which function. Give it as module:function.")
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise NameUnknown(
            f"'{path}': there is no module '{error.name}'. Give it as module:function, importable from the current folder."
        ) from error
    if not hasattr(found, name):
        raise unknown(f"name in {module_name}", name, [word for word in vars(found) if not word.startswith("_")])
    return getattr(found, name)


def singular(family: str) -> str:
    """What one member of a family is called."""
    return {"criteria": "criterion", "penalties": "penalty"}.get(family, family.removesuffix("s"))


def suggestion(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"``, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def unknown(kind: str, word: str, known: Iterable[str]) -> NameUnknown:
    """The error for a word that names nothing."""
    listed = sorted(known)
    return NameUnknown(f"There is no {kind} '{word}'.{suggestion(word, listed)} Known: {', '.join(listed) or 'none'}.")


def folder(package: str) -> Path:
    """Where a package's files lie. Nothing of the keras room is imported for that: it would wait for TensorFlow."""
    _, inside, name = package.partition("edgeprune.keras.")
    return Path(__file__).with_name("keras") / name if inside else Path(str(resources.files(package)))


def _facts_folder(family: str) -> Path:
    package, inside = FACTS[family]
    return folder(package) / inside


def _module_exists(path: str) -> bool:
    try:
        return importlib.util.find_spec(path) is not None
    except (ModuleNotFoundError, ValueError):
        return False
