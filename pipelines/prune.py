"""Prune with TFMOT: zeros in the weights, by magnitude, rising over the stage's epochs.

Takes the role ``model``; leaves ``model`` (the pruned float model, plain layers), ``masks`` (what is kept, per layer) and
a plan of every layer: pruned, or why not.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from edgeprune.option_types import Block, Expression, NofM
from edgeprune.pipeline import State
from edgeprune.recipe import FitOptions

LAST_OF = ("shrink",)  # stages that may not come after this one: they would remove channels of masked kernels
SPREADS = True  # over devices


class Options(FitOptions):
    """Options of the prune stage."""

    granularity: Literal["weight", "block", "n:m"] = Field("weight", description="what lives or dies together")
    pattern: NofM = Field("2:4", description="for n:m: keep n of every m consecutive input channels")
    block: Block = Field([4, 1], description="for block: consecutive input channels x output channels")
    pooling: Literal["AVG", "MAX"] = Field(
        "AVG", description="for block: a block's score from the magnitudes inside it"
    )
    schedule: Literal["polynomial", "constant"] = Field(
        "polynomial", description="how sparsity rises (TFMOT's PolynomialDecay or ConstantSparsity)"
    )
    ramp: bool = Field(
        True, description="for n:m: one more zero per block at a time (4:4, 3:4, 2:4); false: at once, as TFMOT does"
    )
    initial: float = Field(0.0, ge=0, lt=1, description="sparsity at `begin`, 0..1")
    final: float = Field(
        0.5, gt=0, lt=1, description="sparsity from `end` on, 0..1; for n:m it follows from the pattern"
    )
    begin: float = Field(0.0, ge=0, le=1, description="share of the stage's steps after which pruning starts, 0..1")
    end: float = Field(
        0.6, gt=0, le=1, description="share of the stage's steps after which the final sparsity is reached, 0..1"
    )
    power: float = Field(3.0, gt=0, le=100, description="of the polynomial; 1 is a straight line")
    frequency: int | None = Field(None, ge=1, description="steps between mask updates; null: a hundredth of the ramp")
    include: Expression = Field(".*", description="regular expression: only layers whose whole name matches")
    exclude: Expression | None = Field(None, description="regular expression: no layer whose whole name matches")

    @model_validator(mode="after")
    def _in_order(self) -> Options:
        if not self.begin < self.end:
            raise ValueError(f"begin ({self.begin}) must be smaller than end ({self.end})")
        if self.epochs < 1:
            raise ValueError("pruning needs at least one epoch")
        return self


def run(state: State, options: Options) -> State:
    """Wrap, fit, strip."""
    from edgeprune.keras import intake, program, pruning, pruning_wrappers, replicas, statistics, tfmot, training

    training.start(state.run.seed)
    model = intake.load_own(state.path("model"))
    why = program.why_not(model)
    if why:
        return state.add(notes=[f"Nothing is pruned. {why}."], summaries={state.label: "nothing to prune: no layers"})
    pattern, ramp = pruning.pattern_of(options), pruning.ramp_of(options, options.ramp)
    plans = pruning.plan(model, pattern, options.include, options.exclude)
    pruning.earlier(state, plans)  # which it would refuse
    steps = options.epochs * training.steps_per_epoch(state.run.data.train, options)

    def wrapping() -> Any:
        return pruning_wrappers.wrap(model, plans, pattern, ramp, steps)

    wrapped = wrapping()
    goal = training.objective(model, state.run.data.tasks)
    schedule = pruning.schedule_function(ramp, pattern)
    with replicas.spread(state, wrapped, wrapping) as placed:
        history = training.fit(placed, state, options, goal, [tfmot.sparsity.keras.UpdatePruningStep()], schedule)
    masks, stripped = pruning_wrappers.masks(wrapped), pruning_wrappers.strip(wrapped)
    if history:
        statistics.settle(stripped, state.run.data.train)
    pruned = intake.save(stripped, state.workspace / "model.keras")
    left = [f"{plan.name} is not pruned: {plan.reason}" for plan in plans if plan.left_alone]
    partly = [f"{plan.name}'s {reason}; this kernel is not pruned" for plan in plans for reason in plan.left]
    return state.add(
        files={"model": pruned, "masks": pruning.save_masks(masks, state.workspace / "masks.npz")},
        history={state.label: {"epochs": history, "schedule": pruning.curve(schedule, options.epochs)}},
        pruning={"layers": pruning.entries(plans, pattern, masks, ramp.final)},
        notes=[*left, *partly],
        summaries={state.label: _summary(plans, masks, pattern)},
    )


def _summary(plans: list[Any], masks: dict[str, Any], pattern: Any) -> str:
    zeros = [1.0 - float(mask.mean()) for mask in masks.values()]
    low, high = f"{min(zeros):.1%}", f"{max(zeros):.1%}"
    share = low if low == high else f"{low} to {high}"
    return f"{len(zeros)} layers at {share} zeros ({pattern}), {sum(plan.left_alone for plan in plans)} left alone"
