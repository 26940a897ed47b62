"""What benchmarks/search_samplers.py and benchmarks/search_scaling.py measured, as tables and a picture for the docs.

Pure functions of the records; ``docs/generate.py`` writes what they return. What is not there yet is left out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from page_parts import table, text

from edgeprune import bench, report_figures

Row = Mapping[str, Any]
Record = Mapping[str, Any]
IMAGE = "![Hypervolume after so many trials, sampler by sampler](pictures/samplers.svg)"
BASELINES = ("random", "uniform")
PANEL_WIDTH, LINE, LEFT, TOP, GAP = 300, 26, 110, 84, 40  # of the picture
DOT = {"mean": "#0072b2", "baseline": "#d55e00"}  # Okabe & Ito


class Volume(NamedTuple):
    """Hypervolumes of one sampler on one network: trials -> seed -> share of the box."""

    sampler: str
    at: Mapping[int, Mapping[int, float]]

    @property
    def last(self) -> Mapping[int, float]:
        return self.at[max(self.at)]


# Tables


def tables(record: Record) -> str:
    """Hypervolumes of every network, best sampler first; places over the networks; what was found, trained."""
    networks = _networks(record)
    parts = [IMAGE] if any(_volumes(record, name) for name in networks) else []
    for name in networks:
        parts += [f"### {name}", _volume_table(record, name), _limit_table(record, name), _trained_table(record, name)]
    return "\n\n".join(part.strip() for part in [*parts, _places(record, networks)] if part) + "\n"


def _networks(record: Record) -> list[str]:
    return list(dict.fromkeys(row["network"] for row in record["cells"]))


def _rows(record: Record, phase: str, network: str) -> list[Row]:
    return [row for row in record["cells"] if (row["phase"], row["network"]) == (phase, network)]


def _volumes(record: Record, network: str) -> list[Volume]:
    """The samplers of a network that have the seeds of the one that has most, largest mean volume first."""
    found: dict[str, dict[int, dict[int, float]]] = {}
    for row in _rows(record, "volume", network):
        for trials, value in row["volume"].items():
            found.setdefault(row["sampler"], {}).setdefault(int(trials), {})[row["seed"]] = value
    volumes = [Volume(name, at) for name, at in found.items()]
    most = max((len(one.last) for one in volumes), default=0)
    return sorted(
        (one for one in volumes if len(one.last) == most), key=lambda one: -statistics.fmean(one.last.values())
    )


def _volume_table(record: Record, network: str) -> str:
    volumes = _volumes(record, network)
    if not volumes:
        return ""
    counts = sorted(set.intersection(*(set(one.at) for one in volumes)))
    named = {one.sampler: one for one in volumes}
    rows = [
        (
            f"`{one.sampler}`",
            *(_spread(one.at[count].values()) for count in counts),
            *(
                "" if name == one.sampler or name not in named else _difference(one.last, named[name].last)
                for name in BASELINES
            ),
        )
        for one in volumes
    ]
    head = ("sampler", *(f"{count} trials" for count in counts), *(f"over `{name}`" for name in BASELINES))
    samples = sorted({row["samples"] for row in _rows(record, "volume", network) if "samples" in row})
    judged = f", each trial judged on {' or '.join(f'{count:,}' for count in samples)} samples" if samples else ""
    return f"Hypervolume, mean ± sample standard deviation over {len(volumes[0].last)} seeds{judged}.\n\n{table(head, rows)}"


def _limit_table(record: Record, network: str) -> str:
    """The least drop that is found under a limit, by the proxy; best sampler first."""
    rows = _rows(record, "limit", network)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["sampler"], []).append(row)
    most = max(map(len, groups.values()), default=0)
    whole = {name: seeds for name, seeds in groups.items() if len(seeds) == most}
    if not whole:
        return ""
    counts = sorted(set.intersection(*(set(row["least"]) for row in rows)), key=int)

    def cell(seeds: Sequence[Row], count: str) -> str:
        drops = [row["least"][count] for row in seeds]
        return "none keeps it" if None in drops else _spread(drops)

    def last(seeds: Sequence[Row]) -> float:
        return statistics.fmean(
            math.inf if row["least"][counts[-1]] is None else row["least"][counts[-1]] for row in seeds
        )

    lines = [
        (f"`{name}`", *(cell(seeds, count) for count in counts))
        for name, seeds in sorted(whole.items(), key=lambda item: last(item[1]))
    ]
    one = rows[0]
    words = (
        f"At most {one['limit_ms']:.3f} ms (uncut {one['whole_ms']:.3f} ms): the least drop of a trial that keeps it, before any "
        "training."
    )
    return f"{words}\n\n{table(('sampler', *(f'{count} trials' for count in counts)), lines)}"


def _trained_table(record: Record, network: str) -> str:
    """What was found at the limit of latency beside the uniformly slimmed network, trained as long."""
    rows = _rows(record, "trained", network)
    groups: dict[str, dict[int, Row]] = {}
    for row in rows:
        groups.setdefault(row["sampler"], {})[row["seed"]] = row
    uniform = {seed: row["test"] for seed, row in groups.get("uniform", {}).items()}
    lines = []
    for name, seeds in sorted(groups.items(), key=lambda item: -statistics.fmean(_values(item[1].values(), "test"))):
        tests = {seed: row["test"] for seed, row in seeds.items()}
        against = "" if name == "uniform" or not set(tests) & set(uniform) else _difference(tests, uniform)
        mean = [statistics.fmean(_values(seeds.values(), key)) for key in ("latency_ms", "size_bytes")]
        lines.append(
            (f"`{name}`", str(len(seeds)), f"{mean[0]:.3f}", f"{mean[1] / 1024:.1f}", _spread(tests.values()), against)
        )
    if not lines:
        return ""
    one = rows[0]
    floats = _spread({row["seed"]: row["float_test"] for row in rows}.values())
    trials = _listed(sorted({row["trials"] for row in rows}))
    words = (
        f"Trained in full: the candidate with the least drop of {trials} trials at {one['limit_ms']:.3f} ms at most (uncut "
        f"{one['whole_ms']:.3f} ms, accuracy {floats} in float), and one width for the whole network at the same limit."
    )
    head = ("sampler", "seeds", "ms", "KiB", "accuracy, int8, test split", "over `uniform`, seed by seed")
    return f"{words}\n\n{table(head, lines)}"


def _places(record: Record, networks: Sequence[str]) -> str:
    """Which place every sampler has, network by network and seed by seed."""
    places: dict[str, list[int]] = {}
    for network in networks:
        volumes = _volumes(record, network)
        for seed in {seed for one in volumes for seed in one.last}:
            ranked = sorted((one for one in volumes if seed in one.last), key=lambda one: -one.last[seed])
            for place, one in enumerate(ranked, 1):
                places.setdefault(one.sampler, []).append(place)
    if not places:
        return ""
    rows = [
        (f"`{name}`", f"{statistics.fmean(each):.1f}", str(min(each)), str(max(each)), str(len(each)))
        for name, each in sorted(places.items(), key=lambda item: statistics.fmean(item[1]))
    ]
    head = ("sampler", "mean place", "best", "worst", "searches")
    return f"### All searches together\n\n{table(head, rows)}"


def _values(rows: Iterable[Row], key: str) -> list[float]:
    return [row[key] for row in rows]


def _spread(values: Iterable[float], words: str = "{:.4f}") -> str:
    found = list(values)
    of = bench.spread(found)
    if of is None:
        return ""
    return words.format(round(of.mean, 4) + 0.0) + (f" ± {of.spread:.4f}" if len(found) > 1 else "")


def _difference(mine: Mapping[int, float], others: Mapping[int, float]) -> str:
    return _spread((value - others[seed] for seed, value in mine.items() if seed in others), "{:+.4f}")


def _listed(counts: Sequence[int]) -> str:
    return " or ".join(f"{count:,}" for count in counts if count > 1) or "1"


def scaling(record: Record) -> str:
    """Trials per hour of real workers, what the storage takes, and simulated fleets."""
    real = [(count, f"{row['per_hour']:,.0f}", str(row["trials"])) for count, row in record["workers"].items()]
    served = [
        (count, f"{row['trials_per_s']:.1f}", f"{row['client_cpu_ms']:.0f}", _given(row["server_cpu_ms"], "{:.1f}"))
        for count, row in record["storage"].items()
    ]
    limits = record["limits_trials_per_s"]
    fleets = [
        (str(rows[0]["workers"]), *(cell for row in rows for cell in (f"{row['per_hour']:,.0f}", _share(row))))
        for rows in zip(*record["simulated"].values(), strict=True)
    ]
    head = ("workers", *(word for name in limits for word in (f"trials per hour, {LIMITS[name]}", "of linear")))
    named = ", ".join(f"{limit:.1f} trials/s {LIMITS[name]}" for name, limit in limits.items())
    parts = [
        f"{record['kind'].partition('+')[0]}, {record['cores']} cores.",
        table(("workers", "trials per hour", "trials counted"), real),
        table(("clients that evaluate nothing", "trials/s", "client, ms a trial", "server, ms a trial"), served),
        f"The storage's limit: {named}. Simulated with it and with the times of the trials of one worker:",
        table(head, fleets),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


LIMITS = {"together": "with the clients on the same machine", "alone": "with a machine of its own"}


def _given(value: float | None, words: str) -> str:
    return "" if value is None else words.format(value)


def _share(row: Row) -> str:
    return f"{100 * row['efficiency']:.0f} %"


# Picture


def picture(record: Record) -> str:
    """A panel for each network, a line for each sampler: the seeds as dots, their mean as a bar; best above."""
    panels = [(name, volumes) for name in _networks(record) if (volumes := _volumes(record, name))]
    height = TOP + LINE * max((len(volumes) for _, volumes in panels), default=0) + 60
    width = LEFT + (PANEL_WIDTH + LEFT + GAP) * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="Hypervolume of every sampler, network by network" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#222222">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        text(LEFT, 30, "Share of the box that the front dominates, after as many trials", "start", 'font-size="18"'),
        *(_panel(LEFT + place * (PANEL_WIDTH + LEFT + GAP), *panel) for place, panel in enumerate(panels)),
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(left: float, network: str, volumes: Sequence[Volume]) -> str:
    values = [value for one in volumes for value in one.last.values()]
    low, high = min(values), max(values)
    air = 0.06 * (high - low) or 0.01
    low, high = low - air, high + air
    base = TOP + LINE * len(volumes)

    def across(value: float) -> float:
        return left + PANEL_WIDTH * (value - low) / (high - low)

    trials = max(volumes[0].at)
    parts = [text(left, TOP - 22, f"{network}: {trials} trials", "start", 'font-weight="bold"')]
    for value in report_figures.ticks(low, high):
        parts.append(f'<path d="M{across(value):.1f} {TOP - 8}V{base}" stroke="#e6e6e6"/>')
        parts.append(text(across(value), base + 18, f"{value:g}", "middle"))
    for place, one in enumerate(volumes):
        parts.append(_seeds(left, TOP + LINE * (place + 0.5), one, across))
    parts.append(text(left + PANEL_WIDTH / 2, base + 40, "hypervolume", "middle"))
    return "\n".join(parts)


def _seeds(left: float, y: float, one: Volume, across: Callable[[float], float]) -> str:
    colour = DOT["baseline" if one.sampler in BASELINES else "mean"]
    middle = across(statistics.fmean(one.last.values()))
    dots = [
        f'<circle cx="{across(value):.1f}" cy="{y:.1f}" r="4" fill="{colour}" fill-opacity="0.45">'
        f"<title>{escape(one.sampler)}, seed {seed}: {value:.4f}</title></circle>"
        for seed, value in sorted(one.last.items())
    ]
    bar = f'<path d="M{middle:.1f} {y - 8:.1f}v16" stroke="{colour}" stroke-width="3"/>'
    return "\n".join([text(left - 8, y + 4, one.sampler, "end"), *dots, bar])
