"""Tables and pictures of the league of methods for docs/methods.md, from benchmarks/results/methods.json.

    from runpy import run_path; run_path("docs/methods_league.py")["tables"](record)

It imports no TensorFlow. A network that is not there yet is not shown; one that is half done says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from edgeprune import bench, bench_view

Record = Mapping[str, Any]
COST = "size_gzip_bytes"  # of the picture


class Ordering(NamedTuple):
    """Which of two methods a paper found to be better; ``lottery-ticket:KIND`` is a ticket of that method's comparison."""

    better: str
    worse: str
    paper: str


ORDERINGS = (
    Ordering("weight-rewinding", "fine-tune", "Renda et al. (2020)"),
    Ordering("learning-rate-rewinding", "fine-tune", "Renda et al. (2020)"),
    Ordering("fine-tune", "fine-tune-random", "Gale et al. (2019)"),
    Ordering("rigl", "set", "Evci et al. (2020)"),
    Ordering("lottery-ticket:ticket", "lottery-ticket:random", "Frankle & Carbin (2019)"),
    Ordering("lottery-ticket:ticket", "lottery-ticket:reinitialised", "Frankle & Carbin (2019)"),
)


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
    drawn = f" Trained on {result['train']:,} samples, validation included, drawn once." if "train" in result else ""
    parts = [f"### {name}", bench_view.summary(result) + drawn, image if len(result["rows"]) > 2 else ""]
    for section in bench_view.sections(result):
        parts.append(f"#### {section.title}\n\n{_table(result, section)}")
    found = list(_orderings(result))
    if found:
        parts.append(f"#### What papers found, and what is found here\n\n{_lines(ORDERINGS_HEAD, found)}")
    told = [*result["left_out"], *bench_view.failure_words(result)]
    return "\n\n".join(part.strip() for part in [*parts, "\n".join(f"- {line.rstrip('.')}." for line in told)] if part)


def _table(result: Record, section: bench_view.Section) -> str:
    rows = [(f"`{line.name}`" if line.name != "float" else "float", *line.cells, line.fronts) for line in section.lines]
    return _lines([*bench_view.head(result), "front"], rows)


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Words, numbers to the right of them, words."""
    lines = [head, ["---", *["---:"] * (len(head) - 2), "---"], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


ORDERINGS_HEAD = ("better, as published", "share that went", "seeds", "difference", "here")


def _orderings(result: Record) -> Iterator[tuple[str, ...]]:
    """Every ordering that the cells say something of: the metric's difference, seed by seed."""
    sign = 1 if result["metric"]["higher_is_better"] else -1
    for ordering in ORDERINGS:
        better, worse = (_metrics(result, word) for word in (ordering.better, ordering.worse))
        for share in dict.fromkeys(share for share, _ in better):
            pairs = [sign * (better[key] - worse[key]) for key in better if key[0] == share and key in worse]
            of = bench.spread(pairs)
            if of is None:
                continue
            alone = len(pairs) == 1
            margin = _chance(result, ordering.better) if alone else of.spread
            within = "may be chance" if alone else "within the spread"
            here = within if abs(of.mean) <= margin else "holds" if of.mean > 0 else "does not hold"
            words = f"{_shown(ordering.better)} over {_shown(ordering.worse)}, {ordering.paper}"
            shown = f"{of.mean:+.4f}" + ("" if alone else f" ± {of.spread:.4f}")
            yield words, f"{share:g}", str(len(pairs)), shown, here


def _chance(result: Record, word: str) -> float:
    """The standard error of the difference of two shares of so many samples, at most: tickets are judged on a tenth of the training's."""
    samples = result.get("train", 0) / 10 if ":" in word else result.get("test", 0)
    return math.sqrt(0.5 / samples) if samples else 0.0


def _metrics(result: Record, word: str) -> dict[tuple[float, int], float]:
    """(share, seed) -> metric; a ticket's is on the validation split."""
    method, _, ticket = word.partition(":")
    cells = [cell for cell in result["cells"] if cell["method"] == method and cell["share"] is not None]
    values = {
        (cell["share"], cell["seed"]): cell.get("tickets", {}).get(ticket) if ticket else cell.get("metric")
        for cell in cells
    }
    return {key: value for key, value in values.items() if value is not None}


def _shown(word: str) -> str:
    method, _, ticket = word.partition(":")
    return {"ticket": "the ticket", "random": "a random one", "reinitialised": "its mask on new weights"}.get(
        ticket, f"`{method}`"
    )


def _picture_name(network: str) -> str:
    """``methods-lenet-5-mnist.svg`` for "LeNet-5, MNIST"."""
    return f"methods-{network.lower().replace(',', '').replace(' ', '-')}.svg"
