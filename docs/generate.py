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
import runpy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import click
from pydantic import BaseModel

from edgeprune import catalogue, cli, files, recipe, registry, sensitivity_view, target
from edgeprune.data_options import DataOptions, PreprocessOptions
from edgeprune.devices import _edgetpu_facts, _edgetpu_latency, _edgetpu_limits
from edgeprune.training_options import Attention, Distillation, Penalty

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
    if DOCS / "league.md" in found and (RESULTS / "criteria_league.json").exists():
        found[DOCS / "pictures" / "criteria_league.svg"] = _beside("league", "picture")(_results("criteria_league"))
    if DOCS / "methods.md" in found and (RESULTS / "methods.json").exists():
        drawn = _beside("methods_league", "pictures")(_results("methods"))
        found |= {DOCS / "pictures" / name: text for name, text in drawn.items()}
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
    return _table(("name", "what it asks", "equation", "signals", "cost", "ranks", "paper"), rows)


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
    return _table(("name", "what it does", "what is added to the loss, times the strength", "of", "paper"), rows)


def _methods() -> str:
    """Every method's recipe, by when it acts."""
    found = sorted(
        catalogue.methods().items(), key=lambda pair: (("before", "during", "after").index(pair[1]["acts"]), pair[0])
    )
    rows = [
        (f"`{name}`", row["title"], row["acts"], row["removes"], row["cost"], "; ".join(row["papers"]))
        for name, row in found
    ]
    return _table(("recipe", "method", "acts", "removes", "cost beyond plain training", "papers"), rows)


def _keys() -> str:
    inner = {
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


def _measured(name: str, draw: Callable[[Mapping[str, Any]], str], command: str) -> Callable[[], str]:
    """A table of results, or what makes them where there are none yet."""

    def block() -> str:
        if not (RESULTS / f"{name}.json").exists():
            return f"Not measured yet: `python benchmarks/{command}` does.\n"
        return draw(_results(name))

    return block


def _clustering(record: Mapping[str, Any]) -> str:
    """What shared values save and cost, row by row."""
    if "sizes" not in record:
        return "Not measured yet: `python benchmarks/clustering.py sizes` does.\n"
    found = record["sizes"]
    rows = [("quantized after training", found["dense_int8"]), *found["rows"].items()]
    head = ("after the same training", f"{found['metric']}", "zeros", "values of a kernel", "KiB", "KiB with gzip")
    words = (
        f"`{found['model']}` on `{found['data']}`, {found['epochs']} epochs in every row but the first, "
        f"{found['test_samples']} test samples, seed {found['seed']}.\n\n"
    )
    return words + _table(head, [_clustering_row(name, row) for name, row in rows])


def _clustering_row(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name,
        f"{row['metric']:.4f}",
        f"{row['sparsity']:.3f}",
        "" if row["distinct"] is None else f"{row['distinct']} at most",
        f"{row['size_bytes'] / 1024:.1f}",
        f"{row['size_gzip_bytes'] / 1024:.1f}",
    )


def _clustering_overhead(record: Mapping[str, Any]) -> str:
    """What a training step takes, and how much more than without the method."""
    if "overhead" not in record:
        return "Not measured yet: `python benchmarks/clustering.py overhead` does.\n"
    found = record["overhead"]
    names = {
        "float": ("plain training", None),
        "cluster": ("`cluster`", "plain training"),
        "qat": ("`quantize`", None),
        "cqat": ("`quantize` that keeps clusters", "`quantize`"),
        "prune_while_qat": ("`quantize` with `prune`", "`quantize`"),
    }
    rows = []
    for key, (name, plain) in names.items():
        more = found["more"].get(key)
        against = "" if more is None else f"{100 * more['cpu']:+.0f} % against {plain}"
        rows.append((name, f"{found['step'][key]['cpu_ms']:.1f}", f"{found['step'][key]['wall_ms']:.1f}", against))
    words = (
        f"`{found['model']}`, {found['batch']} samples a step, the fastest of {found['repeats']} turns of {found['steps']} steps, "
        f"{found['cpus']} cores of which others wanted some (load {found['load']:.1f}).\n\n"
    )
    return words + _table(("a step of", "processor, ms", "wall, ms", "more processor time"), rows)


def _penalties_overhead(record: Mapping[str, Any]) -> str:
    """What a penalty takes of a training step."""
    networks = record["networks"]
    kinds = list(dict.fromkeys(kind for found in networks.values() for kind in found["more"]))
    rows = [
        (
            f"`{kind}`",
            *(
                f"{100 * found['more'][kind]['cpu']:+.0f} %" if kind in found["more"] else ""
                for found in networks.values()
            ),
        )
        for kind in kinds
    ]
    plain = "; ".join(
        f"`{name}` ({found['params']:,} parameters): {found['plain']['cpu_ms']:.1f} ms of the processor per step without a penalty, load "
        f"{found['load']:.0f} on {record['cpus']} cores"
        for name, found in networks.items()
    )
    words = f"{record['batch']} samples a step, Adam, the fastest of {record['repeats']} turns of {record['steps']} steps. {plain}.\n\n"
    return words + _table(("penalty", *(f"`{name}`, more processor time" for name in networks)), rows)


def _surgery_cost(record: Mapping[str, Any]) -> str:
    """Seconds and memory of the analysis and the surgery at full size."""
    rows = [
        (
            name,
            f"{row['params'] / 1e6:.1f} M",
            f"{row['params_after'] / 1e6:.1f} M",
            f"{row['groups_cut']} of {row['groups']}",
            f"{row['seconds']['analysis']:.2f}",
            f"{row['seconds']['surgery']:.1f}",
            f"{row['cpu_seconds']['total']:.1f}",
            f"{row['peak_above_gib']:.2f}",
            f"{row['peak_gib']:.2f}",
            f"{row['load']:.1f}",
        )
        for name, row in record["networks"].items()
    ]
    head = ("network", "parameters", "after", "groups cut", "analysis, s", "surgery and proof, s", "processor, s")
    return _table((*head, "memory more, GiB", "memory, GiB", "load before"), rows)


def _torch_pruning(record: Mapping[str, Any]) -> str:
    """The criteria's numbers and the accuracy beside torch-pruning's."""
    head = (
        "ours",
        "torch-pruning's",
        "compared after",
        "ranks agree",
        "differ by",
        "with what couples them",
        "why they differ",
    )
    rows = [
        (
            f"`{row['ours']}`",
            f"`{row['theirs']}`",
            f"{row['change']} of ours" if row["change"] else "",
            f"{row['kernels']['rank_correlation']:.3f}",
            f"{row['kernels']['largest_difference']:.0e}",
            f"{row['groups']['rank_correlation']:.3f}",
            row["why"],
        )
        for row in record.get("criteria", [])
    ]
    accuracy = [
        (
            f"`{criterion}`",
            side,
            ", ".join(f"{row['metric']:.4f}" for row in rows.values()),
            f"{sum(row['metric'] for row in rows.values()) / len(rows):.4f}",
            ", ".join(f"{row['after_cut']:.3f}" for row in rows.values()),
            ", ".join(f"{row['macs_share']:.3f}" for row in rows.values()),
        )
        for criterion, sides in record.get("accuracy", {}).items()
        for side, rows in sides.items()
        if rows
    ]
    words = ("criterion", "cut by", "accuracy of each seed", "mean", "before fine-tuning", "share of MACs left")
    runs = _table(words, accuracy) if accuracy else "No network has been cut and fine-tuned on both sides yet.\n"
    return f"{_table(head, rows)}\n{runs}"


def _shrink_curves(record: Mapping[str, Any]) -> str:
    """Accuracy and cost of every share of every network, over the seeds that are there."""
    head = ("network", "MACs asked", "seeds", "float", "int8, shrunk", "drop, each seed")
    rows = [
        (name, f"{float(share):g}", str(len(seeds)), *_curve_point(cells, found["float"], seeds))
        for name, found in record["networks"].items()
        for share, cells in sorted(found["cells"].items(), key=lambda item: -float(item[0]))
        if (seeds := sorted(set(cells) & set(found["float"]), key=int))
    ]
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in record["settings"].items())
    table = _table((*head, "MACs", "raw", "gzip", "arena"), rows) if rows else "No cell has a reference yet.\n"
    return f"{table}\nSettings: {settings}; data: {record['data']}.\n"


def _curve_point(
    cells: Mapping[str, Mapping[str, Any]], floats: Mapping[str, Mapping[str, Any]], seeds: list[str]
) -> tuple[str, ...]:
    """Mean metrics, the drops, and how many times less the cut file costs than the uncompressed int8 file."""
    costs = ("macs", "size_bytes", "size_gzip_bytes", "arena_bytes")
    times = [sum(floats[seed][cost] / cells[seed][cost] for seed in seeds) / len(seeds) for cost in costs]
    means = [sum(rows[seed]["metric"] for seed in seeds) / len(seeds) for rows in (floats, cells)]
    drops = ", ".join(f"{floats[seed]['metric'] - cells[seed]['metric']:+.4f}" for seed in seeds)
    return (*(f"{mean:.4f}" for mean in means), drops, *(f"{factor:.2f}x" for factor in times))


def _sensitivity(record: Mapping[str, Any]) -> str:
    """The demo's groups against ratios, and what the chosen ratios do at once."""
    rows = [
        (
            f"`{row.name}`",
            row.channels,
            *(f"{cell.metric}, saves {cell.saved}" if cell else "" for cell in row.cells),
            f"{record['chosen'].get(row.name, 0.0):g}",
        )
        for row in sensitivity_view.rows(record)
    ]
    head = ("group", "channels", *(f"{ratio:g}" for ratio in record["ratios"]), f"within {record['max_drop']:g}")
    words = [sensitivity_view.summary(record), sensitivity_view.resolution(record), sensitivity_view.together(record)]
    cells = "In each cell the accuracy, and the share of all MACs that the cut saves."
    return f"{_table(head, rows)}\n{cells} {' '.join(filter(None, words))}\n"


def _beside(module: str, function: str) -> Callable[[Mapping[str, Any]], Any]:
    """A function of a module beside this one; this page generator may be run or imported from anywhere."""
    found: Callable[[Mapping[str, Any]], Any] = runpy.run_path(str(Path(__file__).with_name(f"{module}.py")))[function]
    return found


def _coral_ops() -> str:
    """Every op that the Edge TPU takes, with its limits in words."""
    rows = []
    for op, known in _edgetpu_facts.facts().ops.items():
        limits = [(getattr(_edgetpu_limits, name).__doc__ or "").split("\n\n")[0] for name in known.limits]
        rows.append((f"`{op}`", str(known.runtime or ""), " ".join(limits)))
    return _table(("op", "Edge TPU runtime from", "limits"), rows)


def _coral_latency() -> str:
    """What the published networks take, and what was predicted without them."""
    fitted = _edgetpu_latency.constants()
    rows = [
        (name, row["device"], f"{row['published_ms']:g}", f"{row['left_out_ms']:.3g}", _off(row))
        for name, judged in fitted.networks.items()
        for row in judged
        if row["left_out_ms"] is not None
    ]
    per_host = ", ".join(f"{host.title}: {host.error.mean_pct:.3g} %" for host in fitted.hosts.values())
    words = f"Mean error {fitted.error.mean_pct:.3g} %, worst {fitted.error.worst_pct:.3g} % ({per_host})."
    return f"{_table(('network', 'on', 'published, ms', 'predicted, ms', 'error'), rows)}\n\n{words}"


def _latency(record: Mapping[str, Any]) -> str:
    """Published latencies of the CPU, predicted by constants that were fitted on other families."""
    fits = record["constants"]["fits"]
    judged = [
        (precision, family, str(error["figures"]), f"{error['mape_pct']:.1f} %", f"{error['worst_pct']:.1f} %")
        for precision, fit in fits.items()
        for family, error in [*fit["families"].items(), ("**all**", fit["error"])]
    ]
    rows = [
        (
            f"`{row['name']}`",
            f"{row['cycles'] / 1e6:.1f} M",
            f"{row['published_ms']:g}",
            f"{row['left_out_ms']:.3g}",
            _off(row),
        )
        for row in record["rows"]
    ]
    terms = "; ".join(
        f"{precision}: compute {fit['terms']['compute']:.3g}, fixed {fit['terms']['fixed_ms']:.2g} ms, rank correlation "
        f"{fit['error']['rank_correlation']:.3f}, from shapes alone {fit['analytic_error']['mape_pct']:.1f} %"
        for precision, fit in fits.items()
    )
    others = "; ".join(
        f"{name}: "
        + ", ".join(f"{kind} {tried[name]['mape_pct']:.1f} %" for kind, tried in record["other_models"].items())
        for name in next(iter(record["other_models"].values()))
    )
    first = _table(("precision", "left out", "figures", "mean error", "worst"), judged)
    second = _table(("network", "cycles", "published, ms", "predicted, ms", "error"), rows)
    return f"{first}\n{terms}. Tried instead, in the same way: {others}.\n\n{second}"


def _analytic(record: Mapping[str, Any]) -> str:
    """Cycles from shapes against counted ones."""
    rows = [
        (name, str(error["figures"]), f"{error['mape_pct']:.1f} %", f"{error['worst_pct']:.1f} %")
        for name, error in record["errors"].items()
    ]
    return _table(("kernels", "networks", "mean error of the cycles", "worst"), rows)


def _off(row: Mapping[str, Any]) -> str:
    return f"{100 * (row['left_out_ms'] / row['published_ms'] - 1):+.0f} %"


BLOCKS: dict[str, Callable[[], str]] = {
    "analytic": _measured("analytic", _analytic, "analytic_fit.py --table rpi4_latency.csv"),
    "latency": _measured("latency", _latency, "latency_fit.py rpi4_latency.csv"),
    "coral-latency": _coral_latency,
    "coral-ops": _coral_ops,
    "criteria-league": _measured(
        "criteria_league", _beside("league", "tables"), "criteria_league.py mnist.npz cifar10.npz"
    ),
    "sensitivity": _measured("sensitivity", _sensitivity, "sensitivity.py"),
    "shrink-curves": _measured("shrink_curves", _shrink_curves, "shrink_curves.py"),
    "clustering": _measured("clustering", _clustering, "clustering.py sizes"),
    "clustering-overhead": _measured("clustering", _clustering_overhead, "clustering.py overhead"),
    "surgery-cost": _measured("surgery_cost", _surgery_cost, "surgery_cost.py"),
    "surgery-proof": _measured("surgery_proof", _beside("surgery_proof", "table"), "surgery_proof.py"),
    "torch-pruning": _measured("torch_pruning", _torch_pruning, "torch_pruning.py"),
    "mlperf-tiny": _mlperf_tiny,
    "zoo": _zoo,
    "criteria": _criteria,
    "example": lambda: f"```yaml\n{recipe.EXAMPLE}```",
    "keys": _keys,
    "methods": _methods,
    "distill-keys": lambda: options_table(Distillation) + f"\n### `distill.attention`\n\n{options_table(Attention)}",
    "penalties": _penalties,
    "penalties-overhead": _measured("penalties", _penalties_overhead, "penalties.py"),
    "penalty-keys": lambda: options_table(Penalty),
    "methods-league": _measured(
        "methods", _beside("methods_league", "tables"), "methods_league.py mnist.npz cifar10.npz"
    ),
    "rewrites": _rewrites,
    "stages": _stages,
    "targets": _targets,
    **{
        family: _family(family)
        for family in registry.families()
        if family not in ("criteria", "methods", "penalties", "stages", "targets")
    },
}


def main() -> int:
    """Write, or with ``--check`` compare."""
    if "--check" in sys.argv[1:]:
        stale = outdated()
        for path in stale:
            click.echo(f"docs/{path.name} is out of date; write it anew with: make docs", err=True)
        return 1 if stale else 0
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        files.write_text_atomic(path, text)
        click.echo(f"wrote docs/{path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
