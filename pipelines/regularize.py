"""Train under a penalty that makes zeros, trim exactly to a sparsity, and fine-tune without the penalty while the zeros hold.

Takes the role ``model``. A penalty of single weights leaves ``model`` with zeros, ``masks`` and a plan of every layer, as ``prune``
does. A penalty of coupled channels (group_lasso, slimming) leaves ``model`` with units that are zero; a shrink stage with
``zeros: true`` removes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from edgeprune import files, granularity, masks
from edgeprune.errors import RecipeError
from edgeprune.pipeline import State
from edgeprune.progress import Shifted
from edgeprune.recipe import FitOptions
from edgeprune.training_options import Penalty, needs

MODEL, MASKS, RECORD = "model.keras", "masks.npz", "record.json"
GONE = -1.0  # the score of what an earlier stage has zeroed: below all magnitudes


class Options(FitOptions):
    """Options of the regularize stage."""

    epochs: int = Field(12, ge=1, le=10_000, description="passes over the training split, with the penalty and without")
    penalty: Penalty = Field(
        default_factory=lambda: Penalty.model_validate({}),
        description="what pulls weights to zero: `{}` or the keys in docs/penalties.md",
    )
    final: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="sparsity that the weights are trimmed to exactly when the penalty has done its part, 0..1; unless the penalty has "
        "a sparsity of its own, its strength is learned for this one; null: what the penalty has made zero",
    )
    scope: Literal["layer", "network"] = Field(
        "network", description="what is ranked together by magnitude when it is trimmed: every layer for itself, or all"
    )
    tune: float = Field(
        0.4, ge=0, lt=1, description="share of the epochs that come after the trimming, without the penalty, 0..1"
    )

    @model_validator(mode="after")
    def _trims(self) -> Options:
        if self.final is not None and channels(self.penalty):
            raise ValueError(
                f"final trims single weights, but {self.penalty.kind} makes whole channels zero: leave final out, say how many with "
                "penalty.sparsity, and remove them with a shrink stage (zeros: true)"
            )
        if penalised_epochs(self) < 1:
            raise ValueError(f"with tune {self.tune:g}, none of {self.epochs} epochs is left for the penalty")
        return self


def channels(penalty: Penalty) -> bool:
    """Whether it is whole coupled channels that become zero, and no single weights."""
    asked = needs(penalty.kind)
    return asked[0] == "scales" or (asked[0] == "groups" and "mix" not in asked) or penalty.choose == "channels"


def penalised_epochs(options: Options) -> int:
    """The epochs that come before the trimming; none is kept back for channels, which a shrink stage fine-tunes."""
    return options.epochs if channels(options.penalty) else options.epochs - round(options.tune * options.epochs)


def barred(options: Options) -> tuple[str, ...]:
    """Stages that may not come after this one: no channel may go of kernels that are masked."""
    return () if channels(options.penalty) else ("shrink",)


def run(state: State, options: Options) -> State:
    """Penalise, trim, fine-tune."""
    from edgeprune.keras import intake, program, pruning, training

    training.start(state.run.seed)
    model = intake.load_own(state.path("model"))
    why = program.why_not(model)
    if why:
        return state.add(notes=[f"Nothing is pruned. {why}."], summaries={state.label: "nothing to prune: no layers"})
    history: list[dict[str, Any]] = []
    if channels(options.penalty):
        path = _trained(state, options, "penalised", state.path("model"), None, history)
        return state.add(files={"model": path}, **_told(state, options, history))
    pattern = pruning.Pattern("weight")
    plans = pruning.plan(model, pattern, options.penalty.include, options.penalty.exclude)
    if not any(plan.prunable for plan in plans):
        raise RecipeError(
            f"stages.{state.label} found no layer whose weights can become zero. Change penalty.include or penalty.exclude."
        )
    earlier = pruning.earlier(state, plans)
    path = _trained(state, options, "penalised", state.path("model"), earlier, history)
    found = _trimmed(state, options, plans, path, earlier)
    path = _trained(state, options, "tuned", state.workspace / "trimmed" / MODEL, found, history)
    reached = {name: 1.0 - float(mask.mean()) for name, mask in found.items()}
    wanted = dict.fromkeys(reached, options.final) if options.final and options.scope == "layer" else reached
    left = [f"{plan.name} is not pruned: {plan.reason}" for plan in plans if plan.left_alone]
    partly = [f"{plan.name}'s {reason}; this kernel is not pruned" for plan in plans for reason in plan.left]
    return state.add(
        files={"model": path, "masks": state.workspace / "trimmed" / MASKS},
        pruning={"layers": pruning.entries(plans, pattern, found, wanted)},
        notes=[*left, *partly],
        **_told(state, options, history, found),
    )


# Two trainings: what is there already is not done again.


def _trained(
    state: State,
    options: Options,
    name: str,
    given: Path,
    kept: Mapping[str, np.ndarray] | None,
    history: list[dict[str, Any]],
) -> Path:
    """Train the given model for its part of the epochs; where the trained one lies. Its epochs are added to the history.

    Args:
        name: ``penalised``, or ``tuned``: then the penalty is off.
        given: the model's file.
        kept: masks that hold while it is trained; None: nothing does.
    """
    from edgeprune.keras import constraints, graph, intake, kernels, statistics, training

    folder, made = state.workspace / name, state.workspace / name / "done"
    folder.mkdir(exist_ok=True)
    files.sweep(folder)
    if not made.exists():
        model = graph.rebuild(intake.load_own(given))
        before = penalised_epochs(options)
        own: dict[str, Any] = {"epochs": before, "penalty": _penalty(options)}
        if name == "tuned":
            own = {"epochs": options.epochs - before, "penalty": None}
        progress = Shifted(state.run.progress, len(history), options.epochs)
        inner = replace(state, workspace=folder, run=replace(state.run, progress=progress))
        with constraints.restored(model.trainable_variables):
            for key, mask in (kept or {}).items():
                constraints.hold(kernels.find(model, key), mask)
            goal = training.objective(model, state.run.data.tasks)
            epochs = training.fit(model, inner, options.model_copy(update=own), goal)
        trained = graph.rebuild(model)
        if epochs:
            statistics.settle(trained, state.run.data.train)
        with files.temporary_folder(made) as temporary:
            intake.save(trained, temporary / MODEL)
            (temporary / RECORD).write_text(json.dumps(epochs), encoding="utf-8")
    found = json.loads((made / RECORD).read_text(encoding="utf-8"))
    history += [{**epoch, "epoch": len(history) + place} for place, epoch in enumerate(found, 1)]
    return made / MODEL


def _penalty(options: Options) -> Penalty:
    """The penalty; where it has no sparsity of its own, its strength is learned for the one that is trimmed to."""
    own = options.penalty
    if options.final is None or own.sparsity is not None or own.kind == "l2":
        return own
    return own.model_copy(update={"sparsity": options.final})


def _trimmed(
    state: State, options: Options, plans: list[Any], given: Path, earlier: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The masks, and in the workspace the model that they were laid over."""
    from edgeprune.keras import intake, kernels, pruning

    made = state.workspace / "trimmed"
    if not made.exists():
        model = intake.load_own(given)
        names = [kernels.key(plan.name, kernel) for plan in plans for kernel in plan.kernels]
        weights = {name: kernels.find(model, name).numpy() for name in names}
        found = _masks(options, weights, earlier)
        for name, mask in found.items():
            kernels.find(model, name).assign(np.where(mask, weights[name], 0.0))
        with files.temporary_folder(made) as temporary:
            intake.save(model, temporary / MODEL)
            pruning.save_masks(found, temporary / MASKS)
    return pruning.load_masks(made / MASKS)


def _masks(
    options: Options, weights: Mapping[str, np.ndarray], earlier: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What stays, True: the largest magnitudes, or whatever is not zero; never what an earlier stage has removed."""
    if options.final is None:
        return {name: values != 0 for name, values in weights.items()}
    scores = {
        name: np.where(earlier.get(name, np.True_), np.abs(values.astype("float64")), GONE)
        for name, values in weights.items()
    }
    found = masks.masks(scores, options.final, granularity.weight(), options.scope)
    return {name: mask & earlier.get(name, np.True_) for name, mask in found.items()}


# What is told


def _told(
    state: State, options: Options, history: list[dict[str, Any]], found: Mapping[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """The history and the summary; the float reference where no stage has trained one is the model itself."""
    last = history[penalised_epochs(options) - 1]
    kind, of = options.penalty.kind, "units" if found is None else "weights"
    words = [f"{kind}: {last['zeros']:.1%} of the {of} zero at strength {last['strength']:.3g}"]
    if found is not None:
        size = sum(mask.size for mask in found.values())
        words.append(
            f"{len(found)} layers trimmed to {1.0 - sum(int(mask.sum()) for mask in found.values()) / size:.1%}"
        )
    return {"history": {state.label: {"epochs": history}}, "summaries": {state.label: ", ".join(words)}}
