"""Shrink: remove channels, neurons and whole blocks for good, then fine-tune, in one round or several.

Takes the role ``model``; leaves ``model``, smaller, with the names of the layers that remain, and a record of every group
of channels: how many of its units stay, or why it is left whole. It comes before prune and quantize: removing channels
would change the kernels that those have masked or fake-quantized. Every round writes what it made, so that a build that
was killed goes on in the epoch that it was in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import files, forecast, registry, shrinking
from edgeprune import target as targets
from edgeprune.errors import CutError, DeviceError, RecipeError, TargetError
from edgeprune.pipeline import State
from edgeprune.progress import Shifted
from edgeprune.report_time import milliseconds
from edgeprune.report_view import big
from edgeprune.shrink_options import AIMS, Options
from edgeprune.target import Target

__all__ = ["Options", "check", "foresee", "run"]

SPREADS = True  # over devices
MODEL, RECORD = "model.keras", "record.json"


def check(label: str, options: Options, target: Target) -> None:
    """What cannot be done for a target is said before anything is trained.

    Raises:
        TargetError: a latency is aimed at that nothing can predict.
    """
    _predictor(label, options, target)


def foresee(state: State, options: Options) -> None:
    """Whether so much can go at all: what the floors and multiples leave follows from the shapes, whatever the scores will be.

    Raises:
        CutError, RecipeError: as ``run``, before anything is trained.
    """
    from edgeprune.keras import costs, graph, intake, program

    if options.zeros or options.blocks:
        return  # what is zero, and which blocks are weakest, is not known yet
    model = graph.flatten(intake.load_own(state.path("model")))
    if program.why_not(model):
        return
    meter = costs.Meter(model, _predictor(state.label, options, state.run.target))
    with _placed(state.label):
        whole = shrinking.left_whole(meter.coupling, options.include, options.exclude)
        units = {group.name: group.units for group in meter.coupling.groups if whole[group.name] is None}
        alike = {name: np.ones(count) for name, count in units.items()}
        _chosen(state, options, meter, units, alike, meter({})._asdict(), 1.0)


def run(state: State, options: Options) -> State:
    """Score, cut and fine-tune, as often as there are rounds."""
    from edgeprune.keras import intake, program, training

    _check_order(state)
    training.start(state.run.seed)
    path = state.path("model")
    why = program.why_not(intake.load_own(path))
    if why:
        return state.add(notes=[f"Nothing is removed. {why}."], summaries={state.label: "nothing to remove: no layers"})
    records: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []
    for number in range(1, options.rounds + 1):
        folder = state.workspace / f"round-{number}"
        folder.mkdir(exist_ok=True)
        files.sweep(folder)
        records.append(_cut(state, options, path, folder, number, records))
        path = _tuned(state, options, folder, history)
    facts = _facts(options, records)
    return state.add(
        files={"model": path},
        history={state.label: {"epochs": history}} if history else {},
        shrink={state.label: facts},
        notes=_notes(state, options, facts),
        summaries={state.label: _summary(facts)},
    )


def _check_order(state: State) -> None:
    """Whatever a recipe calls its stages, no channel goes that another stage has worked on.

    Raises:
        RecipeError: one has.
    """
    for role, deed in (("masks", "prunes"), ("quantized", "quantizes")):
        if role in state.files:
            raise RecipeError(
                f"stages.{state.label} removes channels, but a stage before it {deed} their weights. Put {state.label} before that stage."
            )


@contextmanager
def _placed(label: str) -> Iterator[None]:
    """What is wrong with the options of a stage says where in the recipe they are."""
    try:
        yield
    except (CutError, RecipeError) as error:
        place = f"stages.{label}"
        raise type(error)(str(error) if str(error).startswith(place) else f"{place}: {error}") from error


# One round: what is there already is not done again.


def _cut(
    state: State, options: Options, given: Path, folder: Path, number: int, earlier: list[dict[str, Any]]
) -> dict[str, Any]:
    """Score and cut the given model; the smaller one and the record of the cut are left in the folder."""
    from edgeprune.keras import graph, intake

    made = folder / "cut"
    if not made.exists():
        model = graph.flatten(intake.load_own(given))
        with _placed(state.label):
            small, record = _smaller(state, options, model, number, earlier)
        with files.temporary_folder(made) as temporary:
            intake.save(small, temporary / MODEL)
            (temporary / RECORD).write_text(json.dumps(record), encoding="utf-8")
    found: dict[str, Any] = json.loads((made / RECORD).read_text(encoding="utf-8"))
    return found


def _smaller(
    state: State, options: Options, model: Any, number: int, earlier: list[dict[str, Any]]
) -> tuple[Any, dict[str, Any]]:
    """The cut model and the record of what was cut."""
    from edgeprune.keras import costs, surgery

    predictor = _predictor(state.label, options, state.run.target)
    uncut = earlier[0]["uncut"] if earlier else costs.Meter(model, predictor)({})._asdict()
    blocks: list[dict[str, Any]] = []
    if number == 1 and options.blocks:
        model, blocks = _without_blocks(state, options, model)
    meter = costs.Meter(model, predictor)
    whole = shrinking.left_whole(meter.coupling, options.include, options.exclude)
    scores, unscored = _scores(state, options, model, meter.coupling)
    whole = {name: why or unscored.get(name) for name, why in whole.items()}
    units = earlier[0]["units"] if earlier else {name: len(scores[name]) for name, why in whole.items() if not why}
    groups = {group.name: group for group in meter.coupling.groups}
    units = {name: count for name, count in units.items() if name in groups}
    scores = {name: scores.get(name, np.zeros(groups[name].units)) for name in units}  # a last unit has no score
    ratio, cut = _chosen(state, options, meter, units, scores, uncut, number / options.rounds)
    small = surgery.shrink(model, cut) if cut else model
    entries = [shrinking.entry(group, whole[group.name], cut, scores) for group in meter.coupling.groups]
    if options.zeros:
        _tell_constants(model, scores, entries)
    record = {"uncut": uncut, "left": meter(cut)._asdict(), "units": units, "ratio": ratio, "blocks": blocks}
    return small, {**record, "groups": entries}


def _scores(state: State, options: Options, model: Any, coupling: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """A score for every unit of every group; the groups that the criterion cannot score, with the reason."""
    from edgeprune import scoring
    from edgeprune.keras import coupled

    if options.zeros:
        return coupled.alive(model, coupling)
    signals = _signals(state, options, model)
    found = scoring.units(coupling, options.criterion, signals, **options.heard())
    return found, scoring.unscored(coupling, options.criterion, signals)


def _signals(state: State, options: Options, model: Any) -> Any:
    from edgeprune import scoring
    from edgeprune.keras import feeding, signals, training

    few = state.run.data.train.evenly(options.samples)
    loss = training.objective(model, state.run.data.tasks).loss
    wanted = scoring.needed(options.criterion, options.scales)
    return signals.collect(model, wanted, feeding.ordered(few, signals.BATCH), loss)


def _without_blocks(state: State, options: Options, model: Any) -> tuple[Any, list[dict[str, Any]]]:
    """The model without its weakest blocks, one by one, since each may make another one the last of its addition."""
    from edgeprune import channel_blocks
    from edgeprune.keras import channel_graph, surgery

    signals = _signals(state, options, model)
    removed: list[dict[str, Any]] = []
    for _ in range(options.blocks):
        blocks = channel_blocks.removable(channel_graph.describe(model))
        if not blocks:
            raise CutError(
                f"stages.{state.label}.blocks asks for {options.blocks}, but only {len(removed)} can be removed whole "
                f"({', '.join(block['name'] for block in removed) or 'no branch of an addition has the shape of the sum'})."
            )
        block, score = shrinking.weakest(blocks, options.criterion, signals)
        model = surgery.without(model, [block])
        removed.append({"name": block.name, "layers": list(block.layers), "score": score})
    return model, removed


def _chosen(
    state: State,
    options: Options,
    meter: Any,
    units: Mapping[str, int],
    scores: Mapping[str, Any],
    uncut: Mapping[str, int],
    progress: float,
) -> tuple[float, dict[str, Any]]:
    """The ratio and the units that stay of the groups that are cut."""
    if not units or _nothing_pays(state, options, meter, units):
        return 0.0, {}
    rules = _rules(state, options, meter, units)
    aim = _aim(options)
    if options.zeros:
        cut = rules.without_zeros(scores)
        gone = sum(len(scores[name]) - len(kept) for name, kept in cut.items())
        return gone / sum(len(values) for values in scores.values()), cut
    if aim is None:
        ratio = 0.5 if options.ratio is None else options.ratio
        return ratio, rules.cut(scores, ratio, progress)
    where, cost = f"stages.{state.label}.{aim}", AIMS[aim]
    unit = 1.0 if aim == "latency_ms" else float(uncut[cost])  # what the option is a multiple of
    if not unit:
        raise RecipeError(f"{where}: this model has no {cost} that are counted. Give a ratio instead.")
    whole, most = uncut[cost] / unit, getattr(options, aim)
    most = whole * (most / whole) ** progress if most < whole else most
    words = _remaining(aim, state.run.target)
    return rules.reach(scores, lambda cut: float(getattr(meter(cut), cost) / unit), most, where, words)


def _aim(options: Options) -> str | None:
    """The option that says how much stays; None: a ratio does."""
    return next((name for name in AIMS if getattr(options, name) is not None), None)


def _predictor(label: str, options: Options, target: Target) -> Any:
    """What predicts a latency from the shapes of layers (`forecast.milliseconds`); None where none is asked for.

    Raises:
        TargetError: one is asked for, and the target has no predictor.
    """
    aim = _aim(options)
    if aim is None or AIMS[aim] != "latency_ms":
        return None
    try:
        return forecast.milliseconds(forecast.board(target))
    except DeviceError as error:
        able = ", ".join(filter(_is_predictable, registry.names("targets")))
        raise TargetError(
            f"stages.{label}.{aim}: {error} Give `macs` instead (a share of the multiply-accumulates), or a target whose latency "
            f"can be predicted: {able}."
        ) from error


def _is_predictable(name: str) -> bool:
    with suppress(DeviceError):
        return bool(forecast.milliseconds(forecast.board(targets.load(registry.file("targets", name)))))
    return False


def _remaining(aim: str, target: Target) -> str:
    """What a remainder is a remainder of, in the words of `shrinking.Rules.reach`."""
    of = "ms" if aim == "latency_ms" else "of the uncut model's"
    constants = forecast.board(target).constants if AIMS[aim] == "latency_ms" else None
    if constants is None:
        return of
    return f"{of} ({constants.fits['int8'].terms.fixed_ms:.3g} ms are once per inference, whatever is cut)"


def _rules(state: State, options: Options, meter: Any, units: Mapping[str, int]) -> shrinking.Rules:
    groups = [group for group in meter.coupling.groups if group.name in units]
    own = shrinking.stair(state.run.target.channel_multiple)
    given = options.multiples
    multiples = {**given, ".*": given.get(".*", own)} if isinstance(given, dict) else given or own
    return shrinking.Rules(
        units=units,
        scope=options.scope,
        ratios=options.ratios,
        floors=options.floors,
        multiples=multiples,
        kinds=shrinking.kinds(groups),
        steps={group.name: group.step for group in groups},
    )


def _nothing_pays(state: State, options: Options, meter: Any, units: Mapping[str, int]) -> bool:
    """Whether the target's own multiple is more than any group has; one that the user gives would be an error."""
    least = shrinking.smallest(shrinking.stair(state.run.target.channel_multiple))
    steps = {group.name: group.step for group in meter.coupling.groups}
    return options.multiples is None and all(count * steps[name] <= least for name, count in units.items())


def _tell_constants(model: Any, scores: Mapping[str, Any], entries: list[dict[str, Any]]) -> None:
    """Where a unit without weights has a bias or an offset, its constant goes with it: into the entries."""
    from edgeprune.keras import coupled

    for block in coupled.blocks(model)[0]:
        entry = next(entry for entry in entries if entry["name"] == block.name)
        constant = block.name in scores and bool((block.silent() < (scores[block.name] == 0)).any())
        if constant and entry["units_after"] < entry["units_before"]:
            entry["inexact"].append(
                "units whose kernels are zero hand on a constant all the same, and it goes with them"
            )


def _tuned(state: State, options: Options, folder: Path, history: list[dict[str, Any]]) -> Path:
    """Fine-tune the cut model; where the tuned one lies. Its epochs are added to the history."""
    from edgeprune.keras import intake

    made = folder / "tuned"
    if not made.exists():
        model = intake.load_own(folder / "cut" / MODEL)
        epochs = _fit(state, options, folder, model, len(history))
        with files.temporary_folder(made) as temporary:
            intake.save(model, temporary / MODEL)
            (temporary / RECORD).write_text(json.dumps(epochs), encoding="utf-8")
    found = json.loads((made / RECORD).read_text(encoding="utf-8"))
    history += [{**epoch, "epoch": len(history) + place} for place, epoch in enumerate(found, 1)]
    return made / MODEL


def _fit(state: State, options: Options, folder: Path, model: Any, done: int) -> list[dict[str, Any]]:
    """Train the cut model for its round's share of the epochs."""
    from edgeprune.keras import replicas, statistics, training

    number = int(folder.name.rpartition("-")[2])
    epochs = options.epochs * number // options.rounds - options.epochs * (number - 1) // options.rounds
    goal = training.objective(model, state.run.data.tasks)
    shown = Shifted(state.run.progress, done, options.epochs)
    inner = replace(state, workspace=folder, run=replace(state.run, progress=shown))
    if not epochs:
        return []
    statistics.settle(model, state.run.data.train)  # the channels that stay are added up to other sums
    with replicas.spread(inner, model) as placed:
        history = training.fit(placed, inner, options.model_copy(update={"epochs": epochs}), goal)
    statistics.settle(model, state.run.data.train)
    return history


# What is told


def _facts(options: Options, records: list[dict[str, Any]]) -> dict[str, Any]:
    """All rounds as one: the report's ``shrink`` block of this stage."""
    groups: dict[str, dict[str, Any]] = {}
    for record in records:
        for entry in record["groups"]:
            first = groups.get(entry["name"], entry)
            kept = entry["score_kept"] * (1.0 if first is entry else first["score_kept"])
            later = {"units_after": entry["units_after"], "score_kept": kept}
            groups[entry["name"]] = {**first, **later, "inexact": first["inexact"] or entry["inexact"]}
    latency = {
        f"latency_ms_{when}": records[place][what].get("latency_ms")
        for when, place, what in (("before", 0, "uncut"), ("after", -1, "left"))
        if records[place][what].get("latency_ms") is not None
    }
    return {
        "criterion": options.criterion,
        "scope": options.scope,
        "rounds": options.rounds,
        "ratio": records[-1]["ratio"],
        "macs_before": records[0]["uncut"]["macs"],
        "macs_after": records[-1]["left"]["macs"],
        "params_before": records[0]["uncut"]["params"],
        "params_after": records[-1]["left"]["params"],
        **latency,
        "groups": list(groups.values()),
        "blocks": records[0]["blocks"],
    }


def _notes(state: State, options: Options, facts: Mapping[str, Any]) -> list[str]:
    """What is left whole and why, and where a cut computes something else than zeros would."""
    cut = _was_cut(facts)
    reasons: dict[str, list[str]] = {}
    for group in facts["groups"]:
        if group["reason"]:
            reasons.setdefault(group["reason"], []).append(group["name"])
    notes = [f"Left whole: {', '.join(names)}: {why}." for why, names in reasons.items()]
    for group in cut:
        if group["inexact"]:
            notes.append(f"{group['name']}: {'; '.join(group['inexact'])}; fine-tuning has to make up for it.")
    free = [group for group in facts["groups"] if not group["reason"]]
    least = shrinking.smallest(shrinking.stair(state.run.target.channel_multiple))
    if free and not cut and options.multiples is None and least > 1:
        notes.append(
            f"No channels are removed: on {state.run.target.title} they pay in steps of {least}, and no group has such a step to lose. "
            f"To remove them all the same: --set stages.{state.label}.multiples=1"
        )
    return notes


def _was_cut(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [group for group in facts["groups"] if group["units_after"] < group["units_before"]]


def _summary(facts: Mapping[str, Any]) -> str:
    words = [
        f"MACs {big(facts['macs_before'])} -> {big(facts['macs_after'])}",
        f"parameters {big(facts['params_before'])} -> {big(facts['params_after'])}",
        f"{len(_was_cut(facts))} of {len(facts['groups'])} groups cut",
    ]
    if "latency_ms_after" in facts:
        words.append(
            f"predicted {milliseconds(facts['latency_ms_before'])} -> {milliseconds(facts['latency_ms_after'])}"
        )
    if facts["blocks"]:
        count = len(facts["blocks"])
        words.append(f"{count} block{'' if count == 1 else 's'} removed")
    return ", ".join(words)
