"""Two or more runs side by side: what differs, and what may not be compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from edgeprune.errors import RunFolderError
from edgeprune.report_view import (
    ABSENT,
    Block,
    Figure,
    big,
    block,
    candidate,
    count,
    drop,
    figure,
    higher_is_better,
    kib,
    latency,
    metric_name,
    number,
    rows,
    share,
    target_title,
)

FIGURES = ("metric", "drop", "size_bytes", "size_gzip_bytes", "params", "macs", "sparsity", "latency")
SCHEMA = 1


def compare(reports: Sequence[Block]) -> dict[str, Any]:
    """The final models of several runs, and how their recipes differ.

    Args:
        reports: Two or more records, in the order in which they are to be shown.

    Returns:
        Plain data::

            {"schema": 1,
             "runs": [{"name", "target", "target_title", "recipe_name", "created",
                       "figures": {figure: {"value", "short", "origin", "reason"}}}],
             "labels": {figure: what it is called},
             "comparable": [figures that were judged alike in all runs],
             "best": {figure: indices of the runs that lead in it; only comparable ones that differ},
             "flags": ["the targets differ: ...", ...],
             "recipe_differences": [{"key": "stages.prune.final", "values": [0.5, 0.8]}]}

    Raises:
        RunFolderError: Fewer than two reports.
    """
    if len(reports) < 2:
        raise RunFolderError(f"{len(reports)} run given, expected two or more to compare: name another run folder.")
    runs = [_run(report, name) for report, name in zip(reports, _names(reports), strict=True)]
    alike = _comparable(reports)
    return {
        "schema": SCHEMA,
        "runs": runs,
        "labels": _labels(reports),
        "comparable": alike,
        "best": _best(runs, alike, higher_is_better(reports[0])),
        "flags": _flags(reports),
        "recipe_differences": recipe_differences([report.get("recipe") for report in reports]),
    }


def _names(reports: Sequence[Block]) -> list[str]:
    """Each run's name, numbered where two are called the same."""
    plain = [str(block(report, "run").get("name") or f"run {index}") for index, report in enumerate(reports, 1)]
    return [
        name if plain.count(name) == 1 else f"{name} ({plain[: index + 1].count(name)})"
        for index, name in enumerate(plain)
    ]


def _run(report: Block, name: str) -> dict[str, Any]:
    final, run = candidate(report, "final"), block(report, "run")
    figures = {
        "metric": figure(final, "metric"),
        "drop": drop(report, "final"),
        "size_bytes": figure(final, "size_bytes", kib),
        "size_gzip_bytes": figure(final, "size_gzip_bytes", kib),
        "params": figure(final, "params", count),
        "macs": figure(final, "macs", big),
        "sparsity": figure(final, "sparsity", share),
        "latency": latency(final),
    }
    return {
        "name": name,
        "target": report.get("target"),
        "target_title": target_title(report),
        "recipe_name": run.get("recipe_name"),
        "created": run.get("created"),
        "figures": {key: _plain(value) for key, value in figures.items()},
    }


def _plain(of: Figure) -> dict[str, Any]:
    """A figure as plain data: its value, and the words that it has."""
    return {key: value for key, value in of._asdict().items() if value or key == "value"}


def _labels(reports: Sequence[Block]) -> dict[str, str]:
    names = list(dict.fromkeys(metric_name(report) for report in reports))
    words = (" / ".join(names), "against float", "size", "compressed", "parameters", "MACs", "sparsity", "latency")
    return dict(zip(FIGURES, words, strict=True))


# What may be compared

_METRIC = {"name": "metrics", "higher_is_better": "directions of the metric", "split": "splits judged on"}
_METRIC |= {"samples": "numbers of samples judged on"}


def _flags(reports: Sequence[Block]) -> list[str]:
    """One sentence for each thing that the runs do not share and that their figures depend on."""
    things: list[tuple[str, list[Any]]] = [
        ("targets", [target_title(report) for report in reports]),
        *((words, [block(report, "metric").get(key) for report in reports]) for key, words in _METRIC.items()),
        ("models", [block(report, "model").get("source") for report in reports]),
        ("data", [block(report, "data").get("source") for report in reports]),
        ("seeds of the split", [block(report, "data").get("seed") for report in reports]),
        ("origins of the latencies", [block(candidate(r, "final"), "latency").get("kind") for r in reports]),
        ("thread counts", [block(candidate(r, "final"), "latency").get("threads") for r in reports]),
    ]
    return [
        f"The {words} differ: {', '.join(_show(value) for value in given)}."
        for words, given in things
        if _differ(given)
    ]


def _differ(values: Iterable[Any]) -> bool:
    """Whether two of those that are recorded are not the same."""
    return _differ_strictly(value for value in values if value is not None)


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "higher is better" if value else "lower is better"
    return "not recorded" if value is None else str(value)


def _comparable(reports: Sequence[Block]) -> list[str]:
    """The figures whose difference means something: judged on the same samples, timed on the same target."""
    metric_alike = not any(_differ(block(report, "metric").get(key) for report in reports) for key in _METRIC)
    metric_alike &= not _differ(block(report, "data").get("source") for report in reports)
    latencies = [block(candidate(report, "final"), "latency") for report in reports]
    latency_alike = not _differ(report.get("target") for report in reports) and not any(
        _differ(given.get(key) for given in latencies) for key in ("kind", "threads")
    )
    doubtful = {"metric": metric_alike, "drop": metric_alike, "latency": latency_alike}
    return [key for key in FIGURES if doubtful.get(key, True)]


def _best(runs: Sequence[Mapping[str, Any]], alike: Sequence[str], higher: bool) -> dict[str, list[int]]:
    """Who leads in what; sparsity is left out, for zeros are a means and not a merit."""
    best = {}
    for key in alike:
        values = [run["figures"][key]["value"] for run in runs]
        known = [value for value in values if value is not None]
        if len(set(known)) > 1 and key != "sparsity":
            leader = max(known) if key == "metric" and higher else min(known)
            best[key] = [index for index, value in enumerate(values) if value == leader]
    return best


# Recipes


def recipe_differences(recipes: Sequence[Any]) -> list[dict[str, Any]]:
    """The keys in which the recorded recipes differ, with each one's value; None where a recipe has no such key.

    >>> recipe_differences([{"seed": 0, "stages": [{"prune": {"final": 0.5}}]}, {"seed": 0, "stages": []}])
    [{'key': 'stages.prune.final', 'values': [0.5, None]}]
    """
    flat = [flatten(recipe) for recipe in recipes]
    recorded = [one for one in flat if one]
    keys = dict.fromkeys(key for one in flat for key in one if key not in ("name", "description"))
    return [
        {"key": key, "values": [one.get(key) for one in flat]}
        for key in keys
        # "stages: []" says nothing beside the "stages.prune.final" of another recipe
        if _differ_strictly(one.get(key) for one in recorded) and not any(other.startswith(f"{key}.") for other in keys)
    ]


def _differ_strictly(values: Iterable[Any]) -> bool:
    """Whether two are not the same, absence being a value too."""
    return len({json.dumps(value, sort_keys=True, default=str) for value in values}) > 1


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested data as dotted keys; items of a list are named by what they are (`_item_name`), not by where they stand.

    >>> flatten({"stages": [{"stage": "prune", "final": 0.5}, {"stage": "prune", "final": 0.8}], "tags": ["a", "b"]})
    {'stages.prune.final': 0.5, 'stages.prune#2.final': 0.8, 'tags': ['a', 'b']}
    """
    if isinstance(value, Mapping) and value:
        parts: dict[str, Any] = {}
        for key, item in value.items():
            parts |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
        return parts
    items = rows({"list": value}, "list")
    if items and isinstance(value, list) and len(items) == len(value):
        return _flatten_items(items, prefix)
    return {prefix: value} if prefix else {}


def _flatten_items(items: Sequence[Block], prefix: str) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    seen: list[str] = []
    for item in items:
        name, content = _item_name(item)
        seen.append(name)
        unique = name if seen.count(name) == 1 else f"{name}#{seen.count(name)}"
        parts |= flatten(content, f"{prefix}.{unique}" if prefix else unique)
    return parts


def _item_name(item: Block) -> tuple[str, Any]:
    """('prune', its options) of ``{"prune": {...}}`` and of ``{"stage": "prune", ...}`` alike."""
    for key in ("label", "name", "stage"):
        if isinstance(item.get(key), str):
            rest = {k: v for k, v in item.items() if k not in ("label", "name", "stage")}
            return str(item[key]), rest
    if len(item) == 1:
        return next((str(key), content) for key, content in item.items())
    return "item", item


class Line(NamedTuple):
    """One line of a comparison's table."""

    label: str
    figures: list[Figure]
    best: Sequence[int] = ()


def lines(comparison: Block) -> list[Line]:
    """Target, recipe and figures of each run, as `compare` found them."""
    runs = comparison["runs"]
    found = [
        Line("target", [Figure(None, run["target_title"]) for run in runs]),
        Line("recipe", [Figure(None, _show(run["recipe_name"])) for run in runs]),
    ]
    for key, label in comparison["labels"].items():
        figures = [Figure(**run["figures"][key]) for run in runs]
        found.append(Line(label, figures, comparison["best"].get(key, ())))
    return found


def recipe_lines(comparison: Block) -> list[Line]:
    """The keys in which the recipes differ."""
    return [
        Line(difference["key"], [Figure(None, ABSENT if v is None else _value(v)) for v in difference["values"]])
        for difference in comparison["recipe_differences"]
    ]


def _value(value: Any) -> str:
    """A value of a recipe as YAML would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if number(value) is not None:
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def missing(comparison: Block) -> list[str]:
    """'b, latency: no board was given', one sentence per reason and run."""
    about: dict[tuple[str, str], list[str]] = {}
    for run in comparison["runs"]:
        for key, given in run["figures"].items():
            if given.get("reason"):
                about.setdefault((run["name"], given["reason"]), []).append(comparison["labels"][key])
    return [f"{name}, {', '.join(labels)}: {why}" for (name, why), labels in about.items()]
