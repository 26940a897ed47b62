"""Write the generated parts of the documentation, or say which are out of date.

    python docs/generate.py            write (``make docs``)
    python docs/generate.py --check    exit 1 when something is out of date (``make check`` and a test)

``cli.md`` and ``recipe.schema.json`` are generated whole. In the other pages everything between ``<!-- begin NAME -->`` and
``<!-- end NAME -->`` is; the rest is written by hand.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import click
from pydantic import BaseModel

from edgeprune import catalogue, cli, files, recipe, registry, target
from edgeprune.data_options import DataOptions, PreprocessOptions

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
WIDTH = 100  # of help texts, characters
BLOCK = re.compile(r"(<!-- begin (?P<name>\S+) -->\n).*?(<!-- end (?P=name) -->)", re.DOTALL)
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def pages() -> dict[Path, str]:
    """Every page that has a generated part -> its whole text as it must be."""
    found = {
        DOCS / "cli.md": cli_page(),
        DOCS / "recipe.schema.json": json.dumps(recipe.json_schema(), indent=2) + "\n",
    }
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if BLOCK.search(text):
            found[path] = BLOCK.sub(lambda match: f"{match[1]}\n{BLOCKS[match['name']]().strip()}\n\n{match[3]}", text)
    return found


def outdated() -> list[Path]:
    """The pages that are not as they must be; how lines are folded does not count, since that is click's to decide."""
    return [
        path
        for path, text in pages().items()
        if not path.exists() or path.read_text(encoding="utf-8").split() != text.split()
    ]


def cli_page() -> str:
    """Every command's ``--help``."""
    parts = ["# Command line\n\nGenerated from `--help` by `make docs`.\n"]
    for words, text in _helps(
        cli.cli, click.Context(cli.cli, info_name="edgeprune", terminal_width=WIDTH, **cli.cli.context_settings)
    ):
        parts.append(f"## {words}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def _helps(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    yield context.command_path, "\n".join(line.rstrip() for line in context.get_help().splitlines())
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from _helps(inner, click.Context(inner, info_name=name, parent=context, terminal_width=WIDTH))


def options_table(model: type[BaseModel]) -> str:
    """A pydantic class as a table: key, what it takes, default, meaning."""
    schema = model.model_json_schema()
    rows = [
        (f"`{name}`", _takes(field, schema.get("$defs", {})), _default(field), field.get("description", ""))
        for name, field in schema.get("properties", {}).items()
    ]
    return _table(("key", "takes", "default", "meaning"), rows) if rows else "It has no options.\n"


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


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _family(family: str) -> Callable[[], str]:
    """A family's members with what each is for."""
    return lambda: _table(
        ("name", "what it is for"), [(f"`{name}`", text) for name, text in catalogue.describe(family).items()]
    )


def _keys() -> str:
    inner = {"budget": recipe.Budget, "data": DataOptions, "data.preprocess": PreprocessOptions}
    return options_table(recipe.RecipeFile) + "".join(
        f"\n### `{name}`\n\n{options_table(model)}" for name, model in inner.items()
    )


def _stages() -> str:
    parts = []
    for name in registry.names("stages"):
        options = registry.module("stages", name).Options
        parts.append(f"### `{name}`\n\n{catalogue.describe('stages')[name]}.\n\n{options_table(options)}")
        parts += [f"#### `{name}.{key}`\n\n{options_table(inner)}" for key, inner in _inner(options).items()]
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
    return _table(("name", "board", "core", "runtime", "emulated"), rows)


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
    return _table(("rewrite", "what it does", "why"), rows)


def _first_line(module: str, function: str) -> str:
    """What a function of ``edgeprune.keras`` is for."""
    found = (node for node in _parsed(module).body if isinstance(node, ast.FunctionDef) and node.name == function)
    words = (ast.get_docstring(next(found)) or "").split("\n\n")[0]
    return " ".join(words.split()).removesuffix(".").replace("``", "`")


def _parsed(module: str) -> ast.Module:
    source = Path(catalogue.__file__).parent / "keras" / f"{module}.py"
    return ast.parse(source.read_text(encoding="utf-8"))


def _results(name: str) -> dict[str, Any]:
    """What ``benchmarks/`` measured; a command there writes it anew."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _zoo() -> str:
    """The networks of keras.applications; those that were trained stand last."""
    record = _results("zoo")
    rows = [
        _zoo_row(name + note, row)
        for part, note in (("random", ""), ("trained", ", trained"))
        for name, row in record.get(part, {}).items()
    ]
    head = (
        "network",
        "parameters",
        "2:4 in the file",
        "trained for int8",
        "ops",
        "float ops",
        "int8",
        "as Keras",
        "on Arm",
        "KiB",
    )
    return _table(head, rows)


def _zoo_row(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    if "error" in row:
        return (name, row["error"], *[""] * 8)
    left = len(row["post_training_layers"])
    trained = "no" if not row["trained_with_fake_quantizers"] else f"all but {left}" if left else "all"
    return (
        name,
        f"{row['params']:,}",
        f"{row['pruned_layers']} layers" if row["proven"] else "lost",
        trained,
        str(row["ops"]),
        str(row["float_ops"]),
        "yes" if row["int8"]["holds"] else "no",
        f"{row['agreement']:.3f}",
        f"{row['arm']['agreement']:.3f}" if "agreement" in row["arm"] else "not run",
        f"{row['size_bytes'] / 1024:,.0f}",
    )


def _mlperf_tiny() -> str:
    """MLPerf Tiny's networks beside their authors' files."""
    rows = []
    for name, row in _results("mlperf_tiny")["networks"].items():
        ours, theirs = row["ptq"], row["authors"]
        known = "metric" in theirs
        rows.append(
            (
                name,
                f"{theirs['size_bytes'] / 1024:.0f}",
                f"{ours['size_bytes'] / 1024:.0f}",
                f"{row['nm24']['size_bytes'] / 1024:.0f}",
                str(ours["float_ops"] + row["nm24"]["float_ops"]),
                f"{theirs['metric']:.4f}" if known else "",
                f"{ours['metric']:.4f}" if known else "",
            )
        )
    head = (
        "network",
        "authors' KiB",
        "after training, KiB",
        "2:4 and QAT, KiB",
        "float ops",
        "authors' quality",
        "ours",
    )
    return _table(head, rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "mlperf-tiny": _mlperf_tiny,
    "zoo": _zoo,
    "example": lambda: f"```yaml\n{recipe.EXAMPLE}```",
    "keys": _keys,
    "rewrites": _rewrites,
    "stages": _stages,
    "targets": _targets,
    **{family: _family(family) for family in registry.families() if family not in ("stages", "targets")},
}


def main() -> int:
    """Write, or with ``--check`` compare."""
    if "--check" in sys.argv[1:]:
        stale = outdated()
        for path in stale:
            click.echo(f"docs/{path.name} is out of date; write it anew with: make docs", err=True)
        return 1 if stale else 0
    for path, text in pages().items():
        files.write_text_atomic(path, text)
        click.echo(f"wrote docs/{path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
