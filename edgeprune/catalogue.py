"""The members of every family with what each is for, in one line, read from its docstring or its YAML file.

A module's docstring is read from its source, so nothing is imported to be listed.
"""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any, NamedTuple

from edgeprune import recipe, registry, yaml_files
from edgeprune.errors import RecipeError

PAPER = re.compile(r'[A-Z][\w-]+ (?:et al\.|& [A-Z][\w-]+), "[^"]+" \(\d{4}\)')
COST = re.compile(r"Cost: (.+?)\.(?:\n\n|$)", re.DOTALL)


class _Said(NamedTuple):
    """What a docstring says in the forms of its family; what a family does not ask for may be empty."""

    purpose: str
    equation: str
    papers: tuple[str, ...]
    cost: str


def _said(member: str, text: str, symbol: str = "", costs: bool = True) -> _Said:
    """A docstring's parts.

    Args:
        member: whose it is, below ``edgeprune``.
        text: all of it.
        symbol: of what the equation in its first line is of; "": there is none.
        costs: whether it has to tell a cost.

    Raises:
        ValueError: a part is missing; which.
    """
    purpose, _, equation = summary(text).partition(f": {symbol} ") if symbol else (summary(text), "", "")
    papers = tuple(PAPER.findall(" ".join(text.split())))
    cost = COST.search(text)
    parts = {
        f": {symbol} = equation": equation or not symbol,
        'Author et al., "Title" (year)': papers,
        "Cost: ...": cost or not costs,
    }
    missing = [form for form, found in parts.items() if not found]
    if missing:
        raise ValueError(f"The docstring of edgeprune.{member} lacks {', '.join(missing)}.")
    return _Said(purpose, f"{symbol} {equation}".strip(), papers, " ".join(cost[1].split()) if cost else "")


class Criterion(NamedTuple):
    """What a criterion's docstring and signature say.

    Attributes:
        purpose: what it is for.
        equation: of the score.
        papers: authors, title and year of each.
        signals: what it asks for, the names of its parameters.
        cost: of the signals, in words.
        per_weight: whether weights have scores, not only channels.
    """

    purpose: str
    equation: str
    papers: tuple[str, ...]
    signals: tuple[str, ...]
    cost: str
    per_weight: bool


def criterion(name: str) -> Criterion:
    """A criterion, read from its docstring and its parameters.

    Raises:
        NameUnknown: there is no such criterion.
        ValueError: its docstring has not the form that `edgeprune.criteria` describes; which part is missing.
    """
    function = registry.function("criteria", name)
    text = inspect.getdoc(function) or ""
    returned = text.partition("Returns:")[2]
    signals = tuple(inspect.signature(function).parameters)
    said = _said(f"criteria.{name}", text, "score")
    return Criterion(said.purpose, said.equation, said.papers, signals, said.cost, "Same shape" in returned)


class PenaltyFacts(NamedTuple):
    """What a penalty's docstring and signature say.

    Attributes:
        purpose: what it is for.
        equation: of what is added to the loss, before the strength.
        papers: authors, title and year of each.
        of: what it is of: ``weights``, ``groups`` or ``scales``.
    """

    purpose: str
    equation: str
    papers: tuple[str, ...]
    of: str


def penalty(name: str) -> PenaltyFacts:
    """A penalty, read from its docstring and its first parameter.

    Raises:
        NameUnknown: there is no such penalty.
        ValueError: its docstring has no equation or no paper.
    """
    function = registry.function("penalties", name)
    said = _said(f"penalties.{name}", inspect.getdoc(function) or "", "P", costs=False)
    return PenaltyFacts(said.purpose, said.equation, said.papers, next(iter(inspect.signature(function).parameters)))


class SamplerFacts(NamedTuple):
    """What a sampler's docstring and its attributes say.

    Attributes:
        purpose: what it does.
        text: the paragraphs behind that, without the one on its cost.
        papers: authors, title and year of each.
        cost: in words.
        judge: what its candidates are evaluated with, ``cut`` or ``supernet``.
    """

    purpose: str
    text: str
    papers: tuple[str, ...]
    cost: str
    judge: str


def sampler(name: str) -> SamplerFacts:
    """A sampler, read from its source.

    Raises:
        NameUnknown: there is no such sampler.
        ValueError: its docstring has not the form that `edgeprune.samplers` describes; which part is missing.
    """
    if name not in registry.names("samplers"):
        raise registry.unknown("sampler", name, registry.names("samplers"))
    tree = ast.parse(_source("samplers", name))
    text = ast.get_docstring(tree) or ""
    said = _said(f"samplers.{name}", text)
    more = COST.sub("", text.partition("\n\n")[2]).strip()
    return SamplerFacts(said.purpose, more, said.papers, said.cost, _constant(tree, "JUDGE", "cut"))


def _constant(tree: ast.Module, name: str, default: str) -> str:
    """The text that a module gives to a name of its own."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return str(ast.literal_eval(node.value))
    return default


def describe(family: str) -> dict[str, str]:
    """Name -> first sentence, for every member of a family, sorted by name.

    Args:
        family: one of ``registry.families()``.

    Raises:
        NameUnknown: no such family.
    """
    return {name: _sentence(family, name) for name in registry.names(family)}


def methods() -> dict[str, dict[str, Any]]:
    """Name -> what every method's recipe says of itself, with the recipe's description, sorted by name.

    Raises:
        RecipeError: a recipe of the family has no ``method`` block.
    """
    found = {}
    for name in registry.names("methods"):
        file = recipe.load(name).file
        if file.method is None:
            raise RecipeError(
                f"{name}.yaml lies in recipes/methods/ but says of no method what it is: add a method block."
            )
        found[name] = {"description": file.description, **file.method.model_dump(mode="json")}
    return found


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
    return summary(ast.get_docstring(ast.parse(_source(family, name))))


def _source(family: str, name: str) -> str:
    """The source of a deed."""
    path = registry.folder(registry.DEEDS[family]) / f"{name.replace('-', '_')}.py"
    return path.read_text(encoding="utf-8")
