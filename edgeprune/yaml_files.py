"""Safe, strict YAML: no surprises between what the user wrote and what is read.

PyYAML follows YAML 1.1, where ``2:4`` is the number 124 (base 60), ``1e-3`` is a string, and a key written twice
silently wins over its first value. All three occur in recipes, so the loader here reads numbers as YAML 1.2 does and
refuses repeated keys. Nothing but plain data is ever constructed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from edgeprune.errors import EdgepruneError, RecipeError

_FLOAT = re.compile(
    r"^[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
)
_INT = re.compile(r"^[-+]?(?:0|[1-9]\d*)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")


class _Loader(yaml.SafeLoader):
    """SafeLoader with the numbers and booleans of YAML 1.2, and without repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # `<<: *base` stands for keys that may be given again
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (list, dict)) or key in seen:
                problem = (
                    f"the key '{key}' stands twice" if not isinstance(key, (list, dict)) else "a key must be a word"
                )
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag.endswith(("null", "merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse(text: str, where: str, error: type[EdgepruneError] = RecipeError) -> Any:
    """The plain data that a YAML text holds.

    Args:
        text: one YAML document.
        where: the file's name, for the message.
        error: the class to raise.

    Raises:
        error: the text is no YAML; the message has file, line and column.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise error(f"{where}{at}: this is not valid YAML: {problem.problem}. Mend that line.") from problem
    except (yaml.YAMLError, ValueError) as problem:
        raise error(f"{where}: this is not valid YAML: {problem}.") from problem


def read(path: Path, error: type[EdgepruneError] = RecipeError) -> Any:
    """``parse`` over a file; an unreadable one is the same error."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{path} cannot be read as text: {problem}.") from problem
    return parse(text, str(path), error)


def scalar(text: str) -> Any:
    """The value of ``--set key=VALUE``: read as YAML, so ``0.5``, ``true``, ``2:4`` and ``[1, 4]`` mean what they say."""
    return parse(text, "--set")


def dump(data: Any) -> str:
    """Block-style YAML in the order of the data, read back unchanged by ``parse``."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """SafeDumper whose plain numbers ``parse`` reads back as numbers."""


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    special: dict[str, str] = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}
    return dumper.represent_scalar("tag:yaml.org,2002:float", special.get(repr(value), repr(value)))


_represent: Callable[..., Any] = _Dumper.add_representer
_represent(float, _represent_float)
