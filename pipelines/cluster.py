"""Cluster weights with TFMOT: every kernel keeps a few distinct values, and the compressed file becomes smaller.

Takes the role ``model``; leaves ``model`` (rewritten for int8 and clustered, plain layers) and what every layer was given.
Zeros of earlier stages stay zeros. A quantize stage after it keeps the clusters (CQAT), and the zeros with them (PCQAT).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from edgeprune.errors import RecipeError
from edgeprune.option_types import Expression
from edgeprune.pipeline import State
from edgeprune.recipe import FitOptions

# Stages that may not come after this one: their training would give the weights values of their own again.
LAST_OF = ("train", "shrink", "prune", "sparsify", "gate", "regularize")


class Options(FitOptions):
    """Options of the cluster stage."""

    learning_rate: float = Field(3e-4, gt=0, le=10, description="of the first step")
    clusters: int = Field(
        16, ge=2, le=255, description="distinct values that a kernel keeps, with zero where an earlier stage has pruned"
    )
    scope: Literal["layer", "channel"] = Field(
        "layer",
        description="layer: values of the whole kernel, which compress best; channel: every output channel of a Conv2D has its own",
    )
    start: Literal["k-means", "linear", "density"] = Field(
        "k-means", description="where the values start: fitted to the weights, or as TFMOT's LINEAR or DENSITY_BASED"
    )
    gradients: Literal["sum", "average"] = Field(
        "sum", description="what a value learns from the weights of its cluster: their gradients' sum or average"
    )
    preserve: bool = Field(True, description="keep the zeros of earlier stages at zero")
    fold: Literal["dense", "all"] = Field(
        "dense",
        description="BatchNormalization folded before: into Dense only, or into all; the quantize stage must have the same",
    )
    include: Expression = Field(".*", description="regular expression: only layers whose whole name matches")
    exclude: Expression | None = Field(None, description="regular expression: no layer whose whole name matches")

    @model_validator(mode="after")
    def _has_some(self) -> Options:
        if self.preserve and self.clusters < 3:
            raise ValueError("with preserve one of the values is zero, so clusters must be at least 3")
        return self


def run(state: State, options: Options) -> State:
    """Prepare, wrap, fit, strip.

    Raises:
        RecipeError: there is nothing to cluster.
        ConversionError: a rewrite changed the outputs.
    """
    from edgeprune.keras import clustering, constraints, intake, preparation, program, training

    training.start(state.run.seed)
    model = intake.load_own(state.path("model"))
    why = program.why_not(model)
    if why:
        return state.add(
            notes=[f"Nothing is clustered. {why}."], summaries={state.label: "nothing to cluster: no layers"}
        )
    prepared = preparation.prepare(model, options.fold)
    codebook = clustering.Codebook(
        options.clusters, options.scope, options.start, options.gradients, options.preserve and "masks" in state.files
    )
    plans = clustering.plan(prepared.model, codebook, options.include, options.exclude)
    _check_earlier(state, plans)
    plain = clustering.upright(prepared.model, [plan.name for plan in plans if plan.reason is None])
    wrapped = clustering.wrap(plain, plans, codebook)
    with constraints.restored(wrapped.trainable_variables):
        _hold_others(state, options, wrapped, plans)
        history = training.fit(wrapped, state, options, training.objective(plain, state.run.data.tasks))
    clustered = clustering.strip(wrapped, plain)
    layers = clustering.entries(plans, clustered, codebook)
    return state.add(
        files={"model": intake.save(clustered, state.workspace / "model.keras")},
        history={state.label: {"epochs": history}} if history else {},
        clustering={
            "layers": layers,
            "kept": "channel",
        },  # by ranges set after training; a quantize stage says otherwise
        rewrites=[{"name": done.name, "layers": list(done.layers)} for done in prepared.done],
        summaries={state.label: _summary(layers, options)},
    )


def _hold_others(state: State, options: Options, wrapped: Any, plans: list[Any]) -> None:
    """Hold the zeros of pruned layers that are not clustered, such as those that have few enough values as they are."""
    from edgeprune.keras import constraints, kernels, pruning

    if not options.preserve or "masks" not in state.files:
        return
    clustered = {plan.name for plan in plans if plan.reason is None}
    for key, mask in pruning.load_masks(state.path("masks")).items():
        if key.partition(":")[0] not in clustered:
            constraints.hold(kernels.find(wrapped, key), mask)


def _check_earlier(state: State, plans: list[Any]) -> None:
    """What an earlier cluster stage clustered must be clustered by this one too, or training would undo it unnoticed.

    Raises:
        RecipeError: it is not.
    """
    earlier = state.facts.get("clustering", {}).get("layers", {})
    alone = {plan.name for plan in plans if plan.reason is not None}
    lost = [name for name, entry in earlier.items() if entry["asked"] and name in alone]
    if lost:
        raise RecipeError(
            f"stages.{state.label} does not cluster {', '.join(lost)}, which an earlier stage has clustered: training would undo "
            f"that. Ask for fewer clusters, widen stages.{state.label}.include, or cluster all layers in one stage."
        )


def _summary(layers: Mapping[str, Mapping[str, Any]], options: Options) -> str:
    done = [entry for entry in layers.values() if entry["asked"]]
    where = "a layer" if options.scope == "layer" else "a channel"
    most = max(entry["distinct_keras"] for entry in done)
    return f"{len(done)} layers at {most} values {where} at most, {len(layers) - len(done)} left alone"
