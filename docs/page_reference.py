"""The parts of the pages that say what there is: read from docstrings, options and data files."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from page_parts import table
from pydantic import BaseModel

from edgeprune import catalogue, recipe, registry, target
from edgeprune.data_options import DataOptions, PreprocessOptions
from edgeprune.devices import _edgetpu_facts, _edgetpu_limits
from edgeprune.training_options import Attention, Distillation, Penalty

BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def options_table(model: type[BaseModel]) -> str:
    """A pydantic class as a table: key, what it takes, default, meaning."""
    schema = model.model_json_schema()
    rows = [
        (f"`{name}`", _takes(field, schema.get("$defs", {})), _default(field), field.get("description", ""))
        for name, field in schema.get("properties", {}).items()
    ]
    return table(("key", "takes", "default", "meaning"), rows) if rows else "It has no options.\n"


def _takes(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """What a JSON Schema allows, in words."""
    if "$ref" in field:
        return "the keys below" if "properties" in definitions.get(field["$ref"].rpartition("/")[2], {}) else "mapping"
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_takes(inner, definitions) for inner in field["anyOf"]))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    kind = {"object": "mapping", "array": "list", "boolean": "true, false", "string": "text"}.get(
        field.get("type", ""), field.get("type", "anything")
    )
    if kind == "list" and "items" in field:
        kind = f"list of {_takes(field['items'], definitions)}"
    return " ".join([kind, *(f"{sign} {field[bound]}" for bound, sign in BOUNDS.items() if bound in field)])


def _default(field: Mapping[str, Any]) -> str:
    if "default" not in field:
        return ""
    value = field["default"]
    return f"`{value}`" if isinstance(value, str) and value else f"`{json.dumps(value)}`"


def _family(family: str) -> Callable[[], str]:
    """A family's members with what each is for."""
    return lambda: table(
        ("name", "what it is for"), [(f"`{name}`", text) for name, text in catalogue.describe(family).items()]
    )


def _criteria() -> str:
    """Every criterion, from its docstring and its parameters."""
    rows = []
    for name in registry.names("criteria"):
        found = catalogue.criterion(name)
        signals = ", ".join(f"`{signal}`" for signal in found.signals)
        ranks = "weights, channels" if found.per_weight else "channels"
        rows.append(
            (f"`{name}`", found.purpose, f"`{found.equation}`", signals, found.cost, ranks, "; ".join(found.papers))
        )
    return table(("name", "what it asks", "equation", "signals", "cost", "ranks", "paper"), rows)


def _penalties() -> str:
    """Every penalty, from its docstring and its parameters."""
    words = {
        "weights": "single weights",
        "groups": "units of coupled channels",
        "scales": "scales of BatchNormalization",
    }
    rows = []
    for name in registry.names("penalties"):
        found = catalogue.penalty(name)
        rows.append((f"`{name}`", found.purpose, f"`{found.equation}`", words[found.of], "; ".join(found.papers)))
    return table(("name", "what it does", "what is added to the loss, times the strength", "of", "paper"), rows)


def _methods() -> str:
    """Every method's recipe, by when it acts."""
    found = sorted(
        catalogue.methods().items(), key=lambda pair: (("before", "during", "after").index(pair[1]["acts"]), pair[0])
    )
    rows = [
        (f"`{name}`", row["title"], row["acts"], row["removes"], row["cost"], "; ".join(row["papers"]))
        for name, row in found
    ]
    return table(("recipe", "method", "acts", "removes", "cost beyond plain training", "papers"), rows)


def _keys() -> str:
    inner: dict[str, type[BaseModel]] = {
        "method": recipe.Method,
        "budget": recipe.Budget,
        "data": DataOptions,
        "data.preprocess": PreprocessOptions,
    }
    return options_table(recipe.RecipeFile) + "".join(
        f"\n### `{name}`\n\n{options_table(model)}" for name, model in inner.items()
    )


def _stages() -> str:
    parts = []
    for name in registry.names("stages"):
        options = registry.module("stages", name).Options
        parts.append(f"### `{name}`\n\n{catalogue.describe('stages')[name]}.\n\n{options_table(options)}")
        parts += [
            f"#### `{name}.{key}`\n\n{options_table(inner)}"
            for key, inner in _inner(options).items()
            if inner not in (Penalty, Distillation)  # of every training stage: they have a page of their own
        ]
    return "\n".join(parts)


def _inner(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The options that have keys of their own."""
    kinds = [(name, kind) for name, field in model.model_fields.items() for kind in get_args(field.annotation)]
    return {name: kind for name, kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)}


def _targets() -> str:
    rows = []
    for name in registry.names("targets"):
        facts = target.load(registry.file("targets", name))
        runtime = " ".join(filter(None, (facts.runtime.package, facts.runtime.version)))
        emulated = f"as `{facts.emulate.cpu}`" if facts.emulate.cpu else f"no: {facts.emulate.reason}"
        rows.append((f"`{name}`", facts.title, facts.cpu.core or "", runtime, emulated))
    return table(("name", "board", "core", "runtime", "emulated"), rows)


def _rewrites() -> str:
    """The rewrites in their order, read from the sources: importing them would load TensorFlow."""
    tree = _parsed("preparation")
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "edgeprune.keras"]
    modules = {alias.asname or alias.name: alias.name for node in imports for alias in node.names}
    rows = []
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "Rewrite":
            name, function, reason = call.args
            module, _, word = ast.unparse(function).removeprefix("_always(").removesuffix(")").partition(".")
            rows.append((f"`{ast.literal_eval(name)}`", _first_line(modules[module], word), ast.literal_eval(reason)))
    return table(("rewrite", "what it does", "why"), rows)


def _first_line(module: str, function: str) -> str:
    """What a function of ``edgeprune.keras`` is for."""
    found = (node for node in _parsed(module).body if isinstance(node, ast.FunctionDef) and node.name == function)
    words = (ast.get_docstring(next(found)) or "").split("\n\n")[0]
    return " ".join(words.split()).removesuffix(".").replace("``", "`")


def _parsed(module: str) -> ast.Module:
    source = Path(catalogue.__file__).parent / "keras" / f"{module}.py"
    return ast.parse(source.read_text(encoding="utf-8"))


def _coral_ops() -> str:
    """Every op that the Edge TPU takes, with its limits in words."""
    rows = []
    for op, known in _edgetpu_facts.facts().ops.items():
        limits = [(getattr(_edgetpu_limits, name).__doc__ or "").split("\n\n")[0] for name in known.limits]
        rows.append((f"`{op}`", str(known.runtime or ""), " ".join(limits)))
    return table(("op", "Edge TPU runtime from", "limits"), rows)


OWN: dict[str, Callable[[], str]] = {  # families that have more to say than what each member is for
    "criteria": _criteria,
    "methods": _methods,
    "penalties": _penalties,
    "stages": _stages,
    "targets": _targets,
}
BLOCKS: dict[str, Callable[[], str]] = {
    "coral-ops": _coral_ops,
    "distill-keys": lambda: options_table(Distillation) + f"\n### `distill.attention`\n\n{options_table(Attention)}",
    "example": lambda: f"```yaml\n{recipe.EXAMPLE}```",
    "keys": _keys,
    "penalty-keys": lambda: options_table(Penalty),
    "rewrites": _rewrites,
    **{family: _family(family) for family in registry.families()},
    **OWN,
}
