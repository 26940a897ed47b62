"""Plain data -> validated pydantic object, with errors that name the file, the path, the value and what is known."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from edgeprune.errors import EdgepruneError
from edgeprune.registry import suggestion

# What pydantic puts into a path for the alternatives of a union; it is no part of the file.
BRANCH = re.compile(r"constrained-\w+|(literal|list|dict|tuple)\[.*\]|int|float|str|bool")


class Strict(BaseModel):
    """The base of every fact: frozen, no unknown keys, no silent conversion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], data: Any, where: str, error: type[EdgepruneError], prefix: str = "") -> Model:
    """An instance of ``model`` made of ``data``.

    Args:
        model: the pydantic class; its fields are the allowed keys.
        data: what a YAML file held.
        where: the file's name, for the message.
        error: the class to raise.
        prefix: path of ``data`` inside the file, such as ``stages.prune``.

    Raises:
        error: the first thing that does not fit: file, path inside it, what was given, what is known, nearest name.
    """
    if not isinstance(data, Mapping):
        at = f" {prefix}:" if prefix else ""
        raise error(f"{where}:{at} expected a mapping with the keys {_listed(model.model_fields)}, got {_shown(data)}.")
    try:
        return model.model_validate(data)
    except ValidationError as problem:
        first = _nearest(problem.errors(include_url=False))
        raise error(f"{where}: {_sentence(model, first, prefix)}") from problem


def _nearest(problems: list[Any]) -> Any:
    """The first problem; of the alternatives of a union, that of the one which fits furthest."""
    first = problems[0]["loc"]
    branch = next((place for place, part in enumerate(first) if BRANCH.fullmatch(str(part))), None)
    if branch is None:
        return problems[0]
    return max((one for one in problems if one["loc"][:branch] == first[:branch]), key=lambda one: len(one["loc"]))


def _sentence(model: type[BaseModel], problem: Any, prefix: str) -> str:
    path = [str(part) for part in problem["loc"] if not BRANCH.fullmatch(str(part))]
    dotted = ".".join([*([prefix] if prefix else []), *path])
    if problem["type"] == "extra_forbidden":
        known = list(_fields_at(model, path[:-1]))
        return f"unknown key '{dotted}'.{suggestion(path[-1], known)} Known keys there: {_listed(known)}."
    if problem["type"] == "missing":
        return f"the key '{dotted}' is missing. Add it."
    message = str(problem["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{dotted or 'the file'}: got {_shown(problem['input'])}; {message}."


def _fields_at(model: type[BaseModel], path: list[str]) -> typing.Iterable[str]:
    """The keys known where an unknown one stood: follow the field types down the path."""
    current: Any = model
    for part in path:
        candidates = _models_in(current.model_fields[part].annotation) if part in current.model_fields else []
        if candidates:
            current = candidates[0]
    return current.model_fields


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in typing.get_args(annotation) for found in _models_in(argument)]


def _listed(words: typing.Iterable[str]) -> str:
    return ", ".join(sorted(words)) or "none"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
