"""Zeros in the weights of plain layers: before, while or after they train, in one round or several, with or without rewinding.

Takes the role ``model`` (and ``early``, if it rewinds); leaves ``model`` with the zeros, ``masks`` and a plan of every layer,
as ``prune`` does; with rewound weights also ``ticket``: the masked early weights that the last round was trained from. Zeros of
earlier stages stay. Every round writes what it made, so that a build that was killed goes on in the epoch that it was in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprune import sparsifying
from edgeprune.errors import RecipeError
from edgeprune.pipeline import State
from edgeprune.sparsify_options import Options

__all__ = ["Options", "barred", "run"]


def barred(options: Options) -> tuple[str, ...]:
    """Stages that may not come after this one: no channel may go of masked kernels; those that were silenced wait for that."""
    return () if options.granularity == "channel" else ("shrink",)


def run(state: State, options: Options) -> State:
    """Cut and train, as often as there are rounds."""
    from edgeprune.keras import intake, program, pruning, sparse_rounds, sparse_tickets, training

    _check_early(state, options)
    _check_teacher(state, options)
    training.start(state.run.seed)
    model = intake.load_own(state.path("model"))
    why = program.why_not(model)
    if why:
        return state.add(notes=[f"Nothing is pruned. {why}."], summaries={state.label: "nothing to prune: no layers"})
    if options.granularity == "channel":
        return _silenced(state, options)
    plans = _plans(state, options, model)
    rounds = sparse_rounds.Rounds(state, options, plans, _earlier(state, plans))
    done = rounds.run()
    masks = pruning.load_masks(done.folder / sparse_rounds.MASKS)
    facts = _facts(done, sparse_tickets.compared(rounds, done))
    return state.add(
        files=_files(state, options, done),
        history={state.label: {"epochs": done.history, "schedule": _curve(options)}} if done.history else {},
        pruning={"layers": pruning.entries(plans, rounds.pattern(), masks, _targets(options, masks))},
        sparsify={state.label: facts},
        notes=_notes(state, options, plans, done, facts),
        summaries={state.label: _summary(plans, masks, facts)},
    )


def _check_early(state: State, options: Options) -> None:
    """Raises:
    RecipeError: the options need weights of an early epoch, and no stage has kept any.
    """
    needed = {"rewind": options.rewind is not None, "start": options.start == "early"}
    for name, asked in needed.items():
        if asked and "early" not in state.files:
            raise RecipeError(
                f"stages.{state.label}.{name}: {getattr(options, name)} needs the weights of an early epoch, and the train stage keeps "
                "none. Keep them: --set stages.train.keep=0.1 (of its epochs; 0: the first weights)."
            )


def _check_teacher(state: State, options: Options) -> None:
    """Raises:
    RecipeError: the model would have to learn from itself as it came, untrained.
    """
    if options.distill and options.distill.teacher == "given" and not _trained(state):
        raise RecipeError(
            f"stages.{state.label}.distill.teacher: the model as this stage gets it is not trained, so it has nothing to teach. Give "
            "the path of a trained one, or put a train stage before."
        )


def _trained(state: State) -> bool:
    """Whether the model that the stage gets has been trained, by whomever."""
    return bool(state.run.inputs["trained"] or state.facts.get("history"))


def _plans(state: State, options: Options, model: Any) -> list[Any]:
    """What happens to every layer.

    Raises:
        RecipeError: nothing is left to prune.
    """
    from edgeprune import scoring
    from edgeprune.keras import pruning, sparse_scores

    wanted = {*scoring.needed(options.criterion), *(["gradients"] if options.grow == "gradient" else [])}
    plans = pruning.plan(model, pruning.pattern_of(options), options.include, options.exclude)
    plans = sparse_scores.scorable(model, plans, wanted)
    if not any(plan.prunable for plan in plans):
        why = "; ".join(f"{plan.name}: {plan.reason}" for plan in plans) or "it has no layer with weights"
        raise RecipeError(
            f"stages.{state.label} found no layer that it can prune ({why}). Change criterion, granularity or include."
        )
    return plans


def _earlier(state: State, plans: list[Any]) -> Path | None:
    """The masks of an earlier stage as a file of this one."""
    from edgeprune.keras import pruning, sparse_rounds

    found = pruning.earlier(state, plans)
    return pruning.save_masks(found, state.workspace / sparse_rounds.EARLIER) if found else None


# What is told


def _files(state: State, options: Options, done: Any) -> dict[str, Path]:
    """The model and its masks; the ticket; and a reference where no stage has trained one."""
    from edgeprune.keras.sparse_rounds import MASKS, MODEL

    found = {"model": done.folder / MODEL, "masks": done.folder / MASKS}
    if options.rewind == "weights" and done.rounds:
        found["ticket"] = done.cut / MODEL
    return {**found, **({"float": done.folder / MODEL} if _first(state, done.history) else {})}


def _first(state: State, history: list[Any]) -> bool:
    """Whether nothing was trained before this stage, so that there is no dense model to compare with."""
    return bool(history) and not _trained(state)


def _targets(options: Options, masks: Mapping[str, Any]) -> dict[str, float]:
    """The sparsity that every kernel was to have; what it has, where the run itself has chosen."""
    chosen = {name: 1.0 - float(mask.mean()) for name, mask in masks.items()}
    free = options.adapt is not None or options.scope == "network" or options.distribution != "uniform"
    return chosen if free else dict.fromkeys(masks, options.sparsity)


def _facts(done: Any, controls: Mapping[str, Any]) -> dict[str, Any]:
    """The report's ``sparsify`` block of this stage."""
    facts: dict[str, Any] = {"rounds": done.rounds, "records": done.records, "undone": done.undone}
    return {**facts, **({"tickets": dict(controls)} if controls else {})}


def _curve(options: Options, points: int = 200) -> list[dict[str, float]]:
    """The schedule over the stage's epochs, for the picture."""
    from edgeprune.keras import sparse_rounds

    ramps = [sparse_rounds.ramp_of(options, number).function() for number in range(1, options.rounds + 1)]
    places = [options.rounds * i / points for i in range(points + 1)]
    rounds = [min(int(place), options.rounds - 1) for place in places]
    return [
        {"epoch": options.epochs * place / options.rounds, "sparsity": ramps[number](place - number)}
        for place, number in zip(places, rounds, strict=True)
    ]


def _notes(state: State, options: Options, plans: list[Any], done: Any, facts: Mapping[str, Any]) -> list[str]:
    """What is left alone and why, and what the run has found out."""
    notes = [f"{plan.name} is not pruned: {plan.reason}" for plan in plans if plan.left_alone]
    notes += [f"{plan.name}'s {reason}; this kernel is not pruned" for plan in plans for reason in plan.left]
    unrestored = sorted({name for record in done.records for name in record.get("unrestored", [])})
    if unrestored:
        notes.append(f"Not restored, since the second moment of their inputs cannot be had: {', '.join(unrestored)}.")
    if done.undone and options.adapt is not None:
        notes.append(
            f"Round {done.rounds + 1} of {options.rounds} lost more than {options.adapt.max_drop:g} of {state.run.metric.title} on the "
            "validation split, and is undone."
        )
    if _first(state, done.history):
        notes.append("No dense model was trained: the float reference is the sparse model itself, before quantization.")
    if options.start == "fresh" and state.run.inputs["trained"]:
        notes.append(f"The weights that the model came with are not used: stages.{state.label}.start is fresh.")
    if "tickets" in facts:
        figures = ", ".join(f"{name} {value:.4f}" for name, value in facts["tickets"].items())
        notes.append(f"{state.run.metric.title} on the validation split of tickets trained alike: {figures}.")
    return notes


def _summary(plans: list[Any], masks: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    zeros = [1.0 - float(mask.mean()) for mask in masks.values()]
    low, high = f"{min(zeros):.1%}", f"{max(zeros):.1%}"
    share = low if low == high else f"{low} to {high}, {sparsifying.sparsity_of(masks):.1%} in all"
    rounds = f", {facts['rounds']} rounds" if facts["rounds"] > 1 else ""
    return f"{len(zeros)} layers at {share} zeros{rounds}, {sum(plan.left_alone for plan in plans)} left alone"


# Channels that are silenced while training goes on


def _silenced(state: State, options: Options) -> State:
    """Silence channels while the model trains; a shrink stage removes them."""
    from edgeprune.keras import graph, intake, sparse_rounds, sparse_training, statistics, training
    from edgeprune.keras.sparse_channels import Silencing

    data = state.run.data
    model = graph.rebuild(intake.load_own(state.path("model")))
    goal, per_epoch = training.objective(model, data.tasks), training.steps_per_epoch(data.train, options)
    steps = options.epochs * per_epoch
    due = sparsifying.updates(options.begin, options.end, steps, options.frequency or per_epoch)
    ramp = sparse_rounds.ramp_of(options, 1).function()
    silence = Silencing(
        model,
        options.criterion,
        lambda done: options.final if done >= due[-1] else ramp(done / steps),
        lambda done: sparse_training.batches(data.train, options.batch_size, options.batch_size, done),
        goal.loss,
        options.scope,
        options.include,
        options.exclude,
    )
    updates = sparse_training.Updates(due, silence)
    history = training.fit(model, state, options, goal, [updates], ramp, updates.room)
    silence(due[-1])  # what was silenced there has been free since
    trained = graph.rebuild(model)
    if history:
        statistics.settle(trained, data.train)
    made = intake.save(trained, state.workspace / "model.keras")
    return state.add(
        files={"model": made, **({"float": made} if _first(state, history) else {})},
        history={state.label: {"epochs": history, "schedule": _curve(options)}},
        sparsify={state.label: {"silent": silence.gone}},
        summaries={state.label: f"{sum(silence.gone.values())} units of {len(silence.gone)} groups silent"},
    )
