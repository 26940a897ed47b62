"""Budgets drive a build: from limits to the ratios of every group of channels, the attempts, and the one that is taken.

::

    stages before shrink ──▶ curves ──▶ allocation ──▶ costs of the cut as a file ──▶ train, quantize, convert ──▶ drop
       (once)               (once)          ▲  correct the aim  │                     (held-out samples)            │
                                            └───────────────────┘                                                  │
                                            ▲                    next aim (`edgeprune.budget`)                      │
                                            └───────────────────────────────────────────────────────────────────────┘

    RUN/attempts/curves/        what every group costs to lose, point by point
    RUN/attempts/costs/         what cuts cost, as files on the target
    RUN/attempts/1/, 1.json     an attempt: a run folder up to its file, and its figures
    RUN/attempts/cache/         finished stages by their keys; none is computed twice
    RUN/found.yaml              the recipe with the ratios that were found

The stages of the attempt that is taken are then the stages of RUN, and the stages that judge (verify, profile, report) come once,
on that one: the test split is not looked at before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune import (
    allocation,
    budget,
    budget_costs,
    budget_limits,
    files,
    forecast,
    pipeline,
    profiling,
    progress,
    search_space,
    sensitivity,
    sensitivity_ratios,
    shrinking,
    yaml_files,
)
from edgeprune.budget import Aim, Attempt, Goal
from edgeprune.budget_limits import ARENA
from edgeprune.errors import BudgetError, CutError, RunFolderError
from edgeprune.pipeline import Run, Shared, State
from edgeprune.recipe import Recipe, StageSpec
from edgeprune.search_space import LATENCY, MACS, SIZE, Candidate, Costs, Space
from edgeprune.shrink_options import AIMS

FOLDER, FOUND = "attempts", "found.yaml"  # in the run folder
SHRINK, CONVERT, PROFILE, GATE = "shrink", "convert", "profile", "gate"
OWN_AIMS = ("ratio", *AIMS)  # options of the shrink stage that say how much goes
SAMPLES = 1024  # held out, for the curves
TELLING = 0.8  # of the uncut model's latency: where no cut gets below, nearly all of it is once per inference
NEAR, ALWAYS = (
    {LATENCY: 1.2, SIZE: 1.5},
    float("inf"),
)  # times the least that is predicted; below, a file is made to know it


# Whether


def set_by_hand(run_recipe: Recipe, changes: Mapping[str, Any]) -> bool:
    """Whether the user's own changes to a recipe say how much its shrink stage removes: then budgets only judge."""
    labels = [spec.label for spec in run_recipe.stages if spec.stage == SHRINK]
    words = {f"stages.{label}.{aim}" for label in labels for aim in (*OWN_AIMS, "ratios", "zeros")}
    return any(key in words or key.startswith(tuple(f"{word}." for word in words)) for key in changes)


def only_judged(run: Run) -> str | None:
    """None where the budgets drive the build; else why they are only judged in the end, empty where there are none."""
    given = run.recipe.file.budget
    if given.max_drop is None and not budget_limits.limits(given.model_dump()):
        return ""
    if given.attempts == 1:
        return "one attempt is all that may be made (budget.attempts)"
    if run.shared is not None:
        return "the build is one of a league"
    stages = [spec.stage for spec in run.recipe.stages]
    if stages.count(SHRINK) != 1 or GATE in stages:
        return "the recipe does not have one stage that removes channels (shrink), and no other that does (gate)"
    if CONVERT not in stages[stages.index(SHRINK) :]:
        return "the recipe makes no file (convert)"
    options = _shrink(run.recipe).options
    if options.zeros or options.blocks:
        return "its shrink stage removes what is zero, or whole blocks"
    return None


def run(run: Run, given: Mapping[str, str]) -> State:
    """As ``pipeline.run``, with what the budgets ask for.

    Raises:
        BudgetError: no cut of the model can meet them; said before anything is trained.
        EdgepruneError: what a stage raises; the same call goes on where it was.
    """
    why = only_judged(run)
    if why is None:
        try:
            return _driven(run, given)
        except _Whole as found:
            why = str(found)
    if why:
        run = _noted(run, [f"The budgets are judged in the end, and drive nothing: {why}."])
    return pipeline.run(run, given)


class _Whole(Exception):
    """Nothing of the model can be cut, so there is nothing to drive."""


def _noted(run: Run, notes: Sequence[str]) -> Run:
    return replace(run, about={**run.about, "notes": [*run.about.get("notes", []), *notes]})


# The search


@dataclass(frozen=True)
class _Search:
    """What stays the same during a search.

    Attributes:
        run: of the user's recipe.
        given: roles that are there at the start.
        folder: ``RUN/attempts``.
        space: what may be cut.
        curves: group -> units that stay -> damage.
        confirm: candidate -> costs of that cut as a file.
        judge: state of a finished attempt -> metric, drop, standard error.
    """

    run: Run
    given: Mapping[str, str]
    folder: Path
    space: Space
    curves: allocation.Curves
    confirm: Callable[[Candidate], Costs]
    judge: Any


def _driven(run: Run, given: Mapping[str, str]) -> State:
    from edgeprune.keras import budget_model

    folder = run.folder / FOLDER
    with files.writing(folder):
        folder.mkdir(exist_ok=True)
    with pipeline.lock(folder):
        space, predicted = _space(run, given)
        limits = budget_limits.limits(run.recipe.file.budget.model_dump())
        _check(run, space, folder, given, limits, predicted)
        before = pipeline.run(_part(run, run.folder, _place(run.recipe, SHRINK), folder / "cache"), given)
        curves, space = _curves(run, before, space, folder)
        objective = _objective(space, predicted)
        confirm = budget_costs.confirming(run, before.path("model"), space, folder, set(limits) or {objective})
        search = _Search(run, given, folder, space, curves, confirm, budget_model.Judged(before))
        goal = _goal(search, limits, objective)
        attempts = _attempts(search, goal)
        return _taken(search, goal, attempts)


def _place(recipe: Recipe, stage: str) -> int:
    """How many stages come before the first of that kind."""
    return [spec.stage for spec in recipe.stages].index(stage)


def _shrink(recipe: Recipe) -> StageSpec:
    return recipe.stages[_place(recipe, SHRINK)]


def _part(run: Run, folder: Path, count: int, cache: Path) -> Run:
    """The first stages of a run, in some folder, with what others have finished."""
    return replace(
        run, folder=folder, recipe=run.recipe._replace(stages=run.recipe.stages[:count]), shared=Shared(cache, count)
    )


def _space(run: Run, given: Mapping[str, str]) -> tuple[Space, bool]:
    """What may be cut of the model as it came, and whether the target's latency is predicted from shapes.

    Raises:
        _Whole: nothing.
    """
    from edgeprune.keras import budget_model, intake, program

    model = intake.load_own(run.folder / given["model"])
    why = program.why_not(model)
    if why:
        raise _Whole(f"no channels can be removed. {why}")
    milliseconds = forecast.predictor(run.target)
    own = shrinking.stair(run.target.channel_multiple)
    try:
        return budget_model.space(model, _shrink(run.recipe).options, own, milliseconds), milliseconds is not None
    except CutError as error:
        steps = shrinking.smallest(own)
        hint = f" On {run.target.title} they pay in steps of {steps}" if steps > 1 else ""
        raise _Whole(f"no channels can be removed. {error}{hint}") from error


def _check(
    run: Run, space: Space, folder: Path, given: Mapping[str, str], limits: Mapping[str, float], predicted: bool
) -> None:
    """Refuse what nothing can meet, or nobody could know, before anything is trained.

    Raises:
        BudgetError: it cannot, or could not.
    """
    place = forecast.board(run.target)
    if LATENCY in limits and predicted and place.constants and run.connection.address is None:
        fit = place.constants.fits["int8"]
        fixed = fit.terms.fixed_ms
        if limits[LATENCY] <= fixed:
            raise BudgetError(
                f"max_latency_ms: {limits[LATENCY]:g} ms is asked for, but on {run.target.title} {fixed:.3g} ms are once per inference, "
                "whatever the model. Ask for more than that, or another target."
            )
    elif LATENCY in limits and run.connection.address is None and not _tells_latency(run):
        raise BudgetError(
            f"max_latency_ms: nothing here tells the latency on {run.target.title}. Measure it with --board USER@HOST, or limit "
            "--max-macs."
        )
    if ARENA in limits:
        why = profiling.unavailable(run.target, run.connection)
        if why:
            raise BudgetError(
                f"max_arena_kib: the arena is what the target's runtime lays out, and it cannot be run: {why}"
            )
    _check_least(run, space, folder, given, limits, predicted)


def _check_least(
    run: Run, space: Space, folder: Path, given: Mapping[str, str], limits: Mapping[str, float], predicted: bool
) -> None:
    """Refuse limits below what the smallest cut costs: where its prediction comes near them, of that cut's own file.

    Raises:
        BudgetError: they are.
    """
    smallest = space.smallest()
    least = dict(space.costs(smallest))
    near = {name for name in set(limits) - {MACS} if name != LATENCY or predicted}
    near = {name for name in near if limits[name] < NEAR.get(name, ALWAYS) * least[name]}
    if near:
        least |= budget_costs.confirming(run, run.folder / given["model"], space, folder, near)(smallest)
    wrong = [name for name in limits if (name == MACS or name in near) and least[name] > limits[name]]
    if wrong:
        asked, there = (" and ".join(budget_limits.amount(name, of[name]) for name in wrong) for of in (limits, least))
        raise BudgetError(
            f"{budget_costs.named(wrong)}: {asked} is asked for, but with every group of channels cut as far as it may be this model still "
            f"has {there}. Ask for more, lower the floors and multiples of stages.{_shrink(run.recipe).label}, or take a smaller model.",
            allocation.Impossible(smallest, least),
        )


def _tells_latency(run: Run) -> bool:
    """Whether something can be said of the latency without a prediction from shapes: a measurement, or an accelerator's model."""
    device = profiling.backend(run.connection)
    return run.target.delegate is not None or forecast.counter(device) is None


def _curves(run: Run, before: State, space: Space, folder: Path) -> tuple[allocation.Curves, Space]:
    """What every group of the trained model costs to lose; a point that is known is not computed again."""
    from edgeprune.keras import budget_model, intake, training
    from edgeprune.keras.trials import Trials

    training.start(run.seed)
    model = intake.load_own(before.path("model"))
    options = _shrink(run.recipe).options
    trials = Trials(model, run.data, run.metric, SAMPLES, run.seed, heard=options.heard())
    store = sensitivity.Store(folder / "curves", trials.key)
    run.progress.stage("sensitivity", 1, 1)
    began = time.monotonic()
    try:
        found, able = budget_model.curves(trials, space, options.criterion, store, run.progress)
    except CutError as error:
        raise _Whole(f"no channels can be ranked. {error}") from error
    run.progress.done(f"{len(found)} groups", time.monotonic() - began)
    return found, able


# The attempts


def _objective(space: Space, predicted: bool) -> str:
    """What is made small where a drop alone is limited: the latency, where it is predicted and cuts have a say in it."""
    whole, least = space.costs(space.whole()), space.costs(space.smallest())
    return LATENCY if predicted and least[LATENCY] <= TELLING * whole[LATENCY] else MACS


def _goal(search: _Search, limits: Mapping[str, float], objective: str) -> Goal:
    """What is asked for, with what the uncut model costs as a file, and the smallest by the same factor."""
    given, space = search.run.recipe.file.budget, search.space
    whole, least = space.whole(), space.costs(space.smallest())
    confirmed, foretold = search.confirm(whole), space.costs(whole)
    scaled = {name: least[name] * value / foretold[name] for name, value in confirmed.items() if foretold[name]}
    return Goal(limits, given.max_drop, objective, confirmed, scaled, given.attempts)


def _attempts(search: _Search, goal: Goal) -> list[Attempt]:
    found: list[Attempt] = []
    while aim := budget.next_aim(goal, found):
        found.append(_attempt(search, goal, aim, found))
    return found


def _attempt(search: _Search, goal: Goal, aim: Aim, earlier: Sequence[Attempt]) -> Attempt:
    """Settle the cut, and train it, unless an earlier attempt or an earlier process has."""
    number = len(earlier) + 1
    settled = budget_costs.settle(search.space, search.curves, budget.targets(goal, aim), aim.even, search.confirm)
    same = next((one for one in earlier if one.candidate == settled.candidate), None)
    if same is not None:
        return same._replace(number=number, aim=aim, same_as=same.same_as or same.number)
    record = search.folder / f"{number}.json"
    key = budget_costs.digest([list(aim)[:3], dict(settled.candidate)])
    stored = _stored(record, key)
    if stored is None:
        trainings = 1 + len([one for one in earlier if one.same_as is None])
        search.run.progress.note(f"Attempt {number} (training {trainings} of at most {goal.attempts}): {aim.why}.")
        state = _trained(search, settled.candidate, number)
        metric, lost, error = search.judge(state)
        wanted = set(goal.limits) or {goal.objective}
        final = budget_costs.costs(search.run, state.path("final"), wanted)
        stored = {"key": key, "costs": final, "metric": metric, "drop": lost, "error": error}
        files.write_text_atomic(record, json.dumps(stored, indent=1))
    figures = {name: stored[name] for name in ("costs", "metric", "drop", "error")}
    return Attempt(number, aim, settled.candidate, settled.predicted, settled.confirmed, note=settled.note, **figures)


def _stored(path: Path, key: str) -> dict[str, Any] | None:
    """The figures of an attempt that an earlier process finished."""
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found if found["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path} is damaged: {error}. Delete it; the attempt is judged anew.") from error


def _trained(search: _Search, candidate: Candidate, number: int) -> State:
    """Every stage up to the file, in a folder of the attempt's own."""
    folder = search.folder / str(number)
    for source in search.given.values():
        if not (folder / source).exists():
            files.write_bytes_atomic(folder / source, (search.run.folder / source).read_bytes())
    chosen = found_recipe(search.run.recipe, candidate, search.space)
    count = _place(chosen, CONVERT) + 1
    told = _Titled(search.run.progress, f"attempt {number}: ")
    part = _part(replace(search.run, recipe=chosen, progress=told), folder, count, search.folder / "cache")
    return pipeline.run(part, search.given)


class _Titled(progress.Shifted):
    """Tells the stages of an attempt as what they are."""

    def __init__(self, inner: progress.Progress, title: str) -> None:
        super().__init__(inner, 0, 0)
        self._title = title

    def stage(self, label: str, index: int, total: int) -> None:
        self.inner.stage(self._title + label, index, total)

    def step(self, done: float, total: float, unit: str, **values: float) -> None:
        self.inner.step(done, total, unit, **values)

    def done(self, summary: str, seconds: float, resumed: bool = False) -> None:
        self.inner.done(summary, seconds, resumed)


def found_recipe(given: Recipe, candidate: Candidate, space: Space) -> Recipe:
    """The recipe with a ratio for every group, that removes the same again without a search."""
    place = _place(given, SHRINK)
    spec = given.stages[place]
    shares = search_space.ratios(candidate, space.knobs)
    ratios = {sensitivity_ratios.literal(name): share for name, share in shares.items()}
    settings = {**spec.options.model_dump(mode="json"), **dict.fromkeys(OWN_AIMS), "scope": "layer"}
    settings["ratios"] = {**ratios, sensitivity_ratios.EVERYTHING_ELSE: 0.0}
    options = type(spec.options).model_validate(settings)
    stages = (*given.stages[:place], spec._replace(options=options), *given.stages[place + 1 :])
    judged = given.file.budget.model_copy(update={"attempts": 1})
    return Recipe(given.file.model_copy(update={"budget": judged}), stages)


# The one that is taken


def _taken(search: _Search, goal: Goal, attempts: Sequence[Attempt]) -> State:
    """The stages of the chosen attempt as those of the run, then those that judge."""
    taken = budget.chosen(goal, attempts)
    recipe = found_recipe(search.run.recipe, taken.candidate, search.space)
    files.write_text_atomic(search.run.folder / FOUND, yaml_files.dump(recipe.resolved()))
    words = budget.verdict(goal, attempts)
    search.run.progress.note(words)
    about = {**search.run.about, "budgeting": _told(search, goal, attempts, taken, words)}
    shared = Shared(search.folder / "cache", _place(recipe, CONVERT) + 1)
    final = _noted(replace(search.run, recipe=recipe, about=about, shared=shared), _notes(search, goal, taken))
    return pipeline.run(final, search.given)


def _notes(search: _Search, goal: Goal, taken: Attempt) -> list[str]:
    found = [f"Attempt {taken.number}: {taken.note}."] if taken.note else []
    if goal.drop is not None and taken.error is not None and goal.drop < taken.error:
        found.append(
            f"A drop of {goal.drop:g} is less than the {len(search.judge.split)} held-out samples can tell (± {taken.error:.4f}): hold out "
            "more (data.validation)."
        )
    if search.judge.name != "validation":
        found.append(
            "There is no validation split, so drops were judged on samples that were trained on: set data.validation."
        )
    return found


def _told(search: _Search, goal: Goal, attempts: Sequence[Attempt], taken: Attempt, words: str) -> dict[str, Any]:
    """report.json's ``attempts`` and ``budgeting`` (what they have in common), plain data."""
    return {
        "verdict": words,
        "split": search.judge.name,
        "samples": len(search.judge.split),
        "float_metric": search.judge.metric,
        "limits": dict(goal.limits),
        "max_drop": goal.drop,
        "objective": next(iter(goal.limits), goal.objective),
        "whole": dict(goal.whole),
        "least": dict(goal.least),
        "chosen": taken.number,
        "attempts": [_entry(search, goal, one, taken) for one in attempts],
    }


def _entry(search: _Search, goal: Goal, attempt: Attempt, taken: Attempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "same_as": attempt.same_as,
        "why": attempt.aim.why,
        "ease": attempt.aim.ease,
        "aim": budget.targets(goal, attempt.aim),
        "kept": {knob.name: [int(attempt.candidate[knob.name]), knob.units] for knob in search.space.knobs},
        "predicted": dict(attempt.predicted),
        "confirmed": dict(attempt.confirmed),
        "costs": dict(attempt.costs),
        "metric": attempt.metric,
        "drop": attempt.drop,
        "drop_error": attempt.error,
        "met": budget.met(goal, attempt),
        "chosen": attempt.number == taken.number,
        "note": attempt.note,
    }
