"""What a search came to: plain data, tables for the terminal, and one self-contained HTML page that sends no request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import edgeprune
from edgeprune import report_html, search, search_figures, tables, yaml_files
from edgeprune import search_space as spaces
from edgeprune.progress import duration, printable
from edgeprune.report_view import ABSENT, big, decimals, kib, percent
from edgeprune.search_space import Space

Plain = Mapping[str, Any]
UNITS: Mapping[
    str, tuple[str, float, Callable[[float], str]]
] = {  # cost -> words, divisor on an axis, a figure in words
    spaces.LATENCY: ("latency, ms", 1.0, lambda value: f"{value:.3g} ms"),
    spaces.MACS: ("multiply-accumulates, thousands", 1e3, big),
    spaces.SIZE: ("size of the file, KiB", 1024.0, kib),
    spaces.PARAMS: ("parameters, thousands", 1e3, big),
}
ROWS = 12  # of the front in the terminal, at most


def result(
    *,
    asked: Any,
    name: str,
    storage: str,
    space: Space,
    box: search.Box,
    about: Plain,
    finished: Sequence[Any],
    counts: Mapping[str, int],
    workers: Sequence[str],
    trained: Sequence[Any],
    training: Mapping[str, int],
    failures: Sequence[str],
) -> dict[str, Any]:
    """What ``search.json`` holds.

    Returns:
        ``schema``, ``edgeprune``, ``name``, ``storage`` (without a password), what was asked for, ``metric``, ``reference`` (the uncut
        network's), ``objectives``, ``box`` (`search.Box`), ``space``, ``whole`` (costs of the uncut network), ``trials`` (one by one),
        ``front`` (their numbers), ``hypervolume``, ``trained`` (one by one), ``best`` (the place in ``trained`` of what to take, None
        where nothing keeps the limits), ``counts``, ``training``, ``failures`` (why the best could not be trained) and ``workers``.
    """
    trials = [_trial(one, bool(space.over(one.costs))) for one in finished]
    whole = [trial for trial in trials if not trial["stopped"] and not trial["over"]]
    points = [search.values(box.names, trial["drop"], trial["costs"]) for trial in whole]
    front = search.front(points)
    made = [_trained(one) for one in trained]
    return {
        "schema": search.SCHEMA,
        "edgeprune": edgeprune.__version__,
        "name": name,
        "storage": storage,
        "model": asked.model,
        "target": asked.target,
        "sampler": asked.sampler,
        "planned": asked.trials,
        "top": asked.top,
        **about,
        "limits": dict(space.limits),
        "objectives": list(box.names),
        "box": {"ideal": list(box.ideal), "worst": list(box.worst)},
        "space": {
            "knobs": [{"name": knob.name, "units": knob.units, "kept": list(knob.kept)} for knob in space.knobs],
            "choices": {choice: list(words) for choice, words in space.choices.items()},
        },
        "whole": dict(space.costs(space.whole())),
        "trials": trials,
        "front": [whole[place]["number"] for place in front],
        "hypervolume": box.volume([points[place] for place in front]) if front else 0.0,
        "trained": made,
        "best": best(made, space.limits, box.names),
        "counts": dict(counts),
        "training": dict(training),
        "failures": list(failures),
        "workers": list(workers),
    }


def _trial(one: Any, over: bool) -> dict[str, Any]:
    return {
        "number": one.number,
        "candidate": dict(one.candidate),
        "drop": one.drop,
        "costs": dict(one.costs),
        "stopped": one.stopped,
        "over": over,
        "seconds": one.seconds,
        "worker": one.worker,
    }


def _trained(one: Any) -> dict[str, Any]:
    """A trained network: the figures of its file."""
    return {
        "candidate": dict(one.candidate),
        "drop": one.drop,
        "costs": dict(one.costs),
        "seconds": one.seconds,
        **one.more,
    }


def best(trained: Sequence[Plain], limits: Mapping[str, float], names: Sequence[str]) -> int | None:
    """The place of the network to take: of those that keep all limits, with a limit of cost the one that loses least, else the
    fastest (or that with the fewest multiply-accumulates). Without any limit the choice is the user's: None.
    """
    if not limits:
        return None
    able = [place for place, one in enumerate(trained) if not broken(one, limits)]
    costs = [name for name in limits if name != spaces.DROP]
    if costs:
        return min(able, key=lambda place: (trained[place]["drop"], trained[place]["costs"][names[1]]), default=None)
    return min(able, key=lambda place: (trained[place]["costs"][names[1]], trained[place]["drop"]), default=None)


def broken(one: Plain, limits: Mapping[str, float]) -> list[str]:
    """The limits that a network does not keep, by name."""
    given = {**one["costs"], spaces.DROP: one["drop"]}
    return [name for name, most in limits.items() if given[name] > most * (1 + 1e-9)]


def missed(found: Plain) -> bool:
    """Whether networks were trained for limits, and none keeps them."""
    return bool(found["limits"] and found["top"] and found["best"] is None)


# Words


def headline(found: Plain) -> str:
    """What came out, in one sentence."""
    if found["best"] is not None:
        one = found["trained"][found["best"]]
        return f"Trial {one['trial']}, trained: {_figures(found, one)}"
    if found["trained"] and found["limits"]:
        return "No trained network keeps the limits"
    done = found["counts"]["complete"]
    return f"{len(found['front'])} of {done} trials are on the front" if done else "The search has only begun"


def summary(found: Plain) -> str:
    """What was searched, by what, and how far it has come."""
    metric = found["metric"]
    stopped = sum(trial["stopped"] for trial in found["trials"])
    limits = ", ".join(f"{_name(name)} at most {_words(name, most)}" for name, most in found["limits"].items())
    return (
        f"{found['model']} on {found['target_title']}: {len(found['space']['knobs'])} groups of channels, sampler {found['sampler']}, "
        f"{found['counts']['complete']} of {found['planned']} trials, {stopped} of them given up early; the drop of {metric['name']} is "
        f"against {decimals(found['reference'])} of the uncut network on {metric['samples']:,} samples of the {metric['split']} split, "
        f"without training.{f' Limits: {limits}.' if limits else ''}"
    )


NOTES = (
    "A trial masks channels of the trained network, takes the statistics of every BatchNormalization anew and trains nothing: its drop "
    "ranks, and fine-tuning wins back most of it. What was trained in full stands in a table of its own, its drop that of the int8 file.",
    "Hypervolume: the share of the box between the uncut network's costs and the smallest network's drop that the front dominates.",
)


def _figures(found: Plain, one: Plain) -> str:
    costs = [_words(name, one["costs"][name]) for name in found["objectives"][1:]]
    return ", ".join([f"drop {_drop(one['drop'])}", *costs])


def _drop(value: float) -> str:
    return f"{'−' if value < 0 else ''}{abs(value):.4f}" if value else "0"


def _name(name: str) -> str:
    return UNITS[name][0].partition(",")[0] if name in UNITS else name


def _words(name: str, value: float) -> str:
    return UNITS[name][2](value) if name in UNITS else f"{value:g}"


class Line(NamedTuple):
    """A row of a table: its cells, and where more of it stands on the page."""

    cells: tuple[str, ...]
    anchor: str


def head(found: Plain) -> list[str]:
    """What the columns of both tables are called."""
    return ["trial", "drop", *(_name(name) for name in found["objectives"][1:]), "against the uncut", "channels"]


def front_lines(found: Plain) -> list[Line]:
    """The front of the trials, in order of cost."""
    trials = {trial["number"]: trial for trial in found["trials"]}
    return [_line(found, str(number), trials[number], f"trial-{number}") for number in found["front"]]


def trained_lines(found: Plain) -> list[Line]:
    """What was trained, in order of cost; the one to take is marked."""
    lead = found["objectives"][1]
    order = sorted(enumerate(found["trained"]), key=lambda pair: pair[1]["costs"][lead])
    lines = []
    for place, one in order:
        way = "" if one["way"] == "recipe" else f" {one['way']}"
        mark = " ←" if place == found["best"] else ""
        lines.append(_line(found, f"{one['trial']}{way}{mark}", one, f"trial-{one['trial']}"))
    return lines


def _line(found: Plain, name: str, one: Plain, anchor: str) -> Line:
    lead = found["objectives"][1]
    left = one["costs"][lead] / found["whole"][lead] if found["whole"][lead] else 1.0
    costs = (_words(cost, one["costs"][cost]) for cost in found["objectives"][1:])
    return Line((name, _drop(one["drop"]), *costs, percent(min(left, 1.0)), _kept(found, one["candidate"])), anchor)


def _kept(found: Plain, candidate: Plain) -> str:
    """The share of all units that stays, and the words that were chosen."""
    knobs = found["space"]["knobs"]
    share = sum(int(candidate[knob["name"]]) for knob in knobs) / sum(knob["units"] for knob in knobs)
    words = [str(candidate[name]) for name, given in found["space"]["choices"].items() if len(given) > 1]
    return " ".join([percent(share), *words])


def importance(found: Plain) -> list[tuple[str, list[tuple[str, float]]]]:
    """Objective -> every choice and how closely the objective follows it (`search.importance`), the closest first."""
    trials = [trial for trial in found["trials"] if not trial["stopped"]]
    names = [knob["name"] for knob in found["space"]["knobs"]]
    names += [name for name, words in found["space"]["choices"].items() if len(words) > 1]
    rows = [trial["candidate"] for trial in trials]
    listed = []
    for objective in found["objectives"]:
        values = [trial["drop"] if objective == spaces.DROP else trial["costs"][objective] for trial in trials]
        shares = search.importance(rows, values, names)
        listed.append((objective, sorted(shares.items(), key=lambda pair: -pair[1])))
    return listed if len(trials) > 1 else []


def sensitivity(found: Plain) -> list[tuple[str, list[tuple[str, float | None]]]]:
    """Group -> the mean drop of the trials that keep this quarter of its units; None where there is no such trial."""
    listed = []
    for knob in found["space"]["knobs"]:
        cells: list[tuple[str, float | None]] = []
        for quarter in range(4):
            drops = [
                trial["drop"]
                for trial in found["trials"]
                if quarter < 4 * int(trial["candidate"][knob["name"]]) / knob["units"] <= quarter + 1
            ]
            cells.append((f"{len(drops)} trials", sum(drops) / len(drops) if drops else None))
        listed.append((knob["name"], cells))
    return listed


# The terminal


def terminal(found: Plain) -> RenderableType:
    """Both tables."""
    parts: list[RenderableType] = [Text(headline(found), style="bold"), Text(printable(summary(found))), Text("")]
    lines = front_lines(found)
    shown = [lines[place] for place in _spread(len(lines), ROWS)]
    if shown:
        more = f" ({len(shown)} of {len(lines)})" if len(shown) < len(lines) else ""
        parts += [Text(f"Front of the trials{more}", style="bold"), _table(found, shown), Text("")]
    if found["trained"]:
        parts += [Text("Trained in full", style="bold"), _table(found, trained_lines(found)), Text("")]
    return Group(*parts, *(Text(printable(line), style="dim") for line in [*found["failures"], *NOTES]))


def _spread(count: int, most: int) -> list[int]:
    """Places evenly over so many rows."""
    return sorted({round(place * (count - 1) / max(most - 1, 1)) for place in range(most)}) if count else []


def _table(found: Plain, lines: Sequence[Line]) -> Table:
    drawn = tables.columned(head(found))
    for line in lines:
        drawn.add_row(*(printable(cell) for cell in line.cells))
    return drawn


def live(found: Plain, left: str, step: str) -> RenderableType:
    """What is shown while the search runs: the best so far, the front, and how long it will take."""
    done = found["counts"]["complete"]
    seconds = [trial["seconds"] for trial in found["trials"]]
    words = [
        f"{done}/{found['planned']} trials",
        f"{len(found['front'])} on the front",
        f"hypervolume {found['hypervolume']:.3f}",
        f"{len(found['workers'])} workers" if len(found["workers"]) > 1 else "",
        f"{duration(sum(seconds) / len(seconds))} each" if seconds else "",
        f"{found['training']['complete']} trained" if found["training"]["complete"] else "",
        left,
        step,
    ]
    line = Text("  ".join(word for word in words if word), style="dim")
    lines = front_lines(found)
    return Group(_table(found, [lines[place] for place in _spread(len(lines), ROWS)]), line) if lines else line


# The page


def html(found: Plain) -> str:
    """The page of a result; the same result gives the same bytes."""
    return report_html.render(
        "search.html.j2",
        title=f"Search of {found['model']}",
        found=found,
        headline=headline(found),
        summary=summary(found),
        notes=NOTES,
        head=head(found),
        front=front_lines(found),
        trained=trained_lines(found),
        pictures=[picture(found, cost) for cost in found["objectives"][1:] if found["trials"]],
        course=_course(found),
        importance=[(_name(name) if name != spaces.DROP else "drop", rows) for name, rows in importance(found)],
        sensitivity=[(name, _cells(found, cells)) for name, cells in sensitivity(found)] if found["trials"] else [],
        recipes=[_recipe(found, trial) for trial in found["trials"] if trial["number"] in set(found["front"])],
        absent=ABSENT,
    )


def picture(found: Plain, cost: str) -> tuple[str, Markup]:
    """The drop against a cost, as a title and an ``<svg>``."""
    words, scale, _ = UNITS[cost]
    front = set(found["front"])
    points = [search_figures.Point("whole", found["whole"][cost] / scale, 0.0, "the uncut network", "")]
    for trial in found["trials"]:
        kind = "front" if trial["number"] in front else "stopped" if trial["stopped"] else "trial"
        anchor = f"trial-{trial['number']}" if kind == "front" else ""
        told = f"trial {trial['number']}: {_figures(found, trial)}"
        points.append(search_figures.Point(kind, trial["costs"][cost] / scale, trial["drop"], told, anchor))
    for one in found["trained"]:
        told = f"trial {one['trial']}, trained: {_figures(found, one)}"
        points.append(
            search_figures.Point("trained", one["costs"][cost] / scale, one["drop"], told, f"trial-{one['trial']}")
        )
    limit = found["limits"].get(cost)
    limits = (None if limit is None else limit / scale, found["limits"].get(spaces.DROP))
    title = f"Drop of {found['metric']['name']} against {words.partition(',')[0]}"
    return title, search_figures.scatter(title, points, (words, f"drop of {found['metric']['name']}"), limits)


def _course(found: Plain) -> Markup | None:
    """The hypervolume after every trial."""
    box = search.Box(tuple(found["objectives"]), tuple(found["box"]["ideal"]), tuple(found["box"]["worst"]))
    whole = [trial for trial in found["trials"] if not trial["stopped"] and not trial["over"]]
    if len(whole) < 2:
        return None
    points = [search.values(box.names, trial["drop"], trial["costs"]) for trial in whole]
    values = search.progress(points, box.volume)
    return search_figures.course("hypervolume after every trial", values, ("trials", "hypervolume"))


def _cells(found: Plain, cells: Sequence[tuple[str, float | None]]) -> list[tuple[str, str, float]]:
    """A row of the table of groups: what is shown, what is told of it, and how warm it is, 0..1."""
    worst = found["box"]["worst"][0]
    return [
        (
            ABSENT if drop is None else decimals(drop),
            told,
            0.0 if drop is None else min(max(drop / worst, 0.0), 1.0) * 0.5,
        )
        for told, drop in cells
    ]


def _recipe(found: Plain, trial: Plain) -> dict[str, Any]:
    """A trial of the front: its figures, its counts, and what a recipe needs to say."""
    knobs = found["space"]["knobs"]
    gone = {
        knob["name"]: 1 - int(trial["candidate"][knob["name"]]) / knob["units"]
        for knob in knobs
        if int(trial["candidate"][knob["name"]]) < knob["units"]
    }
    stage: dict[str, Any] = {"ratio": 0.0, "ratios": gone, "multiples": 1}
    if spaces.CRITERION in trial["candidate"]:
        stage = {"criterion": trial["candidate"][spaces.CRITERION], **stage}
    return {
        "anchor": f"trial-{trial['number']}",
        "title": f"Trial {trial['number']}: {_figures(found, trial)}",
        "counts": ", ".join(f"{knob['name']} {trial['candidate'][knob['name']]}/{knob['units']}" for knob in knobs),
        "yaml": yaml_files.dump({"stages": {"shrink": stage}}),
        "export": f"--export {trial['number']}",
    }
