"""Tables and pictures of the league of methods for docs/methods.md, from benchmarks/results/methods.json.

    from runpy import run_path; run_path("docs/methods_league.py")["tables"](record)

It imports no TensorFlow. A network that is not there yet is not shown; one that is half done says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeprune import bench_view

Record = Mapping[str, Any]
COST = "size_gzip_bytes"  # of the picture


def tables(record: Record) -> str:
    """Every network's picture and tables, best method first."""
    return "\n\n".join(_network(name, result) for name, result in record["leagues"].items()) + "\n"


def pictures(record: Record) -> dict[str, str]:
    """File name -> SVG."""
    return {
        _picture_name(name): str(bench_view.picture(result, COST)) + "\n"
        for name, result in record["leagues"].items()
        if len(result["rows"]) > 2
    }


def _network(name: str, result: Record) -> str:
    image = f"![{name}: accuracy against compressed size, with the Pareto front](pictures/{_picture_name(name)})"
    parts = [f"### {name}", bench_view.summary(result), image if len(result["rows"]) > 2 else ""]
    for section in bench_view.sections(result):
        parts.append(f"#### {section.title}\n\n{_table(result, section)}")
    told = [*result["left_out"], *bench_view.failure_words(result)]
    return "\n\n".join(part.strip() for part in [*parts, " ".join(f"{line.rstrip('.')}." for line in told)] if part)


def _table(result: Record, section: bench_view.Section) -> str:
    head = [*bench_view.head(result), "front"]
    rows = [(f"`{line.name}`" if line.name != "float" else "float", *line.cells, line.fronts) for line in section.lines]
    lines = [head, ["---", *["---:"] * (len(head) - 2), "---"], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _picture_name(network: str) -> str:
    """``methods-lenet-5-mnist.svg`` for "LeNet-5, MNIST"."""
    return f"methods-{network.lower().replace(',', '').replace(' ', '-')}.svg"
