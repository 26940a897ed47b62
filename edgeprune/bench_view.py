"""What a league came to: plain data, a table for the terminal, and one self-contained HTML page that sends no request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import edgeprune
from edgeprune import bench, bench_figures, report_html, tables
from edgeprune.progress import duration, printable
from edgeprune.report_view import ABSENT, big, decimals, kib, percent, share, signed

Plain = Mapping[str, Any]
COSTS = {"size_gzip_bytes": "compressed size, KiB", "macs": "multiply-accumulates, thousands"}  # of the pictures
UNITS = {"size_gzip_bytes": 1024.0, "macs": 1000.0}
MARKS = {"size_gzip_bytes": "s", "macs": "m"}  # on which front a row is
TITLES = {"float": "dense, float", "dense-ptq": "dense, int8 after training", "dense": "dense, int8 while training"}
HEAD = ("method", "{metric}", "against float", "zeros", "MACs", "raw", "compressed", "latency", "training")


def league(
    *,
    terms: bench.Terms,
    cells: Sequence[Plain],
    failures: Sequence[Plain],
    left_out: Sequence[str],
    planned: int,
    metric: Plain,
    target_title: str,
    about: Mapping[str, Plain],
) -> dict[str, Any]:
    """What ``methods.json`` holds.

    Returns:
        ``schema``, ``edgeprune``, the terms, ``metric`` (``name``, ``higher_is_better`` ...), ``seeds``, ``shares``, ``planned``
        (cells), ``cells`` (one per build), ``rows`` (`bench.rows`), ``fronts`` (cost -> places in ``rows``, in order of cost),
        ``methods`` (what each that is there says of itself, and its stages' ``epochs``), ``failures`` and ``left_out``.
    """
    higher = metric.get("higher_is_better") is not False
    cells, absent = [cell for cell in cells if "cannot" not in cell], [cell for cell in cells if "cannot" in cell]
    rows = bench.rows(cells, higher)
    names = list(dict.fromkeys(cell["method"] for cell in cells))
    epochs = {cell["method"]: cell["epochs"] for cell in cells}
    return {
        "schema": bench.SCHEMA,
        "edgeprune": edgeprune.__version__,
        **terms._asdict(),
        "overrides": dict(terms.overrides),
        "target_title": target_title,
        "metric": {key: metric[key] for key in ("name", "higher_is_better", "split", "samples") if key in metric},
        "seeds": sorted({cell["seed"] for cell in cells}),
        "shares": sorted({cell["share"] for cell in cells if cell["share"] is not None}),
        "planned": planned - len(absent),
        "cells": [{key: value for key, value in cell.items() if key != "key"} for cell in cells],
        "rows": rows,
        "fronts": {cost: _front(rows, cost, higher) for cost in COSTS},
        "methods": {name: {**about.get(name, {}), "epochs": epochs[name]} for name in names},
        "failures": [dict(failure) for failure in failures],
        "left_out": [
            *left_out,
            *(f"{_named(group)} cannot: {reason}" for reason, group in _by_reason(absent, "cannot")),
        ],
    }


def _front(rows: Sequence[Plain], cost: str, higher: bool) -> list[int]:
    """Places of the rows on the Pareto front; the float network is no competitor, it is no int8 file."""
    places = [place for place, row in enumerate(rows) if row["method"] != "float" and row["metric"] and row[cost]]
    points = [(rows[place][cost]["mean"], rows[place]["metric"]["mean"]) for place in places]
    return [places[at] for at in bench.front(points, higher)]


# Words


def title(result: Plain, row: Plain) -> str:
    """What a row is called: a method's own title, or what a baseline is."""
    about = result["methods"].get(row["method"], {})
    return str(TITLES.get(row["method"]) or about.get("title") or row["method"])


def kind(result: Plain, row: Plain) -> str:
    """What a row's method removes."""
    return str(result["methods"].get(row["method"], {}).get("removes", "nothing"))


class Line(NamedTuple):
    """A row in words.

    Attributes:
        place: in ``rows``.
        name: of the recipe, or "float".
        fronts: ``s`` and ``m``: on the front of size, of MACs.
        cells: the figures, in the order of ``HEAD`` without the name.
    """

    place: int
    name: str
    title: str
    kind: str
    fronts: str
    seeds: int
    cells: tuple[str, ...]


class Section(NamedTuple):
    """The rows of one share, best first, below those that remove nothing."""

    title: str
    lines: Sequence[Line]


def sections(result: Plain) -> list[Section]:
    """A section per share, the largest last, and one of the methods that have a share of their own."""
    rows = list(enumerate(result["rows"]))
    nothing = ("float", *bench.BASELINES)
    base = [pair for pair in rows if pair[1]["method"] in nothing]
    own = [pair for pair in rows if pair[1]["share"] is None and pair[1]["method"] not in nothing]
    found = [
        Section(
            f"{percent(asked)} asked to go", _lines(result, base, [pair for pair in rows if pair[1]["share"] == asked])
        )
        for asked in result["shares"]
    ]
    if own or not found:
        found.append(Section("With a share of their own" if own else "Nothing removed", _lines(result, base, own)))
    return found


def _lines(result: Plain, base: Sequence[tuple[int, Plain]], rows: Sequence[tuple[int, Plain]]) -> list[Line]:
    sign = -1 if result["metric"].get("higher_is_better") is not False else 1
    ranked = sorted(rows, key=lambda pair: sign * pair[1]["metric"]["mean"])
    return [_line(result, place, row) for place, row in [*base, *ranked]]


def _line(result: Plain, place: int, row: Plain) -> Line:
    fronts = "".join(mark for cost, mark in MARKS.items() if place in result["fronts"][cost])
    cells = (
        _words(row["metric"], decimals),
        _drop(result, row),
        _words(row["sparsity"], share, False),
        _words(row["macs"], big, False),
        _words(row["size_bytes"], kib, False),
        _words(row["size_gzip_bytes"], kib),
        _words(row["latency_ms"], lambda ms: f"{ms:.3g} ms", False),
        _words(row["training_s"], duration, False) if row["method"] != "float" else ABSENT,
    )
    return Line(place, row["method"], title(result, row), kind(result, row), fronts, len(row["seeds"]), cells)


def _words(of: Plain | None, render: Any, with_spread: bool = True) -> str:
    """'0.9871 ± 0.0012'; the mean alone where there is one seed, or the spread says little."""
    if of is None:
        return ABSENT
    mean = str(render(of["mean"]))
    if not with_spread or not of["spread"]:
        return mean
    spread = f"{of['spread']:.4f}" if render is decimals and of["mean"] < 10 else str(render(of["spread"]))
    figure, _, unit = mean.partition(" ")
    return f"{figure} ± {spread}" if spread.endswith(f" {unit}") or not unit else f"{mean} ± {spread}"


def _drop(result: Plain, row: Plain) -> str:
    """How far below the float network of the same seed: '−0.42 points'."""
    if row["method"] == "float":
        return "baseline"
    if row["drop"] is None:
        return ABSENT
    worse = row["drop"]["mean"]
    if in_points(result):
        return signed(-worse, f"{100 * abs(worse):.2f} points") if worse else "equal"
    return signed(worse, decimals(abs(worse))) if worse else "equal"


def in_points(result: Plain) -> bool:
    """Whether the metric is a share, so that differences are read as points of 100."""
    means = [row["metric"]["mean"] for row in result["rows"] if row["metric"]]
    return result["metric"].get("higher_is_better") is not False and all(0 <= mean <= 1 for mean in means)


def headline(result: Plain) -> str:
    """The best method at every share."""
    parts = []
    for asked in result["shares"]:
        rows = [row for row in result["rows"] if row["share"] == asked and row["metric"]]
        if rows:
            best = (max if result["metric"].get("higher_is_better") is not False else min)(
                rows, key=lambda row: row["metric"]["mean"]
            )
            parts.append(f"{percent(asked)} gone: {title(result, best)}, {_words(best['metric'], decimals)}")
    return "; ".join(parts) or "The league has only begun"


def summary(result: Plain) -> str:
    """On which terms, and how far it has come."""
    seeds = result["seeds"]
    over = (
        f"Means ± sample standard deviations over {len(seeds)} seeds"
        if len(seeds) > 1
        else "One seed: no spread is known"
    )
    metric = result["metric"].get("name", "metric")
    on = f" on {result['metric']['samples']:,} test samples" if "samples" in result["metric"] else ""
    done = len(result["cells"])
    state = "" if done >= result["planned"] else f" {done} of {result['planned']} builds are there so far."
    come = "comes trained and is trained" if result["trained"] else "is trained"
    return (
        f"{result['model']} on {result['data']} {come} for {result['epochs']} epochs in all by every method, quantization-aware "
        f"training included. {over}; {metric} of the int8 file{on}; latency on {result['target_title']}.{state}"
    )


NOTES = (
    "Asked to go: zeros among the weights of the layers that are pruned, or the share of multiply-accumulates that channels take "
    "with them. What the file then holds is in the table.",
    "s, m: on the Pareto front of compressed size, of multiply-accumulates: no other file is smaller (has fewer) and as good.",
)


# The terminal


def terminal(result: Plain) -> RenderableType:
    """All sections as tables."""
    parts: list[RenderableType] = [Text(headline(result), style="bold"), Text(summary(result)), Text("")]
    for section in sections(result):
        parts += [Text(section.title, style="bold"), table(result, section), Text("")]
    told = [*NOTES, *result["left_out"], *failure_words(result)]
    return Group(*parts, *(Text(printable(line), style="dim") for line in told))


def table(result: Plain, section: Section) -> Table:
    """One section."""
    drawn = tables.columned(head(result))
    drawn.add_column("", no_wrap=True)
    for line in section.lines:
        style = "dim" if line.kind == "nothing" else ""
        drawn.add_row(line.name, *line.cells, line.fronts, style=style)
    return drawn


def head(result: Plain) -> list[str]:
    """What the columns are called."""
    return [word.format(metric=result["metric"].get("name", "metric")) for word in HEAD]


def failure_words(result: Plain) -> list[str]:
    """What came to nothing, and why: one line for all cells with the same reason."""
    return [f"{_named(group)} failed: {reason}" for reason, group in _by_reason(result["failures"], "reason")]


def _by_reason(cells: Sequence[Plain], key: str) -> list[tuple[str, list[Plain]]]:
    """Cells that have a reason in common."""
    groups: dict[str, list[Plain]] = {}
    for cell in cells:
        groups.setdefault(cell[key], []).append(cell)
    return list(groups.items())


def _named(cells: Sequence[Plain]) -> str:
    """Each by its name; of several seeds once: ``l0-channels-0.98 (seeds 0, 1)``."""
    seeds: dict[tuple[str, float | None], list[int]] = {}
    for cell in cells:
        seeds.setdefault((cell["method"], cell["share"]), []).append(cell["seed"])
    words = []
    for (method, asked), found in seeds.items():
        name = bench.Cell(method, asked, found[0]).name
        several = f"{name.removesuffix(f'-seed{found[0]}')} (seeds {', '.join(map(str, found))})"
        words.append(name if len(found) == 1 else several)
    return ", ".join(words)


# The page


def html(result: Plain) -> str:
    """The page of a result; the same result gives the same bytes."""
    return report_html.render(
        "methods.html.j2",
        title=f"Methods on {result['model']}",
        result=result,
        headline=headline(result),
        summary=summary(result),
        notes=NOTES,
        head=head(result),
        sections=sections(result),
        pictures=[(name, picture(result, cost)) for cost, name in COSTS.items() if len(_points(result, cost)) > 1],
        methods=[_about(name, about) for name, about in result["methods"].items()],
        failures=failure_words(result),
    )


def picture(result: Plain, cost: str) -> Markup:
    """The metric against a cost, with the Pareto front; the float network is left out, it would push all others aside."""
    higher = result["metric"].get("higher_is_better") is not False
    name = str(result["metric"].get("name", "metric"))
    points = _points(result, cost)
    front = [number for number, place in enumerate(_shown(result, cost)) if place in result["fronts"][cost]]
    in_order = sorted(front, key=lambda number: result["fronts"][cost].index(_shown(result, cost)[number]))
    label = f"{name} against {COSTS[cost]}, with the Pareto front"
    return bench_figures.scatter(label, points, in_order, (COSTS[cost], name), higher)


def _shown(result: Plain, cost: str) -> list[int]:
    """Places of the rows in a picture."""
    return [
        place
        for place, row in enumerate(result["rows"])
        if row["method"] != "float" and row["metric"] and row[cost] and row[cost]["mean"] > 0
    ]


def _points(result: Plain, cost: str) -> list[bench_figures.Point]:
    rows = [result["rows"][place] for place in _shown(result, cost)]
    return [
        bench_figures.Point(
            row["method"] if row["share"] is None else f"{row['method']} {row['share']:g}",
            kind(result, row),
            row[cost]["mean"] / UNITS[cost],
            row["metric"]["mean"],
            row["metric"]["spread"],
        )
        for row in rows
    ]


def _about(name: str, about: Plain) -> dict[str, str]:
    """A method's entry in the list below the tables."""
    epochs = ", ".join(f"{label} {count}" for label, count in about["epochs"].items())
    return {
        "name": name,
        "title": str(TITLES.get(name) or about.get("title", name)),
        "acts": str(about.get("acts", ABSENT)),
        "removes": str(about.get("removes", "nothing")),
        "cost": str(about.get("cost", ABSENT)),
        "papers": "; ".join(about.get("papers", [])) or ABSENT,
        "epochs": epochs or ABSENT,
    }
