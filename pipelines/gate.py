"""Gates on weights or channels that training closes: L0, variational dropout, learned masks, movement, attention and more.

Takes the role ``model``; gates on weights leave ``model`` with zeros, ``masks`` and a plan of every layer, as ``prune`` does,
gates on channels a smaller ``model`` and a record of every group, as ``shrink`` does. First the gates train, together with
the network; then they are gone, and the rest of the epochs trains what is left.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeprune import files, forecast, progress, registry
from edgeprune.errors import DeviceError, RecipeError, TargetError
from edgeprune.gate_options import OF_CHANNELS, Options
from edgeprune.pipeline import State
from edgeprune.report_view import big
from edgeprune.target import Target

__all__ = ["Options", "barred", "check", "foresee", "idle", "run"]

MODEL, MASKS, RECORD = "model.keras", "masks.npz", "record.json"


def barred(options: Options) -> tuple[str, ...]:
    """Stages that may not come after this one: no channel may go of masked kernels."""
    return ("shrink",) if options.granularity == "weight" else ()


def idle(options: Options) -> tuple[str, ...]:
    """Options that may not be given beside these, since they would say nothing."""
    return OF_CHANNELS if options.granularity == "weight" else ("scope",)


def check(label: str, options: Options, target: Target) -> None:
    """What cannot be done for a target is said before anything is trained.

    Raises:
        TargetError: the cost is a latency that nothing can predict.
    """
    _milliseconds(label, options, target)


def foresee(state: State, options: Options) -> None:
    """Whether so many channels can go at all.

    Raises:
        CutError, RecipeError: as ``run``, before anything is trained.
    """
    from edgeprune.keras import graph, intake, program

    if options.granularity == "weight":
        return
    model = graph.flatten(intake.load_own(state.path("model")))
    if not program.why_not(model):
        _work(state, options, model, registry.module("gates", options.gate)).foresee()


def run(state: State, options: Options) -> State:
    """Train with gates, take them away, train on."""
    from edgeprune.keras import gate_work, graph, intake, program, training

    kind = registry.module("gates", options.gate)
    gate_work.check(options, kind, state.label)
    _check_order(state, options)
    training.start(state.run.seed)
    model = graph.flatten(intake.load_own(state.path("model")))
    why = program.why_not(model)
    if why:
        return state.add(notes=[f"Nothing has a gate. {why}."], summaries={state.label: "nothing to gate: no layers"})
    work = _work(state, options, model, kind)
    settled = _settled(state, options, model, kind, work)
    made = _tuned(state, options, settled)
    record = json.loads((settled / RECORD).read_text(encoding="utf-8"))
    history = [*record["epochs"], *_later(json.loads((made / RECORD).read_text(encoding="utf-8")), record["epochs"])]
    told = _weights if options.granularity == "weight" else _channels
    return told(state, options, work, settled, made, record["facts"]).add(
        history={state.label: {"epochs": history, "schedule": _curve(options)}},
        gates={state.label: {"gate": options.gate, **record["facts"]}},
    )


def _check_order(state: State, options: Options) -> None:
    """Raises:
    RecipeError: channels would go of kernels that an earlier stage has masked.
    """
    if options.granularity == "channel" and "masks" in state.files:
        raise RecipeError(
            f"stages.{state.label} removes channels, but a stage before it prunes their weights. Put {state.label} before that stage."
        )


def _milliseconds(label: str, options: Options, target: Target) -> Any:
    """What predicts a latency from the shapes of layers; None where none is asked for.

    Raises:
        TargetError: one is asked for, and the target has no predictor.
    """
    if options.counted != "latency":
        return None
    try:
        return forecast.milliseconds(forecast.board(target))
    except DeviceError as error:
        raise TargetError(f"stages.{label}.cost: {error} Give cost macs instead.") from error


def _work(state: State, options: Options, model: Any, kind: Any) -> Any:
    from edgeprune.keras import gate_work, pruning

    if options.granularity == "weight":
        earlier = pruning.earlier(state, gate_work.plans(model, options))
        return gate_work.Weights(model, kind, options, state.label, earlier)
    target = state.run.target
    milliseconds = _milliseconds(state.label, options, target)
    return gate_work.Channels(model, kind, options, state.label, target.channel_multiple, milliseconds)


# Two trainings: what is there already is not done again.


def _settled(state: State, options: Options, model: Any, kind: Any, work: Any) -> Path:
    """Train the gates and take them away; the folder of what is left."""
    from edgeprune.keras import gate_work, gated, intake, pruning, training

    made = state.workspace / "settled"
    if made.exists():
        return made
    data = state.run.data
    goal, steps = training.objective(model, data.tasks), training.steps_per_epoch(data.train, options)
    course = gate_work.course(
        options, kind, work, options.gated_epochs * steps, len(data.train), gate_work.stakes(data), state.run.seed
    )
    wrapped = work.gated(course)
    inner, words = _part(state, options, "gated", 0, options.gated_epochs)
    epochs = training.fit(wrapped.model, inner, words, goal, [gated.Watch(wrapped.controller)])
    left = work.settled(wrapped)
    with files.temporary_folder(made) as temporary:
        intake.save(left.model, temporary / MODEL)
        if left.masks is not None:
            pruning.save_masks(left.masks, temporary / MASKS)
        (temporary / RECORD).write_text(json.dumps({"epochs": epochs, "facts": left.facts}), encoding="utf-8")
    return made


def _tuned(state: State, options: Options, settled: Path) -> Path:
    """Train what is left; the folder of what became of it."""
    from edgeprune.keras import gate_work, graph, intake, pruning, statistics, training

    made = state.workspace / "tuned"
    if made.exists():
        return made
    model = intake.load_own(settled / MODEL)
    statistics.settle(model, state.run.data.train)  # what the gates closed is gone at once
    if (settled / MASKS).exists():
        gate_work.hold(model, pruning.load_masks(settled / MASKS))
    inner, words = _part(state, options, "tuning", options.gated_epochs, options.epochs - options.gated_epochs)
    epochs = training.fit(model, inner, words, training.objective(model, state.run.data.tasks))
    tuned = graph.rebuild(model)
    if epochs:
        statistics.settle(tuned, state.run.data.train)
    with files.temporary_folder(made) as temporary:
        intake.save(tuned, temporary / MODEL)
        (temporary / RECORD).write_text(json.dumps(epochs), encoding="utf-8")
    return made


def _part(state: State, options: Options, name: str, before: int, epochs: int) -> tuple[State, Options]:
    """The state and the options of one of both trainings."""
    folder = state.workspace / name
    folder.mkdir(exist_ok=True)
    files.sweep(folder)
    shown = progress.Shifted(state.run.progress, before, options.epochs)
    return replace(state, workspace=folder, run=replace(state.run, progress=shown)), options.model_copy(
        update={"epochs": epochs}
    )


def _later(epochs: list[dict[str, Any]], earlier: list[Any]) -> list[dict[str, Any]]:
    return [{**epoch, "epoch": len(earlier) + place} for place, epoch in enumerate(epochs, 1)]


# What is told


def _weights(state: State, options: Options, work: Any, settled: Path, made: Path, facts: Mapping[str, Any]) -> State:
    """The state after gates on weights."""
    from edgeprune.keras import pruning

    masks = pruning.load_masks(settled / MASKS)
    zeros = {name: 1.0 - float(mask.mean()) for name, mask in masks.items()}
    left = [f"{plan.name} is not pruned: {plan.reason}" for plan in work.plans if plan.left_alone]
    partly = [f"{plan.name}'s {reason}; this kernel is not pruned" for plan in work.plans for reason in plan.left]
    total = 1.0 - sum(int(mask.sum()) for mask in masks.values()) / sum(mask.size for mask in masks.values())
    return state.add(
        files={"model": made / MODEL, "masks": settled / MASKS},
        pruning={"layers": pruning.entries(work.plans, pruning.Pattern(), masks, zeros)},
        notes=[*left, *partly],
        summaries={
            state.label: f"{len(zeros)} layers at {min(zeros.values()):.1%} to {max(zeros.values()):.1%} zeros, {total:.1%} in all; "
            f"the gates had closed {facts['closed']:.1%}"
        },
    )


def _channels(state: State, options: Options, work: Any, settled: Path, made: Path, facts: Mapping[str, Any]) -> State:
    """The state after gates on channels."""
    cut = [group for group in facts["groups"] if group["units_after"] < group["units_before"]]
    words = f"MACs {big(facts['uncut']['macs'])} -> {big(facts['left']['macs'])}, {len(cut)} of {len(facts['groups'])} groups cut"
    return state.add(
        files={"model": made / MODEL},
        shrink={state.label: _shrunk(options, facts)},
        notes=_notes(state, facts, cut, work.nothing_pays()),
        summaries={state.label: f"{words}; the gates had closed {facts['closed']:.1%} of the {options.counted}"},
    )


def _shrunk(options: Options, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The report's ``shrink`` block, as the shrink stage writes it."""
    changed = {
        f"{cost}_{when}": facts[what][cost]
        for cost in ("macs", "params", "latency_ms")
        for when, what in (("before", "uncut"), ("after", "left"))
        if facts[what][cost] is not None
    }
    how = {"criterion": f"{options.gate} gates", "scope": "network", "rounds": 1, "ratio": facts["ratio"]}
    return {**how, **changed, "groups": facts["groups"], "blocks": []}


def _notes(state: State, facts: Mapping[str, Any], cut: list[Mapping[str, Any]], useless: bool) -> list[str]:
    """What is left whole and why, and where a cut computes something else than closed gates do."""
    reasons: dict[str, list[str]] = {}
    for group in facts["groups"]:
        if group["reason"]:
            reasons.setdefault(group["reason"], []).append(group["name"])
    notes = [f"Left whole: {', '.join(names)}: {why}." for why, names in reasons.items()]
    if useless:
        notes.append(
            f"No channels are removed: on {state.run.target.title} they pay in steps that no group has to lose. To remove them all the "
            f"same: --set stages.{state.label}.multiples=1"
        )
    inexact = [f"{group['name']}: {'; '.join(group['inexact'])}" for group in cut if group["inexact"]]
    return [*notes, *(f"{words}; fine-tuning has to make up for it." for words in inexact)]


def _curve(options: Options, points: int = 200) -> list[dict[str, float]]:
    """What the gates are asked to close over the stage's epochs, for the picture; nothing where they decide."""
    from edgeprune import schedules

    if options.final is None:
        return []
    asked = schedules.polynomial(0.0, options.final, options.begin, options.end, options.power)
    share = options.gated_epochs / options.epochs
    places = [i / points for i in range(points + 1)]
    return [{"epoch": options.epochs * place, "sparsity": asked(min(place / share, 1.0))} for place in places]
